# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Dice, IoU and the 95 % Hausdorff distance as `evaluate.Metric` classes, image by image.

    >>> import evaluate
    >>> metric = evaluate.combine([Dice(num_classes=2), IoU(num_classes=2)])
    >>> metric.add_batch(predictions=[[[0, 1], [0, 1]]], references=[[[0, 1], [0, 0]]])
    >>> metric.compute()
    {'dice': 0.6666666666666666, 'iou': 0.5}

Predictions and references are ids (images, height, width); sizes may differ between images. Pixels whose reference is 255
count nowhere. Each image's score is the mean over the foreground classes in its mask or its prediction, and the metric is
the mean over images. Where both are empty, Dice and IoU are 1 and the distance is 0; where one is, Dice and IoU are 0 and
the distance is the diagonal of the image.
"""

import datasets
import numpy as np

from . import scores
from .metrics import OfflineMetric


class _Segmentation(OfflineMetric):
    """
    Args:
        num_classes: how many ids there are, with the background, 0.
        arguments: as of `OfflineMetric`.
    """

    key = ""
    text = "predictions, references: ids (images, height, width)."

    def __init__(self, num_classes: int, **arguments):
        self.num_classes = num_classes
        super().__init__(**arguments)

    def _formats(self):
        ids = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return datasets.Features(predictions=ids, references=ids)

    def _compute(self, predictions, references, spacing_mm=None):
        """`spacing_mm`: of a pixel, one for all images: a number or (rows, columns)."""
        values = [
            scores.image_segmentation_scores(np.asarray(mask), np.asarray(predicted), self.num_classes, spacing_mm)
            for predicted, mask in zip(predictions, references)
        ]
        return {self.key: scores.nan_mean([value[self.key] for value in values])}


class Dice(_Segmentation):
    """Twice the overlap over the sum of both areas."""

    key = "dice"


class IoU(_Segmentation):
    """The overlap over the union."""

    key = "iou"


class HausdorffDistance95(_Segmentation):
    """The larger 95 % percentile of the distances between outlines, in pixels, or mm with `compute(spacing_mm=...)`."""

    key = "hausdorff95"
