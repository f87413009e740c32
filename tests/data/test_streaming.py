# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Shards read where they lie: exact, in bounded reads, balanced as the formula says, resumed at any point."""

import io
import math
import pickle
import time
from collections import Counter
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from modeling_urfm.data.corpus import ShardCorpus, join_corpora, load_corpus
from modeling_urfm.data.reading import UnreadableFile, image_to_array
from modeling_urfm.data.streaming import (
    SPREAD,
    EpochPlan,
    balanced_passes,
    block_order,
    choose,
    decode_pixels,
    quotas,
    shares,
)
from modeling_urfm.data.transforms import AugmentedCorpus, PretrainTransform, StreamBatchSampler, collate


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(value: int, size=(8, 6)) -> bytes:
    return encoded(Image.new("L", size, value))


def write(path, values, organs=None, sources=None, rows=4, compression="snappy"):
    """A shard of one image a value, `rows` of them a row group."""
    cells = [v if isinstance(v, bytes | None) else grey(v) for v in values]
    columns = {"image": [None if c is None else {"bytes": c, "path": None} for c in cells]}
    columns |= {"organ": organs or ["liver"] * len(cells), "source": sources or ["local"] * len(cells)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows, compression=compression)
    return path


@pytest.fixture
def corpus(tmp_path):
    """50 images in row groups of 4, in three shards; image i is of value i."""
    for shard, (first, last) in enumerate(((0, 18), (18, 20), (20, 50))):
        organs = [("thyroid", "heart", "lung")[(i > 29) + (i > 46)] for i in range(first, last)]
        write(tmp_path / "data" / f"train-{shard:05}-of-00003.parquet", range(first, last), organs, ["a"] * len(organs))
    return load_corpus(tmp_path, progress=False)


# ---------------------------------------------------------------- reading


def test_every_row_is_the_one_that_was_written(corpus):
    assert isinstance(corpus, ShardCorpus) and len(corpus) == 50
    order = np.random.default_rng(0).permutation(50)
    assert [int(corpus[int(i)]["pixels"].max()) for i in order] == order.tolist()
    assert corpus[3]["pixels"].shape == (1, 6, 8) and corpus.read(3).shape == (6, 8, 3)
    assert corpus.id(19) == "data/train-00001-of-00003.parquet#1" and corpus.id(0).endswith("00000-of-00003.parquet#0")
    assert corpus.rows.starts.tolist()[:7] == [0, 4, 8, 12, 16, 18, 20]
    again = pickle.loads(pickle.dumps(corpus))
    assert corpus.rows.cache and not again.rows.cache and again[42]["pixels"].max() == 42
    codes, names = corpus.labels("organ")
    assert [names[c] for c in codes[[0, 29, 30, 46, 47]]] == ["thyroid", "thyroid", "heart", "heart", "lung"]


def test_the_fingerprint_is_that_of_the_content(corpus, tmp_path):
    before = corpus.fingerprint
    assert load_corpus(tmp_path, progress=False).fingerprint == before
    write(tmp_path / "data" / "train-00001-of-00003.parquet", [99, 19], ["thyroid"] * 2, ["a"] * 2)
    assert load_corpus(tmp_path, progress=False).fingerprint != before


def test_no_row_group_is_read_twice_for_a_window_and_memory_is_bounded(corpus, monkeypatch):
    monkeypatch.setattr("modeling_urfm.data.streaming.WINDOW_IMAGES", 12)
    read, held = Counter(), []
    original = corpus.rows._read

    def counted(group):
        read[group] += 1
        return original(group)

    monkeypatch.setattr(corpus.rows, "_read", counted)
    for index in EpochPlan(corpus).order(0, 0):
        corpus[int(index)]
        held.append(len(corpus.rows.cache))
    assert set(read.values()) == {1} and len(read) == 14 and max(held) <= 6


def test_a_damaged_row_group_costs_its_rows_and_a_damaged_image_itself(tmp_path):
    values = [*range(12)]
    values[2], values[3] = b"no image", None
    path = write(tmp_path / "train-00000-of-00001.parquet", values, compression="none")
    place = pq.read_metadata(path).row_group(1).column(0)
    damaged = bytearray(path.read_bytes())
    damaged[place.data_page_offset : place.data_page_offset + 30] = b"\xff" * 30  # the page's header
    path.write_bytes(damaged)
    corpus = load_corpus(path, progress=False)
    assert [int(corpus[i]["pixels"].max()) for i in range(12)] == [0, 1, 8, 8, 8, 8, 8, 8, 8, 9, 10, 11]
    assert corpus[2]["unreadable"].startswith("train-00000-of-00001.parquet#2: UnidentifiedImageError")
    assert corpus[3]["unreadable"].endswith("#3: the cell is empty")
    assert "#5: row group 1 is damaged" in corpus[5]["unreadable"] and corpus[5]["id"].endswith("#8")
    path.unlink()
    with pytest.raises(UnreadableFile, match="can't be read, the first: .* row group 0 is damaged"):
        load_corpus(write(path, values), progress=False) and path.unlink()
        pickle.loads(pickle.dumps(corpus))[0]


def test_shards_that_do_not_fit_together_are_named(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [1, 2])
    pq.write_table(pa.table({"picture": [grey(1)]}), tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match="00001-of-00002.parquet has no column 'image', which .*00000-of-00002"):
        load_corpus(tmp_path, progress=False)


def test_files_with_huge_row_groups_go_through_the_cache_of_datasets(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("modeling_urfm.data.corpus.MAX_GROUP_BYTES", 100)
    corpus = load_corpus(write(tmp_path / "t.parquet", range(9)), progress=False)
    assert not isinstance(corpus, ShardCorpus) and corpus[7]["pixels"].max() == 7
    assert "to_parquet(..., batch_size=100)" in caplog.text


# ---------------------------------------------------------------- decoding

GRADIENT = np.add.outer(np.arange(40), 3 * np.arange(60)).astype(np.uint8)


def in_mode(mode: str) -> Image.Image:
    colour = Image.fromarray(np.stack([GRADIENT, GRADIENT[::-1], GRADIENT[:, ::-1]], -1))
    if mode == "I;16":
        return Image.fromarray(GRADIENT.astype(np.uint16) * 200)
    if mode == "key":
        return Image.fromarray(GRADIENT)
    return colour.convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "key"])
@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "gif", "bmp", "jpeg"])
def test_what_torchvision_decodes_is_what_pillow_decodes(mode, kind):
    image = in_mode(mode)
    options = {"lossless": True} if kind == "webp" else {"transparency": 100} if mode == "key" and kind == "png" else {}
    try:
        data = encoded(image, kind, **options)
    except (OSError, ValueError, KeyError):
        return  # a format that has no such mode
    expected = image_to_array(Image.open(io.BytesIO(data)))
    pixels = decode_pixels(data)
    assert pixels.dtype == torch.uint8 and len(pixels) in (1, 3)
    if mode == "L" and kind in ("png", "jpeg"):
        assert len(pixels) == 1
    assert np.array_equal(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_half_an_image_is_unreadable(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises((OSError, SyntaxError, ValueError)):
        decode_pixels(data[: len(data) // 2])


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.integers(2, 300), st.integers(0, 1000))
def test_one_channel_gives_what_three_give_and_the_order_of_memory_changes_nothing(height, width, seed):
    rng = np.random.default_rng(seed)
    one = torch.from_numpy(rng.integers(0, 256, (1, height, width), dtype=np.uint8))
    colour = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)
    transform = PretrainTransform(32)

    def crop(pixels):
        return transform(pixels, np.random.default_rng(seed))

    assert torch.equal(crop(one).expand(3, -1, -1), crop(one.expand(3, -1, -1).contiguous()))
    assert torch.equal(crop(colour), crop(colour.contiguous())) and crop(colour).is_contiguous()


def test_batches_of_grey_have_one_channel_and_mixed_ones_three():
    items = [{"pixels": torch.full((c, 4, 4), float(c)), "id": "", "unreadable": ""} for c in (1, 3, 1)]
    assert collate(items[:1])["pixels"].shape == (1, 1, 4, 4)
    mixed = collate(items)["pixels"]
    assert mixed.shape == (3, 3, 4, 4) and mixed[0].unique().tolist() == [1.0] and mixed.is_contiguous()


# ---------------------------------------------------------------- order


groups_of_rows = st.lists(st.integers(1, 9), min_size=1, max_size=20).map(lambda n: np.cumsum([0, *n]))


@settings(max_examples=60, deadline=None)
@given(groups_of_rows, st.integers(1, 40), st.integers(0, 5))
def test_the_order_is_pure_whole_and_keeps_row_groups_together(starts, window, seed):
    def order(seed):
        return block_order(np.random.default_rng(seed), starts, balanced_passes(None, starts), window)

    assert np.array_equal(order(seed), order(seed)) and sorted(order(seed)) == list(range(starts[-1]))
    group_of = np.searchsorted(starts, order(seed), side="right") - 1
    largest = int(np.diff(starts).max())
    for group in range(len(starts) - 1):
        at = np.flatnonzero(group_of == group)
        assert at[-1] - at[0] < window + largest


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 60), st.booleans())
def test_resumed_anywhere_it_is_the_rest_and_ranks_share_the_epoch(batch, ranks, start, balanced):
    starts = np.cumsum([0, *[4] * 12, 2])
    corpus = type("Rows", (), {"starts": starts, "window": 12, "__len__": lambda self: 50,
                               "labels": lambda self, c: (np.repeat([0, 1, 2], [30, 17, 3]), ["a", "b", "c"])})()  # fmt: skip
    plan = EpochPlan(corpus, ["organ"] if balanced else [], 0.3)

    def batches(rank, start, count):
        sampler = StreamBatchSampler(plan.length, batch, 3, 1, ranks, rank, start * batch * ranks, plan.order)
        return list(islice(sampler, count))

    assert batches(ranks - 1, start, 5) == batches(ranks - 1, 0, start + 5)[start:]
    steps = math.ceil(50 / (batch * ranks))
    keys = [key for rank in range(ranks) for b in batches(rank, 0, steps) for key in b]
    first = [(index, position) for epoch, index, position in keys if epoch == 0]
    assert len(set(keys)) == len(keys) == steps * batch * ranks and len(first) == 50
    assert [index for index, _ in sorted(first, key=lambda key: key[1])] == plan.order(3, 0).tolist()
    if not balanced:
        assert sorted(index for index, _ in first) == list(range(50))


def test_ranks_read_row_groups_of_their_own():
    starts = np.arange(0, 4001, 100)
    corpus = type("Rows", (), {"starts": starts, "window": 1000, "__len__": lambda self: 4000})()
    plan = EpochPlan(corpus)
    read = []
    for rank in range(4):
        sampler = StreamBatchSampler(4000, 25, 0, 1, 4, rank, order=plan.order)
        keys = [key for batch in islice(sampler, 10) for key in batch]  # one window
        read.append({index // 100 for _, index, _ in keys})
    assert (
        max(map(len, read)) <= 6 and len(set.union(*read)) == 10
    )  # of ten, where a random deal would give each all ten


@pytest.mark.parametrize("start", [0, 3, 11])
def test_workers_see_what_the_training_process_would(corpus, start):
    plan = EpochPlan(corpus, ["organ"], 0.5)
    images = AugmentedCorpus(corpus, PretrainTransform(16), seed=1)

    def pixels(workers, start):
        sampler = StreamBatchSampler(plan.length, 7, seed=1, start=7 * start, order=plan.order)
        loader = iter(DataLoader(images, batch_sampler=sampler, num_workers=workers, collate_fn=collate))
        return [next(loader) for _ in range(14 - start)]

    whole = pixels(0, 0)[start:]
    for workers in (0, 2):
        for expected, got in zip(whole, pixels(workers, start), strict=True):
            assert torch.equal(expected["pixels"], got["pixels"]) and expected["id"] == got["id"]


def test_an_image_that_is_shown_twice_is_cropped_twice(corpus):
    images = AugmentedCorpus(load_corpus(write_gradient(corpus), progress=False), PretrainTransform(16), seed=1)
    assert not torch.equal(images[(0, 0, 5)]["pixels"], images[(0, 0, 9)]["pixels"])
    assert torch.equal(images[(0, 0, 5)]["pixels"], images[(0, 0, 5)]["pixels"])


def write_gradient(corpus):
    return write(corpus.root / "gradient.parquet", [encoded(Image.fromarray(GRADIENT))])


def test_corpora_joined_are_read_in_one_order(corpus, tmp_path):
    (tmp_path / "files").mkdir()
    for value in range(5):
        Image.new("L", (8, 6), 200 + value).save(tmp_path / "files" / f"{value}.png")
    files = load_corpus(tmp_path / "files", progress=False)
    joined = join_corpora([files, corpus])
    assert joined.starts.tolist()[:8] == [0, 1, 2, 3, 4, 5, 9, 13] and joined.window == corpus.window
    order = EpochPlan(joined).order(0, 0)
    shown = [int(joined[int(i)]["pixels"].max()) for i in order]
    assert sorted(shown) == [*range(50), *range(200, 205)] and shown[:5] != sorted(shown)[:5]
    assert EpochPlan(files).order is None  # and a folder keeps the order it always had
    with pytest.raises(ValueError, match="files has no column 'organ': files have no columns"):
        EpochPlan(joined, ["organ"])
    codes, names = join_corpora([corpus, corpus]).labels("organ")
    assert len(codes) == 100 and len(names) == 3


# ---------------------------------------------------------------- balance


def test_shares_are_those_of_the_formula():
    counts = np.array([900, 90, 10, 0])
    assert shares(counts, 1.0).tolist() == pytest.approx([0.9, 0.09, 0.01, 0])
    assert shares(counts, 0.0).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    by_hand = [n**0.5 for n in (900, 90, 10)]
    assert shares(counts, 0.5)[:3].tolist() == pytest.approx([w / sum(by_hand) for w in by_hand])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=8).filter(any), st.floats(0, 1), st.integers(1, 1000))
def test_quotas_add_up_and_are_the_nearest(counts, temperature, total):
    counts = np.array(counts)
    got = quotas(counts, temperature, total)
    assert got.sum() == total and np.abs(got - total * shares(counts, temperature)).max() < 1
    assert not got[counts == 0].any()


def test_an_epoch_shows_every_group_its_share_and_its_images_equally_often(corpus):
    codes, names = corpus.labels("organ")
    for temperature in (0.0, 0.4, 1.0):
        plan = EpochPlan(corpus, ["organ"], temperature)
        order = plan.order(0, 0)
        assert plan.length == len(order) == 50
        counts = np.bincount(codes[order], minlength=3)
        assert np.abs(counts - 50 * shares(np.array([30, 17, 3]), temperature)).max() < 1
        for group in range(3):
            times = Counter(order[codes[order] == group].tolist())
            every = [times[i] for i in np.flatnonzero(codes == group).tolist()]
            assert max(every) - min(every) <= 1
    # over the epochs all are shown alike: binomial, 5 sigma
    plan = EpochPlan(corpus, ["organ"], 0.0)
    total = Counter(i for epoch in range(200) for i in plan.order(0, epoch).tolist() if i < 30)
    expected, deviation = 200 * 17 / 30, (200 * (17 / 30) * (13 / 30)) ** 0.5
    assert len(total) == 30 and all(abs(count - expected) < 5 * deviation for count in total.values())
    assert "thyroid 17, heart 17, lung 16" in plan.description or "lung 17" in plan.description


def test_two_columns_name_groups_together_and_a_column_that_is_not_there_is_named(tmp_path):
    organs, sources = ["heart"] * 6 + ["lung"] * 6, ["a", "b"] * 6
    corpus = load_corpus(write(tmp_path / "t.parquet", range(12), organs, sources), progress=False)
    plan = EpochPlan(corpus, ["organ", "source"], 0.5)
    assert plan.names == ["heart/a", "heart/b", "lung/a", "lung/b"] and np.bincount(plan.groups).tolist() == [3] * 4
    with pytest.raises(
        ValueError, match="no column 'organs'. Did you mean 'organ'. Its columns are: image, organ, source"
    ):
        EpochPlan(corpus, ["organs"])


def test_a_source_gives_at_most_its_cap_other_images_each_epoch_from_few_row_groups(tmp_path):
    sources = ["big"] * 400 + ["small"] * 20
    corpus = load_corpus(write(tmp_path / "t.parquet", [1] * 420, None, sources, rows=10), progress=False)
    plan = EpochPlan(corpus, max_images_per_source=25)
    assert plan.length == 45
    epochs = [plan.order(0, epoch) for epoch in range(300)]
    assert all(len(set(e.tolist())) == 45 and (e < 400).sum() == 25 for e in epochs)
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    assert all(len(np.unique(e[e < 400] // 10)) <= SPREAD * 25 // 10 for e in epochs)
    counts = np.bincount(np.concatenate(epochs), minlength=420)
    assert (counts[400:] == 300).all() and counts[:400].min() > 0
    assert abs(counts[:400].mean() - 300 * 25 / 400) < 1e-9 and counts[:400].std() < 3 * (300 / 16) ** 0.5


def test_choosing_all_takes_all():
    rows, starts = np.arange(10), np.array([0, 5, 10])
    assert choose(np.random.default_rng(0), rows, starts, 10).tolist() == rows.tolist()
    assert len(choose(np.random.default_rng(0), rows, starts, 9)) == 9


# ---------------------------------------------------------------- size


def test_a_million_rows_open_at_once_and_take_no_memory(tmp_path):
    """The row groups of a shard again and again, as the issue has it; the footers are what grows."""
    group = pa.table({"image": [{"bytes": grey(7), "path": None}] * 1000, "organ": ["liver"] * 1000})
    (tmp_path / "data").mkdir()
    for shard in range(10):
        with pq.ParquetWriter(tmp_path / "data" / f"train-{shard:05}-of-00010.parquet", group.schema) as writer:
            for _ in range(100):
                writer.write_table(group)
    started = time.perf_counter()
    corpus = load_corpus(tmp_path, progress=False)
    assert time.perf_counter() - started < 5 and len(corpus) == 1_000_000
    assert len(pickle.dumps(corpus)) < 200_000  # all that is kept
    order = EpochPlan(corpus).order(0, 0)
    assert len(order) == 1_000_000 and corpus[int(order[-1])]["pixels"].max() == 7
    assert EpochPlan(corpus, ["organ"]).groups.nbytes <= 4_000_000
