# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Features of a whole corpus in Parquet files, and the index that finds the nearest of them.

A folder holds `meta.json` (whose features these are), `features-NNNNN-of-NNNNN.parquet` and `index.faiss`. A shard has its
name only when it is whole, and its bytes depend on the images and the settings alone, not on how many ranks or tries it
took: a killed run goes on with the shards that are missing.
"""

import contextlib
import json
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from ..data.corpus import SIDE_FILES, Corpus, FileCorpus, load_corpus, walk_files
from ..data.shards import sync_folder, write_atomically
from .encoders import FrozenEncoder
from .features import encode


META, INDEX = "meta.json", "index.faiss"
IMAGES_PER_SHARD = 1024
# What goes into the shards of what a corpus says of its images.
COLUMNS = ("organ", "label", "patient", "study", "clip", "view", "source")
STILLS = {".jpg", ".jpeg", ".png", ".bmp"}


def open_images(name: str, split: str = "train", progress: bool = True) -> Corpus:
    """What `--dataset` names. A folder of stills alone is not decoded first: what can't be read shows when it is embedded."""
    root = Path(name)
    if root.is_dir() and not (root / "dataset_info.json").is_file():
        root = root / split if (root / split).is_dir() else root
        files = walk_files(root)
        side = Counter(p.suffix.lower() for p in files if p.suffix.lower() in SIDE_FILES)
        stills = [p for p in files if p.suffix.lower() in STILLS]
        if stills and len(stills) + side.total() == len(files) and not side[".parquet"]:
            return FileCorpus(name, [(str(path), 1) for path in stills], root=root, companions=side)
    return load_corpus(name, split=split, progress=progress)


def embed_corpus(
    encoder: FrozenEncoder,
    corpus: Corpus,
    folder: Path,
    *,
    dataset: dict,
    kind: str = "pooled",
    batch_size: int = 32,
    images_per_shard: int = IMAGES_PER_SHARD,
    num_workers: int | None = None,
    accelerator=None,
    progress: bool = True,
) -> dict[str, str]:
    """Features of every image of a corpus, into `folder`; shards that are there and whole are kept.

    Args:
        dataset: what `open_images` was called with, kept so that a query can show the images. The others: see
            `extract_features`.

    Returns:
        "id" to reason of the images that can't be read; they have no row.

    Raises:
        ValueError: the folder was begun with other images, another encoder or other settings; the differing one is named.
    """
    ranks, rank = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    settings = {
        "encoder": encoder.name, "encoder_fingerprint": encoder.fingerprint, "corpus_fingerprint": corpus.fingerprint,
        "images": len(corpus), "kind": kind, "image_size": list(encoder.size), "grid": list(encoder.grid),
        "dtype": str(encoder.dtype).removeprefix("torch."), "batch_size": batch_size,
        "images_per_shard": images_per_shard,
    }  # fmt: skip
    if rank == 0:
        _begin(folder, settings, dataset)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    stamp = json.dumps(settings, sort_keys=True)
    of = -(-len(corpus) // images_per_shard)
    spans = [range(n * images_per_shard, min((n + 1) * images_per_shard, len(corpus))) for n in range(of)]
    due = [n for n in range(of)[rank::ranks] if _problems_of(folder / shard_name(n, of), stamp) is None]
    batches = [
        list(range(at, min(at + batch_size, spans[n].stop))) for n in due for at in range(spans[n].start, spans[n].stop, batch_size)
    ]  # fmt: skip
    columns = {name: told for name in COLUMNS if (told := _column(corpus, name)) is not None} if due else {}
    stream = encode(encoder, corpus, batches, kind=kind, num_workers=num_workers)
    shown = tqdm(total=sum(map(len, batches)), desc=f"features by {encoder.name}", unit="image",
                 disable=not (progress and rank == 0))  # fmt: skip
    for number in due:
        rows, features, unreadable = [], [], {}
        while len(rows) + len(unreadable) < len(spans[number]):
            read, found, problems = next(stream)
            rows += read
            unreadable |= problems
            features += [found] if read else []
            shown.update(len(read) + len(problems))
        # A shard without a readable image has the columns of the others.
        features = features or [_none(encoder, kind)]
        table = _table(corpus, rows, features, columns)
        table = table.replace_schema_metadata({"urfm": json.dumps({"settings": stamp, "unreadable": unreadable})})
        _put(folder / shard_name(number, of), table)
    stream.close()
    shown.close()
    if accelerator is not None:
        accelerator.wait_for_everyone()
    left_out = {}
    for number in range(of):
        left_out |= _problems_of(folder / shard_name(number, of), stamp) or {}
    if len(left_out) == len(corpus):
        raise ValueError(
            f"{corpus.name}: none of {len(corpus)} images can be read, the first: {next(iter(left_out.items()))}"
        )
    if rank == 0:
        for part in folder.glob(".tmp-*"):
            part.unlink()  # of runs that were killed
        if kind != "tokens" and (due or not (folder / INDEX).is_file()):
            build_index(folder)
    return left_out


def shard_name(number: int, of: int) -> str:
    return f"features-{number:05d}-of-{of:05d}.parquet"


def read_meta(folder: Path) -> dict:
    """What `meta.json` says.

    Raises:
        FileNotFoundError: the folder holds no features.
    """
    if not (folder / META).is_file():
        raise FileNotFoundError(f"{folder} holds no {META}: no features were written there. Name a --dataset to embed.")
    return json.loads((folder / META).read_text())


def read_features(folder: Path) -> tuple[pa.Table, np.ndarray]:
    """All rows of a folder: a table of `row`, `id` and what the corpus tells, and the features (rows, D) or (rows, L, D).

    Raises:
        ValueError: shards are missing.
    """
    meta, table = read_meta(folder), pa.concat_tables([pq.read_table(path) for path in _shards(folder)])
    flat = table.column("embedding").combine_chunks()
    flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) else flat
    features = flat.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    if meta["kind"] == "tokens":
        features = features.reshape(len(table), meta["grid"][0] * meta["grid"][1], -1)
    return table.drop_columns(["embedding"]), features


# ---------------------------------------------------------------- the nearest


def build_index(folder: Path):
    """`index.faiss`: exact search by the inner product of features of unit length, which is their cosine."""
    faiss, index = _faiss(), None
    for path in _shards(folder):
        column = pq.read_table(path, columns=["embedding"]).column(0).combine_chunks()
        features = np.array(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(column), -1)
        index = index or faiss.IndexFlatIP(features.shape[1])
        faiss.normalize_L2(features)
        index.add(features)
    temporary = folder / f".tmp-{INDEX}"
    # Not serialize_index: where SimpleITK is loaded too, SWIG takes faiss's vector of bytes for one of SimpleITK's.
    faiss.write_index(index, str(temporary))
    os.replace(temporary, folder / INDEX)


def nearest(folder: Path, features: np.ndarray, top: int) -> list[dict]:
    """The `top` images of a folder whose features are nearest to `features` (D,): `rank`, `similarity` (cosine), `row`,
    `id` and what the corpus tells of them, nearest first.

    Raises:
        ValueError: features of tokens have no index.
    """
    faiss = _faiss()
    if not (folder / INDEX).is_file():
        tokens = read_meta(folder)["kind"] == "tokens"
        reason = (
            ": of --kind tokens there is none; take another kind" if tokens else "; the command that began it goes on"
        )
        raise ValueError(f"{folder} has no {INDEX}{reason}.")
    query = np.array(features, np.float32)[None]
    faiss.normalize_L2(query)
    index = faiss.read_index(str(folder / INDEX))
    similarity, found = index.search(query, min(top, index.ntotal))
    names = [name for name in pq.read_schema(_shards(folder)[0]).names if name != "embedding"]
    table = pa.concat_tables([pq.read_table(path, columns=names) for path in _shards(folder)])
    rows = table.take(found[0]).to_pylist()
    return [{"rank": n + 1, "similarity": round(float(near), 6), **row} for n, (near, row) in
            enumerate(zip(similarity[0], rows))]  # fmt: skip


def _faiss():
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells how it was loaded
    try:
        import faiss
    except ImportError as error:
        raise ValueError(f"The index of nearest images needs faiss: pip install 'urfm[train]' ({error}).") from error
    return faiss


# ---------------------------------------------------------------- files


def _begin(folder: Path, settings: dict, dataset: dict):
    if (folder / META).is_file():
        begun = json.loads((folder / META).read_text())
        for name, value in settings.items():
            # An encoder may lie elsewhere now; its fingerprint is what counts.
            if name != "encoder" and begun.get(name) != value:
                raise ValueError(f"{folder} was begun with {name}={begun.get(name)!r}, this run has {name}={value!r}. "
                                 "Go on with the same, or name another --output_dir.")  # fmt: skip
        return
    there = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    if there:
        raise ValueError(f"--output_dir {folder} holds {', '.join(there[:3])} and no features. Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / META, json.dumps(settings | {"dataset": dataset}, indent=2) + "\n")


def _shards(folder: Path) -> list[Path]:
    meta = read_meta(folder)
    of = -(-meta["images"] // meta["images_per_shard"])
    paths = [folder / shard_name(number, of) for number in range(of)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{folder} is not finished: {len(missing)} of {of} shards are missing. The command that began it "
                         "goes on with it.")  # fmt: skip
    return paths


def _problems_of(path: Path, stamp: str) -> dict[str, str] | None:
    """The unreadable images of a whole shard of these settings, None where it is missing or another's."""
    with contextlib.suppress(OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        facts = json.loads(pq.read_schema(path).metadata[b"urfm"])
        return facts["unreadable"] if facts["settings"] == stamp else None
    return None


def _column(corpus: Corpus, name: str) -> tuple[np.ndarray, list[str]] | None:
    try:
        return corpus.labels(name)
    except ValueError:
        return None


def _none(encoder: FrozenEncoder, kind: str) -> np.ndarray:
    """Features of no image, of the width and the type that features have."""
    found = encoder.features(torch.zeros(1, 3, *encoder.size), kind)[:0].cpu()
    return (found.half() if kind == "tokens" else found).numpy()


def _table(corpus: Corpus, rows: list[int], features: list[np.ndarray], columns: dict) -> pa.Table:
    shape, flat = features[0].shape[1:], np.concatenate(features).reshape(-1)
    told = {
        name: pa.array([names[codes[row]] for row in rows], pa.string()) for name, (codes, names) in columns.items()
    }
    return pa.table({
        "row": pa.array(rows, pa.int64()),
        "id": pa.array([corpus.id(row) for row in rows], pa.string()),
        **told,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), int(np.prod(shape))),
    })  # fmt: skip


def _put(path: Path, table: pa.Table):
    temporary = path.with_name(f".tmp-{path.name}")
    pq.write_table(table, temporary, compression="zstd", use_dictionary=[n for n in table.column_names if n in COLUMNS])
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
