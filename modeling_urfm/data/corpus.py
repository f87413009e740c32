# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What `--dataset` names, as a map-style torch data set of uint8 images.

A folder of files is opened and decoded once at the start, so that a damaged file is named before training begins;
Parquet files (`streaming.py`) and Hub data sets are decoded as they are used, and there an image that can't be read
costs that image alone.
"""

import difflib
import hashlib
import logging
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from .reading import IMAGE_SUFFIXES, UnreadableFile, open_source
from .streaming import MAX_GROUP_BYTES, ParquetRows, decode_pixels


logger = logging.getLogger(__name__)
# Companions of images that are no images; they are counted, not complained about one by one.
SIDE_FILES = {
    ".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".html", ".pdf", ".yaml",
    ".yml", ".xlsx", ".npy", ".log", ".gz", ".zip", ".parquet", ".jsonl", ".safetensors",
}  # fmt: skip
MAX_TRIES = 100  # unreadable images in a row before a corpus counts as unreadable


class Corpus(Dataset):
    """Images with names: `corpus[i]` is `{"pixels": uint8 (1 or 3, height, width), "id", "index", "unreadable"}`.

    An image that turns out unreadable is replaced by the next one that can be read: `id` and `index` are then that one's,
    and `unreadable` says "id: reason" of the one that was asked for.

    Attributes:
        name: what was asked for. left_out: (file, reason) of everything that should be an image and gave none.
        companions: what lies beside the images and is none by its name (tables, texts): suffix to number of files.
        description: a line for a log or a card. fingerprint: changes whenever the images do.
        window: 1 where images are read one by one in any order; else how many may be asked for in any order without
            reading anything twice. starts: first image of everything that is read at once (`streaming.block_order`).
    """

    window = 1

    def __init__(self, name: str, size: int, left_out: Sequence[tuple[str, str]] = (), companions=None):
        self.name, self.size, self.left_out, self.companions = name, size, list(left_out), Counter(companions or {})

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> np.ndarray:
        """Image `index` as (height, width, 3) uint8; raises where it can't be read."""
        raise NotImplementedError

    def pixels(self, index: int) -> torch.Tensor:
        """Image `index` as (1 or 3, height, width) uint8, in whatever order of memory; raises where it can't be read."""
        return torch.from_numpy(self.read(index)).permute(2, 0, 1)

    def id(self, index: int) -> str:
        raise NotImplementedError

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        """What `column` says of every image: codes (images,) and the names they stand for.

        Raises:
            ValueError: there is no such column; those there are are named.
        """
        raise ValueError(
            f"{self.name} has no column {column!r}: files have no columns, Parquet files and data sets do."
        )

    @property
    def starts(self) -> np.ndarray:
        return np.arange(self.size + 1)

    def __getitem__(self, index: int) -> dict:
        problem, at = "", index
        for _ in range(min(self.size, MAX_TRIES)):
            try:
                return {"pixels": self.pixels(at), "id": self.id(at), "index": at, "unreadable": problem}
            except Exception as error:  # decoders raise many kinds
                reason = error.reason if isinstance(error, UnreadableFile) else f"{type(error).__name__}: {error}"
                problem = problem or f"{self.id(at)}: {reason}"
                at = (at + getattr(error, "rows", 1)) % self.size
        raise UnreadableFile(
            self.name, f"{min(self.size, MAX_TRIES)} images in a row can't be read, the first: {problem}"
        )

    @property
    def description(self) -> str:
        text = f"{self.name}: {self.size} images"
        text += f", {len(self.left_out)} left out" if self.left_out else ""
        beside = ", ".join(f"{count} *{suffix}" for suffix, count in sorted(self.companions.items()))
        return text + (f" (beside them, no images: {beside})" if beside else "")

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.size} {self.content}".encode())
        for index in np.linspace(0, self.size - 1, min(self.size, 1000)).astype(int):
            digest.update(self.id(int(index)).encode())
        return digest.hexdigest()[:16]

    @property
    def content(self) -> str:
        """What changes when images change behind names that stay."""
        return ""


class FileCorpus(Corpus):
    """Frames of image and DICOM files; every file has been opened and decoded once."""

    def __init__(
        self,
        name: str,
        files: Sequence[tuple[str, int]],
        left_out: Sequence[tuple[str, str]] = (),
        root=None,
        companions=None,
    ):
        self.files = list(files)
        self.ends = list(accumulate(frames for _, frames in self.files))
        self.root = Path(root) if root else None
        super().__init__(name, self.ends[-1] if self.ends else 0, left_out, companions)

    def _place(self, index: int) -> tuple[str, int]:
        file = bisect_right(self.ends, index)
        return self.files[file][0], index - (self.ends[file - 1] if file else 0)

    def read(self, index: int) -> np.ndarray:
        path, frame = self._place(index)
        return open_source(path).frame(frame)

    def id(self, index: int) -> str:
        path, frame = self._place(index)
        return f"{_shown(Path(path), self.root)}#{frame}"

    @property
    def content(self) -> str:
        stats = [os.stat(path) for path, _ in self.files]
        return hashlib.sha256(str([(s.st_size, s.st_mtime_ns) for s in stats]).encode()).hexdigest()


class CellCorpus(Corpus):
    """Images in the cells of a table: encoded bytes, or the path of a file."""

    def cell(self, index: int) -> tuple:
        """Bytes and path of image `index`; either may be None."""
        raise NotImplementedError

    def pixels(self, index: int) -> torch.Tensor:
        data, path = self.cell(index)
        if data is None and not path:
            raise UnreadableFile(self.id(index), "the cell is empty")
        return decode_pixels(Path(path).read_bytes() if data is None else data)

    def read(self, index: int) -> np.ndarray:
        return self.pixels(index).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


class TableCorpus(CellCorpus):
    """The `image` column of a `datasets.Dataset`, decoded as it is used."""

    def __init__(self, name: str, table, column: str = "image"):
        import datasets

        if not isinstance(table.features.get(column), datasets.Image):
            table = table.cast_column(column, datasets.Image())
        self.rows = table
        self.table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column = column
        super().__init__(name, len(table))

    def cell(self, index: int) -> tuple:
        cell = self.table[index][self.column] or {}
        return cell.get("bytes"), cell.get("path")

    def id(self, index: int) -> str:
        return f"{self.name}#{index}"

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        if column not in self.rows.column_names:
            raise _no_column(self.name, column, self.rows.column_names)
        values = ["unknown" if value is None else str(value) for value in self.rows.select_columns([column])[column]]
        names, codes = np.unique(values, return_inverse=True)
        return codes.astype(np.int32), names.tolist()

    @property
    def content(self) -> str:
        """Of up to 1000 cells, evenly spaced."""
        digest = hashlib.sha256()
        for index in np.linspace(0, self.size - 1, min(self.size, 1000)).astype(int):
            data, path = self.cell(int(index))
            digest.update(data or str(path).encode())
        return digest.hexdigest()


class ShardCorpus(CellCorpus):
    """Parquet files where they lie: opened by their footers, read a row group at a time, decoded as they are used."""

    def __init__(self, name: str, paths: Sequence[Path], column: str = "image", root: Path | None = None):
        self.rows, self.root = ParquetRows(paths, column), root
        super().__init__(name, len(self.rows))

    def cell(self, index: int) -> tuple:
        return self.rows.cell(index)

    def id(self, index: int) -> str:
        path, row = self.rows.place(index)
        return f"{_shown(Path(path), self.root)}#{row}"

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        if column not in self.rows.columns:
            raise _no_column(self.name, column, self.rows.columns)
        return self.rows.labels(column)

    @property
    def window(self) -> int:
        return self.rows.window

    @property
    def starts(self) -> np.ndarray:
        return self.rows.starts

    @property
    def content(self) -> str:
        return self.rows.digest()


def _no_column(name: str, column: str, columns: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(column, columns, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{name} has no column {column!r}.{hint} Its columns are: {', '.join(columns)}.")


class JoinedCorpus(Corpus):
    """Several corpora, one after the other."""

    def __init__(self, parts: Sequence[Corpus]):
        self.parts, self.ends = list(parts), list(accumulate(len(part) for part in parts))
        left_out = [line for part in parts for line in part.left_out]
        companions = sum((part.companions for part in parts), Counter())
        super().__init__(" + ".join(part.name for part in parts), self.ends[-1], left_out, companions)

    def _place(self, index: int) -> tuple[Corpus, int]:
        part = bisect_right(self.ends, index)
        return self.parts[part], index - (self.ends[part - 1] if part else 0)

    def read(self, index: int) -> np.ndarray:
        part, at = self._place(index)
        return part.read(at)

    def pixels(self, index: int) -> torch.Tensor:
        part, at = self._place(index)
        return part.pixels(at)

    def id(self, index: int) -> str:
        part, at = self._place(index)
        return part.id(at)

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        codes, names = [], {}
        for part in self.parts:
            here, called = part.labels(column)
            codes.append(np.array([names.setdefault(name, len(names)) for name in called], dtype=np.int32)[here])
        return np.concatenate(codes), list(names)

    @property
    def window(self) -> int:
        """The smallest of those that have one: each part's memory then holds its share of a window."""
        return min((part.window for part in self.parts if part.window > 1), default=1)

    @property
    def starts(self) -> np.ndarray:
        shifts = [0, *self.ends]
        return np.concatenate([part.starts[:-1] + shift for part, shift in zip(self.parts, shifts)] + [[self.size]])

    @property
    def content(self) -> str:
        return " ".join(part.content for part in self.parts)

    @property
    def description(self) -> str:
        return "; ".join(part.description for part in self.parts)


def join_corpora(parts: Sequence[Corpus]) -> Corpus:
    """One corpus of several."""
    return parts[0] if len(parts) == 1 else JoinedCorpus(parts)


def load_corpus(path_or_id: str | os.PathLike, *, split: str = "train", progress: bool = True) -> Corpus:
    """Open what `--dataset` names.

    Args:
        path_or_id: a file; a folder of images and DICOM files (at any depth, by content, whatever their names are); a
            `datasets` image folder (its `split` folder is taken where there is one); Parquet files; a folder that
            `save_to_disk` wrote; or a data set's id on the Hub.
        split: which part of a data set that has several.

    Raises:
        FileNotFoundError: nothing of that name; the nearest name is given.
        ValueError: nothing in it is an image; what was found is listed, with reasons.

    >>> from modeling_urfm.data.reading import ultrasound_examples
    >>> corpus = load_corpus(ultrasound_examples()[0].parent / "examples_jpeg2k.dcm", progress=False)
    >>> len(corpus), tuple(corpus[0]["pixels"].shape)
    (1, (3, 480, 640))
    """
    path = Path(path_or_id)
    if not path.exists():
        return _table(load_from_hub(str(path_or_id), split), str(path_or_id), split)
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            parquet_features(path)  # a damaged file is named
            return _load_parquet([path], path.parent, str(path), split)
        return _open_files([path], path.parent, str(path), progress)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        import datasets

        return _table(datasets.load_from_disk(str(path)), str(path), split)
    # Tables beside images (a manifest, the labels, an image folder's metadata) hold no images themselves.
    files = walk_files(path)
    parquet = [p for p in files if p.suffix == ".parquet" and image_column(parquet_features(p))]
    if parquet:
        return _load_parquet(parquet, path, str(path), split)
    root = path / split if (path / split).is_dir() else path
    return _open_files(files if root == path else walk_files(root), root, str(path_or_id), progress)


def _shown(path: Path, root: Path | None) -> str:
    """A file's name under `root`; bytes that are no UTF-8 (archives of other systems bring them) as question marks."""
    shown = path.relative_to(root) if root else path.name
    return os.fsencode(shown).decode("utf-8", "replace")


def walk_files(folder: Path) -> list[Path]:
    """All files at any depth but hidden ones, in an order that is the same everywhere; a linked folder once."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in seen:  # a link back to where we were
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent) / name for name in sorted(files) if not name.startswith(".")]
    return found


def _open_files(paths: Sequence[Path], root: Path, name: str, progress: bool) -> FileCorpus:
    """Open and decode every file once: stills whole, of a cine loop its first and last frame."""
    from tqdm.auto import tqdm

    side = Counter(p.suffix.lower() for p in paths if p.suffix.lower() in SIDE_FILES or p.name == "DICOMDIR")
    paths = [p for p in paths if p.suffix.lower() not in SIDE_FILES and p.name != "DICOMDIR"]

    def check(path: Path) -> int | UnreadableFile:
        try:
            source = open_source(path)
            for frame in {0, source.num_frames - 1}:
                source.frame(frame)
            return source.num_frames
        except UnreadableFile as error:
            return error
        except Exception as error:  # never let one file end the run
            return UnreadableFile(path, f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checked = list(
            tqdm(pool.map(check, paths), total=len(paths), desc=f"reading {name}", unit="file", disable=not progress)
        )
    left_out = [
        (_shown(path, root), result.reason)
        for path, result in zip(paths, checked)
        if isinstance(result, UnreadableFile)
    ]
    files = [(str(path), result) for path, result in zip(paths, checked) if not isinstance(result, UnreadableFile)]
    if not files:
        side_lines = [(f"{count} files *{suffix}", "no image") for suffix, count in sorted(side.items())]
        left_out += side_lines
        reasons = "\n".join(f"  {file}: {reason}" for file, reason in left_out[:20])
        more = f"\n  ... and {len(left_out) - 20} more" if len(left_out) > 20 else ""
        raise ValueError(
            f"{name} holds no image that can be read. Wanted: DICOM files or {', '.join(sorted(IMAGE_SUFFIXES))}.\n"
            + (reasons + more if left_out else "  The folder is empty.")
        )
    return FileCorpus(name, files, left_out, root, side)


def _load_parquet(paths: Sequence[Path], root: Path, name: str, split: str) -> CellCorpus:
    # Shards are named after their split (data/train-00000-of-00004.parquet) or lie in a folder of its name.
    def of_split(path: Path) -> bool:
        return path.name.startswith(f"{split}-") or path.stem == split or split in path.relative_to(root).parts[:-1]

    named = [p for p in paths if of_split(p)]
    other = [p for p in paths if p.name.split("-")[0].removesuffix(".parquet") in ("train", "test", "validation")]
    if not named and other:
        splits = sorted({p.name.split("-")[0].removesuffix(".parquet") for p in other})
        raise ValueError(f"{name} has no split {split!r}; there are: {', '.join(splits)}.")
    corpus = open_parquet(named or paths, root, name)
    if not len(corpus):
        raise ValueError(f"{name}: split {split!r} is empty.")
    return corpus


def open_parquet(paths: Sequence[Path], root: Path, name: str, column: str | None = None) -> CellCorpus:
    """A column of images (by default the one that holds images) of Parquet files, read where they lie."""
    column = column or _image_column_of(parquet_features(paths[0]), name)
    corpus = ShardCorpus(name, paths, column, root)
    if corpus.rows.largest > MAX_GROUP_BYTES:
        import datasets

        logger.warning(
            "%s: its row groups have up to %d MB of images, so it is copied into the cache of `datasets` first. Written "
            "with row groups of 100 images (to_parquet(..., batch_size=100)) it would be read where it lies.",
            name, corpus.rows.largest >> 20,
        )  # fmt: skip
        return TableCorpus(name, datasets.Dataset.from_parquet([str(p) for p in paths]), column)
    return corpus


def parquet_features(path: Path):
    """A Parquet file's features; they are in its last bytes."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return datasets.Features.from_arrow_schema(pq.read_schema(path))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from error


def image_column(features) -> str | None:
    """`image` or the first column that holds images: as `datasets` declares them, or as bytes, alone or beside a path."""
    import datasets

    def holds_images(feature) -> bool:
        if isinstance(feature, dict):
            return "bytes" in feature and holds_images(feature["bytes"])
        return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")

    columns = [column for column, feature in features.items() if holds_images(feature)]
    return "image" if "image" in columns else columns[0] if columns else None


def _image_column_of(features, name: str) -> str:
    column = image_column(features)
    if column is None:
        kinds = ", ".join(f"{c} ({getattr(f, 'dtype', type(f).__name__)})" for c, f in features.items())
        raise ValueError(
            f"{name} has no column of images (`datasets.Image`, or their bytes); its columns are: {kinds}."
        )
    return column


def load_from_hub(name: str, split: str | None):
    """A data set on the Hub, or in the cache of `datasets`: its `split`, or a `DatasetDict` of all."""
    siblings = [p.name for p in Path(name).parent.glob("*")] if Path(name).parent.is_dir() else []
    near = difflib.get_close_matches(Path(name).name, siblings, n=1)
    hint = f" Did you mean {str(Path(name).parent / near[0])!r}?" if near else ""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or (hint and "/" not in name):
        raise FileNotFoundError(f"--dataset {name}: no such file or folder.{hint}")
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the loader and the Hub client raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"--dataset {name}: neither a file or folder here nor a data set that the Hub gives ({reason}).{hint} To use it "
            f"without a network, fetch it first: hf download --repo-type dataset {name} --local-dir FOLDER, then --dataset FOLDER."
        ) from error


def _table(table, name: str, split: str) -> TableCorpus:
    import datasets

    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise ValueError(f"{name} has no split {split!r}; there are: {', '.join(table)}.")
        table = table[split]
    column = _image_column_of(table.features, name)
    if not len(table):
        raise ValueError(f"{name}: split {split!r} is empty.")
    return TableCorpus(name, table, column)
