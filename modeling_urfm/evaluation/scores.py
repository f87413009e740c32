# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Scores of predictions, in plain numpy: fast enough to be drawn a thousand times by a bootstrap.

Every score is a share in [0, 1] unless its docstring says otherwise, and NaN where the labels do not define it (an AUROC
of images that are all of one class). Nothing here warns: NaN is the answer, and whoever prints it says why.
"""

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from ..data.labelled_masks import IGNORE


SPECIFICITY = 0.9  # at which the sensitivity is read
CALIBRATION_BINS = 15  # Guo et al., 2017


def classification_scores(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | None = None
) -> dict[str, float]:
    """Scores of one label an image.

    AUROC, average precision and the sensitivity at 90 % specificity are those of class 1 for two classes, and else the
    mean over classes, one against the rest; classes that the labels do not hold are left out of it (`absent_classes`).
    Macro-F1 is the mean over the classes that are a label or a prediction, balanced accuracy (mean recall) over those
    that are a label. The calibration error is of the most probable class (`calibration_error`).

    Args:
        labels: (images,) int, 0 <= label < classes.
        probabilities: (images, classes), a row sums to 1.
        threshold: with two classes, an image is of class 1 from this probability on. Default: the most probable class.

    Returns:
        accuracy, balanced_accuracy, macro_f1, auroc, average_precision, sensitivity_at_90_specificity,
        calibration_error.

    Raises:
        ValueError: shapes that do not fit, labels out of range, probabilities that are not finite.
    """
    labels, probabilities = np.asarray(labels), _finite("probabilities", probabilities)
    if labels.ndim != 1 or probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise ValueError(
            "classification_scores expects labels (images,) and probabilities (images, classes), "
            f"got {labels.shape} and {probabilities.shape}."
        )
    classes = probabilities.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} do not fit {classes} columns of probabilities.")
    predicted = predicted_classes(probabilities, threshold)
    if classes == 2:
        ranking = ranking_scores(labels[:, None] == 1, probabilities[:, 1:])
    else:
        ranking = ranking_scores(labels[:, None] == np.arange(classes), probabilities)
    confidence, right = probabilities.max(1, initial=0), probabilities.argmax(1) == labels
    return {
        **decision_scores(labels, predicted, classes),
        **ranking,
        "calibration_error": calibration_error(confidence, right),
    }


def predicted_classes(probabilities: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """(images,) int: the most probable class, or with two classes and a `threshold`, class 1 from there on."""
    if threshold is None:
        return np.asarray(probabilities).argmax(1)
    if probabilities.shape[1] != 2:
        raise ValueError(f"a threshold is for two classes, not for {probabilities.shape[1]}.")
    return (np.asarray(probabilities)[:, 1] >= threshold).astype(np.int64)


def decision_scores(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """accuracy, balanced_accuracy and macro_f1 of classes (images,) against classes (images,)."""
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    table = confusion_table(labels, predicted, classes)
    right, of_label, of_prediction = table.diagonal(), table.sum(1), table.sum(0)
    with np.errstate(invalid="ignore"):
        recalls, f1s = right / of_label, 2 * right / (of_label + of_prediction)
    return {
        "accuracy": float(right.sum() / len(labels)) if len(labels) else float("nan"),
        "balanced_accuracy": nan_mean(recalls),
        "macro_f1": nan_mean(f1s),
    }


def confusion_table(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int: images by their label (row) and by what was predicted (column)."""
    joint = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(joint, minlength=classes * classes).reshape(classes, classes)


def multilabel_scores(labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray) -> dict[str, float]:
    """Scores of several labels an image, each true or not.

    Means over labels; macro-F1 leaves out a label that is neither true nor predicted anywhere, the scores of a ranking
    those that are true everywhere or nowhere. The calibration error compares each label's probability with how often it
    is true.

    Args:
        labels: (images, labels) 0 or 1. probabilities: (images, labels) in [0, 1].
        thresholds: (labels,), from which on a label is predicted (`choose_thresholds`), or one number.

    Returns:
        accuracy (share of all decisions that are right), exact_match (share of images with all of them right),
        macro_f1, auroc, average_precision, sensitivity_at_90_specificity, calibration_error.
    """
    labels, probabilities = np.asarray(labels) > 0.5, _finite("probabilities", probabilities)
    if labels.ndim != 2 or labels.shape != probabilities.shape:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape}: expected (images, labels).")
    predicted = probabilities >= np.asarray(thresholds)
    equal = predicted == labels
    with np.errstate(invalid="ignore"):
        f1s = 2 * (predicted & labels).sum(0) / (predicted.sum(0) + labels.sum(0))
    return {
        "accuracy": nan_mean(equal.mean(1)),
        "exact_match": nan_mean(equal.all(1).astype(float)),
        "macro_f1": nan_mean(f1s),
        **ranking_scores(labels, probabilities),
        "calibration_error": nan_mean([calibration_error(p, t) for p, t in zip(probabilities.T, labels.T)]),
    }


def regression_scores(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """mae and rmse, in the targets' unit, and r2 (at most 1): means over targets.

    R2 leaves out a target that does not vary.

    Args:
        targets, predictions: (images, targets) or (images,).
    """
    targets, predictions = _finite("targets", targets), _finite("predictions", predictions)
    if targets.shape != predictions.shape:
        raise ValueError(f"targets {targets.shape} and predictions {predictions.shape} differ in shape.")
    targets, predictions = (x.reshape(len(x), -1) for x in (targets, predictions))
    if not len(targets):
        return {"mae": float("nan"), "rmse": float("nan"), "r2": float("nan")}
    errors = predictions - targets
    squares, spread = (errors**2).sum(0), ((targets - targets.mean(0)) ** 2).sum(0)
    r2 = np.where(spread > 0, 1 - squares / np.where(spread > 0, spread, 1), np.nan)
    return {
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(squares / len(targets)).mean()),
        "r2": nan_mean(r2),
    }


def ranking_scores(positive: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """auroc, average_precision and sensitivity_at_90_specificity: means over the columns that hold both kinds.

    Average precision is the step-wise sum, without interpolation; the sensitivity is the highest of a threshold whose
    specificity is at least 0.9. Equal scores share one threshold.

    Args:
        positive: (images, columns) bool. scores: (images, columns), higher = more likely positive.
    """
    columns = [column for column in range(positive.shape[1]) if 0 < positive[:, column].sum() < len(positive)]
    values = np.array([_ranking(positive[:, column], scores[:, column]) for column in columns]).reshape(-1, 3)
    means = values.mean(0) if len(values) else np.full(3, np.nan)
    names = ("auroc", "average_precision", "sensitivity_at_90_specificity")
    return {name: float(value) for name, value in zip(names, means)}


def absent_classes(labels: np.ndarray, classes: int) -> list[int]:
    """The classes of `range(classes)` that no one-against-rest score of these labels (images,) can count."""
    labels = np.asarray(labels)
    return [c for c in range(classes) if not 0 < int((labels == c).sum()) < len(labels)]


def counts_by_threshold(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives and the threshold, at every distinct score, from the highest down.

    Args:
        positive: (images,) bool. scores: (images,). An image counts as positive from the threshold on.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], positive[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    true = np.cumsum(hits)[last]
    return true, last + 1 - true, ordered[last]


def _ranking(positive: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    true, false, _ = counts_by_threshold(positive, scores)
    recall, precision = true / true[-1], true / (true + false)
    fall_out = false / false[-1]
    area = np.diff(fall_out, prepend=0) @ (recall + np.append(0, recall[:-1])) / 2
    # 1e-9: 1 - 0.9 is a little less than 0.1 in floating point.
    allowed = recall[fall_out <= 1 - SPECIFICITY + 1e-9]
    return area, np.diff(recall, prepend=0) @ precision, allowed.max(initial=0)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error (Naeini et al., 2015; Guo et al., 2017): |confidence - accuracy|, weighted over bins.

    Args:
        confidence: (images,) in [0, 1]. right: (images,) bool. bins: of equal width, closed above.
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if not len(confidence):
        return float("nan")
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, confidence - right, minlength=bins)  # count x (mean confidence - accuracy)
    return float(np.abs(gaps).sum() / len(confidence))


def choose_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(labels,) the threshold of the highest F1 of every label, on validation images; 0.5 where it is never true.

    Args:
        labels: (images, labels) 0 or 1. probabilities: (images, labels).
    """
    labels, probabilities = np.asarray(labels) > 0.5, _finite("probabilities", probabilities)
    thresholds = np.full(labels.shape[1], 0.5)
    for column in np.flatnonzero(labels.any(0)):
        true, false, at = counts_by_threshold(labels[:, column], probabilities[:, column])
        f1 = 2 * true / (labels[:, column].sum() + true + false)
        thresholds[column] = _best_threshold(f1, at)
    return thresholds


def choose_threshold(labels: np.ndarray, probability: np.ndarray) -> float:
    """The threshold of the highest macro-F1 of two classes on validation images; of several, the nearest to 0.5.

    Args:
        labels: (images,) 0 or 1. probability: (images,) of class 1. With one class alone the answer is 0.5.
    """
    labels, probability = np.asarray(labels) > 0.5, _finite("probability", probability)
    positives = labels.sum()
    if not 0 < positives < len(labels):
        return 0.5
    true, false, at = counts_by_threshold(labels, probability)
    negatives = len(labels) - positives
    predicted = true + false
    macro = true / (positives + predicted) + (negatives - false) / (negatives + len(labels) - predicted)
    return _best_threshold(macro, at)


def _best_threshold(values: np.ndarray, at: np.ndarray) -> float:
    """Halfway to the next lower score, so that images a little below those of validation fall on the same side."""
    lower = np.append(at[1:], min(0.0, at[-1]))
    best = np.flatnonzero(values >= values.max() - 1e-12)
    # Any threshold in (lower, at] decides alike: 0.5 itself where it lies there, else the middle.
    candidates = np.where((lower[best] < 0.5) & (at[best] >= 0.5), 0.5, (lower[best] + at[best]) / 2)
    return float(candidates[np.abs(candidates - 0.5).argmin()])


def image_segmentation_scores(
    mask: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    spacing_mm: float | tuple[float, float] | None = None,
) -> dict[str, float]:
    """dice, iou and hausdorff95 of one image: means over the foreground classes in the mask or in the prediction.

    Dice and IoU are 1 and the distance is 0 where both are empty. Where one of them is empty, Dice and IoU are 0 and the
    distance is the diagonal of the image, the largest there can be (so that a miss is never better than a bad guess).

    Args:
        mask: (height, width) ids below `num_classes`, 0 = background; pixels of 255 count nowhere.
        predicted: (height, width) ids.
        spacing_mm: size of a pixel (rows, columns), or one number; distances are in mm with it, else in pixels.
    """
    mask, predicted = np.asarray(mask), np.asarray(predicted)
    if mask.ndim != 2 or mask.shape != predicted.shape:
        raise ValueError(f"mask {mask.shape} and prediction {predicted.shape}: expected (height, width) twice.")
    counted = mask != IGNORE
    highest = int(max(mask[counted].max(initial=0), predicted[counted].max(initial=0)))
    if highest >= num_classes:
        raise ValueError(f"id {highest} does not fit {num_classes} classes.")
    spacing = np.broadcast_to(1.0 if spacing_mm is None else spacing_mm, 2)
    per_class = []
    for class_id in range(1, num_classes):
        truth, guess = (mask == class_id) & counted, (predicted == class_id) & counted
        if truth.any() or guess.any():
            per_class.append((*overlap_scores(truth, guess), hausdorff_distance_95(truth, guess, spacing)))
    dice, iou, distance = np.mean(per_class, axis=0) if per_class else (1.0, 1.0, 0.0)
    return {"dice": float(dice), "iou": float(iou), "hausdorff95": float(distance)}


def overlap_scores(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float]:
    """Dice and IoU of two bool masks; 1 and 1 where both are empty."""
    both, either = np.count_nonzero(truth & guess), np.count_nonzero(truth | guess)
    return (2 * both / (both + either), both / either) if either else (1.0, 1.0)


def hausdorff_distance_95(truth: np.ndarray, guess: np.ndarray, spacing=(1.0, 1.0)) -> float:
    """The larger of the two 95 % percentiles of the distances from one outline to the other, in units of `spacing`.

    The outline is every pixel of a mask with a neighbour (of four) outside of it or outside the image. Huttenlocher et
    al., 1993; the percentile of each direction, then the larger, as in Maier-Hein et al., 2024 (Metrics Reloaded).
    0 where both masks are empty, the image's diagonal where one is.

    Args:
        truth, guess: (height, width) bool. spacing: (rows, columns).
    """
    if not truth.any() or not guess.any():
        empty = truth.any() == guess.any()
        return 0.0 if empty else float(np.hypot(*(np.array(truth.shape) * spacing)))
    # Both outlines lie in the box around both masks, and so does every distance: the rest of the image adds nothing.
    box = find_objects((truth | guess).astype(np.uint8))[0]
    edges = [part & ~binary_erosion(part) for part in (truth[box], guess[box])]
    distances = [distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return float(max(np.percentile(distances[1][edges[0]], 95), np.percentile(distances[0][edges[1]], 95)))


def is_collapsed(predicted: np.ndarray, labels: np.ndarray) -> bool:
    """Whether one class is the answer to everything, though the labels (images,) have several.

    With several labels an image, (images, labels): whether every image gets the same answer.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    return len(np.unique(predicted, axis=0)) == 1 and len(np.unique(labels, axis=0)) > 1


def nan_mean(values) -> float:
    """The mean of those that are finite; NaN where none is."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def _finite(name: str, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
        raise ValueError(f"{name} are not finite in {len(rows)} rows, first {rows[:10].tolist()}.")
    return values
