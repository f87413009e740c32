# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Organs and body regions: one vocabulary for BodyPartExamined, coded anatomy, folder names and public data sets' labels.

Only a key of `ORGANS`, or "unknown", leaves this module: never a word of the text that was read, which may be a name.
Codes are SNOMED CT as DICOM uses them, and defined terms of Body Part Examined (0018,0015), both from DICOM PS3.16,
Annex L, "Correspondence of Anatomic Region Codes and Body Part Examined Defined Terms".
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


UNKNOWN = "unknown"

# How much a name tells. "Breast, skin" is a breast and "liver, abdomen" a liver: the narrower name wins.
ORGAN, TISSUE, REGION = 0, 1, 2

# Longest text that is looked at: real attributes have at most a few hundred characters, hostile ones megabytes.
_MAX_CHARS = 1024


@dataclass(frozen=True)
class Organ:
    """
    Attributes:
        key: what stands in the column `organ` of a corpus.
        name: for people.
        snomed: SNOMED CT code and the meaning that DICOM gives it.
        dicom_body_part: defined terms of Body Part Examined that mean it or a part of it.
        synonyms: words, or several words in a row, in the singular and in lower case.
        parts: SNOMED CT codes of its parts, which mean the same organ here.
        breadth: ORGAN, TISSUE (found in many organs) or REGION (holds several organs).
    """

    key: str
    name: str
    snomed: tuple[str, str]
    dicom_body_part: tuple[str, ...]
    synonyms: tuple[str, ...]
    parts: tuple[str, ...] = ()
    breadth: int = ORGAN


def _terms(text: str) -> tuple[str, ...]:
    return tuple(term.strip() for term in text.split(",") if term.strip())


def _organ(key, code, meaning, body_parts, synonyms, parts="", breadth=ORGAN) -> Organ:
    return Organ(
        key,
        key.replace("-", " "),
        (code, meaning),
        _terms(body_parts),
        _terms(key.replace("-", " ") + "," + synonyms),
        _terms(parts),
        breadth,
    )


_ALL = (
    _organ("thyroid", "69748006", "Thyroid", "THYROID", "thyroid gland, tirads, ti rads"),
    _organ("parathyroid", "111002", "Parathyroid", "PARATHYROID", "parathyroid gland"),
    _organ(
        "salivary-gland",
        "385294005",
        "Salivary gland",
        "PAROTID, SUBMANDIBULAR",
        "salivary, parotid, parotid gland, submandibular gland, sublingual gland",
        "45289007, 54019009",
    ),
    _organ(
        "breast",
        "76752008",
        "Breast",
        "BREAST",
        "mammary, mammary gland, fibroadenoma, birads, bi rads",
        "80248007, 73056007, 63762007",
    ),
    _organ(
        "heart",
        "80891009",
        "Heart",
        "HEART, LVENTRICLE, RVENTRICLE, LATRIUM, RATRIUM, CORONARYARTERY, CORONARYSINUS",
        "cardiac, heart muscle, cardiac muscle, myocardium, myocardial, pericardium, pericardial, echocardiogram, "
        "echocardiography, echocardiographic, left ventricle, right ventricle, left ventricular, right ventricular, "
        "left atrium, right atrium, mitral, mitral valve, tricuspid, tricuspid valve, aortic valve, pulmonary valve, "
        "coronary artery, coronary sinus, apical four chamber, apical two chamber, apical 4 chamber, apical 2 chamber, "
        "four chamber, two chamber, parasternal long axis, parasternal short axis, plax, psax, a2c, a3c, a4c, "
        "a5c, 2ch, 4ch, tte, tee",
        "87878005, 53085002, 82471001, 73829009, 41801008, 90219004",
    ),
    _organ("liver", "10200004", "Liver", "LIVER", "hepatic, liver lobe, steatosis, fatty liver", "303270005"),
    _organ("kidney", "64033007", "Kidney", "KIDNEY", "renal, renal pelvis, renal transplant", "25990002"),
    _organ("gallbladder", "28231008", "Gallbladder", "GALLBLADDER", "gall bladder, cholecystitis"),
    _organ(
        "bile-duct",
        "28273000",
        "Bile duct",
        "BILEDUCT, COMMONBILEDUCT, BILIARYTRACT",
        "common bile duct, biliary, biliary tract",
        "79741001, 34707002",
        TISSUE,
    ),
    _organ("pancreas", "15776009", "Pancreas", "PANCREAS, PANCREATICDUCT", "pancreatic, pancreatic duct", "69930009"),
    _organ("spleen", "78961009", "Spleen", "SPLEEN", "splenic"),
    _organ("adrenal", "23451007", "Adrenal gland", "ADRENAL", "adrenal gland, suprarenal gland"),
    _organ(
        "bladder",
        "89837001",
        "Bladder",
        "BLADDER, ENDOVESICAL, BLADDERURETHRA",
        "urinary bladder, bladder wall, vesical",
        "48367006, 110837003",
    ),
    _organ("prostate", "41216001", "Prostate", "PROSTATE, SEMVESICLE", "prostatic, trus, seminal vesicle", "64739004"),
    _organ(
        "uterus",
        "35039007",
        "Uterus",
        "UTERUS, ENDOMETRIUM",
        "uterine, uteri, womb, endometrium, endometrial, myometrium, myoma",
        "2739003, 110639002",
    ),
    _organ("cervix", "71252005", "Cervix", "CERVIX", "cervix uteri, uterine cervix, maternal cervix, cervical length"),
    _organ("ovary", "15497006", "Ovary", "OVARY", "ovarian, adnexa, adnexal, polycystic ovary, pcos"),
    _organ("placenta", "78067005", "Placenta", "PLACENTA", "placental"),
    _organ(
        "fetus",
        "83418008",
        "Fetus",
        "GESTSAC, AMNIOTICFLUID",
        "fetal, foetus, foetal, feti, embryo, obstetric, obstetrical, pregnancy, pregnant, gestation, gestational, "
        "gestational sac, amniotic, amniotic fluid, nuchal translucency, biparietal",
        "55460000, 77012006",
    ),
    _organ("lung", "39607008", "Lung", "LUNG", "pulmonary, pleura, pleural", "3120008, 86598002"),
    _organ(
        "carotid",
        "69105007",
        "Carotid Artery",
        "CAROTID, CCA, ICA, ECA",
        "carotid artery, carotid bulb, common carotid, internal carotid, external carotid, cca, intima media",
        "32062004, 86117002, 22286001, 21479005, 113263003, 65355003",
    ),
    _organ(
        "aorta",
        "15825003",
        "Aorta",
        "AORTA, ABDOMINALAORTA, THORACICAORTA, ASCAORTA, DESCAORTA, AORTICARCH",
        "aortic, abdominal aorta, thoracic aorta, aortic arch, aortic aneurysm",
        "7832008, 113262008, 54247002, 32672002, 57034009",
    ),
    _organ(
        "vessel",
        "59820001",
        "Blood Vessel",
        "ARTERY, VEIN, ENDOVASCULAR, INFVENACAVA, SVC, PORTALV, INTJUGULARV, EXTJUGV, SUBCLAVIANA, SUBCLAVIANV, "
        "VERTEBRALA, AXILLARYA, AXILLARYV, BRACHIALA, BRACHIALV, RADIALA, ULNARA, FEMORALA, FEMORALV, CFA, CFV, SFA, SFV, "
        "POPLITEALA, POPLITEALV, SAPHENOUSV, GSV, ILIACA, ILIACV",
        "blood vessel, vascular, artery, arterial, vein, venous, ivc, inferior vena cava, superior vena cava, vena cava, "
        "jugular, jugular vein, portal vein, pulmonary artery, pulmonary vein, arteriovenous fistula, dvt, phlebography",
        "51114001, 29092000, 64131007, 48345005, 32764006, 12123001",
        TISSUE,
    ),
    _organ("lymph-node", "59441001", "Lymph Node", "", "lymph gland, lymphadenopathy, nodal"),
    _organ(
        "muscle",
        "71616004",
        "Muscle",
        "",
        "muscular, skeletal muscle, multifidus, lumbar multifidus, gastrocnemius, biceps brachii, quadriceps, masseter, "
        "rectus femoris, vastus lateralis, tibialis anterior",
        "127954009, 91727004",
    ),
    _organ(
        "nerve",
        "84782009",
        "Peripheral nerve",
        "",
        "peripheral nerve, brachial plexus, median nerve, ulnar nerve, radial nerve, sciatic nerve, interscalene, plexus",
        "91728009, 36582005",
    ),
    _organ(
        "joint",
        "39352004",
        "Joint",
        "JOINT, KNEE, HIP, SHOULDER, ELBOW, WRIST, ANKLE, ACJOINT, SCJOINT, SIJOINT, TMJ, PATELLA",
        "musculoskeletal, msk, tendon, ligament, cartilage, synovium, synovitis, arthritis, rotator cuff, knee, hip, "
        "shoulder, elbow, wrist, ankle, patella, achilles, achilles tendon, patellar tendon",
        "72696002, 24136001, 16982005, 16953009, 74670003, 70258002, 13024002, 64234005",
    ),
    _organ(
        "spine", "421060004", "Spine", "SPINE, CSPINE, TSPINE, LSPINE, LSSPINE, SSPINE, SPINALCORD", "spinal, vertebra"
    ),
    _organ(
        "brain",
        "12738006",
        "Brain",
        "BRAIN, INTRACRANIAL, CEREBELLUM, CEREBHEMISPHERE, LATVENTRICLE, FONTANEL",
        "cerebral, cerebellum, cerebellar, intracranial, transcranial, neurosonography, choroid plexus, fontanelle, glioma",
        "119238007, 113305005, 372073000, 1101003",
    ),
    _organ(
        "eye",
        "81745001",
        "Eye",
        "EYE, ORBIT, EYELID, CORNEA, SCLERA",
        "eyeball, ocular, orbit, orbital, retina, retinal, optic nerve, ophthalmic, cornea, eyelid",
        "363654007, 371398005, 79652003, 40638003",
    ),
    _organ(
        "testis",
        "40689003",
        "Testis",
        "TESTIS, SCROTUM, EPIDIDYMIS",
        "testes, testicle, testicular, scrotum, scrotal, epididymis",
        "20233005, 87644002",
    ),
    _organ("skin", "39937001", "Skin", "", "dermis, dermal, cutaneous, subcutaneous, melanoma", breadth=TISSUE),
    _organ("appendix", "66754008", "Appendix", "APPENDIX", "appendicitis"),
    _organ("esophagus", "32849002", "Esophagus", "ESOPHAGUS", "oesophagus, esophageal, oesophageal"),
    _organ("stomach", "69695003", "Stomach", "STOMACH", "gastric"),
    _organ(
        "bowel",
        "113276009",
        "Intestine",
        "SMALLINTESTINE, LARGEINTESTINE, DUODENUM, JEJUNUM, ILEUM, COLON, ASCENDINGCOLON, DESCENDINGCOLON, "
        "TRANSVERSECOLON, SIGMOID, RECTUM",
        "intestine, intestinal, colon, colonic, duodenum, jejunum, ileum, sigmoid colon, rectum, intussusception",
        "14742008, 30315005, 71854001, 38848004, 21306003, 34516001, 34402009, 60184004",
    ),
    _organ(
        "gastrointestinal",
        "122865005",
        "Gastrointestinal tract",
        "",
        "gi, gastro intestinal, gi tract, digestive tract, gist, submucosal tumor, submucosal tumour",
        breadth=TISSUE,
    ),
    _organ(
        "abdomen",
        "818981001",
        "Abdomen",
        "ABDOMEN, MORISONSPOUCH, EPIGASTRIC, FLANK, RUQ, LUQ, RLQ, LLQ, RETROPERITONEUM",
        "abdominal, abd, morison pouch, morisons pouch, morrison pouch, morrisons pouch, "
        "right upper quadrant, left upper quadrant, fast exam, "
        "epigastrium, epigastric, peritoneum, retroperitoneum, ascites, ruq, luq, rlq, llq",
        "243977002, 50519007, 86367003, 48544008, 68505006",
        REGION,
    ),
    _organ(
        "pelvis", "816092008", "Pelvis", "PELVIS, CULDESAC, INGUINAL, PERINEUM", "pelvic, groin, inguinal", "", REGION
    ),
    _organ(
        "chest", "816094009", "Chest", "CHEST, THORAX, MEDIASTINUM", "thorax, thoracic", "43799004, 72410000", REGION
    ),
    _organ("neck", "45048000", "Neck", "NECK, SUPRACLAVICULAR", "", "", REGION),
    _organ("head", "69536005", "Head", "HEAD, SKULL, FACE", "skull, face", "89546000, 89545001", REGION),
    _organ(
        "extremity",
        "66019005",
        "Extremity",
        "EXTREMITY, LOWERLIMB, UPPERARM, FOREARM, HAND, FINGER, THIGH, LOWERLEG, CALF, FOOT, TOE, FEMUR, TIBIA, HUMERUS",
        "limb, arm, forearm, hand, finger, thigh, leg, calf, foot, toe, femur, tibia, humerus",
        "61685007, 40983000, 14975008, 85562004, 68367000, 30021000, 56459004, 71341001",
        REGION,
    ),
)

ORGANS: dict[str, Organ] = {organ.key: organ for organ in _ALL}

_CODES: dict[str, str] = {code: o.key for o in _ALL for code in (o.snomed[0], *o.parts)}


def _words(text: str) -> tuple[str, ...]:
    """Words in lower case without accents: "Gall_Bladder2" and "gallBladder 2" are ("gall", "bladder", "2")."""
    text = unicodedata.normalize("NFKD", text[:_MAX_CHARS])
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower().replace("'s", "s")
    # A letter of another alphabet is part of its word: "\u0430liver" is not a liver.
    return tuple(re.findall(r"[0-9]+|[^\W\d_]+", text))


def _plurals(words: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    last = words[-1]
    yield words
    yield (*words[:-1], last + "s")
    if last.endswith("y"):
        yield (*words[:-1], last[:-1] + "ies")
    if last.endswith(("s", "x")):
        yield (*words[:-1], last + "es")


def _synonym_index() -> dict[tuple[str, ...], str]:
    index = {}
    for organ in _ALL:
        for term in (*organ.dicom_body_part, *organ.synonyms):
            for words in _plurals(_words(term.lower())):
                if index.setdefault(words, organ.key) != organ.key:
                    raise ValueError(f"{' '.join(words)!r} names both {index[words]} and {organ.key}")
    return index


_INDEX = _synonym_index()
_LONGEST = max(len(words) for words in _INDEX)


def _named(text: str) -> set[str]:
    """Keys of every organ that `text` names. The longest name is taken at each word: "gall bladder" is no bladder."""
    words, keys, i = _words(text), set(), 0
    while i < len(words):
        for length in range(min(_LONGEST, len(words) - i), 0, -1):
            key = _INDEX.get(words[i : i + length])
            if key:
                keys.add(key)
                i += length - 1
                break
        i += 1
    return keys


def _decide(keys: set[str]) -> str:
    # Whatever part of a fetus is shown, it is a fetus: its heart isn't a heart for a model of hearts.
    if "fetus" in keys:
        return "fetus"
    for breadth in (ORGAN, TISSUE, REGION):
        at = [key for key in keys if ORGANS[key].breadth == breadth]
        if at:
            return at[0] if len(at) == 1 else UNKNOWN
    return UNKNOWN


def find_organ(*texts: str | None) -> str:
    """The organ that the texts name together, by whole words; "unknown" for none, and for two that contradict.

    >>> find_organ("US_BREASTS"), find_organ("Liverpool"), find_organ("Liver", "ABDOMEN"), find_organ("liver, kidney")
    ('breast', 'unknown', 'liver', 'unknown')
    """
    return _decide(set().union(*(_named(text) for text in texts if isinstance(text, str))))


@functools.lru_cache(maxsize=1)
def _codes_of_older_scheme() -> dict[str, str]:
    """SNOMED RT codes ("T-B6000"), which older machines write, as SNOMED CT codes; from pydicom's table."""
    try:
        from pydicom.sr._snomed_dict import mapping
    except ImportError:
        return {}
    return mapping.get("SRT", {})


def organ_of_code(value: str, scheme: str) -> str:
    """The organ of a code in the coding scheme SCT, SRT, SNM3 or 99SDM; "unknown" for every other."""
    value, scheme = str(value).strip(), str(scheme).strip().upper()
    if scheme in ("SRT", "SNM3", "99SDM"):
        value = _codes_of_older_scheme().get(value, "")
    elif scheme != "SCT":
        return UNKNOWN
    return _CODES.get(value, UNKNOWN)


def _values(dataset: Any, keyword: str) -> list:
    """Values of an attribute, at most 16; [] when it is missing, empty or can't be decoded."""
    # A hostile value may raise anything here, as pydicom converts values when they are read.
    try:
        value = dataset.get(keyword)
        if value is None or isinstance(value, (str, bytes)):
            return [value] if isinstance(value, str) else []
        return list(value[:16])
    except Exception:
        return []


def _coded(dataset: Any, keyword: str) -> set[str]:
    """Organs that a code sequence names: by code, else by the code's meaning."""
    keys = set()
    for item in _values(dataset, keyword):
        code = _values(item, "CodeValue") or _values(item, "LongCodeValue") or [""]
        scheme = _values(item, "CodingSchemeDesignator") or [""]
        key = organ_of_code(code[0], scheme[0])
        if key != UNKNOWN:
            keys.add(key)
        else:
            for meaning in _values(item, "CodeMeaning"):
                keys |= _named(str(meaning))
    return keys


def organ_of_header(dataset: Any) -> str:
    """The organ of a DICOM object: coded anatomy first, then BodyPartExamined, then the descriptions.

    The first attribute that names an organ decides, and if it names two, nobody knows which; one that names only a
    tissue or a region ("ABDOMEN") gives way to a later one that names an organ. Descriptions are free text: they are
    read, and only a key of `ORGANS` leaves. Never raises.
    """
    general: set[str] = set()
    for keyword, named in _ATTRIBUTES:
        keys = named(dataset, keyword)
        if any(ORGANS[key].breadth == ORGAN for key in keys):
            return _decide(keys)
        general = general or keys
    return _decide(general)


def _described(dataset: Any, keyword: str) -> set[str]:
    return set().union(*(_named(str(value)) for value in _values(dataset, keyword)))


# In order of trust, with how each is read.
_ATTRIBUTES = (
    ("AnatomicRegionSequence", _coded),
    ("PrimaryAnatomicStructureSequence", _coded),
    ("BodyPartExamined", _described),
    ("SeriesDescription", _described),
    ("ProtocolName", _described),
    ("StudyDescription", _described),
)
