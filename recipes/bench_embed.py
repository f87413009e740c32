# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How fast a folder of images becomes features, beside transformers' own pipeline, and how long a label-efficiency sweep takes.

    python recipes/bench.py embed             # 2,000 JPEG files of 512 px, ViT-B/16; about ten minutes on two cores
    python recipes/bench.py embed --quick     # does it run? a tiny encoder, seconds

In one process and in turns, each round on a folder of its own: `pipeline("image-feature-extraction", batch_size=16)`, pooled
and in tensors, in fp32 and in bf16; what `recipes/embed.py` does (open the folder, decode, resize, encode, write Parquet and
index); and the encoder's forward alone in bf16 on pixels that are ready. Ratios are of rates within one round. Weights are
random, which makes no difference to the speed.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel
from modeling_urfm.data.memory import keep_freed_memory
from modeling_urfm.data.phantoms import phantom_frame, usable_cores
from modeling_urfm.evaluation.encoders import load_encoder
from modeling_urfm.evaluation.feature_shards import embed_corpus, open_images
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.pretraining.flops import synchronize


PLAIN, PLAIN_BF16 = "pipeline, fp32", "pipeline, bf16"
OURS, FORWARD = "recipes/embed.py", "forward alone, bf16"
SIZE, UNIQUE = 512, 2000  # px of an image; beyond so many files, names are links to the same ones
FRACTIONS, SEEDS, ENCODERS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0), range(5), 3


def add_arguments(parser: argparse.ArgumentParser):
    """The flags of `recipes/bench.py embed`."""
    parser.add_argument("--images", type=int, default=2000, help="Files, shared out to the rounds.")
    parser.add_argument("--rounds", type=int, default=5, help="Turns that every row gets.")
    parser.add_argument(
        "--batch_size", type=int, help="Images a forward of embed.py and of the encoder. [32; GPU: 128]"
    )
    parser.add_argument("--no_sweep", action="store_true", help="Leave out the label-efficiency sweep.")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="Threads of torch on a CPU.")
    parser.add_argument("--quick", action="store_true", help="A tiny encoder, few images: only to see that it runs.")
    parser.add_argument("--output_dir", default="bench_embed", help="Folder for results.json.")


def bench_embed(args) -> dict:
    """Measure, print, write `results.json`; gives the metrics."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_size, started = args.batch_size or (128 if device.type == "cuda" else 32), time.perf_counter()
    images, rounds, size = (args.images, args.rounds, SIZE) if not args.quick else (32, 2, 96)
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_images(Path(scratch) / "images", images, rounds, size)
        model = write_model(Path(scratch) / "model", args.quick)
        metrics = {"images": images, "batch_size": batch_size, "device": device.type, "threads": args.threads}
        metrics["rows"] = time_rows(folders, model, Path(scratch), batch_size, device)
    if not args.no_sweep:
        metrics["label_efficiency_s"] = time_sweep(args.quick, device)
        print(f"label efficiency, features ready: {metrics['label_efficiency_s']:.1f} s")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    timings = {"total_s": round(time.perf_counter() - started, 1)}
    write_json(folder / "results.json", {**run_facts(0), "metrics": metrics, "timings": timings})
    return metrics


# ---------------------------------------------------------------- what is encoded, and by what


def write_images(folder: Path, images: int, rounds: int, size: int) -> list[Path]:
    """RGB JPEG files of quality 95, phantoms moved sideways so that no two are the same; a folder a round."""
    phantoms = [phantom_frame(0, patient, image_size=size).image for patient in range(16)]
    folders = [folder / str(turn) for turn in range(rounds)]
    written = []
    for number in range(images):
        path = folders[number % rounds] / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= UNIQUE:
            os.link(written[number % UNIQUE], path)
            continue
        buffer = io.BytesIO()
        moved = np.roll(phantoms[number % len(phantoms)], number // len(phantoms), axis=1)
        Image.fromarray(moved).convert("RGB").save(buffer, "jpeg", quality=95)
        path.write_bytes(buffer.getvalue())
        written.append(path)
    return folders


def write_model(folder: Path, quick: bool) -> Path:
    """A URFM folder of random weights: ViT-B/16 at 224 px."""
    small = {
        "image_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = URFMConfig(**small if quick else {})
    torch.manual_seed(0)
    URFMModel(config).save_pretrained(folder)
    URFMImageProcessor(size={"height": config.image_size, "width": config.image_size}).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- measuring


def time_rows(folders: list[Path], model: Path, scratch: Path, batch_size: int, device: torch.device) -> dict:
    """Every row in turn on every folder, which row is first changing from round to round."""
    encoder = load_encoder(str(model), device=device, dtype=torch.bfloat16)
    ready = torch.rand(batch_size, 3, *encoder.size, device=device)
    made = 0

    def plain(dtype: torch.dtype) -> Callable[[list[Path]], None]:
        extract = pipeline(
            "image-feature-extraction", model=str(model), batch_size=16, dtype=dtype, device=device, pool=True,
            return_tensors=True,
        )  # fmt: skip

        def run(folder: Path):
            for _ in extract([str(path) for path in sorted(folder.iterdir())]):
                pass

        return run

    def ours(folder: Path):
        nonlocal made
        made += 1
        corpus = open_images(str(folder), progress=False)
        embed_corpus(
            encoder, corpus, scratch / f"features{made}", dataset={"name": str(folder), "split": "train"},
            batch_size=batch_size, progress=False,
        )  # fmt: skip

    def forward(folder: Path):
        for at in range(0, len(os.listdir(folder)), batch_size):
            encoder.features(ready[: min(batch_size, len(os.listdir(folder)) - at)])
        synchronize(device)

    rows = {PLAIN: plain(torch.float32), PLAIN_BF16: plain(torch.bfloat16), OURS: ours, FORWARD: forward}
    warm = scratch / "warm"
    warm.mkdir()
    for path in sorted(folders[0].iterdir())[:32]:
        os.link(path, warm / path.name)
    rates = {name: [] for name in rows}
    for run in rows.values():
        run(warm)
    for turn, folder in enumerate(folders):
        names = [*rows][turn % len(rows) :] + [*rows][: turn % len(rows)]
        for name in names:
            started = time.perf_counter()
            rows[name](folder)
            rates[name].append(len(os.listdir(folder)) / (time.perf_counter() - started))
    return said(rates)


def said(rates: dict[str, list[float]]) -> dict:
    """Medians and ranges, printed."""
    found = {}
    print(f"{'':24} {'images/s':>9} {'x pipeline, fp32':>24} {'x pipeline, bf16':>24} {'of forward alone':>24}")
    for name, own in rates.items():
        found[name] = {"images_per_s": round(statistics.median(own), 1)}
        line = f"{name:24} {statistics.median(own):9.1f}"
        against = (("ratio_pipeline", PLAIN), ("ratio_pipeline_bf16", PLAIN_BF16), ("share_of_forward", FORWARD))
        for key, other in against:
            ratios = [a / b for a, b in zip(own, rates[other])]
            middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
            found[name] |= {key: round(middle, 3), f"{key}_lowest": round(low, 3), f"{key}_highest": round(high, 3)}
            line += f" {middle:8.2f} ({low:5.2f} to {high:5.2f})"
        print(line)
    return found


def time_sweep(quick: bool, device: torch.device) -> float:
    """Seconds of 6 fractions x 5 seeds x 3 encoders on 2,000 images of 500 patients, 15 classes, 768 features."""
    from modeling_urfm.evaluation.protocols import label_efficiency

    images, width, fractions, seeds, encoders = 2000, 768, FRACTIONS, SEEDS, ENCODERS
    if quick:
        images, width, fractions, seeds, encoders = 400, 16, (0.5, 1.0), range(2), 1
    rng = np.random.default_rng(0)
    patients = np.arange(images) // 4
    labels = patients % 15
    splits = np.array(["train", "train", "train", "validation", "test"])[(patients // 15) % 5]
    started = time.perf_counter()
    for _ in range(encoders):
        features = rng.normal(size=(15, width))[labels] + 4 * rng.normal(size=(images, width))
        label_efficiency(
            features.astype(np.float32), labels, patients.astype(str), splits, fractions, seeds, device=device
        )
    return round(time.perf_counter() - started, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser)
    bench_embed(parser.parse_args())


if __name__ == "__main__":
    main()
