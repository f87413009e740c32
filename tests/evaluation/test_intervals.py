# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Intervals over patients: their width against theory, their coverage, and what they do with too few."""

import time

import numpy as np
import pytest

from modeling_urfm.evaluation.intervals import bootstrap_scores, patient_draws, with_intervals
from modeling_urfm.evaluation.scores import classification_scores


def _mean_of(values):
    return lambda rows: {"mean": float(values[rows].mean())}


def test_the_interval_is_the_binomials_for_one_image_a_patient():
    right = (np.arange(400) % 4 != 0).astype(float)
    low, high = bootstrap_scores(_mean_of(right), np.arange(400), draws=2000)["mean"]
    error = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - error, abs=0.006) and high == pytest.approx(0.75 + error, abs=0.006)


def test_images_of_one_patient_are_drawn_together():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    for rows in patient_draws(patients, 50, seed=1):
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[2] == counts[5] and counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
    # Ten copies of every image say no more than one: the interval stays as wide.
    right = (np.arange(60) % 3 != 0).astype(float)
    once = bootstrap_scores(_mean_of(right), np.arange(60))["mean"]
    often = bootstrap_scores(_mean_of(np.repeat(right, 10)), np.repeat(np.arange(60), 10))["mean"]
    assert often == pytest.approx(once)


def test_the_truth_lies_in_95_of_100_intervals():
    rng, covered = np.random.default_rng(0), 0
    for number in range(200):
        patient = np.repeat(np.arange(60), 3)
        values = 0.5 + np.repeat(rng.normal(size=60), 3) + 0.3 * rng.normal(size=180)
        low, high = bootstrap_scores(_mean_of(values), patient, draws=200, seed=number)["mean"]
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 199


def test_equal_seeds_are_equal_and_others_are_not():
    values, patients = np.random.default_rng(0).normal(size=50), np.arange(50) // 2
    first, again, other = (bootstrap_scores(_mean_of(values), patients, 100, seed) for seed in (3, 3, 4))
    assert first == again and first != other


def test_draws_without_a_value_are_left_out_and_one_patient_has_no_interval():
    labels, probabilities = np.array([0, 1, 0]), np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
    intervals = bootstrap_scores(lambda rows: classification_scores(labels[rows], probabilities[rows]), np.arange(3))
    assert intervals["auroc"] == (1.0, 1.0)  # a third of the draws have one class alone
    assert np.isnan(bootstrap_scores(_mean_of(np.ones(5)), np.zeros(5))["mean"]).all()
    assert np.isnan(bootstrap_scores(lambda rows: {"x": float("nan")}, np.arange(5))["x"]).all()


def test_with_intervals():
    joined = with_intervals({"accuracy": 0.8, "seconds": 3.0}, {"accuracy": (0.7, 0.9)})
    assert joined == {"accuracy": 0.8, "accuracy_ci95": [0.7, 0.9], "seconds": 3.0}


def test_a_thousand_draws_of_a_test_set_take_seconds():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 15, 400), rng.dirichlet(np.ones(15), 400)
    begun = time.perf_counter()
    bootstrap_scores(lambda rows: classification_scores(labels[rows], probabilities[rows]), np.arange(400), draws=200)
    assert time.perf_counter() - begun < 5  # on a core that others share; alone it is 0.3 s
