# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Whether encoders differ: intervals over seeds, paired tests on the same images, ranks over tasks."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import TypeVar

import numpy as np
from scipy import stats

from .intervals import patient_draws, percentile_interval


Outputs = TypeVar("Outputs")


def summarise(values: Sequence[float]) -> dict:
    """Mean, sample deviation, count and 95 % interval (Student's t) of a score over seeds.

    Values that are not finite are not counted. `sd` and `ci95` are NaN with fewer than two.

    Returns:
        {"mean", "sd", "n", "ci95": [low, high]}
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    n, mean = len(values), float(values.mean()) if len(values) else float("nan")
    if n < 2:
        return {"mean": mean, "sd": float("nan"), "n": n, "ci95": [float("nan")] * 2}
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / n**0.5
    return {"mean": mean, "sd": sd, "n": n, "ci95": [mean - half, mean + half]}


def paired_bootstrap(
    score: Callable[[Outputs, np.ndarray], float],
    outputs_a: Outputs,
    outputs_b: Outputs,
    patients: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
) -> dict:
    """How much better a scores than b on the same patients, drawn with replacement for both at once.

    Args:
        score: (outputs, rows) to one number; what outputs are is between the caller and `score` (probabilities, or one
            array a seed, averaged by `score`).
        patients: (images,) the patient of every image.

    Returns:
        {"difference": score of a less that of b on all images, "ci95": [low, high], "p": two-sided}. `p` is twice the
        smaller share of draws on either side of zero, with one draw added to it (Davison & Hinkley, 1997, section 4.2.1),
        so never below 2 / (draws + 1). NaN with fewer than two patients.
    """
    every = np.arange(len(patients))
    differences = np.array(
        [score(outputs_a, rows) - score(outputs_b, rows) for rows in patient_draws(patients, draws, seed)]
    )
    differences = differences[np.isfinite(differences)]
    n = len(differences)
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return {
        "difference": float(score(outputs_a, every) - score(outputs_b, every)),
        "ci95": list(percentile_interval(differences)),
        "p": float(min(1.0, 2 * (smaller + 1) / (n + 1))) if n else float("nan"),
    }


def paired_permutation(
    a: Sequence[float],
    b: Sequence[float],
    patients: np.ndarray | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> dict:
    """Test of the mean difference of paired values by swapping the two of a pair (Fisher, 1935).

    All swaps are counted when there are at most 2^12 of them, else `draws` are drawn (and the observed one counts).

    Args:
        a, b: (pairs,) a value a seed, or a value an image (right or wrong, its Dice).
        patients: (pairs,) of images; those of one patient are swapped together. Default: every pair is on its own.

    Returns:
        {"difference": mean of a - b, "p": two-sided}; NaN without a pair.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if difference.ndim != 1 or not np.isfinite(difference).all():
        raise ValueError("paired_permutation expects two lists of finite numbers of equal length.")
    total = len(difference)
    if not total:
        return {"difference": float("nan"), "p": float("nan")}
    if patients is not None:
        _, patient_of = np.unique(np.asarray(patients), return_inverse=True)
        difference = np.bincount(patient_of, difference)
    observed = difference.sum()
    if len(difference) <= 12:
        signs = np.array(list(product((1.0, -1.0), repeat=len(difference))))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice(np.array([1.0, -1.0]), size=(draws, len(difference)))
        extra = 1
    # A hair below: sums of the same numbers in another order differ in their last digits.
    as_large = np.count_nonzero(np.abs(signs @ difference) >= np.abs(observed) * (1 - 1e-9) - 1e-12)
    return {"difference": float(observed / total), "p": float((as_large + extra) / (len(signs) + extra))}


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> dict:
    """Exact test of McNemar (1947): whether a is right where b is wrong as often as the other way round.

    It takes images as independent: with several images a patient use `paired_permutation` with `patients`.

    Args:
        right_a, right_b: (images,) bool.

    Returns:
        {"only_a": images that only a has right, "only_b", "p": two-sided, 1 where they never differ}
    """
    right_a, right_b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values (tests,) adjusted so that any of them is below alpha by chance with probability alpha (Holm, 1979).

    NaN stays NaN and is not counted as a test.
    """
    p_values = np.asarray(p_values, np.float64)
    adjusted, tested = np.full(p_values.shape, np.nan), np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def average_ranks(table: np.ndarray, names: Sequence[str] | None = None) -> dict:
    """Mean rank of every encoder over tasks: 1 is the best, equal scores share their ranks.

    Args:
        table: (tasks, encoders), higher is better. NaN (a probe that collapsed) ranks last.
        names: of the encoders; default their numbers.
    """
    ranks = _ranks(table).mean(0)
    return dict(zip(_names(names, len(ranks)), ranks.tolist()))


def friedman_nemenyi(table: np.ndarray, names: Sequence[str] | None = None) -> dict:
    """Friedman's test that all encoders rank alike, and the difference of mean ranks that Nemenyi's test calls one.

    Demsar, 2006: two encoders differ at 5 % when their mean ranks differ by more than q sqrt(k (k + 1) / (6 n)), with k
    encoders, n tasks and q the studentised range over sqrt(2). Both are approximations that a handful of tasks strains.

    Args:
        table: (tasks, encoders), higher is better. NaN ranks last.

    Returns:
        {"ranks": {name: mean rank}, "p", "critical_difference"}; NaN with fewer than two tasks or encoders.
    """
    ranks = _ranks(table)
    tasks, encoders = ranks.shape
    result = {"ranks": average_ranks(table, names), "p": float("nan"), "critical_difference": float("nan")}
    if tasks < 2 or encoders < 2:
        return result
    # The variance of the ranks as they are, so that shared ranks are accounted for.
    spread = ((ranks - (encoders + 1) / 2) ** 2).sum()
    between = tasks**2 * ((ranks.mean(0) - (encoders + 1) / 2) ** 2).sum()
    result["p"] = float(stats.chi2.sf((encoders - 1) * between / spread, encoders - 1)) if spread else 1.0
    q = stats.studentized_range.ppf(0.95, encoders, np.inf) / 2**0.5
    result["critical_difference"] = float(q * (encoders * (encoders + 1) / (6 * tasks)) ** 0.5)
    return result


def check_same_split(a: dict, b: dict) -> None:
    """ValueError, naming both and what differs, unless both were scored on the same images in the same split.

    Args:
        a, b: `{"name", "split_fingerprint", ...}`; of other keys that both have (data set, counts), the error shows
            those that differ.
    """
    if a["split_fingerprint"] == b["split_fingerprint"]:
        return
    shared = [key for key in a if key in b and key != "name" and a[key] != b[key]]
    shown = "; ".join(f"{key} {a[key]!r} against {b[key]!r}" for key in shared)
    raise ValueError(
        f"{a['name']} and {b['name']} were not scored on the same split, so they cannot be compared: {shown}. "
        "Evaluate both with one data set, seed and fractions."
    )


def _ranks(table) -> np.ndarray:
    table = np.asarray(table, np.float64)
    if table.ndim != 2:
        raise ValueError(f"expected a table (tasks, encoders), got {table.shape}.")
    return stats.rankdata(np.where(np.isnan(table), np.inf, -table), axis=1)


def _names(names: Sequence[str] | None, count: int) -> Sequence:
    if names is not None and len(names) != count:
        raise ValueError(f"{len(names)} names for {count} encoders.")
    return range(count) if names is None else names
