# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Crops for pre-training, and the order of images; both are pure functions of (seed, epoch, position)."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


class PretrainTransform:
    """Random resized crop and horizontal flip: uint8 (3, height, width) to float32 (3, size, size) in [0, 1].

    The crop's area is uniform in `scale` of the image's, its aspect ratio log-uniform in `ratio` (Szegedy et al., 2015;
    the distribution of torchvision's RandomResizedCrop). No colour jitter: teacher and student see the same crop.
    """

    def __init__(self, image_size: int, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip: float = 0.5):
        self.image_size, self.scale, self.ratio, self.flip = image_size, scale, ratio, flip

    def __call__(self, pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        top, left, height, width = self.box(*pixels.shape[-2:], rng)
        size = [self.image_size, self.image_size]
        pixels = F.resized_crop(pixels, top, left, height, width, size, InterpolationMode.BICUBIC, antialias=True)
        if rng.random() < self.flip:
            pixels = pixels.flip(-1)
        return pixels.float() / 255

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


class AugmentedCorpus(Dataset):
    """A corpus whose items are asked for as (epoch, index): the crop is a function of (seed, epoch, index) alone."""

    def __init__(self, corpus: Dataset, transform: PretrainTransform, seed: int):
        self.corpus, self.transform, self.seed = corpus, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        item = self.corpus[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        return item | {"pixels": self.transform(item["pixels"], rng)}


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) without end, each epoch in its own order.

    The order of an epoch is a function of (seed, epoch). Each rank takes every `num_replicas`-th image of it; ranks get
    equally many by repeating the epoch's first images. The last batch of an epoch may be short, none is dropped: a data
    set smaller than one batch trains too.

    Args:
        start: micro-steps that have been taken; the next batch is the one that would have followed.
    """

    def __init__(self, length: int, batch_size: int, seed: int, num_replicas: int = 1, rank: int = 0, start: int = 0):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.num_replicas, self.rank, self.start = num_replicas, rank, start
        self.batches_per_epoch = math.ceil(math.ceil(length / num_replicas) / batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, skip = divmod(self.start, self.batches_per_epoch)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            each = math.ceil(self.length / self.num_replicas)
            mine = np.resize(order, each * self.num_replicas)[self.rank :: self.num_replicas].tolist()
            for batch in range(skip, self.batches_per_epoch):
                yield [(epoch, index) for index in mine[batch * self.batch_size : (batch + 1) * self.batch_size]]
            epoch, skip = epoch + 1, 0


def collate(items: Sequence[dict]) -> dict:
    """Items to a batch: `pixels` stacked, `id` and `unreadable` as lists."""
    return {
        "pixels": torch.stack([item["pixels"] for item in items]),
        "id": [item["id"] for item in items],
        "unreadable": [item["unreadable"] for item in items],
    }
