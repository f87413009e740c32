# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Bring in weights that exist, strictly, or take URFM's to timm.

    python recipes/convert.py mae_vit_base_patch16_dec768d8b_all_biomedclip_1199.pth --output_dir urfm-base \
        --license apache-2.0 --source_url https://huggingface.co/QingboKang/URFM
    python recipes/convert.py hf-hub:facebook/vit-mae-base --output_dir mae       # a Hub id, or ORG/NAME/FILE
    python recipes/convert.py BiomedCLIP_FOLDER --output_dir biomedclip           # open_clip, timm, transformers
    python recipes/convert.py urfm --to timm --output_dir timm-urfm               # the other way

The layout is found from keys and configs, and every key's fate is shown. What URFM's encoder can't compute is refused by
name; nothing is dropped in silence. Before anything is written, real images go through the source's own library (timm,
transformers, open_clip) and through what was converted: all tokens must agree to 1e-5. The folder holds the model, its
processor, the card, `conversion.json` and `results.json`. Not for clinical use.
"""

import logging
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from modeling_urfm.flags import check_choice, flag, helps_of, parse_sections
from modeling_urfm.hub.conversion import Fate, check_free, convert, write_converted
from modeling_urfm.hub.conversion_to_timm import convert_to_timm
from modeling_urfm.hub.results import run_facts
from modeling_urfm.pretraining.startup import check_writable


@dataclass
class ConvertArguments:
    """The `convert` section of a config file."""

    output_dir: str | None = flag("Folder for the model.")
    to: str = flag("urfm, or timm: the other way, from a URFM folder.", "urfm")
    weights: str | None = flag("ema or raw, of a checkpoint that holds both. [ema]")
    image_size: int | None = flag("Side in pixels to convert to, by interpolating position embeddings. [the source's]")
    num_attention_heads: int | None = flag("Where no config and no usual width tells.")
    images: str | None = flag("Folder of images to compare on. [pydicom's real ultrasound and phantoms]")
    license: str | None = flag("Licence of the weights, such as apache-2.0. [unknown]")
    source_url: str | None = flag("Where the weights come from. [unknown]")

    def __post_init__(self):
        check_choice("--to", self.to, ("urfm", "timm"))
        check_choice("--weights", self.weights, (None, "ema", "raw"))
        if self.output_dir is None:
            raise ValueError("Name a folder for the model with --output_dir.")
        if self.source_url is not None and not self.source_url.startswith(("https://", "http://")):
            raise ValueError(f"--source_url {self.source_url!r} is no address: https://...")
        for name in ("weights", "image_size", "num_attention_heads", "license", "source_url"):
            if self.to == "timm" and getattr(self, name) is not None:
                raise ValueError(f"--{name} is of a conversion to URFM; --to timm takes --images alone.")


def main():
    sections = {"convert": (ConvertArguments, helps_of(ConvertArguments))}
    shown = ("source", "A file, a folder, or a Hub id.")
    given = parse_sections(sections, __doc__.splitlines()[0], positional=shown)
    if len(given[""]) != 1:
        raise ValueError(f"Name one SOURCE; got {len(given[''])}.")
    args, source = ConvertArguments(**given["convert"]), given[""][0]
    output_dir, images = Path(args.output_dir), Path(args.images) if args.images else None
    check_writable(output_dir)
    if images is not None and not images.exists():
        raise FileNotFoundError(f"--images {images}: no such folder.")
    started, facts = time.perf_counter(), run_facts(None)
    check_free(output_dir, to_timm=args.to == "timm")
    if args.to == "timm":
        fates, record = convert_to_timm(source, output_dir, facts | {"timings": {}}, images)
        show(fates, record)
        print(f'Written. To load it:\n  timm.create_model("local-dir:{output_dir}", pretrained=True)')
        return
    for name in ("license", "source_url"):
        if getattr(args, name) is None:
            print(f"warning: --{name} is not given: 'unknown' is recorded.", file=sys.stderr)
    converted = convert(
        source, image_size=args.image_size, weights=args.weights, num_attention_heads=args.num_attention_heads,
        images=images, license=args.license, source_url=args.source_url,
    )  # fmt: skip
    show(converted.fates, converted.record)
    timings = {"convert_s": round(time.perf_counter() - started, 2)}
    write_converted(converted, output_dir, facts | {"timings": timings})
    print(f'Written. To load it:\n  AutoModel.from_pretrained("{output_dir}")')


def show(fates: list[Fate], record: dict):
    """Every key's fate, and how far outputs are apart."""
    for fate in fates:
        print(fate)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in record["keys"].items())
    print(f"\n{record['source']}: {record['layout']}; keys: {counts}")
    for note in record["notes"]:
        print(f"  {note}")
    parity, pixels = record["parity"], record["preprocessing_parity"]
    print(
        f"parity with {parity['against']} on {parity['images']} images, all tokens, {parity['dtype']}: max "
        f"{parity['max_abs']:.1e}, mean {parity['mean_abs']:.1e} (allowed: {parity['tolerance']:.0e})"
    )
    if pixels and pixels["mean_abs"] is not None:
        print(
            f"preprocessing, in normalised units on {pixels['images']} images: max {pixels['max_abs']:.1e}, mean "
            f"{pixels['mean_abs']:.1e} (allowed: {pixels['tolerance']})"
        )


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"convert.py: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. Nothing was written.")
