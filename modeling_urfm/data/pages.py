# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""`corpus.html`: what is in a corpus, what was left out and why, on one page to look at before training on it.

The page is drawn from the shards, the manifest and `results.json`, so it can show nothing but what leaves anyway. It is
one file without scripts that asks the network for nothing (its Content-Security-Policy says so to the browser). Tables of
images and histograms count every row, in one pass over the small columns; thumbnails are an evenly spread choice, and only
the row groups that hold one are opened: memory is 20 bytes a row and one batch of images. No clock enters the page, so
that equal corpora give equal bytes.
"""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from .card import largest_first, number, organ_name, published_command, published_settings
from .markup import CORPUS_STYLE, bar_table, document, histogram, table
from .reasons import REASONS
from .shards import SPLITS, write_atomically


THUMBNAIL = 160  # px, the longer side
MAX_THUMBNAILS = 480  # on the whole page: about 3 MB
COUNTED = ("organ", "source", "maker", "licence", "geometry", "mode")
CAPTION = ("source", "geometry", "mode", "maker", "spacing_mm", "clip", "frame")
MAX_TABLE_ROWS = 40
SAMPLE_NOTE = "Of the images in the contact sheets above."


@dataclass(frozen=True)
class Survey:
    """One pass over the small columns of all shards, in the order of `shard_paths`.

    Attributes:
        counts: column -> value -> rows ("unknown" for null). splits: split -> (rows, patients, shards).
        organs: keys; organ: (rows,) int16 index into them.
        clip, patient: (rows,) uint64, the first half of the hashes. spacing: (rows known,) float32, mm from row to row.
    """

    counts: dict[str, Counter]
    splits: dict[str, tuple[int, int, int]]
    organs: list[str]
    organ: np.ndarray
    clip: np.ndarray
    patient: np.ndarray
    spacing: np.ndarray


@dataclass(frozen=True)
class Thumbnail:
    """One row of the corpus, small. `place`: its split and row in `load_dataset(...)`; brightness: mean grey, 0 to 255."""

    place: tuple[str, int]
    jpeg: bytes
    size: tuple[int, int]
    full_size: tuple[int, int]
    brightness: float
    facts: dict


def write_corpus_page(corpus_dir: Path, results: dict, *, sheet_rows: int = 12) -> None:
    """Write `corpus_dir/corpus.html`, in one step.

    Args:
        corpus_dir: holds `data/SPLIT-*.parquet` and `manifest.parquet`.
        results: the content of `results.json`; its timings are not read.
        sheet_rows: at most so many rows of the corpus are shown of each organ.

    Raises:
        ValueError: the shards hold another number of rows than `results` says.
    """
    paths = shard_paths(corpus_dir)
    survey = survey_shards(paths)
    metrics = results.get("metrics", {})
    told = sum(part.get("rows", 0) for part in metrics.get("splits", {}).values())
    if told != len(survey.organ):
        raise ValueError(f"{corpus_dir}: the shards hold {len(survey.organ)} rows, results.json says {told}")
    chosen = choose_rows(survey.organ, len(survey.organs), sheet_rows)
    order = [key for key, _ in largest_first(survey.counts["organ"])]
    sheets: dict[str, list[Thumbnail]] = {key: [] for key in order}
    for thumbnail in read_thumbnails(paths, chosen):
        sheets[thumbnail.facts["organ"]].append(thumbnail)
    body = [
        _head(survey),
        _contact_sheets(sheets, survey),
        _histograms(survey, [t for sheet in sheets.values() for t in sheet]),
        _counts(survey),
        _left_out(corpus_dir / "manifest.parquet", metrics),
        _exclusions(metrics.get("exclusions") or []),
        _made(results),
    ]
    write_atomically(corpus_dir / "corpus.html", document("Ultrasound corpus", "\n".join(body), CORPUS_STYLE))


# ---- reading


def shard_paths(corpus_dir: Path) -> dict[str, list[Path]]:
    """Split -> its shards in order."""
    found = {split: sorted((corpus_dir / "data").glob(f"{split}-*.parquet")) for split in SPLITS}
    return {split: paths for split, paths in found.items() if paths}


def survey_shards(paths: dict[str, list[Path]]) -> Survey:
    """Count and keep what tables and histograms need; images are not read."""
    import pyarrow.compute as pc

    counts = {column: Counter() for column in COUNTED}
    codes: dict[str, int] = {}
    organ, clip, patient, spacing, splits = [], [], [], [], {}
    for split, shards in paths.items():
        first = len(patient)
        for path in shards:
            for batch in _open(path).iter_batches(8192, columns=[*COUNTED, "clip", "patient", "spacing_mm"]):
                for column in COUNTED:
                    for value in pc.value_counts(batch.column(column)).to_pylist():
                        counts[column][_known(value["values"])] += value["counts"]
                names = [_known(name) for name in batch.column("organ").to_pylist()]
                organ.append(np.array([codes.setdefault(name, len(codes)) for name in names], np.int16))
                clip.append(_half_hashes(batch.column("clip")))
                patient.append(_half_hashes(batch.column("patient")))
                rows = pc.list_element(pc.drop_null(batch.column("spacing_mm")), 0)
                spacing.append(rows.to_numpy(zero_copy_only=False).astype(np.float32))
        of_split = _joined(patient[first:], np.uint64)
        splits[split] = (len(of_split), len(np.unique(of_split)), len(shards))
    return Survey(
        counts, splits, list(codes), _joined(organ, np.int16), _joined(clip, np.uint64),
        _joined(patient, np.uint64), _joined(spacing, np.float32),
    )  # fmt: skip


def choose_rows(organ: np.ndarray, organs: int, sheet_rows: int) -> np.ndarray:
    """Rows to show, sorted: of each organ at most `sheet_rows`, from the middles of equally long stretches of its rows.

    Many organs get fewer each, so that the page stays small.
    """
    each = min(sheet_rows, max(1, MAX_THUMBNAILS // max(organs, 1)))
    chosen = []
    for code in range(organs):
        rows = np.flatnonzero(organ == code)
        take = min(each, len(rows))
        chosen.append(rows[(2 * np.arange(take) + 1) * len(rows) // (2 * take)])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def read_thumbnails(paths: dict[str, list[Path]], chosen: np.ndarray) -> Iterator[Thumbnail]:
    """The chosen rows (counted over all shards), made small; opens only the row groups that hold one."""
    start = 0
    for split, shards in paths.items():
        split_start = start
        for path in shards:
            file = _open(path)
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                wanted = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, end)]
                for row, cells in _read_rows(file, group, wanted - start):
                    yield _thumbnail((split, start - split_start + row), cells)
                start = end


def _read_rows(file, group: int, rows: np.ndarray) -> Iterator[tuple[int, dict]]:
    """Cells of some rows (sorted) of one row group; small batches, because a batch of images is large."""
    if not len(rows):
        return
    first = 0
    for batch in file.iter_batches(16, row_groups=[group], columns=["image.bytes", "organ", *CAPTION]):
        for row in rows[(rows >= first) & (rows < first + len(batch))]:
            yield int(row), batch.slice(int(row) - first, 1).to_pylist()[0]
        first += len(batch)
        if first > rows[-1]:
            return


def _thumbnail(place: tuple[str, int], cells: dict) -> Thumbnail:
    from PIL import Image

    with Image.open(io.BytesIO(cells.pop("image")["bytes"])) as image:
        full_size = image.size
        grey = image.mode in ("L", "1", "I;16", "I")
        image.draft(
            "L" if grey else "RGB", (2 * THUMBNAIL, 2 * THUMBNAIL)
        )  # a JPEG is decoded at a fraction of its size
        small = image.convert("L" if grey else "RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=82)
    brightness = float(np.asarray(small.convert("L"), np.float32).mean())
    cells["organ"] = _known(cells["organ"])
    return Thumbnail(place, content.getvalue(), small.size, full_size, brightness, cells)


def _open(path: Path):
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True, pre_buffer=False)


def _known(value: object) -> str:
    return "unknown" if value is None or value == "" else str(value)


def _half_hashes(column) -> np.ndarray:
    return np.array([int(value[:16], 16) for value in column.to_pylist()], np.uint64)


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, kind)


# ---- sections


def _head(survey: Survey) -> str:
    rows = len(survey.organ)
    figures = (
        (rows, "images"),
        (len(np.unique(survey.patient)), "patients"),
        (len(np.unique(survey.clip)), "files they come from"),
        (sum(1 for key in survey.organs if key != "unknown"), "organs"),
        (len(survey.counts["source"]), "sources"),
    )
    tiles = "".join(f"<li><strong>{number(value)}</strong> {name}</li>" for value, name in figures)
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in (
        ("sheets", "Contact sheets"), ("histograms", "Histograms"), ("counts", "Counts"), ("left-out", "What was left out"),
        ("exclusions", "Test sets"), ("made", "How it was made")))  # fmt: skip
    splits = table(
        "Splits, by patient", ("split", "images", "patients", "shards"),
        [(split, *map(number, part)) for split, part in survey.splits.items()], numeric=(1, 2, 3),
    )  # fmt: skip
    return f"""<header>
<h1>Ultrasound corpus</h1>
<p class="lead">What is in it, and what was left out. Not for clinical use.</p>
<ul class="tiles">{tiles}</ul>
<nav aria-label="Sections">{links}</nav>
</header>
<div class="splits">{splits}</div>"""


def _contact_sheets(sheets: dict[str, list[Thumbnail]], survey: Survey) -> str:
    parts = ['<h2 id="sheets">Contact sheets</h2>',
             '<p>Images spread evenly over the rows of each organ. <code>train 12</code> is row 12 of the split train, '
             "<code>load_dataset(...)[&quot;train&quot;][12]</code>.</p>"]  # fmt: skip
    for key, sheet in sheets.items():
        of_organ = survey.organ == survey.organs.index(key)
        patients = len(np.unique(survey.patient[of_organ]))
        note = f"{_plural(int(of_organ.sum()), 'image')}, {_plural(patients, 'patient')}"
        figures = "".join(_thumbnail_figure(key, t) for t in sheet)
        name = escape(organ_name(key))
        parts.append(
            f'<section><h3>{name} <span class="quiet">{note}</span></h3><div class="sheet">{figures}</div></section>'
        )
    return "\n".join(parts)


def _thumbnail_figure(organ: str, thumbnail: Thumbnail) -> str:
    facts, (split, row) = thumbnail.facts, thumbnail.place
    width, height = thumbnail.full_size
    spacing = facts["spacing_mm"]
    known = [_known(facts["geometry"]), _known(facts["mode"]), _known(facts["source"]), f"{width} × {height} px"]
    title = [*known, f"maker {_known(facts['maker'])}", f"clip {facts['clip'][:8]}, frame {facts['frame']}"]
    if spacing:
        title.append(f"{spacing[0]:.3g} mm a pixel")
    alt = escape(f"{organ_name(organ)}, {known[0]}, {known[1]}, {split} {row}")
    data = base64.b64encode(thumbnail.jpeg).decode()
    image = (
        f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" width="{thumbnail.size[0]}" height="{thumbnail.size[1]}" '
        'loading="lazy" decoding="async">'
    )
    return (
        f'<figure title="{escape("; ".join(title))}"><div class="frame">{image}</div>'
        f"<figcaption>{split} {row}<br>{escape(known[0])}, {escape(known[2])}</figcaption></figure>"
    )


def _histograms(survey: Survey, sample: list[Thumbnail]) -> str:
    _, frames = np.unique(survey.clip, return_counts=True)
    _, first = np.unique(survey.clip, return_index=True)
    _, clips = np.unique(survey.patient[first], return_counts=True)
    without = len(survey.organ) - len(survey.spacing)
    sides = np.array([max(t.full_size) for t in sample], np.int64)
    brightness = np.array([t.brightness for t in sample])
    charts = (
        ("Spacing", survey.spacing, "mm from row to row", f"All images; {number(without)} without a known spacing."),
        ("Frames per file", frames, "images", "All files that gave an image."),
        ("Files per patient", clips, "files", "All patients."),
        ("Size", sides, "px, longer side", SAMPLE_NOTE),
        ("Brightness", brightness, "mean grey level, 0 to 255", SAMPLE_NOTE),
    )
    figures = "".join(histogram(*chart) for chart in charts)
    return f'<h2 id="histograms">Histograms</h2><div class="charts">{figures}</div>'


def _counts(survey: Survey) -> str:
    rows = len(survey.organ)
    tables = []
    for column in COUNTED:
        entries = largest_first(survey.counts[column])
        shown = [(organ_name(k) if column == "organ" else k, count) for k, count in entries[:MAX_TABLE_ROWS]]
        if entries[MAX_TABLE_ROWS:]:
            rest = entries[MAX_TABLE_ROWS:]
            shown.append((f"{len(rest)} others", sum(count for _, count in rest)))
        tables.append(bar_table(f"Images by {column}", column, shown, rows))
    return f'<h2 id="counts">Counts</h2><div class="columns">{"".join(tables)}</div>'


def _left_out(manifest: Path, metrics: dict) -> str:
    read, kept, dropped = (metrics.get(f"frames_{name}") for name in ("in", "kept", "dropped"))
    share = 100 * (kept or 0) / (read or 1)
    parts = [
        '<h2 id="left-out">What was left out, and why</h2>',
        f'<p class="sum"><b>{number(read)}</b> frames = <b>{number(kept)}</b> kept + <b>{number(dropped)}</b> left out</p>',
        f'<div class="whole" role="img" aria-label="{share:.1f} % of the frames were kept">'
        f'<span style="width:{share:.2f}%"></span></div>',
    ]
    reasons = largest_first(metrics.get("reasons"))
    parts.append(_reason_table("Frames left out", "frames", reasons))
    parts.append(_reason_table("Files rejected whole", "files", largest_first(metrics.get("rejected_files"))))
    kinds = _inputs_by_kind(manifest)
    heads = ("kind", "files", "kept", "in part", "rejected", "frames", "frames kept", "frames left out")
    parts.append(table("Input files", heads, [(k, *map(number, v)) for k, v in kinds], numeric=range(1, 8)))
    return "\n".join(parts)


def _inputs_by_kind(manifest: Path) -> list[tuple[str, list[int]]]:
    """Kind of input -> files, kept, partly, rejected, frames in, kept, dropped; a pass over the manifest."""
    import pyarrow as pa

    sums: dict[str, list[int]] = {}
    frames = ("frames_in", "frames_kept", "frames_dropped")
    for batch in _open(manifest).iter_batches(65536, columns=["kind", "status", *frames]):
        grouped = pa.Table.from_batches([batch]).group_by(["kind", "status"])
        # An input that could not be opened has no known number of frames.
        for row in grouped.aggregate([("status", "count"), *((name, "sum") for name in frames)]).to_pylist():
            total = sums.setdefault(_known(row["kind"]), [0] * 7)
            for place in (0, 1 + ("kept", "partly", "rejected").index(row["status"])):
                total[place] += row["status_count"]
            for place, name in enumerate(frames, 4):
                total[place] += row[f"{name}_sum"] or 0
    return sorted(sums.items(), key=lambda item: (item[0] == "unknown", -item[1][0], item[0]))


def _exclusions(exclusions: list[dict]) -> str:
    title = '<h2 id="exclusions">Overlap with test sets</h2>'
    if not exclusions:
        return f"{title}<p>No test set was excluded; overlap with benchmarks is not measured.</p>"
    rows = []
    for one in exclusions:
        nearest = one.get("nearest_distance")
        told = "not measured" if nearest is None else f"{nearest} of 256 bits"
        rows.append((f"set {one['set']}", number(one["images"]), number(one["frames_left_out"]), told))
    heads = ("excluded set", "its images", "frames left out", "nearest image that stayed differs in")
    note = "Of the 256 bits of the perceptual hash: the fewer differ, the more alike two images look."
    return (
        title
        + table("Frames equal or nearly equal to an image of the set", heads, rows, numeric=(1, 2))
        + f"<p>{note}</p>"
    )


def _made(results: dict) -> str:
    settings = published_settings(results.get("settings", {}))
    rows = [(name, "none" if value is None else str(value)) for name, value in settings.items()]
    command = published_command(results.get("command", ""), results.get("settings", {})) or "not recorded"
    versions = ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items() if version)
    return f"""<h2 id="made">How it was made</h2>
<p>Command, without inputs and folders: <code>{escape(command)}</code></p>
{table("Settings", ("setting", "value"), rows)}
<p class="quiet">{escape(versions)}</p>"""


def _reason_table(caption: str, unit: str, reasons: Sequence[tuple[str, int]]) -> str:
    # Only codes of the vocabulary have a meaning; another one would be a defect of the run, and is shown as such.
    rows = [(code, number(count), REASONS.get(code, "a code that is not in the vocabulary")) for code, count in reasons]
    return table(caption, ("reason", unit, "meaning"), rows, numeric=(1,))


def _plural(count: int, noun: str) -> str:
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"
