# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr._concepts_dict import concepts

from modeling_urfm.data import organs
from modeling_urfm.data.organs import ORGANS, UNKNOWN, find_organ, organ_of_code, organ_of_header
from modeling_urfm.data.phantoms import ORGANS as PHANTOM_ORGANS
from modeling_urfm.data.public import PUBLIC


# SNOMED CT concepts that no DICOM context group holds, so pydicom's table doesn't either.
NOT_IN_PYDICOM = {"fetus": "83418008", "gastrointestinal": "122865005", "bowel": "113276009"}


def _pydicom_meanings() -> dict[str, set[str]]:
    meanings: dict[str, set[str]] = {}
    for entry in concepts["SCT"].values():
        for code, (meaning, _) in entry.items():
            meanings.setdefault(code, set()).add(meaning.lower())
    return meanings


def _verhoeff_ok(code: str) -> bool:
    """The check digit that every SNOMED CT identifier ends in."""

    def multiply(a: int, b: int) -> int:
        # In the dihedral group of order 10 a rotation is below 5, a reflection from 5 on.
        if a < 5:
            return (a + b) % 5 if b < 5 else 5 + (a + b - 5) % 5
        return 5 + (a - 5 - b) % 5 if b < 5 else (a - b) % 5

    swap = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    check = 0
    for i, digit in enumerate(reversed(code)):
        digit = int(digit)
        for _ in range(i % 8):
            digit = swap[digit]
        check = multiply(check, digit)
    return check == 0


@pytest.mark.parametrize("key", ORGANS)
def test_every_code_is_snomed_ct_as_dicom_uses_it(key):
    organ = ORGANS[key]
    code, meaning = organ.snomed
    if key in NOT_IN_PYDICOM:
        assert code == NOT_IN_PYDICOM[key] and code not in _pydicom_meanings()
    else:
        assert meaning.lower() in _pydicom_meanings()[code]
    assert all(_verhoeff_ok(c) for c in (code, *organ.parts))
    assert organ_of_code(code, "SCT") == key


def test_codes_of_parts_mean_what_they_are_listed_under():
    meanings = _pydicom_meanings()
    wrong, absent = {}, set()
    for organ in ORGANS.values():
        for code in organ.parts:
            if code not in meanings:
                absent.add(code)
            elif not any(find_organ(m) == organ.key for m in meanings[code]):
                wrong[code] = (organ.key, meanings[code])
    assert not wrong
    assert absent == {"55460000"}  # fetal structure


def test_a_wrong_check_digit_is_seen():
    assert _verhoeff_ok("76752008") and not _verhoeff_ok("76752009") and not _verhoeff_ok("76725008")


def test_keys_are_unique_and_of_one_form():
    assert len(ORGANS) == len(organs._ALL) and len(organs._CODES) == sum(1 + len(o.parts) for o in organs._ALL)
    assert all(key == key.lower() and " " not in key and key != UNKNOWN for key in ORGANS)
    # Body Part Examined is a CS: at most 16 characters of capitals, digits, space and underscore.
    assert all(len(t) <= 16 and t == t.upper() and t.isalnum() for o in ORGANS.values() for t in o.dicom_body_part)


def test_every_name_code_and_synonym_finds_its_organ():
    for organ in ORGANS.values():
        for text in (organ.key, organ.name, organ.snomed[1], *organ.dicom_body_part, *organ.synonyms):
            assert find_organ(text) == find_organ(text.upper()) == find_organ(text.replace(" ", "_")) == organ.key, text


def test_phantoms_and_public_data_sets_are_covered():
    assert set(PHANTOM_ORGANS) <= set(ORGANS)
    assert {organ for dataset in PUBLIC.values() for organ in dataset.organs} <= set(ORGANS)
    columns = "thyroid breast heart liver kidney gallbladder gastro-intestinal ovary uterus prostate lung nerve muscle"
    for organ in (*columns.split(), "fetus", "pancreas", "brain", "carotid artery"):
        assert find_organ(organ) != UNKNOWN


@pytest.mark.parametrize(
    "text, organ",
    [
        ("BREASTS", "breast"),
        ("Liverpool", UNKNOWN),
        ("St_Oliver_Hospital", UNKNOWN),
        ("GallBladder2", "gallbladder"),
        ("gall bladder", "gallbladder"),
        ("US ABDOMEN LIVER", "liver"),
        ("liver and kidney", UNKNOWN),
        ("THYROID / NECK", "thyroid"),
        ("chest/abdomen", UNKNOWN),
        ("fetal heart", "fetus"),
        ("fœtus FOETAL brain", "fetus"),
        ("ovaries", "ovary"),
        ("testes", "testis"),
        ("kidney's", "kidney"),
        ("UTÉRUS", "uterus"),
        ("morisons_pouch", "abdomen"),
        ("pulmonary artery", "vessel"),
        ("renal artery", "kidney"),
        ("optic nerve", "eye"),
        ("cervical lymph nodes", "lymph-node"),
        ("4CH", "heart"),
        ("breast skin", "breast"),
        ("head of pancreas", "pancreas"),
        ("\u0430liver", UNKNOWN),
        ("", UNKNOWN),
        ("Smith^John 1961-04-03", UNKNOWN),
    ],
)
def test_matches_whole_words(text, organ):
    assert find_organ(text) == organ


def test_several_texts_are_read_together():
    assert find_organ("ABDOMEN", "Liver", None) == "liver"
    assert find_organ("liver", "kidney") == UNKNOWN
    assert find_organ() == UNKNOWN


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=200), st.none(), st.integers(), st.binary(max_size=20)), max_size=4))
def test_only_keys_leave(texts):
    assert find_organ(*texts) in {*ORGANS, UNKNOWN}


def test_long_texts_cost_nothing():
    assert find_organ("x " * 10_000_000) == UNKNOWN


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _header(**values) -> Dataset:
    header = Dataset()
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return header


def test_header_trusts_codes_first():
    thyroid = Sequence([_code("69748006", "SCT", "x")])
    assert organ_of_header(_header(AnatomicRegionSequence=thyroid, BodyPartExamined="BREAST")) == "thyroid"
    assert organ_of_header(_header(AnatomicRegionSequence=Sequence([_code("T-62000", "SRT", "")]))) == "liver"
    assert organ_of_header(_header(AnatomicRegionSequence=Sequence([_code("9", "99GE", "Left breast")]))) == "breast"
    # The same digits in a hospital's own scheme mean something else.
    assert organ_of_header(_header(AnatomicRegionSequence=Sequence([_code("69748006", "L", "")]))) == UNKNOWN
    assert organ_of_header(_header(BodyPartExamined="LVENTRICLE")) == "heart"
    assert organ_of_header(_header(BodyPartExamined="BREAST", StudyDescription="Liver of Mr Miller")) == "breast"
    assert organ_of_header(_header(StudyDescription="MILLER^ANNA Schilddrüse US thyroid")) == "thyroid"
    assert organ_of_header(_header(PatientName="Liver^John")) == UNKNOWN


def test_header_region_gives_way_and_contradiction_ends_the_search():
    abdomen = Sequence([_code("818981001", "SCT", "Abdomen")])
    liver = Sequence([_code("10200004", "SCT", "Liver")])
    both = Sequence([_code("10200004", "SCT", "Liver"), _code("64033007", "SCT", "Kidney")])
    assert organ_of_header(_header(AnatomicRegionSequence=abdomen, PrimaryAnatomicStructureSequence=liver)) == "liver"
    assert organ_of_header(_header(BodyPartExamined="ABDOMEN", SeriesDescription="kidneys")) == "kidney"
    assert organ_of_header(_header(BodyPartExamined="ABDOMEN", StudyDescription="US")) == "abdomen"
    assert organ_of_header(_header(AnatomicRegionSequence=both, StudyDescription="liver")) == UNKNOWN


class _Hostile:
    def get(self, keyword, default=None):
        raise RuntimeError(keyword)


def test_hostile_headers_never_raise():
    broken = Dataset()
    broken[0x00080104] = pydicom.DataElement(0x00080104, "OB", b"\xff\x00liver")
    strange = [
        *(None, 1, "liver", b"liver", [], {}, np.zeros(3), _Hostile(), Dataset()),
        _header(BodyPartExamined=["LIVER", "LIVER"]),
        _header(AnatomicRegionSequence=Sequence([Dataset(), broken])),
        {"AnatomicRegionSequence": [_Hostile(), None, "liver"], "BodyPartExamined": b"\xff"},
        {"AnatomicRegionSequence": "liver", "StudyDescription": 7},
        {"BodyPartExamined": ["x" * 10_000_000] * 1000},
    ]
    assert all(organ_of_header(header) in {*ORGANS, UNKNOWN} for header in strange)
    assert organ_of_header(_header(BodyPartExamined=["LIVER", "LIVER"])) == "liver"
