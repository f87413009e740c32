# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/compare_pretraining.py, small: a cache, a run from it, its probes, the picture."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "compare_pretraining.py"


@pytest.mark.slow
def test_an_arm_is_trained_probed_and_drawn_and_not_trained_again(tmp_path):
    command = [
        sys.executable, str(RECIPE), "--arms", "cached", "--seeds", "3", "--num_train_epochs", "2", "--eval_steps", "3",
        "--phantom_patients", "15", "--probe_patients", "90", "--output_dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| cached |" in done.stdout and (tmp_path / "curves.png").stat().st_size > 5000
    results = json.loads((tmp_path / "results.json").read_text())
    facts = results["metrics"]["cached"]
    assert 0 <= facts["linear"]["mean"] <= 1 and len(facts["knn"]["by_seed"]) == 1 and facts["training_s"][0] > 0
    points = results["curves"]["cached"]["3"]
    assert [p["step"] for p in points][:2] == [0, 3] and points[-1]["training_s"] > points[1]["training_s"]
    before = (tmp_path / "cached-3" / "results.json").stat().st_mtime_ns
    assert json.loads((tmp_path / "cached-3" / "results.json").read_text())["metrics"]["steps"] == points[-1]["step"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "cached-3" / "results.json").stat().st_mtime_ns == before
