# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a model says of images, and how good that is: scores with 95 % intervals over patients.

Shapes: n images, K labels.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..data.labelled import LabelledDataset
from ..evaluation.intervals import bootstrap_scores, with_intervals
from ..evaluation.scores import (
    choose_threshold,
    choose_thresholds,
    classification_scores,
    image_segmentation_scores,
    is_collapsed,
    multilabel_scores,
    nan_mean,
    regression_scores,
)
from ..image_processing_urfm import IGNORE_INDEX, URFMImageProcessor
from .losses import task_loss


@dataclass
class Outputs:
    """What a model says of the rows of a split.

    Attributes:
        rows: (n,) of the data set. labels: (n,) or (n, K), as the data set has them; None for segmentation.
        values: (n, K) probabilities, or predictions in the targets' units; None for segmentation.
        masks: segmentation: predicted ids at the image's own size. per_image: segmentation: score to (n,).
    """

    rows: np.ndarray
    labels: np.ndarray | None = None
    values: np.ndarray | None = None
    masks: list[np.ndarray] = field(default_factory=list)
    per_image: dict[str, np.ndarray] = field(default_factory=dict)


def logits_of(model: nn.Module, batch: dict) -> torch.Tensor:
    """The model's logits for a batch of `inputs.Batches` or of `inputs.Features`."""
    if "features" in batch:
        return model(batch["features"])
    return model(pixel_values=batch["pixel_values"]).logits


@torch.no_grad()
def run(model: nn.Module, batches: Iterable[dict], device, autocast: Callable = nullcontext):
    """(logits in fp32, labels) of every batch, on `device`; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        for batch in batches:
            batch = {name: value.to(device) for name, value in batch.items()}
            with autocast():
                logits = logits_of(model, batch)
            yield logits.float(), batch["labels"]
    finally:
        model.train(training)


def validation_score(task: str, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """`score`, larger is better, by which the best epoch is chosen, with the figures behind it.

    classification: macro-F1 less a tenth of the loss (in units of a uniform guess's), since on a few dozen images many
    epochs share one F1. multilabel: mean average precision. regression: minus the mean absolute error, in deviations.
    segmentation: mean Dice of the classes an image shows, at the model's size.

    Args:
        batches: of `run`.
    """
    losses, counts, dice, kept = [], [], [], []
    for logits, labels in batches:
        losses.append(float(task_loss(task, logits, labels)))
        counts.append(len(labels))
        if task == "segmentation":
            dice += image_dice(logits, labels)
        else:
            kept.append((logits.cpu(), labels.cpu()))
    loss = float(np.average(losses, weights=counts))
    if task == "segmentation":
        return {"score": float(np.mean(dice)), "dice": float(np.mean(dice)), "loss": loss}
    logits, labels = (torch.cat(parts).numpy() for parts in zip(*kept))
    if task == "classification":
        scores = classification_scores(labels, softmax(logits))
        score = scores["macro_f1"] - 0.1 * min(loss / np.log(max(2, logits.shape[1])), 2.0)
        return {"score": score, "accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"], "loss": loss}
    if task == "multilabel":
        precision = multilabel_scores(labels, sigmoid(logits), np.full(labels.shape[1], 0.5))["average_precision"]
        return {"score": precision if np.isfinite(precision) else -loss, "average_precision": precision, "loss": loss}
    error = float(np.abs(logits - labels).mean())
    return {"score": -error, "standardised_mae": error, "loss": loss}


def image_dice(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Of every image, the mean Dice of the foreground classes in its mask or prediction; 1 where there is none."""
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    counted = labels != IGNORE_INDEX
    guess, truth = (
        F.one_hot(ids.long() * counted, logits.shape[1])[..., 1:].flatten(1, 2) for ids in (logits.argmax(1), labels)
    )
    both, either = (guess & truth).sum(1), guess.sum(1) + truth.sum(1)
    shown = either > 0
    dice = (2 * both / either.clamp(min=1) * shown).sum(1) / shown.sum(1).clamp(min=1)
    return torch.where(shown.any(1), dice, 1.0).tolist()


def predict(
    task: str, data: LabelledDataset, rows: np.ndarray, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Outputs:
    """What the model says of `rows`, from the logits of `run` in that order. Not for segmentation."""
    logits = np.concatenate([logits.cpu().numpy() for logits, _ in batches])
    if task == "regression":
        return Outputs(rows, data.labels[rows], logits.astype(np.float64))
    return Outputs(rows, data.labels[rows], softmax(logits) if task == "classification" else sigmoid(logits))


@torch.no_grad()
def predict_masks(
    data: LabelledDataset,
    rows: np.ndarray,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    processor: URFMImageProcessor,
) -> Outputs:
    """Predicted masks at the images' own sizes, by `post_process_semantic_segmentation`, and their scores image by image."""
    outputs, at = Outputs(rows, per_image={"dice": [], "iou": [], "hausdorff95": []}), 0
    for logits, _ in batches:
        images = [data.corpus[int(row)]["pixels"] for row in rows[at : at + len(logits)]]
        regions = processor.get_regions(images, input_data_format="channels_first")
        holder = type("Logits", (), {"logits": logits.cpu()})
        for row, mask in zip(
            rows[at : at + len(logits)], processor.post_process_semantic_segmentation(holder, regions=regions)
        ):
            outputs.masks.append(mask.numpy().astype(np.uint8))
            scores = image_segmentation_scores(data.mask(int(row)), outputs.masks[-1], len(data.label_names))
            for name, value in scores.items():
                outputs.per_image[name].append(value)
        at += len(logits)
    outputs.per_image = {name: np.array(values) for name, values in outputs.per_image.items()}
    return outputs


def choose_decisions(task: str, outputs: Outputs) -> list[float] | None:
    """Thresholds chosen on validation: one a label, one for class 1 of two classes; None where there is no choice."""
    if task == "multilabel":
        return choose_thresholds(outputs.labels, outputs.values).tolist()
    if task == "classification" and outputs.values.shape[1] == 2:
        return [choose_threshold(outputs.labels, outputs.values[:, 1])]
    return None


def decisions(task: str, outputs: Outputs, thresholds: list[float] | None) -> np.ndarray:
    """(n,) classes, or (n, K) 0 and 1, as decided with `thresholds`."""
    if task == "multilabel":
        return (outputs.values >= np.array(thresholds)).astype(np.int64)
    if thresholds:
        return (outputs.values[:, 1] >= thresholds[0]).astype(np.int64)
    return outputs.values.argmax(1)


def scores_with_intervals(
    task: str,
    outputs: Outputs,
    thresholds: list[float] | None,
    patients: np.ndarray,
    draws: int,
    seed: int,
    label_names: Sequence[str] = (),
) -> dict:
    """Scores of a split and their intervals over patients; `collapsed` where one answer is given to everything.

    Args:
        patients: (n,) of `outputs.rows`.
        label_names: of several targets, whose means over units say little: `mae_NAME` and so on are given too.
    """

    def score(part: np.ndarray) -> dict[str, float]:
        if task == "segmentation":
            return {name: nan_mean(values[part]) for name, values in outputs.per_image.items()}
        labels, values = outputs.labels[part], outputs.values[part]
        if task == "classification":
            return classification_scores(labels, values, thresholds[0] if thresholds else None)
        if task == "multilabel":
            return multilabel_scores(labels, values, np.array(thresholds))
        scores = regression_scores(labels, values)
        for k, name in enumerate(label_names if len(label_names) > 1 else ()):
            scores |= {f"{key}_{name}": v for key, v in regression_scores(labels[:, k], values[:, k]).items()}
        return scores

    whole = np.arange(len(outputs.rows))
    scores = with_intervals(score(whole), bootstrap_scores(score, patients, draws, seed))
    scores |= {"images": len(outputs.rows), "patients": len(np.unique(patients))}
    if task in ("classification", "multilabel"):
        scores["collapsed"] = bool(is_collapsed(decisions(task, outputs, thresholds), outputs.labels))
    if task == "segmentation":  # background everywhere, and not because nothing is there
        empty = not any(mask.any() for mask in outputs.masks)
        scores["collapsed"] = bool(empty and outputs.per_image["dice"].min() < 1)
    return scores


def errors_of(task: str, outputs: Outputs) -> np.ndarray:
    """(n,) how wrong each image is, larger is worse: to show the worst ones."""
    if task == "segmentation":
        return 1 - outputs.per_image["dice"]
    if task == "classification":
        return 1 - outputs.values[np.arange(len(outputs.rows)), outputs.labels]
    errors = np.abs(outputs.values - outputs.labels)
    if task == "regression":  # targets have units of their own
        spread = outputs.labels.std(0)
        errors = errors / np.where(spread > 0, spread, 1)
    return errors.mean(1)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(1).numpy()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().sigmoid().numpy()
