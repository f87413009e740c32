# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A linear layer on frozen patch tokens that are pooled by learnt attention, for what a mean over patches hides.

A few queries look at the tokens as they are and each pools its share of the channels, as in efficient probing (Psomas et
al., 2025) without its value projection: at its start the probe is the linear probe on the mean of the tokens, and it has
few more parameters. A lesion of three patches counts as much as the query finds it worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .sweeps import SweepSettings, threads_for, train_side_by_side


QUERIES = 8  # each pools an equal share of the channels
BLOCK = 64  # images at a time, where no gradient is needed


class AttentiveLayers(nn.Module):
    """Several probes side by side: (batch, tokens, features) to (batch, probes, outputs).

    Args:
        queries: at most this many; the next lower divisor of `features` is taken.
    """

    def __init__(self, probes: int, features: int, outputs: int, generator: torch.Generator, queries: int = QUERIES):
        super().__init__()
        queries = next(q for q in range(min(queries, features), 0, -1) if features % q == 0)
        self.queries = nn.Parameter(torch.zeros(probes, queries, features))
        start = 0.01 * torch.randn(1, features, outputs, generator=generator)
        self.weights = nn.Parameter(start.repeat(probes, 1, 1))
        self.biases = nn.Parameter(torch.zeros(probes, outputs))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        probes, queries, features = self.queries.shape
        scores = tokens @ self.queries.view(-1, features).T / features**0.5  # (batch, tokens, probes x queries)
        attention = scores.softmax(1).transpose(1, 2).reshape(len(tokens), probes, queries, -1)
        shares = tokens.view(len(tokens), -1, queries, features // queries)
        pooled = torch.einsum("bpql,blqd->bpqd", attention, shares).flatten(2)  # (batch, probes, features)
        return torch.einsum("bpd,pdc->bpc", pooled, self.weights) + self.biases


@dataclass(frozen=True)
class TokenScaling:
    """Mean and scale of every channel over the tokens of the training images: (features,)."""

    mean: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, tokens: np.ndarray, rows: np.ndarray) -> "TokenScaling":
        total, squares, count = 0.0, 0.0, 0
        for part in np.array_split(rows, -(-len(rows) // BLOCK)):
            block = tokens[part].astype(np.float64).reshape(-1, tokens.shape[-1])
            total, squares, count = total + block.sum(0), squares + (block**2).sum(0), count + len(block)
        mean, variance = total / count, squares / count - (total / count) ** 2
        scale = np.where(variance > 1e-8, np.sqrt(np.maximum(variance, 0)), 1.0)
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(scale).float())

    def __call__(self, tokens: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        tokens = torch.from_numpy(np.ascontiguousarray(tokens)).to(device).float()
        return (tokens - self.mean.to(device)) / self.scale.to(device)


@dataclass(frozen=True)
class AttentiveProbe:
    """A trained probe a seed.

    Attributes:
        models: the probes of a seed, and which of them validation chose. spread: mean and scale of the targets of a
            regression. chosen: the setting that validation chose, a seed.
    """

    task: str
    scaling: TokenScaling
    models: tuple[tuple[AttentiveLayers, int], ...]
    spread: tuple[np.ndarray, np.ndarray]
    chosen: tuple[dict, ...]

    @torch.no_grad()
    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """(images, tokens, features) to (seeds, images, outputs): probabilities, or values where it is a regression."""
        device, outputs = self.models[0][0].queries.device, []
        for at in range(0, len(tokens), BLOCK):
            block = self.scaling(tokens[at : at + BLOCK], device)
            outputs.append(torch.stack([model(block)[:, take] for model, take in self.models]))
        values = torch.cat(outputs, 1).cpu()
        if self.task == "classification":
            return values.softmax(-1).numpy()
        return (
            values.sigmoid().numpy() if self.task == "multilabel" else values.numpy() * self.spread[1] + self.spread[0]
        )


def fit_attentive_probe(
    tokens: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    task: str = "classification",
    num_outputs: int | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    settings: SweepSettings | None = None,
    device: str | torch.device = "cpu",
) -> AttentiveProbe:
    """Train one probe a seed and learning rate; validation chooses.

    Args:
        tokens: (images, tokens, features). labels: (images,) classes, or (images, labels) of 0/1 or (images, targets).
        train, validation: rows. num_outputs: classes, where `labels` may lack the last of them.
    """
    settings, scaling = settings or SweepSettings(), TokenScaling.of(tokens, train)
    spread = np.float32(0), np.float32(1)
    if task == "classification":
        targets = np.eye(num_outputs or int(labels.max()) + 1, dtype=np.float32)[labels]
    else:
        targets = labels.astype(np.float32)
    if task == "regression":
        spread = targets[train].mean(0), np.maximum(targets[train].std(0), 1e-6)
    y = torch.from_numpy((targets - spread[0]) / spread[1]).to(device)
    models, chosen = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        model = AttentiveLayers(len(settings.grid), tokens.shape[-1], y.shape[1], generator).to(device)

        def losses(rows, model=model):
            return _losses(model(scaling(tokens[rows], device)), y[rows], task)

        with threads_for(settings.batch_size * tokens[0].size):
            facts = train_side_by_side(model, losses, train, validation, settings, seed)
        models.append((model, facts.pop("setting")))
        chosen.append(facts)
    return AttentiveProbe(task, scaling, tuple(models), spread, tuple(chosen))


def _losses(values: torch.Tensor, targets: torch.Tensor, task: str) -> torch.Tensor:
    """(batch, probes, outputs) and (batch, outputs) to the mean loss of every probe: (probes,)."""
    targets = targets.unsqueeze(1).expand_as(values)
    if task == "classification":
        return -(values.log_softmax(-1) * targets).sum(-1).mean(0)
    if task == "multilabel":
        return nn.functional.binary_cross_entropy_with_logits(values, targets, reduction="none").mean((0, 2))
    return (values - targets).square().mean((0, 2))
