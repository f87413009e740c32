# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Crops and augmentations for pre-training, and the order of images: pure functions of (seed, epoch, position)."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .augmentations import UltrasoundAugmentation


__all__ = ["AugmentedCorpus", "EpochBatchSampler", "PretrainTransform", "UltrasoundAugmentation", "collate", "to_float"]


class PretrainTransform:
    """Random resized crop and flips: uint8 (1 or 3, height, width) to uint8 (1 or 3, size, size).

    The crop's area is uniform in `scale` of the image's, its aspect ratio log-uniform in `ratio` (Szegedy et al., 2015;
    the distribution of torchvision's RandomResizedCrop). No colour jitter: teacher and student see the same crop. Grey
    images stay in one channel, which gives the numbers that three would.

    Args:
        flip, vertical_flip: probabilities. Depth runs downwards, so that a vertical flip shows what no scanner does.
    """

    def __init__(
        self, image_size: int, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip: float = 0.5, vertical_flip: float = 0.0
    ):
        self.image_size, self.scale, self.ratio = image_size, scale, ratio
        self.flip, self.vertical_flip = flip, vertical_flip

    def __call__(self, pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        top, left, height, width = self.box(*pixels.shape[-2:], rng)
        size = [self.image_size, self.image_size]
        pixels = F.resized_crop(pixels, top, left, height, width, size, InterpolationMode.BICUBIC, antialias=True)
        flipped = [-1] if rng.random() < self.flip else []
        if self.vertical_flip and rng.random() < self.vertical_flip:
            flipped.append(-2)
        # Decoders give colour pixel by pixel, which resizes at twice the speed; what leaves is channel by channel.
        return (pixels.flip(flipped) if flipped else pixels).contiguous()

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop."""
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        # No crop of that shape fits: the largest one in the middle whose aspect ratio is allowed.
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return (height - h) // 2, (width - w) // 2, h, w


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [0, 1]; done on the device that trains, as bytes travel four times as fast as floats."""
    return pixels.float().div_(255)


class AugmentedCorpus(Dataset):
    """A corpus whose items are asked for as (epoch, index): the crop is a function of (seed, epoch, index) alone.

    Where an epoch may show an image twice, its position in the epoch is asked for too, and no two crops are the same.

    Args:
        augmentation: applied to the crop. student_only: the crop as it was before is kept as `teacher_pixels`.
    """

    def __init__(
        self,
        corpus: Dataset,
        transform: PretrainTransform,
        seed: int,
        augmentation: UltrasoundAugmentation | None = None,
        student_only: bool = False,
    ):
        self.corpus, self.transform, self.seed = corpus, transform, seed
        self.augmentation, self.student_only = augmentation, student_only
        _keep_freed_memory()

    def __setstate__(self, state: dict):  # in a worker that was spawned
        self.__dict__.update(state)
        _keep_freed_memory()

    def __getitem__(self, key: tuple[int, ...]) -> dict:
        item = self.corpus[key[1]]
        rng = np.random.default_rng([self.seed, *key])
        pixels = self.transform(item["pixels"], rng)
        if self.augmentation is None:
            return item | {"pixels": pixels}
        teacher = {"teacher_pixels": pixels} if self.student_only else {}
        augmented = self.augmentation(to_float(pixels), rng).mul_(255).round_().to(torch.uint8)
        return item | teacher | {"pixels": augmented}


def _keep_freed_memory():
    """Let the process keep the memory of images that it has done with.

    glibc gives freed blocks of an image's size back to the system, and every new image pays for fresh pages: a third of
    the time of decoding in colour. It stops doing so once a larger block has been freed (mallopt(3), M_MMAP_THRESHOLD),
    which costs nothing while nobody writes into it.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


class EpochBatchSampler(Sampler[list[tuple[int, ...]]]):
    """Batches of (epoch, index) without end, each epoch in its own order; with `order`, of (epoch, index, position).

    The order of an epoch is a function of (seed, epoch). Ranks get equally many images by repeating the epoch's first
    ones. The last batch of an epoch may be short, none is dropped: a data set smaller than one batch trains too.

    Args:
        length: images an epoch.
        start: micro-steps that have been taken; the next batch is the one that would have followed.
        order: from (seed, epoch) to `length` indices (`streaming.EpochPlan`); then each rank takes a part in one piece,
            so that it reads row groups of its own. Without it, a permutation, of which each rank takes every
            `num_replicas`-th.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        start: int = 0,
        order: Callable[[int, int], np.ndarray] | None = None,
    ):
        self.length, self.batch_size, self.seed, self.order = length, batch_size, seed, order
        self.num_replicas, self.rank, self.start = num_replicas, rank, start
        self.batches_per_epoch = math.ceil(math.ceil(length / num_replicas) / batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        epoch, skip = divmod(self.start, self.batches_per_epoch)
        each = math.ceil(self.length / self.num_replicas)
        while True:
            if self.order is None:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
                mine = np.resize(order, each * self.num_replicas)[self.rank :: self.num_replicas]
            else:
                positions = np.arange(self.rank * each, (self.rank + 1) * each)
                mine = self.order(self.seed, epoch)[positions % self.length]
            for batch in range(skip, self.batches_per_epoch):
                first, last = batch * self.batch_size, min((batch + 1) * self.batch_size, each)
                keys = [(epoch, index) for index in mine[first:last].tolist()]
                if self.order is not None:
                    keys = [(*key, int(position)) for key, position in zip(keys, positions[first:last])]
                yield keys
            epoch, skip = epoch + 1, 0


def collate(items: Sequence[dict]) -> dict:
    """Items to a batch: pixels stacked, uint8 as they are, `id` and `unreadable` as lists.

    A batch of grey images alone has one channel, (batch, 1, size, size): three of them are made where they are used, as
    a view, so that a third of the bytes goes through queues and to the device.
    """
    batch = {"id": [item["id"] for item in items], "unreadable": [item["unreadable"] for item in items]}
    for name in ("pixels", "teacher_pixels"):
        if name in items[0]:
            channels = max(len(item[name]) for item in items)
            batch[name] = torch.stack([item[name].expand(channels, -1, -1) for item in items])
    return batch
