# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Tables of labels: CSV, TSV, JSON lines and Parquet, a corpus of `recipes/prepare.py`, a data set of `datasets`.

A reader here turns a file into a `Table`; what its columns mean is decided in `labelled_columns`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .annotations import read_rows
from .corpus import TableCorpus, image_column, open_parquet, parquet_features, walk_files
from .labelled_found import ColumnCells, is_leftover_file, plain_text, side_of
from .splits import name_some


TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
TABLE_STEMS = ("metadata", "labels", "patients")


@dataclass
class Table:
    """Columns by name, all of one length.

    Attributes:
        row_names: (n,) how errors call a row. columns: every column that holds no images.
        folders: (n,) where the paths of a row start. images: columns of images within the table, by name.
        ids: (n,) names of the embedded images. class_names: of columns whose numbers stand for names.
        sides: (n,) side by the file that a row lies in, or None for all. published: as in `Found`.
    """

    name: str
    row_names: Sequence[str]
    columns: dict[str, list]
    folders: Sequence[Path]
    images: dict[str, Sequence] = field(default_factory=dict)
    ids: Sequence[str] | None = None
    class_names: dict[str, list[str]] = field(default_factory=dict)
    sides: list[str] | None = None
    published: bool = False
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.row_names)


def find_tables(root: Path) -> list[Path]:
    """Tables that tell of the images of a folder: by their names at its top, or in the folders of a split."""
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir() and side_of(p.name))]
    for place in places:
        for stem in TABLE_STEMS:
            named = [p for p in place.iterdir() if p.stem.lower() == stem and p.suffix.lower() in TABLE_SUFFIXES]
            if named and place == root:
                return sorted(named)[:1]
            if named:
                return [p for q in places[1:] for p in sorted(q.iterdir())
                        if p.stem.lower() == stem and p.suffix.lower() in TABLE_SUFFIXES]  # fmt: skip
    alone = [p for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv") and not p.name.startswith(".")]
    return alone if len(alone) == 1 else []


def read_tables(paths: Sequence[Path], name: str) -> Table:
    """Tables without images in them, one after the other; rows of a folder of a split are of that side.

    Raises:
        ValueError: a file that is no table, rows that are longer than their header, or tables of unequal columns.
    """
    parts = [_read_columns(path) for path in paths]
    if any(list(part) != list(parts[0]) for part in parts):
        raise ValueError(f"{name}: {name_some(paths)} have different columns.")
    lengths = [len(next(iter(part.values()), [])) for part in parts]
    if not sum(lengths):
        raise ValueError(f"{name}: {name_some(paths)} has no rows.")
    columns = {column: [value for part in parts for value in part[column]] for column in parts[0]}
    row_names = [f"{p.name} row {row + 1}" for p, count in zip(paths, lengths) for row in range(count)]
    folders = [path.parent for path, count in zip(paths, lengths) for _ in range(count)]
    by_folder = [side_of(path.parent.name) for path, count in zip(paths, lengths) for _ in range(count)]
    sides = by_folder if len(paths) > 1 and all(by_folder) else None
    class_names = _class_names(parquet_features(paths[0])) if paths[0].suffix.lower() == ".parquet" else {}
    return Table(name, row_names, columns, folders, class_names=class_names, sides=sides)


def _read_columns(path: Path) -> dict[str, list]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        parquet_features(path)  # a damaged file is named
        return pq.read_table(path, use_threads=False).to_pydict()
    if suffix == ".jsonl":
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except ValueError as error:
            raise ValueError(f"{path} holds a line that is no JSON: {error}") from error
        return columns_of(records, str(path))
    if suffix not in (".csv", ".tsv", ".txt"):
        raise ValueError(f"{path} is no table that can be read; wanted: {', '.join(TABLE_SUFFIXES)}.")
    try:
        rows = read_rows(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path} can't be read as CSV.") from None
    if not rows:
        raise ValueError(f"{path} is empty.")
    header, rows = rows[0], rows[1:]
    doubled = sorted({column for column in header if column and header.count(column) > 1})
    if doubled:
        raise ValueError(f"{path} has the columns {name_some(doubled)} more than once.")
    # Numbers of rows count lines that hold something, the header not among them.
    long = [str(number) for number, row in enumerate(rows, 1) if len(row) > len(header) and any(row[len(header) :])]
    if long:
        raise ValueError(f"{path}: rows with more cells than the header's {len(header)}: {name_some(long)}.")
    return {
        column: [(row[at] or None) if at < len(row) else None for row in rows]
        for at, column in enumerate(header) if column
    }  # fmt: skip


def columns_of(records: Sequence[dict], name: str) -> dict[str, list]:
    """Dictionaries to columns; what one lacks is None."""
    if not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{name}: expected a list of objects, one an image.")
    names = list(dict.fromkeys(key for record in records for key in record))
    return {column: [record.get(column) for record in records] for column in names}


# ---------------------------------------------------------------- images within the table


def embedded_parquet(path: Path) -> list[Path]:
    """The Parquet files of a folder, or the file itself, that hold images."""
    files = [path] if path.is_file() else [p for p in walk_files(path) if not is_leftover_file(p)]
    return [p for p in files if p.suffix.lower() == ".parquet" and image_column(parquet_features(p))]


def read_parquet(paths: Sequence[Path], root: Path, name: str) -> Table:
    """Parquet files with images; their names or folders may tell the side (`data/test-00000-of-00001.parquet`)."""
    import pyarrow.parquet as pq

    sides = [_side_of_file(path, root) for path in paths]
    if any(sides) and not all(sides):
        homeless = [path.name for path, side in zip(paths, sides) if not side]
        raise ValueError(f"{name}: some Parquet files are named after a side, these are not: {name_some(homeless)}.")
    features = parquet_features(paths[0])
    held = _image_columns(features)
    corpora = {column: open_parquet(paths, root, name, column) for column in held}
    others = [column for column in features if column not in held]
    parts = [pq.read_table(path, columns=others, use_threads=False) for path in paths]
    lengths = [pq.read_metadata(path).num_rows for path in paths]
    columns = {column: [v for part in parts for v in part.column(column).to_pylist()] for column in others}
    first = corpora[held[0]]
    ids = [first.id(row) for row in range(len(first))]
    by_file = [side for side, count in zip(sides, lengths) for _ in range(count)]
    return Table(
        name, ids, columns, [root] * len(ids), {c: ColumnCells([corpus]) for c, corpus in corpora.items()}, ids,
        _class_names(features), by_file if any(sides) else None,
    )  # fmt: skip


def _side_of_file(path: Path, root: Path) -> str | None:
    inside = path.relative_to(root) if path != root and path.is_relative_to(root) else Path(path.name)
    for part in (*inside.parts[:-1], inside.stem, inside.stem.split("-")[0]):
        if side_of(part):
            return side_of(part)
    return None


def read_datasets(tables, name: str) -> Table:
    """A `datasets.Dataset`, or a `DatasetDict` whose parts are sides where they are named like them."""
    import datasets

    parts = dict(tables) if isinstance(tables, datasets.DatasetDict) else {"": tables}
    parts = {key: part for key, part in parts.items() if len(part)}
    if not parts:
        raise ValueError(f"{name} has no rows.")
    unknown = [key for key in parts if not side_of(key)]
    if len(parts) > 1 and unknown:
        raise ValueError(f"{name} has parts that are no sides of a split: {name_some(unknown)}.")
    features = next(iter(parts.values())).features
    if any(part.features != features for part in parts.values()):
        raise ValueError(f"{name}: its parts {', '.join(parts)} have different columns.")
    held = _image_columns(features)
    if not held:
        raise ValueError(f"{name} has no column of images; its columns are: {', '.join(features)}.")
    others = [column for column in features if column not in held]
    columns = {column: [v for part in parts.values() for v in part[column][:]] for column in others}
    images = {c: ColumnCells([TableCorpus(name, part, c) for part in parts.values()]) for c in held}
    ids = [f"{key or name}#{row}" for key, part in parts.items() for row in range(len(part))]
    sides = [side_of(key) for key, part in parts.items() for _ in range(len(part))] if len(parts) > 1 else None
    return Table(name, ids, columns, [Path()] * len(ids), images, ids, _class_names(features), sides)


def _image_columns(features) -> list[str]:
    """All columns of images, the main one first."""
    main = image_column(features)
    return [] if main is None else [main, *(c for c in features if c != main and image_column({c: features[c]}))]


def _class_names(features) -> dict[str, list[str]]:
    """Names behind the numbers of columns of `datasets.ClassLabel`, alone or in lists."""
    found = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if getattr(inner, "names", None):
            found[column] = list(inner.names)
    return found


# ---------------------------------------------------------------- what a column looks like


def describe_columns(table: Table) -> str:
    """Every column with its kind, as an error shows them."""
    return ", ".join([f"{column} (images)" for column in table.images] + [
        f"{column} ({_kind(values, table.class_names.get(column))})" for column, values in table.columns.items()
    ])  # fmt: skip


def _kind(values: list, names: list[str] | None) -> str:
    if names:
        return f"{len(names)} classes"
    filled = [value for value in values if plain_text(value) is not None]
    if not filled:
        return "empty"
    if isinstance(filled[0], (list, tuple, dict)):
        return "lists"
    texts = {plain_text(value) for value in filled}
    try:
        numbers = np.array([float(text) for text in texts if text])
        if set(numbers.tolist()) <= {0.0, 1.0}:
            return "0/1"
        return f"numbers from {numbers.min():g} to {numbers.max():g}"
    except ValueError:
        return f"{len(texts)} different texts"
