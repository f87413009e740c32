# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""One file to its frames: DICOM, images, videos and volumes, each known by its content, whatever its name is.

Nothing here trusts a file: what it declares is checked against what it holds before memory is taken for it, and
whatever goes wrong becomes an `UnreadableFile` that says why. Beside this module lie `dicom`, `video` and `volumes`,
one for each kind, and `archives` for what lies in a zip or tar file.
"""

import io
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


# One frame of more pixels than this is no ultrasound image (the largest screens have 8 million).
MAX_FRAME_PIXELS = 64_000_000
# Half an hour at 50 frames a second.
MAX_FRAMES = 100_000
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".jp2"}
# The formats that Pillow may try. Others run programs (EPS) or are no images of a scanner (fonts, icons, PSD).
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
IMAGE_HEADS = (
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
# How much of a file decides what it is: a NIfTI header has 348 bytes and may lie behind a gzip header.
HEAD_BYTES = 4096
# pydicom's own test files that show ultrasound; they are in its wheel.
PYDICOM_EXAMPLES = (
    "examples_rgb_color.dcm", "examples_palette.dcm", "examples_jpeg2k.dcm", "examples_ybr_color.dcm", "ExplVR_BigEnd.dcm",
)  # fmt: skip


class UnreadableFile(ValueError):
    """A file or frame that gives no ultrasound picture.

    Attributes:
        path: as it was given. reason: in plain words, which may quote the file: for the private folder alone.
        code: a key of `reasons.REASONS`, which may be published.
    """

    def __init__(self, path: str | Path, reason: str, code: str = "damaged"):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.code = str(path), reason, code

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.code)


@dataclass(frozen=True)
class Source:
    """An opened file. It keeps the file open for as long as it lives, and is for one thread and one process.

    Attributes:
        num_frames: frames of a loop or video, pages, or slices of a volume.
        frame: from a frame's number to (height, width, 3) uint8 RGB; raises `UnreadableFile`. Any order gives the same
            pixels; an ascending one is fast.
        kind: "dicom", "image", "video" or "volume".
        header: the `pydicom.Dataset` without pixel data for DICOM, else None.
        is_loop: the frames follow one another in time at one place (cine loop, video, animated GIF); slices of a volume
            and pages don't.
        frame_rate: frames a second, where the file tells. spacing_mm: of rows and columns, where the file tells.
    """

    path: str
    num_frames: int
    frame: Callable[[int], np.ndarray]
    kind: str = "image"
    header: Any = None
    is_loop: bool = False
    frame_rate: float | None = None
    spacing_mm: tuple[float, float] | None = None


class ClippedFile(io.BufferedReader):
    """A file that gives no more than it has: a header that declares 4 GiB must not make Python reserve them."""

    def __init__(self, path: str | Path):
        super().__init__(io.FileIO(path))
        self.length = os.fstat(self.fileno()).st_size

    def read(self, size=-1):
        if size is None or size < 0 or size > HEAD_BYTES:
            left = max(0, self.length - self.tell())
            size = left if size is None or size < 0 else min(size, left)
        return super().read(size)


def open_source(path: str | Path, data: bytes | None = None) -> Source:
    """Open a file by its content, whatever its name is.

    Args:
        path: where it lies. data: its content, for an archive's member; `path` is then a name only.

    Raises:
        UnreadableFile: no image of ultrasound is in it, or it is damaged. `Source.frame` raises it too, as pixel data is
            decoded only there.

    >>> source = open_source(ultrasound_examples()[0])
    >>> source.frame(0).dtype, source.frame(0).ndim
    (dtype('uint8'), 3)
    """
    path = Path(path)
    if data is None:
        file, size = _open_file(path)
    else:
        file, size = io.BytesIO(data), len(data)
    if size == 0:
        raise UnreadableFile(path, "the file is empty", "empty")
    head = file.read(HEAD_BYTES)
    file.seek(0)
    source = _guarded(path, "damaged", _open_content, path, file, size, head, data is not None)
    return replace(source, frame=partial(_frame, path, source))


def _frame(path: Path, source: Source, index: int) -> np.ndarray:
    if not 0 <= index < source.num_frames:  # the caller's fault, not the file's
        raise IndexError(f"{path}: frame {index} of {source.num_frames}")
    return _guarded(path, "undecodable", source.frame, index)


def _guarded(path: Path, code: str, function: Callable, *arguments):
    """A parser's or decoder's surprise is the file's fault, and must not end the run."""
    try:
        return function(*arguments)
    except UnreadableFile:
        raise
    except MemoryError as error:
        raise UnreadableFile(path, "asked for more memory than there is", "crashed") from error
    except Exception as error:
        raise UnreadableFile(path, f"{code}: {short(error)}", code) from error


def _open_file(path: Path) -> tuple[BinaryIO, int]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would keep us waiting for ever
            raise UnreadableFile(path, "no regular file", "not-a-file")
        file = ClippedFile(path)
        return file, file.length
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, UnreadableFile):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UnreadableFile(path, f"cannot be opened: {reason}", "not-a-file") from error


def _open_content(path: Path, file: BinaryIO, size: int, head: bytes, inside: bool) -> Source:
    from .video import video_format

    # DICOM first: a file may be TIFF and DICOM at once (PS3.10, 7.1, leaves the first 128 bytes to others).
    if head[128:132] == b"DICM":
        return _dicom(path, file, size)
    if is_nifti(head):
        from .volumes import open_nifti

        return open_nifti(path, file, size)
    if re.match(rb"\s*(ObjectType|NDims|ObjectSubType)\s*=", head):
        from .volumes import open_metaimage

        return open_metaimage(path, file, size, beside=None if inside else path.parent)
    if head.startswith(IMAGE_HEADS):
        return _open_image(path, file, size)
    if container := video_format(head):
        from .video import open_video

        return open_video(path, file, container)
    _refuse_other(path, head)
    # A DICOM file without its preamble begins with a group number of two bytes: 2 or 8.
    if head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"):
        return _dicom(path, file, size)
    if path.suffix.lower() in (".dcm", ".dicom"):
        raise UnreadableFile(path, "named like a DICOM file, but it begins like none", "damaged")
    return _open_image(path, file, size)


def _dicom(path: Path, file: BinaryIO, size: int) -> Source:
    from .dicom import open_dicom

    return open_dicom(path, file, size)


def is_nifti(head: bytes) -> bool:
    """NIfTI-1 or -2 in one file, plain or in gzip."""
    if head[:2] == b"\x1f\x8b":
        head = inflated_head(head)
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def inflated_head(head: bytes) -> bytes:
    """The first 1024 bytes at most of what begins with `head` and is in gzip."""
    try:
        return zlib.decompressobj(31).decompress(head, 1024)
    except zlib.error:
        return b""


def _refuse_other(path: Path, head: bytes):
    """What is known by its first bytes, and is read by nobody here."""
    from .archives import is_archive_bytes

    # Signed and encrypted DICOM files are CMS messages (PS3.15, annex D): ASN.1 with the identifier of envelopedData.
    enveloped = head[:1] == b"0" and b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03" in head[:64]
    if enveloped or head.startswith((b"Salted__", b"-----BEGIN PGP MESSAGE", b"age-encryption.org/")):
        raise UnreadableFile(path, "encrypted", "encrypted")
    if is_archive_bytes(head):
        raise UnreadableFile(path, "an archive, which is not opened at this place", "archive-nested")
    if head.startswith((b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        raise UnreadableFile(path, "packed in a way that is not read here: unpack it first", "unsupported")
    if head[344:348] == b"ni1\0":
        raise UnreadableFile(path, "a NIfTI or Analyze pair (.hdr and .img): make one .nii file of it", "unsupported")


# ---------------------------------------------------------------- images


def _open_image(path: Path, file: BinaryIO, size: int) -> Source:
    pages = _Pages(path, file)
    if pages.count > min(MAX_FRAMES, size):
        raise UnreadableFile(path, f"declares {pages.count:,} frames in a file of {size:,} bytes", "too-large")
    # Pages of a TIFF are scans or slices; frames of a GIF, PNG or WebP are a film.
    is_loop = pages.count > 1 and pages.image.format in ("GIF", "PNG", "WEBP")
    duration = pages.image.info.get("duration") if is_loop else None
    rate = 1000 / duration if isinstance(duration, int | float) and duration > 0 else None
    return Source(str(path), pages.count, pages.frame, "image", None, is_loop, rate)


class _Pages:
    """Pillow's image, kept open: each frame of a GIF is built upon the one before it."""

    def __init__(self, path: Path, file: BinaryIO):
        from PIL import Image, UnidentifiedImageError

        self.path, self.file = path, file
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd metadata: the pixels decide
                self._open()
                self._check_size()
                self.count = getattr(self.image, "n_frames", 1)
        except (UnreadableFile, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise UnreadableFile(path, f"declares too many pixels: {short(error)}", "too-large") from error
        except UnidentifiedImageError as error:
            file.seek(0)
            known = file.read(16).startswith(IMAGE_HEADS)
            reason = "damaged image: its header makes no sense" if known else "neither a DICOM file nor an image"
            raise UnreadableFile(path, reason, "damaged" if known else "no-image") from error
        except Exception as error:  # Pillow's plugins raise many kinds on damaged files
            raise UnreadableFile(path, f"damaged image: {short(error)}", _image_code(error)) from error

    def _open(self):
        from PIL import Image

        self.file.seek(0)
        self.image = Image.open(self.file, formats=IMAGE_FORMATS)

    def _check_size(self):
        width, height = self.image.size
        if width < 2 or height < 2:
            raise UnreadableFile(self.path, f"an image of {height} x {width} pixels", "no-image")
        if width * height > MAX_FRAME_PIXELS:
            reason = f"declares {height} x {width} pixels; at most {MAX_FRAME_PIXELS:,} are read"
            raise UnreadableFile(self.path, reason, "too-large")

    def frame(self, index: int) -> np.ndarray:
        from PIL import ImageOps

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.count > 1:
                    if index < self.image.tell():  # begun anew, as Pillow loses its place in an animated PNG
                        self._open()
                    self.image.seek(index)
                    self._check_size()  # each page has its own
                image = self.image
                image.load()
                try:
                    image = ImageOps.exif_transpose(image)
                except Exception:  # damaged EXIF says nothing of how the picture is held
                    pass
                return image_to_array(image)
        except (UnreadableFile, MemoryError):
            raise
        except Exception as error:
            raise UnreadableFile(self.path, f"damaged image: {short(error)}", _image_code(error)) from error


def _image_code(error: Exception) -> str:
    return "truncated" if isinstance(error, EOFError) or "truncated" in str(error).lower() else "damaged"


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


# ---------------------------------------------------------------- what all kinds need


def believable_spacing(spacing) -> tuple[float, float] | None:
    """(row, column) spacing in mm if a scanner may have meant it. Exactly 1 mm is what writers put where nothing is
    known, and a pixel of more than 5 mm shows nothing."""
    try:
        row, column = (float(value) for value in spacing)
    except (TypeError, ValueError):
        return None
    sensible = all(1e-3 < value < 5 for value in (row, column)) and (row, column) != (1, 1)
    return (row, column) if sensible else None


def short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


def ultrasound_examples() -> list[Path]:
    """The real ultrasound files that come with pydicom; none is downloaded."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return [folder / name for name in PYDICOM_EXAMPLES if (folder / name).is_file()]
