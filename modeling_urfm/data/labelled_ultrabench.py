# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A task of UltraBench (Tupper & Gagné, TMLR 2025) as `ultrabench NAME RAW OUT` of version 1.0.1 writes it.

A folder such as `aul_mass_v1.0.1` holds `images/`, `masks/scan/` and other masks, and the published split as lists of
objects: `train.json`, `validation.json` and `test.json` (or `train_val.json`, from which the validation is then cut).
"""

import json
from pathlib import Path

from .labelled_found import plain_text
from .labelled_tables import Table, columns_of
from .splits import name_some


SPLIT_FILES = {
    "train": "train.json",
    "train_val": "train_val.json",
    "validation": "validation.json",
    "test": "test.json",
}
# Columns that say in words what `label` says in numbers.
LABEL_WORDS = ("pathology", "class", "image_quality")
SCAN_MASK = "scan_mask"


def find_ultrabench(root: Path) -> Path | None:
    """`root`, or the one folder in it, if it is a task of UltraBench.

    Raises:
        ValueError: `root` holds several; they are named.
    """
    if _is_task(root):
        return root
    inside = sorted(p for p in root.iterdir() if p.is_dir() and _is_task(p))
    if len(inside) > 1:
        raise ValueError(f"{root} holds several tasks: {name_some([p.name for p in inside])}. Name one: {inside[0]}.")
    return inside[0] if inside else None


def _is_task(folder: Path) -> bool:
    there = {key for key, file in SPLIT_FILES.items() if (folder / file).is_file()}
    return "test" in there and bool(there & {"train", "train_val"})


def read_ultrabench(folder: Path, name: str) -> Table:
    """The lists of a task as a table, with the names of its classes where the lists tell them.

    Raises:
        ValueError: a list that is no JSON, or holds no images.
    """
    records, row_names, sides = [], [], []
    for key, file in SPLIT_FILES.items():
        path = folder / file
        if not path.is_file():
            continue
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("image") for row in rows):
            raise ValueError(f"{path} is no list of UltraBench: expected objects with an `image`.")
        records += rows
        row_names += [f"{file} row {number}" for number in range(1, len(rows) + 1)]
        sides += ["train" if key == "train_val" else key] * len(rows)
    columns = columns_of(records, str(folder))
    # Masks that this package does not need would be offered as labels.
    columns.pop(SCAN_MASK, None)
    notes = []
    if (folder / "version.txt").is_file():
        notes.append(f"made by {(folder / 'version.txt').read_text().splitlines()[0]}; its published split")
    if "patient" not in columns and "source" in columns:
        notes.append("frames of one source (a video or an image) count as one patient")
    return Table(
        name, row_names, columns, [folder] * len(records), class_names=_class_names(columns), sides=sides,
        published=True, notes=notes,
    )  # fmt: skip


def _class_names(columns: dict[str, list]) -> dict[str, list[str]]:
    labels = columns.get("label", [])
    if not labels or not all(isinstance(label, int) and label >= 0 for label in labels):
        return {}
    for words in LABEL_WORDS:
        pairs = {(label, plain_text(word)) for label, word in zip(labels, columns.get(words, []))}
        if pairs and len({label for label, _ in pairs}) == len({word for _, word in pairs}) == len(pairs):
            named = dict(pairs)
            return {"label": [named.get(label) or str(label) for label in range(max(labels) + 1)]}
    return {}


def mask_column(table: Table, folder: Path) -> str | None:
    """The column of masks of a task: the only one, or the one that the folder is named after (`aul_liver_v1.0.1`).

    Raises:
        ValueError: there are several; they are named.
    """
    found = [column for column in table.columns if column == "mask" or column.endswith("_mask") or "_mask_" in column]
    named = [column for column in found if column.removesuffix("_mask") in folder.name.split("_")]
    if len(found) > 1 and len(named) != 1:
        raise ValueError(f"{table.name} has several masks: give --label_columns {' or '.join(found)}.")
    return (named or found or [None])[0]
