# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Phantoms as a scanner shows them that no training image came from: another probe, depth and maker's picture."""

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter, median_filter

from modeling_urfm.data.phantom_anatomy import ANATOMY
from modeling_urfm.data.phantoms import ORGANS, PhantomFrame, phantom_frame


RANGE_DB = 60.0  # of the grey scale, from black to white
OTHER_PROBE = {"curved": "sector", "sector": "curved", "linear": "linear"}


def other_scanner_frame(
    seed: int,
    patient: int,
    *,
    organ: str | None = None,
    lesion: str | None = None,
    image_size: int = 128,
    snr_db: float | tuple[float, float],
) -> PhantomFrame:
    """The first frame of a patient on another scanner: a pure function of its arguments.

    The patient's anatomy and lesion are those of `phantom_frame`. What a curved probe shows is seen by a sector probe and the
    other way round (near organs stay with the linear probe: no other one is put on a breast); a depth 15 to 30 % above or 13
    to 20 % below the usual one, and the picture (`other_picture`) are drawn for each patient.

    Args:
        organ, lesion, image_size, snr_db: as of `phantom_frame`.

    Raises:
        ValueError: as `phantom_frame`.
    """
    rng = np.random.default_rng([seed, patient, 10_001])
    organ = organ or ORGANS[patient % len(ORGANS)]
    usual_probe = ANATOMY[organ][1] if organ in ANATOMY else None  # `phantom_frame` refuses what does not exist
    probe = OTHER_PROBE.get(usual_probe)
    depth_scale = rng.uniform(1.15, 1.3) if rng.random() < 0.5 else rng.uniform(0.8, 0.87)
    frame = phantom_frame(
        seed, patient, organ=organ, lesion=lesion, probe=probe, depth_scale=depth_scale, image_size=image_size, snr_db=snr_db,
    )  # fmt: skip
    return replace(frame, image=other_picture(frame.image, frame.scan_mask, rng))


def other_picture(image: np.ndarray, scan_mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another maker's post-processing, drawn from `rng`: gain, grey map, and edges enhanced or speckle reduced.

    Args:
        image: (size, size) uint8. scan_mask: (size, size) bool; outside it the image stays black.

    Returns:
        (size, size) uint8.
    """
    gain_db = rng.uniform(3, 6) * rng.choice([-1, 1])
    grey = np.clip(image / 255 + gain_db / RANGE_DB, 0, 1) * scan_mask
    kind = rng.choice(["s_shaped", "lighter", "darker"])
    if kind == "s_shaped":
        grey = 0.5 * grey + 0.5 * grey**2 * (3 - 2 * grey)
    else:
        grey = grey ** (rng.uniform(0.75, 0.85) if kind == "lighter" else rng.uniform(1.2, 1.35))
    if rng.random() < 0.5:
        # The mean of what the scan shows: black from outside would leave a bright rim.
        blurred = gaussian_filter(grey, 1.5) / np.maximum(gaussian_filter(scan_mask.astype(float), 1.5), 1e-3)
        grey = grey + rng.uniform(0.3, 0.7) * (grey - blurred)
    else:
        grey = median_filter(grey, 3)
    return (np.clip(grey, 0, 1) * scan_mask * 255 + 0.5).astype(np.uint8)
