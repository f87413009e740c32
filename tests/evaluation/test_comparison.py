# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Encoders against each other: paired tests, ranks, earlier runs, and splits that differ."""

import json

import numpy as np
import pytest

from modeling_urfm.evaluation.comparison import (
    compare_encoders,
    load_outputs,
    rank_encoders,
    read_other,
    save_outputs,
    short_names,
)
from modeling_urfm.evaluation.protocols import Outcome, Sides, score


@pytest.fixture(scope="module")
def sides():
    labels = np.random.default_rng(0).integers(0, 3, 200)
    order = np.arange(200)
    return Sides("classification", labels, 3, order.astype(str), order[:100], order[100:120], order[120:])


def outcome(sides, noise, seed=0, collapsed=False):
    rng = np.random.default_rng(seed)
    outputs = np.stack([np.eye(3)[sides.labels[sides.test]] + noise * rng.random((80, 3)) for _ in range(2)])
    return Outcome({"collapsed": collapsed}, outputs / outputs.sum(-1, keepdims=True))


def test_pairs(sides):
    found = {"good": outcome(sides, 0.5), "same": outcome(sides, 0.5, 1), "bad": outcome(sides, 8),
             "fallen": outcome(sides, 8, collapsed=True)}  # fmt: skip
    pairs = {(p["a"], p["b"]): p for p in compare_encoders(sides, found, draws=200)}
    assert set(pairs) == {("good", "same"), ("good", "bad"), ("same", "bad")}
    assert pairs["good", "same"]["p"] > 0.5 and pairs["good", "bad"]["p_holm"] < 0.05
    wanted = np.mean([score("classification", sides.labels[sides.test], o)["macro_f1"] for o in found["good"].outputs])
    wanted -= np.mean([score("classification", sides.labels[sides.test], o)["macro_f1"] for o in found["bad"].outputs])
    assert pairs["good", "bad"]["difference"] == pytest.approx(wanted)
    assert pairs["good", "bad"]["ci95"][0] > 0 and pairs["good", "bad"]["metric"] == "macro_f1"


def test_scores_of_images_are_compared_as_they_are(sides):
    values = np.random.default_rng(0).random((1, 80, 2))
    found = {"a": Outcome({"collapsed": False}, values + 0.3, names=("dice", "iou")),
             "b": Outcome({"collapsed": False}, values, names=("dice", "iou"))}  # fmt: skip
    (pair,) = compare_encoders(sides, found, draws=50)
    assert pair["metric"] == "dice" and pair["difference"] == pytest.approx(0.3)


def entry(**means):
    facts = {
        name: {"linear": {"collapsed": m is None, "scores": {"macro_f1": {"mean": m}}}} for name, m in means.items()
    }
    return {"task": "classification", "encoders": facts}


def test_ranks():
    tables = {"one": entry(a=0.9, b=0.8, c=0.7), "two": entry(a=0.6, b=None, c=0.5), "not by all": entry(a=0.1)}
    ranks = rank_encoders(tables, ["a", "b", "c"])
    assert ranks["tasks"] == ["one", "two"] and ranks["ranks"] == {"a": 1.0, "b": 2.5, "c": 2.5}
    assert ranks["critical_difference"] > 1 and rank_encoders(tables, ["a"]) is None


def test_earlier_runs(tmp_path, sides):
    kept = outcome(sides, 1)
    name = save_outputs(tmp_path / "predictions", "busi/-urfm-linear", kept, ["x", "y"])
    read = load_outputs(tmp_path / "predictions" / name, kept.facts, ["x", "y"])
    assert np.allclose(read.outputs, kept.outputs, atol=1e-6) and read.names == () and read.thresholds is None
    with pytest.raises(ValueError, match="other test images"):
        load_outputs(tmp_path / "predictions" / name, {}, ["y", "x"])
    undefined = {"urfm": {"linear": {"scores": {"auroc": {"mean": 0.5, "ci95": [None, None]}}}}}
    facts = {
        "split_fingerprint": "s1",
        "labels_fingerprint": "l1",
        "fingerprint": "f1",
        "images": 9,
        "encoders": undefined,
    }
    (tmp_path / "results.json").write_text(json.dumps({"metrics": {"datasets": {"busi/": facts}}}))
    read = read_other(tmp_path, {"busi/": facts})["datasets"]
    assert list(read) == ["busi/"]
    assert np.isnan(read["busi/"]["encoders"]["urfm"]["linear"]["scores"]["auroc"]["ci95"]).all()  # as before JSON
    with pytest.raises(ValueError, match="same split"):
        read_other(tmp_path, {"busi/": facts | {"split_fingerprint": "s2"}})
    with pytest.raises(ValueError, match="other labels"):
        read_other(tmp_path, {"busi/": facts | {"labels_fingerprint": "l2"}})
    with pytest.raises(ValueError, match="images, training labels or patients"):
        read_other(tmp_path, {"busi/": facts | {"fingerprint": "f2"}})
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "1" / "a", tmp_path / "2" / "a"]) == [str(tmp_path / n / "a") for n in "12"]
    with pytest.raises(ValueError, match="in common"):
        read_other(tmp_path, {"other/": facts})
    with pytest.raises(FileNotFoundError, match="compare_with"):
        read_other(tmp_path / "nowhere", {})
