# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The records of zip and tar files (PKWARE's APPNOTE 6.3; POSIX.1-2001 `pax` and GNU tar), one after another.

They are walked here rather than by Python's own modules for three reasons: the directory of an archive of a million
files isn't kept in memory, a cut archive gives what lies before the cut, and what a record declares is checked before
memory is taken for it.
"""

import re
import stat
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from .decompression import DAMAGED, FREE_ARCHIVE_BYTES, FREE_MEMBER_BYTES, Bomb, expands
from .reading import ClippedFile


# A member is read into memory. The longest uncompressed cine loops of DICOM stay below.
MAX_MEMBER_BYTES = 2 << 30
# Records of names and attributes are read whole; the longest path of a file system has 4 KiB.
MAX_RECORD_BYTES = 1 << 20
LARGEST = 1 << 60  # no file has more bytes
STORED, DEFLATE, BZIP2, LZMA = 0, 8, 12, 14


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: its path as stored, "/" between folders; bytes that are no UTF-8 are surrogates, as `os.fsdecode` gives them.
        index: its number among the archive's members (folders are none). size: in bytes, as declared.
        problem: a key of `reasons.REASONS` if it can't be read, else None. A last member with an empty name and a
            problem says that the archive goes on, but can't be followed.
        offset: where it begins in the archive (tar: its first byte, after decompression; zip: its local header).
        packed, method, checksum: how a zip file stores it.
    """

    name: str
    index: int
    size: int
    problem: str | None = None
    offset: int = -1
    packed: int = 0
    method: int = STORED
    checksum: int | None = None


def _name(name: bytes, encoding: str = "utf-8") -> str:
    return name.decode(encoding, "surrogateescape")


def _climbs(name: str) -> bool:
    """Whether a path leaves the folder that an archive would be unpacked in, on any system."""
    name = name.replace("\\", "/")
    return name.startswith("/") or bool(re.match(r"[A-Za-z]:", name)) or ".." in name.split("/") or "\0" in name


# ---------------------------------------------------------------- tar


def tar_header(block: bytes) -> tarfile.TarInfo | None:
    """A header's fields if its checksum is right."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None


def tar_members(stream: BinaryIO) -> Iterator[Member]:
    index = at = end = 0
    attributes: dict[bytes, bytes] = {}  # of the next member, from records before it
    problem = None
    try:
        while True:
            stream.seek(at)
            if stream.tell() < end:  # a compressed archive that stops within a member
                problem = "truncated"
                break
            block = stream.read(512)
            if not block:
                break
            if len(block) == 512 and not block.strip(b"\0"):
                at += 512  # the end, or the seam between two archives in a row
                continue
            if len(block) < 512:
                problem = "truncated" if block.strip(b"\0") else None
                break
            header = tar_header(block)
            if header is None or not 0 <= header.size < LARGEST:
                problem = "damaged"
                break
            start, size = at + 512, header.size
            if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, b"L", b"K"):
                if size > MAX_RECORD_BYTES:
                    problem = "damaged"
                    break
                record = stream.read(size)
                if len(record) < size:
                    problem = "truncated"
                    break
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    attributes[b"path"] = record.split(b"\0")[0]
                elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                    attributes |= _pax_attributes(record)
                at = start + -(-size // 512) * 512
                continue
            if b"size" in attributes:
                size = int(attributes[b"size"])
                if not 0 <= size < LARGEST:
                    problem = "damaged"
                    break
            name = _name(attributes[b"path"]) if b"path" in attributes else header.name
            is_sparse = header.type == tarfile.GNUTYPE_SPARSE or any(k.startswith(b"GNU.sparse.") for k in attributes)
            is_file = header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) or is_sparse
            holds = size if is_file or header.type not in tarfile.SUPPORTED_TYPES else 0
            attributes = {}
            at, end = start + -(-holds // 512) * 512, start + holds
            if header.type == tarfile.DIRTYPE or (is_file and name.endswith("/")):
                continue
            trouble = (
                "archive-path" if not is_file or _climbs(name)
                else "unsupported" if is_sparse
                else "too-large" if size > MAX_MEMBER_BYTES
                else None
            )  # fmt: skip
            # A member whose last byte isn't there is cut; of a compressed archive that shows when it is read.
            if isinstance(stream, ClippedFile) and start + holds > stream.length:
                trouble, problem = trouble or "truncated", "truncated"
            yield Member(name, index, size, trouble, start)
            index += 1
            if problem:
                break
    except Bomb:
        problem = "archive-bomb"
    except EOFError:
        problem = "truncated"
    except DAMAGED:
        problem = "damaged"
    if problem:
        yield Member("", index, 0, problem)


def _pax_attributes(record: bytes) -> dict[bytes, bytes]:
    """Lines of "length key=value\\n"."""
    found, at = {}, 0
    while match := re.compile(rb"(\d{1,7}) ([^=]{1,256})=").match(record, at):
        length = int(match[1])
        if length < len(match[0]) + 1:
            break
        found[match[2]] = record[match.end() : at + length - 1]
        at += length
    return found


# ---------------------------------------------------------------- zip


def zip_members(file: ClippedFile) -> Iterator[Member]:
    try:
        directory = _directory(file)
    except DAMAGED:
        directory = None
    if directory is None:
        yield from _zip_walk(file)
        return
    start, end, shift = directory
    yield from _zip_directory(file, start, end, shift)


def _directory(file: ClippedFile) -> tuple[int, int, int] | None:
    """Begin and end of the central directory, and by how much all offsets are off (a program in front of the archive);
    None if it isn't there, as in a file that was cut."""
    file.seek(max(0, file.length - 65_557))
    base = file.tell()
    tail = file.read(65_557)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        return None
    size, offset = struct.unpack_from("<LL", tail, at + 12)
    end = base + at
    if end >= 20:
        file.seek(end - 20)
        locator = file.read(20)
        if locator[:4] == b"PK\x06\x07":  # zip64
            record = struct.unpack_from("<Q", locator, 8)[0]
            for place in (record, end - 20 - 56):
                file.seek(place)
                block = file.read(56)
                if len(block) == 56 and block[:4] == b"PK\x06\x06":
                    size, offset = struct.unpack_from("<QQ", block, 40)
                    end = place
                    break
    start = end - size
    if start < 0:
        return None
    file.seek(start)
    if size and file.read(4) != b"PK\x01\x02":
        return None
    return start, end, start - offset


class _Record(NamedTuple):
    name: str
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    offset: int
    mode: int  # Unix's, 0 where another system wrote it
    end: int


def _zip_directory(file: ClippedFile, start: int, end: int, shift: int) -> Iterator[Member]:
    # The extents of all members first: two that share bytes let a small file expand without end.
    extents = sorted((r.offset + shift, r.packed + len(r.name)) for r in _records(file, start, end))
    overlapping, reached, holder = set(), 0, None
    for offset, length in extents:
        if offset < reached:
            overlapping |= {offset, holder}
        if offset + 30 + length > reached:
            reached, holder = offset + 30 + length, offset
    index = given = taken = 0
    at = start
    for record in _records(file, start, end):
        at = record.end
        if record.name.endswith("/") and record.size == 0:
            continue
        given, taken, offset = given + record.size, taken + record.packed, record.offset + shift
        problem = _zip_problem(record)
        if offset in overlapping or expands(given, taken, FREE_ARCHIVE_BYTES):
            problem = "archive-bomb"
        elif offset < 0 or offset + 30 + record.packed > start:
            problem = problem or "damaged"
        yield Member(record.name, index, record.size, problem, offset, record.packed, record.method, record.checksum)
        index += 1
    if at != end:
        yield Member("", index, 0, "damaged")


def _zip_problem(record: _Record) -> str | None:
    if record.flags & 0x2041:  # encrypted, strongly, with the directory
        return "encrypted"
    kind = stat.S_IFMT(record.mode)
    if _climbs(record.name) or kind not in (0, stat.S_IFREG):
        return "archive-path"
    if record.method not in (STORED, DEFLATE, BZIP2, LZMA):
        return "unsupported"
    if record.size > MAX_MEMBER_BYTES:
        return "too-large"
    return "archive-bomb" if expands(record.size, record.packed, FREE_MEMBER_BYTES) else None


def _records(file: ClippedFile, start: int, end: int) -> Iterator[_Record]:
    """The records of the central directory, up to where it is damaged."""
    at = start
    while at + 46 <= end:
        file.seek(at)
        block = file.read(46)
        if len(block) < 46 or block[:4] != b"PK\x01\x02":
            return
        flags, method = struct.unpack_from("<HH", block, 8)
        checksum, packed, size, names, extras, comments = struct.unpack_from("<LLLHHH", block, 16)
        attributes, offset = struct.unpack_from("<LL", block, 38)
        name, extra = file.read(names), file.read(extras)
        size, packed, offset = (min(value, LARGEST) for value in _zip64(extra, size, packed, offset))
        at += 46 + names + extras + comments
        mode = attributes >> 16 if block[5] == 3 else 0
        yield _Record(_zip_name(name, flags), flags, method, checksum, packed, size, offset, mode, at)


def _zip_name(name: bytes, flags: int) -> str:
    """UTF-8 where the flag says so or it can be that; the code page of DOS otherwise."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return _name(name) if flags & 0x800 else name.decode("cp437")


def _zip64(extra: bytes, *values: int) -> tuple[int, ...]:
    """Sizes and offset that don't fit 32 bits are in an extra field, in this order, those alone (APPNOTE 4.5.3)."""
    values, at = list(values), 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            for number, value in enumerate(values):
                if value == 0xFFFFFFFF and len(field) >= 8:
                    values[number], field = struct.unpack_from("<Q", field)[0], field[8:]
            break
        at += 4 + length
    return tuple(values)


def _zip_walk(file: ClippedFile) -> Iterator[Member]:
    """The members of a zip file that has lost its end, from local header to local header."""
    index = at = given = taken = 0
    while True:
        file.seek(at)
        block = file.read(30)
        if len(block) < 30 or block[:4] != b"PK\x03\x04":
            break
        flags, method = struct.unpack_from("<HH", block, 6)
        checksum, packed, size, names, extras = struct.unpack_from("<LLLHH", block, 14)
        name = _zip_name(file.read(names), flags)
        size, packed = (min(value, LARGEST) for value in _zip64(file.read(extras), size, packed))
        start, at = at, at + 30 + names + extras + packed
        if flags & 8 or at > file.length:  # its size stands behind it, or it is what was cut
            break
        if name.endswith("/") and size == 0:
            continue
        given, taken = given + size, taken + packed
        problem = _zip_problem(_Record(name, flags, method, checksum, packed, size, start, 0, at))
        if expands(given, taken, FREE_ARCHIVE_BYTES):
            problem = "archive-bomb"
        yield Member(name, index, size, problem, start, packed, method, checksum)
        index += 1
    yield Member("", index, 0, "truncated")
