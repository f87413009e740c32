# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Pictures are drawn, of the usual answers and of those that leave little to draw."""

import numpy as np
import pytest
from PIL import Image

from modeling_urfm.evaluation import report_plots as plots


RNG = np.random.default_rng(0)
NAN = float("nan")


def _is_drawn(path):
    with Image.open(path) as image:
        image.load()
        assert image.info["dpi"][0] == pytest.approx(150, abs=0.1)
        assert min(image.size) > 150 and len(np.unique(np.asarray(image.convert("L")))) > 10
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("classes", [2, 3, 15])
@pytest.mark.parametrize("kind", ["confusion", "roc"])
def test_classification(tmp_path, kind, classes):
    labels, names = RNG.integers(0, max(classes - 1, 2), 60), [f"organ {number}" for number in range(classes)]
    probabilities = RNG.dirichlet(np.ones(classes), 60)
    if kind == "roc":
        plots.plot_roc(labels, probabilities, names, tmp_path / "plot.png")
    else:
        plots.plot_confusion(labels, probabilities.argmax(1), names, tmp_path / "plot.png")
    _is_drawn(tmp_path / "plot.png")


def test_roc_of_labels_and_of_one_class_alone(tmp_path):
    labels = np.array([[0, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]])
    for number, (given, names) in enumerate(((labels, ["cyst", "always", "never"]), (np.zeros(4, int), ["a", "b"]))):
        (tmp_path / f"{number}").mkdir()
        plots.plot_roc(given, RNG.random((4, len(names))), names, tmp_path / f"{number}" / "roc.png")
        _is_drawn(tmp_path / f"{number}" / "roc.png")


@pytest.mark.parametrize("labels", [RNG.integers(0, 3, 40), RNG.integers(0, 2, (40, 3))])
def test_reliability(tmp_path, labels):
    plots.plot_reliability(labels, RNG.dirichlet(np.ones(3), 40), tmp_path / "reliability.png")
    _is_drawn(tmp_path / "reliability.png")


def test_regression(tmp_path):
    targets = RNG.normal(size=(30, 2))
    plots.plot_regression(targets, targets + 0.1, ["depth (mm)", "angle"], tmp_path / "regression.png")
    _is_drawn(tmp_path / "regression.png")


def test_overlays_of_images_of_several_sizes(tmp_path):
    images = [RNG.integers(0, 256, shape, np.uint8) for shape in ((1, 40, 60), (3, 50, 50), (1, 60, 40))]
    masks = [np.zeros(image.shape[1:], np.uint8) for image in images]
    masks[0][10:20, 10:20], masks[1][5:9, 5:30], masks[1][:3] = 1, 2, 255
    predictions = [np.zeros_like(mask) for mask in masks]
    predictions[0][12:22, 8:18] = 1
    names = ["background", "lesion", "cyst"]
    plots.plot_overlays(images, masks, predictions, ["a", "b" * 99, ""], tmp_path / "overlays.png", names)
    _is_drawn(tmp_path / "overlays.png")
    plots.plot_overlays(images[2:], masks[2:], masks[2:], ["empty"], tmp_path / "overlays.png")


@pytest.mark.parametrize("count", [1, 7])
def test_cases(tmp_path, count):
    images = [RNG.integers(0, 256, (1, 30 + number, 40), np.uint8) for number in range(count)]
    plots.plot_cases(images, ["patient 1\nmalignant, said benign"] * count, tmp_path / "cases.png")
    _is_drawn(tmp_path / "cases.png")


@pytest.mark.parametrize("values", [[0.5, 0.6, 0.7], [0.5], [NAN, NAN], [3.0, 9.0]])
def test_label_efficiency(tmp_path, values):
    curves = {"urfm": {0.01: values, 0.1: [0.8, 0.9], 1.0: [0.9, 0.95]}, "random:urfm": {0.1: [0.2, 0.3], 1.0: [0.4]}}
    plots.plot_label_efficiency(curves, "macro_f1", tmp_path / "labels.png")
    _is_drawn(tmp_path / "labels.png")


@pytest.mark.parametrize("count", [1, 3, 8])
def test_robustness(tmp_path, count):
    curves = {f"corruption_{n}": {"urfm": [0.9, 0.8, 0.7, 0.5], "other": [0.8, NAN, 0.5, 0.4]} for n in range(count)}
    plots.plot_robustness(curves, tmp_path / "robustness.png")
    _is_drawn(tmp_path / "robustness.png")


@pytest.mark.parametrize("difference", [0.8, NAN, 0.1, 99.0])
def test_critical_difference(tmp_path, difference):
    ranks = {"urfm": 1.4, "dinov3": 1.9, "random": 3.6, "US-JEPA": 3.1}
    plots.plot_critical_difference(ranks, difference, tmp_path / "ranks.png")
    _is_drawn(tmp_path / "ranks.png")


def test_bars_join_what_does_not_differ():
    values = np.array([1.0, 1.5, 2.4, 4.0, 4.2])
    assert plots._groups_without_difference(values, 1.0) == [(0, 1), (1, 2), (3, 4)]
    assert plots._groups_without_difference(values, 5.0) == [(0, 4)]
    assert plots._groups_without_difference(values, NAN) == []


def test_embedding_has_a_look_a_group(tmp_path):
    groups = np.array([f"organ {number}" for number in np.arange(80) % 15])
    plots.plot_embedding(RNG.normal(size=(80, 2)), groups, tmp_path / "embedding.png", "t-SNE of urfm")
    _is_drawn(tmp_path / "embedding.png")
    looks = [tuple(plots.style(number).values()) for number in range(40)]
    assert len(set(looks)) == 40
