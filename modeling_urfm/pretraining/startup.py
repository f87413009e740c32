# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What is settled before a run reads any data: a place for its result, and the weights that it starts from."""

import os
from pathlib import Path

from ..configuration_urfm import URFMConfig
from ..modeling_urfm import URFMForPreTraining


# Fields that decide the shapes of the weights.
SIZES = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "intermediate_size", "decoder_hidden_size",
         "decoder_num_hidden_layers", "decoder_intermediate_size", "target", "target_hidden_size")  # fmt: skip


def check_writable(output_dir: Path):
    """Known before anything is done: the result has a place. Nothing is created yet."""
    place = next(p for p in (output_dir, *output_dir.resolve().parents) if p.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"--output_dir {output_dir}: {place} is a file.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"--output_dir {output_dir}: {place} is not writable.")


def initial_model(config: URFMConfig, init_from: str | None) -> URFMForPreTraining:
    """Random weights, or those of `--init_from`, whose sizes must be the config's."""
    if init_from is None:
        return URFMForPreTraining(config)
    if Path(init_from).is_dir() and not (Path(init_from) / "config.json").is_file():
        raise FileNotFoundError(f"--init_from {init_from}: the folder holds no config.json.")
    was = type(config).from_pretrained(init_from)
    for name in SIZES:
        if getattr(was, name) != getattr(config, name):
            raise ValueError(f"--init_from {init_from} has {name}={getattr(was, name)}, this run has "
                             f"{name}={getattr(config, name)}: give --{name} {getattr(was, name)}.")  # fmt: skip
    return URFMForPreTraining.from_pretrained(init_from, config=config)
