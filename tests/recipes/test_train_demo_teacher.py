# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/train_demo_teacher.py, small, on both kinds of pairs; and the two teachers that it made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_urfm.pretraining.teacher import DEMO_TEACHER, load_teacher


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OTHER_TEACHER = RECIPES / "reproduction" / "other_teacher"


@pytest.mark.slow
@pytest.mark.parametrize("pairs", ["phantoms", "scenes"])
def test_a_teacher_is_trained_tested_and_loaded(pairs, tmp_path):
    folder = tmp_path / pairs
    done = subprocess.run(
        [
            sys.executable, str(RECIPES / "train_demo_teacher.py"), "--pairs", pairs, "--max_train_steps", "20",
            "--num_patients", "60", "--output_dir", str(folder),
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert {f.name for f in folder.iterdir()} == {f.name for f in DEMO_TEACHER.iterdir()}
    teacher = load_teacher(f"open_clip:local-dir:{folder}")
    features = teacher(torch.rand(2, 3, 128, 128), grid=(8, 8))
    assert features.shape == (2, 64, load_teacher("demo").hidden_size) and torch.isfinite(features).all()
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert (
        metrics["images"] == 180 and metrics["steps"] == 20 and metrics["loss_last"] < 4.3
    )  # ln 64 = 4.16, at first 4.4
    assert ("clean_organ_zero_shot" in metrics) is (pairs == "phantoms")
    assert ("scenes_kind_zero_shot" in metrics) is (pairs == "scenes")
    assert f"{metrics['noisy_organ_knn']:.1%}" in (folder / "README.md").read_text()


def test_the_teacher_of_another_domain_is_the_demos_network_and_knows_its_scenes():
    ours, theirs = (
        json.loads((folder / "open_clip_config.json").read_text()) for folder in (DEMO_TEACHER, OTHER_TEACHER)
    )
    for config in (ours, theirs):
        assert config["model_cfg"]["text_cfg"].pop("vocab_size") < 100
    assert ours == theirs
    metrics = json.loads((OTHER_TEACHER / "results.json").read_text())["metrics"]
    assert metrics["images"] == 7500 and metrics["steps"] == 2000
    assert metrics["scenes_kind_zero_shot"] > 0.9 and metrics["scenes_colour_zero_shot"] > 0.6
    teacher = load_teacher(f"open_clip:local-dir:{OTHER_TEACHER}")
    assert torch.isfinite(teacher(torch.rand(1, 3, 128, 128), grid=(8, 8))).all()
    assert sum(file.stat().st_size for file in OTHER_TEACHER.iterdir()) < 3e6
