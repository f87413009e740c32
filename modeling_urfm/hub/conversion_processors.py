# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How the source prepares images, as options of URFMImageProcessor: what that can't do is refused."""

import math
from pathlib import Path

from .conversion_files import ConversionError, Source


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def timm_processor(data: dict, image_size: int) -> dict:
    """timm's transform for evaluation as options of URFMImageProcessor."""
    side = data["input_size"][-1]
    if tuple(data["input_size"]) != (3, image_size, image_size):
        raise ConversionError(
            f"The config's input_size is {tuple(data['input_size'])}, the position embedding's (3, {image_size}, {image_size})."
        )
    mode, levels = data.get("crop_mode") or "center", {"image_mean": data["mean"], "image_std": data["std"]}
    if mode not in ("center", "squash") or data["interpolation"] not in RESAMPLE or data.get("crop_border_pixels"):
        raise ConversionError(
            f"refused: preprocessing with crop_mode {mode!r} and interpolation {data['interpolation']!r}; URFM's "
            f"processor has center and squash, with {', '.join(RESAMPLE)}."
        )
    grown, resample = math.floor(side / (data.get("crop_pct") or 0.875)), RESAMPLE[data["interpolation"]]
    if mode == "squash" and grown == side:
        return squeezed(side, resample, levels)
    return cropped(side, grown, resample, levels, squash=mode == "squash")


def open_clip_processor(preprocess, image_size: int) -> dict:
    """A PreprocessCfg of open_clip as options of URFMImageProcessor."""
    sizes = preprocess.size if isinstance(preprocess.size, (list, tuple)) else [preprocess.size]
    if any(side != image_size for side in sizes):
        raise ConversionError(f"The config's image_size is {preprocess.size}, the position embedding's {image_size}.")
    if preprocess.resize_mode not in ("shortest", "squash") or preprocess.interpolation not in RESAMPLE:
        raise ConversionError(
            f"refused: preprocessing with resize_mode {preprocess.resize_mode!r} and interpolation "
            f"{preprocess.interpolation!r}; URFM's processor has shortest and squash, with {', '.join(RESAMPLE)}."
        )
    levels, resample = {"image_mean": preprocess.mean, "image_std": preprocess.std}, RESAMPLE[preprocess.interpolation]
    if preprocess.resize_mode == "squash":
        return squeezed(image_size, resample, levels)
    return cropped(image_size, image_size, resample, levels)


def squeezed(side: int, resample: int, levels: dict) -> dict:
    return {"size": {"height": side, "width": side}, "resample": resample} | floats(levels)


def cropped(side: int, grown: int, resample: int, levels: dict, squash: bool = False) -> dict:
    size = {"height": grown, "width": grown} if squash else {"shortest_edge": grown}
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    return {"size": size, "resample": resample, "default_to_square": squash} | crop | floats(levels)


def floats(levels: dict) -> dict:
    try:
        values = {key: [float(value) for value in channels] for key, channels in levels.items()}
    except (TypeError, ValueError) as error:
        raise ConversionError(f"The config's mean or standard deviation is no list of numbers: {levels}.") from error
    for key, channels in values.items():
        if len(channels) != 3 or not all(map(math.isfinite, channels)) or (key == "image_std" and min(channels) <= 0):
            raise ConversionError(
                f"The config's {key.removeprefix('image_')} is {channels}; three channels are needed."
            )
    return values


def transformers_processor(source: Source, image_size: int, is_mae: bool):
    """Options of URFMImageProcessor, the source's own way to prepare an image, and what was assumed."""
    from transformers import AutoImageProcessor

    if source.processor is None:
        levels, resample = (IMAGENET, 3) if is_mae else (HALVES, 2)
        named = (
            "ImageNet's mean and standard deviation, bicubic" if is_mae else "mean and standard deviation 0.5, bilinear"
        )
        return squeezed(image_size, resample, levels), None, [
            f"preprocessing: {image_size} px squeezed, {named}, as there is no preprocessor_config.json"
        ]  # fmt: skip
    try:
        theirs = AutoImageProcessor.from_pretrained(Path(source.processor), trust_remote_code=False)
        values = theirs.to_dict()
    except Exception as error:  # of many kinds
        raise ConversionError(f"preprocessor_config.json can't be read: {error}") from error
    names = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
             "image_mean", "image_std")  # fmt: skip
    options = {name: values[name] for name in names if values.get(name) is not None}
    if options.get("do_resize") and options.get("resample") not in RESAMPLE.values():
        raise ConversionError(f"refused: preprocessing with resample {options.get('resample')}; there are 0, 2 and 3.")
    for name, value in options.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if (name.startswith("do_") and not isinstance(value, bool)) or (name == "rescale_factor" and not is_number):
            raise ConversionError(f"preprocessor_config.json says {name} {value!r}.")
    for name in ("image_mean", "image_std"):
        if name in options:
            options |= floats({name: options[name]})
    options["default_to_square"] = "shortest_edge" not in (options.get("size") or {})
    sides = options.get("crop_size" if options.get("do_center_crop") else "size") or {}
    is_square = "shortest_edge" not in sides and "longest_edge" not in sides
    if not is_square or any(side != image_size for side in dict(sides).values()):
        raise ConversionError(
            f"preprocessor_config.json gives images of {dict(sides)}, the encoder takes {image_size} px."
        )
    return options, lambda image: theirs(image, return_tensors="pt")["pixel_values"][0], []
