# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The folder that is left behind loads everywhere: with the package, and in a clean process without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining

from modeling_urfm import (
    URFMBackbone,
    URFMConfig,
    URFMForPreTraining,
    URFMImageProcessor,
    URFMImageProcessorPil,
    URFMModel,
)
from modeling_urfm.hub import saving
from modeling_urfm.hub.results import write_json
from modeling_urfm.hub.saving import as_bytes, clean_png, move_into, save_model_folder


PROJECT = Path(__file__).resolve().parents[2]
SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16, "target_hidden_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "urfm"
    save_model_folder(
        URFMForPreTraining(URFMConfig(**SMALL)), URFMImageProcessor(size={"height": 32, "width": 32}), path
    )
    return path


def test_it_holds_what_is_needed_and_nothing_else(folder):
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors", "config.json", "preprocessor_config.json", "configuration_urfm.py", "modeling_urfm.py",
        "image_processing_urfm.py",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert len(config["auto_map"]) == 6 and config["model_type"] == "urfm"


def test_with_the_package_no_trust_is_asked_for(folder):
    assert isinstance(AutoConfig.from_pretrained(folder), URFMConfig)
    model = AutoModel.from_pretrained(folder)
    assert type(model) is URFMModel
    assert type(AutoModelForPreTraining.from_pretrained(folder)) is URFMForPreTraining
    assert type(AutoBackbone.from_config(model.config)) is URFMBackbone
    assert isinstance(AutoImageProcessor.from_pretrained(folder), URFMImageProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(folder, backend="pil"), URFMImageProcessorPil)


CLEAN = """
import sys, numpy, torch
assert not any("modeling_urfm" == name for name in sys.modules)
try:
    import modeling_urfm; raise SystemExit("the package is on the path")
except ModuleNotFoundError:
    pass
from transformers import (AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining,
    AutoModelForSemanticSegmentation, pipeline)
image = numpy.full((40, 50, 3), 90, dtype=numpy.uint8)
torch.manual_seed(0)
options = dict(trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("urfm", **options)
pil = AutoImageProcessor.from_pretrained("urfm", backend="pil", **options)
assert (type(processor).__name__, type(pil).__name__) == ("URFMImageProcessor", "URFMImageProcessorPil")
inputs = processor(image, return_tensors="pt")
features = AutoModel.from_pretrained("urfm", **options).eval()(**inputs)
print(features.pooler_output.sum().item())
assert AutoModelForPreTraining.from_pretrained("urfm", **options)(**inputs).predictions.shape == (1, 16, 8)
assert AutoModelForImageClassification.from_pretrained("urfm", num_labels=3, **options)(**inputs).logits.shape == (1, 3)
assert AutoModelForSemanticSegmentation.from_pretrained("urfm", num_labels=3, **options)(**inputs).logits.shape == (1, 3, 8, 8)
from PIL import Image
out = pipeline("image-feature-extraction", model="urfm", **options)(Image.fromarray(image))
assert numpy.array(out).shape == (1, 17, 16)
print("all of them")
"""


def test_a_clean_process_without_the_package(folder, tmp_path):
    """An isolated interpreter that does not see this project: the code comes from the folder."""
    code = (
        "import os, sys\n"
        f"sys.path[:] = [p for p in sys.path if os.path.realpath(p) != {str(PROJECT)!r}]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n" + CLEAN
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all of them" in done.stdout
    image = torch.full((40, 50, 3), 90, dtype=torch.uint8).numpy()
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    expected = AutoModel.from_pretrained(folder).eval()(**inputs).pooler_output.sum().item()
    assert float(done.stdout.split()[0]) == pytest.approx(expected, abs=1e-5)


def test_killed_while_it_writes_the_old_folder_still_loads(folder, tmp_path, monkeypatch):
    """At each of the moves the folder holds the old or the new file, and weights that fit the config."""
    real = os.replace
    for last in range(6):
        target = tmp_path / str(last)
        shutil.copytree(folder, target)
        moves = []

        def replace(source, destination, moves=moves, last=last):
            if len(moves) == last:
                raise KeyboardInterrupt
            moves.append(destination)
            real(source, destination)

        monkeypatch.setattr(saving.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            save_model_folder(URFMForPreTraining(URFMConfig(**SMALL)), URFMImageProcessor(), target)
        monkeypatch.setattr(saving.os, "replace", real)
        assert AutoModel.from_pretrained(target).config.hidden_size == 16
        save_model_folder(URFMForPreTraining(URFMConfig(**SMALL)), URFMImageProcessor(), target)
        assert not list(target.glob(".tmp*"))


def test_weights_are_moved_before_the_config_that_points_to_them(tmp_path, monkeypatch):
    source, order = tmp_path / "new", []
    source.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "modeling_urfm.py"):
        (source / name).write_text("x")
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(b.name), real(a, b)))
    move_into(source, tmp_path)
    assert order == ["model.safetensors", "modeling_urfm.py", "config.json", "preprocessor_config.json"]


def test_what_json_cannot_say_becomes_null(tmp_path):
    write_json(
        tmp_path / "r.json", {"a": float("nan"), "b": [np.float32(0.5), np.inf], "c": {"d": np.arange(2)}, "e": 3}
    )
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == {"a": None, "b": [0.5, None], "c": {"d": [0, 1]}, "e": 3}


def test_the_size_of_a_shard_is_read_as_the_hub_reads_it():
    assert [as_bytes(size) for size in ("5GB", "500 MB", "1.5kb", "12B")] == [5 * 10**9, 5 * 10**8, 1500, 12]
    for size in ("", "0GB", "5", "GB", "-1GB", "5GiB"):
        with pytest.raises(ValueError, match="a size such as 5GB"):
            as_bytes(size)


def test_of_an_image_only_the_image_stays(tmp_path):
    companions = PngInfo()
    companions.add_text("Comment", "of somebody")
    pixels = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    pixels.save(tmp_path / "a.png", pnginfo=companions)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + b"of somebody")
    cleaned = clean_png(tmp_path / "a.png", tmp_path / "staged.png")
    assert cleaned == tmp_path / "staged.png" and b"somebody" not in cleaned.read_bytes()
    assert np.array_equal(np.asarray(Image.open(cleaned)), np.asarray(pixels))
    assert clean_png(cleaned, tmp_path / "again.png") == cleaned and not (tmp_path / "again.png").exists()
    (tmp_path / "b.png").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="no PNG"):
        clean_png(tmp_path / "b.png", tmp_path / "staged.png")
