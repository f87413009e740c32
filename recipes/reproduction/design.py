# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What is compared with what, on how much data, for how long: every number of the experiment that somebody chose."""

from dataclasses import dataclass, field, replace


# Signal-to-noise ratios of the corpora in dB: clean; good; poor; one where a person hardly sees the organ.
LEVELS = (30.0, 10.0, 0.0, -6.0)
LOW = (0.0, -6.0)  # the low-signal corpora, over which the claims are averaged
HOME = 0.0  # where everything that is asked once is asked: fine-tuning, label efficiency, robustness, ablations
# Images as the demo's teacher takes them; students see means of 2 x 2 pixels. 8 x 8 patches for both.
IMAGE_SIZE, STUDENT_SIZE, PATCH_SIZE = 128, 64, 8
GRID = (STUDENT_SIZE // PATCH_SIZE,) * 2
CLEAN = 30.0  # where the arms that the claims compare are tuned once more: what suits noise need not suit its absence
CLEAN_FROM = 10.0  # dB; below it the settings that were tuned at HOME
TUNING_SEED = 100  # of the runs that choose learning rates; no result is taken from them

ENCODER = {
    "image_size": STUDENT_SIZE, "patch_size": PATCH_SIZE, "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "intermediate_size": 512, "initializer_range": 0.05, "pooling": "mean",
}  # fmt: skip
# The proportions of the released URFM: a self-attention decoder two thirds as deep as the encoder, all hidden patches
# predicted.
DECODER = {
    "decoder_type": "self_attention", "decoder_hidden_size": 96, "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3, "decoder_intermediate_size": 384,
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        patients: of the unlabelled corpus, `frames` each, from which `views` random crops are cut once.
        steps, batch: of a pre-training. checkpoints: shares of the steps after which the encoder is probed.
        organ, lesion: patients of the labelled sets: training, validation, test, and test of another scanner.
        levels: corpora of the two arms that the claims compare. seeds: of every arm.
        finetune_passes: images that full fine-tuning shows, of each task. label_seeds: draws of a fraction of the labels.
    """

    name: str
    patients: int = 1500
    frames: int = 4
    views: int = 2
    steps: int = 1400
    batch: int = 32
    tuning_steps: int = 700
    checkpoints: tuple[float, ...] = (0.05, 0.15, 0.4)
    organ: tuple[int, int, int, int] = (900, 300, 450, 300)
    lesion: tuple[int, int, int, int] = (600, 200, 400, 300)
    levels: tuple[float, ...] = LEVELS
    seeds: tuple[int, ...] = (0, 1, 2)
    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5)
    label_seeds: tuple[int, ...] = (0, 1, 2)
    finetune_passes: dict = field(default_factory=lambda: {"organ": 9_000, "lesion": 7_200, "mask": 3_600})


FULL = Scale("full")
QUICK = Scale(
    "quick", patients=600, steps=700, checkpoints=(), organ=(450, 150, 300, 150), lesion=(300, 100, 200, 100), levels=(30.0, 0.0),
    seeds=(0,), fractions=(0.1,), label_seeds=(0,), finetune_passes={"organ": 3_000},
)  # fmt: skip
SCALES = {scale.name: scale for scale in (FULL, QUICK)}


@dataclass(frozen=True)
class Arm:
    """One way to pre-train the encoder.

    Attributes:
        targets: whose features are predicted: "medical", "other", "random" (teachers), or "pixel".
        layer, normalize: of the teacher, as `--teacher_layer` and `--teacher_normalize`.
        average_frames: the targets of a frame are averaged over its neighbours in the cine loop.
        blur: standard deviation in pixels of a Gaussian blur of what the student sees (pixel targets stay sharp).
        augment: the student alone sees ultrasound augmentation (pixel targets stay clean).
        learning_rate: peak. model: fields of `URFMConfig` that differ. scan_region: the loss is limited to it.
        ema: decay of the averaged weights that are probed. length: of the training, in units of `Scale.steps`.
    """

    targets: str
    learning_rate: float = 1e-3
    layer: int = -1
    normalize: str = "none"
    average_frames: bool = False
    blur: float = 0.0
    augment: bool = False
    model: dict = field(default_factory=dict)
    scan_region: bool = False
    ema: float = 0.0
    length: float = 1.0


# What each kind of target was given to choose from, in `Scale.tuning_steps` steps at HOME (medical and pixel at CLEAN too), by
# the mean of the organs' and the lesions' macro-F1 on validation: the same for all.
LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
MASK_RATIOS = (0.5, 0.75)

# The arms of the comparison, with what the tuning chose (`tests/recipes/test_reproduce.py` compares it with the units).
MEDICAL = Arm("medical", learning_rate=1e-3, model={"mask_ratio": 0.5})
PIXEL = Arm("pixel", learning_rate=2e-3, model={"mask_ratio": 0.5})
ARMS: dict[str, Arm] = {
    "medical": MEDICAL,
    "frames": replace(MEDICAL, average_frames=True),
    "other": Arm("other", learning_rate=2e-3, model={"mask_ratio": 0.75}),
    "random": Arm("random", learning_rate=2e-3, model={"mask_ratio": 0.5}),
    "pixel": PIXEL,
    "deblur": Arm("pixel", learning_rate=5e-4, model={"mask_ratio": 0.75}, blur=1.5),
}
CLAIMED = ("medical", "pixel")  # at every level; the others at the low ones


def settings_of(name: str, level: float) -> Arm:
    """An arm of `ARMS` as it is trained at a level."""
    return CLEAN_ARMS[name] if level >= CLEAN_FROM and name in CLEAN_ARMS else ARMS[name]


# Without pre-training: a student from scratch, and the teachers themselves.
UNTRAINED = ("scratch", "teacher", "teacher-other")
# Instead of those, from CLEAN_FROM on.
CLEAN_ARMS: dict[str, Arm] = {
    "medical": replace(MEDICAL, learning_rate=5e-4),
    "pixel": replace(PIXEL, learning_rate=1e-3),
}
TUNED = ("medical", "pixel", "deblur", "other", "random", "medical-clean", "pixel-clean", "finetune", "finetune-longer")
# Full fine-tuning, chosen at HOME on the organs' validation by macro-F1, for each kind of encoder that is fine-tuned; of the
# others the frozen features are probed.
FINETUNE_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
FINETUNE_RATE = {"medical": 1e-3, "pixel": 3e-4, "deblur": 1e-3, "scratch": 1e-3, "teacher": 1e-3}
SCRATCH_LONGER = 5  # times as long, a student from scratch is fine-tuned once more: does it lack nothing but time?
SCRATCH_LONGER_RATE = 1e-3  # chosen anew from the same: in the shorter fine-tuning no rate takes it far from chance
AUGMENTED: dict[str, Arm] = {
    "medical-augmented": replace(MEDICAL, augment=True),
    "pixel-augmented": replace(PIXEL, augment=True),
}
LONGER: dict[str, Arm] = {
    "medical-longer": replace(MEDICAL, length=3.0),
    "pixel-longer": replace(PIXEL, length=3.0),
}


# One thing at a time is different from the baseline, which is "medical" in half of the steps.
HALF = replace(MEDICAL, length=0.5)


def _but(**model) -> Arm:
    """The baseline with other fields of its model."""
    return replace(HALF, model=HALF.model | model)


def _cross(fraction: float) -> Arm:
    return _but(decoder_type="cross_attention", decoder_mask_fraction=fraction)


ABLATIONS: dict[str, Arm] = {
    "baseline": HALF,
    "mask ratio 0.25": _but(mask_ratio=0.25),
    "mask ratio 0.6": _but(mask_ratio=0.6),
    "mask ratio 0.75": _but(mask_ratio=0.75),
    "mask ratio 0.9": _but(mask_ratio=0.9),
    "mask in blocks": _but(mask_strategy="block"),
    "teacher's last layer but one": replace(HALF, layer=-2),
    "targets layer-normalised": replace(HALF, normalize="layer_norm"),
    "loss smooth L1": _but(loss_type="smooth_l1"),
    "loss MSE": _but(loss_type="mse"),
    "cross-attention decoder": _cross(1.0),
    "cross-attention, half predicted": _cross(0.5),
    "cross-attention, a quarter predicted": _cross(0.25),
    "loss on the scan region": replace(HALF, scan_region=True),
    "EMA 0.99": replace(HALF, ema=0.99),
}
# What a unit's kind and subject name, of those that are pre-trained.
ARMS_OF_KIND = {"arm": ARMS, "augmented": AUGMENTED, "longer": LONGER, "ablation": ABLATIONS}
