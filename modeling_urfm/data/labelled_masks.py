# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Segmentation masks as people store them, to ids: palettes, 1 bit, 0/255, grey RGB, and the grey edges of JPEG.

What a grey value means can't be told from one mask: 255 is the lesion in one data set and "ignore" in another. So the
values of all masks are counted first (`read_values`), and one rule for the data set follows from them (`mask_rule`).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..image_processing_urfm import IGNORE_INDEX
from .reading import IMAGE_FORMATS, MAX_FRAME_PIXELS, UnreadableFile
from .splits import name_some


IGNORE = IGNORE_INDEX  # pixels that neither train nor count
MAX_IDS = 64  # more ids than this are a photograph, not a mask
NEAR = 16  # grey values that JPEG and resampling leave around 0 and 255
SOLID = 16  # pixels of one or two greys that are no seam

# One part of a mask: encoded bytes or a path. A mask with several parts is their union.
Cell = tuple[bytes | None, str | None]


def read_values(cells: Sequence[Cell]) -> np.ndarray:
    """A mask as it is stored: (height, width) int64 of palette indices or grey values, the largest of its parts.

    Raises:
        UnreadableFile: no image, damaged, of several sizes, or coloured.
    """
    parts = [_read_part(data, path) for data, path in cells]
    if any(part.shape != parts[0].shape for part in parts):
        raise UnreadableFile(_called(cells[0]), f"its parts have the sizes {sorted({part.shape for part in parts})}")
    return np.maximum.reduce(parts)


def _called(cell: Cell) -> str:
    return cell[1] or "the mask"


def _read_part(data: bytes | None, path: str | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(
            io.BytesIO(data if data is not None else Path(path).read_bytes()), formats=IMAGE_FORMATS
        ) as image:
            if image.width * image.height > MAX_FRAME_PIXELS:
                raise UnreadableFile(path or "", f"a mask of {image.height} x {image.width} pixels")
            image.load()
            return _grey(image, path or "the mask")
    except UnreadableFile:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise UnreadableFile(path or "the mask", f"no mask that can be read: {' '.join(str(error).split())}") from error


def _grey(image, name: str) -> np.ndarray:
    from PIL import Image

    if image.mode == "P":
        indices = np.asarray(image)
        palette = np.array(image.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
        used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
        if (palette == palette[:, :1]).all() and used.max() < len(palette):  # grey levels, not the colours of ids
            levels = palette[:, 0]
            if len(np.unique(levels[used])) == len(used):
                return levels[indices]
        return indices.astype(np.int64)
    if image.mode in ("RGBA", "LA", "PA"):  # what is transparent is background
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    if image.mode in ("CMYK", "YCbCr"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3:
        if (values.max(2).astype(int) - values.min(2)).max() > 2:  # JPEG rounds
            raise UnreadableFile(
                name, "a coloured mask: its channels differ. Save ids as grey values (0 background, 1, 2, ...)"
            )
        values = values[..., 0]
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == values.round()).all()):
        raise UnreadableFile(name, "a mask of fractions: save ids as whole numbers (0 background, 1, 2, ...)")
    return values.astype(np.int64)


@dataclass(frozen=True)
class MaskRule:
    """How stored values become ids.

    Attributes:
        kind: "ids" as they are (255 is `IGNORE`), "binary" (anything above 0 is 1) or "threshold" (128 and above is 1).
        num_ids: ids there are, background counted. notes: what a reader must know.
    """

    kind: str
    num_ids: int
    notes: tuple[str, ...] = ()

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(height, width) uint8 ids."""
        if self.kind == "ids":
            return values.astype(np.uint8)
        return (values >= (128 if self.kind == "threshold" else 1)).astype(np.uint8)


def mask_rule(counted: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str], declared: int | None) -> MaskRule:
    """The rule of a data set.

    Args:
        counted: of every mask its values and how many pixels have each. names: of the masks, for errors.
        declared: number of ids that the data set declares, background counted; None where it does not.

    Raises:
        ValueError: values that can't be ids, ids beyond the declared ones, or masks that contradict each other; each
            names the masks.
    """
    total: dict[int, int] = {}
    for values, pixels in counted:
        for value, count in zip(values.tolist(), pixels.tolist()):
            total[value] = total.get(value, 0) + count
    above = sorted(value for value in total if value > 0)

    def holding(*wanted: int) -> str:
        return name_some([name for name, (values, _) in zip(names, counted) if np.isin(values, wanted).any()])

    if min(total) < 0 or max(total) > 65535:
        bad = [value for value in total if not 0 <= value <= 65535]
        raise ValueError(f"masks hold the values {name_some(bad)}: {holding(*bad)}. Ids are 0 (background), 1, 2, ...")
    if not above:
        raise ValueError(f"all {len(names)} masks are empty: not one pixel is above 0.")
    if len(above) == 1 and (declared or 2) == 2:
        return MaskRule("binary", 2)
    ids = [value for value in above if value != IGNORE]
    if declared is not None:
        unknown = [value for value in ids if value >= declared]
        if unknown and not (declared == 2 and _has_grey_edges(total)):
            raise ValueError(
                f"masks hold the unknown ids {name_some(unknown)} where {declared} are declared (0 to {declared - 1}): "
                f"{holding(*unknown)}."
            )
    if ids and ids[-1] < MAX_IDS and (declared or len(ids) > ids[-1] / 2):
        if ids == [1] and IGNORE in total and not any(np.isin((1, IGNORE), values).all() for values, _ in counted):
            raise ValueError(
                f"in some masks 1 is the foreground, in others 255: {holding(1)} against {holding(IGNORE)}. Save all alike."
            )
        shown = [(np.isin(ids, values).any(), IGNORE in values) for values, _ in counted]
        if IGNORE in total and sum(white and not other for other, white in shown) > sum(other for other, _ in shown):
            raise ValueError(
                f"most masks hold 0 and 255 alone, these the ids {name_some(ids)}: {holding(*ids)}. Save all alike."
            )
        rare = [f"id {i} in {holding(i)}" for i in ids if sum(i in values for values, _ in counted) == 1]
        notes = (
            (f"ids that one mask alone shows: {name_some(rare)}",)
            if rare and declared is None and len(counted) > 9
            else ()
        )
        return MaskRule("ids", declared or ids[-1] + 1, notes)
    if declared in (None, 2) and _has_grey_edges(total):
        faint = [n for n, (values, _) in zip(names, counted) if NEAR < values.max() < 128 or (values.max() == 1)]
        if faint:
            raise ValueError(
                f"most masks are black and white, these hold nothing above 127: {name_some(faint)}. Save all alike."
            )
        solid = [name for name, (values, pixels) in zip(names, counted) if _has_solid_grey(values, pixels)]
        if solid:
            raise ValueError(
                f"black and white masks (0 and 255), of which these hold areas of another value, no seams of many greys: "
                f"{name_some(solid)}. Unknown ids? Save 0 and 255 alone, or ids as 0 (background), 1, 2, ..."
            )
        grey = sum(bool(((values > 0) & (values < 255)).any()) for values, _ in counted)
        return MaskRule("threshold", 2, (
            f"{grey} of {len(names)} masks have grey edges, as JPEG and resampling leave them: pixels of 128 and above were "
            "taken as 1, all others as 0. Masks in PNG without resampling need no such guess.",
        ))  # fmt: skip
    raise ValueError(
        f"the values of the masks are no ids: {name_some(above)}, in {holding(above[-1])}. Save ids as 0 (background), 1, 2, "
        "... without gaps, 255 for pixels to ignore, in PNG (JPEG and resampling change values)."
    )


def _has_grey_edges(total: dict[int, int]) -> bool:
    """Black and white with a seam of greys between: fewer pixels there than there are white ones."""
    white = sum(count for value, count in total.items() if IGNORE - NEAR <= value <= IGNORE)
    between = sum(count for value, count in total.items() if NEAR < value < IGNORE - NEAR)
    return max(total) <= IGNORE and white > between


def _has_solid_grey(values: np.ndarray, pixels: np.ndarray) -> bool:
    """Greys of one or two values and of some size: a seam that JPEG or resampling leaves has many values."""
    grey = (values > 0) & (values < IGNORE)
    return 1 <= grey.sum() <= 2 and pixels[grey].sum() >= SOLID


class Masks(Sequence):
    """Masks of a data set by row: (height, width) uint8 ids, read when asked for."""

    def __init__(self, cells: Sequence[Sequence[Cell]], rule: MaskRule, rows: Sequence[int] | None = None):
        self.cells, self.rule = cells, rule
        self.rows = np.arange(len(cells)) if rows is None else np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.rule(read_values(self.cells[int(self.rows[row])]))

    def select(self, rows: np.ndarray) -> "Masks":
        return Masks(self.cells, self.rule, self.rows[np.asarray(rows, dtype=np.int64)])
