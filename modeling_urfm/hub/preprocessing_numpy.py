# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The preprocessing of an exported URFM model in numpy alone, from its `preprocessing.json`.

    import json, numpy, onnxruntime
    from preprocessing import preprocess

    parameters = json.load(open("preprocessing.json"))
    session = onnxruntime.InferenceSession("onnx/model.onnx")
    outputs = session.run(None, {"pixel_values": preprocess(image, parameters)})

This file is also in every exported folder, as `preprocessing.py`. It is the reference for other languages: every step is
written out, and for 8-bit images the result of the resizing equals Pillow's bit for bit. Not for clinical use.
"""

import numpy as np


# Of Pillow's filters: half the width of each, and its value at |x|.
FILTERS = {
    "bilinear": (1.0, lambda x: np.maximum(1 - x, 0)),
    "bicubic": (2.0, lambda x: np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, _bicubic_tail(x))),
    "lanczos": (3.0, lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)),
}


def _bicubic_tail(x: np.ndarray) -> np.ndarray:
    return np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0)


def preprocess(image: np.ndarray, parameters: dict, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """One image to `pixel_values`.

    Args:
        image: (height, width) or (height, width, 1, 3 or 4) of RGB order: bool; uint8; uint16, where 65535 is white; or
            float in [0, 1] or [0, 255].
        parameters: the content of `preprocessing.json`.
        box: (top, left, height, width) of the scan region in pixels. None: the whole image.

    Returns:
        (1, 3, height, width), float32.

    Raises:
        ValueError: another dtype or shape, or a step that is not known.

    >>> steps = [{"name": "resize", "height": 4, "width": 4, "filter": "bicubic"}, {"name": "rescale", "factor": 1 / 255}]
    >>> preprocess(np.full((8, 6), 255, np.uint8), {"input": {"unit_floats_times": 255}, "steps": steps}).shape
    (1, 3, 4, 4)
    """
    image = _read(image, parameters["input"]["unit_floats_times"])
    image = image if box is None else _crop(image, *box)
    for step in parameters["steps"]:
        name, values = step["name"], {key: value for key, value in step.items() if key not in ("name", "note")}
        if name == "crop_scan_region":
            continue  # by `box`
        if name not in STEPS:
            raise ValueError(f"step {name!r} is not known; there are: crop_scan_region, {', '.join(STEPS)}")
        image = STEPS[name](image, **values)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)


def _read(image: np.ndarray, unit_floats_times: float) -> np.ndarray:
    """-> (height, width, 3), uint8, or float32 with white at 255 (floats in [0, 1]: at `unit_floats_times`)."""
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or min(image.shape[:2]) < 2:
        raise ValueError(f"shape {image.shape}; (height, width) or (height, width, 1, 3 or 4) is needed")
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    elif image.dtype == np.uint16:
        image = image.astype(np.float32) / np.float32(257)
    elif image.dtype.kind == "f":
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise ValueError("the image holds NaN or infinite values")
        if image.min() >= -0.001 and image.max() <= 1.001:
            image = image.clip(0, 1) * np.float32(unit_floats_times)
    elif image.dtype != np.uint8:
        raise ValueError(f"dtype {image.dtype}; bool, uint8, uint16 or float is needed")
    if image.shape[2] == 4:  # alpha over black
        alpha = image[..., 3:].astype(np.float32) / np.float32(_white(image))
        colour = image[..., :3].astype(np.float32) * alpha
        image = np.round(colour).astype(np.uint8) if image.dtype == np.uint8 else colour
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _white(image: np.ndarray) -> float:
    return 1.0 if image.dtype != np.uint8 and image.max() <= 1.001 else 255.0


def _crop(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    return image[top : top + height, left : left + width]


def _percentile_rescale(image: np.ndarray, lower: float, upper: float, white: float) -> np.ndarray:
    """Values between two percentiles (nearest rank, over all channels) to [0, white]; a constant image to 0."""
    image = image.astype(np.float32)
    values = np.sort(image, axis=None)
    low, high = (values[round(percent / 100 * (values.size - 1))] for percent in (lower, upper))
    low, high = (low, high) if high > low else (values[0], values[-1])
    if not high > low:
        return np.zeros_like(image)
    return ((image - low) / (high - low)).clip(0, 1) * np.float32(white)


def _pad_square(image: np.ndarray) -> np.ndarray:
    """Black around the image, up to a square: the smaller half above and to the left."""
    height, width = image.shape[:2]
    rows, columns = max(0, width - height), max(0, height - width)
    return np.pad(image, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)))


def _resize(image: np.ndarray, filter: str, height=None, width=None, shortest_edge=None) -> np.ndarray:
    """To `height` x `width`, or its shorter side to `shortest_edge`: columns first, then rows, antialiased."""
    rows, columns = image.shape[:2]
    if shortest_edge:
        longest = int(shortest_edge * max(rows, columns) / min(rows, columns))
        height, width = (longest, shortest_edge) if columns <= rows else (shortest_edge, longest)
    is_8_bit = image.dtype == np.uint8
    low, high = (
        (0.0, 255.0) if is_8_bit else (min(0.0, image.min()), max(255.0 if image.max() > 1 else 1.0, image.max()))
    )
    for axis, size in ((1, width), (0, height)):
        weights = resize_weights(image.shape[axis], size, filter)
        if is_8_bit:  # Pillow counts in whole 2**-22; these sums of doubles are exact
            weights = np.trunc(weights * 2**22 + np.copysign(0.5, weights))
        image = np.moveaxis(np.tensordot(weights, image.astype(np.float64), axes=(1, axis)), 0, axis)
        if is_8_bit:
            image = np.floor((image + 2**21) / 2**22).clip(0, 255).astype(np.uint8)
        else:
            image = image.astype(np.float32)
    return image.clip(low, high).astype(np.uint8 if is_8_bit else np.float32)


def resize_weights(old: int, new: int, filter: str) -> np.ndarray:
    """(new, old): what every old pixel gives to every new one. Where an image shrinks, the filter widens with it."""
    half, value = FILTERS[filter]
    scale = old / new
    stretch = max(scale, 1.0)
    weights = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * scale
        first = max(0, int(centre - half * stretch + 0.5))
        last = min(old, int(centre + half * stretch + 0.5))
        weights[row, first:last] = value(np.abs(np.arange(first, last) + 0.5 - centre) / stretch)
        weights[row] /= weights[row].sum()
    return weights


def _center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[0] < height or image.shape[1] < width:
        raise ValueError(f"an image of {image.shape[0]} x {image.shape[1]} has no crop of {height} x {width}")
    return _crop(image, (image.shape[0] - height) // 2, (image.shape[1] - width) // 2, height, width)


def _rescale(image: np.ndarray, factor: float) -> np.ndarray:
    return image.astype(np.float32) * np.float32(factor)


def _normalize(image: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    return (image.astype(np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)


STEPS = {
    "percentile_rescale": _percentile_rescale,
    "pad_square": _pad_square,
    "resize": _resize,
    "center_crop": _center_crop,
    "rescale": _rescale,
    "normalize": _normalize,
}
__all__ = ["preprocess", "resize_weights"]
