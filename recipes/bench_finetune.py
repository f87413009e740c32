# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What each way to fine-tune costs, and what it gives.

    python recipes/bench.py finetune --model_name_or_path urfm-base --dataset phantoms:lesion   # the table of the README

Runs `recipes/finetune.py` once for each method, label fraction and seed, each in a process of its own, on the same images and
splits, and writes `results.json` and `table.md` into `--output_dir`. A run that is done is not done again by the same command
with the same `--output_dir`. Parameters, memory and the time of an epoch are those
that the runs report; figures are of the test images.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from modeling_urfm.hub.results import run_facts, write_json


RECIPE = Path(__file__).resolve().parent / "finetune.py"
FIGURES = {"classification": "macro_f1", "multilabel": "average_precision", "regression": "mae", "segmentation": "dice"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_name_or_path", default="urfm", help="Folder or Hub id of a pre-trained URFM model.")
    parser.add_argument("--task", default="classification", choices=list(FIGURES), help="What is learnt.")
    parser.add_argument(
        "--dataset", default="phantoms:lesion", help="Labelled images, as recipes/finetune.py takes them."
    )
    parser.add_argument(
        "--methods", nargs="+", default=["linear", "attentive", "lora", "dora", "full"], help="Rows of the table."
    )
    parser.add_argument("--label_fractions", nargs="+", type=float, default=[0.1, 1.0], help="Shares of the labels.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="Seeds of head, order and augmentation.")
    parser.add_argument("--batch_size", type=int, default=16, help="Images a step, the same for every method.")
    parser.add_argument("--keep_models", action="store_true", help="Keep the folders of the runs, hundreds of MB each.")
    parser.add_argument("--output_dir", default="bench-finetune", help="Folder for results.json and table.md.")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="After --: flags for every run, such as -- --bf16.")


def bench_finetune(args: argparse.Namespace) -> dict:
    """Run all of the table's rows; returns the metrics that `results.json` holds."""
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in args.seeds:
        for fraction in args.label_fractions:
            for method in args.methods:
                runs.append(_run(args, method, fraction, seed, output_dir / f"{method}-{fraction:g}-{seed}"))
    metrics = {"task": args.task, "dataset": args.dataset, "batch_size": args.batch_size, "runs": runs}
    metrics["rows"] = [
        _row([run for run in runs if (run["method"], run["label_fraction"]) == (method, fraction)], args.task)
        for fraction in args.label_fractions
        for method in args.methods
    ]
    write_json(output_dir / "results.json", {**run_facts(args.seeds[0]), "metrics": metrics, "timings": {}})
    table = markdown(metrics)
    (output_dir / "table.md").write_text(table)
    print(table)
    return metrics


def _run(args: argparse.Namespace, method: str, fraction: float, seed: int, folder: Path) -> dict:
    """One run of recipes/finetune.py, and of its results what the table needs."""
    command = [
        sys.executable, str(RECIPE), "--task", args.task, "--method", method, "--dataset", args.dataset,
        "--model_name_or_path", args.model_name_or_path, "--output_dir", str(folder), "--seed", str(seed),
        "--label_fraction", str(fraction), "--per_device_train_batch_size", str(args.batch_size),
        *[option for option in args.options if option != "--"],
    ]  # fmt: skip
    print(f"-- {method}, {fraction:.0%} of the labels, seed {seed}", flush=True)
    kept = folder.with_name(f"{folder.name}.json")
    before = json.loads(kept.read_text()) if kept.is_file() else {}
    if before.get("asked") != command:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nfailed:\n{done.stderr[-3000:]}")
        write_json(kept, json.loads((folder / "results.json").read_text()) | {"asked": command})
        if not args.keep_models:
            shutil.rmtree(folder)
    results = json.loads(kept.read_text())
    metrics, timings = results["metrics"], results["timings"]
    names = ("method", "label_fraction", "trainable_parameters", "parameters", "trainable_share", "epochs", "device",
             "bf16", "gradient_checkpointing", "test", "train")  # fmt: skip
    return {name: metrics[name] for name in names} | timings | {"seed": seed}


def _row(runs: list[dict], task: str) -> dict:
    """The runs of one method and fraction: means over seeds; the figure's interval is the mean of their intervals."""
    figure, first = FIGURES[task], runs[0]
    values = [run["test"][figure] for run in runs]
    ends = [run["test"][f"{figure}_ci95"] for run in runs]
    names = (
        "method",
        "label_fraction",
        "trainable_parameters",
        "trainable_share",
        "gradient_checkpointing",
        "device",
        "bf16",
    )
    return {name: first[name] for name in names} | {
        "figure": figure, "value": statistics.mean(values),
        "sd_over_seeds": statistics.stdev(values) if len(values) > 1 else None,
        "ci95": [statistics.mean(end[side] for end in ends) for side in (0, 1)],
        # Frozen encoders are run once: their epochs are of the head alone, their memory is that of the features too.
        "epoch_s": statistics.median(run["epoch_s"] for run in runs),
        "training_s": statistics.median(run["training_s"] + run["features_s"] for run in runs),
        "peak_memory_mib": statistics.median(run["peak_memory_mib"] for run in runs),
    }  # fmt: skip


def markdown(metrics: dict) -> str:
    """The table of the README."""
    full = {row["label_fraction"]: row for row in metrics["rows"] if row["method"] == "full"}
    first = metrics["rows"][0]
    lines = [
        f"{metrics['dataset']}, {first['figure']}; {first['device']}, {'bf16' if first['bf16'] else 'fp32'}, batch "
        f"{metrics['batch_size']}.",
        "",
        "| method | labels | trained parameters | peak MiB (of full) | s an epoch | s in all | figure (95 % interval) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in metrics["rows"]:
        whole = full.get(row["label_fraction"])
        share = f" ({row['peak_memory_mib'] / whole['peak_memory_mib']:.0%})" if whole else ""
        spread = f" ± {row['sd_over_seeds']:.3f}" if row["sd_over_seeds"] is not None else ""
        lines.append(
            f"| {row['method']}{' with checkpointing' if row['gradient_checkpointing'] else ''} | {row['label_fraction']:.0%} "
            f"| {row['trainable_parameters']:,} ({row['trainable_share']:.2%}) | {row['peak_memory_mib']:.0f}{share} "
            f"| {row['epoch_s']:.2f} | {row['training_s']:.0f} | {row['value']:.3f}{spread} ({row['ci95'][0]:.3f} to "
            f"{row['ci95'][1]:.3f}) |"
        )
    return "\n".join(lines) + "\n"
