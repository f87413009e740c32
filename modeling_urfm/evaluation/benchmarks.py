# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The 14 tasks of UltraBench as a table, and published figures to stand beside ours, never among them.

UltraBench (Tupper and Gagne, TMLR 2025; MIT) is a command line that turns raw data sets into folders of one layout: images,
masks, `train.json`, `validation.json`, `test.json`. Tasks are read from those folders.
"""

from dataclasses import dataclass

from ..flags import check_choice


VERSION = "1.0.1"  # of `ultrabench`, whose layout, names and splits these are


@dataclass(frozen=True)
class BenchmarkTask:
    """A task of UltraBench.

    Attributes:
        name: as in `--datasets ultrabench:NAME=FOLDER`. folder: what `ultrabench` calls it, before `_v1.0.1`.
        task: "classification" or "segmentation". column: of its JSON files, with the label or the mask.
        classes: in the order of their ids. organ: what is seen. published: column of `PUBLISHED`.
    """

    name: str
    folder: str
    task: str
    column: str
    classes: tuple[str, ...]
    organ: str
    published: str | None = None


MASSES = ("normal", "benign", "malignant")
BUTTERFLY_VIEWS = ("carotid", "2ch", "lungs", "ivc", "4ch", "bladder", "thyroid", "plax", "morisons_pouch")
OVARIAN = (
    "chocolate cyst", "serous cystadenoma", "teratoma", "theca cell tumor", "simple cyst", "normal ovary",
    "mucinous cystadenoma", "high grade serous",
)  # fmt: skip
TASKS = {
    task.name: task
    for task in (
        BenchmarkTask("AUL", "aul_mass", "classification", "label", MASSES, "liver", "AUL"),
        BenchmarkTask("AUL_LIVER", "aul_liver", "segmentation", "liver_mask", ("background", "liver"), "liver"),
        BenchmarkTask("AUL_MASS", "aul_mass", "segmentation", "mass_mask", ("background", "mass"), "liver"),
        BenchmarkTask("BUTTERFLY", "butterfly", "classification", "label", BUTTERFLY_VIEWS, "nine views", "BUTTERFLY"),
        BenchmarkTask("CAMUS", "camus", "classification", "label", ("poor", "medium", "good"), "heart"),
        BenchmarkTask(
            "CAMUS_STRUCTURES", "camus", "segmentation", "mask",
            ("background", "left ventricle", "myocardium", "left atrium"), "heart",
        ),
        BenchmarkTask("FATTY_LIVER", "fatty_liver", "classification", "label", ("normal", "NAFLD"), "liver", "FATTY LIVER"),
        BenchmarkTask("GBCU", "gbcu", "classification", "label", MASSES, "gallbladder", "GBCU"),
        BenchmarkTask("MMOTU", "mmotu", "classification", "label", OVARIAN, "ovary", "MMOTU"),
        BenchmarkTask("MMOTU_TUMOR", "mmotu", "segmentation", "tumor_mask_binary", ("background", "tumor"), "ovary"),
        BenchmarkTask(
            "OPEN_KIDNEY", "open_kidney", "segmentation", "capsule_mask", ("background", "kidney capsule"), "kidney"
        ),
        BenchmarkTask("POCUS", "pocus", "classification", "label", ("regular", "pneumonia", "covid"), "lung", "POCUS"),
        BenchmarkTask(
            "PSFHS", "psfhs", "segmentation", "psfh_mask", ("background", "pubic symphysis", "fetal head"), "fetus"
        ),
        BenchmarkTask(
            "STANFORD_THYROID", "stanford_thyroid", "segmentation", "tumor_mask", ("background", "nodule"), "thyroid"
        ),
    )
}  # fmt: skip

PUBLISHED_SOURCE = "US-JEPA, arXiv 2602.19322"
PUBLISHED_PROTOCOL = (
    "linear probe, macro-F1 in %, mean ± deviation over 5 seeds: one linear layer on the frozen encoder, AdamW with learning "
    "rate 1e-3 and weight decay 1e-4, batch 32, 224 px, cosine, at most 150 epochs, early stopping (patience 15) on "
    "validation loss; features are not standardised and nothing is swept. Our protocol "
    "linear_usjepa is the same for an encoder that gets 224 px (--image_size 224)"
)
PUBLISHED_COLUMNS = ("AUL", "BUSBRA", "BUTTERFLY", "FATTY LIVER", "GBCU", "MMOTU", "POCUS", "TN5000")
PUBLISHED = {
    "DINOv3": ((64.3, 0.6), (70.9, 1.7), (91.7, 0.4), (55.8, 5.5), (61.7, 0.5), (37.2, 0.6), (91.4, 0.4), (67.5, 0.4)),
    "I-JEPA": ((61.5, 1.1), (71.2, 4.0), (90.5, 0.6), (54.8, 1.6), (53.7, 0.4), (35.3, 0.6), (88.1, 0.4), (68.9, 0.2)),
    "UltraSAM": (
        (62.6, 3.1),
        (70.2, 3.1),
        (89.6, 2.4),
        (66.9, 3.3),
        (43.5, 4.9),
        (39.7, 1.8),
        (87.3, 2.1),
        (63.9, 2.0),
    ),
    "SAMUS": ((40.2, 0.9), (65.9, 0.3), (91.5, 0.0), (42.1, 0.0), (48.8, 0.3), (20.4, 0.2), (76.2, 0.1), (51.7, 0.0)),
    "EchoCare": (
        (49.2, 2.4),
        (64.4, 0.0),
        (84.1, 0.7),
        (42.1, 0.0),
        (36.2, 0.5),
        (21.1, 0.1),
        (73.8, 3.9),
        (49.8, 3.8),
    ),
    "USF-MAE": ((58.1, 1.4), (62.9, 0.5), (91.1, 0.3), (42.1, 0.0), (45.9, 0.3), (28.7, 0.3), (90.1, 0.0), (56.3, 1.1)),
    "USFM": ((61.6, 1.2), (74.6, 0.5), (92.4, 0.3), (73.6, 8.8), (67.4, 0.6), (33.8, 0.3), (85.7, 0.5), (65.0, 2.6)),
    "URFM": ((71.5, 1.1), (69.5, 2.2), (92.1, 0.4), (82.6, 6.0), (59.1, 1.7), (42.7, 0.4), (91.7, 0.3), (77.4, 0.4)),
    "US-JEPA": ((69.6, 1.5), (73.8, 1.1), (90.8, 0.3), (82.5, 1.1), (67.0, 1.4), (52.2, 0.2), (93.1, 0.0), (73.1, 0.7)),
    "USrc-JEPA": (
        (67.6, 0.5),
        (76.0, 1.2),
        (91.5, 0.6),
        (89.2, 0.9),
        (70.2, 0.5),
        (46.8, 0.2),
        (92.5, 0.1),
        (70.8, 1.3),
    ),
}
# What a constant answer scores there (80 against 30 test images): published as a score, it is a collapsed probe.
COLLAPSED_IN_TABLE = {("FATTY LIVER", 42.1)}


def benchmark_task(name: str) -> BenchmarkTask:
    """The task of that name, in whatever case; ValueError with the nearest name."""
    wanted = name.upper().replace("-", "_").replace(" ", "_")
    check_choice("ultrabench task", wanted, TASKS)
    return TASKS[wanted]


def published_column(name: str) -> dict[str, str]:
    """Encoder to "71.5 ± 1.1" of a column of the published table; a score that a constant answer gets says so."""
    column = PUBLISHED_COLUMNS.index(name)
    shown = {}
    for encoder, figures in PUBLISHED.items():
        mean, deviation = figures[column]
        collapsed = (name, mean) in COLLAPSED_IN_TABLE
        shown[encoder] = f"{mean} ± {deviation}" + (" (a constant answer)" if collapsed else "")
    return shown
