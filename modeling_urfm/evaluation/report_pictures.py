# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Which pictures a comparison of encoders gets: {caption: PNG file}, a folder a data set."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from . import report_plots as plots
from .linear_probe import Scaling
from .protocols import PRIMARY, Outcome


MOST_POINTS = 2000  # of a t-SNE: it takes a second a hundred
MOST_GROUPS = 40  # colours and markers that differ


def dataset_plots(
    data, entry: Mapping, outcomes: Mapping[str, Mapping[str, Outcome]], features: Mapping[str, np.ndarray],
    shown: Mapping[str, Mapping[int, np.ndarray]], folder: Path,
) -> dict[str, Path]:  # fmt: skip
    """All pictures of a data set.

    Args:
        data: the `LabelledDataset`. entry: its part of `results.json`.
        outcomes: encoder to {protocol: outcome}. features: encoder to (images, features), of those that have them.
        shown: encoder to {row: ids predicted}, of a segmentation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metric, encoders = PRIMARY[entry["task"]], entry["encoders"]
    drawn: dict[str, Path] = {}
    if curves := label_curves(encoders, metric):
        path = drawn.setdefault(
            "Label efficiency of the linear probe; bands are 95 % intervals over seeds.",
            folder / "label_efficiency.png",
        )
        plots.plot_label_efficiency(curves, metric, path)
    if curves := robustness_curves(encoders):
        path = drawn.setdefault(
            "The probe of clean images on corrupted ones, at three severities; means over seeds.",
            folder / "robustness.png",
        )
        plots.plot_robustness(curves, path, metric)
    test = data.rows("test")
    for name, found in outcomes.items():
        linear = found.get("linear")
        if linear is None or linear.facts["collapsed"]:
            continue
        at, labels = _slug(name), data.labels[test]
        if entry["task"] == "classification":
            path = drawn.setdefault(
                f"{name}: confusions of the linear probe, first seed.", folder / f"confusion-{at}.png"
            )
            plots.plot_confusion(labels, linear.outputs[0].argmax(-1), data.label_names, path)
        elif entry["task"] == "multilabel":
            path = drawn.setdefault(f"{name}: ROC of the linear probe, first seed.", folder / f"roc-{at}.png")
            plots.plot_roc(labels, linear.outputs[0], data.label_names, path)
        else:
            path = drawn.setdefault(f"{name}: the linear probe on test images.", folder / f"regression-{at}.png")
            plots.plot_regression(labels, linear.outputs[0], data.label_names, path)
    for name, examples in shown.items():
        path = drawn.setdefault(
            f"{name}: test images from the lowest Dice of the first seed to the highest.",
            folder / f"overlays-{_slug(name)}.png",
        )
        images = [np.asarray(data.corpus.pixels(row)) for row in examples]
        masks = [data.mask(row) for row in examples]
        titles = [data.corpus.id(row) for row in examples]
        plots.plot_overlays(images, masks, list(examples.values()), titles, path, data.label_names)
    groups = group_names(data)
    for name, values in features.items():
        if groups is None or len(values) < 10:
            continue
        path = drawn.setdefault(f"{name}: t-SNE of the frozen features.", folder / f"tsne-{_slug(name)}.png")
        points, rows = tsne(values)
        plots.plot_embedding(points, groups[rows], path, name)
    return drawn


def rank_plots(ranks: Mapping | None, folder: Path) -> dict[str, Path]:
    """The critical-difference diagram, where there is a test of ranks."""
    if not ranks or not np.isfinite(ranks["critical_difference"]):
        return {}
    path = folder / "critical_difference.png"
    plots.plot_critical_difference(ranks["ranks"], ranks["critical_difference"], path)
    return {"Mean ranks; encoders joined by a bar do not differ by Nemenyi’s test at 5 %.": path}


def label_curves(encoders: Mapping, metric: str) -> dict[str, dict[float, list[float]]]:
    """Encoder to {fraction: values over seeds}; collapsed probes leave a gap."""
    return {
        name: {
            float(fraction): [] if point["collapsed"] else point["by_seed"][metric]
            for fraction, point in facts["label_efficiency"].items()
        }
        for name, facts in encoders.items()
        if "label_efficiency" in facts
    }


def robustness_curves(encoders: Mapping) -> dict[str, dict[str, list[float]]]:
    """Corruption to {encoder: [clean, severity 1, 2, 3]}."""
    curves: dict[str, dict[str, list[float]]] = {}
    for name, facts in encoders.items():
        found = facts.get("robustness")
        if found and not found["collapsed"]:
            for corruption, values in found["curves"].items():
                curves.setdefault(corruption, {})[name] = [found["clean"], *values]
    return curves


def group_names(data) -> np.ndarray | None:
    """What points are coloured by: (images,) the organ where it is known, else the class; None where neither says much."""
    if data.groups is not None and 1 < len(set(data.groups)) <= MOST_GROUPS:
        return np.asarray(data.groups)
    if data.task == "classification" and len(data.label_names) <= MOST_GROUPS:
        return np.asarray(data.label_names)[data.labels]
    return None


def tsne(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two dimensions of standardised features by t-SNE (van der Maaten and Hinton, 2008): (points, 2), and their rows.

    Of more images than `MOST_POINTS`, as many are drawn at random. Distances between clusters mean little in such a picture.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rows = np.arange(len(features))
    if len(rows) > MOST_POINTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_POINTS, replace=False))
    scaled = Scaling.of(features[rows])(features[rows])
    scaled = PCA(min(50, *scaled.shape), random_state=0).fit_transform(scaled)
    perplexity = min(30, (len(rows) - 1) / 3)
    # Its threads wait for one another at every step: on a machine that others use too, two are a hundred times slower.
    with threadpool_limits(1):
        return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(scaled), rows


def _slug(name: str) -> str:
    import hashlib

    safe = "".join(c if c.isalnum() else "_" for c in name)[-40:].strip("_")
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:4]}"
