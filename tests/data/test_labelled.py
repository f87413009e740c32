# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Folders of classes and of masks, as users have them: mixed formats, leftovers, odd names; what is wrong is named."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from modeling_urfm.data.labelled import load_labelled
from modeling_urfm.data.reading import ultrasound_examples

from .labelled_inputs import SIZE, blob, class_folders, mask_folders, noise, save, write_csv


def load(path, task="classification", **options):
    return load_labelled(str(path), task, progress=False, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("classes") / "Bäuche (roh)")


def test_folders_of_a_split_and_the_validation_cut_from_train(folders):
    data = load(folders)
    assert len(data) == 48 and data.label_names == ("kidney", "liver", "spleen") and data.labels.dtype == np.int64
    assert [len(data.rows(side)) for side in ("train", "validation", "test")] == [21, 3, 24]
    assert set(data.labels[data.rows("validation")]) == {0, 1, 2}
    row = data.rows("test")[9]
    assert data.corpus.id(row) == "test/liver/test1.png" and data.label_names[data.labels[row]] == "liver"
    item = data.corpus[row]
    assert item["pixels"].shape == (1, *SIZE) and item["pixels"].dtype.is_floating_point is False
    assert np.array_equal(item["pixels"][0], Image.open(folders / "test/liver/test1.png"))
    assert any("every image counts as one patient" in note for note in data.notes) and data.left_out == ()
    assert "train: 21 images of 21 patients (kidney 7, liver 7, spleen 7)" in data.description
    assert data.fingerprint == load(folders).fingerprint and data.fingerprint != load(folders, seed=1).fingerprint
    assert data.split_fingerprint != load(folders, seed=1).split_fingerprint
    with pytest.raises(ValueError, match="Did you mean 'validation'"):
        data.rows("valid")
    with pytest.raises(ValueError, match="has no masks"):
        data.mask(0)


def test_a_part_of_a_data_set_is_one_and_travels_to_workers(folders):
    data = load(folders)
    part = pickle.loads(pickle.dumps(data.select(data.rows("test")[::-1])))
    assert len(part) == 24 and part.corpus.id(0) == "test/spleen/test7.png" and set(part.splits) == {"test"}
    assert (
        np.array_equal(part.corpus[0]["pixels"], data.corpus[data.rows("test")[-1]]["pixels"]) and part.labels[0] == 2
    )
    assert part.fingerprint != data.fingerprint


def test_folders_without_a_split_are_cut_and_the_fractions_are_kept(tmp_path):
    data = load(class_folders(tmp_path, sides=(), count=20), validation_fraction=0.1, test_fraction=0.3)
    assert [len(data.rows(side)) for side in ("train", "validation", "test")] == [36, 6, 18]
    with pytest.raises(ValueError, match="must leave some to train on"):
        load(tmp_path, test_fraction=0.9)


def test_mixed_formats_capital_suffixes_and_leftovers_of_other_systems(tmp_path):
    root = class_folders(tmp_path / "unpacked" / "set", sides=("Train", "VAL", "Test"), classes=("10", "9"), count=3)
    for name, options in (("a.JPG", {"format": "jpeg"}), ("b.bmp", {}), ("c.TIF", {"format": "tiff"}), ("d.gif", {})):
        save(root / "Train" / "9" / name, noise(1, channels=1), **options)
    save(root / "Train" / "9" / "e.png", noise(2, channels=3))
    for name in (".DS_Store", "Thumbs.db", "._a.JPG", "notes.txt", "desktop.ini"):
        (root / "Train" / "9" / name).write_bytes(b"no image")
    (root / "Train" / "@eaDir").mkdir()
    (root / "Train" / "@eaDir" / "thumb.jpg").write_bytes(b"no image")
    (tmp_path / "unpacked" / "__MACOSX").mkdir()
    (tmp_path / "unpacked" / "__MACOSX" / "x.png").write_bytes(b"no image")
    data = load(tmp_path / "unpacked")
    assert data.label_names == ("9", "10") and len(data) == 3 * 2 * 3 + 5 and data.left_out == ()
    assert [len(data.rows(side)) for side in ("train", "validation", "test")] == [11, 6, 6]
    shapes = {data.corpus.id(row).rsplit("/")[-1]: tuple(data.corpus[row]["pixels"].shape) for row in range(len(data))}
    assert shapes["e.png"] == (3, *SIZE) and all(shape[1:] == SIZE for shape in shapes.values())


def test_images_that_a_camera_turned_are_turned_back(tmp_path):
    root = class_folders(tmp_path, sides=(), count=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(noise(0)).save(root / "liver" / "turned.jpg", exif=exif)
    data = load(root)
    turned = next(row for row in range(len(data)) if data.corpus.id(row) == "liver/turned.jpg")
    assert data.corpus[turned]["pixels"].shape[1:] == SIZE[::-1]


def test_what_can_not_be_used_is_listed_with_its_reason(folders, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(folders, root)
    (root / "train" / "liver" / "broken.png").write_bytes((root / "train" / "liver" / "train0.png").read_bytes()[:60])
    (root / "train" / "liver" / "text.png").write_text("not an image")
    (root / "train" / "ovary").mkdir()
    save(root / "train" / "stray.png", noise(77))
    save(root / "train" / "liver" / "train0_mask.png", noise(78))
    (root / "docs").mkdir()
    left = dict(load(root).left_out)
    assert set(left) == {"train/liver/broken.png", "train/liver/text.png", "train/ovary/", "train/stray.png",
                         "train/liver/train0_mask.png", "docs/"}  # fmt: skip
    # Nothing of it differs from run to run, as the place of a file in memory does.
    assert "can't be read" in left["train/liver/broken.png"] and "0x" not in "".join(left.values())
    assert "without any file" in left["train/ovary/"]
    assert "without label" in left["train/stray.png"] and "mask of another" in left["train/liver/train0_mask.png"]


def test_a_frame_of_a_cine_loop_is_an_image_of_its_files_patient(tmp_path):
    root = class_folders(tmp_path, sides=("train", "test"), classes=("heart", "node"), count=3)
    for path in ultrasound_examples():
        if path.name == "examples_ybr_color.dcm":
            shutil.copy(path, root / "train" / "heart" / "loop")
    data = load(root)
    loop = [row for row in range(len(data)) if data.patients[row] == "train/heart/loop"]
    assert len(loop) == 30 and data.corpus.id(loop[4]) == "train/heart/loop#4" and len(set(data.splits[loop])) == 1
    assert data.corpus[loop[0]]["pixels"].shape == (3, 240, 320)
    assert not np.array_equal(data.corpus[loop[0]]["pixels"], data.corpus[loop[20]]["pixels"])


def test_errors_of_folders_name_what_is_there_and_what_is_nearest(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="Did you mean"):
        load(str(folders) + "x")
    with pytest.raises(ValueError, match="Did you mean 'classification'"):
        load(folders, "clasification")
    with pytest.raises(ValueError, match="folders of classes. Wanted: train/CLASS.*The folder is empty"):
        load(tmp_path)
    root = tmp_path / "set"
    shutil.copytree(folders, root)
    (root / "test" / "liver").rename(root / "test" / "Liver")
    with pytest.raises(ValueError, match="test has classes that train lacks: Liver. Did you mean 'liver'"):
        load(root)
    shutil.rmtree(root / "test")
    assert any("only train is given" in note for note in load(root).notes)
    (root / "train").rename(root / "test")
    shutil.copytree(root / "test", root / "val")
    with pytest.raises(ValueError, match="only validation and test: none of it may be trained on"):
        load(root)
    one = class_folders(tmp_path / "one", classes=("liver",))
    with pytest.raises(ValueError, match="one class alone"):
        load(one)
    few = class_folders(tmp_path / "few", sides=(), count=5)
    for number in range(3):
        (few / "spleen" / f"{number}.png").unlink()
    with pytest.raises(ValueError, match=r"fewer patients than the 3 sides .*spleen \(2\)"):
        load(few)
    for path in (few / "liver").iterdir():
        path.write_bytes(b"x")
    for path in (few / "kidney").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match="only 2 images can be used, 10 can't"):
        load(few)


def test_a_table_beside_folders_tells_the_patients(folders, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(folders, root)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = [(name, f"{name.split('/')[0]}-{number // 2}") for number, name in enumerate(files)]
    write_csv(root / "patients.csv", [("file_name", "patient_id"), *rows[:-1]])
    data = load(root)
    assert data.patients[0] == "test-0" or data.patients[0] == "train-12"
    assert len(set(data.patients)) == 25 and any("1 images have no patient id" in note for note in data.notes)
    write_csv(root / "patients.csv", [("file_name", "patient_id"), *[(name, "the same") for name, _ in rows]])
    with pytest.raises(
        ValueError, match="patient the same: train/kidney/train0.png .train. and test/|patient the same: test/"
    ):
        load(root)
    write_csv(root / "patients.csv", [("file_name", "patient_id"), ("elsewhere.png", "p")])
    assert any("patients.csv was not used" in note for note in load(root).notes)
    with pytest.raises(
        ValueError, match="patients.csv was not used: it names no images with their patients. Its columns"
    ):
        load(root, patient_column="patient_id")
    with pytest.raises(ValueError, match="no column 'patent_id'.*Did you mean 'patient_id'"):
        load(root, patient_column="patent_id")
    (root / "patients.csv").unlink()
    with pytest.raises(ValueError, match="--patient_column patient_id asks for a table"):
        load(root, patient_column="patient_id")


def test_copies_of_an_image_stay_on_one_side_and_contradictions_are_told(tmp_path):
    root = class_folders(tmp_path / "cut", sides=(), count=10)
    for number in range(4):
        shutil.copy(root / "liver" / "0.png", root / "liver" / f"copy{number}.png")
    shutil.copy(root / "liver" / "0.png", root / "kidney" / "copy.png")
    data = load(root)
    twins = [row for row in range(len(data)) if "copy" in data.corpus.id(row) or data.corpus.id(row) == "liver/0.png"]
    assert len(twins) == 6 and len(set(data.splits[twins])) == 1 and len(set(data.patients[twins])) == 1
    assert any("different labels" in note and "kidney/copy.png = liver/0.png" in note for note in data.notes)
    given = class_folders(tmp_path / "given")
    shutil.copy(given / "train" / "liver" / "train0.png", given / "test" / "liver" / "again.png")
    split = load(given)
    assert ("train/liver/train0.png", "byte for byte the image test/liver/again.png of the test side") in split.left_out
    assert "train/liver/train0.png" not in split.corpus.ids and "test/liver/again.png" in split.corpus.ids


# ---------------------------------------------------------------- masks


def test_images_and_masks_of_equal_names(tmp_path):
    data = load(mask_folders(tmp_path, ends=(".jpg", ".png")), "segmentation")
    assert len(data) == 12 and data.label_names == ("background", "foreground")
    assert np.array_equal(data.labels, np.ones((12, 2))) and data.labels.dtype == np.float32
    row = next(row for row in range(12) if data.corpus.id(row) == "images/case 7.jpg")
    assert np.array_equal(data.mask(row), blob(7)) and data.mask(row).dtype == np.uint8
    part = pickle.loads(pickle.dumps(data.select([row])))
    assert np.array_equal(part.mask(0), blob(7)) and part.corpus.id(0) == "images/case 7.jpg"
    before = data.fingerprint
    save(tmp_path / "masks" / "case 7.png", (255 * blob(8)).astype(np.uint8))
    assert load(tmp_path, "segmentation").fingerprint != before


@pytest.mark.parametrize("layout", ["{side}/{kind}", "{kind}/{side}", "Set/{Kind}/{Side}"])
def test_masks_with_a_split_above_or_below(tmp_path, layout):
    for side in ("train", "test"):
        for number in range(6):
            words = {"side": side, "Side": side.capitalize()}
            images = tmp_path / layout.format(kind="images", Kind="Images", **words)
            masks = tmp_path / layout.format(kind="masks", Kind="masks", **words)
            save(images / f"{side}{number}.JPG", noise(number + 10 * len(side)), format="jpeg")
            save(masks / f"{side}{number}_mask.png", (blob(number) * (1 + number % 2)).astype(np.uint8))
    data = load(tmp_path, "segmentation", validation_fraction=0.34)
    assert len(data) == 12 and [len(data.rows(side)) for side in ("train", "test")] == [4, 6]
    assert data.label_names == ("background", "id 1", "id 2") and data.labels[:, 2].sum() == 6


def test_masks_beside_their_images_several_of_one_image_and_of_another_word(tmp_path):
    busi = tmp_path / "Dataset_BUSI"
    for number in range(1, 7):
        save(busi / "benign" / f"benign ({number}).png", noise(number))
        save(busi / "benign" / f"benign ({number})_mask.png", blob(number))
    save(busi / "benign" / "benign (3)_mask_1.png", np.pad(np.ones((2, 2), bool), ((22, 0), (30, 0))))
    data = load(busi, "segmentation")
    row = next(row for row in range(6) if "(3)" in data.corpus.id(row))
    assert len(data) == 6 and data.mask(row)[:-2].any() and data.mask(row)[-2:, -2:].all()
    bra = tmp_path / "bra"
    for number in range(6):
        save(bra / "Images" / f"bus_{number:04d}-l.png", noise(number))
        save(bra / "Masks" / f"mask_{number:04d}-l.png", (255 * blob(number)).astype(np.uint8))
    data = load(bra, "segmentation")
    assert len(data) == 6 and np.array_equal(data.mask(2), blob(int(data.corpus.id(2)[11:15])))


def test_masks_that_do_not_fit_are_listed(tmp_path):
    root = mask_folders(tmp_path)
    save(root / "masks" / "case 0.png", noise(0, (10, 10)))
    (root / "masks" / "case 1.png").unlink()
    save(root / "masks" / "alone.png", np.zeros(SIZE, np.uint8))
    save(root / "masks" / "case 2.png", np.stack([255 * blob(2), 0 * blob(2), 0 * blob(2)], -1).astype(np.uint8))
    (root / "masks" / "case 3.png").write_bytes(b"nothing")
    save(root / "previews" / "case 0.png", noise(3))
    data = load(root, "segmentation")
    left = dict(data.left_out)
    assert len(data) == 8 and len(left) == 6
    assert left["images/case 0.png"] == "its mask has 10 x 10 pixels, the image 24 x 32"
    assert left["images/case 1.png"] == "an image without mask" and left["masks/alone.png"] == "a mask without image"
    assert "coloured mask" in left["images/case 2.png"] and "no mask that can be read" in left["images/case 3.png"]
    with pytest.raises(ValueError, match="Wanted: folders images/ and masks/"):
        load(class_folders(tmp_path / "none"), "segmentation")


def test_declared_classes_and_ids_that_no_training_mask_shows(tmp_path):
    root = mask_folders(tmp_path / "ids", foreground=1)
    (root / "classes.txt").write_text("background\nlesion\nshadow\n")
    data = load(root, "segmentation")
    assert data.label_names == ("background", "lesion", "shadow") and not data.labels[:, 2].any()
    save(root / "masks" / "case 4.png", (3 * blob(4)).astype(np.uint8))
    with pytest.raises(ValueError, match=r"unknown ids 3 where 3 are declared \(0 to 2\): images/case 4.png"):
        load(root, "segmentation")
    (root / "classes.txt").write_text("background\n")
    with pytest.raises(ValueError, match="must name the background and every id"):
        load(root, "segmentation")
    for side in ("train", "test"):
        for number in range(4):
            save(tmp_path / "split" / side / "images" / f"{side}{number}.png", noise(number + len(side)))
            mask = blob(number) * (2 if (side, number) == ("test", 3) else 1)
            save(tmp_path / "split" / side / "masks" / f"{side}{number}.png", mask.astype(np.uint8))
    with pytest.raises(ValueError, match=r"no training mask shows \(id 2\) are in test/images/test3.png"):
        load(tmp_path / "split", "segmentation")
