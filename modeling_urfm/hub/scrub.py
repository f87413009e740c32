# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a run recorded, without what could name a patient, a user or a machine.

By allow-lists: numbers and switches leave, text leaves only from fields whose words are this package's own, or the labels
that a model must know. File names, folders, free text and what an error said of a file stay behind; of left-out images
only how many, and which of a few known reasons.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..data.card import published_command
from ..data.shards import COLUMNS


# Text that these fields may hold is made by the package, or is a choice among its own words.
WORDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9 +,.:_-]{0,47}")
TEXT_METRICS = ("task", "method", "engine", "device", "dataset_fingerprint", "split_fingerprint", "layout")
TEXT_SETTINGS = (
    "task", "method", "class_weights", "augment", "mixed_precision", "teacher_normalize", "dataset_split", "report_to",
    "balance_by",
)  # fmt: skip
# A key that no file brought: letters of either case only where a metric has them.
KEY = re.compile(r"[a-z][A-Za-z0-9_@-]{0,47}")
# Tables whose keys are the package's own; of all others a file may have brought the keys.
TABLES = ("train", "validation", "test", "parity", "keys")
NAMED = ("left_out", "unreadable", "files_beside", "notes", "dataset", "cases", "ids", "history", "names")
# An address that is safe in Markdown.
URL = re.compile(r"https?://[\w.~:/?#@!$&*+,;=%-]+")
VERSION = re.compile(r"\d[\w.+!-]{0,47}")
DIGEST = re.compile(r"[0-9a-f]{8,64}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
# Data sets that are made and not read, so that their names say nothing of a place.
MADE = re.compile(r"demo|phantoms:[a-z_]+(\?[a-z_]+=[\w.,-]+(&[a-z_]+=[\w.,-]+)*)?")
# What is said of an image that was left out: the first that is found in the text. All else is "another reason".
REASONS = (
    ("no regular file", "no regular file"), ("empty", "empty"), ("encrypted", "encrypted"), ("archive", "an archive"),
    ("truncated", "truncated"), ("not ultrasound", "not ultrasound"), ("without an image", "no image in it"),
    ("begins like none", "damaged"), ("damaged", "damaged"), ("too many", "too large"), ("more memory", "too large"),
    ("cannot be opened", "cannot be opened"), ("cannot be decoded", "cannot be decoded"), ("no decoder", "no decoder"),
    ("equal byte for byte", "a copy of another"), ("copy of", "a copy of another"), ("label", "without a usable label"),
    ("mask", "without a usable mask"), ("no image", "no image in it"), ("folder", "in no folder that is read"),
)  # fmt: skip
# Beginnings of notes of a labelled data set, up to where names may follow.
NOTES = re.compile(
    r"phantoms: images from a model of how ultrasound arises, of no patient"
    r"|split cut by patient, seed \d+: (train|validation|test|\d+ ?%|[, ])+"
    r"|only (train|validation|test) is given: all sides were cut from it"
    r"|\d+ images have no patient id: each of them counts as one patient"
    r"|no test side is given: the given validation is tested"
    r"|validation cut from train by patient, seed \d+: \d+ ?%"
    r"|frames of one source \(a video or an image\) count as one patient"
    r"|\d+ images that are equal byte for byte"
)
# A home or a place of a machine, in any text; the last guard, behind the allow-lists.
PLACE = re.compile(
    r"""(?<![\w./:-])(?:~(?=/)|/(?:home|Users|root|tmp|var|mnt|media|data|scratch|work|workspace|srv|opt|nfs|gpfs|lustre|private|"""
    r"""net|export|cluster|storage|projects?|volumes?|datasets?|cache|run|usr|etc|dev|vol\w*|disk\w*|fs\w*)(?=[/"'\s)]))/?[^\s"')|]*"""
    r"""|(?<![A-Za-z])[A-Za-z]:\\[^\s"']*|\\\\[\w.-]+\\[^\s"']*|file://\S*"""
)


def public_results(results: dict, settings: dict | None = None) -> dict:
    """`results.json` of pre-training, fine-tuning or conversion as it leaves.

    Args:
        results: as `hub.results.write_json` wrote it. What it lacks is lacking in what is returned.
        settings: of `public_settings`; values of the command that are among them are shown.
    """
    metrics = results.get("metrics") or {}
    shown = {
        "command": published_command(str(results.get("command", "")), settings or {}),
        "versions": public_versions(results.get("versions")),
        "seed": results.get("seed") if is_number(results.get("seed")) else None,
        "metrics": public_metrics(metrics),
        "timings": numbers(results.get("timings") or {}),
    }
    for name in ("history", "evaluations"):
        if isinstance(results.get(name), list):
            shown[name] = numbers(results[name])
    return shown


def public_metrics(metrics: dict) -> dict:
    """Numbers; the package's own words; labels; and of what was left out the reasons, counted."""
    labels = metrics.get("label_names") if isinstance(metrics.get("label_names"), list) else []
    shown = {}
    for name, value in metrics.items():
        if name == "label_names":
            shown[name] = [str(label) for label in labels]
        elif name == "positive_label":
            shown[name] = value if value in labels else None
        elif name in ("left_out", "unreadable"):
            shown[name] = counts_by_reason(value)
        elif name == "notes":
            shown[name] = public_notes(value)
        elif name == "dataset":
            shown[name] = public_dataset(value)
        elif name in NAMED:
            continue
        elif name in TEXT_METRICS and isinstance(value, str):
            shown |= {name: value} if WORDS.fullmatch(value) else {}
        elif KEY.fullmatch(name) and (name in TABLES or not isinstance(value, dict)):
            kept = numbers(value, labels)
            shown |= {name: kept} if kept is not None or value is None else {}
    return shown


def public_conversion(content: dict) -> dict:
    """`conversion.json` as it leaves: numbers, words, hashes and ids, and no name of a local file."""
    shown = {}
    for name, value in content.items():
        if not re.fullmatch(r"[a-z][A-Za-z0-9_@ -]{0,47}", str(name)):
            continue
        if isinstance(value, dict):
            shown[name] = public_conversion(value)
        elif is_number(value) or value is None:
            shown[name] = value
        elif isinstance(value, str) and _may_be_told(name, value):
            shown[name] = value
        elif isinstance(value, (list, tuple)) and all(is_number(v) for v in value):
            shown[name] = list(value)
    return shown


def _may_be_told(name: str, value: str) -> bool:
    if name in ("source_url", "url"):
        return bool(URL.fullmatch(value))
    if name in (
        "source",
        "source_file",
        "file",
        "folder",
        "path",
        "output_dir",
        "images",
        "command",
        "declared_architecture",
    ):
        return value.startswith(("hf-hub:", "https://")) and find_place(value) is None
    return bool(WORDS.fullmatch(value) or DIGEST.fullmatch(value))


def counts_by_reason(lines: Iterable[str] | dict[str, str] | None) -> dict[str, int]:
    """How many were left out for each of the known reasons, of lines "NAME: reason" or a table of reasons by name.

    >>> counts_by_reason(["anna/1.dcm: damaged DICOM header: at /data/anna", "a.png: the file is empty"])
    {'damaged': 1, 'empty': 1}
    """
    if isinstance(lines, dict) and all(isinstance(count, int) for count in lines.values()):  # counted already
        known = {reason for _, reason in REASONS}
        counts: Counter = Counter()
        for reason, count in lines.items():
            counts[reason if reason in known else "another reason"] += count
        return dict(sorted(counts.items()))
    texts = list(lines.values()) if isinstance(lines, dict) else [str(line).partition(": ")[2] for line in lines or ()]
    return dict(sorted(Counter(_reason(str(text)) for text in texts).items()))


def _reason(text: str) -> str:
    return next((reason for part, reason in REASONS if part in text), "another reason")


def public_notes(notes: Iterable[str] | None) -> list[str]:
    """Notes of a labelled data set that are the package's own words, without the names that may follow them."""
    found = [NOTES.match(str(note)) for note in notes or ()]
    return [match[0].rstrip(" ,") for match in found if match]


def public_dataset(name: object) -> str | None:
    """The name of a data set that is made here; None for all else, since a folder may be called after a patient."""
    return name if isinstance(name, str) and MADE.fullmatch(name) else None


def public_settings(settings: dict) -> dict:
    """Numbers, switches and the package's own words of a run's settings; never a place."""
    shown = {}
    for name, value in settings.items():
        if not KEY.fullmatch(str(name)):
            continue
        if value is None or is_number(value):
            shown[name] = value
        elif isinstance(value, (list, tuple)) and all(is_number(v) for v in value):
            shown[name] = list(value)
        elif name in TEXT_SETTINGS:
            words = value if isinstance(value, (list, tuple)) else [value]
            if all(isinstance(word, str) and re.fullmatch(r"[a-z][a-z0-9_.=-]{0,47}", word) for word in words):
                if name != "balance_by" or all(word in COLUMNS for word in words):
                    shown[name] = value
    return shown


def find_place(text: str, also: Iterable[Path] = ()) -> str | None:
    """A path of some machine in `text`, or None. `also`: folders whose absolute path is looked for."""
    for folder in also:
        if len(folder.parts) > 1 and str(folder) in text:
            return str(folder)
    found = PLACE.search(text)
    return found[0] if found else None


def check_parquet(path: Path) -> None:
    """Refuse a table of a corpus with a column that is on no list, or with names of files in its cells.

    Raises:
        ValueError: it has, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..data.assemble import EXCLUSIONS
    from ..data.shards import COLUMNS, MANIFEST

    allowed = {"manifest.parquet": MANIFEST.names, "exclusions.parquet": EXCLUSIONS.names}.get(path.name, list(COLUMNS))
    try:
        file = pq.ParquetFile(path)
        extra = sorted(set(file.schema_arrow.names) - set(allowed))
        if extra:
            raise ValueError(f"{path} has columns that no corpus has: {', '.join(extra)}. They don't leave.")
        metadata = sorted(set(file.schema_arrow.metadata or {}) - {b"huggingface"})
        if metadata:
            raise ValueError(
                f"{path}: its header holds {metadata[0].decode(errors='replace')!r}, which does not leave."
            )
        if "image" in file.schema_arrow.names:
            for group in range(file.num_row_groups):
                cells = file.read_row_group(group, columns=["image.path"]).column(0).combine_chunks()
                if cells.field("path").null_count != len(cells):
                    raise ValueError(f"{path}: cells of `image` hold names of files. recipes/prepare.py writes none.")
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from error


def is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))


def public_versions(versions: object) -> dict:
    if not isinstance(versions, dict):
        return {}
    return {
        name: value
        for name, value in versions.items()
        if KEY.fullmatch(str(name)) and (value is None or (isinstance(value, str) and VERSION.fullmatch(value)))
    }


def numbers(value, labels: Iterable[str] = ()):
    """Numbers, None, and lists and flat dictionaries of them; None where nothing of it may leave."""
    if value is None or is_number(value):
        return value
    if isinstance(value, dict):
        kept = {}
        for name, part in value.items():
            own = KEY.fullmatch(str(name)) or any(str(name).endswith(f"_{label}") for label in labels)
            if own and name not in NAMED and not isinstance(part, (str, dict)):
                kept[name] = numbers(part, labels)
        return kept
    if isinstance(value, (list, tuple)):
        kept = [numbers(part, labels) for part in value if not isinstance(part, str)]
        return kept if kept or not value else None
    return None
