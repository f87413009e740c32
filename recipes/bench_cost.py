# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How many hours a pre-training would take, by counting: nothing is run, every hour is an estimate.

    python recipes/bench.py cost                                              # the five configs on one GPU and on eight
    python recipes/bench.py cost --images 200000 --epochs 100 --mfu 0.2       # your corpus, your share of the peak
    python recipes/bench.py cost --images_per_s 4000                          # and what your loader gives

    hours = FLOPs / (GPUs x peak rate x MFU) / 3600, and no less than reading the images takes

FLOPs are those of `modeling_urfm/pretraining/flops.py`: of every image shown forward and backward, forward once more where the
config recomputes activations, and the teacher's forward (BiomedCLIP's ViT-B/16) for every image shown, or, with a target cache,
once for every image of the corpus. Peak rates are NVIDIA's for dense bf16. Eight GPUs are taken to be eight times as fast as one,
which they are at best.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from modeling_urfm import URFMConfig, URFMForPreTraining
from modeling_urfm.pretraining.dry_run import FLOAT, checkpoint_bytes
from modeling_urfm.pretraining.flops import forward_flops, step_flops, vit_forward_flops


CONFIGS = Path(__file__).resolve().parent / "configs"
NAMES = ("urfm_small", "urfm_base", "urfm_base_fast", "urfm_large", "urfm_huge")
# Dense bf16 matrix products with fp32 sums, in TFLOP/s. The data sheets of L40S and A100 give them beside the rates with
# sparsity; those of H100 and H200 SXM give 1,979 with sparsity alone, of which this is half; RTX 4090: Ada GPU architecture
# white paper, appendix A.
PEAK_TFLOPS = {"RTX 4090": 165.2, "A100": 312.0, "L40S": 362.05, "H100, H200 (SXM)": 989.5}
# An assumption, and what `recipes/EXPERIMENTS.md` measured without tuning: 3,610 images/s x 22.5 GFLOP on an H200.
MFU = (0.35, 0.08)
# BiomedCLIP's image tower: patches of 16 px at 224 px, 768 wide, 12 layers.
TEACHER_PATCHES, TEACHER_SIZE = 196, {"patch_pixels": 768, "hidden_size": 768, "layers": 12, "intermediate_size": 3072}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `recipes/bench.py cost`."""
    parser.add_argument("--images", type=int, default=850_000, help="Images that an epoch shows.")
    parser.add_argument("--epochs", type=float, help="Passes over them. [the config's]")
    parser.add_argument(
        "--mfu", nargs="+", type=float, default=list(MFU), help="Share of the peak rate that is made use of."
    )
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8], help="Numbers of GPUs.")
    parser.add_argument("--images_per_s", type=float, help="What the loader gives to all GPUs together. [any number]")
    parser.add_argument("--configs", nargs="+", default=list(NAMES), help="Names in recipes/configs, or files.")


@dataclass(frozen=True)
class Cost:
    """What a config takes.

    Attributes:
        student: FLOPs an image shown, recomputed activations among them. teacher_online: of the teacher, of the predicted
            patches. teacher_once: of the teacher, of all patches, as a cache wants them.
        epochs: the config's. encoder, whole: parameters, without and with the decoder.
        state_bytes: weights, gradients, AdamW's moments and the average. checkpoint_bytes: on disk.
    """

    student: int
    teacher_online: int
    teacher_once: int
    epochs: float
    encoder: int
    whole: int
    state_bytes: int
    checkpoint_bytes: int

    def flops(self, images: int, epochs: float, cached: bool) -> float:
        """Of a whole run over a corpus of `images`."""
        shown = images * epochs
        teacher = self.teacher_once * images if cached else self.teacher_online * shown
        return self.student * shown + teacher


def cost_of(name: str) -> Cost:
    """The cost of a config by its name in `recipes/configs`, or by its file."""
    path = CONFIGS / f"{name}.yaml"
    values = yaml.safe_load((path if path.is_file() else Path(name)).read_text())
    config, training = URFMConfig(**values["model"]), values["training"]
    student = step_flops(config)
    if training.get("gradient_checkpointing"):
        student += sum(forward_flops(config).values())
    predicted = config.num_predicted_patches if config.decoder_type == "cross_attention" else config.num_masked_patches
    # The last layer computes what is asked for where the student's grid is the teacher's.
    same_grid = config.num_patches == TEACHER_PATCHES
    once = vit_forward_flops(TEACHER_PATCHES, **TEACHER_SIZE)
    online = vit_forward_flops(TEACHER_PATCHES, **TEACHER_SIZE, positions=predicted) if same_grid else once
    with torch.device("meta"):
        model = URFMForPreTraining(config)
    every = model.num_parameters()
    trained = model.num_parameters(only_trainable=True)
    average = bool(training.get("ema_decay"))
    return Cost(
        student, online, once, training["num_train_epochs"], model.urfm.num_parameters(), every,
        FLOAT * (every + (3 + average) * trained), checkpoint_bytes(model, average),
    )  # fmt: skip


def hours(flops: float, shown: float, gpus: int, peak: float, mfu: float, images_per_s: float | None = None) -> float:
    """Of `flops` on `gpus` of `peak` FLOP/s each, and no less than reading the images `shown` takes."""
    reading = shown / images_per_s if images_per_s else 0.0
    return max(flops / (gpus * peak * mfu), reading) / 3600


def bench_cost(args: argparse.Namespace) -> str:
    """Print the tables, and return them."""
    costs = {Path(name).stem: cost_of(name) for name in args.configs}
    text = "\n\n".join([*(hours_table(costs, args, mfu) for mfu in args.mfu), memory_table(costs)])
    print(text)
    return text


def hours_table(costs: dict[str, Cost], args: argparse.Namespace, mfu: float) -> str:
    """Hours in Markdown: a row a config and way to have the teacher's features, a column a kind of GPU."""
    fastest = max(PEAK_TFLOPS, key=PEAK_TFLOPS.get)
    counts = " / ".join(map(str, args.gpus))
    lines = [
        f"Hours on {counts} GPUs at an MFU of {mfu:.0%}, an estimate: {args.images:,} images an epoch.",
        "",
        f"| config, epochs | teacher | GFLOP an image | {' | '.join(PEAK_TFLOPS)} | images/s a GPU, {fastest} |",
        "|" + " --- |" * (4 + len(PEAK_TFLOPS)),
    ]
    for name, cost in costs.items():
        epochs = args.epochs or cost.epochs
        shown = args.images * epochs
        for cached in (False, True):
            flops = cost.flops(args.images, epochs, cached)
            cells = [
                " / ".join(
                    rounded(hours(flops, shown, gpus, tera * 1e12, mfu, args.images_per_s)) for gpus in args.gpus
                )
                for tera in PEAK_TFLOPS.values()
            ]
            speed = PEAK_TFLOPS[fastest] * 1e12 * mfu / (flops / shown)
            lines.append(
                f"| `{name}`, {epochs:g} | {'cached' if cached else 'online'} | {flops / shown / 1e9:.1f} | "
                f"{' | '.join(cells)} | {speed:,.0f} |"
            )
    return "\n".join(lines)


def rounded(value: float) -> str:
    """Estimates have two figures, not five."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def memory_table(costs: dict[str, Cost]) -> str:
    """What a GPU and the disk hold whatever the batch, in Markdown."""
    lines = ["| config | parameters, encoder / with decoder | GB on a GPU without activations | GB a checkpoint |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for name, cost in costs.items():
        lines.append(
            f"| `{name}` | {cost.encoder / 1e6:.0f} M / {cost.whole / 1e6:.0f} M | {cost.state_bytes / 1e9:.1f} | "
            f"{cost.checkpoint_bytes / 1e9:.1f} |"
        )
    return "\n".join(lines)
