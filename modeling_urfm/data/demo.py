# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The demo's data: phantoms at a low signal-to-noise ratio, and every frame of pydicom's real ultrasound examples."""

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .corpus import Corpus, FileCorpus, TableCorpus, join_corpora, load_corpus
from .phantoms import ORGANS, generate_phantoms, phantom_frame, usable_cores
from .reading import open_source, ultrasound_examples


# Phantoms that a student is pre-trained on; teachers and evaluations have seeds of their own.
CORPUS_SEED = 1
# So noisy that a person still finds the organ, but pixels can't be predicted. Organ kNN of the demo teacher's own features:
# 97 % at 10 to 20 dB, 93 % at 5 to 15, 81 % at 0 to 10, 62 % at -5 to 5.
PHANTOM_SNR_DB = (5.0, 15.0)
PHANTOM_SIZE = 128


def demo_corpus(num_patients: int, snr_db: tuple[float, float] = PHANTOM_SNR_DB, progress: bool = True) -> Corpus:
    """Four frames of each of `num_patients` phantoms, and the real frames that come with pydicom."""
    phantoms = generate_phantoms(
        num_patients,
        image_size=PHANTOM_SIZE,
        snr_db=snr_db,
        seed=CORPUS_SEED,
        num_proc=usable_cores(),
        progress=progress,
    )
    parts: list[Corpus] = [TableCorpus("synthetic phantoms", phantoms)]
    files = [(str(path), open_source(path).num_frames) for path in ultrasound_examples()]
    if files:
        parts.append(FileCorpus("real ultrasound of pydicom's examples", files))
    return join_corpora(parts)


def open_datasets(args, progress: bool = True) -> Corpus:
    """What `--dataset` names, joined: "demo" or anything that `load_corpus` opens.

    Args:
        args: with `dataset`, `dataset_split`, `phantom_patients` and `phantom_snr_db` (None: `PHANTOM_SNR_DB`).
    """
    snr_db = tuple(args.phantom_snr_db or PHANTOM_SNR_DB)
    return join_corpora([
        demo_corpus(args.phantom_patients, snr_db=snr_db, progress=progress)
        if name == "demo"
        else load_corpus(name, split=args.dataset_split, progress=progress)
        for name in args.dataset
    ])  # fmt: skip


def example_images(image_size: int, snr_db: tuple[float, float], seed: int) -> tuple[list[str], torch.Tensor]:
    """Held-out phantoms of a few organs and a real frame, to look at: names, and (images, 3, size, size) in [0, 1]."""
    names, images = [], []
    for organ in ("heart", "kidney", "fetus", "breast"):
        frame = phantom_frame(seed, ORGANS.index(organ), organ=organ, image_size=PHANTOM_SIZE, snr_db=sum(snr_db) / 2)
        names.append(f"{organ} (phantom)")
        images.append(torch.from_numpy(frame.image)[None].expand(3, -1, -1))
    for path in ultrasound_examples():
        if path.name == "examples_ybr_color.dcm":
            names.append("echocardiogram (real)")
            pixels = torch.from_numpy(open_source(path).frame(10)).permute(2, 0, 1)
            images.append(F.center_crop(pixels, [min(pixels.shape[-2:])] * 2))
    resized = [F.resize(i, [image_size, image_size], InterpolationMode.BICUBIC, antialias=True) for i in images]
    return names, torch.stack(resized).float() / 255
