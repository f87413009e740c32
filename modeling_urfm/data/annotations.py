# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""An annotation of one file of a public data set, and the tools by which importers find and read side files."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any


Read = Callable[[str], bytes]

LABEL_MAP = "label-map"

_IMAGE_ENDS = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".dcm"),
    *(".avi", ".mp4", ".m4v", ".mov", ".mpeg", ".mpg", ".mkv", ".webm", ".wmv"),
    *(".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"),
)


@dataclass(frozen=True)
class Annotation:
    """
    Attributes:
        organ: a key of `organs.ORGANS`, or None where the data set doesn't say.
        label: one of the data set's `labels`, or None.
        patient: the data set's own number of the patient (to be hashed), or None: the file stands for its patient.
        view: one of the data set's `views`, or None.
        skip: a code of `reasons.REASONS` when the file is no image to keep, else None.
        licence: of this image, where it isn't the data set's.
    """

    organ: str | None = None
    label: str | None = None
    patient: str | None = None
    view: str | None = None
    skip: str | None = None
    licence: str | None = None


def is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGE_ENDS)


def is_leftover(name: str) -> bool:
    """Written by macOS beside every file that it zips: of an image's name, but no image."""
    path = PurePosixPath(name)
    return path.name.startswith("._") or "__MACOSX" in path.parts


def image_paths(names: Iterable[str]) -> list[tuple[str, PurePosixPath]]:
    """(name, its path in lower case) of every file that can be an image."""
    return [(n, PurePosixPath(n.lower())) for n in names if is_image(n) and not is_leftover(n)]


def find_side_files(names: Iterable[str], ending: str) -> list[str]:
    """Files whose path ends in these parts, whatever the case; the ones nearest to the top first."""
    parts = PurePosixPath(ending.lower()).parts
    hits = [n for n in names if PurePosixPath(n.lower()).parts[-len(parts) :] == parts and not is_leftover(n)]
    return sorted(hits, key=lambda n: (n.count("/"), n))


def misfit(title: str, missing: str, layout: str) -> ValueError:
    return ValueError(f"this doesn't look like {title}: {missing}. Expected, under any folder: {layout}")


def complete(names: Sequence[str], found: dict[str, Annotation], title: str, layout: str) -> dict[str, Annotation]:
    """`found`, and an empty Annotation for every other image."""
    if not any(a.skip is None for a in found.values()):
        raise misfit(title, "no image has its place or name", layout)
    rest = {n: Annotation(skip="no-image" if is_leftover(n) else None) for n in names if is_image(n)}
    return {**rest, **found}


def decode_text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def read_rows(content: bytes) -> list[list[str]]:
    """Cells of a table separated by ";", "," or tabs, whichever its first line has most of."""
    text = decode_text(content)
    first = text.split("\n", 1)[0]
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=max(";,\t", key=first.count)))
    except csv.Error:
        raise ValueError("a table of the data set can't be read as CSV") from None
    return [[cell.strip() for cell in row] for row in rows if row]


def read_table(content: bytes, columns: Sequence[str], title: str, layout: str) -> list[dict[str, str]]:
    """Rows by column name in lower case; cells that a short row lacks are "". ValueError when a column is missing."""
    rows = read_rows(content)
    header = [cell.lower() for cell in rows[0]] if rows else []
    missing = [column for column in columns if column.lower() not in header]
    if missing:
        raise misfit(title, f"its table has no column {', '.join(missing)}", layout)
    return [dict(zip(header, row + [""] * (len(header) - len(row)))) for row in rows[1:]]


def one_of(value: Any, choices: Iterable[str]) -> str | None:
    """The choice that `value` spells, whatever the case and the signs between its words."""
    plain = re.sub(r"[\W_]+", " ", str(value)).strip().lower()
    return next((c for c in choices if re.sub(r"[\W_]+", " ", c).lower() == plain), None)


def whole_number(text: Any) -> str | None:
    """ "007" and "7" are one patient. None when `text` is no whole number."""
    match = re.fullmatch(r"\s*(\d{1,12})(?:\.0+)?\s*", str(text))
    return str(int(match[1])) if match else None
