# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The attentive probe finds what a mean over patches hides."""

import numpy as np
import pytest
import torch

from modeling_urfm.evaluation.attentive_probe import AttentiveLayers, TokenScaling, fit_attentive_probe
from modeling_urfm.evaluation.sweeps import SweepSettings


QUICK = SweepSettings(learning_rates=(1e-2, 3e-2), max_epochs=25, min_steps=150)


@pytest.fixture(scope="module")
def hidden():
    """One of 30 tokens is marked, and carries the class: tokens, labels."""
    rng = np.random.default_rng(0)
    labels, tokens = rng.integers(0, 2, 300), rng.normal(size=(300, 30, 16))
    at = rng.integers(0, 30, 300)
    tokens[np.arange(300), at] = 0
    tokens[np.arange(300), at, 0] = 8
    tokens[np.arange(300), at, 8:] = np.where(labels == 1, 4, -4)[:, None]
    tokens[:, :, 8:] += 0.8 * rng.normal(size=(300, 1, 8))  # of the whole image: a mean is drowned in it
    return tokens.astype(np.float16), labels


def test_starts_as_the_mean_of_the_tokens():
    layers = AttentiveLayers(2, 12, 3, torch.Generator().manual_seed(0))
    tokens = torch.randn(4, 9, 12)
    with torch.no_grad():
        assert torch.allclose(layers(tokens), torch.einsum("bd,pdc->bpc", tokens.mean(1), layers.weights), atol=1e-5)


def test_finds_the_token(hidden):
    tokens, labels = hidden
    train, validation, test = np.split(np.arange(300), [180, 230])
    probe = fit_attentive_probe(tokens, labels, train, validation, seeds=(0, 1), settings=QUICK)
    outputs = probe.predict(tokens[test])
    assert outputs.shape == (2, 70, 2) and ((outputs.argmax(-1) == labels[test]).mean(1) > 0.9).all()
    again = fit_attentive_probe(tokens, labels, train, validation, seeds=(0, 1), settings=QUICK)
    assert again.chosen == probe.chosen and np.array_equal(again.predict(tokens[test]), outputs)


def test_regression_comes_back_in_its_units():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(200, 5, 8)).astype(np.float32)
    targets = (1000 + 50 * tokens.mean(1)[:, :1]).astype(np.float32)
    train, validation, test = np.split(np.arange(200), [120, 150])
    probe = fit_attentive_probe(tokens, targets, train, validation, task="regression", seeds=(0,), settings=QUICK)
    assert np.abs(probe.predict(tokens[test])[0] - targets[test]).mean() < 0.4 * targets.std()


def test_scaling_is_that_of_all_tokens_together():
    tokens = np.random.default_rng(0).normal(3, 2, size=(100, 4, 6)).astype(np.float32)
    scaled = TokenScaling.of(tokens, np.arange(100))(tokens)
    assert torch.allclose(scaled.mean((0, 1)), torch.zeros(6), atol=1e-4)
    assert torch.allclose(scaled.std((0, 1), correction=0), torch.ones(6), atol=1e-4)
