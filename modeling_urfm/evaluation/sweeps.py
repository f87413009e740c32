# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Several settings of a small model trained side by side: AdamW, a cosine schedule, and early stopping of each on its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import nn


SMALL = 2_000_000  # numbers in an operand, below which a second thread costs more than it brings


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """One thread while operands are small: threads that wait for one another thousands of times a second lose to it.

    On a machine that others use too, a step of a small probe is a hundred times faster.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if numbers < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class SweepSettings:
    """AdamW over every pair of `learning_rates` and `weight_decays`; validation chooses one.

    Attributes:
        max_epochs: more where they make fewer than `min_steps` steps, so that a small data set is learnt too.
        patience: epochs without a lower validation loss after which a model is left as it was at its best; it grows with
            the epochs.
    """

    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2)
    weight_decays: Sequence[float] = (1e-2,)
    batch_size: int = 64
    max_epochs: int = 40
    min_steps: int = 400
    patience: int = 8

    @property
    def grid(self) -> list[tuple[float, float]]:
        return list(product(self.learning_rates, self.weight_decays))


def train_side_by_side(
    model: nn.Module,
    losses: Callable[[np.ndarray], torch.Tensor],
    train: np.ndarray,
    validation: np.ndarray,
    settings: SweepSettings,
    seed: int,
) -> dict:
    """Train `model` in place, and leave every setting as it was at its lowest validation loss.

    Args:
        model: the first dimension of each of its parameters is the settings, in the order of `settings.grid`. Parameters
            called `weights` decay.
        losses: rows to the mean loss over them of every setting: (settings,).
        train, validation: rows. seed: of the order of the images.

    Returns:
        {"setting": the best one's number, "learning_rate", "weight_decay", "validation_loss", "epochs"}
    """
    if not len(train) or not len(validation):
        raise ValueError(f"{len(train)} training and {len(validation)} validation images: a probe needs both.")
    rng, parameters = np.random.default_rng(seed), dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    rate, decay = (torch.tensor(values, device=device) for values in zip(*settings.grid))
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    best, waited, best_epoch = torch.full_like(rate, torch.inf), torch.zeros_like(rate), torch.zeros_like(rate)
    batch, step = min(settings.batch_size, len(train)), 0
    per_epoch = -(-len(train) // batch)
    epochs = max(settings.max_epochs, -(-settings.min_steps // per_epoch))
    total, patience = epochs * per_epoch, settings.patience * epochs / settings.max_epochs
    for epoch in range(1, epochs + 1):
        order = rng.permutation(train)
        for at in range(0, len(order), batch):
            model.zero_grad()
            losses(order[at : at + batch]).sum().backward()
            step += 1
            now = rate * (0.5 * (1 + np.cos(np.pi * (step - 1) / total)))
            for name, parameter in parameters.items():
                shape = (-1, *[1] * (parameter.dim() - 1))
                decays = decay.view(shape) if name == "weights" else 0.0
                _adamw(parameter, moments[name], now.view(shape), decays, step)
        with torch.no_grad():
            parts = np.array_split(validation, -(-len(validation) // batch))
            loss = sum(len(rows) * losses(rows) for rows in parts) / len(validation)
            # A model whose patience has run out is not looked at again: later luck does not count.
            better = (loss < best) & (waited < patience)
            waited = torch.where(better, 0.0, waited + 1)
            best, best_epoch = torch.where(better, loss, best), torch.where(better, float(epoch), best_epoch)
            for name, parameter in parameters.items():
                kept[name][better] = parameter[better]
        if (waited >= patience).all():
            break
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    number = int(best.argmin())
    return {
        "setting": number, "learning_rate": settings.grid[number][0], "weight_decay": settings.grid[number][1],
        "validation_loss": float(best[number]), "epochs": int(best_epoch[number]),
    }  # fmt: skip


@torch.no_grad()
def _adamw(parameter, moments, rate, decay, step: int):
    """One step of AdamW with its usual constants; Adam's step does not see a gradient's scale, so a rate is a factor."""
    first, second = moments
    first.lerp_(parameter.grad, 0.1)
    second.mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
    move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    parameter.mul_(1 - rate * decay).sub_(rate * move)
