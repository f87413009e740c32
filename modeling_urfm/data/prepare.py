# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""From raw files to a corpus: list, prepare every file, decide, write. The path that `recipes/prepare.py` walks.

Everything that is unfinished lies in the private folder's `work/`: killed at any moment, the same command goes on from
there, and what it writes is byte for byte what an uninterrupted run would have written.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from .._version import __version__
from .assemble import decide, read_staged, write_accounts, write_corpus, write_exclusions, write_review
from .deidentify import load_key
from .listing import Input, check_apart
from .process import Settings
from .reasons import REASONS
from .shards import read_rows, write_atomically
from .staging import Batch, Listing, Plan, remove_stale, run_on_ray, run_on_threads, settings_digest, write_listing


MARKER = ".urfm-private"  # says that a folder was made here, and may be written into


@dataclass(frozen=True)
class Corpus:
    """Where a corpus is made and how it is cut.

    Attributes:
        output_dir: what leaves. private_dir: key, map from hashes to paths, review page, unfinished work; never inside
            `output_dir`.
        validation_share, test_share: shares of the patients. rows_per_shard: images a Parquet file.
        review_files: files shown in the review page, evenly spread over the inputs.
    """

    output_dir: Path
    private_dir: Path
    validation_share: float = 0.05
    test_share: float = 0.05
    rows_per_shard: int = 4096
    review_files: int = 200


@dataclass(frozen=True)
class Engine:
    """What runs the files: threads with a worker process each, or Ray. timeout_s: for one frame or for opening a file."""

    name: str = "local"
    workers: int = 1
    ray_address: str | None = None
    timeout_s: float = 120.0


def prepare(
    inputs: Sequence[Input],
    corpus: Corpus,
    settings: Settings,
    engine: Engine,
    write_pages: Callable[[dict, dict], dict],
    key_file: str | None = None,
    progress: bool = True,
) -> tuple[dict, dict]:
    """Make a corpus; returns what was counted and how long it took. A finished one is left as it is, and took no time.

    Args:
        write_pages: given counts and times, writes card and page into the corpus and returns what `results.json` will hold.

    Raises:
        ValueError, FileNotFoundError: inputs inside each other, a private folder inside the corpus, a key too short.
        FileExistsError: `output_dir` holds something else, or another run is under way.
    """
    check_apart(inputs)
    check_places(inputs, corpus, key_file)
    made = not corpus.output_dir.exists()
    corpus.output_dir.mkdir(parents=True, exist_ok=True)
    corpus.private_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with _only_one(corpus.output_dir), _only_one(corpus.private_dir):
            (corpus.private_dir / MARKER).touch(mode=0o600)
            corpus.private_dir.chmod(0o700)
            settings = replace(settings, key=load_key(key_file, corpus.private_dir))
            metrics, timings = _prepare(inputs, corpus, settings, engine, progress)
            if timings:
                _finish(corpus, metrics, write_pages(metrics, timings))
            return metrics, timings
    finally:
        if made and not any(corpus.output_dir.iterdir()):
            corpus.output_dir.rmdir()


def check_places(inputs: Sequence[Input], corpus: Corpus, key_file: str | None = None) -> None:
    """Refuse places where something would leave, or be lost, that must not."""
    output, private = (Path(os.path.realpath(path)) for path in (corpus.output_dir, corpus.private_dir))
    for flag, place in (
        ("--private_dir", private),
        ("--key_file", Path(os.path.realpath(key_file)) if key_file else None),
    ):
        if place is not None and place.is_relative_to(output):
            raise ValueError(f"{flag} {place} lies inside the corpus {output}, which is made to be given away.")
    if output.is_relative_to(private):
        raise ValueError(f"--output_dir {output} lies inside the private folder {private}.")
    for flag, place in (("--output_dir", output), ("--private_dir", private)):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{flag} {place} is a file.")
        for given in inputs:
            if Path(os.path.realpath(given.path)).is_relative_to(place):
                raise ValueError(f"{flag} {place} is, or holds, the input {given.path}.")
    if private.is_dir() and any(private.iterdir()) and not (private / MARKER).exists():
        raise FileExistsError(f"--private_dir {private} holds something else: name a new folder.")


@contextmanager
def _only_one(folder: Path):
    """Hold a folder for this run alone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise FileExistsError(f"{folder} is in use by another run of this recipe.") from error
    finally:
        os.close(handle)


def _prepare(inputs, corpus: Corpus, settings: Settings, engine: Engine, progress: bool) -> tuple[dict, dict]:
    started = time.perf_counter()
    work, timings = corpus.private_dir / "work", {}
    staging = work / "staging"
    staging.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tqdm(desc="listing", unit=" files", disable=not progress) as bar:
        listing = write_listing(
            inputs, [corpus.output_dir, corpus.private_dir], work / "listing.parquet", lambda _: bar.update()
        )
    timings["listing_s"] = time.perf_counter() - started
    if not listing.units:
        raise ValueError(f"no file in {', '.join(str(i.path) for i in inputs)}")

    plan = Plan(
        work / "listing.parquet",
        staging,
        settings,
        -(-listing.units // corpus.review_files) if corpus.review_files else 0,
        engine.timeout_s,
    )
    fingerprint = _fingerprint(listing, corpus, settings)
    finished = _finished(corpus, fingerprint)
    if finished is not None:
        (corpus.private_dir / "plan.json").unlink(missing_ok=True)
        shutil.rmtree(work)
        return finished, {}
    timed = time.perf_counter()
    batches = _run(plan, listing, engine, progress)
    remove_stale(staging, batches)
    timings["files_s"] = time.perf_counter() - timed

    timed = time.perf_counter()
    metrics = _write(corpus, plan, listing, batches, fingerprint, progress)
    timings |= {"writing_s": time.perf_counter() - timed, "total_s": time.perf_counter() - started}
    return metrics, {name: round(value, 2) for name, value in timings.items()}


def _fingerprint(listing: Listing, corpus: Corpus, settings: Settings) -> str:
    parts = (listing.digest, settings_digest(settings), corpus.validation_share, corpus.test_share, corpus.rows_per_shard,
             corpus.review_files)  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _finished(corpus: Corpus, fingerprint: str) -> dict | None:
    """What an earlier run with the same inputs and settings counted; None if there was none, or it didn't end."""
    state = corpus.private_dir / "finished.json"
    results = corpus.output_dir / "results.json"
    if results.exists():
        before = json.loads(state.read_text()) if state.exists() else None
        if before is None or before["fingerprint"] != fingerprint:
            shutil.rmtree(corpus.private_dir / "work")
            raise FileExistsError(
                f"{corpus.output_dir} holds a corpus of other inputs or settings: name another --output_dir (with the same "
                "--key_file, patients keep their hashes), or remove it first."
            )
        return before["metrics"]
    begun = corpus.private_dir / "plan.json"
    others = [p for p in corpus.output_dir.iterdir()] if corpus.output_dir.is_dir() else []
    if others and not begun.exists():
        raise FileExistsError(
            f"{corpus.output_dir} is not empty: it holds {others[0].name}. Name another --output_dir."
        )
    return None


def _run(plan: Plan, listing: Listing, engine: Engine, progress: bool) -> list[Batch]:
    if engine.name == "ray":
        done = run_on_ray(plan, listing.batches, engine.workers, engine.ray_address)
    else:
        done = run_on_threads(plan, listing.batches, engine.workers)
    batches: list[Batch] = []
    with tqdm(total=listing.units, desc="preparing", unit="file", disable=not progress, smoothing=0.05) as bar:
        frames, started = 0, time.perf_counter()
        for batch in done:
            batches.append(batch)
            frames += batch.frames_kept
            bar.set_postfix_str(f"{frames / (time.perf_counter() - started):.0f} frames/s", refresh=False)
            bar.update(batch.files)
    return sorted(batches, key=lambda batch: batch.number)


def _write(
    corpus: Corpus, plan: Plan, listing: Listing, batches: list[Batch], fingerprint: str, progress: bool
) -> dict:
    staging, key = plan.staging, plan.settings.key
    staged = read_staged(staging, batches, listing)
    decisions = decide(staged, corpus.validation_share, corpus.test_share)
    if not decisions.counts:
        raise ValueError(f"no frame is left; why:\n{_reasons(staging, batches)}")
    begun = corpus.private_dir / "plan.json"
    same = begun.exists() and json.loads(begun.read_text())["fingerprint"] == fingerprint
    data = corpus.output_dir / "data"
    if not same:
        for left in corpus.output_dir.iterdir():  # of other settings, never finished: all of it is ours
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        write_atomically(begun, json.dumps({"fingerprint": fingerprint}))
    data.mkdir(exist_ok=True)
    bar = tqdm(total=sum(decisions.counts.values()), desc="writing", unit="image", disable=not progress)
    tally, paths = write_corpus(
        corpus.output_dir, staging, batches, decisions, corpus.rows_per_shard, lambda: bar.update()
    )  # fmt: skip
    bar.close()
    for stale in set(data.glob("*.parquet")) - set(paths):  # with their temporary names
        stale.unlink()
    totals = write_accounts(corpus.output_dir, corpus.private_dir, staging, batches, listing, staged, decisions, key)
    exclusions = []
    if (staged.excluded_set > 0).any():
        exclusions = write_exclusions(corpus.output_dir, staging, batches, listing, staged, decisions, key)
    write_review(corpus.private_dir, staging, batches, listing, decisions, plan.review_stride, key)
    shards = {name: -(-rows // corpus.rows_per_shard) for name, rows in decisions.counts.items()}
    return totals | {
        "patients": len(set().union(*tally.patients.values())), "clips": tally.clips,
        "splits": {name: {"rows": rows, "patients": len(tally.patients[name]), "shards": shards[name]}
                   for name, rows in decisions.counts.items()},
        **{f"by_{name}": dict(sorted(counts.items())) for name, counts in tally.by.items()},
        "exclusions": exclusions,
    }  # fmt: skip


def _reasons(staging: Path, batches: Sequence[Batch]) -> str:
    reasons: Counter = Counter()
    for batch in batches:
        for account in read_rows(batch.path(staging, "accounts")):
            reasons.update(json.loads(account["drops"]) or ([account["rejected"]] if account["rejected"] else []))
    return "\n".join(f"  {code} ({count}): {REASONS[code]}" for code, count in reasons.most_common())


def _finish(corpus: Corpus, metrics: dict, results: dict) -> None:
    """The last steps: `results.json`, which says that the corpus is complete; then the unfinished work goes."""
    plan = json.loads((corpus.private_dir / "plan.json").read_text())
    write_atomically(corpus.private_dir / "finished.json", json.dumps(plan | {"metrics": metrics}))
    write_atomically(corpus.output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    (corpus.private_dir / "plan.json").unlink()
    shutil.rmtree(corpus.private_dir / "work")


def settings_that_leave(settings: Settings, corpus: Corpus) -> dict:
    """The settings without key, reference outlines and paths."""
    ours = {k: v for k, v in asdict(settings).items() if k not in ("key", "reference")}
    return ours | {"validation_share": corpus.validation_share, "test_share": corpus.test_share,
                   "rows_per_shard": corpus.rows_per_shard, "version": __version__}  # fmt: skip
