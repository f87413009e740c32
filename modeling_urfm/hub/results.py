# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""`results.json`: what every recipe leaves behind for a machine to read; and the hash that records name a file by."""

import hashlib
import json
import math
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.shards import write_atomically


LIBRARIES = (
    "urfm", "torch", "torchvision", "transformers", "accelerate", "datasets", "open_clip_torch", "timm", "numpy", "scipy",
    "peft", "evaluate", "scikit-learn",
)  # fmt: skip


def run_facts(seed: int) -> dict:
    """`command`, `versions` and `seed` of the run that calls this."""
    # `accelerate launch` leaves its settings in the environment; its own arguments are not to be had.
    launcher = ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]
    return {
        "command": shlex.join([*launcher, os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "seed": seed,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_json(path: Path, content: dict) -> None:
    """Write `content`, in one step. JSON has no NaN and no infinity: both become null."""
    write_atomically(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(value):
    """`value` with numpy's numbers and arrays as plain ones, and None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, with a bar where it is large."""
    digest = hashlib.sha256()
    bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"sha256 {path.name}", delay=2)
    with path.open("rb") as file, bar:
        while block := file.read(2**22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
