# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Metrics as `evaluate.Metric` classes: batch by batch, with `evaluate.combine`, without a network or a cache folder.

    >>> import evaluate
    >>> metric = evaluate.combine([Accuracy(), MacroF1(), AUROC()])
    >>> metric.add_batch(predictions=[[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], references=[0, 1, 0])
    >>> metric.compute()["accuracy"]
    0.6666666666666666

Predictions are probabilities (images, classes) and references the classes (images,); Accuracy, BalancedAccuracy and
MacroF1 take predicted classes (images,) as well. With `config_name="multilabel"` references are (images, labels), 0 or 1,
and `compute(thresholds=...)` says from which probability on a label is predicted (0.5). MAE and R2 take numbers (images,),
or with `config_name="multitarget"` (images, targets). The scores themselves are in `scores.py`.
"""

import os

import datasets
import evaluate
import numpy as np

from ..flags import check_choice
from . import scores


class OfflineMetric(evaluate.Metric):
    """A metric that keeps its predictions in memory and makes no folder.

    Args:
        config_name: one of the class's `configs`; default the first.
        arguments: as of `evaluate.Metric`. With `keep_in_memory=False` predictions go through files of `cache_dir`.
    """

    configs: tuple[str, ...] = ("default",)
    text = ""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **arguments):
        if config_name is not None:
            check_choice(f"{type(self).__name__}: config_name", config_name, self.configs)
        super().__init__(config_name=config_name, keep_in_memory=keep_in_memory, **arguments)

    def _build_data_dir(self):
        # The parent makes the folder whether or not anything is written to it; a read-only home is no reason to fail.
        if not self.keep_in_memory:
            return super()._build_data_dir()
        return os.path.join(self._data_dir_root, self.name, self.config_name)

    def _info(self):
        return evaluate.MetricInfo(
            description=type(self).__doc__, citation="", inputs_description=self.text, features=self._formats()
        )

    def _formats(self):
        row, one = datasets.Sequence(datasets.Value("float64")), datasets.Value("float64")
        return {
            "default": datasets.Features(predictions=row, references=datasets.Value("int64")),
            "multilabel": datasets.Features(predictions=row, references=row),
            "numbers": datasets.Features(predictions=one, references=one),
            "multitarget": datasets.Features(predictions=row, references=row),
        }[self.config_name]


class _Scores(OfflineMetric):
    """A score of `classification_scores` or `multilabel_scores`, called `key` there."""

    configs = ("default", "multilabel")
    key = ""
    text = "predictions: probabilities (images, classes). references: classes (images,)."

    def _compute(self, predictions, references, thresholds=0.5):
        return {self.key: self._all(_rows(predictions), np.asarray(references), thresholds)[self.key]}

    def _all(self, predictions, references, thresholds):
        if self.config_name == "multilabel":
            return scores.multilabel_scores(references, predictions, thresholds)
        return scores.classification_scores(references, predictions)


class _Decisions(_Scores):
    """Of predicted classes too."""

    text = "predictions: probabilities (images, classes) or classes (images,). references: classes (images,)."

    def _formats(self):
        formats, classes = super()._formats(), datasets.Value("int64")
        if self.config_name == "multilabel":
            return formats
        return [datasets.Features(predictions=classes, references=classes), formats]

    def _all(self, predictions, references, thresholds):
        if predictions.ndim == 2:
            return super()._all(predictions, references, thresholds)
        predictions = predictions.astype(np.int64)
        classes = int(max(predictions.max(), references.max())) + 1
        return scores.decision_scores(references, predictions, classes)


class Accuracy(_Decisions):
    """Share of images whose most probable class is the label; multilabel: of all decisions that are right."""

    key = "accuracy"


class BalancedAccuracy(_Decisions):
    """Mean recall of the classes that are a label."""

    key = "balanced_accuracy"
    configs = ("default",)


class MacroF1(_Decisions):
    """Mean F1 of the classes that are a label or a prediction."""

    key = "macro_f1"


class _Ranking(_Scores):
    """A score that needs both kinds of every class: it names the classes that it had to leave out."""

    def _compute(self, predictions, references, thresholds=0.5):
        predictions, references = _rows(predictions), np.asarray(references)
        if self.config_name == "multilabel":
            share = references.mean(0)
            left_out = np.flatnonzero((share == 0) | (share == 1)).tolist()
        else:
            left_out = scores.absent_classes(references, predictions.shape[1])
        value = self._all(predictions, references, thresholds)[self.key]
        return {self.key: value, f"{self.key}_left_out": left_out}


class AUROC(_Ranking):
    """Area under the ROC curve: of class 1 of two classes, else the mean over classes, one against the rest.

    Classes without images, or with all of them, are left out and named in `auroc_left_out`.
    """

    key = "auroc"


class AveragePrecision(_Ranking):
    """Average precision (the step-wise sum); classes as for `AUROC`."""

    key = "average_precision"


class SensitivityAtSpecificity(_Ranking):
    """The highest sensitivity at a specificity of at least 0.9; classes as for `AUROC`."""

    key = "sensitivity_at_90_specificity"


class ExpectedCalibrationError(_Scores):
    """|confidence - accuracy|, weighted over 15 bins of equal width (Naeini et al., 2015; Guo et al., 2017)."""

    key = "calibration_error"


class _Regression(OfflineMetric):
    configs = ("numbers", "multitarget")
    key = ""
    text = 'predictions, references: numbers (images,); with config_name="multitarget" (images, targets).'

    def __init__(self, config_name: str | None = None, **arguments):
        super().__init__(config_name or "numbers", **arguments)

    def _compute(self, predictions, references):
        return {self.key: scores.regression_scores(np.asarray(references), np.asarray(predictions))[self.key]}


class MAE(_Regression):
    """Mean absolute error, in the unit of the targets."""

    key = "mae"


class R2(_Regression):
    """Coefficient of determination: the mean over the targets that vary."""

    key = "r2"


def _rows(predictions) -> np.ndarray:
    lengths = {len(row) if isinstance(row, list) else 0 for row in predictions}
    if len(lengths) > 1:
        raise ValueError(f"predictions have rows of {sorted(lengths)} numbers: expected one probability a class.")
    return np.asarray(predictions)
