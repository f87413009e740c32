# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/convert.py from the command line: what it prints, what it writes, and one line where it can't."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..hub import layouts


RECIPE = Path(__file__).resolve().parents[2] / "recipes/convert.py"


def run(*arguments, folder: Path):
    return subprocess.run(
        [sys.executable, str(RECIPE), *map(str, arguments)], cwd=folder, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_released_file_to_urfm_and_to_timm(tmp_path):
    layouts.released_urfm(tmp_path / "urfm.pth")
    done = run("urfm.pth", "--output_dir", "urfm", "--num_attention_heads", 2, "--license", "mit", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    content = torch.load(tmp_path / "urfm.pth", weights_only=True)
    lines = done.stdout.splitlines()
    for key in [*content["ema_state_dict"], *(set(content) - {"ema_state_dict"})]:
        assert sum(line.startswith(f"{key} -> ") for line in lines) == 1
    assert "parity with timm" in done.stdout and "(allowed: 1e-05)" in done.stdout
    assert (
        "warning: --source_url is not given: 'unknown' is recorded." in done.stderr and "--license" not in done.stderr
    )
    record = json.loads((tmp_path / "urfm/conversion.json").read_text())
    assert record["license"] == "mit" and record["source_url"] == "unknown" and record["parity"]["max_abs"] <= 1e-5
    results = json.loads((tmp_path / "urfm/results.json").read_text())
    assert results["metrics"]["parity"] == record["parity"] and "convert.py" in results["command"]
    assert set(results) == {"command", "versions", "seed", "metrics", "timings"}
    done = run("urfm", "--to", "timm", "--output_dir", "timm-urfm", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'timm.create_model("local-dir:timm-urfm", pretrained=True)' in done.stdout
    assert {p.name for p in (tmp_path / "timm-urfm").iterdir()} == {
        "model.safetensors", "config.json", "conversion.json", "results.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content, message",
    [
        ({"fc_norm.weight": torch.ones(2)}, "convert.py: There is no plain ViT in the file: fc_norm.weight is of"),
        ({"patch_embed.proj.weight": torch.ones(2), "blocks.0.ls1.gamma": torch.ones(2), "rope.x": torch.ones(2)},
         "convert.py: The encoder can't be converted: blocks.0.ls1.gamma -> refused: layer scale"),
    ],
)  # fmt: skip
def test_what_can_not_be_converted_ends_with_a_line(tmp_path, monkeypatch, content, message):
    torch.save({"model": "mae", "ema_state_dict": {}, "state_dict": content}, tmp_path / "bad.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert.py", "bad.pth", "--output_dir", "bad"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert caught.value.code.startswith(message) and "\n" not in caught.value.code
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def load():
    import importlib.util

    spec = importlib.util.spec_from_file_location("convert_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Name one SOURCE; got 0"), (["a", "b", "--output_dir", "x"], "Name one SOURCE; got 2"), (["a"], "--output_dir"),
        (["a", "--output_dir", "x", "--to", "tim"], "Did you mean 'timm'"),
        (["a", "--output_dir", "x", "--weights", "emma"], "Did you mean 'ema'"),
        (["a", "--output_dir", "x", "--source_url", "here"], "is no address"),
        (["a", "--output_dir", "x", "--images", "nowhere"], "nowhere: no such folder"),
        (["a", "--output_dir", "x", "--to", "timm", "--license", "mit"], "--license is of a conversion to URFM"),
        (["a.pth", "--output_dir", "x"], "a.pth: no such file or folder"), (["a", "--output_dir", "full"], "of no such conversion"),
    ],
)  # fmt: skip
def test_wrong_arguments(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["convert.py", *arguments])
    with pytest.raises((ValueError, OSError), match=message):
        load().main()
    assert not (tmp_path / "x").exists()


def test_images_of_a_folder_are_compared_on(tmp_path, monkeypatch, capsys):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.new("L", (60, 50), 40 + number).save(tmp_path / f"pictures/{number}.png")
    layouts.released_urfm(tmp_path / "urfm.pth")
    (tmp_path / "urfm").mkdir()
    monkeypatch.chdir(tmp_path / "urfm")
    arguments = ["../urfm.pth", "--output_dir", ".", "--num_attention_heads", "2", "--images", "../pictures"]
    monkeypatch.setattr(sys, "argv", ["convert.py", *arguments, "--weights", "raw", "--image_size", "64"])
    load().main()
    record = json.loads((tmp_path / "urfm/conversion.json").read_text())
    assert record["parity"]["images"] == 2 and record["weights"] == "state_dict"
    assert json.loads((tmp_path / "urfm/config.json").read_text())["image_size"] == 64
    assert "ema_state_dict -> left out: averaged weights" in capsys.readouterr().out
