# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Where the time of a step goes: a trace for Perfetto or chrome://tracing, and a table of the costliest operators."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule


logger = logging.getLogger(__name__)
SKIPPED, TRACED = 4, 4  # steps: start-up and the allocator's first rounds are not what a run spends its time on


@contextmanager
def step_trace(folder: Path | None, rank: int = 0) -> Iterator[Callable[[], None]]:
    """Trace `TRACED` steps into `folder`; None traces nothing.

    Yields a function to call at the end of every step.
    """
    if folder is None:
        yield lambda: None
        return

    def write(traced: profile):
        folder.mkdir(parents=True, exist_ok=True)
        traced.export_chrome_trace(str(folder / f"trace-rank{rank}.json.gz"))
        costliest = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=costliest, row_limit=40)
        (folder / f"operators-rank{rank}.txt").write_text(table)
        logger.info("profile: %d steps in %s (open the trace at https://ui.perfetto.dev)", TRACED, folder)

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    plan = schedule(skip_first=SKIPPED - 1, wait=0, warmup=1, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, profile_memory=True) as running:
        yield running.step
