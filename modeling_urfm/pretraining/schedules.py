# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Optimiser, learning rate and moving average, as the masked-modelling literature sets them."""

import math

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


# Tokens and embeddings are not matrices of a layer: weight decay would pull them to the origin for nothing.
NO_DECAY = ("cls_token", "mask_token", "position_embeddings")


def scaled_learning_rate(base_learning_rate: float, global_batch: int) -> float:
    """The linear rule (Goyal et al., 2017): learning rates are given for 256 images a step."""
    return base_learning_rate * global_batch / 256


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices with weight decay; biases, norms, tokens and position embeddings without. Trained ones only."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and name.split(".")[-1] not in NO_DECAY].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def make_optimizer(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, beta2: float
) -> torch.optim.AdamW:
    """AdamW with beta1 = 0.9 (MAE: beta2 = 0.95)."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, betas=(0.9, beta2))


def cosine_schedule(optimizer, warmup_steps: int, total_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up from lr / warmup_steps, then half a cosine down to 0 after the last step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class ModelEMA(AveragedModel):
    """Exponential moving average of a model's weights, with a rising decay at the start.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that short runs aren't dominated by the random start.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: torch.nn.Module):
        """Move towards `model`'s weights by one step."""
        step = int(self.n_averaged)
        self.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        self.update_parameters(model)
