# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A run goes on from a whole checkpoint of its own, and from no other."""

import json

import pytest

from modeling_urfm.finetuning.arguments import FinetuneArguments
from modeling_urfm.finetuning.resuming import MARK, checkpoint_of, settings_of


def settings(**changes) -> dict:
    return settings_of(FinetuneArguments(task="classification", dataset="d", **changes), "abc", 1)


def checkpoint(folder, step, began, **changes):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / MARK).write_text(json.dumps({"began": began, "settings": settings(**changes)}))
    return str(path)


def test_the_newest_whole_checkpoint_of_the_run_that_began_last(tmp_path):
    assert checkpoint_of("latest", tmp_path, settings()) is None
    checkpoint(tmp_path, 900, began=1.0)
    checkpoint(tmp_path, 9, began=2.0)
    newest = checkpoint(tmp_path, 10, began=2.0)
    (tmp_path / "checkpoint-20").mkdir()  # killed while it was written
    assert checkpoint_of("latest", tmp_path, settings(num_train_epochs=50.0)) == newest
    assert checkpoint_of(None, tmp_path, settings()) is None
    with pytest.raises(FileNotFoundError, match="no whole checkpoint there.*checkpoint-10"):
        checkpoint_of(str(tmp_path / "checkpoint-20"), tmp_path, settings())


def test_another_run_s_checkpoint_is_refused_with_what_differs(tmp_path):
    path = checkpoint(tmp_path, 5, began=1.0, lora_rank=4)
    for asked in ("latest", path):
        with pytest.raises(ValueError, match="other settings: lora_rank 4 there, 8 here"):
            checkpoint_of(asked, tmp_path, settings())
