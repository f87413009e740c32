# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Which patches of an image are hidden, which of those are predicted, and which show ultrasound at all.

Masks are drawn by `modeling_urfm.draw_mask`, in the file that travels with the model.
"""

import numpy as np
import torch

from ..configuration_urfm import URFMConfig
from ..modeling_urfm import draw_mask


class PatchMasks:
    """The mask of an image and the patches that are predicted, drawn where the image is read.

    A function of the generator that is handed in: with one a key (`data.transforms.AugmentedCorpus`), which patches of an
    image are hidden does not depend on the batch or the process that it falls to.

    Args:
        config: square images of `image_size`; `mask_ratio`, `mask_strategy`, `decoder_mask_fraction`.
        on_scan_region: also say which patches show ultrasound.
    """

    def __init__(self, config: URFMConfig, on_scan_region: bool = False):
        self.grid = (config.image_size // config.patch_size,) * 2
        self.patch_size, self.strategy, self.on_scan_region = config.patch_size, config.mask_strategy, on_scan_region
        self.hidden, self.predicted = config.num_masked_patches, config.num_masked_patches
        if config.decoder_type == "cross_attention":
            self.predicted = config.num_predicted_patches

    def __call__(self, pixels: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """`mask` (patches,), True = hidden; `predicted` (predicted,), ascending raster indices of hidden patches; with
        `on_scan_region` also `loss_mask` (patches,), True = shows ultrasound.

        Args:
            pixels: (channels, height, width) uint8, the crop.
        """
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        mask = draw_mask(1, self.grid, self.hidden, self.strategy, generator)[0]
        predicted = mask.nonzero()[:, 0]
        if self.predicted < self.hidden:
            predicted = predicted[np.sort(rng.permutation(self.hidden)[: self.predicted])]
        drawn = {"mask": mask, "predicted": predicted}
        if self.on_scan_region:
            drawn["loss_mask"] = scan_region_patches(pixels[None].float() / 255, self.patch_size)[0]
        return drawn


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
