# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/visualize.py: stills and a real cine loop, an encoder alone, pixel targets, and what is said of wrong flags."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_urfm import URFMConfig, URFMForPreTraining, URFMImageProcessor
from modeling_urfm.data.phantoms import phantom_frame
from modeling_urfm.data.reading import ultrasound_examples


RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "visualize.py"
SIZES = dict(
    image_size=64, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=32,
    target_hidden_size=96,
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe():
    """The script as a module, whose `main` is run in this process."""
    spec = importlib.util.spec_from_file_location("visualize_recipe", RECIPE)
    module = sys.modules["visualize_recipe"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["visualize_recipe"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: "whole" with its decoder, "encoder" alone, "pixel" with pixel targets."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    whole, pixel = (
        URFMForPreTraining(URFMConfig(**SIZES)),
        URFMForPreTraining(URFMConfig(**SIZES | {"target": "pixel"})),
    )
    for name, model in (("whole", whole), ("encoder", whole.urfm), ("pixel", pixel)):
        model.save_pretrained(root / name)
        URFMImageProcessor(size={"height": 64, "width": 64}).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two stills of different shapes, a note, and a film of five frames."""
    folder = tmp_path_factory.mktemp("images")
    first, second = (phantom_frame(5, i, organ=o, image_size=96).image for i, o in enumerate(("heart", "kidney")))
    Image.fromarray(first).save(folder / "a.png")
    Image.fromarray(np.pad(second, ((0, 0), (20, 40)))).save(folder / "b.png")
    (folder / "notes.bin").write_text("no image")
    frames = [Image.fromarray(phantom_frame(5, 0, frame=i, organ="heart", image_size=64).image) for i in range(5)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:], duration=40)
    return folder


@pytest.fixture
def visualize(recipe, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, arguments)])
        recipe.main()

    return run


def sizes(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_folder_of_stills_and_a_film(visualize, models, images, tmp_path, caplog):
    flags = [images, "--model_name_or_path", models / "whole", "--teacher", "demo", "--html", "--dpi", "60"]
    visualize(*flags, "--output_dir", tmp_path / "seen", "--click", "40,50")
    names = {"sheet.png", "prediction.png", "viewer.html", "film.gif", "film.png", "film.html", "results.json"}
    assert {p.name for p in (tmp_path / "seen").iterdir()} == names
    results = json.loads((tmp_path / "seen" / "results.json").read_text())
    assert {"command", "versions", "seed", "metrics", "timings"} <= set(results)
    stills, film = results["metrics"]["groups"]
    assert set(results["metrics"]["files"]) == names - {"results.json"}
    assert [image["name"] for image in stills["images"]] == ["a.png", "b.png"]
    assert stills["images"][1]["size"] == [96, 156] and stills["images"][0]["grid"] == [4, 4]
    assert stills["clicked_boxes"] == [[24.0, 48.0, 48.0, 72.0]]
    assert all(-1 <= image["prediction_cosine"] <= 1 and image["patches_hidden"] == 12 for image in stills["images"])
    assert film["frame_rate"] == 25 and film["frame_rate_from"] == "file" and len(film["images"]) == 5
    assert "left out: notes.bin: " in caplog.text
    with Image.open(tmp_path / "seen" / "film.gif") as gif:
        total = 0
        for i in range(gif.n_frames):
            gif.seek(i)
            total += gif.info["duration"]
    assert total == 200
    # Once more: the same pictures, and the same results but for times and the command.
    visualize(*flags, "--output_dir", tmp_path / "again", "--click", "40,50")
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["metrics"] == results["metrics"]
    for name in names - {"results.json"}:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "seen" / name).read_bytes(), name


def test_an_encoder_alone_shows_all_but_predictions(visualize, models, images, tmp_path, caplog):
    caplog.set_level("INFO")
    given = [images / "b.png", "--model_name_or_path", models / "encoder", "--output_dir", tmp_path / "seen"]
    visualize(*given, "--image_size", "128", "--crop_scan_region", "--pad_square", "--dpi", "60")
    assert {p.name for p in (tmp_path / "seen").iterdir()} == {"sheet.png", "results.json"}
    assert "no prediction" in caplog.text
    image = json.loads((tmp_path / "seen" / "results.json").read_text())["metrics"]["groups"][0]["images"][0]
    assert image["grid"] == [8, 8] and image["region"][3] >= 15  # the black at the left is cut off
    with pytest.raises(ValueError, match="an encoder alone: a prediction needs the decoder"):
        visualize(*given, "--kinds", "prediction")


def test_pixel_targets_are_shown_as_pixels(visualize, models, images, tmp_path):
    given = [images / "a.png", "--model_name_or_path", models / "pixel", "--output_dir", tmp_path / "seen"]
    visualize(*given, "--kinds", "prediction", "--dpi", "60")
    assert sizes(tmp_path / "seen" / "prediction.png")[0] == pytest.approx(60 * (0.34 + 3 * 2.17), abs=1)
    with pytest.raises(ValueError, match="predicts pixels, for which no teacher is"):
        visualize(*given, "--teacher", "demo")


def test_parts_of_many_are_chosen_evenly(visualize, models, images, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(5):
        shutil.copy(images / "a.png", folder / f"{i}.png")
    flags = ["--model_name_or_path", models / "encoder", "--kinds", "similarity", "--dpi", "60"]
    visualize(folder, *flags, "--max_images", "3", "--output_dir", tmp_path / "seen")
    groups = json.loads((tmp_path / "seen" / "results.json").read_text())["metrics"]["groups"]
    assert [image["name"] for image in groups[0]["images"]] == ["0.png", "2.png", "4.png"]
    assert "3 of 5 stills" in caplog.text
    visualize(images / "film.gif", *flags, "--max_frames", "3", "--output_dir", tmp_path / "film")
    film = json.loads((tmp_path / "film" / "results.json").read_text())["metrics"]["groups"][0]
    assert film["shown_every"] == 2 and [i["name"] for i in film["images"]] == ["frame 0", "frame 2", "frame 4"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--kinds", "pcs"], "'pcs' does not exist. Did you mean 'pca'"),
        (["--click", "40;50"], "expected X,Y in pixels"),
        (["--click", "400,50"], r"400,50 on a.png: the image has 96 x 96 pixels .* The nearest: 95,50"),
        (["--image_size", "100"], "no multiple of the patch size 16. The nearest: 96"),
        (["--dpi", "5000"], "The nearest: 1200"),
        (["--kinds", "pca", "--teacher", "demo"], "is for --kinds prediction"),
        (["--model_name_or_path", "nowhere/at-all"], "recipes/pretrain.py` makes `urfm`"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_written(visualize, models, images, tmp_path, flags, message):
    with pytest.raises((ValueError, OSError), match=message):
        visualize(images / "a.png", "--model_name_or_path", models / "whole", "--output_dir", tmp_path / "seen", *flags)
    assert not (tmp_path / "seen").exists()


def test_wrong_folders_are_told(visualize, models, images, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models / "encoder", folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no preprocessor_config.json"):
        visualize(images / "a.png", "--model_name_or_path", folder, "--output_dir", tmp_path / "seen")
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(FileNotFoundError, match="merge it first"):
        visualize(images / "a.png", "--model_name_or_path", folder, "--output_dir", tmp_path / "seen")
    with pytest.raises(FileNotFoundError, match="Did you mean '.*a.png'"):
        visualize(images / "aa.png", "--model_name_or_path", models / "whole", "--output_dir", tmp_path / "seen")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="is a 'vit' model"):
        visualize(images / "a.png", "--model_name_or_path", other, "--output_dir", tmp_path / "seen")


@pytest.mark.slow
def test_the_first_command_and_the_one_for_a_dicom_loop(models, tmp_path):
    loop = next(path for path in ultrasound_examples() if path.name == "examples_ybr_color.dcm")
    for given, expected in (([], {"sheet.png", "prediction.png"}), ([loop, "--click", "120,90"], set())):
        output = tmp_path / str(len(given))
        command = [sys.executable, RECIPE, *given, "--model_name_or_path", models / "whole", "--output_dir", output]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        expected = expected | {"examples_ybr_color.gif", "examples_ybr_color.png", "results.json"}
        assert {p.name for p in output.iterdir()} == expected
        with Image.open(output / "examples_ybr_color.gif") as gif:
            durations = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
        assert sum(durations) == 1000  # 30 frames at 30 a second
    done = subprocess.run([sys.executable, str(RECIPE), "nowhere.png"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("visualize.py: ")
