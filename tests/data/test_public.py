# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_urfm.data.annotations import Annotation
from modeling_urfm.data.organs import ORGANS
from modeling_urfm.data.public import PUBLIC, find_public, list_table
from modeling_urfm.data.reasons import REASONS


MASK = "label-map"
P = b"pixels"

# For each importer: files exactly as published, and for each image (organ, label, patient, view, skip).
CASES: dict[str, tuple[dict[str, bytes], dict[str, tuple]]] = {
    "busi": (
        {
            "benign/benign (1).png": P,
            "benign/benign (1)_mask.png": P,
            "benign/benign (1)_mask_1.png": P,
            "malignant/malignant (10).png": P,
            "malignant/malignant (10)_mask.png": P,
            "normal/normal (2).png": P,
        },
        {
            "benign/benign (1).png": ("breast", "benign", None, None, None),
            "benign/benign (1)_mask.png": ("breast", "benign", None, None, MASK),
            "benign/benign (1)_mask_1.png": ("breast", "benign", None, None, MASK),
            "malignant/malignant (10).png": ("breast", "malignant", None, None, None),
            "malignant/malignant (10)_mask.png": ("breast", "malignant", None, None, MASK),
            "normal/normal (2).png": ("breast", "normal", None, None, None),
        },
    ),
    "bus-bra": (
        {
            "bus_data.csv": b"ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX\r\n"
            b'bus_0001-l,1,Invasive ductal carcinoma,malignant,4,GE Logiq 7,354,340,left,"[91,24,103,79]"\r\n'
            b'bus_0001-r,1,Invasive ductal carcinoma,malignant,4,GE Logiq 7,354,340,right,"[1,2,3,4]"\r\n'
            b'bus_0002-r,2,Fibroadenoma,benign,3,GE Logiq 7,354,340,right,"[1,2,3,4]"\r\n',
            "Images/bus_0001-l.png": P,
            "Images/bus_0001-r.png": P,
            "Images/bus_0002-r.png": P,
            "Images/bus_0003-s.png": P,
            "Masks/mask_0001-l.png": P,
        },
        {
            "Images/bus_0001-l.png": ("breast", "malignant", "1", None, None),
            "Images/bus_0001-r.png": ("breast", "malignant", "1", None, None),
            "Images/bus_0002-r.png": ("breast", "benign", "2", None, None),
            "Images/bus_0003-s.png": ("breast", None, "3", None, None),
            "Masks/mask_0001-l.png": ("breast", None, None, None, MASK),
        },
    ),
    "bus-uclm": (
        {
            "INFO.csv": b"Image;Label;Doppler;Marks;Combined\nALWI_000.png;Benign;No;Yes;No\nALWI_001.png;Normal;No;No;No\n"
            b"ANFO_005.png;Malignant;No;No;No\n",
            "images/ALWI_000.png": P,
            "images/ALWI_001.png": P,
            "images/ANFO_005.png": P,
            "masks/ALWI_000.png": P,
        },
        {
            "images/ALWI_000.png": ("breast", "benign", "alwi", None, None),
            "images/ALWI_001.png": ("breast", "normal", "alwi", None, None),
            "images/ANFO_005.png": ("breast", "malignant", "anfo", None, None),
            "masks/ALWI_000.png": ("breast", None, None, None, MASK),
        },
    ),
    "breast-lesions-usg": (
        {
            "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx": b"PK",
            "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.csv": b"CaseID,Image_filename,Pixel_size,Classification\n"
            b"1,case001.png,0.007,benign\n2,case002.png,0.007,malignant\n",
            "BrEaST-Lesions_USG-images_and_masks/case001.png": P,
            "BrEaST-Lesions_USG-images_and_masks/case001_tumor.png": P,
            "BrEaST-Lesions_USG-images_and_masks/case001_other1.png": P,
            "BrEaST-Lesions_USG-images_and_masks/case002.png": P,
            "BrEaST-Lesions_USG-images_and_masks/case003.png": P,
        },
        {
            "BrEaST-Lesions_USG-images_and_masks/case001.png": ("breast", "benign", "1", None, None),
            "BrEaST-Lesions_USG-images_and_masks/case001_tumor.png": ("breast", None, "1", None, MASK),
            "BrEaST-Lesions_USG-images_and_masks/case001_other1.png": ("breast", None, "1", None, MASK),
            "BrEaST-Lesions_USG-images_and_masks/case002.png": ("breast", "malignant", "2", None, None),
            "BrEaST-Lesions_USG-images_and_masks/case003.png": ("breast", None, "3", None, None),
        },
    ),
    "camus": (
        {
            "database_nifti/patient0001/Info_2CH.cfg": b"ED: 1\nES: 18\nNbFrame: 18\nSex: F\nAge: 56\nImageQuality: Good\nEF: 52\n",
            "database_nifti/patient0001/Info_4CH.cfg": b"ED: 1\nImageQuality: Poor\n",
            "database_nifti/patient0001/patient0001_2CH_ED.nii.gz": P,
            "database_nifti/patient0001/patient0001_2CH_ED_gt.nii.gz": P,
            "database_nifti/patient0001/patient0001_4CH_half_sequence.nii.gz": P,
            "database_nifti/patient0001/patient0001_4CH_half_sequence_gt.nii.gz": P,
            "database_nifti/patient0002/patient0002_4CH_ES.nii.gz": P,
        },
        {
            "database_nifti/patient0001/patient0001_2CH_ED.nii.gz": ("heart", "good", "patient0001", "2CH", None),
            "database_nifti/patient0001/patient0001_2CH_ED_gt.nii.gz": ("heart", None, "patient0001", "2CH", MASK),
            "database_nifti/patient0001/patient0001_4CH_half_sequence.nii.gz": (
                "heart",
                "poor",
                "patient0001",
                "4CH",
                None,
            ),
            "database_nifti/patient0001/patient0001_4CH_half_sequence_gt.nii.gz": (
                "heart",
                None,
                "patient0001",
                "4CH",
                MASK,
            ),
            "database_nifti/patient0002/patient0002_4CH_ES.nii.gz": ("heart", None, "patient0002", "4CH", None),
        },
    ),
    "echonet-dynamic": (
        {
            "FileList.csv": b"FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split\n"
            b"0X100009310A3BD7FC,78.49,14.88,69.21,112,112,50,174,VAL\n",
            "VolumeTracings.csv": b"FileName,X1,Y1,X2,Y2,Frame\n",
            "Videos/0X100009310A3BD7FC.avi": P,
            "Videos/0X1002E8FBACD08477.avi": P,
        },
        {
            "Videos/0X100009310A3BD7FC.avi": ("heart", None, None, "4CH", None),
            "Videos/0X1002E8FBACD08477.avi": ("heart", None, None, "4CH", None),
        },
    ),
    "tn3k": (
        {
            "tn3k-trainval-fold0.json": b"{}",
            "label4trainval.csv": b"0000.jpg,1\n0001.jpg,0\n",
            "label4test.csv": b"0000.jpg,0\n",
            "trainval-image/0000.jpg": P,
            "trainval-image/0001.jpg": P,
            "trainval-mask/0000.jpg": P,
            "test-image/0000.jpg": P,
            "test-image/0001.jpg": P,
            "test-mask/0000.jpg": P,
        },
        {
            "trainval-image/0000.jpg": ("thyroid", "malignant", None, None, None),
            "trainval-image/0001.jpg": ("thyroid", "benign", None, None, None),
            "trainval-mask/0000.jpg": ("thyroid", None, None, None, MASK),
            "test-image/0000.jpg": ("thyroid", "benign", None, None, None),
            "test-image/0001.jpg": ("thyroid", None, None, None, None),
            "test-mask/0000.jpg": ("thyroid", None, None, None, MASK),
        },
    ),
    "tg3k": (
        {"thyroid-image/0000.jpg": P, "thyroid-mask/0000.jpg": P, "tg3k-trainval.json": b"{}"},
        {
            "thyroid-image/0000.jpg": ("thyroid", None, None, None, None),
            "thyroid-mask/0000.jpg": ("thyroid", None, None, None, MASK),
        },
    ),
    "ddti": (
        {
            "1.xml": b'<?xml version="1.0"?><case><number>1</number><tirads>4a</tirads><mark><image>1</image></mark></case>',
            "1_1.jpg": P,
            "1_2.jpg": P,
            "12.xml": b"<case><number>12</number><tirads></tirads></case>",
            "12_1.jpg": P,
        },
        {
            "1_1.jpg": ("thyroid", "TI-RADS 4a", "1", None, None),
            "1_2.jpg": ("thyroid", "TI-RADS 4a", "1", None, None),
            "12_1.jpg": ("thyroid", None, "12", None, None),
        },
    ),
    "fetal-planes-db": (
        {
            "FETAL_PLANES_DB_data.csv": b"Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
            b"Patient00001_Plane1_1_of_15;1;Other;Not A Brain;Other;Aloka;1\n"
            b"Patient00001_Plane3_1_of_2;1;Fetal brain;Trans-thalamic;Op. 1;Voluson E6;0\n"
            b"Patient01792_Plane6_1_of_1;1792;Maternal cervix;Not A Brain;Op. 1;Voluson E6;0\n",
            "FETAL_PLANES_DB_data.xlsx": b"PK",
            "Images/Patient00001_Plane1_1_of_15.png": P,
            "Images/Patient00001_Plane3_1_of_2.png": P,
            "Images/Patient01792_Plane6_1_of_1.png": P,
            "Images/Patient01792_Plane5_1_of_1.png": P,
        },
        {
            "Images/Patient00001_Plane1_1_of_15.png": ("fetus", "Other", "1", None, None),
            "Images/Patient00001_Plane3_1_of_2.png": ("fetus", "Fetal brain", "1", "Trans-thalamic", None),
            "Images/Patient01792_Plane6_1_of_1.png": ("cervix", "Maternal cervix", "1792", None, None),
            "Images/Patient01792_Plane5_1_of_1.png": ("fetus", None, "1792", None, None),
        },
    ),
    "hc18": (
        {
            "training_set_pixel_size_and_HC.csv": b"filename,pixel size(mm),head circumference (mm)\n010_HC.png,0.06,44.3\n",
            "training_set/010_HC.png": P,
            "training_set/010_HC_Annotation.png": P,
            "training_set/010_2HC.png": P,
            "test_set/010_HC.png": P,
        },
        {
            "training_set/010_HC.png": ("fetus", None, "training_set 10", "head", None),
            "training_set/010_HC_Annotation.png": ("fetus", None, "training_set 10", "head", MASK),
            "training_set/010_2HC.png": ("fetus", None, "training_set 10", "head", None),
            "test_set/010_HC.png": ("fetus", None, "test_set 10", "head", None),
        },
    ),
    "psfhs": (
        {"image_mha/03744.mha": P, "label_mha/03744.mha": P},
        {
            "image_mha/03744.mha": ("fetus", None, None, None, None),
            "label_mha/03744.mha": ("fetus", None, None, None, MASK),
        },
    ),
    "aul": (
        {
            "Benign/image/12.jpg": P,
            "Benign/segmentation/mass/12.json": b"[]",
            "Malignant/image/7.jpg": P,
            "Normal/image/3.jpg": P,
            "Normal/segmentation/liver/3.json": b"[]",
        },
        {
            "Benign/image/12.jpg": ("liver", "benign", None, None, None),
            "Malignant/image/7.jpg": ("liver", "malignant", None, None, None),
            "Normal/image/3.jpg": ("liver", "normal", None, None, None),
        },
    ),
    "gbcu": (
        {
            "train.txt": b"im00001.jpg,0\nim00002.jpg,2\n",
            "test.txt": b"im00003.jpg,1\n",
            "bbox_annot.json": b"{}",
            "imgs/im00001.jpg": P,
            "imgs/im00002.jpg": P,
            "imgs/im00003.jpg": P,
            "imgs/im00004.jpg": P,
        },
        {
            "imgs/im00001.jpg": ("gallbladder", "normal", None, None, None),
            "imgs/im00002.jpg": ("gallbladder", "malignant", None, None, None),
            "imgs/im00003.jpg": ("gallbladder", "benign", None, None, None),
            "imgs/im00004.jpg": ("gallbladder", None, None, None, None),
        },
    ),
    "mmotu": (
        {
            "OTU_2d/train.txt": b"1\n2\n",
            "OTU_2d/train_cls.txt": b"1.JPG  0\n2.JPG  7\n",
            "OTU_2d/val_cls.txt": b"3.JPG  5\n",
            "OTU_2d/images/1.JPG": P,
            "OTU_2d/images/2.JPG": P,
            "OTU_2d/images/3.JPG": P,
            "OTU_2d/annotations/1.PNG": P,
            "OTU_2d/annotations/1_binary.PNG": P,
            "OTU_CEUS/images/1.JPG": P,
        },
        {
            "OTU_2d/images/1.JPG": ("ovary", "chocolate cyst", None, None, None),
            "OTU_2d/images/2.JPG": ("ovary", "high grade serous", None, None, None),
            "OTU_2d/images/3.JPG": ("ovary", "normal ovary", None, None, None),
            "OTU_2d/annotations/1.PNG": ("ovary", None, None, None, MASK),
            "OTU_2d/annotations/1_binary.PNG": ("ovary", None, None, None, MASK),
            "OTU_CEUS/images/1.JPG": ("ovary", None, None, None, None),
        },
    ),
    "open-kidney": (
        {
            "labels/reviewed_labels_1.csv": b"filename,file_size,file_attributes,region_count\n"
            b'9_a.png,1,"{""Quality"":""Good"",""View"":""Longitudinal"",""Comments"":""transplant""}",2\n',
            "labels/reviewed_masks_1/capsule/9_a.png": P,
            "images/9_a.png": P,
            "images/10_b.png": P,
        },
        {
            "labels/reviewed_masks_1/capsule/9_a.png": ("kidney", None, None, None, MASK),
            "images/9_a.png": ("kidney", None, None, "longitudinal", None),
            "images/10_b.png": ("kidney", None, None, None, None),
        },
    ),
    "pocus": (
        {
            "data/dataset_metadata.csv": b"Date added,Current location,Filename,Label,Patient ID / Name\n"
            b"20.04.20,data/pocus_videos/Convex,Cov-Atlas-Day+1,COVID-19,35\n20.04.20,x,Cov-Atlas-Day+2,COVID-19,35\n"
            b"20.04.20,x,Reg-Atlas,regular,nd\n",
            "data/pocus_videos/convex/Cov-Atlas-Day+1.gif": P,
            "data/pocus_videos/convex/Cov-Atlas-Day+2.gif": P,
            "data/pocus_videos/convex/Reg-Atlas.gif": P,
            "data/pocus_images/linear/Pneu_liftl_pneu.png": P,
            "data/pocus_videos/linear/Vir_whitelungs2_fig3.mp4": P,
            "data/image_dataset/covid/Cov-Atlas-Day+1.gif_frame15.jpg": P,
            "data/ct/regular/NEG.102.152_NEG.jpg": P,
            ".ddev/logo.png": P,
        },
        {
            "data/pocus_videos/convex/Cov-Atlas-Day+1.gif": ("lung", "covid", "patient 35", None, None),
            "data/pocus_videos/convex/Cov-Atlas-Day+2.gif": ("lung", "covid", "patient 35", None, None),
            "data/pocus_videos/convex/Reg-Atlas.gif": ("lung", "regular", "clip reg-atlas", None, None),
            "data/pocus_images/linear/Pneu_liftl_pneu.png": ("lung", "pneumonia", "clip pneu_liftl_pneu", None, None),
            "data/pocus_videos/linear/Vir_whitelungs2_fig3.mp4": (
                *("lung", "viral pneumonia", "clip vir_whitelungs2_fig3", None, None),
            ),
            "data/image_dataset/covid/Cov-Atlas-Day+1.gif_frame15.jpg": ("lung", "covid", "patient 35", None, None),
            "data/ct/regular/NEG.102.152_NEG.jpg": (None, None, None, None, "not-ultrasound"),
            ".ddev/logo.png": (None, None, None, None, None),
        },
    ),
    "us-nerve-segmentation": (
        {"train/1_1.tif": P, "train/1_1_mask.tif": P, "test/5.tif": P, "train_masks.csv": b"subject,img,pixels\n"},
        {
            "train/1_1.tif": ("nerve", None, "1", None, None),
            "train/1_1_mask.tif": ("nerve", None, "1", None, MASK),
            "test/5.tif": ("nerve", None, None, None, None),
        },
    ),
    "butterfly": (
        {
            "training/3/4ch/a.png": P,
            "training/3/ivc/b.png": P,
            "testing/12/morisons_pouch/c.png": P,
        },
        {
            "training/3/4ch/a.png": ("heart", "4ch", "3", "4CH", None),
            "training/3/ivc/b.png": ("vessel", "ivc", "3", None, None),
            "testing/12/morisons_pouch/c.png": ("abdomen", "morisons_pouch", "12", None, None),
        },
    ),
    "ultrabench": (
        {
            "butterfly_v1.0.1/train.json": json.dumps(
                [{"patient": 3, "class": "2ch", "label": 1, "image": "images/3_2ch_a.png", "scan_mask": "m.png"}, 7, {}]
            ).encode(),
            "butterfly_v1.0.1/images/3_2ch_a.png": P,
            "butterfly_v1.0.1/masks/scan/3_2ch_a.png": P,
            "aul_mass_v1.0.1/validation.json": json.dumps(
                [{"image": "images/benign_1.jpg", "mass_mask": None, "pathology": "Benign", "label": 1}]
            ).encode(),
            "aul_mass_v1.0.1/images/benign_1.jpg": P,
            "mmotu_v1.0.1/test.json": json.dumps(
                [{"image": "images/1.png", "tumor_mask_multiclass": "x", "label": 2}]
            ).encode(),
            "mmotu_v1.0.1/images/1.png": P,
            "mmotu_v1.0.1/images/2.png": P,
            "camus_v1.0.1/test.json": json.dumps(
                [
                    {
                        "patient": 3,
                        "view": "4CH",
                        "image_quality": "Medium",
                        "EF": 52,
                        "image": "images/p.png",
                        "label": 1,
                    }
                ]
            ).encode(),
            "camus_v1.0.1/images/p.png": P,
            "pocus_v1.0.1/train.json": json.dumps(
                [{"source": "Cov-Atlas.gif", "image": "images/Cov-Atlas_0.png", "pathology": "covid", "label": 2}]
            ).encode(),
            "pocus_v1.0.1/images/Cov-Atlas_0.png": P,
            "fatty_liver_v1.0.1/train.json": json.dumps(
                [{"patient": 9, "image": "images/9_0.png", "steatosis": 20, "label": 1, "pathology": "NFLD"}]
            ).encode(),
            "fatty_liver_v1.0.1/images/9_0.png": P,
        },
        {
            "butterfly_v1.0.1/images/3_2ch_a.png": ("heart", "2ch", "butterfly 3", "2CH", None),
            "butterfly_v1.0.1/masks/scan/3_2ch_a.png": (None, None, None, None, MASK),
            "aul_mass_v1.0.1/images/benign_1.jpg": ("liver", "benign", None, None, None),
            "mmotu_v1.0.1/images/1.png": ("ovary", "teratoma", None, None, None),
            "mmotu_v1.0.1/images/2.png": (None, None, None, None, None),
            "camus_v1.0.1/images/p.png": ("heart", "medium", "camus 3", "4CH", None),
            "pocus_v1.0.1/images/Cov-Atlas_0.png": ("lung", "covid", "pocus Cov-Atlas.gif", None, None),
            "fatty_liver_v1.0.1/images/9_0.png": ("liver", "NFLD", "fatty-liver 9", None, None),
        },
    ),
}
IMPORTERS = [key for key, dataset in PUBLIC.items() if dataset.annotate]


def _annotate(key: str, files: dict[str, bytes]) -> dict[str, Annotation]:
    return PUBLIC[key].annotate(list(files), files.__getitem__)


def _expected(key: str) -> dict[str, Annotation]:
    return {name: Annotation(*row) for name, row in CASES[key][1].items()}


def _without_licence(annotations: dict[str, Annotation]) -> dict[str, Annotation]:
    return {name: replace(a, licence=None) for name, a in annotations.items()}


def _from_folder(root: Path, key: str) -> dict[str, Annotation]:
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return PUBLIC[key].annotate(names, lambda name: (root / name).read_bytes())


def test_every_importer_has_a_case():
    assert set(CASES) == set(IMPORTERS) and len(IMPORTERS) >= 16


@pytest.mark.parametrize("top", ["", "Dataset_of_Somebody/", "a/b/"])
@pytest.mark.parametrize("key", IMPORTERS)
def test_published_layout_in_a_folder(key, top, tmp_path):
    for name, content in CASES[key][0].items():
        (tmp_path / top / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / top / name).write_bytes(content)
    expected = {top + name: annotation for name, annotation in _expected(key).items()}
    assert _without_licence(_from_folder(tmp_path, key)) == expected


@pytest.mark.parametrize("key", IMPORTERS)
def test_published_layout_in_a_zip(key, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name, content in CASES[key][0].items():
            archive.writestr("Top/" + name, content)
            # What macOS adds when it zips a folder.
            archive.writestr("__MACOSX/Top/" + name.replace("/", "/._"), b"\0\5\x16\7")
    with zipfile.ZipFile(tmp_path / "data.zip") as archive:
        found = PUBLIC[key].annotate(archive.namelist(), archive.read)
    expected = {"Top/" + name: annotation for name, annotation in _expected(key).items()}
    assert _without_licence({n: a for n, a in found.items() if not n.startswith("__MACOSX")}) == expected
    assert {a.skip for n, a in found.items() if n.startswith("__MACOSX")} == {"no-image"}


@pytest.mark.parametrize("key", IMPORTERS)
def test_answers_stay_in_the_table(key):
    dataset = PUBLIC[key]
    found = _annotate(key, CASES[key][0])
    assert {a.label for a in found.values()} <= {None, *dataset.labels}
    assert {a.view for a in found.values()} <= {None, *dataset.views}
    assert {a.skip for a in found.values()} <= {None, *REASONS}
    assert {a.organ for a in found.values()} <= {None, *(dataset.organs or ORGANS)}
    # The table promises no label or view that nothing gives: each kind is seen in the case.
    assert bool(dataset.labels) == any(a.label for a in found.values())
    assert bool(dataset.views) == any(a.view for a in found.values())


@pytest.mark.parametrize("key", IMPORTERS)
def test_another_layout_is_refused_with_what_was_expected(key):
    for files in ({}, {"holiday/beach.jpg": P, "notes.csv": b"a,b\n"}, {"mask.png": P}):
        with pytest.raises(ValueError, match="Expected, under any folder"):
            _annotate(key, files)


@pytest.mark.parametrize(
    "key, side_file",
    [
        ("bus-bra", "bus_data.csv"),
        ("echonet-dynamic", "FileList.csv"),
        ("fetal-planes-db", "FETAL_PLANES_DB_data.csv"),
        ("open-kidney", "labels/reviewed_labels_1.csv"),
    ],
)
def test_missing_side_file_and_missing_column_are_named(key, side_file):
    files = dict(CASES[key][0])
    content = files.pop(side_file)
    with pytest.raises(ValueError, match=side_file.rsplit("/", 1)[-1]):
        _annotate(key, files)
    header, rows = content.split(b"\n", 1)
    with pytest.raises(ValueError, match="no column"):
        _annotate(key, {**files, side_file: header.replace(b"e", b"x") + b"\n" + rows})


@pytest.mark.parametrize("key", ["tn3k", "bus-uclm", "camus", "breast-lesions-usg"])
def test_optional_side_files_only_cost_the_labels(key):
    files = {name: c for name, c in CASES[key][0].items() if not name.endswith((".csv", ".cfg"))}
    expected = {name: replace(a, label=None) for name, a in _expected(key).items()}
    assert _annotate(key, files) == expected


@pytest.mark.parametrize("key", IMPORTERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_hostile_side_files(key, data):
    """Any content of the side files gives annotations of the closed lists, or ValueError."""
    files = dict(CASES[key][0])
    for name, content in files.items():
        if content is not P:
            cut = data.draw(st.integers(0, len(content)))
            files[name] = data.draw(st.sampled_from([content[:cut], b""])) + data.draw(st.binary(max_size=40))
    try:
        found = _annotate(key, files)
    except ValueError:
        return
    assert set(found) == set(CASES[key][1])
    assert {a.label for a in found.values()} <= {None, *PUBLIC[key].labels}
    assert {a.view for a in found.values()} <= {None, *PUBLIC[key].views}


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{}", b"null", b"[[]]", b'[{"image": {}}]', b'"\xff"', b"NaN"])
def test_hostile_json(content):
    files = {"train.json": content, "images/a.png": P}
    with pytest.raises(ValueError):
        _annotate("ultrabench", files)


def test_names_in_a_table_never_become_labels():
    files = dict(CASES["fetal-planes-db"][0])
    table = files["FETAL_PLANES_DB_data.csv"]
    files["FETAL_PLANES_DB_data.csv"] = table.replace(b"Maternal cervix", b"Anna Miller").replace(b"Trans-", b"Miller-")
    found = _annotate("fetal-planes-db", files)
    assert {a.label for a in found.values()} == {None, "Other", "Fetal brain"}
    assert {a.view for a in found.values()} == {None}


def test_ddti_of_trfe_net():
    found = _annotate("ddti", {"DDTI/image/1.PNG": P, "DDTI/mask/1.PNG": P})
    assert found == {"DDTI/image/1.PNG": Annotation("thyroid"), "DDTI/mask/1.PNG": Annotation("thyroid", skip=MASK)}


def test_ultrabench_of_one_task_and_its_licences():
    files = {"train.json": b'[{"image": "images/a.png", "bboxes": [], "pathology": "normal"}]', "images/a.png": P}
    expected = Annotation("gallbladder", "normal", licence=PUBLIC["gbcu"].licence)
    assert _annotate("ultrabench", files)["images/a.png"] == expected


def test_table_lists_every_data_set_that_is_known():
    names = """radimagenet-us echonet-dynamic echonet-pediatric echonet-lvh camus cardiacudc cactus cca-ui segthy
        stanford-thyroid tn3k tg3k ddti tn5000 busi bus-bra bus-uc bus-uclm breast-lesions-usg buv abus-tdsc
        fetal-planes-db hc18 acouslic psfhs aul fatty-liver 105us sysu-ceus-fll bmode-ceus-liver open-kidney trusted
        gbcu gb1 lepset gist514-db mmotu pcos-us uf1990 prostate-mri-us-biopsy prostate-trus microseg pocus covidx-us
        covid-blues brachial-plexus us-nerve-segmentation stmus-nda fallmud luminous remind butterfly ultrabench"""
    assert set(PUBLIC) == set(names.split())
    for key, dataset in PUBLIC.items():
        assert dataset.key == key and dataset.count and dataset.where and dataset.licence and dataset.title
        assert dataset.organs or key in ("radimagenet-us", "ultrabench")
        assert dataset.annotate or not (dataset.labels or dataset.views)


def test_list_fits_a_terminal():
    table = list_table()
    lines = table.splitlines()
    assert max(map(len, lines)) <= 120
    assert all(any(line.startswith(key + " ") for line in lines) for key in PUBLIC)
    assert "recipes/prepare.py NAME=FOLDER_OR_ZIP --output_dir corpus" in table
    column = lines[0].index("licence")
    assert all(line[column - 1] == " " for line in lines[: len(PUBLIC)])


@pytest.mark.parametrize(
    "name, key", [("BUS-BRA", "bus-bra"), ("busbra", "bus-bra"), ("FETAL_PLANES_DB", "fetal-planes-db")]
)
def test_find_public(name, key):
    assert find_public(name) is PUBLIC[key]


def test_find_public_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'echonet-dynamic'.*--list"):
        find_public("echonet-dynamics")


def test_modules_import_nothing_heavy():
    code = (
        "import sys, types; p = types.ModuleType('modeling_urfm'); p.__path__ = [sys.argv[1]]; sys.modules['modeling_urfm'] = p\n"
        "d = types.ModuleType('modeling_urfm.data'); d.__path__ = [sys.argv[1] + '/data']; sys.modules[d.__name__] = d\n"
        "import modeling_urfm.data.public, modeling_urfm.data.organs\n"
        "assert not {'torch', 'transformers', 'pydicom', 'numpy'} & set(sys.modules)"
    )
    package = Path(sys.modules["modeling_urfm"].__file__).parent
    subprocess.run([sys.executable, "-c", code, str(package)], check=True)
