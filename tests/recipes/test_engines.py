# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Equal science: the same loss at every step whatever engine, number of ranks and accumulation, and weights that load."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_urfm import URFMForPreTraining
from tests.data.small_corpus import write_small_corpus


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
STEPS, GLOBAL_BATCH = 50, 8
# So small that starting up is most of the time; with all that is drawn at random, and a moving average.
CONFIG = f"""\
model: {{image_size: 64, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64,
  decoder_type: cross_attention, decoder_mask_fraction: 0.5, decoder_hidden_size: 32, decoder_num_hidden_layers: 1,
  decoder_num_attention_heads: 2, decoder_intermediate_size: 64, target_hidden_size: 96}}
training: {{teacher: demo, max_train_steps: {STEPS}, logging_steps: 1, dataloader_num_workers: 1, learning_rate: 1.0e-3,
  ema_decay: 0.9, augment: [speckle, gain, vertical_flip], weight_decay: 0.05, max_grad_norm: 1.0}}
"""


def command(output: Path, dataset: Path, file: str, ranks: int, accumulation: int = 1, launcher_flags=()) -> list[str]:
    """One launch of the recipe by a file of recipes/accelerate."""
    (output.parent / "config.yaml").write_text(CONFIG)
    return list(map(str, [
        sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch",
        "--config_file", RECIPES / "accelerate" / f"{file}.yaml", *launcher_flags,
        RECIPES / "pretrain.py", "--config", output.parent / "config.yaml", "--dataset", dataset, "--output_dir", output,
        "--per_device_train_batch_size", GLOBAL_BATCH // ranks // accumulation,
        "--gradient_accumulation_steps", accumulation,
    ]))  # fmt: skip


def train(output: Path, dataset: Path, file: str, ranks: int, accumulation: int = 1, launcher_flags=()) -> tuple:
    """Loss by step, and the published weights, of such a launch."""
    launch = command(output, dataset, file, ranks, accumulation, launcher_flags)
    done = subprocess.run(launch, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"]["num_processes"] == ranks and results["metrics"]["global_batch"] == GLOBAL_BATCH
    URFMForPreTraining.from_pretrained(output)
    AutoModel.from_pretrained(output)  # the encoder alone, as users load it
    return [entry["loss"] for entry in results["history"]], load_file(output / "model.safetensors")


def assert_equal_science(one, other):
    (losses, weights), (other_losses, other_weights) = one, other
    assert len(losses) == len(other_losses) == STEPS
    assert other_losses == pytest.approx(losses, abs=1e-4, rel=0)
    assert weights.keys() == other_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, atol=2e-3, rtol=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """20 smooth random pictures: an epoch ends within every third batch of 8."""
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        pixels = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6, generator=generator), size=72, mode="bicubic")
        Image.fromarray((pixels[0, 0].clamp(0, 1) * 255).byte().numpy()).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def one_process(images, tmp_path_factory):
    losses, weights = train(tmp_path_factory.mktemp("one") / "urfm", images, "cpu", ranks=1)
    assert losses[-1] < losses[0] - 0.1  # it learns: curves of a model that stands still would agree anyhow
    return losses, weights


@pytest.mark.distributed
@pytest.mark.parametrize(
    "file, ranks, accumulation, flags",
    [
        ("cpu", 1, 2, []),
        ("cpu_2proc", 2, 1, []),
        ("deepspeed_zero2_cpu", 2, 2, ["--zero_stage", "1"]),
        ("deepspeed_zero2_cpu", 2, 1, []),
        ("deepspeed_zero3_cpu", 2, 1, []),
    ],
    ids=["accumulation", "two_processes", "zero1_accumulation", "zero2", "zero3"],
)
def test_every_engine_has_the_loss_curve_of_one_process(
    images, one_process, tmp_path, file, ranks, accumulation, flags
):
    if "deepspeed" in file:
        pytest.importorskip("deepspeed")
    assert_equal_science(one_process, train(tmp_path / "urfm", images, file, ranks, accumulation, flags))


@pytest.mark.distributed
def test_two_processes_read_shards_as_one_does(tmp_path):
    write_small_corpus(tmp_path / "corpus", {"train": 7})
    one = train(tmp_path / "one", tmp_path / "corpus", "cpu", ranks=1)
    assert_equal_science(one, train(tmp_path / "two", tmp_path / "corpus", "cpu_2proc", ranks=2))


@pytest.mark.distributed
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1")
def test_slurms_warning_to_every_process_ends_the_run_with_a_checkpoint(images, tmp_path):
    """As the README's script starts it: the shell and the launcher ignore USR1, the ranks heed it, their readers survive."""
    output = tmp_path / "urfm"
    launch = command(output, images, "cpu_2proc", ranks=2) + [
        "--max_train_steps",
        "100000",
        "--checkpointing_steps",
        "5",
    ]
    shell = ["bash", "-c", 'trap "" USR1; exec "$@"', "bash", *launch]
    run = subprocess.Popen(shell, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not list(output.glob("checkpoint-*")) and run.poll() is None:
        time.sleep(0.1)
    processes = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    assert len(processes) >= 5  # the launcher, two ranks and the reader of each
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    try:
        errors = run.communicate(timeout=120)[1]
    finally:
        alive = psutil.wait_procs(processes, timeout=10)[1]
        for process in alive:
            process.kill()
    assert run.returncode == 0 and not alive, errors[-3000:]
    assert "SIGUSR1: checkpoint written after step" in errors and not (output / "results.json").exists()
