# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""From decoded pixels to what an encoder takes, as its own image processor does it, in two steps.

`shrink` is what one image needs (resize, crop) and keeps 8 bits and a single grey channel; `normalize` is what a whole
batch needs and can run on a GPU: a quarter to a twelfth of the bytes travels there, and no image is copied twice.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


# Pillow's numbers, which processors store, to torchvision's names. Lanczos has none for tensors.
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# How far a rule may be from the processor, in normalised units: two levels of 8 bits, as Pillow and torchvision differ.
MAX_DIFFERENCE, MEAN_DIFFERENCE = 0.08, 0.005


@dataclass(frozen=True)
class Preparation:
    """Resize, centre crop, normalise.

    Attributes:
        size: (height, width) of the result.
        resize_to: (height, width), squeezing; or what the shorter side becomes; None: as it is.
        interpolation: "nearest", "bilinear" or "bicubic", with antialiasing.
        mean, std: of the three channels, in units of 0..255.
        floor_crop: an odd margin is cut as transformers does (rounded down), else as torchvision does (rounded).
    """

    size: tuple[int, int]
    resize_to: tuple[int, int] | int | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    floor_crop: bool = False

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (1 or 3, height, width) -> float32 (3, *size), normalised."""
        return self.normalize(self.shrink(pixels)[None])[0]

    def shrink(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (1 or 3, height, width) -> uint8 (1 or 3, *size)."""
        if self.resize_to is not None:
            to = [self.resize_to] if isinstance(self.resize_to, int) else list(self.resize_to)
            pixels = F.resize(pixels, to, InterpolationMode(self.interpolation), antialias=True)
        height, width = pixels.shape[-2:]
        if (height, width) == self.size:
            return pixels
        if self.floor_crop and height >= self.size[0] and width >= self.size[1]:
            return F.crop(pixels, (height - self.size[0]) // 2, (width - self.size[1]) // 2, *self.size)
        return F.center_crop(pixels, list(self.size))

    def normalize(self, batch: torch.Tensor) -> torch.Tensor:
        """uint8 (..., 1 or 3, height, width) -> float32 (..., 3, height, width)."""
        mean, std = (
            torch.tensor(v, dtype=torch.float32).to(batch.device, non_blocking=True).view(3, 1, 1)
            for v in (self.mean, self.std)
        )
        return (batch - mean).div_(std)  # one grey channel becomes three here


@dataclass(frozen=True)
class ProcessorPreparation:
    """An image processor of transformers that no rule describes, such as one that finds the scan region: called itself.

    Attributes:
        processor: called with `options` beside the image. size: (height, width) of the result.
    """

    processor: Any
    options: dict
    size: tuple[int, int]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.shrink(pixels)

    def shrink(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (1 or 3, height, width) -> float32 (3, *size), normalised."""
        image = pixels.expand(3, -1, -1)
        prepared = self.processor(image, return_tensors="pt", input_data_format="channels_first", **self.options)
        return prepared["pixel_values"][0]

    def normalize(self, batch: torch.Tensor) -> torch.Tensor:
        return batch

    def __repr__(self) -> str:
        return f"ProcessorPreparation({self.processor.to_json_string()}, {self.options}, {self.size})"


def preparation_of(processor, image_size: int | None = None) -> Preparation | ProcessorPreparation:
    """What an image processor of transformers does: as a rule where one gives the same pixels, else the processor itself.

    Args:
        image_size: side in pixels of the result, instead of the processor's own; its resize grows in proportion.

    Raises:
        ValueError: the processor gives images of no fixed size.
    """
    values = processor.to_dict()
    options = {} if image_size is None else _resized(values, image_size)
    trials = [processor(image, return_tensors="pt", input_data_format="channels_first", **options)["pixel_values"][0]
              for image in _trial_images()]  # fmt: skip
    sizes = {tuple(trial.shape[-2:]) for trial in trials}
    if len(sizes) != 1:
        raise ValueError(
            f"{type(processor).__name__} gives images of no fixed size: {sorted(sizes)}. Give --image_size."
        )
    size = sizes.pop()
    rule = _rule(values | options, size)
    if rule is not None:
        gaps = [(rule(image) - trial).abs() for image, trial in zip(_trial_images(), trials)]
        if all(gap.max() <= MAX_DIFFERENCE and gap.mean() <= MEAN_DIFFERENCE for gap in gaps):
            return rule
    return ProcessorPreparation(processor, options, size)


def _resized(values: dict, side: int) -> dict:
    """Options of a processor's call that make its result `side` pixels high and wide."""
    square = {"height": side, "width": side}
    if not values.get("do_center_crop"):
        return {"size": square}
    size, crop = values["size"], values["crop_size"]["height"]
    shorter = size.get("shortest_edge") or size.get("height")
    grown = round(shorter * side / crop)
    return {
        "size": {"shortest_edge": grown} if size.get("shortest_edge") else {"height": grown, "width": grown},
        "crop_size": square,
    }


def _rule(values: dict, size: tuple[int, int]) -> Preparation | None:
    """The rule that a processor's settings read like, if any; whether it is true is for the trial to say."""
    steps = ("do_crop_scan_region", "do_pad_square", "do_percentile_rescale", "do_pad")
    interpolation = RESAMPLE.get(values.get("resample"))
    to = values.get("size") or {}
    if any(values.get(step) for step in steps) or (values.get("do_resize") and interpolation is None):
        return None
    resize_to = None
    if values.get("do_resize"):
        resize_to = to.get("shortest_edge") or (to.get("height"), to.get("width"))
        if not isinstance(resize_to, int) and None in resize_to:
            return None
    factor = values.get("rescale_factor") or 1 / 255 if values.get("do_rescale", True) else 1.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if values.get("do_normalize"):
        mean, std = values["image_mean"], values["image_std"]
    mean, std = (tuple(float(v) / factor for v in channel) for channel in (mean, std))
    return Preparation(size, resize_to, interpolation or "bicubic", mean, std, floor_crop=True)


def _trial_images() -> list[torch.Tensor]:
    """Speckle in a black frame, of odd shapes."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for height, width in ((301, 422), (487, 350)):
        coarse = torch.randint(0, 256, (3, height // 8, width // 8), generator=generator, dtype=torch.uint8)
        inner = F.resize(coarse, [height - 60, width - 90], InterpolationMode.BICUBIC, antialias=True)
        images.append(F.pad(inner, [50, 20, 40, 40]))
    return images
