# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a scanner drew over the picture: text, calipers, rulers, cursors and guide lines, to be painted over; and colour.

No model is needed, only what sets drawing apart from echoes:

- An echo is blurred by the point-spread function; a drawn stroke steps within one pixel. So the gradient of a picture of
  speckle has a short tail, and in text many pixels lie far beyond it. Both directions of the gradient do in text; at a
  bone, a diaphragm or the edge of the fan only one does.
- A drawn stroke is brighter (or darker) than what lies three pixels away on both sides.
- Echoes have no colour of their own. A tint is one colour for each grey level; flow and elastography are areas of many
  hues; drawn marks are thin and of one hue.
- Echoes move from frame to frame, and what is drawn stands still.

A missed line of text leaks an identity and a false alarm costs a few repaired pixels, so every threshold leans to the
former. Lines are filled whole, between the letters too, so that no ghost of a letter can be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .colour import LINE_HEIGHT, OTHER_COLOUR, STROKE_WIDTH, close, find_bars, find_colour, grow, long_and_thin


DOPPLER_SHARE = 0.003  # of the scan region: from this share on, a frame counts as one with colour flow or elastography
# A hard edge: this many times the 60th percentile of the picture's own gradients; small pictures (by the square root of
# the lit pixels) have speckle that is one pixel sharp itself. A stroke: times the 80th percentile of its ridges.
FACTOR, RIDGE_SHARE = ((80.0, 110.0, 190.0), (3.2, 2.9, 2.2)), 0.86
QUIET, QUIET_SHARE, QUIET_UNIT = 8, 0.35, 60.0
USUAL_PERCENT, USUAL_TIMES = 60, 5.0
SPIKE = 14.0  # standard deviations by which one grey level is too frequent
WHITE_PERCENT, WHITE_TIMES = 85, 5.0
WHITE_ENOUGH = 0.13  # density of white strokes in a line of text
LIT = 16  # grey level of the neighbourhood from which a pixel counts for what is usual in a picture
FLOOR = 24.0  # grey levels: a softer edge or stroke never counts as hard
SEED, FOLLOW = 0.8, 0.3  # density of strokes and edges that starts a line of text, and that continues one
WHITE_NOISE = 0.83  # of the difference at three pixels, that at one: above, a picture is uncorrelated noise
NOISE_LEVEL = 14.0  # grey levels between its pixels: weaker noise hides no text from the ordinary search
NOISE_SCORE = 6.0  # spreads above what is usual
LETTERS = 3  # in a line
STRONG = 2.0  # lone marks (calipers, ticks, dots): strokes this many times as hard as those of text
NEAR = 3  # pixels around a mark that are repaired too: the smear of compression, shadows and outlines
INPAINT_RADIUS = 3
_MARGIN = 8


@dataclass(frozen=True)
class Overlays:
    """Attributes:
    marks: (h, w) bool: text, calipers, coloured lines, cursors, widened so that painting over them leaves no trace.
    doppler: (h, w) bool: areas of flow or elastography colour. It may overlap `marks` (text over colour).
    """

    marks: np.ndarray
    doppler: np.ndarray


def find_overlays(image: np.ndarray, mask: np.ndarray, others: Sequence[np.ndarray] = ()) -> Overlays:
    """Find what is drawn over the scan region.

    Args:
        image: (h, w, 3) uint8 RGB. mask: (h, w) bool, the scan region. Pixels outside are not used.
        others: other frames of the same loop, like `image`; those of another size are passed over.
    """
    marks, doppler = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    if not mask.any():
        return Overlays(marks, doppler)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    others = [other[box] for other in others if other.shape == image.shape]
    marks[box], doppler[box] = _find(np.ascontiguousarray(image[box]), mask[box], others)
    return Overlays(marks, doppler)


def has_doppler(overlays: Overlays, mask: np.ndarray) -> bool:
    """Whether flow or elastography colour fills at least `DOPPLER_SHARE` of the scan region."""
    return bool(overlays.doppler.sum() >= max(1.0, DOPPLER_SHARE * mask.sum()))


def inpaint(image: np.ndarray, marks: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paint over the marks from what surrounds them (A. Telea, J. Graphics Tools 9(1), 2004), inside the scan region.

    Pixels outside `mask` give nothing to the repair, and all pixels outside `marks & mask` stay as they are. Wide areas
    become smooth: nothing is made up there that could be taken for anatomy.
    """
    marks = marks & mask
    result = image.copy()
    if not marks.any():
        return result
    rows, columns = np.flatnonzero(marks.any(1)), np.flatnonzero(marks.any(0))
    box = (slice(max(0, rows[0] - _MARGIN), rows[-1] + 1 + _MARGIN),
           slice(max(0, columns[0] - _MARGIN), columns[-1] + 1 + _MARGIN))  # fmt: skip
    # What is outside counts as unknown too, so that it cannot bleed in; it is needed in a narrow ring alone.
    unknown = marks[box] | ~mask[box]
    ring = cv2.dilate(marks[box].astype(np.uint8), np.ones((2 * INPAINT_RADIUS + 3,) * 2, np.uint8)) > 0
    part = np.ascontiguousarray(image[box])
    # Flow beside a mark gives nothing either, unless all is coloured: tissue is grey.
    flow = ring & ~unknown & (np.ptp(part, axis=-1) > OTHER_COLOUR)
    if flow.sum() < 0.5 * (ring & ~unknown).sum():
        unknown |= flow
    if not unknown.all():
        part = _fill_outside(part, ~unknown)
        part = cv2.inpaint(part, (unknown & ring).astype(np.uint8), INPAINT_RADIUS, cv2.INPAINT_TELEA)
    else:
        part = np.zeros_like(part)
    result[marks] = part[marks[box]]
    return result


# ---------------------------------------------------------------- the search


def _find(image: np.ndarray, mask: np.ndarray, others: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    bars = find_bars(image, mask)
    whole, mask = mask, mask & ~bars
    coloured, doppler = find_colour(image, mask)
    grey = _fill_outside(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), mask)
    if doppler.any():
        grey = _without_colour(image, grey, mask, doppler)
    inside = mask.astype(np.uint8)
    across, down, bright, dark = _strokes(grey, inside)
    alone = _alone(across, down, bright)
    long = long_and_thin(alone)
    runs, spikes = _runs(grey, mask)
    plateaus = runs & spikes[grey], runs & _white_strokes(grey)
    text = _lines(across, down, bright, dark, plateaus, grow(long, 2), mask)
    marks = text | coloured | (alone & ~long)
    marks |= _letters_of_one_level(grey, mask, spikes)
    if _is_noise(grey, mask):
        marks |= _lines_in_noise(grey, mask)
    if len(others) >= 2:
        marks |= _static(grey, mask, others, cv2.max(across, down))
    # Between letters over flow nothing is filled: its own colour hides them no better.
    return (bars | grow(marks & ~doppler, NEAR) | grow(long & ~doppler, 1)) & whole, doppler


def _fill_outside(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The unknown pixels near the known ones get their neighbours' mean, so that the border makes no edge."""
    if known.all():
        return image
    weight = known.astype(np.float32)
    channels = image.astype(np.float32) * (weight if image.ndim == 2 else weight[..., None])
    side = (2 * _MARGIN + 1,) * 2
    total, count = cv2.blur(channels, side), cv2.blur(weight, side)
    mean = total / np.maximum(count if image.ndim == 2 else count[..., None], 1e-6)
    return np.where(known if image.ndim == 2 else known[..., None], image, mean).astype(np.uint8)


def _without_colour(image: np.ndarray, grey: np.ndarray, mask: np.ndarray, doppler: np.ndarray) -> np.ndarray:
    """Flow colour is set aside, so that what is drawn over it, pixels without colour, stands out.

    Its pixels get the mean of the grey tissue near them; where there is none, of their own weakest channel.
    """
    tissue = mask & ~doppler & (grey < 170)
    weight = np.where(doppler, 0.03, np.where(tissue, 1.0, 0.0)).astype(np.float32)
    level = np.where(doppler, image.min(-1), grey).astype(np.float32)
    side = (2 * _MARGIN + 1,) * 2
    mean = cv2.blur(level * weight, side) / np.maximum(cv2.blur(weight, side), 1e-6)
    return np.where(doppler, mean, grey).astype(np.uint8)


def _shifted(padded: np.ndarray, dy: int, dx: int) -> np.ndarray:
    return padded[_MARGIN + dy : padded.shape[0] - _MARGIN + dy, _MARGIN + dx : padded.shape[1] - _MARGIN + dx]


def _strokes(grey: np.ndarray, inside: np.ndarray):
    """Edges across and down, bright and dark strokes, as multiples of what counts as hard in this picture (float32)."""
    padded = cv2.copyMakeBorder(grey, *[_MARGIN] * 4, cv2.BORDER_REPLICATE)
    across = cv2.absdiff(_shifted(padded, 0, 1), _shifted(padded, 0, -1))
    down = cv2.absdiff(_shifted(padded, 1, 0), _shifted(padded, -1, 0))
    edges = cv2.max(across, down)
    bright = dark = None
    for dy, dx in ((0, 3), (3, 0), (2, 2), (2, -2)):
        one, two = _shifted(padded, dy, dx), _shifted(padded, -dy, -dx)
        above, below = cv2.subtract(grey, cv2.max(one, two)), cv2.subtract(cv2.min(one, two), grey)
        bright = above if bright is None else cv2.max(bright, above)
        dark = below if dark is None else cv2.max(dark, below)
    lit = inside & (cv2.blur(grey, (9, 9)) > LIT)
    factor = float(np.interp(np.sqrt(lit.sum()), *FACTOR))
    edge_unit = _unit(edges, lit, factor, 60)
    # On a quiet ground (a box, fluid) softer edges stand out too.
    quiet = cv2.blur((edges < QUIET).astype(np.float32), (31, 15)) > QUIET_SHARE
    edge_unit[quiet] = np.minimum(edge_unit[quiet], QUIET_UNIT)
    units = [_unit(part, lit, RIDGE_SHARE * factor, 80) for part in (bright, dark)]
    for unit in units:
        unit[quiet] = np.minimum(unit[quiet], QUIET_UNIT)
    parts = zip((across, down, bright, dark), (edge_unit, edge_unit, *units))
    return tuple(part.astype(np.float32) * inside / unit for part, unit in parts)


def _unit(values: np.ndarray, lit: np.ndarray, factor: float, percent: float) -> np.ndarray:
    """What counts as hard: a multiple of what is usual in the whole lit picture, and of what is usual here."""
    usual = _percentile(values, lit, percent)
    # A quarter of the resolution is enough for the neighbourhood's mean.
    small = (max(1, lit.shape[1] // 4), max(1, lit.shape[0] // 4))
    weight = cv2.resize(lit.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    total = cv2.resize(values.astype(np.float32) * lit, small, interpolation=cv2.INTER_AREA)
    mean = cv2.blur(total, (25, 25)) / (cv2.blur(weight, (25, 25)) + 0.02)
    middle = float(cv2.mean(values, lit)[0])
    here = mean * (usual / max(middle, 1e-6))
    unit = np.maximum(factor * (np.maximum(usual, here) + 4), FLOOR)
    return cv2.resize(unit.astype(np.float32), lit.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _percentile(values: np.ndarray, inside: np.ndarray, percent: float) -> float:
    counts = cv2.calcHist([values], [0], inside, [256], [0, 256]).ravel().cumsum()
    return float(np.searchsorted(counts, max(1.0, counts[-1] * percent / 100)))


def _runs(grey: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of three pixels of one grey level (h, w), and the levels that have far more such runs than their neighbours."""
    padded = cv2.copyMakeBorder(grey, *[_MARGIN] * 4, cv2.BORDER_REPLICATE)
    runs = np.zeros(mask.shape, bool)
    for dy, dx in ((0, 1), (1, 0)):
        runs |= (cv2.absdiff(grey, _shifted(padded, dy, dx)) <= 1) & (
            cv2.absdiff(grey, _shifted(padded, -dy, -dx)) <= 1
        )
    runs &= mask
    counts = np.bincount(grey[runs], minlength=256).astype(np.float32)
    near = np.pad(counts, 10, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(near, 21)
    usual = np.percentile(np.concatenate([windows[:, :8], windows[:, 13:]], axis=1), 80, axis=1)  # gains leave gaps
    spikes = (counts - usual) / np.sqrt(usual + 4) > SPIKE
    spikes[:40] = spikes[250:] = False  # black is everywhere, and so is white where the gain is high
    return runs, spikes


def _white_strokes(grey: np.ndarray) -> np.ndarray:
    """White no wider than letters have; bones and gas are broad."""
    white = grey >= 250
    broad = cv2.morphologyEx(white.astype(np.uint8), cv2.MORPH_OPEN, np.ones((STROKE_WIDTH,) * 2, np.uint8))
    return white & ~grow(broad > 0, 2)


def _crowding(density, enough: float, seen, percent: float | None = None, times: float | None = None) -> np.ndarray:
    """Density as a share of what is enough for text; more is asked where the whole picture is full of hard edges."""
    values = density[::2, ::2][seen[::2, ::2]]
    usual = float(np.percentile(values, percent or USUAL_PERCENT)) if values.size else 0.0
    return density / max(enough, (times or USUAL_TIMES) * usual)


def _lines(
    across, down, bright, dark, plateaus: tuple[np.ndarray, np.ndarray], long: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Lines of text, level and upright: where strokes with hard edges in both directions crowd.

    long: outlines and guide lines, which are known already and would count as the edges of letters.
    """
    half = (-(-mask.shape[1] // 2), -(-mask.shape[0] // 2))

    def halved(hard: np.ndarray) -> np.ndarray:
        return cv2.resize((hard & ~long).astype(np.float32), half, interpolation=cv2.INTER_AREA)

    weight = cv2.resize(mask.astype(np.float32), half, interpolation=cv2.INTER_AREA)
    seen = weight > 0.5
    hard_across, hard_down = halved(across > 1), halved(down > 1)
    strokes, level = halved((bright > 1) | (dark > 1.4)), [halved(part) if part.any() else None for part in plateaus]
    weak = (across > 0.75) | (down > 0.75) | (bright > 0.8)
    found = np.zeros(mask.shape, bool)
    for size in ((23, 7), (7, 23)):
        area = np.maximum(cv2.blur(weight, size, borderType=cv2.BORDER_CONSTANT), 0.3)
        density = [
            cv2.blur(part, size, borderType=cv2.BORDER_CONSTANT) / area for part in (hard_across, hard_down, strokes)
        ]
        score = cv2.min(_crowding(cv2.min(*density[:2]), 0.06, seen), _crowding(density[2], 0.08, seen))
        if level[0] is not None:
            score = cv2.max(score, cv2.blur(level[0], size, borderType=cv2.BORDER_CONSTANT) / area / 0.06)
        if level[1] is not None:
            white = cv2.blur(level[1], size, borderType=cv2.BORDER_CONSTANT) / area
            score = cv2.max(score, _crowding(white, WHITE_ENOUGH, seen, WHITE_PERCENT, WHITE_TIMES))
        lines = _touched(score > FOLLOW, score > SEED)
        if lines.any():
            lines = cv2.resize(lines.astype(np.uint8), mask.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
            # The letters in the line, then all between them.
            found |= close(lines & weak, (25, 9) if size[0] > size[1] else (9, 25))
    return found


def _letters_of_one_level(grey: np.ndarray, mask: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """White letters, and those of a grey level that is too frequent; level and upright lines."""
    near = spikes | np.roll(spikes, 1) | np.roll(spikes, -1)
    levels = [(grey >= 250, 50.0), (grey >= 235, 80.0)] + ([(near[grey], 25.0)] if near.any() else [])
    found = np.zeros(mask.shape, bool)
    for inside, step in levels:
        inside = inside & mask
        if inside.any():
            found |= _letters(grey, inside, step)
    return close(grow(found, 2), (9, 9))


def _letters(grey: np.ndarray, inside: np.ndarray, step: float) -> np.ndarray:
    """Lines of letters: pieces of one level, thin, of one height, hard at their borders, side by side in a row.

    inside: pixels of the wanted level(s). step: grey levels between a letter and what lies two pixels beside it.
    """
    found = np.zeros(grey.shape, bool)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    left, top, width, height, area = stats.T
    good = (area >= 8) & (np.maximum(width, height) >= 6) & (np.minimum(width, height) <= 2 * LINE_HEIGHT)
    good[0] = False
    if good.sum() < 2:
        return found
    labels[~good[labels]] = 0
    inside = labels > 0
    ring = grow(inside, 2) & ~grow(inside, 1)
    around = cv2.dilate(labels.astype(np.float32), np.ones((5, 5), np.uint8))[ring].astype(np.int32)
    total = np.bincount(around, minlength=count)
    level = np.bincount(labels[inside], grey[inside], count) / np.maximum(area, 1)
    far = np.bincount(around, grey[ring], count) / np.maximum(total, 1)
    good &= (np.abs(level - far) > step) & (total > 0.5 * np.sqrt(area))
    good[labels[cv2.erode(inside.astype(np.uint8), np.ones((STROKE_WIDTH,) * 2, np.uint8)) > 0]] = False  # broad
    if good.sum() < 2:
        return found
    box = np.s_[top[good].min() : (top + height)[good].max(), left[good].min() : (left + width)[good].max()]
    labels, part = labels[box], found[box]
    # A pixel of each piece, to know which line it is in.
    places = np.zeros(count, int)
    places[labels.ravel()] = np.arange(labels.size)
    for low, high in ((6, 12), (9, 18), (14, 28), (22, LINE_HEIGHT)):
        for tall, wide, level_line in ((height, width, True), (width, height, False)):
            letter = good & (tall >= low) & (tall <= high) & (wide <= 4 * high)
            ids = np.flatnonzero(letter)
            if len(ids) < 2:
                continue
            lines = close(letter[labels], (high + 1, 3) if level_line else (3, high + 1))
            groups, group, boxes, _ = cv2.connectedComponentsWithStats(lines.astype(np.uint8), connectivity=8)
            letters = np.bincount(group.ravel()[places[ids]], np.maximum(1, wide[ids] / tall[ids]), groups)
            sides = boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].T
            length, depth = sides if level_line else sides[::-1]
            line = (letters >= LETTERS) & (depth <= 1.5 * high) & (length >= 2.5 * depth)
            line[0] = False
            part |= line[group]
    return found


def _is_noise(grey: np.ndarray, mask: np.ndarray) -> bool:
    """Whether neighbouring pixels have nothing to do with each other: no echoes then, and edges tell nothing."""
    if min(mask.shape) < 8:
        return False
    inside = (mask & (grey > 0)).astype(np.uint8)
    for picture, lit in ((grey, inside), (grey.T, inside.T)):
        lit = cv2.min(lit[:, 3:], lit[:, :-3])
        far = cv2.mean(cv2.absdiff(picture[:, 3:], picture[:, :-3]), lit)[0]
        near = cv2.mean(cv2.absdiff(picture[:, 3:], picture[:, 2:-1]), lit)[0]
        if near <= WHITE_NOISE * max(NOISE_LEVEL, far):
            return False
    return True


def _lines_in_noise(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lines of text in uncorrelated noise: where pieces of straight strokes (all their pixels bright) crowd."""
    diagonal = np.eye(5, dtype=np.uint8)
    pieces = (np.ones((1, 5), np.uint8), np.ones((5, 1), np.uint8), diagonal, np.ascontiguousarray(diagonal[::-1]))
    found = np.zeros(mask.shape, bool)
    for picture in (grey, 255 - grey):
        strokes = np.max([cv2.morphologyEx(picture, cv2.MORPH_OPEN, piece) for piece in pieces], axis=0)
        excess = np.maximum(strokes - np.float32(np.median(strokes[mask])), 0) ** 2 * mask
        for size in ((45, 13), (13, 45)):
            area = np.maximum(cv2.blur(mask.astype(np.float32), size, borderType=cv2.BORDER_CONSTANT), 0.2)
            crowd = cv2.blur(excess, size, borderType=cv2.BORDER_CONSTANT) / area
            values = crowd[mask][::7]
            lower, usual = np.percentile(values, [10, 30])  # large letters may fill half of the picture
            score = (crowd - usual) / max(1.4 * (usual - lower), 0.1 * usual, 20.0)
            lines = _touched(mask & (score > 0.5 * NOISE_SCORE), mask & (score > NOISE_SCORE))
            if lines.sum() < 0.4 * mask.sum():  # else the noise isn't the same everywhere, and this tells nothing
                found |= lines
    return found


def _touched(area: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The connected parts of `area` in which a seed lies."""
    if not seeds.any():
        return np.zeros(area.shape, bool)
    count, labels = cv2.connectedComponents(area.astype(np.uint8), connectivity=8)
    keep = np.zeros(count, bool)
    keep[labels[seeds]] = True
    keep[0] = False
    return keep[labels]


def _alone(across, down, bright) -> np.ndarray:
    """Marks that stand alone: thin strokes far harder than any echo."""
    edge = cv2.dilate(cv2.max(across, down), np.ones((3, 3), np.uint8))
    seeds = (bright > STRONG) & (edge > 0.9 * STRONG)
    return _touched((bright > 0.6 * STRONG) & (edge > 0.6 * STRONG), seeds)


def _static(grey: np.ndarray, mask: np.ndarray, others: list[np.ndarray], edges: np.ndarray) -> np.ndarray:
    """Bright hard-edged pixels that stand still while the picture moves. A frozen loop tells nothing."""
    low, high = grey.copy(), grey.copy()
    for other in others[:8]:
        frame = cv2.cvtColor(np.ascontiguousarray(other), cv2.COLOR_RGB2GRAY)
        low, high = cv2.min(low, frame), cv2.max(high, frame)
    still = cv2.subtract(high, low) <= 4
    lit = mask & (high > 24)
    if lit.sum() < 64 or (still & lit).sum() > 0.3 * lit.sum():
        return np.zeros(mask.shape, bool)
    still &= lit
    hard = still & (cv2.dilate(edges, np.ones((3, 3), np.uint8)) > 0.4)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(hard.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= 4
    keep[0] = False
    # Where still pixels crowd, letters do: all of them, and what is between.
    crowd = still & (cv2.blur(still.astype(np.float32), (25, 11)) > 0.08)
    return keep[labels] | (close(crowd, (15, 5)) & mask)
