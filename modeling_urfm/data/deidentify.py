# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What may leave of a file's attributes, and the keyed hashes that stand for patients, studies and files.

De-identification here is by construction: shards are built from the rows of `POLICY` that say "keep" or "hash", and
everything without a row stays behind: dates, names, comments, private groups, overlays, sequences. Text that leaves
comes from vocabularies (`makers.py`, `organs.py`), never from the file. Reference: DICOM PS3.15, annex E (Basic
Application Level Confidentiality Profile, table E.1-1) with the options Clean Pixel Data (113101), Clean Graphics (113103)
and Clean Descriptors (113105).
"""

import hashlib
import hmac
import math
import os
import secrets
import stat
from collections.abc import MutableSequence
from dataclasses import dataclass
from pathlib import Path

from .makers import known_maker, known_model, known_transducer


@dataclass(frozen=True)
class Rule:
    """One row of the policy.

    Attributes:
        attribute: keyword or group of attributes. tag: its DICOM tag. ps3_15: the action of the Basic Profile in table
            E.1-1 (D dummy, Z empty or dummy, X remove, U new UID, C clean; "-" not listed there, so kept).
        here: "keep" (through a vocabulary or as a number), "hash" (HMAC-SHA-256), "pixels" or "remove".
        leaves_as: column of the shards, None where nothing leaves.
    """

    attribute: str
    tag: str
    ps3_15: str
    here: str
    leaves_as: str | None
    how: str


POLICY: tuple[Rule, ...] = (
    Rule("Manufacturer", "(0008,0070)", "-", "keep", "maker", "a maker of makers.MAKERS, else 'other'"),
    Rule("ManufacturerModelName", "(0008,1090)", "-", "keep", "model", "a family of makers.MODELS, else 'other'"),
    Rule("TransducerData", "(0018,5010)", "-", "keep", "transducer", "a catalogue name of the form C5-1 or 9L-D"),
    Rule("TransducerType", "(0018,6031)", "-", "keep", "transducer", "the terms that PS3.3 enumerates"),
    Rule("FrameTime, CineRate, RecommendedDisplayFrameRate", "(0018,1063) (0018,0040) (0008,2144)", "-", "keep",
         "frame_rate", "a number, frames a second"),
    Rule("SequenceOfUltrasoundRegions", "(0018,6011)", "-", "keep", "spacing_mm, geometry", "numbers, where believed"),
    Rule("PixelSpacing", "(0028,0030)", "-", "keep", "spacing_mm", "numbers, mm"),
    Rule("BodyPartExamined, AnatomicRegionSequence", "(0018,0015) (0008,2218)", "-", "keep", "organ",
         "a key of organs.ORGANS, else 'unknown'"),
    Rule("StudyDescription, SeriesDescription", "(0008,1030) (0008,103E)", "X", "keep", "organ",
         "the text stays; only the organ that it names leaves, as a key of organs.ORGANS"),
    Rule("PatientID, IssuerOfPatientID", "(0010,0020) (0010,0021)", "Z, X", "hash", "patient", "keyed hash of both"),
    Rule("StudyInstanceUID", "(0020,000D)", "U", "hash", "study", "keyed hash; the patient's too without a PatientID"),
    Rule("file and folder names", "-", "-", "hash", "clip, input", "keyed hash; the map stays in the private folder"),
    Rule("PixelData inside the scan region", "(7FE0,0010)", "-", "pixels", "image", "marks and text inpainted or dropped"),
    Rule("PixelData outside the scan region", "(7FE0,0010)", "-", "remove", None, "cut off or black (113101)"),
    Rule("PatientName, OtherPatientIDs, OtherPatientNames", "(0010,0010) (0010,1000) (0010,1001)", "Z, X, X", "remove",
         None, ""),
    Rule("PatientBirthDate, PatientAge, PatientSex, PatientSize, PatientWeight",
         "(0010,0030) (0010,1010) (0010,0040) (0010,1020) (0010,1030)", "Z, X, Z, X, X", "remove", None, ""),
    Rule("PatientAddress, PatientTelephoneNumbers, PatientComments", "(0010,1040) (0010,2154) (0010,4000)", "X", "remove",
         None, ""),
    Rule("StudyDate, SeriesDate, ContentDate, AcquisitionDateTime and every other date or time",
         "(0008,0020) (0008,0021) (0008,0023) (0008,002A)", "Z, X/D, Z/D, X/Z/D", "remove", None, ""),
    Rule("AccessionNumber, StudyID", "(0008,0050) (0020,0010)", "Z", "remove", None, ""),
    Rule("InstitutionName, InstitutionAddress, StationName, DeviceSerialNumber",
         "(0008,0080) (0008,0081) (0008,1010) (0018,1000)", "X/Z/D, X, X/Z/D, X/Z/D", "remove", None, ""),
    Rule("ReferringPhysicianName, PerformingPhysicianName, OperatorsName", "(0008,0090) (0008,1050) (0008,1070)",
         "Z, X, X/Z/D", "remove", None, ""),
    Rule("SOPInstanceUID, SeriesInstanceUID, FrameOfReferenceUID", "(0008,0018) (0020,000E) (0020,0052)", "U", "remove",
         None, ""),
    Rule("ImageComments, ProtocolName, and every other free text", "(0020,4000) (0018,1030)", "X, X/D", "remove", None, ""),
    Rule("overlay data and comments", "(60xx,3000) (60xx,4000)", "X", "remove", None, "never burned in (113103)"),
    Rule("private attributes", "(gggg,eeee), gggg odd", "X", "remove", None, ""),
    Rule("sequences, at any depth", "-", "-", "remove", None, "but for the two sequences named above"),
)  # fmt: skip

# What anonymisers write for everybody: one "patient" of thousands would put a whole hospital into one split.
PLACEHOLDERS = {
    "", "0", "anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "de identified", "none", "null", "na",
    "n a", "unknown", "unspecified", "patient", "patientid", "patient id", "removed", "test", "x", "xx", "xxx", "xxxx", "id",
}  # fmt: skip
MIN_KEY_BYTES = 16


class Pseudonyms:
    """Keyed hashes: HMAC-SHA-256 cut to 128 bits, 32 hex digits. Without the key nothing can be turned back or guessed."""

    def __init__(self, key: bytes):
        self._key = key

    def __call__(self, kind: str, *parts: str) -> str:
        """`kind` keeps a patient "1" apart from a study "1"."""
        text = "\0".join((kind, *parts)).encode("utf-8", "surrogateescape")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()[:32]

    @property
    def fingerprint(self) -> str:
        """Tells whether two runs have the same key, and nothing of the key."""
        return self("fingerprint")[:16]


def load_key(key_file: str | None, private_dir: Path) -> bytes:
    """The key: `key_file`, else the environment's URFM_KEY, else the private folder's, made there once.

    Raises:
        FileNotFoundError, ValueError: no such file; a key of fewer than 16 bytes.
    """
    if key_file is not None:
        path = Path(key_file)
        if not path.is_file():
            raise FileNotFoundError(
                f"--key_file {key_file}: no such file. To make one: openssl rand -hex 32 > {key_file}"
            )
        return _checked(path.read_bytes().strip(), f"--key_file {key_file}")
    if "URFM_KEY" in os.environ:  # set but empty is a mistake of the shell, not a wish for another key
        return _checked(os.environ["URFM_KEY"].strip().encode("utf-8", "surrogateescape"), "URFM_KEY")
    path = private_dir / "key"
    if not path.exists():
        temporary = private_dir / f".key-{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)
    return _checked(path.read_bytes().strip(), str(path))


def _checked(key: bytes, where: str) -> bytes:
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(
            f"{where}: a key of {len(key)} bytes can be guessed; at least {MIN_KEY_BYTES}: openssl rand -hex 32"
        )
    return key


def _text(header, keyword: str) -> str:
    """An attribute as text; hostile values never raise."""
    try:
        value = header.get(keyword)
        value = "\\".join(map(str, value)) if isinstance(value, (list, tuple, MutableSequence)) else value
        return "" if value is None else " ".join(str(value).split())
    except Exception:  # pydicom converts values as they are asked for, and raises many kinds
        return ""


def _number(header, keyword: str) -> float | None:
    try:
        value = float(header.get(keyword))
    except Exception:
        return None
    return value if math.isfinite(value) and value > 0 else None


def patient_of(header, input_hash: str, pseudonyms: Pseudonyms) -> str:
    """Who the images are of: PatientID, without one the study, without that the file."""
    patient, study = _text(header, "PatientID"), _text(header, "StudyInstanceUID")
    words = "".join(c if c.isalnum() else " " for c in patient.lower()).strip()
    if words.strip("0") and words not in PLACEHOLDERS:
        return pseudonyms("patient", patient, _text(header, "IssuerOfPatientID"))
    return pseudonyms("patient-of-study", study) if study else pseudonyms("patient-of-file", input_hash)


def study_of(header, pseudonyms: Pseudonyms) -> str | None:
    study = _text(header, "StudyInstanceUID")
    return pseudonyms("study", study) if study else None


def attributes_that_leave(header) -> dict[str, str | float | None]:
    """`maker`, `model`, `transducer` and `frame_rate` of a DICOM header, by POLICY; `frame_rate` in frames a second."""
    maker, model = _text(header, "Manufacturer"), _text(header, "ManufacturerModelName")
    milliseconds = _number(header, "FrameTime")
    rate = 1000 / milliseconds if milliseconds else None
    rate = rate or _number(header, "CineRate") or _number(header, "RecommendedDisplayFrameRate")
    return {
        "maker": known_maker(maker) if maker else None,
        "model": known_model(model) if model else None,
        "transducer": known_transducer(_text(header, "TransducerData"), _text(header, "TransducerType")),
        "frame_rate": round(rate, 3) if rate and rate < 10_000 else None,
    }
