# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a run: written under another name and renamed, so that a kill leaves a whole one or none."""

import json
import logging
import os
import re
import shutil
from pathlib import Path


logger = logging.getLogger(__name__)
STATE = "progress.json"


def save_checkpoint(accelerator, output_dir: Path, step: int, progress: dict, keep: int) -> Path:
    """Write `output_dir/checkpoint-STEP`: all that `accelerator` holds, and `progress` as JSON. Every rank calls it.

    Only the `keep` newest stay.
    """
    final, temporary = output_dir / f"checkpoint-{step}", output_dir / f".tmp-checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / STATE).write_text(json.dumps({"step": step, **progress}))
        _sync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in list_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if (p / STATE).is_file()), key=lambda p: int(p.name.split("-")[1]))


def find_checkpoint(asked: str | None, output_dir: Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names; None where a run starts from zero.

    Raises:
        FileNotFoundError: a folder was named that is no checkpoint; those that are there are listed.
    """
    if asked is None:
        return None
    there = list_checkpoints(output_dir)
    if asked == "latest":
        if not there:
            logger.warning("--resume_from_checkpoint latest: no checkpoint in %s, starting from zero.", output_dir)
        return there[-1] if there else None
    if not (Path(asked) / STATE).is_file():
        names = ", ".join(str(p) for p in there) or f"none in {output_dir}"
        raise FileNotFoundError(f"--resume_from_checkpoint {asked}: no checkpoint there. There are: {names}.")
    return Path(asked)


def load_checkpoint(accelerator, folder: Path, fingerprint: dict) -> dict:
    """Restore all that `accelerator` holds; returns the progress that was saved.

    Raises:
        ValueError: the checkpoint is of another run; the first field that differs is named.
    """
    progress = json.loads((folder / STATE).read_text())
    for name, value in fingerprint.items():
        saved = progress["fingerprint"].get(name)
        if saved != value:
            raise ValueError(
                f"{folder} was written with {name}={saved!r}, this run has {name}={value!r}. Resume with the same value, "
                "or start anew in another --output_dir."
            )
    accelerator.load_state(str(folder))
    return progress


def _sync(folder: Path):
    """Force the files to the disk before the rename makes them count."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
