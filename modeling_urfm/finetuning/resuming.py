# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Which checkpoint a run goes on from: a whole one, of this very run.

Trainer writes a checkpoint file by file. The last of them is ours, `fine_tuning.json`, and says what the run was: a folder
without it was not finished, or is of something else.
"""

import json
import logging
import os
import time
from pathlib import Path

from transformers import TrainerCallback

from .arguments import FinetuneArguments


MARK = "fine_tuning.json"
# What a run may be resumed with another value of: where it goes and ends, what is said of it, and how it is run.
FREE = (
    "output_dir", "resume_from_checkpoint", "report_to", "bootstrap_draws", "save_total_limit", "dataloader_num_workers",
    "num_train_epochs", "max_train_steps", "early_stopping_patience", "dataset", "image_root", "deepspeed",
    "gradient_checkpointing",
)  # fmt: skip
logger = logging.getLogger(__name__)


def settings_of(args: FinetuneArguments, dataset_fingerprint: str, processes: int) -> dict:
    """What must be alike for a run to be resumed."""
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    if os.path.isdir(args.model_name_or_path):
        settings["model_name_or_path"] = os.path.abspath(args.model_name_or_path)
    return {**settings, "dataset_fingerprint": dataset_fingerprint, "processes": processes}


def checkpoint_of(asked: str | None, output_dir: Path, settings: dict) -> str | None:
    """The checkpoint to go on from; None to begin.

    Args:
        asked: a folder, or "latest": the newest whole one of the run that began last in `output_dir`.

    Raises:
        FileNotFoundError: a folder that is no whole checkpoint; those that are there are named.
        ValueError: a checkpoint of a run with other settings; they are named.
    """
    there = {path: mark for path in output_dir.glob("checkpoint-*") if (mark := _read(path))}
    if asked is None:
        if there:
            logger.warning("%s holds checkpoints of an earlier run; this one begins anew beside them.", output_dir)
        return None
    if asked == "latest":
        if not there:
            logger.warning("%s holds no checkpoint to resume from: the run begins at step 0.", output_dir)
            return None
        chosen = max(there, key=lambda path: (there[path]["began"], int(path.name.split("-")[1])))
        mark = there[chosen]
    else:
        chosen, mark = Path(asked), _read(Path(asked))
        if mark is None:
            names = ", ".join(sorted(map(str, there))) or f"none in {output_dir}"
            raise FileNotFoundError(f"--resume_from_checkpoint {asked}: no whole checkpoint there. There are: {names}.")
    was = mark["settings"]
    # As JSON has them: a list is what a tuple becomes.
    now = json.loads(json.dumps(settings))
    other = [
        f"{name} {was.get(name)!r} there, {now.get(name)!r} here" for name in now if was.get(name) != now.get(name)
    ]
    if other:
        raise ValueError(f"{chosen} is of a run with other settings: {'; '.join(other)}. Give the same, or begin anew.")
    return str(chosen)


def _read(checkpoint: Path) -> dict | None:
    try:
        mark = json.loads((checkpoint / MARK).read_text())
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and {"began", "settings"} <= set(mark) else None


class MarkCheckpoints(TrainerCallback):
    """Puts `fine_tuning.json` into every checkpoint when all else has been written, in one step.

    Args:
        settings: of `settings_of`. resumed: the checkpoint that the run goes on from: it began when that did.
    """

    def __init__(self, settings: dict, resumed: str | None):
        mark = _read(Path(resumed)) if resumed else None
        self.mark = {"began": mark["began"] if mark else time.time(), "settings": settings}

    def on_train_begin(self, args, state, control, **kwargs):
        # A folder that was moved with its run still finds its best checkpoint.
        if state.best_global_step:
            here = Path(args.output_dir, f"checkpoint-{state.best_global_step}")
            if _read(here):
                state.best_model_checkpoint = str(here)

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            temporary = folder / f".tmp-{MARK}"
            temporary.write_text(json.dumps(self.mark, indent=2) + "\n")
            os.replace(temporary, folder / MARK)
