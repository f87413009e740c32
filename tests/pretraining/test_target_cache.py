# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The target cache: what comes back, for any crop; and what is refused."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torchvision.ops import roi_align

from modeling_urfm.data.corpus import load_corpus
from modeling_urfm.data.phantoms import ORGANS, phantom_frame
from modeling_urfm.data.transforms import Crop, PretrainTransform, to_float
from modeling_urfm.pretraining.target_cache import (
    CODEC,
    META,
    TargetCache,
    TargetCacheError,
    TargetMissing,
    begin,
    cache_key,
    default_folder,
    found,
    read_facts,
    read_meta,
    shard_name,
    summarize,
    weights_hash,
    write_meta,
    write_shard,
)
from modeling_urfm.pretraining.target_codec import TargetCodec, cosine_transform, crop_weights, fit_codec
from modeling_urfm.pretraining.teacher import load_teacher


GRID, WIDTH = (6, 5), 24
WHOLE = Crop(0.0, 0.0, 1.0, 1.0)
KEY = {"corpus": "c0ffee", "images": 20, "teacher": "demo", "teacher_layer": -1, "codec_version": 1}
SETTINGS = {"min_cosine": 0.99, "sample_images": 20, "images_per_shard": 8}


def some_features(images=20, seed=0):
    """Smooth maps of features of unequal length, as a teacher's are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, WIDTH, 3, 3, generator=generator) * torch.linspace(2, 0.1, WIDTH).view(-1, 1, 1)
    maps = F.interpolate(coarse, size=GRID, mode="bilinear") + 0.05 * torch.randn(
        images, WIDTH, *GRID, generator=generator
    )
    maps = maps + torch.randn(WIDTH, 1, 1, generator=torch.Generator().manual_seed(7))
    return (maps * (1 + torch.rand(images, 1, *GRID, generator=generator))).flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def features():
    return some_features()


@pytest.fixture(scope="module")
def codec(features):
    return fit_codec(features, GRID, 0.99)[0]


def packed(codec, features):
    symbols, _ = codec.quantize(features)
    return [codec.pack(row) for row in symbols.numpy()]


@pytest.fixture
def folder(tmp_path, codec, features):
    """A finished cache of 20 images in 3 shards, of which image 11 could not be read."""
    place = tmp_path / "corpus-targets"
    meta = found(place, KEY, SETTINGS, codec, {})
    _, cosine = codec.quantize(features)
    near = torch.stack([cosine.mean(1), cosine.amin(1)], 1).tolist()
    codes = packed(codec, features)
    codes[11], near[11] = b"", (float("nan"), float("nan"))
    for number, first in enumerate(range(0, 20, 8)):
        part = slice(first, first + 8)
        unreadable = {"image#11": "cut short"} if number == 1 else {}
        write_shard(
            place / shard_name(number, 3), codes[part], near[part], {"unreadable": unreadable, "source_bytes": 8000}
        )
    write_meta(place, meta | summarize(place, meta))
    return place


# ---------------------------------------------------------------- the codec


def test_the_cosine_transform_is_orthonormal():
    for size in (1, 7, 14):
        assert torch.allclose(cosine_transform(size) @ cosine_transform(size).T, torch.eye(size), atol=1e-6)


@pytest.mark.parametrize("min_cosine", [0.95, 0.985, 0.999])
def test_what_comes_back_is_as_near_as_was_asked(features, min_cosine):
    codec, report = fit_codec(features, GRID, min_cosine)
    assert report["sample_cosine"] >= min_cosine - 5e-5 and report["sample_explained"] >= 0.85
    back = torch.stack([codec.decode(codec.crop(data, WHOLE, GRID)) for data in packed(codec, features)])
    cosine = F.cosine_similarity(back, features, dim=-1)
    assert cosine.mean() >= min_cosine - 0.002
    assert torch.allclose(cosine, codec.quantize(features)[1], atol=2e-3)  # what the recipe measures is what is read
    assert (back.norm(dim=-1) / features.norm(dim=-1) - 1).abs().max() < 0.07
    unseen = some_features(30, seed=1)
    assert codec.quantize(unseen)[1].mean() >= min_cosine - 0.01


def test_more_similarity_takes_more_bytes_and_both_are_far_below_plain_halves(features):
    sizes = [sum(map(len, packed(fit_codec(features, GRID, near)[0], features))) for near in (0.95, 0.985, 0.999)]
    assert sizes == sorted(sizes) and sizes[1] < features.numel() * 2 / 8


def test_symbols_survive_packing_whatever_they_are(codec):
    count = len(codec.scan)
    for seed, largest in enumerate((0, 1, 127, 128, 129, 32767)):
        symbols = np.random.default_rng(seed).integers(-largest, largest + 1, count).astype(np.int16)
        symbols[count // 2 :] = 0
        symbols[-1] = largest  # the last one is not 0
        filled, values = codec.unpack(codec.pack(symbols))
        got = np.zeros(count)
        got[filled] = values
        assert np.array_equal(got, symbols)


def test_a_constant_teacher_and_a_single_image_can_be_coded():
    constant = torch.ones(3, 30, WIDTH)
    codec, _ = fit_codec(constant, GRID, 0.985)
    back = codec.decode(codec.crop(packed(codec, constant)[0], WHOLE, GRID))
    assert torch.allclose(back, constant[0], atol=0.05)
    one = some_features(1)
    codec, report = fit_codec(one, GRID, 0.985)
    assert report["sample_cosine"] >= 0.985


def test_where_all_patches_share_a_direction_their_differences_are_kept():
    shared = some_features() + 100 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    codec, report = fit_codec(shared, GRID, 0.9)  # which the mean alone would reach
    assert report["sample_explained"] >= 0.85


def test_features_that_are_not_finite_are_refused(features):
    broken = features.clone()
    broken[3, 2, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        fit_codec(broken, GRID, 0.985)
    cosine = fit_codec(features, GRID, 0.985)[0].quantize(broken)[1]
    assert cosine[3].isnan().any() and not cosine[[0, 1, 2]].isnan().any()


def test_a_saved_codec_is_the_same(codec, features, tmp_path):
    codec.save(tmp_path / CODEC)
    again = TargetCodec.load(tmp_path / CODEC)
    assert packed(again, features[:3]) == packed(codec, features[:3])
    assert again.grid == GRID and torch.equal(again.back, codec.back)


# ---------------------------------------------------------------- crops

crops = st.builds(
    lambda top, left, height, width, h, v: Crop(top * (1 - height), left * (1 - width), height, width, h, v),
    *[st.floats(0, 1)] * 2, *[st.floats(0.1, 1)] * 2, st.booleans(), st.booleans(),
)  # fmt: skip


def cropped(maps, crop, grid):
    """What `TargetCodec.crop` does to maps (C, H, W)."""
    rows = crop_weights(crop.top, crop.height, maps.shape[1], grid[0], crop.flip_vertical)
    columns = crop_weights(crop.left, crop.width, maps.shape[2], grid[1], crop.flip_horizontal)
    return rows @ maps @ columns.T


@given(crop=crops)
@settings(max_examples=60, deadline=None)
def test_a_crop_is_roi_align_with_one_sample_a_patch(crop):
    maps = torch.randn(3, 14, 12, generator=torch.Generator().manual_seed(0))
    grid = (16, 16)  # finer than any crop's part of the map: nothing to smooth
    box = torch.tensor(
        [[0, crop.left * 12, crop.top * 14, (crop.left + crop.width) * 12, (crop.top + crop.height) * 14]]
    )
    wanted = roi_align(maps[None], box, grid, sampling_ratio=1, aligned=True)[0]
    wanted = wanted.flip(-1) if crop.flip_horizontal else wanted
    wanted = wanted.flip(-2) if crop.flip_vertical else wanted
    assert torch.allclose(cropped(maps, crop, grid), wanted, atol=1e-4)


@given(rows=st.integers(2, 20), columns=st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_the_whole_image_on_another_grid_is_what_the_teacher_gives_online(rows, columns):
    maps = torch.randn(3, 14, 9, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(maps[None], size=(rows, columns), mode="bilinear", antialias=True, align_corners=False)[0]
    assert torch.allclose(cropped(maps, WHOLE, (rows, columns)), wanted, atol=1e-5)


@given(crop=crops, out=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_weights_are_an_average(crop, out):
    for start, length in ((crop.top, crop.height), (crop.left, crop.width)):
        weights = crop_weights(start, length, 14, out)
        assert torch.isfinite(weights).all() and (weights >= 0).all()
        assert torch.allclose(weights.sum(1), torch.ones(out), atol=1e-5)


def test_the_whole_image_on_its_own_grid_is_untouched():
    assert torch.equal(crop_weights(0.0, 1.0, 14, 14), torch.eye(14))


@given(crop=crops, seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_decoding_a_crop_is_cropping_what_is_decoded(codec, features, crop, seed):
    grid = (8, 8)
    data = packed(codec, features[seed % 20][None])[0]
    positions = torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:20].sort().values
    got = codec.decode(codec.crop(data, crop, grid, positions))
    decoded = codec.decode(codec.maps(data)).permute(2, 0, 1)
    wanted = cropped(decoded, crop, grid).flatten(1).T[positions]
    assert got.shape == (20, WIDTH) and torch.allclose(got, wanted, atol=0.02 * float(wanted.norm(dim=-1).mean()))


def test_flips_act_on_the_crop(codec, features):
    data = packed(codec, features[:1])[0]

    def view(crop):
        return codec.crop(data, crop, (8, 8)).view(8, 8, -1)

    box = (0.1, 0.3, 0.5, 0.6)
    plain = view(Crop(*box))
    assert torch.equal(view(Crop(*box, flip_horizontal=True)), plain.flip(1))
    assert torch.equal(view(Crop(*box, flip_vertical=True)), plain.flip(0))
    assert torch.equal(view(Crop(*box, True, True)), plain.flip(0, 1))


# ---------------------------------------------------------------- the folder


def test_any_image_can_be_read_at_random_and_in_other_processes(folder, features):
    cache = TargetCache.open(folder, KEY, GRID)
    assert cache.hidden_size == WIDTH and cache.bytes > 0 and cache.key == KEY
    for index in (19, 0, 8, 7):
        codes = cache.read(index, WHOLE, torch.arange(30))
        assert codes.dtype == torch.float16
        assert F.cosine_similarity(cache.decode(codes[None])[0], features[index], dim=-1).mean() > 0.98
    again = pickle.loads(pickle.dumps(cache))  # to a worker that is spawned; open files do not go with it
    assert not again._files and torch.equal(again.read(19, WHOLE), cache.read(19, WHOLE))
    with pytest.raises(IndexError, match="none of the 20"):
        cache.read(20, WHOLE)


def test_normalisations_are_the_teachers(folder):
    codes = TargetCache.open(folder, KEY, GRID).read(3, WHOLE)[None]
    plain = TargetCache.open(folder, KEY, GRID).decode(codes)
    assert torch.allclose(TargetCache.open(folder, KEY, GRID, "l2").decode(codes), F.normalize(plain, dim=-1))
    layer_norm = TargetCache.open(folder, KEY, GRID, "layer_norm").decode(codes)
    assert torch.allclose(layer_norm, F.layer_norm(plain, (WIDTH,)))
    with pytest.raises(ValueError, match="Did you mean 'layer_norm'"):
        TargetCache.open(folder, KEY, GRID, "layernorm")


def test_an_image_that_could_not_be_read_is_absent(folder):
    cache = TargetCache.open(folder, KEY, GRID)
    assert not cache.has(11) and cache.has(10)
    with pytest.raises(TargetMissing, match="image 11"):
        cache.read(11, WHOLE)
    meta = read_meta(folder)
    assert meta["unreadable"] == {"image#11": "cut short"} and meta["cosine_mean"] > 0.985
    assert 0 < meta["bytes_per_image"] < 500 and meta["ratio_to_source"] < 1


@pytest.mark.parametrize(
    "field, value",
    [("corpus", "0ther"), ("images", 21), ("teacher", "transformers:x"), ("teacher_layer", -2), ("codec_version", 2)],
)
def test_a_cache_of_something_else_is_refused_by_name(folder, field, value):
    with pytest.raises(TargetCacheError, match=rf"{field}=.*this run has {field}={value!r}"):
        TargetCache.open(folder, KEY | {field: value}, GRID)
    with pytest.raises(TargetCacheError, match=f"{field}="):
        begin(folder, KEY | {field: value}, SETTINGS)


def test_the_same_weights_under_another_name_are_the_same_teacher(folder):
    meta = read_meta(folder)
    write_meta(folder, meta | {"key": KEY | {"teacher_weights": "abc"}})
    assert TargetCache.open(folder, KEY | {"teacher": "moved", "teacher_weights": "abc"}, GRID)
    with pytest.raises(TargetCacheError, match="teacher_weights='abc', this run has teacher_weights='abd'"):
        TargetCache.open(folder, KEY | {"teacher_weights": "abd"}, GRID)


def test_a_cache_that_is_not_whole_is_refused(folder, tmp_path):
    with pytest.raises(TargetCacheError, match="is no target cache.*Beside it: corpus-targets"):
        TargetCache.open(tmp_path / "corpus-target", KEY, GRID)
    path = folder / shard_name(2, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(TargetCacheError, match=f"{path.name} can't be read"):
        TargetCache.open(folder, KEY, GRID).read(17, WHOLE)
    path.unlink()
    with pytest.raises(TargetCacheError, match="not finished: 1 of 3 shards are missing"):
        TargetCache.open(folder, KEY, GRID)
    path.write_bytes(whole)
    (folder / CODEC).write_bytes(b"")
    with pytest.raises(TargetCacheError, match=CODEC):
        TargetCache.open(folder, KEY, GRID)
    (folder / META).write_text("{")
    with pytest.raises(TargetCacheError, match="damaged"):
        TargetCache.open(folder, KEY, GRID)


def test_a_changed_shard_is_known_by_its_checksum_and_bad_codes_by_their_name(folder):
    path = folder / shard_name(0, 3)
    assert read_facts(path, 8) is not None and read_facts(path, 7) is None
    assert read_facts(folder / shard_name(0, 4), 8) is None
    held = load_file(path)
    held["codes"][:200] = 7
    save_file(held, path, metadata={"facts": '{"sha256": "0"}'})
    assert read_facts(path, 8) is None
    with pytest.raises(TargetCacheError, match=f"{path.name} is damaged at image 0"):
        TargetCache.open(folder, KEY, GRID).read(0, WHOLE)
    with pytest.raises(TargetCacheError, match="missing or damaged"):
        summarize(folder, read_meta(folder))


def test_what_was_begun_goes_on_with_the_same_settings_alone(folder, tmp_path):
    assert begin(folder, KEY, SETTINGS)["key"] == KEY
    assert begin(tmp_path / "new", KEY, SETTINGS) is None
    with pytest.raises(TargetCacheError, match="min_cosine=0.99, this run has min_cosine=0.98"):
        begin(folder, KEY, SETTINGS | {"min_cosine": 0.98})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").touch()
    with pytest.raises(TargetCacheError, match="holds thesis.doc"):
        begin(tmp_path / "mine", KEY, SETTINGS)


def test_no_cache_is_taken_for_a_corpus(folder):
    with pytest.raises(ValueError, match="holds no image"):
        load_corpus(folder, progress=False)


def test_the_usual_folder_lies_beside_the_data(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "one.parquet").touch()
    monkeypatch.chdir(tmp_path / "corpus")
    assert default_folder([str(tmp_path / "corpus")]) == tmp_path / "corpus-targets"
    assert default_folder([str(tmp_path / "corpus") + "/"]) == tmp_path / "corpus-targets"
    assert default_folder(["."]) == tmp_path / "corpus-targets"
    assert default_folder([str(tmp_path / "one.parquet")]) == tmp_path / "one-targets"
    assert str(default_folder(["demo"])) == "demo-targets"
    assert str(default_folder(["some/data-set"])) == "some--data-set-targets"
    assert default_folder([str(tmp_path / "corpus"), "demo"]) == tmp_path / "corpus+demo-targets"


# ---------------------------------------------------------------- the demo's teacher


class Named:
    fingerprint = "abc"

    def __len__(self):
        return 4


def test_the_key_knows_weights_whatever_they_are_computed_in():
    single, half = (load_teacher("demo", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    key = cache_key(Named(), "demo", -1, single)
    assert key == cache_key(Named(), "demo", -1, half)
    assert (
        key["teacher_input"][0] == 128
        and key["images"] == 4
        and "teacher_weights" not in cache_key(Named(), "demo", -1)
    )
    tower = half.tower
    parameter = next(tower.parameters())
    before, parameter.data = parameter.data, parameter.data * 1.1
    assert weights_hash(tower) != key["teacher_weights"]
    parameter.data = before
    assert weights_hash(tower) == key["teacher_weights"]


def test_a_cached_crop_is_nearest_to_the_online_teacher_where_it_lies():
    """Against the demo's teacher on the crop itself: moved by half a patch, or flipped the wrong way, it fits worse."""
    teacher, transform = load_teacher("demo"), PretrainTransform(128)
    frames = [phantom_frame(5, number, organ=ORGANS[number], image_size=128, snr_db=20.0).image for number in range(8)]
    images = torch.stack([torch.from_numpy(frame)[None] for frame in frames])
    codec, _ = fit_codec(teacher(to_float(images).expand(-1, 3, -1, -1), (8, 8)), (8, 8), 0.985)
    data = packed(codec, teacher(to_float(images).expand(-1, 3, -1, -1), (8, 8)))

    def near(shown, read):
        online = teacher(
            to_float(torch.stack([transform.apply(i, shown) for i in images])).expand(-1, 3, -1, -1), (8, 8)
        )
        cached = codec.decode(torch.stack([codec.crop(code, read, (8, 8)) for code in data]))
        return float(F.cosine_similarity(online, cached, dim=-1).mean())

    box = Crop(0.2, 0.1, 0.7, 0.8, True, False)
    right = near(box, box)
    for other in (
        Crop(0.2 - 0.0625, 0.1, 0.7, 0.8, True, False), Crop(0.2 + 0.0625, 0.1, 0.7, 0.8, True, False),
        Crop(0.2, 0.1 - 0.0625, 0.7, 0.8, True, False), Crop(0.2, 0.1 + 0.0625, 0.7, 0.8, True, False),
        Crop(0.2, 0.1, 0.7, 0.8, False, False), Crop(0.2, 0.1, 0.7, 0.8, True, True), WHOLE,
    ):  # fmt: skip
        print(right, near(box, other), other)
        assert near(box, other) < right
