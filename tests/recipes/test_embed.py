# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/embed.py as a user runs it, and that its bench runs."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel
from modeling_urfm.data.phantoms import phantom_frame
from modeling_urfm.evaluation import feature_shards


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32}  # fmt: skip


def load(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("embed")
    torch.manual_seed(0)
    URFMModel(URFMConfig(**SMALL)).save_pretrained(root / "urfm")
    URFMImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "urfm")
    (root / "images").mkdir()
    for number in range(12):
        image = Image.fromarray(phantom_frame(3, number, image_size=64).image)
        image.save(root / "images" / f"{number:03}.jpg")
    broken = root / "images" / "004.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    return root


@pytest.fixture
def run(monkeypatch, capsys):
    def main(*flags):
        monkeypatch.setattr(sys, "argv", [str(RECIPES / "embed.py"), *map(str, flags)])
        threads = torch.get_num_threads()
        try:
            load("embed").main()
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return main


def test_embed_then_query_without_computing_again(run, place, monkeypatch):
    folder = place / "features"
    said = run(
        "--encoder", place / "urfm", "--dataset", place / "images", "--output_dir", folder, "--images_per_shard", 5
    )
    assert "11 of 12 images" in said
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"command", "versions", "seed", "metrics", "timings"}
    assert results["metrics"]["embedded"] == 11 and list(results["metrics"]["left_out"]) == ["004.jpg#0"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(feature_shards, "encode", None)
    lines = run("--output_dir", folder, "--query", place / "images" / "007.jpg", "--top", 3).splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["rank"] for line in found] == [1, 2, 3] and found[0]["id"] == "007.jpg#0"
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)
    with Image.open(folder / "nearest.png") as picture:
        assert min(picture.size) > 200
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name in before} == before


def test_a_query_needs_no_encoder_where_the_processor_has_to_be_called(run, place):
    padded = place / "padded"
    URFMModel.from_pretrained(place / "urfm").save_pretrained(padded)
    URFMImageProcessor(size={"height": 32, "width": 32}, do_pad_square=True).save_pretrained(padded)
    folder = place / "features3"
    run("--encoder", padded, "--dataset", place / "images", "--output_dir", folder)
    found = run("--output_dir", folder, "--query", place / "images" / "007.jpg").splitlines()
    assert json.loads(found[0])["id"] == "007.jpg#0"


def test_a_query_by_another_encoder_is_refused(run, place):
    folder = place / "features2"
    run(
        "--encoder",
        f"random:{place / 'urfm'}",
        "--dataset",
        place / "images",
        "--output_dir",
        folder,
        "--dtype",
        "float32",
    )
    model = URFMModel(URFMConfig(**SMALL))
    model.save_pretrained(place / "other")
    URFMImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place / "other")
    with pytest.raises(ValueError, match="is another encoder now"):
        run("--encoder", place / "other", "--output_dir", folder, "--query", place / "images" / "007.jpg")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "Nothing to do"),
        (["--dataset", "x", "--kind", "clz"], "Did you mean 'cls'"),
        (["--dataset", "x", "--dtype", "bf16"], "Did you mean 'bfloat16'"),
        (["--query", "x.png", "--top", "0"], "--top 0 must be at least 1"),
        (["--query", "x.png", "--output_dir", "{place}/nothing"], "no features were written there"),
        (
            ["--dataset", "{place}/imagse", "--encoder", "{place}/urfm", "--output_dir", "{place}/new"],
            "Did you mean .*images",
        ),
    ],
)
def test_bad_flags_say_why(run, place, flags, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        run(*(flag.format(place=place) for flag in flags))


@pytest.mark.slow
def test_the_bench_runs(tmp_path):
    bench = load("bench_embed")
    parser = bench.argparse.ArgumentParser()
    bench.add_arguments(parser)
    threads = torch.get_num_threads()
    try:
        found = bench.bench_embed(parser.parse_args(["--quick", "--threads", "1", "--output_dir", str(tmp_path)]))
    finally:
        torch.set_num_threads(threads)
    assert set(found["rows"]) == {bench.PLAIN, bench.PLAIN_BF16, bench.OURS, bench.FORWARD}
    assert all(row["images_per_s"] > 0 for row in found["rows"].values())
    assert json.loads((tmp_path / "results.json").read_text())["metrics"]["images"] == 32
