# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Members of zip and tar files, one after another into memory; nothing is ever written to disk.

A member's path is a name only: no file of that name is opened.
"""

import bz2
import lzma
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from .decompression import CHUNK, DAMAGED, FREE_MEMBER_BYTES, Bomb, Decompressed, Zlib, bare_lzma, decompressed
from .members import BZIP2, LZMA, STORED, Member, tar_header, tar_members, zip_members
from .reading import ClippedFile, UnreadableFile, inflated_head, short


ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06")
# Zip files by format, but documents and programs to their users: not to be looked into.
DOCUMENTS = {".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".jar", ".npz", ".pt", ".pth", ".whl", ".apk", ".kmz"}


def is_archive(path: str | Path) -> bool:
    """Whether `path` is a zip file or a tar file, plain or compressed, by its content. Office documents are none."""
    path = Path(path)
    try:
        if path.suffix.lower() in DOCUMENTS or not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            head = file.read(CHUNK)
            # A block of bzip2 holds 900 kB, and gives nothing before it is whole.
            return is_archive_bytes(head + file.read(1 << 20) if head.startswith(b"BZh") else head)
    except (OSError, ValueError):
        return False


def is_archive_bytes(head: bytes) -> bool:
    """The same of a file's first bytes; 64 KiB are enough, of bzip2 a mebibyte."""
    if head.startswith(ZIP_HEADS):
        return True
    try:
        if head[:2] == b"\x1f\x8b":
            head = inflated_head(head)
        elif head[:3] == b"BZh":  # its first block comes out whole, or not at all
            head = bz2.BZ2Decompressor().decompress(head, 1024)
        elif head[:6] == b"\xfd7zXZ\0":
            head = lzma.LZMADecompressor(memlimit=256 << 20).decompress(head, 1024)
    except (OSError, EOFError, lzma.LZMAError):
        return False
    return tar_header(head[:512]) is not None


def list_members(path: str | Path) -> Iterator[Member]:
    """An archive's files in the order in which they are stored, each once, those that can't be read with a problem.

    Folders are no members. Memory doesn't grow with the archive, but for 100 bytes a member of a zip file, which are
    needed to see whether two lie upon one another.

    Raises:
        UnreadableFile: the archive can't be opened.
    """
    with _open(path) as file:
        head = file.read(CHUNK)
        file.seek(0)
        if head.startswith(ZIP_HEADS):
            yield from zip_members(file)
        else:
            yield from tar_members(decompressed(file, head))


def _open(path: str | Path) -> ClippedFile:
    try:
        return ClippedFile(path)
    except (OSError, ValueError) as error:
        raise UnreadableFile(path, f"cannot be opened: {short(error)}", "not-a-file") from error


class ArchiveReader:
    """Reads members into memory. It keeps one archive open, so members of one archive should follow one another.

    Of a compressed tar file everything up to a member must be decompressed: members in their order cost one pass in
    all, an earlier one begins anew.
    """

    def __init__(self):
        self.path = self.file = self.stream = self.members = self.last = None

    def close(self):
        if self.file is not None:
            self.file.close()
        self.path = self.file = self.stream = self.members = self.last = None

    def read(self, path: str | Path, member: Member) -> bytes:
        """A member's content, of exactly the size that was declared.

        Args:
            member: as `list_members` gave it; its index and name are enough.

        Raises:
            UnreadableFile: with `member.problem` as its code if it has one; damaged, truncated or a bomb.
        """
        name = f"{path}/{member.name}"
        try:
            if str(path) != self.path:
                self._open(path)
            if member.offset < 0:
                member = self._find(member)
            if member.problem:
                reason = f"can't be read from its archive ({member.problem})"
                raise UnreadableFile(name, reason, member.problem)
            content = self._tar(member) if self.stream is not None else self._zip(member)
        except Bomb:
            self.close()
            raise UnreadableFile(name, "expands to far more than images do", "archive-bomb") from None
        except UnreadableFile:
            raise
        except MemoryError as error:
            self.close()
            raise UnreadableFile(name, "asked for more memory than there is", "crashed") from error
        except EOFError as error:
            self.close()
            raise UnreadableFile(name, f"truncated: {short(error)}", "truncated") from error
        except DAMAGED as error:
            self.close()
            raise UnreadableFile(name, f"damaged: {short(error)}") from error
        if len(content) != member.size:
            code = "truncated" if len(content) < member.size else "damaged"
            reason = f"{code}: declares {member.size:,} bytes, {len(content):,} or more are there"
            raise UnreadableFile(name, reason, code)
        if member.checksum is not None and zlib.crc32(content) != member.checksum:
            raise UnreadableFile(name, "damaged: its checksum is wrong")
        return content

    def _open(self, path: str | Path):
        self.close()
        self.file = _open(path)
        head = self.file.read(CHUNK)
        self.file.seek(0)
        self.stream = None if head.startswith(ZIP_HEADS) else decompressed(self.file, head)
        self.path = str(path)

    def _find(self, member: Member) -> Member:
        """The archive's own record of a member, by its number. Records and contents share one stream, so that members
        in their order decompress a tar file once."""
        if self.last is None or member.index < self.last.index:
            self.members = zip_members(self.file) if self.stream is None else tar_members(self.stream)
            self.last = next(self.members, None)
        while self.last is not None and self.last.index < member.index:
            self.last = next(self.members, None)
        if self.last is None or self.last.name != member.name:
            found = self.last
            self.last = None
            if found is not None and found.problem and not found.name:
                return found
            raise ValueError("the archive has changed since it was listed")
        return self.last

    def _tar(self, member: Member) -> bytes:
        self.stream.seek(member.offset)
        return self.stream.read(member.size)

    def _zip(self, member: Member) -> bytes:
        self.file.seek(member.offset)
        block = self.file.read(30)
        if len(block) < 30 or block[:4] != b"PK\x03\x04":
            raise ValueError("there is no member where the directory says")
        names, extras = struct.unpack_from("<HH", block, 26)
        self.file.seek(member.offset + 30 + names + extras)
        if member.method == STORED:
            return self.file.read(min(member.packed, member.size + 1))
        make, packed = (bz2.BZ2Decompressor if member.method == BZIP2 else lambda: Zlib(-15)), member.packed
        if member.method == LZMA:
            # Two bytes of version, two of length, and LZMA's properties (APPNOTE 5.8.8).
            properties = self.file.read(4 + 5)[4:]
            make, packed = lambda: bare_lzma(properties), packed - 9
        stream = Decompressed(self.file, make, packed, FREE_MEMBER_BYTES, whole=False)
        return stream.read(member.size + 1)
