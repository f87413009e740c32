# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Probes against scikit-learn-free loops, predictions of hidden patches, and pictures that are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_urfm import URFMConfig, URFMForPreTraining, URFMModel
from modeling_urfm.evaluation.organ_knn import OrganKNN
from modeling_urfm.evaluation.plots import plot_loss, plot_targets
from modeling_urfm.evaluation.predictions import masked_predictions
from modeling_urfm.evaluation.probes import bootstrap_interval, embed, knn_accuracy


SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16, "target_hidden_size": 8,
}  # fmt: skip


def test_knn_equals_a_loop():
    rng = np.random.default_rng(0)
    x, y, z, w = (
        rng.normal(size=(60, 5)) + np.arange(60)[:, None] % 3,
        np.arange(60) % 3,
        rng.normal(size=(30, 5)) + 1,
        np.arange(30) % 3,
    )
    a, b = (x - x.mean(0)) / x.std(0), (z - x.mean(0)) / x.std(0)
    right = 0
    for row, label in zip(b, w):
        cosine = a @ row / np.linalg.norm(a, axis=1) / np.linalg.norm(row)
        near = np.argsort(-cosine)[:7]
        votes = [sum(1 + cosine[i] for i in near if y[i] == c) for c in range(3)]
        right += int(np.argmax(votes)) == label
    assert knn_accuracy(x, y, z, w, k=7) == pytest.approx(right / 30)


def test_knn_of_the_same_points_is_perfect_and_of_noise_is_chance():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 8)), np.arange(300) % 3
    assert knn_accuracy(x, y, x, y, k=1) == 1.0
    assert abs(knn_accuracy(x, y, rng.normal(size=(300, 8)), y) - 1 / 3) < 0.1


def test_the_interval_is_the_binomials():
    right = np.arange(400) % 4 != 0  # 75 %
    low, high = bootstrap_interval(right.astype(float))
    error = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - error, abs=0.006) and high == pytest.approx(0.75 + error, abs=0.006)
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)


def test_organ_knn_is_over_patients_that_differ_and_far_from_certain_without_training():
    torch.manual_seed(0)
    knn = OrganKNN(32, (5.0, 15.0), patients=90)
    assert knn.pixels.shape == (90, 3, 32, 32) and knn.test.sum() == 30
    assert all((knn.labels[knn.test] == organ).sum() == 2 for organ in range(15))
    accuracy, (low, high) = knn(URFMModel(URFMConfig(**SMALL)))
    assert low <= accuracy <= high and accuracy < 0.6


def test_embedding_keeps_the_mode_of_the_encoder():
    model = URFMModel(URFMConfig(**SMALL)).train()
    features = embed(model, torch.randn(5, 3, 32, 32).split(2))
    assert features.shape == (5, 16) and model.training


@pytest.mark.parametrize("decoder", [{}, {"decoder_type": "cross_attention", "decoder_mask_fraction": 0.5}])
def test_every_hidden_patch_is_predicted_whatever_is_trained(decoder):
    model = URFMForPreTraining(URFMConfig(**SMALL, **decoder)).train()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 3:13] = True
    predictions = masked_predictions(model, torch.randn(2, 3, 32, 32), mask)
    assert predictions.shape == (2, 16, 8) and model.training
    assert (predictions.abs().sum(-1) > 0).equal(mask)
    assert model.config.decoder_mask_fraction == decoder.get("decoder_mask_fraction", 1.0)


def test_the_pictures_are_drawn(tmp_path):
    history = [{"step": s, "loss": -s / 100} for s in range(1, 90)]
    plot_loss(history, [{"step": 0, "knn_accuracy": 0.2}, {"step": 90, "knn_accuracy": 0.7}], tmp_path / "loss.png")
    plot_loss(history[:1], [], tmp_path / "short.png")
    mask = torch.rand(2, 16) > 0.5
    plot_targets(
        ["a", "b"],
        torch.rand(2, 3, 32, 32),
        mask,
        torch.randn(2, 16, 8),
        torch.randn(2, 16, 8),
        tmp_path / "targets.png",
    )
    for name in ("loss.png", "short.png", "targets.png"):
        assert min(Image.open(tmp_path / name).size) > 200
    assert not list(tmp_path.glob(".tmp*"))
