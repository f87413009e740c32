# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/publish.py: what it shows, sends and remembers; then a clean process loads what stands on the Hub."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoModel, AutoModelForPreTraining

from modeling_urfm import URFMForPreTraining
from modeling_urfm.hub import publishing
from tests.hub.leaving import SECRET, save_adapter, save_pretrained
from tests.hub.running_hub import running_hub


PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "recipes" / "publish.py"


@pytest.fixture(scope="module")
def recipe():
    specification = importlib.util.spec_from_file_location("publish_recipe", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running_hub(folder / "hub") as hub, hub.connected(folder / "home"):
        yield hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return save_pretrained(tmp_path_factory.mktemp("run") / "urfm")


@pytest.fixture
def run(recipe, monkeypatch, capsys):
    """`publish.py ...` in this process: what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, arguments)])
        recipe.main()
        return capsys.readouterr()

    return run


def names(repo_id, **options):
    return {file.rfilename for file in HfApi().repo_info(repo_id, **options).siblings} - {".gitattributes"}


def test_a_dry_run_shows_every_file_and_the_card_and_asks_nobody(run, trained, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    before = sorted(path.name for path in trained.iterdir())
    shown = run(
        trained, "--hub_model_id", "lab/urfm-dry", "--pretraining_model_id", "lab/dry-pre", "--dry_run", "--tag", "v1"
    )
    assert "lab/urfm-dry: model repository (encoder), private if it is made now, tag v1" in shown.out
    assert "lab/dry-pre: model repository (pretraining)" in shown.out and shown.out.count("nothing was sent") == 2
    for name in ("model.safetensors", "config.json", "modeling_urfm.py", "results.json", "loss.png", "provenance.json"):
        assert f"  {name}\n" in shown.out
    assert "library_name: transformers" in shown.out and "Not for clinical use" in shown.out and SECRET not in shown.out
    assert "checkpoint-3/" in shown.err  # what stays here is said
    assert sorted(path.name for path in trained.iterdir()) == before


def test_an_encoder_and_its_decoder_go_to_two_repositories(run, hub, trained, tmp_path):
    shown = run(trained, "--hub_model_id", "lab/urfm-tiny", "--pretraining_model_id", "lab/tiny-pre", "--tag", "v1")
    assert 'AutoModel.from_pretrained("lab/urfm-tiny"' in shown.out and 'revision="v1"' in shown.out
    assert {"config.json", "model.safetensors", "README.md", "results.json", "provenance.json", "preprocessor_config.json",
            "configuration_urfm.py", "modeling_urfm.py", "image_processing_urfm.py"} <= names("lab/urfm-tiny")  # fmt: skip
    assert HfApi().model_info("lab/urfm-tiny").private and not names("lab/urfm-tiny") & {"notes.txt", "nonfinite.json"}
    config = json.loads(Path(hf_hub_download("lab/urfm-tiny", "config.json", cache_dir=tmp_path)).read_text())
    assert config["architectures"] == ["URFMModel"] and len(config["auto_map"]) == 6
    known = json.loads((trained / "published.json").read_text())
    assert set(known) == {"lab/urfm-tiny", "lab/tiny-pre"}
    assert known["lab/urfm-tiny"]["commit"] == HfApi().model_info("lab/urfm-tiny", revision="v1").sha
    ours = URFMForPreTraining.from_pretrained(trained).state_dict()
    encoder = AutoModel.from_pretrained("lab/urfm-tiny", cache_dir=tmp_path, revision="v1").state_dict()
    assert encoder and all(torch.equal(value, ours[f"urfm.{name}"]) for name, value in encoder.items())
    whole = AutoModelForPreTraining.from_pretrained("lab/tiny-pre", cache_dir=tmp_path).state_dict()
    assert set(whole) == set(ours) and all(torch.equal(value, ours[name]) for name, value in whole.items())

    hub.forget_requests()
    assert "nothing had changed" in run(trained, "--hub_model_id", "lab/urfm-tiny", "--tag", "v1").out
    assert not [line for line in hub.requests() if line["method"] not in ("GET", "HEAD")]
    changed = run(trained, "--hub_model_id", "lab/urfm-tiny", "--license", "mit", "--tag", "v2").out
    assert "files sent 1, unchanged 10, removed 0" in changed  # the card
    with pytest.raises(OSError, match="tag v1"):
        run(trained, "--hub_model_id", "lab/urfm-tiny", "--tag", "v1", "--license", "cc-by-4.0")


def test_an_adapter_names_its_base_on_the_hub(run, hub, trained, tmp_path):
    adapter = save_adapter(tmp_path / "lora", trained)
    with pytest.raises(ValueError, match="--base_model"):
        run(adapter, "--hub_model_id", "lab/urfm-lora")
    run(adapter, "--hub_model_id", "lab/urfm-lora", "--base_model", "lab/urfm-base", "--public")
    sent = json.loads(Path(hf_hub_download("lab/urfm-lora", "adapter_config.json", cache_dir=tmp_path)).read_text())
    assert sent["base_model_name_or_path"] == "lab/urfm-base" and HfApi().model_info("lab/urfm-lora").private is False
    assert "model.safetensors" not in names("lab/urfm-lora")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["urfm"], "--hub_model_id ORG/NAME is needed"),
        (["urfm", "--hub_model_id", "urfm"], "Did you mean 'YOUR_NAME/urfm'"),
        (["urfm", "--hub_model_id", "lab/a", "--tag", "main"], "'main' is no name for a tag"),
        (["urfm", "--hub_model_id", "lab/a", "--pretraining_model_id", "lab/a"], "must differ"),
        (["urfm", "--hub_model_id", "lab/a", "--pretraining_model_id", "LAB/A"], "must differ"),
        (["urfm", "--hub_model_id", "lab/a", "--max_shard_size", "five"], "a size such as 5GB"),
        (["urfm", "--hub_model_id", "lab/a", "--source_url", "file:///etc"], "is no address"),
        (["urfm", "--hub_model_id", "lab/a", "--carbon_intensity", "-3"], "g CO2 per kWh"),
        (["--hub_model_id", "lab/a"], "One folder is published at a time"),
        (["urfn", "--hub_model_id", "lab/a"], "urfn: no such folder. Did you mean urfm"),
    ],
)
def test_wrong_arguments_are_said_before_anything_else(run, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "urfm").mkdir()
    with pytest.raises(ValueError, match=text):
        run(*arguments)


CLEAN = """
import os, sys
sys.path[:] = [p for p in sys.path if os.path.realpath(p or os.getcwd()) != PROJECT]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
import numpy, torch
from transformers import AutoImageProcessor, AutoModel
options = dict(trust_remote_code=True, revision="v1")
image = numpy.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=numpy.uint8)
inputs = AutoImageProcessor.from_pretrained("lab/urfm", **options)(image, return_tensors="pt")
torch.save(AutoModel.from_pretrained("lab/urfm", **options).eval()(**inputs).last_hidden_state, sys.argv[1])
assert "modeling_urfm" not in sys.modules
"""


@pytest.mark.slow
def test_published_killed_published_again_and_loaded_in_a_clean_process(tmp_path, trained, monkeypatch):
    """Killed while the weights are under way, nothing stands there; the same command goes on; the outputs are bit-equal."""
    folder = shutil.copytree(trained, tmp_path / "urfm")
    with running_hub(tmp_path / "hub", faults=({"path": "/_lfs/", "method": "PUT", "delay": 60, "times": 3},)) as hub:
        environment = hub.environment(tmp_path / "home")
        command = [sys.executable, str(SCRIPT), str(folder), "--hub_model_id", "lab/urfm", "--tag", "v1"]
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while not any("/objects/batch" in line["path"] for line in hub.requests()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hub.clear_faults()
        hub.forget_requests()
        assert not (folder / "published.json").exists()
        with hub.connected(tmp_path / "other"):
            assert names("lab/urfm") == set()

        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "tag v1" in done.stdout and "Traceback" not in done.stderr
        clean = ["-c", CLEAN.replace("PROJECT", repr(str(PROJECT))), str(tmp_path / "out.pt")]
        loaded = subprocess.run([sys.executable, *clean], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert loaded.returncode == 0, loaded.stderr[-3000:]
        refused = subprocess.run(
            [*command[:-1], "v2"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment | {"HF_TOKEN": "hf_wrong"},
        )
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert refused.stderr.strip().splitlines()[-1].startswith("publish.py: the token is not known there")

    import numpy

    from modeling_urfm import URFMImageProcessor, URFMModel

    image = numpy.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=numpy.uint8)
    inputs = URFMImageProcessor.from_pretrained(trained)(image, return_tensors="pt")
    with torch.no_grad():
        expected = URFMModel.from_pretrained(trained).eval()(**inputs).last_hidden_state
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected)


def test_a_server_that_stays_down_leaves_nothing_and_the_same_command_goes_on(run, hub, trained, monkeypatch):
    monkeypatch.setattr(publishing, "FIRST_PAUSE", 0.0)
    hub.add_fault(path="/commit/", status=500, times=None)
    with pytest.raises(OSError, match="5 attempts .*holds nothing of it yet.*The same command goes on"):
        run(trained, "--hub_model_id", "lab/urfm-down")
    hub.clear_faults()
    assert names("lab/urfm-down") == set() and os.path.exists(trained)
    assert "files sent 11," in run(trained, "--hub_model_id", "lab/urfm-down").out
