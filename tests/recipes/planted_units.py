# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Units of `recipes/reproduce.py` whose truth is planted: arms that answer right with a probability that is known."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from modeling_urfm.evaluation.corruptions import PUBLISHED, SEVERITIES
from recipes.reproduction.design import (
    ABLATIONS,
    ARMS,
    AUGMENTED,
    CLAIMED,
    CLEAN,
    CLEAN_ARMS,
    FINETUNE_RATE,
    FINETUNE_RATES,
    FULL,
    HOME,
    LONGER,
    LOW,
    SCRATCH_LONGER,
    SCRATCH_LONGER_RATE,
    Scale,
)
from recipes.reproduction.units import Unit, encode, encode_dice, fingerprint, plan


CLASSES = {"organ": 15, "lesion": 3}
# (arm, level, task, protocol, side) to the probability of a right answer, or the mean Dice.
Skill = Callable[[str, float, str, str, str], float]


def truth_of(scale: Scale) -> dict[str, np.ndarray]:
    sizes = {
        "organ/in": scale.organ[2],
        "organ/out": scale.organ[3],
        "lesion/in": scale.lesion[2],
        "lesion/out": scale.lesion[3],
    }
    return {name: np.arange(size) % CLASSES[name.split("/")[0]] for name, size in sizes.items()}


def planted_units(scale: Scale, skill: Skill, spread: float = 0.0, rng_seed: int = 0) -> dict[str, dict]:
    """All units of a scale: name to content, with the keys that `units.run_unit` gives.

    Args:
        spread: standard deviation over seeds that is added to every skill of a unit.
    """
    rng, truth = np.random.default_rng(rng_seed), truth_of(scale)
    return {unit.name: _unit(unit, scale, skill, spread, truth, rng) for unit in plan(scale)}


def _unit(unit: Unit, scale: Scale, skill: Skill, spread: float, truth: dict, rng: np.random.Generator) -> dict:
    content = {
        "unit": asdict(unit), "scale": scale.name, "fingerprint": fingerprint(scale), "command": "python recipes/reproduce.py",
        "versions": {"urfm": "0.1.0", "torch": "2.6.0", "python": "3.11.7"}, "seed": unit.seed or 0,
        "timings": {"total_s": 100.0, "cpu_s": 90.0},
    }  # fmt: skip
    if unit.kind == "data":
        return content | {
            "truth": {k: encode(v) for k, v in truth.items()},
            "crops": 12_000, "teacher_cpu_s": 12.0, "floor": {"constant": -0.3, "position": -0.4},
        }  # fmt: skip
    if unit.kind == "tune":
        tried = [
            {"learning_rate": rate, "mask_ratio": ratio, "organ": 0.5, "lesion": 0.4, "score": 0.45 + ratio / 10 + rate}
            for rate in (5e-4, 1e-3, 2e-3, 4e-3) for ratio in (0.5, 0.75)
        ]  # fmt: skip
        if unit.subject.startswith("finetune"):
            kinds = tuple(FINETUNE_RATE) if unit.subject == "finetune" else ("scratch",)
            tried = [
                {"kind": kind, "learning_rate": rate, "score": 0.5 + 10 * rate * (rate < 1e-3)}
                for kind in kinds for rate in FINETUNE_RATES
            ]  # fmt: skip
            best = {kind: max((t for t in tried if t["kind"] == kind), key=lambda t: t["score"]) for kind in kinds}
            return content | {"level": HOME, "tried": tried, "best": best}
        return content | {"level": CLEAN if "clean" in unit.subject else HOME, "tried": tried, "best": tried[-1]}
    shift, answers = spread * rng.standard_normal(), {}
    for key in keys_of(unit, scale):
        level, task, protocol, side = key.split("/")
        p = float(np.clip(skill(unit.subject, float(level), task, f"{protocol}/{side}", side) + shift, 0, 1))
        if task == "mask":
            answers[key] = encode_dice(np.clip(rng.normal(p, 0.1, 200), 0, 1))
        else:
            right = truth[f"{task}/{'out' if side == 'out' else 'in'}"]
            wrong = (right + rng.integers(1, CLASSES[task], len(right))) % CLASSES[task]
            answers[key] = encode(np.where(rng.random(len(right)) < p, right, wrong))
    arm = {**ARMS, **AUGMENTED, **LONGER, **ABLATIONS}.get(unit.subject)
    if arm:
        steps = round(scale.steps * arm.length)
        pixel = arm.targets == "pixel"
        losses = {1: 1.3 if pixel else -0.01} | {
            round(steps * s / 10): (1.3 if pixel else -0.01) - 0.06 * s for s in range(1, 11)
        }
        content |= {"settings": asdict(arm), "pretraining": {
            f"{level:g}": {"steps": steps, "images": steps * scale.batch, "student_cpu_s": steps * (0.05 if pixel else 0.04),
                           "losses": {str(k): v for k, v in losses.items()}}
            for level in _levels(unit, scale)
        }}  # fmt: skip
    if unit.kind == "arm" and unit.subject in CLEAN_ARMS:
        content["settings_clean"] = asdict(CLEAN_ARMS[unit.subject])
    if unit.subject in FINETUNE_RATE:
        content["finetune_rate"] = FINETUNE_RATE[unit.subject]
    if unit.subject == "scratch" and scale is FULL:
        content["finetune_rate_longer"] = SCRATCH_LONGER_RATE
    return content | {"answers": answers}


def _levels(unit: Unit, scale: Scale) -> tuple[float, ...]:
    if unit.kind in ("augmented", "longer", "ablation"):
        return (HOME,)
    everywhere = unit.subject in CLAIMED if unit.kind == "arm" else unit.subject != "teacher-other"
    return tuple(scale.levels) if everywhere else LOW


def keys_of(unit: Unit, scale: Scale) -> list[str]:
    """The questions that a unit answers."""
    home, full = f"{HOME:g}", scale is FULL
    keys = [f"{level:g}/{task}/{protocol}/{side}" for level in _levels(unit, scale) for task in CLASSES
            for protocol in ("linear", "knn") for side in ("in", "out")]  # fmt: skip
    robust = [f"{home}/organ/linear/{name}-{s}" for name in PUBLISHED for s in SEVERITIES]
    if unit.kind in ("ablation", "longer"):
        return keys
    if unit.kind == "augmented":
        return keys + robust
    keys += [
        f"{home}/{task}/linear@{f:g}#{s}/in" for task in CLASSES for f in scale.fractions for s in scale.label_seeds
    ]
    keys += (robust + [f"{home}/mask/linear/{side}" for side in ("in", "out")]) * full
    if unit.kind == "arm":
        steps = [round(share * scale.steps) for share in scale.checkpoints]
        keys += [f"{home}/{task}/linear-step{step}/in" for task in CLASSES for step in steps]
    asked = [("finetune", task) for task in scale.finetune_passes]
    if unit.subject == "scratch" and full:
        asked += [(f"finetune{SCRATCH_LONGER}x", task) for task in ("organ", "lesion")]
    for name, task in asked:
        for fraction in ("1", "0.1")[: 1 if task == "mask" else 2]:
            keys += [f"{home}/{task}/{name}@{fraction}/{side}" for side in ("in", "out")]
            keys += [f"{home}/{task}/{name}@{fraction}-share{look / 6:.2f}/in" for look in range(1, 7)]
    return keys
