# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Where in the frames of a file the ultrasound is: declared by the file where that agrees with the pixels, else found in them.

The mask of a view is the fitted outline of its fan or rectangle (`scan_outline.py`): shadows and the black far field belong to
it, and what stands apart (letters, rulers, bars, logos) does not. For release of images only its pixels count; all others
may show who was scanned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .declared import (
    AGREEMENT,
    COLOUR_FLOW,
    SCREEN_HEIGHTS,
    SPATIAL_2D,
    DeclaredRegion,
    box_overlap,
    declared_strips,
    holds,
    read_declared,
    record_of,
)
from .scan_outline import COST, Outline, fit_outline
from .screen import (
    Box,
    Evidence,
    find_evidence,
    is_noisy,
    is_photograph,
    measure_contrast,
    strip_kind,
    strongest,
)


MIN_SHARE = 0.02  # of the image: a smaller region is not believed


@dataclass(frozen=True)
class ScanRegion:
    """One B-mode view.

    Attributes:
        top, left, height, width: its box, in pixels of the frame.
        mask: (frame height, frame width) bool, True where ultrasound shows.
        polygon: outline, (x, y) in pixels, pixel centres at whole numbers.
        geometry: "sector", "curved", "linear" or "unknown".
        found_by: "declared" (a declared region that agrees with the pixels), "motion" (what changes over a loop) or "pixels".
        spacing_mm: of rows and of columns, where a declared region gives it and is believed.
    """

    top: int
    left: int
    height: int
    width: int
    mask: np.ndarray
    polygon: tuple[tuple[float, float], ...]
    geometry: str
    found_by: str
    spacing_mm: tuple[float, float] | None = None

    @property
    def box(self) -> Box:
        return self.top, self.left, self.height, self.width


@dataclass(frozen=True)
class Layout:
    """What a file's screen shows.

    Attributes:
        view: the B-mode view to keep: the largest one, of nearly equal ones one without colour, else the left one.
        views: all B-mode views, the largest first. spectral, m_mode: boxes (top, left, height, width) of strips along time.
        declared: each declared region as {"box", "data_type", "spatial_format", "believed", "why"}.
    """

    view: ScanRegion | None
    views: tuple[ScanRegion, ...] = ()
    spectral: tuple[Box, ...] = ()
    m_mode: tuple[Box, ...] = ()
    declared: tuple[dict, ...] = ()


def outline(mask: np.ndarray) -> tuple[tuple[float, float], ...]:
    """(h, w) bool -> the corners (x, y) of the largest connected part's border, to within 0.75 pixel; () of an empty mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return ()
    border = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.75, True)
    return tuple((float(x), float(y)) for x, y in border[:, 0])


def find_layout(frames: Sequence[np.ndarray], header=None, is_loop: bool = False) -> Layout:
    """Find the views of a file.

    Args:
        frames: (height, width, 3) uint8 RGB, of one size. A still: one. A loop: some frames sampled from it.
        header: a pydicom dataset, whose declared regions are used where they agree with the pixels. It is not trusted.
        is_loop: the frames follow one another in time at one place, so that what changes is the scan.

    Raises:
        ValueError: no frame, or frames of other shapes.

    >>> from modeling_urfm.data.reading import open_source, ultrasound_examples
    >>> frame = open_source(ultrasound_examples()[0]).frame(0)
    >>> view = find_layout([frame]).view
    >>> view.mask.shape == frame.shape[:2], view.geometry in ("linear", "curved", "sector")
    (True, True)
    """
    if not len(frames) or any(f.ndim != 3 or f.shape != frames[0].shape or f.dtype != np.uint8 for f in frames):
        raise ValueError("find_layout needs at least one frame of (height, width, 3) uint8, all of one size")
    declared = read_declared(header)
    if is_photograph(frames[0]):
        why = "the frame is a photograph"
        return Layout(None, declared=tuple(record_of(region, why) for region in declared))
    contrast, light, moving = measure_contrast(frames, is_loop)
    strips, records = declared_strips(declared, contrast)
    for top, left, height, width in (*strips["spectral"], *strips["m_mode"]):
        contrast = contrast.copy()
        contrast[top : top + height, left : left + width] = 0
    found_by = "motion" if moving else "pixels"
    views = [view for o in _find_outlines(contrast, light, moving) if (view := _region(o, contrast.shape, found_by))]
    kept, along_time = _sort_views(views, contrast, light)
    for kind, box in along_time:
        strips[kind].append(box)
    views = _with_declared(kept, declared, records, contrast, light, moving)
    best = max(views, key=lambda v: _preference(v, views, frames[0]), default=None)
    return Layout(best, tuple(views), tuple(strips["spectral"]), tuple(strips["m_mode"]), tuple(records))


def _sort_views(views: list[ScanRegion], contrast: np.ndarray, light: np.ndarray) -> tuple[list[ScanRegion], list]:
    """The views that show B-mode, and the others as ("spectral" or "m_mode", box)."""
    for alone in (False, True):  # a strip beside a view needs less to be known; but both can't be strips of one another
        kept, along_time = [], []
        for view in views:
            beside = not alone and any(_stacked(view.box, other.box) for other in views if other is not view)
            kind, box = "b-mode", view.box
            full = view.mask.sum() > 0.93 * view.height * view.width
            if view.geometry in ("linear", "unknown") or full or beside:
                # Spectra rise from their baseline in peaks, which no outline follows: what hangs together with it belongs to
                # it.
                boxes = [view.box]
                if view.width > 1.6 * view.height:
                    lit = _lit_box(contrast, view.mask)
                    if lit != view.box and lit[3] < 1.15 * view.width:
                        boxes.insert(0 if lit[2] > 1.3 * view.height else 1, lit)
                for box in boxes:
                    kind = strip_kind(light, box, beside)
                    if kind != "b-mode":
                        break
                if kind == "m_mode" and not full:
                    kind = "b-mode"
            along_time.append((kind, box)) if kind != "b-mode" else kept.append(view)
        if kept or len(views) < 2:
            break
    return kept, along_time


def _lit_box(contrast: np.ndarray, mask: np.ndarray) -> Box:
    """The box around all that is lit and hangs together with what is lit in the mask, over gaps of some pixels."""
    step = max(1, max(mask.shape) // 160)
    lit = cv2.dilate(cv2.compare(contrast, 20, cv2.CMP_GT)[::step, ::step], np.ones((3, 3), np.uint8))
    count, labels = cv2.connectedComponents(lit)
    sizes = np.bincount(labels.ravel(), minlength=count)
    within = np.bincount(labels[mask[::step, ::step]], minlength=count)
    wanted = within > 0.2 * sizes
    wanted[0] = False
    rows, columns = np.flatnonzero(wanted[labels].any(1)), np.flatnonzero(wanted[labels].any(0))
    if not len(rows):
        return 0, 0, *mask.shape
    top, left = int(rows[0]) * step, int(columns[0]) * step
    bottom, right = min(mask.shape[0], int(rows[-1] + 1) * step), min(mask.shape[1], int(columns[-1] + 1) * step)
    return top, left, bottom - top, right - left


def _stacked(a: Box, b: Box) -> bool:
    """One box lies over the other on the screen, at most slightly overlapping it."""
    rows = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    columns = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return columns > 0.3 * min(a[3], b[3]) and rows < 0.2 * min(a[2], b[2])


def _preference(view: ScanRegion, views: list[ScanRegion], frame: np.ndarray) -> tuple:
    """Nearly the largest first, then without colour, then the left one."""
    area = float(view.mask.sum())
    part = frame[view.top : view.top + view.height, view.left : view.left + view.width][::3, ::3].astype(np.int16)
    coloured = (np.ptp(part, axis=2) > 40).mean() > 0.01
    return area > 0.8 * max(float(v.mask.sum()) for v in views), not coloured, -view.left


def _region(fitted: Outline, shape: tuple[int, int], found_by: str) -> ScanRegion | None:
    mask = fitted.mask(shape)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) < 2 or len(columns) < 2:
        return None
    top, left = int(rows[0]), int(columns[0])
    return ScanRegion(
        top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left, mask, outline(mask), fitted.geometry, found_by
    )


# ---------------------------------------------------------------- declared regions


def _with_declared(
    views: list[ScanRegion],
    declared: Sequence[DeclaredRegion],
    records: list[dict],
    contrast: np.ndarray,
    light: np.ndarray,
    moving: bool,
) -> list[ScanRegion]:
    """The views, with those first that declared 2D regions confirm; fills in the records."""
    flat = [i for i, region in enumerate(declared) if region.spatial_format == SPATIAL_2D and region.box is not None]
    confirmed: list[ScanRegion] = []
    for i in flat:
        region, record = declared[i], records[i]
        if record["why"]:
            views = _calibrate(views, region, record, contrast.shape)
            continue
        if any(v.box != region.box and holds(v.box, region.box) for v in confirmed) or (
            region.data_type == COLOUR_FLOW and any(holds(declared[j].box, region.box) for j in flat if j != i)
        ):
            record["believed"], record["why"] = True, "a box within the view"
            continue
        view = max(views, key=lambda v: box_overlap(v.box, region.box), default=None)
        if view is None or box_overlap(view.box, region.box) < AGREEMENT:
            top, left, height, width = region.box
            part = np.zeros_like(contrast)
            part[top : top + height, left : left + width] = contrast[top : top + height, left : left + width]
            again = [v for o in _find_outlines(part, light, moving) if (v := _region(o, contrast.shape, "declared"))]
            view = max(again, key=lambda v: box_overlap(v.box, region.box), default=None)
        if view is None:
            record["why"] = "shows no scan"
        elif box_overlap(view.box, region.box) < AGREEMENT:
            record["why"] = "does not cover what is lit"
        else:
            record["believed"] = True
            view = _clip(view, region.box)
            confirmed.append(replace(view, found_by="declared", spacing_mm=region.spacing_mm))
    return confirmed or views


def _clip(view: ScanRegion, box: Box) -> ScanRegion:
    """The part of a view that lies in a box."""
    if holds(box, view.box) and box_overlap(box, view.box) > 0 and view.top >= box[0] and view.left >= box[1]:
        if view.top + view.height <= box[0] + box[2] and view.left + view.width <= box[1] + box[3]:
            return view
    top, left, height, width = box
    mask = np.zeros_like(view.mask)
    mask[top : top + height, left : left + width] = view.mask[top : top + height, left : left + width]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return replace(
        view, top=int(rows[0]), left=int(columns[0]), height=int(rows[-1] - rows[0] + 1), mask=mask,
        width=int(columns[-1] - columns[0] + 1), polygon=outline(mask),
    )  # fmt: skip


def _calibrate(
    views: list[ScanRegion], region: DeclaredRegion, record: dict, shape: tuple[int, int]
) -> list[ScanRegion]:
    """The spacing of a region that is not of this image's size, where the pixels say how they were changed after export.

    Either the image was cut (the part of the box that is left agrees with a view, at the declared spacing), or scaled down
    from a screen of a usual size.
    """
    if region.spacing_mm is None or not views:
        return views
    top, left, height, width = region.box
    if top < 0 or left < 0 or max(region.box) > 20_000:
        return views
    cut = (top, left, min(height, shape[0] - top), min(width, shape[1] - left))
    options = [(1.0, cut, AGREEMENT)]
    for screen in SCREEN_HEIGHTS:
        scale = shape[0] / screen
        box = tuple(round(edge * scale) for edge in region.box)
        if scale < 0.98 and box[0] + box[2] <= shape[0] + 1 and box[1] + box[3] <= shape[1] + 1:
            options.append((scale, box, 0.88))
    if cut[2] <= 0 or cut[3] <= 0:
        options = options[1:]
    ranked = [
        (box_overlap(view.box, box) - least, -number, index)
        for number, (_, box, least) in enumerate(options)
        for index, view in enumerate(views)
    ]
    if not ranked or max(ranked)[0] < 0:
        return views
    _, option, chosen = max(ranked)
    scale = options[-option][0]
    row, column = region.spacing_mm
    record["why"] += f"; {'cut' if scale == 1 else f'scaled by {scale:.3f}'} it agrees: its spacing is used"
    views = list(views)
    views[chosen] = replace(views[chosen], spacing_mm=(row / scale, column / scale))
    return views


# ---------------------------------------------------------------- from the pixels


def _find_outlines(contrast: np.ndarray, light: np.ndarray, moving: bool) -> list[Outline]:
    """The views' outlines, in two passes: from what is lit for sure; then, if the screen around has no noise, with what is
    hardly lit too (the far field, a probe in air)."""
    evidence = find_evidence(contrast, light, moving)
    if evidence is None:
        return []
    found = _fit_groups(evidence)
    if not found and not moving:  # perhaps what looked like bars is the picture: a synthetic one, or colour all over
        evidence = find_evidence(contrast, light, moving, without_bars=False)
        found = _fit_groups(evidence)
    if not found:
        return []
    if not moving:
        around = cv2.dilate(_union(found, contrast.shape).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
        if is_noisy(evidence, around):
            return _without_letters(found, _fit_groups(find_evidence(contrast, light, moving, noisy=True)), light)
    weak = cv2.inRange(contrast, 1, evidence.sure - 1)
    inside = _union(found, contrast.shape)
    near = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    if (weak[~near] > 0).sum() < 0.03 * inside.sum():
        return found
    second = find_evidence(contrast, light, moving, low=1)
    wider = _fit_groups(second)
    # Believed if what is new is full of weak echoes, and what is left outside is not.
    reach = _union(wider, contrast.shape)
    new, rest = reach & ~near, ~reach & ~near
    if not rest.any() or new.sum() < 0.02 * inside.sum() or (reach & inside).sum() < 0.9 * inside.sum():
        return found
    density = (weak[new] > 0).mean()
    return wider if density > 0.1 and density > 3 * (weak[rest] > 0).mean() else found


def _without_letters(found: list[Outline], stricter: list[Outline], light: np.ndarray) -> list[Outline]:
    """Of the outlines fitted below and above a codec's noise the latter, if what they leave out has letters, which dark
    tissue has not, and they are no less usual."""
    dropped = _union(found, light.shape) & ~_union(stricter, light.shape)
    letters = (light[dropped] > 0.6 * strongest(light)).mean() if dropped.any() else 0
    usual = bool(stricter) and COST[stricter[0].kind] <= COST[found[0].kind] + 0.01
    return stricter if usual and letters > 0.02 else found


def _union(outlines: list[Outline], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for fitted in outlines:
        mask |= fitted.mask(shape)
    return mask


def _fit_groups(evidence: Evidence) -> list[Outline]:
    core, cover = evidence.core, evidence.cover
    count, labels, stats, _ = cv2.connectedComponentsWithStats(core.astype(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    smallest = 0.5 * MIN_SHARE * core.size
    if not len(areas) or areas.max() < smallest:
        return []
    order = [i + 1 for i in np.argsort(-areas, kind="stable") if areas[i] >= max(0.12 * areas.max(), smallest)]
    found: list[Outline] = []
    explained = 0.0
    taken = np.zeros(core.shape, bool)
    apart = _side_by_side(evidence, labels, order)
    split = _strip_row(evidence)
    for index in order:
        group = labels == index
        if (group & taken).sum() > 0.5 * group.sum():  # a far part of a view that a shadow cut off
            continue
        others = np.isin(labels, [i for i in apart if i != index]) if index in apart else taken
        visible = np.where(taken | others, 0, cover)
        if split is not None:
            visible[split:] *= group[split:].any()
            visible[:split] *= group[:split].any()
        fitted, score = fit_outline(evidence.lit, evidence.bright, visible, group, evidence.step)
        if fitted is None:
            continue
        whole = None if apart else _with_parts(fitted, group, labels, order, visible, evidence.step)
        if whole is not None:
            fitted = fit_outline(evidence.lit, evidence.bright, visible, whole, evidence.step)[0] or fitted
        inside = fitted.mask(core.shape, evidence.step)
        if inside.sum() < 2 * smallest or cover[inside].mean() < 0.3:
            continue
        found.append(fitted)
        explained += score
        taken |= inside
    if len(found) < 2 or apart:
        return found
    # Dark bands across a fan (vessels, fluid) part it into pieces, which one fan explains better than one outline each.
    group = np.isin(labels, order)
    fitted, score = fit_outline(evidence.lit, evidence.bright, cover, group, evidence.step)
    if fitted is None or fitted.kind != "fan" or score < explained:
        return found
    return [fitted] if (fitted.mask(core.shape, evidence.step) & group).sum() > 0.97 * group.sum() else found


def _with_parts(fitted, group, labels, order, visible, step) -> np.ndarray | None:
    """The group and those between the same two sides as it, parted from it by something dark across the view (a full bladder,
    amniotic fluid); None where there are none."""
    if labels.max() < 2 or fitted.kind not in ("linear", "fan", "cut fan"):
        return None
    top = int(np.argmax(group.any(1)))
    sides = Outline(fitted.planes[:2]).mask(labels.shape, step)
    covered = fitted.mask(labels.shape, step)
    whole = group.copy()
    for index in range(1, int(labels.max()) + 1):
        part = (labels == index) & (visible > 0)
        size = part.sum()
        # The near field may be small; small groups below the view are letters.
        if size < 8 or (index not in order and part[top:].any()):
            continue
        if (
            size > 0.9 * (labels == index).sum()
            and (part & sides).sum() > 0.9 * size
            and (part & covered).sum() < 0.5 * size
        ):
            spanned = sides[part.any(1)].sum(1).mean()  # of the width there is between the sides
            if part.any(0).sum() > 0.5 * spanned:
                whole |= part
    return whole if whole.sum() > group.sum() else None


def _strip_row(evidence: Evidence) -> int | None:
    """The row between a view and a wide strip under or over it that is no part of it, reaching beyond the view's sides.

    What a shadow or a cyst cuts off a fan is wide too, but lies between the fan's sides.
    """
    core = evidence.core
    used = core.any(1)
    if not used.any():
        return None
    edges = np.flatnonzero(np.diff(used.astype(np.int8)))
    gaps = [(a + 1, b + 1) for a, b in zip(edges[:-1], edges[1:]) if not used[a + 1]]
    for start, end in sorted(gaps, key=lambda gap: gap[0] - gap[1])[:2]:
        row = (start + end) // 2
        for view, strip in ((slice(0, row), slice(row, None)), (slice(row, None), slice(0, row))):
            rows, columns = np.flatnonzero(core[strip].any(1)), np.flatnonzero(core[strip].any(0))
            box = core[strip][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            if box.shape[1] < max(1.6 * box.shape[0], 0.3 * core.shape[1]) or box.mean() < 0.3:  # letters are sparser
                continue
            alone, group = np.zeros_like(evidence.cover), np.zeros(core.shape, np.uint8)
            alone[view], group[view] = evidence.cover[view], core[view]
            count, labels, stats, _ = cv2.connectedComponentsWithStats(group, connectivity=4)
            largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
            fitted, _ = fit_outline(evidence.lit, evidence.bright, alone, labels == largest, evidence.step)
            if fitted is None or stats[largest, cv2.CC_STAT_AREA] < 0.5 * MIN_SHARE * core.size:
                continue
            sides = Outline(tuple(plane for plane in fitted.planes if abs(plane[1]) < 0.95))
            if (core[strip] & ~sides.mask(core.shape, evidence.step)[strip]).sum() > 0.1 * core[strip].sum():
                return row
    return None


def _side_by_side(evidence: Evidence, labels: np.ndarray, order: list[int]) -> tuple[int, ...]:
    """The two groups of a dual-view screen: alike in size and place, with an empty column between them.

    A shadow parts a picture too, but not from its very top, and seldom in two equal halves.
    """
    for first, second in ((a, b) for n, a in enumerate(order) for b in order[n + 1 :]):
        spans = []
        for index in (first, second):
            rows, columns = np.flatnonzero((labels == index).any(1)), np.flatnonzero((labels == index).any(0))
            spans.append((columns[0], columns[-1] + 1, rows[0], rows[-1] + 1))
        (left_a, right_a, top_a, bottom_a), (left_b, right_b, top_b, bottom_b) = sorted(spans)
        slack = 0.1 * min(bottom_a - top_a, bottom_b - top_b)
        gap = evidence.cover[min(top_a, top_b) : max(bottom_a, bottom_b), max(0, right_a - 1) : left_b + 1]
        if (
            0.75 < (right_a - left_a) / (right_b - left_b) < 1.33
            and abs(top_a - top_b) <= slack and abs(bottom_a - bottom_b) <= 2 * slack
            and left_b - right_a >= -1 and gap.size and gap.mean(0).min() < 0.1
        ):  # fmt: skip
            return first, second
    return ()
