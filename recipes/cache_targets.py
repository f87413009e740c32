# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Compute a frozen teacher's features of every image once, so that pre-training reads them instead of computing them.

    accelerate launch recipes/cache_targets.py --dataset demo --teacher demo      # the demo's, minutes on two cores
    accelerate launch recipes/cache_targets.py --dataset corpus                   # BiomedCLIP's, into corpus-targets/
    accelerate launch --multi_gpu --num_processes 8 recipes/cache_targets.py --dataset corpus
    accelerate launch recipes/pretrain.py --dataset corpus --target_cache corpus-targets

Killed at any moment, the same command goes on where it was, on any number of processes. `--dataset`, `--dataset_split`,
`--teacher` and `--teacher_layer` must be those of the pre-training: a cache of other images or another teacher is
refused there, and here. The folder lies beside the corpus; several machines need a file system that all of them see.
`results.json` says how near the features come back (cosine, over all images) and what they cost on disk.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_urfm.data.demo import open_datasets
from modeling_urfm.data.phantoms import usable_cores
from modeling_urfm.flags import flag, helps_of, parse_sections
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.pretraining import target_cache as cache
from modeling_urfm.pretraining.arguments import PretrainArguments
from modeling_urfm.pretraining.engine import end_run, make_sharing_accelerator
from modeling_urfm.pretraining.startup import check_writable
from modeling_urfm.pretraining.target_codec import fit_codec
from modeling_urfm.pretraining.teacher import TeacherError, load_teacher
from modeling_urfm.pretraining.teacher_images import TeacherImages, features_of, square, teacher_grid


logger = logging.getLogger("cache_targets")
HELP = helps_of(PretrainArguments)


@dataclass
class CacheArguments:
    """The `targets` section of a config file. What `recipes/pretrain.py` has too means the same."""

    dataset: list[str] | None = flag(HELP["dataset"])
    dataset_split: str = flag(HELP["dataset_split"], PretrainArguments.dataset_split)
    phantom_patients: int = flag(HELP["phantom_patients"], PretrainArguments.phantom_patients)
    phantom_snr_db: list[float] | None = flag(HELP["phantom_snr_db"])
    teacher: str = flag(HELP["teacher"], PretrainArguments.teacher)
    teacher_layer: int = flag(HELP["teacher_layer"], PretrainArguments.teacher_layer)
    output_dir: str | None = flag("Folder for the cache. [DATASET-targets, beside the data]")
    min_cosine: float = flag(
        "Mean cosine between the features and what comes back; more takes more bytes.", cache.MIN_COSINE
    )
    sample_images: int = flag("Images that the codec is fitted on, evenly spread over the corpus.", 512)
    images_per_shard: int = flag(
        "Images a file of the cache; also what a killed run loses at most.", cache.IMAGES_PER_SHARD
    )
    per_device_batch_size: int = flag("Images a process and a forward of the teacher.", 32)
    dataloader_num_workers: int = flag("Processes a rank that read and resize images; 0: the rank itself.", 2)

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("No dataset: name a folder, Parquet files or a Hub id with --dataset, or 'demo'.")
        if not 0.5 <= self.min_cosine <= 0.9999:
            raise ValueError(f"min_cosine={self.min_cosine} is outside [0.5, 0.9999]. The nearest valid value: "
                             f"{min(max(self.min_cosine, 0.5), 0.9999)}.")  # fmt: skip
        for name, least in (("sample_images", 1), ("images_per_shard", 1), ("per_device_batch_size", 1),
                            ("dataloader_num_workers", 0), ("phantom_patients", 1)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.phantom_snr_db is not None and len(self.phantom_snr_db) != 2:
            raise ValueError(f"phantom_snr_db={self.phantom_snr_db}: give the lowest and the highest, e.g. 0 10.")


def main():
    started = time.perf_counter()
    sections = {"targets": (CacheArguments, helps_of(CacheArguments))}
    args = CacheArguments(**parse_sections(sections, __doc__.splitlines()[0])["targets"])
    folder = Path(args.output_dir) if args.output_dir else cache.default_folder(args.dataset)
    check_place(folder, args.dataset)
    accelerator = make_sharing_accelerator()
    logging.basicConfig(format="%(message)s", level=logging.INFO if accelerator.is_main_process else logging.ERROR)
    teacher = load_teacher(args.teacher, layer=args.teacher_layer, device=accelerator.device)
    corpus = open_datasets(args, accelerator.is_main_process)
    logger.info("data: %s", corpus.description)

    # ---- whose features, and how they are coded: settled by the main process
    images = TeacherImages(corpus, teacher.image_size)
    held = [None, None]
    fit_started = time.perf_counter()
    if accelerator.is_main_process:
        held = begun(folder, images, teacher, args)
    # Sent, not read from the folder: another machine may not see yet what this one has written.
    meta, codec = broadcast_object_list(held)
    codec = codec.to(accelerator.device)
    fit_s = time.perf_counter() - fit_started

    # ---- shards: those that are there and whole are kept, the others are dealt out
    of = cache.num_shards(len(corpus), args.images_per_shard)
    spans = [range(n * args.images_per_shard, min((n + 1) * args.images_per_shard, len(corpus))) for n in range(of)]
    mine = range(accelerator.process_index, of, accelerator.num_processes)
    whole = [n for n in mine if cache.read_facts(folder / cache.shard_name(n, of), len(spans[n])) is not None]
    due = [n for n in mine if n not in set(whole)]
    if whole:
        logger.info("%d shards are there and whole; %d are to be made by this process", len(whole), len(due))
    bar = tqdm(
        total=sum(len(spans[n]) for n in mine), initial=sum(len(spans[n]) for n in whole), unit="image",
        desc="teacher's features", disable=not accelerator.is_main_process,
    )  # fmt: skip
    batches = iter(loader(images, [i for n in due for i in cut(spans[n], args.per_device_batch_size)], args))
    with ThreadPoolExecutor(usable_cores()) as packers:
        for number in due:
            write(folder / cache.shard_name(number, of), spans[number], batches, teacher, codec, packers, bar)
    bar.close()
    accelerator.wait_for_everyone()

    # ---- what is left behind
    if accelerator.is_main_process:
        for part in folder.glob(".tmp-*"):
            part.unlink()  # of runs that were killed
        metrics = cache.summarize(folder, meta)
        cache.write_meta(folder, meta | metrics)
        total_s = time.perf_counter() - started
        write_json(folder / "results.json", {
            **run_facts(None), "metrics": metrics | meta["codec"] | {"num_processes": accelerator.num_processes},
            "timings": {"fit_s": round(fit_s, 1), "total_s": round(total_s, 1)},
        })  # fmt: skip
        say_goodbye(folder, metrics, args, total_s)
    end_run(accelerator)


def begun(folder: Path, images: TeacherImages, teacher, args: CacheArguments) -> list:
    """Meta and codec of the cache in `folder`, which is begun unless it was."""
    key = cache.cache_key(images.corpus, args.teacher, args.teacher_layer, teacher)
    settings = {name: getattr(args, name) for name in ("min_cosine", "sample_images", "images_per_shard")}
    meta = cache.begin(folder, key, settings)
    if meta is not None:
        return [meta, cache.load_codec(folder)]
    count = len(images.corpus)
    chosen = np.unique(np.linspace(0, count - 1, min(args.sample_images, count)).astype(int)).tolist()
    features = sample_features(images, teacher, chosen, args)
    codec, report = fit_codec(features, square(features.shape[1]), args.min_cosine)
    logger.info(
        "codec: %d of %d components, step %g; on images that it was not fitted on: cosine %.4f, %.1f %% of the variance",
        report["components"], features.shape[2], report["step"], report["sample_cosine"], 100 * report["sample_explained"],
    )  # fmt: skip
    return [cache.found(folder, key, settings, codec, report), codec]


def check_place(folder: Path, datasets: list[str]):
    """Known before anything is done: the cache has a place, and does not lie among the images that it is made of."""
    check_writable(folder)
    for name in datasets:
        inside = Path(name).is_dir() and Path(name).resolve() in (folder.resolve(), *folder.resolve().parents)
        if inside:
            raise ValueError(f"--output_dir {folder} lies in {name}, whose files are images. The usual place: "
                             f"{cache.default_folder(datasets)}.")  # fmt: skip


def cut(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[at : at + size]) for at in range(0, len(indices), size)]


def loader(images: TeacherImages, batches: list[list[int]], args: CacheArguments) -> DataLoader:
    return DataLoader(
        images, batch_sampler=batches, num_workers=args.dataloader_num_workers, collate_fn=list,
        prefetch_factor=4 if args.dataloader_num_workers else None,
    )  # fmt: skip


def sample_features(images: TeacherImages, teacher, chosen: list[int], args: CacheArguments) -> torch.Tensor:
    """Features of a part of the corpus, on the CPU; images that can't be read, or whose features are not finite, are left out."""
    grid, found = teacher_grid(teacher), []
    batches = loader(images, cut(chosen, args.per_device_batch_size), args)
    for batch in tqdm(batches, desc="sample for the codec", unit="batch"):
        if any(pixels is not None for _, pixels, *_ in batch):
            features = features_of(batch, teacher, grid).cpu()
            found.append(features[torch.isfinite(features).flatten(1).all(1)])
    if not sum(map(len, found)):
        raise ValueError(f"none of {len(chosen)} images of {images.corpus.name} gives features that are finite.")
    return torch.cat(found)


def write(path: Path, span: range, batches: Iterator, teacher, codec, packers: ThreadPoolExecutor, bar):
    """One shard: batches from the loader, the teacher, the codec; packing runs beside the teacher's next batch."""
    codes, cosines = {}, {}
    unreadable, source = {}, 0
    while len(codes) < len(span):
        batch = next(batches)
        readable = [item for item in batch if item[1] is not None]
        source += sum(item[4] for item in readable)
        symbols, cosine = quantized(batch, teacher, codec) if readable else ((), ())
        for (index, _, name, _, _), row, near in zip(readable, symbols, cosine):
            if np.isnan(near[0]):
                unreadable[name], codes[index] = "the teacher's features are not finite", None
            else:
                codes[index], cosines[index] = packers.submit(codec.pack, row), near
        for index, _, name, reason, _ in (item for item in batch if item[1] is None):
            unreadable[name], codes[index] = reason, None
        bar.update(len(batch))
    for name, reason in unreadable.items():
        bar.write(f"has no targets: {name}: {reason}", file=sys.stderr)
    packed = [codes[index].result() if codes[index] else b"" for index in span]
    nan = (float("nan"), float("nan"))
    facts = {"unreadable": unreadable, "source_bytes": source}
    cache.write_shard(path, packed, [cosines.get(index, nan) for index in span], facts)


@torch.inference_mode()
def quantized(batch: list[tuple], teacher, codec) -> tuple[np.ndarray, list]:
    """Symbols of the batch's readable images, and of each the mean and the lowest cosine; nan where features are not finite."""
    symbols, cosine = codec.quantize(features_of(batch, teacher, codec.grid))
    return symbols.cpu().numpy(), torch.stack([cosine.mean(1), cosine.amin(1)], 1).tolist()


def say_goodbye(folder: Path, metrics: dict, args: CacheArguments, total_s: float):
    against = f", {metrics['ratio_to_source']:.0%} of the images'" if metrics["ratio_to_source"] else ""
    print(
        f"{metrics['images']:,} images, {len(metrics['unreadable']):,} of them without targets: "
        f"{metrics['bytes_per_image']:,.0f} bytes an image{against}; cosine to the teacher's features "
        f"{metrics['cosine_mean']:.4f} (5th percentile {metrics['cosine_p5']:.4f}, lowest {metrics['cosine_min']:.4f}).\n"
        f"Done in {total_s:.0f} s."
    )
    if metrics["cosine_mean"] < args.min_cosine - 0.003:
        print(f"That is below --min_cosine {args.min_cosine}: the sample was not like the whole. More --sample_images, in "
              "another folder, would mend it.")  # fmt: skip
    print(f"    accelerate launch recipes/pretrain.py --dataset {' '.join(args.dataset)} --target_cache {folder}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, TeacherError) as error:
        sys.exit(f"cache_targets.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on from here.")
