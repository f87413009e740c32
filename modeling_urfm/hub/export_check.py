# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Does an exported graph give what PyTorch gives? On real images, at several batch and image sizes."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from ..data.corpus import load_corpus
from ..data.phantoms import ORGANS, phantom_frame
from ..data.reading import open_source, ultrasound_examples


MAX_IMAGES, BATCH = 64, 8
# Largest error of float32 graphs, as a share of the largest output (of 1 where outputs are smaller).
EXACT = 1e-4
# Of 8-bit weights: lowest cosine of an image's pooled features, share of equal answers of a classifier or segmenter, and of a
# regression the largest error as a share of the largest value.
LOWEST_COSINE, LOWEST_AGREEMENT, LARGEST_SHIFT = 0.95, 0.9, 0.1

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def verification_images(folder: str | None) -> tuple[str, list[np.ndarray]]:
    """What to compare on: at most 64 images of `folder`, evenly spaced, or the frames that ship and a phantom an organ.

    Args:
        folder: images, DICOM files, a corpus or Parquet files, as `--dataset` takes them. None: pydicom's real ultrasound
            frames and simulated ones.

    Returns:
        A description, and arrays of (height, width) or (height, width, 3), uint8.

    Raises:
        ValueError: a folder of fewer than three images.
    """
    if folder is None:
        real = [
            source.frame(at) for source in map(open_source, ultrasound_examples()) for at in _places(source.num_frames)
        ]
        phantoms = [phantom_frame(0, place, organ=organ, image_size=224).image for place, organ in enumerate(ORGANS)]
        return f"{len(real)} real frames (pydicom's examples) and {len(phantoms)} phantoms", real + phantoms
    corpus = load_corpus(folder, progress=False)
    if len(corpus) < 3:
        raise ValueError(f"--images {folder} has {len(corpus)} images; at least 3 are needed to compare on.")
    chosen = np.unique(np.linspace(0, len(corpus) - 1, min(len(corpus), MAX_IMAGES)).astype(int))
    # Not by its name: a folder may be called after a patient, and exports are shared.
    return f"{len(chosen)} images of the user's own", [corpus.read(int(index)) for index in chosen]


def _places(frames: int) -> list[int]:
    """Up to three frames of a loop."""
    return sorted({0, frames // 3, 2 * frames // 3})


def other_sizes(pixels: np.ndarray, patch: int) -> list[np.ndarray]:
    """Batches of one and three images, smaller, larger, not square, of (B, C, H, W) at the usual size."""
    height, width = pixels.shape[-2:]
    half = max(2, height // patch // 2) * patch
    shapes = ((1, (half, width + patch)), (3, (height + 2 * patch, width)), (1, (2 * half + patch, half)))
    return [F.interpolate(torch.from_numpy(pixels[:count]), size, mode="bilinear").numpy() for count, size in shapes]


def run_over(run: Run, pixels: np.ndarray, batch: int = BATCH) -> dict[str, np.ndarray]:
    """The outputs for all images, `batch` at a time."""
    parts = [run(pixels[at : at + batch]) for at in range(0, len(pixels), batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, dict]:
    """How far the outputs lie apart: a line an output.

    Returns:
        Of each: `max_abs`, `mean_abs` and `largest` (of the expected values); `cosine_lowest` and `cosine_mean` over
        images, of all an image's values.
    """
    found = {}
    for name, wanted in expected.items():
        if got[name].shape != wanted.shape:
            raise ValueError(f"{name} has shape {got[name].shape}, PyTorch gives {wanted.shape}")
        difference = np.abs(got[name] - wanted)
        cosines = _cosine(got[name], wanted)
        found[name] = {
            "max_abs": float(difference.max()), "mean_abs": float(difference.mean()),
            "largest": float(np.abs(wanted).max()), "cosine_lowest": float(cosines.min()),
            "cosine_mean": float(cosines.mean()),
        }  # fmt: skip
    return found


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)


def top1_agreement(task: str, problem: str | None, got: dict, expected: dict) -> float | None:
    """Share of equal answers.

    Of a classifier: the label (of several labels, each yes or no; of a regression there is none); of a segmenter: every
    pixel's label; of an encoder: which of the other images is nearest, by the cosine of pooled features.
    """
    if task == "encoder":
        return float((nearest(got["pooler_output"]) == nearest(expected["pooler_output"])).mean())
    got, expected = got["logits"], expected["logits"]
    if problem == "regression" or (task == "classifier" and got.shape[1] == 1):
        return None
    yes_or_no = problem == "multi_label_classification" or got.shape[1] == 1
    answers = [logits > 0 if yes_or_no else logits.argmax(1) for logits in (got, expected)]
    return float((answers[0] == answers[1]).mean())


def nearest(features: np.ndarray) -> np.ndarray:
    """(images, D) -> for each image the number of the other one whose features are nearest by cosine."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(1)


def refuse_exact(name: str, errors: list[dict[str, dict]]) -> None:
    """ValueError where a float32 graph is not what PyTorch is."""
    for sizes in errors:
        for output, error in sizes.items():
            limit = EXACT * max(1.0, error["largest"])
            if not error["max_abs"] <= limit:  # NaN too
                raise ValueError(
                    f"{name}: {output} differs from PyTorch's by up to {error['max_abs']:.3g}; the limit is {limit:.3g}. "
                    "Nothing was written."
                )


def refuse_int8(task: str, errors: list[dict[str, dict]], agreement: float | None) -> None:
    """ValueError where 8-bit weights change the answers."""
    output = "pooler_output" if task == "encoder" else "logits"
    lowest = min(sizes[output]["cosine_lowest"] for sizes in errors)
    hint = "Nothing was written. Leave int8 out: --formats onnx torch_export."
    if task == "encoder" and not lowest >= LOWEST_COSINE:
        raise ValueError(
            f"int8: features reach a cosine of {lowest:.3f} to PyTorch's; the limit is {LOWEST_COSINE}. {hint}"
        )
    if agreement is None and not all(
        error["logits"]["max_abs"] <= LARGEST_SHIFT * error["logits"]["largest"] for error in errors
    ):
        raise ValueError(f"int8: values differ from PyTorch's by more than {LARGEST_SHIFT:.0%} of the largest. {hint}")
    if task != "encoder" and agreement is not None and not agreement >= LOWEST_AGREEMENT:
        raise ValueError(
            f"int8: {agreement:.1%} of the answers equal PyTorch's; the limit is {LOWEST_AGREEMENT:.0%}. {hint}"
        )
    if not all(np.isfinite(error["max_abs"]) for sizes in errors for error in sizes.values()):
        raise ValueError(f"int8: outputs are not finite. {hint}")


__all__ = ["compare", "nearest", "other_sizes", "run_over", "top1_agreement", "verification_images"]
