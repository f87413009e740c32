# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The regions that a DICOM file declares (PS3.3, C.8.5.5), read without trust: many files were changed after export."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .screen import Box


MAX_DECLARED = 64
# Region Spatial Format (0018,6012): 1 2D, 2 M-mode, 3 spectral, 4 waveform, 5 graphics.
SPATIAL_2D, SPATIAL_M_MODE, SPATIAL_SPECTRAL = 1, 2, 3
COLOUR_FLOW = 2  # Region Data Type (0018,6014)
CENTIMETRES = 3  # Physical Units X Direction (0018,6024)


@dataclass(frozen=True)
class DeclaredRegion:
    """One item of the Sequence of Ultrasound Regions; None where a value is missing or makes no sense.

    box: outer edges as declared, (top, left, height, width), not checked against the image. spacing_mm: row, column.
    """

    box: Box | None
    spatial_format: int | None
    data_type: int | None
    spacing_mm: tuple[float, float] | None


def _integer(item, name: str) -> int | None:
    try:
        value = float(getattr(item, name))
        return int(value) if math.isfinite(value) and abs(value) < 1e9 else None
    except Exception:  # whatever a hostile header makes pydicom raise
        return None


def _length(item, name: str) -> float | None:
    """A spacing in mm that ultrasound can have (1 um to 10 mm a pixel), of a delta in cm."""
    try:
        value = abs(float(getattr(item, name))) * 10
        return value if 1e-3 <= value <= 10 else None
    except Exception:
        return None


def read_declared(header) -> tuple[DeclaredRegion, ...]:
    """The declared regions of a DICOM header; whatever is damaged in it is None, nothing is raised."""
    try:
        items = list(header.SequenceOfUltrasoundRegions)[:MAX_DECLARED]
    except Exception:
        return ()
    found = []
    for item in items:
        left, top = _integer(item, "RegionLocationMinX0"), _integer(item, "RegionLocationMinY0")
        right, bottom = _integer(item, "RegionLocationMaxX1"), _integer(item, "RegionLocationMaxY1")
        box = None
        if None not in (left, top, right, bottom) and right > left and bottom > top:
            box = (top, left, bottom - top + 1, right - left + 1)
        units = _integer(item, "PhysicalUnitsXDirection"), _integer(item, "PhysicalUnitsYDirection")
        row, column = _length(item, "PhysicalDeltaY"), _length(item, "PhysicalDeltaX")
        spacing = (row, column) if units == (CENTIMETRES, CENTIMETRES) and row and column else None
        data_type = _integer(item, "RegionDataType")
        found.append(DeclaredRegion(box, _integer(item, "RegionSpatialFormat"), data_type, spacing))
    return tuple(found)


# Sizes of the screens that scanners export; a file that was scaled down after export has one of them times its scale.
SCREEN_HEIGHTS = (434, 480, 576, 600, 608, 720, 768, 800, 864, 900, 960, 1024, 1050, 1080, 1200, 1440, 2160)
AGREEMENT = 0.7  # intersection over union of a declared box and the found one, from which they agree


def box_overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (top, left, height, width)."""
    rows = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    columns = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(0, rows) * max(0, columns)
    return common / max(1, a[2] * a[3] + b[2] * b[3] - common)


def _misplaced(box: Box | None, shape: tuple[int, int]) -> str:
    """Why a declared box can't be one of this image; empty where it can."""
    if box is None:
        return "its corners are missing or make no box"
    top, left, height, width = box
    if top >= shape[0] or left >= shape[1] or top + height <= 0 or left + width <= 0:
        return "lies outside of the image"
    if top < 0 or left < 0:
        return f"begins at row {top}, column {left}"
    if left + width > shape[1] + 1:  # some scanners count the corner from 1
        return f"reaches to column {left + width - 1} of {shape[1]}"
    if top + height > shape[0] + 1:
        return f"reaches to row {top + height - 1} of {shape[0]}"
    return ""


def declared_strips(
    declared: Sequence[DeclaredRegion], contrast: np.ndarray
) -> tuple[dict[str, list[Box]], list[dict]]:
    """Declared strips along time that agree with the pixels, and a record of each declared region."""
    strips: dict[str, list[Box]] = {"spectral": [], "m_mode": []}
    records = []
    for region in declared:
        why = _misplaced(region.box, contrast.shape)
        kind = {SPATIAL_SPECTRAL: "spectral", SPATIAL_M_MODE: "m_mode"}.get(region.spatial_format)
        if not why and kind is None and region.spatial_format != SPATIAL_2D:
            why = "neither 2D nor a strip along time"
        if not why and kind is not None:
            top, left, height, width = region.box
            part = contrast[top : top + height, left : left + width]
            if (part > 12).mean() < 0.02:
                why = "is empty"
            elif part.size > 0.85 * contrast.size and (part > 12).mean() < 0.5:
                why = "covers the whole image"
            else:
                strips[kind].append(region.box)
        records.append(record_of(region, why, believed=not why and kind is not None))
    return strips, records


def record_of(region: DeclaredRegion, why: str, believed: bool = False) -> dict:
    return {
        "box": region.box, "data_type": region.data_type, "spatial_format": region.spatial_format,
        "believed": believed, "why": why,
    }  # fmt: skip


def holds(outer: Box, inner: Box) -> bool:
    return (
        outer[0] <= inner[0] + 2 and outer[1] <= inner[1] + 2
        and outer[0] + outer[2] >= inner[0] + inner[2] - 2 and outer[1] + outer[3] >= inner[1] + inner[3] - 2
    )  # fmt: skip
