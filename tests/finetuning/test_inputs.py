# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Prepared images are the processor's; masks move with their images; mixing keeps the labels' sum."""

import numpy as np
import pytest
import torch

from modeling_urfm import URFMImageProcessor
from modeling_urfm.data.labelled import load_labelled
from modeling_urfm.finetuning.inputs import Batches, PreparedImages, mix, vary

from .tiny import SIDE, save_classes, save_masks


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    return load_labelled(str(save_masks(tmp_path_factory.mktemp("masks") / "data")), "segmentation", progress=False)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return load_labelled(
        str(save_classes(tmp_path_factory.mktemp("classes") / "data")), "classification", progress=False
    )


@pytest.mark.parametrize("pad_square", [False, True])
def test_a_batch_is_what_the_processor_gives(segmentation, pad_square):
    processor = URFMImageProcessor(size={"height": SIDE, "width": SIDE}, do_pad_square=pad_square)
    rows = segmentation.rows("test")
    images = PreparedImages(segmentation, rows, processor, None, progress=False)
    batch = Batches(processor, "segmentation")([images[i] for i in range(len(images))])
    expected = processor(
        [segmentation.corpus[int(row)]["pixels"] for row in rows],
        segmentation_maps=[segmentation.mask(int(row)) for row in rows], return_tensors="pt",
    )  # fmt: skip
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(batch["labels"], expected["labels"])
    assert images.pixels[0].shape[0] == 1  # three equal channels keep one


def test_masks_move_with_their_images_and_what_comes_in_is_ignored():
    torch.manual_seed(0)
    masks = torch.zeros(8, 64, 64, dtype=torch.uint8)
    masks[:, 20:44, 10:30] = 1
    pixels, moved = vary(masks[:, None].float(), masks)
    lit = pixels[:, 0] > 0.4
    agree = ((moved == 1) == lit).float().mean()
    assert agree > 0.98 and (moved == 255).any() and set(moved.unique().tolist()) == {0, 1, 255}
    assert (pixels[:, 0][moved == 255] == 0).float().mean() > 0.95
    assert not torch.equal(moved[0], moved[1])


def test_without_resizing_only_mirrors_and_grey_levels_change():
    torch.manual_seed(0)
    pixels = torch.rand(6, 1, 16, 16)
    masks = (torch.rand(6, 16, 16) > 0.5).to(torch.uint8)
    _, moved = vary(pixels, masks, resize=False)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(moved, masks))


def test_mixing_keeps_the_labels_sum():
    torch.manual_seed(0)
    pixels, shares = mix(torch.rand(8, 1, 4, 4), torch.arange(8) % 3, 0.2, 3)
    assert shares.shape == (8, 3) and torch.allclose(shares.sum(1), torch.ones(8))
    assert (shares.max(1).values >= 0.5).all()


def test_training_batches_differ_and_follow_the_seed(classes):
    processor = URFMImageProcessor(size={"height": SIDE, "width": SIDE})
    images = PreparedImages(classes, classes.rows("train"), processor, classes.labels, progress=False)
    collate = Batches(processor, "classification", augment=True, mixup=0.2, num_labels=2)
    items, batches = [images[i] for i in range(6)], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(collate(items)["pixel_values"])
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


def test_images_that_do_not_fit_into_memory_are_refused(classes, monkeypatch):
    monkeypatch.setattr("modeling_urfm.finetuning.inputs.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="label_fraction"):
        PreparedImages(classes, np.arange(4), URFMImageProcessor(), classes.labels, progress=False)
