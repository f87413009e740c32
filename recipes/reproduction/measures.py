# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a claim is, what decides it, and the comparisons of arms that claims and tables are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modeling_urfm.evaluation.corruptions import PUBLISHED, SEVERITIES

from .design import ABLATIONS, HOME, LOW, Scale
from .scores import Answers, Estimate, Missing, Score, estimate, mean, minus


QUESTIONS = (
    "generalisation", "label efficiency", "training time", "signal-to-noise", "robustness", "beyond the paper", "ablation",
)  # fmt: skip
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
F1, DICE = "points of macro-F1", "points of Dice"
BOTH = ("organ", "lesion")
BASELINE = "baseline"  # of the ablations
Measure = Callable[[], Estimate]


@dataclass(frozen=True)
class Claim:
    """One sentence that is true or not.

    Attributes:
        name: the sentence. question: one of `QUESTIONS`; the first claim of a question stands for it.
        measure: gives the number that decides, or raises `Missing`. paper: what the paper or others say, or None.
        cannot_conclude: what the answer here does not tell. unit: of the number.
        below: it holds where the number is below this; None: where it is above 0.
    """

    name: str
    question: str
    measure: Measure
    paper: str | None
    cannot_conclude: str
    unit: str = F1
    below: float | None = None


def judge(claim: Claim) -> dict:
    """The claim with its value, interval and verdict.

    Returns:
        {"name", "question", "verdict", "value", "ci95", "sd", "seeds", ...}. A value or an end of an interval that was never
        reached is infinite, and null in JSON; `shown` says so in words.
    """
    found = claim.measure()
    return {
        "name": claim.name, "question": claim.question, "verdict": verdict(found, claim.below), **found.cell(),
        "seeds": list(found.seeds), "unit": claim.unit, "below": claim.below, "shown": shown(found, claim.below),
        "note": found.note, "paper": claim.paper, "cannot_conclude": claim.cannot_conclude,
    }  # fmt: skip


def verdict(found: Estimate, below: float | None = None) -> str:
    """ "holds" where the interval lies on the claimed side (above 0, or below `below`), "does not hold" on the other."""
    low, high = found.ci95
    if below is None:
        return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED
    if np.isinf(low) and found.most is not None:  # not reached: how far beyond `most` is not known
        low = found.most
    return HOLDS if high < below else FAILS if low >= below else UNDECIDED


def shown(found: Estimate, below: float | None = None) -> str:
    """The value and its interval in words."""
    low, high = found.ci95
    if below is None:
        return f"{points(found.value)} ({points(low)} to {points(high)})"
    value, low, high = (percent(x, found) for x in (found.value, low, high))
    return f"{value} %" if value == low == high else f"{value} % ({low} to {high})"


def points(value: float) -> str:
    """With its sign; to a tenth, and to a hundredth where a tenth would hide on which side of 0 it lies."""
    return f"{value:+.2f}" if 0 < abs(value) < 0.05 else f"{value + 0.0:+.1f}"


def percent(value: float, found: Estimate) -> str:
    """Without its sign; as a bound where it is the least or more than the most that could be measured."""
    if np.isinf(value):
        return f"> {found.most:.3g}"
    bound = "≤ " if found.least is not None and value <= found.least * (1 + 1e-9) else ""
    return f"{bound}{value:.3g}"


# ---------------------------------------------------------------- what is measured


def low_levels(scale: Scale) -> tuple[float, ...]:
    return tuple(level for level in LOW if level in scale.levels)


def finetuned_tasks(scale: Scale) -> tuple[str, ...]:
    """Those with classes that are fine-tuned."""
    return tuple(task for task in scale.finetune_passes if task != "mask")


def average(answers: Answers, arm: str, protocol: str = "linear", side: str = "in", levels: Sequence[float] = (HOME,),
            tasks: Sequence[str] = BOTH) -> Score:  # fmt: skip
    """Mean over levels and tasks."""
    return mean([answers.score(arm, f"{level:g}/{task}/{protocol}/{side}") for level in levels for task in tasks])


def above(answers: Answers, a: str, b: str, protocol: str = "linear", theirs: str | None = None, **where) -> Measure:
    """How far arm a is above arm b, averaged over levels and tasks; `theirs` is b's protocol where it is another one."""
    return lambda: estimate(
        minus(average(answers, a, protocol, **where), average(answers, b, theirs or protocol, **where))
    )


def corrupted(answers: Answers, arm: str, corruptions: Sequence[str] = PUBLISHED) -> Score:
    """Macro-F1 of organs on corrupted images, averaged over corruptions and severities."""
    return mean([answers.score(arm, f"{HOME:g}/organ/linear/{name}-{s}") for name in corruptions for s in SEVERITIES])


def drop(answers: Answers, arm: str, corruptions: Sequence[str] = PUBLISHED) -> Score:
    """How much of its macro-F1 of organs a probe loses on corrupted images."""
    return minus(answers.score(arm, f"{HOME:g}/organ/linear/in"), corrupted(answers, arm, corruptions))


def ablation_differences(answers: Answers) -> dict[str, Estimate]:
    """Variant less `BASELINE`, mean of organ and lesion at HOME, of those variants that are there."""
    found = {}
    for name in ABLATIONS:
        if name == BASELINE:
            continue
        try:
            found[name] = estimate(minus(average(answers, name), average(answers, BASELINE)))
        except Missing:
            continue
    return found


def simultaneous(estimates: dict[str, Estimate]) -> dict[str, tuple[float, float]]:
    """Intervals that hold all together with 95 %: every value with the same multiple of its standard error either way.

    The multiple is the 95 % quantile over draws of the largest deviation of any of them, in standard errors.
    """
    values = np.array([found.value for found in estimates.values()])
    draws = np.stack([found.draws for found in estimates.values()])
    errors = draws.std(1)
    deviations = np.abs(draws - values[:, None]) / np.where(errors > 0, errors, 1)[:, None]
    reach = np.percentile(deviations.max(0), 95) * errors
    return {name: (float(v - r), float(v + r)) for name, v, r in zip(estimates, values, reach)}
