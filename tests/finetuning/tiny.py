# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A tiny pre-trained model and labelled images that a tiny model can learn."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_urfm import URFMConfig, URFMForPreTraining, URFMImageProcessor


SIDE = 32


def tiny_config(**changes) -> URFMConfig:
    return URFMConfig(**{
        "image_size": SIDE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "pooling": "mean",
        "decoder_num_attention_heads": 2, "decode_head_hidden_size": 16, "initializer_range": 0.1,
    } | changes)  # fmt: skip


def save_base(folder: Path, **changes) -> Path:
    """A pre-training checkpoint with its processor."""
    torch.manual_seed(0)
    URFMForPreTraining(tiny_config(**changes)).save_pretrained(folder)
    URFMImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def blob(rng: np.random.Generator, kind: int, height: int = 40, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Speckle with a bright (1) or dark (0) disc: the image and the disc, (height, width) uint8."""
    image = rng.rayleigh(60, (height, width))
    y, x = rng.uniform(12, height - 12), rng.uniform(12, width - 12)
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - y) ** 2 + (columns - x) ** 2 < rng.uniform(6, 10) ** 2
    image[disc] = image[disc] * 0.2 + (200 if kind else 0)
    return image.clip(0, 255).astype(np.uint8), disc.astype(np.uint8)


def save_classes(folder: Path, images: int = 16, classes=("dark", "bright")) -> Path:
    """`train/CLASS/*` and `test/CLASS/*`, every image of a patient of its own."""
    rng = np.random.default_rng(0)
    for side, count in (("train", images), ("test", images // 2)):
        for kind, name in enumerate(classes):
            (folder / side / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(blob(rng, kind)[0]).save(folder / side / name / f"{side}{name}{i}.png")
    return folder


def save_masks(folder: Path, images: int = 24) -> Path:
    """`images/*` and `masks/*`."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(images):
        image, mask = blob(rng, 1)
        Image.fromarray(image).save(folder / "images" / f"case{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"case{i}.png")
    return folder


def save_table(folder: Path, images: int = 30) -> Path:
    """`table.csv` with `patient`, two findings and the disc's size beside `*.png`."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = ["image,patient,bright,large,size_mm"]
    for i in range(images):
        image, mask = blob(rng, i % 2)
        Image.fromarray(image).save(folder / f"{i}.png")
        size = int(mask.sum())
        lines.append(f"{i}.png,p{i},{i % 2},{int(size > 200)},{size / 10}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"
