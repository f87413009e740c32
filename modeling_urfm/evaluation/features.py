# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Features of frozen encoders: computed once, kept on disk, shared by ranks.

Reading and resizing run in threads beside the encoder: decoders and torch let go of Python's lock, and threads start at
once, where worker processes need seconds.
"""

import hashlib
import logging
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.corpus import CellCorpus, Corpus, FileCorpus, JoinedCorpus
from ..data.phantoms import usable_cores
from ..data.reading import UnreadableFile
from ..data.streaming import decode_pixels
from ..flags import check_choice
from .encoders import KINDS, FrozenEncoder


logger = logging.getLogger(__name__)
# Stills that torchvision decodes, twice as fast as Pillow.
FAST_SUFFIXES = {".jpg", ".jpeg", ".png"}


def extract_features(
    encoder: FrozenEncoder,
    corpus: Corpus,
    rows: Sequence[int],
    *,
    kind: str = "pooled",
    corruption: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    cache_dir: Path | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    accelerator=None,
    progress: bool = True,
) -> np.ndarray:
    """Features of the images `rows` of a corpus, in that order.

    Args:
        kind: see `FrozenEncoder.features`.
        corruption: changes the pixels before the encoder's preprocessing: called with uint8 (channels, height, width) and
            the image's row; its `key` says what it does, as the cache must know.
        cache_dir: where features are kept, keyed by encoder, images, kind and corruption; None: nowhere. Ranks on several
            machines need a folder that all of them see.
        num_workers: threads that read images; None: as many as there are cores.
        accelerator: of `accelerate`: each rank computes a part, all get the whole.

    Returns:
        (images, D) float32; of kind "tokens" (images, L, D) float16, mapped from the disk where there is a cache.

    Raises:
        ValueError: images that can't be read; they are named.
    """
    check_choice("kind", kind, KINDS)
    rows = np.asarray(rows, dtype=np.int64)
    path = None if cache_dir is None else Path(cache_dir) / f"{_key(encoder, corpus, rows, kind, corruption)}.npy"
    ranks, rank = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    # One answer for all ranks: those that found the file would not take part in what the others compute.
    if path is not None and all(_of_every_rank(accelerator, _is_whole(path, len(rows)))):
        return _read(path, kind)
    batches = [range(at, min(at + batch_size, len(rows))) for at in range(0, len(rows), batch_size)]
    mine = batches[rank::ranks]
    found: np.ndarray | None = None
    unreadable, at = {}, 0
    places = [place for batch in mine for place in batch]
    stream = encode(encoder, corpus, [rows[batch.start : batch.stop].tolist() for batch in mine], kind=kind,
                    corruption=corruption, num_workers=num_workers)  # fmt: skip
    shown = {"total": len(mine), "desc": f"features of {encoder.name}", "unit": "batch",
             "disable": not (progress and rank == 0)}  # fmt: skip
    for _, features, problems in tqdm(stream, **shown):
        unreadable |= problems
        if unreadable:  # the rest is read only to name all that can't be
            continue
        if found is None:
            found = np.empty((len(places), *features.shape[1:]), features.dtype)
        found[at : at + len(features)] = features
        at += len(features)
    unreadable = {name: reason for part in _of_every_rank(accelerator, unreadable) for name, reason in part.items()}
    if unreadable:
        raise ValueError(f"{corpus.name}: {_listed(unreadable)}")
    whole = found if accelerator is None or ranks == 1 else _gather(accelerator, found, places, len(rows))
    if path is not None:
        if rank == 0:
            _write(path, whole)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        if kind == "tokens" and path.is_file():
            return _read(path, kind)  # mapped: those of several encoders need not fit into memory together
    return whole


def encode(
    encoder: FrozenEncoder,
    corpus: Corpus,
    batches: Sequence[Sequence[int]],
    *,
    kind: str = "pooled",
    corruption=None,
    num_workers: int | None = None,
) -> Iterator[tuple[list[int], np.ndarray, dict[str, str]]]:
    """Features of batch after batch; the images of the next ones are read meanwhile.

    Args:
        batches: rows of the corpus. The others: see `extract_features`.

    Yields:
        Rows that could be read, their features (rows, D) float32 or (rows, L, D) float16, and "id" to reason of the others;
        also of those whose features are not finite.
    """
    on_gpu, threads = encoder.device.type == "cuda", torch.get_num_threads()
    workers = num_workers or usable_cores()
    pixels_of = _for_threads(corpus)

    def read(row: int) -> torch.Tensor | str:
        try:
            pixels = pixels_of(row)
        except Exception as error:  # decoders raise many kinds
            return error.reason if isinstance(error, UnreadableFile) else f"{type(error).__name__}: {error}"
        try:
            return encoder.prepare.shrink(pixels if corruption is None else corruption(pixels, row))
        except Exception as error:  # of a processor, or of a corruption of an image a few pixels small
            return f"{tuple(pixels.shape)} can't be prepared: {type(error).__name__}: {error}"

    # torch would let each reader start a team of threads of its own.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    ahead, due, launched = deque(), iter(batches), None
    try:
        while True:
            # On a processor reading takes a few per cent of the time: one batch ahead is enough. A GPU must not wait.
            while len(ahead) < (2 + 2 * workers // max(1, len(batches[0])) if on_gpu and batches else 2):
                batch = next(due, None)
                if batch is None:
                    break
                ahead.append((batch, [pool.submit(read, row) for row in batch]))
            if not ahead:
                break
            batch, futures = ahead.popleft()
            images = [future.result() for future in futures]
            rows = [row for row, image in zip(batch, images) if not isinstance(image, str)]
            unreadable = {corpus.id(row): image for row, image in zip(batch, images) if isinstance(image, str)}
            features = _forward(encoder, [image for image in images if not isinstance(image, str)], kind)
            # Of a GPU the batch before is fetched while this one is computed.
            if launched is not None:
                yield _fetched(corpus, *launched)
            launched = rows, features, unreadable
            if not on_gpu:
                yield _fetched(corpus, *launched)
                launched = None
        if launched is not None:
            yield _fetched(corpus, *launched)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # for threads that start later; this one's own did not change


def _forward(encoder: FrozenEncoder, images: list[torch.Tensor], kind: str) -> torch.Tensor:
    """Images as `shrink` leaves them to features on the encoder's device; empty without images."""
    if not images:
        return torch.empty(0, encoder.hidden_size)
    if len({image.shape[0] for image in images}) > 1:
        images = [image.expand(3, -1, -1) for image in images]
    batch = torch.stack(images)
    if encoder.device.type == "cuda":
        batch = batch.pin_memory().to(encoder.device, non_blocking=True)
    features = encoder.features(encoder.prepare.normalize(batch), kind)
    return features.half() if kind == "tokens" else features


def _fetched(corpus: Corpus, rows: list[int], features: torch.Tensor, unreadable: dict):
    """To the CPU; images whose features are not finite count as unreadable."""
    features = features.cpu().numpy()
    finite = np.isfinite(features).all(tuple(range(1, features.ndim)))  # of no image, too
    if not finite.all():
        bad = [row for row, good in zip(rows, finite) if not good]
        unreadable = unreadable | {corpus.id(row): "the encoder's features of it are not finite" for row in bad}
        rows, features = [row for row, good in zip(rows, finite) if good], features[finite]
    return rows, features, unreadable


# ---------------------------------------------------------------- reading in threads


def _for_threads(corpus: Corpus) -> Callable[[int], torch.Tensor]:
    """`corpus.pixels`, for several threads at once: cells of a table are had one at a time, decoding runs side by side."""
    if isinstance(corpus, JoinedCorpus):
        parts = [_for_threads(part) for part in corpus.parts]

        def of_part(index: int) -> torch.Tensor:
            part = bisect_right(corpus.ends, index)
            return parts[part](index - (corpus.ends[part - 1] if part else 0))

        return of_part
    if isinstance(corpus, FileCorpus):
        return lambda index: file_pixels(corpus, index)
    lock = threading.Lock()
    if isinstance(corpus, CellCorpus):
        shared = copy(corpus)
        shared.cell = _locked(corpus.cell, lock)
        return shared.pixels
    return _locked(corpus.pixels, lock)


def _locked(function: Callable, lock: threading.Lock) -> Callable:
    def call(*arguments):
        with lock:
            return function(*arguments)

    return call


def file_pixels(corpus: FileCorpus, index: int) -> torch.Tensor:
    """What `corpus.pixels` gives, sooner for plain JPEG and PNG files; a grey one keeps its one channel."""
    path, frame = corpus._place(index)
    if frame == 0 and os.path.splitext(path)[1].lower() in FAST_SUFFIXES:
        data = Path(path).read_bytes()
        if b"exif" not in data[:4096].lower():  # it may hold an orientation
            try:
                pixels = decode_pixels(data)
                if min(pixels.shape[-2:]) > 1:
                    return pixels
            except Exception:  # another kind of file under this name, or damaged: the reader below says which
                pass
    return corpus.pixels(index)


# ---------------------------------------------------------------- the cache, and ranks


def _key(encoder: FrozenEncoder, corpus: Corpus, rows: np.ndarray, kind: str, corruption) -> str:
    changed = "" if corruption is None else corruption.key
    facts = f"{encoder.fingerprint} {corpus.fingerprint} {kind} {changed}"
    digest = hashlib.sha256(facts.encode() + rows.tobytes()).hexdigest()[:24]
    return f"{''.join(c if c.isalnum() else '_' for c in encoder.name)[-40:]}-{kind}-{digest}"


def _read(path: Path, kind: str) -> np.ndarray:
    return np.load(path, mmap_mode="c" if kind == "tokens" else None)


def _is_whole(path: Path, rows: int) -> bool:
    try:
        return len(np.load(path, mmap_mode="r")) == rows
    except (OSError, ValueError):
        return False


def _write(path: Path, features: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as file:
        np.save(file, features)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _of_every_rank(accelerator, value) -> list:
    if accelerator is None or accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def _gather(accelerator, found: np.ndarray | None, places: list[int], size: int) -> np.ndarray:
    """Every rank's part, put where it belongs."""
    shape = next(s for s in _of_every_rank(accelerator, None if found is None else (found.shape[1:], found.dtype)) if s)
    counts = _of_every_rank(accelerator, places)
    most = max(map(len, counts))
    part = np.zeros((most, *shape[0]), shape[1])
    part[: len(places)] = found if found is not None else 0
    gathered = accelerator.gather(torch.from_numpy(part).to(accelerator.device)).cpu().numpy()
    whole = np.empty((size, *shape[0]), shape[1])
    for rank, where in enumerate(counts):
        whole[where] = gathered[rank * most : rank * most + len(where)]
    return whole


def _listed(unreadable: dict[str, str]) -> str:
    lines = [f"  {name}: {reason}" for name, reason in list(unreadable.items())[:10]]
    more = [f"  ... and {len(unreadable) - 10} more"] if len(unreadable) > 10 else []
    return "\n".join([f"{len(unreadable)} images can't be read:", *lines, *more])
