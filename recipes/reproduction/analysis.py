# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""From the units' answers to `results.json`: claims, tables, what is missing, and how a run compares with another one."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .claims import judge_all
from .design import (
    ARMS_OF_KIND,
    CLEAN_ARMS,
    DECODER,
    ENCODER,
    FINETUNE_RATE,
    FULL,
    HOME,
    LEARNING_RATES,
    LOW,
    MASK_RATIOS,
    SCRATCH_LONGER_RATE,
    Scale,
)
from .measures import FAILS, HOLDS, UNDECIDED
from .scores import DRAWS, SEED, Answers
from .tables import LABELS, settings, tables
from .units import Unit, command, fingerprint, plan


def read_units(folder: Path) -> dict[str, dict]:
    """The finished units: name to content, in the order of their names.

    Raises:
        FileNotFoundError: there are none. ValueError: a file is damaged.
    """
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))  # .tmp-: being written
    if not files:
        raise FileNotFoundError(f"no finished units in {folder}: run `{command(FULL)}` first (or with --quick).")
    return {path.stem: _read(path) for path in files}


def _read(path: Path) -> dict:
    try:
        unit = json.loads(path.read_text(encoding="utf-8"))
        named, needed = unit["unit"], {"data": "truth", "tune": "tried"}
        content = unit[needed.get(named["kind"], "answers")]
        whole = {"kind", "subject", "seed"} <= set(named) and bool(content) and "scale" in unit
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): {_AGAIN}") from error
    if not whole:
        raise ValueError(f"{path} is damaged (not all of it is there): {_AGAIN}")
    return unit


_AGAIN = "remove it, and the recipe runs the unit again."


def check_units(units: dict[str, dict], scale: Scale) -> None:
    """Are all of one experiment, that which `design.py` describes now?

    Raises:
        ValueError: one is not; names its file.
    """
    planned, design = {unit.name for unit in plan(scale)}, fingerprint(scale)
    for name, unit in units.items():
        named = Unit(*(unit["unit"][field] for field in ("kind", "subject", "seed")))
        if unit["scale"] != scale.name:
            raise ValueError(
                f"{name}.json is of the {unit['scale']} experiment, not of the {scale.name} one: "
                "give each a folder of its own (--output_dir)."
            )
        if name != named.name or name not in planned:
            raise ValueError(f"{name}.json is none of the units of the {scale.name} experiment: remove it.")
        if unit.get("fingerprint") != design:
            raise ValueError(
                f"{name}.json was made by another design ({unit.get('fingerprint')}, this is {design}): {_AGAIN}"
            )
        for kind, (chosen, wanted) in _settings(named, unit).items():
            if chosen != wanted:
                raise ValueError(f"{name}.json has other {kind} than design.py: {_unlike(chosen, wanted)}: {_AGAIN}")


def _settings(named: Unit, unit: dict) -> dict[str, tuple]:
    """What a unit was trained with, and what it should have been."""
    arms = ARMS_OF_KIND.get(named.kind, {})
    found = {}
    if named.subject in arms:
        found["settings"] = unit.get("settings"), asdict(arms[named.subject])
    if named.kind == "arm" and named.subject in CLEAN_ARMS:
        clean = unit.get("settings_clean", unit.get("settings"))
        found["settings of the clean end"] = clean, asdict(CLEAN_ARMS[named.subject])
    if named.subject in FINETUNE_RATE and named.kind != "tune":
        found["rate of fine-tuning"] = unit.get("finetune_rate"), FINETUNE_RATE[named.subject]
    if named.subject == "scratch" and unit["scale"] == FULL.name:
        found["rate of the longer fine-tuning"] = unit.get("finetune_rate_longer"), SCRATCH_LONGER_RATE
    return found


def _unlike(chosen, wanted) -> str:
    if not isinstance(chosen, dict):
        return f"{chosen}, not {wanted}"
    differ = [name for name in sorted({*chosen, *wanted}) if chosen.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {chosen.get(name)}, not {wanted.get(name)}" for name in differ)


def analyse(units: dict[str, dict], scale: Scale) -> dict:
    """Everything that the report shows, as it goes into `results.json`: a function of the units alone.

    Args:
        units: as `read_units` returns them; any of the scale's may be missing, but not all of the kind "data".

    Raises:
        ValueError: units of another scale or design, or that do not agree on the truth.
    """
    check_units(units, scale)
    answers = Answers(units)
    claims, left_out = judge_all(answers, units, scale)
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in (HOLDS, FAILS, UNDECIDED)}
    cpu = [unit["timings"]["cpu_s"] for unit in units.values()]
    return {
        "command": command(scale), "versions": _versions(units), "seed": SEED, "scale": scale.name,
        # Units from before it was noted all ran in bfloat16.
        "precision": " and ".join(sorted({unit.get("precision", "bfloat16") for unit in units.values()})),
        "metrics": {name.replace(" ", "_"): count for name, count in counts.items()},
        "timings": {"units_cpu_h": round(sum(cpu) / 3600, 2), "longest_unit_cpu_s": max(cpu)},
        "claims": claims, "left_out": left_out,
        "design": {
            **asdict(scale), "home": HOME, "low": [level for level in LOW if level in scale.levels], "encoder": ENCODER,
            "decoder": DECODER, "learning_rates": LEARNING_RATES, "mask_ratios": MASK_RATIOS, "draws": DRAWS,
            "test_patients": {name: len(truth) for name, truth in answers.truth.items()}, "settings": settings(answers),
            "settings_clean": settings(answers, "settings_clean"),
        },
        "units": {"done": len(units), "missing": [unit.name for unit in plan(scale) if unit.name not in units]},
        "arms": LABELS, "tables": tables(answers, units, scale),
    }  # fmt: skip


def _versions(units: dict[str, dict]) -> dict[str, str | None]:
    """Of the libraries that the units ran with; both where they differ."""
    found: dict[str, list[str]] = {}
    for unit in units.values():
        for name, version in unit["versions"].items():
            if version and version not in found.setdefault(name, []):
                found[name].append(version)
    return {name: " and ".join(versions) or None for name, versions in found.items()}


def compare_with(results: dict, committed: dict) -> list[dict]:
    """Do the arms of a run stand in the order in which a committed run has them?

    Asked of every level and pair of arms that both have (linear probe, mean of organ and lesion), where the committed
    interval of the difference excludes 0.

    Args:
        results, committed: what `analyse` returned, or as read from `results.json`.

    Returns:
        [{"level", "higher", "lower" (of the committed run), "committed", "here": the difference's cells, "same": whether
        the order is the same here, "agrees": whether it is within the interval here}]
    """
    here = {(row["level"], row["a"], row["b"]): row["cell"] for row in results["tables"]["pairs"]}
    compared = []
    for row in committed["tables"]["pairs"]:
        cell = here.get((row["level"], row["a"], row["b"]))
        low, high = row["cell"]["ci95"]
        if cell is None or not (low > 0 or high < 0):
            continue
        sign, names = (1, (row["a"], row["b"])) if low > 0 else (-1, (row["b"], row["a"]))
        ours, theirs = _turned(cell, sign), _turned(row["cell"], sign)
        compared.append({
            "level": row["level"], "higher": names[0], "lower": names[1], "committed": theirs, "here": ours,
            "same": ours["value"] > 0, "agrees": ours["ci95"][1] >= 0,
        })  # fmt: skip
    return compared


def _turned(cell: dict, sign: int) -> dict:
    """The cell of the difference the other way round, where `sign` is -1."""
    ends: Sequence[float] = sorted(sign * end for end in cell["ci95"])
    return {**cell, "value": sign * cell["value"], "ci95": list(ends)}
