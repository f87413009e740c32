# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A linear layer on frozen patch tokens, brought to the mask's size: what an encoder knows of where things are.

Encoders crop, pad and stretch an image in their own ways. Where a patch lies in the original image is therefore measured, with
ramps that are sent through the encoder's own processor, and every prediction is scored on the whole original image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .attentive_probe import TokenScaling
from .scores import IGNORE
from .sweeps import SweepSettings, threads_for, train_side_by_side


SETTINGS = SweepSettings(learning_rates=(1e-2, 3e-2, 1e-1, 3e-1), weight_decays=(1e-4,), batch_size=32, min_steps=600)
FINER = 4  # the loss is taken on a grid that is this many times finer than that of the patches
Box = tuple[float, float, float, float]  # top, left, bottom, right of what the encoder sees, in pixels of the image


def seen_box(prepare: Callable[[torch.Tensor], torch.Tensor], height: int, width: int) -> Box:
    """The part of a (height, width) image that lands in the encoder's input; beyond the image where that is padded.

    Raises:
        ValueError: it depends on what the image shows (a crop to the scan region), so that a mask can't follow.
    """
    whole = _measured(prepare, height, width, border=0.0)
    framed = _measured(prepare, height, width, border=0.2)
    if np.abs(np.subtract(whole, framed)).max() > 0.05 * max(height, width):
        raise ValueError(
            "the encoder's processor crops to what the image shows, so that patches can't be laid over a mask: set "
            "crop_scan_region to false in its preprocessor_config.json for segmentation."
        )
    return whole


def _measured(prepare, height: int, width: int, border: float) -> Box:
    """Fit a line to where the pixels of the middle of the encoder's input come from, in each direction."""
    ends = []
    for size, along in ((height, 0), (width, 1)):
        ramp = torch.linspace(64, 255, size).round()
        image = (ramp[:, None].expand(height, width) if along == 0 else ramp[None].expand(height, width)).clone()
        if border:
            top, left = int(border * height), int(border * width)
            frame = torch.zeros_like(image)
            frame[top : height - top, left : width - left] = image[top : height - top, left : width - left]
            image = frame
        levels = [prepare(torch.full((3, height, width), value, dtype=torch.uint8))[0] for value in (64, 255)]
        seen = prepare(image.to(torch.uint8).expand(3, -1, -1).contiguous())[0]
        middle = [slice(round(0.4 * side), round(0.6 * side) + 1) for side in seen.shape]
        dark, light = (float(level[middle[0], middle[1]].mean()) for level in levels)
        if not abs(light - dark) > 1e-6:
            raise ValueError(
                "the encoder's processor rescales brightness by what the image shows, so that where patches lie can't be "
                "measured: set do_percentile_rescale to false in its preprocessor_config.json for segmentation."
            )
        profile = seen[:, middle[1]].mean(1)[middle[0]] if along == 0 else seen[middle[0]].mean(0)[middle[1]]
        # Level back to the pixel of the image that it was given to.
        source = ((profile - dark) / (light - dark)).double().numpy() * (size - 1) + 0.5
        at = np.arange(middle[along].start, middle[along].start + len(source)) + 0.5
        slope, first = np.polyfit(at, source, 1)
        ends.append((first, first + slope * seen.shape[along]))
    (top, bottom), (left, right) = ends
    return float(top), float(left), float(bottom), float(right)


def mask_as_seen(mask: np.ndarray, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """A mask (height, width) on a grid of `shape` over what the encoder sees; 255 beyond the image."""
    rows, columns = (
        np.floor(low + (np.arange(count) + 0.5) * (high - low) / count).astype(int)
        for low, high, count in ((box[0], box[2], shape[0]), (box[1], box[3], shape[1]))
    )
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))[None]
    taken = mask[rows.clip(0, mask.shape[0] - 1)[:, None], columns.clip(0, mask.shape[1] - 1)[None]]
    return np.where(inside, taken, IGNORE).astype(np.uint8)


def ids_on_image(logits: torch.Tensor, box: Box, height: int, width: int) -> np.ndarray:
    """Logits of the patches (classes, rows, columns) to ids on the image (height, width); 0 where nothing was seen."""
    rows, columns = (
        (torch.arange(count) + 0.5 - low) / (high - low)
        for low, high, count in ((box[0], box[2], height), (box[1], box[3], width))
    )
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flip(-1)[None] * 2 - 1
    logits = F.grid_sample(logits[None].float(), grid.float(), padding_mode="border", align_corners=False)[0]
    seen = ((rows >= 0) & (rows <= 1))[:, None] & ((columns >= 0) & (columns <= 1))[None]
    return torch.where(seen, logits.argmax(0), 0).to(torch.uint8).numpy()


class SegmentationLayers(nn.Module):
    """Several linear layers side by side: (batch, tokens, features) to (batch, layers, classes, rows, columns)."""

    def __init__(self, layers: int, features: int, classes: int, grid: tuple[int, int], generator: torch.Generator):
        super().__init__()
        self.grid = grid
        self.weights = nn.Parameter(0.01 * torch.randn(1, features, classes, generator=generator).repeat(layers, 1, 1))
        self.biases = nn.Parameter(torch.zeros(layers, classes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.einsum("bld,pdc->bpcl", tokens, self.weights) + self.biases[None, :, :, None]
        return logits.unflatten(-1, self.grid)


@dataclass(frozen=True)
class SegmentationProbe:
    """A chosen layer a seed: weights (seeds, features, classes), biases (seeds, classes)."""

    scaling: TokenScaling
    weights: torch.Tensor
    biases: torch.Tensor
    grid: tuple[int, int]
    chosen: tuple[dict, ...]

    @torch.no_grad()
    def predict(
        self, tokens: np.ndarray, box: Box, height: int, width: int, seeds: int | None = None
    ) -> list[np.ndarray]:
        """Of one image, tokens (tokens, features): its ids (height, width), one array a seed (of the first `seeds`)."""
        x = self.scaling(tokens)
        logits = torch.einsum("ld,sdc->scl", x, self.weights[:seeds]) + self.biases[:seeds, :, None]
        return [ids_on_image(part, box, height, width) for part in logits.unflatten(-1, self.grid)]


def fit_segmentation_probe(
    tokens: np.ndarray,
    masks: Sequence[np.ndarray],
    train: np.ndarray,
    validation: np.ndarray,
    *,
    grid: tuple[int, int],
    num_classes: int,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    settings: SweepSettings = SETTINGS,
    device: str | torch.device = "cpu",
) -> SegmentationProbe:
    """Train layers over the sweep for every seed, on cross-entropy plus soft Dice; validation chooses.

    Dice keeps a small lesion from being outvoted by its background (Milletari et al., 2016).

    Args:
        tokens: (images, tokens, features). masks: one an image, on the grid of `finer(grid)` as `mask_as_seen` makes them.
        train, validation: rows of both. num_classes: with the background.
    """
    scaling = TokenScaling.of(tokens, train)
    weights, biases, chosen = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        model = SegmentationLayers(len(settings.grid), tokens.shape[-1], num_classes, grid, generator).to(device)

        def losses(rows, model=model):
            ids = torch.from_numpy(np.stack([masks[row] for row in rows]).astype(np.int64)).to(device)
            return segmentation_losses(model(scaling(tokens[rows], device)), ids)

        with threads_for(settings.batch_size * tokens[0].size):
            facts = train_side_by_side(model, losses, train, validation, settings, seed)
        number = facts.pop("setting")
        weights.append(model.weights[number].detach().cpu())
        biases.append(model.biases[number].detach().cpu())
        chosen.append(facts)
    return SegmentationProbe(scaling, torch.stack(weights), torch.stack(biases), grid, tuple(chosen))


def finer(grid: tuple[int, int]) -> tuple[int, int]:
    """The grid of the loss, for a grid of patches."""
    return grid[0] * FINER, grid[1] * FINER


def segmentation_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice of the foreground, over pixels that count: (layers,).

    Args:
        logits: (batch, layers, classes, rows, columns). ids: (batch, finer rows, finer columns) int64, 255 = ignore.
    """
    batch, layers, classes = logits.shape[:3]
    logits = F.interpolate(logits.flatten(0, 1), ids.shape[-2:], mode="bilinear", align_corners=False)
    logits = logits.unflatten(0, (batch, layers))
    counted = (ids != IGNORE).float().unsqueeze(1)  # (batch, 1, rows, columns)
    truth = F.one_hot(torch.where(ids == IGNORE, 0, ids), classes).movedim(-1, 1).unsqueeze(1).float()
    entropy = -(logits.log_softmax(2) * truth).sum(2) * counted
    entropy = entropy.sum((0, 2, 3)) / counted.sum().clamp(min=1)
    shares = logits.softmax(2)[:, :, 1:] * counted.unsqueeze(2)
    truth = (truth * counted.unsqueeze(2))[:, :, 1:]
    both, either = (shares * truth).sum((0, 3, 4)), (shares + truth).sum((0, 3, 4))  # (layers, foreground classes)
    return entropy + (1 - (2 * both + 1) / (either + 1)).mean(-1)
