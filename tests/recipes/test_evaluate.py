# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/evaluate.py as a command: every task, an earlier run, several processes, UltraBench's own output."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel

from ..data.ultrabench_raw import processed


RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "evaluate.py"
ORGANS = "phantoms:organ?patients=60&image_size=32"
QUICK = [
    "--seeds",
    "0",
    "1",
    "--fractions",
    "0.3",
    "1",
    "--shots",
    "1",
    "--corruptions",
    "blur",
    "--bootstrap_draws",
    "30",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def urfm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "urfm"
    config = URFMConfig(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64)  # fmt: skip
    URFMModel(config).save_pretrained(folder)
    URFMImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("evaluate_recipe", RECIPE)
    module = sys.modules["evaluate_recipe"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    del sys.modules["evaluate_recipe"]


def run(recipe, *arguments, output_dir) -> dict:
    """As the command does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", *QUICK, *map(str, arguments), "--output_dir", str(output_dir)])
        recipe.main()
    return json.loads((Path(output_dir) / "results.json").read_text())


@pytest.fixture(scope="module")
def first(recipe, urfm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, run(recipe, "--encoders", urfm, f"random:{urfm}", "--datasets", ORGANS, output_dir=folder)


def test_default_protocols(first, urfm):
    folder, results = first
    entry = results["metrics"]["datasets"][ORGANS]
    wanted = {"knn", "linear", "few_shot", "label_efficiency", "retrieval", "robustness"}
    assert all(set(facts) == wanted for facts in entry["encoders"].values()) and len(entry["encoders"]) == 2
    assert entry["splits"]["test"]["patients"] > 0 and (folder / "report.html").stat().st_size > 100_000
    names = {path.name.split("-")[0] for path in (folder / "plots").rglob("*.png")}
    assert {"tsne", "robustness.png", "label_efficiency.png"} <= names


@pytest.mark.distributed
def test_again_on_two_processes_is_the_same_but_for_times(first, urfm, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(RECIPE), "--encoders",
        urfm, f"random:{urfm}", "--datasets", ORGANS, "--output_dir", str(tmp_path), *QUICK,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == first[1]["metrics"]


def test_beside_an_earlier_run_and_not_on_another_split(recipe, first, urfm, tmp_path):
    arguments = (
        "--encoders",
        f"random:{urfm}",
        "--datasets",
        ORGANS,
        "--compare_with",
        first[0],
        "--protocols",
        "linear",
    )
    entry = run(recipe, *arguments, output_dir=tmp_path)["metrics"]["datasets"][ORGANS]
    assert len(entry["encoders"]) == 3 and set(entry["encoders"][f"{urfm} [{first[0].name}]"]) == {"linear"}
    with pytest.raises(ValueError, match="same split"):
        run(recipe, *arguments, "--seed", "1", output_dir=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_other_tasks(recipe, urfm, tmp_path):
    specs = [f"phantoms:{kind}?patients=40&image_size=32" for kind in ("depth", "findings", "lesion_mask")]
    protocols = ["linear", "attentive", "segmentation", "robustness"]
    results = run(recipe, "--encoders", urfm, "--datasets", *specs, "--protocols", *protocols, output_dir=tmp_path)
    found = {spec: entry["encoders"][urfm] for spec, entry in results["metrics"]["datasets"].items()}
    assert set(found[specs[0]]) == {"linear", "attentive", "robustness"} and "r2" in found[specs[0]]["linear"]["scores"]
    assert set(found[specs[1]]) == {"linear", "attentive", "robustness"}
    assert set(found[specs[2]]) == {"segmentation", "robustness"}
    assert "not for regression" in results["metrics"]["datasets"][specs[0]]["refused"]["segmentation"]


def test_what_ultrabench_wrote(recipe, urfm, tmp_path):
    folder = processed("aul", tmp_path)["aul_mass"]
    specs = [f"ultrabench:AUL={folder.parent}", f"ultrabench:aul-mass={folder}"]
    protocols = ["linear_usjepa", "segmentation"]
    results = run(
        recipe, "--encoders", urfm, "--datasets", *specs, "--protocols", *protocols, output_dir=tmp_path / "out"
    )
    entry = results["metrics"]["datasets"][specs[0]]
    assert entry["published"]["figures"]["URFM"] == "71.5 ± 1.1" and entry["label_names"] == [
        "Normal",
        "Benign",
        "Malignant",
    ]
    assert results["metrics"]["datasets"][specs[1]]["task"] == "segmentation"
    assert "71.5 ± 1.1" in (tmp_path / "out" / "report.html").read_text()


def test_bad_arguments(recipe, urfm, tmp_path):
    for arguments, message in (
        (("--protocols", "linar"), "'linear'"),
        (("--encoders", urfm, urfm), "twice"),
        (("--datasets", "ultrabench:AUL"), "FOLDER"),
        (("--fractions", "5"), "share of the labels"),
        (("--shots", "0"), "--shots 0 must be at least 1"),
        (("--per_device_batch_size", "0"), "must be at least 1"),
        (("--compare_with", tmp_path), "overwritten"),
    ):
        with pytest.raises(ValueError, match=message):
            run(recipe, "--encoders", urfm, *arguments, output_dir=tmp_path)
    with pytest.raises(SystemExit, match="not for regression"):
        depth = ("--datasets", "phantoms:depth?patients=30&image_size=32", "--protocols", "retrieval")
        run(recipe, "--encoders", urfm, *depth, output_dir=tmp_path)
