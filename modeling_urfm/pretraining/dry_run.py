# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a run will need, told after a few of its steps: `recipes/pretrain.py --dry_run`."""

import shutil
from pathlib import Path

import torch


STEPS = 5  # the first one warms up
FLOAT = 4  # bytes


def checkpoint_bytes(model: torch.nn.Module, ema: bool) -> int:
    """Bytes of a checkpoint: weights, AdamW's two moments of the trained ones, and the average."""
    every = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return FLOAT * (every * (2 if ema else 1) + 2 * trained)


def describe(facts: dict) -> str:
    """The text of a dry run.

    Args:
        facts: `encoder`, `whole` (parameters), `ranks`, `device`, `engine`, `global_batch`, `batch` (per_device x
            accumulation, as text), `images`, `images_per_epoch`, `total_steps`, `step_s` (seconds, median of the steps that
            were taken), `data_wait` (share), `peak_bytes` (of a process), `mfu` (or None), `checkpoint_bytes`,
            `checkpoints` (kept at a time), `cache_bytes` (of the target cache in use, or None), `cache_bytes_an_image`
            (what one would take, or None), `output_dir`.
    """
    hours = facts["total_steps"] * facts["step_s"] / 3600
    # One more than are kept: the new one is whole before the oldest leaves.
    disk = facts["checkpoint_bytes"] * (facts["checkpoints"] + 1) + FLOAT * facts["whole"]
    epochs = facts["total_steps"] * facts["global_batch"] / facts["images_per_epoch"]
    place = next(p for p in (Path(facts["output_dir"]), *Path(facts["output_dir"]).resolve().parents) if p.exists())
    rows = [
        ("model", f"encoder {facts['encoder'] / 1e6:.1f} M parameters, with decoder {facts['whole'] / 1e6:.1f} M"),
        ("engine", f"{facts['engine']}, {facts['ranks']} x {facts['device']}"),
        ("data", f"{facts['images']} images, {facts['images_per_epoch']} an epoch"),
        ("steps", f"{facts['total_steps']} of {facts['global_batch']} images ({facts['batch']}): {epochs:.1f} epochs"),
        ("speed", f"{facts['global_batch'] / facts['step_s']:.1f} images/s, {facts['step_s']:.2f} s a step, of which "
                  f"{facts['data_wait']:.0%} waiting for data"
                  + (f", MFU {facts['mfu']:.0%}" if facts["mfu"] else "")),
        ("time", f"{hours:.2f} h at this speed, without evaluations and checkpoints"),
        ("memory", f"{facts['peak_bytes'] / 2**30:.2f} GiB a process at most in these steps"),
        ("disk", f"{disk / 2**30:.2f} GiB: {facts['checkpoints']} + 1 checkpoints of "
                 f"{facts['checkpoint_bytes'] / 2**30:.2f} GiB and the model; free: "
                 f"{shutil.disk_usage(place).free / 2**30:.0f} GiB"),
    ]  # fmt: skip
    if facts["cache_bytes"]:
        rows.append(("target cache", f"{facts['cache_bytes'] / 2**30:.2f} GiB"))
    elif facts["cache_bytes_an_image"]:
        whole = facts["cache_bytes_an_image"] * facts["images"] / 2**30
        rows.append(("target cache", f"none; about {whole:.2f} GiB, if recipes/cache_targets.py made one"))
    return "\n".join(f"{name:>13}  {text}" for name, text in rows)
