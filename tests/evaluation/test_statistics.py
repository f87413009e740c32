# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Tests of differences against SciPy and against published worked examples."""

import numpy as np
import pytest
from scipy import stats

from modeling_urfm.evaluation.statistics import (
    average_ranks,
    check_same_split,
    friedman_nemenyi,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_permutation,
    summarise,
)


def _accuracy(right, rows):
    return float(right[rows].mean())


def test_summarise_is_students_interval():
    values = [0.71, 0.74, 0.69, 0.72, 0.75]
    got = summarise(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert got == {
        "mean": pytest.approx(np.mean(values)),
        "sd": pytest.approx(np.std(values, ddof=1)),
        "n": 5,
        "ci95": pytest.approx([low, high]),
    }
    assert summarise([0.5, float("nan")])["n"] == 1 and np.isnan(summarise([0.5])["ci95"]).all()
    assert summarise([])["n"] == 0 and np.isnan(summarise([])["mean"])


def test_a_paired_bootstrap_sees_what_two_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(300) < 0.5
    b = ~hard
    a = b | (rng.random(300) < 0.12)  # never worse, a little better
    got = paired_bootstrap(_accuracy, a, b, np.arange(300))
    assert got["difference"] == pytest.approx(a.mean() - b.mean())
    assert got["ci95"][0] > 0 and got["p"] == pytest.approx(2 / 2001)
    back = paired_bootstrap(_accuracy, b, a, np.arange(300))
    assert back["difference"] == -got["difference"] and back["p"] == got["p"]
    assert back["ci95"] == pytest.approx([-got["ci95"][1], -got["ci95"][0]])
    same = paired_bootstrap(_accuracy, a, a, np.arange(300))
    assert same == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    assert np.isnan(paired_bootstrap(_accuracy, a, b, np.zeros(300))["p"])


@pytest.mark.parametrize("test", [paired_permutation, paired_bootstrap])
def test_equal_encoders_are_told_apart_in_about_5_of_100(test):
    rng, found = np.random.default_rng(1), 0
    for number in range(200):
        a, b = rng.normal(size=(2, 40))
        p = (
            paired_permutation(a, b, draws=300, seed=number)["p"]
            if test is paired_permutation
            else paired_bootstrap(_accuracy, a, b, np.arange(40), draws=300, seed=number)["p"]
        )
        found += p <= 0.05
    assert 2 <= found <= 22


def test_the_permutation_is_scipys():
    rng = np.random.default_rng(0)
    for pairs in (5, 9, 40):
        a, b = rng.normal(size=(2, pairs)) + [[0.5], [0]]
        exact = pairs <= 12
        expected = stats.permutation_test(
            (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=10_000, rng=rng
        )
        got = paired_permutation(a, b)
        assert got["difference"] == pytest.approx((a - b).mean())
        assert got["p"] == pytest.approx(expected.pvalue, abs=1e-9 if exact else 0.02)


def test_the_permutation_swaps_patients_whole():
    a, b = np.repeat([1.0, 0.0, 1.0], 20), np.zeros(60)
    alone = paired_permutation(a, b)["p"]
    together = paired_permutation(a, b, patients=np.repeat([0, 1, 2], 20))["p"]
    assert alone < 0.001 and together == 0.5  # three patients cannot show more: two differ, 2 of 4 swaps
    assert paired_permutation(a, a)["p"] == 1.0 and np.isnan(paired_permutation([], [])["p"])
    with pytest.raises(ValueError, match="finite"):
        paired_permutation([1.0, np.nan], [0.0, 0.0])


def test_mcnemar_counts_only_where_they_differ():
    a = np.array([True] * 10 + [False] * 2 + [True] * 50)
    b = np.array([False] * 10 + [True] * 2 + [True] * 50)
    assert mcnemar(a, b) == {"only_a": 10, "only_b": 2, "p": pytest.approx(stats.binomtest(10, 12).pvalue)}
    assert mcnemar(a, a)["p"] == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    got = holm([0.9, float("nan"), 0.02])
    assert np.isnan(got[1]) and got[[0, 2]] == pytest.approx([0.9, 0.04])
    assert len(holm([])) == 0


def test_ranks_and_friedman_are_scipys():
    rng = np.random.default_rng(0)
    table = np.round(rng.normal(size=(10, 4)) + [1, 0.5, 0, 0], 1)  # rounded: some are shared
    got = friedman_nemenyi(table, ["a", "b", "c", "d"])
    assert got["p"] == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)
    assert got["ranks"] == average_ranks(table, ["a", "b", "c", "d"])
    assert list(got["ranks"].values()) == pytest.approx(stats.rankdata(-table, axis=1).mean(0))
    # Demsar (2006), section 3.2.2: four classifiers on 14 data sets, CD = 2.569 sqrt(4 x 5 / (6 x 14)) = 1.25.
    assert friedman_nemenyi(rng.normal(size=(14, 4)))["critical_difference"] == pytest.approx(1.25, abs=0.005)


def test_ranks_of_ties_of_what_collapsed_and_of_too_few():
    assert average_ranks([[0.5, 0.5, np.nan], [0.9, 0.8, 0.1]], "abc") == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert average_ranks(np.array([[0.2, 0.1]])) == {0: 1.0, 1: 2.0}
    assert np.isnan(friedman_nemenyi(np.ones((1, 3)))["p"]) and friedman_nemenyi(np.ones((5, 3)))["p"] == 1.0
    with pytest.raises(ValueError, match="2 names for 3 encoders"):
        average_ranks(np.ones((2, 3)), ["a", "b"])


def test_other_splits_are_refused():
    a = {"name": "urfm", "split_fingerprint": "aa", "dataset": "busi", "test": 100}
    check_same_split(a, {**a, "name": "dinov3"})
    with pytest.raises(ValueError, match=r"urfm and dinov3 .* 'aa' against 'bb'; test 100 against 90"):
        check_same_split(a, {**a, "name": "dinov3", "split_fingerprint": "bb", "test": 90})
