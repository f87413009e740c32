# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Is a cleaned frame worth a place in a corpus? Named thresholds on a few numbers, no model."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class QualityThresholds:
    """When a frame is left out. Grey values are 0..255, shares are of the pixels inside the scan region.

    Attributes:
        min_side: of the region's box, in pixels, before any resizing; smaller: `too-small`.
        blank_level, min_lit_share: a pixel above the level is lit; fewer lit ones than the share: `blank`. Even an
            anechoic bladder has walls and noise.
        white_level, max_white_share: a pixel at or above the level is white; more of them than the share: `saturated`.
        max_flat_share: of the lit blocks of 8 x 8 pixels, how many may be nearly constant (`flat_deviation`, in grey
            values): speckle leaves none, a drawing or a page of the user interface is made of them: `not-ultrasound`.
        frozen_difference: mean absolute difference to the frame before it in a loop, in grey values; at most that:
            `frozen`. Speckle of a live image changes by several.
    """

    min_side: int = 48
    blank_level: int = 16
    min_lit_share: float = 0.04
    white_level: int = 250
    max_white_share: float = 0.4
    flat_deviation: float = 0.8
    max_flat_share: float = 0.6
    frozen_difference: float = 0.25


def judge(grey: np.ndarray, mask: np.ndarray, thresholds: QualityThresholds) -> str | None:
    """A code of `REASONS`, or None for a frame that is kept.

    Args:
        grey: (height, width) uint8, the region's box, cleaned, before resizing. mask: bool, True where ultrasound shows.
    """
    if min(grey.shape) < thresholds.min_side:
        return "too-small"
    inside = grey[mask]
    if not inside.size or (inside > thresholds.blank_level).mean() < thresholds.min_lit_share:
        return "blank"
    if (inside >= thresholds.white_level).mean() > thresholds.max_white_share:
        return "saturated"
    if flat_share(grey, mask, thresholds) > thresholds.max_flat_share:
        return "not-ultrasound"
    return None


def flat_share(grey: np.ndarray, mask: np.ndarray, thresholds: QualityThresholds) -> float:
    """Of the lit blocks of 8 x 8 pixels inside the mask, the share that is nearly constant; 0 where none is lit."""
    rows, columns = grey.shape[0] // 8, grey.shape[1] // 8

    def blocks(array: np.ndarray) -> np.ndarray:
        return array[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8)

    values = blocks(grey.astype(np.float32))
    mean = values.mean((1, 3))
    lit = blocks(mask).all((1, 3)) & (mean > thresholds.blank_level)
    return float((values.std((1, 3))[lit] < thresholds.flat_deviation).mean()) if lit.any() else 0.0


def is_frozen(grey: np.ndarray, before: np.ndarray | None, mask: np.ndarray, thresholds: QualityThresholds) -> bool:
    """Whether a loop stands still: `grey` and the frame `before` it, both (height, width) uint8 of one place."""
    if before is None or before.shape != grey.shape or not mask.any():
        return False
    return float(cv2.absdiff(grey, before)[mask].mean()) <= thresholds.frozen_difference
