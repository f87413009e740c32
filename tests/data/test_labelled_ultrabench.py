# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Tasks of UltraBench: tiny raw data through the real command line, and what is read from what it wrote."""

import json
import subprocess
import sys

import numpy as np
import pytest

from modeling_urfm.data.labelled import load_labelled

from .ultrabench_raw import make_raw, processed


def load(path, task, column=None):
    return load_labelled(str(path), task, label_columns=[column] if column else None, progress=False)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("ultrabench"), {}
    for name in ("aul", "butterfly", "camus", "fatty-liver", "gbcu", "mmotu", "open-kidney", "pocus", "psfhs"):
        made |= processed(name, folder)
    return made


@pytest.mark.parametrize(
    "task, images, patients, names",
    [
        ("aul_mass", (32, 4, 9), 45, ("Normal", "Benign", "Malignant")),
        ("butterfly", (24, 6, 12), 7, ("carotid", "lungs", "bladder")),
        ("camus", (14, 2, 4), 10, ("Poor", "Medium", "Good")),
        ("fatty_liver", (21, 3, 6), 10, ("Normal", "NFLD")),
        ("gbcu", (40, 5, 9), 54, ("normal", "benign", "malignant")),
        ("mmotu", (19, 5, 9), 33, ("0", "1", "2")),
        ("pocus", (25, 4, 7), 33, ("regular", "pneumonia", "covid")),
    ],
)
def test_classification(tasks, task, images, patients, names):
    data = load(tasks[task], "classification")
    assert tuple(len(data.rows(side)) for side in ("train", "validation", "test")) == images
    assert len(set(data.patients)) == patients and data.label_names == names and data.left_out == ()
    assert any("UltraBench Version: 1.0.1" in note for note in data.notes)
    given = {row["image"]: row["label"] for row in json.loads((tasks[task] / "test.json").read_text())}
    codes = dict(zip(sorted(set(given.values()) | {*range(len(names))}), range(9)))
    if task != "butterfly":  # of its nine classes three are here
        assert all(codes[given[data.corpus.id(row)]] == data.labels[row] for row in data.rows("test"))


@pytest.mark.parametrize(
    "task, column, num_ids",
    [
        ("aul_mass", None, 2), ("aul_liver", None, 2), ("camus", None, 4), ("mmotu", "tumor_mask_binary", 2),
        ("mmotu", "tumor_mask_multiclass", 4), ("open_kidney", "capsule_mask", 2), ("open_kidney", "regions_mask", 4),
        ("psfhs", None, 3),
    ],
)  # fmt: skip
def test_segmentation(tasks, task, column, num_ids):
    data = load(tasks[task], "segmentation", column)
    assert len(data.label_names) == num_ids and data.left_out == ()
    for row in range(0, len(data), 9):
        assert data.mask(row).shape == data.corpus[row]["pixels"].shape[1:] and data.mask(row).max() < num_ids


def test_regression_and_what_a_task_lacks(tasks):
    data = load(tasks["fatty_liver"], "regression", "steatosis")
    assert set(data.labels.ravel()) == {3.0, 33.0} and data.label_names == ("steatosis",)
    with pytest.raises(ValueError, match="several masks: give --label_columns capsule_mask or regions_mask"):
        load(tasks["open_kidney"], "segmentation")
    with pytest.raises(ValueError, match=r"which column holds the label \(segmentation\)"):
        load(tasks["pocus"], "segmentation")


def test_the_folder_above_and_the_older_lists(tasks, tmp_path):
    with pytest.raises(ValueError, match="holds several tasks: aul_liver_v1.0.1, aul_mass_v1.0.1"):
        load(tasks["aul_mass"].parent, "classification")
    older = tmp_path / "out" / "fatty_liver_v1"
    older.mkdir(parents=True)
    lists = {
        side: json.loads((tasks["fatty_liver"] / f"{side}.json").read_text())
        for side in ("train", "validation", "test")
    }
    (older / "train_val.json").write_text(json.dumps(lists["train"] + lists["validation"]))
    (older / "test.json").write_text(json.dumps(lists["test"]))
    (older / "images").symlink_to(tasks["fatty_liver"] / "images")
    data = load(older.parent, "classification")
    assert len(data.rows("test")) == 6 and len(data.rows("train")) + len(data.rows("validation")) == 24
    assert set(data.labels[data.rows("validation")]) == {0, 1}
    (older / "train_val.json").write_text("{}")
    with pytest.raises(ValueError, match="is no list of UltraBench"):
        load(older, "classification")


def test_a_published_split_is_kept_even_if_a_patient_is_on_two_sides(tasks, tmp_path):
    folder = tmp_path / "butterfly_v1"
    folder.mkdir()
    (folder / "images").symlink_to(tasks["butterfly"] / "images")
    for side in ("train", "validation", "test"):
        rows = json.loads((tasks["butterfly"] / f"{side}.json").read_text())
        (folder / f"{side}.json").write_text(json.dumps([row | {"patient": 1} for row in rows]))
    data = load(folder, "classification")
    assert any("published split, kept as it is" in note and "patient 1" in note for note in data.notes)


@pytest.mark.slow
def test_the_command_itself_and_the_data_set_that_wants_all_its_patients(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    raw = make_raw("stanford-thyroid", tmp_path)
    subprocess.run(
        [sys.executable, "-m", "ultrabench", "stanford-thyroid", str(raw), str(out)], check=True, timeout=120
    )
    data = load(out, "segmentation")
    assert len(data) == 105 == len(set(data.patients)) and np.isin(data.mask(0), (0, 1)).all()
    assert load(out, "classification").label_names == ("benign", "malignant")
