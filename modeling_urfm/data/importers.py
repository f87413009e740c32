# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What the published layout of a public data set says of each of its images; a small function for each data set.

    annotate(names, read) -> {name: Annotation}

`names` are the files of the data set, POSIX paths relative to where the user unpacked it (or of a zip's members), and
`read(name)` gives a file's content. A folder more or less at the top doesn't matter: only the ends of paths are looked
at. Every image, video and volume among `names` gets an Annotation; side files don't. Labels and views come from closed
lists, so that nothing else that stands in a side file can leave with them; patients are hashed by the caller.

A layout that doesn't fit raises ValueError, which says what is missing and what was expected. An image that a data
set's table doesn't list is annotated without a label.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from .annotations import (
    LABEL_MAP,
    Annotation,
    Read,
    complete,
    decode_text,
    find_side_files,
    image_paths,
    is_leftover,
    misfit,
    one_of,
    read_rows,
    read_table,
    whole_number,
)


# ---- breast

TUMOUR_LABELS = ("normal", "benign", "malignant")


def busi(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    layout = "benign/benign (1).png, benign/benign (1)_mask.png, malignant/..., normal/..."
    found = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"(normal|benign|malignant) ?\(\d+\)(_mask(?:_\d+)?)?\.png", path.name)
        if match and path.parent.name == match[1]:
            found[name] = Annotation("breast", match[1], skip=LABEL_MAP if match[2] else None)
    return complete(names, found, "BUSI", layout)


def bus_bra(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    title, layout = "BUS-BRA", "bus_data.csv (ID, Case, Pathology, ...), Images/bus_0001-l.png, Masks/mask_0001-l.png"
    tables = find_side_files(names, "bus_data.csv")
    if not tables:
        raise misfit(title, "no bus_data.csv", layout)
    table = read_table(read(tables[0]), ("ID", "Case", "Pathology"), title, layout)
    rows = {row["id"].lower(): row for row in table}
    found = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"(bus|mask)_(\d+)-[a-z]\.png", path.name)
        if match and match[1] == "mask":
            found[name] = Annotation("breast", skip=LABEL_MAP)
        elif match:
            row = rows.get(path.stem, {})
            # The number in the name is the case: left and right breast are of one patient.
            patient = whole_number(row.get("case", "")) or whole_number(match[2])
            found[name] = Annotation("breast", one_of(row.get("pathology", ""), TUMOUR_LABELS), patient)
    return complete(names, found, title, layout)


def bus_uclm(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    title, layout = "BUS-UCLM", "INFO.csv, images/ALWI_000.png, masks/ALWI_000.png"
    labels = {}
    for table in find_side_files(names, "INFO.csv")[:1]:
        # Wherever the image's name and the class stand in a row.
        for row in read_rows(read(table)):
            label = next(filter(None, (one_of(cell, TUMOUR_LABELS) for cell in row)), None)
            labels.update((PurePosixPath(cell.lower()).stem, label) for cell in row if label)
    found = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"([a-z]+)_\d+\.png", path.name)
        if match and path.parent.name == "masks":
            found[name] = Annotation("breast", skip=LABEL_MAP)
        elif match and path.parent.name == "images":
            found[name] = Annotation("breast", labels.get(path.stem), match[1])
    return complete(names, found, title, layout)


def breast_lesions_usg(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    """BrEaST. Its classes stand in a spreadsheet: exported as CSV beside the images, they become the labels."""
    title, layout = "BrEaST", "case001.png, case001_tumor.png, and BrEaST-Lesions-USG-clinical-data*.csv if exported"
    labels = {}
    for table in names:
        path = PurePosixPath(table.lower())
        if re.fullmatch(r"breast-lesions-usg-clinical-data.*\.csv", path.name) and not is_leftover(table):
            for row in read_table(read(table), ("Image_filename", "Classification"), title, layout):
                labels[row["image_filename"].lower()] = one_of(row["classification"], TUMOUR_LABELS)
    found = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"case(\d+)(_(?:tumor|other)\d*)?\.png", path.name)
        if match:
            skip = LABEL_MAP if match[2] else None
            found[name] = Annotation(
                "breast", None if skip else labels.get(path.name), whole_number(match[1]), skip=skip
            )
    return complete(names, found, title, layout)


# ---- heart

CAMUS_LABELS = ("poor", "medium", "good")
CAMUS_VIEWS = ("2CH", "4CH")


def camus(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    """The label is the image quality that the data set's cardiologists gave."""
    layout = "patient0001/patient0001_2CH_ED.nii.gz, ..._ED_gt.nii.gz, ..._half_sequence.nii.gz, Info_2CH.cfg"
    found, quality = {}, {}
    for name in names:
        match = re.search(r"(patient\d+)/info_([24]ch)\.cfg$", name.lower())
        if match and not is_leftover(name):
            value = re.search(r"^\s*ImageQuality\s*:\s*(\w+)", decode_text(read(name)), re.MULTILINE)
            quality[match[1], match[2]] = value and one_of(value[1], CAMUS_LABELS)
    for name, path in image_paths(names):
        match = re.fullmatch(
            r"(patient\d+)_([24]ch)_(?:ed|es|half_sequence|sequence)(_gt)?\.(?:nii(?:\.gz)?|mhd)", path.name
        )
        if match:
            label = None if match[3] else quality.get((match[1], match[2]))
            found[name] = Annotation("heart", label, match[1], match[2].upper(), LABEL_MAP if match[3] else None)
    return complete(names, found, "CAMUS", layout)


def echonet_dynamic(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    """One apical four-chamber video a patient."""
    title, layout = "EchoNet-Dynamic", "FileList.csv (FileName, Split, ...), Videos/0X100009310A3BD7FC.avi"
    tables = find_side_files(names, "FileList.csv")
    if not tables:
        raise misfit(title, "no FileList.csv", layout)
    read_table(read(tables[0]), ("FileName", "Split"), title, layout)
    found = {n: Annotation("heart", view="4CH") for n, p in image_paths(names) if p.parent.name == "videos"}
    return complete(names, found, title, layout)


# ---- thyroid

TI_RADS_LABELS = ("TI-RADS 1", "TI-RADS 2", "TI-RADS 3", "TI-RADS 4a", "TI-RADS 4b", "TI-RADS 4c", "TI-RADS 5")


def tn3k(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    """Classes are in two optional tables without a header: "0000.jpg,1" is malignant."""
    layout = "trainval-image/0000.jpg, trainval-mask/0000.jpg, test-image/..., test-mask/..., label4trainval.csv, label4test.csv"
    labels = {}
    for part in ("trainval", "test"):
        for table in find_side_files(names, f"label4{part}.csv")[:1]:
            for row in read_rows(read(table)):
                if len(row) > 1:
                    labels[part, row[0].lower()] = {"0": "benign", "1": "malignant"}.get(row[1])
    found = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"(trainval|test)-(image|mask)", path.parent.name)
        if match:
            is_mask = match[2] == "mask"
            label = None if is_mask else labels.get((match[1], path.name))
            found[name] = Annotation("thyroid", label, skip=LABEL_MAP if is_mask else None)
    return complete(names, found, "TN3K", layout)


def tg3k(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    skips = {"thyroid-image": None, "thyroid-mask": LABEL_MAP}
    found = {
        n: Annotation("thyroid", skip=skips[p.parent.name]) for n, p in image_paths(names) if p.parent.name in skips
    }
    return complete(names, found, "TG3K", "thyroid-image/0000.jpg, thyroid-mask/0000.jpg")


def ddti(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    """The original cases with their XML, or the images and masks that TRFE-Net's authors made of them."""
    layout = "1.xml, 1_1.jpg, 1_2.jpg (original), or image/1.PNG, mask/1.PNG (with masks, without patients)"
    found = {}
    cases = {PurePosixPath(n.lower()).with_suffix(""): n for n in names if re.search(r"(?:^|/)\d+\.xml$", n.lower())}
    labels = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"(\d+)_\d+\.jpg", path.name)
        case = match and cases.get(path.parent / match[1])
        if case:
            if case not in labels:
                # Looked for as text: an XML parser would have to be guarded against hostile files.
                grade = re.search(r"<tirads>\s*(\w+)\s*</tirads>", decode_text(read(case)), re.IGNORECASE)
                labels[case] = grade and one_of(f"TI-RADS {grade[1]}", TI_RADS_LABELS)
            found[name] = Annotation("thyroid", labels[case], whole_number(match[1]))
        elif re.fullmatch(r"\d+", path.stem) and path.parent.name in ("image", "mask"):
            found[name] = Annotation("thyroid", skip=LABEL_MAP if path.parent.name == "mask" else None)
    return complete(names, found, "DDTI", layout)


# ---- fetus

FETAL_PLANES = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other")
FETAL_BRAIN_PLANES = ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular")


def fetal_planes_db(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    title, layout = "FETAL_PLANES_DB", "FETAL_PLANES_DB_data.csv (;), Images/Patient00001_Plane1_1_of_15.png"
    tables = find_side_files(names, "FETAL_PLANES_DB_data.csv")
    if not tables:
        raise misfit(title, "no FETAL_PLANES_DB_data.csv", layout)
    columns = ("Image_name", "Patient_num", "Plane", "Brain_plane")
    rows = {r["image_name"].lower(): r for r in read_table(read(tables[0]), columns, title, layout)}
    found = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"patient(\d+)_plane\d+_.*\.png", path.name)
        if match:
            row = rows.get(path.stem) or rows.get(path.name) or {}
            label = one_of(row.get("plane", ""), FETAL_PLANES)
            organ = "cervix" if label == "Maternal cervix" else "fetus"
            patient = whole_number(row.get("patient_num", "")) or whole_number(match[1])
            found[name] = Annotation(organ, label, patient, one_of(row.get("brain_plane", ""), FETAL_BRAIN_PLANES))
    return complete(names, found, title, layout)


def hc18(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    """Images of one examination share their number: 010_HC.png and 010_2HC.png."""
    layout = "training_set/000_HC.png, training_set/000_HC_Annotation.png, test_set/000_HC.png"
    found = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"(\d+)_\d*hc(_annotation)?\.png", path.name)
        if match and path.parent.name in ("training_set", "test_set"):
            # Both sets count from 0: the number alone would join two women.
            patient = f"{path.parent.name} {whole_number(match[1])}"
            found[name] = Annotation("fetus", None, patient, "head", LABEL_MAP if match[2] else None)
    return complete(names, found, "HC18", layout)


def psfhs(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    skips = {"image_mha": None, "label_mha": LABEL_MAP}
    images = [(name, path.parent.name) for name, path in image_paths(names) if path.parent.name in skips]
    found = {name: Annotation("fetus", skip=skips[folder]) for name, folder in images}
    return complete(names, found, "PSFHS", "image_mha/03744.mha, label_mha/03744.mha")


# ---- abdomen and pelvis

OPEN_KIDNEY_VIEWS = ("longitudinal", "transverse", "other")
MMOTU_LABELS = (
    "chocolate cyst",
    "serous cystadenoma",
    "teratoma",
    "theca cell tumor",
    "simple cyst",
    "normal ovary",
    "mucinous cystadenoma",
    "high grade serous",
)


def _nth(labels: Sequence[str], value: Any) -> str | None:
    number = whole_number(value)
    return labels[int(number)] if number is not None and int(number) < len(labels) else None


def aul(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    found = {}
    for name, path in image_paths(names):
        label = path.parent.parent.name
        if path.parent.name == "image" and label in TUMOUR_LABELS:
            found[name] = Annotation("liver", label)
    return complete(names, found, "AUL", "Benign/image/1.jpg, Malignant/image/2.jpg, Normal/image/3.jpg")


def gbcu(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    title, layout = "GBCU", 'imgs/im00001.jpg, train.txt and test.txt ("im00001.jpg,0")'
    tables = [t for part in ("train.txt", "test.txt") for t in find_side_files(names, part)[:1]]
    if not tables:
        raise misfit(title, "neither train.txt nor test.txt", layout)
    rows = [row for table in tables for row in read_rows(read(table)) if len(row) > 1]
    labels = {row[0].lower(): _nth(TUMOUR_LABELS, row[1]) for row in rows}
    found = {}
    for name, path in image_paths(names):
        if path.parent.name == "imgs":
            found[name] = Annotation("gallbladder", labels.get(path.name))
    return complete(names, found, title, layout)


def mmotu(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    """OTU_2d with classes; the contrast images of OTU_CEUS without."""
    title, layout = (
        "MMOTU",
        'OTU_2d/images/1.JPG, OTU_2d/annotations/1.PNG, OTU_2d/train_cls.txt ("1.JPG  0"), val_cls.txt',
    )
    tables = [t for part in ("train", "val") for t in find_side_files(names, f"OTU_2d/{part}_cls.txt")[:1]]
    if not tables:
        raise misfit(title, "neither OTU_2d/train_cls.txt nor OTU_2d/val_cls.txt", layout)
    lines = [line.split() for table in tables for line in decode_text(read(table)).splitlines()]
    labels = {line[0].lower(): _nth(MMOTU_LABELS, line[1]) for line in lines if len(line) > 1}
    found = {}
    for name, path in image_paths(names):
        part = path.parent.parent.name
        if part in ("otu_2d", "otu_ceus") and path.parent.name == "annotations":
            found[name] = Annotation("ovary", skip=LABEL_MAP)
        elif part in ("otu_2d", "otu_ceus") and path.parent.name == "images":
            found[name] = Annotation("ovary", labels.get(path.name) if part == "otu_2d" else None)
    return complete(names, found, title, layout)


def open_kidney(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    title, layout = "Open Kidney", "images/*.png, labels/reviewed_labels_1.csv, labels/reviewed_masks_1/capsule/*.png"
    tables = find_side_files(names, "reviewed_labels_1.csv") or find_side_files(names, "reviewed_labels_2.csv")
    if not tables:
        raise misfit(title, "no reviewed_labels_1.csv", layout)
    views = {}
    for row in read_table(read(tables[0]), ("filename", "file_attributes"), title, layout):
        value = re.search(r"""["']View["']\s*:\s*["'](\w+)["']""", row["file_attributes"])
        views[row["filename"].lower()] = value and one_of(value[1], OPEN_KIDNEY_VIEWS)
    found = {}
    for name, path in image_paths(names):
        if any(part.startswith("reviewed_masks") for part in path.parts):
            found[name] = Annotation("kidney", skip=LABEL_MAP)
        elif path.parent.name == "images":
            found[name] = Annotation("kidney", view=views.get(path.name))
    return complete(names, found, title, layout)


# ---- lung, nerve, several

POCUS_LABELS = ("covid", "pneumonia", "regular", "viral pneumonia")
_POCUS_STARTS = {"cov": "covid", "pneu": "pneumonia", "reg": "regular", "vir": "viral pneumonia"}


def pocus(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    """The class is how a file's name starts. Patients are in dataset_metadata.csv; frames cut of a clip stay with it."""
    layout = (
        "data/pocus_videos/convex/Cov-Atlas-Day+1.gif, data/pocus_images/convex/Reg-*.png, data/dataset_metadata.csv"
    )
    patients = {}
    for table in find_side_files(names, "dataset_metadata.csv")[:1]:
        for row in read_table(read(table), ("Filename", "Patient ID / Name"), "POCUS", layout):
            if row["patient id / name"].lower() not in ("", "nd", "n/a"):
                patients.setdefault(row["filename"].lower(), "patient " + row["patient id / name"])
    found, other = {}, {}
    for name, path in image_paths(names):
        match = re.match(r"(cov|pneu|reg|vir)[-_]", path.name)
        if match:
            clip = re.sub(r"\.\w+_frame\d+$", "", path.stem)
            found[name] = Annotation("lung", _POCUS_STARTS[match[1]], patients.get(clip, "clip " + clip))
        elif "ct" in path.parts:
            # The repository also holds slices of computed tomography.
            other[name] = Annotation(skip="not-ultrasound")
    return {**complete(names, found, "POCUS (covid19_ultrasound)", layout), **other}


def us_nerve_segmentation(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    layout = "train/1_1.tif (patient 1, image 1), train/1_1_mask.tif, test/1.tif"
    found = {}
    for name, path in image_paths(names):
        match = re.fullmatch(r"(\d+)_\d+(_mask)?\.tif", path.name)
        if match and path.parent.name == "train":
            found[name] = Annotation("nerve", None, match[1], skip=LABEL_MAP if match[2] else None)
        elif path.parent.name == "test" and re.fullmatch(r"\d+\.tif", path.name):
            found[name] = Annotation("nerve")
    return complete(names, found, "the nerve segmentation set", layout)


# Label: (organ, view).
_BUTTERFLY = {
    "carotid": ("carotid", None),
    "2ch": ("heart", "2CH"),
    "lungs": ("lung", None),
    "ivc": ("vessel", None),
    "4ch": ("heart", "4CH"),
    "bladder": ("bladder", None),
    "thyroid": ("thyroid", None),
    "plax": ("heart", "PLAX"),
    "morisons_pouch": ("abdomen", None),
}
BUTTERFLY_LABELS = tuple(_BUTTERFLY)


def butterfly(names: Sequence[str], read: Read) -> dict[str, Annotation]:
    found = {}
    for name, path in image_paths(names):
        label = path.parent.name
        patient = whole_number(path.parent.parent.name)
        if label in _BUTTERFLY and patient:
            organ, view = _BUTTERFLY[label]
            found[name] = Annotation(organ, label, patient, view)
    return complete(names, found, "Butterfly", "training/1/carotid/*.png, testing/2/lungs/*.png (set, patient, class)")


# ---- the output of `ultrabench process`

# A key that only this task's entries have: (key in the table of public data sets, organ, key of the label).
_ULTRABENCH = {
    "tirads_level": ("stanford-thyroid", "thyroid", "pathology"),
    "image_quality": ("camus", "heart", "image_quality"),
    "capsule_mask": ("open-kidney", "kidney", None),
    "psfh_mask": ("psfhs", "fetus", None),
    "tumor_mask_multiclass": ("mmotu", "ovary", "label"),
    "bboxes": ("gbcu", "gallbladder", "pathology"),
    "steatosis": ("fatty-liver", "liver", "pathology"),
    "mass_mask": ("aul", "liver", "pathology"),
    "class": ("butterfly", None, "class"),
    "source": ("pocus", "lung", "pathology"),
}
FATTY_LIVER_LABELS = ("normal", "NFLD")
ULTRABENCH_LABELS = tuple(
    dict.fromkeys((*TUMOUR_LABELS, *CAMUS_LABELS, *MMOTU_LABELS, *FATTY_LIVER_LABELS, *BUTTERFLY_LABELS, *POCUS_LABELS))
)
ULTRABENCH_VIEWS = (*CAMUS_VIEWS, "PLAX", *OPEN_KIDNEY_VIEWS)


def ultrabench(names: Sequence[str], read: Read, licences: Mapping[str, str]) -> dict[str, Annotation]:
    """One processed data set or a folder of several; which it is shows in the entries of train.json and its like.

    Args:
        licences: licence by key of the table of public data sets, for the images of each.
    """
    layout = "images/*.png, masks/scan/*.png, train.json, validation.json, test.json (version 1.0.1)"
    found = {}
    tables = [
        t for part in ("train", "validation", "train_val", "test") for t in find_side_files(names, part + ".json")
    ]
    if not tables:
        raise misfit("the output of ultrabench process", "no train.json, validation.json or test.json", layout)
    known = set(names)
    for table in tables:
        root = PurePosixPath(table).parent
        try:
            entries = json.loads(decode_text(read(table)))
        except (ValueError, RecursionError):
            raise ValueError(f"{PurePosixPath(table).name} of ultrabench can't be read as JSON") from None
        for entry in entries if isinstance(entries, list) else ():
            name = str(root / str(entry.get("image"))) if isinstance(entry, dict) else None
            if name in known:
                found[name] = _ultrabench_entry(entry, licences)
    for name, path in image_paths(names):
        if "masks" in path.parts[:-1]:
            found[name] = Annotation(skip=LABEL_MAP)
    return complete(names, found, "the output of ultrabench process", layout)


def _ultrabench_entry(entry: Mapping[str, Any], licences: Mapping[str, str]) -> Annotation:
    unknown = ("other", None, None)
    key, organ, label_key = next((task for sign, task in _ULTRABENCH.items() if sign in entry), unknown)
    value = entry.get(label_key) if label_key else None
    label = _nth(MMOTU_LABELS, value) if key == "mmotu" else one_of(value, ULTRABENCH_LABELS)
    view = one_of(entry.get("view"), ULTRABENCH_VIEWS)
    if label in _BUTTERFLY and key == "butterfly":
        organ, view = _BUTTERFLY[label]
    # Of POCUS the clip is known. A number of two data sets is two patients.
    patient = entry.get("source") if key == "pocus" else entry.get("patient")
    patient = None if patient is None else f"{key} {patient}"
    return Annotation(organ, label, patient, view, None, licences.get(key))
