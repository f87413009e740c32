# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Scores of answers, and what they would have been with other seeds and other test patients: a hierarchical bootstrap.

A *score* is {seed: (1 + DRAWS,) float64} in points (0 to 100): first the score on all test patients, then on every draw of
them. Draw b holds the same patients for all arms, seeds, levels and questions of one test set, so that scores are subtracted
draw by draw; seeds are drawn when a score is summed up over them (`estimate`).
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from modeling_urfm.evaluation.intervals import percentile_interval

from .units import decode, decode_dice


DRAWS, SEED = 1000, 0
Score = dict[int, np.ndarray]
WITHOUT_ANSWERS = ("data", "tune")


class Missing(LookupError):
    """What a number is made of is not there: an arm, a seed, an answer. Says what."""


@dataclass(frozen=True)
class Estimate:
    """A number that was measured.

    Attributes:
        value: with all seeds and patients; infinite where something was never reached. draws: (DRAWS,) of seeds and patients.
        seeds: that it was measured with. by_seed: its value with each alone. note: what a reader must know, or None.
        interval: that stands in place of the draws' own, or None. least, most: the smallest and largest value that could be
            measured: `least` may be less in truth, infinity is more than `most`. None: no such bounds.
    """

    value: float
    draws: np.ndarray
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    note: str | None = None
    interval: tuple[float, float] | None = None
    least: float | None = None
    most: float | None = None

    @property
    def ci95(self) -> tuple[float, float]:
        """The 2.5 and 97.5 % percentiles; an end is infinite where so many draws are."""
        if self.interval is not None:
            return self.interval
        if np.isfinite(self.draws).all():
            return percentile_interval(self.draws)
        ends = np.rint(np.array([0.025, 0.975]) * (len(self.draws) - 1)).astype(int)  # no interpolation with infinity
        low, high = np.sort(self.draws)[ends]
        return float(low), float(high)

    @property
    def sd(self) -> float:
        """Standard deviation over seeds; NaN with one seed, or where one seed alone never gets there."""
        values = np.array(self.by_seed)
        return float(values.std(ddof=1)) if len(values) > 1 and np.isfinite(values).all() else float("nan")

    def cell(self) -> dict:
        """{"value", "ci95", "sd", "n" (seeds)}, rounded to a thousandth."""
        low, high = self.ci95
        return {"value": _rounded(self.value), "ci95": [_rounded(low), _rounded(high)], "sd": _rounded(self.sd),
                "n": len(self.seeds)}  # fmt: skip


class Answers:
    """The answers of all arms and seeds, and the truth.

    Args:
        units: as `analysis.read_units` returns them.

    Raises:
        ValueError: no unit has the truth, or units do not agree on it.
    """

    def __init__(self, units: dict[str, dict]):
        self.units: dict[str, dict[int, dict]] = {}  # arm to seed to unit
        for unit in units.values():
            if unit["unit"]["kind"] not in WITHOUT_ANSWERS:
                self.units.setdefault(unit["unit"]["subject"], {})[unit["unit"]["seed"]] = unit
        self.truth = {name: decode(text) for name, text in _truth(units).items()}
        self._scored: dict[tuple[str, str], np.ndarray] = {}

    def score(self, arm: str, key: str) -> Score:
        """Macro-F1, or mean Dice of masks, of an arm's answers to "LEVEL/TASK/PROTOCOL/SIDE", with every seed that has them.

        Raises:
            Missing: no seed has them. ValueError: a unit's answers are not as many as the test images.
        """
        if arm not in self.units:
            raise Missing(f"no unit of {arm}")
        found = {
            seed: self._points(unit, key) for seed, unit in sorted(self.units[arm].items()) if key in unit["answers"]
        }
        if not found:
            raise Missing(f"{arm} has no answers {key}")
        return found

    def has(self, arm: str, key: str) -> bool:
        return any(key in unit["answers"] for unit in self.units.get(arm, {}).values())

    def _points(self, unit: dict, key: str) -> np.ndarray:
        _, task, _, side = key.split("/")
        test, text = f"{task}/{'out' if side == 'out' else 'in'}", unit["answers"][key]  # corrupted images are "in"
        if (test, text) not in self._scored:
            if task == "mask":
                dice = decode_dice(text)
                points = 100 * (patient_draws(test, len(dice)) @ dice) / len(dice)
            else:
                truth, answers = self.truth[test], decode(text)
                if len(answers) != len(truth):
                    named = unit["unit"]
                    raise ValueError(
                        f"the unit {named['kind']} {named['subject']}, seed {named['seed']}, has {len(answers)} answers "
                        f"{key} to {len(truth)} images: remove its file and run it again."
                    )
                points = 100 * macro_f1(truth, answers, patient_draws(test, len(truth)))
            self._scored[test, text] = points
        return self._scored[test, text]


def _truth(units: dict[str, dict]) -> dict[str, str]:
    given = {name: unit["truth"] for name, unit in units.items() if unit["unit"]["kind"] == "data"}
    if not given:
        raise ValueError("none of the units holds the truth (kind data): run `python recipes/reproduce.py` first.")
    first, *rest = given
    for name in rest:
        if given[name] != given[first]:
            raise ValueError(f"the units {first} and {name} do not hold the same truth: they are of two experiments.")
    return given[first]


@functools.cache
def patient_draws(test: str, patients: int) -> np.ndarray:
    """How often each test patient stands in each draw: (1 + DRAWS, patients) float32; all of them once in the first row.

    Args:
        test: name of the test set; equal names draw equal patients.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(test.encode())])
    drawn = rng.multinomial(patients, np.full(patients, 1 / patients), size=DRAWS)
    return np.concatenate([np.ones((1, patients)), drawn]).astype(np.float32)


@functools.cache
def seed_draws(seeds: int) -> np.ndarray:
    """The weight of each seed in each draw: (1 + DRAWS, seeds), rows of sum 1; equal weights in the first row.

    Seeds are too few to be drawn with replacement as patients are: with three, such an interval holds the truth three times in
    four. So weights deviate normally from equal ones, by as much that a mean deviates by its standard error, times what
    Student's t for so many seeds is wider than the normal distribution. Where seeds alone differ, the 2.5 and 97.5 %
    percentiles of a mean are then the ends of its t interval. Weights may be negative. One seed says nothing of others: it has
    the weight 1 in all draws.
    """
    equal = np.full((1, seeds), 1 / seeds)
    if seeds == 1:
        return np.repeat(equal, 1 + DRAWS, axis=0)
    normal = np.random.default_rng([SEED, seeds]).standard_normal((DRAWS, seeds))
    deviations = (normal - normal.mean(1, keepdims=True)) / np.sqrt(seeds * (seeds - 1))
    wider = stats.t.ppf(0.975, seeds - 1) / stats.norm.ppf(0.975)
    return np.concatenate([equal, equal + wider * deviations])


def macro_f1(truth: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur, in truth or answers, of the images that a row of `weights` counts.

    Args:
        truth, answers: (images,) classes. weights: (rows, images), how often each image counts.

    Returns:
        (rows,) in [0, 1].
    """
    classes = np.arange(max(truth.max(), answers.max()) + 1)
    is_truth, is_answer = (x[:, None] == classes for x in (truth, answers))
    counted = weights @ np.concatenate([is_truth & is_answer, is_answer, is_truth], axis=1).astype(weights.dtype)
    right, answered, true = np.split(counted.astype(np.float64), 3, axis=1)
    occurs = true + answered > 0
    f1 = 2 * right / np.where(occurs, true + answered, 1)
    return f1.sum(1) / occurs.sum(1)


# ---------------------------------------------------------------- sums of scores


def combine(*parts: tuple[float, Score]) -> Score:
    """The weighted sum of scores, with the seeds that all of them have.

    Raises:
        Missing: they share no seed.
    """
    seeds = shared_seeds([score for _, score in parts])
    return {seed: sum(weight * score[seed] for weight, score in parts) for seed in seeds}


def shared_seeds(scores: Sequence[Score]) -> list[int]:
    """Raises: Missing, where there is none."""
    seeds = sorted(set.intersection(*(set(score) for score in scores)))
    if not seeds:
        raise Missing("no seed has all of it")
    return seeds


def mean(scores: Sequence[Score]) -> Score:
    return combine(*((1 / len(scores), score) for score in scores))


def minus(a: Score, b: Score) -> Score:
    return combine((1.0, a), (-1.0, b))


def over_seeds(score: Score) -> np.ndarray:
    """Mean over the seeds, and over those of each draw: (1 + DRAWS,)."""
    return (seed_draws(len(score)).T * np.stack([score[seed] for seed in sorted(score)])).sum(0)


def estimate(score: Score) -> Estimate:
    """The mean over seeds with its interval over seeds and patients."""
    return computed(lambda values: values, score)


def computed(function: Callable[..., np.ndarray], *scores: Score) -> Estimate:
    """A number made of several scores, each summed up over the seeds before: of a ratio, the ratio of means.

    Args:
        function: arrays (draws,), one a score, to (draws,).

    Raises:
        Missing: the scores share no seed.
    """
    seeds = shared_seeds(scores)
    total = function(*(over_seeds({seed: score[seed] for seed in seeds}) for score in scores))
    alone = [function(*(score[seed][:1] for score in scores)) for seed in seeds]
    return Estimate(float(total[0]), total[1:], tuple(seeds), tuple(float(values[0]) for values in alone))


def _rounded(value: float) -> float:
    return round(value, 3) + 0.0 if np.isfinite(value) else value  # + 0.0: no minus zero
