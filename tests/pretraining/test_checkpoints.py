# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Checkpoints: whole or not there whenever a run is killed, checked before they are believed, refused to other runs."""

import json
import os
import shutil

import pytest
import torch
from accelerate import Accelerator

from modeling_urfm import URFMConfig
from modeling_urfm.pretraining import checkpoints
from modeling_urfm.pretraining.checkpoints import (
    check_same_run,
    damage_of,
    differences,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)
from modeling_urfm.pretraining.ema import ShardedEMA


FINGERPRINT = {"seed": 1, "num_processes": 1, "engine": "NO", "model": {"mask_ratio": 0.8}}


class Run:
    """A small run: its weights say how far it is."""

    def __init__(self, folder):
        self.folder, self.accelerator = folder, Accelerator(cpu=True)
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def save(self, step, keep=2, **options):
        torch.nn.init.constant_(self.model.weight, step)
        progress = {"fingerprint": FINGERPRINT, "position": 8 * step, "history": [step]}
        return save_checkpoint(self.accelerator, self.folder, step, progress, keep, **options)

    def load(self, folder, fingerprint=FINGERPRINT, **options):
        return load_checkpoint(self.accelerator, folder, fingerprint, **options)


@pytest.fixture
def run(tmp_path):
    checkpoints._known_damaged.clear()
    return Run(tmp_path)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------- writing


def test_they_are_whole_and_the_newest_stay(run, tmp_path):
    for step in (5, 10, 15):
        assert (
            run.save(step, config=URFMConfig(mask_ratio=0.5), rank_state={"order": [step]})
            == tmp_path / f"checkpoint-{step}"
        )
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15"]
    assert not any(damage_of(p) for p in list_checkpoints(tmp_path))
    progress = run.load(tmp_path / "checkpoint-10")
    assert (progress["step"], progress["position"], progress["rank_state"]) == (10, 80, {"order": [10]})
    assert run.model.weight[0, 0] == 10 and run.accelerator.step == 0
    assert URFMConfig.from_pretrained(tmp_path / "checkpoint-10").mask_ratio == 0.5
    sums = json.loads((tmp_path / "checkpoint-10" / "checksums.json").read_text())["files"]
    assert {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json", "config.json"} <= set(sums)


def test_the_same_step_again_replaces_it(run, tmp_path):
    run.save(5)
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"")
    run.save(5)
    assert names(tmp_path) == ["checkpoint-5"] and not damage_of(tmp_path / "checkpoint-5")


class Killed(BaseException):
    """As a SIGKILL, nothing is cleaned up behind it."""


SYSTEM_CALLS = [(os, "replace"), (os, "fsync"), (shutil, "rmtree"), (os, "open")]


@pytest.mark.parametrize("kept", [1, 2])
def test_killed_at_any_call_there_is_always_one_to_go_on_from(run, tmp_path, monkeypatch, kept):
    """The same step is saved again, then the next: at every call that changes the disk the process ends."""
    for again in (10, 15):
        calls = 0
        while True:
            shutil.rmtree(tmp_path)
            run.save(5, keep=kept)
            run.save(10, keep=kept)
            with monkeypatch.context() as patch:
                left = [calls]

                def end_at(action, left=left):
                    def call(*arguments, **options):
                        left[0] -= 1
                        if left[0] < 0:
                            raise Killed
                        return action(*arguments, **options)

                    return call

                for module, name in SYSTEM_CALLS:
                    patch.setattr(module, name, end_at(getattr(module, name)))
                try:
                    run.save(again, keep=kept)
                    done = True
                except Killed:
                    done = False
            found = find_checkpoint("latest", tmp_path)
            assert found is not None and run.load(found)["step"] in (10, again)
            # and the next run goes on as if nothing had been
            run.save(again, keep=kept)
            assert set(names(tmp_path)) == {f"checkpoint-{s}" for s in sorted({5, 10, again})[-kept:]}
            if done:
                break
            calls += 1
        assert calls > 8


def test_a_run_that_was_killed_in_a_rename_goes_on_from_what_was_to_be_replaced(run, tmp_path):
    run.save(5)
    os.replace(tmp_path / "checkpoint-5", tmp_path / ".replaced-checkpoint-5")
    (tmp_path / ".tmp-checkpoint-5").mkdir()
    assert run.load(find_checkpoint("latest", tmp_path))["step"] == 5
    run.save(10)
    assert (
        run.load(tmp_path / "checkpoint-10")["step"] == 10
        and find_checkpoint("latest", tmp_path).name == "checkpoint-10"
    )


def test_a_full_disk_costs_the_checkpoint_not_the_run(run, tmp_path, monkeypatch, caplog):
    run.save(5)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert run.save(10) is None
    assert "NO CHECKPOINT at step 10" in caplog.text and "The disk has 0 MB free" in caplog.text
    assert names(tmp_path) == ["checkpoint-5"] and not damage_of(tmp_path / "checkpoint-5")
    with pytest.raises(OSError, match="Older ones in .*: checkpoint-5"):
        run.save(10, required=True)
    monkeypatch.undo()
    assert run.save(15).name == "checkpoint-15"


@pytest.mark.parametrize("limit", [0, 100, 700])
def test_a_disk_that_fills_up_while_it_is_written(run, tmp_path, caplog, limit):
    """The limit on the size of a file stands for it: writing fails in the midst, in safetensors, torch or json."""
    resource = pytest.importorskip("resource")
    run.save(5)
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, was[1]))
    try:
        assert run.save(10) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert "NO CHECKPOINT at step 10" in caplog.text and names(tmp_path) == ["checkpoint-5"]
    assert run.save(15).name == "checkpoint-15"


# ---------------------------------------------------------------- damage


def truncate(folder):
    with (folder / "optimizer.bin").open("r+b") as file:
        file.truncate(10)


def flip(folder, name="model.safetensors"):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


DAMAGE = [
    (truncate, "optimizer.bin is truncated"),
    (flip, "model.safetensors has other content"),
    (lambda folder: (folder / "random_states_0.pkl").unlink(), "random_states_0.pkl is missing"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is empty"),
    (lambda folder: (folder / "custom_checkpoint_0.pkl").write_bytes(b"x"), "custom_checkpoint_0.pkl does not belong"),
    (lambda folder: (folder / "checksums.json").write_text("{"), "checksums.json has other content"),
    (lambda folder: (folder / "checksums.json").write_text("[]"), "checksums.json has other content"),
    (lambda folder: (folder / "checksums.json").unlink(), "checksums.json is missing"),
    (lambda folder: flip(folder, "progress.json"), "progress.json has other content"),
    (lambda folder: [p.unlink() for p in folder.iterdir()], "it is empty"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(run, tmp_path, caplog, damage, says):
    for step in (5, 10, 15):
        run.save(step, keep=3)
    damage(tmp_path / "checkpoint-15")
    found = find_checkpoint("latest", tmp_path, run.accelerator)
    assert found.name == "checkpoint-10" and "checkpoint-15 is damaged" in caplog.text and says in caplog.text
    if "empty" not in says or "model" in says:
        with pytest.raises(ValueError, match=says):
            find_checkpoint(str(tmp_path / "checkpoint-15"), tmp_path)
    damage(tmp_path / "checkpoint-10")
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-5"
    damage(tmp_path / "checkpoint-5")
    with pytest.raises(ValueError, match="every checkpoint .* is damaged"):
        find_checkpoint("latest", tmp_path)
    # a run that goes on from 5 replaces them one by one, and counts good ones alone
    run.save(7, keep=2)
    run.save(12, keep=2)
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-15", "checkpoint-7"]
    assert newest_checkpoint(tmp_path).name == "checkpoint-12"


def test_a_damaged_one_does_not_push_out_the_last_good_one(run, tmp_path, caplog):
    for step in (5, 10):
        run.save(step)
    flip(tmp_path / "checkpoint-10")
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-5"
    run.save(12)
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-5"] and "removing" in caplog.text


def test_what_a_desktop_leaves_in_a_folder_is_no_damage(run, tmp_path):
    run.save(5)
    (tmp_path / "checkpoint-5" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "checkpoint-5" / "notes.txt").write_text("the good one")
    assert damage_of(tmp_path / "checkpoint-5") is None


def test_checkpoints_of_another_run_in_the_folder_are_not_this_runs_to_remove(run, tmp_path):
    run.save(500)
    run.save(5)
    run.save(10)
    run.save(15)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15", "checkpoint-500"]


# ---------------------------------------------------------------- finding and refusing


def test_nothing_to_resume_from_is_a_warning(tmp_path, caplog):
    assert find_checkpoint("latest", tmp_path) is None and "starting from zero" in caplog.text
    assert find_checkpoint(None, tmp_path) is None
    (tmp_path / ".tmp-checkpoint-5").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint("latest", tmp_path / "nowhere") is None and find_checkpoint("latest", tmp_path) is None


def test_a_folder_that_is_none_is_refused_and_those_there_are_listed(run, tmp_path):
    run.save(5)
    run.save(10)
    with pytest.raises(FileNotFoundError, match="checkpoint-5(.|\n)*checkpoint-10"):
        find_checkpoint(str(tmp_path / "checkpoint-11"), tmp_path)


def test_another_run_is_refused_with_every_field_that_differs(run, tmp_path):
    run.save(5)
    folder = tmp_path / "checkpoint-5"
    with pytest.raises(ValueError, match="was written with seed=1, this run has seed=2"):
        run.load(folder, FINGERPRINT | {"seed": 2})
    with pytest.raises(
        ValueError, match=r"with config.mask_ratio=0.8, seed=1, this run has config.mask_ratio=0.75, seed=2"
    ):
        run.load(folder, FINGERPRINT | {"seed": 2, "model": {}}, elastic=True)
    with pytest.raises(ValueError, match="num_processes=1, this run has num_processes=2(.|\n)*--allow_elastic_resume"):
        run.load(folder, FINGERPRINT | {"num_processes": 2})
    assert run.load(folder, FINGERPRINT | {"num_processes": 2, "engine": "MULTI_GPU"}, elastic=True)["step"] == 5


def test_a_models_config_is_compared_field_by_field():
    assert differences({"model": {"mask_ratio": 0.75, "transformers_version": "5.1"}}, {"model": {}}) == []
    saved, current = {"model": {"mask_ratio": 0.5}}, {"model": {"image_size": 96}}
    assert differences(saved, current) == [("config.image_size", 224, 96), ("config.mask_ratio", 0.5, 0.75)]
    assert differences({"augment": [["a"], 1]}, {"augment": (("a",), 1)}) == []  # as JSON gives it back


def test_deepspeed_is_refused_with_the_reason_however_it_is_asked(tmp_path):
    saved = {"fingerprint": FINGERPRINT | {"engine": "DEEPSPEED ZeRO-2"}, "position": 3}
    for change in ({"num_processes": 2}, {"engine": "NO"}, {"engine": "DEEPSPEED ZeRO-3"}):
        with pytest.raises(ValueError, match="each rank's file holds"):
            check_same_run(tmp_path, saved, saved["fingerprint"] | change, elastic=True)
    check_same_run(tmp_path, saved, saved["fingerprint"] | {"total_steps": 9}, elastic=True)
    saved = {"fingerprint": FINGERPRINT | {"engine": "FSDP"}, "position": 3}
    check_same_run(tmp_path, saved, saved["fingerprint"] | {"num_processes": 2}, elastic=True)
    with pytest.raises(ValueError, match="a format of its own"):
        check_same_run(tmp_path, saved, saved["fingerprint"] | {"engine": "NO"}, elastic=True)


def test_one_of_an_earlier_version_is_refused_and_why_is_said(run, tmp_path):
    """They had no checksums, and runs that saw the images in another order."""
    run.save(5)
    folder = tmp_path / "checkpoint-5"
    (folder / "checksums.json").unlink()
    (folder / "progress.json").write_text(json.dumps({"step": 5, "fingerprint": FINGERPRINT, "images_seen": 40}))
    assert find_checkpoint("latest", tmp_path) == folder  # found: not taken for no checkpoint at all
    for load in (read_progress, run.load):
        with pytest.raises(ValueError, match="an earlier version"):
            load(folder)


def test_the_moving_average_goes_with_it(tmp_path):
    run = Run(tmp_path)
    ema = ShardedEMA(run.model, 0.9)
    run.accelerator.register_for_checkpointing(ema)
    for value in (1.0, 2.0):
        torch.nn.init.constant_(run.model.weight, value)
        ema.update(run.model)
    expected = ema.average["weight"].clone()
    run.save(5)
    ema.update(run.model)
    run.load(tmp_path / "checkpoint-5")
    assert ema.updates == 2 and torch.equal(ema.average["weight"], expected)
