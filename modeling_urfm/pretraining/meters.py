# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What is logged between two entries of the log: means over the steps of a window, and how the machine was used."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..modeling_urfm import take


class Clock:
    """Seconds of training: evaluations and checkpoints are left out, the parts of a run before this one counted.

    Args:
        before: seconds of those parts.
    """

    def __init__(self, before: float = 0.0):
        self._ended, self._started = before, time.perf_counter()  # None: paused

    @property
    def seconds(self) -> float:
        return self._ended + (time.perf_counter() - self._started if self._started is not None else 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._ended, self._started = self.seconds, None
        try:
            yield
        finally:
            self._started = time.perf_counter()


class Window:
    """Collects steps until `entry` is asked for; sums stay on the device, so that nothing waits for it.

    Args:
        accelerator: reduces over the processes. clock: of the training. flops_per_image: model FLOPs of a training step an image.
        peak_flops: what one process's device multiplies matrices at, in FLOP/s; None leaves `mfu` out.
    """

    def __init__(self, accelerator, clock: Clock, flops_per_image: float, peak_flops: float | None):
        self.accelerator, self.clock = accelerator, clock
        self.flops_per_image, self.peak_flops = flops_per_image, peak_flops
        self.loss = torch.zeros((), device=accelerator.device)
        self.norm, self.taken = torch.zeros_like(self.loss), torch.zeros_like(self.loss)
        self.restart(0.0)

    def restart(self, waited: float):
        """Begin anew; `waited` is the loader's total waiting time so far, in seconds."""
        for total in (self.loss, self.norm, self.taken):
            total.zero_()
        self.images, self.waited = 0, waited
        self.started = self.clock.seconds

    def add(self, loss: torch.Tensor, norm: torch.Tensor | float, skipped: torch.Tensor, images: int):
        """A step: this process's part of its loss, the norm of its gradient, and its images over all processes.

        `skipped` is above 0 where the step was not taken; then it leaves the means alone.
        """
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self.loss.device)
        taken = skipped.to(self.loss.device) == 0
        for total, value in ((self.loss, loss), (self.norm, norm), (self.taken, torch.ones_like(self.loss))):
            total += torch.where(taken, value, 0.0)
        self.images += images

    def entry(self, waited: float) -> dict[str, float | None]:
        """Means of the window, over all processes: `loss`, `grad_norm`, `images_per_s`, `data_wait` (share of the time),
        `mfu` (model FLOPs over what the device could do) and `memory_gib` (peak of this process).

        Every process has to call it.
        """
        elapsed = max(self.clock.seconds - self.started, 1e-9)
        loss = self.accelerator.reduce(self.loss, reduction="sum")
        speed = self.images / elapsed
        values = {
            # None where every step was skipped
            "loss": (loss / self.taken).item() if self.taken else None,
            "grad_norm": (self.norm / self.taken).item() if self.taken else None,
            "images_per_s": speed,
            "data_wait": (waited - self.waited) / elapsed,
            "memory_gib": peak_memory(self.accelerator.device) / 2**30,
        }
        return values | {"mfu": self.utilisation(speed)}

    def utilisation(self, images_per_s: float) -> float | None:
        """Model-FLOP utilisation at a speed over all processes: model FLOPs over what their devices could do."""
        if not self.peak_flops:
            return None
        return images_per_s * self.flops_per_image / (self.peak_flops * self.accelerator.num_processes)


@torch.no_grad()
def target_cosine(outputs, batch) -> float | None:
    """Mean cosine similarity of a micro-batch's predictions to the teacher's features; None for pixel targets.

    Args:
        outputs: `URFMForPreTrainingOutput`. batch: `batches.Batch`.
    """
    if batch.targets is None:
        return None
    predictions = outputs.predictions
    if outputs.predicted_indices is None:  # the self-attention decoder predicts every patch
        predictions = take(predictions, batch.predicted)
    return torch.nn.functional.cosine_similarity(predictions.float(), batch.targets, dim=-1).mean().item()


def forget_peak_memory(device: torch.device):
    """Have `peak_memory` of a GPU begin anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of the GPU's memory, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB
