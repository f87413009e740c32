# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Uploads to frames: what is read, what is refused in whose words, and that nothing of a header but the allow-list comes back."""

import io
import zipfile

import numpy as np
import pydicom
import pytest
import scans
from PIL import Image

from modeling_urfm.data.reading import UnreadableFile, ultrasound_examples
from modeling_urfm.data.reasons import REASONS
from tests.data.raw_inputs import bytes_of, dicom_loop, image_bytes, write_video


SECRET = "Mustermann^Erika"


def test_a_loop_is_read_with_its_region_and_its_rate(echo):
    scan = scans.scan_of(echo)
    assert scan.frames.shape == (30, 240, 320, 3) and scan.total == 30 and scan.numbers == tuple(range(30))
    assert (scan.kind, scan.is_loop, scan.geometry, scan.found_by) == ("dicom", True, "sector", "motion")
    assert scan.frame_rate == pytest.approx(30, abs=0.01)
    assert scan.attributes == {"maker": "SonoSite", "model": "Turbo", "pixel spacing": "1.02 mm"}


@pytest.mark.parametrize("frame_time", ["1e-300", "0", "-40"])
def test_a_rate_that_nobody_believes_is_not_told(frame_time):
    loop = dicom_loop(3, frames=2)
    loop.FrameTime = frame_time
    assert scans.scan_of(bytes_of(loop)).frame_rate is None


def test_outside_of_the_outline_nothing_reaches_the_model(echo):
    scan = scans.scan_of(echo)
    assert scan.seen.shape[1] < 240 and scan.seen.shape[2] < 320
    assert scan.frames[:, :20, :40].max() > 50  # letters in the corner
    corner = scan.seen[:, :20, :20]
    assert corner.max() == 0  # of the box of a fan, which is outside of its outline


def test_no_text_of_a_header_comes_back(echo):
    dataset = pydicom.dcmread(io.BytesIO(echo))
    dataset.PatientName = dataset.InstitutionName = dataset.StudyDescription = dataset.ProtocolName = SECRET
    dataset.Manufacturer, dataset.ManufacturerModelName = f"{SECRET} GmbH", SECRET
    content = io.BytesIO()
    dataset.save_as(content)
    scan = scans.scan_of(content.getvalue())
    assert scan.attributes["maker"] == "other" and "Mustermann" not in repr(scan)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_stills(kind, phantom):
    scan = scans.scan_of(image_bytes(phantom, kind))
    assert scan.frames.shape == (1, 192, 192, 3) and scan.kind == "image" and not scan.is_loop
    assert scan.polygon and scan.found_by == "pixels" and not scan.attributes


def test_16_bits_show_the_same_as_8(phantom):
    scan = scans.scan_of(image_bytes(phantom.astype(np.uint16) * 257))
    assert np.abs(scan.frames[0, ..., 0].astype(int) - phantom).max() <= 1


def test_films(tmp_path, phantom):
    write_video(tmp_path / "film.mp4", 0, frames=40)
    scan = scans.scan_of((tmp_path / "film.mp4").read_bytes())
    assert scan.kind == "video" and scan.is_loop and scan.total == 40 and len(scan.frames) == scans.MAX_FRAMES
    assert scan.frame_rate == 25 and list(scan.numbers) == sorted(set(scan.numbers))
    film = io.BytesIO()
    frames = [Image.fromarray(np.roll(phantom, n, 0)) for n in range(3)]
    frames[0].save(film, "GIF", save_all=True, append_images=frames[1:], duration=100)
    scan = scans.scan_of(film.getvalue())
    assert scan.is_loop and scan.total == 3 and scan.frame_rate == 10


def test_large_pictures_are_reduced_and_keep_their_shape(phantom):
    large = np.asarray(Image.fromarray(phantom).resize((3000, 1500)))
    scan = scans.scan_of(image_bytes(large))
    assert scan.size == (1500, 3000) and scan.frames.shape == (1, 512, 1024, 3)


def test_a_photograph_has_no_region_and_is_shown_whole():
    rng = np.random.default_rng(0)
    scan = scans.scan_of(image_bytes(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8), "BMP"))
    assert scan.seen.shape == scan.frames.shape or scan.polygon


@pytest.mark.parametrize("size", [(2, 2), (2, 900), (900, 2), (17, 3)])
def test_odd_sizes_are_read(size):
    assert scans.scan_of(image_bytes(np.full(size, 90, np.uint8))).frames.shape == (1, *size, 3)


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("scan.png", b"x")
    return content.getvalue()


@pytest.mark.parametrize(
    "data, code",
    [
        (b"", "empty"),
        (b"hello", "no-image"),
        (b"\x89PNG\r\n\x1a\nxxxx", "damaged"),
        (archive(), "archive-nested"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0", "damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(rm -rf /) run", "no-image"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no-image"),
    ],
)
def test_what_holds_no_scan_is_refused_with_a_code(data, code):
    with pytest.raises(UnreadableFile) as error:
        scans.scan_of(data)
    assert error.value.code == code


def test_half_a_file_is_refused(echo):
    with pytest.raises(UnreadableFile):
        scans.scan_of(echo[: len(echo) // 2])


def test_every_code_has_a_sentence_that_quotes_nothing():
    for code in REASONS:
        assert scans.refusal(code).startswith("This file can't be shown: ")
    assert set(scans.ADVICE) <= set(REASONS)
    assert scans.refusal("of another version") == scans.refusal("damaged")


def crash(data: bytes):
    import os
    import time

    if data == b"loop":
        time.sleep(600)
    if data == b"end":
        os._exit(139)
    yield from scans.read_upload(data)


@pytest.mark.slow
def test_a_decoder_that_ends_or_loops_costs_that_file_alone(phantom):
    reader = scans.ScanReader(timeout_s=60)
    reader.worker.function = crash
    try:
        assert reader(image_bytes(phantom)).kind == "image"
        with pytest.raises(scans.Refused, match="the decoder ended its process"):
            reader(b"end")
        with pytest.raises(scans.Refused, match="no bytes"):
            reader(b"")
        assert reader(image_bytes(phantom)).kind == "image"
        reader.worker.timeout_s = 1
        with pytest.raises(scans.Refused, match="longer than allowed"):
            reader(b"loop")
    finally:
        reader.close()


@pytest.mark.slow
def test_mutated_files_are_shown_or_refused(echo, phantom):
    """In the process with limits, as the app reads them: 150 files."""
    rng = np.random.default_rng(0)
    seeds = [image_bytes(phantom), image_bytes(phantom, "GIF"), image_bytes(phantom, "TIFF")]
    seeds += [path.read_bytes() for path in ultrasound_examples() if path.stat().st_size < 400_000]
    reader, shown, refused = scans.ScanReader(timeout_s=60), 0, 0
    try:
        for trial in range(150):
            data = bytearray(seeds[trial % len(seeds)])
            for _ in range(rng.integers(1, 12)):
                data[rng.integers(0, min(len(data), 3000))] = rng.integers(0, 256)
            end = len(data) if trial % 3 else rng.integers(len(data) // 2, len(data))
            try:
                scan = reader(bytes(data[:end]))
                assert scan.frames.dtype == np.uint8 and scan.seen.ndim == 4
                shown += 1
            except scans.Refused:
                refused += 1
    finally:
        reader.close()
    assert shown and refused and shown + refused == 150
