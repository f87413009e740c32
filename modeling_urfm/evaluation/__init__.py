# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Metrics, probes, comparisons and pictures of frozen and fine-tuned encoders."""

import sys
from pathlib import Path


def _let_evaluate_be_found(path: list[str]) -> None:
    """Move folders that hold a recipe called `evaluate.py` to the end of `path` (`sys.path`).

    A script's own folder comes first there: for any script of `recipes/`, `import evaluate` would find the recipe instead
    of Hugging Face's library of that name, which transformers, peft and `metrics.py` import.
    """
    ours = [entry for entry in path if _holds_our_recipe(Path(entry or "."))]
    path[:] = [entry for entry in path if entry not in ours] + ours


def _holds_our_recipe(folder: Path) -> bool:
    try:
        return (folder / "evaluate.py").is_file() and (folder / "pretrain.py").is_file()
    except OSError:
        return False


_let_evaluate_be_found(sys.path)
