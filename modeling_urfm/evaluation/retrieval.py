# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What lies near an image among frozen features: votes of the nearest, and the order in which all others come back."""

from collections.abc import Iterator

import numpy as np

from .linear_probe import Scaling


BLOCK = 512  # queries compared at a time


def similarities(gallery: np.ndarray, queries: np.ndarray) -> Iterator[np.ndarray]:
    """Cosine similarities, blocks of (queries, gallery), of features standardised over the gallery.

    Standardised, so that no encoder is punished for the scale of its features; as in `probes.knn_predict`.

    Args:
        gallery, queries: (images, features).
    """
    scaling = Scaling.of(gallery)
    unit = [_unit(scaling(part)) for part in (gallery, queries)]
    for start in range(0, len(queries), BLOCK):
        yield unit[1][start : start + BLOCK] @ unit[0].T


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def knn_votes(gallery: np.ndarray, targets: np.ndarray, queries: np.ndarray, k: int = 10) -> np.ndarray:
    """Weighted mean of the targets of the `k` nearest images: (queries, outputs).

    With one-hot targets these are the shares of the votes, with 0/1 labels those of each label, with numbers a regression.
    A neighbour weighs 1 + its cosine similarity (as in `probes.knn_predict`).

    Args:
        gallery: (images, features). targets: (images, outputs). queries: (queries, features).
    """
    k, votes = min(k, len(gallery)), []
    for block in similarities(gallery, queries):
        nearest = np.argsort(-block, axis=1, kind="stable")[:, :k]
        weights = np.clip(1 + np.take_along_axis(block, nearest, 1), 1e-6, None)
        votes.append((weights[..., None] * targets[nearest]).sum(1) / weights.sum(1, keepdims=True))
    return np.concatenate(votes)


def average_precisions(
    gallery: np.ndarray, gallery_labels: np.ndarray, queries: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Average precision of every query, (queries,): its mean is the mean average precision (mAP).

    The whole gallery comes back in the order of cosine similarity; an image is right when it is of the query's class.
    NaN where the gallery holds none of that class.
    """
    found, start = [], 0
    for block in similarities(gallery, queries):
        order = np.argsort(-block, axis=1, kind="stable")
        right = gallery_labels[order] == labels[start : start + len(block), None]
        precision = right.cumsum(1) / np.arange(1, right.shape[1] + 1)
        count = right.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.where(count > 0, (precision * right).sum(1) / count, np.nan))
        start += len(block)
    return np.concatenate(found)


def hits_at(k: int, gallery, gallery_labels, queries, labels) -> np.ndarray:
    """Whether one of the `k` nearest images is of the query's class: (queries,) of 0 and 1; NaN as `average_precisions`."""
    k, found, start = min(k, len(gallery)), [], 0
    for block in similarities(gallery, queries):
        nearest = np.argsort(-block, axis=1, kind="stable")[:, :k]
        found.append((gallery_labels[nearest] == labels[start : start + len(block), None]).any(1))
        start += len(block)
    return np.where(np.isin(labels, gallery_labels), np.concatenate(found), np.nan)
