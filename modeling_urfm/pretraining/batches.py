# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a step trains on, on the device: normalised crops, which patches are hidden, and the teacher's features."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..data.transforms import to_float
from ..image_processing_urfm import URFMImageProcessor


@dataclass
class Batch:
    """A micro-batch of one process.

    Attributes:
        pixels: (batch, 3, height, width), normalised. mask: (batch, patches), True = hidden.
        predicted: (batch, predicted) raster indices of the hidden patches that are predicted.
        targets: (batch, predicted, features), or None. loss_mask: (batch, patches), True = shows ultrasound, or None.
        ids: names of the images. unreadable: "id: reason" of images that these stand in for.
    """

    pixels: torch.Tensor
    mask: torch.Tensor
    predicted: torch.Tensor
    targets: torch.Tensor | None
    loss_mask: torch.Tensor | None
    ids: list[str]
    unreadable: list[str]

    @property
    def counted(self) -> torch.Tensor:
        """Number of predicted patches that show ultrasound, on the device."""
        return self.loss_mask.gather(1, self.predicted).sum().float()


class Normalize:
    """[0, 1] to what the encoder takes: the processor's mean and deviation."""

    def __init__(self, device):
        processor = URFMImageProcessor()
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1)
            for values in (processor.image_mean, processor.image_std)
        )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std


class DeviceBatches:
    """Batches of a loader on the device, with their targets.

    On a GPU the next batch is copied, and its targets are computed, on a stream of their own while the student trains on
    this one: copies cost nothing, and the teacher fills what the student leaves idle.

    Args:
        loader: gives dicts as `data.transforms.collate` makes them.
        teacher: `Teacher`, or None. cache: `TargetCache` that decodes the loader's `codes`, or None.
        grid: rows and columns of patches.

    Attributes:
        waited: seconds that the training process has spent waiting for the loader.
    """

    def __init__(self, loader: Iterable[dict], device: torch.device, grid: tuple[int, int], teacher=None, cache=None):
        self.loader, self.device, self.grid, self.teacher, self.cache = iter(loader), device, grid, teacher, cache
        self.normalize, self.waited = Normalize(device), 0.0
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead: Batch | None = None

    def close(self):
        """End the loader's workers, which read ahead."""
        shut_down = getattr(self.loader, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.stream is None:
            return self._prepare(self._read())
        ready = self.ahead or self._read_ahead()
        main = torch.cuda.current_stream(self.device)
        main.wait_stream(self.stream)
        for tensor in vars(ready).values():
            if torch.is_tensor(tensor):
                tensor.record_stream(main)
        self.ahead = self._read_ahead()
        return ready

    def _read_ahead(self) -> Batch:
        read = self._read()
        with torch.cuda.stream(self.stream):
            return self._prepare(read)

    def _read(self) -> dict:
        started = time.perf_counter()
        read = next(self.loader)
        self.waited += time.perf_counter() - started
        return read

    def _prepare(self, read: dict) -> Batch:
        def here(name):
            return read[name].to(self.device, non_blocking=True) if name in read else None

        # Batches come as bytes, grey ones in one channel; the other two are views of it.
        pixels = to_float(here("pixels")).expand(-1, 3, -1, -1)
        predicted, targets = here("predicted"), None
        if self.cache is not None:
            targets = self.cache.decode(here("codes"))
        elif self.teacher is not None:
            clean = to_float(here("teacher_pixels")).expand(-1, 3, -1, -1) if "teacher_pixels" in read else pixels
            targets = self.teacher(clean, self.grid, predicted)
        return Batch(
            self.normalize(pixels), here("mask"), predicted, targets, here("loss_mask"), read["id"],
            list(filter(None, read["unreadable"])),
        )  # fmt: skip
