# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Losses of the four tasks, and the weights of rare classes.

Shapes: B images, K labels, H x W pixels.
"""

import numpy as np
import torch
from torch.nn import functional as F

from ..image_processing_urfm import IGNORE_INDEX


MOST_WEIGHT = 10.0  # a class of two images would else decide every step that holds one of them


def class_weights(task: str, labels: np.ndarray, num_labels: int) -> torch.Tensor | None:
    """(K,) float32 weights from the training labels, or None where the task has none.

    classification: inverse to the class's images, of mean 1 over images. multilabel: negatives over positives, the weight
    of a positive. segmentation: none, since the Dice term counts every class alike.

    Args:
        labels: of the training images, as `data.labelled.LabelledDataset.labels`.
    """
    if task == "classification":
        counts = np.bincount(labels.astype(np.int64), minlength=num_labels).astype(np.float64)
        present = counts > 0
        weights = np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 0.0)
        weights = np.minimum(weights, MOST_WEIGHT)
        weights /= (weights * counts).sum() / counts.sum()
    elif task == "multilabel":
        positives = labels.sum(0)
        weights = np.clip((len(labels) - positives) / np.maximum(positives, 1), 1.0, MOST_WEIGHT)
    else:
        return None
    return torch.tensor(weights, dtype=torch.float32)


def soft_labels(labels: torch.Tensor, num_labels: int, smoothing: float) -> torch.Tensor:
    """(B,) ids or (B, K) shares to (B, K) shares that sum to 1, `smoothing` of them spread evenly."""
    shares = F.one_hot(labels, num_labels).float() if labels.ndim == 1 else labels.float()
    return shares * (1 - smoothing) + smoothing / num_labels


def task_loss(
    task: str, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Mean loss of a batch, in fp32.

    Args:
        logits: (B, K), for segmentation (B, K, h, w) of any size.
        labels: classification (B,) ids or (B, K) shares; multilabel (B, K) in [0, 1]; regression (B, K), standardised;
            segmentation (B, H, W) ids, 255 counts nowhere.
        weights: of `class_weights`. smoothing: share of a label that is spread over all.
    """
    logits = logits.float()
    weights = None if weights is None else weights.to(logits.device)
    if task == "classification":
        shares = soft_labels(labels, logits.shape[1], smoothing)
        # A row counts as much as its label's class, wherever the smoothing moved a share of it.
        row = 1.0 if weights is None else soft_labels(labels, logits.shape[1], 0.0) @ weights
        return -((shares * logits.log_softmax(1)).sum(1) * row).mean()
    if task == "multilabel":
        labels = labels.float() * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
    if task == "regression":
        return F.mse_loss(logits, labels.float())
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return pixel_loss(logits, labels, smoothing) + dice_loss(logits, labels)


def pixel_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy, mean over the pixels that count; 0 where none does. logits: (B, K, H, W), labels: (B, H, W)."""
    valid = (labels != IGNORE_INDEX).sum().clamp(min=1)
    return (
        F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, label_smoothing=smoothing, reduction="sum")
        / valid
    )


def dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice (Milletari et al., 2016, with plain sums), mean over the foreground classes the batch shows.

    Summed over the batch: an image without a class says nothing of its shape, and a small lesion counts as a large one.
    0 where no class is shown.
    """
    num_labels, valid = logits.shape[1], (labels != IGNORE_INDEX).unsqueeze(1)
    truth = F.one_hot(labels.long().clamp(max=num_labels - 1), num_labels).permute(0, 3, 1, 2) * valid
    guess = logits.softmax(1) * valid
    both, either = (truth * guess).sum((0, 2, 3))[1:], (truth + guess).sum((0, 2, 3))[1:]
    shown = truth.sum((0, 2, 3))[1:] > 0
    losses = torch.where(shown, 1 - 2 * both / either.clamp(min=1e-6), 0.0)
    return losses.sum() / shown.sum().clamp(min=1)
