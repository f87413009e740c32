# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a claim is, what decides it, and the comparisons of arms that claims and tables are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from modeling_urfm.data.phantoms import ORGANS
from modeling_urfm.evaluation.corruptions import PUBLISHED, SEVERITIES

from .design import ABLATIONS, FULL, HOME, LOW, SCRATCH_LONGER, Scale
from .scores import Answers, Estimate, Missing, Score, combine, computed, estimate, mean, minus


QUESTIONS = (
    "generalisation", "label efficiency", "training time", "signal-to-noise", "robustness", "beyond the paper", "ablation",
)  # fmt: skip
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
F1, DICE = "points of macro-F1", "points of Dice"
BOTH = ("organ", "lesion")
BASELINE = "baseline"  # of the ablations
CHANCE = 100 / len(ORGANS)  # points of macro-F1 of organs
SMALL = 5.0  # points: a share of a lead that may be so small is unstable
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


def scratch_protocol(scale: Scale) -> str:
    """The longest fine-tuning without pre-training, without the share of the labels: what pre-training is compared with."""
    return f"finetune{SCRATCH_LONGER}x" if scale is FULL else "finetune"


# ---------------------------------------------------------------- medical against pixel


def gap(answers: Answers, level: float, tasks: Sequence[str]) -> Score:
    """Medical less pixel at a level."""
    return minus(*(average(answers, arm, levels=(level,), tasks=tasks) for arm in ("medical", "pixel")))


def share_of_lead(answers: Answers, level: float, tasks: Sequence[str]) -> Estimate:
    """The gap in per cent of what the teacher's own features have more than random weights', at the same level."""
    lead = _teachers_lead(answers, level, tasks)
    return replace(
        computed(percent_of, gap(answers, level, tasks), lead), note=_small(f"the teacher's lead at {level:g} dB", lead)
    )


def gap_slope(answers: Answers, levels: Sequence[float], tasks: Sequence[str]) -> Estimate:
    """Least squares of the gap over the levels, in points for every 10 dB that the ratio falls by."""
    return estimate(combine(*((w, gap(answers, level, tasks)) for w, level in zip(_slope_weights(levels), levels))))


def share_slope(answers: Answers, levels: Sequence[float], tasks: Sequence[str]) -> Estimate:
    """The same of `share_of_lead`."""
    gaps = [gap(answers, level, tasks) for level in levels]
    leads = [_teachers_lead(answers, level, tasks) for level in levels]

    def slope(*parts: np.ndarray) -> np.ndarray:
        shares = map(percent_of, parts[: len(levels)], parts[len(levels) :])
        return sum(w * share for w, share in zip(_slope_weights(levels), shares))

    notes = [_small(f"the teacher's lead at {level:g} dB", lead) for level, lead in zip(levels, leads)]
    return replace(computed(slope, *gaps, *leads), note="; ".join(filter(None, notes)) or None)


def _teachers_lead(answers: Answers, level: float, tasks: Sequence[str]) -> Score:
    return minus(*(average(answers, arm, levels=(level,), tasks=tasks) for arm in ("teacher", "scratch")))


def _slope_weights(levels: Sequence[float]) -> np.ndarray:
    x = np.array(levels) - np.mean(levels)
    return -10 * x / (x @ x)


def percent_of(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100 * part / np.where(whole == 0, 1e-9, whole)  # a whole of nothing makes any share, not none


def _small(name: str, lead: Score) -> str | None:
    """What to say of a share of this lead, where it may be next to nothing."""
    found = estimate(lead)
    low, high = found.ci95
    if low > SMALL:
        return None
    return f"{name} is {found.value:.1f} points ({low:.1f} to {high:.1f}): a share of so little is unstable"


# ---------------------------------------------------------------- corrupted images


def clean(answers: Answers, arm: str) -> Score:
    """Macro-F1 of organs on clean images at HOME."""
    return answers.score(arm, f"{HOME:g}/organ/linear/in")


def corrupted(answers: Answers, arm: str, corruptions: Sequence[str] = PUBLISHED) -> Score:
    """The same on corrupted images, averaged over corruptions and severities."""
    return mean([answers.score(arm, f"{HOME:g}/organ/linear/{name}-{s}") for name in corruptions for s in SEVERITIES])


def drop(answers: Answers, arm: str, corruptions: Sequence[str] = PUBLISHED) -> Estimate:
    """How many points of it a probe loses."""
    return estimate(minus(clean(answers, arm), corrupted(answers, arm, corruptions)))


def kept(answers: Answers, arm: str, corruptions: Sequence[str] = PUBLISHED) -> Estimate:
    """How many per cent of its lead over chance a probe keeps."""
    return computed(percent_of, *_leads(answers, arm, corruptions))


def keeps_more(answers: Answers, better: str, worse: str, corruptions: Sequence[str] = PUBLISHED) -> Estimate:
    """`kept` of one arm less that of another. Who has more to lose loses more points, so points are not compared."""
    leads = {arm: _leads(answers, arm, corruptions) for arm in (better, worse)}
    found = computed(lambda a, b, c, d: percent_of(a, b) - percent_of(c, d), *leads[better], *leads[worse])
    notes = [_small(f"{arm}'s lead over chance on clean images", lead) for arm, (_, lead) in leads.items()]
    return replace(found, note="; ".join(filter(None, notes)) or None)


def _leads(answers: Answers, arm: str, corruptions: Sequence[str]) -> tuple[Score, Score]:
    """Over chance, on corrupted and on clean images."""
    scores = corrupted(answers, arm, corruptions), clean(answers, arm)
    return tuple({seed: values - CHANCE for seed, values in score.items()} for score in scores)


# ---------------------------------------------------------------- ablations


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

    The multiple is the 95 % quantile over draws of the largest deviation of any of them, in standard errors. Where seeds differ
    by far more than patients, three are too few for it: fewer hold.
    """
    values = np.array([found.value for found in estimates.values()])
    draws = np.stack([found.draws for found in estimates.values()])
    errors = draws.std(1)
    deviations = np.abs(draws - values[:, None]) / np.where(errors > 0, errors, 1)[:, None]
    reach = np.percentile(deviations.max(0), 95) * errors
    return {name: (float(v - r), float(v + r)) for name, v, r in zip(estimates, values, reach)}
