# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Whole images as a teacher takes them, and its features of them: what a target cache is made of."""

import os
from bisect import bisect_right

import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..data.corpus import Corpus, JoinedCorpus
from ..data.reading import UnreadableFile
from ..data.transforms import to_float
from .target_cache import MIN_COSINE
from .target_codec import fit_codec
from .teacher import TeacherError


class TeacherImages(Dataset):
    """Whole images as the teacher takes them, squashed to its square: (index, uint8 pixels or None, id, reason, bytes)."""

    def __init__(self, corpus: Corpus, size: int):
        self.corpus, self.size = corpus, size

    def __getitem__(self, index: int) -> tuple:
        name = self.corpus.id(index)
        try:
            pixels = self.corpus.pixels(index)
        except Exception as error:  # decoders raise many kinds
            reason = error.reason if isinstance(error, UnreadableFile) else f"{type(error).__name__}: {error}"
            return index, None, name, reason, 0
        size = [self.size, self.size]
        pixels = F.resize(pixels.expand(3, -1, -1), size, InterpolationMode.BICUBIC, antialias=True)
        return index, pixels.contiguous(), name, "", source_bytes(self.corpus, index)


def source_bytes(corpus: Corpus, index: int) -> int:
    """Bytes that an image takes as it is stored, JPEG or whatever; of a loop, its share of the file. 0: not known."""
    if isinstance(corpus, JoinedCorpus):
        return source_bytes(*corpus._place(index))
    if hasattr(corpus, "files"):
        path, frames = corpus.files[bisect_right(corpus.ends, index)]
        return os.path.getsize(path) // frames
    data, path = corpus.cell(index)
    return len(data) if data is not None else os.path.getsize(path)


def features_of(batch: list[tuple], teacher, grid: tuple[int, int]) -> torch.Tensor:
    """(readable images, patches, width), float32, before any normalisation."""
    pixels = to_float(torch.stack([pixels for _, pixels, *_ in batch if pixels is not None]))
    return teacher(pixels, grid)


def teacher_grid(teacher) -> tuple[int, int]:
    """The teacher's own, for which nothing is interpolated."""
    with torch.inference_mode():
        zeros = torch.zeros(1, 3, teacher.image_size, teacher.image_size, device=teacher._device, dtype=teacher.dtype)
        return square(teacher.tower(zeros).shape[1])


def square(patches: int) -> tuple[int, int]:
    side = round(patches**0.5)
    if side * side != patches:
        raise TeacherError(f"The teacher gives {patches} patch tokens, which is no square grid.")
    return side, side


def cache_bytes_an_image(corpus: Corpus, teacher, sample: int = 64) -> float | None:
    """About what an image of `corpus` would take in a target cache: a codec is fitted on a sample, and the sample packed.

    None where no image of the sample can be read and has features that are finite; those that haven't get no targets.
    """
    images = TeacherImages(corpus, teacher.image_size)
    chosen = torch.linspace(0, len(corpus) - 1, min(sample, len(corpus))).long().tolist()
    readable = [item for item in map(images.__getitem__, chosen) if item[1] is not None]
    if not readable:
        return None
    grid = teacher_grid(teacher)
    features = torch.cat(
        [features_of(readable[at : at + 16], teacher, grid).cpu() for at in range(0, len(readable), 16)]
    )
    features = features[torch.isfinite(features).flatten(1).all(1)]
    if not len(features):
        return None
    codec, _ = fit_codec(features, grid, MIN_COSINE)
    symbols, _ = codec.quantize(features)
    return sum(len(codec.pack(row)) for row in symbols.numpy()) / len(symbols)
