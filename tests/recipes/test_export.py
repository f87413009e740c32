# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""`recipes/export.py` and `recipes/bench.py export` from the command line."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from modeling_urfm import URFMConfig, URFMForImageClassification, URFMImageProcessor, URFMModel
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


@pytest.fixture
def quiet_transformers():
    """Recipes silence transformers; here other tests come after them."""
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(level)
    if has_bars:
        logging.enable_progress_bar()


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


def test_without_a_compiler_the_bench_goes_on(monkeypatch, capsys):
    bench, rows = load("bench_export"), {}

    def broken(model, **options):
        def forward(**inputs):
            raise RuntimeError("No working C++ compiler found in cpp.cxx: ('g++',)\nmore")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    model = URFMModel(URFMConfig(**SMALL))
    assert bench.add_compiled(rows, model) == {bench.COMPILED: "No working C++ compiler found in cpp.cxx: ('g++',)"}
    assert not rows and "left out: PyTorch compiled" in capsys.readouterr().out
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    assert bench.add_compiled(rows, model) == {} and [*rows] == [bench.COMPILED]


@pytest.mark.slow
def test_it_exports_and_says_so(tmp_path):
    torch.manual_seed(0)
    processor = URFMImageProcessor(size={"height": 32, "width": 32})
    save_model_folder(URFMForImageClassification(URFMConfig(**SMALL, num_labels=3)), processor, tmp_path / "urfm")
    command = (str(RECIPES / "export.py"), "urfm", "--output_dir", "out", "--formats", "onnx", "int8")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "7 real frames" in done.stdout and "onnx/model_quantized.onnx" in done.stdout and "Limits:" in done.stdout
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results) == {"command", "versions", "seed", "metrics", "timings"}
    assert set(results["metrics"]["formats"]) == {"onnx", "int8"} and results["metrics"]["task"] == "classifier"
    assert results["metrics"]["formats"]["onnx"]["top1_agreement"] == 1.0


@pytest.mark.usefixtures("quiet_transformers")
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["urfn"], "export.py: urfn: no such folder. Did you mean 'urfm'?"), (["."], "export.py: . holds no config.json."),
        (["urfm", "--output_dir", "file/out"], "export.py: --output_dir file/out: .*file is a file."),
        (["urfm", "--formats", "int4"], "export.py: --formats 'int4' does not exist. Did you mean 'int8'"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_ends_with_a_line(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "urfm").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(RECIPES / "export.py"), run_name="__main__")
    assert re.match(message, caught.value.code) and "\n" not in caught.value.code
    assert {path.name for path in tmp_path.iterdir()} == {"urfm", "file"}


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_transformers")
def test_the_bench_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", "export", "--quick", "--threads", "1", "--output_dir", "bench"])
    before = torch.get_num_threads()
    try:
        runpy.run_path(str(RECIPES / "bench.py"), run_name="__main__")
    finally:
        torch.set_num_threads(before)
    metrics = json.loads((tmp_path / "bench/results.json").read_text())["metrics"]
    assert set(metrics["speed"]) == {"1", "4"} and len(metrics["parity"]) == 5
    assert (tmp_path / "bench/table.md").read_text() in capsys.readouterr().out
