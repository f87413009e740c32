# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Scans that come with the app: real ultrasound out of pydicom's wheel, and simulated organs."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from modeling_urfm.data.phantoms import ORGANS, encode_png, phantom_frame
from modeling_urfm.data.reading import open_source, ultrasound_examples


SEED = 7_100_001  # neither trained on nor among the cases
REAL_LOOP = "examples_ybr_color.dcm"  # of pydicom's ultrasound files the one that names nobody
STILLS = (("kidney", "malignant"), ("breast", "benign"), ("fetus", "absent"))
SIDE, LOOP_FRAMES, FRAME_MS = 384, 10, 120


@dataclass(frozen=True)
class Example:
    """`data` is the file. `thumbnail`: (height, width, 3) uint8."""

    key: str
    title: str
    source: str
    data: bytes
    thumbnail: np.ndarray


def load_examples() -> dict[str, Example]:
    """By their keys, in the order in which they are shown."""
    found = []
    for path in ultrasound_examples():
        if path.name == REAL_LOOP:
            found.append(
                Example("echo", "Heart", "real loop, DICOM", path.read_bytes(), square(open_source(path).frame(0)))
            )
    frames = [_phantom("heart", "absent", frame) for frame in range(LOOP_FRAMES)]
    found.append(Example("heart", "Heart", "simulated loop, GIF", encode_gif(frames), square(frames[0])))
    for organ, lesion in STILLS:
        image = _phantom(organ, lesion)
        title = organ.capitalize() + ("" if lesion == "absent" else " with a lesion")
        found.append(Example(organ, title, "simulated, PNG", encode_png(image), square(image)))
    return {example.key: example for example in found}


def _phantom(organ: str, lesion: str, frame: int = 0) -> np.ndarray:
    number = ORGANS.index(organ)
    return phantom_frame(SEED, number, frame, organ=organ, lesion=lesion, image_size=SIDE, snr_db=18).image


def encode_gif(frames: list[np.ndarray]) -> bytes:
    """(height, width) uint8 each."""
    content = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(content, "GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    return content.getvalue()


def square(frame: np.ndarray, side: int = 160) -> np.ndarray:
    """The middle of a frame as a small square, (side, side, 3) uint8."""
    image = Image.fromarray(frame).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return np.asarray(image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS))
