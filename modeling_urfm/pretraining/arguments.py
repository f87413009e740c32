# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a pre-training run is asked to do: a YAML file of two sections, `model` and `training`, and flags over it."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..configuration_urfm import URFMConfig
from ..flags import check_choice, flag, helps_of, parse_sections


# Names that `--augment` takes: `data.augmentations.EFFECTS`, and a flip that `PretrainTransform` does.
AUGMENTATIONS = ("speckle", "blur", "attenuation", "shadow", "haze", "gain", "contrast", "vertical_flip")


@dataclass
class PretrainArguments:
    """The `training` section. Names are those of transformers' examples where those have one."""

    dataset: list[str] | None = flag(
        "What to train on, one or several: 'demo' (phantoms and pydicom's real examples), a folder of images or DICOM "
        "files, a `datasets` image folder, Parquet files, or a Hub id."
    )
    dataset_split: str = flag("Split of a data set that has several.", "train")
    phantom_patients: int = flag("Patients (4 frames each) in the 'demo' corpus.", 450)
    phantom_snr_db: list[float] | None = flag("Lowest and highest signal-to-noise ratio of the phantoms, in dB.")
    teacher: str = flag(
        "Frozen encoder whose features are the targets: 'demo' (ships with the package), "
        "'open_clip:hf-hub:ID', 'open_clip:local-dir:FOLDER', 'transformers:ID_OR_FOLDER'.",
        "open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    )
    teacher_layer: int = flag("Layer of the teacher: -1 is the last, after its norm; -2 the one before, and so on.", -1)
    teacher_normalize: str = flag("Normalisation of the teacher's features: 'none', 'l2' or 'layer_norm'.", "none")
    target_cache: str | None = flag(
        "Folder that recipes/cache_targets.py made of this data and teacher: features are read from it, not computed."
    )
    output_dir: str = flag("Folder for the model, its card, figures, results and checkpoints.", "urfm")
    init_from: str | None = flag("Folder or Hub id of a URFM model to continue from (weights only).")
    per_device_train_batch_size: int = flag("Images a process and a micro-step.", 64)
    gradient_accumulation_steps: int = flag("Micro-steps a step of the optimiser.", 1)
    learning_rate: float | None = flag("Peak learning rate. Default: base_learning_rate x global batch / 256.")
    base_learning_rate: float = flag("Learning rate for 256 images a step (linear scaling rule).", 1.5e-4)
    weight_decay: float = flag("AdamW's, on matrices only: not on biases, norms, tokens, position embeddings.", 0.05)
    adam_beta2: float = flag("AdamW's second beta (0.95 as in MAE).", 0.95)
    max_grad_norm: float = flag("Largest norm of the gradient; larger ones are scaled down. 0: no clipping.", 1.0)
    num_train_epochs: float = flag("Passes over the data.", 300.0)
    max_train_steps: int | None = flag("Steps of the optimiser; overrides num_train_epochs.")
    warmup_ratio: float = flag("Share of the steps in which the learning rate rises linearly.", 0.05)
    min_crop_scale: float = flag("Smallest area of a random crop, of the image's; the largest is 1.", 0.2)
    balance_by: list[str] | None = flag(
        "Columns of the data, such as organ or source: images are drawn so that the groups they name get the shares "
        "n^T / sum n^T of an epoch."
    )
    balance_temperature: float = flag("T of balance_by: 1 as in the data, 0 all groups equally often.", 0.5)
    max_images_per_source: int | None = flag(
        "Images that a value of the column `source` gives to an epoch at most, others each epoch (US-JEPA: 50000)."
    )
    augment: list[str] | None = flag(
        f"Effects on the crops, each as NAME or NAME=STRENGTH (1 is full): {', '.join(AUGMENTATIONS)}."
    )
    augment_probability: float = flag("Probability of each effect of `augment`.", 0.5)
    augment_student_only: bool = flag(
        "The teacher sees the crop without the effects of `augment`, so that its features stay clean.", False
    )
    loss_on_scan_region: bool = flag(
        "Take the loss over patches that show ultrasound only, found from the pixels.", False
    )
    mixed_precision: str | None = flag("'no', 'bf16' or 'fp16'. Default: what `accelerate launch` was told.")
    gradient_checkpointing: bool = flag("Recompute activations in the backward pass: slower, less memory.", False)
    ema_decay: float | None = flag("Decay of an exponential moving average of the weights; it is what is published.")
    seed: int = flag("Seeds weights, order, crops and masks.", 0)
    dataloader_num_workers: int = flag("Processes a rank that read and crop images; 0: the training process.", 2)
    logging_steps: int = flag("Steps between two entries in the log and the trackers.", 10)
    report_to: str = flag("Tracker: 'none', 'tensorboard', 'trackio', 'wandb' or 'all'.", "none")
    eval_steps: int | None = flag("Steps between two kNN evaluations on held-out phantoms; also before and after.")
    checkpointing_steps: int | None = flag("Steps between two checkpoints; one is always written at the end.")
    save_total_limit: int = flag("Checkpoints that are kept.", 2)
    resume_from_checkpoint: str | None = flag("A checkpoint folder, or 'latest' for the newest in output_dir.")
    allow_elastic_resume: bool = flag(
        "Resume with another number of processes or another batch: images go on in the same order. Not with DeepSpeed.",
        False,
    )
    max_skipped_steps: int = flag(
        "A step whose loss or gradient is not finite is skipped; after so many in a row the run stops.", 10
    )
    dry_run: bool = flag(
        "Take a few steps, print parameters, memory, steps, hours and disk that the run would need, write nothing.",
        False,
    )
    profile: bool = flag("Write a trace of four steps into output_dir/profile: where their time goes.", False)

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("No dataset: name a folder, Parquet files or a Hub id with --dataset, or 'demo'.")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_total_limit",
                     "max_skipped_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("max_train_steps", "eval_steps", "checkpointing_steps", "max_images_per_source"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or be left out.")
        if self.num_train_epochs <= 0 and self.max_train_steps is None:
            raise ValueError(f"num_train_epochs={self.num_train_epochs} must be above 0.")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio={self.warmup_ratio} is outside [0, 1]. The nearest valid value: "
                             f"{min(max(self.warmup_ratio, 0.0), 1.0)}.")  # fmt: skip
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"min_crop_scale={self.min_crop_scale} is outside (0, 1]. The nearest valid value: "
                             f"{1.0 if self.min_crop_scale > 1 else 0.01}.")  # fmt: skip
        if not 0 <= self.balance_temperature <= 1:
            raise ValueError(f"balance_temperature={self.balance_temperature} is outside [0, 1]. The nearest valid value: "
                             f"{min(max(self.balance_temperature, 0.0), 1.0)}.")  # fmt: skip
        if not 0 < self.augment_probability <= 1:
            raise ValueError(f"augment_probability={self.augment_probability} is outside (0, 1]. The nearest valid value: "
                             f"{1.0 if self.augment_probability > 1 else 0.1}; without effects, leave out augment.")  # fmt: skip
        if self.augment_student_only and not self.augment:
            raise ValueError("augment_student_only: there is nothing that the student alone could see; name effects with "
                             "--augment, e.g. speckle blur.")  # fmt: skip
        augmentation_strengths(self.augment)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} is outside (0, 1). A usual value: 0.9999.")
        if self.phantom_snr_db is not None and len(self.phantom_snr_db) != 2:
            raise ValueError(f"phantom_snr_db={self.phantom_snr_db}: give the lowest and the highest, e.g. 0 10.")
        if self.phantom_snr_db is not None and self.phantom_snr_db[0] > self.phantom_snr_db[1]:
            raise ValueError(f"phantom_snr_db={self.phantom_snr_db}: the lowest comes first. The nearest valid value: "
                             f"{self.phantom_snr_db[::-1]}.")  # fmt: skip
        check_choice("mixed_precision", self.mixed_precision, (None, "no", "bf16", "fp16"))
        check_choice("teacher_normalize", self.teacher_normalize, ("none", "l2", "layer_norm"))
        check_choice("report_to", self.report_to, ("none", "tensorboard", "trackio", "wandb", "all"))
        if self.report_to not in ("none", "all") and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(
                f"report_to={self.report_to!r} is not installed: pip install {self.report_to}, or --report_to none."
            )


def augmentation_strengths(effects: Sequence[str] | None) -> dict[str, float]:
    """`["blur", "gain=0.5"]` to `{"blur": 1.0, "gain": 0.5}`.

    Raises:
        ValueError: a name that does not exist, with the nearest, or a strength outside (0, 1].
    """
    strengths = {}
    for effect in effects or ():
        name, _, given = effect.partition("=")
        check_choice("augment", name, AUGMENTATIONS)
        try:
            strengths[name] = float(given or 1)
        except ValueError:
            raise ValueError(f"augment {effect!r}: {given!r} is no number. Full strength: {name}=1.") from None
        if not 0 < strengths[name] <= 1:
            raise ValueError(f"augment {effect!r}: the strength is outside (0, 1]. The nearest valid value: "
                             f"{name}={1 if strengths[name] > 1 else 0.1}.")  # fmt: skip
    return strengths


def parse_arguments(
    default_config: str | Path, argv: Sequence[str] | None = None
) -> tuple[PretrainArguments, URFMConfig]:
    """Read `--config FILE.yaml`, then let every flag override it; errors as in `flags.parse_sections`."""
    sections = {"training": (PretrainArguments, helps_of(PretrainArguments)), "model": (URFMConfig, _model_help())}
    description = "Pre-train URFM: predict a frozen teacher's features of masked patches."
    values = parse_sections(sections, description, default_config, argv)
    return PretrainArguments(**values["training"]), URFMConfig(**values["model"])


def _model_help() -> dict[str, str]:
    """The fields of URFMConfig that decide a pre-training, each with a line."""
    return {
        "image_size": "Height and width of the crops, in pixels.",
        "patch_size": "Height and width of a patch, in pixels.",
        "hidden_size": "Width of the encoder.",
        "num_hidden_layers": "Layers of the encoder.",
        "num_attention_heads": "Heads of the encoder.",
        "intermediate_size": "Width inside the encoder's MLPs.",
        "hidden_act": "Activation of the MLPs.",
        "qkv_bias": "Whether queries, keys and values have a bias.",
        "layer_norm_eps": "Epsilon of the norms.",
        "initializer_range": "Standard deviation of the initial weights.",
        "drop_path_rate": "Stochastic depth of the last layer.",
        "pooling": "What pooler_output is.",
        "position_embedding_type": "Fixed or learned position embedding.",
        "mask_ratio": "Share of the patches that is hidden.",
        "mask_strategy": "Hidden one by one or in rectangles.",
        "decoder_type": "MAE's decoder over all tokens, or mask queries over the visible ones.",
        "decoder_hidden_size": "Width of the decoder.",
        "decoder_num_hidden_layers": "Layers of the decoder.",
        "decoder_num_attention_heads": "Heads of the decoder.",
        "decoder_intermediate_size": "Width inside the decoder's MLPs.",
        "decoder_mask_fraction": "Share of the hidden patches that the cross-attention decoder predicts.",
        "target": "The teacher's features, or normalised pixels (MAE's baseline; needs no teacher).",
        "target_hidden_size": "Width of the teacher's features; found from the teacher when left out.",
        "loss_type": "Loss against the features.",
    }  # fmt: skip
