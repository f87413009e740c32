# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Every image and mask is opened once before anything is trained: what is unreadable or doesn't fit is found here."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .labelled_found import plain_image, read_cell
from .labelled_masks import read_values
from .phantoms import usable_cores
from .reading import UnreadableFile, open_source
from .splits import name_some
from .streaming import decode_pixels


CHUNK = 256  # rows whose bytes are in memory at once


@dataclass(frozen=True)
class Checked:
    """What a look at a row told.

    Attributes:
        problem: why it can't be used, "" if it can. frames: images in its file. digest: of its bytes, and of its mask's.
        values, counts: what its mask holds, and in how many pixels.
    """

    problem: str = ""
    frames: int = 1
    digest: bytes = b""
    mask_digest: bytes = b""
    values: np.ndarray | None = None
    counts: np.ndarray | None = None


def check_rows(images: Sequence, masks: Sequence | None, name: str, progress: bool) -> list[Checked]:
    """Open the image of every row, and its mask where there are masks, on all cores.

    Args:
        images: (n,) cells. masks: (n,) lists of cells, or None for a row without mask.
    """
    from tqdm.auto import tqdm

    checked: list[Checked] = []
    count = len(images)
    with ThreadPoolExecutor(usable_cores()) as pool:
        with tqdm(total=count, desc=f"checking {name}", unit="image", disable=not progress) as bar:
            for start in range(0, count, CHUNK):
                rows = range(start, min(count, start + CHUNK))
                # Cells of a table are read in this thread, in their order, decoded in all.
                cells = [_cell(images, row) for row in rows]
                parts = [_cell(masks, row) for row in rows] if masks is not None else [()] * len(cells)
                for result in pool.map(_check, cells, parts):
                    checked.append(result)
                    bar.update()
    return checked


def _cell(cells: Sequence, row: int):
    try:
        return cells[row]
    except Exception as error:  # a damaged row group
        return error


def _check(cell, parts) -> Checked:
    """`parts`: () where the task has no masks, None where this row has none."""
    if parts is None:
        return Checked("an image without mask")
    try:
        for given in (cell, parts):
            if isinstance(given, Exception):
                raise given
        data = read_cell(cell)
        frames, shape = _look(data, cell[1] or "")
        digest = hashlib.sha256(data).digest()[:16]
        if not parts:
            return Checked(frames=frames, digest=digest)
        if frames > 1:
            return Checked(f"{frames} frames, where a mask is of one image")
    except Exception as error:  # decoders raise many kinds
        return Checked(f"it can't be read: {_reason(error)}")
    try:
        mask = read_values(parts)
    except Exception as error:
        return Checked(f"its mask: {_reason(error)}")
    if mask.shape != shape:
        return Checked(f"its mask has {_size(mask.shape)} pixels, the image {_size(shape)}")
    values, counts = np.unique(mask, return_counts=True)
    return Checked("", 1, digest, hashlib.sha256(mask.tobytes()).digest()[:16], values, counts)


def _look(data: bytes, name: str) -> tuple[int, tuple[int, int]]:
    """How many frames a file has, and their (height, width); the first and the last have been decoded."""
    if plain_image(data):
        return 1, tuple(decode_pixels(data).shape[1:])
    source = open_source(name, data)
    for number in {source.num_frames - 1, 0}:
        frame = source.frame(number)
    return source.num_frames, frame.shape[:2]


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableFile):
        return error.reason
    # Pillow says where in memory the file lies, which differs from run to run.
    said = re.sub(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error))
    return f"{type(error).__name__}: {' '.join(said.split())}"


def _size(shape) -> str:
    return f"{shape[0]} x {shape[1]}"


def merge_copies(patients: np.ndarray, digests: Sequence[bytes]) -> np.ndarray:
    """Patients who share an image, byte for byte, count as one: under the name of the first of them."""
    parent = {patient: patient for patient in patients.tolist()}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            parent[patient] = patient = parent[parent[patient]]
        return patient

    first: dict[bytes, str] = {}
    for patient, digest in zip(patients.tolist(), digests):
        one, other = sorted((root(first.setdefault(digest, patient)), root(patient)))
        parent[other] = one
    return np.array([root(patient) for patient in patients.tolist()])


def copies_across_sides(
    ids: Sequence[str], digests: Sequence[bytes], splits: Sequence[str], order: Sequence[str]
) -> list[tuple[int, str]]:
    """Rows whose image, byte for byte, is on a later side of `order` too, with what to say of each."""
    last: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        if digest not in last or order.index(splits[row]) > order.index(splits[last[digest]]):
            last[digest] = row
    return [
        (row, f"byte for byte the image {ids[last[digest]]} of the {splits[last[digest]]} side")
        for row, digest in enumerate(digests) if splits[row] != splits[last[digest]]
    ]  # fmt: skip


def notes_on_copies(ids: Sequence[str], digests: Sequence[bytes], splits: Sequence[str], labels: Sequence) -> list[str]:
    """What a reader must know of images that are there twice, byte for byte."""
    groups = defaultdict(list)
    for row, digest in enumerate(digests):
        groups[digest].append(row)
    twins = [rows for rows in groups.values() if len(rows) > 1]
    notes = []
    for what, torn in (
        ("lie on two sides of the given split", [r for r in twins if len({splits[row] for row in r}) > 1]),
        ("have different labels", [r for r in twins if len({str(labels[row]) for row in r}) > 1]),
    ):
        if torn:
            pairs = [" = ".join(ids[row] for row in rows[:3]) for rows in torn]
            notes.append(f"{len(torn)} images that are equal byte for byte {what}: {name_some(pairs)}")
    return notes
