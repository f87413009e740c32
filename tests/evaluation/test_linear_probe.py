# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The batched linear probe against scikit-learn and torch's own optimiser, and what it refuses."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from modeling_urfm.evaluation.linear_probe import SWEEP, USJEPA, ProbeSettings, Scaling, fit_linear_probe


QUICK = ProbeSettings(learning_rates=(3e-3, 1e-2), weight_decays=(1e-4, 1.0), batch_size=64, max_epochs=40)


@pytest.fixture(scope="module")
def planted():
    """Three Gaussian classes, features of wildly different scales: features, labels, train, validation, test."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    features = (rng.normal(size=(3, 16))[labels] + 1.5 * rng.normal(size=(600, 16))) * np.geomspace(1e-3, 1e3, 16) + 7
    return features.astype(np.float32), labels, *np.split(np.arange(600), [300, 400])


def test_as_good_as_logistic_regression(planted):
    features, labels, train, validation, test = planted
    probe = fit_linear_probe(features, labels, [train] * 3, validation, seeds=(0, 1, 2), settings=QUICK)
    outputs = probe.predict(features[test])
    assert outputs.shape == (3, 200, 3) and np.allclose(outputs.sum(-1), 1, atol=1e-5)
    scaler = StandardScaler().fit(features[train])
    wanted = LogisticRegression(max_iter=1000).fit(scaler.transform(features[train]), labels[train])
    accuracy = (outputs.argmax(-1) == labels[test]).mean(1)
    assert (accuracy > wanted.score(scaler.transform(features[test]), labels[test]) - 0.04).all()
    again = fit_linear_probe(features, labels, [train] * 3, validation, seeds=(0, 1, 2), settings=QUICK)
    assert np.array_equal(again.weights, probe.weights) and again.chosen == probe.chosen


def test_a_setting_trains_as_it_does_alone(planted):
    """Side by side changes nothing: seed 1 with one setting equals that of the sweep which chose it."""
    features, labels, train, validation, _ = planted
    together = fit_linear_probe(features, labels, [train, train[:90]], validation, seeds=(0, 1), settings=QUICK)
    chosen = together.chosen[0]
    alone = ProbeSettings((chosen["learning_rate"],), (chosen["weight_decay"],), 64, 40)
    scaling = Scaling.of(features[train])
    single = fit_linear_probe(features, labels, [train], validation, seeds=(0,), settings=alone, scaling=scaling)
    assert np.allclose(single.weights[0], together.weights[0], atol=1e-4)


def test_descends_as_torch_adamw():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(32, 5)).astype(np.float32), rng.integers(0, 2, 32)
    settings = ProbeSettings((1e-2,), (0.1,), batch_size=32, max_epochs=7, min_steps=0, standardise=False)
    rows = np.arange(32)
    probe = fit_linear_probe(features, labels, [rows], rows, seeds=(4,), settings=settings)
    start = 0.01 * torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(4))
    weight, bias = start[:, 0].clone().requires_grad_(), torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0}], 1e-2
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for _ in range(7):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            torch.from_numpy(features) @ weight + bias, torch.from_numpy(labels)
        ).backward()
        optimizer.step()
        schedule.step()
    assert np.allclose(probe.weights[0], weight.detach(), atol=1e-5)
    assert np.allclose(probe.biases[0], bias.detach(), atol=1e-5)


def test_multilabel_and_regression(planted):
    features, labels, train, validation, test = planted
    several = np.stack([labels == 0, labels >= 1], 1).astype(np.float32)
    probe = fit_linear_probe(features, several, [train], validation, task="multilabel", seeds=(0,), settings=QUICK)
    assert ((probe.predict(features[test])[0] > 0.5) == several[test]).mean() > 0.8
    scaled = StandardScaler().fit_transform(features)
    targets = np.stack([scaled @ np.arange(16), 100 * scaled[:, 0] - 5], 1)
    probe = fit_linear_probe(features, targets, [train], validation, task="regression", seeds=(0,))
    assert np.allclose(probe.predict(features[test])[0], targets[test], atol=0.05)
    noisy = targets + np.random.default_rng(0).normal(size=targets.shape) * [20, 100]
    probe = fit_linear_probe(features, noisy, [train], validation, task="regression", seeds=(0,))
    scaling = Scaling.of(features[train])
    ridge = Ridge(alpha=probe.chosen[0]["ridge_strength"]).fit(scaling(features[train]), noisy[train])
    assert np.allclose(probe.predict(features[test])[0], ridge.predict(scaling(features[test])), atol=0.05)


def test_published_protocol_is_one_setting_without_scaling():
    assert (USJEPA.learning_rates, USJEPA.weight_decays, USJEPA.batch_size) == ((1e-3,), (1e-4,), 32)
    assert (USJEPA.max_epochs, USJEPA.patience, USJEPA.standardise) == (150, 15, False)
    assert len(SWEEP.learning_rates) * len(SWEEP.weight_decays) > 5 and SWEEP.standardise


def test_refuses(planted):
    features, labels, train, validation, _ = planted
    with pytest.raises(ValueError, match="validation"):
        fit_linear_probe(features, labels, [train], validation[:0], seeds=(0,))
    broken = features.copy()
    broken[17, 3] = np.nan
    with pytest.raises(ValueError, match=r"rows \[17\]"):
        fit_linear_probe(broken, labels, [train], validation, seeds=(0,))
    with pytest.raises(ValueError, match="2 training sets for 1 seeds"):
        fit_linear_probe(features, labels, [train, train], validation, seeds=(0,))
