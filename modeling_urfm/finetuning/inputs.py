# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Labelled images as a model takes them: prepared once by the processor, varied anew in every epoch.

Shapes: B images, S x S pixels of the model's input, K labels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..data.labelled import LabelledDataset
from ..data.phantoms import usable_cores
from ..image_processing_urfm import IGNORE_INDEX, URFMImageProcessor


# What a training image may differ by: scale of its side, turn in degrees, shift as a share of its side, factor of its
# brightness, exponent of its grey levels. Mild: a scanner's settings and a hand's, not another anatomy.
SCALE, TURN, SHIFT, GAIN, GAMMA = (0.8, 1.2), 12.0, 0.08, (0.8, 1.2), (0.75, 1.33)
MOST_BYTES = 8 * 2**30  # of prepared images in memory


class PreparedImages(Dataset):
    """Rows of a labelled data set at the model's size: `self[i]` is {"pixels": uint8, "labels", "row"}.

    The processor's own reading, scan region, padding and resizing, without its normalisation; images with three equal
    channels keep one. Everything is held in memory: (n, S, S) bytes, 15 MB for 300 images of 224 px.

    Args:
        rows: of `data`, in the order of this set.
        targets: (n, ...) what the loss takes, of every row of `data`; None for segmentation, whose masks are read.

    Raises:
        ValueError: images that can't be read, named; or more of them than `MOST_BYTES` holds.
    """

    def __init__(
        self,
        data: LabelledDataset,
        rows: np.ndarray,
        processor: URFMImageProcessor,
        targets: np.ndarray | None,
        progress: bool = True,
        title: str = "images",
    ):
        self.rows, self.targets = np.asarray(rows), targets
        side = processor.size["height"] * processor.size["width"]
        if len(self.rows) * side > MOST_BYTES:
            raise ValueError(
                f"{len(self.rows)} {title} of {processor.size['height']} px take {len(self.rows) * side / 2**30:.0f} GiB or more, "
                f"and {MOST_BYTES / 2**30:.0f} are allowed: take a part with --label_fraction, or a smaller --image_size."
            )

        def prepare(row: int):
            item = data.corpus[int(row)]
            if item["unreadable"]:
                return None, item["unreadable"]
            mask = data.mask(int(row)) if targets is None else None
            options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
            batch = processor(item["pixels"], segmentation_maps=mask, input_data_format="channels_first", **options)
            pixels = batch["pixel_values"][0].round().clamp(0, 255).to(torch.uint8)
            grey = pixels[:1] if bool((pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all()) else pixels
            return (grey, batch["labels"][0].to(torch.uint8) if mask is not None else None), None

        with ThreadPoolExecutor(usable_cores()) as pool:
            prepared = list(
                tqdm(pool.map(prepare, self.rows), total=len(self.rows), desc=title, unit="image", disable=not progress)
            )
        bad = [reason for _, reason in prepared if reason]
        if bad:
            raise ValueError(f"{len(bad)} {title} can't be read, the first: {'; '.join(bad[:10])}")
        self.pixels, self.masks = zip(*(images for images, _ in prepared)) if prepared else ((), ())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        target = self.masks[index] if self.targets is None else torch.as_tensor(self.targets[self.rows[index]])
        return {"pixels": self.pixels[index], "labels": target, "row": int(self.rows[index])}


class Batches:
    """Collates prepared images to {"pixel_values", "labels"}: normalised, and for training varied and mixed.

    All randomness is torch's global generator, which Trainer seeds and restores.

    Args:
        processor: gives mean and deviation.
        task: of `arguments.TASKS`; in regression a scale could be the answer, so that sizes stay.
        augment: vary the images. mixup: alpha, 0 = none; for classification and multilabel alone. num_labels: K.
    """

    def __init__(self, processor, task: str, augment: bool = False, mixup: float = 0.0, num_labels: int = 0):
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))
        self.task, self.augment, self.num_labels = task, augment, num_labels
        self.mixup = mixup if task in ("classification", "multilabel") else 0.0

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        grey = all(len(item["pixels"]) == 1 for item in items)
        pixels = torch.stack([i["pixels"] if grey else i["pixels"].expand(3, -1, -1) for i in items]).float() / 255
        labels = torch.stack([torch.as_tensor(item["labels"]) for item in items])
        if self.augment:
            masks = labels if self.task == "segmentation" else None
            pixels, masks = vary(pixels, masks, resize=self.task != "regression")
            labels = labels if masks is None else masks
        if self.mixup:
            pixels, labels = mix(pixels, labels, self.mixup, self.num_labels)
        if self.task == "segmentation":
            labels = labels.long()
        return {"pixel_values": (pixels.expand(-1, 3, -1, -1) - self.mean) / self.std, "labels": labels}


def vary(
    pixels: torch.Tensor, masks: torch.Tensor | None, resize: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mirror, and turn, shift and scale where `resize`, each image by its own draw; then change its gain and gamma.

    Args:
        pixels: (B, 1 or 3, S, S) in [0, 1]. masks: (B, S, S) ids, moved along; what comes in from outside is ignored.
    """
    batch = len(pixels)

    def between(low, high):
        return low + (high - low) * torch.rand(batch)

    mirror = torch.where(torch.rand(batch) < 0.5, -1.0, 1.0)
    angle, scale = torch.deg2rad(between(-TURN, TURN)), between(*SCALE)
    shift = torch.stack([between(-2 * SHIFT, 2 * SHIFT), between(-2 * SHIFT, 2 * SHIFT)], 1)
    if not resize:
        angle, scale, shift = torch.zeros(batch), torch.ones(batch), torch.zeros(batch, 2)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([torch.stack([mirror * cos, -sin], 1), torch.stack([mirror * sin, cos], 1)], 1)
    grid = F.affine_grid(torch.cat([matrix, shift[:, :, None]], 2), [batch, 1, *pixels.shape[-2:]], align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if masks is not None:
        shifted = masks[:, None].float() - IGNORE_INDEX  # zero padding then is the ignore index
        masks = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        masks = (masks[:, 0].round() + IGNORE_INDEX).to(torch.uint8)
    gain, gamma = between(*GAIN).view(-1, 1, 1, 1), between(*GAMMA).view(-1, 1, 1, 1)
    # Gamma and gain leave black black: the ground of an ultrasound image says nothing of its exposure.
    return (pixels.clamp(0, 1).pow(gamma) * gain).clamp(0, 1), masks


def mix(pixels: torch.Tensor, labels: torch.Tensor, alpha: float, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al., 2018): each image with another of the batch, by a share drawn from Beta(alpha, alpha).

    Args:
        pixels: (B, C, S, S). labels: (B,) ids or (B, K) in [0, 1]; returned as (B, K).
    """
    shares = F.one_hot(labels, num_labels).float() if labels.ndim == 1 else labels.float()
    share = torch.distributions.Beta(alpha, alpha).sample((len(pixels),))
    share, other = torch.maximum(share, 1 - share), torch.randperm(len(pixels))
    pixels = pixels * share.view(-1, 1, 1, 1) + pixels[other] * (1 - share.view(-1, 1, 1, 1))
    return pixels, shares * share[:, None] + shares[other] * (1 - share[:, None])


class Features(Dataset):
    """Frozen features with their labels: `self[i]` is {"features": (D,) or (1 + L, D), "labels"}."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict:
        return {"features": self.features[index].float(), "labels": self.labels[index]}


def stack(items: Sequence[dict]) -> dict[str, torch.Tensor]:
    """The collator of `Features`."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
