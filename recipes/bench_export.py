# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How fast an exported encoder is on a processor, beside PyTorch, and how far from it.

    python recipes/bench.py export             # ViT-B/16 at 224 px, batches of 1, 4, 16, 32; about six minutes on two cores
    python recipes/bench.py export --quick     # does it run? a tiny encoder, seconds

In one process and in turns: PyTorch eager in fp32, compiled (`torch.compile`) and in bf16, `torch.export`, ONNX Runtime in fp32
and with 8-bit weights, all with the same number of threads, on pixels that are ready. Ratios are of times within one round.
Weights are random, which makes no difference to the speed; how far outputs are from PyTorch's in fp32 is measured on real images
by `recipes/export.py`'s own comparison. It writes `results.json` and `table.md` into `--output_dir`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel
from modeling_urfm.data.phantoms import usable_cores
from modeling_urfm.hub.export import FILES, export_model, onnx_runner, torch_export_runner
from modeling_urfm.hub.export_check import compare, run_over, top1_agreement, verification_images
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.hub.saving import save_model_folder


EAGER, COMPILED, BF16 = "PyTorch eager, fp32", "PyTorch compiled, fp32", "PyTorch eager, bf16"
GRAPH, ONNX, INT8 = "torch.export, fp32", "ONNX Runtime, fp32", "ONNX Runtime, int8"
QUICK = {"image_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES_A_TURN = 8  # of batches smaller than that, several are run and their mean is taken


def add_arguments(parser: argparse.ArgumentParser):
    """The flags of `recipes/bench.py export`."""
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 16, 32], help="Images a forward.")
    parser.add_argument("--rounds", type=int, default=7, help="Turns that every row gets.")
    parser.add_argument("--no_compile", action="store_true", help="Leave out torch.compile, which takes a minute.")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="Threads of every row.")
    parser.add_argument("--quick", action="store_true", help="A tiny encoder: only to see that it runs.")
    parser.add_argument("--output_dir", default="bench_export", help="Folder for results.json and table.md.")


def bench_export(args) -> dict:
    """Measure, print, write `results.json` and `table.md`; gives the metrics."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    batch_sizes, rounds = (args.batch_sizes, args.rounds) if not args.quick else (args.batch_sizes[:2], 2)
    started = time.perf_counter()
    torch.manual_seed(0)
    model = URFMModel(URFMConfig(**QUICK if args.quick else {})).eval()
    size = model.config.image_size
    processor = URFMImageProcessor(size={"height": size, "width": size})
    with tempfile.TemporaryDirectory() as scratch:
        save_model_folder(model, processor, Path(scratch) / "urfm")
        facts = export_model(str(Path(scratch) / "urfm"), Path(scratch) / "exported")
        rows = make_rows(model, Path(scratch) / "exported", args.threads)
        metrics = {"threads": args.threads, "image_size": size, "compared_on": facts["compared_on"]}
        if not args.no_compile and not args.quick:
            metrics["left_out"] = add_compiled(rows, model)
        metrics["parity"] = parity(rows, processor)
        metrics["speed"] = {str(count): time_rows(rows, count, size, rounds) for count in batch_sizes}
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = table(metrics)
    print(text)
    (folder / "table.md").write_text(text)
    timings = {"total_s": round(time.perf_counter() - started, 1)}
    write_json(folder / "results.json", {**run_facts(0), "metrics": metrics, "timings": timings})
    return metrics


def make_rows(model: URFMModel, folder: Path, threads: int) -> dict[str, Callable]:
    """Name to a function of pixels (B, 3, H, W), an array, to the outputs as arrays."""
    halved = URFMModel(model.config).eval()
    halved.load_state_dict(model.state_dict())
    halved.bfloat16()
    rows = {EAGER: torch_row(model), BF16: torch_row(halved)}
    rows[GRAPH] = torch_export_runner(folder / FILES["torch_export"])
    rows[ONNX] = onnx_runner(folder / FILES["onnx"], threads)
    rows[INT8] = onnx_runner(folder / FILES["int8"], threads)
    return rows


def add_compiled(rows: dict[str, Callable], model: URFMModel) -> dict[str, str]:
    """Add the row of `torch.compile`; where it can't compile here (it needs a C++ compiler), give the reason instead."""
    run, size = torch_row(torch.compile(model, dynamic=False)), model.config.image_size
    try:
        run(np.zeros((1, 3, size, size), np.float32))
    except Exception as error:  # torch has no common kind for these
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"left out: {COMPILED}: {reason}")
        return {COMPILED: reason}
    rows[COMPILED] = run
    return {}


def torch_row(model: URFMModel) -> Callable:
    @torch.inference_mode()
    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model(pixel_values=torch.from_numpy(pixels))
        names = ("last_hidden_state", "pooler_output")
        return {name: outputs[name].float().numpy() for name in names}

    return run


def parity(rows: dict[str, Callable], processor: URFMImageProcessor) -> dict:
    """How far every row is from PyTorch eager in fp32, on real images; one by one, as each size is compiled anew."""
    pixels = processor(verification_images(None)[1], return_tensors="np")["pixel_values"]
    outputs = {name: run_over(run, pixels, 1) for name, run in rows.items()}
    return {
        name: compare(outputs[name], outputs[EAGER])
        | {"top1_agreement": top1_agreement("encoder", None, outputs[name], outputs[EAGER])}
        for name in rows
    }


def time_rows(rows: dict[str, Callable], count: int, size: int, rounds: int) -> dict:
    """Every row in turn, which row is first changing from round to round."""
    pixels = np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)
    repeats = max(1, IMAGES_A_TURN // count)
    times = {name: [] for name in rows}
    for run in rows.values():  # also compiles
        run(pixels)
    for turn in range(rounds):
        names = [*rows][turn % len(rows) :] + [*rows][: turn % len(rows)]
        for name in names:
            time.sleep(0.05)  # the threads of the row before spin for a moment
            started = time.perf_counter()
            for _ in range(repeats):
                rows[name](pixels)
            times[name].append((time.perf_counter() - started) / repeats)
    found = {}
    for name, own in times.items():
        ratios = [before / after for before, after in zip(times[EAGER], own)]
        middle = statistics.median(own)
        found[name] = {
            "ms": round(1000 * middle, 2), "images_per_s": round(count / middle, 2),
            "times_eager": round(statistics.median(ratios), 3), "times_eager_lowest": round(min(ratios), 3),
            "times_eager_highest": round(max(ratios), 3),
        }  # fmt: skip
    return found


def table(metrics: dict) -> str:
    """Markdown: parity, then time of a batch, images a second and times eager fp32 (lowest to highest round)."""
    lines = ["| | largest error | lowest cosine, pooled | same nearest image |", "| --- | --- | --- | --- |"]
    for name, errors in metrics["parity"].items():
        largest = max(errors[output]["max_abs"] for output in ("last_hidden_state", "pooler_output"))
        lines.append(
            f"| {name} | {largest:.2g} | {errors['pooler_output']['cosine_lowest']:.5f} | {errors['top1_agreement']:.1%} |"
        )
    counts = [*metrics["speed"]]
    lines += ["", "| | " + " | ".join(f"batch {count}" for count in counts) + " |", "| --- " * (1 + len(counts)) + "|"]
    for name in metrics["parity"]:
        cells = []
        for count in counts:
            row = metrics["speed"][count][name]
            cells.append(
                f"{row['ms']:.{0 if row['ms'] >= 10 else 2}f} ms, {row['images_per_s']:.1f}/s, {row['times_eager']:.2f} x "
                f"({row['times_eager_lowest']:.2f} to {row['times_eager_highest']:.2f})"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser)
    bench_export(parser.parse_args())


if __name__ == "__main__":
    main()
