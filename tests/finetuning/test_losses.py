# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Losses against torch's own, and what weights, smoothing and ignored pixels do."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_urfm.finetuning.losses import IGNORE_INDEX, class_weights, dice_loss, task_loss


def test_classification_is_torch_s_cross_entropy_for_ids_and_for_shares():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(task_loss("classification", logits, labels, smoothing=0.1), expected)
    torch.testing.assert_close(
        task_loss("classification", logits, F.one_hot(labels, 4).float(), smoothing=0.1), expected
    )


def test_every_class_weighs_the_same_and_none_more_than_ten_times():
    labels = np.array([0] * 8 + [1] * 2)
    weights = class_weights("classification", labels, 3)
    assert weights[0] * 8 == pytest.approx(float(weights[1] * 2)) and weights[2] == 0
    assert float(weights[torch.tensor(labels)].mean()) == pytest.approx(1)
    rare = class_weights("classification", np.array([0] * 1000 + [1]), 2)
    assert rare[1] / rare[0] < 21
    positives = class_weights("multilabel", np.array([[1, 0], [0, 0], [0, 0], [0, 1]], dtype=np.float32), 2)
    assert positives.tolist() == [3, 3]
    assert class_weights("regression", labels, 1) is None and class_weights("segmentation", labels, 2) is None


def test_multilabel_and_regression_are_torch_s():
    logits, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    weight = torch.tensor([1.0, 2.0, 3.0])
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
    torch.testing.assert_close(task_loss("multilabel", logits, labels, weight), expected)
    torch.testing.assert_close(task_loss("regression", logits, labels), F.mse_loss(logits, labels))


def test_dice_is_zero_for_a_perfect_mask_and_ignored_pixels_count_nowhere():
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, 2:5, 2:5] = 1
    perfect = 50.0 * F.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    assert float(dice_loss(perfect, labels)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(-perfect, labels)) > 0.99
    assert float(dice_loss(perfect[1:], labels[1:])) == 0  # no class is shown
    ignored = labels.clone()
    ignored[:, 6:] = IGNORE_INDEX
    wrong = perfect.clone()
    wrong[:, :, 6:] *= -1
    loss = task_loss("segmentation", wrong, ignored)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(task_loss("segmentation", wrong, torch.full_like(labels, IGNORE_INDEX))) == 0


def test_logits_of_another_size_and_bf16_are_taken():
    labels = torch.randint(0, 3, (2, 16, 16))
    loss = task_loss("segmentation", torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True), labels)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
