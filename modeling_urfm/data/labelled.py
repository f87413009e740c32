# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Labelled data for fine-tuning and evaluation: one function that opens it, checks it and cuts it by patient.

    data = load_labelled("liver/", "classification")
    train = data.rows("train")
    data.corpus[train[0]]["pixels"], data.labels[train[0]], data.label_names

Whatever is wrong with data is said here, before anything is trained: as an error where going on would make no sense, as
a line of `left_out` where a row can be spared.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..flags import check_choice
from .corpus import Corpus, load_from_hub
from .labelled_checks import Checked, check_rows, copies_across_sides, merge_copies, notes_on_copies
from .labelled_columns import found_from_table, join_table
from .labelled_folders import check_classes_of_sides, read_class_folders, read_mask_folders, unpacked
from .labelled_found import Chosen, Found, LabelledCorpus
from .labelled_masks import IGNORE, Masks, mask_rule
from .labelled_phantoms import PREFIX, read_phantoms
from .labelled_tables import embedded_parquet, find_tables, read_datasets, read_parquet, read_tables
from .labelled_ultrabench import find_ultrabench, mask_column, read_ultrabench
from .shards import SPLITS
from .splits import check_given_splits, name_some, split_by_patient


# What is no fault of the data: there may be more images than labels.
UNLABELLED = ("an image without label", "a mask without image")
TASKS = ("classification", "multilabel", "regression", "segmentation")


@dataclass(frozen=True)
class LabelledDataset:
    """Images with labels and sides; row i of everything is image i.

    Attributes:
        name: what was asked for. task: one of `TASKS`.
        corpus: `corpus[i]["pixels"]` is uint8 (1 or 3, height, width), `corpus.id(i)` its name.
        labels: classification (n,) int64; multilabel (n, classes) float32 of 0 and 1; regression (n, targets) float32;
            segmentation (n, classes) float32: 1 where the mask shows the id.
        label_names: classes or targets; of segmentation the ids in order, "background" first.
        patients: (n,) str. splits: (n,) str of `SPLITS`.
        left_out: (image or row, reason) of everything that was found and is not among the rows.
        notes: what a reader of results must know.
        groups: (n,) str, as the organ, or None. masks: of segmentation, by row, else None.
        mask_digests: (n,) bytes, of segmentation.
    """

    name: str
    task: str
    corpus: Corpus
    labels: np.ndarray
    label_names: tuple[str, ...]
    patients: np.ndarray
    splits: np.ndarray
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    masks: Masks | None = None
    mask_digests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.corpus)

    def rows(self, split: str) -> np.ndarray:
        """Sorted rows of a side, int64."""
        check_choice("split", split, SPLITS)
        return np.flatnonzero(self.splits == split).astype(np.int64)

    def mask(self, row: int) -> np.ndarray:
        """(height, width) uint8 ids of an image, 255 where pixels don't count; as large as the image."""
        if self.masks is None:
            raise ValueError(f"{self.name} was opened for {self.task}: it has no masks.")
        return self.masks[row]

    def select(self, rows: Sequence[int] | np.ndarray) -> "LabelledDataset":
        """Some of the rows, in the order given."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(
            self, corpus=self.corpus.select(rows), labels=self.labels[rows], patients=self.patients[rows],
            splits=self.splits[rows], groups=None if self.groups is None else self.groups[rows],
            masks=None if self.masks is None else self.masks.select(rows),
            mask_digests=None if self.mask_digests is None else self.mask_digests[rows],
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Changes whenever an image, a label, a mask, a patient or a side does."""
        parts = [self.task.encode(), self.corpus.fingerprint.encode(), np.ascontiguousarray(self.labels).tobytes()]
        parts += [text.encode("utf-8", "surrogateescape") for text in (*self.label_names, *self.patients, *self.splits)]
        if self.mask_digests is not None:
            parts += [self.mask_digests.tobytes(), self.masks.rule.kind.encode()]
        return _digest(parts)

    @property
    def split_fingerprint(self) -> str:
        """Of which image is on which side, whatever the order of the rows."""
        pairs = sorted(f"{self.corpus.id(row)}\0{self.splits[row]}" for row in range(len(self)))
        return _digest([pair.encode("utf-8", "surrogateescape") for pair in pairs])

    @property
    def description(self) -> str:
        """Lines for a log: how many images and patients each side has, of what."""
        lines = [f"{self.name}: {len(self)} images of {len(set(self.patients))} patients, {self.task}"]
        for split in SPLITS:
            rows = self.rows(split)
            line = f"  {split}: {len(rows)} images of {len(set(self.patients[rows]))} patients"
            if self.task == "classification":
                counts = np.bincount(self.labels[rows], minlength=len(self.label_names))
                line += f" ({', '.join(f'{name} {count}' for name, count in zip(self.label_names, counts))})"
            elif self.task != "regression":
                counts = self.labels[rows].sum(0).astype(int)
                line += f" ({', '.join(f'{name} {count}' for name, count in zip(self.label_names, counts))})"
            lines.append(line)
        if self.left_out:
            reasons = name_some([f"{what}: {reason}" for what, reason in self.left_out])
            lines.append(f"  {len(self.left_out)} left out: {reasons}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _digest(parts: list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def load_labelled(
    dataset: str,
    task: str,
    *,
    label_columns: Sequence[str] | None = None,
    patient_column: str | None = None,
    image_column: str | None = None,
    split_column: str | None = None,
    image_root: str | None = None,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> LabelledDataset:
    """Open what `--dataset` names, with labels, and check every row of it.

    Args:
        dataset: a folder `train/CLASS/*`, `test/CLASS/*`, or `CLASS/*`; folders `images/` and `masks/`, or `X.png` beside
            `X_mask.png`; a table (CSV, TSV, JSON lines, Parquet), or a folder with `metadata.csv` or `labels.csv`; a
            corpus of `recipes/prepare.py`; a folder of `datasets` or a data set's id on the Hub; a task of UltraBench as
            `ultrabench` writes it; or phantoms (`phantoms:organ`, see `labelled_phantoms`).
        task: one of `TASKS`.
        label_columns, patient_column, image_column, split_column: of a table; by default found by their usual names. For
            segmentation, `label_columns` is the column of masks.
        image_root: where the paths of a table start, by default its own folder.
        validation_fraction, test_fraction: shares of all images where the split is cut. Where a test side is given and
            no validation, `validation_fraction` of the training images is cut from them.
        seed: of the cut.

    Raises:
        FileNotFoundError: nothing of that name; the nearest is given.
        ValueError: data that can't be used; rows and the nearest valid names are given.

    >>> data = load_labelled("phantoms:lesion?patients=40&image_size=32", "classification", progress=False)
    >>> data.label_names, len(data), tuple(data.corpus[0]["pixels"].shape)
    (('absent', 'benign', 'malignant'), 40, (1, 32, 32))
    >>> set(data.patients[data.rows("train")]) & set(data.patients[data.rows("test")])
    set()
    """
    check_choice("task", task, TASKS)
    if not 0 < validation_fraction < 1 or not 0 < test_fraction < 1 or validation_fraction + test_fraction >= 1:
        raise ValueError(
            f"validation_fraction={validation_fraction} and test_fraction={test_fraction} must leave some to train on."
        )
    columns = {"label_columns": label_columns, "patient_column": patient_column, "image_column": image_column,
               "split_column": split_column, "image_root": image_root}  # fmt: skip
    found = _find(dataset, task, columns, progress)
    return _finish(found, task, {"validation": validation_fraction, "test": test_fraction}, seed, progress)


def _find(dataset: str, task: str, columns: dict, progress: bool) -> Found:
    if dataset.startswith(PREFIX):
        return read_phantoms(dataset, task, progress)
    path = Path(dataset)
    if not path.exists():
        return found_from_table(read_datasets(load_from_hub(dataset, None), dataset), task, **columns)
    if path.is_file():
        held = embedded_parquet(path) if path.suffix.lower() == ".parquet" else []
        table = read_parquet(held, path.parent, dataset) if held else read_tables([path], dataset)
        return found_from_table(table, task, **columns)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        import datasets

        return found_from_table(read_datasets(datasets.load_from_disk(str(path)), dataset), task, **columns)
    if folder := find_ultrabench(path):
        table = read_ultrabench(folder, dataset)
        if task == "segmentation" and not columns["label_columns"]:
            columns = columns | {"label_columns": [column] if (column := mask_column(table, folder)) else None}
        return found_from_table(table, task, **columns)
    if held := embedded_parquet(path):
        return found_from_table(read_parquet(held, path, dataset), task, **columns)
    return _find_in_folder(path, dataset, task, columns)


def _find_in_folder(path: Path, dataset: str, task: str, columns: dict) -> Found:
    """Labels by folders and names, or by a table that lies with the images; then the table may still tell the patients."""
    path = unpacked(path)
    tables, found = find_tables(path), None
    asked = [f"--{name} {value}" for name, value in columns.items() if value]
    if asked and not tables:
        raise ValueError(f"{dataset}: {', '.join(asked)} asks for a table, and there is none beside the images.")
    if not columns["label_columns"]:
        if task == "segmentation":
            found = read_mask_folders(path, dataset)
        elif task == "classification":
            try:
                found = read_class_folders(path, dataset)
            except ValueError:
                if not tables:
                    raise
    if found is None and tables:
        return found_from_table(read_tables(tables, dataset), task, **columns)
    if found is None:
        wanted = {
            "segmentation": "folders images/ and masks/ with equal names, or X.png beside X_mask.png, or",
            "classification": "train/CLASS/* and test/CLASS/*, or",
        }.get(task, "")
        raise ValueError(f"{dataset} holds no labels for {task}. Wanted: {wanted} a table metadata.csv or labels.csv.")
    return join_table(found, read_tables(tables, dataset), columns) if tables else found


# ---------------------------------------------------------------- rows to a data set


def _finish(found: Found, task: str, fractions: dict[str, float], seed: int, progress: bool) -> LabelledDataset:
    segmentation = task == "segmentation"
    left_out, notes = list(found.left_out), list(found.notes)
    labelled = [segmentation or found.labels[row] is not None for row in range(len(found.ids))]
    missing = "a target that is missing or no finite number" if task == "regression" else UNLABELLED[0]
    left_out += [(found.ids[row], missing) for row, known in enumerate(labelled) if not known]
    usable = [row for row, known in enumerate(labelled) if known]
    checked = check_rows(Chosen(found.images, usable), found.labels if segmentation else None, found.name, progress)
    bad = [(found.ids[row], check.problem) for row, check in zip(usable, checked) if check.problem]
    left_out += bad
    kept = [(row, check) for row, check in zip(usable, checked) if not check.problem]
    lost = [pair for pair in left_out if not pair[1].startswith(UNLABELLED)]
    if len(lost) > len(kept) or not kept:
        raise ValueError(
            f"{found.name}: only {len(kept)} images can be used, {len(left_out)} can't: "
            f"{name_some([f'{what} ({reason})' for what, reason in lost or left_out])}."
        )
    # A file of several frames gives a row for each.
    spread = [(row, frame) for row, check in kept for frame in range(check.frames)]
    of_row = dict(kept)
    rows = [row for row, _ in spread]
    ids = [found.ids[row] + (f"#{frame}" if of_row[row].frames > 1 else "") for row, frame in spread]
    digests = [of_row[row].digest + frame.to_bytes(4, "little") for row, frame in spread]
    patients = _patients(found, rows, notes)
    labels, label_names, masks = _labels(found, task, kept, rows)
    if masks is not None:
        notes += masks.rule.notes
    there = [split for split in SPLITS if split in {found.splits[row] for row in rows}] if found.splits else []
    if len(there) > 1:
        splits = _given_splits(
            found, task, there, rows, ids, labels, label_names, patients, digests, fractions, seed, notes
        )
    else:
        shares = {"train": 1 - sum(fractions.values()), **fractions}
        notes += [f"only {side} is given: all sides were cut from it" for side in there]
        notes.append(f"split cut by patient, seed {seed}: {', '.join(f'{k} {v:.0%}' for k, v in shares.items())}")
        patients = merge_copies(patients, digests)
        splits = split_by_patient(labels, patients, shares, seed, label_names)
    torn = [] if found.published else copies_across_sides(ids, digests, splits, SPLITS)
    left_out += [(ids[at], reason) for at, reason in torn]
    stay = np.setdiff1d(np.arange(len(rows)), [at for at, _ in torn])
    notes += notes_on_copies(
        *([values[at] for at in stay] for values in (ids, digests, splits)),
        [found.labels[rows[at]] if not segmentation else "" for at in stay],
    )
    data = LabelledDataset(
        found.name, task, LabelledCorpus(found.name, ids, found.images, rows, [frame for _, frame in spread],
                                         [of_row[row].digest for row in rows]),
        labels, label_names, patients, splits, tuple(left_out), tuple(notes),
        None if found.groups is None else np.array([found.groups[row] for row in rows]), masks,
        np.array([check.mask_digest for _, check in kept], dtype="S16") if segmentation else None,
    )  # fmt: skip
    return data.select(stay) if torn else data


def _patients(found: Found, rows: list[int], notes: list[str]) -> np.ndarray:
    """Of an image without patient, the image's file is the patient."""
    known = [found.patients[row] if found.patients else None for row in rows]
    unknown = [row for row, patient in zip(rows, known) if patient is None]
    if unknown and len(unknown) == len(rows):
        notes.append(
            "no patient ids: every image counts as one patient. If a patient has several images, results are too good; "
            "a column of patients prevents that"
        )
    elif unknown:
        notes.append(f"{len(set(unknown))} images have no patient id: each of them counts as one patient")
    return np.array([found.ids[row] if patient is None else patient for row, patient in zip(rows, known)])


def _labels(found: Found, task: str, kept: list[tuple[int, Checked]], rows: list[int]):
    if task == "segmentation":
        named = found.label_names
        checks = [check for _, check in kept]
        rule = mask_rule(
            [(check.values, check.counts) for check in checks], [found.ids[row] for row, _ in kept],
            len(named) if named else None,
        )  # fmt: skip
        names = named or ("background", *(f"id {number}" for number in range(1, rule.num_ids)))
        if named is None and rule.num_ids == 2:
            names = ("background", "foreground")
        shown = np.zeros((len(kept), len(names)), dtype=np.float32)
        for at, check in enumerate(checks):
            ids = rule(check.values)
            shown[at, ids[ids != IGNORE]] = 1
        return shown, tuple(names), Masks(found.labels, rule, rows)
    if task != "classification":
        return np.array([found.labels[row] for row in rows], dtype=np.float32), tuple(found.label_names), None
    here = sorted({found.labels[row] for row in rows}, key=_natural)
    names = tuple(found.label_names or here)
    if len(here) < 2:
        raise ValueError(f"{found.name} has one class alone, {name_some(here)}: there is nothing to tell apart.")
    code = {name: number for number, name in enumerate(names)}
    return np.array([code[found.labels[row]] for row in rows], dtype=np.int64), names, None


def _natural(name: str):
    """Numbers by their size, before words."""
    return (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name)


def _given_splits(
    found, task, there, rows, ids, labels, names, patients, digests, fractions, seed, notes
) -> np.ndarray:
    """The sides that the source gives, checked, with a validation cut from train where there is none."""
    splits = np.array([found.splits[row] for row in rows], dtype="U10")
    if "train" not in there:
        raise ValueError(f"{found.name}: the given split has only {' and '.join(there)}: none of it may be trained on.")
    if task == "classification":
        side_check = Found(found.name, [], [], [found.labels[row] for row in rows], splits=splits.tolist())
        check_classes_of_sides(side_check)
        notes += side_check.notes
    try:
        check_given_splits(ids, patients, splits)
    except ValueError as error:
        if not found.published:
            raise ValueError(f"{found.name}: {error}") from None
        notes.append(f"published split, kept as it is: {error}")
    if "test" not in there:
        splits[splits == "validation"] = "test"
        notes.append("no test side is given: the given validation is tested")
    if not (splits == "validation").any():
        train = np.flatnonzero(splits == "train")
        share = fractions["validation"]
        notes.append(f"validation cut from train by patient, seed {seed}: {share:.0%}")
        parts = {"train": 1 - share, "validation": share}
        groups = merge_copies(patients[train], [digests[row] for row in train])
        splits[train] = split_by_patient(labels[train], groups, parts, seed, names)
    if task == "segmentation":
        unseen = labels[splits == "train"].sum(0) == 0
        strange = np.flatnonzero(labels[:, unseen].any(1))
        if len(strange):
            raise ValueError(
                f"{found.name}: ids that no training mask shows ({name_some(np.array(names)[unseen].tolist())}) are in "
                f"{name_some([ids[row] for row in strange])}."
            )
    return splits
