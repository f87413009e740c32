# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What is done with an encoder's frozen features, the same for every encoder: protocols, and their scores with intervals.

Every protocol trains on the training split, chooses on the validation split and scores the test split once. A probe that
gives one answer to everything has collapsed: that is what is reported, and its score stands in no table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.splits import few_shot_rows, label_fraction_rows
from .corruptions import CORRUPTIONS, SEVERITIES, Corruption
from .intervals import bootstrap_scores
from .linear_probe import SWEEP, USJEPA, LinearProbe, ProbeSettings, Scaling, fit_linear_probe
from .retrieval import average_precisions, hits_at, knn_votes
from .scores import choose_thresholds, classification_scores, is_collapsed, multilabel_scores, regression_scores
from .statistics import summarise


SEEDS = (0, 1, 2, 3, 4)
FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
SHOTS = (1, 5, 10)
# What a protocol is good for, and those that are run when none is named.
PROTOCOLS = {
    "knn": ("classification", "multilabel", "regression"),
    "linear": ("classification", "multilabel", "regression"),
    "linear_usjepa": ("classification",),
    "attentive": ("classification", "multilabel", "regression"),
    "few_shot": ("classification",),
    "label_efficiency": ("classification", "multilabel", "regression"),
    "retrieval": ("classification",),
    "segmentation": ("segmentation",),
    "robustness": ("classification", "multilabel", "regression", "segmentation"),
}
ON_REQUEST = (
    "linear_usjepa",
    "attentive",
)  # the one is for a comparison with a published table, the other needs all tokens
# The score that encoders are compared and ranked by: higher is better.
PRIMARY = {"classification": "macro_f1", "multilabel": "macro_f1", "regression": "r2", "segmentation": "dice"}


def protocols_for(task: str, asked: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Protocols to run for a task, and of those asked for that do not fit it, why: ([name], {name: reason})."""
    names = [p for p in PROTOCOLS if p not in ON_REQUEST] if asked is None else [p for p in PROTOCOLS if p in asked]
    fit = [name for name in names if task in PROTOCOLS[name]]
    refused = {
        name: f"{name} is for {' and '.join(PROTOCOLS[name])}, not for {task}."
        for name in names if asked is not None and name not in fit
    }  # fmt: skip
    return fit, refused


@dataclass(frozen=True)
class Sides:
    """What a data set gives to every protocol: its labels, who trains, chooses and tests.

    Attributes:
        task: of the labels. labels: (images,) classes, or (images, outputs). num_outputs: classes, labels or targets.
        patients: (images,). train, validation, test: rows.
    """

    task: str
    labels: np.ndarray
    num_outputs: int
    patients: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, data) -> "Sides":
        """Of a `LabelledDataset`."""
        rows = {split: data.rows(split) for split in ("train", "validation", "test")}
        return cls(data.task, data.labels, len(data.label_names), data.patients, **rows)

    @property
    def targets(self) -> np.ndarray:
        """(images, outputs): one-hot where labels are classes."""
        if self.task == "classification":
            return np.eye(self.num_outputs, dtype=np.float32)[self.labels]
        return self.labels.astype(np.float32)


@dataclass(frozen=True)
class Outcome:
    """A protocol's result.

    Attributes:
        facts: for `results.json`. outputs: (seeds, test images, outputs) probabilities or values, or (seeds, test images,
            scores) where `names` has the scores' names: what paired tests need.
        thresholds: (seeds, labels), where labels are several. probe: what can be asked again, on corrupted images.
    """

    facts: dict
    outputs: np.ndarray
    thresholds: np.ndarray | None = None
    names: tuple[str, ...] = ()
    probe: object = field(default=None, compare=False)


# ---------------------------------------------------------------- scores


def score(task: str, labels: np.ndarray, outputs: np.ndarray, thresholds: np.ndarray | None = None) -> dict[str, float]:
    """Scores of one seed's outputs (images, outputs) against the labels of the same images."""
    if task == "classification":
        return classification_scores(labels, outputs)
    if task == "multilabel":
        return multilabel_scores(labels, outputs, thresholds)
    return regression_scores(labels, outputs)


def collapsed(task: str, labels: np.ndarray, outputs: np.ndarray, thresholds: np.ndarray | None = None) -> bool:
    """Whether every image gets the same answer, though the labels differ. A regression can't: it has no classes."""
    if task == "regression":
        return False
    predicted = outputs.argmax(-1) if task == "classification" else outputs >= thresholds
    return is_collapsed(predicted, labels)


def describe(by_seed: Sequence[dict], intervals: dict, collapsed_seeds: Sequence[int], facts: dict) -> dict:
    """`{"scores": {name: {mean, sd, n, ci95}}, "by_seed", ...}`; of a collapsed probe only what says so.

    Args:
        by_seed: scores, a seed. intervals: over patients and seeds, which replace those over seeds alone.
        collapsed_seeds: numbers of the seeds whose probe collapsed: one is enough, a mean of the rest would flatter.
    """
    scores = {name: summarise([s[name] for s in by_seed]) for name in by_seed[0]}
    if collapsed_seeds:
        counted = {name: summary["mean"] for name, summary in scores.items()}
        return {"collapsed": True, "collapsed_seeds": len(collapsed_seeds), "seeds": len(by_seed),
                "value_if_counted": counted, **facts}  # fmt: skip
    for name, interval in intervals.items():
        scores[name]["ci95"] = list(interval)
    values = {name: [s[name] for s in by_seed] for name in by_seed[0]}
    return {"collapsed": False, "scores": scores, "by_seed": values, **facts}


def assess(sides: Sides, outputs: np.ndarray, *, draws: int, thresholds=None, facts=None, probe=None) -> Outcome:
    """Score the outputs of all seeds on the test images.

    The interval is over patients and seeds: each draw takes one seed, and as many patients as there are, with replacement.

    Args:
        outputs: (seeds, test images, outputs).
    """
    labels, seeds = sides.labels[sides.test], range(len(outputs))
    limits = [None] * len(outputs) if thresholds is None else thresholds
    by_seed = [score(sides.task, labels, outputs[s], limits[s]) for s in seeds]
    fallen = [s for s in seeds if collapsed(sides.task, labels, outputs[s], limits[s])]
    turn = iter(np.random.default_rng(0).integers(len(outputs), size=draws))

    def drawn(rows):
        s = next(turn)
        return score(sides.task, labels[rows], outputs[s][rows], limits[s])

    intervals = {} if fallen or not draws else bootstrap_scores(drawn, sides.patients[sides.test], draws=draws)
    return Outcome(describe(by_seed, intervals, fallen, facts or {}), outputs, thresholds, probe=probe)


def _limits(sides: Sides, predict: Callable[[np.ndarray], np.ndarray], features) -> np.ndarray | None:
    """Thresholds of every label and seed, from the validation images; None where labels are no yes or no."""
    if sides.task != "multilabel":
        return None
    outputs = predict(features[sides.validation])
    return np.stack([choose_thresholds(sides.labels[sides.validation], part) for part in outputs])


# ---------------------------------------------------------------- protocols


def knn(sides: Sides, features: np.ndarray, *, draws: int = 1000, k: int = 10) -> Outcome:
    """Votes of the `k` nearest training images."""
    gallery, targets = features[sides.train], sides.targets[sides.train]

    def predict(queries):
        return knn_votes(gallery, targets, queries, k)[None]

    limits = _limits(sides, predict, features)
    return assess(sides, predict(features[sides.test]), draws=draws, thresholds=limits, facts={"k": k})


def linear(
    sides: Sides, features: np.ndarray, *, seeds=SEEDS, settings: ProbeSettings = SWEEP, draws=1000, device="cpu"
) -> Outcome:
    """Linear probe, all labels. A regression is solved in closed form, so one seed says all."""
    seeds = seeds[:1] if sides.task == "regression" else seeds
    probe = _fit(sides, features, [sides.train] * len(seeds), seeds, settings, device)
    limits = _limits(sides, probe.predict, features)
    facts = {"chosen": list(probe.chosen)}
    return assess(sides, probe.predict(features[sides.test]), draws=draws, thresholds=limits, facts=facts, probe=probe)


def linear_usjepa(sides: Sides, features: np.ndarray, *, seeds=SEEDS, draws=1000, device="cpu") -> Outcome:
    """US-JEPA's linear probe: one setting, features as they are, without a sweep."""
    return linear(sides, features, seeds=seeds, settings=USJEPA, draws=draws, device=device)


def attentive(sides: Sides, tokens: np.ndarray, *, seeds=SEEDS, draws=1000, device="cpu") -> Outcome:
    """Attentive probe on tokens (images, tokens, features)."""
    from .attentive_probe import fit_attentive_probe

    probe = fit_attentive_probe(
        tokens, sides.labels, sides.train, sides.validation, task=sides.task, num_outputs=sides.num_outputs, seeds=seeds,
        device=device,
    )  # fmt: skip
    limits = _limits(sides, probe.predict, tokens)
    facts = {"chosen": list(probe.chosen)}
    return assess(sides, probe.predict(tokens[sides.test]), draws=draws, thresholds=limits, facts=facts)


def _fit(sides: Sides, features, train, seeds, settings: ProbeSettings, device) -> LinearProbe:
    return fit_linear_probe(
        features, sides.labels, train, sides.validation, task=sides.task, num_outputs=sides.num_outputs, seeds=seeds,
        settings=settings, scaling=Scaling.of(features[sides.train], settings.standardise), device=device,
    )  # fmt: skip


def _subsets(sides: Sides, features, subsets: dict[str, list[np.ndarray]], seeds, settings, device) -> dict:
    """Of every subset of the labels: scores over seeds, each seed with a subset of its own."""
    labels, found = sides.labels[sides.test], {}
    for name, train in subsets.items():
        probe = _fit(sides, features, train, seeds, settings, device)
        limits = _limits(sides, probe.predict, features)
        limits = [None] * len(seeds) if limits is None else limits
        outputs = probe.predict(features[sides.test])
        by_seed = [score(sides.task, labels, outputs[s], limits[s]) for s in range(len(seeds))]
        fallen = [s for s in range(len(seeds)) if collapsed(sides.task, labels, outputs[s], limits[s])]
        found[name] = describe(by_seed, {}, fallen, {"train_images": [len(rows) for rows in train]})
    return found


def label_efficiency(
    features: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    splits: np.ndarray,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = SEEDS,
    *,
    task: str = "classification",
    num_outputs: int | None = None,
    settings: ProbeSettings = SWEEP,
    device="cpu",
) -> dict:
    """Linear probe with a share of the training labels, chosen by patient: the same images for every encoder.

    A seed draws its own subset; those of smaller fractions are part of the larger. All validation labels choose the setting,
    at every fraction, for every encoder.

    Args:
        features: (images, features). labels: (images,) or (images, outputs). patients, splits: (images,) str.

    Returns:
        {"0.01": {"scores": {name: {mean, sd, n, ci95 over seeds}}, "by_seed", "train_images", "collapsed"}, ...}
    """
    rows = [np.flatnonzero(splits == split) for split in ("train", "validation", "test")]
    outputs = num_outputs or (int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1])
    sides = Sides(task, labels, outputs, patients, *rows)
    subsets = {
        f"{fraction:g}": [label_fraction_rows(labels, patients, rows[0], fraction, seed) for seed in seeds]
        for fraction in fractions
    }
    return _subsets(sides, features, subsets, seeds, settings, device)


def few_shot(
    sides: Sides, features, *, shots=SHOTS, seeds=SEEDS, settings: ProbeSettings = SWEEP, device="cpu"
) -> dict:
    """Linear probe with a few images of each class; `{"1": ..., "5": ...}` as `label_efficiency`."""
    subsets = {
        str(shot): [few_shot_rows(sides.labels, sides.patients, sides.train, shot, seed) for seed in seeds] for shot in shots
    }  # fmt: skip
    return _subsets(sides, features, subsets, seeds, settings, device)


def retrieval(sides: Sides, features: np.ndarray, *, draws: int = 1000) -> Outcome:
    """Test images ask for training images of their class: mean average precision, and hits among the first 1 and 5."""
    parts = features[sides.train], sides.labels[sides.train], features[sides.test], sides.labels[sides.test]
    names = ("mean_average_precision", "hit_at_1", "hit_at_5")
    values = np.stack([average_precisions(*parts), hits_at(1, *parts), hits_at(5, *parts)], -1)[None]
    return assess_images(values, names, sides.patients[sides.test], draws=draws)


def assess_images(values: np.ndarray, names, patients, *, draws: int, fallen=(), facts=None, probe=None) -> Outcome:
    """Scores that are means over images: values (seeds, images, scores)."""
    by_seed = [dict(zip(names, _means(part))) for part in values]
    turn = iter(np.random.default_rng(0).integers(len(values), size=draws))
    intervals = (
        {} if fallen or not draws
        else bootstrap_scores(lambda rows: dict(zip(names, _means(values[next(turn)][rows]))), patients, draws=draws)
    )  # fmt: skip
    return Outcome(describe(by_seed, intervals, fallen, facts or {}), values, names=tuple(names), probe=probe)


def _means(values: np.ndarray) -> list[float]:
    """Of each column, over the values that are defined."""
    with np.errstate(invalid="ignore"):
        return (np.nansum(values, 0) / (~np.isnan(values)).sum(0)).tolist()


def robustness(
    sides: Sides,
    outcome: Outcome,
    corrupted: Callable[[Corruption], np.ndarray],
    names: Sequence[str] = tuple(CORRUPTIONS),
) -> dict:
    """The linear probe of clean images, asked about corrupted ones: how much of its score is left.

    Args:
        outcome: of `linear`. corrupted: a corruption to the features of the corrupted test images.
    """
    metric, labels = PRIMARY[sides.task], sides.labels[sides.test]
    limits = [None] * len(outcome.outputs) if outcome.thresholds is None else outcome.thresholds

    def mean_score(corruption: Corruption) -> float:
        outputs = outcome.probe.predict(corrupted(corruption))
        return float(np.mean([score(sides.task, labels, *pair)[metric] for pair in zip(outputs, limits)]))

    return summarise_robustness(metric, outcome.facts, mean_score, names)


def summarise_robustness(metric: str, facts: dict, score_of: Callable[[Corruption], float], names) -> dict:
    """Curves over the severities, and the mean corruption error: 1 - score, over corruptions and severities.

    `relative_to_clean` is that less the error on clean images: what corruption costs, in units of the score. (Hendrycks and
    Dietterich, 2019, divide by a reference network's errors; here encoders stand side by side instead.)
    """
    if facts["collapsed"]:
        return {"collapsed": True, "metric": metric}
    clean = facts["scores"][metric]["mean"]
    curves = {name: [score_of(Corruption(name, severity)) for severity in SEVERITIES] for name in names}
    errors = {name: 1 - float(np.mean(values)) for name, values in curves.items()}
    mean_error = float(np.mean(list(errors.values())))
    return {
        "collapsed": False, "metric": metric, "clean": clean, "curves": curves, "corruption_errors": errors,
        "mean_corruption_error": mean_error, "relative_to_clean": mean_error - (1 - clean),
    }  # fmt: skip
