# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What the columns of a table mean: which one names the image, the label, the patient, the side."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..configuration_urfm import nearest_name
from .labelled_folders import MASK_FOLDERS, image_files, is_image_file
from .labelled_found import Chosen, Found, plain_text, side_of
from .labelled_tables import Table, describe_columns
from .organs import UNKNOWN
from .splits import name_some


IMAGE_NAMES = (
    "image",
    "file_name",
    "filename",
    "image_path",
    "image_file",
    "image_name",
    "image_filename",
    "path",
    "file",
    "img",
)
PATIENT_NAMES = ("patient", "patient_id", "patientid", "subject", "subject_id", "case", "case_id")
SPLIT_COLUMNS = ("split", "subset")
LABEL_NAMES = {
    "classification": ("label", "class", "class_name", "category", "target", "diagnosis", "pathology", "organ"),
    "multilabel": ("labels", "findings", "finding_labels", "label", "classes"),
    "regression": ("target", "value", "label"),
    "segmentation": ("mask", "mask_path", "mask_file", "segmentation", "annotation"),
}  # fmt: skip
SUFFIXES_TRIED = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm")
TRUE, FALSE = ("1", "true", "yes", "1.0"), ("0", "false", "no", "0.0")


def find_column(table: Table, given: str | None, names: Sequence[str], flag: str, among: Sequence[str]) -> str | None:
    """The column that is asked for, or the first of the usual names; None where there is none.

    Raises:
        ValueError: the column that is asked for does not exist; the nearest is named.
    """
    if given is None:
        by_lower = {re.sub(r"[\s-]+", "_", column.strip().lower()): column for column in reversed(among)}
        return next((by_lower[name] for name in names if name in by_lower), None)
    if given not in among:
        near = f" Did you mean {nearest_name(given, among)!r}?" if among else ""
        raise ValueError(
            f"{table.name} has no column {given!r} ({flag}).{near} Its columns: {describe_columns(table)}."
        )
    return given


def column_of_files(table: Table, image_root: str | None) -> str | None:
    """The first column whose first cells all name files."""
    files = Files(table, image_root)
    for column, values in table.columns.items():
        texts = [(row, text) for row, value in enumerate(values[:200]) if (text := plain_text(value))][:5]
        if texts and all(files.find(row, text) for row, text in texts):
            return column
    return None


def found_from_table(
    table: Table,
    task: str,
    label_columns: Sequence[str] | None = None,
    patient_column: str | None = None,
    image_column: str | None = None,
    split_column: str | None = None,
    image_root: str | None = None,
) -> Found:
    """Rows of a table as `Found`; what can't be used is listed.

    Raises:
        ValueError: a column that does not exist or can't be guessed, one image with two labels, labels that are not of the
            form that the task needs, a side that is none.
    """
    names = list(table.columns)
    found = Found(table.name, [], [], [], published=table.published, notes=list(table.notes))
    label_names, labels, used = _labels(table, task, label_columns, image_root)
    image = find_column(table, image_column, IMAGE_NAMES, "--image_column", [*table.images, *names])
    if image_column is None and table.images:
        image = next(iter(table.images))
    image = image or column_of_files(table, image_root)
    if image is None:
        raise ValueError(
            f"{table.name}: which column names the images? Give --image_column. {describe_columns(table)}."
        )
    # UltraBench's POCUS says the video that a frame is of; elsewhere a source is a hospital or a data set.
    usual = (*PATIENT_NAMES, "source") if table.published else PATIENT_NAMES
    patient = find_column(table, patient_column, usual, "--patient_column", names)
    split = find_column(table, split_column, SPLIT_COLUMNS, "--split_column", names) if not table.published else None
    if patient in used and patient_column is None:
        patient = None

    if image in table.images:
        cells, ids = table.images[image], list(table.ids)
        lost = [None] * len(table)
    else:
        files = Files(table, image_root)
        paths = [files.find(row, plain_text(value)) for row, value in enumerate(table.columns[image])]
        cells = [(None, str(path)) if path else None for path in paths]
        ids = [files.shown(path) if path else "" for path in paths]
        lost = [
            None if path else f"its image is not there: {value}" for path, value in zip(paths, table.columns[image])
        ]
    rows = [row for row in range(len(table)) if not lost[row]]
    found.left_out += [(table.row_names[row], reason) for row, reason in enumerate(lost) if reason]
    if not rows:
        raise ValueError(
            f"{table.name}: none of its {len(table)} rows names an image that is there: "
            f"{name_some(table.columns.get(image, table.row_names))}. Paths start at {image_root or table.folders[0]}; "
            "--image_root gives another folder, --image_column another column."
        )
    rows = _without_doubles(found, table, rows, ids, labels)
    if image not in table.images:
        _list_unlabelled(found, files, [Path(cells[row][1]) for row in range(len(table)) if cells[row]])
    found.ids = [ids[row] for row in rows]
    found.images = Chosen(cells, rows)
    found.labels = Chosen(labels, rows)
    found.label_names = label_names
    if patient:
        found.patients = [plain_text(table.columns[patient][row]) for row in rows]
    if "organ" in table.columns:
        found.groups = [_named(table, "organ", row) or UNKNOWN for row in rows]
    found.splits = _sides(table, split, rows)
    if found.splits is None and image not in table.images:
        by_folder = [side_of(name.split("/")[0]) for name in found.ids]
        found.splits = by_folder if all(by_folder) else None
    return found


class Files:
    """Finds what the cells of a table name: a path, a name that one file has, or such a name without its suffix."""

    def __init__(self, table: Table, image_root: str | None, masks: bool = False):
        self.masks = masks
        self.table = table
        self.root = Path(image_root or os.path.commonpath([str(folder) for folder in set(table.folders)]))
        if image_root and not self.root.is_dir():
            raise FileNotFoundError(f"--image_root {image_root}: no such folder.")
        self.bases = None if image_root else table.folders
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, row: int, text: str | None) -> Path | None:
        if not text:
            return None
        text = text.replace("\\", "/")
        path = (self.bases[row] if self.bases is not None else self.root) / text
        if path.is_file():
            return path
        for suffix in SUFFIXES_TRIED:
            for end in (suffix, suffix.upper()):
                if (other := path.with_name(path.name + end)).is_file():
                    return other
        if self._by_name is None:  # a walk that most tables don't need
            self._by_name = {}
            for file in image_files(self.root):
                for key in {file.name.lower(), file.stem.lower()}:
                    self._by_name.setdefault(key, []).append(file)
        hits = self._by_name.get(Path(text).name.lower(), [])
        if len(hits) > 1:  # images and their masks are often called alike
            hits = [hit for hit in hits if self.masks == any(part.lower() in MASK_FOLDERS for part in hit.parts)]
        return hits[0] if len(hits) == 1 else None

    def shown(self, path: Path) -> str:
        """The name of a file from `root`, alike on every machine that has the same folders."""
        return Path(os.path.relpath(path, self.root)).as_posix().encode("utf-8", "replace").decode()


def _without_doubles(found: Found, table: Table, rows: list[int], ids: list[str], labels: list) -> list[int]:
    """Rows but those that name an image again; ValueError where they give it another label."""
    first, kept, torn = {}, [], []
    for row in rows:
        before = first.setdefault(ids[row], row)
        if before == row:
            kept.append(row)
        elif labels[before] != labels[row]:
            torn.append(f"{ids[row]} ({table.row_names[before]} and {table.row_names[row]})")
        else:
            found.left_out.append((table.row_names[row], f"it is a copy of {table.row_names[before]}"))
    if torn:
        raise ValueError(f"{table.name} gives images two labels: {name_some(torn)}.")
    return kept


def _list_unlabelled(found: Found, files: Files, named: list[Path]) -> None:
    """Images that lie beside the labelled ones and have no row."""
    known = {path.resolve() for path in named}
    for folder in sorted({path.parent for path in named}):
        for path in sorted(folder.iterdir()):
            if path.is_file() and is_image_file(path) and path.resolve() not in known:
                found.left_out.append((files.shown(path), "an image without label: no row names it"))


def _sides(table: Table, column: str | None, rows: list[int]) -> list[str] | None:
    if column is None:
        return [table.sides[row] for row in rows] if table.sides else None
    values = [plain_text(table.columns[column][row]) for row in rows]
    sides = [side_of(value) if value else None for value in values]
    wrong = [f"{table.row_names[row]} ({value})" for row, value, side in zip(rows, values, sides) if not side]
    if wrong:
        raise ValueError(
            f"{table.name}: column {column!r} must say train, validation or test; these don't: {name_some(wrong)}. "
            "--split_column names another one."
        )
    return sides


# ---------------------------------------------------------------- labels


def _named(table: Table, column: str, row: int) -> str | None:
    value, names = table.columns[column][row], table.class_names.get(column)
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return plain_text(value)


def _labels(
    table: Table, task: str, given: Sequence[str] | None, image_root: str | None
) -> tuple[tuple[str, ...] | None, Sequence, list[str]]:
    """Names, the label of every row, and the columns they come from."""
    among = [*table.images, *table.columns] if task == "segmentation" else list(table.columns)
    usual = LABEL_NAMES[task]
    if given is None and task == "classification" and {"organ", "patient", "pixel_hash"} <= set(table.columns):
        usual = ("organ",)  # a corpus of recipes/prepare.py
    chosen = [find_column(table, column, (), "--label_columns", among) for column in given or ()]
    if not chosen:
        chosen = [column] if (column := find_column(table, None, usual, "", among)) else []
    if not chosen:
        raise ValueError(
            f"{table.name}: which column holds the label ({task})? Give --label_columns. Its columns: "
            f"{describe_columns(table)}."
        )
    if len(chosen) > 1 and task in ("classification", "segmentation"):
        raise ValueError(f"--label_columns: {task} takes one column, got {', '.join(chosen)}.")
    if task == "segmentation":
        names, labels = _masks(table, chosen, image_root)
    else:
        names, labels = {"classification": _classes, "multilabel": _findings, "regression": _targets}[task](
            table, chosen
        )
    return names, labels, chosen


def _classes(table: Table, columns: list[str]) -> tuple[tuple[str, ...] | None, list]:
    column = columns[0]
    labels = [_named(table, column, row) for row in range(len(table))]
    if column == "organ":
        labels = [None if label == UNKNOWN else label for label in labels]
    different = {label for label in labels if label is not None}
    if len(different) > max(100, len(labels) // 2) or (len(different) == len(labels) > 3):
        raise ValueError(
            f"{table.name}: column {column!r} has {len(different)} different values in {len(labels)} rows, which are no "
            f"classes. Its columns: {describe_columns(table)}. For numbers: --task regression."
        )
    known = [name for name in table.class_names.get(column, ()) if name in different]
    return (tuple(known) if different <= set(known) else None), labels


def _findings(table: Table, columns: list[str]) -> tuple[tuple[str, ...], list]:
    yes_or_no = {(plain_text(value) or "").lower() for value in table.columns[columns[0]]} <= {*TRUE, *FALSE, ""}
    if len(columns) > 1 or yes_or_no:
        parts, wrong = [], []
        for column in columns:
            texts = [(plain_text(value) or "").lower() for value in table.columns[column]]
            wrong += [
                f"{table.row_names[row]} ({column}: {t})" for row, t in enumerate(texts) if t not in (*TRUE, *FALSE, "")
            ]
            parts.append([None if not text else float(text in TRUE) for text in texts])
        if wrong:
            raise ValueError(f"{table.name}: findings must be 0 or 1; these are not: {name_some(wrong)}.")
        rows = [None if None in row else list(row) for row in zip(*parts)]
        return tuple(columns), rows
    column, values = columns[0], table.columns[columns[0]]
    if any(isinstance(value, (list, tuple)) for value in values):
        names = table.class_names.get(column)
        sets = [None if v is None else {names[x] if names else plain_text(x) for x in v} for v in values]
    else:
        # An empty cell of a table of texts says that nothing was found.
        texts = [plain_text(value) or "" for value in values]
        mark = next((m for m in ";|," if any(m in text for text in texts)), ";")
        sets = [{part.strip() for part in text.split(mark) if part.strip()} for text in texts]
    names = tuple(sorted({name for found in sets if found for name in found}))
    if not names:
        raise ValueError(f"{table.name}: column {column!r} names no finding in any row.")
    return names, [None if found is None else [float(name in found) for name in names] for found in sets]


def _targets(table: Table, columns: list[str]) -> tuple[tuple[str, ...], list]:
    parts, wrong = [], []
    for column in columns:
        numbers = [_number(value) for value in table.columns[column]]
        wrong += [f"{table.row_names[row]} ({column}: {table.columns[column][row]})"
                  for row, number in enumerate(numbers) if number is False]  # fmt: skip
        parts.append([number if number and np.isfinite(number) or number == 0 else None for number in numbers])
    if wrong:
        raise ValueError(f"{table.name}: targets must be numbers; these are not: {name_some(wrong)}.")
    return tuple(columns), [None if None in row else list(row) for row in zip(*parts)]


def _number(value) -> float | None | bool:
    """A cell as a number; None for an empty one, False for what is none. Half a comma is a decimal point: "1,5"."""
    text = str(value).strip() if value is not None else ""
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        try:
            return float(text.replace(",", ".")) if text.count(",") == 1 and "." not in text else False
        except ValueError:
            return False


def _masks(table: Table, columns: list[str], image_root: str | None) -> tuple[None, Sequence]:
    column = columns[0]
    if column in table.images:
        return None, MaskCells(table.images[column])
    files = Files(table, image_root, masks=True)
    paths = [files.find(row, plain_text(value)) for row, value in enumerate(table.columns[column])]
    return None, [[(None, str(path))] if path else None for path in paths]


class MaskCells(Sequence):
    """A column of masks: the one part of each, or None where the cell is empty."""

    def __init__(self, cells: Sequence):
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, row: int):
        cell = self.cells[row]
        return None if cell[0] is None and not cell[1] else [cell]


def join_table(found: Found, table: Table, columns: dict) -> Found:
    """Give images whose labels the folders tell the patients, and where folders tell no side the sides, of a table.

    Raises:
        ValueError: a column that is asked for does not exist.
    """
    names = list(table.columns)
    image = find_column(table, columns["image_column"], IMAGE_NAMES, "--image_column", names)
    image = image or column_of_files(table, columns["image_root"])
    patient = find_column(table, columns["patient_column"], PATIENT_NAMES, "--patient_column", names)
    split = find_column(table, columns["split_column"], SPLIT_COLUMNS, "--split_column", names)
    files, row_of = Files(table, columns["image_root"]), {}
    for row, value in enumerate(table.columns[image] if image and (patient or split) else ()):
        if path := files.find(row, plain_text(value)):
            row_of.setdefault(path.resolve(), row)
    rows = [row_of.get(Path(cell[1]).resolve()) for cell in found.images]
    if not any(row is not None for row in rows):
        note = f"{table.row_names[0].rsplit(' row ', 1)[0]} was not used: it names no images with their patients"
        if any(columns.values()):
            raise ValueError(f"{table.name}: {note}. Its columns: {describe_columns(table)}.")
        found.notes.append(note)
        return found
    if patient:
        found.patients = [None if row is None else plain_text(table.columns[patient][row]) for row in rows]
    if split and not found.splits:
        without = [image for image, row in zip(found.ids, rows) if row is None]
        if without:
            raise ValueError(f"{table.name}: its table gives no side for {name_some(without)}.")
        found.splits = _sides(table, split, rows)
    return found
