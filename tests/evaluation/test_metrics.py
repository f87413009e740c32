# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Scores against scikit-learn and plain loops, on random answers with ties; the `evaluate` classes against the scores."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from modeling_urfm.evaluation import _let_evaluate_be_found, metrics, scores
from modeling_urfm.evaluation.metrics import (
    AUROC,
    MAE,
    R2,
    Accuracy,
    AveragePrecision,
    BalancedAccuracy,
    ExpectedCalibrationError,
    MacroF1,
    SensitivityAtSpecificity,
)


def _answers(classes: int, images: int, seed: int, ties: bool = False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    probabilities = rng.dirichlet(np.ones(classes), images) + 0.4 * np.eye(classes)[labels] * rng.random((images, 1))
    if ties:
        probabilities = np.round(8 * probabilities) + 0.125
    return labels, probabilities / probabilities.sum(1, keepdims=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 15])
def test_classification_scores_are_scikit_learns(classes, ties):
    for seed in range(5):
        labels, probabilities = _answers(classes, 90, seed, ties)
        got = scores.classification_scores(labels, probabilities)
        predicted, one_hot = probabilities.argmax(1), np.eye(classes)[labels]
        columns = [1] if classes == 2 else range(classes)
        auroc = [sk.roc_auc_score(one_hot[:, c], probabilities[:, c]) for c in columns]
        precision = [sk.average_precision_score(one_hot[:, c], probabilities[:, c]) for c in columns]
        assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
        assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
        assert got["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
        assert got["auroc"] == pytest.approx(np.mean(auroc))
        assert got["average_precision"] == pytest.approx(np.mean(precision))
        if classes > 2 and not ties:
            assert got["auroc"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))


def _calibration_by_a_loop(confidence, right):
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("classes", [2, 4])
def test_sensitivity_is_read_off_scikit_learns_curve_and_calibration_is_a_loops(classes):
    for seed in range(5):
        labels, probabilities = _answers(classes, 120, seed)
        got = scores.classification_scores(labels, probabilities)
        curves = [sk.roc_curve(labels == c, probabilities[:, c]) for c in ([1] if classes == 2 else range(classes))]
        sensitivity = [tpr[fpr <= 0.1 + 1e-12].max() for fpr, tpr, _ in curves]
        assert got["sensitivity_at_90_specificity"] == pytest.approx(np.mean(sensitivity))
        expected = _calibration_by_a_loop(probabilities.max(1), probabilities.argmax(1) == labels)
        assert got["calibration_error"] == pytest.approx(expected)


def test_a_threshold_decides_between_two_classes():
    labels, probabilities = _answers(2, 80, 0)
    got = scores.classification_scores(labels, probabilities, threshold=0.3)
    assert got["macro_f1"] == pytest.approx(sk.f1_score(labels, probabilities[:, 1] >= 0.3, average="macro"))
    assert got["auroc"] == scores.classification_scores(labels, probabilities)["auroc"]
    with pytest.raises(ValueError, match="two classes"):
        scores.predicted_classes(np.ones((3, 3)), 0.3)


def test_classes_that_are_absent_are_left_out_and_named():
    labels, probabilities = _answers(4, 60, 1)
    labels = labels % 3
    got = AUROC().compute(predictions=probabilities, references=labels)
    expected = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)]
    assert got == {"auroc": pytest.approx(np.mean(expected)), "auroc_left_out": [3]}
    alone = scores.classification_scores(np.zeros(9, int), probabilities[:9])
    assert np.isnan([alone["auroc"], alone["average_precision"], alone["sensitivity_at_90_specificity"]]).all()
    assert 0 <= alone["accuracy"] <= 1


def test_perfect_and_constant_answers():
    labels = np.arange(30) % 3
    perfect = scores.classification_scores(labels, np.eye(3)[labels])
    assert perfect.pop("calibration_error") == 0 and set(perfect.values()) == {1.0}
    constant = scores.classification_scores(np.array([0] * 80 + [1] * 30), np.full((110, 2), [0.6, 0.4]))
    assert constant["macro_f1"] == pytest.approx(0.421, abs=1e-3)  # what collapsed probes publish on FATTY LIVER
    assert constant["auroc"] == 0.5 and constant["sensitivity_at_90_specificity"] == 0
    assert scores.is_collapsed(np.zeros(110), np.arange(110) % 2)
    assert not scores.is_collapsed(np.zeros(9), np.zeros(9)) and not scores.is_collapsed(labels, labels)
    assert scores.is_collapsed(np.zeros((5, 3)), np.eye(5, 3)) and not scores.is_collapsed(np.eye(5, 3), np.eye(5, 3))


def test_multilabel_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (80, 5))
    probabilities = np.clip(0.3 * labels + 0.7 * rng.random((80, 5)), 0, 1)
    thresholds = np.array([0.3, 0.4, 0.5, 0.6, 0.7])
    got, predicted = scores.multilabel_scores(labels, probabilities, thresholds), probabilities >= thresholds
    assert got["accuracy"] == pytest.approx((labels == predicted).mean())
    assert got["exact_match"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert got["auroc"] == pytest.approx(sk.roc_auc_score(labels, probabilities))
    assert got["average_precision"] == pytest.approx(sk.average_precision_score(labels, probabilities))
    calibration = [_calibration_by_a_loop(probabilities[:, c], labels[:, c]) for c in range(5)]
    assert got["calibration_error"] == pytest.approx(np.mean(calibration))
    labels[:, 2] = 0
    predicted[:, 2] = False
    left_out = scores.multilabel_scores(labels, np.where(predicted, 0.9, 0.1), 0.5)
    assert left_out["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro", zero_division=np.nan))


def test_regression_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(50, 3))
    predictions = targets + rng.normal(size=(50, 3))
    got = scores.regression_scores(targets, predictions)
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(targets, predictions))
    assert got["rmse"] == pytest.approx(sk.root_mean_squared_error(targets, predictions))
    assert got["r2"] == pytest.approx(sk.r2_score(targets, predictions))
    assert scores.regression_scores(targets[:, 0], predictions[:, 0])["r2"] == pytest.approx(
        sk.r2_score(targets[:, 0], predictions[:, 0])
    )
    assert np.isnan(scores.regression_scores(np.ones((4, 1)), np.zeros((4, 1)))["r2"])


def test_chosen_thresholds_are_the_best_of_a_search():
    def macro(labels, chosen):
        return sk.f1_score(labels, chosen, average="macro")

    rng = np.random.default_rng(0)
    for _ in range(4):
        labels = (rng.random(60) < 0.3).astype(int)
        probability = np.round(np.clip(0.3 * labels + 0.6 * rng.random(60), 0, 1), 2)
        grid = np.linspace(0, 1, 101) - 0.005  # between the scores, which have two digits
        chosen = scores.choose_threshold(labels, probability)
        assert macro(labels, probability >= chosen) == pytest.approx(max(macro(labels, probability >= t) for t in grid))
        each = scores.choose_thresholds(labels[:, None], probability[:, None])[0]
        best = max(sk.f1_score(labels, probability >= t) for t in grid)
        assert sk.f1_score(labels, probability >= each) == pytest.approx(best)
    assert scores.choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]) == 0.5
    assert scores.choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.25)
    assert scores.choose_threshold([1, 1], [0.1, 0.2]) == 0.5
    assert scores.choose_thresholds(np.array([[0, 1], [0, 0]]), np.array([[0.9, 0.1], [0.8, 0.0]])).tolist() == [
        0.5,
        pytest.approx(0.05),
    ]


def test_answers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"not finite in 1 rows, first \[2\]"):
        scores.classification_scores(np.zeros(4, int), np.where(np.eye(4) * [0, 0, 1, 0], np.nan, 0.25))
    with pytest.raises(ValueError, match="do not fit 2 columns"):
        scores.classification_scores([0, 2], np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=r"\(3,\) and \(2, 2\)"):
        scores.classification_scores([0, 1, 1], np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="differ in shape"):
        scores.regression_scores(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="Did you mean 'multilabel'"):
        AUROC("multilable")
    with pytest.raises(ValueError, match=r"rows of \[2, 3\] numbers"):
        Accuracy().compute(predictions=[[0.5, 0.5], [0.2, 0.3, 0.5]], references=[0, 1])


def test_metrics_combine_over_batches_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    every = [Accuracy, BalancedAccuracy, MacroF1, AUROC, AveragePrecision, SensitivityAtSpecificity]
    metric = evaluate.combine([kind() for kind in [*every, ExpectedCalibrationError]])
    labels, probabilities = _answers(4, 70, 0)
    expected = scores.classification_scores(labels, probabilities)
    for _ in range(2):  # it starts anew after `compute`
        for rows in np.array_split(np.arange(70), 3):
            metric.add_batch(predictions=probabilities[rows], references=labels[rows])
        got = metric.compute()
        assert {name: got[name] for name in expected} == expected
    assert metric.compute(predictions=torch.tensor(probabilities), references=torch.tensor(labels)) == got
    decided = evaluate.combine([Accuracy(), BalancedAccuracy(), MacroF1()])
    for name, value in decided.compute(predictions=probabilities.argmax(1), references=labels).items():
        assert value == pytest.approx(expected[name])
    numbers = evaluate.combine([MAE(), R2()]).compute(predictions=[1.0, 2.0, 4.0], references=[1.0, 3.0, 5.0])
    assert numbers == {"mae": pytest.approx(2 / 3), "r2": pytest.approx(0.75)}
    assert MAE("multitarget").compute(predictions=[[1, 2]], references=[[2, 4]]) == {"mae": 1.5}
    assert not (tmp_path / "cache").exists()


def test_multilabel_metrics_take_thresholds_and_name_labels():
    labels, probabilities = np.array([[1, 0, 0], [0, 1, 0]]), np.array([[0.4, 0.1, 0.2], [0.1, 0.3, 0.1]])
    f1 = MacroF1("multilabel")
    assert f1.compute(predictions=probabilities, references=labels)["macro_f1"] == 0
    assert f1.compute(predictions=probabilities, references=labels, thresholds=[0.3, 0.3, 0.3])["macro_f1"] == 1
    assert AUROC("multilabel").compute(predictions=probabilities, references=labels) == {
        "auroc": 1.0,
        "auroc_left_out": [2],
    }


def test_the_recipes_folder_goes_to_the_end_of_the_path_and_others_stay(tmp_path, monkeypatch):
    ours, theirs = tmp_path / "recipes", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        (folder / "evaluate.py").touch()
    (ours / "pretrain.py").touch()
    path = [str(ours), str(theirs), str(tmp_path / "gone"), "packages.zip"]
    _let_evaluate_be_found(path)
    assert path == [str(theirs), str(tmp_path / "gone"), "packages.zip", str(ours)]
    monkeypatch.chdir(ours)
    path = ["", str(theirs)]
    _let_evaluate_be_found(path)
    assert path == [str(theirs), ""]


@pytest.mark.slow
def test_metrics_are_found_beside_a_recipe_called_evaluate(tmp_path):
    """A script of recipes/ has that folder first in its path, and recipes/evaluate.py is not Hugging Face's evaluate."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "pretrain.py").touch()
    (recipes / "evaluate.py").write_text("raise SystemExit('the recipe was imported')\n")
    (recipes / "sibling.py").write_text("here = True\n")
    (recipes / "finetune.py").write_text(
        "import sys, accelerate, datasets, peft, transformers\n"
        "assert sys.path[0].endswith('recipes')\n"
        "from modeling_urfm.evaluation.metrics import Accuracy\n"
        "import evaluate, sibling\n"
        "print(Accuracy().compute(predictions=[0, 1], references=[0, 1]), evaluate.__file__)\n"
    )
    root = Path(metrics.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(recipes / "finetune.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    assert "{'accuracy': 1.0}" in done.stdout and str(recipes) not in done.stdout
