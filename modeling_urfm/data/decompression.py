# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Compressed streams as files that are read forward, a piece at a time and no further than is plausible."""

import bz2
import io
import lzma
import struct
import zlib
from typing import BinaryIO


# Images expand by 1 to 20; black frames stored plain and label maps by up to 1000, but then they are small. So a file
# may expand to 64 MiB whatever its ratio, an archive to 4 GiB, and beyond that to 250 times what was read for it.
FREE_MEMBER_BYTES = 64 << 20
FREE_ARCHIVE_BYTES = 4 << 30
MAX_RATIO = 250
CHUNK = 1 << 16
# What decompressors raise on damaged content, and what parsers of it do.
DAMAGED = (zlib.error, lzma.LZMAError, OSError, ValueError, struct.error)


class Bomb(Exception):
    """More came out than a file or an archive of images gives."""


def expands(size: int, packed: int, free: int) -> bool:
    """Whether `size` bytes out of `packed` are more than images give."""
    return size > free + MAX_RATIO * packed


class Zlib:
    """zlib's decompressor with the interface of bz2's and lzma's, for one stream in zlib's or gzip's wrapping or bare."""

    def __init__(self, wbits: int = 47):
        self.inflate = zlib.decompressobj(wbits)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self.inflate.decompress(self.inflate.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self.inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self.inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return not self.inflate.unconsumed_tail


class Decompressed(io.RawIOBase):
    """A compressed stream as a file that can be read, and sought forward; seeking backward begins anew.

    Args:
        file: where to read from, from its present place on. make: gives a decompressor with `decompress(data, max_length)`,
            `eof`, `needs_input` and `unused_data`. packed: how many bytes belong to it at most.
        free, ratio: more than `free` + `ratio` times what was read raises `Bomb`. whole: several streams in a row are
            one, as gzip, bzip2 and xz define.
    """

    def __init__(self, file: BinaryIO, make, packed: int | None = None, free=FREE_ARCHIVE_BYTES, whole=True):
        super().__init__()
        self.file, self.make, self.packed, self.free, self.whole = file, make, packed, free, whole
        self.start = file.tell()
        self._begin()

    def _begin(self):
        self.file.seek(self.start)
        self.decompressor, self.taken, self.given = self.make(), 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.given

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        if offset < self.given:
            self._begin()
        while self.given < offset and self._some(min(CHUNK * 4, offset - self.given)):
            pass
        return self.given

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise io.UnsupportedOperation("say how much")
        parts = []
        while size > 0 and (part := self._some(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _some(self, size: int) -> bytes:
        """At most `size` bytes, at least one but at the end; raises EOFError where the stream is cut."""
        while True:
            if self.decompressor.eof:
                rest = self.decompressor.unused_data
                following = rest or self._take()
                # Zeros behind the end are padding.
                if not self.whole or not following.strip(b"\0"):
                    return b""
                self.decompressor = self.make()
                part = self.decompressor.decompress(following, size)
            else:
                data = self._take() if self.decompressor.needs_input else b""
                if not data and self.decompressor.needs_input:
                    # What has been taken in may still give something, otherwise it is cut.
                    part = self.decompressor.decompress(b"", size)
                    if not part and not self.decompressor.eof:
                        raise EOFError("the compressed data end too early")
                else:
                    part = self.decompressor.decompress(data, size)
            if part:
                self.given += len(part)
                if expands(self.given, self.taken, self.free):
                    raise Bomb
                return part

    def _take(self) -> bytes:
        left = CHUNK if self.packed is None else min(CHUNK, self.packed - self.taken)
        data = self.file.read(left)
        self.taken += len(data)
        return data


def decompressed(file: BinaryIO, head: bytes) -> BinaryIO:
    """What begins with `head` without its compression; `file` itself if it has none."""
    if head[:2] == b"\x1f\x8b":
        return Decompressed(file, Zlib)
    if head[:3] == b"BZh":
        return Decompressed(file, bz2.BZ2Decompressor)
    if head[:6] == b"\xfd7zXZ\0":
        return Decompressed(file, lambda: lzma.LZMADecompressor(memlimit=256 << 20))
    return file


def bare_lzma(properties: bytes) -> lzma.LZMADecompressor:
    """A decompressor of a bare LZMA stream; its dictionary may be no larger than that of `xz -9`, as it is memory."""
    first, dictionary = struct.unpack("<BL", properties)
    settings = {
        "id": lzma.FILTER_LZMA1, "dict_size": min(dictionary, 64 << 20),
        "lc": first % 9, "lp": first // 9 % 5, "pb": first // 45,
    }  # fmt: skip
    return lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=[settings])
