# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Overlays: planted text cannot be read any more, tissue stays, colour is told from coloured marks, repairs stay in place."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_urfm.data.overlays import Overlays, find_overlays, has_doppler, inpaint
from modeling_urfm.data.phantoms import ORGANS, phantom_frame
from tests.data import screens


def picture(patient: int, size: int = 320, snr_db: float = 20.0, organ: str | None = None, frame: int = 0):
    drawn = phantom_frame(7, patient, frame, organ=organ, image_size=size, snr_db=snr_db)
    return drawn.image[..., None].repeat(3, axis=-1), drawn.scan_mask


def share(found: np.ndarray, wanted: np.ndarray) -> float:
    return float((found & wanted).sum() / max(1, wanted.sum()))


def middle(mask: np.ndarray) -> tuple[int, int]:
    rows, columns = np.nonzero(mask)
    return int(rows.mean()), int(columns.mean())


def recalls(seed: int, count: int, **fixed) -> np.ndarray:
    scenes = [screens.draw_scene(np.random.default_rng([seed, i]), **fixed) for i in range(count)]
    return np.array([share(find_overlays(s.image, s.mask).marks, s.drawn) for s in scenes if s.drawn.sum() > 30])


@pytest.mark.parametrize("colour", ["yellow", "green", "cyan", "orange"])
def test_coloured_text_is_found(colour):
    assert recalls(101, 8, size=384, colour=colour).mean() > 0.97


@pytest.mark.parametrize("font", ["bitmap", "hershey", "DejaVuSans.ttf", "LiberationSerif-Regular.ttf"])
def test_white_text_is_found(font):
    found = recalls(102, 12, size=384, font=font, colour="white", backing="none", opacity=1.0)
    # White over tissue that is white itself is hard to see, for readers and for the search alike: so not all of it.
    assert np.median(found) > 0.97 and found.mean() > 0.85


@pytest.mark.parametrize("backing", ["black box", "white box", "outline", "shadow"])
def test_text_on_boxes_and_with_outlines_is_found(backing):
    assert recalls(103, 8, size=384, colour="white", backing=backing).mean() > 0.95


def grounds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Pictures that are no ultrasound, as other people's tests have them: noise, one grey, gradients."""
    height, width = 240, 320
    y, x = np.mgrid[:height, :width]
    blurred = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), 1.5)
    drawn = {
        "uniform": rng.integers(0, 256, (height, width)), "dark uniform": rng.integers(0, 120, (height, width)),
        "rayleigh": rng.rayleigh(50, (height, width)), "gaussian": rng.normal(110, 40, (height, width)),
        "blurred": 100 + 40 * blurred / blurred.std(), "constant": np.full((height, width), 90),
        "gradient": 30 + 150 * y / height + 0 * x, "noisy gradient": 30 + 150 * x / width + rng.normal(0, 8, (height, width)),
    }  # fmt: skip
    return {name: np.clip(grey, 0, 255).astype(np.uint8)[..., None].repeat(3, -1) for name, grey in drawn.items()}


@pytest.mark.parametrize("colour", ["white", "yellow"])
@pytest.mark.parametrize("font, size", [("hershey", 16), ("DejaVuSans.ttf", 11), ("DejaVuSans.ttf", 24)])
def test_text_is_found_on_pictures_that_are_no_ultrasound(font, size, colour):
    mask = np.zeros((240, 320), bool)
    mask[20:-20, 20:-20] = True
    for name, image in grounds(np.random.default_rng(size)).items():
        written, letters = screens.draw_text(
            image, "OKAFOR 1956", 100, 60, font=font, size=size, colour=screens.COLOURS[colour]
        )
        for quality in (0, 80):
            shown = screens.compress(written, quality) if quality else written
            marks = find_overlays(shown, mask).marks
            assert share(marks, letters) > 0.97, (name, quality)
            assert marks.sum() < 0.4 * mask.sum(), (name, quality)


def test_a_legend_of_colours_goes_whole_and_leaves_no_colour():
    image, mask = picture(5, 384)
    drawn, _, _ = screens.draw_doppler(image, mask, np.random.default_rng(1), outline=False)
    y, x = middle(mask)
    levels = np.linspace(-1, 1, 90)[:, None, None]
    legend = np.concatenate([255 * np.clip(levels + 0.2, 0, 1), 60 + 0 * levels, 255 * np.clip(0.2 - levels, 0, 1)], -1)
    place = np.zeros(mask.shape, bool)
    place[y - 45 : y + 45, x - 100 : x - 80] = True
    drawn[place] = legend.astype(np.uint8).repeat(20, 1).reshape(-1, 3)
    overlays = find_overlays(drawn, mask)
    assert share(overlays.marks, place & mask) > 0.99 and not (overlays.doppler & place).any()
    repaired = inpaint(drawn, overlays.marks, mask)[place & mask]
    assert np.ptp(repaired, axis=1).max() < 40


@pytest.mark.slow
@pytest.mark.skipif(not screens.has_tesseract(), reason="needs tesseract")
def test_no_identity_can_be_read_afterwards():
    before, after = [], []
    for i in range(24):
        scene = screens.draw_scene(np.random.default_rng([104, i]), vertical=False)
        clean = inpaint(scene.image, find_overlays(scene.image, scene.mask).marks, scene.mask)
        for result, image in ((before, scene.image), (after, clean)):
            image = image * scene.mask[..., None]
            text = " ".join(screens.read_text(image, zoom) for zoom in (1, 2, 3))
            result += [piece for piece in screens.parts(scene.tokens) if piece in text]
    assert len(before) >= 15, "the check must be able to read"
    assert after == []


def test_tissue_stays():
    shares = []
    for patient, organ in enumerate(ORGANS):
        for size, snr_db in ((128, 10), (256, 30), (384, 20)):
            image, mask = picture(patient + 300, size, snr_db, organ)
            shares.append(find_overlays(image, mask).marks.sum() / mask.sum())
    assert np.mean(shares) <= 0.003 and max(shares) <= 0.05


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 255, 0), (0, 255, 0)])
def test_calipers_rulers_arrows_and_lines_are_found(colour):
    image, mask = picture(2, 384)
    y, x = middle(mask)
    ends = [(x - 50, y - 10), (x + 50, y + 12)]
    drawings = {
        "calipers": screens.draw_calipers(image, ends, colour=colour),
        "ellipse": screens.draw_ellipse(image, (x, y), (45, 30), colour=colour),
        "arrow": screens.draw_arrow(image, ends[0], colour=colour),
        "line": screens.draw_line(image, *ends, colour=colour),
        "ruler": screens.draw_ruler(image, x + 20, colour=colour),
    }
    found = {name: share(find_overlays(drawn, mask).marks, where & mask) for name, (drawn, where) in drawings.items()}
    assert min(found.values()) > 0.8, found


@pytest.mark.parametrize("flow", ["colour", "power", "elastography"])
def test_flow_is_colour_and_not_a_mark(flow):
    image, mask = picture(5, 384)
    drawn, coloured, _ = screens.draw_doppler(image, mask, np.random.default_rng(1), flow=flow, outline=False)
    overlays = find_overlays(drawn, mask)
    assert has_doppler(overlays, mask) and share(overlays.doppler, coloured) > 0.8
    assert share(overlays.marks, coloured) < 0.25
    y, x = middle(mask)
    written, letters = screens.draw_text(drawn, "DOE, JOHN 1956", y - 8, x - 60, size=16)
    assert share(find_overlays(written, mask).marks, letters & mask) > 0.9


def test_coloured_text_and_tints_are_no_flow():
    image, mask = picture(5, 384)
    y, x = middle(mask)
    written, _ = screens.draw_text(
        image, "OKAFOR 1956", y, x - 60, size=24, colour=(255, 255, 0), font="DejaVuSans-Bold.ttf"
    )
    sepia = (image * np.float32([1, 0.85, 0.6])).astype(np.uint8)
    for drawn in (image, written, sepia):
        assert not has_doppler(find_overlays(drawn, mask), mask)
    assert find_overlays(sepia, mask).marks.sum() < 0.02 * mask.sum()


def test_what_stands_still_in_a_loop_is_found_and_a_frozen_loop_is_not_all_text():
    alone, loop = [], []
    for patient in range(4):
        frames = [picture(patient, 256, frame=number) for number in range(5)]
        mask = frames[0][1]
        y, x = middle(mask)
        place = {"top": y, "left": x - 60, "size": 12, "colour": (170, 170, 170)}
        written = [screens.draw_text(frame, "OKAFOR 12/10/1956", **place) for frame, _ in frames]
        images, letters = [image for image, _ in written], written[0][1] & mask
        alone.append(share(find_overlays(images[0], mask).marks, letters))
        loop.append(share(find_overlays(images[0], mask, images[1:]).marks, letters))
        plain = frames[0][0]
        assert find_overlays(plain, mask, [plain] * 4).marks.sum() < 0.02 * mask.sum()
    assert np.mean(loop) > 0.75 and np.mean(loop) >= np.mean(alone)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60))
def test_any_picture_gives_masks_inside_the_region(seed, height, width):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.random((height, width)) < rng.random()
    overlays = find_overlays(image, mask, [image[::-1].copy()] * 3)
    for part in (overlays.marks, overlays.doppler):
        assert part.shape == mask.shape and part.dtype == bool and not (part & ~mask).any()
    again = find_overlays(image, mask, [image[::-1].copy()] * 3)
    assert (overlays.marks == again.marks).all() and (overlays.doppler == again.doppler).all()
    repaired = inpaint(image, overlays.marks, mask)
    assert (repaired[~overlays.marks] == image[~overlays.marks]).all()


def test_repairs_take_nothing_from_outside_the_region():
    image, mask = picture(0, 192)
    rows, columns = np.nonzero(mask)
    marks = np.zeros(mask.shape, bool)
    edge = int(columns[rows == int(np.median(rows))].min())
    marks[int(np.median(rows)) - 6 : int(np.median(rows)) + 6, max(0, edge - 4) : edge + 14] = True
    dark, bright = image.copy(), image.copy()
    dark[~mask], bright[~mask] = 0, 255
    assert (inpaint(dark, marks, mask)[mask] == inpaint(bright, marks, mask)[mask]).all()
    # Nor from under the marks.
    hidden = image.copy()
    hidden[marks & mask] = 255
    assert (inpaint(hidden, marks, mask)[mask] == inpaint(image, marks, mask)[mask]).all()
    everything = inpaint(image, mask, mask)
    assert not everything[mask].any()


def test_an_empty_region_has_nothing():
    image = np.full((20, 30, 3), 200, np.uint8)
    overlays = find_overlays(image, np.zeros((20, 30), bool))
    assert not overlays.marks.any() and not has_doppler(overlays, np.zeros((20, 30), bool))
    assert isinstance(overlays, Overlays)
