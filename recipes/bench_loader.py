# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How fast images come out of the training loader: decode + augment, images/s of one core, against the usual way.

    OMP_NUM_THREADS=1 python recipes/bench_loader.py                 # a minute on one core
    OMP_NUM_THREADS=1 python recipes/bench_loader.py --repeats 15    # the table of the README
    OMP_NUM_THREADS=1 python recipes/bench_loader.py --rows 1000000  # how long a corpus of that many rows takes to open

Both sides show the same ultrasound phantoms, 512-px JPEGs of quality 95, as random resized crops (area 0.2 to 1, bicubic,
antialiased) of 224 px, flipped at random, in batches of 64 floats, each in one process with one thread, in turns:

- the usual way: torchvision's `ImageFolder` over files and the PIL transforms of transformers' `run_mae.py`
  (`RandomResizedCrop`, `RandomHorizontalFlip`, `ToTensor`, `Normalize`);
- URFM: Parquet shards, `ShardCorpus`, `AugmentedCorpus`, as `recipes/pretrain.py` reads them. Batches leave the loader as
  bytes, grey ones in one channel; 'to floats' also does here, on the same core, what `pretrain.py` does on the device:
  floats, three channels, mean and deviation, so that what comes out is what comes out of the other side.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from modeling_urfm import URFMImageProcessor
from modeling_urfm.data.corpus import load_corpus
from modeling_urfm.data.phantoms import phantom_frame
from modeling_urfm.data.shards import ROW_GROUP_ROWS, AtomicParquet, shard_schema
from modeling_urfm.data.streaming import EpochPlan
from modeling_urfm.data.transforms import (
    AugmentedCorpus,
    PretrainTransform,
    StreamBatchSampler,
    UltrasoundAugmentation,
    collate,
)
from modeling_urfm.hub.results import run_facts, write_json


BATCH = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=512, help="Images of a pass over the data.")
    parser.add_argument("--repeats", type=int, default=5, help="Passes of each side.")
    parser.add_argument(
        "--rows", type=int, default=0, help="Instead: time and memory of opening a corpus of so many rows."
    )
    parser.add_argument("--output_dir", default="bench_loader", help="Folder for results.json.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        metrics = measure_opening(Path(scratch), args.rows) if args.rows else measure_loaders(Path(scratch), args)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(args.output_dir) / "results.json", {**run_facts(0), "metrics": metrics, "timings": {}})


# ---------------------------------------------------------------- loaders


def measure_loaders(scratch: Path, args) -> dict:
    phantoms = [phantom_frame(0, patient, image_size=512).image for patient in range(16)]
    metrics = {}
    print(f"{'JPEGs':6} {'loader':28} {'images/s a core':>16} {'ratio to the usual way':>24}")
    for kind, mode in (("grey", "L"), ("RGB", "RGB")):
        jpegs = [as_jpeg(phantoms[i % len(phantoms)], mode, i) for i in range(args.images)]
        folder, shards = scratch / kind / "files" / "class", scratch / kind / "corpus"
        folder.mkdir(parents=True)
        for number, data in enumerate(jpegs):
            (folder / f"{number:06}.jpg").write_bytes(data)
        write_shards(shards, jpegs)
        augmentation = UltrasoundAugmentation({"speckle": 1, "blur": 1, "gain": 1, "contrast": 1})
        sides = {
            "ImageFolder + PIL": (usual_loader(folder.parent), None),
            "URFM": (urfm_loader(shards), None),
            "URFM, to floats": (urfm_loader(shards), Normalize()),
            "URFM, 4 effects, to floats": (urfm_loader(shards, augmentation), Normalize()),
        }
        for loader, after in sides.values():
            one_pass(loader, after, args.images // 8)  # files into memory, allocators warm
        times = {name: [] for name in sides}
        for _ in range(args.repeats):  # in turns, so that a busy machine slows both
            for name, (loader, after) in sides.items():
                times[name].append(one_pass(loader, after, args.images))
        for name, taken in times.items():
            rates = [args.images / t for t in taken]
            ratios = [usual / t for usual, t in zip(times["ImageFolder + PIL"], taken)]
            metrics[f"{kind}: {name}"] = {
                "images_per_s": round(statistics.median(rates), 1), "ratio": round(statistics.median(ratios), 2),
                "ratio_lowest": round(min(ratios), 2), "ratio_highest": round(max(ratios), 2),
            }  # fmt: skip
            print(
                f"{kind:6} {name:28} {statistics.median(rates):16.0f} {statistics.median(ratios):12.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
    return metrics


def as_jpeg(phantom: np.ndarray, mode: str, shift: int) -> bytes:
    """A phantom moved sideways, so that no two files are the same."""
    buffer = io.BytesIO()
    Image.fromarray(np.roll(phantom, shift, axis=1)).convert(mode).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def write_shards(folder: Path, jpegs: list[bytes]):
    with AtomicParquet(folder / "data" / "train-00000-of-00001.parquet", shard_schema()) as shard:
        for data in jpegs:
            shard.write(row(data))


def row(data: bytes) -> dict:
    """A row as `recipes/prepare.py` writes them, with some image in it."""
    return {"image": {"bytes": data, "path": None}, "organ": "liver", "source": "local", "licence": "none", "frame": 0,
            "patient": "0" * 32, "clip": "0" * 32, "geometry": "sector", "mode": "b-mode", "spacing_mm": [0.1, 0.1],
            "pixel_hash": "0" * 64, "perceptual_hash": "0" * 64}  # fmt: skip


def usual_loader(folder: Path) -> DataLoader:
    transform = T.Compose([
        T.Lambda(lambda image: image.convert("RGB") if image.mode != "RGB" else image),
        T.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize(mean=URFMImageProcessor().image_mean, std=URFMImageProcessor().image_std),
    ])  # fmt: skip
    return DataLoader(ImageFolder(str(folder), transform), batch_size=BATCH, shuffle=True)


def urfm_loader(folder: Path, augmentation=None) -> DataLoader:
    corpus = load_corpus(folder, progress=False)
    plan = EpochPlan(corpus)
    sampler = StreamBatchSampler(plan.length, BATCH, seed=0, order=plan.order)
    return DataLoader(
        AugmentedCorpus(corpus, PretrainTransform(224), 0, augmentation), batch_sampler=sampler, collate_fn=collate
    )


class Normalize:
    """What `pretrain.py` does on the device: three channels, minus the mean, by the deviation; into one buffer."""

    def __init__(self):
        processor = URFMImageProcessor()
        self.mean, self.std = (
            255 * torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std)
        )
        self.buffer = torch.empty(BATCH, 3, 224, 224)

    def __call__(self, batch: dict) -> torch.Tensor:
        pixels = batch["pixels"]
        return self.buffer[: len(pixels)].copy_(pixels).sub_(self.mean).div_(self.std)


def one_pass(loader: DataLoader, after, images: int) -> float:
    """Seconds of the processor for so many images: what other programs take at the same time does not count."""
    seen, started = 0, time.process_time()
    for batch in loader:
        batch = after(batch) if after else batch
        seen += len(batch["pixels"]) if isinstance(batch, dict) else len(batch[0] if isinstance(batch, list) else batch)
        if seen >= images:
            break
    return (time.process_time() - started) * images / seen


# ---------------------------------------------------------------- opening


def measure_opening(scratch: Path, rows: int) -> dict:
    """A shard's row groups again and again: seconds and memory to open 10,000 rows and `rows`, and to read a batch."""
    metrics = {}
    print(
        f"{'rows':>10} {'shards':>7} {'open, s':>8} {'first order, s':>15} {'memory after opening, MB':>26} {'after a batch':>14}"
    )
    for count in (10_000, rows):
        folder = scratch / str(count)
        repeat_row_groups(folder, count)
        done = subprocess.run([sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        metrics[f"{count} rows"] = found
        print(
            f"{count:10} {len(list((folder / 'data').iterdir())):7} {found['open_s']:8.2f} {found['order_s']:15.2f} "
            f"{found['open_mb']:26.1f} {found['batch_mb']:14.1f}"
        )
    return metrics


def repeat_row_groups(folder: Path, rows: int, rows_per_shard: int = 6400):
    """A corpus of `rows` rows: one row group of small images, with the columns of a real shard, written many times."""
    (folder / "data").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 99).save(buffer, "png")
    group = pa.Table.from_pylist([row(buffer.getvalue())] * ROW_GROUP_ROWS, schema=shard_schema())
    shards = -(-rows // rows_per_shard)
    for shard in range(shards):
        path = folder / "data" / f"train-{shard:05}-of-{shards:05}.parquet"
        with pq.ParquetWriter(path, group.schema, compression="zstd") as writer:
            for first in range(shard * rows_per_shard, min((shard + 1) * rows_per_shard, rows), ROW_GROUP_ROWS):
                writer.write_table(group[: rows - first])


# In a process of its own, where memory starts from nothing.
OPEN = """
import json, sys, time
import datasets, pyarrow.parquet, torch
from modeling_urfm.data.corpus import load_corpus
from modeling_urfm.data.streaming import EpochPlan
def resident():
    pages = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(pages.split()[1]) / 1024
before, started = resident(), time.perf_counter()
corpus = load_corpus(sys.argv[1], progress=False)
opened, open_mb = time.perf_counter() - started, resident() - before
started = time.perf_counter()
order = EpochPlan(corpus).order(0, 0)
order_s = time.perf_counter() - started
for index in order[:64]:
    corpus[int(index)]
print(json.dumps({"rows": len(corpus), "open_s": opened, "order_s": order_s, "open_mb": open_mb, "batch_mb": resident() - before}))
"""


if __name__ == "__main__":
    main()
