# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Small labelled data in the forms that users have."""

from pathlib import Path

import numpy as np
from PIL import Image


SIZE = (24, 32)  # height, width: not square, so that a swap shows


def noise(seed: int, size=SIZE, channels: int = 1) -> np.ndarray:
    """(height, width) or (height, width, 3) uint8."""
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def blob(seed: int, size=SIZE) -> np.ndarray:
    """(height, width) bool: a rectangle."""
    top, left = np.random.default_rng(seed).integers(2, 8, 2)
    mask = np.zeros(size, dtype=bool)
    mask[top : top + 10, left : left + 12] = True
    return mask


def class_folders(root: Path, sides=("train", "test"), classes=("kidney", "liver", "spleen"), count: int = 8) -> Path:
    """SIDE/CLASS/N.png; no sides: CLASS/N.png."""
    seed = 0
    for side in sides or ("",):
        for label in classes:
            for number in range(count):
                seed += 1
                save(root / side / label / f"{side}{number}.png", noise(seed))
    return root


def mask_folders(root: Path, count: int = 12, foreground: int = 255, ends=(".png", ".png")) -> Path:
    """images/N and masks/N."""
    for number in range(count):
        save(root / "images" / f"case {number}{ends[0]}", noise(number))
        save(root / "masks" / f"case {number}{ends[1]}", (foreground * blob(number)).astype(np.uint8))
    return root


def write_csv(path: Path, rows: list, mark: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(mark.join("" if c is None else str(c) for c in row) for row in rows) + "\n", encoding="utf-8"
    )
    return path
