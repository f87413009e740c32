# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Phantoms as a hospital's export: DICOM files of made-up patients, and the table of what the files show.

For trying the way from DICOM files to a model where no hospital's files are at hand (`recipes/dicom_to_lora.ipynb`). As in
real exports the name stands in the header and is burned into the picture, so one sees that it doesn't leave.
"""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageDraw
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid
from tqdm.auto import tqdm

from .phantoms import phantom_frame


SEED = 9_400_001  # of no corpus, teacher, evaluation or labelled set that ships
LABELS = "labels.csv"
_SURNAMES = ("Berg", "Castillo", "Dubois", "Ivanova", "Kimura", "Lindqvist", "Moreau", "Novak", "Okafor", "Pereira")
_GIVEN = ("Anna", "Carla", "Elsa", "Grace", "Hana", "Ines", "Lucia", "Maria", "Nadia")
_MARGIN = 40  # pixels above the picture, where scanners write the name


def write_phantom_export(
    folder: str | Path, patients: int = 90, images: int = 2, image_size: int = 224, seed: int = SEED
) -> Path:
    """Write `PATIENT/IMAGE.dcm` and `labels.csv` (columns file, label) into a new folder, all in one step.

    Every image is a breast; its label is "absent", "benign" or "malignant", the lesion of that patient.

    Args:
        patients: made-up patients, each with a name, a number and a date of birth.
        images: DICOM files a patient: single frames, 8 bit, grey.
        image_size: side of the picture in pixels; the name stands in a margin above it.
        seed: the same gives the same pictures.

    Returns:
        `folder`.

    Raises:
        FileExistsError: there is something at `folder`.
        ValueError: fewer than one patient or image.

    >>> import tempfile
    >>> folder = write_phantom_export(tempfile.mkdtemp() + "/export", patients=1, image_size=64)
    >>> sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    ['P0001/1.dcm', 'P0001/2.dcm', 'labels.csv']
    >>> str(pydicom.dcmread(folder / "P0001" / "1.dcm").PatientName)
    'Berg^Anna'
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name a new folder.")
    if patients < 1 or images < 1:
        raise ValueError(f"patients={patients} and images={images}: at least 1 of each.")
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    rows = []
    for patient in tqdm(range(patients), desc="patients", disable=patients < 10):
        name = f"P{patient + 1:04}"
        (temporary / name).mkdir(parents=True)
        for number in range(images):
            frame = phantom_frame(seed, patient, number, organs=("breast",), image_size=image_size, snr_db=15)
            _dicom(frame.image, patient, number).save_as(
                temporary / name / f"{number + 1}.dcm", enforce_file_format=True
            )
            rows.append((f"{name}/{number + 1}.dcm", frame.lesion))
    with (temporary / LABELS).open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    os.replace(temporary, folder)
    return folder


def _dicom(image: np.ndarray, patient: int, number: int) -> pydicom.FileDataset:
    """A single-frame ultrasound object whose header and pixels say who the patient is."""
    surname = _SURNAMES[patient % len(_SURNAMES)]
    given = _GIVEN[patient % len(_GIVEN)]
    born = f"{1940 + patient % 50}{1 + patient % 12:02}{1 + patient % 28:02}"
    screen = Image.fromarray(np.pad(image, ((_MARGIN, 8), (24, 24))))
    ImageDraw.Draw(screen).text((24, 6), f"{surname}, {given}  {born[:4]}-{born[4:6]}-{born[6:]}\nCity Hospital", 200)
    pixels = np.asarray(screen)

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"phantom {patient} {number}"])
    dataset = pydicom.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[f"phantom {patient}"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[f"phantom series {patient}"])
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = f"{surname}^{given}", f"P{patient + 1:04}", born
    dataset.Modality, dataset.BodyPartExamined, dataset.InstitutionName = "US", "BREAST", "City Hospital"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = pixels.tobytes()
    return dataset
