# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""DICOM to frames: every transfer syntax that ultrasound files use, one frame at a time.

The header is parsed once; of the pixel data only the places of the frames are kept, so that a frame of a long cine loop
costs its own bytes alone. Overlays (groups 60xx) are never drawn into the picture. What a decoder is given has been
checked first: the size that a compressed frame declares must be the header's.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .reading import MAX_FRAME_PIXELS, MAX_FRAMES, Source, UnreadableFile, believable_spacing, short


# Modality of ultrasound, and of screen shots, which many scanners export as secondary captures.
ULTRASOUND_MODALITIES = ("US", "IVUS", "OT", "SC", "")
# Values above this (a maker's raw data, overlays of a whole loop) are passed over; a palette has 128 KiB.
MAX_HEADER_VALUE = 1 << 20
# A deflated file may expand to this, and beyond it to 250 times its size: deflate's limit is 1032 times.
MAX_DEFLATED = 256 << 20
MAX_DEFLATED_RATIO = 250
DEFLATED, PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1"
# MPEG-2, H.264 and H.265 within DICOM (PS3.5, 8.2.5 to 8.2.8): the fragments in a row are a video.
VIDEO_SYNTAXES = ("1.2.840.10008.1.2.4.10",)
# Memory-safe or widely fuzzed decoders first; GDCM can end the process on hostile bytes, so it decodes JPEG lossless
# alone, which no other decoder under a permissive licence does.
DECODERS = ("pydicom", "pillow", "pyjpegls", "pylibjpeg", "gdcm")
GDCM_ONLY = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
UNDEFINED = 0xFFFFFFFF


def open_dicom(path: str | Path, file: BinaryIO, size: int) -> Source:
    """Open a DICOM file of ultrasound (or a secondary capture).

    Raises:
        UnreadableFile: another modality, no image, damaged, truncated, or larger than it may be.
    """
    import pydicom

    path = Path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values in headers: the checks below decide
        file, size = _inflated(path, file, size)
        try:
            dataset = pydicom.dcmread(file, defer_size=MAX_HEADER_VALUE, force=True, stop_before_pixels=True)
            start = file.tell()
            for tag in [tag for tag, element in dataset.items() if getattr(element, "value", "") is None]:
                del dataset[tag]  # passed over, see MAX_HEADER_VALUE
            pixels = _Pixels(path, file, size, dataset, start)
            return pixels.source()
        except (UnreadableFile, MemoryError):
            raise
        except Exception as error:  # pydicom raises many kinds on damaged files
            raise UnreadableFile(path, f"damaged DICOM header: {short(error)}") from error


def _inflated(path: Path, file: BinaryIO, size: int) -> tuple[BinaryIO, int]:
    """A deflated file (PS3.5, A.5) as if it had been stored plain. pydicom would inflate it without a limit."""
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    at = head.find(DEFLATED)
    if at < 0 or head[132:140] != b"\x02\0\0\0UL\x04\0":
        return file, size
    start = 144 + struct.unpack_from("<L", head, 140)[0]
    if start > len(head):
        return file, size
    file.seek(start)
    limit = MAX_DEFLATED + MAX_DEFLATED_RATIO * size
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflate.decompress(file.read(), limit)
    except zlib.error as error:
        raise UnreadableFile(path, f"deflated data are damaged: {short(error)}") from error
    if len(content) >= limit:
        raise UnreadableFile(path, f"its deflated data expand beyond {limit:,} bytes", "too-large")
    if not inflate.eof:
        raise UnreadableFile(path, "truncated: its deflated data don't end", "truncated")
    content = head[:start].replace(DEFLATED, PLAIN.ljust(len(DEFLATED), b"\0")) + content
    return io.BytesIO(content), len(content)


def _number(dataset, name: str, default: int = 0) -> int:
    value = dataset.get(name)
    return default if value in (None, "") else int(value)


def _positive(dataset, name: str) -> float | None:
    """A header's decimal if it is a sensible one: damaged values are passed over, as nothing hangs on them."""
    try:
        value = dataset.get(name)
        value = float(value[-1] if isinstance(value, list | tuple) or hasattr(value, "append") else value)
        return value if 0 < value < 1e6 else None
    except Exception:
        return None


def _check(path: Path, dataset):
    """Refuse what is no ultrasound image."""
    modality = str(dataset.get("Modality", "") or "").strip().upper()
    described = str(
        dataset.get("SOPClassUID", "") or getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID", "")
    )
    if "Rows" not in dataset and "Columns" not in dataset:
        known = f"{modality} object" if modality else "no DICOM file, or one"
        if _is_ultrasound_class(described):
            raise UnreadableFile(path, "damaged DICOM header: an ultrasound image without a size")
        if modality or described:
            raise UnreadableFile(path, f"{known} without an image", "no-pixels")
        code = "damaged" if getattr(dataset, "preamble", None) else "no-image"
        raise UnreadableFile(path, f"{known} without an image", code)
    if modality not in ULTRASOUND_MODALITIES and not _is_ultrasound_class(described):
        raise UnreadableFile(path, f"modality {modality} is not ultrasound (US)", "other-modality")


def _is_ultrasound_class(uid: str) -> bool:
    """Ultrasound image storage: single and multi-frame, retired ones, enhanced volume (PS3.4, annex B.5)."""
    root, _, kind = uid.rpartition("1.2.840.10008.5.1.4.1.1.")
    return not root and kind in ("3", "3.1", "6", "6.1", "6.2")


class _Pixels:
    """Where a file's frames lie, and how one is decoded."""

    def __init__(self, path: Path, file: BinaryIO, size: int, dataset, start: int):
        from pydicom.uid import UID

        _check(path, dataset)
        self.path, self.file, self.size, self.dataset = path, file, size, dataset
        self.rows, self.columns = _number(dataset, "Rows"), _number(dataset, "Columns")
        self.count = _number(dataset, "NumberOfFrames", 1)
        self.samples, self.bits = _number(dataset, "SamplesPerPixel", 1), _number(dataset, "BitsAllocated", 8)
        implicit, little = dataset.original_encoding
        meta = getattr(dataset, "file_meta", None) or {}
        plain = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        self.syntax = UID(meta.get("TransferSyntaxUID") or plain)
        self.little = little is not False
        self._check_header()
        self._find_value(start)
        if self.syntax.startswith(VIDEO_SYNTAXES):
            return
        if self.length == UNDEFINED or self.syntax.is_encapsulated:
            self.frames = self._fragments_by_frame()
        else:
            self._check_native()

    def _check_header(self):
        if self.rows < 2 or self.columns < 2:
            raise UnreadableFile(self.path, f"an image of {self.rows} x {self.columns} pixels", "no-image")
        if self.rows * self.columns > MAX_FRAME_PIXELS:
            reason = f"declares frames of {self.rows} x {self.columns} pixels; at most {MAX_FRAME_PIXELS:,} are read"
            raise UnreadableFile(self.path, reason, "too-large")
        if self.count < 1:
            raise UnreadableFile(self.path, f"declares {self.count:,} frames")
        if self.count > min(MAX_FRAMES, self.size):
            reason = f"declares {self.count:,} frames in {self.size:,} bytes; at most {MAX_FRAMES:,} are read"
            raise UnreadableFile(self.path, reason, "too-large")
        if self.samples not in (1, 3, 4) or self.bits not in (8, 16, 32):
            reason = f"{self.samples} samples a pixel of {self.bits} bits"
            raise UnreadableFile(self.path, reason, "unsupported")

    def _find_value(self, start: int):
        """Set `offset` and `length` of the pixel data's value and its `vr` from the element that begins at `start`."""
        self.file.seek(start)
        head = self.file.read(12)
        order = "<" if self.little else ">"
        if len(head) < 12:
            raise UnreadableFile(self.path, "no pixel data (truncated, or a header alone)", "truncated")
        tag = struct.unpack(order + "HH", head[:4])
        if tag != (0x7FE0, 0x0010):
            raise UnreadableFile(self.path, "pixels that are floating-point numbers", "unsupported")
        # Two letters and two zero bytes: the value representation is written out.
        if head[4:6] in (b"OB", b"OW", b"UN", b"OF") and head[6:8] == b"\0\0":
            self.vr, self.offset = head[4:6].decode(), start + 12
            self.length = struct.unpack(order + "L", head[8:12])[0]
        else:
            self.vr, self.offset = "OW", start + 8
            self.length = struct.unpack(order + "L", head[4:8])[0]

    def _check_native(self):
        options = self._options()
        kind = str(options["photometric_interpretation"])
        pixels = self.rows * self.columns
        self.frame_bytes = pixels * self.samples * self.bits // 8
        there = min(self.length, self.size - self.offset)
        if "422" in kind:
            # Two of three samples are stored; some writers say 422 and store all of them.
            self.frame_bytes = self.frame_bytes * 2 // 3
            if there >= self.count * pixels * 3 * self.bits // 8:
                self.dataset.PhotometricInterpretation = "YBR_FULL"
                self.frame_bytes = pixels * 3 * self.bits // 8
        expected = self.count * self.frame_bytes
        if expected > there:
            reason = f"truncated: declares {expected:,} bytes of pixels, the whole file has {there:,}"
            raise UnreadableFile(self.path, reason, "truncated")

    def _fragments_by_frame(self) -> list[list[tuple[int, int]]]:
        """(offset, length) of the fragments of every frame (PS3.5, A.4)."""
        if not self.syntax.is_encapsulated:
            raise UnreadableFile(self.path, "compressed pixels in a file that says it has none", "unsupported")
        items, complete = self._items()
        if not items:
            raise UnreadableFile(self.path, "truncated: no frame in the pixel data", "truncated")
        (table_at, table_bytes), fragments = items[0], items[1:]
        frames = self._grouped(fragments, table_at, table_bytes)
        if len(frames) < self.count or (not complete and sum(fragments[-1]) > self.size):
            reason = f"truncated: declares {self.count:,} frames, {len(frames):,} are there"
            raise UnreadableFile(self.path, reason, "truncated")
        return frames

    def _items(self) -> tuple[list[tuple[int, int]], bool]:
        """(offset, length) of every item's value, the offset table first, and whether the sequence has its end."""
        items, at = [], self.offset
        while len(items) <= 4 * MAX_FRAMES:
            self.file.seek(at)
            head = self.file.read(8)
            if len(head) < 8:
                return items, False
            tag, length = head[:4], struct.unpack("<L", head[4:])[0]
            if tag != b"\xfe\xff\x00\xe0" or length == UNDEFINED:
                return items, tag == b"\xfe\xff\xdd\xe0"
            items.append((at + 8, length))
            at += 8 + length
        raise UnreadableFile(self.path, f"more than {len(items):,} fragments of pixel data", "too-large")

    def _grouped(self, fragments, table_at: int, table_bytes: int) -> list[list[tuple[int, int]]]:
        if len(fragments) == self.count:
            return [[fragment] for fragment in fragments]
        if self.count == 1:
            return [fragments] if fragments else []
        # By the offset tables, if they fit; they point at items, counted from the first one behind the basic table.
        first = table_at + table_bytes
        self.file.seek(table_at)
        tables = [np.frombuffer(self.file.read(table_bytes // 4 * 4), "<u4")]
        extended = self.dataset.get("ExtendedOffsetTable")
        if isinstance(extended, bytes):
            tables.append(np.frombuffer(extended[: len(extended) // 8 * 8], "<u8"))
        places = {offset - 8 - first: number for number, (offset, _) in enumerate(fragments)}
        for table in tables:
            starts = [places.get(int(offset)) for offset in table] if len(table) == self.count else [None]
            if None not in starts and starts == sorted(set(starts)):
                break
        else:  # by the first bytes of an image: JPEG, JPEG-LS, JPEG 2000
            starts = []
            for number, (offset, _) in enumerate(fragments):
                self.file.seek(offset)
                if self.file.read(8).startswith((b"\xff\xd8\xff", b"\xff\x4f\xff", b"\0\0\0\x0cjP")):
                    starts.append(number)
        ends = [*starts[1:], len(fragments)]
        return [fragments[start:end] for start, end in zip(starts, ends)][: self.count]

    def source(self) -> Source:
        dataset = self.dataset
        count, frame = self.count, self.frame
        rate = _positive(dataset, "CineRate") or _positive(dataset, "RecommendedDisplayFrameRate")
        if milliseconds := _positive(dataset, "FrameTime") or _positive(dataset, "FrameTimeVector"):
            rate = 1000 / milliseconds
        if self.syntax.startswith(VIDEO_SYNTAXES):
            film = self._video()
            count, frame, rate = film.num_frames, film.frame, rate or film.frame_rate
        # Slices of a volume (Enhanced US Volume; a vector of slices) and pages are no loop.
        pointer = str(dataset.get("FrameIncrementPointer", "")).replace(" ", "")
        slices = str(dataset.get("SOPClassUID", "")).endswith(".1.1.6.2") or any(
            vector in pointer for vector in ("(0054,0080)", "(0018,2001)", "(0018,2005)")
        )
        spacing = believable_spacing(dataset.get("PixelSpacing"))
        return Source(str(self.path), count, frame, "dicom", dataset, count > 1 and not slices, rate, spacing)

    def _video(self) -> Source:
        from .video import open_video, video_format

        items, _ = self._items()
        stream = b"".join(self._read(*item) for item in items[1:])
        code = int(self.syntax.split(".")[-1] if not self.syntax.endswith(".1") else self.syntax.split(".")[-2])
        bare = "mpegvideo" if code < 102 else "h264" if code < 107 else "hevc"
        return open_video(self.path, io.BytesIO(stream), video_format(stream[:4096]) or bare)

    def _read(self, offset: int, length: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(length)

    def _options(self) -> dict:
        from pydicom.pixels.utils import as_pixel_options

        options = as_pixel_options(self.dataset)
        # Attributes that every image should have and some writers forget.
        options.setdefault("bits_stored", self.bits)
        options.setdefault("pixel_representation", 0)
        options.setdefault("photometric_interpretation", "MONOCHROME2" if self.samples == 1 else "RGB")
        if self.samples > 1:
            options.setdefault("planar_configuration", 0)
        options.pop("extended_offsets", None)  # the frame's own bytes are handed over
        return {**options, "number_of_frames": 1, "pixel_keyword": "PixelData", "pixel_vr": self.vr}

    def frame(self, index: int) -> np.ndarray:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd values in headers: the pixels decide
                return to_rgb(self._decoded(index), self.dataset)
        except (UnreadableFile, MemoryError):
            raise
        except Exception as error:  # a decoder's many ways to fail
            raise UnreadableFile(
                self.path, f"frame {index} cannot be decoded: {short(error)}", "undecodable"
            ) from error

    def _decoded(self, index: int) -> np.ndarray:
        from pydicom.pixels import get_decoder

        options = self._options()
        if not self.syntax.is_encapsulated:
            decoder = get_decoder(self.syntax)
            if not self.little and self.vr == "OW" and self.bits == 8 and self.frame_bytes % 2:
                # Bytes are swapped in pairs, and a pair may belong to two frames.
                content = self._read(self.offset, self.count * self.frame_bytes + 1)
                return decoder.as_array(content, index=index, **{**options, "number_of_frames": self.count})[0]
            content = self._read(self.offset + index * self.frame_bytes, self.frame_bytes + self.frame_bytes % 2)
            return decoder.as_array(content, index=0, **options)[0]
        try:
            decoder = get_decoder(self.syntax)
        except NotImplementedError as error:
            raise UnreadableFile(self.path, f"no decoder of {self.syntax.name}", "unsupported") from error
        content = b"".join(self._read(*fragment) for fragment in self.frames[index])
        self._check_codestream(content)
        item = (
            b"\xfe\xff\x00\xe0" + struct.pack("<L", 0) + b"\xfe\xff\x00\xe0" + struct.pack("<L", len(content)) + content
        )
        problems = []
        for plugin in DECODERS:
            if plugin in decoder.available_plugins and (plugin != "gdcm" or self.syntax in GDCM_ONLY):
                try:
                    return decoder.as_array(item, index=0, decoding_plugin=plugin, **options)[0]
                except Exception as error:
                    problems.append(f"{plugin}: {short(error)}")
        code = "undecodable" if problems else "unsupported"
        reason = "; ".join(problems) or f"no decoder of {self.syntax.name}"
        raise UnreadableFile(self.path, f"frame {index} cannot be decoded: {reason}", code)

    def _check_codestream(self, content: bytes):
        """A compressed frame says its size again, and a decoder takes memory by that: it must be the header's."""
        if self.syntax == "1.2.840.10008.1.2.5":  # RLE has no size of its own, and expands by 64 at most
            return
        found = codestream_size(content)
        if found != (self.rows, self.columns):
            told = f"a size of {found[0]} x {found[1]}" if found else "no size"
            reason = f"the compressed frame declares {told}, the header {self.rows} x {self.columns}"
            raise UnreadableFile(self.path, reason, "undecodable")


def codestream_size(content: bytes) -> tuple[int, int] | None:
    """(rows, columns) by the header of a JPEG, JPEG-LS or JPEG 2000 image, None where there is none."""
    at = content.find(b"\xff\x4f\xff\x51")
    if not content.startswith(b"\xff\xd8"):
        if at < 0 or len(content) < at + 24:
            return None
        width, height, left, top = struct.unpack_from(">4L", content, at + 8)
        return height - top, width - left
    at = 2
    while at + 9 <= len(content):
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            return struct.unpack_from(">HH", content, at + 5)
        if marker in (0xDA, 0xD9):
            return None
        at += 2 if 0xD0 <= marker <= 0xD8 or marker == 0x01 else 2 + length
    return None


# ---------------------------------------------------------------- grey and colour to 8 bits


def to_rgb(array: np.ndarray, dataset) -> np.ndarray:
    """A decoded frame as (height, width, 3) uint8, by the header's palette, window or bits."""
    from pydicom.pixels import apply_color_lut

    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind == "PALETTE COLOR":
        array = _to_8_bit(apply_color_lut(array, dataset))
    elif array.ndim == 2:
        array = _grey(array, dataset, inverted=kind == "MONOCHROME1")
    else:
        array = _to_8_bit(array, bits=_number(dataset, "BitsStored", 8))
    array = array[..., None].repeat(3, axis=-1) if array.ndim == 2 else array[..., :3]
    return np.ascontiguousarray(array)


def _grey(array: np.ndarray, dataset, inverted: bool) -> np.ndarray:
    """Grey values to 0..255: by the file's window where it has one, else by the bits stored."""
    from pydicom.pixels import apply_voi_lut

    bits = _number(dataset, "BitsStored", 8)
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        array = apply_voi_lut(array, dataset).astype(np.float32)
        low, high = _window_range(array, dataset, bits)
        array = (array - low) * (255 / max(high - low, 1e-6))
    elif bits > 8 or array.dtype.itemsize > 1:
        array = array.astype(np.float32)
        low = float(array.min()) if _number(dataset, "PixelRepresentation") else 0.0
        # 12 bits in 16: scanners seldom use them all, so the brightest value decides.
        array = (array - low) * (255 / max(float(array.max()) - low, 1.0))
    array = np.clip(np.asarray(array), 0, 255).astype(np.uint8)
    return 255 - array if inverted else array


def _window_range(array: np.ndarray, dataset, bits: int) -> tuple[float, float]:
    """What a window maps black and white to (PS3.3, C.11.2.1): by the bits, so that a frame without a white pixel is
    not stretched, and the frames of a loop keep one scale."""
    if "VOILUTSequence" in dataset:
        return 0.0, float(2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    rescaled = (dataset.get("RescaleSlope") or 1, dataset.get("RescaleIntercept") or 0) != (1, 0)
    if rescaled or "ModalityLUTSequence" in dataset:
        return float(array.min()), float(array.max())
    low = -(2 ** (bits - 1)) if _number(dataset, "PixelRepresentation") else 0
    return float(low), float(low + 2**bits - 1)


def _to_8_bit(array: np.ndarray, bits: int = 16) -> np.ndarray:
    return array if array.dtype == np.uint8 else (array >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)
