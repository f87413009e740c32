# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What users arrive with, made from phantoms: DICOM loops, screenshots, clips, volumes, archives, and what is broken."""

import io
import tarfile
import zipfile
from pathlib import Path

import av
import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from modeling_urfm.data.phantoms import phantom_frame


def screen(patient: int, frame: int = 0, size: int = 192, margin: int = 24) -> np.ndarray:
    """A phantom as a scanner shows it: on a black screen, (height, width) uint8."""
    image = phantom_frame(11, patient, frame, image_size=size, snr_db=18).image
    return np.pad(image, ((margin, margin // 2), (margin, margin)))


def dicom_loop(patient: int, frames: int = 6, **attributes) -> pydicom.FileDataset:
    """A multi-frame ultrasound object, monochrome, explicit little endian; a still where `frames` is 1."""
    pixels = np.stack([screen(patient, frame) for frame in range(frames)])
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"{patient}"])
    dataset = pydicom.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID, dataset.Manufacturer = "US", f"P{patient:04}", "GE Healthcare"
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[f"study {patient}"])
    dataset.Rows, dataset.Columns = pixels.shape[1:]
    dataset.NumberOfFrames, dataset.FrameTime = frames, "40"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def bytes_of(dataset: pydicom.FileDataset) -> bytes:
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def image_bytes(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def write_video(path: Path, patient: int, frames: int = 12) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        height, width = screen(patient).shape
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 4_000_000
        for frame in range(frames):
            pixels = screen(patient, frame)[..., None].repeat(3, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_raw_inputs(folder: Path) -> int:
    """A folder of everything; returns how many input files there are, archive members included."""
    clinic = folder / "clinic" / "Doe^Jane 1970-01-02"
    clinic.mkdir(parents=True)
    for patient in range(3):
        (clinic / f"loop{patient}.dcm").write_bytes(bytes_of(dicom_loop(patient, 6)))
    whole = bytes_of(dicom_loop(3, 2))
    (clinic / "truncated.dcm").write_bytes(whole[: len(whole) // 2])
    (clinic / "ct.dcm").write_bytes(bytes_of(dicom_loop(4, 1, Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")))
    (clinic / "screenshot.png").write_bytes(image_bytes(screen(5)))
    (clinic / "screenshot again.png").write_bytes(image_bytes(screen(5)))
    (clinic / "screenshot resaved.jpg").write_bytes(image_bytes(screen(5), "JPEG", quality=80))
    (clinic / "report.txt").write_text("Jane Doe, born 1970-01-02")
    (clinic / "empty.dcm").write_bytes(b"")
    (clinic / ".hidden.png").write_bytes(image_bytes(screen(6)))
    (clinic / "renamed.txt").write_bytes(image_bytes(screen(7)))
    (clinic / "black.png").write_bytes(image_bytes(np.zeros((200, 200), np.uint8)))
    (clinic / "gone.png").symlink_to(folder / "nowhere.png")
    write_video(folder / "clip.mp4", 8)
    volume = np.stack([screen(9, frame) for frame in range(5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.3, 0.3, 1.0, 1.0])), folder / "volume.nii.gz")
    with zipfile.ZipFile(folder / "export.zip", "w") as archive:
        archive.writestr("a/image.png", image_bytes(screen(10)))
        archive.writestr("../climbs.png", image_bytes(screen(11)))
        archive.writestr("a/notes.csv", "x,y\n")
    with tarfile.open(folder / "export.tar.gz", "w:gz") as archive:
        for patient in (12, 13):
            content = bytes_of(dicom_loop(patient, 3))
            info = tarfile.TarInfo(f"study/{patient}.dcm")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return 14 + 2 + (1 + 3) + (1 + 2)
