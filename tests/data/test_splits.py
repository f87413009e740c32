# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Sides and subsets: by patient, stratified, nested, the same whatever the order of the rows."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modeling_urfm.data.splits import (
    check_given_splits,
    few_shot_rows,
    label_fraction_rows,
    name_some,
    split_by_patient,
)


SHARES = {"train": 0.65, "validation": 0.15, "test": 0.2}


def cohort(seed: int, patients: int = 60, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels and patients; patients have 1 to 6 images, most of one class."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 7, patients))
    labels = (who % classes + (rng.random(len(who)) < 0.1)) % classes
    order = rng.permutation(len(who))
    return labels[order].astype(np.int64), who[order].astype(str)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(9, 120), st.integers(2, 3))
def test_every_patient_is_on_one_side_and_every_class_on_every_side(seed, patients, classes):
    labels, who = cohort(seed, patients, classes)
    assume(all(len(set(who[labels == label])) >= 3 for label in range(classes)))
    sides = split_by_patient(labels, who, SHARES, seed)
    check_given_splits(who, who, sides)
    for side in SHARES:
        assert set(labels[sides == side]) == set(range(classes))


def test_patients_of_several_classes_are_exchanged_until_every_side_has_every_class():
    rng = np.random.default_rng(33)
    for seed in range(60):
        who = np.repeat(np.arange(12), rng.integers(2, 6, 12)).astype(str)
        labels = rng.integers(0, 3, len(who))
        sides = split_by_patient(labels, who, SHARES, seed)
        check_given_splits(who, who, sides)
        assert all(set(labels[sides == side]) == {0, 1, 2} for side in SHARES)
    # Of three patients with two of three classes each, one stands alone on its side and lacks a class.
    with pytest.raises(ValueError, match="so that each has every class; missing: "):
        split_by_patient(np.array([0, 1, 1, 2, 0, 2]), np.array([*"aabbcc"]), {"train": 0.5, "test": 0.5}, 0)


def test_shares_are_kept_for_every_class_and_the_order_of_rows_does_not_matter():
    labels, who = cohort(0, 600)
    sides = split_by_patient(labels, who, SHARES, 3)
    for side, share in SHARES.items():
        for label in range(3):
            assert np.mean(sides[labels == label] == side) == pytest.approx(share, abs=0.02)
    order = np.random.default_rng(1).permutation(len(labels))
    assert np.array_equal(split_by_patient(labels[order], who[order], SHARES, 3), sides[order])
    assert not np.array_equal(split_by_patient(labels, who, SHARES, 4), sides)


def test_findings_and_targets_are_spread_too():
    rng = np.random.default_rng(0)
    who = np.arange(400).astype(str)
    findings = (rng.random((400, 4)) < (0.02, 0.1, 0.5, 0.0)).astype(np.float32)
    sides = split_by_patient(findings, who, SHARES, 0)
    assert all(findings[sides == side][:, :3].any(0).all() for side in SHARES)
    assert np.mean(sides[findings[:, 1] > 0] == "test") == pytest.approx(0.2, abs=0.05)
    targets = rng.normal(50, 20, (400, 2)).astype(np.float32)
    sides = split_by_patient(targets, who, SHARES, 0)
    means = [targets[sides == side, 0].mean() for side in SHARES]
    assert np.ptp(means) < 3 and np.mean(sides == "test") == pytest.approx(0.2, abs=0.02)


def test_classes_with_too_few_patients_are_named():
    labels = np.array([0] * 9 + [1] * 4 + [2] * 2)
    patients = np.array([*"abcdefghi", *"jjkk", *"lm"])
    with pytest.raises(ValueError, match=r"fewer patients than the 3 sides.*benign \(2\), cyst \(2\)"):
        split_by_patient(labels, patients, SHARES, 0, ["normal", "benign", "cyst"])
    with pytest.raises(ValueError, match="2 patients can't be put on 3 sides"):
        split_by_patient(np.zeros(2, int), np.array(["a", "b"]), SHARES, 0)
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_patient(labels, patients, {"train": 0.5, "test": 0.2}, 0)


def test_a_patient_on_two_sides_of_a_given_split_is_named_with_its_rows():
    with pytest.raises(ValueError, match=r"patient p1: a.png \(train\) and c.png \(test\)"):
        check_given_splits(["a.png", "b.png", "c.png"], ["p1", "p2", "p1"], ["train", "test", "test"])
    ids = [str(number) for number in range(40)]
    with pytest.raises(ValueError, match=r"\(20 in all\)"):
        check_given_splits(ids, [str(n // 2) for n in range(40)], ["train", "test"] * 20)
    assert name_some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (12 in all)"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from((1, 3)))
def test_small_shares_are_parts_of_larger_ones_and_have_every_class(seed, kinds):
    labels, who = cohort(seed)
    rows = np.flatnonzero(np.arange(len(labels)) % 3)
    if kinds == 3:
        labels = np.eye(3, dtype=np.float32)[labels]
    before = np.array([], dtype=int)
    for share in (0.01, 0.05, 0.1, 0.25, 0.5, 1.0):
        taken = label_fraction_rows(labels, who, rows, share, seed)
        assert taken.dtype == np.int64 and set(before) <= set(taken) <= set(rows) and np.all(np.diff(taken) > 0)
        assert len(taken) == pytest.approx(max(3, share * len(rows)), abs=2)
        shown = labels[taken].any(0).all() if kinds == 3 else set(labels[taken]) == {0, 1, 2}
        assert shown
        before = taken
    assert np.array_equal(before, rows)


def test_a_share_of_the_labels_goes_patient_after_patient():
    labels, who = np.repeat([0, 1], 100), np.repeat(np.arange(20), 10).astype(str)
    taken = label_fraction_rows(labels, who, np.arange(200), 0.25, 0)
    counts = np.unique(who[taken], return_counts=True)[1]
    assert len(taken) == 50 and sorted(counts) == [5, 5, 10, 10, 10, 10]
    targets = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    assert len(label_fraction_rows(targets, who, np.arange(200), 0.01, 0)) == 2
    with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
        label_fraction_rows(labels, who, np.arange(200), 0, 0)


def test_few_shots_come_from_different_patients_and_are_nested():
    labels, who = np.repeat([0, 1], 100), np.repeat(np.arange(20), 10).astype(str)
    five, ten = (few_shot_rows(labels, who, np.arange(200), shots, 0) for shots in (5, 10))
    assert set(five) < set(ten) and np.bincount(labels[ten]).tolist() == [10, 10]
    assert len(set(who[five])) == 10 and len(set(who[ten])) == 20
    rare = np.where(np.arange(200) < 3, 2, labels)
    assert np.bincount(rare[few_shot_rows(rare, who, np.arange(200), 10, 0)]).tolist() == [10, 10, 3]
    with pytest.raises(ValueError, match="few shots are of classes"):
        few_shot_rows(np.linspace(0, 1, 200)[:, None], who, np.arange(200), 5, 0)
    with pytest.raises(ValueError, match="1 or more"):
        few_shot_rows(labels, who, np.arange(200), 0, 0)
