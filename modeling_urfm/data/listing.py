# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Every input file of a corpus, archive members included, in an order that is the same on every run."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from .archives import ArchiveReader, Member, is_archive, list_members
from .isolation import IsolatedWorker, WorkerDied
from .public import PUBLIC, Annotation, find_public


@dataclass(frozen=True)
class Input:
    """What the command line names: a file or folder, and the public data set that it is (or "local")."""

    path: Path
    source: str
    exclude: int = 0  # 0: for the corpus; k: the k-th set that is kept out of it


@dataclass(frozen=True)
class Unit:
    """One file to read.

    Attributes:
        number: place in the listing. path: of the file, or of the archive. member: name inside the archive.
        problem: code of `REASONS` where it is known without reading. is_archive: the archive itself, not a member.
        exclude: as `Input.exclude`. organ ... licence: what a public data set says of it.
    """

    number: int
    path: str
    member: str | None
    member_index: int
    size: int
    mtime_ns: int
    problem: str | None
    is_archive: bool
    source: str
    exclude: int
    organ: str | None = None
    label: str | None = None
    patient: str | None = None
    view: str | None = None
    licence: str | None = None

    @property
    def name(self) -> str:
        return self.path if self.member is None else f"{self.path}::{self.member}"

    @property
    def identity(self) -> tuple[str, ...]:
        """What its keyed hash is of: an archive may hold one name twice."""
        return (self.path,) if self.member is None else (self.path, self.member, str(self.member_index))


UNITS = pa.schema({
    "number": pa.int64(), "path": pa.binary(), "member": pa.binary(), "member_index": pa.int64(), "size": pa.int64(),
    "mtime_ns": pa.int64(), "problem": pa.string(), "is_archive": pa.bool_(), "source": pa.string(), "exclude": pa.int32(),
    "organ": pa.string(), "label": pa.string(), "patient": pa.string(), "view": pa.string(),
    "licence": pa.string(),
})  # fmt: skip


def unit_to_row(unit: Unit) -> dict:
    """File names are bytes, not all of them UTF-8."""
    row = asdict(unit)
    return row | {name: None if row[name] is None else os.fsencode(row[name]) for name in ("path", "member")}


def unit_from_row(row: dict) -> Unit:
    return Unit(**row | {name: None if row[name] is None else os.fsdecode(row[name]) for name in ("path", "member")})


def parse_inputs(texts: Sequence[str], flag: str = "", first_exclude: int = 0) -> list[Input]:
    """`PATH` or `NAME=PATH`, NAME being a public data set of `data/public.py`.

    Raises:
        FileNotFoundError: naming the nearest path. ValueError: no public data set of that name.
    """
    inputs = []
    for i, text in enumerate(texts):
        name, separator, rest = text.partition("=")
        if not text or (separator and not rest):
            raise ValueError(f"{flag}{text!r} names no file or folder (an unset variable of the shell?).")
        exclude = first_exclude + i if first_exclude else 0
        if separator and not Path(text).exists():
            source, path = find_public(name).key, Path(rest)
        else:
            source, path = "local", Path(text)
        if not path.exists():
            parent = path.parent
            near = difflib.get_close_matches(path.name, os.listdir(parent) if parent.is_dir() else [], n=1)
            hint = f" Did you mean {str(parent / near[0])!r}?" if near else ""
            raise FileNotFoundError(f"{flag}{path}: no such file or folder.{hint}")
        if source != "local" and PUBLIC[source].annotate is None:
            raise ValueError(
                f"{name}: listed, but without an importer: give the folder alone, {rest!r}, and its labels stay out."
            )
        inputs.append(Input(Path(os.path.abspath(path)), source, exclude))
    return inputs


def check_apart(inputs: Sequence[Input]) -> None:
    """A file may be counted once only: no input lies inside another one."""
    seen: dict[tuple[bool, str], Input] = {}
    places = [(given.exclude > 0, os.path.realpath(given.path)) for given in inputs]
    for given, place in zip(inputs, places):
        if place in seen:
            raise ValueError(f"{given.path} is {seen[place].path}: name one of them.")
        seen[place] = given
    # A shell's `*` may bring thousands: each looks for its own parents, not for every other.
    for given, (excluded, place) in zip(inputs, places):
        for parent in Path(place).parents:
            if (excluded, str(parent)) in seen:
                raise ValueError(f"{given.path} lies inside {seen[excluded, str(parent)].path}: name one of them.")


def list_units(inputs: Sequence[Input], leave: Sequence[Path] = (), timeout_s: float = 600) -> Iterator[Unit]:
    """All files at any depth, hidden ones too, folders in order of their names, but for what is below `leave`."""
    number = 0
    lister = IsolatedWorker(_members, timeout_s)
    try:
        for given in inputs:
            for unit in _of_input(given, [os.path.realpath(p) for p in leave], lister):
                yield replace(unit, number=number)
                number += 1
    finally:
        lister.close()


def _of_input(given: Input, leave: list[str], lister: IsolatedWorker) -> Iterator[Unit]:
    root = given.path if given.path.is_dir() else given.path.parent
    units: Iterator[Unit] = (unit for path in _walk(given.path, leave) for unit in _of_file(path, given, lister))
    if given.source == "local":
        yield from units
        return
    # A public data set's tables speak of all its files, so all must be known first.
    known = list(units)

    def name_of(unit: Unit) -> str:
        return unit.member or os.path.relpath(unit.path, root)

    by_name = {name_of(unit): unit for unit in known if not unit.is_archive and not unit.problem}
    reader = ArchiveReader()

    def read(name: str) -> bytes:
        unit = by_name[name]
        return reader.read(unit.path, member_of(unit)) if unit.member else Path(unit.path).read_bytes()

    dataset = PUBLIC[given.source]
    try:
        annotations = dataset.annotate(list(by_name), read)
    except ValueError as error:
        raise ValueError(f"{given.source}={given.path}: {error}") from error
    for unit in known:
        note = annotations.get(name_of(unit)) or Annotation()
        organ = note.organ or (dataset.organs[0] if len(dataset.organs) == 1 else None)
        yield replace(unit, organ=organ, label=note.label, patient=note.patient, view=note.view,
                      licence=note.licence or dataset.licence, problem=unit.problem or note.skip)  # fmt: skip


def _walk(path: Path, leave: list[str]) -> Iterator[str]:
    if not path.is_dir():
        yield str(path)
        return
    seen, locked = set(), []
    for parent, folders, files in os.walk(path, followlinks=True, onerror=lambda error: locked.append(error.filename)):
        # A folder that can't be read is told of as a file that can't.
        yield from locked
        locked.clear()
        state = os.stat(parent)
        if (state.st_dev, state.st_ino) in seen or os.path.realpath(parent) in leave:
            folders.clear()  # a link back to where we were, or our own output
            continue
        seen.add((state.st_dev, state.st_ino))
        folders.sort()
        for name in sorted(files):
            yield os.path.join(parent, name)
    yield from locked


def _of_file(path: str, given: Input, lister: IsolatedWorker) -> Iterator[Unit]:
    try:
        state = os.stat(path)
        size, mtime_ns, archive = state.st_size, state.st_mtime_ns, is_archive(path)
    except OSError:  # a link that leads nowhere: the reader says so
        size, mtime_ns, archive = 0, 0, False
    common = {"path": path, "mtime_ns": mtime_ns, "source": given.source, "exclude": given.exclude}
    if not archive:
        yield Unit(0, member=None, member_index=-1, size=size, problem=None, is_archive=False, **common)
        return
    problem = None
    try:
        for name, index, length, code in lister(path):
            if name:
                yield Unit(0, member=name, member_index=index, size=length, problem=code, is_archive=False, **common)
            else:  # the archive itself
                problem = code
    except WorkerDied as error:
        problem = error.code
    # After its members, as only then it is known whether it could be read to its end.
    yield Unit(0, member=None, member_index=-1, size=size, problem=problem, is_archive=True, **common)


def _members(path: str) -> Iterator[tuple[str, int, int, str | None]]:
    for member in list_members(path):
        yield member.name, member.index, member.size, member.problem


def member_of(unit: Unit) -> Member:
    """The member that an ArchiveReader is asked for."""
    return Member(unit.member, unit.member_index, unit.size, unit.problem)
