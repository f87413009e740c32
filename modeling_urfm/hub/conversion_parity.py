# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Shown, not claimed: a converted encoder gives the tokens that its source gives, on real images, in the source's own code."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import nn
from tqdm.auto import tqdm

from ..data.corpus import load_corpus
from ..data.phantoms import ORGANS, phantom_frame
from ..data.reading import open_source, ultrasound_examples
from ..image_processing_urfm import URFMImageProcessor, URFMImageProcessorPil
from .conversion_files import ConversionError


TOLERANCE = 1e-5  # of any token, absolute, in float32
TOLERANCE_64 = 1e-9  # in float64, where the tokens are so large that float32's rounding alone exceeds the first
# Of pixels, in normalised units: two levels of 8 bits, as libraries differ in how they round.
PREPROCESSING_TOLERANCE = 0.04
MOST_IMAGES = 16


def parity_images(folder: Path | None = None) -> list[PIL.Image.Image]:
    """RGB images: of a folder at most `MOST_IMAGES`, evenly taken; else a frame of each of pydicom's real ultrasound
    examples and four phantoms.

    Raises:
        ValueError, OSError: as `load_corpus`.
    """
    if folder is not None:
        corpus = load_corpus(folder, progress=False)
        chosen = np.unique(np.linspace(0, len(corpus) - 1, MOST_IMAGES).round().astype(int)).tolist()
        frames = [corpus.pixels(index) for index in chosen]
        return [_pil(np.asarray(frame.expand(3, -1, -1).permute(1, 2, 0))) for frame in frames]
    images = []
    for path in ultrasound_examples():
        source = open_source(path)
        images.append(_pil(source.frame(source.num_frames // 2)))
    for organ in ("heart", "kidney", "fetus", "breast"):
        frame = phantom_frame(0, ORGANS.index(organ), organ=organ, image_size=224, snr_db=20.0)
        images.append(_pil(frame.image))
    return images


def _pil(pixels: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


@torch.no_grad()
def compare(
    ours: nn.Module, theirs: nn.Module, reference: Callable, against: str, processor: URFMImageProcessor, images: list
) -> dict:
    """Largest and mean absolute difference of all tokens, and of the pooled ones where the source pools.

    Args:
        ours: a URFMModel. theirs: the module that `reference` runs; both are left in float32.

    Raises:
        ConversionError: more than `TOLERANCE`. Where float32's rounding is to blame, float64 decides.
    """
    facts = {"against": against, "images": len(images), "dtype": "float32", "tolerance": TOLERANCE}
    gaps = _gaps(ours, reference, processor, images, torch.float32)
    if not gaps["max_abs"] <= TOLERANCE:
        rounding = gaps["max_abs"]
        ours, theirs = ours.double(), theirs.double()
        try:
            exact = _gaps(ours, reference, processor, images, torch.float64)
        finally:
            ours.float(), theirs.float()  # exact: they were float32
        if not exact["max_abs"] <= TOLERANCE_64:
            raise ConversionError(
                f"The outputs differ from those of {against}: by {rounding:.1e} at most (allowed: {TOLERANCE:.0e}), by "
                f"{exact['max_abs']:.1e} in float64 (allowed: {TOLERANCE_64:.0e}). Nothing is written."
            )
        gaps, facts = exact, facts | {"dtype": "float64", "tolerance": TOLERANCE_64, "max_abs_float32": rounding}
    return facts | gaps


def _gaps(ours: nn.Module, reference: Callable, processor, images: list, dtype: torch.dtype) -> dict:
    largest, total, count, scale = 0.0, 0.0, 0, 0.0
    for image in tqdm(images, desc="parity", delay=2):
        pixels = processor(image, return_tensors="pt")["pixel_values"].to(dtype)
        output = ours(pixels)
        try:
            tokens, pooled = reference(pixels)
        except RuntimeError as error:  # a config's value that its library did not check
            raise ConversionError(f"The source's own code fails on an image: {error}") from error
        if tokens.shape != output.last_hidden_state.shape:
            raise ConversionError(
                f"The source gives tokens {tuple(tokens.shape)}, the converted encoder "
                f"{tuple(output.last_hidden_state.shape)}. Nothing is written."
            )
        gap = (output.last_hidden_state - tokens).abs()
        if pooled is not None:
            gap = torch.cat([gap.flatten(), (output.pooler_output - pooled).abs().flatten()])
        largest = max(largest, float(gap.max())) if torch.isfinite(gap).all() else float("nan")
        total, count = total + float(gap.double().sum()), count + gap.numel()
        scale = max(scale, float(tokens.abs().max()))
        if largest != largest:
            break
    return {"max_abs": largest, "mean_abs": total / count, "largest_token": scale}


def compare_preprocessing(preprocess: Callable, settings: dict, images: list) -> dict:
    """How far pixels as the source prepares them are from ours, in normalised units.

    timm and open_clip round an odd margin of a centre crop where transformers cuts it off: such an image is a pixel aside
    of ours, and counts as `shifted` and not in the figures.

    Raises:
        ConversionError: more than `PREPROCESSING_TOLERANCE`, or another size.
    """
    processor = URFMImageProcessorPil(**copy.deepcopy(settings))
    torchvision = URFMImageProcessor(**copy.deepcopy(settings))
    largest, means, shifted = 0.0, [], 0
    for image in images:
        theirs = torch.as_tensor(preprocess(image))
        ours = [backend(image, return_tensors="pt")["pixel_values"][0] for backend in (processor, torchvision)]
        if theirs.shape != ours[0].shape:
            raise ConversionError(
                f"The source prepares {tuple(theirs.shape)}, URFM's processor {tuple(ours[0].shape)}."
            )
        if _is_shifted(image.size, settings) and (theirs - ours[0]).abs().max() > PREPROCESSING_TOLERANCE:
            shifted += 1
            continue
        gap = min(((theirs - pixels).abs() for pixels in ours), key=lambda gap: float(gap.max()))
        largest = max(largest, float(gap.max()))
        means.append(float(gap.mean()))
    if largest > PREPROCESSING_TOLERANCE:
        raise ConversionError(
            f"URFM's processor can't prepare images as the source does: they differ by {largest:.2f} (allowed: "
            f"{PREPROCESSING_TOLERANCE}, in normalised units)."
        )
    facts = {"images": len(means), "shifted": shifted, "tolerance": PREPROCESSING_TOLERANCE}
    compared = (
        {"max_abs": largest, "mean_abs": sum(means) / len(means)} if means else {"max_abs": None, "mean_abs": None}
    )
    return facts | compared


def _is_shifted(size: tuple[int, int], settings: dict) -> bool:
    """Whether a centre crop has a margin that libraries halve differently."""
    if not settings.get("do_center_crop"):
        return False
    grown, crop = settings["size"].get("shortest_edge"), settings["crop_size"]["height"]
    sides = [settings["size"]["height"]] if grown is None else [grown, int(grown * max(size) / min(size))]
    return any(round((side - crop) / 2) != (side - crop) // 2 for side in sides)
