# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Dice, IoU and the Hausdorff distance against MONAI, and against figures worked out by hand."""

import evaluate
import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, MeanIoU, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter

from modeling_urfm.evaluation.metrics_segmentation import Dice, HausdorffDistance95, IoU
from modeling_urfm.evaluation.scores import hausdorff_distance_95, image_segmentation_scores, overlap_scores


def _blobs(seed: int, shape=(70, 90), classes: int = 2) -> np.ndarray:
    """Smooth areas, several a mask, some of them at the border."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(classes, *shape)), (0, 5, 5))
    return noise.argmax(0).astype(np.uint8)


pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI about itself


@pytest.mark.parametrize("spacing", [None, (0.3, 0.2)])
def test_the_distance_is_monais(spacing):
    for seed in range(4):
        truth, guess = _blobs(seed), _blobs(seed + 100)
        got = image_segmentation_scores(truth, guess, 2, spacing)["hausdorff95"]
        tensors = [torch.tensor(ids)[None, None].float() for ids in (guess, truth)]
        expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
        assert got == pytest.approx(float(expected), abs=1e-4)


def test_several_classes_are_monais_means():
    truth, guess = _blobs(1, classes=4), _blobs(2, classes=4)
    guess = np.where(np.random.default_rng(0).random(guess.shape) < 0.6, truth, guess)
    got = image_segmentation_scores(truth, guess, 4)
    one_hot = [torch.tensor(ids).long()[None] for ids in (guess, truth)]
    one_hot = [torch.nn.functional.one_hot(ids, 4).movedim(-1, 1) for ids in one_hot]
    assert got == {
        "dice": pytest.approx(float(DiceMetric(include_background=False)(*one_hot).mean()), abs=1e-6),
        "iou": pytest.approx(float(MeanIoU(include_background=False)(*one_hot).mean()), abs=1e-6),
        "hausdorff95": pytest.approx(
            float(HausdorffDistanceMetric(include_background=False, percentile=95)(*one_hot).mean()), abs=1e-4
        ),
    }


def test_figures_by_hand():
    truth, guess = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    truth[5:10, 5:10], guess[5:10, 8:13] = 1, 1
    got = image_segmentation_scores(truth, guess, 2)
    assert got == {"dice": pytest.approx(20 / 50), "iou": pytest.approx(10 / 40), "hausdorff95": 3.0}
    assert image_segmentation_scores(truth, guess, 2, 0.5)["hausdorff95"] == 1.5
    assert image_segmentation_scores(truth, guess, 2, (9.0, 0.5))["hausdorff95"] == 1.5
    assert image_segmentation_scores(truth, truth, 2) == {"dice": 1.0, "iou": 1.0, "hausdorff95": 0.0}
    assert overlap_scores(truth > 0, guess > 0) == (20 / 50, 10 / 40)
    assert hausdorff_distance_95(truth > 0, guess > 0) == 3.0


def test_empty_masks():
    empty, some = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    some[3:6, 3:6] = 1
    assert image_segmentation_scores(empty, empty, 2) == {"dice": 1.0, "iou": 1.0, "hausdorff95": 0.0}
    for truth, guess in ((empty, some), (some, empty)):
        assert image_segmentation_scores(truth, guess, 2) == {"dice": 0.0, "iou": 0.0, "hausdorff95": 50.0}
    assert image_segmentation_scores(some, empty, 2, 0.1)["hausdorff95"] == pytest.approx(5.0)
    # The second class is in neither: it does not count. In one of them it does.
    assert image_segmentation_scores(some, some, 3)["dice"] == 1.0
    assert image_segmentation_scores(some, some + (np.arange(40) > 35).astype(np.uint8) * 2, 3)["dice"] == 0.5


def test_pixels_of_255_count_nowhere():
    truth, guess = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[5:10, 5:10] = guess[5:10, 5:10] = 1
    guess[15:, :] = 1
    assert image_segmentation_scores(truth, guess, 2)["dice"] < 1
    truth[15:, :] = 255
    assert image_segmentation_scores(truth, guess, 2) == {"dice": 1.0, "iou": 1.0, "hausdorff95": 0.0}


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="id 3 does not fit 3 classes"):
        image_segmentation_scores(np.full((4, 4), 3), np.zeros((4, 4)), 3)
    with pytest.raises(ValueError, match=r"mask \(4, 4\) and prediction \(4, 5\)"):
        image_segmentation_scores(np.zeros((4, 4)), np.zeros((4, 5)), 2)


def test_metrics_are_means_over_images_of_any_size():
    metric = evaluate.combine([kind(num_classes=3) for kind in (Dice, IoU, HausdorffDistance95)])
    pairs = [(_blobs(n, shape, 3), _blobs(n + 9, shape, 3)) for n, shape in enumerate(((20, 30), (24, 18), (16, 16)))]
    expected = [image_segmentation_scores(truth, guess, 3) for truth, guess in pairs]
    for truth, guess in pairs:
        metric.add_batch(references=[truth], predictions=[guess])
    got = metric.compute()
    assert got == {name: pytest.approx(np.mean([image[name] for image in expected])) for name in expected[0]}
    assert metric.compute(references=[pairs[0][0]], predictions=[pairs[0][0]], spacing_mm=0.2)["hausdorff95"] == 0
