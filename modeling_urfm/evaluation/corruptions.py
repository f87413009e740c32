# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Eight ways in which an ultrasound image gets worse, at three severities: does a probe trained on clean images still hold?

Blur, contrast and speckle have the strengths of US-JEPA's evaluation (arXiv 2602.19322). The others are what differs between
scanners, sonographers and archives: gain, shadow, attenuation with depth, JPEG, resolution.

Lengths in pixels hold for an image of 224 px, the size of that protocol: on a larger image they grow with its shorter side, so
that a file's resolution does not make a corruption weaker; on a smaller one they stay.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..data.augmentations import acoustic_shadow, blur, contrast, depth_attenuation, gain
from ..flags import check_choice


SEVERITIES = (1, 2, 3)
PUBLISHED_SIDE = 224
CONTRAST_ALPHA = (0.7, 0.5, 0.3)
JPEG_QUALITY = (30, 15, 7)
SHADOW_STRENGTH = (0.5, 0.75, 1.0)


def _unit(image: torch.Tensor) -> float:
    """How many of the image's pixels are one pixel of the published protocol."""
    return max(1.0, min(image.shape[-2:]) / PUBLISHED_SIDE)


def speckle_noise(shape: tuple[int, int], unit: float, rng: np.random.Generator) -> torch.Tensor:
    """(height, width) of mean 0 and variance 1, smoothed by a Gaussian of 1 pixel of the published protocol."""
    coarse = [max(2, round(side / unit)) for side in shape]
    noise = gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), 1.0, mode="wrap")
    noise = torch.from_numpy(noise)[None]
    if tuple(coarse) != tuple(shape):
        noise = F.resize(noise, list(shape), InterpolationMode.BILINEAR, antialias=False)
    return (noise[0] - noise.mean()) / noise.std()


def _speckle(image, severity, rng):
    noise = speckle_noise(image.shape[-2:], _unit(image), rng)
    return (image * (1 + 0.35 * severity * noise)).clamp_(0, 1)


def _resolution(image, severity, rng):
    height, width = image.shape[-2:]
    factor = 2**severity * _unit(image)
    small = [max(1, round(height / factor)), max(1, round(width / factor))]
    small = F.resize(image, small, InterpolationMode.BILINEAR, antialias=True)
    return F.resize(small, [height, width], InterpolationMode.BILINEAR, antialias=False)


def _jpeg(image, severity, rng):
    pixels = (image * 255).round_().to(torch.uint8)
    return decode_jpeg(encode_jpeg(pixels, quality=JPEG_QUALITY[severity - 1])).float() / 255


CORRUPTIONS = {
    "blur": lambda x, s, rng: blur(x, s * _unit(x)),
    "contrast": lambda x, s, rng: contrast(x, CONTRAST_ALPHA[s - 1]),
    "speckle": _speckle,
    # 5 dB a severity of a dynamic range of 60 dB, too high or too low.
    "gain": lambda x, s, rng: gain(x, s * 5 / 60 * rng.choice([-1.0, 1.0])),
    "shadow": lambda x, s, rng: acoustic_shadow(
        x, SHADOW_STRENGTH[s - 1], center=(rng.uniform(0.1, 0.4), rng.uniform(0.25, 0.75)), sigma=(0.05, 0.06 * s)
    ),
    "attenuation": lambda x, s, rng: depth_attenuation(x, 0.7 * s),
    "jpeg": _jpeg,
    "resolution": _resolution,
}
PUBLISHED = ("blur", "contrast", "speckle")  # those of US-JEPA


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, as `extract_features` takes it: it can be pickled, and has a key for the cache.

    Args:
        name: of `CORRUPTIONS`. severity: 1, 2 or 3.

    Raises:
        ValueError: a name or a severity that does not exist.
    """

    name: str
    severity: int

    def __post_init__(self):
        check_choice("corruption", self.name, CORRUPTIONS)
        check_choice("severity", self.severity, SEVERITIES)

    @property
    def key(self) -> str:
        return f"{self.name}-{self.severity}"

    def __call__(self, pixels: torch.Tensor, index: int) -> torch.Tensor:
        """(1 or 3, height, width) uint8 to the same. What is random depends on the corruption's name and `index` alone.

        So every encoder gets the same image, and the severities of an image share their noise and the shadow's place.
        """
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), index])
        image = CORRUPTIONS[self.name](pixels.float() / 255, self.severity, rng)
        return (image.clamp(0, 1) * 255).round().to(torch.uint8)
