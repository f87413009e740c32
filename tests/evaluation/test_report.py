# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The page: whole in one file, without a collapsed probe's score, and with published figures in a column of their own."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from modeling_urfm.evaluation.benchmarks import published_column
from modeling_urfm.evaluation.report import _robustness, cell, number, write_report
from modeling_urfm.evaluation.report_pictures import group_names, label_curves, robustness_curves, tsne


def scored(mean, names=("macro_f1",)):
    scores = {name: {"mean": mean, "sd": 0.01, "n": 5, "ci95": [mean - 0.1, mean + 0.1]} for name in names}
    return {
        "collapsed": False,
        "scores": scores,
        "by_seed": {name: [mean] * 5 for name in names},
        "train_images": [9, 9],
    }


FALLEN = {
    "collapsed": True,
    "collapsed_seeds": 5,
    "seeds": 5,
    "value_if_counted": {"macro_f1": 0.4213},
    "train_images": [9],
}
ROBUST = {"collapsed": False, "metric": "macro_f1", "clean": 0.8, "curves": {"blur": [0.7, 0.6, 0.5]},
          "corruption_errors": {"blur": 0.4}, "mean_corruption_error": 0.4, "relative_to_clean": 0.2}  # fmt: skip


@pytest.fixture(scope="module")
def results():
    encoders = {
        "urfm <b>": {"linear": scored(0.8), "linear_usjepa": scored(0.7), "knn": scored(0.6), "robustness": ROBUST,
                     "label_efficiency": {"0.01": FALLEN, "1": scored(0.8)}},
        "other": {"linear": FALLEN, "knn": scored(0.5), "robustness": {"collapsed": True, "metric": "macro_f1"},
                  "label_efficiency": {"0.01": scored(0.2), "1": FALLEN}},
    }  # fmt: skip
    entry = {
        "task": "classification", "images": 9, "patients": 9, "label_names": ["a", "b"], "split_fingerprint": "abc",
        "splits": {"train": {"images": 5, "patients": 5}, "test": {"images": 4, "patients": 4}}, "notes": ["a note"],
        "left_out": [["row 7", "no label"]], "refused": {"segmentation": "not for classification."}, "encoders": encoders,
        "comparisons": {"knn": [{"a": "urfm <b>", "b": "other", "metric": "macro_f1", "difference": 0.1,
                                 "ci95": [0.05, 0.15], "p": 0.0004, "p_holm": None}]},
        "published": {"figures": published_column("AUL")},
    }  # fmt: skip
    facts = {"image_size": [64, 64], "grid": [4, 4], "hidden_size": 32, "fingerprint": "f" * 64}
    metrics = {
        "seeds": [0, 1], "encoders": {"urfm <b>": facts, "other": facts}, "datasets": {"ultrabench:AUL=x": entry},
        "ranks": {"tasks": ["x"], "ranks": {"urfm <b>": 1.0, "other": 2.0}, "p": None, "critical_difference": None},
    }  # fmt: skip
    return {"command": "python recipes/evaluate.py", "versions": {"torch": "2"}, "seed": 0, "metrics": metrics}


def test_page(tmp_path, results):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "plot.png")
    plots = {"ultrabench:AUL=x": {"A caption & more": tmp_path / "plot.png"}}
    write_report(results, plots, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    opened = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag, _):
            if tag not in ("meta", "img"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Balanced().feed(page)
    assert not opened and "data:image/png;base64," in page and "urfm &lt;b&gt;" in page and "<b>&" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "42.1" not in page.replace("42.1 ± 0.0 (a constant answer)", "") and "collapsed" in page
    assert "71.5 ± 1.1" in page and "row 7" in page and "a note" in page and "&lt; 0.001" in page
    assert "Not at 224 px here: urfm &lt;b&gt; (64 px), other (64 px)." in page
    # A published row has nothing in our columns, ours nothing in theirs.
    row = re.search(r"<tr><td>US-JEPA</td>(.*?)</tr>", page).group(1)
    assert row == "<td>69.6 ± 1.5</td><td></td><td></td>"


def test_an_earlier_run_with_other_corruptions():
    then = ROBUST | {"curves": {"blur": [0.5, 0.4, 0.3], "jpeg": [0.5, 0.5, 0.5]}, "mean_corruption_error": 0.987}
    page = _robustness({"now": {"robustness": ROBUST}, "then": {"robustness": then}})
    assert "40.0" in page and "98.7" not in page  # means over other corruptions don't stand side by side
    assert "<th>jpeg</th>" in page and "50.0" in page


def test_cells():
    assert cell(FALLEN, "macro_f1").startswith("<span class=bad>collapsed") and "42" not in cell(FALLEN, "macro_f1")
    assert (
        cell(None, "macro_f1") == "–" and number(0.1234, "macro_f1") == "12.3" and number(1234.5, "mae") == "1.23e+03"
    )
    assert cell(scored(0.5), "macro_f1") == "50.0 ± 1.0<span class=ci>40.0 to 60.0</span>"


def test_curves(results):
    encoders = results["metrics"]["datasets"]["ultrabench:AUL=x"]["encoders"]
    curves = label_curves(encoders, "macro_f1")
    assert curves["urfm <b>"] == {0.01: [], 1.0: [0.8] * 5}  # a collapsed probe leaves a gap
    assert robustness_curves(encoders) == {"blur": {"urfm <b>": [0.8, 0.7, 0.6, 0.5]}}


def test_tsne_is_repeatable():
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    points, rows = tsne(features)
    assert points.shape == (40, 2) and len(rows) == 40 and np.array_equal(points, tsne(features)[0])

    class Data:
        groups, task, label_names, labels = None, "regression", ("a",), None

    assert group_names(Data) is None
