# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a scanner's screen shows where: the evidence for a scan in its pixels, and strips along time.

Evidence is how surely a pixel shows echoes: it is brighter than the screen's ground (a still), or changes from frame to frame
(a loop: speckle changes everywhere in the scan, letters, bars and logos don't).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np


CELLS = 160  # along the longer side of an image
DARK = 48  # the screens of scanners are black or dark grey
# Shares of the strongest contrast from which a pixel begins to count as lit, and from which it is so for sure. Of a change over
# time more is asked: a lossy codec's noise changes too, in blocks across the scan's edges.
LIT_CONTRAST = {False: (0.03, 0.08), True: (0.03, 0.12)}
LIT_OVER_NOISE = (0.08, 0.16)  # of a still in which a lossy codec's noise lies around letters
CLOSE = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Evidence:
    """contrast: (height, width) uint8, brightness over the ground, or change over a loop. lit: (height, width) uint8, 0 dark to
    255 from `sure` on, with the dark points of speckle closed. bright: (height, width) uint8, 255 from three times `sure` on.
    cover: (rows, columns) float32, its mean in cells of `step` pixels, 0 where letters stand. core: (rows, columns) bool, cells
    amid others that are lit, from which an outline may be fitted. ground: the screen's empty level. moving: from changes.
    """

    contrast: np.ndarray
    lit: np.ndarray
    bright: np.ndarray
    cover: np.ndarray
    core: np.ndarray
    step: int
    sure: int
    moving: bool


def measure_contrast(frames: Sequence[np.ndarray], is_loop: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """(contrast, light, moving): from one frame, or from the changes over the frames of a loop where there are any."""
    light = [_light(frame) for frame in frames]
    if is_loop and len(light) > 1:
        high, low = light[0].copy(), light[0].copy()
        for one in light[1:]:
            cv2.max(high, one, dst=high)
            cv2.min(low, one, dst=low)
        change = cv2.subtract(high, low)
        if (change > max(8, 0.05 * strongest(change))).mean() > 0.02:
            return change, high, True
    ground = find_ground(light[0])
    if ground > DARK and np.ptp(frames[0].reshape(-1, 3)[light[0].ravel() == ground][::50], axis=1).mean() > 12:
        ground = 0  # a saturated colour
    if ground <= DARK:  # over a dark ground echoes are brighter than it; over a bright one, anything else may be
        return (_over_grey(light[0], ground) if ground else light[0]), light[0], False
    return cv2.absdiff(light[0], np.full_like(light[0], ground)), light[0], False


def _over_grey(light: np.ndarray, ground: int) -> np.ndarray:
    """Contrast over a dark grey ground: fluid is darker than it, but uneven; an even black window is none of the scan."""
    brighter, darker = (
        cv2.subtract(light, np.full_like(light, ground)),
        cv2.subtract(np.full_like(light, ground), light),
    )
    uneven = cv2.compare(cv2.morphologyEx(light, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)), 2, cv2.CMP_GT)
    uneven = cv2.morphologyEx(uneven, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
    return cv2.max(brighter, darker & uneven)


def _light(frame: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> (h, w): the brightest channel, so that colour Doppler is lit too."""
    red, green, blue = cv2.split(frame)
    return cv2.max(cv2.max(red, green), blue)


def strongest(contrast: np.ndarray) -> float:
    value = float(np.percentile(contrast.ravel()[:: 1 + contrast.size // 20_000], 99.5))
    return value if value > 0 else float(contrast.max())


def find_ground(light: np.ndarray) -> int:
    """The level of the empty screen: the darkest that is common along the border; black where none is (a full frame)."""
    border = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    counts = np.bincount(border, minlength=256)
    share = np.convolve(counts, np.ones(3), "same") / len(border)
    common = np.flatnonzero(share > 0.1)
    if not len(common):
        return 0
    first = int(common[0])
    ground = first + int(np.argmax(counts[first : first + 3]))
    return ground if ground <= DARK or counts[max(0, ground - 2) : ground + 3].sum() > 0.6 * len(border) else 0


def find_evidence(
    contrast, light, moving: bool, low: int | None = None, without_bars: bool = True, noisy: bool = False
) -> Evidence | None:
    """Where the scan may be. low: contrast from which a pixel counts half; None: none does. noisy: as
    `is_noisy` says. None for an even image."""
    height, width = contrast.shape
    strong = strongest(contrast)
    if strong < 1:
        return None
    step = max(1, -(-max(height, width) // CELLS))
    first, sure = (
        max(2, round(share * max(strong, strongest(light))))
        for share in (LIT_OVER_NOISE if noisy else LIT_CONTRAST[moving])
    )
    table = np.clip((np.arange(256) - first + 1) / (sure - first + 1), 0, 1)
    if low is not None:
        table[low:] = np.maximum(table[low:], 0.5)
    lit = cv2.LUT(contrast, np.round(table * 255).astype(np.uint8))
    if without_bars and not moving:
        lit[_even_bars(contrast, light, sure, noisy) > 0] = 0
    raw = _cells(lit, step)
    # The dark points of speckle are smaller than this.
    lit = cv2.morphologyEx(lit, cv2.MORPH_CLOSE, CLOSE)
    cover = _cells(lit, step)
    smooth = cv2.blur(raw, (5, 5), borderType=cv2.BORDER_REPLICATE)
    # Letters: half of the pixels are unlit, and the strokes are bright. What is half lit but dim is the dark part of a scan.
    bright = _cells(cv2.compare(light, int(min(254, 0.6 * max(strong, strongest(light)))), cv2.CMP_GT), step)
    bright = cv2.blur(bright, (5, 5), borderType=cv2.BORDER_REPLICATE)
    letters = (smooth < 0.75) & (bright > 0.3 * smooth) & (bright > 0.02)
    core = (smooth > 0.4) & (raw > 0.2) & ~letters
    core = cv2.morphologyEx(core.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    strips = _edge_strips(core)
    table = np.clip(np.arange(256) * (255 / (3 * sure)), 0, 255).astype(np.uint8)
    bright = cv2.LUT(contrast, table)
    return Evidence(
        contrast, lit, bright, np.where(letters | strips, 0, cover), (core > 0) & ~strips, step, sure, moving
    )


def _edge_strips(core: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: long thin full groups along the image's border, which are bars of the user interface."""
    rows, columns = core.shape
    found = np.zeros(core.shape, bool)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(core, connectivity=4)
    for index in range(1, count):
        left, top, width, height, area = stats[index]
        lies = width > 3 * height and height < 0.15 * rows and (top < 0.05 * rows or top + height > 0.95 * rows)
        stands = (
            height > 3 * width and width < 0.12 * columns and (left < 0.05 * columns or left + width > 0.95 * columns)
        )
        if (lies or stands) and area > 0.7 * width * height:
            found[max(0, top - 1) : top + height + 1, max(0, left - 1) : left + width + 1] = True
    return found


def _even_bars(contrast: np.ndarray, light: np.ndarray, sure: int, noisy: bool) -> np.ndarray:
    """(h, w) uint8: above 0 in areas lit evenly and in grey scales, which are bars of the user interface, not white (that is
    saturated tissue)."""
    kernel = np.ones((3, 3), np.uint8)
    shown = cv2.inRange(contrast, max(sure, 10) + 1, 249)
    flat = cv2.compare(cv2.morphologyEx(light, cv2.MORPH_GRADIENT, kernel), 2, cv2.CMP_LE)
    bars = cv2.morphologyEx(flat & shown, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    found = cv2.dilate(bars, kernel)
    if cv2.countNonZero(bars):
        # A long bar, letters on it included.
        _mark_long(cv2.morphologyEx(bars, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)), found)
        _mark_lettered(light, bars, found)
    # A grey scale changes slowly along its length, and not across; no speckle is like that.
    for across, least in (((1, 3), (17, 4)), ((3, 1), (4, 17))):
        even = cv2.compare(
            cv2.morphologyEx(light, cv2.MORPH_GRADIENT, np.ones(across, np.uint8)), 4 if noisy else 2, cv2.CMP_LE
        )
        slow = cv2.compare(cv2.morphologyEx(light, cv2.MORPH_GRADIENT, np.ones(across[::-1], np.uint8)), 14, cv2.CMP_LE)
        scale = cv2.morphologyEx(even & slow & shown, cv2.MORPH_OPEN, np.ones(least, np.uint8))
        if cv2.countNonZero(scale):
            _mark_long(cv2.morphologyEx(scale, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)), found)
    return found


def _mark_long(bars: np.ndarray, found: np.ndarray) -> None:
    """Mark in `found` the boxes around the long full groups of `bars`."""
    contours, levels = cv2.findContours(bars, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour, level in zip(contours, levels[0] if len(contours) else ()):
        left, top, width, height = cv2.boundingRect(contour)
        if level[3] >= 0 or max(width, height) <= max(60, 4 * min(width, height)):  # a hole, or not long
            continue
        _, labels = cv2.connectedComponents(bars[top : top + height, left : left + width])
        x, y = contour[0, 0]
        if np.count_nonzero(labels == labels[y - top, x - left]) > 0.4 * width * height:
            found[max(0, top - 3) : top + height + 3, max(0, left - 3) : left + width + 3] = 255


def _mark_lettered(light: np.ndarray, bars: np.ndarray, found: np.ndarray) -> None:
    """Mark a bar across the top or bottom of the screen of which letters, and a codec's noise around them, leave pieces: the
    rows that have its level at half of their length or more."""
    height, width = light.shape
    for edge in (0, height - 1):
        pieces = light[edge][bars[edge] > 0] if edge < height else ()
        if len(pieces) < 0.15 * width:
            continue
        level = int(np.median(pieces))
        alike = cv2.inRange(light, max(0, level - 12), min(255, level + 12)).mean(1) / 255
        # Letters that fill some rows of the bar don't end it.
        rows = np.flatnonzero((alike if edge == 0 else alike[::-1]) > 0.35)
        ends = np.flatnonzero(np.diff(rows, append=height + 99) > 8)
        size = int(rows[ends[0]]) + 4 if len(rows) else 0
        if size < 0.25 * height:
            found[: size if edge == 0 else 0] = 255
            found[height - size if edge else height :] = 255


def is_noisy(evidence: Evidence, outside: np.ndarray) -> bool:
    """Whether a lossy codec has left weak noise around what is bright outside of the views; outside: (h, w) bool.

    Around letters a screen without loss is empty but for the softened edge of a stroke.
    """
    strokes = (cv2.compare(evidence.contrast, 3 * evidence.sure, cv2.CMP_GT) > 0) & outside
    strokes = strokes.astype(np.uint8)
    around = cv2.dilate(strokes, np.ones((11, 11), np.uint8)) - cv2.dilate(strokes, np.ones((5, 5), np.uint8))
    around = (around > 0) & outside
    if around.sum() < 40:
        return False
    uneven = cv2.morphologyEx(evidence.contrast, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))[around] > 0
    values = evidence.contrast[around]
    return (uneven & (values > 0) & (values < 3 * evidence.sure)).mean() > 0.1


def _cells(image: np.ndarray, step: int) -> np.ndarray:
    """(h, w) uint8 -> (rows, columns) float32 means, 0..1, of squares of `step` pixels; those at the ends may be cut."""
    height, width = image.shape
    rows, columns = -(-height // step), -(-width // step)
    if (rows * step, columns * step) != (height, width):
        image = cv2.copyMakeBorder(image, 0, rows * step - height, 0, columns * step - width, cv2.BORDER_REPLICATE)
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def is_photograph(frame: np.ndarray) -> bool:
    """Colours of many hues over half of the frame. Ultrasound is grey or of one tint; flow maps have two or three hues."""
    small = np.ascontiguousarray(frame[:: max(1, frame.shape[0] // 100), :: max(1, frame.shape[1] // 100)])
    hue, saturation, value = cv2.split(cv2.cvtColor(small, cv2.COLOR_RGB2HSV))
    coloured = (saturation > 60) & (value > 40)
    if coloured.mean() < 0.35:
        return False
    shares = np.bincount(hue[coloured] // 15, minlength=12) / coloured.sum()  # OpenCV's hues go from 0 to 179
    return int((shares > 0.04).sum()) >= 4


# ---------------------------------------------------------------- strips along time


# Of a B-mode picture at most a part is empty, and its columns are about equally bright; of a spectral strip most is empty and
# the columns come and go with the heart. Measured on phantoms: B-mode at most 0.47 and 0.36 (seldom both), spectra 0.49 and
# 0.34. Dark cuts of B-mode are like that too, so that this decides only where the strip lies under or over another view.
EMPTY_SHARE, PULSATION = 0.4, 0.26
# Steps between neighbours across over those along: an M-mode strip runs on along time, 0.31 to 0.67; B-mode 0.43 to 1.17. These
# overlap, so that this alone decides only where the strip lies under or over another view.
RUNS_ON = 0.62


BEATS = 3  # rises and falls in a strip


def rises_from_baseline(part: np.ndarray) -> bool:
    """Whether (height, width) float32 looks like spectra of flow over time.

    All columns are lit from one row on without a gap, up to where the fastest flow is; nothing is lit on the other side of that
    row or far from it; and that height rises and falls at least BEATS times, far more than it flickers. Each of these is found
    in B-mode too, all of them hardly ever. Flow in both directions at once is not known.
    """
    part = cv2.GaussianBlur(part, (0, 0), 1.5)
    times = max(1, round(min(part.shape[0] / 150, part.shape[1] / 300)))
    part = cv2.resize(part, (part.shape[1] // times, part.shape[0] // times), interpolation=cv2.INTER_AREA)
    low, high = np.percentile(part, (10, 98))
    lit = (part > low + 0.3 * (high - low)).astype(np.uint8)
    for smooth in (cv2.MORPH_CLOSE, cv2.MORPH_OPEN):
        lit = cv2.morphologyEx(lit, smooth, np.ones((3, 3), np.uint8))
    return any(_rises(upright > 0) for upright in (lit, lit[::-1]))


def _rises(lit: np.ndarray) -> bool:
    height = len(lit)
    share = lit.mean(1)
    falls = share - np.append(share[4:], np.zeros(4))
    baseline = int(np.argmax(falls))
    above = lit[baseline::-1]
    if falls[baseline] < 0.9 or len(above) < 0.2 * height:
        return False
    from_baseline = np.logical_and.accumulate(above | (np.arange(len(above)) < 4)[:, None], axis=0)
    grows = cv2.blur(share[baseline::-1].astype(np.float32)[:, None], (1, 7))[4:, 0]
    if (
        (from_baseline & above).sum() < 0.95 * above.sum()
        or lit[baseline + 4 :].sum() > 0.05 * lit[baseline + 4 :].size
        or share[: max(1, baseline // 5)].mean() > 0.35
        or np.maximum(np.diff(grows), 0).sum() > 0.05
    ):
        return False
    reach = cv2.blur(from_baseline.sum(0, dtype=np.float32)[:, None], (1, 5))[:, 0]
    low, high = np.percentile(reach, (30, 85))
    if high - low < 0.06 * height or reach.std() < 0.12 * reach.mean():
        return False
    states = np.where(reach > low + 0.6 * (high - low), 1, np.where(reach < low + 0.25 * (high - low), -1, 0))
    return np.count_nonzero(np.diff(states[states != 0])) >= 2 * BEATS - 1


# Of an M-mode strip's depths, pairs move alike (median and neighbours' mean correlation), by this slope at least, and rows run
# on: steps along time over those along depth, squared, median and upper quartile. Measured: M-mode of phantoms mostly beyond
# 0.8, 0.8, below 0.25, 0.5; B-mode (phantoms, layered speckle, crops of real files) seldom beyond 0.4, 0.5, below 0.15, 0.3.
PARALLEL, PARALLEL_NEIGHBOURS, MOTION, STREAKS, MOST_STREAKS = 0.6, 0.6, 0.03, 0.25, 0.5


def moves_in_parallel(part: np.ndarray) -> bool:
    """Whether (height, width) float32 looks like one beam over time: all depths run on along time and move up and down together.

    The slope of the texture is measured in cells, by least squares as optical flow is (Lucas and Kanade 1981; here one axis is
    time). Layers of muscle and fascia run on too, but straight or in one slow curve, and the speckle on them goes its own ways.
    A strip in which nothing moves is not known.
    """
    times = max(1, round(min(part.shape[0] / 200, part.shape[1] / 400)))
    part = cv2.resize(part, (part.shape[1] // times, part.shape[0] // times), interpolation=cv2.INTER_AREA)
    part = cv2.GaussianBlur(part, (0, 0), 1.0)
    part = part - cv2.GaussianBlur(part, (0, 0), sigmaX=0.3, sigmaY=6)
    along, down = (part[1:-1, 2:] - part[1:-1, :-2]) / 2, (part[2:, 1:-1] - part[:-2, 1:-1]) / 2
    cells = (max(12, part.shape[1] // 10), 8)  # moments of time, depths
    both, steep, flat = (
        cv2.resize(product, cells, interpolation=cv2.INTER_AREA)
        for product in (along * down, down * down, along * along)
    )
    if (steep > 1).mean() < 0.8:  # a good part has no texture
        return False
    streaks = flat / (steep + 1)
    if np.median(streaks) > STREAKS or np.percentile(streaks, 75) > MOST_STREAKS:
        return False
    slope = -both / (steep + 1)
    time = np.linspace(-1, 1, cells[0])
    slow = np.linalg.qr(np.stack([time**power for power in range(4)], 1))[0]
    slope = slope - (slope @ slow) @ slow.T
    spread = slope.std(1, keepdims=True)
    if np.median(spread) < MOTION or spread.min() < 1e-4:
        return False
    alike = (
        (slope / spread) @ (slope / spread).T / cells[0]
    )  # walls of a heart move against each other: signs may differ
    return bool(
        np.median(np.abs(alike[np.triu_indices(len(alike), 1)])) > PARALLEL
        and np.diag(alike, 1).mean() > PARALLEL_NEIGHBOURS
    )


def strip_kind(light: np.ndarray, box: Box, beside_view: bool) -> str:
    """What a wide rectangle shows: "b-mode", "spectral" (Doppler) or "m_mode", by how its texture runs.

    Strips along time are wide. In an M-mode strip each row goes on along time. In a spectral Doppler strip the columns are
    spectra at different times, on a common baseline, with nothing beyond the fastest flow. In doubt it is B-mode.

    Args:
        light: (height, width) uint8. box: top, left, height, width.
        beside_view: another view lies above or below it.
    """
    top, left, height, width = box
    margin = max(2, height // 25)
    part = light[top + margin : top + height - margin, left + margin : left + width - margin].astype(np.float32)
    if min(part.shape) < 24 or width < 1.6 * height:
        return "b-mode"
    bright = float(np.percentile(part, 99))
    empty = float((part < 0.12 * bright).mean())
    columns = part.mean(0)
    pulsation = float(columns.std() / max(columns.mean(), 1e-3))
    if beside_view and empty > EMPTY_SHARE and pulsation > PULSATION:
        return "spectral"
    if rises_from_baseline(part):
        return "spectral"
    if moves_in_parallel(part):
        return "m_mode"
    across = np.abs(np.diff(part, axis=1)).mean() / max(float(np.abs(np.diff(part, axis=0)).mean()), 1e-3)
    if beside_view and width > 2 * height and across < RUNS_ON:
        return "m_mode"
    return "b-mode"
