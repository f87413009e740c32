# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""95 % intervals of scores by a bootstrap over patients: images of one patient are drawn together or not at all."""

from collections.abc import Callable, Iterator

import numpy as np


def bootstrap_scores(
    score: Callable[[np.ndarray], dict[str, float]], patients: np.ndarray, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile 95 % interval of every score (Efron, 1979), patients drawn with replacement with all their images.

    Draws in which a score is not defined (a class that no drawn patient has) are left out of its interval. With fewer
    than two patients there is no interval: NaN.

    Args:
        score: rows (int64, with repeats, into `patients`) to its scores.
        patients: (images,) the patient of every image.
        draws: how many. seed: of the draws; equal seeds draw equal patients, whatever is scored.

    >>> right, patients = np.array([1, 1, 0, 1]), np.array(["a", "a", "b", "c"])
    >>> bootstrap_scores(lambda rows: {"accuracy": right[rows].mean()}, patients, draws=200)
    {'accuracy': (0.0, 1.0)}
    """
    values = [score(rows) for rows in patient_draws(patients, draws, seed)]
    if not values:
        return {name: (float("nan"), float("nan")) for name in score(np.arange(len(patients)))}
    return {name: percentile_interval([value[name] for value in values]) for name in values[0]}


def patient_draws(patients: np.ndarray, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """`draws` times the rows (int64) of as many patients as there are, drawn with replacement. None for one patient."""
    _, patient_of = np.unique(np.asarray(patients), return_inverse=True)
    rows_of = np.split(np.argsort(patient_of, kind="stable"), np.cumsum(np.bincount(patient_of))[:-1])
    if len(rows_of) < 2:
        return
    one_each = np.concatenate(rows_of) if len(rows_of) == len(patient_of) else None
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn = rng.integers(len(rows_of), size=len(rows_of))
        yield one_each[drawn] if one_each is not None else np.concatenate([rows_of[p] for p in drawn])


def percentile_interval(values) -> tuple[float, float]:
    """The 2.5 and 97.5 % percentiles of those values that are finite; NaN where none is."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def with_intervals(scores: dict[str, float], intervals: dict[str, tuple[float, float]]) -> dict:
    """`{"accuracy": 0.8, "accuracy_ci95": [low, high], ...}`; a score without an interval stands alone."""
    joined = {}
    for name, value in scores.items():
        joined[name] = value
        if name in intervals:
            joined[f"{name}_ci95"] = list(intervals[name])
    return joined
