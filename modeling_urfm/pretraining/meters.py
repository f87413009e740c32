# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What is logged between two entries of the log: means over the steps of a window, and how the machine was used."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


JOULES_PER_KWH = 3.6e6
POWERCAP = Path("/sys/class/powercap")


class Energy:
    """Electricity that a machine's own counters saw: of this process's GPU (NVML), and of the processors (RAPL).

    They count whatever ran there, other programs too, and nothing of fans, disks, network and power supplies. Where the
    machine has no counter, or keeps it from users (RAPL is often root's alone), there is no figure.

    Args:
        device: of this process. processors: whether this process counts for its machine's processors; one a machine should.
    """

    def __init__(self, device: torch.device, processors: bool = True):
        self._counters: dict[str, list[Callable[[], float]]] = {}
        if device.type == "cuda" and (read := _gpu_counter(device)):
            self._counters["gpu"] = [read]
        if processors and (reads := _processor_counters()):
            self._counters["processors"] = reads
        self.sample()

    def sample(self) -> None:
        """Look at the counters. Those of processors begin anew after some minutes of full load, so look more often."""
        for name, reads in list(self._counters.items()):
            try:
                for read in reads:
                    read()
            except (OSError, ValueError, RuntimeError):  # a counter that went away makes its sum wrong
                del self._counters[name]

    @property
    def kwh(self) -> dict[str, float]:
        """kWh since the start, by part: "gpu", "processors"; a part that is not measured is not there."""
        self.sample()
        return {name: sum(read() for read in reads) / JOULES_PER_KWH for name, reads in self._counters.items()}


def add_energy(before: dict[str, float] | None, now: Iterable[dict[str, float]]) -> dict[str, float] | None:
    """Sum over processes, and over the parts of a run.

    Args:
        before: kWh of the run's earlier parts; {} if there are none, None if they were not measured. now: of each process.

    Returns:
        kWh by part of the machine, those that were measured all along; None if none was.
    """
    total: dict[str, float] = {}
    for part in now:
        for name, kwh in part.items():
            total[name] = total.get(name, 0.0) + kwh
    if before is None:
        return None
    if before:
        total = {name: total[name] + kwh for name, kwh in before.items() if name in total}
    return total or None


def _counting(read: Callable[[], float], wrap: float | None = None) -> Callable[[], float]:
    """Joules since now, of a counter in joules that begins anew at `wrap`."""
    last, total = read(), 0.0

    def since() -> float:
        nonlocal last, total
        now = read()
        total += now - last + (wrap or 0.0) * (now < last)
        last = now
        return total

    return since


def _processor_counters(powercap: Path | None = None) -> list[Callable[[], float]]:
    """A counter for each processor package; none where one of them can't be read."""
    powercap = powercap or POWERCAP
    counters = []
    try:
        for zone in sorted(powercap.glob("intel-rapl:[0-9]*")):
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                wrap = int((zone / "max_energy_range_uj").read_text()) / 1e6
                counters.append(_counting(lambda zone=zone: int((zone / "energy_uj").read_text()) / 1e6, wrap))
    except (OSError, ValueError):
        return []
    return counters


def _gpu_counter(device: torch.device) -> Callable[[], float] | None:
    """The energy counter of a GPU (Volta and later), by its UUID, so that CUDA_VISIBLE_DEVICES doesn't matter."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID((uuid if uuid.startswith("GPU-") else f"GPU-{uuid}").encode())
        return _counting(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
    except Exception:  # no NVML, an older GPU, a slice of one: many kinds of error, and none may end a training
        return None


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
