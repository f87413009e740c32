# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What --dataset may name, what is left out and said, and the order and crops of training."""

import math
import os
import pickle
import shutil
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import RandomResizedCrop

from modeling_urfm.data.corpus import TableCorpus, join_corpora, load_corpus
from modeling_urfm.data.reading import UnreadableFile, ultrasound_examples
from modeling_urfm.data.transforms import AugmentedCorpus, PretrainTransform, StreamBatchSampler, collate


def picture(value: int, size=(20, 10)) -> Image.Image:
    return Image.new("L", size, value)


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        picture(10 * number).save(tmp_path / f"{number}.png")
    return tmp_path


def test_a_folder_of_dicom_with_a_corrupted_file_among_them(tmp_path):
    for path in ultrasound_examples():
        shutil.copy(path, tmp_path)
    broken = tmp_path / "broken.dcm"
    broken.write_bytes((tmp_path / "examples_jpeg2k.dcm").read_bytes()[:20000])
    (tmp_path / "notes.txt").write_text("a side file")
    corpus = load_corpus(tmp_path, progress=False)
    assert len(corpus) == 34  # one cine loop of 30 frames, four single ones
    names = dict(corpus.left_out)
    assert set(names) == {"broken.dcm"} and names["broken.dcm"] and corpus.companions == {".txt": 1}
    assert corpus[5]["pixels"].dtype == torch.uint8 and corpus[5]["pixels"].shape[0] == 3
    assert len({corpus.id(i) for i in range(34)}) == 34 and "examples_ybr_color.dcm#29" in {
        corpus.id(i) for i in range(34)
    }
    assert "34 images, 1 left out (beside them, no images: 1 *.txt)" in corpus.description


def test_folders_image_folders_single_files_and_saved_data_sets(folder, tmp_path_factory):
    assert [load_corpus(folder, progress=False)[i]["pixels"].max().item() for i in range(5)] == [0, 10, 20, 30, 40]
    assert len(load_corpus(folder / "3.png", progress=False)) == 1
    split = tmp_path_factory.mktemp("split")
    for part, count in (("train", 3), ("test", 2)):
        for number in range(count):
            (split / part / "liver").mkdir(parents=True, exist_ok=True)
            picture(number).save(split / part / "liver" / f"{number}.jpg")
    assert len(load_corpus(split, progress=False)) == 3
    assert len(load_corpus(split, split="test", progress=False)) == 2
    table = datasets.Dataset.from_dict(
        {"image": [picture(7), picture(8)]}, features=datasets.Features({"image": datasets.Image()})
    )
    saved = tmp_path_factory.mktemp("saved")
    table.save_to_disk(str(saved))
    assert load_corpus(saved, progress=False)[1]["pixels"].max() == 8


def test_parquet_with_image_structs_and_with_plain_bytes(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "organ": datasets.Value("string")})
    table = datasets.Dataset.from_dict(
        {"image": [picture(v) for v in (1, 2, 3)], "organ": ["liver"] * 3}, features=features
    )
    (tmp_path / "shards" / "data").mkdir(parents=True)
    table.to_parquet(str(tmp_path / "shards" / "data" / "train-00000-of-00001.parquet"))
    table.select([0]).to_parquet(str(tmp_path / "shards" / "data" / "test-00000-of-00001.parquet"))
    datasets.Dataset.from_dict({"rows": [1]}).to_parquet(str(tmp_path / "shards" / "manifest.parquet"))
    assert len(load_corpus(tmp_path / "shards")) == 3 and len(load_corpus(tmp_path / "shards", split="test")) == 1
    with pytest.raises(ValueError, match="no split 'validation'; there are: test, train"):
        load_corpus(tmp_path / "shards", split="validation")
    raw = table.cast_column("image", datasets.Image(decode=False))
    plain = datasets.Dataset.from_dict({"image": [row["image"]["bytes"] for row in raw]})
    plain.to_parquet(str(tmp_path / "plain.parquet"))
    assert load_corpus(tmp_path / "plain.parquet")[2]["pixels"].unique().tolist() == [3]


def test_an_image_that_cannot_be_read_costs_itself_alone(tmp_path):
    good = [{"bytes": open_bytes(picture(v)), "path": None} for v in (1, 2, 3)]
    cells = [good[0], {"bytes": b"no image", "path": None}, good[1], None, good[2]]
    table = datasets.Dataset.from_dict(
        {"image": cells}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    corpus = TableCorpus("table", table)
    assert [corpus[i]["pixels"].max().item() for i in range(5)] == [1, 2, 2, 3, 3]
    assert corpus[1]["unreadable"].startswith("table#1: UnidentifiedImageError") and corpus[1]["id"] == "table#2"
    assert corpus[3]["unreadable"] == "table#3: the cell is empty" and corpus[0]["unreadable"] == ""
    with pytest.raises(UnreadableFile, match="1 images in a row can't be read"):
        TableCorpus("table", corpus.table.select([1]))[0]


def open_bytes(image) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def test_what_is_not_there_is_named_with_the_nearest(folder, tmp_path_factory, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder. Did you mean .*3\.png"):
        load_corpus(folder / "3.pgn")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="hf download --repo-type dataset nobody/nothing"):
        load_corpus("nobody/nothing")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="The folder is empty"):
        load_corpus(empty, progress=False)
    (empty / "a.dcm").write_text("text")
    with pytest.raises(ValueError, match=r"no image that can be read(.|\n)*a\.dcm: "):
        load_corpus(empty, progress=False)
    datasets.Dataset.from_dict({"images": [1]}).to_parquet(str(empty / "t.parquet"))
    with pytest.raises(ValueError, match=r"no column of images .* its columns are: images \(int64\)"):
        load_corpus(empty / "t.parquet")


def test_joined_corpora_keep_all_and_travel_to_workers(folder):
    one = load_corpus(folder, progress=False)
    joined = pickle.loads(pickle.dumps(join_corpora([one, load_corpus(folder / "4.png", progress=False)])))
    assert len(joined) == 6 and joined[5]["pixels"].max() == 40 and joined[4]["pixels"].max() == 40
    assert joined.fingerprint != one.fingerprint == load_corpus(folder, progress=False).fingerprint


# ---------------------------------------------------------------- order and crops


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 30))
def test_a_step_shows_the_same_images_whoever_computes_it(length, batch, accumulation, ranks, start):
    whole = batch * accumulation * ranks

    def steps(batch, accumulation, ranks, start, count):
        dealt = [
            list(islice(StreamBatchSampler(length, batch, 3, accumulation, ranks, rank, start), count * accumulation))
            for rank in range(ranks)
        ]
        assert all(len(b) == batch for rank in dealt for b in rank)  # no batch is short
        return [
            sorted(key for rank in dealt for b in rank[step * accumulation : (step + 1) * accumulation] for key in b)
            for step in range(count)
        ]

    count = math.ceil(2 * length / whole)
    seen = steps(batch, accumulation, ranks, 0, count)
    assert seen == steps(whole, 1, 1, 0, count)
    assert steps(batch, accumulation, ranks, start * whole, 2) == steps(whole, 1, 1, 0, start + 2)[start:]
    keys = sum(seen, [])
    assert len(set(keys)) == len(keys) == count * whole
    for epoch in (0, 1):  # every image once an epoch, in an order of its own
        order = [i for _, i, _ in sorted((k for k in keys if k[0] == epoch), key=lambda key: key[2])]
        assert order == np.random.default_rng([3, epoch]).permutation(length).tolist()


def test_crops_are_a_function_of_seed_epoch_and_index_also_in_workers(folder):
    corpus = AugmentedCorpus(load_corpus(folder, progress=False), PretrainTransform(16), seed=1)

    def pixels(workers):
        sampler = StreamBatchSampler(5, 2, seed=1)
        loader = iter(DataLoader(corpus, batch_sampler=sampler, num_workers=workers, collate_fn=collate))
        return torch.cat([next(loader)["pixels"] for _ in range(6)])

    assert torch.equal(pixels(0), pixels(2))
    item = corpus[(0, 1, 0)]
    assert item["pixels"].shape == (3, 16, 16) and item["pixels"].dtype == torch.uint8 and item["index"] == 1


def test_crops_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    transform, image = PretrainTransform(16, scale=(0.3, 1.0)), torch.zeros(3, 60, 90)
    rng = np.random.default_rng(0)
    ours = np.array([transform.box(60, 90, rng) for _ in range(4000)], float)
    crop = RandomResizedCrop(16, scale=(0.3, 1.0))
    theirs = np.array(
        [[crop.make_params([image])[k] for k in ("top", "left", "height", "width")] for _ in range(4000)], float
    )
    for mine, other in zip(ours.T, theirs.T):
        assert abs(mine.mean() - other.mean()) < 0.1 * other.std() and abs(mine.std() / other.std() - 1) < 0.06


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(2, 200), st.integers(0, 100))
def test_crops_lie_within_the_image(height, width, seed):
    top, left, h, w = PretrainTransform(16).box(height, width, np.random.default_rng(seed))
    assert 0 <= top and 0 <= left and 1 <= h and 1 <= w and top + h <= height and left + w <= width


def test_a_folder_above_that_is_called_train_decides_nothing(tmp_path):
    data = tmp_path / "train" / "mine" / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 4), ("test", 2)):
        table = datasets.Dataset.from_dict({"image": [picture(i) for i in range(count)]})
        table.to_parquet(str(data / f"{split}-00000-of-00001.parquet"))
    assert len(load_corpus(data.parent, progress=False)) == 4
    assert len(load_corpus(data.parent, split="test", progress=False)) == 2


def test_tables_beside_images_hide_none_and_cells_of_bytes_are_images(folder, tmp_path_factory):
    datasets.Dataset.from_dict({"file_name": ["1.png"], "label": [3]}).to_parquet(str(folder / "metadata.parquet"))
    corpus = load_corpus(folder, progress=False)
    assert len(corpus) == 5 and corpus.companions == {".parquet": 1} and not corpus.left_out
    other = tmp_path_factory.mktemp("cells")
    cells = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": None} for i in range(3)]
    datasets.Dataset.from_dict({"img": cells}).to_parquet(str(other / "a.parquet"))
    assert load_corpus(other, progress=False)[2]["pixels"].max() == 20
    (other / "b.parquet").write_bytes((other / "a.parquet").read_bytes()[:50])
    with pytest.raises(ValueError, match="b.parquet is no whole Parquet file"):
        load_corpus(other, progress=False)


def test_linked_folders_are_read_once_odd_names_are_shown_and_pipes_are_left_out(folder, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    os.symlink(folder, whole / "linked")
    os.symlink(whole, whole / "back")
    os.mkfifo(whole / "pipe")
    picture(7).save(whole / "x.png")
    os.rename(whole / "x.png", os.fsencode(whole) + b"/caf\xe9.png")
    corpus = load_corpus(whole, progress=False)
    assert len(corpus) == 6 and corpus.left_out == [("pipe", "no regular file")]
    assert corpus.fingerprint and {corpus.id(i) for i in range(6)} >= {"caf\ufffd.png#0", "linked/3.png#0"}


def test_the_fingerprint_changes_with_what_the_images_show(folder):
    before = load_corpus(folder, progress=False).fingerprint
    picture(99).save(folder / "2.png")
    assert load_corpus(folder, progress=False).fingerprint != before
