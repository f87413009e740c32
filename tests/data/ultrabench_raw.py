# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Tiny raw data sets in the layouts that the `ultrabench` command line (1.0.1) reads, and what it makes of them.

    folders = processed("aul", tmp_path)   # {"aul_mass": .../aul_mass_v1.0.1, "aul_liver": ...}

Images are noise whose brightness tells the class, with a bright ellipse where a mask is; they mean nothing else.
"""

import csv
import json
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image


SIZE = 64


def ellipse(rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """(size, size) bool: a blob somewhere near the middle."""
    row, column = rng.uniform(0.35, 0.65, 2) * size
    half = rng.uniform(0.12, 0.22, 2) * size
    y, x = np.mgrid[:size, :size]
    return ((y - row) / half[0]) ** 2 + ((x - column) / half[1]) ** 2 <= 1


def picture(rng: np.random.Generator, label: int, blob: np.ndarray | None = None, size: int = SIZE) -> np.ndarray:
    """(size, size) uint8, nowhere black: brighter for a higher label, brightest in the blob."""
    grey = 40 + 35 * label + rng.normal(0, 12, (size, size))
    if blob is not None:
        grey = grey + 60 * blob
    return grey.clip(3, 255).astype(np.uint8)


def _save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def _polygon(blob: np.ndarray) -> list[list[float]]:
    """Corners (x, y) of a diamond that fills most of the blob."""
    rows, columns = np.flatnonzero(blob.any(1)), np.flatnonzero(blob.any(0))
    y, x = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    return [[x, float(rows[0])], [float(columns[-1]), y], [x, float(rows[-1])], [float(columns[0]), y]]


def aul(raw: Path, rng: np.random.Generator) -> None:
    """CLASS/image/N.jpg, CLASS/segmentation/{outline,liver,mass}/N.json.

    Three images of the published one lack a polygon (374, 229, 306), on which `ultrabench` 1.0.1 ends with pandas 3, as
    that turns None into NaN; with pandas 2 it goes on. Here every image has what it needs.
    """
    whole = [[0, 0], [SIZE - 1, 0], [SIZE - 1, SIZE - 1], [0, SIZE - 1]]
    for label, name in enumerate(("Normal", "Benign", "Malignant")):
        for number in range(15):
            stem = str(100 * label + number)
            blob = ellipse(rng)
            _save(raw / name / "image" / f"{stem}.jpg", picture(rng, label, blob if label else None), quality=95)
            polygons = {"outline": whole, "liver": whole, "mass": _polygon(blob)}
            for part, points in polygons.items():
                if (part, label) == ("mass", 0):
                    continue
                path = raw / name / "segmentation" / part / f"{stem}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(points))


def butterfly(raw: Path, rng: np.random.Generator) -> None:
    """SUBSET/PATIENT/CLASS/NAME.png."""
    patient = 0
    for subset, patients in (("butterfly_training", 5), ("butterfly_test", 2)):
        for _ in range(patients):
            patient += 1
            for label, name in enumerate(("carotid", "lungs", "bladder")):
                for number in range(2):
                    _save(raw / subset / str(patient) / name / f"{number}.png", picture(rng, label))


def camus(raw: Path, rng: np.random.Generator) -> None:
    """database_nifti/patientNNNN/: half sequences, their structures, Info_VIEW.cfg."""
    import nibabel

    for patient in range(1, 11):
        folder = raw / "database_nifti" / f"patient{patient:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        quality = ("Poor", "Medium", "Good")[patient % 3]
        blob = ellipse(rng)
        frames = np.stack([picture(rng, patient % 3, blob) for _ in range(2)], axis=-1)
        structures = np.stack([blob * (1 + np.arange(SIZE) % 3)[None]] * 2, axis=-1).astype(np.uint8)
        for end, values in (("", frames), ("_gt", structures)):
            image = nibabel.Nifti1Image(values, np.eye(4))
            nibabel.save(image, folder / f"patient{patient:04d}_2CH_half_sequence{end}.nii.gz")
        (folder / "Info_2CH.cfg").write_text(
            f"ED: 1\nES: 2\nNbFrame: 2\nSex: F\nAge: 60\nImageQuality: {quality}\nEF: {50 + patient}\nFrameRate: 50.0\n"
        )


def fatty_liver(raw: Path, rng: np.random.Generator) -> None:
    """One MATLAB file of ten patients with three frames each."""
    from scipy.io import savemat

    kind = [("id", object), ("class", object), ("fat", object), ("images", object)]
    data = np.empty((1, 10), dtype=kind)
    for patient in range(10):
        label = patient % 2
        frames = np.stack([picture(rng, label) for _ in range(3)])
        data[0, patient] = (np.array([[patient + 1]]), np.array([[label]]), np.array([[3 + 30 * label]]), frames)
    raw.mkdir(parents=True, exist_ok=True)
    savemat(raw / "dataset_liver_bmodes_steatosis_assessment_IJCARS.mat", {"data": data})


def gbcu(raw: Path, rng: np.random.Generator) -> None:
    """imgs/, train.txt and test.txt ("name,label"), bbox_annot.json."""
    boxes = {}
    for split, count in (("train", 45), ("test", 9)):
        lines = []
        for number in range(count):
            name, label = f"im{len(boxes):05d}.jpg", number % 3
            _save(raw / "imgs" / name, picture(rng, label), quality=95)
            boxes[name] = {"dim": [SIZE, SIZE], "bbs": [["nml" if label == 0 else "abn", [8, 8, 40, 40]]]}
            lines.append(f"{name},{label}")
        (raw / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (raw / "bbox_annot.json").write_text(json.dumps(boxes))


def mmotu(raw: Path, rng: np.random.Generator) -> None:
    """OTU_2d/: images/N.JPG, annotations/N.PNG in colours and N_binary.PNG, {train,val}.txt and {train,val}_cls.txt."""
    colours = np.array([(64, 0, 0), (0, 64, 0), (0, 0, 64)], dtype=np.uint8)
    size = 96  # its scan masks keep nothing smaller than 5,000 pixels
    number = 0
    for part, count in (("train", 24), ("val", 9)):
        names, classes = [], []
        for _ in range(count):
            number += 1
            label, blob = number % 3, ellipse(rng, size)
            _save(raw / "OTU_2d/images" / f"{number}.JPG", picture(rng, label, blob, size), format="JPEG", quality=95)
            annotations = raw / "OTU_2d/annotations"
            _save(annotations / f"{number}.PNG", blob[..., None] * colours[label], format="PNG")
            _save(annotations / f"{number}_binary.PNG", (255 * blob).astype(np.uint8), format="PNG")
            names.append(str(number)), classes.append(f"{number}.JPG  {label}")
        (raw / "OTU_2d" / f"{part}.txt").write_text("\n".join(names) + "\n")
        (raw / "OTU_2d" / f"{part}_cls.txt").write_text("\n".join(classes) + "\n")


def open_kidney(raw: Path, rng: np.random.Generator) -> None:
    """images/, labels/reviewed_labels_1.csv, labels/reviewed_masks_1/{capsule,regions}/."""
    columns = ("filename", "file_size", "file_attributes", "region_attributes", "region_shape_attributes")
    rows = []
    for number in range(40):
        name, blob = f"{number}_{5000 + number}.png", ellipse(rng)
        _save(raw / "images" / name, picture(rng, 1, blob))
        masks = raw / "labels/reviewed_masks_1"
        _save(masks / "capsule" / name, blob.astype(np.uint8))
        _save(masks / "regions" / name, (blob * (1 + np.arange(SIZE) % 3)[None]).astype(np.uint8))
        view = ("Longitudinal", "Transverse", "Other")[number % 3]
        facts = {"Quality": "Good", "View": view, "Comments": "Transplant" if number % 7 == 0 else ""}
        rows.append((name, 1000, str(facts), "{}", "{}"))
    with (raw / "labels/reviewed_labels_1.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def pocus(raw: Path, rng: np.random.Generator) -> None:
    """data/pocus_images/convex/ and data/pocus_videos/convex/, the class at the beginning of a file's name."""
    for label, start in enumerate(("Reg", "Pneu", "Cov")):
        for number in range(10):
            _save(raw / "data/pocus_images/convex" / f"{start}_still{number}.png", picture(rng, label))
        frames = [Image.fromarray(picture(rng, label)) for _ in range(7)]
        path = raw / "data/pocus_videos/convex" / f"{start}-clip.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def psfhs(raw: Path, rng: np.random.Generator) -> None:
    """image_mha/NNNNN.mha of three channels, label_mha/NNNNN.mha: 1 pubic symphysis, 2 fetal head."""
    import SimpleITK

    for folder in ("image_mha", "label_mha"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for number in range(20):
        blob = ellipse(rng)
        image = np.stack([picture(rng, 1, blob)] * 3)
        mask = (blob * (1 + (np.arange(SIZE) > SIZE // 2))[None]).astype(np.uint8)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(raw / "image_mha" / f"{number:05d}.mha"))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask), str(raw / "label_mha" / f"{number:05d}.mha"))


def stanford_thyroid(raw: Path, rng: np.random.Generator) -> None:
    """dataset.hdf5 and metadata.csv; the tool wants all of its 105 patients, here one frame of each."""
    import h5py
    from ultrabench.datasets.stanford_thyroid import PATIENTS

    size, raised = 32, 0
    images, masks, rows = [], [], []
    for patient in PATIENTS:
        raised += 1
        blob = ellipse(rng, size)
        images.append(picture(rng, raised % 2, blob, size)), masks.append((255 * blob).astype(np.uint8))
        rows.append([f"{patient}_", 50, "F", "left", 1.0, 1.0, 1.0, 5 if raised % 2 else 2, *[""] * 6])
    raw.mkdir(parents=True, exist_ok=True)
    with h5py.File(raw / "dataset.hdf5", "w") as file:
        file["annot_id"] = [row[0] for row in rows]
        file["image"], file["mask"] = np.stack(images), np.stack(masks)
    columns = ["annot_id", "age", "sex", "location", "size_x", "size_y", "size_z", "ti-rads_level",
               *[f"ti-rads_{part}" for part in ("composition", "echogenicity", "shape", "margin", "echogenicfoci")],
               "histopath_diagnosis"]  # fmt: skip
    with (raw / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


MAKERS = {
    "aul": aul, "butterfly": butterfly, "camus": camus, "fatty-liver": fatty_liver, "gbcu": gbcu, "mmotu": mmotu,
    "open-kidney": open_kidney, "pocus": pocus, "psfhs": psfhs, "stanford-thyroid": stanford_thyroid,
}  # fmt: skip


def make_raw(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the raw data set `name` (a command of `ultrabench`) into `folder`; returns what the command line is given."""
    raw = folder / f"raw-{name}"
    MAKERS[name](raw, np.random.default_rng(seed))
    return next(raw.glob("*.mat")) if name == "fatty-liver" else raw


def processed(name: str, folder: Path, seed: int = 0) -> dict[str, Path]:
    """Make `name` and run `ultrabench NAME RAW OUT` on it, in this process; its folders by their names without version."""
    from ultrabench.cli import app

    out = folder / f"processed-{name}"
    out.mkdir(parents=True)
    with warnings.catch_warnings():  # of functions that scikit-image will rename
        warnings.simplefilter("ignore")
        app([name, str(make_raw(name, folder, seed)), str(out)], standalone_mode=False)
    return {re.sub(r"_v[\d.]+$", "", path.name): path for path in sorted(out.iterdir())}
