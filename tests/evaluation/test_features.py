# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Cached features: the right ones, in order, computed once, shared by ranks; shards of a corpus and the nearest of them."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel
from modeling_urfm.data.corpus import join_corpora, load_corpus
from modeling_urfm.evaluation import feature_shards, features
from modeling_urfm.evaluation.encoders import load_encoder
from modeling_urfm.evaluation.feature_shards import embed_corpus, nearest, open_images, read_features
from modeling_urfm.evaluation.features import extract_features


SMALL = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32}  # fmt: skip
IMAGES = 23


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A URFM folder, a folder of grey and RGB stills of many shapes, and the same images as a Parquet corpus."""
    root = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    URFMModel(URFMConfig(**SMALL)).save_pretrained(root / "urfm")
    URFMImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "urfm")
    (root / "images").mkdir()
    rng, cells = np.random.default_rng(0), []
    for number in range(IMAGES):
        shape = (40 + number, 57) if number % 3 else (40 + number, 57, 3)
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 5 else 1  # turned by a quarter
        options = {"exif": exif} if number == 5 else {}
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(
            file, "jpeg" if number % 2 else "png", **options
        )
        (root / "images" / f"{number:03}.{'jpg' if number % 2 else 'png'}").write_bytes(file.getvalue())
        cells.append({"bytes": file.getvalue(), "path": None})
    rows = {
        "image": cells,
        "organ": ["liver", "heart"] * 11 + ["liver"],
        "patient": [f"p{n // 2}" for n in range(IMAGES)],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (root / "corpus" / "data").mkdir(parents=True)
    table.to_parquet(root / "corpus" / "data" / "train-00000-of-00001.parquet", batch_size=7)
    return root


@pytest.fixture(scope="module")
def encoder(place):
    return load_encoder(str(place / "urfm"))


@pytest.fixture(scope="module")
def files(place):
    return load_corpus(place / "images", progress=False)


@pytest.fixture(scope="module")
def tables(place):
    return load_corpus(place / "corpus", progress=False)


@dataclass
class Dim:
    """A corruption."""

    by: int

    @property
    def key(self):
        return f"dim{self.by}"

    def __call__(self, pixels, index):
        return pixels // (self.by + index % 2)


def expected(encoder, corpus, rows, kind="pooled", corruption=lambda pixels, index: pixels):
    pixels = [encoder.prepare(corruption(corpus.pixels(row), row)) for row in rows]
    return torch.cat([encoder.features(p[None], kind) for p in pixels]).numpy()


def test_features_are_those_of_the_rows_in_their_order(encoder, files, tables):
    rows = np.random.default_rng(1).permutation(IMAGES)[:17]
    found = extract_features(encoder, files, rows, batch_size=4, progress=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(encoder, files, rows), atol=1e-5)
    joined = join_corpora([tables, files])
    both = extract_features(encoder, joined, [3, 3 + IMAGES, 22, 22 + IMAGES], num_workers=4, progress=False)
    np.testing.assert_allclose(both[::2], both[1::2], atol=1e-5)
    tokens = extract_features(encoder, files, rows[:5], kind="tokens", progress=False)
    assert tokens.shape == (5, 4, 32) and tokens.dtype == np.float16
    np.testing.assert_allclose(tokens, expected(encoder, files, rows[:5], "tokens"), atol=3e-3)


def test_what_is_kept_is_not_computed_again(encoder, files, tmp_path, monkeypatch):
    made = {}
    for kind, corruption, rows in (("pooled", None, [4, 2]), ("tokens", None, [4, 2]), ("pooled", Dim(2), [4, 2]),
                                   ("pooled", Dim(3), [4, 2]), ("pooled", None, [2, 4])):  # fmt: skip
        options = {"kind": kind, "corruption": corruption, "cache_dir": tmp_path, "progress": False}
        made[len(made)] = rows, options, extract_features(encoder, files, rows, **options)
    assert len(list(tmp_path.iterdir())) == len(made)
    np.testing.assert_allclose(made[2][2], expected(encoder, files, [4, 2], corruption=Dim(2)), atol=1e-5)
    monkeypatch.setattr(features, "encode", None)
    for rows, options, value in made.values():
        np.testing.assert_array_equal(extract_features(encoder, files, rows, **options), value)


def test_a_file_that_is_cut_short_is_made_anew(encoder, files, tmp_path):
    first = extract_features(encoder, files, [1, 2], cache_dir=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:150])
    np.testing.assert_array_equal(extract_features(encoder, files, [1, 2], cache_dir=tmp_path, progress=False), first)


def test_unreadable_images_are_named(encoder, place, tmp_path):
    for path in sorted((place / "images").iterdir())[:14]:
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 90 if path.suffix == ".jpg" else None])
    corpus = open_images(str(tmp_path), progress=False)
    with pytest.raises(ValueError, match=r"7 images can't be read:\n  001.jpg#0: "):
        extract_features(encoder, corpus, range(14), batch_size=4, progress=False)


def test_features_that_are_not_finite_are_named(place, files):
    encoder = load_encoder(str(place / "urfm"))
    encoder.module.model.layernorm.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="2 images can't be read:\n  000.png#0: .* not finite"):
        extract_features(encoder, files, [0, 1], progress=False)


def test_threads_keep_their_number(encoder, files):
    before = torch.get_num_threads()
    extract_features(encoder, files, range(5), batch_size=2, num_workers=3, progress=False)
    assert torch.get_num_threads() == before


def test_on_a_gpu_a_batch_is_fetched_after_the_next_is_launched(encoder, files, monkeypatch):
    """The order of events, with a processor that calls itself a GPU."""
    events, fetched = [], features._fetched

    def forward(_, images, kind):
        events.append("launch")
        return encoder.features(encoder.prepare.normalize(torch.stack([i.expand(3, -1, -1) for i in images])), kind)

    monkeypatch.setattr(features, "_forward", forward)
    monkeypatch.setattr(features, "_fetched", lambda *args: events.append("fetch") or fetched(*args))
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), prepare=encoder.prepare)
    batches = [[4, 2], [9], [1, 0, 7]]
    found = list(features.encode(on_gpu, files, batches))
    assert events == ["launch", "launch", "fetch", "launch", "fetch", "fetch"]
    assert [rows for rows, _, _ in found] == batches
    np.testing.assert_allclose(found[2][1], expected(encoder, files, batches[2]), atol=1e-5)


def test_a_fast_read_is_the_usual_read(files):
    for row in range(IMAGES):
        usual = files.pixels(row)
        assert torch.equal(features.file_pixels(files, row).expand_as(usual), usual), files.id(row)


# ---------------------------------------------------------------- shards


def shards_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def embed(encoder, corpus, folder, **options):
    dataset = {"name": "x", "split": "train"}
    settings = {"batch_size": 4, "images_per_shard": 10, "progress": False} | options
    return embed_corpus(encoder, corpus, folder, dataset=dataset, **settings)


@pytest.fixture(scope="module")
def embedded(encoder, place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded") / "features"
    assert embed(encoder, open_images(str(place / "corpus"), progress=False), folder) == {}
    return folder


def test_shards_hold_features_and_what_the_corpus_tells(encoder, tables, embedded):
    table, found = read_features(embedded)
    np.testing.assert_allclose(found, expected(encoder, tables, range(IMAGES)), atol=1e-5)
    assert table.column_names == ["row", "id", "organ", "patient"]
    assert table.column("row").to_pylist() == list(range(IMAGES)) and table.column("organ")[1].as_py() == "heart"
    dataset = datasets.Dataset.from_parquet([str(p) for p in sorted(embedded.glob("*.parquet"))])
    assert len(dataset[0]["embedding"]) == 32


def test_a_killed_run_goes_on_to_the_same_bytes(encoder, place, embedded, tmp_path, monkeypatch):
    corpus, folder, encode = open_images(str(place / "corpus"), progress=False), tmp_path / "features", features.encode

    def killed(*args, **kwargs):
        for number, batch in enumerate(encode(*args, **kwargs)):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(feature_shards, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, corpus, folder)
    assert set(shards_of(folder)) == {"meta.json", "features-00000-of-00003.parquet"}
    monkeypatch.setattr(feature_shards, "encode", encode)
    embed(encoder, corpus, folder)
    assert shards_of(folder) == shards_of(embedded)
    (folder / "features-00001-of-00003.parquet").write_bytes(b"PAR1")
    embed(encoder, corpus, folder)
    assert shards_of(folder) == shards_of(embedded)


def test_another_run_s_folder_is_refused(encoder, place, embedded, tmp_path):
    corpus = open_images(str(place / "corpus"), progress=False)
    for options, name in (({"batch_size": 5}, "batch_size"), ({"kind": "cls"}, "kind")):
        with pytest.raises(ValueError, match=f"was begun with {name}="):
            embed(encoder, corpus, embedded, **options)
    with pytest.raises(ValueError, match="was begun with encoder_fingerprint="):
        embed(load_encoder(f"random:{place / 'urfm'}", seed=3), corpus, embedded)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds letter.txt and no features"):
        embed(encoder, corpus, tmp_path)


def test_nearest_is_the_cosine(encoder, embedded):
    _, found = read_features(embedded)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    lines = nearest(embedded, found[7], 5)
    cosine = unit @ unit[7]
    assert [line["row"] for line in lines] == np.argsort(-cosine)[:5].tolist()
    np.testing.assert_allclose([line["similarity"] for line in lines], np.sort(cosine)[::-1][:5], atol=1e-5)
    assert lines[0]["rank"] == 1 and lines[0]["patient"] == "p3" and "embedding" not in lines[0]


def test_the_index_is_written_where_simpleitk_is_loaded_too(embedded):
    code = f"""if True:
        import faiss, SimpleITK  # both were made with SWIG, and share a table of types
        from pathlib import Path
        from modeling_urfm.evaluation.feature_shards import build_index, nearest, read_features
        folder = Path({str(embedded)!r})
        build_index(folder)
        print(nearest(folder, read_features(folder)[1][7], 1)[0]["row"])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "7", done.stderr[-2000:]


def test_images_without_row_are_told_again(encoder, place, tmp_path):
    for path in sorted((place / "images").iterdir())[:6]:
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 90 if path.name == "003.jpg" else None])
    corpus = open_images(str(tmp_path), progress=False)
    for _ in range(2):
        left_out = embed(encoder, corpus, tmp_path.with_name("out"), kind="tokens")
        assert list(left_out) == ["003.jpg#0"]
    table, found = read_features(tmp_path.with_name("out"))
    assert len(table) == 5 and found.shape == (5, 4, 32) and found.dtype == np.float16
    with pytest.raises(ValueError, match="of --kind tokens there is none"):
        nearest(tmp_path.with_name("out"), found[0, 0], 1)


# ---------------------------------------------------------------- ranks

RANKS = """
import sys
from pathlib import Path
import numpy as np
from modeling_urfm.evaluation.encoders import load_encoder
from modeling_urfm.evaluation.feature_shards import embed_corpus, open_images
from modeling_urfm.evaluation.features import extract_features
from modeling_urfm.pretraining.engine import end_run, make_sharing_accelerator
root, out = map(Path, sys.argv[1:])
accelerator = make_sharing_accelerator()
assert accelerator.num_processes == 2
encoder = load_encoder(str(root / "urfm"))
corpus = open_images(str(root / "corpus"), progress=False)
for turn in range(2):
    found = extract_features(encoder, corpus, [9, *range(6), 12], batch_size=3, cache_dir=out / "cache", accelerator=accelerator,
                             progress=False)
np.save(out / f"rank{accelerator.process_index}.npy", found)
one = extract_features(encoder, corpus, [5], kind="tokens", accelerator=accelerator, progress=False)
assert one.shape == (1, 4, 32), one.shape
embed_corpus(encoder, corpus, out / "features", dataset={"name": "x", "split": "train"}, batch_size=4, images_per_shard=10,
             accelerator=accelerator, progress=False)
end_run(accelerator)
"""


@pytest.mark.distributed
def test_two_ranks_share_the_work(encoder, place, tables, embedded, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([*command, str(place), str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = expected(encoder, tables, [9, *range(6), 12])
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"rank{rank}.npy"), alone, atol=1e-5)
    assert shards_of(tmp_path / "features") == shards_of(embedded)


def test_tokens_are_mapped_from_the_disk_at_once(encoder, files, tmp_path):
    found = extract_features(encoder, files, [0, 3], kind="tokens", cache_dir=tmp_path, progress=False)
    assert isinstance(found, np.memmap) and found.shape == (2, 4, 32)


def test_what_cannot_be_prepared_is_named(encoder, files):
    def fails(pixels, index):
        raise RuntimeError("too small")

    fails.key = "fails"
    with pytest.raises(ValueError, match="001.jpg.*can't be prepared: RuntimeError: too small"):
        extract_features(encoder, files, [1], corruption=fails, progress=False)


def test_a_shard_without_readable_images(place, encoder, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        data = (place / "images" / "000.png").read_bytes()
        (tmp_path / "images" / f"{number}.png").write_bytes(data if number > 1 else data[:50])
    name = {"name": str(tmp_path / "images")}
    left_out = embed_corpus(encoder, open_images(**name), tmp_path / "out", dataset=name, kind="tokens",
                            images_per_shard=2, progress=False)  # fmt: skip
    table, found = read_features(tmp_path / "out")
    assert len(left_out) == 2 and table.column("row").to_pylist() == [2, 3] and found.shape == (2, 4, 32)


def test_one_pixel_is_no_image(encoder, tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    corpus = open_images(str(tmp_path))
    with pytest.raises(ValueError, match="dot.png.*1 x 1 pixels"):
        extract_features(encoder, corpus, [0], progress=False)
