# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Which patches of a batch are hidden, and which show ultrasound at all.

The masks themselves are drawn by `modeling_urfm.draw_mask`, in the file that travels with the model.
"""

import torch

from ..configuration_urfm import URFMConfig
from ..modeling_urfm import draw_mask


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """A generator that is a pure function of (seed, step, rank): a resumed run draws what it would have drawn."""
    # SplitMix64's finaliser: neighbouring steps and ranks get unrelated states.
    state = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return torch.Generator().manual_seed((state ^ (state >> 31)) & 0x7FFFFFFFFFFFFFFF)


def batch_mask(config: URFMConfig, batch_size: int, generator: torch.Generator) -> torch.BoolTensor:
    """The mask of a batch of square images of `config.image_size`: (batch_size, patches), True = hidden."""
    side = config.image_size // config.patch_size
    return draw_mask(batch_size, (side, side), config.num_masked_patches, config.mask_strategy, generator)


def scan_region_patches(pixels: torch.Tensor, patch_size: int, threshold: float = 0.03) -> torch.BoolTensor:
    """Which patches show ultrasound, for `loss_mask`.

    A patch is lit when its brightest pixel is above `threshold`; what lies between lit patches both of its row and of
    its column belongs to the scan too, since fluid and shadow are dark but are part of the picture.

    Args:
        pixels: (batch, channels, height, width) in [0, 1].

    Returns:
        (batch, patches), True = shows ultrasound.
    """
    lit = torch.nn.functional.max_pool2d(pixels.amax(1, keepdim=True), patch_size)[:, 0] > threshold
    counts = lit.int()

    def between(dim):
        before = counts.cumsum(dim) > 0
        after = counts.flip(dim).cumsum(dim).flip(dim) > 0
        return before & after

    return (between(1) & between(2) | lit).flatten(1)
