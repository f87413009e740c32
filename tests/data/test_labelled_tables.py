# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Tables of labels: CSV, TSV, JSON lines, Parquet, data sets of `datasets`; columns found, asked for and misspelt."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_urfm.data.labelled import load_labelled
from modeling_urfm.data.phantoms import encode_png

from .labelled_inputs import SIZE, blob, noise, save, write_csv
from .small_corpus import write_small_corpus


COUNT = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        save(root / "images" / f"im{number:02d}.png", noise(number))
        save(root / "masks" / f"im{number:02d}.png", (255 * blob(number)).astype(np.uint8))
    return root


@pytest.fixture
def root(pictures, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).symlink_to(pictures / name)
    return tmp_path


def rows_of(*columns) -> list[tuple]:
    return [tuple(column(n) if callable(column) else column for column in columns) for n in range(COUNT)]


def path_of(number: int) -> str:
    return f"images/im{number:02d}.png"


def kind(number: int) -> str:
    return ("normal", "benign", "malignant")[number % 3]


def load(path, task="classification", **options):
    return load_labelled(str(path), task, progress=False, **options)


@pytest.mark.parametrize(
    "name, mark", [("labels.csv", ","), ("labels.csv", ";"), ("metadata.tsv", "\t"), ("all.csv", ",")]
)
def test_columns_of_the_usual_names(root, name, mark):
    side = ("train", "train", "train", "Val", "TEST", "train")
    rows = rows_of(path_of, kind, lambda n: n // 4, lambda n: side[n // 4])
    write_csv(root / name, [("File Name", "Pathology", "Patient ID", "split"), *rows], mark)
    for path in (root / name, root):
        data = load(path)
        assert data.label_names == ("benign", "malignant", "normal") and len(data) == COUNT
        assert [len(data.rows(s)) for s in ("train", "validation", "test")] == [16, 4, 4]
        assert data.label_names[data.labels[4]] == "benign" and data.patients[4] == "1"
        assert data.corpus.id(4) == "images/im04.png" and not data.left_out


def test_a_split_is_cut_by_the_patients_of_the_table(root):
    rows = rows_of(path_of, kind, lambda n: n // 2)
    data = load(write_csv(root / "t.csv", [("image", "label", "patient"), *rows]), seed=3)
    assert len(set(data.patients)) == 12 and not any("no patient" in note for note in data.notes)
    assert all(len(set(data.splits[data.patients == patient])) == 1 for patient in data.patients)


def test_names_without_suffix_or_folder_and_another_root(root, pictures, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    rows = rows_of(lambda n: f"im{n:02d}", kind)
    table = write_csv(elsewhere / "t.csv", [("ID", "class"), *rows])
    with pytest.raises(ValueError, match=r"which column names the images.*ID \(24 different texts\)"):
        load(table)
    with pytest.raises(ValueError, match="none of its 24 rows names an image.*--image_root"):
        load(table, image_column="ID")
    with pytest.raises(FileNotFoundError, match="--image_root nowhere"):
        load(table, image_column="ID", image_root="nowhere")
    assert len(load(table, image_root=str(pictures / "images"))) == COUNT  # ID is the column whose cells name files
    data = load(table, image_column="ID", image_root=str(pictures / "images"))
    assert len(data) == COUNT and data.corpus.id(0) == "im00.png"
    write_csv(root / "labels.csv", [("image", "class"), *rows_of(lambda n: f"C:\\scans\\im{n:02d}.PNG", kind)])
    data = load(root)
    assert data.corpus.id(5) == "images/im05.png" and data.left_out == ()


def test_rows_that_can_not_be_used_and_images_without_label_are_listed(root):
    rows = rows_of(path_of, kind)
    rows[3], rows[5] = ("images/gone.png", "benign"), (path_of(5), None)
    rows += [rows[7], (None, "benign")]
    data = load(write_csv(root / "labels.csv", [("image", "label"), *rows]))
    left = dict(data.left_out)
    assert len(data) == COUNT - 2 and left["labels.csv row 4"] == "its image is not there: images/gone.png"
    assert left["labels.csv row 25"] == "it is a copy of labels.csv row 8" and "labels.csv row 26" in left
    assert left["images/im05.png"] == "an image without label"
    assert left["images/im03.png"] == "an image without label: no row names it" and len(left) == 5


def test_errors_of_tables_name_rows_and_columns(root):
    path, rows = root / "labels.csv", rows_of(path_of, kind, lambda n: f"p{n}")
    write_csv(path, [("image", "diag", "who"), *rows])
    with pytest.raises(
        ValueError, match=r"which column holds the label.*diag \(3 different texts\), who \(24 different"
    ):
        load(path)
    with pytest.raises(ValueError, match="no column 'diagn' .--label_columns.. Did you mean 'diag'"):
        load(path, label_columns=["diagn"])
    with pytest.raises(ValueError, match="24 different values in 24 rows, which are no classes.*regression"):
        load(path, label_columns=["who"])
    with pytest.raises(ValueError, match="classification takes one column"):
        load(path, label_columns=["diag", "who"])
    write_csv(path, [("image", "label"), *rows_of(path_of, kind), (path_of(2), "normal")])
    with pytest.raises(ValueError, match=r"two labels: images/im02.png \(labels.csv row 3 and labels.csv row 25\)"):
        load(path)
    write_csv(path, [("image", "label", "split"), *rows_of(path_of, kind, lambda n: "train" if n else "holdout")])
    with pytest.raises(
        ValueError, match=r"must say train, validation or test; these don't: labels.csv row 1 \(holdout\)"
    ):
        load(path)
    write_csv(path, [("image", "label", "patient", "split"),
                     *rows_of(path_of, kind, lambda n: n // 4, lambda n: "train" if n < 14 else "test")])  # fmt: skip
    with pytest.raises(ValueError, match=r"patient 3: images/im12.png \(train\) and images/im14.png \(test\)"):
        load(path)
    path.write_text("image,label\nimages/im00.png,a,b\n")
    with pytest.raises(ValueError, match="more cells than the header's 2: 1"):
        load(path)
    path.write_text("image,label,label\n")
    with pytest.raises(ValueError, match="the columns label more than once"):
        load(path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        load(path)


def test_findings_in_columns_of_0_and_1_in_one_text_and_in_lists(root):
    rows = rows_of(path_of, lambda n: n % 2, lambda n: "yes" if n % 3 == 0 else "no")
    path = write_csv(root / "t.csv", [("image", "cyst", "stone"), *rows])
    data = load(path, "multilabel", label_columns=["cyst", "stone"])
    assert (
        data.label_names == ("cyst", "stone") and data.labels[3].tolist() == [1, 1] and data.labels.dtype == np.float32
    )
    write_csv(path, [("image", "findings"), *rows_of(path_of, lambda n: ("", "cyst", "cyst; stone")[n % 3])], ",")
    data = load(path, "multilabel")
    assert data.label_names == ("cyst", "stone") and data.labels[:3].tolist() == [[0, 0], [1, 0], [1, 1]]
    lines = [json.dumps({"file_name": path_of(n), "labels": ["a", "b"][: n % 3]}) for n in range(COUNT)]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    assert load(root / "metadata.jsonl", "multilabel").labels[:3].tolist() == [[0, 0], [1, 0], [1, 1]]
    rows[4] = (path_of(4), 2, "no")
    write_csv(path, [("image", "cyst", "stone"), *rows])
    with pytest.raises(ValueError, match=r"findings must be 0 or 1; these are not: t.csv row 5 \(cyst: 2\)"):
        load(path, "multilabel", label_columns=["cyst", "stone"])


def test_targets_and_what_is_no_number(root):
    rows = rows_of(path_of, lambda n: f"{n},5", lambda n: n)
    rows[2], rows[9], rows[10] = (path_of(2), "NaN", 2), (path_of(9), None, 9), (path_of(10), "inf", 3)
    path = write_csv(root / "t.csv", [("image", "depth", "age"), *rows], ";")
    data = load(path, "regression", label_columns=["depth", "age"])
    assert data.label_names == ("depth", "age") and data.labels[0].tolist() == [0.5, 0] and len(data) == COUNT - 3
    assert dict(data.left_out)["images/im09.png"] == "a target that is missing or no finite number"
    rows[1] = (path_of(1), "deep", 1)
    write_csv(path, [("image", "depth", "age"), *rows], ";")
    with pytest.raises(ValueError, match=r"targets must be numbers; these are not: t.csv row 2 \(depth: deep\)"):
        load(path, "regression", label_columns=["depth"])


def test_masks_of_a_table_and_patients_of_folders_of_masks(root):
    rows = rows_of(path_of, lambda n: f"masks/im{n:02d}.png", lambda n: n // 2)
    data = load(write_csv(root / "t.csv", [("image", "mask", "patient"), *rows]), "segmentation")
    assert len(data) == COUNT and np.array_equal(data.mask(3), blob(3)) and len(set(data.patients)) == 12
    data = load(root, "segmentation")  # folders images/ and masks/, the table tells the patients
    assert len(data) == COUNT and len(set(data.patients)) == 12 and not any("no patient" in n for n in data.notes)


def test_a_table_in_every_folder_of_a_split(pictures, tmp_path):
    for side in ("train", "test"):
        for number in range(6):
            save(tmp_path / side / f"{side}{number}.png", noise(number + 20 * len(side)))
        lines = [(f"{side}{number}.png", kind(number)) for number in range(6)]
        write_csv(tmp_path / side / "metadata.csv", [("file_name", "label"), *lines])
    data = load(tmp_path, validation_fraction=0.4)
    assert len(data.rows("test")) == 6 and {data.corpus.id(row) for row in data.rows("test")} == {
        f"test/test{number}.png" for number in range(6)
    }


def test_paths_that_begin_with_a_side_tell_the_split(tmp_path):
    rows = []
    for side in ("train", "val", "test"):
        for number in range(6):
            save(tmp_path / side / f"{number}.png", noise(number + 20 * len(side)))
            rows.append((f"{side}/{number}.png", kind(number)))
    data = load(write_csv(tmp_path / "labels.csv", [("file_name", "label"), *rows]).parent)
    assert [len(data.rows(side)) for side in ("train", "validation", "test")] == [6, 6, 6]


def test_breast_masks_with_their_table(tmp_path):
    rows = []
    for number in range(24):
        save(tmp_path / "Images" / f"bus_{number:04d}-l.png", noise(number))
        save(tmp_path / "Masks" / f"mask_{number:04d}-l.png", (255 * blob(number)).astype(np.uint8))
        rows.append((f"bus_{number:04d}-l", number // 2, ("benign", "malignant")[number // 2 % 2], "n/a"))
    write_csv(tmp_path / "bus_data.csv", [("ID", "Case", "Pathology", "BBOX"), *rows])
    data = load(tmp_path)
    assert data.label_names == ("benign", "malignant") and len(set(data.patients)) == 12 and data.left_out == ()
    data = load(tmp_path, "segmentation")
    assert len(data) == 24 and len(set(data.patients)) == 12 and data.masks[0].any()


# ---------------------------------------------------------------- images within tables


def table(**columns) -> datasets.Dataset:
    images = [Image.fromarray(noise(number)) for number in range(COUNT)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["normal", "benign", "malignant"])}
    labels = [number % 3 for number in range(COUNT)]
    for name in columns:
        features[name] = datasets.Image() if name == "mask" else datasets.Value("string")
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels, **columns}, features=datasets.Features(features)
    )


def test_parquet_with_images_masks_and_names_of_classes(tmp_path):
    masks = [{"bytes": encode_png((255 * blob(number)).astype(np.uint8)), "path": None} for number in range(COUNT)]
    whole = table(mask=masks, patient=[f"p{number // 2}" for number in range(COUNT)])
    whole.to_parquet(str(tmp_path / "all.parquet"))
    for path in (tmp_path, tmp_path / "all.parquet"):
        data = load(path)
        assert data.label_names == ("normal", "benign", "malignant") and len(set(data.patients)) == 12
        assert data.corpus.id(5) == "all.parquet#5" and np.array_equal(data.corpus[5]["pixels"][0], noise(5))
    data = load(tmp_path, "segmentation")
    assert np.array_equal(data.mask(7), blob(7)) and data.corpus[7]["pixels"].shape == (1, *SIZE)
    split = tmp_path / "split" / "data"
    split.mkdir(parents=True)
    for side, rows in (("train", range(0, 16)), ("validation", range(16, 20)), ("test", range(20, 24))):
        whole.select(rows).to_parquet(str(split / f"{side}-00000-of-00001.parquet"))
    data = load(tmp_path / "split")
    assert [len(data.rows(s)) for s in ("train", "validation", "test")] == [16, 4, 4]


def test_data_sets_saved_by_datasets(tmp_path):
    whole = table()
    parts = datasets.DatasetDict(train=whole.select(range(18)), test=whole.select(range(18, 24)))
    parts.save_to_disk(str(tmp_path / "saved"))
    data = load(tmp_path / "saved", validation_fraction=0.3)
    assert len(data.rows("test")) == 6 and data.corpus.id(20) == "test#2" and data.label_names[0] == "normal"
    assert np.array_equal(data.corpus[20]["pixels"][0], noise(20))
    whole.save_to_disk(str(tmp_path / "one"))
    assert len(load(tmp_path / "one").rows("test")) in (4, 5, 6)
    datasets.DatasetDict(train=whole, extra=whole).save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(ValueError, match="parts that are no sides of a split: extra"):
        load(tmp_path / "odd")


def test_a_prepared_corpus_is_labelled_by_its_organs(tmp_path):
    write_small_corpus(tmp_path, {"train": 8, "validation": 4, "test": 4}, frames=1)
    data = load(tmp_path)
    assert data.label_names == ("heart", "liver", "thyroid") and set(data.groups) == set(data.label_names)
    assert [len(data.rows(side)) for side in ("train", "validation", "test")] == [6, 3, 3]
    assert len(data.left_out) == 4 and {reason for _, reason in data.left_out} == {"an image without label"}
    assert len(set(data.patients)) == 12 and data.notes == ()
