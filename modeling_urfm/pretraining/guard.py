# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What ends a run before its last step: signals, and losses or gradients that are not finite.

Both are decided for all ranks together, in one all-reduce of two numbers a step, and no rank waits for its GPU: the step is
skipped by the optimizer's own kernel, and what the host has to know it reads a step later.
"""

import atexit
import json
import logging
import math
import mmap
import multiprocessing.util  # noqa: F401
import os
import signal
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import DistributedType

from ..data.shards import write_atomically
from .checkpoints import newest_checkpoint


logger = logging.getLogger(__name__)
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
# With fp16 the loss is scaled by 65536 at first and by half as much after every overflow: some in a row are usual.
FP16_PATIENCE = 30
REMEMBERED = 100  # steps whose images are written


class StopSignals:
    """SIGTERM and SIGUSR1 (Slurm's warning) ask for an end after the step under way; `name` says which came.

    Until a `StepGuard` has taken over there is nothing to save: the process then ends at once, as it would without this.
    """

    def __init__(self):
        self.name: str | None = None
        self.heeded, self._process = False, os.getpid()
        try:
            for number in STOPPING:
                signal.signal(number, self._come)
        except ValueError:  # not in the main thread, as in some notebooks
            logger.debug("signals can't be handled here")

    def _come(self, number, frame):
        if os.getpid() != self._process:
            return  # a worker that was forked: the training process tells it when to end
        if not self.heeded:
            raise SystemExit(128 + number)
        self.name = signal.Signals(number).name


# Readers are forked from the training process, and see in this byte that it is about to end. Registered after that of
# multiprocessing, so run before it tells them to end and waits for them.
_owner, _ending = os.getpid(), mmap.mmap(-1, 1)
atexit.register(_ending.write_byte, 1)


def ignore_stop_signals(worker: int):
    """`worker_init_fn` of a loader: its readers end with the training process, not when a signal is sent to all.

    Slurm signals every process of a job; without its readers a run could not finish its step and save.
    """
    if os.getppid() != _owner:
        return  # started in another way than by a fork: it could not be told to end
    for number in STOPPING:
        signal.signal(number, _come_to_reader)


def _come_to_reader(number, frame):
    if _ending[0]:
        os._exit(0)


@dataclass
class _Step:
    """A step that was judged, until the host knows how."""

    number: int
    ids: list[str]
    taken_anyway: bool
    values: torch.Tensor  # (ranks that are not finite, ranks asked to stop, this rank's loss, norm of the gradient)
    ready: object = None  # CUDA event


class StepGuard:
    """Skips steps whose loss or gradient is not finite, on any rank, and stops the run after `patience` of them in a row.

    With plain AdamW, DDP and FSDP2 the fused kernel leaves weights, moments and step counts alone; fp16's scaler does so
    too; DeepSpeed (every ZeRO stage) looks at the norm of the gradient itself. Where an engine has taken such a step, the
    weights are lost and the run stops at once.

        loss = model(...)
        accelerator.backward(guard.marked(loss))
        norm = accelerator.clip_grad_norm_(...)
        guard.judge(step, loss, norm, ids)
        optimizer.step()
        if guard.stop_asked(): ...

    Args:
        optimizer: as `accelerator.prepare` returned it. patience: skipped steps in a row that end the run.
        output_dir: for nonfinite.json (other ranks: nonfinite-rankR.json); by default the accelerator's project folder.
        skipped: steps that were skipped before, in a run that is resumed.

    Attributes:
        found_inf: tensor on the device, 1 where the last step judged is skipped, else 0.
    """

    def __init__(
        self, accelerator, optimizer, signals: StopSignals | None = None, patience: int = 10,
        output_dir: Path | str | None = None, skipped: int = 0,
    ):  # fmt: skip
        self.accelerator, self.optimizer, self.signals = accelerator, optimizer, signals
        self.engine_skips = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.scaled = getattr(optimizer, "scaler", None) is not None
        self.kernel = getattr(optimizer, "optimizer", optimizer)
        if not self.engine_skips and not self.scaled and not getattr(self.kernel, "_step_supports_amp_scaling", False):
            raise ValueError(f"{type(self.kernel).__name__} can't skip a step by itself: give it fused=True.")
        self.patience = max(patience, FP16_PATIENCE) if self.scaled else patience
        self.output_dir = Path(output_dir or accelerator.project_dir or ".")
        device = accelerator.device
        self.lag = 1 if device.type == "cuda" else 0
        self._answers = torch.zeros((), device=device), torch.ones((), device=device)
        self.found_inf = self._answers[0]
        self.in_a_row, self._skipped, self._stop = 0, skipped, False
        self._pending: deque[_Step] = deque()
        self._bad: deque[dict] = deque(maxlen=REMEMBERED)
        if signals is not None:
            signals.heeded = True

    def marked(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, whose gradient is NaN everywhere if the loss is not finite: engines that look at the gradient alone, inside
        of `backward`, then see it as well. A finite one is left as it is, bit for bit."""
        return loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))

    @torch.no_grad()
    def judge(self, step: int, loss: torch.Tensor, norm: torch.Tensor | float, ids: list[str]) -> torch.Tensor:
        """Between the gradient's clipping and the optimizer's step; every rank calls it. Returns the norm, as a plain tensor.

        Args:
            loss: this rank's, of the whole step. norm: of the gradient over all ranks, as `clip_grad_norm_` returns it.
            ids: this rank's images, of the whole step.
        """
        device = self.accelerator.device
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        taken_anyway = self.engine_skips and not self.optimizer.step_was_skipped and not math.isfinite(float(norm))
        norm = torch.as_tensor(norm, dtype=torch.float32, device=device).reshape(())
        loss = loss.detach().float().reshape(())
        asked = self._answers[self.signals is not None and self.signals.name is not None]
        bad = (~(torch.isfinite(loss) & torch.isfinite(norm))).float()
        together = self.accelerator.reduce(torch.stack([bad, asked]), reduction="sum")
        self.found_inf = (together[0] > 0).float()
        if not self.engine_skips and not self.scaled:
            self.kernel.found_inf = self.found_inf
        values, ready = torch.cat([together, torch.stack([loss, norm])]), None
        if device.type == "cuda":
            values = torch.empty(4, pin_memory=True).copy_(values, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._pending.append(_Step(step, ids, taken_anyway, values, ready))
        return norm

    def stop_asked(self) -> str | None:
        """The signal that asks this run to end now, or None; the same on all ranks. Every rank calls it after each step.

        Raises:
            FloatingPointError: too many steps in a row were not finite.
        """
        self._settle(self.lag)
        if not self._stop:
            return None
        return (self.signals and self.signals.name) or "a signal to another process"

    @property
    def skipped(self) -> int:
        """Steps skipped so far, the last one included."""
        self._settle(0)
        return self._skipped

    def _settle(self, lag: int):
        while len(self._pending) > lag:
            step = self._pending.popleft()
            if step.ready is not None:
                step.ready.synchronize()
            bad, asked, loss, norm = step.values.tolist()
            self._stop = self._stop or asked > 0
            if bad:
                self._note(step, loss, norm)
            else:
                self.in_a_row = 0

    def _note(self, step: _Step, loss: float, norm: float):
        """Count it, write its images down, and stop the run if it is one too many."""
        self.in_a_row, self._skipped = self.in_a_row + 1, self._skipped + 1
        rank = self.accelerator.process_index
        self._bad.append(
            {"step": step.number, "rank": rank, "loss": str(loss), "grad_norm": str(norm), "ids": step.ids}
        )
        here = self.output_dir / ("nonfinite.json" if rank == 0 else f"nonfinite-rank{rank}.json")
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            content = {"skipped": self._skipped, "in_a_row": self.in_a_row, "steps": list(self._bad)}
            write_atomically(here, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            logger.error("%s could not be written: %s", here, error)
        finite = math.isfinite(loss)
        logger.log(
            logging.WARNING if finite or rank == 0 else logging.ERROR,
            "step %d is skipped (%d in a row, %d in all): process %d has loss %s, the gradient's norm is %s. Its images are in %s.",
            step.number, self.in_a_row, self._skipped, rank, loss, norm, here,
        )  # fmt: skip
        if step.taken_anyway or self.in_a_row >= self.patience:
            self._give_up(step, here)

    def _give_up(self, step: _Step, here: Path):
        self.accelerator.wait_for_everyone()  # a launcher ends the others when one ends: each has written its file
        newest = newest_checkpoint(self.output_dir)
        last = f"the last good checkpoint is {newest}" if newest else f"there is no checkpoint in {self.output_dir}"
        what = (
            f"Step {step.number}: the gradient is not finite and the engine has taken the step all the same"
            if step.taken_anyway
            else f"Step {step.number}: {self.in_a_row} steps in a row had a loss or a gradient that is not finite"
        )
        raise FloatingPointError(
            f"{what}; {last}. The images are in {here}. If they are sound, lower --learning_rate or --max_grad_norm and "
            "resume with --allow_elastic_resume, "
            "or begin anew."
        )
