# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The speed benchmark at its quick size: every row trains, and what it reports adds up."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..finetuning.tiny import save_base, save_classes


pytest.importorskip("timm")
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", RECIPE)
    module = sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    del sys.modules["bench"]


def run(bench, monkeypatch, tmp_path, *flags) -> dict:
    monkeypatch.setattr(sys, "argv", ["bench.py", "pretrain", "--quick", "--output_dir", str(tmp_path), *flags])
    bench.main()
    return json.loads((tmp_path / "results.json").read_text())["metrics"]


def test_rows_side_by_side(bench, monkeypatch, tmp_path):
    metrics = run(bench, monkeypatch, tmp_path, "--no_memory", "--no_startup", "--ranks", "--sizes")
    rows = metrics["rows"]
    assert list(rows)[0] == bench.PEER and {bench.CACHED, bench.ONLINE, bench.RELEASED, bench.TEACHER_ALONE} < set(rows)
    assert rows[bench.PEER]["ratio"] == 1 and all(row["images_per_s"] > 0 for row in rows.values())
    for row in rows.values():
        assert row["ratio_lowest"] <= row["ratio"] <= row["ratio_highest"]
    assert "ratio_to_released" in rows[bench.CACHED]
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name} |" in table for name in rows)


def test_flops_of_the_rows_at_full_size(bench):
    """The published fast config does less than ViTMAE even with the teacher; the peers' are counted, not guessed."""
    cached = bench.step_flops(bench.config_of("urfm_base_fast.yaml", quick=False))
    released = bench.step_flops(bench.config_of("urfm_base.yaml", quick=False, mask_ratio=0.75))
    mae = bench.peer_flops(bench.ViTMAEForPreTraining, bench.ViTMAEConfig())
    simmim = bench.peer_flops(bench.ViTForMaskedImageModeling, bench.ViTConfig(encoder_stride=16), 196)
    assert cached < mae / 2 < mae < released < simmim * 1.5
    assert 57e9 < mae < 60e9 and 100e9 < simmim < 110e9


def test_peak_memory_is_the_same_every_time(bench):
    layers = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256))
    peaks = [bench.peak_memory(lambda x: layers(x).sum(), torch.randn(64, 256)) for _ in range(2)]
    # Both hidden activations and the output are held at the end of the forward pass.
    assert peaks[0] == peaks[1] >= 4 * 64 * (1024 + 1024 + 256)


@pytest.mark.slow
def test_everything(bench, tmp_path):
    """As a command: its processes import it anew."""
    command = [sys.executable, str(RECIPE), "pretrain", "--quick", "--ranks", "2", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    for name, row in metrics["rows"].items():
        assert name == bench.TEACHER_ALONE or row["peak_mb_per_image"] >= row["peak_mb_per_image_checkpointed"] >= 0
    assert set(metrics["startup_s"]) == {bench.PEER, bench.CACHED}
    assert metrics["ranks"]["2"]["images_per_s"] > 0 and metrics["sizes"]["small"]["images_per_s"] > 0
    for shares in metrics["time_goes"].values():
        assert sum(shares.values()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_fine_tuning_side_by_side(bench, monkeypatch, tmp_path):
    base, images = save_base(tmp_path / "base"), save_classes(tmp_path / "images")
    command = ["bench.py", "finetune", "--model_name_or_path", str(base), "--dataset", str(images), "--methods", "linear",
               "full", "--label_fractions", "1", "--output_dir", str(tmp_path / "out"), "--", "--max_train_steps", "3"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    rows = {row["method"]: row for row in metrics["rows"]}
    assert rows["linear"]["trainable_parameters"] == 2 * 33 < rows["full"]["trainable_parameters"]
    assert all(row["peak_memory_mib"] > 0 and row["ci95"][0] <= row["value"] <= row["ci95"][1] for row in rows.values())
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| linear | 100% |" in table and "(100%) |" in table  # full, of its own memory
    kept = ["full-1-0.json", "linear-1-0.json", "results.json", "table.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == kept
    monkeypatch.setattr(bench.bench_finetune.subprocess, "run", None)  # what is done is not done again
    bench.main()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["metrics"] == metrics
