# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Optimiser and learning rate, as the masked-modelling literature sets them."""

import math

import torch


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
    """AdamW with beta1 = 0.9 (MAE: beta2 = 0.95), in one fused kernel, which can also skip a step by itself (`guard`)."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)


class RunLength:
    """How long a run is, in steps and in images of the stream (`data.transforms.StreamBatchSampler`).

    Args:
        images_per_epoch, global_batch: images. num_train_epochs: passes. max_train_steps: steps; it overrides them.
        start: the step and the position in the stream from which a resumed run goes on; position is not step times
            `global_batch` where the run was begun with another one.
    """

    def __init__(
        self,
        images_per_epoch: int,
        global_batch: int,
        num_train_epochs: float,
        max_train_steps: int | None,
        start: tuple[int, int] = (0, 0),
    ):
        self.global_batch, (self.start_step, self.start_position) = global_batch, start
        rest = max(0, math.ceil((images_per_epoch * num_train_epochs - self.start_position) / global_batch))
        self.total_steps = max_train_steps or max(1, self.start_step + rest)
        self.total_images = self.position(self.total_steps)

    def position(self, step: int) -> int:
        """Images that have been shown after `step` steps."""
        return self.start_position + (step - self.start_step) * self.global_batch


def cosine_schedule(optimizer, length: RunLength, warmup_ratio: float) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a share of the run, then half a cosine down to 0 after the last step.

    The rate follows the images that were shown, not the steps: it goes on without a jump where a resumed run takes more
    or fewer of them a step.
    """
    batch = length.global_batch
    warmup = round(warmup_ratio * length.total_images / batch) * batch

    def factor(step: int) -> float:
        position = max(0, length.position(step))  # torch asks for step 0 even where a run goes on
        if position < warmup:
            return (position + batch) / warmup
        progress = (position - warmup) / max(1, length.total_images - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def set_peak(scheduler: torch.optim.lr_scheduler.LambdaLR, learning_rate: float):
    """Have a schedule that was restored go on under another peak learning rate."""
    scheduler.base_lrs = [learning_rate] * len(scheduler.base_lrs)
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs):
        group["lr"] = rate * scheduler.lr_lambdas[0](scheduler.last_epoch)
