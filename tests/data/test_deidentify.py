import os
import re
import stat

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_urfm.data.deidentify import (
    POLICY,
    Pseudonyms,
    attributes_that_leave,
    load_key,
    patient_of,
    study_of,
)
from modeling_urfm.data.makers import MAKERS, MODELS, TRANSDUCER_TYPES, known_maker, known_model, known_transducer
from modeling_urfm.data.shards import COLUMNS


PSEUDONYMS = Pseudonyms(b"k" * 32)


def header(**values) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def test_every_column_of_a_shard_has_a_rule_or_is_made_here():
    leaves = {column.strip() for rule in POLICY if rule.leaves_as for column in rule.leaves_as.split(",")}
    made_here = {"label", "view", "source", "licence", "frame", "mode", "pixel_hash", "perceptual_hash"}
    assert set(COLUMNS) - leaves == made_here
    assert leaves - set(COLUMNS) == {"input"}  # the manifest's


def test_rules_name_attributes_that_dicom_has():
    for rule in POLICY:
        for keyword in re.findall(r"\b[A-Z][a-z]+(?:[A-Z][A-Za-z]*)+\b", rule.attribute):
            if keyword in ("PixelData",) or rule.attribute[0].isupper():
                tag = pydicom.datadict.tag_for_keyword(keyword)
                assert tag is not None, keyword
                shown = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
                assert shown in rule.tag or "every" in rule.attribute, (keyword, shown)


@pytest.mark.parametrize("here", ["remove"])
def test_what_is_removed_leaves_as_nothing(here):
    assert all(rule.leaves_as is None for rule in POLICY if rule.here == here)


def test_hashes_are_keyed_and_kinds_kept_apart():
    assert PSEUDONYMS("patient", "1") != Pseudonyms(b"x" * 32)("patient", "1")
    assert PSEUDONYMS("patient", "1") != PSEUDONYMS("study", "1")
    assert PSEUDONYMS("patient", "1", "2") != PSEUDONYMS("patient", "12", "")
    assert re.fullmatch("[0-9a-f]{32}", PSEUDONYMS("patient", "Müller\udcff"))


def test_patient_is_the_id_else_the_study_else_the_file():
    a = patient_of(header(PatientID="123", StudyInstanceUID="1.2"), "file1", PSEUDONYMS)
    assert a == patient_of(header(PatientID="123", StudyInstanceUID="1.3"), "file2", PSEUDONYMS)
    assert a != patient_of(header(PatientID="123", IssuerOfPatientID="other hospital"), "file1", PSEUDONYMS)
    b = patient_of(header(PatientID="", StudyInstanceUID="1.2"), "file1", PSEUDONYMS)
    assert b == patient_of(header(StudyInstanceUID="1.2"), "file2", PSEUDONYMS)
    assert b not in (a, study_of(header(StudyInstanceUID="1.2"), PSEUDONYMS))
    assert patient_of(header(), "file1", PSEUDONYMS) != patient_of(header(), "file2", PSEUDONYMS)


@pytest.mark.parametrize("placeholder", ["ANONYMOUS", "anon", "0000", " ", "De-Identified", "N/A", "XXXX"])
def test_what_anonymisers_write_for_everybody_is_no_patient(placeholder):
    one = patient_of(header(PatientID=placeholder, StudyInstanceUID="1.2"), "f", PSEUDONYMS)
    assert one != patient_of(header(PatientID=placeholder, StudyInstanceUID="1.3"), "f", PSEUDONYMS)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\\"), max_size=40)


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_only_words_of_the_vocabularies_leave(maker, model, data, kind):
    assert known_maker(maker) in {*MAKERS, "other"}
    assert known_model(model) in {*MODELS, "other"}
    transducer = known_transducer(data, kind)
    assert transducer is None or transducer in TRANSDUCER_TYPES.values() or len(re.findall("[A-Z]", transducer)) <= 5
    assert transducer is None or re.fullmatch(r"[a-z ]+|(?=.*\d)[A-Z0-9-]{2,9}", transducer)


@pytest.mark.parametrize(
    "value, known",
    [
        ("G.E. Medical Systems", "GE"),
        ("Philips Medical Systems", "Philips"),
        ("TOSHIBA_MEC_US", "Canon"),
        ("George Smith", "other"),
    ],
)
def test_makers(value, known):
    assert known_maker(value.replace("_", " ")) == known


@pytest.mark.parametrize(
    "value, known",
    [
        ("LOGIQE9", "LOGIQ E9"),
        ("EPIQ 7C", "EPIQ 7"),
        ("Vivid E95", "Vivid E95"),
        ("ACUSON S2000", "S2000"),
        ("SMITH^JOHN", "other"),
    ],
)
def test_models(value, known):
    assert known_model(value) == known


def test_attributes_and_hostile_ones():
    leaves = attributes_that_leave(header(
        Manufacturer="GE Healthcare", ManufacturerModelName="LOGIQE9", TransducerData=["9L-D", "UNUSED"], FrameTime="40",
        PatientName="Doe^Jane", InstitutionName="St. Mary",
    ))  # fmt: skip
    assert leaves == {"maker": "GE", "model": "LOGIQ E9", "transducer": "9L-D", "frame_rate": 25.0}
    hostile = pydicom.Dataset()
    hostile.add_new(0x00180040, "LO", "Doe^Jane")
    hostile.add_new(0x00080070, "UN", b"\xff\xfeDoe")
    assert attributes_that_leave(hostile) == {"maker": "other", "model": None, "transducer": None, "frame_rate": None}


def test_key_is_made_once_and_private(tmp_path, monkeypatch):
    monkeypatch.delenv("URFM_KEY", raising=False)
    first = load_key(None, tmp_path)
    assert load_key(None, tmp_path) == first and len(first) == 64
    assert stat.S_IMODE(os.stat(tmp_path / "key").st_mode) == 0o600


def test_key_file_wins_over_environment_over_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("a" * 32 + "\n")
    monkeypatch.setenv("URFM_KEY", "b" * 32)
    assert load_key(str(tmp_path / "mine"), tmp_path) == b"a" * 32
    assert load_key(None, tmp_path) == b"b" * 32
    assert not (tmp_path / "key").exists()
    monkeypatch.setenv("URFM_KEY", "short")
    with pytest.raises(ValueError, match="URFM_KEY: a key of 5 bytes"):
        load_key(None, tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_key(str(tmp_path / "none"), tmp_path)
