# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The outline of a scan: a fan, a rectangle or a quadrilateral fitted to where an image is lit.

A probe's picture has a known kind of outline: two straight sides and two arcs (curved and sector probes), or four straight
sides (linear probes). Fitting that outline puts shadows and the black far field inside, where they belong, and letters,
rulers and logos outside, even when they touch the picture.

Coordinates are (x, y) in pixels of the image, the centre of the first pixel at (0, 0). A cell is a square of `step` pixels.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np


# A cell lit by a smaller share than this speaks against the scan. Tissue in speckle is lit to nearly 1, the dark far field
# to some tenths, the screen around (with its letters) to some hundredths.
LIT_SHARE = 0.2
# Shares of the explained evidence that a less usual outline must win back: a rectangle and a fan are what probes make.
COST = {"linear": 0.0, "fan": 0.005, "cut fan": 0.015, "quadrilateral": 0.02, "hull": 0.15}
EDGE = 0.15  # what an outline gains, as such a share, that is lit within and dark without all along
RAGGED = 0.08  # what a straight-sided outline loses that has no such line along most of it: a scan's sides are sharp
CODEC_REACH = 8  # how far a lossy codec's noise spreads: its blocks have 8 pixels
# The near arc's radius over the far one's, below which the probe is a phased array (a sector): phased arrays start the beams
# within a few mm of one point, curved arrays on an arc of 10 mm (endocavity) to 60 mm (abdomen).
SECTOR_RATIO = 0.12


@dataclass(frozen=True)
class Outline:
    """The points (x, y) with a*x + b*y <= c for all `planes` (unit normals), outside of the circle `near`, inside of `far`.

    Circles are (x, y, radius) or None. kind is a key of COST.
    """

    planes: tuple[tuple[float, float, float], ...]
    near: tuple[float, float, float] | None = None
    far: tuple[float, float, float] | None = None
    kind: str = "linear"

    def mask(self, shape: tuple[int, int], step: int = 1) -> np.ndarray:
        """(rows, columns) bool: the cells (or pixels) whose centres are inside."""
        rows, columns = shape
        offset = (step - 1) / 2
        y = np.arange(rows) * step + offset
        low, high = np.full(rows, -np.inf), np.full(rows, np.inf)
        for a, b, c in self.planes:
            if abs(a) < 1e-9:
                high[b * y > c] = -np.inf
            elif a > 0:
                high = np.minimum(high, (c - b * y) / a)
            else:
                low = np.maximum(low, (c - b * y) / a)
        if self.far is not None:
            half = _half_chord(self.far, y)
            low, high = np.maximum(low, self.far[0] - half), np.minimum(high, self.far[0] + half)
        # From here on in cells. A row is one run of columns, less the run inside the near circle.
        column = np.arange(columns, dtype=np.int32)
        low, high = np.ceil((low - offset) / step - 1e-9), np.floor((high - offset) / step + 1e-9)
        low, high = (np.clip(end, -1, columns).astype(np.int32)[:, None] for end in (low, high))
        inside = (column >= low) & (column <= high)
        if self.near is not None:
            half = _half_chord(self.near, y)
            touched = np.flatnonzero(half > 0)
            centre = (self.near[0] - offset) / step
            inside[touched] &= np.abs(column - centre) >= half[touched, None] / step
        return inside

    def contains(self, points: np.ndarray, slack: float = 0.0, skip: int | str | None = None) -> np.ndarray:
        """(n, 2) points -> (n,) bool; `skip`: the plane's index, "near" or "far", which is not asked."""
        inside = np.ones(len(points), bool)
        for index, (a, b, c) in enumerate(self.planes):
            if index != skip:
                inside &= points[:, 0] * a + points[:, 1] * b <= c + slack
        if self.far is not None and skip != "far":
            inside &= np.hypot(points[:, 0] - self.far[0], points[:, 1] - self.far[1]) <= self.far[2] + slack
        if self.near is not None and skip != "near":
            inside &= np.hypot(points[:, 0] - self.near[0], points[:, 1] - self.near[1]) >= self.near[2] - slack
        return inside

    @property
    def geometry(self) -> str:
        """ "sector", "curved", "linear" or "unknown"."""
        if self.kind == "hull":
            return "unknown"
        if self.far is None or len(self.planes) < 2:
            return "linear"
        (a, _, _), (b, _, _) = self.planes[:2]
        if abs(a) > 0.98 and abs(b) > 0.98 and self.near is None:  # sides within 11 degrees of upright, a flat top
            return "linear"
        return "curved" if self.near is not None and self.near[2] > SECTOR_RATIO * self.far[2] else "sector"


def _half_chord(circle: tuple[float, float, float], y: np.ndarray) -> np.ndarray:
    square = circle[2] ** 2 - (y - circle[1]) ** 2
    return np.where(square > 0, np.sqrt(np.maximum(square, 0)), -np.inf)


def box_outline(left: float, top: float, right: float, bottom: float) -> Outline:
    """The rectangle between the outer edges given."""
    return Outline(((-1.0, 0.0, -left), (1.0, 0.0, right), (0.0, -1.0, -top), (0.0, 1.0, bottom)))


def fit_outline(
    lit: np.ndarray, bright: np.ndarray, cover: np.ndarray, core: np.ndarray, step: int
) -> tuple[Outline | None, float]:
    """The outline that explains best where the image is lit, and how much it explains (cells).

    Candidates come from the borders of `core`; the one that gathers most evidence (lit share less LIT_SHARE, summed over its
    cells) wins, and is then moved to the edges of the full-size image.

    Args:
        lit: (height, width) uint8 evidence, 0 dark to 255 lit.
        bright: (height, width) uint8, the same of higher brightness, above a codec's noise.
        cover: (rows, columns) float32, its mean in each cell, 0..1, without what is known to be no scan.
        core: (rows, columns) bool, the connected group of cells from which the fit starts.
        step: pixels along a cell's side.
    """
    if core.sum() < 6:
        return None, 0.0
    evidence = cover - LIT_SHARE
    total = float(evidence[evidence > 0].sum())
    candidates = [_fit_box(evidence, core, step), *_fit_sides(evidence, core, step), _fit_hull(core, step)]
    # The dark parts of the picture may hold its lower corners, which the group has not.
    wide = _grow(core, cover)
    if wide.sum() > 1.1 * core.sum():
        candidates += _fit_sides(evidence, wide, step)
    best, best_score = None, 0.0
    for candidate in candidates:
        if candidate is None:
            continue
        inside = candidate.mask(cover.shape, step)
        if (inside & core).sum() < 0.7 * core.sum():  # it's about something else
            continue
        edge = _edge_share(cover, inside)
        cost = COST[candidate.kind] + (RAGGED if candidate.far is None and edge < 0.35 else 0.0)
        cost += 0.2 if candidate.kind == "hull" and edge < 0.5 else 0.0
        score = float(evidence[inside].sum()) + (EDGE * edge - cost) * total
        if score > best_score:
            best, best_score = candidate, score
    return (None, 0.0) if best is None else (_refine(best, lit, bright, step), best_score)


# ---------------------------------------------------------------- candidates, on cells


def _edge_share(cover: np.ndarray, inside: np.ndarray) -> float:
    """Share of an outline along which it is lit within and dark without; 1 where the image's border is all there is of it.

    The ragged ends of shadows have no such line.
    """
    mask = inside.astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(mask, kernel, borderValue=1)
    outer = cv2.dilate(mask, kernel) - mask
    lit, dark = (cover > 0.4).astype(np.uint8), (cover < 0.25).astype(np.uint8)
    ring = mask - inner  # without the cells on the image's border
    edge = ring & lit & cv2.dilate(outer & dark, kernel)
    length = cv2.countNonZero(ring)
    return cv2.countNonZero(edge) / length if length else 1.0


def _grow(core: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The group and all lit cells that hang together with it over gaps of a few cells."""
    lit = (cover > LIT_SHARE).astype(np.uint8)
    joined = cv2.dilate(lit, np.ones((3, 3), np.uint8))
    count, labels = cv2.connectedComponents(joined)
    touched = np.bincount(labels[core], minlength=count) > 0
    touched[0] = False
    return touched[labels] & (lit > 0)


def _longest_gain(profile: np.ndarray, anchor: int) -> tuple[int, int]:
    """[start, end) of the run around the anchor with the largest sum."""
    anchor = min(max(anchor, 0), len(profile) - 1)
    before = np.cumsum(profile[anchor::-1])
    after = np.cumsum(profile[anchor:])
    return anchor - int(np.argmax(before)), anchor + int(np.argmax(after)) + 1


def _middle(core: np.ndarray) -> tuple[int, int]:
    """The row and column that halve the group."""
    return tuple(int(np.searchsorted(np.cumsum(core.sum(axis)), core.sum() / 2)) for axis in (1, 0))


def _fit_box(evidence: np.ndarray, core: np.ndarray, step: int) -> Outline:
    rows, columns = np.flatnonzero(core.any(1)), np.flatnonzero(core.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    row, column = _middle(core)
    for _ in range(2):
        top, bottom = _longest_gain(evidence[:, left:right].sum(1), row)
        left, right = _longest_gain(evidence[top:bottom].sum(0), column)
    return box_outline(left * step - 0.5, top * step - 0.5, right * step - 0.5, bottom * step - 0.5)


def _border_points(core: np.ndarray, step: int) -> tuple[np.ndarray, ...]:
    """Outermost points of the group: left and right ends of its rows, upper and lower ends of its columns, (n, 2) each."""
    rows, columns = np.flatnonzero(core.any(1)), np.flatnonzero(core.any(0))
    centre = (step - 1) / 2
    left = np.stack([core[rows].argmax(1) * step - 0.5, rows * step + centre], 1)
    right = np.stack([(core.shape[1] - core[rows, ::-1].argmax(1)) * step - 0.5, rows * step + centre], 1)
    upper = np.stack([columns * step + centre, core[:, columns].argmax(0) * step - 0.5], 1)
    lower = np.stack([columns * step + centre, (core.shape[0] - core[::-1, columns].argmax(0)) * step - 0.5], 1)
    return left, right, upper, lower


def _support_line(points: np.ndarray, outward: tuple[float, float], tolerance: float) -> tuple | None:
    """The line on which most of the points lie while few lie outside of it, as (a, b, c) with the normal outward."""
    if len(points) < 4:
        return None
    chosen = points[np.unique(np.linspace(0, len(points) - 1, 28).astype(int))]
    first, second = np.triu_indices(len(chosen), 1)
    along = chosen[second] - chosen[first]
    length = np.hypot(along[:, 0], along[:, 1])
    first, along, length = (part[length > 4 * tolerance] for part in (first, along, length))
    if not len(length):
        return None
    normal = np.stack([along[:, 1], -along[:, 0]], 1) / length[:, None]
    side = normal @ np.asarray(outward)
    normal[side < 0] *= -1
    keep = np.abs(side) > 0.2
    if not keep.any():
        return None
    normal, first = normal[keep], first[keep]
    distance = points @ normal.T - (chosen[first] * normal).sum(1)
    score = (np.abs(distance) < tolerance).sum(0) - 1.5 * (distance > 2 * tolerance).sum(0)
    best = int(np.argmax(score))
    a, b = normal[best]
    near = np.abs(distance[:, best]) < tolerance
    return float(a), float(b), float(np.quantile(points[near] @ normal[best], 0.75))


def _fit_sides(evidence: np.ndarray, core: np.ndarray, step: int) -> list[Outline]:
    """Fans and quadrilaterals between the straight sides of the group."""
    left, right, upper, lower = _border_points(core, step)
    tolerance = 1.2 * step
    middle = (left[:, 0].min() + right[:, 0].max()) / 2
    side_l = _support_line(np.concatenate([left, upper[upper[:, 0] < middle]]), (-1, 0), tolerance)
    side_r = _support_line(np.concatenate([right, upper[upper[:, 0] > middle]]), (1, 0), tolerance)
    if side_l is None or side_r is None:
        return []
    found = []
    ends = [_support_line(upper, (0, -1), tolerance), _support_line(lower, (0, 1), tolerance)]
    if all(ends):
        found.append(Outline((side_l, side_r, *ends), kind="quadrilateral"))
    pairs = [(side_l, side_r)]
    # A side in shadow, or with letters along it, is where the other one's mirror image is.
    for axis in {middle, float(np.median(upper[:, 0]))}:
        a, b, c = side_l
        pairs.append((side_l, (-a, b, c - 2 * a * axis)))
        a, b, c = side_r
        pairs.append(((-a, b, c - 2 * a * axis), side_r))
    for pair in pairs:
        found.extend(_fit_fan(pair, evidence, core, step))
    return found


def _apex(side_l: tuple, side_r: tuple) -> tuple[float, float] | None:
    (a, b, c), (d, e, f) = side_l, side_r
    det = a * e - b * d
    return None if abs(det) < 0.03 else ((c * e - b * f) / det, (a * f - c * d) / det)


def _fit_fan(sides: tuple, evidence: np.ndarray, core: np.ndarray, step: int) -> list[Outline]:
    """The arcs between two sides that meet above; with a row or column at which the picture is cut, where it is."""
    apex = _apex(*sides)
    if apex is None or sides[0][1] > 0 or sides[1][1] > 0:  # parallel, or wider at the top
        return []
    x, y = apex
    centre = (step - 1) / 2
    wedge = Outline(sides)
    inside = wedge.mask(evidence.shape, step)
    if inside.sum() < 6:
        return []
    row, column = np.nonzero(inside)
    radius = np.hypot(column * step + centre - x, row * step + centre - y)
    bins = (radius / step).astype(int)
    profile = np.bincount(bins, evidence[inside])
    middle_row, middle_column = _middle(core)
    own = bins[core[inside]]
    if not len(own):
        return []
    # The arcs hold the group, whatever dark lies across its middle.
    start, end = _longest_gain(profile, int(np.median(own)))
    start, end = min(start, int(np.quantile(own, 0.005))), max(end, int(np.quantile(own, 0.98)) + 1)
    near = (x, y, start * step) if start > 0 else None
    fan = Outline(sides, near, (x, y, end * step), kind="fan")
    found = [fan]
    # Cut by the edge of a window: a flat top, a flat bottom, upright flanks.
    for base in (fan, replace(fan, far=(x, y, float(radius.max()) + step)), replace(fan, near=None)):
        inside = base.mask(evidence.shape, step)
        values = np.where(inside, evidence, 0)
        top, bottom = _longest_gain(values.sum(1), middle_row)
        left, right = _longest_gain(values[top:bottom].sum(0), middle_column)
        planes = list(sides)
        lit_rows, lit_columns = np.flatnonzero((values != 0).any(1)), np.flatnonzero((values != 0).any(0))
        if not len(lit_rows):
            continue
        rows, columns = slice(None), slice(None)
        cuts = (  # cells cut off, the two rows or columns of cells within the edge, and the edge
            (top - lit_rows[0], (slice(top, top + 2), columns), (0.0, -1.0, 0.5 - top * step)),
            (lit_rows[-1] + 1 - bottom, (slice(max(0, bottom - 2), bottom), columns), (0.0, 1.0, bottom * step - 0.5)),
            (left - lit_columns[0], (rows, slice(left, left + 2)), (-1.0, 0.0, 0.5 - left * step)),
            (lit_columns[-1] + 1 - right, (rows, slice(max(0, right - 2), right)), (1.0, 0.0, right * step - 0.5)),
        )
        # One or two cells are a blunt corner.
        planes += [
            plane for cells, border, plane in cuts if cells > 2 and _is_window_edge(evidence[border][inside[border]])
        ]
        if len(planes) > 2:
            found.append(replace(base, planes=tuple(planes), kind="cut fan"))
    return found


def _is_window_edge(evidence: np.ndarray) -> bool:
    """A window cuts a fan off sharply: all along its edge (these cells) the picture is lit up to it. Shadows end raggedly."""
    return bool(evidence.size) and float((evidence + LIT_SHARE > 0.4).mean()) > 0.7


def _fit_hull(core: np.ndarray, step: int) -> Outline | None:
    """The convex hull of the group: always there, and right where nothing better is known."""
    contours, _ = cv2.findContours(core.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = cv2.convexHull(np.concatenate(contours))[:, 0].astype(float)
    corners = cv2.approxPolyDP((corners * 16).astype(np.int32)[:, None], 12, True)[:, 0] / 16
    if len(corners) < 3:
        return None
    corners = corners * step + (step - 1) / 2
    along = np.roll(corners, -1, 0) - corners
    normal = np.stack([along[:, 1], -along[:, 0]], 1) / np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    if ((corners.mean(0) - corners) * normal).sum() > 0:
        normal = -normal
    offset = (corners * normal).sum(1) + step / 2
    return Outline(tuple((float(a), float(b), float(c)) for (a, b), c in zip(normal, offset)), kind="hull")


# ---------------------------------------------------------------- to the pixel


def _refine(outline: Outline, lit: np.ndarray, bright: np.ndarray, step: int) -> Outline:
    """Move each side and arc to the steepest fall of evidence near it, at last of brightness: a codec's noise around the scan
    is lit, but not bright."""
    for image, reach, least in ((lit, 2 * step + 3, 0.1), (bright, CODEC_REACH, 0.3), (bright, 3, 0.3)):
        for index in range(len(outline.planes)):
            outline = _refine_plane(outline, index, image, reach, least)
        if outline.far is not None:
            apex = _apex(*outline.planes[:2]) or outline.far[:2]
            for name in ("near", "far"):
                circle = getattr(outline, name)
                if circle is not None:
                    # Turning a side moves the apex; the arc's lowest point stays.
                    outline = replace(outline, **{name: (*apex, max(0.0, circle[1] + circle[2] - apex[1]))})
                    outline = _refine_arc(outline, name, image, reach, least)
    return outline


def _refine_plane(outline: Outline, index: int, lit: np.ndarray, reach: int, least: float) -> Outline:
    a, b, c = outline.planes[index]
    height, width = lit.shape
    diagonal = math.hypot(height, width)
    # The foot of the image's centre on the line, and the line's points around it.
    x, y = (width - 1) / 2, (height - 1) / 2
    distance = c - a * x - b * y
    along = np.linspace(-diagonal / 2, diagonal / 2, 500)
    points = np.stack([x + distance * a - along * b, y + distance * b + along * a], 1)
    keep = outline.contains(points, slack=0.0, skip=index)
    if keep.sum() < 12:
        return outline
    points, along = points[keep], along[keep]
    middle, half = (along[0] + along[-1]) / 2, max((along[-1] - along[0]) / 2, 1.0)
    basis = (along - middle) / half
    # A window's edge is upright or level.
    turns = outline.kind != "cut fan" or index < 2
    moved = _steepest(lit, points, np.array([[a, b]]), basis if turns else None, reach, least)
    if moved is None:
        return outline
    shift, turn = moved
    # Points x(s) = p0 + s*t + (shift + turn * (s - middle) / half) * n: a line again.
    normal = np.array([a, b]) - turn / half * np.array([-b, a])
    normal /= np.hypot(*normal)
    pivot = points.mean(0) + (shift + turn * basis.mean()) * np.array([a, b])
    planes = list(outline.planes)
    planes[index] = (float(normal[0]), float(normal[1]), float(pivot @ normal))
    return replace(outline, planes=tuple(planes))


def _refine_arc(outline: Outline, name: str, lit: np.ndarray, reach: int, least: float) -> Outline:
    x, y, radius = getattr(outline, name)
    sides = [math.atan2(-b, abs(a)) for a, b, _ in outline.planes[:2]]
    # An upright side has an angle of 0 with the axis; a side's normal has b < 0 where the fan widens.
    angle = np.linspace(
        max(-sides[0], -1.6) if sides[0] > 0 else -0.05, min(sides[1], 1.6) if sides[1] > 0 else 0.05, 240
    )
    normal = np.stack([np.sin(angle), np.cos(angle)], 1)
    points = np.array([x, y]) + radius * normal
    keep = outline.contains(points, slack=0.5, skip=name)
    if keep.sum() < 12:
        return outline
    angle, normal, points = angle[keep], normal[keep], points[keep]
    # Moving the centre down by d changes the radius by d * cos(angle).
    cosine = np.cos(angle) - np.cos(angle).mean()
    scale = float(np.ptp(cosine)) / 2
    sign = -1 if name == "near" else 1
    bend = scale * radius > 4 and len(angle) > 40
    moved = _steepest(lit, points, sign * normal, sign * cosine / max(scale, 1e-9) if bend else None, reach, least)
    if moved is None:
        return outline
    shift, amount = moved
    down = amount / scale if bend else 0.0
    radius = radius + sign * shift - down * float(np.cos(angle).mean())
    return replace(outline, **{name: (x, y + down, max(0.0, radius))})


def _steepest(lit, points, normals, basis, reach: int, least: float) -> tuple[float, float] | None:
    """How far to move a curve outward (`shift`, and `turn` times `basis` more along it) to the largest fall of evidence.

    For each turn the evidence is averaged along the curve at offsets within `reach`; the step function that fits these means
    best (least squares, as in Otsu's threshold) gives the place. None where none falls by `least`, or the image ends.
    """
    height, width = lit.shape
    every = -(-len(points) // 120)
    points, normals = points[::every], normals[::every] if len(normals) > 1 else normals
    basis = basis if basis is None else basis[::every]
    spacing = 0.5 if reach <= 6 else 1.0
    offsets = np.arange(-round(reach / spacing), round(reach / spacing) + 1) * spacing
    turns = np.linspace(-0.8, 0.8, 9) * reach if basis is not None else np.zeros(1)
    basis = np.zeros(len(points)) if basis is None else basis
    amount = offsets[None, :, None] + (turns[:, None] * basis)[:, None, :]
    x, y = (
        np.rint(points[:, axis] + amount * normals[:, axis]).astype(np.int32).view(np.uint32) for axis in (0, 1)
    )  # as unsigned numbers those below 0 are above every size
    valid = (x < width) & (y < height)
    if valid[len(turns) // 2, -2].mean() < 0.3:  # the image ends there
        return None
    y *= np.uint32(width)
    y += x
    y *= valid
    values = lit.ravel().take(y.view(np.int32)) * valid
    count = valid.sum(2)
    profile = values.sum(2) / np.maximum(count, 1) / 255
    profile = np.where(count > 0.2 * len(points), profile, 0.0)
    ahead = np.cumsum(profile, 1)[:, :-1]
    number = np.arange(1, len(offsets))
    inner = ahead / number
    outer = (profile.sum(1, keepdims=True) - ahead) / (len(offsets) - number)
    gain = np.where(inner > outer, number * (len(offsets) - number) * (inner - outer) ** 2, 0)
    gain[:, [0, -1]] = 0
    # Small turns win ties.
    gain *= 1 - 0.01 * np.abs(np.linspace(-1, 1, len(turns)))[:, None]
    turn, place = np.unravel_index(int(np.argmax(gain)), gain.shape)
    if inner[turn, place] - outer[turn, place] < least:
        return None
    return float(offsets[place] + spacing / 2), float(turns[turn])
