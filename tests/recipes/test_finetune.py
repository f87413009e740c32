# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The recipe from end to end on tiny data: every task and method, what it leaves, two runs alike, a run that goes on."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from modeling_urfm import URFMForImageClassification
from modeling_urfm.data.labelled import load_labelled

from ..finetuning.tiny import save_base, save_classes, save_masks, save_table


RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "finetune.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_finetune", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, and a data set for each task."""
    folder = tmp_path_factory.mktemp("finetune")
    return {
        "base": save_base(folder / "base"), "classification": save_classes(folder / "classes"),
        "segmentation": save_masks(folder / "masks"), "table": save_table(folder / "table"),
    }  # fmt: skip


@pytest.fixture
def finetune(recipe, made, monkeypatch, tmp_path):
    def run(*flags, task="classification", method="lora", name="out", dataset=None, figures=False):
        if not figures:  # they take longer than the training
            monkeypatch.setattr(recipe, "draw", lambda *args: None)
        output_dir = tmp_path / name
        given = {
            "task": task, "method": method, "model_name_or_path": made["base"], "dataset": dataset or made[task],
            "output_dir": output_dir, "bootstrap_draws": 50,
        }  # fmt: skip
        argv = [part for key, value in given.items() for part in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *argv, *map(str, flags)])
        recipe.main()
        return output_dir, json.loads((output_dir / "results.json").read_text())

    return run


def untimed(results: dict) -> dict:
    return {key: value for key, value in results.items() if key not in ("timings", "command")}


@torch.no_grad()
def logits_of_test_images(folder: Path, auto, data) -> torch.Tensor:
    processor, model = AutoImageProcessor.from_pretrained(folder), auto.from_pretrained(folder).eval()
    images = [data.corpus[int(row)]["pixels"] for row in data.rows("test")]
    return model(**processor(images, return_tensors="pt")).logits


@pytest.mark.parametrize("method", ["linear", "attentive", "lora", "dora", "full"])
def test_classification_by_every_method_and_the_folder_gives_the_predictions_again(finetune, made, method):
    epochs = 20 if method in ("linear", "attentive") else 3
    folder, results = finetune("--num_train_epochs", epochs, method=method, figures=method == "linear")
    test, metrics = results["metrics"]["test"], results["metrics"]
    assert 0 <= test["accuracy_ci95"][0] <= test["accuracy"] <= test["accuracy_ci95"][1] <= 1
    assert {"macro_f1", "auroc", "calibration_error"} <= set(test) and len(metrics["thresholds"]) == 1
    assert test["images"] == 16 and metrics["train"]["images"] + metrics["validation"]["images"] == 32
    assert metrics["trainable_parameters"] < metrics["parameters"] and results["timings"]["peak_memory_mib"] > 0
    names = {"README.md", "preprocessor_config.json", "config.json"}
    if method == "linear":
        names |= {"confusion.png", "roc.png", "reliability.png", "worst.png"}
    assert names <= set(os.listdir(folder))
    assert (folder / "model.safetensors").exists() == (method not in ("lora", "dora"))

    table = pq.read_table(folder / "predictions.parquet").to_pandas()
    of_test = table[table.split == "test"]
    data = load_labelled(str(made["classification"]), "classification", progress=False)
    assert list(of_test.id) == [data.corpus.id(int(row)) for row in data.rows("test")]
    shares = logits_of_test_images(folder, AutoModelForImageClassification, data).softmax(-1).numpy()
    kept = of_test[[f"probability_{name}" for name in data.label_names]].to_numpy()
    np.testing.assert_allclose(shares, kept, atol=1e-4)
    assert (of_test.label == of_test.predicted).mean() == pytest.approx(test["accuracy"])


def test_two_runs_are_alike_and_another_seed_is_not(finetune):
    runs = [finetune("--num_train_epochs", 2, "--seed", seed, name=f"run{i}")[1] for i, seed in enumerate((0, 0, 1))]
    assert untimed(runs[0]) == untimed(runs[1])
    assert untimed(runs[0])["history"] != untimed(runs[2])["history"]


def test_it_learns_what_there_is_to_learn(finetune):
    _, results = finetune(method="linear")
    assert results["metrics"]["test"]["accuracy"] >= 0.8 and not results["metrics"]["test"]["collapsed"]


def test_an_adapter_merges_into_what_it_was(finetune, made):
    folder, _ = finetune("--max_train_steps", 3)
    base = URFMForImageClassification.from_pretrained(made["base"], num_labels=2)
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(pixel_values=pixels).logits
        torch.testing.assert_close(model.merge_and_unload()(pixels).logits, before, atol=1e-5, rtol=0)


def test_a_control_s_adapter_brings_its_random_base_and_replaces_an_earlier_model(finetune, made):
    folder, _ = finetune("--max_train_steps", 1, "--random_init", method="full")
    assert (folder / "model.safetensors").exists()
    (folder / "overlays.png").touch()
    finetune("--max_train_steps", 2, "--random_init")
    assert not (folder / "model.safetensors").exists() and not (folder / "overlays.png").exists()
    data = load_labelled(str(made["classification"]), "classification", progress=False)
    assert 'from_pretrained("out/random_base", num_labels=2)' in (folder / "README.md").read_text()
    moved = folder.rename(folder.parent / "moved")
    shares = logits_of_test_images(moved, AutoModelForImageClassification, data).softmax(-1).numpy()
    moved.rename(folder)
    table = pq.read_table(folder / "predictions.parquet").to_pandas()
    kept = table[table.split == "test"][[f"probability_{name}" for name in data.label_names]].to_numpy()
    np.testing.assert_allclose(shares, kept, atol=1e-4)
    finetune("--max_train_steps", 1, method="linear")
    assert not list(folder.glob("adapter_*")) and not (folder / "random_base").exists()


def test_two_targets_are_scored_one_by_one(finetune, made):
    columns = ("--label_columns", "size_mm", "bright", "--patient_column", "patient")
    _, results = finetune(*columns, "--num_train_epochs", 2, task="regression", method="linear", dataset=made["table"])
    test = results["metrics"]["test"]
    assert test["mae"] == pytest.approx((test["mae_size_mm"] + test["mae_bright"]) / 2) and "r2_bright_ci95" in test


@pytest.mark.parametrize("method", ["linear", "lora"])
def test_segmentation_is_scored_at_the_size_of_the_images(finetune, made, method):
    folder, results = finetune(
        "--num_train_epochs", 3, "--pad_square", task="segmentation", method=method, figures=method == "lora"
    )
    test = results["metrics"]["test"]
    assert {"dice", "iou", "hausdorff95", "dice_ci95"} <= set(test)
    assert ({"overlays.png", "worst.png"} <= set(os.listdir(folder))) == (method == "lora")
    data = load_labelled(str(made["segmentation"]), "segmentation", progress=False)
    logits = logits_of_test_images(folder, AutoModelForSemanticSegmentation, data)
    assert logits.shape[1] == 2
    table = pq.read_table(folder / "predictions.parquet").to_pandas()
    assert table[table.split == "test"].dice.mean() == pytest.approx(test["dice"])


@pytest.mark.parametrize("method", ["linear", "lora"])
def test_regression_is_in_the_targets_unit(finetune, made, method):
    epochs = 40 if method == "linear" else 2
    columns, drawn = ("--label_columns", "size_mm", "--patient_column", "patient"), method == "linear"
    flags = (*columns, "--num_train_epochs", epochs)
    folder, results = finetune(*flags, task="regression", method=method, dataset=made["table"], figures=drawn)
    data = load_labelled(
        str(made["table"]), "regression", label_columns=["size_mm"], patient_column="patient", progress=False
    )
    assert {"mae", "r2", "mae_ci95"} <= set(results["metrics"]["test"])
    assert (folder / "regression.png").exists() == drawn
    table = pq.read_table(folder / "predictions.parquet").to_pandas()
    predicted = table[table.split == "test"].predicted_size_mm.to_numpy()
    logits = logits_of_test_images(folder, AutoModelForImageClassification, data)
    np.testing.assert_allclose(logits[:, 0].numpy(), predicted, rtol=1e-3, atol=1e-3)
    assert abs(predicted.mean() - data.labels.mean()) < 3 * data.labels.std()


def test_several_labels_have_thresholds_of_validation(finetune, made):
    columns = ("--label_columns", "bright", "large", "--patient_column", "patient")
    folder, results = finetune(*columns, task="multilabel", method="linear", dataset=made["table"])
    metrics = results["metrics"]
    assert len(metrics["thresholds"]) == 2 and {"exact_match", "macro_f1", "auroc"} <= set(metrics["test"])
    table = pq.read_table(folder / "predictions.parquet").to_pandas()
    assert ((table.probability_bright >= metrics["thresholds"][0]) == (table.predicted_bright == 1)).all()


def test_a_killed_run_goes_on_to_the_same_end(finetune):
    whole_dir, whole = finetune("--num_train_epochs", 4)
    first = min(whole_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    part = whole_dir.parent / "part"
    part.mkdir()
    shutil.copytree(first, part / first.name)
    _, resumed = finetune("--num_train_epochs", 4, "--resume_from_checkpoint", "latest", name="part")
    assert resumed["metrics"]["steps"] == whole["metrics"]["steps"]
    for key in ("accuracy", "auroc", "calibration_error"):
        assert resumed["metrics"]["test"][key] == pytest.approx(whole["metrics"]["test"][key], abs=1e-6)


def test_part_of_the_labels_bf16_and_checkpointing(finetune):
    flags = ("--label_fraction", 0.5, "--bf16", "--gradient_checkpointing", "--num_train_epochs", 1)
    _, results = finetune(*flags, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2)
    metrics = results["metrics"]
    assert metrics["train"]["images"] < 16 and metrics["batch_size"] == 8 and metrics["gradient_checkpointing"]


def test_bad_input_stops_it_before_training(finetune, made, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        finetune(dataset="nowhere")
    with pytest.raises(ValueError, match="Did you mean 'lora'"):
        finetune(method="lorra")


@pytest.mark.slow
def test_the_command_of_the_readme(made, tmp_path):
    command = [sys.executable, RECIPE, "--task", "classification", "--method", "lora", "--model_name_or_path", made["base"],
               "--dataset", made["classification"], "--output_dir", tmp_path / "out", "--num_train_epochs", "1"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "AutoModelForImageClassification" in done.stdout and (tmp_path / "out" / "results.json").exists()


@pytest.mark.distributed
def test_two_processes_train_one_model(made, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", RECIPE,
               "--task", "classification", "--method", "lora", "--model_name_or_path", made["base"], "--dataset",
               made["classification"], "--output_dir", tmp_path / "out", "--num_train_epochs", "2"]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert metrics["batch_size"] == 32 and 0 <= metrics["test"]["accuracy"] <= 1
