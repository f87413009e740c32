# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Masks in every form that drawing tools write become the same ids, or an error that names them."""

import io

import numpy as np
import pytest
from PIL import Image

from modeling_urfm.data.labelled_masks import IGNORE, Masks, mask_rule, read_values
from modeling_urfm.data.reading import UnreadableFile

from .labelled_inputs import SIZE, blob


BLOB = blob(1)


def encode(image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def with_palette(indices: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


def rule_of(values: list[np.ndarray], declared: int | None = None):
    counted = [np.unique(part, return_counts=True) for part in values]
    return mask_rule(counted, [f"m{number}" for number in range(len(values))], declared)


def ids_of(data: bytes) -> np.ndarray:
    values = read_values([(data, None)])
    return rule_of([values])(values)


GREY = (255 * BLOB).astype(np.uint8)
FORMS = {
    "0/255": encode(GREY),
    "0/1": encode(BLOB.astype(np.uint8)),
    "1 bit": encode(Image.fromarray(BLOB)),
    "bmp": encode(GREY, "bmp"),
    "1-bit bmp": encode(Image.fromarray(BLOB), "bmp"),
    "gif": encode(GREY, "gif"),
    "rgb": encode(np.stack([GREY] * 3, -1)),
    "rgba": encode(np.stack([GREY] * 3 + [np.full(SIZE, 255, np.uint8)], -1)),
    "transparent": encode(np.stack([np.full(SIZE, 255, np.uint8)] * 3 + [GREY], -1)),
    "grey and alpha": encode(Image.fromarray(GREY).convert("LA")),
    "16 bits": encode((65535 * BLOB.astype(np.int32)).astype(np.uint16)),
    "palette of colours": encode(with_palette(BLOB, [0, 0, 0, 128, 0, 0])),
    "palette of greys": encode(with_palette(~BLOB, [255, 255, 255, 0, 0, 0])),
    "palette all black": encode(with_palette(BLOB, [0, 0, 0] * 4)),
    "jpeg": encode(GREY, "jpeg", quality=75),
    "colour jpeg": encode(np.stack([GREY] * 3, -1), "jpeg", quality=75),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_lesion_in_every_form(form):
    ids = ids_of(FORMS[form])
    assert ids.dtype == np.uint8 and np.array_equal(ids, BLOB)


def test_ids_stay_as_they_are_and_255_beside_them_is_ignored():
    mask = (BLOB * (1 + np.arange(SIZE[1]) % 3)[None]).astype(np.uint8)
    palette = with_palette(mask, [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    assert np.array_equal(ids_of(encode(mask)), mask) and np.array_equal(ids_of(encode(palette)), mask)
    mask[0] = IGNORE
    rule = rule_of([mask])
    assert rule.kind == "ids" and rule.num_ids == 4 and np.array_equal(rule(mask.astype(np.int64)), mask)
    one = np.where(mask == IGNORE, IGNORE, mask > 0)
    assert rule_of([one]).num_ids == 2 and rule_of([one])(one)[0, 0] == IGNORE


def test_grey_edges_are_cut_at_128_and_said():
    values = read_values([(FORMS["jpeg"], None)])
    rule = rule_of([values, 255 * BLOB.astype(int)])
    assert rule.kind == "threshold" and rule.num_ids == 2 and "1 of 2 masks have grey edges" in rule.notes[0]
    assert rule_of([values], declared=2).kind == "threshold"
    resampled = np.asarray(Image.fromarray(GREY).resize((64, 48), Image.Resampling.BILINEAR)).astype(int)
    assert rule_of([resampled]).kind == "threshold"


def test_values_that_can_not_be_ids_are_errors_that_name_masks():
    two = (BLOB * 85 + np.roll(BLOB, 3) * 85).astype(int)
    with pytest.raises(ValueError, match="are no ids: 85, 170, in m0. Save ids as 0"):
        rule_of([two])
    photograph = np.random.default_rng(0).integers(0, 256, SIZE)
    with pytest.raises(ValueError, match="are no ids"):
        rule_of([photograph])
    with pytest.raises(ValueError, match="in some masks 1 is the foreground, in others 255: m0 against m1"):
        rule_of([BLOB.astype(int), 255 * BLOB.astype(int)])
    with pytest.raises(ValueError, match="these hold nothing above 127: m1"):
        rule_of([read_values([(FORMS["jpeg"], None)]), BLOB.astype(int)])
    with pytest.raises(ValueError, match="all 2 masks are empty"):
        rule_of([0 * two, 0 * two])
    with pytest.raises(ValueError, match="hold the values -1: m0"):
        rule_of([two - 1])
    with pytest.raises(ValueError, match=r"unknown ids 3 where 3 are declared \(0 to 2\): m1"):
        rule_of([BLOB.astype(int), 3 * BLOB.astype(int)], declared=3)
    with pytest.raises(ValueError, match="are no ids"):
        rule_of([255 * BLOB.astype(int)], declared=3)


def test_a_strange_id_in_one_of_many_masks_is_named():
    white, patched = 255 * BLOB.astype(int), 255 * BLOB.astype(int)
    patched[:5, :5] = 77
    for declared in (None, 2):
        with pytest.raises(ValueError, match="areas of another value.*: m1. Unknown ids"):
            rule_of([white, patched, white], declared=declared)
    patched[:5, :5] = 1  # else 1 would be the foreground, and all the white ignored
    with pytest.raises(ValueError, match="most masks hold 0 and 255 alone, these the ids 1: m1"):
        rule_of([white, patched, white])
    ids = [BLOB.astype(int)] * 9 + [2 * BLOB.astype(int)]
    assert rule_of(ids).notes == ("ids that one mask alone shows: id 2 in m9",)


def test_what_is_no_mask_says_why():
    coloured = encode(np.stack([GREY, 0 * GREY, 0 * GREY], -1))
    for data, reason in (
        (coloured, "a coloured mask"),
        (b"nothing", "no mask that can be read"),
        (encode(np.full(SIZE, 0.5, np.float32), "tiff"), "a mask of fractions"),
    ):
        with pytest.raises(UnreadableFile, match=reason):
            read_values([(data, None)])
    with pytest.raises(UnreadableFile, match="its parts have the sizes"):
        read_values([(FORMS["rgb"], None), (encode(np.zeros((4, 4), np.uint8)), None)])


def test_a_mask_of_several_parts_is_their_union_and_rows_can_be_chosen():
    other = encode((255 * np.roll(BLOB, 9, 1)).astype(np.uint8))
    cells = [[(FORMS["0/255"], None)], [(FORMS["0/255"], None), (other, None)]]
    masks = Masks(cells, rule_of([read_values(c) for c in cells]))
    assert len(masks) == 2 and np.array_equal(masks[1], BLOB | np.roll(BLOB, 9, 1))
    assert np.array_equal(masks.select([1, 0]).select([1])[0], BLOB)
