# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Crops and augmentations for pre-training, and the order of images: pure functions of (seed, epoch, position)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .augmentations import UltrasoundAugmentation
from .corpus import MAX_TRIES
from .memory import keep_freed_memory
from .reading import UnreadableFile


__all__ = [
    "AugmentedCorpus",
    "Crop",
    "PretrainTransform",
    "StreamBatchSampler",
    "UltrasoundAugmentation",
    "collate",
    "to_float",
]


@dataclass(frozen=True)
class Crop:
    """What is done to the geometry of an image: a box, in units of its height and width, then flips of what was cut out."""

    top: float
    left: float
    height: float
    width: float
    flip_horizontal: bool = False
    flip_vertical: bool = False


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
        return self.apply(pixels, self.draw(*pixels.shape[-2:], rng))

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Crop:
        """The crop of an image of that many pixels."""
        top, left, h, w = self.box(height, width, rng)
        horizontal = bool(rng.random() < self.flip)
        vertical = bool(self.vertical_flip and rng.random() < self.vertical_flip)
        return Crop(top / height, left / width, h / height, w / width, horizontal, vertical)

    def apply(self, pixels: torch.Tensor, crop: Crop) -> torch.Tensor:
        """(channels, height, width) to (channels, image_size, image_size)."""
        height, width = pixels.shape[-2:]
        box = [
            round(crop.top * height),
            round(crop.left * width),
            round(crop.height * height),
            round(crop.width * width),
        ]
        size = [self.image_size, self.image_size]
        pixels = F.resized_crop(pixels, *box, size, InterpolationMode.BICUBIC, antialias=True)
        flipped = [-1] * crop.flip_horizontal + [-2] * crop.flip_vertical
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
    """A corpus whose items are asked for as (epoch, index, position): everything drawn is a function of (seed, key) alone.

    So neither the number of processes nor that of workers, of micro-steps or of images a step decides how an image is
    cropped or which of its patches are hidden. The position in the epoch is part of the key because an epoch may show an
    image twice, and no two crops are to be the same.

    Items are the corpus's, with `pixels` cropped, and `mask` and `predicted` where `masks` is given, `teacher_pixels`
    with `student_only`, `codes` with `targets`.

    Args:
        augmentation: applied to the crop. student_only: the crop as it was before is kept as `teacher_pixels`.
        masks: `pretraining.masking.PatchMasks`. targets: an open `pretraining.target_cache.TargetCache`.
    """

    def __init__(
        self,
        corpus: Dataset,
        transform: PretrainTransform,
        seed: int,
        augmentation: UltrasoundAugmentation | None = None,
        student_only: bool = False,
        masks: Callable[[torch.Tensor, np.random.Generator], dict] | None = None,
        targets=None,
    ):
        self.corpus, self.transform, self.seed = corpus, transform, seed
        self.augmentation, self.student_only = augmentation, student_only
        self.masks, self.targets = masks, targets
        keep_freed_memory()

    def __setstate__(self, state: dict):  # in a worker that was spawned
        self.__dict__.update(state)
        keep_freed_memory()

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        index, problem = key[1], ""
        for _ in range(MAX_TRIES):
            item, crop = self._cut(index, key)
            item["unreadable"] = problem = problem or item["unreadable"]
            if self.targets is None:
                return item
            try:
                return item | {"codes": self.targets.read(item["index"], crop, item["predicted"])}
            except UnreadableFile as error:  # it could not be read when the cache was made
                problem = problem or f"{item['id']}: {error.reason}"
                index = (item["index"] + 1) % len(self.corpus)
        raise UnreadableFile(self.corpus.name, f"{MAX_TRIES} images in a row have no targets, the first: {problem}")

    def _cut(self, index: int, key: tuple[int, int, int]) -> tuple[dict, Crop]:
        """Image `index` with what is drawn for `key`, and its crop."""
        item = self.corpus[index]
        rng = np.random.default_rng([self.seed, *key])
        crop = self.transform.draw(*item["pixels"].shape[-2:], rng)
        item["pixels"] = pixels = self.transform.apply(item["pixels"], crop)
        if self.augmentation is not None:
            if self.student_only:
                item["teacher_pixels"] = pixels
            item["pixels"] = self.augmentation(to_float(pixels), rng).mul_(255).round_().to(torch.uint8)
        if self.masks is not None:
            # A generator of its own: with or without augmentation, the same patches are hidden.
            item |= self.masks(pixels, np.random.default_rng([self.seed, *key, 1]))
        return item, crop


class StreamBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """This rank's batches of (epoch, index, position), without end.

    Training images are one endless stream: position p shows image `order(seed, p // length)[p % length]`. A step of the
    optimiser takes the next `batch_size * accumulation * num_replicas` of it, whoever computes them, so that one process,
    several, and accumulation see the same images in every step. Steps run across the end of an epoch: every batch is
    full, no image is dropped or shown more often than another, and a data set smaller than a batch trains too.

    Within a step the images are sorted by index before they are dealt out. It makes no difference to the gradient, and each
    rank then reads row groups of its own.

    Args:
        length: images an epoch.
        accumulation: batches a step. start: positions of the stream that have been shown.
        order: from (seed, epoch) to `length` indices (`streaming.EpochPlan`); a permutation where it is None.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        num_replicas: int = 1,
        rank: int = 0,
        start: int = 0,
        order: Callable[[int, int], np.ndarray] | None = None,
    ):
        self.length, self.batch_size, self.seed, self.accumulation = length, batch_size, seed, accumulation
        self.num_replicas, self.rank, self.start = num_replicas, rank, start
        self.order = order or (lambda seed, epoch: np.random.default_rng([seed, epoch]).permutation(length))

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        mine = self.batch_size * self.accumulation
        at, orders = self.start, {}
        while True:
            keys = sorted(self._keys(at, mine * self.num_replicas, orders), key=lambda key: (key[1], key))
            for first in range(self.rank * mine, (self.rank + 1) * mine, self.batch_size):
                yield keys[first : first + self.batch_size]
            at += mine * self.num_replicas

    def _keys(self, at: int, count: int, orders: dict) -> Iterator[tuple[int, int, int]]:
        """`count` keys from position `at` of the stream on; `orders` holds the epochs that are under way."""
        while count:
            epoch, place = divmod(at, self.length)
            if epoch not in orders:
                orders.clear()
                orders[epoch] = self.order(self.seed, epoch)
            part = orders[epoch][place : place + count].tolist()
            yield from ((epoch, index, place + n) for n, index in enumerate(part))
            at, count = at + len(part), count - len(part)


def collate(items: Sequence[dict]) -> dict:
    """Items to a batch: tensors stacked, uint8 as they are, `id` and `unreadable` as lists.

    A batch of grey images alone has one channel, (batch, 1, size, size): three of them are made where they are used, as
    a view, so that a third of the bytes goes through queues and to the device.
    """
    batch = {"id": [item["id"] for item in items], "unreadable": [item["unreadable"] for item in items]}
    for name in ("pixels", "teacher_pixels"):
        if name in items[0]:
            channels = max(len(item[name]) for item in items)
            batch[name] = torch.stack([item[name].expand(channels, -1, -1) for item in items])
    for name in ("mask", "predicted", "loss_mask", "codes"):
        if name in items[0]:
            batch[name] = torch.stack([item[name] for item in items])
    return batch
