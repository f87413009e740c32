# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Publish what a recipe left behind on the Hub: an encoder, a fine-tuned model or adapter, a corpus, or the Space.

    python recipes/publish.py urfm --hub_model_id ORG/urfm-base --dry_run                 # every file, and the card; no network
    hf auth login
    python recipes/publish.py urfm --hub_model_id ORG/urfm-base                           # private
    python recipes/publish.py urfm --hub_model_id ORG/urfm-base --pretraining_model_id ORG/urfm-base-pretraining \\
        --tag v1 --public --license apache-2.0 --carbon_intensity 350
    python recipes/publish.py lesion-lora --hub_model_id ORG/urfm-lesion --base_model ORG/urfm-base
    python recipes/publish.py corpus --hub_model_id ORG/ultrasound-corpus
    python recipes/publish.py hub_cards/space --hub_model_id ORG/urfm-space --model urfm

What kind of folder it is, is found out. The repository is private unless --public is given. Only what differs from what is
there is sent, and everything changes in one commit: stopped, cut off or refused at any moment, the repository holds the old
version or the new one, and the same command goes on. A tag is never moved. Checkpoints, predictions, traces and pictures of
cases stay here; what leaves names no place on this machine. `OUTPUT_DIR/published.json` says what was published where.
"""

import json
import logging
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from modeling_urfm.flags import flag, helps_of, parse_sections
from modeling_urfm.hub.publishing import Published, publish
from modeling_urfm.hub.publishing_errors import check_repo_id, check_tag
from modeling_urfm.hub.results import write_json
from modeling_urfm.hub.saving import as_bytes
from modeling_urfm.hub.scrub import URL
from modeling_urfm.hub.staging import Publication, kind_of, stage


@dataclass
class PublishArguments:
    """The `publish` section of a config file."""

    hub_model_id: str | None = flag("ORG/NAME on the Hub; of a corpus or the Space, too.")
    pretraining_model_id: str | None = flag("ORG/NAME for the same weights with their decoder, to go on pre-training.")
    base_model: str | None = flag("ORG/NAME of the base of an adapter or a fine-tuned model. [as recorded]")
    model: str | None = flag("Folder of the model that goes with the Space.")
    tag: str | None = flag("Name for this version. [none]")
    public: bool = flag("Everybody may see a repository that is made now.", False)
    license: str | None = flag("Licence of the weights, as the Hub writes it. [as recorded]")
    source_url: str | None = flag("Where converted weights come from. [as recorded]")
    carbon_intensity: float | None = flag(
        "Of the electricity, in g CO2 per kWh: the card then says what training emitted."
    )
    max_shard_size: str = flag("Weights are cut into files of at most this.", "5GB")
    dry_run: bool = flag("Show every file and the card; nothing is sent.", False)

    def __post_init__(self):
        if not self.hub_model_id:
            raise ValueError("--hub_model_id ORG/NAME is needed: where it is published (for --dry_run, too).")
        for name in (self.hub_model_id, self.pretraining_model_id, self.base_model):
            if name is not None:
                check_repo_id(name)
        if (self.pretraining_model_id or "").lower() == self.hub_model_id.lower():  # the Hub doesn't tell them apart
            raise ValueError("--pretraining_model_id must differ from --hub_model_id: each is a repository of its own.")
        check_tag(self.tag)
        if self.carbon_intensity is not None and not 0 <= self.carbon_intensity < 5000:
            raise ValueError(f"--carbon_intensity {self.carbon_intensity} is not in g CO2 per kWh (0 to 5000).")
        if self.source_url is not None and not URL.fullmatch(self.source_url):
            raise ValueError(f"--source_url {self.source_url!r} is no address. It begins with https://.")
        as_bytes(self.max_shard_size)


def main():
    sections = {"publish": (PublishArguments, helps_of(PublishArguments))}
    help_text = "The folder that a recipe left behind (OUTPUT_DIR)."
    values = parse_sections(sections, __doc__.splitlines()[0], positional=("folder", help_text))
    args, folders = PublishArguments(**values["publish"]), values[""]
    if len(folders) != 1:
        raise ValueError(
            f"One folder is published at a time, got {len(folders)}: publish.py OUTPUT_DIR --hub_model_id ..."
        )
    logging.basicConfig(format="%(message)s")
    folder = Path(folders[0])
    with tempfile.TemporaryDirectory(prefix="urfm-publish-") as staging:
        publications = stage_all(folder, Path(staging), args)
        if args.dry_run:
            for publication in publications:
                show(publication, args)
            return
        for publication in publications:
            notes(publication)
            published = publish(publication, private=not args.public, tag=args.tag)
            remember(folder / "published.json", publication, published)
            tell(publication, published)


def stage_all(folder: Path, staging: Path, args: PublishArguments) -> list[Publication]:
    """What goes to `--pretraining_model_id`, if asked for, and to `--hub_model_id`: all checked before any is sent."""
    options = {"license": args.license, "source_url": args.source_url, "carbon_intensity": args.carbon_intensity,
               "max_shard_size": args.max_shard_size, "base_model": args.base_model}  # fmt: skip
    publications = []
    if args.pretraining_model_id:
        kind = kind_of(folder)
        if kind != "encoder":
            raise ValueError(
                f"--pretraining_model_id is for a folder of recipes/pretrain.py; {folder} is of the kind {kind}."
            )
        publications.append(
            stage(folder, args.pretraining_model_id, staging / "pretraining", kind="pretraining", **options)
        )
    model = Path(args.model) if args.model else None
    return [*publications, stage(folder, args.hub_model_id, staging / "main", model=model, **options)]


def show(publication: Publication, args: PublishArguments):
    """The dry run: what it is, every file with its size, the notes and the card."""
    sizes = {name: path.stat().st_size for name, path in publication.files.items()}
    seen_by = "public" if args.public else "private"
    tag = f", tag {args.tag}" if args.tag else ""
    print(
        f"{publication.repo_id}: {publication.repo_type} repository ({publication.kind}), {seen_by} if it is made now{tag}"
    )
    for name, size in sizes.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files")
    notes(publication)
    print(
        f"----- README.md\n{publication.files['README.md'].read_text(encoding='utf-8').rstrip()}\n----- nothing was sent\n"
    )


def notes(publication: Publication):
    for note in publication.notes:
        print(f"note: {note}", file=sys.stderr)


def remember(path: Path, publication: Publication, published: Published):
    """Add to `published.json`: repository to commit, tag, time and files. It stays on this machine."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the first time; or not ours, or damaged: the Hub knows better
        known = {}
    entry = {"kind": publication.kind, "repo_type": publication.repo_type, **asdict(published),
             "when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "files": list(publication.files)}  # fmt: skip
    write_json(path, (known if isinstance(known, dict) else {}) | {publication.repo_id: entry})


def tell(publication: Publication, published: Published):
    """What was sent, and the lines that load it: the first of its card."""
    if published.sent or published.removed:
        counts = {"sent": published.sent, "unchanged": published.unchanged, "removed": published.removed}
        what = "files " + ", ".join(f"{name} {len(files)}" for name, files in counts.items())
    else:
        what = "nothing had changed, nothing was sent"
    print(
        f"{published.url}: commit {published.commit[:8]}"
        + (f", tag {published.tag}" if published.tag else "")
        + f"; {what}."
    )
    card = publication.files["README.md"].read_text(encoding="utf-8")
    if block := re.search(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE):
        print(f"\n{block[1].rstrip()}")
    if published.tag and publication.repo_type != "space":
        load = "load_dataset" if publication.repo_type == "dataset" else "from_pretrained"
        print(f'\n# this very version: {load}(..., revision="{published.tag}")')


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"publish.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The repository holds the old version or the new one; the same command goes on from here.")
