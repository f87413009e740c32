# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Scores along an axis (labels, steps, fine-tuning), where they reach another arm's score, and what a step costs."""

import re
from dataclasses import replace

import numpy as np

from modeling_urfm.data.phantoms import ORGANS

from .design import HOME, Scale
from .scores import Answers, Estimate, Missing, Score, computed, mean


# x of a point, rising and above 0, and the score there.
Curve = list[tuple[float, Score]]


def label_curve(answers: Answers, arm: str, task: str, scale: Scale) -> Curve:
    """Linear probe, in distribution at HOME, over the share of the labels in (0, 1], averaged over draws of the labels."""
    points = []
    for fraction in scale.fractions:
        keys = [f"{HOME:g}/{task}/linear@{fraction:g}#{draw}/in" for draw in scale.label_seeds]
        present = [key for key in keys if answers.has(arm, key)]
        if present:
            share = share_of_organs(fraction, scale) if task == "organ" else fraction
            points.append((share, mean([answers.score(arm, key) for key in present])))
    return points + [(1.0, answers.score(arm, f"{HOME:g}/{task}/linear/in"))]


def share_of_organs(fraction: float, scale: Scale) -> float:
    """What a share of the organs' labels is in truth: every organ keeps one at least, and all have equally many."""
    each = scale.organ[0] / len(ORGANS)
    return max(1, round(each * fraction)) / each


def training_curve(answers: Answers, arm: str, task: str) -> Curve:
    """Linear probe, in distribution at HOME, over pre-training steps."""
    steps = {
        int(found[1])
        for unit in answers.units.get(arm, {}).values()
        for key in unit["answers"]
        if (found := re.fullmatch(f"{HOME:g}/{task}/linear-step(\\d+)/in", key))
    }
    last = training_cost(answers, arm)["steps"]
    points = [(step, answers.score(arm, f"{HOME:g}/{task}/linear-step{step}/in")) for step in sorted(steps - {last})]
    return points + [(last, answers.score(arm, f"{HOME:g}/{task}/linear/in"))]


def finetuning_curve(answers: Answers, arm: str, task: str, longer: int = 1) -> Curve:
    """Full fine-tuning on all labels, in distribution at HOME, over the share of the usual fine-tuning in (0, `longer`]."""
    protocol = f"finetune{longer}x@1" if longer > 1 else "finetune@1"
    shares = {
        found[1]
        for unit in answers.units.get(arm, {}).values()
        for key in unit["answers"]
        if (found := re.fullmatch(f"{HOME:g}/{task}/{protocol}-share([\\d.]+)/in", key))
    }
    if not shares:
        raise Missing(f"{arm} was not fine-tuned on {task}s" + (f" {longer} times as long" if longer > 1 else ""))
    keys = {share: f"{HOME:g}/{task}/{protocol}-share{share}/in" for share in sorted(shares)}
    return [(longer * float(share), answers.score(arm, key)) for share, key in keys.items()]


def reaching(curve: Curve, target: Score) -> Estimate:
    """The x at which a curve first reaches the target, interpolated on a logarithmic axis.

    The smallest x of the curve where that is enough already, infinity where none is.

    Raises:
        Missing: the curve has fewer than two points, or no seed has all of it.
    """
    if len(curve) < 2:
        raise Missing("the arm was looked at once only, at the end")
    x = np.array([x for x, _ in curve])
    found = computed(
        lambda *lines: first_reached(x, np.stack(lines[:-1], axis=1), lines[-1]), *(score for _, score in curve), target
    )
    return replace(found, least=float(x[0]), most=float(x[-1]))


def first_reached(x: np.ndarray, curves: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The x, on a logarithmic axis, at which each of (curves, points) first reaches its target: (curves,).

    The first x where it begins at or above it, infinity where it never gets there.
    """
    reached = curves >= targets[:, None]
    right = reached.argmax(1)
    left, row = np.maximum(right - 1, 0), np.arange(len(curves))
    below, above = curves[row, left], curves[row, right]
    share = np.where(right > 0, (targets - below) / np.where(above > below, above - below, 1), 1.0)
    found = np.exp(np.log(x[left]) + share * (np.log(x[right]) - np.log(x[left])))
    return np.where(reached.any(1), np.where(right > 0, found, x[0]), np.inf)


def scaled(found: Estimate, factor: float, note: str | None = None) -> Estimate:
    """What `reaching` found, times a number that is known without error."""
    by_seed = tuple(factor * value for value in found.by_seed)
    return replace(
        found, value=factor * found.value, draws=factor * found.draws, by_seed=by_seed, note=note,
        least=factor * found.least, most=factor * found.most,
    )  # fmt: skip


# ---------------------------------------------------------------- what training costs


def training_cost(answers: Answers, arm: str, level: float = HOME) -> dict:
    """{"steps", "images", "student_cpu_s"} of an arm's pre-training, the seconds averaged over seeds.

    Raises:
        Missing: it was not pre-trained at this level.
    """
    runs = [unit.get("pretraining", {}).get(f"{level:g}") for unit in answers.units.get(arm, {}).values()]
    runs = [run for run in runs if run]
    if not runs:
        raise Missing(f"no pre-training of {arm} at {level:g} dB")
    seconds = float(np.mean([run["student_cpu_s"] for run in runs]))
    return {"steps": runs[0]["steps"], "images": runs[0]["images"], "student_cpu_s": seconds}


def teacher_seconds(units: dict[str, dict], level: float = HOME) -> float:
    """CPU seconds that the teacher takes an image, measured over a whole corpus.

    Raises:
        Missing: the level has no unit of data.
    """
    for unit in units.values():
        if unit["unit"]["kind"] == "data" and float(unit["unit"]["subject"]) == level:
            return unit["teacher_cpu_s"] / unit["crops"]
    raise Missing(f"no data at {level:g} dB")
