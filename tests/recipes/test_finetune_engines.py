# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Fine-tuning by two real ranks: what ZeRO-3 shards and gathers is what plain data parallel training gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ..finetuning.tiny import save_base, save_classes


ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.distributed


def launch(engine: str, base: Path, images: Path, output: Path, method: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{engine}.yaml",
        "recipes/finetune.py", "--task", "classification", "--method", method, "--model_name_or_path", str(base),
        "--dataset", str(images), "--output_dir", str(output), "--max_train_steps", "6", "--bootstrap_draws", "50",
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_zero3_gives_the_adapter_that_two_plain_processes_give(tmp_path):
    pytest.importorskip("deepspeed")
    base, images = save_base(tmp_path / "base"), save_classes(tmp_path / "images")
    for engine in ("cpu_2proc", "deepspeed_zero3_cpu"):
        done = launch(engine, base, images, tmp_path / engine, "lora")
        assert done.returncode == 0, done.stderr[-3000:]
        metrics = json.loads((tmp_path / engine / "results.json").read_text())["metrics"]
        assert metrics["batch_size"] == 2 * 16  # two ranks, not twice one
    plain, sharded = (
        load_file(tmp_path / e / "adapter_model.safetensors") for e in ("cpu_2proc", "deepspeed_zero3_cpu")
    )
    assert plain.keys() == sharded.keys() and all((plain[k] - sharded[k]).abs().max() < 1e-4 for k in plain)

    # A head on features that are computed once has nothing to shard: said, not tried.
    done = launch("deepspeed_zero3_cpu", base, images, tmp_path / "head", "linear")
    assert done.returncode and "nothing to shard" in done.stderr


def test_fsdp_on_processors_is_refused_not_left_out(tmp_path):
    environment = os.environ | {"ACCELERATE_USE_FSDP": "true"}
    command = [sys.executable, "recipes/finetune.py", "--task", "classification", "--dataset", "none"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode and "FSDP was asked for" in done.stderr
