# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Reading: real DICOM of every kind, images of every mode, and files that are broken or lie."""

import gzip
import io
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from modeling_urfm.data.reading import UnreadableFile, open_source, ultrasound_examples
from modeling_urfm.data.reasons import REASONS


EXAMPLES = {path.name: path for path in ultrasound_examples()}


def reason(path, frame=0) -> str:
    with pytest.raises(UnreadableFile) as error:
        open_source(path).frame(frame)
    return error.value.reason


def code(path, data=None, frame=0) -> str:
    with pytest.raises(UnreadableFile) as error:
        open_source(path, data).frame(frame)
    assert error.value.code in REASONS
    return error.value.code


def film(codec: str, container: str, frames: int = 12, pixels: str | None = None, sound: bool = False, **options):
    """(bytes, frames as they went in) of a small film whose every frame differs."""
    import av

    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 255, (8, 8 + frames, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    shown = [np.ascontiguousarray(scene[:, 8 * i : 8 * i + 64]) for i in range(frames)]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={name: str(value) for name, value in options.items()})
        stream.width = stream.height = 64
        stream.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.thread_count = 1
        tone = output.add_stream("aac", rate=16000) if sound else None
        for index, frame in enumerate(shown):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if tone is not None:
                noise = av.AudioFrame.from_ndarray(rng.normal(0, 0.1, (1, 640)).astype(np.float32), "fltp", "mono")
                noise.sample_rate, noise.pts = 16000, 640 * index
                output.mux(tone.encode(noise))
        output.mux(stream.encode())
        if tone is not None:
            output.mux(tone.encode())
    return buffer.getvalue(), shown


def nifti(values: np.ndarray, spacing=(0.5, 0.25, 1, 1, 1), units=("mm", "sec"), kind="Nifti1Image") -> bytes:
    """Of values (x, y, slices[, times]), as nibabel writes them."""
    import nibabel

    image = getattr(nibabel, kind)(values, np.eye(4))
    image.header.set_zooms(spacing[: values.ndim])
    image.header.set_xyzt_units(*units)
    return image.to_bytes()


def metaimage(values: np.ndarray, compressed=False, spacing="0.25 0.5 1", where="LOCAL", channels=1, **fields) -> bytes:
    """Of values (slices, rows, columns[, channels])."""
    kinds = {"u1": "UCHAR", "i2": "SHORT", "u2": "USHORT", "i4": "INT", "f4": "FLOAT", "f8": "DOUBLE"}
    body = values.tobytes()
    body = zlib.compress(body) if compressed else body
    sizes = values.shape[: values.ndim - (channels > 1)][::-1]
    lines = {
        "ObjectType": "Image", "NDims": len(sizes), "BinaryData": "True", "BinaryDataByteOrderMSB": values.dtype.byteorder == ">",
        "CompressedData": compressed, "ElementSpacing": spacing, "DimSize": " ".join(map(str, sizes)),
        "ElementNumberOfChannels": channels, "ElementType": "MET_" + kinds[values.dtype.str[1:]],
        **fields, "ElementDataFile": where,
    }  # fmt: skip
    header = "".join(f"{name} = {value}\n" for name, value in lines.items()).encode()
    return header + body if where == "LOCAL" else header


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


# ---------------------------------------------------------------- DICOM: syntaxes, loops, refusals


def saved(dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def colour_dicom(pixels: np.ndarray, **values) -> bytes:
    """RGB of shape (frames, rows, columns, 3)."""
    buffer = io.BytesIO()
    layout = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    rows, columns = pixels.shape[1:3]
    layout |= {"Rows": rows, "Columns": columns, "NumberOfFrames": len(pixels), "PixelData": pixels.tobytes()}
    grey_dicom(buffer, pixels[..., 0], 8, **{**layout, **values})
    return buffer.getvalue()


def smooth(*shape) -> np.ndarray:
    """Pixels that lossy compression hardly changes."""
    import cv2

    noise = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    return np.stack([cv2.normalize(cv2.GaussianBlur(n, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX) for n in noise])


FRAMES = smooth(5, 40, 48, 3)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_by_pixel_and_by_plane(planar):
    stored = FRAMES if planar == 0 else FRAMES.transpose(0, 3, 1, 2)
    content = colour_dicom(FRAMES, PlanarConfiguration=planar, PixelData=stored.tobytes())
    source = open_source("x", content)
    assert (source.num_frames, source.kind, source.is_loop) == (5, "dicom", True)
    assert all(np.array_equal(source.frame(i), FRAMES[i]) for i in (4, 0, 2, 3, 1))


@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422", "YBR_FULL_422 stored whole"])
def test_uncompressed_ybr(kind):
    from pydicom.pixels import convert_color_space

    ybr = np.stack([convert_color_space(frame, "RGB", "YBR_FULL") for frame in FRAMES])
    if kind == "YBR_FULL_422":  # two pixels share their colour: Y1 Y2 Cb Cr
        stored = np.concatenate([ybr[..., 0::2, 0:1], ybr[..., 1::2, 0:1], ybr[..., 0::2, 1:3]], -1)
    else:
        stored = ybr
    content = colour_dicom(FRAMES, PhotometricInterpretation=kind.split()[0], PixelData=stored.tobytes())
    frame = open_source("x", content).frame(3)
    assert np.abs(frame.astype(int) - FRAMES[3]).mean() < (4 if kind == "YBR_FULL_422" else 1.5)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("table", ["one fragment a frame", "basic", "extended", "lying", "none"])
def test_any_frame_of_a_compressed_loop(syntax, table):
    dataset = pydicom.dcmread(io.BytesIO(colour_dicom(FRAMES)))
    dataset.compress(syntax)
    if table != "one fragment a frame":
        encoded = [pydicom.encaps.get_frame(dataset.PixelData, i, number_of_frames=5) for i in range(5)]
        value = bytearray(
            pydicom.encaps.encapsulate(encoded, fragments_per_frame=2, has_bot=table in ("basic", "lying"))
        )
        if table == "lying":  # places that are no frames'
            value[8:28] = struct.pack("<5L", 0, 2, 4, 6, 8)
        if table == "extended":
            sizes = [sum(8 + len(part) for part in pydicom.encaps.fragment_frame(frame, 2)) for frame in encoded]
            dataset.ExtendedOffsetTable = struct.pack("<5Q", *np.cumsum([0, *sizes[:-1]]).tolist())
            dataset.ExtendedOffsetTableLengths = struct.pack("<5Q", *sizes)
        dataset.PixelData = bytes(value)
    if syntax == RLELossless and table in ("lying", "none"):  # nothing shows where its frames begin
        assert code("x", saved(dataset)) == "truncated"
        return
    source = open_source("x", saved(dataset))
    assert all(np.array_equal(source.frame(i), FRAMES[i]) for i in (4, 0, 2, 3, 1))
    assert "PixelData" not in source.header and source.header.Modality == "US"


def jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"])
def test_jpeg_baseline_and_extended(uid):
    for kind, frames in (("YBR_FULL_422", FRAMES), ("MONOCHROME2", FRAMES[..., 0])):
        dataset = pydicom.dcmread(io.BytesIO(colour_dicom(FRAMES, PhotometricInterpretation=kind)))
        dataset.PixelData = pydicom.encaps.encapsulate([jpeg(frame) for frame in frames])
        dataset["PixelData"].is_undefined_length = True
        dataset.SamplesPerPixel = frames.shape[-1] if frames.ndim == 4 else 1
        dataset.file_meta.TransferSyntaxUID = uid
        frame = open_source("x", saved(dataset)).frame(2)
        wanted = frames[2] if frames.ndim == 4 else frames[2][..., None].repeat(3, -1)
        assert np.abs(frame.astype(int) - wanted).mean() < 3


@pytest.mark.parametrize("value", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1"])
@pytest.mark.parametrize("bits", [8, 16])
def test_jpeg_lossless(tmp_path, value, bits):
    import gdcm

    values = FRAMES[0, ..., 0].astype(np.uint16) * (257 if bits == 16 else 1)
    grey_dicom(tmp_path / "plain", values, bits)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "plain"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, value)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "lossless"))
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "lossless").file_meta.TransferSyntaxUID in pydicom.uid.JPEGTransferSyntaxes
    expected = open_source(tmp_path / "plain").frame(0)
    assert np.array_equal(open_source(tmp_path / "lossless").frame(0), expected)


@pytest.mark.parametrize(
    ("uid", "codec", "container"),
    [("1.2.840.10008.1.2.4.100", "mpeg2video", "mpeg2video"), ("1.2.840.10008.1.2.4.102", "libx264", "mp4"),
     ("1.2.840.10008.1.2.4.102", "libx264", "h264"), ("1.2.840.10008.1.2.4.107", "libx265", "hevc")],
)  # fmt: skip
def test_films_within_dicom(uid, codec, container):
    more = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    stream, shown = film(codec, container, frames=10, **more)
    dataset = pydicom.dcmread(io.BytesIO(colour_dicom(np.zeros((1, 64, 64, 3), np.uint8))))
    dataset.PixelData = pydicom.encaps.encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    dataset.NumberOfFrames, dataset.file_meta.TransferSyntaxUID = 10, uid
    source = open_source("x", saved(dataset))
    assert (source.num_frames, source.kind, source.is_loop) == (10, "dicom", True)
    assert all(np.abs(source.frame(i).astype(int) - shown[i]).mean() < 15 for i in (0, 9, 5))
    assert source.header.Modality == "US"


def test_deflated_and_big_endian_and_implicit_without_preamble():
    dataset = pydicom.dcmread(io.BytesIO(colour_dicom(FRAMES)))
    dataset["PixelData"].VR = "OB"  # bytes, which no byte order concerns
    for uid in ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"):
        dataset.file_meta.TransferSyntaxUID = uid
        buffer = io.BytesIO()
        how = {"implicit_vr": uid == "1.2.840.10008.1.2", "little_endian": uid != "1.2.840.10008.1.2.2"}
        pydicom.dcmwrite(buffer, dataset, force_encoding=True, **how)
        assert np.array_equal(open_source("x", buffer.getvalue()).frame(4), FRAMES[4])
    content = buffer.getvalue()
    bare = content[144 + struct.unpack_from("<L", content, 140)[0] :]
    assert np.array_equal(open_source("x", bare).frame(4), FRAMES[4])


def test_big_endian_words_of_odd_frames():
    """Bytes are swapped in pairs over the whole value, and frames of 9 pixels share pairs."""
    folder = EXAMPLES["examples_rgb_color.dcm"].parent
    frame = open_source(folder / "SC_rgb_small_odd_big_endian.dcm").frame(0)
    assert np.array_equal(frame, pydicom.dcmread(folder / "SC_rgb_small_odd.dcm").pixel_array)
    frames = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    buffer = io.BytesIO()
    grey_dicom(buffer, frames, 8, NumberOfFrames=3, PixelData=frames.tobytes() + b"\0")
    dataset = pydicom.dcmread(io.BytesIO(buffer.getvalue()))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    dataset["PixelData"].VR = "OW"
    dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    source = open_source("x", buffer.getvalue())
    assert all(np.array_equal(source.frame(i)[..., 0], frames[i]) for i in range(3))


def test_what_a_header_says_of_time_and_space(tmp_path):
    frames = np.zeros((4, 8, 8))
    grey_dicom(tmp_path / "a", frames, 8, NumberOfFrames=4, FrameTime="40", PixelSpacing=[0.2, 0.1])
    source = open_source(tmp_path / "a")
    assert (source.frame_rate, source.spacing_mm, source.is_loop) == (25, (0.2, 0.1), True)
    grey_dicom(tmp_path / "b", frames, 8, NumberOfFrames=4, CineRate="30", PixelSpacing=[1, 1])
    source = open_source(tmp_path / "b")
    assert (source.frame_rate, source.spacing_mm) == (30, None)
    pages = pydicom.tag.Tag(0x0018, 0x2001)
    grey_dicom(tmp_path / "c", frames, 8, NumberOfFrames=4, FrameIncrementPointer=pages)
    assert not open_source(tmp_path / "c").is_loop
    grey_dicom(tmp_path / "d", frames, 8, NumberOfFrames=4, SOPClassUID="1.2.840.10008.5.1.4.1.1.6.2")
    assert not open_source(tmp_path / "d").is_loop
    assert open_source(EXAMPLES["examples_ybr_color.dcm"]).frame_rate == pytest.approx(30, abs=0.01)


def test_a_window_maps_by_the_bits_and_not_by_what_a_frame_shows(tmp_path):
    dark = np.full((8, 8), 100)
    dark[0, 0] = 50
    grey_dicom(tmp_path / "a", dark, 8, WindowCenter=128, WindowWidth=256)
    assert np.abs(open_source(tmp_path / "a").frame(0)[..., 0].astype(int) - dark).max() <= 1


def test_overlays_are_never_drawn(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    grey_dicom(tmp_path / "plain", ramp, 8)
    dataset = pydicom.dcmread(tmp_path / "plain")
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60000011, "US", 8)
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60003000, "OW", b"\xff" * 8)
    dataset.save_as(tmp_path / "overlaid")
    assert np.array_equal(open_source(tmp_path / "overlaid").frame(0)[..., 0], ramp)


def test_what_a_dicom_file_is_refused_for(tmp_path):
    folder = EXAMPLES["examples_rgb_color.dcm"].parent
    for name, wanted in [
        ("CT_small.dcm", "other-modality"), ("test-SR.dcm", "no-pixels"), ("waveform_ecg.dcm", "no-pixels"),
        ("dicomdirtests/DICOMDIR", "no-pixels"), ("rtplan.dcm", "no-pixels"), ("liver_1frame.dcm", "other-modality"),
    ]:  # fmt: skip
        assert code(folder / name) == wanted
    for name, values, wanted in [
        ("frames", {"NumberOfFrames": 10**9}, "too-large"), ("size", {"Rows": 65535, "Columns": 65535}, "too-large"),
        ("long", {"NumberOfFrames": 100}, "truncated"), ("bits", {"BitsAllocated": 1}, "unsupported"),
        ("negative", {"NumberOfFrames": -1}, "damaged"), ("none", {"Rows": 0}, "no-image"),
    ]:  # fmt: skip
        grey_dicom(tmp_path / name, np.zeros((8, 8)), 8, **values)
        assert code(tmp_path / name) == wanted, name
    pdf = pydicom.dcmread(EXAMPLES["examples_rgb_color.dcm"], stop_before_pixels=True)
    for keyword in ("Rows", "Columns"):
        del pdf[keyword]
    pdf.SOPClassUID = pydicom.uid.EncapsulatedPDFStorage
    assert code("pdf", saved(pdf)) == "no-pixels"
    header = pydicom.dcmread(EXAMPLES["examples_rgb_color.dcm"], stop_before_pixels=True)
    assert code("header", saved(header)) == "truncated"
    whole = EXAMPLES["examples_ybr_color.dcm"].read_bytes()
    assert code("cut", whole[: len(whole) // 2]) == "truncated"


def test_a_value_of_four_gigabytes_takes_none(tmp_path):
    """A private value that declares 4 GB, in a file of 1 kB, is not asked of the system at once."""
    grey_dicom(tmp_path / "a", np.zeros((8, 8)), 8)
    whole = (tmp_path / "a").read_bytes()
    at = whole.index(b"\x08\0\x60\0CS")
    lying = whole[:at] + b"\x08\0\x5f\0OB\0\0\xfe\xff\xff\xff" + whole[at:]
    (tmp_path / "lying").write_bytes(lying)
    assert code(tmp_path / "lying") in ("no-pixels", "damaged", "no-image", "truncated")


def test_a_deflated_bomb_is_bounded(monkeypatch):
    from modeling_urfm.data import dicom

    dataset = pydicom.dcmread(io.BytesIO(colour_dicom(np.zeros((50, 200, 200, 3), np.uint8))))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    content = saved(dataset)
    assert not open_source("x", content).frame(49).any()
    assert code("x", content[:-100]) == "truncated"
    monkeypatch.setattr(dicom, "MAX_DEFLATED", 1 << 20)
    assert code("x", content) == "too-large"


def test_a_compressed_frame_that_declares_another_size_is_not_decoded():
    dataset = pydicom.dcmread(io.BytesIO(colour_dicom(FRAMES[:2])))
    huge = bytearray(jpeg(FRAMES[0]))
    at = huge.index(b"\xff\xc0")
    huge[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(huge), jpeg(FRAMES[1])])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID, dataset.PhotometricInterpretation = (
        pydicom.uid.JPEGBaseline8Bit,
        "YBR_FULL_422",
    )
    source = open_source("x", saved(dataset))
    with pytest.raises(UnreadableFile, match="declares a size of 60000 x 60000") as error:
        source.frame(0)
    assert error.value.code == "undecodable"
    assert source.frame(1).shape == (40, 48, 3)  # its neighbour is none the worse


def test_a_loops_header_is_parsed_once(monkeypatch):
    source, parsed = open_source(EXAMPLES["examples_ybr_color.dcm"]), []
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: parsed.append(1))
    assert all(source.frame(i).any() for i in range(30)) and not parsed


# ---------------------------------------------------------------- images


def test_a_hidden_name_does_not_decide(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(buffer, "PNG")
    (tmp_path / "image.dcm").write_bytes(buffer.getvalue())
    (tmp_path / "loop.png").write_bytes(EXAMPLES["examples_jpeg2k.dcm"].read_bytes())
    (tmp_path / "film.jpg").write_bytes(film("mjpeg", "avi")[0])
    kinds = [open_source(tmp_path / name).kind for name in ("image.dcm", "loop.png", "film.jpg")]
    assert kinds == ["image", "dicom", "video"]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_pages_and_films_of_images(kind):
    frames = [Image.fromarray(frame) for frame in FRAMES]
    buffer = io.BytesIO()
    more = {"lossless": True} if kind == "WEBP" else {}
    timed = {"duration": 40} if kind != "TIFF" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **timed, **more)
    source = open_source("x", buffer.getvalue())
    assert (source.num_frames, source.is_loop) == (5, kind != "TIFF")
    if kind in ("GIF", "PNG"):  # Pillow tells WebP's times only while decoding
        assert source.frame_rate == 25
    for index in (4, 0, 2, 2, 3, 1):
        error = np.abs(source.frame(index).astype(int) - FRAMES[index]).mean()
        assert error < (12 if kind == "GIF" else 0.01)


def test_a_photo_held_sideways_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is on the right
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(open_source(tmp_path / "a.png").frame(0), np.rot90(FRAMES[0], -1))


def test_what_an_image_is_refused_for(tmp_path):
    def png(width: int, height: int) -> bytes:
        body = b"IHDR" + struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
        chunk = struct.pack(">L", 13) + body + struct.pack(">L", zlib.crc32(body))
        return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">L", 10) + b"IDAT" + bytes(14)

    buffer = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(buffer, "PNG")
    whole = buffer.getvalue()
    assert code("large", png(60_000, 60_000)) == code("larger", png(2**31 - 1, 2**31 - 1)) == "too-large"
    assert code("cut", whole[: len(whole) // 2]) == "truncated"
    assert code("tiny", png(1, 1)) == "no-image"
    assert (
        code("text", b"hello") == code("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "no-image"
    )
    assert code("empty", b"") == "empty"
    assert code(tmp_path) == code(tmp_path / "absent") == "not-a-file"
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    assert code(tmp_path / "dangling") == "not-a-file"
    assert code("x.dcm", b"Salted__" + bytes(100)) == "encrypted"
    enveloped = bytes.fromhex("3082010006092a864886f70d010703a0") + bytes(200)
    assert code("x.dcm", enveloped) == "encrypted"
    assert code("x.7z", b"7z\xbc\xaf\x27\x1c" + bytes(100)) == "unsupported"
    pages = io.BytesIO()
    frames = [Image.fromarray(frame) for frame in FRAMES]
    frames[0].save(pages, "PNG", save_all=True, append_images=frames[1:])
    lying = bytearray(pages.getvalue())
    at = lying.index(b"acTL") + 4
    lying[at : at + 4] = struct.pack(">L", 2_000_000_000)
    assert code("frames", bytes(lying)) in ("too-large", "damaged")


# ---------------------------------------------------------------- videos


CODECS = [
    ("libx264", "mp4"), ("libx264", "mov"), ("libx264", "matroska"), ("libx265", "mp4"), ("mpeg4", "avi"), ("mjpeg", "avi"),
    ("rawvideo", "avi"), ("wmv2", "asf"), ("libvpx", "webm"), ("libvpx-vp9", "webm"), ("mpeg2video", "mpeg"),
    ("mpeg1video", "mpeg"), ("mpeg2video", "mpegts"),
]  # fmt: skip
OPTIONS = {
    "libx265": {"x265-params": "log-level=none"}, "libvpx": {"auto-alt-ref": 1, "lag-in-frames": 16}, "mpeg4": {"bf": 2},
    "libvpx-vp9": {"lag-in-frames": 16},
}  # fmt: skip


@pytest.mark.parametrize(("codec", "container"), CODECS)
def test_frames_in_any_order_are_those_of_decoding_in_sequence(codec, container):
    import av

    sound = container in ("mp4", "matroska")
    content, shown = film(codec, container, frames=30, sound=sound, **OPTIONS.get(codec, {}))
    with av.open(io.BytesIO(content)) as opened:
        decoded = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    source = open_source("x", content)
    assert (source.num_frames, source.kind, source.is_loop, source.frame_rate) == (30, "video", True, 25)
    for index in (0, 3, 4, 17, 29, 29, 5, 28):
        assert np.array_equal(source.frame(index), decoded[index])
    assert np.abs(source.frame(20).astype(int) - shown[20]).mean() < 60
    assert (
        np.abs(source.frame(20).astype(int) - shown[20]).mean()
        < np.abs(source.frame(20).astype(int) - shown[10]).mean()
    )


def test_only_the_packets_of_frames_asked_for_are_decoded_where_each_is_whole(monkeypatch):
    from modeling_urfm.data import video

    decoded, honest = [], video._Video._decode
    monkeypatch.setattr(video._Video, "_decode", lambda self, packet: decoded.append(1) or honest(self, packet))
    source = open_source("x", film("mjpeg", "avi", frames=30)[0])
    source.frame(3), source.frame(29)
    assert len(decoded) == 2
    source = open_source("x", film("libx264", "mp4", frames=30)[0])
    for index in (3, 10, 20):
        source.frame(index)
    assert 20 <= len(decoded) - 2 <= 31  # forward once


def test_what_a_video_is_refused_for(monkeypatch):
    from modeling_urfm.data import video

    content, _ = film("libx264", "mp4", frames=30, movflags="faststart")
    assert code("cut", content[: len(content) // 2]) in ("truncated", "damaged")
    moved = film("libx264", "mp4", frames=30)[0]
    assert code("headless", moved[: len(moved) // 2]) == "damaged"
    # Playlists name other files to read; they are text here.
    assert code("list.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n") == "no-image"
    assert code("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n") == "no-image"
    monkeypatch.setattr(video, "MAX_FRAMES", 20)
    assert code("long", content) == "too-large"
    monkeypatch.setattr(video, "MAX_FRAMES", 100)
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 1000)
    assert code("large", content) == "too-large"


def test_a_cut_avi_gives_what_is_there():
    content, _ = film("mjpeg", "avi", frames=30)
    source = open_source("x", content[: len(content) // 2])
    assert 5 <= source.num_frames < 20
    whole = open_source("x", content)
    assert all(np.array_equal(source.frame(i), whole.frame(i)) for i in range(source.num_frames - 1))


# ---------------------------------------------------------------- volumes


VOLUME = np.random.default_rng(2).integers(0, 256, (6, 20, 30), dtype=np.uint8)  # slices, rows, columns


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
def test_nifti_slices(packed, kind):
    content = nifti(VOLUME.transpose(2, 1, 0), kind=kind)
    source = open_source("x", gzip.compress(content) if packed else content)
    assert (source.num_frames, source.kind, source.is_loop, source.frame_rate) == (6, "volume", False, None)
    assert source.spacing_mm == (0.25, 0.5)  # rows follow the second axis, columns the first
    for index in (5, 0, 3, 3, 1):
        assert np.array_equal(source.frame(index), VOLUME[index][..., None].repeat(3, -1))


def test_nifti_over_time_is_a_loop():
    source = open_source("x", nifti(VOLUME.transpose(2, 1, 0)[:, :, None], spacing=(0.5, 0.25, 1, 0.04)))
    assert (source.num_frames, source.is_loop) == (6, True) and source.frame_rate == pytest.approx(25)
    both = np.stack([VOLUME.transpose(2, 1, 0)] * 2, -1)
    both[..., 1] = 255 - both[..., 1]
    source = open_source("x", nifti(both))
    assert (source.num_frames, source.is_loop) == (12, False)
    assert np.array_equal(source.frame(8)[..., 0], 255 - VOLUME[2])


@pytest.mark.parametrize("kind", ["i2", ">i2", "u2", "f4", "f8", "i4"])
def test_values_of_any_type_are_stretched_over_the_volume(kind):
    values = VOLUME.astype(kind) * 8 - (1000 if "u" not in kind else 0)
    for source in (open_source("x", nifti(values.transpose(2, 1, 0))), open_source("x", metaimage(values))):
        assert np.abs(source.frame(2)[..., 0].astype(int) - VOLUME[2]).max() <= 1


def test_values_within_0_and_255_keep_their_grey():
    for kind in ("i2", "f4"):
        assert np.array_equal(open_source("x", metaimage((VOLUME // 2).astype(kind))).frame(1)[..., 0], VOLUME[1] // 2)
    unit = open_source("x", metaimage((VOLUME / 255).astype("f4"))).frame(1)[..., 0]
    assert np.abs(unit.astype(int) - VOLUME[1]).max() <= 1
    odd = VOLUME.astype("f4")
    odd[0, 0, 0] = np.nan
    odd[0, 0, 1] = np.inf
    assert np.array_equal(open_source("x", metaimage(odd)).frame(1)[..., 0], VOLUME[1])


def test_nifti_with_a_scale():
    image = bytearray(nifti(VOLUME.transpose(2, 1, 0)))
    struct.pack_into("<ff", image, 112, -2.0, 300.0)
    frame = open_source("x", bytes(image)).frame(2)[..., 0].astype(int)
    assert np.abs(frame - (255 - VOLUME[2].astype(int))).max() <= 1


@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage_slices(compressed):
    source = open_source("x", metaimage(VOLUME, compressed))
    assert (source.num_frames, source.kind, source.spacing_mm) == (6, "volume", (0.5, 0.25))
    assert np.array_equal(source.frame(4)[..., 0], VOLUME[4])
    colour = np.random.default_rng(3).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    source = open_source("x", metaimage(colour, compressed, channels=3, spacing="1 1 1"))
    assert np.array_equal(source.frame(3), colour[3]) and source.spacing_mm is None
    flat = open_source("x", metaimage(VOLUME[0], compressed))
    assert flat.num_frames == 1 and np.array_equal(flat.frame(0)[..., 0], VOLUME[0])


def test_metaimage_with_its_values_beside_it_and_never_elsewhere(tmp_path):
    folder, other = tmp_path / "in", tmp_path / "out"
    folder.mkdir(), other.mkdir()
    (folder / "a.raw").write_bytes(VOLUME.tobytes())
    (folder / "a.zraw").write_bytes(zlib.compress(VOLUME.tobytes()))
    (other / "b.raw").write_bytes(VOLUME.tobytes())
    (folder / "link.raw").symlink_to(other / "b.raw")
    for number, (where, packed) in enumerate([("a.raw", False), ("a.zraw", True)]):
        (folder / f"{number}.mhd").write_bytes(metaimage(VOLUME, packed, where=where))
        assert np.array_equal(open_source(folder / f"{number}.mhd").frame(5)[..., 0], VOLUME[5])
    for where in ("../out/b.raw", str(other / "b.raw"), "link.raw"):
        (folder / "c.mhd").write_bytes(metaimage(VOLUME, where=where))
        assert "outside of its folder" in reason(folder / "c.mhd")
    (folder / "d.mhd").write_bytes(metaimage(VOLUME, where="absent.raw"))
    assert code(folder / "d.mhd") == "truncated"
    assert code("e.mhd", metaimage(VOLUME, where="a.raw")) == "unsupported"


def test_what_a_volume_is_refused_for():
    content = nifti(VOLUME.transpose(2, 1, 0))
    assert code("cut", content[:-100]) == code("cut", gzip.compress(content)[:-100]) == "truncated"
    large = bytearray(content)
    struct.pack_into("<8h", large, 40, 3, 32000, 32000, 3, 1, 1, 1, 1)
    assert code("large", bytes(large)) == "too-large"
    assert code("large", gzip.compress(large)) == "too-large"
    struct.pack_into("<8h", large, 40, 3, 8000, 8000, 3, 1, 1, 1, 1)
    assert code("lying", bytes(large)) == code("lying", gzip.compress(large)) == "truncated"
    assert code("vectors", nifti(np.zeros((4, 4, 4, 1, 2), np.float32))) == "unsupported"
    assert code("complex", nifti(np.zeros((4, 4, 4), np.complex64))) == "unsupported"
    mha = metaimage(VOLUME)
    assert code("cut", mha[:-1]) == code("cut", metaimage(VOLUME, True)[:-100]) == "truncated"
    assert code("cut", mha[:60]) == "truncated"
    assert code("size", mha.replace(b"30 20 6", b"99999 99999 9")) == "too-large"
    assert code("size", mha.replace(b"30 20 6", b"-30 -20 6")) == "damaged"
    assert code("text", mha.replace(b"BinaryData = True", b"BinaryData = False")) == "unsupported"


def test_a_gzip_bomb_behind_a_small_nifti_header_is_read_as_far_as_declared():
    import time

    content = gzip.compress(nifti(VOLUME.transpose(2, 1, 0)) + bytes(200_000_000), 1)
    started = time.monotonic()
    assert open_source("x", content).num_frames == 6
    assert time.monotonic() - started < 1


def test_errors_keep_their_code_between_processes():
    error = pickle.loads(pickle.dumps(UnreadableFile("a.dcm", "cut", "truncated")))
    assert (error.path, error.reason, error.code) == ("a.dcm", "cut", "truncated")
    assert UnreadableFile("a", "b").code == "damaged"


def test_a_frame_that_is_not_there_is_the_callers_fault():
    for content in (colour_dicom(FRAMES), film("mjpeg", "avi")[0], metaimage(VOLUME)):
        source = open_source("x", content)
        for index in (-1, source.num_frames):
            with pytest.raises(IndexError):
                source.frame(index)


def test_a_decoders_surprise_is_the_files_fault(monkeypatch):
    from modeling_urfm.data import dicom, volumes

    def failing(error):
        def fails(*_):
            raise error

        return fails

    for error, wanted in ((MemoryError(), "crashed"), (RuntimeError("a patient's name"), "undecodable")):
        monkeypatch.setattr(volumes._Volume, "values", failing(error))
        monkeypatch.setattr(dicom._Pixels, "_decoded", failing(error))
        assert code("x", metaimage(VOLUME)) == code("x", colour_dicom(FRAMES)) == wanted
    monkeypatch.setattr(dicom, "_Pixels", failing(IndexError("in a parser")))
    assert code("x", colour_dicom(FRAMES)) == "damaged"
