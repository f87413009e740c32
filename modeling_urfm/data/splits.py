# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Which patients train, choose and test, and which of the training images a learner with few labels gets.

Everything is a pure function of its arguments. Labels are classes (n,) of integers, findings (n, classes) of 0 and 1, or
targets (n, targets) of other numbers.
"""

from collections.abc import Sequence

import numpy as np


MAX_NAMED = 10  # rows, classes or patients that an error lists by name


def name_some(names: Sequence) -> str:
    """The first ten, and how many there are in all."""
    shown = ", ".join(str(name) for name in names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown}, ... ({len(names)} in all)"


def split_by_patient(
    labels: np.ndarray,
    patients: np.ndarray,
    fractions: dict[str, float],
    seed: int,
    label_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Put every patient on one side, so that sides have their share of the images of every class.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas, ECML PKDD 2011) of patients instead of images: the rarest
    label first, each of its patients, largest first, to the side that lacks most of it. A side without any patient of a
    label comes before all others. Targets are cut at quantiles of their first column and treated as classes. The order
    of the rows does not matter.

    Args:
        labels, patients: (n,) or (n, c), and (n,). fractions: side to share of the images; they sum to 1.
        label_names: what errors call the classes.

    Returns:
        (n,) names of sides.

    Raises:
        ValueError: there are fewer patients than sides, or fewer of a class, or too few who can be shared out so that every
            side has every class; the classes are named.
    """
    sides = list(fractions)
    shares = np.array([fractions[side] for side in sides], dtype=float)
    if shares.min() <= 0 or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"the shares of the sides must be above 0 and sum to 1, got {fractions}.")
    names, codes = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if len(names) < len(sides):
        raise ValueError(f"{len(names)} patients can't be put on {len(sides)} sides: {', '.join(sides)}.")
    counts = np.zeros((len(names), 0))
    kind, columns = _indicators(labels, codes)
    if columns.shape[1]:
        counts = np.stack([np.bincount(codes, column, len(names)) for column in columns.T], axis=1)
    if kind == "classes":
        few = [(c, int(n)) for c, n in enumerate((counts > 0).sum(0)) if 0 < n < len(sides)]
        if few:
            called = [f"{label_names[c] if label_names else c} ({n})" for c, n in few]
            raise ValueError(
                f"classes with fewer patients than the {len(sides)} sides ({', '.join(sides)}): {name_some(called)}. "
                "Give more patients, leave the class out, or give the split."
            )
    # Images that show nothing of any label are a label of their own, so that they are spread too.
    images = np.bincount(codes, minlength=len(names)).astype(float)
    counts = np.concatenate([counts, np.where(counts.sum(1) > 0, 0, images)[:, None]], axis=1)

    rng = np.random.default_rng(seed)
    lottery = rng.permutation(len(names))
    wanted, of_all = shares[:, None] * counts.sum(0), shares * images.sum()
    has = np.zeros((len(sides), counts.shape[1]), dtype=bool)
    side_of = np.full(len(names), -1)
    while (side_of < 0).any():
        free = side_of < 0
        left = ((counts > 0) & free[:, None]).sum(0)
        label = int(np.where(left > 0, left, np.iinfo(int).max).argmin())
        waiting = np.flatnonzero(free & (counts[:, label] > 0))
        for patient in waiting[np.lexsort((lottery[waiting], -counts[waiting, label]))]:
            # A side that has none, the largest first; then whichever lacks most of the label, and of all images.
            empty = np.flatnonzero(~has[:, label])
            side = empty[shares[empty].argmax()] if len(empty) else np.lexsort((-of_all, -wanted[:, label]))[0]
            side_of[patient] = side
            wanted[side] -= counts[patient]
            of_all[side] -= images[patient]
            has[side] |= counts[patient] > 0
    _fill_gaps(side_of, counts[:, :-1] > 0, len(sides), lottery)
    if kind == "classes":
        lost = _gaps(side_of, counts[:, :-1] > 0, len(sides))
        if lost:
            called = [f"{label_names[c] if label_names else c} in {sides[side]}" for side, c in lost]
            raise ValueError(
                f"patients with images of several classes can't be put on {len(sides)} sides so that each has every class; "
                f"missing: {name_some(called)}. Give more patients, or give the split."
            )
    return np.array(sides)[side_of][codes]


def _gaps(side_of: np.ndarray, has: np.ndarray, num_sides: int) -> list[tuple[int, int]]:
    """(side, label) where no patient of the side has a label that enough patients have."""
    shown = np.stack([has[side_of == side].any(0) for side in range(num_sides)])
    side, label = np.nonzero(~shown & (has.sum(0) >= num_sides))
    return list(zip(side.tolist(), label.tolist()))


def _fill_gaps(side_of: np.ndarray, has: np.ndarray, num_sides: int, lottery: np.ndarray) -> None:
    """Exchange or move patients, one step at a time, as long as that lessens the gaps; changes `side_of`.

    Needed only where many of a few patients have several labels: those of the second label were placed for the first.
    """
    gaps = _gaps(side_of, has, num_sides)
    while gaps:
        side, label = gaps[0]
        best, step = len(gaps), None
        givers = np.flatnonzero(has[:, label] & (side_of != side))
        for giver in givers[np.argsort(lottery[givers])][:100]:
            takers = np.flatnonzero(side_of == side)
            for taker in [*takers[np.argsort(lottery[takers])][:100], None]:  # exchanges first: they keep the shares
                tried = side_of.copy()
                tried[giver] = side
                if taker is not None:
                    tried[taker] = side_of[giver]
                left = len(_gaps(tried, has, num_sides))
                if left < best:
                    best, step = left, tried
        if step is None:
            gaps = gaps[1:]  # this one stays; another may yet be filled
        else:
            side_of[:] = step
            gaps = _gaps(side_of, has, num_sides)


def _indicators(labels: np.ndarray, codes: np.ndarray) -> tuple[str, np.ndarray]:
    """What labels are ("classes", "findings", "targets"), and as (n, columns) of 0 and 1."""
    labels = np.asarray(labels)
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        return "classes", (labels[:, None] == np.arange(labels.max() + 1)).astype(float)
    labels = labels.reshape(len(labels), -1)
    if np.isin(labels, (0, 1)).all():
        return "findings", labels.astype(float)
    patients = codes.max() + 1
    mean = np.bincount(codes, labels[:, 0]) / np.bincount(codes)
    bins = int(np.clip(patients // 6, 1, 10))
    edges = np.quantile(mean, np.linspace(0, 1, bins + 1)[1:-1])
    place = np.searchsorted(edges, mean, side="right")[codes]
    return "targets", (place[:, None] == np.arange(bins)).astype(float)


def check_given_splits(ids: Sequence[str], patients: Sequence[str], splits: Sequence[str]) -> None:
    """ValueError naming rows where a patient is on two sides."""
    first: dict[str, tuple[str, str]] = {}
    torn = []
    for image, patient, side in zip(ids, patients, splits):
        where, other = first.setdefault(patient, (side, image))
        if where != side:
            torn.append(f"patient {patient}: {other} ({where}) and {image} ({side})")
    if torn:
        raise ValueError(
            f"the given split has a patient on two sides: {name_some(torn)}. Put all images of a patient on one side, or "
            "leave the split out and let it be cut by patient."
        )


def label_fraction_rows(
    labels: np.ndarray, patients: np.ndarray, rows: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """The rows of a learner who has labels of a share of the images, patient after patient, the same for every encoder.

    Of each class its share of the images, at least one, in an order of patients that depends on the seed alone, so that
    5 % hold the rows of 1 %. Of findings (n, classes), one image of each finding first, then whole patients by chance;
    of targets, whole patients by chance, at least two images.

    Args:
        labels, patients: of all images. rows: of those that may be taken. fraction: in (0, 1].

    Returns:
        Sorted rows, int64.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the labels lies in (0, 1], got {fraction}.")
    order = _patient_order(patients, rows, seed)
    kind, columns = _indicators(np.asarray(labels)[order], _codes(patients, order))
    if kind == "classes":
        parts = [order[columns[:, c] > 0] for c in range(columns.shape[1])]
        return np.sort(np.concatenate([part[: _share(len(part), fraction)] for part in parts if len(part)]))
    first = [order[column > 0][0] for column in columns.T if column.any()] if kind == "findings" else order[:2].tolist()
    first = list(dict.fromkeys(int(row) for row in first))
    rest = order[~np.isin(order, first)]
    return np.sort(np.concatenate([first, rest])[: max(len(first), _share(len(order), fraction))].astype(np.int64))


def _share(count: int, fraction: float) -> int:
    return max(1, min(count, round(count * fraction)))


def few_shot_rows(labels: np.ndarray, patients: np.ndarray, rows: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """`shots` images of each class (or finding), of as many patients as there are; all of a class that has fewer.

    Fewer shots are a part of more.

    Raises:
        ValueError: the labels are targets, which have no classes, or `shots` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be 1 or more, got {shots}.")
    order = _patient_order(patients, rows, seed)
    kind, columns = _indicators(np.asarray(labels)[order], _codes(patients, order))
    if kind == "targets":
        raise ValueError("few shots are of classes; numbers to be predicted have none: take a fraction of the labels.")
    taken = []
    for column in columns.T:
        of_class = order[column > 0]
        seen: dict[str, int] = {}
        turn = [seen.update({p: seen.get(p, -1) + 1}) or seen[p] for p in np.asarray(patients)[of_class].tolist()]
        # The first image of every patient, then the second of every patient, and so on.
        taken.append(of_class[np.argsort(turn, kind="stable")][:shots])
    return np.unique(np.concatenate(taken)).astype(np.int64)


def _codes(patients: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.unique(np.asarray(patients, dtype=str)[rows], return_inverse=True)[1]


def _patient_order(patients: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """`rows`, patient after patient and within one image after image, both by chance."""
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    codes = _codes(patients, rows)
    rng = np.random.default_rng(seed)
    return rows[np.lexsort((rng.permutation(len(rows)), rng.permutation(codes.max() + 1)[codes]))]
