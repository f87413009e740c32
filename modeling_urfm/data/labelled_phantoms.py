# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Labelled phantoms: `phantoms:organ`, `phantoms:lesion`, `phantoms:lesion_mask`, `phantoms:depth`, `phantoms:findings`.

Behind a question mark stand settings: `phantoms:organ?patients=300&snr_db=5-15`, `phantoms:lesion?organs=liver,kidney`.
Lesions are those of the breast where `organs` says nothing else, as the public data sets of lesions are of one organ (over
all 15 the median lesion is 8 px wide); all else is of all organs. Patients are of a seed of their own: no corpus, teacher or
evaluation that ships has seen them.
"""

from urllib.parse import parse_qsl

from ..flags import check_choice
from .labelled_found import Found
from .phantoms import LESIONS, ORGANS, encode_png, map_patients, phantom_frame


LABELLED_SEED = 9_200_001
PREFIX = "phantoms:"
TASK_OF = {
    "organ": "classification", "lesion": "classification", "lesion_mask": "segmentation", "depth": "regression",
    "findings": "multilabel",
}  # fmt: skip
SETTINGS = {"patients": 900, "frames": 1, "image_size": 128, "snr_db": 10.0, "seed": LABELLED_SEED, "organs": ORGANS}
# What a report would list: where in the body one looks, and what is there.
REGIONS = {
    "neck and breast": ("thyroid", "breast", "carotid"),
    "chest": ("heart", "lung"),
    "upper abdomen": ("liver", "gallbladder", "pancreas", "spleen", "kidney"),
    "pelvis": ("bladder", "prostate", "uterus", "ovary", "fetus"),
}
FINDINGS = (*REGIONS, "benign lesion", "malignant lesion")


def read_phantoms(spec: str, task: str, progress: bool = True) -> Found:
    """Make the phantoms that `spec` names.

    Raises:
        ValueError: labels or settings that do not exist, or labels that are of another task.
    """
    kind, _, query = spec.removeprefix(PREFIX).partition("?")
    check_choice(f"{spec}: labels", kind, tuple(TASK_OF))
    if TASK_OF[kind] != task:
        raise ValueError(f"{spec} is for --task {TASK_OF[kind]}, not for {task}.")
    settings = SETTINGS | ({"organs": ("breast",)} if kind in ("lesion", "lesion_mask") else {})
    for key, value in parse_qsl(query, keep_blank_values=True):
        check_choice(f"{spec}: setting", key, tuple(SETTINGS))
        if key == "organs":
            settings[key] = ORGANS if value == "all" else tuple(value.split(","))
            for organ in settings[key]:
                check_choice(f"{spec}: organ", organ, ("all", *ORGANS))
            continue
        try:
            settings[key] = _range(value) if key == "snr_db" else int(value)
        except ValueError:
            raise ValueError(f"{spec}: {key}={value} is no number.") from None
    if settings["patients"] < 3 or settings["frames"] < 1:
        raise ValueError(f"{spec}: at least 3 patients with 1 frame each are needed.")
    jobs = [(kind, patient, settings) for patient in range(settings["patients"])]
    rows = [row for rows in map_patients(_rows, jobs, progress=progress) for row in rows]
    names = {"organ": ORGANS, "lesion": LESIONS, "lesion_mask": ("background", "lesion"), "depth": ("depth_mm",),
             "findings": FINDINGS}[kind]  # fmt: skip
    return Found(
        spec, [row["id"] for row in rows], [(row["image"], None) for row in rows], [row["label"] for row in rows], names,
        [row["patient"] for row in rows], groups=[row["organ"] for row in rows],
        notes=["phantoms: images from a model of how ultrasound arises, of no patient"],
    )  # fmt: skip


def _range(text: str) -> float | tuple[float, float]:
    """ "10", or "5-15": a range from which each patient draws its own ratio."""
    if "-" in text[1:]:
        at = text.index("-", 1)
        return float(text[:at]), float(text[at + 1 :])
    return float(text)


def _rows(job: tuple[str, int, dict]) -> list[dict]:
    kind, patient, settings = job
    # To be outlined, a lesion must be there: benign and malignant ones in turn, each through all organs.
    lesion = LESIONS[1 + patient // len(settings["organs"]) % 2] if kind == "lesion_mask" else None
    rows, name = [], f"phantom-{settings['seed']}-{patient}"
    for number in range(settings["frames"]):
        frame = phantom_frame(
            settings["seed"],
            patient,
            number,
            lesion=lesion,
            image_size=settings["image_size"],
            snr_db=settings["snr_db"],
            organs=settings["organs"],
        )
        found = {next(region for region, organs in REGIONS.items() if frame.organ in organs), f"{frame.lesion} lesion"}
        label = {
            "organ": lambda f: f.organ, "lesion": lambda f: f.lesion, "depth": lambda f: [f.depth_mm],
            "lesion_mask": lambda f: [(encode_png(f.mask), None)],
            "findings": lambda f, found=found: [float(name in found) for name in FINDINGS],
        }[kind](frame)  # fmt: skip
        rows.append({
            "id": f"{name}-{number}", "patient": name, "image": encode_png(frame.image),
            "label": label, "organ": frame.organ,
        })  # fmt: skip
    return rows
