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


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    k: int = 10,
) -> float:
    """Share of test images, in [0, 1], whose `k` nearest training images vote for the right label.

    Features are standardised by the training set's mean and deviation (so that no encoder is punished for its scale)
    and compared by cosine similarity, which also weighs the votes (Wu et al., 2018, without a temperature).
    """
    scaler = StandardScaler().fit(train_features)
    classifier = KNeighborsClassifier(
        n_neighbors=min(k, len(train_labels)),
        metric="cosine",
        weights=lambda distance: np.clip(2 - distance, 1e-6, None),
    )
    classifier.fit(scaler.transform(train_features), train_labels)
    return float(classifier.score(scaler.transform(test_features), test_labels))
