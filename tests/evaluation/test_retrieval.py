# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Neighbours against scikit-learn and against the kNN probe that pre-training uses."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from modeling_urfm.evaluation.probes import knn_predict
from modeling_urfm.evaluation.retrieval import average_precisions, hits_at, knn_votes, similarities


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 700)
    features = (rng.normal(size=(4, 12))[labels] + 1.4 * rng.normal(size=(700, 12))).astype(np.float32) * 5 + 3
    return features[:120], labels[:120], features[120:], labels[120:]


def test_votes_are_those_of_the_knn_probe(parts):
    gallery, labels, queries, _ = parts
    votes = knn_votes(gallery, np.eye(4)[labels], queries)
    assert np.allclose(votes.sum(1), 1) and (votes.argmax(1) == knn_predict(gallery, labels, queries)).mean() > 0.995


def test_average_precision_against_scikit_learn(parts):
    gallery, labels, queries, wanted = parts
    found = average_precisions(gallery, labels, queries, wanted)
    close = np.concatenate(list(similarities(gallery, queries)))  # in two blocks
    for query in range(0, len(queries), 37):
        expected = average_precision_score(labels == wanted[query], close[query])
        assert found[query] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(average_precisions(gallery, labels, queries[:1], np.array([9])))[0]


def test_hits(parts):
    gallery, labels, queries, wanted = parts
    nearest = np.concatenate(list(similarities(gallery, queries))).argmax(1)
    assert np.array_equal(hits_at(1, *parts), labels[nearest] == wanted)
    assert hits_at(5, *parts).mean() > hits_at(1, *parts).mean()
    assert np.isnan(hits_at(1, gallery, labels, queries[:2], np.array([9, wanted[1]]))).tolist() == [True, False]
