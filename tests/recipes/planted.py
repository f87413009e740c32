# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""DICOM files full of identities: in standard, private, nested and overlay attributes, in names, and in the pixels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from tests.data.raw_inputs import dicom_loop
from tests.data.screens import draw_scene, draw_text


@dataclass(frozen=True)
class Planted:
    """A file, and what must not leave. `drawn`: those of the identities that stand in the pixels of the scan region."""

    path: Path
    secrets: list[str]
    drawn: list[str]


def plant(folder: Path, number: int) -> Planted:
    """Write file `number`: a pure function of it."""
    rng = np.random.default_rng([77, number])
    scene = draw_scene(rng, size=int(rng.choice([256, 384, 512])))
    letters = "".join(rng.choice(list("BCDFGHJKLMNPQRSTVWXZ"), 9))
    name, number_text = f"{letters}^JANE", f"{rng.integers(10**8, 10**9)}"
    date = f"19{rng.integers(30, 99)}{rng.integers(1, 13):02}{rng.integers(1, 29):02}"
    uid = generate_uid(entropy_srcs=[f"planted {number}"])
    secrets = [letters, number_text, date, uid]

    dataset = dicom_loop(0, 1)
    pixels = on_a_screen(scene.image, [letters, number_text, date])
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.NumberOfFrames = 1
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    _plant_attributes(dataset, name, number_text, date, uid)
    dataset.preamble = f"{name} {number_text}".encode().ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = letters[:16]
    dataset.file_meta.add_new(0x00020100, "UI", uid)
    dataset.file_meta.add_new(0x00020102, "OB", name.encode().ljust(20, b"\0"))
    syntax = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)[number % 3]
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    path = folder / f"{letters} {date}" / f"{number:04} {number_text}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return Planted(path, secrets, scene.tokens)


def on_a_screen(picture: np.ndarray, texts: list[str]) -> np.ndarray:
    """The picture below a header and beside a margin with names in it."""
    height, width = picture.shape[:2]
    screen = np.zeros((height + 70, width + 120, 3), np.uint8)
    screen[50 : 50 + height, 60 : 60 + width] = picture
    for i, text in enumerate(texts):
        screen, _ = draw_text(screen, text, 6 + 14 * i, 8, size=13)
    screen, _ = draw_text(screen, texts[0], 80, 4, size=11, vertical=True)
    screen, _ = draw_text(screen, texts[1], height + 52, width - 80, size=13)
    return screen


def _plant_attributes(dataset: pydicom.FileDataset, name: str, number: str, date: str, uid: str) -> None:
    """Wherever DICOM has room for text; also in the few attributes of which something leaves."""
    for keyword in (
        "PatientName",
        "OtherPatientNames",
        "ReferringPhysicianName",
        "OperatorsName",
        "PerformingPhysicianName",
    ):
        setattr(dataset, keyword, name)
    for keyword in (
        "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "IssuerOfPatientID", "DeviceSerialNumber",
    ):  # fmt: skip
        setattr(dataset, keyword, number[:16])
    for keyword in ("PatientBirthDate", "StudyDate", "SeriesDate", "ContentDate", "AcquisitionDate"):
        setattr(dataset, keyword, date)
    dataset.AcquisitionDateTime = date + "101112"
    for keyword in (
        "InstitutionName", "InstitutionAddress", "StationName", "StudyDescription", "SeriesDescription", "ProtocolName",
        "ImageComments", "PatientComments", "PatientAddress", "DerivationDescription",
    ):  # fmt: skip
        setattr(dataset, keyword, f"thyroid {name} {number}"[: 16 if keyword == "StationName" else 60])
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = uid
    # Of these something leaves: never the text.
    dataset.Manufacturer, dataset.ManufacturerModelName = f"GE {name}", f"LOGIQ E9 {name}"
    dataset.TransducerData, dataset.BodyPartExamined = [name.replace("^", "")[:12], "9L-D"], name[:9]
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = (
        number[:16],
        "99" + name[:5],
        f"{name} thyroid",
    )
    dataset.AnatomicRegionSequence = Sequence([region])
    # Nested, private, and overlays.
    inner, outer = Dataset(), Dataset()
    inner.PatientName, inner.PatientID, inner.TextValue = name, number, f"{name} {date}"
    outer.ContentSequence, outer.ScheduledProcedureStepDescription = Sequence([inner]), name
    dataset.RequestAttributesSequence = Sequence([outer])
    ultrasound = Dataset()
    ultrasound.RegionLocationMinX0 = ultrasound.RegionLocationMinY0 = 0
    ultrasound.RegionLocationMaxX1, ultrasound.RegionLocationMaxY1 = dataset.Columns - 1, dataset.Rows - 1
    ultrasound.RegionSpatialFormat, ultrasound.RegionDataType = 1, 1
    ultrasound.private_block(0x0019, name[:20], create=True).add_new(0x01, "LO", name)
    dataset.SequenceOfUltrasoundRegions = Sequence([ultrasound])
    block = dataset.private_block(0x0009, name[:20], create=True)
    block.add_new(0x01, "LO", f"{name} {number}")
    block.add_new(0x02, "UN", f"{name} {date}".encode())
    rows, columns = dataset.Rows, dataset.Columns
    dataset.add_new(0x60000010, "US", rows)
    dataset.add_new(0x60000011, "US", columns)
    dataset.add_new(0x60000022, "LO", name)
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 0)
    drawn, _ = draw_text(np.zeros((rows, columns, 3), np.uint8), name, rows // 2, columns // 4, size=20)
    dataset.add_new(
        0x60003000,
        "OW",
        np.packbits(drawn[..., 0] > 127, bitorder="little").tobytes().ljust((rows * columns + 15) // 16 * 2, b"\0"),
    )
    dataset.add_new(0x60004000, "LT", f"{name} {date}")
