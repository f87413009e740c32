# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Signals that end a run after a step, and steps that are skipped because something is not finite."""

import copy
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from modeling_urfm.pretraining.guard import STOPPING, StepGuard, StopSignals


NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def handlers():
    were = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in were.items():
        signal.signal(number, handler)


class Run:
    def __init__(self, folder, patience=3, **options):
        self.accelerator = Accelerator(cpu=True, project_dir=str(folder))
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.signals = StopSignals()
        self.guard = StepGuard(self.accelerator, self.optimizer, self.signals, patience, **options)

    def step(self, number, factor=1.0):
        """One step; a factor that is not finite makes the loss so."""
        loss = (self.model(torch.full((4, 3), 0.5)) ** 2).sum() * factor
        self.accelerator.backward(self.guard.marked(loss))
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.guard.judge(number, loss, norm, [f"image-{number}"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.guard.stop_asked()

    def state(self):
        return copy.deepcopy([self.model.state_dict(), self.optimizer.state_dict()["state"]])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return all(map(same, a, b)) if isinstance(a, list) else a == b


@pytest.mark.parametrize("factor", [NAN, INF, -INF])
def test_a_step_that_is_not_finite_leaves_weights_moments_and_counts_alone(tmp_path, factor):
    run = Run(tmp_path)
    for number in range(3):
        run.step(number)
    before = run.state()
    run.step(3, factor)
    assert same(before, run.state()) and run.guard.found_inf == 1 and run.guard.skipped == 1
    run.step(4)
    assert not same(before, run.state()) and run.guard.found_inf == 0 and run.guard.in_a_row == 0
    # the whole run is bit for bit that of one that never had that step
    other = Run(tmp_path)
    for number in range(4):
        other.step(number)
    assert same(run.state(), other.state())


def test_a_first_step_that_is_not_finite_leaves_nothing_behind(tmp_path):
    run = Run(tmp_path)
    weights = copy.deepcopy(run.model.state_dict())
    run.step(0, NAN)
    assert same(weights, run.model.state_dict())
    run.step(1)
    other = Run(tmp_path)
    other.step(0)
    assert same(run.state(), other.state())


def test_a_loss_that_is_not_finite_shows_in_its_gradient_and_a_finite_one_is_left_alone(tmp_path):
    guard = Run(tmp_path).guard
    for value, finite in ((3e38, False), (1.0, True)):  # its square overflows, its gradient doesn't
        weight = torch.tensor(value, requires_grad=True)
        guard.marked(weight**2).backward()
        assert bool(weight.grad.isfinite()) == finite and (not finite or weight.grad == 2)


def test_too_many_in_a_row_stop_the_run_with_the_images_on_disk(tmp_path):
    run = Run(tmp_path, patience=3, skipped=4)
    for number, factor in enumerate([1.0, NAN, NAN, 1.0, INF, NAN]):
        run.step(number, factor)
    with pytest.raises(FloatingPointError, match="Step 6: 3 steps in a row(.|\n)*there is no checkpoint in"):
        run.step(6, NAN)
    written = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (written["skipped"], written["in_a_row"]) == (4 + 5, 3)
    assert [(s["step"], s["ids"]) for s in written["steps"][-3:]] == [(n, [f"image-{n}"]) for n in (4, 5, 6)]
    assert written["steps"][-3]["loss"] == "inf" and written["steps"][-1]["grad_norm"] == "nan"


def test_the_last_good_checkpoint_is_named(tmp_path):
    run = Run(tmp_path, patience=1)
    from modeling_urfm.pretraining.checkpoints import save_checkpoint

    save_checkpoint(run.accelerator, tmp_path, 2, {"position": 4, "fingerprint": {}}, keep=1)
    with pytest.raises(FloatingPointError, match="the last good checkpoint is .*checkpoint-2"):
        run.step(3, NAN)


def test_an_engine_that_took_the_step_all_the_same_stops_the_run_at_once(tmp_path):
    run = Run(tmp_path, patience=9)
    run.guard.engine_skips = True  # as DeepSpeed's, whose step is over when it is judged
    for skips in (True, False):
        run.optimizer._is_overflow = skips
        run.guard.judge(5, torch.tensor(NAN), INF, ["a"])
        if skips:
            assert run.guard.stop_asked() is None and run.guard.skipped == 1
        else:
            with pytest.raises(FloatingPointError, match="Step 5: the gradient is not finite and the engine has taken"):
                run.guard.stop_asked()


def test_the_host_may_read_a_step_later(tmp_path):
    """As on a GPU, where it does not wait for the step under way."""
    run = Run(tmp_path)
    run.guard.lag = 1
    run.step(0, NAN)
    assert run.guard.in_a_row == 0 and run.guard.found_inf == 1
    run.step(1)
    assert run.guard.in_a_row == 1
    assert run.guard.skipped == 1 and run.guard.in_a_row == 0  # asked for the number, it waits


def test_an_optimizer_that_cannot_skip_is_refused(tmp_path):
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    with pytest.raises(ValueError, match="SGD can't skip a step by itself"):
        StepGuard(accelerator, optimizer)


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_asks_for_an_end_after_the_step(tmp_path, number):
    run = Run(tmp_path)
    assert run.step(0) is None
    os.kill(os.getpid(), number)
    assert run.step(1) == signal.Signals(number).name == run.signals.name


def test_before_there_is_anything_to_save_a_signal_ends_the_process(tmp_path):
    StopSignals()
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM


LOADER = """
import os, signal, sys, time, torch
from torch.utils.data import DataLoader
from modeling_urfm.pretraining.guard import StopSignals, ignore_stop_signals

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        time.sleep(0.1)
        return index

signals = StopSignals()
signals.heeded = True
batches = iter(DataLoader(Slow(), num_workers=2, worker_init_fn=ignore_stop_signals))
first = next(batches)
if sys.argv[1:]:
    raise RuntimeError("the training process fails")  # its readers are told to end, and it waits for that
for process in (*(worker.pid for worker in batches._workers), os.getpid()):
    for name in ("USR1", "TERM"):  # as a job's manager does: not from the training process
        os.system(f"kill -s {name} {process}")
print(len([first, *batches]), signals.name)
"""


@pytest.mark.slow
def test_readers_go_on_when_a_whole_job_is_signalled(tmp_path):
    done = subprocess.run([sys.executable, "-c", LOADER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.split() == ["6", "SIGTERM"], done.stderr


@pytest.mark.slow
def test_readers_end_with_a_training_process_that_fails(tmp_path):
    done = subprocess.run([sys.executable, "-c", LOADER, "fail"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "the training process fails" in done.stderr
