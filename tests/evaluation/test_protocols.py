# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Protocols on planted features: what they score, that collapse is no score, that subsets are everyone's."""

import numpy as np
import pytest

from modeling_urfm.evaluation import protocols as P
from modeling_urfm.evaluation.linear_probe import ProbeSettings


QUICK = ProbeSettings(learning_rates=(1e-2,), weight_decays=(1e-4,), batch_size=64, max_epochs=15, min_steps=60)


def sides_of(task, labels, outputs):
    patients = np.repeat([f"p{n}" for n in range(150)], 2)
    order = np.arange(300)
    return P.Sides(task, labels, outputs, patients, order[:180], order[180:230], order[230:])


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 3, 150), 2)
    features = (rng.normal(size=(3, 8))[labels] + rng.normal(size=(300, 8))).astype(np.float32)
    return features, labels


def test_linear_knn_and_retrieval(planted):
    features, labels = planted
    sides = sides_of("classification", labels, 3)
    linear = P.linear(sides, features, seeds=(0, 1), settings=QUICK, draws=50)
    scores = linear.facts["scores"]
    assert not linear.facts["collapsed"] and scores["macro_f1"]["n"] == 2 and linear.outputs.shape == (2, 70, 3)
    low, high = scores["macro_f1"]["ci95"]
    assert low <= scores["macro_f1"]["mean"] <= high and low < high
    assert P.knn(sides, features, draws=0).facts["scores"]["accuracy"]["mean"] > 0.75
    found = P.retrieval(sides, features, draws=20)
    assert found.names[0] == "mean_average_precision" and found.facts["scores"]["hit_at_5"]["mean"] > 0.9


def test_collapse_is_no_score(planted):
    _, labels = planted
    constant = np.ones((300, 8), np.float32)
    facts = P.linear(sides_of("classification", labels, 3), constant, seeds=(0, 1), settings=QUICK, draws=5).facts
    assert facts["collapsed"] and facts["collapsed_seeds"] == 2 and "scores" not in facts
    assert 0 < facts["value_if_counted"]["accuracy"] < 0.7
    assert P.summarise_robustness("macro_f1", facts, None, ()) == {"collapsed": True, "metric": "macro_f1"}


def test_label_efficiency_rises_and_is_everyones(planted):
    features, labels = planted
    sides = sides_of("classification", labels, 3)
    splits = np.array(["train"] * 180 + ["validation"] * 50 + ["test"] * 70)
    arguments = labels, sides.patients, splits, (0.02, 1.0), (0, 1)
    found = P.label_efficiency(features, *arguments, settings=QUICK)
    assert list(found) == ["0.02", "1"] and found["1"]["train_images"] == [180, 180]
    if not found["0.02"]["collapsed"]:
        assert found["0.02"]["scores"]["macro_f1"]["mean"] <= found["1"]["scores"]["macro_f1"]["mean"]
    other = P.label_efficiency(features[:, ::-1].copy(), *arguments, settings=QUICK)
    assert other["0.02"]["train_images"] == found["0.02"]["train_images"]
    shots = P.few_shot(sides, features, shots=(1, 4), seeds=(0, 1), settings=QUICK)
    assert shots["1"]["train_images"] == [3, 3] and shots["4"]["train_images"] == [12, 12]


def test_robustness_is_what_is_left(planted):
    features, labels = planted
    sides = sides_of("classification", labels, 3)
    linear = P.linear(sides, features, seeds=(0,), settings=QUICK, draws=0)
    rng = np.random.default_rng(0)

    def corrupted(corruption):
        noise = corruption.severity * 1.5 if corruption.name == "speckle" else 0.0
        return features[sides.test] + noise * rng.normal(size=(70, 8)).astype(np.float32)

    found = P.robustness(sides, linear, corrupted, ("blur", "speckle"))
    assert found["curves"]["blur"] == [found["clean"]] * 3 and found["curves"]["speckle"][2] < found["clean"]
    assert found["mean_corruption_error"] == pytest.approx(np.mean(list(found["corruption_errors"].values())))
    assert found["relative_to_clean"] == pytest.approx(found["mean_corruption_error"] - (1 - found["clean"]))


def test_multilabel_and_regression(planted):
    features, labels = planted
    several = np.stack([labels == 0, labels != 1], 1).astype(np.float32)
    found = P.linear(sides_of("multilabel", several, 2), features, seeds=(0, 1), settings=QUICK, draws=20)
    assert found.thresholds.shape == (2, 2) and found.facts["scores"]["macro_f1"]["mean"] > 0.7
    assert P.knn(sides_of("multilabel", several, 2), features, draws=0).facts["scores"]["macro_f1"]["mean"] > 0.7
    numbers = features[:, :1] * 30 + 5
    sides = sides_of("regression", numbers, 1)
    found = P.linear(sides, features, draws=20)
    assert found.facts["scores"]["r2"]["mean"] > 0.99 and found.facts["scores"]["r2"]["n"] == 1
    assert P.knn(sides, features, draws=0).facts["scores"]["r2"]["mean"] > 0.5


def test_which_protocols_fit():
    fit, refused = P.protocols_for("classification", None)
    assert "linear" in fit and "attentive" not in fit and "segmentation" not in fit and not refused
    fit, refused = P.protocols_for("regression", ["retrieval", "knn"])
    assert fit == ["knn"] and "not for regression" in refused["retrieval"]
