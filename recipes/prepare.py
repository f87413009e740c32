# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Make a corpus: ultrasound files in, de-identified Parquet shards out, with an account of every file and frame.

    python recipes/prepare.py /data/ultrasound --output_dir corpus        # DICOM, images, videos, volumes, zip and tar
    python recipes/prepare.py busi=/data/BUSI.zip /data/clinic --output_dir corpus --exclude /data/my_test_set
    python recipes/prepare.py --list                                      # public data sets, and where to get them
    accelerate launch recipes/pretrain.py --dataset corpus                # train on it

Killed at any moment, the same command goes on where it was. OUTPUT_DIR holds what may leave: data/, manifest.parquet,
README.md, corpus.html, results.json. OUTPUT_DIR-private holds what may not: the key of the hashes, the map from hashes to
paths, and review.html, the pictures before and after, for the person who signs the release. Look at it before you share.
On a cluster: `--engine ray --ray_address auto` (pip install "urfm[ray]").
"""

import json
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from modeling_urfm.data.card import data_card, published_command
from modeling_urfm.data.listing import parse_inputs
from modeling_urfm.data.pages import write_corpus_page
from modeling_urfm.data.phantoms import usable_cores
from modeling_urfm.data.prepare import Corpus, Engine, prepare, settings_that_leave
from modeling_urfm.data.process import Settings
from modeling_urfm.data.public import list_table
from modeling_urfm.data.quality import QualityThresholds
from modeling_urfm.data.sampling import FRAME_SAMPLINGS
from modeling_urfm.data.shards import write_atomically
from modeling_urfm.flags import check_choice, flag, helps_of, parse_sections
from modeling_urfm.hub.results import run_facts


CARD = Path(__file__).resolve().parent.parent / "hub_cards" / "dataset_card.md"


@dataclass
class PrepareArguments:
    """The `corpus` section of a config file."""

    output_dir: str = flag("Folder of the corpus: all that may leave.", "corpus")
    private_dir: str | None = flag("Folder for key, map to paths, review page, unfinished work. [OUTPUT_DIR-private]")
    key_file: str | None = flag("File with the key of the hashes; else URFM_KEY, else one is made in private_dir.")
    frames_per_clip: int = flag("Frames taken of a loop, video or volume that has more; 0: all.", 8)
    frame_sampling: str = flag("Which: 'even'ly spread, or by 'change' between frames.", "even")
    marks: str = flag(
        "Text, calipers and marks inside the scan region: 'inpaint' them, or 'drop' the frame.", "inpaint"
    )
    drop_doppler: bool = flag("Leave out frames with colour over the B-mode picture.", False)
    exclude: list[str] | None = flag(
        "Test sets (files, folders, archives): what equals or nearly equals their images is left out."
    )
    max_size: int = flag("Longest side of the images, in pixels; larger ones are reduced.", 512)
    image_format: str = flag("'jpeg' (quality 95) or 'png' (lossless, twice as large).", "jpeg")
    licence: str = flag("Licence of your own files; public data sets bring theirs.", "unknown")
    validation_share: float = flag("Share of the patients for the split `validation`.", 0.05)
    test_share: float = flag("Share of the patients for the split `test`.", 0.05)
    rows_per_shard: int = flag("Images a Parquet file.", 4096)
    quality: list[str] | None = flag(
        "Thresholds of quality as NAME=VALUE: "
        + ", ".join(f"{f.name} [{f.default}]" for f in fields(QualityThresholds))
        + "."
    )
    review_files: int = flag("Files shown in the private review page, evenly spread over all.", 200)
    reference_regions: str | None = flag("JSON of outlines drawn by hand, to be shown and compared in the review page.")
    engine: str = flag("'local' (all cores of this machine) or 'ray'.", "local")
    ray_address: str | None = flag("Ray cluster, 'auto' for the one that this machine is of; none starts one here.")
    num_workers: int | None = flag("Processes that read files. [all cores]")
    timeout_s: float = flag("Seconds that opening a file, or one frame, may take.", 120.0)
    list: bool = flag("List the public data sets that are known, with licence and source, and end.", False)

    def __post_init__(self):
        for name, choices in (("frame_sampling", FRAME_SAMPLINGS), ("marks", ("inpaint", "drop")),
                              ("image_format", ("jpeg", "png")), ("engine", ("local", "ray"))):  # fmt: skip
            check_choice(f"--{name}", getattr(self, name), choices)
        for name, least in (("frames_per_clip", 0), ("max_size", 32), ("rows_per_shard", 1), ("review_files", 0),
                            ("num_workers", 1), ("timeout_s", 0.1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not least <= value < 10**9:  # neither is `nan`
                raise ValueError(f"--{name} {value}: at least {least}, and a number that can be.")
        if not (0 <= self.validation_share and 0 <= self.test_share and self.validation_share + self.test_share < 1):
            raise ValueError(f"--validation_share {self.validation_share} --test_share {self.test_share}: both from 0, "
                             "together below 1, as something must be left to train on.")  # fmt: skip


def main():
    values = parse_sections(
        {"corpus": (PrepareArguments, helps_of(PrepareArguments))},
        "Make a corpus: ultrasound files in, de-identified Parquet shards out, every file and frame accounted for.",
        positional=("inputs", "Files, folders or archives; a public data set as NAME=PATH (--list)."),
    )
    args = PrepareArguments(**values["corpus"])
    if args.list:
        print(list_table())
        return
    if not values[""]:
        raise ValueError(
            "no INPUT: name files, folders or archives first, as --exclude and --quality take all that follows them. "
            "Example: recipes/prepare.py /data/ultrasound --output_dir corpus"
        )
    inputs = parse_inputs(values[""])
    inputs += parse_inputs(args.exclude or [], "--exclude ", first_exclude=1)
    output_dir = Path(args.output_dir)
    corpus = Corpus(
        output_dir, Path(args.private_dir) if args.private_dir else output_dir.with_name(output_dir.name + "-private"),
        args.validation_share, args.test_share, args.rows_per_shard, args.review_files,
    )  # fmt: skip
    settings = Settings(
        args.frames_per_clip, args.frame_sampling, args.marks, args.drop_doppler, args.max_size, args.image_format,
        args.licence, thresholds(args.quality), reference=reference_outlines(args.reference_regions),
    )  # fmt: skip
    engine = Engine(args.engine, args.num_workers or usable_cores(), args.ray_address, args.timeout_s)

    def write_pages(metrics: dict, timings: dict) -> dict:
        results = run_facts(None) | {
            "settings": settings_that_leave(settings, corpus), "metrics": metrics, "timings": timings,
        }  # fmt: skip
        results["command"] = published_command(results["command"], results["settings"])
        write_atomically(output_dir / "README.md", data_card(CARD, results))
        write_corpus_page(output_dir, results)
        return results

    metrics, timings = prepare(inputs, corpus, settings, engine, write_pages, args.key_file)
    if timings:
        say_what_was_done(corpus, metrics, timings)
    else:
        print(f"{output_dir}/ is complete: {metrics['frames_kept']:,} images. Nothing was done.")


def thresholds(texts: list[str] | None) -> QualityThresholds:
    """`["min_side=64"]` over the defaults."""
    values = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        check_choice("--quality", name, [f.name for f in fields(QualityThresholds)])
        try:
            values[name] = type(getattr(QualityThresholds, name))(value)
            if not values[name] >= 0:
                raise ValueError
        except ValueError:
            raise ValueError(f"--quality {text}: {value!r} is not a number of 0 or more.") from None
    return QualityThresholds(**values)


def reference_outlines(path: str | None) -> dict[str, list]:
    """`{file: {"sha256": ..., "polygon": [[x, y], ...]}}` to polygons by SHA-256."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"--reference_regions {path}: no such file.")
    try:
        return {entry["sha256"]: entry["polygon"] for entry in json.loads(Path(path).read_text()).values()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        form = '{"NAME": {"sha256": "...", "polygon": [[x, y], ...]}}'
        raise ValueError(f"--reference_regions {path} is not of the form {form}: {error}") from error


def say_what_was_done(corpus: Corpus, metrics: dict, timings: dict):
    files = metrics["files"]
    print(
        f"{metrics['inputs']:,} files: {files['kept']:,} kept, {files['partly']:,} partly, {files['rejected']:,} rejected.\n"
        f"{metrics['frames_in']:,} frames: {metrics['frames_kept']:,} kept, {metrics['frames_dropped']:,} dropped"
        + "".join(
            f", {code} {count:,}" for code, count in sorted(metrics["reasons"].items(), key=lambda item: -item[1])
        )
        + f".\nDone in {timings['total_s']:.0f} s. Look at "
        f"{corpus.private_dir}/review.html before you share {corpus.output_dir}/.\n"
        f"    accelerate launch recipes/pretrain.py --dataset {corpus.output_dir}"
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:  # OSError: no space, no permission, no cluster at that address
        sys.exit(f"prepare.py: {error}")
    except KeyboardInterrupt:  # at once: nothing that is under way would be of use
        print("\nStopped. The same command goes on from here.", file=sys.stderr, flush=True)
        os._exit(130)
