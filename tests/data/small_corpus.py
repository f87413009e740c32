# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A small corpus for tests, of phantoms, as `recipes/prepare.py` would leave it: shards, manifest and results."""

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_urfm.data.phantoms import phantom_frame
from modeling_urfm.data.shards import COLUMNS, MANIFEST, AtomicParquet, shard_name, shard_schema


ORGANS = ("heart", "liver", "thyroid", "unknown")
MAKERS = ("GE", "Philips", "other", None)
FRAMES = 3  # a file
DROPPED = {"sampling": 5, "near-duplicate": 2}  # frames, of every file


def digest(*parts: object, digits: int = 32) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:digits]


def picture(patient: int, frame: int = 0, size: int = 128) -> Image.Image:
    """A phantom; every fifth in colour, as B-mode under a colour overlay is."""
    grey = Image.fromarray(phantom_frame(7, patient, frame, image_size=size).image)
    return Image.merge("RGB", [grey, grey.point(lambda v: v // 2), grey]) if patient % 5 == 4 else grey


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def corpus_row(patient: int, frame: int, **changes) -> dict:
    """One row of a shard; `changes` replaces cells."""
    image = changes.pop("picture", None) or picture(patient, frame)
    row = dict.fromkeys(COLUMNS) | {
        "image": {"bytes": encoded(image, "PNG" if patient % 2 else "JPEG"), "path": None},
        "organ": ORGANS[patient % 4], "source": "local" if patient % 3 else "busi",
        "licence": "unknown" if patient % 3 else "CC0-1.0", "patient": digest("patient", patient),
        "clip": digest("clip", patient), "frame": frame, "geometry": ("sector", "curved", "linear")[patient % 3],
        "mode": "doppler" if image.mode == "RGB" else "b-mode", "maker": MAKERS[patient % 4],
        "spacing_mm": None if patient % 4 == 3 else [0.1 + 0.02 * patient, 0.1 + 0.02 * patient],
        "pixel_hash": digest("pixels", patient, frame, digits=64), "perceptual_hash": digest("looks", patient, frame, digits=64),
    }  # fmt: skip
    return row | changes


def write_small_corpus(
    folder: Path, patients: dict[str, int] | None = None, frames: int = FRAMES, rows_per_shard: int = 8, **changes
) -> dict:
    """Write `folder/data/*.parquet` and `folder/manifest.parquet`; returns what results.json would hold.

    Args:
        patients: split -> patients, each with one file of `frames` frames. changes: cells that every row gets instead.
    """
    patients = {"train": 6, "test": 2} if patients is None else patients
    rows, splits, first = [], {}, 0
    for split, count in patients.items():
        part = [corpus_row(p, f, **changes) for p in range(first, first + count) for f in range(frames)]
        first += count
        shards = -(-len(part) // rows_per_shard)
        for number in range(shards):
            with AtomicParquet(
                folder / "data" / shard_name(split, number, shards), shard_schema(), group_rows=4
            ) as shard:
                for row in part[number * rows_per_shard : (number + 1) * rows_per_shard]:
                    shard.write(row)
        if count:
            splits[split] = {"rows": len(part), "patients": count, "shards": shards}
        rows += part
    with AtomicParquet(folder / "manifest.parquet", MANIFEST) as manifest:
        for patient in range(first):
            dropped = sum(DROPPED.values())
            manifest.write({
                "input": digest("clip", patient), "kind": "dicom", "source": "local", "status": "partly",
                "frames_in": frames + dropped, "frames_kept": frames, "frames_dropped": dropped,
                "reasons": [f"{code}: {count}" for code, count in DROPPED.items()],
            })  # fmt: skip
        manifest.write(dict.fromkeys(MANIFEST.names) | {
            "input": digest("broken"), "kind": "unknown", "source": "local", "status": "rejected", "reasons": ["truncated: 1"],
            "frames_in": 0, "frames_kept": 0, "frames_dropped": 0,
        })  # fmt: skip
    dropped = first * sum(DROPPED.values())
    metrics = {
        "inputs": first + 1, "files": {"kept": 0, "partly": first, "rejected": 1},
        "frames_in": len(rows) + dropped, "frames_kept": len(rows), "frames_dropped": dropped,
        "reasons": {code: count * first for code, count in DROPPED.items()}, "rejected_files": {"truncated": 1},
        "patients": first, "clips": first, "splits": splits, "by_kind": {"dicom": first, "unknown": 1},
        "exclusions": [{"set": 1, "images": 780, "frames_left_out": 4, "nearest_distance": 41}],
    }  # fmt: skip
    for column in ("organ", "source", "maker", "licence", "geometry", "mode"):
        metrics[f"by_{column}"] = dict(Counter(row[column] or "unknown" for row in rows))
    return {
        "command": "python recipes/prepare.py /data/Mustermann_Erika --output_dir corpus --frames_per_clip 8 --marks inpaint",
        "versions": {"urfm": "0.1.0", "numpy": np.__version__, "ray": None},
        "settings": {"frames_per_clip": 8, "marks": "inpaint", "drop_doppler": False, "output_dir": "corpus",
                     "quality": {"min_side": 64}},
        "metrics": metrics,
        "timings": {"total_s": 98765.4321},
    }  # fmt: skip
