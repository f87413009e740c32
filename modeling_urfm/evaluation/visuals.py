# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What an encoder makes of an image: where its attention goes, what its patch tokens hold, what it predicts when blindfolded.

Numbers only, one a patch; `visual_sheets` and `viewer` draw them. Pixel coordinates are (x, y) of the original image, from
its upper left corner; patches are numbered in raster order over the grid of what the model saw, which is the region that the
processor cut out and padded (`URFMImageProcessor.get_regions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..configuration_urfm import num_masked
from ..image_processing_urfm import ImageRegion, URFMImageProcessor, find_scan_region
from ..modeling_urfm import URFMForPreTraining, URFMModel, draw_mask, patchify
from ..pretraining.masking import scan_region_patches
from .predictions import masked_predictions


KINDS = ("rollout", "pca", "similarity", "prediction")


@dataclass(frozen=True)
class Sight:
    """One image as the encoder saw it.

    Attributes:
        name: for the reader. image: (height, width, 3) uint8, the original.
        region: the part of it that was seen. grid: (h, w) patches over that part; L = h * w.
        pixels: (3, rows, columns) in [0, 1], what the model was given before normalisation.
        tokens: (L, hidden) float32, after the final norm.
        rollout: (L,) shares of the attention of the image's feature, see `attention_rollout`.
        lit: (L,) bool, True where a patch shows ultrasound.
    """

    name: str
    image: np.ndarray
    region: ImageRegion
    grid: tuple[int, int]
    pixels: torch.Tensor
    tokens: torch.Tensor
    rollout: torch.Tensor
    lit: torch.Tensor


@dataclass(frozen=True)
class Prediction:
    """What was predicted of one image whose patches were hidden in part.

    Attributes:
        hidden: (L,) bool. predicted: (L, target) float32, zero where a patch was visible.
        target: (L, target), the teacher's features; None without a teacher. cosine: (L,) of both, NaN where visible.
    """

    hidden: torch.Tensor
    predicted: torch.Tensor
    target: torch.Tensor | None = None
    cosine: torch.Tensor | None = None


# ---------------------------------------------------------------- looking


def attention_rollout(attentions: Sequence[torch.Tensor], pooling: str) -> torch.Tensor:
    """How much each patch's input reaches the image's feature through all layers (Abnar & Zuidema, 2020).

    A layer's weights are averaged over the heads, and half of each token is what the residual branch keeps of it; the
    product over the layers says which inputs a token is mixed from. MLPs, and the signs and sizes of the values, are left
    out: this is where attention flows, not what decided.

    Args:
        attentions: one (batch, heads, 1 + patches, 1 + patches) a layer, CLS first.
        pooling: "cls" follows the CLS token, "mean" the mean of the patch tokens, as the image's feature is made.

    Returns:
        (batch, patches) float32, from 0; together with CLS's own share a row sums to 1.
    """
    mixed = None
    for weights in attentions:
        weights = weights.float().mean(1)
        layer = 0.5 * weights + 0.5 * torch.eye(weights.shape[-1], device=weights.device)
        mixed = layer if mixed is None else layer @ mixed
    rows = mixed[:, 0] if pooling == "cls" else mixed[:, 1:].mean(1)
    return rows[:, 1:]


@torch.no_grad()
def look(
    encoder: URFMModel,
    processor: URFMImageProcessor,
    names: Sequence[str],
    images: Sequence[np.ndarray],
    *,
    image_size: int | None = None,
    crop_scan_region: bool | None = None,
    pad_square: bool | None = None,
    steady: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> list[Sight]:
    """Show the images to the encoder.

    Args:
        encoder: with `attn_implementation="eager"`, the only one that gives its weights.
        images: (height, width, 3) uint8 each.
        image_size: side in pixels at which the encoder sees them, a multiple of its patch size; more is a finer grid than
            it was trained on. None: the processor's.
        crop_scan_region, pad_square: override the processor's options; None leaves them.
        steady: the images are frames of one loop, of one size: where the scan region is cut out, it is one for all of
            them, found where any frame is lit, so that nothing jumps.

    Raises:
        ValueError: an attention implementation that hides its weights, or a size that patches don't divide.
    """
    options = {"do_crop_scan_region": crop_scan_region, "do_pad_square": pad_square}
    options = {name: value for name, value in options.items() if value is not None}
    options["input_data_format"] = "channels_last"  # three rows of pixels are no three channels
    if image_size:
        options["size"] = {"height": image_size, "width": image_size}
    patch_size, device, training = encoder.config.patch_size, encoder.device, encoder.training
    encoder.eval()
    shown, box = list(images), None
    if steady and options.get("do_crop_scan_region", processor.do_crop_scan_region):
        options["do_crop_scan_region"] = False
        brightest = np.maximum.reduce(shown)
        box = find_scan_region(torch.from_numpy(brightest).permute(2, 0, 1)) or (0, 0, *brightest.shape[:2])
        top, left, height, width = box
        shown = [np.ascontiguousarray(image[top : top + height, left : left + width]) for image in shown]
    sights = []
    bar = tqdm(total=len(images), desc="looking", unit="image", disable=not progress)
    for start in range(0, len(images), batch_size):
        batch = shown[start : start + batch_size]
        regions = processor.get_regions(batch, **options)
        if box:
            rows, columns = images[0].shape[:2]
            regions = [r._replace(image_height=rows, image_width=columns, top=box[0], left=box[1]) for r in regions]
        pixels = processor(batch, do_normalize=False, return_tensors="pt", **options).pixel_values
        grid = (pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size)
        outputs = encoder(normalized(pixels, processor).to(device), output_attentions=True)
        if not outputs.attentions or outputs.attentions[0] is None:
            implementation = encoder.config._attn_implementation
            raise ValueError(
                f"attn_implementation={implementation!r} gives no attention weights: load the model with "
                'attn_implementation="eager".'
            )
        tokens = outputs.last_hidden_state[:, 1:].float().cpu()
        rollout = attention_rollout(outputs.attentions, encoder.config.pooling).cpu()
        lit = scan_region_patches(pixels, patch_size)
        for i in range(len(batch)):
            whole = images[start + i]
            sights.append(Sight(names[start + i], whole, regions[i], grid, pixels[i], tokens[i], rollout[i], lit[i]))
        bar.update(len(batch))
    bar.close()
    encoder.train(training)
    return sights


def normalized(pixels: torch.Tensor, processor: URFMImageProcessor) -> torch.Tensor:
    """(batch, 3, height, width) in [0, 1] as the model takes it."""
    if not processor.do_normalize:
        return pixels
    mean, std = (
        torch.tensor(v, dtype=pixels.dtype).view(-1, 1, 1) for v in (processor.image_mean, processor.image_std)
    )
    return (pixels - mean) / std


# ---------------------------------------------------------------- between patches and pixels


def on_image(values: torch.Tensor, sight: Sight, smooth: bool = False) -> np.ndarray:
    """Values of patches over the original image: (height, width) of (L,), (height, width, C) of (L, C); NaN where unseen.

    Args:
        smooth: interpolate between patches; else each patch is one even field.
    """
    region, flat = sight.region, values.ndim == 1
    maps = values.float().reshape(*sight.grid, -1).permute(2, 0, 1)
    if not smooth:
        padded = (region.height + region.pad_top + region.pad_bottom, region.width + region.pad_left + region.pad_right)
        maps = F.interpolate(maps[None], size=padded, mode="nearest-exact")[0]
    picture = region.give_back(maps, outside=float("nan"))
    return (picture[0] if flat else picture.permute(1, 2, 0)).numpy()


def patch_at(x: int, y: int, sight: Sight) -> int:
    """The patch under the middle of a pixel of the original image.

    Raises:
        ValueError: outside the image, or outside the part of it that the model saw; the nearest pixel that it saw is named.
    """
    region, (h, w) = sight.region, sight.grid
    left, top, right, bottom = region.left, region.top, region.left + region.width, region.top + region.height
    if not (left <= x < right and top <= y < bottom):
        near = (min(max(x, left), right - 1), min(max(y, top), bottom - 1))
        where = (
            f"the image has {region.image_width} x {region.image_height} pixels (width x height)"
            if not (0 <= x < region.image_width and 0 <= y < region.image_height)
            else f"the model saw x from {left} to {right - 1} and y from {top} to {bottom - 1} of it"
        )
        raise ValueError(f"{x},{y} on {sight.name}: {where}. The nearest: {near[0]},{near[1]}.")
    column = int((x + 0.5 - left + region.pad_left) / (region.width + region.pad_left + region.pad_right) * w)
    row = int((y + 0.5 - top + region.pad_top) / (region.height + region.pad_top + region.pad_bottom) * h)
    return row * w + column


def patch_box(index: int, sight: Sight) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a patch in pixels of the original image; in the padding it lies outside of it."""
    region, (h, w) = sight.region, sight.grid
    height = (region.height + region.pad_top + region.pad_bottom) / h
    width = (region.width + region.pad_left + region.pad_right) / w
    left = region.left - region.pad_left + (index % w) * width
    top = region.top - region.pad_top + (index // w) * height
    return left, top, left + width, top + height


def centre_of(sight: Sight) -> tuple[int, int]:
    """The pixel in the middle of what the model saw."""
    region = sight.region
    return region.left + region.width // 2, region.top + region.height // 2


# ---------------------------------------------------------------- what tokens hold


class PatchColours:
    """Three principal components of patch features as a colour that people with any colour vision can use.

    The first component is lightness, the second runs from blue to yellow, and only the third from green to red, the axis
    that one man in twelve can't see; in OKLab (Ottosson, 2020), so that equal steps look equal. Equal colours mean equal
    features in every picture that one object has coloured.

    Args:
        features: (patches, features) each.
        lit: (patches,) bool each; the components are of these patches alone, as black ground would else be the first one.
    """

    def __init__(self, features: Sequence[torch.Tensor], lit: Sequence[torch.Tensor]):
        flat = torch.cat([f[keep] for f, keep in zip(features, lit)]).double()
        flat = flat if len(flat) > 3 else torch.cat(list(features)).double()
        self.mean = flat.mean(0)
        covariance = (flat - self.mean).T @ (flat - self.mean)
        values, vectors = torch.linalg.eigh(covariance)
        vectors = vectors[:, -3:].flip(1)
        # Of a component and its opposite, always the same one: colours must not turn over between two runs.
        sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        self.components = vectors * sign
        self.explained = (values[-3:].flip(0) / values.sum().clamp(min=1e-12)).clamp(min=0).tolist()
        projected = (flat - self.mean) @ self.components
        self.low, self.high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(patches, features) -> (patches, 3) sRGB in [0, 1]."""
        projected = (features.double() - self.mean) @ self.components
        return component_colours((projected - self.low) / (self.high - self.low).clamp(min=1e-9))


def component_colours(components: torch.Tensor) -> torch.Tensor:
    """Three components in [0, 1] (clipped) -> sRGB: lightness, blue to yellow, green to red. Any shape (..., 3)."""
    first, second, third = components.clamp(0, 1).unbind(-1)
    lightness, a, b = 0.32 + 0.58 * first, 0.2 * (third - 0.5), 0.3 * (second - 0.5)
    cone = torch.stack([
        lightness + 0.3963377774 * a + 0.2158037573 * b,
        lightness - 0.1055613458 * a - 0.0638541728 * b,
        lightness - 0.0894841775 * a - 1.2914855480 * b,
    ], dim=-1) ** 3  # fmt: skip
    to_rgb = torch.tensor([
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ], dtype=cone.dtype)  # fmt: skip
    linear = (cone @ to_rgb.T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).float()


def similarities(sights: Sequence[Sight], query: torch.Tensor) -> list[torch.Tensor]:
    """Cosine similarity of every patch token to `query` (hidden,): (L,) in [-1, 1] an image."""
    return [F.cosine_similarity(sight.tokens, query[None], dim=-1) for sight in sights]


@torch.no_grad()
def predict(
    model: URFMForPreTraining,
    processor: URFMImageProcessor,
    sights: Sequence[Sight],
    *,
    teacher: torch.nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 8,
) -> list[Prediction]:
    """Hide `config.mask_ratio` of the patches, the same ones in every image, and have the model predict them.

    Args:
        teacher: a `pretraining.teacher.Teacher` whose features are compared with.
        seed: draws the mask.

    Raises:
        ValueError: a teacher of another width than the model predicts.
    """
    config, grid = model.config, sights[0].grid
    if teacher is not None and teacher.hidden_size != config.prediction_size:
        raise ValueError(
            f"--teacher {teacher.name} has features of width {teacher.hidden_size}, the model predicts {config.prediction_size}"
            ": name the teacher that it was trained with."
        )
    count = num_masked(grid[0] * grid[1], config.mask_ratio)
    mask = draw_mask(1, grid, count, config.mask_strategy, torch.Generator().manual_seed(seed))
    results = []
    for start in range(0, len(sights), batch_size):
        pixels = torch.stack([sight.pixels for sight in sights[start : start + batch_size]])
        masks = mask.expand(len(pixels), -1)
        given = normalized(pixels, processor).to(model.device)
        predicted = masked_predictions(model, given, masks.to(model.device)).cpu()
        targets = None if teacher is None else teacher(pixels, grid).cpu()
        for i, features in enumerate(predicted):
            target = None if targets is None else targets[i]
            cosine = None
            if target is not None:
                cosine = F.cosine_similarity(features, target, dim=-1).masked_fill(~mask[0], float("nan"))
            results.append(Prediction(mask[0], features, target, cosine))
    return results


def reconstruction(prediction: Prediction, sight: Sight, processor: URFMImageProcessor, patch_size: int) -> np.ndarray:
    """The image with its hidden patches as a model of pixel targets predicts them: (height, width, 3) in [0, 1].

    Such a model predicts each patch in units of that patch's own mean and deviation (He et al., 2022), which are taken
    from the image here: what is to be judged is the structure, not the brightness. NaN where the model saw nothing.
    """
    patches = patchify(normalized(sight.pixels[None], processor), patch_size)[0]
    deviation = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    drawn = prediction.predicted * deviation + patches.mean(-1, keepdim=True)
    patches = torch.where(prediction.hidden[:, None], drawn, patches)
    h, w = sight.grid
    pixels = patches.reshape(h, w, patch_size, patch_size, -1).permute(4, 0, 2, 1, 3)
    pixels = pixels.reshape(-1, h * patch_size, w * patch_size)
    if processor.do_normalize:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    return sight.region.give_back(pixels.clamp(0, 1), outside=float("nan")).permute(1, 2, 0).numpy()
