# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Parquet shards as they are: footers are read when a corpus is opened, row groups while it is trained on.

Nothing is converted first. `datasets.Dataset.from_parquet` copies all images into an Arrow cache, and the shuffle buffer
of its `IterableDataset` loses images when a run is resumed; so `datasets` reads what the columns mean, and row groups
come through pyarrow. A row group is the least that Parquet gives for one image, therefore the order of an epoch is
shuffled in two steps, row groups first, then the images within a window of some of them (`block_order`), and a cache
that holds a window makes sure that no row group is read twice for it.

The order and the choice of an epoch's images are pure functions of (seed, epoch), whatever the number of workers.
"""

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .reading import UnreadableFile, image_to_array


WINDOW_IMAGES = 4096  # images that are shuffled among one another; what WebDataset users call the shuffle buffer
WINDOW_BYTES = 128 << 20  # and at most so many bytes of them
MAX_GROUP_BYTES = 256 << 20  # a Parquet file with larger row groups is not made for reading one image
# Where fewer images of a group are wanted than there are, row groups with this many times as many of them are read.
SPREAD = 4


class UnreadableRows(UnreadableFile):
    """A row group that can't be read; `rows` says how many rows from the asked one on share the fate."""

    rows = 1


def decode_pixels(data) -> torch.Tensor:
    """Bytes of a JPEG, PNG or other image to uint8 (1 or 3, height, width); a grey image keeps its one channel.

    torchvision decodes what it knows. What it leaves in another form (transparency, 16 bits, CMYK, animations) or does
    not know goes through Pillow as everywhere else in the package.
    """
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_image

    if _torchvision_knows(data):
        try:
            # A copy, as tensors are writable and the cell is not; it takes microseconds.
            pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
            if pixels.dtype == torch.uint8 and pixels.ndim == 3 and len(pixels) in (1, 3):
                return pixels
        except (RuntimeError, ValueError):
            pass  # Pillow says what is wrong
    with Image.open(io.BytesIO(data)) as image:
        array = image_to_array(image)
    return torch.from_numpy(array).permute(2, 0, 1)


def _torchvision_knows(data) -> bool:
    """All but PNGs with a palette, which torchvision takes for grey, or a transparent colour, which it ignores."""
    head = bytes(data[:2048])
    if not head.startswith(b"\x89PNG") or len(head) < 26:
        return True
    grey_or_colour = head[25] in (0, 2)  # the colour type, in the header that every PNG begins with
    return grey_or_colour and b"tRNS" not in head.split(b"IDAT", 1)[0]


def _top(leaf) -> str:
    """The column that a leaf of a Parquet file belongs to."""
    return leaf.path_in_schema.split(".")[0]


class ParquetRows:
    """Random access to the image column of Parquet files, a row group at a time.

    Args:
        paths: the files. column: binary, or a struct of `bytes` and `path`, as `datasets.Image` stores it.

    Attributes:
        starts: (row groups + 1,) first row of every row group. columns: names of all columns. bytes_per_row: mean.
        largest: bytes of the largest row group's image column.

    Raises:
        ValueError: a file is damaged, or has not this column.
    """

    def __init__(self, paths: Sequence[Path], column: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.paths, self.column = [str(path) for path in paths], column
        rows, files, within, size, self.largest = [0], [], [], 0, 0
        for number, path in enumerate(self.paths):
            try:
                footer = pq.read_metadata(path)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is no whole Parquet file: {error}") from error
            if number == 0:
                self.columns = pq.read_schema(path).names
            # Not by `footer.schema`, which holds the footer and is held by it: memory would wait for Python's collector.
            for group in range(footer.num_row_groups):
                part = footer.row_group(group)
                if group == 0:
                    leaves = [i for i in range(part.num_columns) if _top(part.column(i)) == column]
                if not leaves:
                    raise ValueError(f"{path} has no column {column!r}, which {self.paths[0]} has.")
                if part.num_rows:
                    held = sum(part.column(leaf).total_uncompressed_size for leaf in leaves)
                    size, self.largest = size + held, max(self.largest, held)
                    rows.append(part.num_rows), files.append(number), within.append(group)
        # Numbers alone are kept: footers of a thousand shards would fill memory.
        self.starts = np.cumsum(rows)
        self.files, self.within = np.array(files, dtype=np.int32), np.array(within, dtype=np.int32)
        self.bytes_per_row = size / max(len(self), 1)
        self.cache: OrderedDict[int, tuple | UnreadableRows] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self):
        return self.__dict__ | {"cache": OrderedDict()}  # every worker has its own

    @property
    def window(self) -> int:
        """Images of a window of the shuffle."""
        return int(min(WINDOW_IMAGES, max(2, WINDOW_BYTES // max(self.bytes_per_row, 1))))

    def place(self, index: int) -> tuple[str, int]:
        """The file and the row in it."""
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        first = self.starts[np.searchsorted(self.files, self.files[group])]
        return self.paths[self.files[group]], int(index - first)

    def cell(self, index: int) -> tuple:
        """Bytes and path of an image; either may be None.

        Raises:
            UnreadableRows: the row group is damaged, or its file is gone.
        """
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        if group not in self.cache:
            self._make_room(group)
            self.cache[group] = self._read(group)
        self.cache.move_to_end(group)
        held = self.cache[group]
        if isinstance(held, UnreadableRows):
            error = UnreadableRows(held.path, held.reason)
            error.rows = int(self.starts[group + 1] - index)
            raise error
        data, paths = held
        at = int(index - self.starts[group])
        return data[at].as_buffer(), paths[at].as_py() if paths is not None else None

    def _make_room(self, group: int):
        """A window and the row groups at its two ends, which may stand over."""

        def rows(groups):
            return sum(int(self.starts[g + 1] - self.starts[g]) for g in groups)

        while self.cache and rows([*list(self.cache)[1:], group]) >= self.window:
            self.cache.popitem(last=False)

    def _read(self, group: int) -> tuple | UnreadableRows:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        path = self.paths[self.files[group]]
        try:
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(int(self.within[group]), columns=[self.column], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            short = " ".join(str(error).split())[:200]
            return UnreadableRows(path, f"row group {self.within[group]} is damaged: {short}")
        cells = table.column(0).combine_chunks()
        cells = cells.chunk(0) if isinstance(cells, pa.ChunkedArray) else cells
        if not pa.types.is_struct(cells.type):
            return cells, None
        names = [field.name for field in cells.type]
        return pc.struct_field(cells, "bytes"), pc.struct_field(cells, "path") if "path" in names else None

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        """What a column says of every row: codes (rows,) of at most 4 bytes, and the names they stand for."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        codes, names = np.zeros(len(self), dtype=np.int32), {}
        at = 0
        for path in self.paths:
            values = pq.read_table(path, columns=[column], use_threads=False).column(0)
            values = pc.fill_null(pc.cast(values, pa.string()), "unknown").combine_chunks()
            values = (values.chunk(0) if isinstance(values, pa.ChunkedArray) else values).dictionary_encode()
            here = np.array([names.setdefault(name, len(names)) for name in values.dictionary.to_pylist()], np.int32)
            codes[at : at + len(values)] = here[values.indices.to_numpy()] if len(here) else 0
            at += len(values)
        return codes, list(names)

    def digest(self) -> str:
        """Of sizes, row counts and a thousand blocks of bytes, evenly spaced: what a changed corpus would change."""
        digest = hashlib.sha256(self.starts.tobytes())
        blocks = max(1, 1000 // max(len(self.paths), 1))
        for path in self.paths:
            size = os.path.getsize(path)
            digest.update(str(size).encode())
            with open(path, "rb") as file:
                for offset in np.linspace(0, max(size - 4096, 0), blocks).astype(int):
                    file.seek(offset)
                    digest.update(file.read(4096))
        return digest.hexdigest()


# ---------------------------------------------------------------- which images, in which order


def block_order(rng: np.random.Generator, starts: np.ndarray, passes: Sequence[np.ndarray], window: int) -> np.ndarray:
    """All rows of `passes`, shuffled so that a row group's rows lie near one another.

    The row groups of all passes are shuffled, cut into windows of about `window` rows, and the rows are shuffled within
    each. With row groups of one row this is a plain permutation.

    Args:
        starts: (row groups + 1,) first row of every row group.
        passes: sorted rows, each at most once a pass; a row that is shown twice stands in two passes.
        window: counted in rows that are read, wanted or not: it is memory that ends a window.
    """
    bounds = [np.searchsorted(rows, starts) for rows in passes]
    filled = [np.flatnonzero(np.diff(bound)) for bound in bounds]
    units = np.concatenate([np.stack([np.full_like(groups, n), groups], 1) for n, groups in enumerate(filled)])
    units = units[rng.permutation(len(units))]
    held = np.diff(starts)[units[:, 1]]
    window_of = (np.cumsum(held) - held) // window
    cuts = np.flatnonzero(np.diff(window_of)) + 1
    order, at = np.empty(sum(map(len, passes)), dtype=np.int64), 0
    for part in np.split(units, cuts):
        rows = np.concatenate([passes[n][bounds[n][group] : bounds[n][group + 1]] for n, group in part.tolist()])
        order[at : at + len(rows)] = rng.permutation(rows)
        at += len(rows)
    return order


def shares(counts: np.ndarray, temperature: float) -> np.ndarray:
    """The share p_i of every group in an epoch: n_i^T / sum n_j^T.

    T = 1 leaves the corpus as it is, T = 0 shows all groups equally often; between them it is the exponent alpha of
    multilingual sampling (Conneau et al., 2020, Unsupervised Cross-lingual Representation Learning at Scale).
    """
    weights = np.where(counts > 0, np.maximum(counts, 1).astype(float) ** temperature, 0.0)
    return weights / weights.sum()


def quotas(counts: np.ndarray, temperature: float, total: int) -> np.ndarray:
    """Whole numbers that add up to `total` and are nearest to `total * shares` (largest remainders)."""
    wanted = shares(counts, temperature) * total
    whole = np.floor(wanted + 1e-9).astype(np.int64)
    largest = np.argsort(-(wanted - whole), kind="stable")
    whole[largest[: total - whole.sum()]] += 1
    return whole


def choose(rng: np.random.Generator, rows: np.ndarray, starts: np.ndarray, count: int) -> np.ndarray:
    """`count` of the sorted `rows`, sorted, at random from random row groups.

    Only row groups that hold `SPREAD` times as many of them are read: taking 50,000 images of 1.8 million one by one
    would mean to read all.
    """
    if count >= len(rows):
        return rows
    group_of = np.searchsorted(starts, rows, side="right") - 1
    groups, counts = np.unique(group_of, return_counts=True)
    order = rng.permutation(len(groups))
    enough = int(np.searchsorted(np.cumsum(counts[order]), min(SPREAD * count, len(rows)))) + 1
    rows = rows[np.isin(group_of, groups[order[:enough]])]
    return np.sort(rng.choice(rows, count, replace=False))


def balanced_passes(
    rng: np.random.Generator,
    starts: np.ndarray,
    sources: np.ndarray | None = None,
    max_images_per_source: int | None = None,
    groups: np.ndarray | None = None,
    temperature: float = 1.0,
) -> list[np.ndarray]:
    """The rows of an epoch, as passes for `block_order`.

    First no source gives more than `max_images_per_source` images, chosen anew each epoch. An epoch has as many images
    as are left then, balanced or not. Of these, group i gets the share n_i^T / sum n_j^T: a group with fewer images than
    its part shows all of them equally often, give or take one, a group with more shows some.

    Args:
        sources, groups: (rows,) codes from 0 on.
    """
    rows = np.arange(starts[-1], dtype=np.int64)
    if max_images_per_source is not None:
        chosen = [
            choose(rng, np.flatnonzero(sources == source), starts, max_images_per_source)
            for source in range(int(sources.max()) + 1)
        ]
        rows = np.sort(np.concatenate(chosen))
    if groups is None:
        return [rows]
    passes: list[list[np.ndarray]] = []
    counts = np.bincount(groups[rows])
    for group, quota in enumerate(quotas(counts, temperature, len(rows))):
        mine = rows[groups[rows] == group]
        number = 0
        while quota > 0:
            if number == len(passes):
                passes.append([])
            part = choose(rng, mine, starts, int(quota))
            passes[number].append(part)
            quota, number = quota - len(part), number + 1
    return [np.sort(np.concatenate(parts)) for parts in passes]


class EpochPlan:
    """Which images an epoch shows, and in which order: a pure function of (seed, epoch).

    Args:
        corpus: a `Corpus`.
        balance_by: columns; their values together name the group of an image.
        temperature: of `shares`.
        max_images_per_source: images a value of the column `source` gives at most to an epoch.

    Attributes:
        length: images an epoch, the same for every epoch.
        order: for `StreamBatchSampler`; None where the corpus is read image by image and shown as it is.

    Raises:
        ValueError: a column that the corpus has not; the columns there are named.
    """

    def __init__(
        self,
        corpus,
        balance_by: Sequence[str] = (),
        temperature: float = 1.0,
        max_images_per_source: int | None = None,
    ):
        self.corpus, self.temperature, self.max_images_per_source = corpus, temperature, max_images_per_source
        self.sources = self.groups = None
        self.names: list[str] = []
        self.length = len(corpus)
        if max_images_per_source is not None:
            self.sources, _ = corpus.labels("source")
            self.length = int(np.minimum(np.bincount(self.sources), max_images_per_source).sum())
        for column in balance_by:
            codes, names = corpus.labels(column)
            if self.groups is None:
                self.groups, self.names = codes, names
                continue
            together, self.groups = np.unique(self.groups.astype(np.int64) * len(names) + codes, return_inverse=True)
            self.groups = self.groups.astype(np.int32)
            self.names = [f"{self.names[both // len(names)]}/{names[both % len(names)]}" for both in together]
        plain = self.sources is None and self.groups is None and corpus.window == 1
        self.order = None if plain else self._order

    @property
    def description(self) -> str:
        """What the first epoch shows of every group, for a log."""
        if self.groups is None:
            return ""
        codes = self.groups[self._order(0, 0)]
        counts = np.bincount(codes, minlength=len(self.names))
        parts = [f"{self.names[i]} {counts[i]}" for i in np.argsort(-counts, kind="stable")[:20]]
        return ": " + ", ".join(parts) + (", ..." if len(self.names) > 20 else "")

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        starts = self.corpus.starts
        passes = balanced_passes(rng, starts, self.sources, self.max_images_per_source, self.groups, self.temperature)
        return block_order(rng, starts, passes, self.corpus.window)
