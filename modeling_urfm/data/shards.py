# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The Parquet files of a corpus: their columns, and writing them so that a killed run leaves no half of one."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


SPLITS = ("train", "validation", "test")
# One row group is what a training worker reads at once: at 512 px and JPEG 95 about 5 MB.
ROW_GROUP_ROWS = 64
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Every column that leaves, in order; `deidentify.POLICY` says where each comes from.
COLUMNS: dict[str, pa.DataType] = {
    "image": IMAGE, "organ": pa.string(), "label": pa.string(), "view": pa.string(), "source": pa.string(),
    "licence": pa.string(), "patient": pa.string(), "study": pa.string(), "clip": pa.string(), "frame": pa.int32(),
    "geometry": pa.string(), "mode": pa.string(), "spacing_mm": pa.list_(pa.float32()), "maker": pa.string(),
    "model": pa.string(), "transducer": pa.string(), "frame_rate": pa.float32(), "pixel_hash": pa.string(),
    "perceptual_hash": pa.string(),
}  # fmt: skip
MANIFEST = pa.schema({
    "input": pa.string(), "kind": pa.string(), "source": pa.string(), "status": pa.string(), "frames_in": pa.int64(),
    "frames_kept": pa.int64(), "frames_dropped": pa.int64(), "reasons": pa.list_(pa.string()),
})  # fmt: skip


def shard_schema() -> pa.Schema:
    """COLUMNS with what `datasets` needs to know that `image` is an image."""
    import datasets

    features = datasets.Features.from_arrow_schema(pa.schema(COLUMNS))
    return datasets.Features(features | {"image": datasets.Image()}).arrow_schema


class AtomicParquet:
    """A Parquet file that has its name only when it is whole: rows are buffered into row groups beside it.

    The bytes depend on the rows alone: no clock, no path, one thread.
    """

    def __init__(self, path: Path, schema: pa.Schema, group_rows: int = ROW_GROUP_ROWS):
        self.path, self.schema, self.group_rows = path, schema, group_rows
        self.temporary = path.with_name(f".tmp-{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict] = []
        self.writer = pq.ParquetWriter(self.temporary, schema, compression="zstd", use_dictionary=self._dictionary())

    def _dictionary(self) -> list[str]:
        # Of images and hashes no two are equal; a dictionary of them would only be built to be thrown away.
        single = {"image", "pixel_hash", "perceptual_hash", "input", "path", "detail"}
        return [field.name for field in self.schema if field.name not in single and pa.types.is_string(field.type)]

    def write(self, row: dict) -> None:
        self.rows.append(row)
        if len(self.rows) >= self.group_rows:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def close(self) -> None:
        self._flush()
        self.writer.close()
        with self.temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            self.writer.close()
            self.temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text file so that it is there whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Force to the disk that its files have their names, where a folder can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict]:
    """Rows of a Parquet file, one row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns, use_threads=False).to_pylist()


def write_shards(
    data_dir: Path, rows: Iterable[tuple[str, dict]], counts: dict[str, int], rows_per_shard: int
) -> list[Path]:
    """Write (split, row) pairs as data/SPLIT-NNNNN-of-NNNNN.parquet, each split in the order given.

    A whole shard that is already there, from a run with the same rows that was killed before its end, is kept.

    Args:
        counts: rows a split will have; a split without rows gets no file.
    """
    schema, written, seen, open_shards = shard_schema(), [], dict.fromkeys(counts, 0), {}
    for split, row in rows:
        number, at = divmod(seen[split], rows_per_shard)
        if at == 0:
            path = data_dir / shard_name(split, number, -(-counts[split] // rows_per_shard))
            written.append(path)
            due = min(rows_per_shard, counts[split] - seen[split])
            open_shards[split] = None if _is_whole(path, due) else AtomicParquet(path, schema)
        seen[split] += 1
        shard = open_shards[split]
        if shard is not None:
            shard.write(row)
            if at == rows_per_shard - 1 or seen[split] == counts[split]:
                shard.close()
    if seen != counts:
        raise RuntimeError(f"rows a split were announced as {counts} and came as {seen}")
    return written


def _is_whole(path: Path, rows: int) -> bool:
    try:
        return pq.read_metadata(path).num_rows == rows
    except (OSError, pa.ArrowException):
        return False


def shard_name(split: str, number: int, of: int) -> str:
    return f"{split}-{number:05d}-of-{of:05d}.parquet"
