# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Tables and curves of the report: every number with its interval, its deviation over seeds and how many seeds it has.

A row is {"arm", "label", "cells": {column: cell}} with `Estimate.cell`s; what an arm was not asked has no cell, and an arm that
was asked nothing has no row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from modeling_urfm.evaluation.corruptions import PUBLISHED, SEVERITIES

from .curves import Curve, finetuning_curve, label_curve, teacher_seconds, training_cost, training_curve
from .design import ARMS, AUGMENTED, HOME, LONGER, SCRATCH_LONGER, TUNED, Scale
from .measures import (
    BOTH,
    ablation_differences,
    average,
    clean,
    drop,
    gap,
    kept,
    scratch_protocol,
    share_of_lead,
    shown,
    simultaneous,
    verdict,
)
from .scores import Answers, Estimate, Missing, Score, estimate, minus


# Arms in the order of the tables, in plain words. The teacher is first: what it cannot see no student learns from it.
LABELS = {
    "teacher": "the medical teacher itself",
    "teacher-other": "the other domain's teacher itself",
    "scratch": "no pre-training",
    "medical": "medical teacher's features (URFM)",
    "frames": "medical, averaged over frames",
    "other": "other domain's teacher's features",
    "random": "untrained teacher's features",
    "pixel": "pixels (MAE)",
    "deblur": "pixels, deblurred (DeblurringMIM)",
    "medical-augmented": "medical, with augmentation",
    "pixel-augmented": "pixels, with augmentation",
    "medical-longer": f"medical, {LONGER['medical-longer'].length:g} times the steps",
    "pixel-longer": f"pixels, {LONGER['pixel-longer'].length:g} times the steps",
}
# The same units as of "scratch", asked once more after a longer fine-tuning.
LONGER_SCRATCH = {"arm": "scratch-longer", "label": f"no pre-training, fine-tuned {SCRATCH_LONGER} times as long"}
COMPARED = tuple(arm for arm in LABELS if arm not in (*AUGMENTED, *LONGER))
SETS = {"mean": BOTH, "organ": ("organ",), "lesion": ("lesion",)}
WITH_TEACHER = ("medical", "other", "random")  # whose targets are a network's features


def tables(answers: Answers, units: dict[str, dict], scale: Scale) -> dict:
    """All of them: name to rows, or for "training" and "finetuning" to curves."""
    return {
        "frozen": frozen(answers, scale),
        "finetuned": finetuned(answers, scale),
        "labels": labels(answers, scale),
        "robustness": robustness(answers),
        "gaps": gaps(answers, scale),
        "pairs": pairs(answers, scale),
        "ablations": ablations(answers),
        "tuning": tuning(units),
        "pretraining": pretraining(answers, units, scale),
        "training": _curves(COMPARED, lambda arm: training_points(answers, units, arm)),
        "finetuning": finetuning(answers),
    }


def frozen(answers: Answers, scale: Scale) -> list[dict]:
    """Columns "LEVEL/TASK/PROTOCOL/SIDE", task "mean" (of organ and lesion), "organ" or "lesion"; and "HOME/mask/linear/SIDE"."""
    asked = {
        f"{level:g}/{task}/{protocol}/{side}": (protocol, side, (level,), tasks)
        for level in scale.levels for task, tasks in SETS.items() for protocol in ("linear", "knn") for side in ("in", "out")
    }  # fmt: skip
    asked |= {f"{HOME:g}/mask/linear/{side}": ("linear", side, (HOME,), ("mask",)) for side in ("in", "out")}
    return _rows(LABELS, asked, lambda arm, how: average(answers, arm, *how))


def finetuned(answers: Answers, scale: Scale) -> list[dict]:
    """Columns "TASK/finetune@SHARE/SIDE"; the longer fine-tuning without pre-training is a row of its own."""

    def rows(arms: Iterable[str], protocol: str) -> list[dict]:
        asked = {
            f"{task}/finetune@{share}/{side}": (f"{protocol}@{share}", side, (HOME,), tasks)
            for task, tasks in (SETS | {"mask": ("mask",)}).items() for share in (1, 0.1) for side in ("in", "out")
        }  # fmt: skip
        return _rows(arms, asked, lambda arm, how: average(answers, arm, *how))

    found = rows(LABELS, "finetune")
    longer = scratch_protocol(scale)
    again = [row | LONGER_SCRATCH for row in rows(("scratch",), longer)] if longer != "finetune" else []
    place = next((i for i, row in enumerate(found) if row["arm"] == "scratch"), -1) + 1  # below the shorter one
    return [*found[:place], *again, *found[place:]]


def finetuning(answers: Answers) -> list[dict]:
    """Organs over the share of the usual fine-tuning; without pre-training it is also longer."""
    curves = _curves(COMPARED, lambda arm: _points(finetuning_curve(answers, arm, "organ")))
    longer = _curves(("scratch",), lambda arm: _points(finetuning_curve(answers, arm, "organ", SCRATCH_LONGER)))
    return curves + [curve | LONGER_SCRATCH for curve in longer]


def labels(answers: Answers, scale: Scale) -> list[dict]:
    """Linear probes on shares of the labels: for each task the points of a curve, {"x": share, "cell"}."""
    rows = []
    for arm in COMPARED:
        found = {}
        for task in BOTH:
            try:
                found[task] = _points(label_curve(answers, arm, task, scale))
            except Missing:
                continue
        if any(len(points) > 1 for points in found.values()):
            rows.append({"arm": arm, "label": LABELS[arm], "tasks": found})
    return rows


def robustness(answers: Answers) -> list[dict]:
    """Organs at HOME: columns "clean", "CORRUPTION-SEVERITY" (macro-F1), "drop/CORRUPTION" and "kept/CORRUPTION".

    The last two are means over severities: points lost, and per cent of the lead over chance that is kept.
    """
    asked = {f"{name}-{severity}": f"{name}-{severity}" for name in PUBLISHED for severity in SEVERITIES}
    means = {f"{kind}/{name}": (of, name) for kind, of in (("drop", drop), ("kept", kept)) for name in PUBLISHED}
    rows = _rows(LABELS, asked, lambda arm, side: answers.score(arm, f"{HOME:g}/organ/linear/{side}"))
    for row in rows:
        row["cells"] = {"clean": _of_score(clean(answers, row["arm"])).cell()} | row["cells"]
        row["cells"] |= _cells(means, lambda how, arm=row["arm"]: how[0](answers, arm, (how[1],)))
    return rows


def gaps(answers: Answers, scale: Scale) -> list[dict]:
    """Medical less pixel, linear probe in distribution, at every level: {"level", "cells"}.

    Columns "mean", "organ" and "lesion" in points, and "share/mean" and so on: in per cent of the teacher's lead over random
    weights.
    """
    rows = []
    for level in scale.levels:
        cells = _cells(SETS, lambda tasks, level=level: estimate(gap(answers, level, tasks)))
        shares = _cells(SETS, lambda tasks, level=level: share_of_lead(answers, level, tasks))
        if cells:
            rows.append({"level": level, "cells": cells | {f"share/{task}": cell for task, cell in shares.items()}})
    return rows


def pairs(answers: Answers, scale: Scale) -> list[dict]:
    """Arm a less arm b, linear probe in distribution, mean of organ and lesion, at every level: {"level", "a", "b", "cell"}."""
    rows = []
    for level in scale.levels:
        for a, b in combinations(COMPARED, 2):
            try:
                difference = minus(*(average(answers, arm, levels=(level,)) for arm in (a, b)))
            except Missing:
                continue
            rows.append({"level": level, "a": a, "b": b, "cell": estimate(difference).cell()})
    return rows


def ablations(answers: Answers) -> list[dict]:
    """Each variant less the baseline, the best first; `ci95_all` holds for all of them together."""
    found = ablation_differences(answers)
    together = simultaneous(found) if found else {}
    rows = []
    for name in sorted(found, key=lambda name: -found[name].value):
        low, high = together[name]
        rows.append({
            "name": name, "verdict": verdict(found[name]), **found[name].cell(), "seeds": list(found[name].seeds),
            "shown": shown(found[name]), "ci95_all": [round(low, 3), round(high, 3)],
        })  # fmt: skip
    return rows


# ---------------------------------------------------------------- how it was trained


def training_points(answers: Answers, units: dict[str, dict], arm: str) -> list[dict]:
    """Linear probe (organs) over pre-training: {"x": steps, "cell", "cpu_s", "cpu_s_cached"}.

    `cpu_s` counts the teacher on every image, `cpu_s_cached` not at all.
    """
    cost = training_cost(answers, arm)
    try:
        online = cost["images"] * teacher_seconds(units) if _has_teacher(answers, arm) else 0.0
    except Missing:
        online = float("nan")
    points = _points(training_curve(answers, arm, "organ"))
    for point in points:
        share = point["x"] / cost["steps"]
        point["cpu_s"] = round(share * (cost["student_cpu_s"] + online), 2)
        point["cpu_s_cached"] = round(share * cost["student_cpu_s"], 2)
    return points


def pretraining(answers: Answers, units: dict[str, dict], scale: Scale) -> list[dict]:
    """Steps, images, CPU seconds and loss of every arm and level; means over seeds.

    `late` is the part of the whole fall of the loss that its last quarter brought: near 0 where the loss is at its floor.
    `blind` is the loss of a student that knows a patch's place and nothing of the image, where that was computed.
    """
    rows = []
    for arm, by_seed in answers.units.items():
        for level in scale.levels:
            runs = [unit.get("pretraining", {}).get(f"{level:g}") for unit in by_seed.values()]
            runs = [run for run in runs if run]
            if not runs:
                continue
            teacher = 0.0
            if _has_teacher(answers, arm):
                try:
                    teacher = runs[0]["images"] * teacher_seconds(units, level)
                except Missing:
                    teacher = float("nan")
            losses = np.array([_losses(run, _cosine(answers, arm)) for run in runs])
            first, late, last = losses.mean(0)
            rows.append({
                "arm": arm, "label": LABELS.get(arm, arm), "level": level, "seeds": len(runs), "steps": runs[0]["steps"],
                "images": runs[0]["images"], "student_cpu_s": round(float(np.mean([r["student_cpu_s"] for r in runs])), 1),
                "teacher_cpu_s": round(teacher, 1), "loss_first": round(first, 4), "loss_last": round(last, 4),
                "blind": _blind(units, level, settings(answers)[arm]), "ratio": round(last / first, 3),
                "late": round((late - last) / (first - last), 3) if first != last else None,
            })  # fmt: skip
    return sorted(rows, key=lambda row: list(LABELS).index(row["arm"]) if row["arm"] in LABELS else len(LABELS))


def _losses(run: dict, cosine: bool) -> tuple[float, float, float]:
    """First, at three quarters of the steps, and last; 1 + loss of a cosine, so that 0 is its floor."""
    steps = sorted(map(int, run["losses"]))
    values = np.array([run["losses"][str(step)] for step in steps]) + cosine
    return float(values[0]), float(np.interp(0.75 * steps[-1], steps, values)), float(values[-1])


def _blind(units: dict[str, dict], level: float, chosen: dict) -> float | None:
    """Of plain targets of the medical teacher, 1 - cosine."""
    other = ("targets", "layer", "normalize", "average_frames")
    if any(chosen[name] != getattr(ARMS["medical"], name) for name in other) or "loss_type" in chosen["model"]:
        return None
    for unit in units.values():
        if unit["unit"]["kind"] == "data" and float(unit["unit"]["subject"]) == level and "floor" in unit:
            return round(1 + unit["floor"]["position"], 4)
    return None


def settings(answers: Answers, which: str = "settings") -> dict[str, dict]:
    """Of every arm, as its units have them; "settings_clean" are those of the clean end, where they were tuned apart."""
    found = {arm: next(iter(by_seed.values())).get(which) for arm, by_seed in answers.units.items()}
    return {arm: chosen for arm, chosen in found.items() if chosen}


def _has_teacher(answers: Answers, arm: str) -> bool:
    return settings(answers).get(arm, {}).get("targets") in WITH_TEACHER


def _cosine(answers: Answers, arm: str) -> bool:
    return _has_teacher(answers, arm) and settings(answers)[arm]["model"].get("loss_type", "cosine") == "cosine"


def tuning(units: dict[str, dict]) -> list[dict]:
    """What each kind of target, and each kind of fine-tuned encoder, was given to choose from, and what was best on validation.

    {"subject", "level", "seed", "tried": [{..., "score" in points, "chosen"}]}
    """
    rows = []
    for unit in units.values():
        if unit["unit"]["kind"] == "tune":
            best = unit["best"]
            chosen = [best] if "score" in best else list(best.values())  # one a kind of encoder
            tried = [
                {
                    name: round(100 * value, 2) if name in ("score", *BOTH) else value
                    for name, value in candidate.items()
                }
                | {"chosen": candidate in chosen}
                for candidate in unit["tried"]
            ]
            subject, seed = unit["unit"]["subject"], unit["unit"]["seed"]
            rows.append({"subject": subject, "level": unit["level"], "seed": seed, "tried": tried})
    return sorted(rows, key=lambda row: TUNED.index(row["subject"]))


# ---------------------------------------------------------------- rows


def _rows(arms: Iterable[str], asked: dict[str, object], score: Callable[[str, object], Score]) -> list[dict]:
    rows = []
    for arm in arms:
        cells = _cells(asked, lambda how, arm=arm: _of_score(score(arm, how)))
        if cells:
            rows.append({"arm": arm, "label": LABELS[arm], "cells": cells})
    return rows


def _cells(asked: dict[str, object], measure: Callable[[object], Estimate]) -> dict[str, dict]:
    """Column to cell, of those columns that can be measured."""
    cells = {}
    for column, how in asked.items():
        try:
            cells[column] = measure(how).cell()
        except Missing:
            continue
    return cells


def _points(curve: Curve) -> list[dict]:
    return [{"x": round(x, 5), "cell": _of_score(score).cell()} for x, score in curve]


def _of_score(score: Score) -> Estimate:
    """Seeds' weights may be negative, so that a draw may pass what a score can be."""
    found = estimate(score)
    return replace(found, draws=found.draws.clip(0, 100))


def _curves(arms: Sequence[str], of: Callable[[str], list[dict]]) -> list[dict]:
    curves = []
    for arm in arms:
        try:
            curves.append({"arm": arm, "label": LABELS[arm], "points": of(arm)})
        except Missing:
            continue
    return curves
