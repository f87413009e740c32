# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The made-up hospital export: real DICOM files with names in header and picture, a table of labels, all or nothing."""

import csv

import numpy as np
import pydicom
import pytest

from modeling_urfm.data import phantom_dicom
from modeling_urfm.data.phantom_dicom import write_phantom_export
from modeling_urfm.data.phantoms import LESIONS
from modeling_urfm.data.reading import open_source
from modeling_urfm.data.scan_region import find_layout


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_phantom_export(tmp_path_factory.mktemp("hospital") / "export", patients=6, image_size=128)


def test_files_and_table_fit_and_the_lesion_is_the_patients(export):
    with (export / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {p.relative_to(export).as_posix() for p in export.rglob("*.dcm")}
    assert len(rows) == 12 and {row["label"] for row in rows} <= set(LESIONS)
    of_patient = {(row["file"].split("/")[0], row["label"]) for row in rows}
    assert len(of_patient) == 6


def test_who_the_patient_is_stands_in_header_and_picture(export):
    seen = [pydicom.dcmread(path) for path in sorted(export.rglob("*.dcm"))]
    assert len({dataset.PatientID for dataset in seen}) == 6 and len({dataset.SOPInstanceUID for dataset in seen}) == 12
    for dataset in seen:
        assert dataset.Modality == "US" and str(dataset.PatientName) and len(dataset.PatientBirthDate) == 8
        assert (dataset.pixel_array[:40] > 150).sum() > 50  # letters above the picture


def test_it_is_read_and_the_letters_lie_outside_the_scan_region(export):
    frame = open_source(export / "P0001" / "1.dcm").frame(0)
    assert frame.shape == (128 + 48, 128 + 48, 3)
    view = find_layout([frame]).view
    assert view is not None and not view.mask[:34].any() and view.mask.mean() > 0.2


def test_the_same_seed_gives_the_same_bytes(export, tmp_path):
    again = write_phantom_export(tmp_path / "again", patients=1, image_size=128)
    one, other = (folder / "P0001" / "2.dcm" for folder in (export, again))
    assert one.read_bytes() == other.read_bytes()
    assert not np.array_equal(pydicom.dcmread(one).pixel_array, pydicom.dcmread(export / "P0001" / "1.dcm").pixel_array)


def test_a_killed_run_leaves_no_folder_and_nothing_is_written_over(export, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="export"):
        write_phantom_export(export)
    with pytest.raises(ValueError, match="images=0"):
        write_phantom_export(tmp_path / "none", images=0)
    monkeypatch.setattr(phantom_dicom.csv, "writer", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_phantom_export(tmp_path / "half", patients=1, images=1, image_size=64)
    assert not (tmp_path / "half").exists()
