# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Do URFM's claims hold? Targets of a teacher against pixels and controls, on phantoms, from scratch, on a laptop.

    python recipes/reproduce.py --quick                          # two arms, two noise levels, one seed: some minutes on two cores
    python recipes/reproduce.py                                  # all of it, three seeds: hours on two cores, in units
    python recipes/reproduce.py --output_dir DIR --only arm-medical-0      # one unit; --list names them all
    python recipes/reproduce.py --report_only                    # results.json, figures and REPORT.md from units that are there

A unit is one arm and one seed, of 20 minutes at most; those that are finished are not repeated, so the experiment can be
stopped at any time and goes on with the same command. OUTPUT_DIR gets `data/` (images and teachers' features), `units/` (the
answers of every arm to every test image), and from the units alone `results.json`, figures and `REPORT.md`. The committed
results are in `recipes/results/`. What every arm is, and every number that somebody chose: `reproduction/design.py`.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reproduction.analysis import analyse, compare_with, read_units
from reproduction.design import FULL, QUICK, SCALES, Scale
from reproduction.report import write_report
from reproduction.units import Unit, check_data, plan, run_unit
from tqdm.auto import tqdm

from modeling_urfm.data.phantoms import usable_cores
from modeling_urfm.flags import check_choice, said_plainly


COMMITTED = Path(__file__).resolve().parent / "results" / "results.json"


def main():
    args = parse(sys.argv[1:])
    scale = SCALES[args.scale]
    output_dir = Path(args.output_dir or ("reproduced-quick" if scale is QUICK else "reproduced"))
    if args.unit:  # the runner below calls itself, a process a unit
        if args.core is not None:
            os.sched_setaffinity(0, [args.core])
        return run_unit(find(args.unit, scale), output_dir, scale)
    units = [find(name, scale) for name in args.only] if args.only else plan(scale)
    # All others read the data.
    units = [unit for unit in plan(scale) if unit.kind == "data" and unit not in units] + units
    if args.list:
        for unit in units:
            print(f"{'done' if done(unit, output_dir) else 'to do':6} {unit.name}")
        return
    if not args.report_only:
        run_all(units, output_dir, scale, args.jobs)
    found = read_units(output_dir / "units")
    results = analyse(found, scale)
    if scale is not FULL and COMMITTED.is_file():
        results["compared"] = compare_with(results, json.loads(COMMITTED.read_text()))
        print_compared(results["compared"])
    write_report(results, output_dir)
    print(f"{output_dir / 'REPORT.md'}: {sum(c['verdict'] == 'holds' for c in results['claims'])} of "
          f"{len(results['claims'])} claims hold here")  # fmt: skip


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", dest="scale", action="store_const", const=QUICK.name, default=FULL.name,
        help="A small part of it, for a first look and for tests.",
    )  # fmt: skip
    parser.add_argument("--output_dir", help="Folder of the results. Default: reproduced, or reproduced-quick.")
    parser.add_argument("--only", nargs="+", metavar="UNIT", help="Run these units alone (--list names them).")
    parser.add_argument("--list", action="store_true", help="Name the units, and say which are done.")
    parser.add_argument("--report_only", action="store_true", help="Run nothing; report on the units that are there.")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="Units side by side, one core each.")
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: at least 1 unit at a time is run. The nearest valid value: 1.")
    return args


def print_compared(compared: list[dict]):
    """Whether the arms stand in the order of the committed results."""
    for row in compared:
        says = "the same here" if row["same"] else "within the interval here" if row["agrees"] else "NOT SO HERE"
        print(f"{row['level']:g} dB: {row['higher']} above {row['lower']} in the committed results: {says}")


def find(name: str, scale: Scale) -> Unit:
    units = {unit.name: unit for unit in plan(scale)}
    check_choice("unit", name, tuple(units))
    return units[name]


def done(unit: Unit, output_dir: Path) -> bool:
    return (output_dir / "units" / f"{unit.name}.json").is_file()


def run_all(units: list[Unit], output_dir: Path, scale: Scale, jobs: int):
    """The units that are not done, `jobs` at a time, each on a core of its own; data first, since all others read them.

    However it ends, no unit goes on without it.
    """
    check_data(output_dir / "data", scale)
    cores, running = queue.SimpleQueue(), set()
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for job in range(jobs):
        cores.put(affinity[job % len(affinity)])
    missing = [unit for unit in units if not done(unit, output_dir)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tqdm(total=len(units), initial=len(units) - len(missing), unit="unit", desc="reproducing") as bar:
            for first in (True, False):
                part = [unit for unit in missing if (unit.kind == "data") is first]
                with ThreadPoolExecutor(jobs) as pool:
                    try:
                        for unit in pool.map(lambda unit: run_one(unit, output_dir, scale, cores, running), part):
                            bar.set_postfix_str(unit.name)
                            bar.update()
                    except BaseException:  # Ctrl-C, a signal, a unit that failed
                        pool.shutdown(wait=False, cancel_futures=True)
                        for process in running.copy():
                            process.terminate()
                        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run_one(unit: Unit, output_dir: Path, scale: Scale, cores: queue.SimpleQueue, running: set) -> Unit:
    """One unit in a process of its own; what it says goes into a log, and its end is shown where it fails."""
    log = output_dir / "logs" / f"{unit.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    core = cores.get()
    command = [sys.executable, __file__, "--unit", unit.name, "--output_dir", str(output_dir)]
    command += ["--quick"] * (scale is QUICK) + ([] if core is None else ["--core", str(core)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        with (
            log.open("w") as file,
            subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment) as process,
        ):
            running.add(process)
            process.wait()
            running.discard(process)
    finally:
        cores.put(core)
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").replace("\r", "\n").splitlines()[-15:])
        raise RuntimeError(f"unit {unit.name} ended with {process.returncode}; the end of {log}:\n{end}")
    return unit


if __name__ == "__main__":
    with said_plainly(Path(__file__)):
        main()
