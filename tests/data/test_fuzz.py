# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Mutated files of every kind: what comes out is pictures or `UnreadableFile` with a code, within bounded time."""

import bz2
import gzip
import io
import lzma
import tarfile
import time
import zipfile
import zlib
from functools import cache

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_urfm.data.archives import ArchiveReader, is_archive_bytes, list_members
from modeling_urfm.data.reading import UnreadableFile, open_source, ultrasound_examples
from modeling_urfm.data.reasons import REASONS

from .test_reading import film, grey_dicom, metaimage, nifti


SECONDS = 20  # of one file, on a slow and busy machine; in truth it is a hundredth of that
RAMP = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)


@cache
def seeds() -> dict[str, bytes]:
    """A small whole file of every kind."""
    examples = {path.stem: path.read_bytes() for path in ultrasound_examples()}
    found = {name: examples[name] for name in ("ExplVR_BigEnd", "examples_ybr_color", "examples_jpeg2k")}
    buffer = io.BytesIO()
    grey_dicom(buffer, np.stack([RAMP] * 3), 8, NumberOfFrames=3)
    plain = found["native"] = buffer.getvalue()
    for syntax in (pydicom.uid.RLELossless, pydicom.uid.JPEGLSLossless):
        dataset = pydicom.dcmread(io.BytesIO(plain))
        dataset.compress(syntax)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        found[syntax.name] = buffer.getvalue()
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    found["deflated"] = buffer.getvalue()
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "PPM"):
        buffer = io.BytesIO()
        more = (
            {"save_all": True, "append_images": [Image.fromarray(255 - RAMP)]} if kind in ("GIF", "TIFF", "PNG") else {}
        )
        Image.fromarray(RAMP).save(buffer, kind, **more)
        found[kind] = buffer.getvalue()
    for codec, container in (
        ("libx264", "mp4"),
        ("mjpeg", "avi"),
        ("libvpx", "webm"),
        ("wmv2", "asf"),
        ("mpeg2video", "mpeg"),
    ):
        found[container] = film(codec, container, frames=6)[0]
    found["nii"] = nifti(np.stack([RAMP.T] * 3, -1).astype(np.int16))
    found["nii.gz"] = gzip.compress(found["nii"])
    found["mha"] = metaimage(np.stack([RAMP] * 3))
    found["zlib mha"] = metaimage(np.stack([RAMP] * 3), compressed=True)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, method in enumerate(
            (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        ):
            archive.writestr(zipfile.ZipInfo(f"folder/{number}.png"), found["PNG"], method)
    found["zip"] = buffer.getvalue()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("short.png", "ü" * 120 + ".png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(found["PNG"])
            archive.addfile(entry, io.BytesIO(found["PNG"]))
    found["tar"] = buffer.getvalue()
    found |= {"tgz": gzip.compress(found["tar"]), "tbz": bz2.compress(found["tar"]), "txz": lzma.compress(found["tar"])}
    return found


ARCHIVES = ("zip", "tar", "tgz", "tbz", "txz")
FILES = (
    "ExplVR_BigEnd", "examples_ybr_color", "examples_jpeg2k", "native", "RLE Lossless", "JPEG-LS Lossless Image Compression",
    "deflated", "PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "PPM", "mp4", "avi", "webm", "asf", "mpeg",
    "nii", "nii.gz", "mha", "zlib mha",
)  # fmt: skip


def mutated(content: bytes, places, junk: bytes, kind: str) -> bytes:
    """Overwritten, inserted, deleted, doubled or cut at places that are fractions of its length or, most damage being
    done in headers, of its first 512 bytes."""
    content = bytearray(content)
    for number, place in enumerate(places):
        at = int(place * (len(content) if number % 2 else min(512, len(content))))
        if kind == "overwrite":
            content[at : at + len(junk)] = junk
        elif kind == "insert":
            content[at:at] = junk
        elif kind == "delete":
            del content[at : at + len(junk)]
        elif kind == "double":
            content[at:at] = content[at : at + 64]
        else:
            del content[max(1, at) :]
    return bytes(content)


MUTATIONS = {
    "places": st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
    "junk": st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"999999"])),
    "kind": st.sampled_from(["overwrite", "insert", "delete", "double", "cut"]),
}  # fmt: skip


def check(error: UnreadableFile):
    assert error.code in REASONS and error.reason


def read_all(content: bytes):
    source = open_source("file", content)
    assert 1 <= source.num_frames <= 100_000
    for index in sorted({0, source.num_frames // 2, source.num_frames - 1}):
        try:
            frame = source.frame(index)
            assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[-1] == 3 and frame.size
        except UnreadableFile as error:
            check(error)


@pytest.mark.parametrize("name", FILES)
def test_the_seeds_themselves_are_whole(name):
    source = open_source("file", seeds()[name])
    assert all(source.frame(index).any() for index in range(source.num_frames))


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(**MUTATIONS)
def test_a_mutated_file_gives_pictures_or_a_reason(name, places, junk, kind):
    content = mutated(seeds()[name], places, junk, kind)
    started = time.monotonic()
    try:
        read_all(content)
    except UnreadableFile as error:
        check(error)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("name", ARCHIVES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(**MUTATIONS)
def test_a_mutated_archive_gives_members_or_a_reason(tmp_path_factory, name, places, junk, kind):
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(mutated(seeds()[name], places, junk, kind))
    started, reader, indices = time.monotonic(), ArchiveReader(), []
    is_archive_bytes(path.read_bytes())
    try:
        for member in list_members(path):
            indices.append(member.index)
            assert member.problem is None or member.problem in REASONS
            assert member.name or member.problem
            try:
                assert len(reader.read(path, member)) == member.size
            except UnreadableFile as error:
                check(error)
    except UnreadableFile as error:
        check(error)
    reader.close()
    assert indices == list(range(len(indices)))
    assert time.monotonic() - started < SECONDS


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.binary(max_size=600),
    st.sampled_from([b"", b"PK\x03\x04", b"\0" * 128 + b"DICM", b"\x1f\x8b", b"ObjectType = Image\n"]),
)
def test_noise_behind_any_head_is_refused(noise, head):
    with pytest.raises(UnreadableFile) as error:
        read_all(head + noise)
        raise UnreadableFile("x", "noise may by chance be a picture", "damaged")
    check(error.value)


def test_deflate_inside_png_is_bounded():
    """A PNG of a declared size that its compressed data exceed: Pillow stops at what was declared."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = chunk(b"IHDR", (8).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0")
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(50_000_000))) + chunk(b"IEND", b"")
    started = time.monotonic()
    assert open_source("bomb.png", content).frame(0).shape == (8, 8, 3)
    assert time.monotonic() - started < 2
