# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Reading: real DICOM of every kind, images of every mode, and files that are broken or lie."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from modeling_urfm.data.reading import UnreadableFile, open_source, ultrasound_examples


EXAMPLES = {path.name: path for path in ultrasound_examples()}


def reason(path, frame=0) -> str:
    with pytest.raises(UnreadableFile) as error:
        open_source(path).frame(frame)
    return error.value.reason


@pytest.mark.parametrize(
    ("name", "frames", "shape"),
    [
        ("examples_rgb_color.dcm", 1, (240, 320, 3)), ("examples_palette.dcm", 1, (350, 800, 3)),
        ("examples_jpeg2k.dcm", 1, (480, 640, 3)), ("examples_ybr_color.dcm", 30, (240, 320, 3)),
        ("ExplVR_BigEnd.dcm", 1, (60, 80, 3)),
    ],
)  # fmt: skip
def test_pydicoms_real_ultrasound_is_read_whole(name, frames, shape):
    source = open_source(EXAMPLES[name])
    assert source.num_frames == frames
    for index in {0, frames // 2, frames - 1}:
        frame = source.frame(index)
        assert frame.shape == shape and frame.dtype == np.uint8 and frame.std() > 5


def test_colours_are_those_of_pydicom():
    dataset = pydicom.dcmread(EXAMPLES["examples_rgb_color.dcm"])
    assert np.array_equal(open_source(EXAMPLES["examples_rgb_color.dcm"]).frame(0), dataset.pixel_array)
    cine = pydicom.dcmread(EXAMPLES["examples_ybr_color.dcm"])
    frame = open_source(EXAMPLES["examples_ybr_color.dcm"]).frame(7)
    assert np.array_equal(frame, pydicom.pixels.pixel_array(cine)[7])
    # A grey echocardiogram is grey in RGB, and was not left in YBR.
    assert np.abs(frame[..., 0].astype(int) - frame[..., 1]).mean() < 3


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_compressions_give_the_same_pixels(tmp_path, syntax):
    dataset = pydicom.dcmread(EXAMPLES["examples_rgb_color.dcm"])
    dataset.compress(syntax)
    dataset.save_as(tmp_path / "compressed")
    assert np.array_equal(
        open_source(tmp_path / "compressed").frame(0), open_source(EXAMPLES["examples_rgb_color.dcm"]).frame(0)
    )


def grey_dicom(path, pixels: np.ndarray, bits: int, **values):
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Modality, dataset.SOPClassUID, dataset.SOPInstanceUID = "US", meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (16 if bits > 8 else 8), bits, bits - 1
    dataset.PixelData = pixels.astype(np.uint16 if bits > 8 else np.uint8).tobytes()
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def test_grey_of_8_and_12_bits_inverted_and_windowed(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    grey_dicom(tmp_path / "a", ramp, 8)
    grey_dicom(tmp_path / "b", ramp, 8, PhotometricInterpretation="MONOCHROME1")
    grey_dicom(tmp_path / "c", ramp.astype(np.uint16) * 16, 12)
    grey_dicom(tmp_path / "d", ramp, 8, WindowCenter=64, WindowWidth=64)
    a, b, c, d = (open_source(tmp_path / name).frame(0)[..., 0].astype(int) for name in "abcd")
    assert np.array_equal(a, ramp) and np.array_equal(b, 255 - ramp.astype(int))
    assert np.abs(c - ramp).max() <= 1
    assert d.min() == 0 and d.max() == 255 and (d == 255).mean() > 0.5


def test_other_modalities_and_objects_without_an_image_are_turned_away():
    folder = EXAMPLES["examples_rgb_color.dcm"].parent
    assert reason(folder / "CT_small.dcm") == "modality CT is not ultrasound (US)"
    assert "SR object without an image" in reason(folder / "test-SR.dcm")
    assert reason(folder / "liver_1frame.dcm") == "modality SEG is not ultrasound (US)"


def test_broken_and_lying_files_say_why(tmp_path):
    whole = EXAMPLES["examples_rgb_color.dcm"].read_bytes()
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.dcm").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    (tmp_path / "text").write_text("hello")
    assert reason(tmp_path / "empty.dcm") == "the file is empty"
    assert "truncated: declares 230,400 bytes of pixels" in reason(tmp_path / "cut.dcm") or "pixel data" in reason(
        tmp_path / "cut.dcm"
    )
    assert reason(tmp_path / "noise.dcm")
    assert reason(tmp_path / "cut.png")
    assert reason(tmp_path / "text") == "neither a DICOM file nor an image"
    assert "cannot be opened" in reason(tmp_path / "absent.dcm")
    grey_dicom(tmp_path / "frames.dcm", np.zeros((8, 8)), 8, NumberOfFrames=10**9)
    assert "declares 1,000,000,000 frames" in reason(tmp_path / "frames.dcm")
    grey_dicom(tmp_path / "large.dcm", np.zeros((8, 8)), 8, Rows=65535, Columns=65535)
    assert "declares frames of 65535 x 65535" in reason(tmp_path / "large.dcm")
    cine = EXAMPLES["examples_ybr_color.dcm"].read_bytes()
    (tmp_path / "cine.dcm").write_bytes(cine[: len(cine) // 2])
    assert reason(tmp_path / "cine.dcm", frame=29)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3500), st.binary(min_size=1, max_size=8), st.sampled_from(sorted(EXAMPLES)))
def test_a_mutated_header_is_read_or_refused_but_never_crashes(tmp_path_factory, place, junk, name):
    content = bytearray(EXAMPLES[name].read_bytes())
    content[place : place + len(junk)] = junk
    path = tmp_path_factory.mktemp("fuzz") / "file.dcm"
    path.write_bytes(content)
    try:
        assert open_source(path).frame(0).ndim == 3
    except UnreadableFile as error:
        assert error.reason


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_images_of_every_mode(tmp_path, mode, suffix):
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    image = (
        Image.fromarray(ramp.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(ramp).convert("RGB").convert(mode)
    )
    image.save(tmp_path / f"image{suffix}")
    frame = open_source(tmp_path / f"image{suffix}").frame(0)
    assert frame.shape == (8, 8, 3)
    if mode != "1":
        assert np.abs(frame.mean(-1) - ramp).max() <= (40 if mode == "P" else 1)


def test_transparency_is_laid_over_black(tmp_path):
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert open_source(tmp_path / "clear.png").frame(0).max() == 0


def test_a_dicom_file_is_known_without_its_name_or_preamble(tmp_path):
    shutil.copy(EXAMPLES["examples_jpeg2k.dcm"], tmp_path / "IM000001")
    assert open_source(tmp_path / "IM000001").frame(0).shape == (480, 640, 3)
    bare = EXAMPLES["examples_rgb_color.dcm"].read_bytes()[132:]
    (tmp_path / "bare").write_bytes(bare)
    assert open_source(tmp_path / "bare").frame(0).shape == (240, 320, 3)


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(UnreadableFile("a.dcm", "cut")))
    assert (error.path, error.reason, str(error)) == ("a.dcm", "cut", "a.dcm: cut")


def test_jpeg_lossless_as_many_archives_keep_it():
    """Process 14, selection value 1 (1.2.840.10008.1.2.4.70): only GDCM decodes it under a permissive licence."""
    path = Path(pydicom.__file__).parent / "data" / "test_files" / "SC_rgb_jpeg_gdcm.dcm"
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.70"
    assert open_source(path).frame(0).shape == (100, 100, 3)
