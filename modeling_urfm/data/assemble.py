# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Second half of making a corpus: which of the staged frames stay, and writing them with their accounts.

Decisions need all frames at once, but only their hashes: about 150 bytes a frame.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .deidentify import Pseudonyms
from .duplicates import (
    EXCLUSION_BITS,
    SAME_FRAME_BITS,
    near_repeats,
    nearest,
    repeats,
    to_words,
)
from .listing import Unit, unit_from_row
from .review import ReviewRow, write_review_page
from .shards import MANIFEST, SPLITS, AtomicParquet, read_rows, write_shards
from .staging import Batch, Listing, is_reviewed


STAYS, EXCLUDED, DUPLICATE, NEAR_DUPLICATE, COMPARED = range(5)
CODES = {EXCLUDED: "excluded", DUPLICATE: "duplicate", NEAR_DUPLICATE: "near-duplicate"}
EXCLUSIONS = pa.schema({
    "set": pa.int32(), "image": pa.string(), "frame": pa.int64(), "status": pa.string(), "perceptual_hash": pa.string(),
    "frames_left_out": pa.int64(), "nearest_distance": pa.int32(),
})  # fmt: skip
PRIVATE_INPUTS = pa.schema({
    "input": pa.string(), "path": pa.string(), "member": pa.string(), "status": pa.string(), "reasons": pa.list_(pa.string()),
    "detail": pa.string(),
})  # fmt: skip


@dataclass
class Staged:
    """The staged frames' light columns, arrays of one row a frame, in the order of the files."""

    unit: np.ndarray  # (frames,) int64
    excluded_set: np.ndarray  # (frames,) 0 for the corpus
    pixels: np.ndarray  # (frames,) 128 bits of the hash of the pixels
    looks: np.ndarray  # (frames, 4) uint64, perceptual, of the cleaned image
    raw_looks: np.ndarray  # of the frame as read
    patient: np.ndarray  # (frames,) uint64, the first half of the hash


@dataclass(frozen=True)
class Decisions:
    """What becomes of every staged frame.

    Attributes:
        code: (frames,) int8. split: (frames,) int8, place in SPLITS. because_of: (frames,) of an excluded one, which image
            of the excluded sets is nearest, counted among those.
    """

    code: np.ndarray
    split: np.ndarray
    because_of: np.ndarray

    @property
    def counts(self) -> dict[str, int]:
        kept = self.split[self.code == STAYS]
        return {name: int((kept == i).sum()) for i, name in enumerate(SPLITS) if (kept == i).any()}


def read_staged(staging: Path, batches: Sequence[Batch], listing: Listing) -> Staged:
    sets = pq.read_table(listing.path, columns=["exclude"], use_threads=False)["exclude"].to_numpy()
    columns = ["unit", "pixel_hash", "perceptual_hash", "raw_hash", "patient"]
    parts: dict[str, list] = {name: [] for name in columns}
    for batch in batches:
        table = pq.read_table(batch.path(staging, "frames"), columns=columns, use_threads=False)
        parts["unit"].append(table["unit"].to_numpy())
        for name in columns[1:]:
            values = table[name].to_pylist()
            parts[name].append(
                to_words(values) if name != "patient" else np.array([int(v[:16], 16) for v in values], np.uint64)
            )
    joined = {name: np.concatenate(part) for name, part in parts.items()}
    return Staged(joined["unit"], sets[joined["unit"]], _first_half(joined["pixel_hash"]), joined["perceptual_hash"],
                  joined["raw_hash"], joined["patient"])  # fmt: skip


def decide(staged: Staged, validation_share: float, test_share: float) -> Decisions:
    """Excluded images first, then exact, then near duplicates, each frame against those before it; then the split.

    Near by the cleaned image, which finds one picture on two screens, or by the whole frame as read, which finds a saved
    copy whose scan region was found a few pixels off.

    The split is a function of the patient's hash: a corpus that grows keeps its patients where they were. (Where no patient
    would be left to train on, one is moved there.)
    """
    code = np.where(staged.excluded_set > 0, COMPARED, STAYS).astype(np.int8)
    ours, theirs = np.flatnonzero(code == STAYS), np.flatnonzero(code == COMPARED)
    because_of = np.full(len(code), -1)
    if len(theirs):
        distance, where = _nearest_excluded(staged, ours, theirs)
        near = distance <= EXCLUSION_BITS
        code[ours[near]], because_of[ours[near]] = EXCLUDED, where[near]
    for what, find, hashes in (
        (DUPLICATE, repeats, staged.pixels), (NEAR_DUPLICATE, near_repeats, staged.looks),
        (NEAR_DUPLICATE, partial(near_repeats, radius=SAME_FRAME_BITS), staged.raw_looks),
    ):  # fmt: skip
        left = np.flatnonzero(code == STAYS)
        if len(left):
            code[left[find(hashes[left])]] = what

    # The hash is uniform in 0..2^64, by construction.
    place = staged.patient.astype(np.float64) / 2.0**64
    split = np.select([place < test_share, place < test_share + validation_share], [2, 1], 0).astype(np.int8)
    stays = code == STAYS
    if stays.any() and not (split[stays] == 0).any():  # a corpus of few patients: the last of them trains
        split[staged.patient == staged.patient[stays].max()] = 0
    return Decisions(code, split, because_of)


def _nearest_excluded(staged: Staged, ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `ours` the nearest of `theirs`: bits, and which. Cleaned or as read, whichever are closer, as a benchmark may
    hold the cut-out picture or the whole screen. -1 bits where the pixels are equal."""
    targets = np.concatenate([staged.looks[theirs], staged.raw_looks[theirs]])
    cleaned, raw = nearest(staged.looks[ours], targets), nearest(staged.raw_looks[ours], targets)
    distance = np.minimum(cleaned[0], raw[0])
    where = np.where(cleaned[0] <= raw[0], cleaned[1], raw[1]) % len(theirs)
    order = np.argsort(staged.pixels[theirs], kind="stable")
    sorted_pixels = staged.pixels[theirs][order]
    at = np.searchsorted(sorted_pixels, staged.pixels[ours]).clip(max=len(theirs) - 1)
    same = sorted_pixels[at] == staged.pixels[ours]
    return np.where(same, -1, distance), np.where(same, order[at], where)


def _first_half(hashes: np.ndarray) -> np.ndarray:
    """(n, 4) uint64 -> (n,) values of 128 bits: enough, as there will never be 2^64 images."""
    return np.ascontiguousarray(hashes[:, :2]).view([("a", "<u8"), ("b", "<u8")])[:, 0]


# ---------------------------------------------------------------- writing


def _accounts(
    staging: Path, batches: Sequence[Batch], listing: Listing
) -> Iterator[tuple[Batch, list[tuple[Unit, dict]]]]:
    """Every batch with its files, each beside the account of what became of it."""
    units = map(unit_from_row, read_rows(listing.path))
    for batch in batches:
        yield batch, [(next(units), account) for account in read_rows(batch.path(staging, "accounts"))]


def rows_that_stay(staging: Path, batches: Sequence[Batch], decisions: Decisions) -> Iterator[tuple[str, dict]]:
    """(split, row of the shards), in the order of the files."""
    at = 0
    for batch in batches:
        for row in read_rows(batch.path(staging, "frames")):
            code, split = decisions.code[at], decisions.split[at]
            at += 1
            if code == STAYS:
                row["image"] = {"bytes": row.pop("encoded"), "path": None}
                yield SPLITS[split], row


class Tally:
    """Counts of what is written, for `results.json`, the card and the page."""

    COLUMNS = ("organ", "source", "maker", "licence", "geometry", "mode")

    def __init__(self):
        self.by = {name: Counter() for name in self.COLUMNS}
        self.patients: dict[str, set] = {}
        self.clips = 0
        self._clip = None

    def count(self, rows: Iterator[tuple[str, dict]], on_row) -> Iterator[tuple[str, dict]]:
        for split, row in rows:
            for name in self.COLUMNS:
                self.by[name][row[name] or "unknown"] += 1
            self.patients.setdefault(split, set()).add(bytes.fromhex(row["patient"]))
            if row["clip"] != self._clip:  # the frames of a clip follow one another
                self._clip, self.clips = row["clip"], self.clips + 1
            on_row()
            yield split, row


def write_corpus(
    output_dir: Path, staging: Path, batches: Sequence[Batch], decisions: Decisions, rows_per_shard: int, on_row
) -> tuple[Tally, list[Path]]:
    """The shards; `on_row` is called for every image."""
    tally = Tally()
    rows = tally.count(rows_that_stay(staging, batches, decisions), on_row)
    paths = write_shards(output_dir / "data", rows, decisions.counts, rows_per_shard)
    return tally, paths


def write_accounts(
    output_dir: Path, private_dir: Path, staging: Path, batches: Sequence[Batch], listing: Listing, staged: Staged,
    decisions: Decisions, key: bytes,
) -> dict:  # fmt: skip
    """`manifest.parquet`, and the private map from its hashes to paths; returns their totals."""
    pseudonyms = Pseudonyms(key)
    kept = np.bincount(staged.unit[decisions.code == STAYS], minlength=listing.units)
    left = {
        name: np.bincount(staged.unit[decisions.code == code], minlength=listing.units) for code, name in CODES.items()
    }
    totals = {"inputs": 0, "files": Counter(kept=0, partly=0, rejected=0), "frames_in": 0, "frames_kept": 0,
              "frames_dropped": 0, "reasons": Counter(), "rejected_files": Counter(), "by_kind": Counter()}  # fmt: skip
    members: Counter = Counter()  # what became of the members of the archive that is being gone through
    with (
        AtomicParquet(output_dir / "manifest.parquet", MANIFEST, group_rows=4096) as manifest,
        AtomicParquet(private_dir / "inputs.parquet", PRIVATE_INPUTS, group_rows=4096) as private,
    ):
        for _, accounts in _accounts(staging, batches, listing):
            for unit, account in accounts:
                drops = Counter(json.loads(account["drops"]))
                drops.update({name: int(counts[unit.number]) for name, counts in left.items() if counts[unit.number]})
                row = _manifest_row(unit, account, int(kept[unit.number]), drops, members, pseudonyms)
                private.write({
                    "input": row["input"], "path": _printable(unit.path), "status": row["status"],
                    "member": unit.member and _printable(unit.member), "reasons": row["reasons"], "detail": account["detail"],
                })  # fmt: skip
                if unit.exclude:
                    continue
                manifest.write(row)
                totals["inputs"] += 1
                totals["files"][row["status"]] += 1
                totals["by_kind"][row["kind"]] += 1
                for name in ("frames_in", "frames_kept", "frames_dropped"):
                    totals[name] += row[name]
                totals["reasons"].update(drops)
                if account["rejected"]:
                    totals["rejected_files"][account["rejected"]] += 1
    os.chmod(private_dir / "inputs.parquet", 0o600)
    return {
        name: dict(sorted(value.items())) if isinstance(value, Counter) else value for name, value in totals.items()
    }


def _manifest_row(
    unit: Unit, account: dict, kept: int, drops: Counter, members: Counter, pseudonyms: Pseudonyms
) -> dict:
    frames_in, dropped = account["frames_in"], sum(drops.values())
    if unit.exclude:
        kept = frames_in - dropped  # compared, none of them kept
    if kept + dropped != frames_in:
        raise RuntimeError(f"{unit.name}: {frames_in} frames in, {kept} kept and {dropped} dropped")
    status = "rejected" if not kept else "partly" if dropped else "kept"
    reasons = [f"{code}: {count}" for code, count in sorted(drops.items())]
    reasons += [account["rejected"]] if account["rejected"] else []
    if unit.is_archive:
        whole = not account["rejected"] and not members["partly"] and not members["rejected"]
        status = "rejected" if not members["kept"] + members["partly"] else "kept" if whole else "partly"
        if status == "rejected" and not reasons:
            reasons = ["no-image"]  # none of its members is one
        members.clear()
    elif unit.member is not None:
        members[status] += 1
    return {
        "input": pseudonyms("input", *unit.identity), "kind": account["kind"], "source": unit.source, "status": status,
        "frames_in": frames_in, "frames_kept": kept, "frames_dropped": dropped,
        "reasons": reasons,
    }  # fmt: skip


def _printable(name: str) -> str:
    """Names that are no UTF-8 (archives of other systems bring them) with question marks."""
    return os.fsencode(name).decode("utf-8", "replace")


def write_exclusions(
    output_dir: Path, staging: Path, batches: Sequence[Batch], listing: Listing, staged: Staged, decisions: Decisions,
    key: bytes,
) -> list[dict]:  # fmt: skip
    """`exclusions.parquet`: for every image that was to be kept out, how many frames that cost, and how far the nearest
    frame of the corpus is. Returns a summary a set."""
    theirs = np.flatnonzero(decisions.code == COMPARED)
    stay = np.flatnonzero(decisions.code == STAYS)
    row_of = {int(frame): i for i, frame in enumerate(theirs)}
    targets = np.concatenate([staged.looks[stay], staged.raw_looks[stay]])
    far = np.minimum(nearest(staged.looks[theirs], targets)[0], nearest(staged.raw_looks[theirs], targets)[0])
    because_of = decisions.because_of[decisions.code == EXCLUDED]
    cost = np.bincount(because_of, minlength=len(theirs))  # a frame that was left out counts for the nearest image

    pseudonyms, at, summary = Pseudonyms(key), 0, {}
    with AtomicParquet(output_dir / "exclusions.parquet", EXCLUSIONS, group_rows=4096) as file:
        for batch, accounts in _accounts(staging, batches, listing):
            frames: dict[int, list] = {}
            for row in read_rows(batch.path(staging, "frames"), ["unit", "frame", "perceptual_hash"]):
                frames.setdefault(row["unit"], []).append((at, row))
                at += 1
            for unit, account in accounts:
                if not unit.exclude or unit.is_archive:
                    continue
                total = summary.setdefault(
                    unit.exclude,
                    {"set": unit.exclude, "images": 0, "unreadable": 0, "frames_left_out": 0, "nearest_distance": None},
                )
                name = pseudonyms("input", *unit.identity)
                for place, row in frames.get(unit.number, []):
                    i = row_of[place]
                    distance = int(far[i]) if len(stay) else None
                    file.write({"set": unit.exclude, "image": name, "frame": row["frame"], "status": "compared",
                                "perceptual_hash": row["perceptual_hash"], "frames_left_out": int(cost[i]),
                                "nearest_distance": distance})  # fmt: skip
                    total["images"] += 1
                    total["frames_left_out"] += int(cost[i])
                    if distance is not None:
                        total["nearest_distance"] = min(distance, total["nearest_distance"] or distance)
                lost = account["rejected"] or next(iter(json.loads(account["drops"])), None)
                if lost and lost not in ("no-image", "label-map"):
                    total["unreadable"] += 1
                    file.write({"set": unit.exclude, "image": name, "status": lost, "frames_left_out": 0})
    return [summary[number] for number in sorted(summary)]


def write_review(
    private_dir: Path,
    staging: Path,
    batches: Sequence[Batch],
    listing: Listing,
    decisions: Decisions,
    stride: int,
    key: bytes,
) -> None:
    """The private page: before and after of every `stride`-th file, and why files of those were rejected."""
    rows = _review_rows(staging, batches, listing, decisions, stride, Pseudonyms(key))
    write_review_page(private_dir, rows, every=stride)


def _review_rows(staging, batches, listing, decisions: Decisions, stride: int, pseudonyms) -> Iterator[ReviewRow]:
    at = 0
    for batch, accounts in _accounts(staging, batches, listing):
        later = {}  # what was decided of a frame after it had been cleaned
        for row in read_rows(batch.path(staging, "frames"), ["unit", "frame"]):
            later[row["unit"], row["frame"]] = CODES.get(int(decisions.code[at]))
            at += 1
        pictures: dict[int, list] = {}
        for row in read_rows(batch.path(staging, "reviews")):
            pictures.setdefault(row["unit"], []).append(row)
        for unit, account in accounts:
            if unit.exclude or not is_reviewed(unit.number, stride):
                continue
            common = {
                "path": _printable(unit.name),
                "input": pseudonyms("input", *unit.identity),
                "detail": account["detail"],
            }
            if account["rejected"]:
                yield ReviewRow(**common, frame=0, status="rejected", reasons=[account["rejected"]])
            for row in pictures.get(unit.number, []):
                code = later.get((unit.number, row["frame"]))
                yield ReviewRow(
                    **common, frame=row["frame"], status="kept" if row["after"] and not code else "dropped",
                    reasons=row["reasons"] + ([code] if code else []), before=row["before"],
                    after=None if code else row["after"], size=(row["height"], row["width"]),
                    outlines=json.loads(row["outlines"]), facts=json.loads(row["facts"]),
                )  # fmt: skip
