# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Where the scan is: against phantoms whose region is known, real files with regions drawn by hand, and screens made up here."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_urfm.data.declared import read_declared
from modeling_urfm.data.phantoms import ORGANS, phantom_frame
from modeling_urfm.data.reading import open_source, ultrasound_examples
from modeling_urfm.data.scan_outline import Outline, box_outline
from modeling_urfm.data.scan_region import find_layout, outline
from modeling_urfm.data.screen import strip_kind

from .raw_inputs import screen as raw_screen


DRAWN = json.loads((Path(__file__).parents[1] / "fixtures" / "scan_regions.json").read_text())
EXAMPLES = {path.name: path for path in ultrasound_examples()}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def fill(polygon, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre is in a polygon (even-odd rule)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]]):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def frames_of(name: str) -> list[np.ndarray]:
    source = open_source(EXAMPLES[name])
    return [source.frame(i) for i in range(0, source.num_frames, max(1, source.num_frames // 8))]


def header_of(name: str):
    import pydicom

    return pydicom.dcmread(EXAMPLES[name], stop_before_pixels=True)


def on_screen(seed: int, patient: int, frames: int = 1, size: int = 256, probe=None, snr=20.0, plain=False):
    """Frames of a phantom on a larger screen with letters, a grey bar, a logo and a ruler: (frames, mask)."""
    rng = np.random.default_rng([seed, patient])
    parts = [phantom_frame(seed, patient, i, probe=probe, image_size=size, snr_db=snr) for i in range(frames)]
    height, width = size + 70, size + 130
    screen = np.zeros((height, width, 3), np.uint8)
    if not plain:
        for row in (14, 30, height - 8):
            words = "".join(rng.choice(list("ABCDEFGHIKLMNOP 0123456789"), 14))
            cv2.putText(screen, words, (int(rng.integers(2, width // 2)), row), 0, 0.45, (230,) * 3, 1, cv2.LINE_AA)
        screen[60 : size // 2 + 60, 8:18] = np.linspace(255, 0, size // 2)[:, None, None]
        cv2.circle(screen, (width - 30, 20), 8, (90, 140, 230), -1)
        screen[60 : size + 40 : 20, width - 12 : width - 6] = 220
    mask = np.zeros((height, width), bool)
    mask[40 : 40 + size, 60 : 60 + size] = parts[0].scan_mask
    images = []
    for part in parts:
        image = screen.copy()
        image[mask] = part.image[part.scan_mask][:, None]
        images.append(image)
    return images, mask


def spectra(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) uint8 like pulsed Doppler: flow at every heartbeat, on a baseline."""
    phase = (np.arange(width) / width * 5) % 1
    top = 0.7 * (np.exp(-(((phase - 0.2) / 0.12) ** 2)) + 0.15)
    speed = 1 - np.arange(height)[:, None] / (0.8 * height)
    power = np.where((speed > 0) & (speed < top), 0.3 + speed, 0.02) * rng.exponential(1, (height, width))
    image = np.clip(255 * (0.5 + 0.18 * np.log(power + 1e-3)), 0, 255).astype(np.uint8)
    image[int(0.8 * height)] = 200
    return image


def m_mode(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) uint8: one beam over time, its layers moving with the heart."""
    beam = np.clip(cv2.GaussianBlur(rng.normal(110, 150, (height, 1)), (0, 0), 1.5), 5, 255).astype(np.float32)
    row = np.arange(height)[:, None] + 4 * np.sin(np.arange(width) / width * 25)[None]
    image = cv2.remap(beam, np.zeros((height, width), np.float32), row.astype(np.float32), cv2.INTER_LINEAR)
    return np.clip(image + rng.normal(0, 3, image.shape), 1, 255).astype(np.uint8)


# ---------------------------------------------------------------- phantoms


@pytest.mark.parametrize("kind", ["bare", "plain", "screen"])
def test_stills_of_phantoms(kind):
    found, geometries = [], []
    for patient in range(15):
        size, snr = (128, 192, 256, 384)[patient % 4], (5.0, 12.0, 20.0, 30.0, 40.0)[patient % 5]
        probe = (None, "linear", "sector", "curved")[patient % 4 if patient > 7 else 0]
        if kind == "bare":
            part = phantom_frame(8, patient, probe=probe, image_size=size, snr_db=snr)
            images, mask = [part.image[..., None].repeat(3, 2)], part.scan_mask
        else:
            images, mask = on_screen(8, patient, 1, size, probe, snr, plain=kind == "plain")
        layout = find_layout(images)
        assert len(layout.views) == 1 and not layout.spectral and not layout.m_mode
        found.append(iou(layout.view.mask, mask))
        truth = phantom_frame(8, patient, probe=probe, image_size=64).probe
        geometries.append(layout.view.geometry == truth)
    assert np.mean(found) >= 0.97 and min(found) >= 0.9, found
    assert np.mean(geometries) >= 0.8


def test_loops_of_phantoms():
    found = []
    for patient in range(15):
        images, mask = on_screen(9, patient, 6, (128, 192, 256)[patient % 3], snr=(8.0, 20.0, 35.0)[patient % 3])
        view = find_layout(images, is_loop=True).view
        assert view.found_by == "motion"
        found.append(iou(view.mask, mask))
    assert np.mean(found) >= 0.97 and min(found) >= 0.93, found


def test_a_loop_in_which_nothing_moves_is_a_still():
    images, mask = on_screen(9, 3)
    view = find_layout(images * 4, is_loop=True).view
    assert view.found_by == "pixels" and iou(view.mask, mask) > 0.95


def test_the_black_far_field_belongs_to_the_fan_and_letters_that_touch_it_do_not():
    part = phantom_frame(3, 3, probe="curved", image_size=384, snr_db=25)
    image = np.zeros((420, 600, 3), np.uint8)
    mask = np.zeros((420, 600), bool)
    mask[20:404, 100:484] = part.scan_mask
    grey = part.image.astype(float)
    grey[250:340] *= 0.0  # a shadow across all of the fan
    image[mask] = grey.astype(np.uint8)[part.scan_mask][:, None]
    rows, columns = np.nonzero(mask)
    row = int(np.median(rows))
    cv2.putText(
        image, "LT KIDNEY", (int(columns[rows == row].max()) - 10, row), 0, 0.6, (255, 255, 255), 1, cv2.LINE_AA
    )
    view = find_layout([image]).view
    assert iou(view.mask, mask) > 0.96 and view.geometry == "curved"
    assert (view.mask & ~mask).sum() < 0.02 * mask.sum()


def test_lossy_compression():
    found = []
    for patient in range(8):
        images, mask = on_screen(12, patient, 1, 256)
        stored = cv2.imencode(".jpg", images[0], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        found.append(iou(find_layout([cv2.imdecode(stored, 1)]).view.mask, mask))
    assert np.mean(found) >= 0.95, found


def test_compression_hardly_moves_the_box():
    shifts = []
    for patient in range(8):
        image = raw_screen(patient, size=256)[..., None].repeat(3, 2)
        stored = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        boxes = [find_layout([one]).view.box for one in (image, cv2.imdecode(stored, 1))]
        shifts.append(sum(abs(a - b) for a, b in zip(*boxes)))
    assert np.mean(np.array(shifts) <= 4) >= 0.75, shifts


# ---------------------------------------------------------------- real files


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_real_files_against_regions_drawn_by_hand(name):
    assert hashlib.sha256(EXAMPLES[name].read_bytes()).hexdigest() == DRAWN[name]["sha256"]
    frames = frames_of(name)
    drawn = fill(DRAWN[name]["polygon"], frames[0].shape[:2])
    for chosen, is_loop in ((frames[:1], False), (frames, len(frames) > 1)):
        layout = find_layout(chosen, header_of(name), is_loop)
        assert iou(layout.view.mask, drawn) >= 0.95
        assert len(layout.views) == 1 and not layout.spectral and not layout.m_mode


def test_declared_regions_of_files_that_were_changed_after_export():
    layout = find_layout(frames_of("examples_palette.dcm"), header_of("examples_palette.dcm"))
    assert [d["believed"] for d in layout.declared] == [False, False]
    assert "row 518 of 350" in layout.declared[0]["why"] and "outside" in layout.declared[1]["why"]
    # The screen was cut, not scaled: its ruler has a tick every 38 rows, 1 cm.
    assert layout.view.spacing_mm == pytest.approx((10 / 38.1, 10 / 38.1), rel=0.01)
    layout = find_layout(frames_of("examples_ybr_color.dcm"), header_of("examples_ybr_color.dcm"), is_loop=True)
    assert "column 595 of 320" in layout.declared[0]["why"] and not layout.declared[0]["believed"]
    # 640 x 480 was made 320 x 240: a pixel is twice as large.
    assert layout.view.spacing_mm == pytest.approx((1.021, 1.021), rel=0.001) and layout.view.found_by == "motion"


# ---------------------------------------------------------------- declared regions


def declare(*regions):
    from pydicom.dataset import Dataset

    header = Dataset()
    header.SequenceOfUltrasoundRegions = []
    for left, top, right, bottom, spatial_format, data_type in regions:
        item = Dataset()
        item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
        item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
        item.RegionSpatialFormat, item.RegionDataType = spatial_format, data_type
        item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
        item.PhysicalDeltaX, item.PhysicalDeltaY = 0.02, 0.03
        header.SequenceOfUltrasoundRegions.append(item)
    return header


def test_a_declared_region_is_believed_where_it_agrees():
    images, mask = on_screen(20, 4)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]) - 3, int(rows[0]) - 3, int(columns[-1]) + 3, int(rows[-1]) + 3)
    layout = find_layout(images, declare((*box, 1, 1)))
    assert layout.declared[0]["believed"] and layout.view.found_by == "declared"
    assert layout.view.spacing_mm == pytest.approx((0.3, 0.2)) and iou(layout.view.mask, mask) > 0.95
    layout = find_layout(images, declare((0, 0, 60, 40, 1, 1)))  # a corner with letters
    assert not layout.declared[0]["believed"] and layout.declared[0]["why"]
    assert layout.view.found_by == "pixels" and layout.view.spacing_mm is None and iou(layout.view.mask, mask) > 0.95


def test_a_declared_box_bounds_the_mask():
    images, mask = on_screen(20, 4)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]) - 20)
    view = find_layout(images, declare((*box, 1, 1))).view
    assert view.found_by == "declared" and view.top + view.height <= box[3] + 1 and not view.mask[box[3] + 1 :].any()


def test_a_colour_box_declared_within_the_picture_is_no_view_of_its_own():
    images, mask = on_screen(20, 4)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
    inner = (box[0] + 60, box[1] + 60, box[2] - 60, box[3] - 60)
    for regions in (((*box, 1, 1), (*inner, 1, 2)), ((*inner, 1, 2), (*box, 1, 1))):
        layout = find_layout(images, declare(*regions))
        assert len(layout.views) == 1 and iou(layout.view.mask, mask) > 0.95


numbers = st.one_of(
    st.integers(-(2**31), 2**32 - 1), st.floats(), st.text(max_size=5), st.none(), st.binary(max_size=4)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from([
    "RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1", "RegionSpatialFormat",
    "RegionDataType", "PhysicalDeltaX", "PhysicalDeltaY", "PhysicalUnitsXDirection"]), numbers), max_size=4))  # fmt: skip
def test_hostile_headers_are_survived(items):
    from types import SimpleNamespace

    header = SimpleNamespace(SequenceOfUltrasoundRegions=[SimpleNamespace(**item) for item in items])
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:50, 10:70] = np.random.default_rng(0).integers(40, 200, (40, 60, 1))
    layout = find_layout([image], header)
    assert len(layout.declared) == len(items) and layout.view is not None
    for odd in (None, 3, SimpleNamespace(), SimpleNamespace(SequenceOfUltrasoundRegions=7)):
        assert read_declared(odd) == ()


# ---------------------------------------------------------------- screens


def test_two_fans_side_by_side_are_two_views_and_colour_is_not_preferred():
    part = phantom_frame(5, 3, probe="curved", image_size=300, snr_db=20)
    columns = np.flatnonzero(part.scan_mask.any(0))
    piece, inside = part.image[:, columns[0] : columns[-1] + 1], part.scan_mask[:, columns[0] : columns[-1] + 1]
    screen = np.zeros((400, 640, 3), np.uint8)
    masks = []
    for left in (315 - piece.shape[1], 325):
        mask = np.zeros((400, 640), bool)
        mask[50:350, left : left + piece.shape[1]] = inside
        screen[mask] = piece[inside][:, None]
        masks.append(mask)
    layout = find_layout([screen])
    assert len(layout.views) == 2 and layout.view.left < 320
    assert all(max(iou(view.mask, mask) for view in layout.views) > 0.97 for mask in masks)
    rows, columns = np.nonzero(masks[0])
    row, column = int(np.median(rows)), int(np.median(columns))
    screen[row - 25 : row + 25, column - 25 : column + 25] = (220, 40, 20)
    layout = find_layout([screen])
    assert len(layout.views) == 2 and layout.view.left > 320


def test_a_colour_box_does_not_split_the_view():
    images, mask = on_screen(30, 3, size=384)
    rows, columns = np.nonzero(mask)
    row, column = int(np.median(rows)), int(np.median(columns))
    cv2.rectangle(images[0], (column - 60, row - 60), (column + 60, row + 60), (0, 255, 0), 1)
    cv2.circle(images[0], (column, row), 30, (230, 40, 20), -1)
    layout = find_layout(images)
    assert len(layout.views) == 1 and iou(layout.view.mask, mask) > 0.97


@pytest.mark.parametrize("kind", ["spectral", "m_mode"])
def test_strips_along_time_are_no_b_mode(kind):
    rng = np.random.default_rng(1)
    part = phantom_frame(6, 3, probe="curved", image_size=300, snr_db=20)
    screen = np.zeros((600, 800, 3), np.uint8)
    mask = np.zeros((600, 800), bool)
    mask[20:320, 250:550] = part.scan_mask
    screen[mask] = part.image[part.scan_mask][:, None]
    strip = spectra(rng, 180, 700) if kind == "spectral" else m_mode(rng, 180, 700)
    screen[370:550, 50:750] = strip[..., None]
    layout = find_layout([screen])
    boxes = getattr(layout, kind)
    assert len(layout.views) == 1 and iou(layout.view.mask, mask) > 0.95
    assert len(boxes) == 1 and boxes[0][0] > 340 and boxes[0][3] > 600
    # Declared, they need no guess.
    declared = find_layout([screen], declare((50, 370, 749, 549, 3 if kind == "spectral" else 2, 3)))
    assert getattr(declared, kind) == ((370, 50, 180, 700),) and len(declared.views) == 1
    # By itself: no view to keep.
    screen[mask] = 0
    alone = find_layout([screen], declare((50, 370, 749, 549, 3 if kind == "spectral" else 2, 3)))
    assert alone.view is None and len(getattr(alone, kind)) == 1


@pytest.mark.parametrize("kind", ["spectral", "m_mode"])
def test_strips_alone_on_a_screen_are_no_b_mode(kind):
    for seed in range(3):
        rng = np.random.default_rng([2, seed])
        screen = np.zeros((480, 800, 3), np.uint8)
        strip = spectra(rng, 300, 700) if kind == "spectral" else m_mode(rng, 300, 700)
        screen[80:380, 50:750] = strip[..., None]
        layout = find_layout([screen])
        assert layout.view is None and strip_kind(screen[..., 0], (80, 50, 300, 700), False) == kind
        assert kind == "spectral" or len(layout.m_mode) == 1  # an outline is not always found around spectra


def layers(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) uint8: muscle between long fasciae, in speckle three times as wide as high."""
    parts = [cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), sigmaX=4.5, sigmaY=1.5) for _ in range(2)]
    echo = 20 * np.log10(np.hypot(*parts) / np.std(parts) + 1e-3)
    level = cv2.GaussianBlur(rng.normal(0, 60, (2 * height, 1)), (0, 0), sigmaX=0.1, sigmaY=4)[:, 0]
    row = np.arange(height)[:, None] + 0.04 * np.arange(width) + 4 * np.sin(np.arange(width) / width * 3)
    return np.clip(150 + 4 * (echo + np.interp(row, np.arange(2 * height), level)), 0, 255).astype(np.uint8)


def test_wide_pictures_of_layers_and_tissue_are_no_strips():
    for patient in range(12):
        rng = np.random.default_rng([3, patient])
        if patient < 4:
            piece = layers(rng, 240, 600)
        else:
            part = phantom_frame(14, patient, probe="linear", image_size=320, snr_db=(8.0, 20.0, 35.0)[patient % 3])
            rows, columns = np.flatnonzero(part.scan_mask.any(1)), np.flatnonzero(part.scan_mask.any(0))
            first = int(rows[0]) + int(rng.integers(0, len(rows) // 2))
            piece = part.image[first : first + len(rows) // 2, columns[0] : columns[-1] + 1]
        layout = find_layout([piece[..., None].repeat(3, 2)])
        assert not layout.spectral and not layout.m_mode


def test_a_lettered_header_bar_is_no_view():
    images, mask = on_screen(31, 2, size=300)
    for quality in (None, 85):
        image = images[0].copy()
        image[:36] = (90, 110, 140)
        cv2.putText(image, "CITY HOSPITAL 12.03.2024", (10, 25), 0, 0.7, (250,) * 3, 2, cv2.LINE_AA)
        if quality:
            image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
        layout = find_layout([image])
        assert len(layout.views) == 1 and iou(layout.view.mask, mask) > 0.95 and not layout.view.mask[:36].any()


def test_fluid_darker_than_a_grey_ground_is_inside():
    rng = np.random.default_rng(4)
    image = np.full((400, 600), 40, np.uint8)
    image[50:350, 150:450] = np.clip(rng.gamma(4, 30, (300, 300)), 0, 255)
    fluid = (
        np.hypot(*(np.mgrid[:400, :600] - np.array([[[330]], [[300]]]))) < 90
    )  # a bladder, to the end of the picture
    fluid[:50] = fluid[350:] = False
    image[fluid] = np.clip(rng.exponential(6, fluid.sum()), 0, 255)
    view = find_layout([image[..., None].repeat(3, 2)]).view
    mask = np.zeros(image.shape, bool)
    mask[50:350, 150:450] = True
    assert iou(view.mask, mask) > 0.97 and view.mask[fluid].mean() > 0.97


def test_what_shows_no_scan_has_no_view():
    for level in (0, 90, 255):
        assert find_layout([np.full((120, 160, 3), level, np.uint8)]).view is None
    page = np.zeros((480, 640, 3), np.uint8)
    for row in range(20, 470, 22):
        cv2.putText(page, "REPORT: NO FINDINGS 12.03", (20, row), 0, 0.6, (240,) * 3, 1, cv2.LINE_AA)
    assert find_layout([page]).view is None and find_layout([255 - page]).view is None
    y, x = np.mgrid[:200, :200].astype(np.uint8)
    colours = cv2.cvtColor(np.stack([y % 180, np.full_like(x, 200), 60 + x // 2], 2), cv2.COLOR_HSV2RGB)
    assert find_layout([colours]).view is None


def test_a_picture_without_a_border_is_whole():
    part = phantom_frame(7, 1, probe="linear", image_size=256, snr_db=20)
    rows, columns = np.flatnonzero(part.scan_mask.any(1)), np.flatnonzero(part.scan_mask.any(0))
    image = part.image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, None].repeat(3, 2)
    view = find_layout([image]).view
    assert view.mask.all() and view.geometry == "linear" and (view.height, view.width) == image.shape[:2]


def test_frames_of_other_shapes_are_refused():
    for frames in (
        [],
        [np.zeros((4, 4), np.uint8)],
        [np.zeros((4, 4, 3))],
        [np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)],
    ):
        with pytest.raises(ValueError, match="find_layout needs"):
            find_layout(frames)


# ---------------------------------------------------------------- outlines


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(2, 50), st.integers(1, 6), st.integers(0, 2**31))
def test_any_pixels_give_consistent_regions(height, width, scale, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) * (rng.random((height, width, 1)) < rng.random())
    image = image.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    layout = find_layout([image, image[::-1]], is_loop=bool(seed % 2))
    for view in layout.views:
        rows, columns = np.flatnonzero(view.mask.any(1)), np.flatnonzero(view.mask.any(0))
        assert view.mask.shape == image.shape[:2] and view.mask.dtype == bool
        assert (view.top, view.left) == (rows[0], columns[0])
        assert (view.top + view.height - 1, view.left + view.width - 1) == (rows[-1], columns[-1])
        assert len(view.polygon) >= 2 and view.geometry in ("sector", "curved", "linear", "unknown")


def test_outlines_are_filled_exactly():
    assert box_outline(1.5, 2.5, 5.5, 4.5).mask((8, 9)).nonzero()[0].tolist() == [3] * 4 + [4] * 4
    disc = Outline((), near=(20, 20, 5.3), far=(20, 20, 15.2)).mask((41, 41))
    distance = np.hypot(*(np.mgrid[:41, :41] - 20))
    assert np.array_equal(disc, (distance >= 5.3) & (distance <= 15.2))
    polygon = outline(box_outline(3.5, 4.5, 20.5, 12.5).mask((30, 30)))
    assert {(4.0, 5.0), (20.0, 12.0)} <= set(polygon) and len(polygon) == 4
    assert outline(np.zeros((4, 4), bool)) == () and len(ORGANS) == 15
