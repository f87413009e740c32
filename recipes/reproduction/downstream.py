# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What an encoder is worth: probes of its frozen features, fine-tuning of all of it, corrupted test images.

Everything here gives *answers*, a class for every test image, and no scores: what is concluded from them is computed where all
arms and seeds are at hand (`analysis.py`), over the same patients for all.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F

from modeling_urfm.data.splits import label_fraction_rows
from modeling_urfm.evaluation.corruptions import PUBLISHED, SEVERITIES, Corruption
from modeling_urfm.evaluation.linear_probe import Scaling, fit_linear_probe
from modeling_urfm.evaluation.probes import knn_predict
from modeling_urfm.evaluation.segmentation_probe import (
    finer,
    fit_segmentation_probe,
    mask_as_seen,
    segmentation_losses,
)
from modeling_urfm.pretraining.batches import Normalize
from modeling_urfm.pretraining.schedules import make_optimizer

from .corpora import Labelled
from .design import GRID
from .training import autocast, shrink


BATCH = 64
FINETUNE_BATCH, FINETUNE_WEIGHT_DECAY = 32, 0.05
# (batch, 3, size, size) in [0, 1] to patch tokens (batch, patches, features).
Tokens = Callable[[torch.Tensor], torch.Tensor]


class StudentTokens(nn.Module):
    """Patch tokens of a `URFMModel`."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.normalize, self.width = encoder, Normalize("cpu"), encoder.config.hidden_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.normalize(shrink(pixels))).last_hidden_state[:, 1:]


class TeacherTokens(nn.Module):
    """Patch tokens of a teacher's own network, which can be trained."""

    def __init__(self, teacher):
        super().__init__()
        self.tower, self.width = copy.deepcopy(teacher.tower).float().requires_grad_(True), teacher.hidden_size
        # It was trained with half of its patches dropped; masks need them all.
        self.tower.trunk.patch_drop = nn.Identity()
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1) for v in (teacher.image_mean, teacher.image_std))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower((pixels - self.mean) / self.std)


def as_pixels(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(images, size, size) uint8 to (images, 3, size, size) in [0, 1]."""
    return torch.as_tensor(images)[:, None].expand(-1, 3, -1, -1).float() / 255


@torch.no_grad()
def embed(tokens: Tokens, images: np.ndarray, whole: bool = False) -> np.ndarray:
    """Mean patch token of every image (images, features), or with `whole` all of them (images, patches, features)."""
    parts = []
    for part in torch.from_numpy(images).split(BATCH):
        with autocast():
            found = tokens(as_pixels(part)).float()
        parts.append(found if whole else found.mean(1))
    return torch.cat(parts).numpy()


# ---------------------------------------------------------------- frozen features


def probe(features: np.ndarray, data: Labelled, train: np.ndarray | None = None, seed: int = 0):
    """A linear probe on the training rows (or those of `train`), its settings chosen on validation."""
    rows = data.rows["train"] if train is None else train
    return fit_linear_probe(
        features, data.labels, [rows], data.rows["validation"], num_outputs=len(data.classes), seeds=(seed,),
        scaling=Scaling.of(features[data.rows["train"]]),
    )  # fmt: skip


def frozen_answers(features: np.ndarray, data: Labelled) -> dict[str, np.ndarray]:
    """Of a linear probe and of kNN, on both test sets: "linear/in", "linear/out", "knn/in", "knn/out" to classes."""
    fitted, train, answers = probe(features, data), data.rows["train"], {}
    for side in ("in", "out"):
        test = features[data.rows[side]]
        answers[f"linear/{side}"] = fitted.predict(test)[0].argmax(-1)
        answers[f"knn/{side}"] = knn_predict(features[train], data.labels[train], test)
    return answers


def label_efficiency(features: np.ndarray, data: Labelled, fractions, seeds) -> dict[str, np.ndarray]:
    """Linear probes on a share of the training labels: "linear@0.1#0/in" (share, draw) to classes."""
    answers = {}
    for fraction in fractions:
        for seed in seeds:
            rows = labelled_share(data, data.rows["train"], fraction, seed)
            answers[f"linear@{fraction:g}#{seed}/in"] = (
                probe(features, data, rows, seed).predict(features[data.rows["in"]])[0].argmax(-1)
            )
    return answers


def labelled_share(data: Labelled, rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Those of `rows` that have labels: a stratified share, one of each class at least; a larger share holds a smaller one."""
    return label_fraction_rows(data.labels, np.arange(len(data.labels)), rows, fraction, seed)


def robustness(tokens: Tokens, features: np.ndarray, data: Labelled) -> dict[str, np.ndarray]:
    """A probe that was trained on clean images, on corrupted test images: "linear/blur-1" (corruption, severity) ..."""
    fitted, answers = probe(features, data), {}
    images = torch.from_numpy(data.images[data.rows["in"]])
    for name in PUBLISHED:
        for severity in SEVERITIES:
            corrupt = Corruption(name, severity)
            worse = np.stack([corrupt(image[None], index)[0].numpy() for index, image in enumerate(images)])
            answers[f"linear/{corrupt.key}"] = fitted.predict(embed(tokens, worse))[0].argmax(-1)
    return answers


def mask_probe(tokens: Tokens, data: Labelled) -> dict[str, np.ndarray]:
    """Dice of every test image that has a lesion, of a linear layer on frozen patch tokens: "linear/in", "linear/out"."""
    rows = lesion_rows(data)
    train, validation = rows["train"], rows["validation"]
    learnt = np.concatenate([train, validation])
    found = embed(tokens, data.images[learnt], whole=True)
    masks = [coarse_mask(data.masks[row]) for row in learnt]
    fitted = fit_segmentation_probe(
        found, masks, np.arange(len(train)), np.arange(len(train), len(learnt)), grid=GRID, num_classes=2, seeds=(0,)
    )
    size = data.masks.shape[-2:]
    whole_image, dice = (0.0, 0.0, *map(float, size)), {}
    for side in ("in", "out"):
        dice[f"linear/{side}"] = np.array([
            dice_of(fitted.predict(x, whole_image, *size)[0], data.masks[row])
            for x, row in zip(embed(tokens, data.images[rows[side]], whole=True), rows[side])
        ])  # fmt: skip
    return dice


def lesion_rows(data: Labelled) -> dict[str, np.ndarray]:
    """Of each split the rows whose mask is not empty."""
    return {split: rows[data.masks[rows].any((1, 2))] for split, rows in data.rows.items()}


def coarse_mask(mask: np.ndarray) -> np.ndarray:
    """A mask of a whole image on the grid of the loss, as the package's segmentation probe takes it."""
    return mask_as_seen(mask, (0, 0, *mask.shape), finer(GRID))


def dice_of(guess: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks; `truth` is not empty."""
    return float(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))


# ---------------------------------------------------------------- fine-tuning


class Head(nn.Module):
    """A norm and a linear layer on the mean token, or for masks on every token."""

    def __init__(self, width: int, classes: int, mask: bool):
        super().__init__()
        self.norm, self.linear, self.mask = nn.LayerNorm(width), nn.Linear(width, classes), mask
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, patches, features) to (batch, classes) or (batch, classes, rows, columns)."""
        if not self.mask:
            return self.linear(self.norm(tokens.mean(1)))
        return self.linear(self.norm(tokens)).transpose(1, 2).unflatten(-1, GRID)


def finetune(tokens: nn.Module, data: Labelled, task: str, *, learning_rate: float, passes: int, seed: int,
             fraction: float = 1.0, looks: int = 6) -> dict[str, np.ndarray]:  # fmt: skip
    """Train a copy of the encoder and a head on a share of the labels; the epoch is chosen on validation.

    Args:
        tokens: `StudentTokens` or `TeacherTokens`. task: "organ", "lesion" (classes) or "mask".
        passes: images shown in all. looks: times at which validation and test are looked at, evenly spread.

    Returns:
        "in" and "out", the answers (or Dice of every image) where validation is best, and "in@SHARE" after that share of
        the training, whatever validation says.
    """
    mask = task == "mask"
    rows = lesion_rows(data) if mask else data.rows
    train = rows["train"]
    if fraction < 1:
        train = labelled_share(data, train, fraction, seed)
    torch.manual_seed(seed)
    encoder, head = copy.deepcopy(tokens).train(), Head(tokens.width, 2 if mask else len(data.classes), mask)
    model = nn.Sequential(encoder, head)
    optimizer = make_optimizer(model, learning_rate, FINETUNE_WEIGHT_DECAY, beta2=0.999)
    rng, batch = np.random.default_rng(seed), min(FINETUNE_BATCH, len(train))
    steps = max(1, passes // batch)
    rise = min(0.9, max(0.1, 1.5 / steps))  # OneCycleLR divides by zero where the rise is of one step
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=rise)
    order = np.concatenate([rng.permutation(train) for _ in range(-(-steps * batch // len(train)))])
    found, best = {}, -1.0
    at = {round(steps * (look + 1) / looks): (look + 1) / looks for look in range(looks)}
    for step in range(1, steps + 1):
        chosen = order[(step - 1) * batch : step * batch]
        pixels = as_pixels(data.images[chosen])
        if rng.random() < 0.5:
            pixels, flipped = pixels.flip(-1), True
        else:
            flipped = False
        with autocast():
            logits = model(pixels)
        if mask:
            truth = torch.from_numpy(np.stack([coarse_mask(data.masks[row]) for row in chosen]).astype(np.int64))
            loss = segmentation_losses(logits.float()[:, None], truth.flip(-1) if flipped else truth)[0]
        else:
            loss = F.cross_entropy(logits.float(), torch.from_numpy(data.labels[chosen]), label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step in at:
            model.eval()
            score = _validation(model, data, rows["validation"], mask)
            answers = {"in": _answers(model, data, rows["in"], mask)}
            found[f"in@{at[step]:.2f}"] = answers["in"]
            if score > best:
                best = score
                found |= answers | {"out": _answers(model, data, rows["out"], mask)}
            model.train()
    found["validation"] = best
    return found


@torch.no_grad()
def _answers(model: nn.Module, data: Labelled, rows: np.ndarray, mask: bool) -> np.ndarray:
    """Classes of the rows, or the Dice of each."""
    parts = []
    for part in np.array_split(rows, -(-len(rows) // BATCH)):
        with autocast():
            logits = model(as_pixels(data.images[part])).float()
        if mask:
            logits = F.interpolate(logits, data.masks.shape[-2:], mode="bilinear", align_corners=False)
            guesses = logits.argmax(1).numpy().astype(np.uint8)
            parts.append(np.array([dice_of(guess, data.masks[row]) for guess, row in zip(guesses, part)]))
        else:
            parts.append(logits.argmax(1).numpy())
    return np.concatenate(parts)


def _validation(model: nn.Module, data: Labelled, rows: np.ndarray, mask: bool) -> float:
    answers = _answers(model, data, rows, mask)
    return float(answers.mean()) if mask else float(f1_score(data.labels[rows], answers, average="macro"))
