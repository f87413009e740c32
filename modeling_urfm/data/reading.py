# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""One file to its frames: DICOM (single frames and cine loops, compressed or not) and the images that Pillow reads.

Nothing here trusts a file: what it declares is checked against what it holds before memory is taken for it, and
whatever goes wrong becomes an `UnreadableFile` that says why.
"""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np


# One frame of more pixels than this is no ultrasound image (the largest screens have 8 million).
MAX_FRAME_PIXELS = 64_000_000
MAX_FRAMES = 100_000
# Modality of ultrasound, and of screen shots, which many scanners export as secondary captures.
ULTRASOUND_MODALITIES = ("US", "IVUS", "OT", "SC", "")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".jp2"}
# pydicom's own test files that show ultrasound; they are in its wheel.
PYDICOM_EXAMPLES = (
    "examples_rgb_color.dcm", "examples_palette.dcm", "examples_jpeg2k.dcm", "examples_ybr_color.dcm", "ExplVR_BigEnd.dcm",
)  # fmt: skip


class UnreadableFile(ValueError):
    """A file that gives no ultrasound frame, with the reason in plain words."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Source:
    """An opened file: how many frames it has, and a function from a frame's number to (height, width, 3) uint8."""

    path: str
    num_frames: int
    frame: Callable[[int], np.ndarray]


def open_source(path: str | Path) -> Source:
    """Open a file by its content, whatever its name is.

    Raises:
        UnreadableFile: no image of ultrasound is in it, or it is damaged. `Source.frame` raises it too, as pixel data is
            decoded only there.
    """
    path = Path(path)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would keep us waiting for ever
            raise UnreadableFile(path, "no regular file")
        size = state.st_size
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        raise UnreadableFile(path, f"cannot be opened: {error.strerror or error}") from error
    if size == 0:
        raise UnreadableFile(path, "the file is empty")
    # A DICOM file without its preamble begins with a group number of two bytes: 2 or 8.
    if head[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom") or head[:2] in (b"\x02\x00", b"\x08\x00"):
        return _open_dicom(path, size)
    return _open_image(path)


# ---------------------------------------------------------------- DICOM


def _open_dicom(path: Path, size: int) -> Source:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path, defer_size=1 << 16, force=True)
        _check_dicom(path, dataset, size)
        return Source(str(path), _number(dataset, "NumberOfFrames", 1), partial(_dicom_frame, path))
    except UnreadableFile:
        raise
    except InvalidDicomError as error:
        raise UnreadableFile(path, "no DICOM file") from error
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise UnreadableFile(path, f"damaged DICOM header: {_short(error)}") from error


def _number(dataset, name: str, default: int = 0) -> int:
    value = dataset.get(name)
    return default if value in (None, "") else int(value)


def _check_dicom(path: Path, dataset, size: int):
    """Refuse what is no ultrasound image, and what lies about its length."""
    modality = str(dataset.get("Modality", "") or "").strip().upper()
    if "Rows" not in dataset and "PixelData" not in dataset:
        described = f"{modality} object" if modality else "no DICOM file, or one"
        raise UnreadableFile(path, f"{described} without an image")
    if "PixelData" not in dataset:
        raise UnreadableFile(path, "no pixel data (truncated, or a header alone)")
    if modality not in ULTRASOUND_MODALITIES and not _is_ultrasound_class(dataset):
        raise UnreadableFile(path, f"modality {modality} is not ultrasound (US)")
    rows, columns = _number(dataset, "Rows"), _number(dataset, "Columns")
    frames, samples = _number(dataset, "NumberOfFrames", 1), _number(dataset, "SamplesPerPixel", 1)
    if rows < 2 or columns < 2:
        raise UnreadableFile(path, f"an image of {rows} x {columns} pixels")
    if rows * columns > MAX_FRAME_PIXELS:
        raise UnreadableFile(
            path, f"declares frames of {rows} x {columns} pixels; at most {MAX_FRAME_PIXELS:,} are read"
        )
    if not 1 <= frames <= MAX_FRAMES:
        raise UnreadableFile(path, f"declares {frames:,} frames; at most {MAX_FRAMES:,} are read")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None or not (syntax.is_compressed or syntax.is_deflated):
        expected = rows * columns * frames * samples * max(8, _number(dataset, "BitsAllocated", 8)) // 8
        if "422" in str(dataset.get("PhotometricInterpretation", "")):
            expected = expected * 2 // 3
        if expected > size:
            raise UnreadableFile(path, f"truncated: declares {expected:,} bytes of pixels, the whole file has {size:,}")
    elif frames > size:
        raise UnreadableFile(path, f"declares {frames:,} frames in a file of {size:,} bytes")


def _is_ultrasound_class(dataset) -> bool:
    """Ultrasound image storage: single and multi-frame, retired ones, enhanced volume (PS3.4, annex B.5)."""
    root, _, kind = str(dataset.get("SOPClassUID", "")).rpartition("1.2.840.10008.5.1.4.1.1.")
    return not root and kind in ("3", "3.1", "6", "6.1", "6.2")


def _dicom_frame(path: Path, index: int) -> np.ndarray:
    import warnings

    import pydicom
    from pydicom.pixels import apply_color_lut, apply_voi_lut, pixel_array

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values in headers: the pixels decide
            dataset = pydicom.dcmread(path, force=True)
            if getattr(dataset, "file_meta", None) is None or "TransferSyntaxUID" not in dataset.file_meta:
                dataset.ensure_file_meta()
                dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            # Colour is converted to RGB here; one frame alone is decoded.
            array = pixel_array(dataset, index=index)
            kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
            if kind == "PALETTE COLOR":
                array = _to_8_bit(apply_color_lut(array, dataset))
            elif array.ndim == 2:
                array = _grey(array, dataset, apply_voi_lut, inverted=kind == "MONOCHROME1")
            else:
                array = _to_8_bit(array, bits=_number(dataset, "BitsStored", 8))
    except UnreadableFile:
        raise
    except Exception as error:  # a decoder's many ways to fail
        raise UnreadableFile(path, f"frame {index} cannot be decoded: {_short(error)}") from error
    array = array[..., None].repeat(3, axis=-1) if array.ndim == 2 else array[..., :3]
    return np.ascontiguousarray(array)


def _grey(array: np.ndarray, dataset, apply_voi_lut, inverted: bool) -> np.ndarray:
    """Grey values to 0..255: by the file's window where it has one, else by the bits stored."""
    bits = _number(dataset, "BitsStored", 8)
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        array = apply_voi_lut(array, dataset).astype(np.float32)
        low, high = float(array.min()), float(array.max())
        array = (array - low) * (255 / max(high - low, 1e-6))
    elif bits > 8 or array.dtype.itemsize > 1:
        array = array.astype(np.float32)
        low = float(array.min()) if _number(dataset, "PixelRepresentation") else 0.0
        # 12 bits in 16: scanners seldom use them all, so the brightest value decides.
        array = (array - low) * (255 / max(float(array.max()) - low, 1.0))
    array = np.clip(np.asarray(array), 0, 255).astype(np.uint8)
    return 255 - array if inverted else array


def _to_8_bit(array: np.ndarray, bits: int = 16) -> np.ndarray:
    return array if array.dtype == np.uint8 else (array >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------- images


def _open_image(path: Path) -> Source:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            width, height = image.size
            frames = getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        raise UnreadableFile(path, "neither a DICOM file nor an image") from error
    except Exception as error:  # Pillow's plugins raise many kinds on damaged files
        raise UnreadableFile(path, f"damaged image: {_short(error)}") from error
    if width < 2 or height < 2:
        raise UnreadableFile(path, f"an image of {height} x {width} pixels")
    if width * height > MAX_FRAME_PIXELS:
        raise UnreadableFile(path, f"declares {height} x {width} pixels; at most {MAX_FRAME_PIXELS:,} are read")
    return Source(str(path), min(frames, MAX_FRAMES), partial(_image_frame, path))


def _image_frame(path: Path, index: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if index:
                image.seek(index)
            return image_to_array(image)
    except Exception as error:
        raise UnreadableFile(path, f"damaged image: {_short(error)}") from error


def image_to_array(image) -> np.ndarray:
    """A Pillow image as (height, width, 3) uint8: 16 bits to 8, transparency over black, grey repeated."""
    from PIL import Image

    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float32)
        # Floats in [0, 1] are intensities; integers beyond 8 bits are taken as 16-bit ones.
        top = 1.0 if image.mode == "F" and values.max() <= 1 else 255.0 if values.max() <= 255 else 65535.0
        grey = np.nan_to_num(values * (255 / top)).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(grey[..., None].repeat(3, axis=-1))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


def ultrasound_examples() -> list[Path]:
    """The real ultrasound files that come with pydicom; none is downloaded."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return [folder / name for name in PYDICOM_EXAMPLES if (folder / name).is_file()]
