# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Encoders against each other, on the same images: paired tests, ranks over tasks, and results of an earlier run."""

import hashlib
import json
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from .protocols import PRIMARY, Outcome, Sides
from .scores import decision_scores, nan_mean, regression_scores
from .statistics import check_same_split, friedman_nemenyi, holm, paired_bootstrap


# The protocol whose score a task is ranked by.
RANKED = {"classification": "linear", "multilabel": "linear", "regression": "linear", "segmentation": "segmentation"}


def compared_by(task: str, outcome: Outcome) -> str:
    """The score that a protocol's outcomes are compared by."""
    return outcome.names[0] if outcome.names else PRIMARY[task]


def compare_encoders(sides: Sides, outcomes: Mapping[str, Outcome], draws: int = 2000) -> list[dict]:
    """Paired bootstrap over the test patients for every pair of encoders, p values adjusted by Holm over the pairs.

    Scores are means over seeds. A collapsed probe is in no pair.

    Args:
        outcomes: encoder to its outcome, all of one protocol on the test images of `sides`.

    Returns:
        [{"a", "b", "metric", "difference": a less b, "ci95", "p", "p_holm"}]
    """
    standing = {name: outcome for name, outcome in outcomes.items() if not outcome.facts["collapsed"]}
    labels, patients = sides.labels[sides.test], sides.patients[sides.test]
    answers = {name: _answers(sides.task, outcome) for name, outcome in standing.items()}

    def mean_over_seeds(outcome_answers, rows) -> float:
        by_image, values = outcome_answers
        if by_image:
            return nan_mean(values[:, rows].ravel())
        return float(np.mean([_primary(sides, labels[rows], part[rows]) for part in values]))

    pairs = []
    for a, b in combinations(standing, 2):
        metric = compared_by(sides.task, standing[a])
        test = paired_bootstrap(mean_over_seeds, answers[a], answers[b], patients, draws=draws)
        pairs.append({"a": a, "b": b, "metric": metric, **test})
    for pair, adjusted in zip(pairs, holm([pair["p"] for pair in pairs])):
        pair["p_holm"] = float(adjusted)
    return pairs


def _answers(task: str, outcome: Outcome) -> tuple[bool, np.ndarray]:
    """Whether values are scores of images, and (seeds, images, ...) values: decided once, as a test draws thousands."""
    if outcome.names:
        return True, outcome.outputs[:, :, 0]
    if task == "classification":
        return False, outcome.outputs.argmax(-1)
    return False, outcome.outputs >= outcome.thresholds[:, None] if task == "multilabel" else outcome.outputs


def _primary(sides: Sides, labels: np.ndarray, answers: np.ndarray) -> float:
    if sides.task == "classification":
        return decision_scores(labels, answers, sides.num_outputs)["macro_f1"]
    if sides.task == "regression":
        return regression_scores(labels, answers)["r2"]
    with np.errstate(invalid="ignore"):  # as `multilabel_scores`, without the scores of a ranking
        return nan_mean(2 * (answers & (labels > 0.5)).sum(0) / (answers.sum(0) + (labels > 0.5).sum(0)))


def rank_encoders(datasets: Mapping[str, dict], encoders: list[str]) -> dict | None:
    """Mean ranks over tasks, with Friedman's test and Nemenyi's critical difference; None without two encoders.

    A task counts where every encoder was evaluated; a collapsed probe ranks last.

    Args:
        datasets: of `results.json`: name to {"task", "encoders": {encoder: {protocol: facts}}}.
    """
    tasks, table = [], []
    for name, entry in datasets.items():
        protocol, metric = RANKED[entry["task"]], PRIMARY[entry["task"]]
        found = [entry["encoders"].get(encoder, {}).get(protocol) for encoder in encoders]
        if all(found):
            tasks.append(name)
            table.append([np.nan if f["collapsed"] else f["scores"][metric]["mean"] for f in found])
    if not tasks or len(encoders) < 2:
        return None
    return {"tasks": tasks, **friedman_nemenyi(np.array(table), encoders)}


# ---------------------------------------------------------------- kept for later comparisons


def labels_fingerprint(labels: np.ndarray, test: np.ndarray) -> str:
    """Of the test images' labels: two runs with the same images may still ask for different things."""
    return hashlib.sha256(np.ascontiguousarray(labels[test]).tobytes()).hexdigest()[:16]


def save_outputs(folder: Path, name: str, outcome: Outcome, ids: list[str]) -> str:
    """Write an outcome's outputs; returns the file's name. `ids` are those of the test images."""
    folder.mkdir(parents=True, exist_ok=True)
    safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
    path = folder / f"{safe[-80:]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.npz"
    limits = {} if outcome.thresholds is None else {"thresholds": outcome.thresholds}
    temporary = path.with_name(f".tmp-{path.name}")
    np.savez_compressed(
        temporary, outputs=outcome.outputs.astype(np.float32), names=np.array(outcome.names, dtype=str),
        ids=np.array(ids, dtype=str), **limits,
    )  # fmt: skip
    os.replace(temporary, path)
    return path.name


def load_outputs(path: Path, facts: dict, ids: list[str]) -> Outcome:
    """What `save_outputs` wrote, of the same test images in the same order; ValueError if they differ."""
    with np.load(path) as kept:
        if kept["ids"].tolist() != list(ids):
            raise ValueError(f"{path} is of other test images than this run's, or they stand in another order.")
        thresholds = kept["thresholds"] if "thresholds" in kept else None
        return Outcome(facts, kept["outputs"], thresholds, tuple(kept["names"].tolist()))


def read_other(path: Path, datasets: Mapping[str, dict]) -> dict:
    """The data sets of an earlier `results.json` that this run has too, once it is certain that they are the same.

    Args:
        path: of `results.json`, or its folder. datasets: of this run: name to {"split_fingerprint", "labels_fingerprint",
            "fingerprint"}.

    Raises:
        ValueError: a data set of the same name was split otherwise, has other labels or images, or none is of the same
            name.
    """
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"--compare_with {path}: no such file; give the output folder of recipes/evaluate.py.")
    other = json.loads(path.read_text())["metrics"].get("datasets", {})
    shared = {name: entry for name, entry in other.items() if name in datasets}
    if not shared:
        raise ValueError(
            f"{path} and this run have no data set in common: {', '.join(other) or 'none'} there, "
            f"{', '.join(datasets)} here. --datasets must be written alike."
        )
    for name, entry in shared.items():
        described = [
            {"name": f"{name} {where}", **{k: e[k] for k in ("split_fingerprint", "images", "splits") if k in e}}
            for where, e in (("of this run", datasets[name]), (f"of {path}", entry))
        ]
        check_same_split(*described)
        if entry["labels_fingerprint"] != datasets[name]["labels_fingerprint"]:
            raise ValueError(f"{name} has other labels in {path} than in this run, so they cannot be compared.")
        if entry["fingerprint"] != datasets[name]["fingerprint"]:
            raise ValueError(
                f"{name} has the same split in {path} as in this run, but images, training labels or patients differ, so they "
                "cannot be compared."
            )
    encoders = {name: entry | {"encoders": _undefined(entry["encoders"])} for name, entry in shared.items()}
    return {"folder": path.parent, "datasets": encoders}


def _undefined(facts):
    """Facts as they were before JSON, which has null for a number that is not defined."""
    if isinstance(facts, dict):
        return {name: _undefined(part) for name, part in facts.items()}
    if isinstance(facts, list):
        return [_undefined(part) for part in facts]
    return float("nan") if facts is None else facts


def short_names(folders: list[Path]) -> list[str]:
    """What to call other runs: their folders' last parts where these differ, else the whole."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
