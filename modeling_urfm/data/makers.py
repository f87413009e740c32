# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Names of makers, scanners and transducers that may leave: vocabularies, because these attributes are free text in DICOM
and hospitals have written names of rooms and people into them. What is not in a vocabulary becomes "other"."""

import re


# Maker -> words by which Manufacturer names it.
MAKERS: dict[str, tuple[str, ...]] = {
    "GE": ("ge", "g e", "gems", "general electric", "vingmed", "kretztechnik", "kretz"),
    "Philips": ("philips", "atl"),
    "Siemens": ("siemens", "acuson"),
    "Canon": ("canon", "toshiba"),
    "Samsung": ("samsung", "medison"),
    "Mindray": ("mindray",),
    "SonoSite": ("sonosite",),
    "Hitachi": ("hitachi", "aloka", "fujifilm"),
    "Esaote": ("esaote",),
    "SuperSonic Imagine": ("supersonic", "hologic"),
    "BK Medical": ("bk", "b k", "analogic"),
    "Butterfly": ("butterfly",),
    "Clarius": ("clarius",),
    "Ultrasonix": ("ultrasonix",),
    "Zonare": ("zonare",),
    "Terason": ("terason", "teratech"),
    "Verasonics": ("verasonics",),
    "SonoScape": ("sonoscape",),
    "Chison": ("chison",),
    "Alpinion": ("alpinion",),
    "Edan": ("edan",),
    "Vinno": ("vinno",),
    "Telemed": ("telemed",),
    "Konica Minolta": ("konica",),
    "Healcerion": ("healcerion",),
    "Shimadzu": ("shimadzu",),
    "Volcano": ("volcano",),
    "Boston Scientific": ("boston scientific",),
}

# Families of scanners; ManufacturerModelName is cut to the longest of these that it begins with.
MODELS: tuple[str, ...] = tuple(
    name.strip()
    for line in """
    LOGIQ 3, LOGIQ 5, LOGIQ 7, LOGIQ 9, LOGIQ 400, LOGIQ 500, LOGIQ 700, LOGIQ e, LOGIQ i, LOGIQ E9, LOGIQ E10, LOGIQ E20
    LOGIQ F6, LOGIQ F8, LOGIQ P5, LOGIQ P6, LOGIQ P7, LOGIQ P9, LOGIQ P10, LOGIQ S7, LOGIQ S8, LOGIQ V2, LOGIQ V5, LOGIQ Fortis
    Vivid 3, Vivid 4, Vivid 5, Vivid 7, Vivid e, Vivid i, Vivid q, Vivid iq, Vivid E9, Vivid E80, Vivid E90, Vivid E95
    Vivid S5, Vivid S6, Vivid S60, Vivid S70, Vivid T8, Vivid T9, Voluson 730, Voluson E6, Voluson E8, Voluson E10
    Voluson E22, Voluson S6, Voluson S8, Voluson S10, Voluson P6, Voluson P8, Voluson i, Voluson e, Voluson SWIFT
    Venue, Venue 40, Venue 50, Venue Go, Venue Fit, Vscan, Vscan Air, Versana, System Five, EchoPAC, Invenia ABUS
    EPIQ 5, EPIQ 7, EPIQ Elite, EPIQ CVx, Affiniti 30, Affiniti 50, Affiniti 70, iU22, iE33, HD3, HD5, HD6, HD7, HD8, HD9, HD11
    HD15, HDI 1500, HDI 3000, HDI 3500, HDI 4000, HDI 5000, CX30, CX50, Sparq, ClearVue 350, ClearVue 550, ClearVue 650
    ClearVue 850, Lumify, EnVisor, SONOS 5500, SONOS 7500, SONOS, InnoSight, QLAB
    S1000, S2000, S3000, SC2000, Sequoia, Sequoia 512, X150, X300, X500, X600, X700, NX2, NX3, P300, P500, Antares, Juniper
    Redwood, Maple, Freestyle, Aspen, Cypress, CV70, Prime, Sonoline, Sonoline G50, Sonoline G60, Sonoline Elegra
    Aplio, Aplio 300, Aplio 400, Aplio 500, Aplio i600, Aplio i700, Aplio i800, Aplio i900, Aplio a450, Aplio a550, Aplio XG
    Aplio MX, Aplio Artida, Artida, Xario, Xario 100, Xario 200, Xario XG, Nemio, Viamo, SSA-660A, SSA-700A, SSA-770A, SSA-790A
    TUS-A300, TUS-A400, TUS-A500, TUS-AI700, TUS-AI800, TUS-AI900, TUS-X100, TUS-X200
    RS80A, RS85, HS30, HS40, HS50, HS60, HS70A, WS80A, UGEO, H60, HM70A, HM70, PT60A, V7, V8, HERA W9, HERA W10
    Accuvix XG, Accuvix V10, Accuvix V20, Accuvix A30, Accuvix XQ, SonoAce R3, SonoAce R5, SonoAce R7, SonoAce X4, SonoAce X6
    SonoAce X8, EKO 7, MySono
    DC-3, DC-6, DC-7, DC-8, DC-30, DC-40, DC-60, DC-70, DC-80, DC-90, DP-10, DP-20, DP-30, DP-50, DP-6600, Resona 6, Resona 7
    Resona 8, Resona 9, Resona I9, Resona R9, M5, M6, M7, M8, M9, M11, TE5, TE7, TE9, Z5, Z6, ZS3, Consona N9, Nuewa
    M-Turbo, Turbo, Edge, Edge II, X-Porte, MicroMaxx, NanoMaxx, S-Nerve, S-FAST, S-ICU, S-Cath, iViz, PX, Sonosite ST, TITAN
    180PLUS
    Preirus, Ascendus, Avius, Noblus, Arietta 50, Arietta 60, Arietta 65, Arietta 70, Arietta 750, Arietta 850, Arietta V60
    Arietta V70, EUB-5500, EUB-6500, EUB-7500, EUB-8500, ProSound Alpha 5, ProSound Alpha 6, ProSound Alpha 7
    ProSound Alpha 10, ProSound F37, ProSound F75, SSD-1400, SSD-3500, SSD-4000, SSD-5000, SSD-5500
    MyLab 15, MyLab 20, MyLab 25, MyLab 30, MyLab 40, MyLab 50, MyLab 60, MyLab 70, MyLab 90, MyLab Alpha, MyLab Gamma
    MyLab Twice, MyLab Class C, MyLab Five, MyLab Six, MyLab Seven, MyLab Eight, MyLab 9, MyLab X5, MyLab X7, MyLab X8, MyLab X9
    Aixplorer, Aixplorer MACH 20, Aixplorer MACH 30, bk3000, bk5000, Flex Focus, Pro Focus, Specto, iQ, iQ+, iQ3
    C3, C7, L7, L15, L20, PA HD3, C3 HD3, L7 HD3, L15 HD3, SonixTouch, SonixTablet, SonixRP, SonixMDP, SonixOne, SonixSP
    z.one, z.one PRO, t3000, uSmart 3200T, uSmart 3300, Vantage 64, Vantage 128, Vantage 256, S2, S8, S9, S11, S20, S22, S40, S50
    E-CUBE 7, E-CUBE 8, E-CUBE 9, E-CUBE 12, E-CUBE 15, U50, U60, QBit, EBit, SonoBook, ECO, ArtUS, SONIMAGE HS1, SONIMAGE MX1
    SONON 300
    """.strip().splitlines()
    for name in line.split(",")
)
# Enumerated in PS3.3 C.8.5.6 (TransducerType) plus what scanners write.
TRANSDUCER_TYPES = {
    "SECTOR_PHASED": "sector phased", "SECTOR_MECH": "sector mechanical", "SECTOR_ANNULAR": "sector annular",
    "LINEAR": "linear", "CURVED LINEAR": "curved linear", "CURVED_LINEAR": "curved linear", "SINGLE CRYSTAL": "single crystal",
    "SPLIT XTAL CWD": "split crystal", "IV_PHASED": "intravascular phased", "IV_ROT XTAL": "intravascular rotating",
    "IV_ROT MIRROR": "intravascular mirror", "ENDOCAV_PA": "endocavity phased", "ENDOCAV_MECH": "endocavity mechanical",
    "ENDOCAV_CLA": "endocavity curved", "ENDOCAV_AA": "endocavity annular", "ENDOCAV_LINEAR": "endocavity linear",
    "VECTOR_PHASED": "vector phased",
}  # fmt: skip
# C5-1, L12-5, 9L-D, 3S-RS, P4-2, VF13-5: at most three letters on either side, so no name fits.
TRANSDUCER_NAME = re.compile(r"[A-Z]{1,3}\d{1,2}(?:-\d{1,2}[A-Z]{0,2})?|\d{1,2}[A-Z]{1,2}(?:-[A-Z]{1,2})?")


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+]+", text.lower()))


def known_maker(text: str) -> str:
    """The maker that a Manufacturer value names; "other" for any that is not in the vocabulary."""
    words = f" {_words(text)} "
    return next((maker for maker, names in MAKERS.items() if any(f" {name} " in words for name in names)), "other")


_MODEL_WORDS = sorted(((_words(name).replace(" ", ""), name) for name in MODELS), key=lambda pair: -len(pair[0]))
_MAKER_WORDS = {word for names in MAKERS.values() for name in names for word in name.split()} | {
    "healthcare", "medical", "systems", "ultrasound", "acuson",
}  # fmt: skip


def known_model(text: str) -> str:
    """The family that a ManufacturerModelName begins with; "other" for any that is not in the vocabulary."""
    text = "".join(word for word in _words(text).split() if word not in _MAKER_WORDS)
    for start, name in _MODEL_WORDS:
        rest = text[len(start) :]
        # "logiqe9xdclear" is a LOGIQ E9, but "logiqe95" is none.
        if text.startswith(start) and not (start[-1:].isdigit() and rest[:1].isdigit()):
            return name
    return "other"


def known_transducer(data: str, kind: str) -> str | None:
    """The transducer's catalogue name from TransducerData, else its TransducerType; None where neither is of a known form."""
    for part in re.split(r"[\\,;\s]+", data.upper()):
        if TRANSDUCER_NAME.fullmatch(part):
            return part
    return TRANSDUCER_TYPES.get(kind.strip().upper())
