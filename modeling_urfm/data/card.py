# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The data-set card: README.md of a corpus, filled from `results.json` alone.

A card is published, so it shows counts, codes and the vocabularies of this package, and of the command and the settings
only what can't be a path (`published_command`, `published_settings`). No clock and no timing enters it: the same inputs
give the same bytes.
"""

import re
import shlex
from collections import Counter
from pathlib import Path

from .reasons import REASONS
from .shards import SPLITS


# Ids that the Hub knows (huggingface.co/docs/hub/repositories-licenses), as far as data sets of images use them.
HUB_LICENCES = frozenset(
    "apache-2.0 mit bsd-2-clause bsd-3-clause cc cc0-1.0 pddl odbl odc-by cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "gpl-3.0 c-uda cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0".split()
)
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
         (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip
# Settings whose value is a place, whatever it looks like.
PLACES = re.compile(r"(^|_)(dir|file|files|path|paths|input|inputs|address|key|exclude|name|command)$")
CHOICE = re.compile(r"[a-z][a-z0-9_-]{0,31}")
ENTRY_POINTS = ("python", "python3", "accelerate", "launch", "ray")


def data_card(template_path: Path, results: dict, name: str = "FOLDER") -> str:
    """The text of README.md: YAML for the Hub and for `datasets.load_dataset`, then the card.

    Args:
        template_path: `hub_cards/dataset_card.md`, a Jinja template.
        results: the content of `results.json`. What it lacks is shown as "not measured".
        name: id on the Hub, once it has one.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    from .deidentify import POLICY

    metrics = results.get("metrics", {})
    splits = existing_splits(results)
    rows = sum(part["rows"] for part in splits.values())
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    metadata = DatasetCardData(
        **hub_licence(metrics.get("by_licence", {})),
        pretty_name="Ultrasound corpus",
        task_categories=["image-feature-extraction"],
        size_categories=[size_category(rows)],
        tags=["ultrasound", "medical", "medical-imaging", "b-mode", "de-identified", "urfm"],
        # A split that has no file would make load_dataset fail.
        configs=[{"config_name": "default", "data_files": files}] if files else None,
    )
    card = DatasetCard.from_template(
        metadata,
        template_path=str(template_path),
        name=name,
        metrics=metrics,
        rows=rows,
        splits=splits,
        citations=citations(metrics.get("by_source", {})),
        command=published_command(results.get("command", ""), results.get("settings", {})),
        settings=published_settings(results.get("settings", {})),
        versions=results.get("versions", {}),
        meaning=REASONS,
        policy=POLICY,
        organ_name=organ_name,
        cell=markdown_cell,
        number=number,
        largest_first=largest_first,
    )
    return str(card).rstrip() + "\n"


def existing_splits(results: dict) -> dict[str, dict]:
    """`metrics.splits` without those that have no row, in the usual order."""
    splits = results.get("metrics", {}).get("splits", {})
    return {split: splits[split] for split in SPLITS if splits.get(split, {}).get("rows")}


def hub_licence(by_licence: dict[str, int]) -> dict[str, str]:
    """`license` (and `license_name`) of the card's YAML: one licence that the Hub knows, else "other"."""
    named = [licence for licence, rows in by_licence.items() if rows]
    if len(named) == 1:
        key = re.sub(r"[\s_]+", "-", named[0].strip().lower())
        key = {"cc0": "cc0-1.0", "public-domain": "cc0-1.0"}.get(key, key)
        if key in HUB_LICENCES:
            return {"license": key}
        return {"license": "other", "license_name": "not-stated" if key in ("", "unknown") else "see-the-card"}
    return {"license": "other", "license_name": "several-see-the-card" if named else "not-stated"}


def size_category(rows: int) -> str:
    """The Hub's size class of a data set."""
    return next((name for limit, name in SIZES if rows < limit), "n>1B")


def published_command(command: str, settings: dict | None = None) -> str:
    """`command` without what may name a person: the flags stay, and the values that `published_settings` holds.

    All else becomes "...", numbers too: a folder may be called 19750312. "INPUT" stands for an input already.
    """
    known = {key.rsplit(".", 1)[-1]: str(value) for key, value in published_settings(settings or {}).items()}
    shown, flag, script = [], "", False
    try:
        words = shlex.split(command)
    except ValueError:  # an unclosed quote
        words = []
    for word in words:
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--[a-z][a-z_-]*", name) and "--" not in words[: len(shown)]:
            flag = name.lstrip("-").replace("-", "_")
            shown.append(word if not equals or known.get(flag) == value else f"{name}=...")
            continue
        if not script and word.endswith(".py"):  # the recipe itself, not the folder that it was started from
            shown, script = [*shown, f"recipes/{Path(word).name}"], True
        elif word == "INPUT" or known.get(flag) == word or (not script and word in ENTRY_POINTS):
            shown.append(word)
        elif shown[-1:] != ["..."]:
            shown.append("...")
        flag = ""
    return " ".join(shown)


def published_settings(settings: dict) -> dict[str, object]:
    """Numbers, switches and choices of `settings`, those of a group as "group.name"; never a place or free text."""
    shown = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            shown |= {f"{key}.{name}": inner for name, inner in published_settings(value).items()}
        elif PLACES.search(key):
            continue
        elif value is None or isinstance(value, (bool, int, float)):
            shown[key] = value
        elif isinstance(value, str) and CHOICE.fullmatch(value):
            shown[key] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
            shown[key] = list(value)
    return shown


def citations(by_source: dict[str, int]) -> list[dict[str, str]]:
    """Title, licence, address and citation of every public data set among the sources, in the table's order."""
    from .public import PUBLIC

    return [
        {
            name: str(getattr(public, name, None) or "unknown")
            for name in ("key", "title", "licence", "where", "citation")
        }
        for key, public in PUBLIC.items()
        if by_source.get(key)
    ]


def organ_name(key: str) -> str:
    """What a person calls the organ: "breast" of the key "breast"; a key that the taxonomy lacks as it is."""
    from .organs import ORGANS

    return ORGANS[key].name if key in ORGANS else str(key)


def number(value: object) -> str:
    """1234567 as "1,234,567"; nothing as "not measured"."""
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def largest_first(counts: dict[str, int] | None) -> list[tuple[str, int]]:
    """Items by falling count, equal ones by name, "unknown" last; no name is "unknown" too."""
    named: Counter = Counter()
    for name, count in (counts or {}).items():
        named[str(name or "unknown")] += count
    return sorted(named.items(), key=lambda item: (item[0] == "unknown", -item[1], item[0]))


def markdown_cell(value: object) -> str:
    """Text that a file's header brought, so that it stays text in a Markdown table, on one line."""
    text = " ".join(str("" if value is None else value).split()) or "unknown"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", text)
