# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Colour in a B-mode picture: flow and elastography, tints, coloured marks, and the bars that explain colours or greys.

Echoes have no colour of their own. A tint is one colour for each grey level; flow and elastography are areas of many
hues; drawn marks are thin and of one hue; a legend is a narrow box, equal across its width.
"""

import cv2
import numpy as np


COLOUR_STEP = 16  # distance from the tint's own chroma, of 128, from which a pixel counts as coloured
HUE_SPREAD = 0.012  # 1 - length of the mean hue vector: above, a coloured area has many hues (a drawn one has one)
LINE_HEIGHT = 45  # pixels: a line of text is lower
STROKE_WIDTH = 9  # pixels: a drawn letter of one colour is thinner
SPECK_REACH = 12  # pixels
BAR_GAP = 20  # pixels
BAR_STEP, BAR_RANGE = 4, 80  # grey levels across a legend at most, and along it at least
BAR_WIDTH, BAR_LENGTH = (6, 48), 20  # pixels
TINTED = 32  # luma from which a pixel counts for what the tint is
OTHER_COLOUR = 40  # of 255, between the channels of a pixel: more is no tissue


def close(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    pad = max(size)
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), *[pad] * 4, cv2.BORDER_CONSTANT, value=0)
    kernel = np.ones(size[::-1], np.uint8)
    return cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)[pad:-pad, pad:-pad] > 0


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0


def long_and_thin(strokes: np.ndarray) -> np.ndarray:
    """Those strokes that are long and thin: the outline of a colour window, a guide."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(strokes.astype(np.uint8), connectivity=8)
    width, height, area = (stats[:, i] for i in (cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_AREA))
    long = (np.maximum(width, height) > 48) & ((area < 0.12 * width * height) | (np.minimum(width, height) <= 6))
    long[0] = False
    return long[labels]


def find_bars(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Legends of colour or grey, (h, w) bool: narrow boxes, equal across their width and changing along their length.

    No echo is equal to its neighbours over a row of pixels, and that for many rows with the same ends.
    """
    found = np.zeros(mask.shape, bool)
    for turned, inside in ((image, mask), (image.transpose(1, 0, 2), mask.T)):
        turned = np.ascontiguousarray(turned)
        if turned.shape[1] < BAR_WIDTH[0]:
            continue
        one, two, three = cv2.split(cv2.absdiff(turned[:, 1:], turned[:, :-1]))
        step = cv2.max(cv2.max(one, two), three) <= BAR_STEP
        equal = cv2.copyMakeBorder(step.astype(np.uint8), 0, 0, 0, 1, cv2.BORDER_CONSTANT, value=0) & inside
        raw = equal = cv2.morphologyEx(equal, cv2.MORPH_OPEN, np.ones((1, BAR_WIDTH[0]), np.uint8))
        equal = cv2.morphologyEx(equal, cv2.MORPH_CLOSE, np.ones((7, 1), np.uint8))  # a mark on the bar
        equal = cv2.morphologyEx(equal, cv2.MORPH_OPEN, np.ones((BAR_LENGTH, 1), np.uint8))
        count, _, stats, _ = cv2.connectedComponentsWithStats(equal, connectivity=4)
        for left, top, width, height, area in stats[1:]:
            if not BAR_WIDTH[0] <= width <= BAR_WIDTH[1] or area < 0.8 * width * height or height < 1.4 * width:
                continue
            profile = np.median(turned[top : top + height, left : left + width], axis=1)
            # Tissue may look like a legend of greys, so more is asked of these.
            enough = 0.65 if np.median(np.ptp(profile, axis=1)) > OTHER_COLOUR else 0.92
            if raw[top : top + height, left : left + width].mean() < enough:
                continue
            steps = np.abs(np.diff(profile, axis=0)).max(-1)
            if np.ptp(profile, axis=0).max() < BAR_RANGE or np.median(steps) > 0.6 * BAR_RANGE:
                continue
            part = found if turned.shape == image.shape and inside is mask else found.T
            # What lies between a legend and the edge of the picture belongs to it.
            start = 0 if left <= BAR_GAP else left - 2
            end = part.shape[1] if part.shape[1] - left - width <= BAR_GAP else left + width + 3
            part[max(0, top - 2) : top + height + 2, start:end] = True
    return found & mask


def _chroma(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Chroma (Cr, Cb) less that of the picture's tint: (h, w, 2) int16."""
    parts = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    luma, chroma = parts[..., 0], parts[..., 1:].astype(np.int16) - 128
    # A tint colours nearly all pixels, and gives each grey level one chroma: the median of its pixels, if they agree.
    lit = mask & (luma >= TINTED)
    some = chroma[lit][:: max(1, int(lit.sum()) // 20000)]
    if len(some) < 64 or (np.maximum(np.abs(some[:, 0]), np.abs(some[:, 1])) > 4).mean() <= 0.6:
        return chroma
    values, level = chroma[mask], luma[mask] >> 3
    levels, tints = [0], [(0, 0)]
    for i in range(32):
        here = values[level == i]
        if len(here) >= 16:
            here = here[:: max(1, len(here) // 2000)]
            middle = np.median(here, axis=0)
            if np.median(np.abs(here - middle).max(-1)) <= 6:
                levels.append(8 * i + 4)
                tints.append(middle)
    table = np.stack([np.interp(np.arange(256), levels, channel) for channel in np.array(tints).T], -1)
    return chroma - np.rint(table).astype(np.int16)[luma]


def _is_grey(image: np.ndarray) -> bool:
    red, green, blue = cv2.split(image)
    return max(cv2.norm(red, green, cv2.NORM_INF), cv2.norm(blue, green, cv2.NORM_INF)) <= COLOUR_STEP // 2


def find_colour(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coloured marks (thin, of one hue) and areas of flow or elastography colour (of many hues), (h, w) bool each."""
    nothing = np.zeros(mask.shape, bool)
    if _is_grey(image):
        return nothing, nothing
    chroma = _chroma(image, mask)
    coloured = (cv2.max(np.abs(chroma[..., 0]), np.abs(chroma[..., 1])) > COLOUR_STEP) & mask
    if not coloured.any():
        return nothing, nothing
    # Areas of their own, and groups of areas: the specks of one vessel have one hue each, and many together.
    count, area, stats, _ = cv2.connectedComponentsWithStats(grow(coloured, 1).astype(np.uint8), connectivity=8)
    groups, group = cv2.connectedComponents(grow(coloured, 5).astype(np.uint8), connectivity=8)
    # Only the cores count: at the rims compression and smoothing mix hues.
    core, thick = _eroded(coloured, 5), _eroded(coloured, STROKE_WIDTH)
    is_thick = np.bincount(area[thick], minlength=count) > 0
    own = _hue_spread(chroma[core], area[core], count)
    together = _hue_spread(chroma[core], group[core], groups)
    size, filled = np.bincount(area[coloured], minlength=count), np.bincount(area[core], minlength=count)
    branched = np.minimum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]) > LINE_HEIGHT  # thin vessels
    varied = (own > HUE_SPREAD) & (filled >= 20) & (is_thick | (filled > 0.3 * size) | branched)
    doppler = coloured & (varied[area] | (is_thick[area] & (together > HUE_SPREAD)[group]))
    if doppler.any():
        doppler = (doppler | _specks(image, coloured & ~doppler, doppler)) & ~_outline(image, chroma, coloured)
    return close(grow(coloured & ~doppler, 1), (15, 7)), doppler


def _flat(image: np.ndarray, labels: np.ndarray, where: np.ndarray, count: int) -> np.ndarray:
    """The share of each label's pixels near its most saturated colour: drawn is of one colour, flow is not."""
    label, pixels = labels[where], image[where].astype(np.int16)
    strength = np.ptp(pixels, axis=1)
    order = np.lexsort((strength, label))
    last = np.zeros(count, int)
    last[label[order]] = order
    near = np.abs(pixels - pixels[last[label]]).max(-1) <= 40
    return np.bincount(label, near, count) / np.maximum(np.bincount(label, minlength=count), 1)


def _specks(image: np.ndarray, rest: np.ndarray, doppler: np.ndarray) -> np.ndarray:
    """Small flow beside larger flow, (h, w) bool: its colour varies, that of letters and marks does not."""
    count, labels = cv2.connectedComponents(rest.astype(np.uint8), connectivity=8)
    near = np.zeros(count, bool)
    near[labels[grow(doppler, SPECK_REACH) & rest]] = True
    near[0] = False
    size = np.bincount(labels.ravel(), minlength=count)
    return (near & ((_flat(image, labels, rest, count) < 0.4) | (size <= 4)))[labels] & rest


def _outline(image: np.ndarray, chroma: np.ndarray, coloured: np.ndarray) -> np.ndarray:
    """The outline of the colour window, also where it touches the flow: long, thin, of one colour, (h, w) bool."""
    found = np.zeros(coloured.shape, bool)
    sector = np.floor(np.arctan2(chroma[..., 0], chroma[..., 1]) * (8 / (2 * np.pi))).astype(np.int8)
    for i in range(-4, 4):
        here = coloured & ((sector == i) | (sector == (i + 5) % 8 - 4))
        if here.sum() < 60:
            continue
        solid = cv2.morphologyEx(here.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)) > 0
        thin = here & ~grow(solid, 1)
        candidates = long_and_thin(thin)
        if candidates.any():
            count, labels = cv2.connectedComponents(candidates.astype(np.uint8), connectivity=8)
            found |= (_flat(image, labels, candidates, count) > 0.5)[labels] & candidates
    return found


def _eroded(area: np.ndarray, side: int) -> np.ndarray:
    return cv2.erode(area.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def _hue_spread(chroma: np.ndarray, label: np.ndarray, count: int) -> np.ndarray:
    """1 - length of the mean hue vector of each label's pixels: 0 for one hue, 1 for all round the circle."""
    parts = [np.bincount(label, chroma[:, i], count) for i in range(2)]
    total = np.bincount(label, np.hypot(chroma[:, 0], chroma[:, 1]), count)
    return np.where(total > 0, 1 - np.hypot(*parts) / np.maximum(total, 1e-6), 0)
