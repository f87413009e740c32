# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""First half of making a corpus: every file to its frames, in batches that a killed run need not do twice.

The listing of all files is a Parquet file whose row groups are the batches, so that a batch is named by a number, on this
machine or another. A batch leaves three files in the staging folder: its frames, its pictures for review, and, written
last, the account of its files; a batch whose account is there is done. Names hold a digest of the files (path, size, time of
change) and the settings, so that nothing stale is ever taken.
"""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .._version import __version__
from .deidentify import Pseudonyms
from .isolation import IsolatedWorker, WorkerDied
from .listing import UNITS, Input, list_units, unit_from_row, unit_to_row
from .process import Dropped, Kept, Opened, Review, Settings, process_unit
from .shards import COLUMNS, AtomicParquet


BATCH_UNITS = 32
SEEK_BYTES_PER_S = 2e6  # of a compressed archive, on a slow and busy machine
FRAMES = pa.schema(
    {"unit": pa.int64(), **{k: v for k, v in COLUMNS.items() if k != "image"}, "raw_hash": pa.string(),
     "encoded": pa.binary()}
)  # fmt: skip
ACCOUNTS = pa.schema({
    "unit": pa.int64(), "kind": pa.string(), "frames_in": pa.int64(), "drops": pa.string(), "rejected": pa.string(),
    "detail": pa.string(),
})  # fmt: skip
REVIEWS = pa.schema({
    "unit": pa.int64(), "frame": pa.int64(), "before": pa.binary(), "after": pa.binary(), "height": pa.int64(),
    "width": pa.int64(), "outlines": pa.string(), "reasons": pa.list_(pa.string()), "facts": pa.string(),
})  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """All files of a run. `digest`: of their names, sizes and times of change, and of what public tables say of them."""

    path: Path
    units: int
    batches: int
    digest: str


@dataclass(frozen=True)
class Plan:
    """What every worker needs: where the listing and the staging folder are, and how to treat a file.

    Attributes:
        review_stride: every so many files are shown in the review page, 0: none. timeout_s: for one frame, or for opening a file.
    """

    listing: Path
    staging: Path
    settings: Settings
    review_stride: int
    timeout_s: float


@dataclass(frozen=True)
class Batch:
    """Where a finished batch is, and what it holds."""

    number: int
    files: int
    frames_kept: int
    name: str

    def path(self, staging: Path, kind: str) -> Path:
        return staging / f"{self.name}.{kind}.parquet"


def write_listing(inputs: Sequence[Input], leave: Sequence[Path], path: Path, on_file=lambda unit: None) -> Listing:
    """List every file of the inputs into a Parquet file, BATCH_UNITS a row group."""
    digest, units = hashlib.sha256(), 0
    with AtomicParquet(path, UNITS, group_rows=BATCH_UNITS) as listing:
        for unit in list_units(inputs, leave):
            listing.write(unit_to_row(unit))
            digest.update(repr(unit).encode("utf-8", "surrogateescape"))
            units += 1
            on_file(unit)
    return Listing(path, units, -(-units // BATCH_UNITS), digest.hexdigest())


def settings_digest(settings: Settings) -> str:
    """Changes with everything that could change a result: settings, key, reference outlines, version."""
    parts = (
        repr(settings),
        Pseudonyms(settings.key).fingerprint,
        repr(sorted(settings.reference.items())),
        __version__,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# ---------------------------------------------------------------- one batch


class BatchPreparer:
    """Prepares batches one by one, with a worker process of its own; an instance a thread, or a Ray actor."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.worker = IsolatedWorker(_events, plan.timeout_s)

    def __call__(self, number: int) -> Batch:
        plan = self.plan
        with pq.ParquetFile(plan.listing) as listing:
            rows = listing.read_row_group(number, use_threads=False).to_pylist()
        key = hashlib.sha256(f"{settings_digest(plan.settings)} {plan.review_stride} {rows}".encode()).hexdigest()[:20]
        batch = Batch(number, len(rows), 0, f"{number:07d}-{key}")
        if not _is_whole(batch, plan.staging):
            self._prepare(batch, rows)
        return replace(batch, frames_kept=pq.read_metadata(batch.path(plan.staging, "frames")).num_rows)

    def _prepare(self, batch: Batch, rows: list[dict]) -> None:
        staging = self.plan.staging
        accounts = []
        with AtomicParquet(batch.path(staging, "frames"), FRAMES) as frames:
            with AtomicParquet(batch.path(staging, "reviews"), REVIEWS, group_rows=8) as reviews:
                accounts = [self._prepare_unit(unit_from_row(row), frames, reviews) for row in rows]
        with AtomicParquet(batch.path(staging, "accounts"), ACCOUNTS) as file:
            for account in accounts:
                file.write(account)

    def _prepare_unit(self, unit, frames: AtomicParquet, reviews: AtomicParquet) -> dict:
        account = {"unit": unit.number, "kind": "archive" if unit.is_archive else "file", "frames_in": 0,
                   "rejected": None, "detail": ""}  # fmt: skip
        drops: Counter = Counter()
        kept = 0
        if unit.is_archive:
            return account | {"drops": "{}", "rejected": unit.problem}
        review = is_reviewed(unit.number, self.plan.review_stride)
        try:
            for event in self._events_of(unit, review):
                match event:
                    case Opened(kind, frames_in):
                        account |= {"kind": kind, "frames_in": frames_in}
                    case Kept(row, encoded, raw_hash):
                        kept += 1
                        frames.write(row | {"unit": unit.number, "raw_hash": raw_hash, "encoded": encoded})
                    case Dropped(code, 0, detail):
                        account |= {"rejected": code, "detail": detail}
                    case Dropped(code, count, detail):
                        drops[code] += count
                        account["detail"] = account["detail"] or detail
                    case Review():
                        reviews.write({
                            "unit": unit.number, "frame": event.frame, "before": event.before, "after": event.after,
                            "height": event.height, "width": event.width, "outlines": json.dumps(event.outlines),
                            "reasons": event.reasons, "facts": json.dumps(event.facts),
                        })  # fmt: skip
        except WorkerDied as error:  # what it had sent until then stays, the rest is lost with it
            account["detail"] = error.detail
            lost = account["frames_in"] - kept - sum(drops.values())
            if lost > 0:
                drops[error.code] += lost
            elif not account["frames_in"]:
                account["rejected"] = error.code
        detail = account["detail"].encode("utf-8", "replace").decode()
        return account | {"drops": json.dumps(drops), "detail": detail}

    def _events_of(self, unit, review: bool) -> Iterator:
        """A file whose worker is lost is tried a second time, from where it was: the reason may have been another one (a
        machine out of memory), and a corpus must not depend on it."""
        seen = 0
        # Up to an archive's member all before it may have to be decompressed; that is no fault of the member.
        seek_s = os.path.getsize(unit.path) / SEEK_BYTES_PER_S if unit.member is not None else 0.0
        try:
            for event in self.worker(unit, self.plan.settings, review, first_s=seek_s):
                seen += 1
                yield event
        except WorkerDied as error:
            if error.code == "timeout":
                raise
            yield from islice(self.worker(unit, self.plan.settings, review, first_s=seek_s), seen, None)


def _is_whole(batch: Batch, staging: Path) -> bool:
    """Whether a batch was finished: its account is written last. A loss of power may have cut any of its files."""
    try:
        rows = {
            kind: pq.read_metadata(batch.path(staging, kind)).num_rows for kind in ("accounts", "frames", "reviews")
        }
    except (OSError, pa.ArrowException):
        return False
    return rows["accounts"] == batch.files


def is_reviewed(number: int, stride: int) -> bool:
    """Whether a file's pictures are shown in the review page; with stride 0 none are."""
    return stride > 0 and number % stride == 0


def _events(*arguments) -> Iterator:
    """`process_unit`, named here so that this module is what a worker process imports."""
    yield from process_unit(*arguments)


# ---------------------------------------------------------------- all batches


def run_on_threads(plan: Plan, batches: int, workers: int) -> Iterator[Batch]:
    """All batches, in the order in which they get ready. A thread waits for its worker process and writes its batch."""
    preparers = threading.local()
    started: list[BatchPreparer] = []

    def prepare(number: int) -> Batch:
        if not hasattr(preparers, "own"):
            preparers.own = BatchPreparer(plan)
            started.append(preparers.own)
        return preparers.own(number)

    pool = ThreadPoolExecutor(workers)
    running, numbers = set(), iter(range(batches))
    try:
        while True:
            running |= {pool.submit(prepare, n) for _, n in zip(range(2 * workers - len(running)), numbers)}
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        for preparer in started:
            preparer.worker.close()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run_on_ray(plan: Plan, batches: int, workers: int, address: str | None) -> Iterator[Batch]:
    """The same on a Ray cluster (extra `ray`), by Ray Data: inputs and the private folder must lie on storage that all its
    nodes see under the same path.

    Raises:
        ImportError: Ray isn't installed. ConnectionError: no cluster at `address`.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('--engine ray needs Ray: pip install "urfm[ray]"') from error
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    numbers = ray.data.from_items([{"number": n} for n in range(batches)], override_num_blocks=max(1, batches))
    done = numbers.map(
        _RayPreparer, fn_constructor_args=(plan,), compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=1
    )
    for row in done.iter_rows():
        yield Batch(**row)


class _RayPreparer:
    """BatchPreparer on rows of Ray Data."""

    def __init__(self, plan: Plan):
        self.preparer = BatchPreparer(plan)

    def __call__(self, row: dict) -> dict:
        return vars(self.preparer(row["number"]))


def remove_stale(staging: Path, batches: Sequence[Batch]) -> None:
    """Delete what earlier settings, or a run that was killed while writing, left in the staging folder."""
    names = {batch.name for batch in batches}
    for entry in os.scandir(staging):
        if entry.name.split(".")[0] not in names:
            os.unlink(entry.path)
