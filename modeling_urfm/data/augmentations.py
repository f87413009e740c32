# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What makes two ultrasound images of the same anatomy differ: speckle, focus, attenuation, shadows, haze, gain, contrast.

Published URFM loses most of its accuracy under blur and speckle (US-JEPA, arXiv 2602.19322); training on images that are
blurred and speckled is the answer of the field. Every effect is a plain function of an image and numbers, acts inside the
scan region only, and leaves black background black. Images are float32 (channels, height, width) in [0, 1], as shown:
log-compressed, so that a gain in decibels is a sum.

Blur is torchvision's. `usaugment` (Tupper and Gagné, arXiv 2501.13193; MIT) has depth attenuation, Gaussian shadow and
haze; its formulas are used here and the tests compare against it, but it is not called: it draws positions and noise from
the global generators of `random` and numpy, so that nothing would be a function of (seed, epoch, index); importing it
takes 0.9 s and 117 MB for every worker; and it needs albumentations, which is no longer maintained.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F


LIT = 6 / 255  # darker than this is background, also after JPEG
# Correlation length of the speckle in pixels of the crop: standard deviation of the Gaussian that smooths the noise.
SPECKLE_CORRELATION = 1.0


def scan_mask(image: torch.Tensor) -> torch.Tensor:
    """(height, width) True where ultrasound shows: lit pixels, and what lies between lit ones of its row and its column.

    Fluid and shadow are dark but belong to the picture; the black around a sector does not.
    """
    lit = image.amax(0).numpy() > LIT

    def between(lit):  # in rows
        count = lit.shape[1]
        first = np.where(lit.any(1), lit.argmax(1), count)
        last = count - 1 - lit[:, ::-1].argmax(1)
        columns = np.arange(count)
        return (columns >= first[:, None]) & (columns <= last[:, None])

    return torch.from_numpy(between(lit) & between(np.ascontiguousarray(lit.T)).T)


def speckle(image: torch.Tensor, sigma: float, rng: np.random.Generator) -> torch.Tensor:
    """Multiplicative, spatially correlated noise of standard deviation `sigma`: image x (1 + sigma n), n of unit variance.

    US-JEPA's corruption has sigma 0.35, 0.7 and 1.05 for its three severities. The noise is uniform before it is
    smoothed, and as a weighted sum of 49 values nearly normal after it.
    """
    height, width = image.shape[-2:]
    noise = torch.from_numpy(rng.integers(0, 256, (height + 6, width + 6), dtype=np.uint8)).float()
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * SPECKLE_CORRELATION**2))
    # Of unit variance after smoothing in both directions; that of 0..255 is (256^2 - 1) / 12.
    weights = weights / np.sqrt((weights**2).sum())
    noise = noise.sub_(127.5).div_(math.sqrt((256**2 - 1) / 12))
    for dim, length in ((0, height), (1, width)):
        noise = sum(noise.narrow(dim, k, length) * float(weight) for k, weight in enumerate(weights))
    return (image * noise.mul_(sigma).add_(1)).clamp_(0, 1)


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of `sigma` pixels, by torchvision, once along each axis: the same as with a square kernel, quicker."""
    size = 2 * round(3 * sigma) + 1
    if size == 1:
        return image
    blurred = F.gaussian_blur(F.gaussian_blur(image, [size, 1], [sigma, sigma]), [1, size], [sigma, sigma])
    return (blurred * scan_mask(image)).clamp_(0, 1)


def _distance(image: torch.Tensor) -> torch.Tensor:
    """(height, width) from the middle of the upper edge, in units of width and height, as in usaugment."""
    height, width = image.shape[-2:]
    across, down = torch.linspace(-0.5, 0.5, width), torch.linspace(0, 1, height)
    return (across.square()[None, :] + down.square()[:, None]).sqrt_()


def depth_attenuation(image: torch.Tensor, rate: float) -> torch.Tensor:
    """Darker with depth: image x exp(-rate x distance) (Ostvik et al., 2021; usaugment's DepthAttenuation)."""
    return image * _distance(image).mul_(-rate).exp_()


def acoustic_shadow(
    image: torch.Tensor,
    strength: float,
    center: tuple[float, float] = (0.5, 0.5),
    sigma: tuple[float, float] = (0.1, 0.1),
) -> torch.Tensor:
    """What lies behind bone, stone or gas: dark from `center` downwards.

    Above its centre it is the Gaussian shadow of Smistad et al. (2018; usaugment's GaussianShadow), and below it goes on
    at full depth, as behind a reflector no sound is left.

    Args:
        strength: 1 takes all light. center, sigma: (row, column) in units of height and width.
    """
    height, width = image.shape[-2:]
    down = torch.arange(height) - center[0] * height
    across = torch.arange(width) - center[1] * width
    rise = torch.exp(-((down.clamp(max=0) / (sigma[0] * height)) ** 2) / 2)
    profile = torch.exp(-((across / (sigma[1] * width)) ** 2) / 2)
    return image * (1 - strength * rise[:, None] * profile[None, :])


def haze(image: torch.Tensor, strength: float, radius: float, width: float, rng: np.random.Generator) -> torch.Tensor:
    """A noisy bright band at `radius` from the probe (Ostvik et al., 2021; usaugment's HazeArtifact, at strength 0.5).

    It fades out towards the outline of the scan region, which pixels alone tell only roughly.
    """
    noise = torch.from_numpy(rng.random(image.shape[-2:], dtype=np.float32))
    band = (_distance(image) - radius).square_().div_(-2 * width**2).exp_()
    mask = scan_mask(image).float()
    # The share of the 15 x 15 pixels around that lies inside: one half on a straight outline, little on a stray line.
    inside = torch.nn.functional.pad(mask[None], (8, 7, 8, 7), mode="replicate")[0].cumsum(0).cumsum(1)
    inside = (inside[15:, 15:] - inside[:-15, 15:] - inside[15:, :-15] + inside[:-15, :-15]) / 225
    return (image + band.mul_(noise).mul_(strength).mul_(mask).mul_((2 * inside - 1).clamp_(0, 1))).clamp_(0, 1)


def _lit(image: torch.Tensor) -> torch.Tensor:
    """0 at black to 1 at 15/255 and above: a scanner that is turned up or down leaves black what it cuts off as noise."""
    return (image * 17).clamp_(0, 1)


def gain(image: torch.Tensor, shift: float) -> torch.Tensor:
    """Receiver gain: a sum, as the image is log-compressed; 0.1 is 6 dB of a dynamic range of 60 dB."""
    return (image + shift * _lit(image)).clamp_(0, 1)


def contrast(image: torch.Tensor, alpha: float) -> torch.Tensor:
    """Contrast towards the median of what is lit: median + alpha (image - median); alpha 1 changes nothing.

    US-JEPA's corruption has alpha 0.7, 0.5 and 0.3 for its three severities.
    """
    coarse = image[:, ::4, ::4].mean(0)  # a sixteenth of the pixels tells the median
    coarse = coarse[coarse > LIT]
    if alpha == 1 or not len(coarse):
        return image
    return image + (1 - alpha) * (coarse.median() - image) * _lit(image)


# Each effect at full strength: what it draws, from nothing up to what. The order is that of the physics: scatterers,
# tissue on the way, receiver.
EFFECTS: dict[str, Callable] = {
    "speckle": lambda x, s, rng: speckle(x, s * rng.uniform(0, 0.7), rng),
    "blur": lambda x, s, rng: blur(x, s * rng.uniform(0, 2.0)),
    "attenuation": lambda x, s, rng: depth_attenuation(x, s * rng.uniform(0, 2.0)),
    "shadow": lambda x, s, rng: acoustic_shadow(
        x, s * rng.uniform(0.25, 0.8), center=rng.uniform(0, 1, 2), sigma=rng.uniform(0.02, 0.15, 2)
    ),
    "haze": lambda x, s, rng: haze(x, s * rng.uniform(0, 0.5), rng.uniform(0.05, 0.95), rng.uniform(0.02, 0.1), rng),
    "gain": lambda x, s, rng: gain(x, s * rng.uniform(-0.15, 0.15)),
    "contrast": lambda x, s, rng: contrast(x, 1 - s * rng.uniform(0, 0.5)),
}


class UltrasoundAugmentation:
    """Some of `EFFECTS`, each with `probability` and in its own strength; a pure function of an image and `rng`.

    Args:
        strengths: name of the effect to its strength: 1 is full, 0 leaves the image as it is.

    Raises:
        ValueError: an effect that does not exist, or a strength below 0 or above 1.5 (where contrast would end).
    """

    def __init__(self, strengths: Mapping[str, float], probability: float = 0.5):
        for name, strength in strengths.items():
            if name not in EFFECTS:
                raise ValueError(f"effect {name!r} does not exist; there are: {', '.join(EFFECTS)}.")
            if not 0 <= strength <= 1.5:
                raise ValueError(f"strength {strength} of {name} is outside [0, 1.5].")
        self.strengths, self.probability = dict(strengths), probability

    def __call__(self, pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """(channels, height, width) float32 in [0, 1] to the same."""
        for name, effect in EFFECTS.items():
            if name in self.strengths and rng.random() < self.probability:
                pixels = effect(pixels, self.strengths[name], rng)
        return pixels
