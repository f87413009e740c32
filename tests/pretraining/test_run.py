# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How long a run is, what a step trains on, what is logged of it, and what is told before it."""

import gzip
import json
import time

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modeling_urfm import URFMConfig, URFMForPreTraining
from modeling_urfm.pretraining import dry_run
from modeling_urfm.pretraining.batches import Batch, DeviceBatches
from modeling_urfm.pretraining.meters import Clock, Window, peak_memory, target_cosine
from modeling_urfm.pretraining.schedules import RunLength, cosine_schedule, scaled_learning_rate
from modeling_urfm.pretraining.tracing import SKIPPED, TRACED, step_trace


# ---------------------------------------------------------------- length and learning rate


def rates(length, warmup_ratio, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, found = cosine_schedule(optimizer, length, warmup_ratio), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found, optimizer.param_groups[0]["lr"]


def test_the_learning_rate_rises_and_falls():
    found, after = rates(RunLength(220, 4, 2.0, None), 1 / 11, 110)
    assert found[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert found[60] == pytest.approx(0.5) and after == pytest.approx(0, abs=1e-9)
    assert scaled_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9))
def test_a_run_shows_what_its_epochs_ask_for_and_less_than_a_step_more(images, batch, epochs):
    length = RunLength(images, batch, epochs, None)
    assert images * epochs <= length.total_images < images * epochs + batch
    assert length.total_images == length.position(length.total_steps) == length.total_steps * batch
    assert RunLength(images, batch, epochs, 7).total_steps == 7


def test_with_another_batch_the_rate_goes_on_where_it_was():
    whole = RunLength(1000, 10, 4, None)
    part = RunLength(1000, 20, 4, None, start=(100, whole.position(100)))
    assert part.total_steps == 100 + 150 and part.total_images == whole.total_images == 4000
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    before, after = (cosine_schedule(optimizer, length, 0.1).lr_lambdas[0] for length in (whole, part))
    cosine_schedule(optimizer, RunLength(1000, 64, 1, None, start=(20, 160)), 0.0)  # positions before 0 are none
    assert before(100) == after(100) and before(300) == pytest.approx(after(200)) and after(250) == before(400) == 0


# ---------------------------------------------------------------- batches


def read(**more):
    generator = torch.Generator().manual_seed(0)
    batch = {"pixels": torch.randint(0, 256, (2, 1, 8, 8), generator=generator, dtype=torch.uint8),
             "mask": torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1]]).bool(), "predicted": torch.tensor([[0, 3], [1, 3]]),
             "id": ["a", "b"], "unreadable": ["", "c: gone"]}  # fmt: skip
    return batch | more


def test_the_teacher_sees_the_clean_crop_in_three_channels_and_its_predicted_patches():
    seen = []

    def teacher(pixels, grid, positions):
        seen.append((pixels, grid, positions))
        return torch.ones(2, 2, 5)

    clean = torch.full((2, 1, 8, 8), 51, dtype=torch.uint8)
    batches = DeviceBatches([read(teacher_pixels=clean)], torch.device("cpu"), (2, 2), teacher)
    batch = next(batches)
    pixels, grid, positions = seen[0]
    assert pixels.shape == (2, 3, 8, 8) and pixels.unique().tolist() == pytest.approx([0.2]) and grid == (2, 2)
    assert torch.equal(positions, batch.predicted) and batch.targets.shape == (2, 2, 5)
    expected = (read()["pixels"][:, 0] / 255 - batches.normalize.mean[0, 1, 0, 0]) / batches.normalize.std[0, 1, 0, 0]
    assert torch.allclose(batch.pixels[:, 1], expected, atol=1e-6) and batch.unreadable == ["c: gone"]
    assert batches.waited > 0
    with pytest.raises(StopIteration):
        next(batches)


def test_the_loss_counts_predicted_patches_that_show_ultrasound():
    lit = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool()
    batch = next(DeviceBatches([read(loss_mask=lit)], torch.device("cpu"), (2, 2)))
    assert batch.counted == 3 and batch.targets is None


# ---------------------------------------------------------------- the log


def test_a_window_means_over_the_steps_that_were_taken():
    clock = Clock(before=100.0)
    window = Window(Accelerator(cpu=True), clock, flops_per_image=10.0, peak_flops=1e3)
    for loss, norm, skipped in ((1.0, 2.0, 0.0), (float("nan"), 5.0, 1.0), (3.0, 4.0, 0.0)):
        window.add(torch.tensor(loss), norm, torch.tensor(skipped), images=8)
    clock._ended += 1.0  # as if a second had gone by
    entry = window.entry(waited=0.5)
    assert entry["loss"] == 2.0 and entry["grad_norm"] == 3.0 and entry["data_wait"] == pytest.approx(0.5, rel=0.1)
    assert entry["images_per_s"] == pytest.approx(24, rel=0.1)
    assert entry["mfu"] == pytest.approx(entry["images_per_s"] / 100) and entry["memory_gib"] > 0.05
    window.restart(0.5)
    window.add(torch.tensor(5.0), torch.tensor(1.0), torch.tensor(0.0), images=8)
    assert window.entry(0.5)["loss"] == 5.0 and window.entry(0.5)["data_wait"] == 0
    window.restart(0.5)
    window.add(torch.tensor(float("nan")), 1.0, torch.tensor(1.0), images=8)
    assert window.entry(0.5)["loss"] is None
    with clock.paused():
        before = clock.seconds
        time.sleep(0.05)
        assert clock.seconds == before > 101
    assert clock.seconds - before < 0.04
    assert peak_memory(torch.device("cpu")) > 50e6


@pytest.mark.parametrize("decoder_type", ["self_attention", "cross_attention"])
def test_the_cosine_is_that_of_the_predicted_patches(decoder_type):
    config = URFMConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16,
        target_hidden_size=8, decoder_type=decoder_type,
    )  # fmt: skip
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 4:] = True
    predicted, targets = mask.nonzero()[:, 1].view(2, 12), torch.randn(2, 12, 8)
    batch = Batch(torch.randn(2, 3, 32, 32), mask, predicted, targets, None, [], [])
    outputs = URFMForPreTraining(config)(
        batch.pixels, target_features=targets, bool_masked_pos=mask, predicted_indices=predicted
    )
    assert target_cosine(outputs, batch) == pytest.approx(-outputs.loss.item(), abs=1e-6)
    batch.targets = None
    assert target_cosine(outputs, batch) is None


def test_a_trace_holds_the_steps_it_names(tmp_path):
    with step_trace(tmp_path / "profile") as traced:
        for _ in range(SKIPPED + TRACED + 2):
            F.linear(torch.ones(4, 4), torch.ones(4, 4))
            traced()
    with gzip.open(tmp_path / "profile" / "trace-rank0.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("name") == "aten::linear" for event in events) == TRACED
    assert "aten::linear" in (tmp_path / "profile" / "operators-rank0.txt").read_text()
    with step_trace(None) as traced:
        traced()


# ---------------------------------------------------------------- the dry run


def test_a_dry_run_says_what_a_run_needs(tmp_path):
    model = torch.nn.Linear(1000, 1000, bias=False)
    assert dry_run.checkpoint_bytes(model, ema=False) == 12e6 and dry_run.checkpoint_bytes(model, ema=True) == 16e6
    model.requires_grad_(False)
    assert dry_run.checkpoint_bytes(model, ema=False) == 4e6
    facts = {
        "encoder": 85.8e6, "whole": 112e6, "ranks": 8, "device": "cuda", "engine": "MULTI_GPU", "global_batch": 512,
        "batch": "64 x 1 micro-steps x 8 processes", "images": 100_000, "images_per_epoch": 51_200, "total_steps": 30_000,
        "step_s": 0.5, "data_wait": 0.02, "peak_bytes": 3 << 30, "mfu": 0.41, "checkpoint_bytes": 2 << 30, "checkpoints": 2,
        "cache_bytes": None, "cache_bytes_an_image": 10_737, "output_dir": tmp_path / "not" / "there",
    }  # fmt: skip
    text = dry_run.describe(facts)
    assert "none; about 1.00 GiB" in text and "none" not in dry_run.describe(facts | {"cache_bytes": 1 << 30})
    assert "cache" not in dry_run.describe(facts | {"cache_bytes_an_image": None})
    for says in ("30000 of 512 images", "300.0 epochs", "1024.0 images/s", "MFU 41%", "4.17 h", "3.00 GiB", "6.42 GiB"):
        assert says in text
    assert not (tmp_path / "not").exists()
