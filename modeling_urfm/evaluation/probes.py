# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Frozen-encoder probes: what the features hold without training them further."""

from collections.abc import Iterable

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler


@torch.no_grad()
def embed(encoder: torch.nn.Module, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """`pooler_output` of every image: (images, hidden), float32. The encoder's mode is restored.

    Args:
        encoder: a `URFMModel`.
        batches: tensors (batch, channels, height, width), normalised.
    """
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    features = [encoder(batch.to(device)).pooler_output.float().cpu() for batch in batches]
    encoder.train(training)
    return torch.cat(features).numpy()


def knn_predict(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, k: int = 10
) -> np.ndarray:
    """The label that the `k` nearest training images vote for, for every test image: (test images,).

    Features are standardised by the training set's mean and deviation (so that no encoder is punished for its scale)
    and compared by cosine similarity, which also weighs the votes (Wu et al., 2018, without a temperature).

    Args:
        train_features, test_features: (images, features). train_labels: (images,).
    """
    scaler = StandardScaler().fit(train_features)
    classifier = KNeighborsClassifier(
        n_neighbors=min(k, len(train_labels)),
        metric="cosine",
        weights=lambda distance: np.clip(2 - distance, 1e-6, None),
    )
    classifier.fit(scaler.transform(train_features), train_labels)
    return classifier.predict(scaler.transform(test_features))


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    k: int = 10,
) -> float:
    """Share of test images, in [0, 1], for which `knn_predict` finds the right label."""
    return float((knn_predict(train_features, train_labels, test_features, k) == test_labels).mean())


def bootstrap_interval(values: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `values` (patients,), by the percentiles of bootstrap draws of patients (Efron, 1979)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
