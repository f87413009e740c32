# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/pretrain.py as a user runs it: real DICOM with a broken file, resuming, tiny data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_urfm import URFMForPreTraining
from modeling_urfm.data.reading import ultrasound_examples


RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "pretrain.py"
# A model so small that starting up is most of the time.
TINY = (
    "--image_size 64 --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 64 "
    "--decoder_hidden_size 32 --decoder_num_hidden_layers 1 --decoder_num_attention_heads 2 --decoder_intermediate_size 64 "
    "--per_device_train_batch_size 8 --max_train_steps 8 --logging_steps 1 --dataloader_num_workers 0 --eval_steps 100"
).split()  # fmt: skip
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def launch(*arguments, check=True):
    command = [sys.executable, "-m", "accelerate.commands.launch", str(RECIPE), *TINY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        pixels = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6, generator=generator), size=72, mode="bicubic")
        Image.fromarray((pixels[0, 0].clamp(0, 1) * 255).byte().numpy()).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.slow
def test_a_folder_of_dicom_with_a_corrupted_file_trains_and_names_it(tmp_path):
    folder, output = tmp_path / "dicom", tmp_path / "urfm"
    folder.mkdir()
    for path in ultrasound_examples():
        shutil.copy(path, folder)
    (folder / "corrupted.dcm").write_bytes((folder / "examples_jpeg2k.dcm").read_bytes()[:20000])
    done = launch("--dataset", folder, "--output_dir", output)
    assert "left out: corrupted.dcm: " in done.stderr
    assert f'AutoModel.from_pretrained("{output}")' in done.stdout
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"]["images"] == 34 and results["metrics"]["images_left_out"] == 1
    assert results["metrics"]["left_out"][0].startswith("corrupted.dcm: ")
    assert results["metrics"]["knn_accuracy"] is not None and results["metrics"]["knn_accuracy_untrained"] is not None
    for name in (
        "README.md",
        "loss.png",
        "targets.png",
        "modeling_urfm.py",
        "preprocessor_config.json",
        "checkpoint-8",
    ):
        assert (output / name).exists()
    assert URFMForPreTraining.from_pretrained(output).config.auto_map["AutoModel"] == "modeling_urfm.URFMModel"
    assert "| local images | 34 | 1 |" in (output / "README.md").read_text()


@pytest.mark.slow
def test_a_data_set_smaller_than_a_batch_trains_in_pixel_mode_with_a_tracker(images, tmp_path):
    for path in sorted(images.iterdir())[3:]:
        path.unlink()
    launch("--dataset", images, "--output_dir", tmp_path / "urfm", "--target", "pixel", "--max_train_steps", "3",
           "--report_to", "tensorboard", "--loss_on_scan_region", "--gradient_checkpointing")  # fmt: skip
    results = json.loads((tmp_path / "urfm" / "results.json").read_text())
    assert results["metrics"]["steps"] == 3 and results["metrics"]["images"] == 3
    assert list((tmp_path / "urfm").rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_what_cannot_be_had_is_said_before_any_data_is_read(tmp_path):
    done = launch("--dataset", tmp_path / "nowhere", "--teacher", "open_clip:hf-hub:nobody/nothing", check=False)
    assert done.returncode != 0 and "hf download nobody/nothing" in done.stderr
    done = launch("--dataset", tmp_path / "nowhere", "--output_dir", tmp_path / "urfm", check=False)
    assert done.returncode != 0 and "no such file or folder" in done.stderr and not (tmp_path / "urfm").exists()
