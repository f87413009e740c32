# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Archives: everything in them is listed and read as Python's own modules read it, and nothing hostile gets through."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_urfm.data import archives, members
from modeling_urfm.data.archives import ArchiveReader, Member, is_archive, is_archive_bytes, list_members
from modeling_urfm.data.reading import UnreadableFile, open_source


CONTENTS = {
    "a/one.png": b"first", "a/two.txt": b"", "Ä/三.dcm": bytes(range(256)) * 50, "deep/" * 40 + "name": b"x" * 5000,
}  # fmt: skip
METHODS = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}
PACKERS = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tgz": gzip.compress,
}
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def make_zip(contents=CONTENTS, method=8) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a/"), b"")
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def make_tar(contents=CONTENTS, form=tarfile.PAX_FORMAT, entries=()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in entries:
            archive.addfile(entry)
    return buffer.getvalue()


def write(folder, content: bytes, name="archive"):
    (folder / name).write_bytes(content)
    return folder / name


def read_all(path) -> dict[str, bytes]:
    reader = ArchiveReader()
    return {member.name: reader.read(path, member) for member in list_members(path)}


def problems(path) -> dict[str, str | None]:
    return {member.name: member.problem for member in list_members(path)}


def code(path, member) -> str:
    with pytest.raises(UnreadableFile) as error:
        ArchiveReader().read(path, member)
    return error.value.code


# ---------------------------------------------------------------- what is there is read


@pytest.mark.parametrize("method", METHODS)
def test_zip_members_are_read(tmp_path, method):
    path = write(tmp_path, make_zip(method=METHODS[method]))
    assert is_archive(path) and read_all(path) == CONTENTS
    assert [m.index for m in list_members(path)] == [0, 1, 2, 3]
    assert [m.size for m in list_members(path)] == [len(content) for content in CONTENTS.values()]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("form", FORMATS)
def test_tar_members_are_read(tmp_path, suffix, form):
    path = write(tmp_path, PACKERS[suffix](make_tar(form=FORMATS[form])))
    assert is_archive(path) and read_all(path) == CONTENTS


def test_zip64_of_a_stream_with_sizes_behind_the_data_and_a_program_in_front(tmp_path):
    path = tmp_path / "archive"
    with path.open("wb") as file:
        file.write(b"#!/bin/sh\n" * 10)
        with zipfile.ZipFile(file, "a") as archive:
            with archive.open(zipfile.ZipInfo("large"), "w", force_zip64=True) as member:
                member.write(b"12345" * 100)
    assert not is_archive(path)  # a program is none, but
    with path.open("rb") as file:
        assert {m.name for m in members.zip_members(archives._open(path))} == {"large"}

    class Pipe(io.RawIOBase):  # a file that can't be sought gets data descriptors
        def __init__(self):
            self.parts = []

        def writable(self):
            return True

        def write(self, data):
            self.parts.append(bytes(data))
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
    assert read_all(write(tmp_path, b"".join(pipe.parts))) == CONTENTS


def test_zip64_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)  # more members write zip64's end records
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # and sizes beyond this zip64's fields
    content = make_zip(method=0)
    assert b"PK\x06\x06" in content
    assert read_all(write(tmp_path, content)) == CONTENTS


def test_members_in_any_order_and_by_number_alone(tmp_path):
    for number, content in enumerate([make_zip(), gzip.compress(make_tar()), make_tar()]):
        path, reader = write(tmp_path, content, f"archive{number}"), ArchiveReader()
        listed = pickle.loads(pickle.dumps(list(list_members(path))))
        for index in (2, 0, 3, 3, 1):
            member = listed[index]
            assert reader.read(path, member) == CONTENTS[member.name]
            bare = Member(member.name, member.index, member.size)
            assert reader.read(path, bare) == CONTENTS[member.name]
        with pytest.raises(UnreadableFile, match="changed"):
            reader.read(path, Member("another", 1, 0))
        assert reader.read(path, bare) == CONTENTS[bare.name]


def test_a_compressed_tar_is_decompressed_once_for_members_in_order(tmp_path, monkeypatch):
    contents = {f"{n:03}": np.random.default_rng(n).bytes(10_000) for n in range(50)}
    path, given = write(tmp_path, gzip.compress(make_tar(contents))), []
    honest = archives.decompressed

    def counted(file, head):
        stream = honest(file, head)
        some = stream._some
        stream._some = lambda size: given.append(len(part := some(size))) or part
        return stream

    listed = [Member(m.name, m.index, m.size) for m in list_members(path)]
    monkeypatch.setattr(archives, "decompressed", counted)
    reader = ArchiveReader()
    assert all(reader.read(path, member) == contents[member.name] for member in listed[1::2])
    assert sum(given) < 1.1 * len(make_tar(contents))


def test_equal_names_are_two_members(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning):
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    path, reader = write(tmp_path, buffer.getvalue()), ArchiveReader()
    assert [reader.read(path, member) for member in list_members(path)] == [b"1", b"2"]


def test_two_tar_files_in_a_row_are_both_listed(tmp_path):
    path = write(tmp_path, make_tar({"one": b"1"}) + make_tar({"two": b"2"}))
    assert read_all(path) == {"one": b"1", "two": b"2"}
    path = write(tmp_path, gzip.compress(make_tar({"one": b"1"})) + gzip.compress(make_tar({"two": b"2"})))
    assert read_all(path) == {"one": b"1", "two": b"2"}


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0\\:"), min_size=1, max_size=40).map(
        lambda name: "f" + name.replace("/", "_")), st.binary(max_size=2000), min_size=1, max_size=5),
    st.sampled_from(["zip", *PACKERS]),
)  # fmt: skip
def test_any_names_and_contents_come_back(tmp_path_factory, contents, kind):
    content = make_zip(contents) if kind == "zip" else PACKERS[kind](make_tar(contents))
    path = write(tmp_path_factory.getbasetemp(), content, "any")
    assert read_all(path) == contents


def test_names_in_no_known_encoding_survive(tmp_path):
    odd = b"caf\xe9.png"
    name = odd.decode("utf-8", "surrogateescape")
    path = write(tmp_path, make_tar({name: b"1"}, tarfile.GNU_FORMAT))
    assert [os.fsencode(member.name) for member in list_members(path)] == [odd] and read_all(path) == {name: b"1"}
    # A zip file whose name says UTF-8 and is none: Python's own module refuses the whole archive.
    content = make_zip({"caf\u00e9.png": b"1"}).replace("caf\u00e9".encode(), b"caf\xe9\xe9")
    with pytest.raises(UnicodeDecodeError):
        zipfile.ZipFile(io.BytesIO(content))
    assert list(read_all(write(tmp_path, content)).values()) == [b"1"]


def test_what_is_an_archive(tmp_path):
    assert not is_archive(tmp_path) and not is_archive(tmp_path / "absent")
    assert not is_archive(write(tmp_path, make_zip(), "table.xlsx"))
    assert not is_archive(write(tmp_path, gzip.compress(b"no tar" * 200)))
    assert not is_archive(write(tmp_path, b"text"))
    assert is_archive(write(tmp_path, make_zip({})))
    for pack in PACKERS.values():
        assert is_archive_bytes(pack(make_tar())[: 1 << 16])
    with pytest.raises(UnreadableFile) as error:
        open_source("inner.zip", make_zip())
    assert error.value.code == "archive-nested"
    with pytest.raises(UnreadableFile) as error:
        open_source("inner.tgz", gzip.compress(make_tar()))
    assert error.value.code == "archive-nested"


# ---------------------------------------------------------------- what is hostile or damaged is said


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "C:\\windows", "..\\up", "a\\..\\..\\b"])
def test_paths_that_climb_are_named(tmp_path, name):
    for number, content in enumerate([make_zip({name: b"1", "b": b"2"}), make_tar({name: b"1", "b": b"2"})]):
        path = write(tmp_path, content, str(number))
        assert list(problems(path).values()) == ["archive-path", None]
        assert code(path, next(iter(list_members(path)))) == "archive-path"


def test_links_and_devices_are_named_and_never_followed(tmp_path):
    secret = write(tmp_path, b"secret", "secret")
    entries = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        entry = tarfile.TarInfo(f"entry{kind}")
        entry.type, entry.linkname = kind, str(secret)
        entries.append(entry)
    path = write(tmp_path, make_tar({"a": b"1"}, entries=entries))
    assert list(problems(path).values()) == [None] + ["archive-path"] * 5
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(secret))
    assert problems(write(tmp_path, buffer.getvalue())) == {"link": "archive-path"}


def flagged(content: bytes, flags=0, method=None) -> bytes:
    """A zip file of one member with flags set in both of its headers."""
    content = bytearray(content)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(signature) + at
        content[place] |= flags
        if method is not None:
            content[place + 2 : place + 4] = struct.pack("<H", method)
    return bytes(content)


def one(content: bytes, method=8) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a", content)
    return buffer.getvalue()


def test_encrypted_and_unknown_compression(tmp_path):
    assert problems(write(tmp_path, flagged(one(b"1"), flags=1))) == {"a": "encrypted"}
    assert problems(write(tmp_path, flagged(one(b"1"), method=97))) == {"a": "unsupported"}


def test_damage_in_a_member_is_found_by_its_checksum(tmp_path):
    content = bytearray(one(b"some content", 0))
    content[content.index(b"some")] ^= 1
    path = write(tmp_path, content)
    (member,) = list_members(path)
    assert member.problem is None and code(path, member) == "damaged"


def test_a_zip_that_lies_about_sizes_is_read_no_further(tmp_path):
    content = bytearray(one(bytes(10_000_000)))
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<L", 1000)
    path = write(tmp_path, content)
    (member,) = list_members(path)
    assert (member.size, member.problem) == (1000, None)
    with pytest.raises(UnreadableFile, match="declares 1,000 bytes, 1,001 or more"):
        ArchiveReader().read(path, member)
    content[place : place + 4] = struct.pack("<L", 1 << 30)
    path = write(tmp_path, content)
    assert problems(path) == {"a": "archive-bomb"}  # a ratio that no image has
    content[place : place + 4] = struct.pack("<L", 3 << 30)
    assert problems(write(tmp_path, content)) == {"a": "too-large"}


def test_bombs_are_refused_and_black_pictures_are_not(tmp_path):
    path = write(tmp_path, one(bytes(30_000_000)))  # a black frame, stored plain: 1000 to 1
    assert read_all(path)["a"] == bytes(30_000_000)
    path = write(tmp_path, one(bytes(100_000_000)))
    assert problems(path) == {"a": "archive-bomb"}
    (member,) = list_members(path)
    assert code(path, member) == "archive-bomb"


def test_many_members_that_expand_together(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "FREE_ARCHIVE_BYTES", 3_000_000)
    found = [m.problem for m in list_members(write(tmp_path, make_zip({str(n): bytes(1_000_000) for n in range(6)})))]
    assert found[:3] == [None] * 3 and set(found[4:]) == {"archive-bomb"}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_that_expands_without_end(tmp_path, monkeypatch, pack):
    from modeling_urfm.data import decompression

    monkeypatch.setattr(decompression.Decompressed.__init__, "__defaults__", (None, 2_000_000, True))
    path = write(tmp_path, pack(make_tar({"a": b"1", "b": bytes(10_000_000), "c": b"3"})))
    listed = list(list_members(path))
    assert [(m.name, m.problem) for m in listed] == [("a", None), ("b", None), ("", "archive-bomb")]
    assert code(path, listed[1]) == "archive-bomb"


def overlapping_zip(copies: int, kernel: bytes) -> bytes:
    """Many records of one directory that point to one member."""
    packed = zlib.compress(kernel, 9)[2:-4]
    fields = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 0, zlib.crc32(kernel), len(packed), len(kernel), 1, 0)
    local = b"PK\x03\x04" + fields + b"a" + packed
    record = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + b"a"
    end = b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, copies, copies, copies * len(record), len(local), 0)
    return local + record * copies + end


def test_members_that_share_their_bytes_are_a_bomb(tmp_path):
    assert read_all(write(tmp_path, overlapping_zip(1, bytes(1000)))) == {"a": bytes(1000)}
    found = [member.problem for member in list_members(write(tmp_path, overlapping_zip(1000, bytes(1_000_000))))]
    assert found == ["archive-bomb"] * 1000


def test_a_cut_archive_gives_what_lies_before_the_cut(tmp_path):
    contents = {f"{n}": np.random.default_rng(n).bytes(5000) for n in range(4)}
    for number, content in enumerate(
        [make_zip(contents), make_tar(contents), *(pack(make_tar(contents)) for pack in (gzip.compress, lzma.compress))]
    ):
        path, reader = write(tmp_path, content[: len(content) * 6 // 10], str(number)), ArchiveReader()
        listed = list(list_members(path))
        assert listed[-1].problem == "truncated" and listed[-1].name == ""
        whole = 0
        for member in listed[:-1]:
            try:
                whole += reader.read(path, member) == contents[member.name]
            except UnreadableFile as error:
                assert error.code == "truncated"
        assert whole >= (0 if number == 3 else 1)  # xz decompresses a block at a time


def test_an_archive_that_is_cut_behind_its_last_member_says_so(tmp_path):
    content = make_zip()
    assert problems(write(tmp_path, content[: content.index(b"PK\x01\x02") + 10]))[""] == "truncated"
    content = gzip.compress(make_tar())
    assert problems(write(tmp_path, content[:-20])).get("") == "truncated"


@pytest.mark.parametrize("size", [10**12, -5, "nonsense"])
def test_a_tar_header_that_lies_about_size(tmp_path, size):
    content = bytearray(make_tar({"a": b"1"}, tarfile.GNU_FORMAT))
    if size == "nonsense":  # in a pax record
        entry = tarfile.TarInfo("a")
        entry.pax_headers = {"size": "-5"}
        path = write(tmp_path, make_tar({}, entries=[entry]))
        assert problems(path) == {"": "damaged"}
        return
    entry = tarfile.TarInfo("a")
    entry.size = size
    content[512:1024] = entry.tobuf(tarfile.GNU_FORMAT)
    for number, packed in enumerate((bytes(content), gzip.compress(content))):
        path = write(tmp_path, packed, str(number))
        assert list(problems(path).values())[-1] in ("truncated", "damaged")


def test_a_record_of_a_name_of_a_gigabyte_is_not_read(tmp_path):
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path = write(tmp_path, gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22)))
    assert problems(path) == {"": "damaged"}


def test_an_archive_that_cannot_be_opened(tmp_path):
    with pytest.raises(UnreadableFile) as error:
        list(list_members(tmp_path / "absent"))
    assert error.value.code == "not-a-file"


@pytest.mark.slow
def test_memory_does_not_grow_with_members(tmp_path):
    """A zip of 200,000 members is listed and read within 100 MB; Python's own module takes 150 MB to open it."""
    record, count = io.BytesIO(), 200_000
    with zipfile.ZipFile(record, "w") as archive:
        for number in range(count):
            archive.writestr(zipfile.ZipInfo(f"folder/of/images/{number:08}.png"), b"x")
    path = write(tmp_path, record.getvalue())
    program = """
import resource, sys
from modeling_urfm.data.archives import ArchiveReader, list_members
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, reader = peak(), ArchiveReader()
print(sum(len(reader.read(sys.argv[1], member)) for member in list_members(sys.argv[1])), peak() - before)
"""
    started = time.monotonic()
    answer = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(answer[0]) == count and int(answer[1]) < 100_000, answer
    assert time.monotonic() - started < 120


def test_bzip2_of_images_is_known_for_an_archive(tmp_path):
    """A block of bzip2 gives nothing before it is whole, and of images it is nearly a megabyte long."""
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "images.tar.bz2", "w:bz2") as archive:
        for number in range(20):
            content = rng.bytes(60_000)
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert is_archive(tmp_path / "images.tar.bz2")
    assert len(list(list_members(tmp_path / "images.tar.bz2"))) == 20
