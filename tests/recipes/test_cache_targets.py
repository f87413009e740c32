# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/cache_targets.py as a user runs it: several ranks, killed and gone on with, refused where it is another's."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from modeling_urfm.data.corpus import load_corpus
from modeling_urfm.data.transforms import Crop, to_float
from modeling_urfm.pretraining.target_cache import TargetCache, cache_key, read_facts, read_meta
from modeling_urfm.pretraining.teacher import load_teacher
from modeling_urfm.pretraining.teacher_images import cache_bytes_an_image


RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "cache_targets.py"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
ONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SMALL = "--teacher demo --images_per_shard 16 --per_device_batch_size 8 --dataloader_num_workers 1".split()
IMAGES, BROKEN = 90, 37


def command(launcher, corpus, *more):
    return [*launcher, str(RECIPE), "--dataset", str(corpus), *SMALL, *map(str, more)]


def make(launcher, corpus, *more, check=True):
    done = subprocess.run(command(launcher, corpus, *more), capture_output=True, text=True, env=ENVIRONMENT)
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def digests(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Parquet shards of 90 images of many shapes, one of which is cut short."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    generator = torch.Generator().manual_seed(0)
    cells = []
    for number in range(IMAGES):
        coarse = torch.rand(1, 1, 7, 7, generator=generator)
        pixels = F.interpolate(coarse, size=(100 + number, 160), mode="bicubic")[0, 0].clamp(0, 1)
        file = io.BytesIO()
        Image.fromarray((pixels * 255).byte().numpy()).save(file, "JPEG", quality=95)
        cells.append({"bytes": file.getvalue()[: 300 if number == BROKEN else None], "path": None})
    table = datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image())
    for shard in range(2):
        path = folder / "data" / f"train-{shard:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.shard(2, shard).to_parquet(path, batch_size=20)
    return folder


@pytest.fixture(scope="module")
def made(corpus):
    """The cache that one process makes in one go."""
    done = make(ONE, corpus)
    assert "--target_cache" in done.stdout
    return corpus.with_name("corpus-targets")


@pytest.mark.slow
def test_what_is_read_is_what_the_teacher_gives(corpus, made):
    images, teacher = load_corpus(corpus, progress=False), load_teacher("demo")
    cache = TargetCache.open(made, cache_key(images, "demo", -1, teacher), (8, 8))
    near = []
    for index in (0, 20, 44, 45, 89):
        pixels = TF.resize(images.pixels(index), [128, 128], InterpolationMode.BICUBIC, antialias=True)
        wanted = teacher(to_float(pixels).expand(3, -1, -1)[None], (8, 8))[0]
        got = cache.decode(cache.read(index, Crop(0.0, 0.0, 1.0, 1.0)))
        near.append(float(F.cosine_similarity(got, wanted, dim=-1).mean()))
    assert min(near) > 0.97 and np.mean(near) > 0.98


@pytest.mark.slow
def test_a_sample_tells_the_size_of_the_whole(corpus, made):
    read = json.loads((made / "results.json").read_text())["metrics"]["bytes_per_image"]
    about = cache_bytes_an_image(load_corpus(corpus, progress=False), load_teacher("demo"), sample=32)
    assert about == pytest.approx(read, rel=0.15)


@pytest.mark.slow
def test_the_results_count_everything_and_name_what_is_unreadable(corpus, made):
    results = json.loads((made / "results.json").read_text())
    assert {"command", "versions", "seed", "metrics", "timings"} <= set(results)
    metrics = results["metrics"]
    assert metrics["images"] == IMAGES and metrics["shards"] == 6 and metrics["cosine_mean"] >= 0.98
    assert list(metrics["unreadable"]) == ["data/train-00000-of-00002.parquet#37"]
    assert metrics["cosine_min"] <= metrics["cosine_p5"] <= metrics["cosine_mean"]
    sizes = [len(load_corpus(corpus, progress=False).cell(i)[0]) for i in range(IMAGES) if i != BROKEN]
    assert metrics["source_bytes_per_image"] == pytest.approx(np.mean(sizes), abs=0.1)
    assert metrics["ratio_to_source"] < 1 and read_meta(made)["bytes_per_image"] == metrics["bytes_per_image"]
    images = load_corpus(corpus, progress=False)  # beside it, the cache has not changed it
    cache = TargetCache.open(made, cache_key(images, "demo", -1), (8, 8))
    assert not cache.has(BROKEN) and cache.has(BROKEN + 1)
    assert images[BROKEN]["index"] == BROKEN + 1


@pytest.mark.slow
def test_run_again_it_computes_nothing_and_mends_what_is_damaged(corpus, made):
    before = digests(made)
    stamps = {path: path.stat().st_mtime_ns for path in made.glob("targets-*")}
    damaged = made / "targets-00002-of-00006.safetensors"
    content = bytearray(before[damaged.name])
    content[-50] ^= 1
    damaged.write_bytes(content)
    assert "5 shards are there and whole" in make(ONE, corpus).stderr
    assert digests(made) == before
    assert [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp] == [damaged.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, named",
    [
        (["--teacher_layer", "-2"], "teacher_layer=-1, this run has teacher_layer=-2"),
        (["--min_cosine", "0.97"], "min_cosine=0.985, this run has min_cosine=0.97"),
        (["--dataset", "demo", "--phantom_patients", "1"], "corpus="),
        (["--min_cosine", "1.5"], "nearest valid value: 0.9999"),
        (["--output_dir", "INSIDE"], "whose files are images"),
        (["--teacher_layers", "3"], "Did you mean --teacher_layer"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(corpus, made, more, named):
    before = digests(made)
    more = [str(corpus / "targets") if part == "INSIDE" else part for part in more]
    done = make(ONE, corpus, "--output_dir", made, *more, check=False)
    assert done.returncode != 0 and named in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert digests(made) == before and not (corpus / "targets").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_killed_and_gone_on_with_make_what_one_process_makes(corpus, made, tmp_path):
    output = tmp_path / "targets"
    begun = subprocess.Popen(
        command(TWO, corpus, "--output_dir", output), env=ENVIRONMENT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.time() + 120
    while not list(output.glob("targets-*")) and begun.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    there = sorted(output.glob("targets-*"))
    assert there and all(read_facts(path, 10 if "00005-" in path.name else 16) for path in there)
    if len(there) < 6:
        with pytest.raises(ValueError, match="not finished"):
            TargetCache.open(output, read_meta(output)["key"], (8, 8))
    stamps = {path: path.stat().st_mtime_ns for path in there}
    make(TWO, corpus, "--output_dir", output)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert len(list(output.glob("targets-*"))) == 6 and not list(output.glob(".tmp-*"))
    ours, theirs = (json.loads((f / "results.json").read_text())["metrics"] for f in (output, made))
    assert ours["num_processes"] == 2 and ours["unreadable"] == theirs["unreadable"]
    assert ours["cosine_mean"] == pytest.approx(theirs["cosine_mean"], abs=1e-3)
    images = load_corpus(corpus, progress=False)
    key, crop = cache_key(images, "demo", -1), Crop(0.1, 0.2, 0.5, 0.6, True)
    a, b = (TargetCache.open(folder, key, (8, 8)) for folder in (output, made))
    for index in (3, 40, 88):
        near = F.cosine_similarity(a.decode(a.read(index, crop)), b.decode(b.read(index, crop)), dim=-1)
        assert near.mean() > 0.98
