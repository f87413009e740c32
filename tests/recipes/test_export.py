# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""`recipes/export.py` and `recipes/bench.py export` from the command line."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel
from modeling_urfm.hub.saving import save_model_folder


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )  # fmt: skip


def test_the_table_of_the_bench():
    bench = load("bench_export")
    errors = {"max_abs": 0.1, "cosine_lowest": 0.999}
    speed = {
        "ms": 100.0,
        "images_per_s": 10.0,
        "times_eager": 2.0,
        "times_eager_lowest": 1.5,
        "times_eager_highest": 2.5,
    }
    text = bench.table({
        "parity": {"a": {"last_hidden_state": errors, "pooler_output": errors, "top1_agreement": 0.5}},
        "speed": {"1": {"a": speed}, "4": {"a": speed | {"ms": 3.456}}},
    })  # fmt: skip
    assert "| a | 0.1 | 0.99900 | 50.0% |" in text
    assert "| a | 100 ms, 10.0/s, 2.00 x (1.50 to 2.50) | 3.46 ms, 10.0/s, 2.00 x (1.50 to 2.50) |" in text


def test_rows_are_timed_in_turns():
    bench = load("bench_export")
    calls = []
    rows = {name: lambda pixels, name=name: calls.append(name) for name in (bench.EAGER, bench.INT8)}
    found = bench.time_rows(rows, 8, 4, rounds=2)
    assert calls[2:] == [bench.EAGER, bench.INT8, bench.INT8, bench.EAGER]
    assert found[bench.EAGER]["times_eager"] == 1.0 and found[bench.INT8]["ms"] >= 0


@pytest.mark.slow
def test_it_exports_and_says_so_or_ends_with_a_line(tmp_path):
    torch.manual_seed(0)
    processor = URFMImageProcessor(size={"height": 32, "width": 32})
    save_model_folder(URFMModel(URFMConfig(**SMALL)), processor, tmp_path / "urfm")
    command = (str(RECIPES / "export.py"), "urfm", "--output_dir", "out", "--formats", "onnx", "int8")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "7 real frames" in done.stdout and "onnx/model_quantized.onnx" in done.stdout and "Limits:" in done.stdout
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results) == {"command", "versions", "seed", "metrics", "timings"}
    assert set(results["metrics"]["formats"]) == {"onnx", "int8"}
    wrong = run(str(RECIPES / "export.py"), "urfn", cwd=tmp_path)
    assert wrong.returncode == 1 and wrong.stderr.splitlines()[-1].startswith(
        "export.py: urfn: no such folder. Did you"
    )
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_the_bench_runs(tmp_path):
    done = run(str(RECIPES / "bench.py"), "export", "--quick", "--output_dir", "bench", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "bench/results.json").read_text())["metrics"]
    assert set(metrics["speed"]) == {"1", "4"} and len(metrics["parity"]) == 5
    assert (tmp_path / "bench/table.md").read_text() in done.stdout
