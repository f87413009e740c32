# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Features of every image of a corpus by a frozen encoder, as Parquet, and the nearest cases to an image.

    python recipes/embed.py --encoder urfm --dataset corpus --output_dir features         # CPU or GPU
    accelerate launch --multi_gpu --num_processes 8 recipes/embed.py --encoder urfm --dataset corpus
    python recipes/embed.py --output_dir features --query IMAGE --top 8                   # nothing is computed again
    python recipes/embed.py --encoder open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 \\
        --dataset corpus --kind tokens --output_dir tokens

`--dataset` is a folder of images and DICOM files, Parquet files, a corpus of recipes/prepare.py, or a Hub id; encoders are
those of `modeling_urfm.evaluation.encoders`. Killed at any moment, the same command goes on where it was, on any number of
processes, and gives the same bytes. `features-*.parquet` has `row`, `id`, what the corpus tells (organ, patient, ...) and
`embedding`, float32, or float16 of all tokens. Images that can't be read have no row; `results.json` lists them. A query
prints a line of JSON an image, nearest first, and draws `nearest.png`. Not for clinical use.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modeling_urfm.data.corpus import load_corpus
from modeling_urfm.evaluation.encoders import KINDS, FrozenEncoder, load_encoder
from modeling_urfm.evaluation.feature_shards import IMAGES_PER_SHARD, embed_corpus, nearest, open_images, read_meta
from modeling_urfm.evaluation.report_plots import plot_cases
from modeling_urfm.flags import check_choice, flag, helps_of, parse_sections
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.pretraining.engine import end_run, make_sharing_accelerator
from modeling_urfm.pretraining.startup import check_writable
from modeling_urfm.pretraining.teacher import faster_dtype


logger = logging.getLogger("embed")


@dataclass
class EmbedArguments:
    """The `embed` section of a config file."""

    encoder: str | None = flag("The encoder: a URFM folder or Hub id, transformers:ID, timm:NAME, open_clip:NAME, "
                               "random:SPEC. [urfm; of a query, the one that made the features]")  # fmt: skip
    dataset: str | None = flag("A folder of images, Parquet files, a corpus or a Hub id; none: only a query.")
    dataset_split: str = flag("Which part of a data set that has several.", "train")
    output_dir: str = flag("Folder for the features.", "features")
    kind: str = flag("pooled (the encoder's own), cls, mean (of the patches) or tokens (all patches).", "pooled")
    image_size: int | None = flag("Side in pixels that the encoder gets. [its own]")
    dtype: str | None = flag("float32 or bfloat16. [bfloat16 where the processor has it]")
    per_device_batch_size: int | None = flag("Images a process and a forward. [32; on a GPU 128]")
    images_per_shard: int = flag("Images a file; also what a killed run loses at most.", IMAGES_PER_SHARD)
    num_workers: int | None = flag("Threads a process that read and resize images. [its cores]")
    query: str | None = flag("An image or DICOM file: which images are nearest to it?")
    top: int = flag("Nearest images of a query.", 8)

    def __post_init__(self):
        check_choice("--kind", self.kind, KINDS)
        check_choice("--dtype", self.dtype, (None, "float32", "bfloat16"))
        if not (self.dataset or self.query):
            raise ValueError("Nothing to do: name images with --dataset, or an image with --query.")
        for name in ("image_size", "per_device_batch_size", "images_per_shard", "num_workers", "top"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1.")


def main():
    sections = {"embed": (EmbedArguments, helps_of(EmbedArguments))}
    args = EmbedArguments(**parse_sections(sections, __doc__.splitlines()[0])["embed"])
    folder = Path(args.output_dir)
    check_writable(folder)
    accelerator = make_sharing_accelerator()
    logging.basicConfig(format="%(message)s", level=logging.INFO if accelerator.is_main_process else logging.ERROR)
    encoder = None
    if args.dataset:
        dtype = getattr(torch, args.dtype) if args.dtype else faster_dtype(accelerator.device)
        encoder = load_encoder(
            args.encoder or "urfm", image_size=args.image_size, device=accelerator.device, dtype=dtype
        )
        embed(encoder, args, folder, accelerator)
    if args.query and accelerator.is_main_process:
        query(encoder, args, folder, accelerator.device)
    end_run(accelerator)


def embed(encoder: FrozenEncoder, args: EmbedArguments, folder: Path, accelerator):
    """Features of the whole data set into `folder`, and `results.json`."""
    started = time.perf_counter()
    dataset = {"name": args.dataset, "split": args.dataset_split}
    corpus = open_images(**dataset, progress=accelerator.is_main_process)
    logger.info(
        "data: %s\nencoder: %s, %d x %d pixels, %s", corpus.description, encoder.name, *encoder.size, encoder.dtype
    )
    opened = time.perf_counter()
    left_out = dict(corpus.left_out) | embed_corpus(
        encoder, corpus, folder, dataset=dataset, kind=args.kind, images_per_shard=args.images_per_shard,
        batch_size=args.per_device_batch_size or (128 if encoder.device.type == "cuda" else 32),
        num_workers=args.num_workers, accelerator=accelerator,
    )  # fmt: skip
    if accelerator.is_main_process:
        now, images = time.perf_counter(), len(corpus) + len(corpus.left_out)
        metrics = {"images": images, "embedded": images - len(left_out), "hidden_size": encoder.hidden_size,
                   "left_out": left_out, "meta": read_meta(folder)}  # fmt: skip
        timings = {"open_s": round(opened - started, 2), "embed_s": round(now - opened, 2)}
        write_json(folder / "results.json", {**run_facts(None), "metrics": metrics, "timings": timings})
        for name, reason in list(left_out.items())[:10]:
            logger.warning("left out: %s: %s", name, reason)
        print(f"{metrics['embedded']:,} of {images:,} images in {folder} after {now - started:.0f} s.")


def query(encoder: FrozenEncoder | None, args: EmbedArguments, folder: Path, device):
    """The nearest images to `--query`: lines of JSON, also in `nearest.jsonl`, and `nearest.png`."""
    meta = read_meta(folder)
    if encoder is None:
        spec, options = args.encoder or meta["encoder"], {"device": device, "dtype": getattr(torch, meta["dtype"])}
        encoder = load_encoder(spec, image_size=args.image_size, **options)
        if list(encoder.size) != meta["image_size"]:  # only then, as a size that is named changes the fingerprint
            encoder = load_encoder(spec, image_size=meta["image_size"][0], **options)
    if encoder.fingerprint != meta["encoder_fingerprint"]:
        raise ValueError(f"The features in {folder} were made by {meta['encoder']} as it was then; {encoder.name} is another "
                         "encoder now (weights, preprocessing or number format).")  # fmt: skip
    pixels = load_corpus(args.query, progress=False).pixels(0)
    batch = encoder.prepare.normalize(encoder.prepare.shrink(pixels)[None])
    found = nearest(folder, encoder.features(batch, meta["kind"])[0].cpu().numpy(), args.top)
    lines = [json.dumps(line) for line in found]
    print("\n".join(lines))
    (folder / "nearest.jsonl").write_text("\n".join(lines) + "\n")
    images, titles = [pixels.numpy()], [f"query\n{Path(args.query).name}"]
    try:
        corpus = open_images(**meta["dataset"], progress=False)
        if corpus.fingerprint != meta["corpus_fingerprint"]:
            raise ValueError("its images have changed since")
        for line in found:
            images.append(np.asarray(corpus.pixels(line["row"])))
            titles.append(f"{line['rank']}: {line['similarity']:.3f} {line.get('organ', '')}\n{line['id']}")
    except (ValueError, OSError) as error:
        logger.warning("no picture of the nearest images: %s: %s", meta["dataset"]["name"], error)
        return
    plot_cases(images, titles, folder / "nearest.png")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"embed.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on from here.")
