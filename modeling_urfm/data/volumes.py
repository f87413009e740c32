# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Volumes and time series in NIfTI (.nii, .nii.gz) and MetaImage (.mha, .mhd) files, slice by slice.

Both formats store rows one after another: the first axis runs fastest, along a row, the second from row to row, the
last slowest. A slice is taken along the last axes and shown as it is stored, first stored row on top, which is how ITK
and the data sets made with it (CAMUS, ACOUSLIC-AI) hold ultrasound upright. The orientation matrix is left alone: it
relates a scanner's bed to the patient, and ultrasound has none.

A slice at a time is in memory, of compressed files too. A first pass finds the smallest and largest value and whether
the file is whole.
"""

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .decompression import DAMAGED, Bomb, Decompressed, Zlib, decompressed
from .reading import (
    HEAD_BYTES,
    MAX_FRAME_PIXELS,
    MAX_FRAMES,
    ClippedFile,
    Source,
    UnreadableFile,
    believable_spacing,
    short,
)


# The largest 3D acquisitions (whole-breast ultrasound) have 1 GiB.
MAX_VOLUME_BYTES = 8 << 30
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
# MetaImage's element types (MetaIO's documentation) as numpy's.
ELEMENT_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def open_nifti(path: str | Path, file: BinaryIO, size: int) -> Source:
    """Open a NIfTI-1 or NIfTI-2 file, plain or in gzip.

    The third axis gives slices, the fourth times; with both, a time's slices follow one another. It counts as a loop
    where there is one slice and several times. (The unit of time in a header doesn't tell: ITK writes seconds always.)

    Raises:
        UnreadableFile: damaged, truncated, too large, or of values that are no picture.
    """
    import nibabel

    path = Path(path)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    stream = decompressed(file, head)
    try:
        head = stream.read(540)
        kind = nibabel.Nifti2Header if head[4:8] == b"n+2\0" else nibabel.Nifti1Header
        header = kind(head[: kind.template_dtype.itemsize], check=False)
        shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
        offset, value_type = int(header["vox_offset"]), header.get_data_dtype()
        slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
        units, zooms = header.get_xyzt_units()[0], [float(z) for z in header["pixdim"][1:5]]
    except MemoryError:
        raise
    except (*DAMAGED, EOFError, Bomb, KeyError, IndexError, TypeError, OverflowError) as error:
        raise UnreadableFile(path, f"damaged NIfTI header: {short(error)}") from error
    except nibabel.spatialimages.HeaderDataError as error:
        raise UnreadableFile(path, f"damaged NIfTI header: {short(error)}") from error
    channels = 1
    if value_type.names:  # red, green, blue (and alpha), a byte each
        channels, value_type = len(value_type.names), np.dtype("u1")
    shape += [1] * (4 - len(shape))
    if any(n != 1 for n in shape[4:]):
        raise UnreadableFile(path, f"a volume with vectors for values, of shape {shape}", "unsupported")
    columns, rows, slices, times = shape[:4]
    if not np.isfinite(slope) or slope == 0 or not np.isfinite(intercept):
        slope, intercept = 1.0, 0.0
    scale = MILLIMETRES.get(units)
    spacing = believable_spacing((zooms[1] * scale, zooms[0] * scale)) if scale else None
    rate = 1 / zooms[3] if times > 1 and header.get_xyzt_units()[1] == "sec" and 1e-4 < zooms[3] < 60 else None
    volume = _Volume(path, stream, offset, (rows, columns, channels), slices * times, value_type, size)
    volume.scan(slope, intercept)
    is_loop = slices == 1 and times > 1
    return Source(str(path), volume.count, volume.frame, "volume", None, is_loop, rate, spacing)


def open_metaimage(path: str | Path, file: BinaryIO, size: int, beside: Path | None) -> Source:
    """Open a MetaImage file: a text header, and the values behind it or in another file.

    Args:
        beside: the folder in which that other file may lie, at any depth; None where there is none (archives).

    Raises:
        UnreadableFile: damaged, truncated, too large, values as text, or another file that isn't there or lies elsewhere.
    """
    path = Path(path)
    fields, start = _metaimage_fields(path, file)
    try:
        shape = [int(n) for n in fields["DimSize"].split()]
        value_type = np.dtype(ELEMENT_TYPES[fields["ElementType"].upper()])
        channels = int(fields.get("ElementNumberOfChannels", 1))
        big = _is_true(fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")))
        header_bytes = int(fields.get("HeaderSize", 0))
        compressed, where = _is_true(fields.get("CompressedData", "False")), fields["ElementDataFile"]
        given = fields.get("ElementSpacing", fields.get("ElementSize", "")).split()
    except (KeyError, ValueError) as error:
        raise UnreadableFile(path, f"damaged MetaImage header: {short(error)}") from error
    if not 2 <= len(shape) <= 4 or int(fields.get("NDims", len(shape))) != len(shape):
        raise UnreadableFile(path, f"damaged MetaImage header: {len(shape)} axes")
    if not _is_true(fields.get("BinaryData", "True")):
        raise UnreadableFile(path, "a MetaImage with values written as text", "unsupported")
    if where.upper() != "LOCAL":
        file, start = _data_file(path, where, beside)
        size = file.length
    columns, rows, slices, times = shape + [1] * (4 - len(shape))
    value_type = value_type.newbyteorder(">" if big else "<")
    if header_bytes > 0:
        start += header_bytes
    elif header_bytes == -1 and not compressed:  # the values are what the file ends with
        start = max(start, size - columns * rows * slices * times * channels * value_type.itemsize)
    file.seek(start)
    stream, offset = (Decompressed(file, Zlib), 0) if compressed else (file, start)
    spacing = believable_spacing((given[1], given[0])) if len(given) > 1 else None
    volume = _Volume(path, stream, offset, (rows, columns, channels), slices * times, value_type, size)
    volume.scan()
    return Source(str(path), volume.count, volume.frame, "volume", None, slices == 1 and times > 1, None, spacing)


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "t")


def _metaimage_fields(path: Path, file: BinaryIO) -> tuple[dict[str, str], int]:
    """The header's lines up to ElementDataFile, which is the last, and where the values begin."""
    file.seek(0)
    head = file.read(1 << 16)
    last = re.search(rb"(?m)^ElementDataFile[ \t]*=[^\n]*\n?", head)
    if last is None:
        raise UnreadableFile(path, "a MetaImage header without its last line", "truncated")
    lines = head[: last.end()].decode("latin-1").splitlines()
    fields = {key.strip(): value.strip() for key, sign, value in (line.partition("=") for line in lines) if sign}
    return fields, last.end()


def _data_file(path: Path, name: str, beside: Path | None) -> tuple[ClippedFile, int]:
    if beside is None:
        reason = "its values lie in another file: unpack the archive, or convert it to .mha"
        raise UnreadableFile(path, reason, "unsupported")
    if name.upper().startswith("LIST") or "%" in name:
        raise UnreadableFile(path, "a MetaImage whose slices are files of their own", "unsupported")
    folder = beside.resolve()
    try:
        other = (folder / name).resolve()
        if Path(name).is_absolute() or not other.is_relative_to(folder):
            raise UnreadableFile(path, "its values are said to lie outside of its folder", "unsupported")
        if not other.is_file():
            raise UnreadableFile(path, "the file with its values is not there", "truncated")
        return ClippedFile(other), 0
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        if isinstance(error, UnreadableFile):
            raise
        raise UnreadableFile(path, f"the file with its values can't be opened: {short(error)}", "not-a-file") from error


class _Volume:
    """Slices of (rows, columns) or (rows, columns, channels) values that lie one after another in a stream."""

    def __init__(self, path: Path, stream: BinaryIO, offset: int, shape, count: int, value_type: np.dtype, size: int):
        rows, columns, channels = shape
        self.path, self.stream, self.offset, self.shape = path, stream, offset, shape
        self.count, self.type = count, value_type
        if min(rows, columns) < 2 or count < 1 or offset < 0:
            raise UnreadableFile(path, f"a volume of {count} slices of {rows} x {columns}", "damaged")
        if rows * columns > MAX_FRAME_PIXELS or count > MAX_FRAMES:
            reason = f"declares {count:,} slices of {rows} x {columns}; at most {MAX_FRAMES:,} of {MAX_FRAME_PIXELS:,} pixels"
            raise UnreadableFile(path, reason + " are read", "too-large")
        if channels not in (1, 3, 4) or value_type.kind not in "uif" or value_type.itemsize > 8:
            reason = f"values of {channels} channels of type {value_type}"
            raise UnreadableFile(path, reason, "unsupported")
        self.slice_bytes = rows * columns * channels * value_type.itemsize
        total = self.slice_bytes * count
        if total > MAX_VOLUME_BYTES:
            reason = f"declares {total:,} bytes; at most {MAX_VOLUME_BYTES:,} are read"
            raise UnreadableFile(path, reason, "too-large")
        if not isinstance(stream, Decompressed) and offset + total > size:
            reason = f"truncated: declares {total:,} bytes of values, the file has {max(0, size - offset):,}"
            raise UnreadableFile(path, reason, "truncated")

    def values(self, index: int) -> np.ndarray:
        """A slice as it is stored; not finite numbers are 0."""
        try:
            self.stream.seek(self.offset + index * self.slice_bytes)
            content = self.stream.read(self.slice_bytes)
        except Bomb as error:
            raise UnreadableFile(self.path, "its compressed data expand beyond all measure", "too-large") from error
        except EOFError as error:
            raise UnreadableFile(self.path, f"truncated: {short(error)}", "truncated") from error
        except DAMAGED as error:
            raise UnreadableFile(self.path, f"damaged: {short(error)}") from error
        if len(content) < self.slice_bytes:
            reason = f"truncated: slice {index} of {self.count} is not there"
            raise UnreadableFile(self.path, reason, "truncated")
        array = np.frombuffer(content, self.type).reshape(self.shape)
        return np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0) if array.dtype.kind == "f" else array

    def scan(self, slope: float = 1.0, intercept: float = 0.0):
        """Go through all slices once and set `scale` and `shift`, which take a stored value to 0..255.

        Values that lie within 0..255 already (whole numbers, or fractions beyond 1) keep their grey; others are stretched
        from the volume's smallest to its largest.
        """
        self.scale, self.shift = 1.0, 0.0
        if self.type == np.uint8 and (slope, intercept) == (1, 0) and not isinstance(self.stream, Decompressed):
            return
        low, high = np.inf, -np.inf
        for index in range(self.count):
            values = self.values(index)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        low, high = sorted((low * slope + intercept, high * slope + intercept))
        whole = self.type.kind != "f" and slope.is_integer() and intercept.is_integer()
        if not (0 <= low and (whole or high > 1) and high <= 255):
            stretch = 255 / (high - low) if 0 < high - low < np.inf else 0.0
            self.scale, self.shift = slope * stretch, (intercept - low) * stretch
        else:
            self.scale, self.shift = slope, intercept

    def frame(self, index: int) -> np.ndarray:
        values = self.values(index)
        if values.dtype != np.uint8 or (self.scale, self.shift) != (1, 0):
            values = (values.astype(np.float64) * self.scale + self.shift).round().clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(values.repeat(3, axis=-1) if values.shape[-1] == 1 else values[..., :3])
