# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Images of one signal-to-noise ratio: the unlabelled corpus, the labelled sets, and the features that teachers see.

Each array is made once and kept as a file; the same patients, with the same anatomy, stand in the corpora of all ratios.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from modeling_urfm.data.phantoms import LESIONS, ORGANS, map_patients, phantom_frame
from modeling_urfm.data.reading import open_source, ultrasound_examples
from modeling_urfm.pretraining.teacher import Teacher, load_teacher, untrained_teacher

from .design import GRID, IMAGE_SIZE, Scale
from .scanners import other_scanner_frame


# Seeds of phantoms that no teacher, demo or evaluation that ships has seen. Test patients have numbers of their own (a
# multiple of the 15 organs), which no pilot has looked at.
UNLABELLED_SEED, ORGAN_SEED, LESION_SEED = 9_300_001, 9_300_002, 9_300_003
FIRST_TEST_PATIENT = 150_000
OTHER_TEACHER = Path(__file__).resolve().parent / "other_teacher"
SPLITS = ("train", "validation", "in", "out")


@dataclass(frozen=True)
class Unlabelled:
    """Crops to pre-train on.

    Attributes:
        images: (crops, size, size) uint8. loops: (crops,) the cine loop and view that a crop is of; crops of one loop were
            cut alike. frames: (crops,) their places in the loop.
    """

    images: np.ndarray
    loops: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True)
class Labelled:
    """A labelled set of one ratio.

    Attributes:
        images: (images, size, size) uint8. labels: (images,) classes. masks: (images, size, size) uint8, 1 in the lesion.
        rows: "train", "validation", "in" (test), "out" (test, of another scanner) to their rows; one image a patient.
        classes: names.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    rows: dict[str, np.ndarray]
    classes: tuple[str, ...]


# ---------------------------------------------------------------- unlabelled


def unlabelled(folder: Path, level: float, scale: Scale) -> Unlabelled:
    """Crops of the phantoms' cine loops at `level` dB, and of every real frame that comes with pydicom."""
    path = folder / f"unlabelled_{level:g}dB.npz"
    if not path.is_file():
        jobs = [(patient, level, scale.frames) for patient in range(scale.patients)]
        loops = [np.stack(frames) for frames in map_patients(_loop, jobs, 1, progress=True)] + real_loops()
        images, numbers, places = [], [], []
        rng = np.random.default_rng(UNLABELLED_SEED)
        for number, loop in enumerate(loops):
            for view in range(scale.views):
                images.append(cut(loop, rng))
                numbers.append(np.full(len(loop), number * scale.views + view))
                places.append(np.arange(len(loop)))
        _save(path, images=np.concatenate(images), loops=np.concatenate(numbers), frames=np.concatenate(places))
    return Unlabelled(**np.load(path))


def _loop(job: tuple) -> list[np.ndarray]:
    patient, level, frames = job
    return [
        phantom_frame(UNLABELLED_SEED, patient, frame, image_size=IMAGE_SIZE, snr_db=level).image
        for frame in range(frames)
    ]


def real_loops() -> list[np.ndarray]:
    """pydicom's ultrasound examples, the middle square of every frame in grey: [(frames, size, size) uint8]."""
    loops = []
    for path in ultrasound_examples():
        source = open_source(path)
        frames = []
        for number in range(source.num_frames):
            pixels = torch.from_numpy(source.frame(number)).permute(2, 0, 1)
            pixels = TF.rgb_to_grayscale(TF.center_crop(pixels, [min(pixels.shape[-2:])] * 2))
            frames.append(
                TF.resize(pixels, [IMAGE_SIZE, IMAGE_SIZE], InterpolationMode.BICUBIC, antialias=True)[0].numpy()
            )
        loops.append(np.stack(frames))
    return loops


def cut(loop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random crop of 0.5 to 1 of the area, flipped or not, of all frames of a loop: (frames, size, size) uint8."""
    side = np.sqrt(rng.uniform(0.5, 1))
    shift, flip = rng.uniform(-1, 1, 2) * (1 - side), rng.choice([-1.0, 1.0])
    theta = torch.tensor([[side * flip, 0, shift[0]], [0, side, shift[1]]], dtype=torch.float32)
    grid = F.affine_grid(theta.expand(len(loop), -1, -1), (len(loop), 1, *loop.shape[1:]), align_corners=False)
    pixels = F.grid_sample(torch.from_numpy(loop)[:, None].float(), grid, align_corners=False)
    return pixels.round().clamp(0, 255).to(torch.uint8)[:, 0].numpy()


# ---------------------------------------------------------------- labelled


def labelled(folder: Path, level: float, scale: Scale, task: str) -> Labelled:
    """The set of a task at `level` dB: "organ", 15 organs in turn; "lesion", the breast without and with lesions, outlined."""
    path, sizes = folder / f"{task}_{level:g}dB.npz", getattr(scale, task)
    if not path.is_file():
        patients = np.arange(sum(sizes))
        jobs = [
            (task, int(p + FIRST_TEST_PATIENT * (p >= sum(sizes[:2]))), level, p >= sum(sizes[:3])) for p in patients
        ]
        rows = map_patients(_labelled_frame, jobs, 1, progress=True)
        names = ("images", "labels", "masks")
        _save(path, **{name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)})
    ends = np.cumsum((0, *sizes))
    rows = {split: np.arange(low, high) for split, low, high in zip(SPLITS, ends, ends[1:])}
    return Labelled(**np.load(path), rows=rows, classes=ORGANS if task == "organ" else LESIONS)


def _labelled_frame(job: tuple) -> tuple[np.ndarray, int, np.ndarray]:
    task, patient, level, elsewhere = job
    make = other_scanner_frame if elsewhere else partial(phantom_frame, frame=0)
    if task == "organ":
        frame = make(ORGAN_SEED, patient, organ=ORGANS[patient % len(ORGANS)], image_size=IMAGE_SIZE, snr_db=level)
        return frame.image, ORGANS.index(frame.organ), frame.mask
    frame = make(LESION_SEED, patient, organ="breast", image_size=IMAGE_SIZE, snr_db=level)
    return frame.image, LESIONS.index(frame.lesion), frame.mask


# ---------------------------------------------------------------- targets


def teacher(name: str, layer: int = -1, dtype: torch.dtype | None = None) -> Teacher:
    """ "medical": the demo's; "other": the same CLIP of a world without ultrasound; "random": the same network, untrained."""
    if name == "medical":
        return load_teacher("demo", layer=layer, dtype=dtype)
    if name == "other":
        return load_teacher(f"open_clip:local-dir:{OTHER_TEACHER}", layer=layer, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = untrained_teacher("test_vit4", dtype=torch.float32, img_size=IMAGE_SIZE)
    for block in untrained.tower.trunk.blocks:  # as the demo's begins: timm's 1e-5 would leave its layers out
        block.ls1.gamma.data.fill_(1.0)
        block.ls2.gamma.data.fill_(1.0)
    return untrained


def features(folder: Path, level: float, corpus: Unlabelled, name: str, layer: int = -1) -> tuple[np.ndarray, float]:
    """Patch features of all crops: (crops, patches, features) float16, and the CPU seconds that the teacher took."""
    path = folder / f"features_{name}{layer}_{level:g}dB.npy"
    seconds = path.with_suffix(".json")
    if not path.is_file():
        looking, parts, started = teacher(name, layer), [], time.process_time()
        for images in tqdm(torch.from_numpy(corpus.images).split(64), desc=f"{name} teacher", unit="batch"):
            parts.append(looking(images[:, None].expand(-1, 3, -1, -1).float() / 255, GRID).half().numpy())
        seconds.write_text(json.dumps({"cpu_s": time.process_time() - started}))
        _write(path, lambda file: np.save(file, np.concatenate(parts)))
    return np.load(path, mmap_mode="r"), json.loads(seconds.read_text())["cpu_s"]


def averaged_over_frames(values: np.ndarray, corpus: Unlabelled, reach: int = 3) -> np.ndarray:
    """Features of a frame averaged over the frames of its loop that are at most `reach` away: as `values`.

    Speckle decorrelates from frame to frame and anatomy does not, so the target's own signal-to-noise ratio rises.
    """
    averaged = np.empty_like(values)
    edges = np.flatnonzero(np.diff(corpus.loops, prepend=-1, append=-1))
    for low, high in zip(edges, edges[1:]):
        loop = values[low:high].astype(np.float32)
        for place in range(high - low):
            averaged[low + place] = loop[max(0, place - reach) : place + reach + 1].mean(0)
    return averaged


def _save(path: Path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, lambda file: np.savez(file, **arrays))


def _write(path: Path, write: Callable):
    """Written whole, then moved into place; two processes that make the same file do not meet before that."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
