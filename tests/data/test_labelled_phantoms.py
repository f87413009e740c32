# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Phantoms with labels: five tasks, settings behind a question mark."""

from functools import lru_cache

import numpy as np
import pytest

from modeling_urfm.data.labelled import load_labelled
from modeling_urfm.data.labelled_phantoms import FINDINGS, REGIONS, TASK_OF
from modeling_urfm.data.phantoms import ORGANS


@lru_cache
def load(kind: str, settings: str = "patients=30&image_size=32"):
    return load_labelled(f"phantoms:{kind}?{settings}", TASK_OF[kind], progress=False)


@pytest.mark.parametrize(
    "kind, shape, names",
    [
        ("lesion", (30,), ("absent", "benign", "malignant")),
        ("lesion_mask", (30, 2), ("background", "lesion")),
        ("depth", (30, 1), ("depth_mm",)),
        ("findings", (30, 6), FINDINGS),
    ],
)
def test_every_task_has_its_labels(kind, shape, names):
    data = load(kind)
    assert data.labels.shape == shape and data.label_names == names
    assert set(data.groups) == ({"breast"} if kind.startswith("lesion") else set(ORGANS))
    assert data.corpus[0]["pixels"].shape == (1, 32, 32) and all(
        len(data.rows(side)) for side in ("validation", "test")
    )


def test_organs_of_several_frames_stay_with_their_patient():
    data = load("organ", "patients=45&image_size=32&frames=2&snr_db=5-15")
    assert len(data) == 90 and len(set(data.patients)) == 45 and data.label_names == ORGANS
    assert all(len(set(data.splits[data.patients == patient])) == 1 for patient in data.patients)
    assert data.corpus.id(1) == f"{data.patients[0]}-1"


def test_the_same_settings_give_the_same_data():
    first, other = load("depth"), load("depth", "patients=30&image_size=32&seed=5")
    load.cache_clear()
    assert first.fingerprint == load("depth").fingerprint != other.fingerprint
    assert first.split_fingerprint != other.split_fingerprint


def test_every_lesion_mask_shows_a_lesion_and_findings_are_two():
    data = load("lesion_mask")
    assert all(data.mask(row).any() and data.mask(row).shape == (32, 32) for row in range(30))
    findings = load("findings").labels
    assert (findings[:, : len(REGIONS)].sum(1) == 1).all() and (findings[:, len(REGIONS) :].sum(1) <= 1).all()
    depths = load("depth").labels
    assert np.isfinite(depths).all() and 20 < depths.min() < depths.max() < 300
    assert sorted(organ for organs in REGIONS.values() for organ in organs) == sorted(ORGANS)


def test_settings_that_do_not_exist_are_named():
    for spec, task, message in (
        ("phantoms:organs", "classification", "labels 'organs' does not exist. Did you mean 'organ'"),
        ("phantoms:depth", "classification", "is for --task regression"),
        ("phantoms:organ?patient=9", "classification", "Did you mean 'patients'"),
        ("phantoms:organ?patients=many", "classification", "patients=many is no number"),
        ("phantoms:organ?patients=2", "classification", "at least 3 patients"),
    ):
        with pytest.raises(ValueError, match=message):
            load_labelled(spec, task, progress=False)


def test_lesions_are_of_the_breast_unless_organs_are_named():
    assert set(load_labelled("phantoms:lesion?patients=30", "classification", progress=False).groups) == {"breast"}
    named = load_labelled("phantoms:lesion?patients=60&organs=liver,kidney", "classification", progress=False)
    assert set(named.groups) == {"liver", "kidney"}
    assert (
        len(set(load_labelled("phantoms:lesion?patients=90&organs=all", "classification", progress=False).groups)) == 15
    )
    with pytest.raises(ValueError, match="kidny.*kidney"):
        load_labelled("phantoms:lesion?organs=kidny", "classification", progress=False)
