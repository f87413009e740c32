# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What the readers of labelled data hand on: rows with names, images and labels, before anything has been opened."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .corpus import CellCorpus
from .labelled_masks import Cell
from .reading import UnreadableFile, open_source
from .streaming import decode_pixels


SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
# Of files that systems leave beside images.
LEFTOVERS = ("thumbs.db", "desktop.ini", "ehthumbs.db")
LEFTOVER_FOLDERS = ("__MACOSX", "@eaDir")


@dataclass
class Found:
    """Rows as a reader found them.

    Attributes:
        ids: (n,) name of each image. images: (n,) bytes and path of each, one of them None.
        labels: (n,) of each what the task needs, None where there is none: classification a name; multilabel and
            regression a list of floats, one for each of `label_names`; segmentation the cells of its mask.
        label_names: where the source declares them, else None (classification: the names found, sorted).
        patients: (n,), None where unknown. splits: (n,) of `SPLITS`, or None for all where the split is to be cut.
        groups: (n,) organ, or None. published: the split is a benchmark's, and kept even where a patient is on two sides.
        left_out, notes: as in `LabelledDataset`.
    """

    name: str
    ids: list[str]
    images: Sequence[Cell]
    labels: Sequence
    label_names: tuple[str, ...] | None = None
    patients: list[str | None] | None = None
    splits: list[str] | None = None
    groups: list[str] | None = None
    published: bool = False
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class ColumnCells(Sequence):
    """A column of images over several corpora, one after the other: bytes and path of each row, read when asked for."""

    def __init__(self, parts: Sequence[CellCorpus]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, row: int) -> Cell:
        part = int(np.searchsorted(self.ends, row, side="right"))
        data, path = self.parts[part].cell(int(row - (self.ends[part - 1] if part else 0)))
        return (None if data is None else bytes(data)), path


class Chosen(Sequence):
    """Some rows of a sequence, fetched when asked for."""

    def __init__(self, items: Sequence, rows: Sequence[int]):
        self.items, self.rows = items, np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int):
        return self.items[int(self.rows[at])]


def read_cell(cell: Cell) -> bytes:
    data, path = cell
    if data is None and not path:
        raise UnreadableFile("", "the cell is empty")
    return Path(path).read_bytes() if data is None else data


def plain_image(data: bytes) -> bool:
    """A JPEG or PNG that says nothing of how it is held: torchvision decodes it, several times as fast as Pillow."""
    return data.startswith(b"\x89PNG") or (data.startswith(b"\xff\xd8\xff") and b"Exif" not in data[:65536])


class LabelledCorpus(CellCorpus):
    """The images of a labelled data set, every one of which has been decoded once.

    Args:
        ids: (n,) names. cells: of the source's rows. rows, frames: (n,) row of `cells`, and which of its frames.
        digests: (n,) of the bytes of each image.
    """

    def __init__(self, name: str, ids, cells: Sequence[Cell], rows, frames, digests):
        super().__init__(name, len(ids))
        self.ids, self.digests = np.asarray(ids, dtype=object), np.asarray(digests, dtype="S16")
        self.cells, self.rows, self.frames = cells, np.asarray(rows, np.int64), np.asarray(frames, np.int64)

    def cell(self, index: int) -> Cell:
        return self.cells[int(self.rows[index])]

    def pixels(self, index: int) -> torch.Tensor:
        cell, frame = self.cell(index), int(self.frames[index])
        return decode_frame(read_cell(cell), cell[1] or self.ids[index], frame)

    def __getitem__(self, index: int) -> dict:
        """As in `Corpus`, but an image that can no longer be read raises: another one would get its label."""
        return {"pixels": self.pixels(index), "id": self.id(index), "index": index, "unreadable": ""}

    def id(self, index: int) -> str:
        return self.ids[index]

    def select(self, rows: np.ndarray) -> "LabelledCorpus":
        rows = np.asarray(rows, dtype=np.int64)
        return LabelledCorpus(
            self.name, self.ids[rows], self.cells, self.rows[rows], self.frames[rows], self.digests[rows]
        )

    @property
    def fingerprint(self) -> str:
        """Of every image's name, bytes and place."""
        digest = hashlib.sha256(self.digests.tobytes() + self.frames.tobytes())
        digest.update("\0".join(self.ids).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def decode_frame(data: bytes, name: str, frame: int = 0) -> torch.Tensor:
    """(1 or 3, height, width) uint8 of an encoded image, or of one frame of a DICOM file, GIF or video."""
    if frame == 0 and plain_image(data):
        return decode_pixels(data)
    return torch.from_numpy(open_source(name, data).frame(frame)).permute(2, 0, 1)


def side_of(name: str) -> str | None:
    """The side that a folder or cell of this name is, whatever the case; None where it is none."""
    return SPLIT_NAMES.get(name.strip().lower())


def is_leftover_file(path: Path) -> bool:
    return path.name.lower() in LEFTOVERS or any(folder in path.parts for folder in LEFTOVER_FOLDERS)


def plain_text(value) -> str | None:
    """A cell as text: 7.0 is "7"; None for an empty one, or what programs write for one."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text.lower() in ("", "nan", "n/a", "null") else text
