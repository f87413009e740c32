# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The segmentation probe: where patches lie in an image, whatever the processor does to it, and what is learnt there."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from modeling_urfm.evaluation.segmentation_probe import (
    finer,
    fit_segmentation_probe,
    ids_on_image,
    mask_as_seen,
    seen_box,
    segmentation_losses,
)
from modeling_urfm.evaluation.segmentation_protocol import check_sees, segmentation
from modeling_urfm.evaluation.sweeps import SweepSettings


def stretched(pixels):
    return F.resize(pixels.float() / 255, [64, 64], antialias=True) * 2 - 1


def cropped(pixels):
    """As CLIP: the shorter side to 64, then the middle."""
    return F.center_crop(F.resize(pixels.float() / 255, 64, antialias=True), [64, 64]) / 0.3 - 1


def padded(pixels):
    """A square of black around, then resized."""
    height, width = pixels.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    whole = F.pad(pixels.float(), [left, top, side - width - left, side - height - top])
    return F.resize(whole / 255, [64, 64], antialias=True)


def to_what_shows(pixels):
    lit = pixels.float().amax(0) > 6
    rows, columns = torch.where(lit.any(1))[0], torch.where(lit.any(0))[0]
    return stretched(pixels[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@pytest.mark.parametrize(
    "prepare, wanted", [(stretched, (0, 0, 90, 150)), (cropped, (0, 30, 90, 120)), (padded, (-30, 0, 120, 150))]
)
def test_box_that_is_seen(prepare, wanted):
    assert np.abs(np.subtract(seen_box(prepare, 90, 150), wanted)).max() < 1.5


def test_a_crop_to_what_the_image_shows_is_refused():
    with pytest.raises(ValueError, match="crop_scan_region"):
        seen_box(to_what_shows, 90, 150)


def test_brightness_by_what_shows_is_refused_and_names_the_encoder():
    def rescaled(pixels):
        low, high = (float(pixels.float().quantile(q)) for q in (0.01, 0.99))
        return stretched(((pixels.float() - low) / max(high - low, 1e-6)).clamp(0, 1) * 255)

    data = SimpleNamespace(name="busi/", mask=lambda row: np.zeros((90, 150), np.uint8))
    with pytest.raises(ValueError, match="--encoders mine, busi/: .*percentile_rescale"):
        check_sees(SimpleNamespace(name="mine", prepare=rescaled), data)


@pytest.mark.parametrize("foreground", [0, 1])
def test_one_id_everywhere_has_collapsed(foreground):
    mask = np.full((32, 32), foreground, np.uint8)
    mask[:3, :3] = 1 - foreground
    sides = {"train": np.arange(8), "validation": np.arange(8, 12), "test": np.arange(12, 20)}

    class Data(SimpleNamespace):
        def __len__(self):
            return 20

    data = Data(label_names=("background", "lesion"), mask=lambda row: mask, rows=sides.get,
                patients=np.arange(20).astype(str))  # fmt: skip
    settings = SweepSettings(learning_rates=(3e-2,), weight_decays=(0.0,), batch_size=8, max_epochs=60, min_steps=0)
    tokens = np.zeros((20, 16, 4), np.float32)  # they tell nothing
    encoder = SimpleNamespace(prepare=stretched, grid=(4, 4))
    outcome, _ = segmentation(data, tokens, encoder, seeds=(0,), draws=0, settings=settings, progress=False)
    assert outcome.facts["collapsed"] and "scores" not in outcome.facts


def test_masks_go_there_and_back():
    mask = np.zeros((90, 150), np.uint8)
    mask[30:60, 60:105] = 1
    box = seen_box(padded, 90, 150)
    grid = mask_as_seen(mask, box, (60, 60))
    assert (grid[:10] == 255).all() and (grid[12:48] != 255).all()  # above the image there is nothing
    logits = torch.from_numpy(np.stack([grid != 1, grid == 1])).float()
    back = ids_on_image(logits, box, 90, 150)
    assert (back != mask).mean() < 0.03
    outside = ids_on_image(logits, (0.0, 30.0, 90.0, 120.0), 90, 150)
    assert not outside[:, :29].any() and not outside[:, 121:].any()


def test_loss_is_that_of_its_definition_and_ignores_255():
    logits = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 255
    loss = segmentation_losses(logits, ids)
    entropy = torch.nn.functional.cross_entropy(logits[:, 0], ids, ignore_index=255)
    shares, counted = logits[:, 0].softmax(1), ids != 255
    dices = []
    for c in (1, 2):
        truth, guess = (ids == c)[counted].float(), shares[:, c][counted]
        dices.append((2 * (truth * guess).sum() + 1) / ((truth + guess).sum() + 1))
    assert torch.allclose(loss[0], entropy + 1 - torch.stack(dices).mean(), atol=1e-5)


def test_learns_what_a_token_knows():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (60, 4, 4))
    tokens = rng.normal(size=(60, 16, 6)).astype(np.float32)
    tokens[:, :, 2] += 6 * coarse.reshape(60, 16)
    masks = [np.kron(part, np.ones((4, 4))).astype(np.uint8) for part in coarse]
    assert masks[0].shape == finer((4, 4))
    settings = SweepSettings(learning_rates=(3e-2,), weight_decays=(1e-4,), batch_size=16, max_epochs=20, min_steps=0)
    rows = np.arange(60)
    probe = fit_segmentation_probe(
        tokens, masks, rows[:40], rows[40:50], grid=(4, 4), num_classes=2, seeds=(0, 1), settings=settings
    )
    for row in rows[50:]:
        predicted = probe.predict(tokens[row], (0.0, 0.0, 32.0, 32.0), 32, 32)
        assert len(predicted) == 2
        centres = predicted[0][4::8, 4::8]
        assert (centres == coarse[row]).mean() > 0.85
