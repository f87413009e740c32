# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A linear layer on frozen features, trained for every learning rate, weight decay and seed at once.

The layers of all settings of a seed stand side by side in one matrix, those of the seeds in a batch of such matrices, so that a
step of the whole sweep is one batched matrix product forwards and one backwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .sweeps import threads_for


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained.

    Attributes:
        learning_rates, weight_decays: of AdamW; every pair is tried, validation chooses for each seed.
        batch_size, max_epochs: a probe takes at least `min_steps` steps, so that a handful of images is learnt too.
        patience: evaluations without a lower validation loss after which a layer is left as it was at its best.
        standardise: give every feature mean 0 and deviation 1 over all training images. This needs no labels, so that a
            fraction of the labels uses it too.
    """

    learning_rates: Sequence[float] = (3e-4, 1e-3, 3e-3, 1e-2)
    weight_decays: Sequence[float] = (1e-4, 1.0, 10.0)
    batch_size: int = 128
    max_epochs: int = 100
    min_steps: int = 200
    patience: int = 15
    standardise: bool = True


SWEEP = ProbeSettings()
# US-JEPA (arXiv 2602.19322), to stand beside its table: one setting, features as they are.
USJEPA = ProbeSettings(
    learning_rates=(1e-3,), weight_decays=(1e-4,), batch_size=32, max_epochs=150, min_steps=0, standardise=False
)
RIDGE_STRENGTHS = tuple(10.0**e for e in range(-2, 7))


@dataclass(frozen=True)
class Scaling:
    """Mean and scale of every feature: (features,)."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, standardise: bool = True) -> "Scaling":
        """Of (images, features); a feature that is constant keeps its scale."""
        if not standardise:
            return cls(np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32))
        mean, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
        return cls(mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features.astype(np.float32) - self.mean) / self.scale


@dataclass(frozen=True)
class LinearProbe:
    """One chosen layer a seed.

    Attributes:
        task: "classification", "multilabel" or "regression". scaling: of the features.
        weights: (seeds, features, outputs). biases: (seeds, outputs). chosen: the setting that validation chose, a seed.
    """

    task: str
    scaling: Scaling
    weights: np.ndarray
    biases: np.ndarray
    chosen: tuple[dict, ...]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(images, features) to (seeds, images, outputs): probabilities, or values where the task is regression."""
        values = np.matmul(self.scaling(features)[None], self.weights) + self.biases[:, None]
        if self.task == "classification":
            return torch.from_numpy(values).softmax(-1).numpy()
        return torch.from_numpy(values).sigmoid().numpy() if self.task == "multilabel" else values


def fit_linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    train: Sequence[np.ndarray],
    validation: np.ndarray,
    *,
    task: str = "classification",
    num_outputs: int | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    settings: ProbeSettings = SWEEP,
    scaling: Scaling | None = None,
    device: str | torch.device = "cpu",
) -> LinearProbe:
    """Train the sweep, and keep for every seed the layer with the lowest validation loss.

    Args:
        features: (images, features). labels: (images,) classes, or (images, labels) of 0/1 or (images, targets).
        train: rows that a seed trains on, one array a seed. validation: rows that choose and stop.
        num_outputs: classes, where `labels` may lack the last of them.
        scaling: of the features; by default of the training rows of all seeds.

    Raises:
        ValueError: no validation row, features that are not finite, or an empty training set.
    """
    _check(features, train, validation, seeds)
    scaling = scaling or Scaling.of(features[np.unique(np.concatenate(train))], settings.standardise)
    if task == "regression":
        return _fit_ridge(features, labels, train, validation, scaling)
    targets = _targets(labels, task, num_outputs)
    x = torch.from_numpy(scaling(features)).to(device)
    y = torch.from_numpy(targets).to(device)
    grid = [(lr, wd) for lr in settings.learning_rates for wd in settings.weight_decays]
    with threads_for(len(seeds) * x.shape[1] * len(grid) * y.shape[1]):
        weights, biases, losses, steps = _descend(x, y, train, validation, task, seeds, grid, settings)
    best = losses.argmin(1)  # (seeds,) over the grid
    rows = np.arange(len(seeds))
    chosen = tuple(
        {"learning_rate": grid[b][0], "weight_decay": grid[b][1], "validation_loss": float(losses[s, b]),
         "steps": int(steps[s, b])} for s, b in zip(rows, best)
    )  # fmt: skip
    return LinearProbe(task, scaling, weights[rows, :, best], biases[rows, best], chosen)


def _check(features, train, validation, seeds):
    if len(train) != len(seeds):
        raise ValueError(f"{len(train)} training sets for {len(seeds)} seeds.")
    if not len(validation):
        raise ValueError("there is no validation image: the probe's settings are chosen on them.")
    if any(not len(rows) for rows in train):
        raise ValueError("a training set is empty.")
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise ValueError(f"features of {len(bad)} images are not finite, rows {bad[:10].tolist()}.")


def _targets(labels: np.ndarray, task: str, num_outputs: int | None) -> np.ndarray:
    if task == "multilabel":
        return labels.astype(np.float32)
    return np.eye(num_outputs or int(labels.max()) + 1, dtype=np.float32)[labels]


def _orders(train: Sequence[np.ndarray], seeds: Sequence[int], steps: int, batch: int) -> torch.Tensor:
    """(seeds, steps, batch) rows: for each seed its images in one random order after the other."""
    orders = []
    for rows, seed in zip(train, seeds):
        rng = np.random.default_rng(seed)
        rounds = -(-steps * batch // len(rows))
        stream = np.concatenate([rng.permutation(rows) for _ in range(rounds)])
        orders.append(stream[: steps * batch].reshape(steps, batch))
    return torch.from_numpy(np.stack(orders))


def _descend(x, y, train, validation, task, seeds, grid, settings):
    """AdamW with a cosine schedule over all layers; gradients of a linear layer need no autograd.

    Returns:
        weights (seeds, features, grid, outputs), biases (seeds, grid, outputs), validation losses and steps (seeds, grid),
        all at each layer's best evaluation, as numpy.
    """
    device, (num_seeds, g, c), features = x.device, (len(seeds), len(grid), y.shape[1]), x.shape[1]
    largest = max(len(rows) for rows in train)
    batch = min(settings.batch_size, largest)
    epoch = -(-largest // batch)
    total = max(settings.min_steps, settings.max_epochs * epoch)
    every = max(epoch, settings.min_steps // settings.max_epochs)  # steps between two evaluations
    orders = _orders(train, seeds, total, batch).to(device)
    start = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    # Every setting of a seed starts from one layer: what is compared is the setting.
    w = torch.stack([0.01 * torch.randn(features, 1, c, generator=s) for s in start]).expand(-1, -1, g, -1)
    w = w.reshape(num_seeds, features, g * c).to(device)
    b = torch.zeros(num_seeds, 1, g * c, device=device)
    rate, decay = (torch.tensor(v, device=device).repeat_interleave(c) for v in zip(*grid))
    moments = [torch.zeros_like(p) for p in (w, w, b, b)]
    rows = torch.from_numpy(np.asarray(validation)).to(device)
    x_validation, y_validation = x[rows], y[rows]
    best_loss = torch.full((num_seeds, g), torch.inf, device=device)
    best_w, best_b, best_step = w.clone(), b.clone(), torch.zeros(num_seeds, g, device=device)
    waited = torch.zeros(num_seeds, g, device=device)
    for step in range(1, total + 1):
        at = orders[:, step - 1]
        x_batch = x[at]  # (seeds, batch, features)
        error = torch.baddbmm(b, x_batch, w).view(num_seeds, batch, g, c)
        error = (error.softmax(-1) if task == "classification" else error.sigmoid()) - y[at].unsqueeze(2)
        error = error.view(num_seeds, batch, g * c).div_(batch)
        now = rate * (0.5 * (1 + np.cos(np.pi * (step - 1) / total)))
        w.mul_(1 - now * decay)
        _adam(w, torch.bmm(x_batch.transpose(1, 2), error), moments[0], moments[1], now, step)
        _adam(b, error.sum(1, keepdim=True), moments[2], moments[3], now, step)
        if step % every and step != total:
            continue
        loss = _loss((x_validation @ w + b).view(num_seeds, -1, g, c), y_validation, task)
        # A layer whose patience has run out is not looked at again: later luck does not count.
        better = (loss < best_loss) & (waited < settings.patience)
        waited = torch.where(better, 0.0, waited + 1)
        best_loss, best_step = torch.where(better, loss, best_loss), torch.where(better, float(step), best_step)
        take = better.repeat_interleave(c, dim=1).unsqueeze(1)
        best_w, best_b = torch.where(take, w, best_w), torch.where(take, b, best_b)
        if (waited >= settings.patience).all():
            break
    best_w, best_b = best_w.view(num_seeds, features, g, c), best_b.view(num_seeds, g, c)
    return best_w.cpu().numpy(), best_b.cpu().numpy(), best_loss.cpu().numpy(), best_step.cpu().numpy()


def _adam(parameter, gradient, first, second, rate, step: int):
    """One step of Adam (Kingma and Ba, 2015) with its usual constants, in place."""
    first.lerp_(gradient, 0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    denominator = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
    parameter.sub_(first.div(denominator).mul_(rate / (1 - 0.9**step)))


def _loss(logits, targets, task: str) -> torch.Tensor:
    """Mean loss over the images: (seeds, images, grid, outputs) to (seeds, grid)."""
    targets = targets.unsqueeze(1)  # (images, 1, outputs)
    if task == "classification":
        return -(logits.log_softmax(-1) * targets).sum(-1).mean(1)
    positive, negative = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    return -(positive * targets + negative * (1 - targets)).mean(-1).mean(1)


def _fit_ridge(features, labels, train, validation, scaling) -> LinearProbe:
    """Ridge regression in closed form; the strength is chosen by the mean squared error on validation."""
    labels = labels.astype(np.float64)
    x, weights, biases, chosen = scaling(features).astype(np.float64), [], [], []
    for rows in train:
        x_mean, y_mean = x[rows].mean(0), labels[rows].mean(0)
        y_scale = np.maximum(labels[rows].std(0), 1e-12)  # targets in different units weigh the same
        u, s, vt = np.linalg.svd(x[rows] - x_mean, full_matrices=False)
        projected = u.T @ ((labels[rows] - y_mean) / y_scale)
        best = None
        for strength in RIDGE_STRENGTHS:
            w = vt.T @ ((s / (s**2 + strength))[:, None] * projected) * y_scale
            error = (x[validation] - x_mean) @ w + y_mean - labels[validation]
            loss = float(((error / y_scale) ** 2).mean())
            if best is None or loss < best[0]:
                best = loss, strength, w, y_mean - x_mean @ w
        weights.append(best[2])
        biases.append(best[3])
        chosen.append({"ridge_strength": best[1], "validation_loss": best[0]})
    return LinearProbe(
        "regression", scaling, np.stack(weights).astype(np.float32), np.stack(biases).astype(np.float32), tuple(chosen)
    )
