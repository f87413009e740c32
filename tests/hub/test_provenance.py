# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a run records of itself names no place, and energy is counted only where the machine counts it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modeling_urfm.data.corpus import Corpus, join_corpora, load_corpus
from modeling_urfm.hub import provenance, scrub
from modeling_urfm.hub.results import sha256_of
from modeling_urfm.pretraining import meters
from modeling_urfm.pretraining.meters import Energy, add_energy

from ..data.small_corpus import picture, write_small_corpus
from .leaving import PRIVATE, SECRET


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """A folder of images called after a patient, one of them broken, and a corpus."""
    root = tmp_path_factory.mktemp("data")
    folder = root / SECRET
    folder.mkdir()
    picture(0).save(folder / f"{SECRET}.png")
    (folder / f"{SECRET}.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"x" * 9)
    results = write_small_corpus(root / "corpus", frames=1)
    (root / "corpus" / "results.json").write_text(json.dumps(results))
    return root


def arguments(*datasets: object) -> SimpleNamespace:
    return SimpleNamespace(
        dataset=[str(d) for d in datasets], dataset_split="train", teacher=f"transformers:{PRIVATE}", teacher_layer=-1,
        teacher_normalize="l2", init_from=PRIVATE, seed=3, output_dir=PRIVATE, max_train_steps=5, balance_by=["organ", "name"],
        augment=["speckle=0.5"], learning_rate=None,
    )  # fmt: skip


def test_a_run_on_private_folders_names_none_of_them(clinic, monkeypatch):
    monkeypatch.chdir(clinic)
    args = arguments(SECRET, clinic / "corpus")
    corpus = join_corpora([load_corpus(name, progress=False) for name in args.dataset])
    config = SimpleNamespace(target="representation")
    made_of = provenance.pretraining_provenance(
        args, config, corpus, teacher_weights="0123456789abcdef", devices=["cpu", "cpu"], energy={"gpu": 0.25}
    )
    text = json.dumps(made_of)
    assert SECRET not in text and str(clinic) not in text and "/home" not in text
    local, prepared = made_of["data"]
    assert (local["kind"], local["images"], local["left_out"]) == ("local", 1, {"no image in it": 1})
    assert prepared["kind"] == "corpus" and len(prepared["corpus"]["manifest_sha256"]) == 64
    assert (
        prepared["corpus"]["by_organ"]
        and sum(prepared["corpus"]["patients_by_organ"].values()) == prepared["corpus"]["patients"]
    )
    assert made_of["teacher"]["spec"] == "transformers"
    assert made_of["base"] == {"kind": "local", "name": None, "revision": None, "weights": None}
    assert made_of["training"] == {
        "dataset_split": "train", "teacher_layer": -1, "teacher_normalize": "l2", "seed": 3, "max_train_steps": 5,
        "augment": ["speckle=0.5"], "learning_rate": None,
    }  # fmt: skip
    assert made_of["hardware"]["processes"] == 2 and made_of["energy_kwh"] == {"gpu": 0.25}
    public = provenance.public_provenance(made_of)
    assert public["data"][1]["corpus"]["citations"] == prepared["corpus"]["citations"]
    assert provenance.public_provenance(json.loads(json.dumps(public))) == public


def test_a_data_set_of_the_hub_and_one_made_here_are_named():
    corpus = Corpus("x", 0)
    assert provenance.data_facts("acme/scans", corpus, "train")["name"] == "acme/scans"
    assert provenance.data_facts("phantoms:organ?patients=9", corpus, None)["kind"] == "made"
    for name in ("/nowhere/now", "../data", "C:\\scans", "anna's scans"):
        assert provenance.data_facts(name, corpus, None)["name"] is None


def test_a_corpus_of_the_hub_is_told_with_the_commit_that_was_read(clinic, monkeypatch):
    commit, asked = "0123456789abcdef0123456789abcdef01234567", []

    def download(repo_id, filename, **where):
        asked.append((repo_id, where["repo_type"], where["revision"]))
        return str(clinic / "corpus" / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    corpus = Corpus("acme/scans", 0)
    corpus.table = SimpleNamespace(
        cache_files=[{"filename": f"/cache/acme___scans/default/0.0.0/{commit}/train.arrow"}]
    )
    facts = provenance.public_provenance({"data": [provenance.data_facts("acme/scans", corpus, "train")]})["data"][0]
    assert (facts["kind"], facts["name"], facts["revision"]) == ("hub", "acme/scans", commit)
    assert facts["corpus"]["by_licence"] and len(facts["corpus"]["manifest_sha256"]) == 64
    assert set(asked) == {("acme/scans", "dataset", commit)}
    monkeypatch.undo()  # and where the Hub can't be asked, the commit is known all the same
    offline = provenance.data_facts("acme/scans", corpus, "train")
    assert offline["revision"] == commit and "corpus" not in offline


def test_the_weights_that_training_began_from_are_known_by_their_hash(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    facts = provenance.base_facts(str(tmp_path))
    assert (
        facts["kind"] == "local"
        and facts["name"] is None
        and facts["weights"] == sha256_of(tmp_path / "model.safetensors")
    )
    assert provenance.base_facts("acme/not-in-the-cache") == {
        "kind": "hub", "name": "acme/not-in-the-cache", "revision": None, "weights": None,
    }  # fmt: skip
    assert provenance.base_facts("/nowhere/now")["name"] is None


def test_the_commit_is_of_this_code_and_not_of_a_repository_around_it(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "modeling_urfm"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert provenance.code_facts() is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q", "."], cwd=tmp_path, check=True)
    (tmp_path / "theirs.py").touch()
    subprocess.run([*git, "add", "theirs.py"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "x"], cwd=tmp_path, check=True)
    assert provenance.code_facts() is None
    subprocess.run([*git, "add", "-f", "lib"], cwd=tmp_path, check=True)
    assert provenance.code_facts()["dirty"] is True
    subprocess.run([*git, "commit", "-qm", "x"], cwd=tmp_path, check=True)
    facts = provenance.code_facts()
    assert len(facts["commit"]) == 40 and facts["dirty"] is False


@pytest.mark.parametrize("text", [
    "/home/anna/x", "see /data/scans", "--x=/Users/anna", '"/mnt/d/1.dcm"', r"C:\Users\anna", r"\\server\share\x", "~/data", "file:///etc/x",
])  # fmt: skip
def test_places_are_found(text):
    assert scrub.find_place(text)


@pytest.mark.parametrize("text", [
    "https://huggingface.co/datasets/acme/x", "a/data/b", "recipes/pretrain.py", "~5 %", "and/or", "1/2", "AC/DC: x",
])  # fmt: skip
def test_what_is_no_place_is_none(text):
    assert scrub.find_place(text) is None


def test_notes_leave_up_to_where_names_may_follow():
    notes = [
        "split cut by patient, seed 0: train 65%, validation 15%, test 20%",
        f"2 images that are equal byte for byte: {SECRET}", f"{SECRET} has no image of liver",
        "12 images have no patient id: each of them counts as one patient",
    ]  # fmt: skip
    assert scrub.public_notes(notes) == [notes[0], "2 images that are equal byte for byte", notes[3]]


# ---------------------------------------------------------------- energy


def zone(root: Path, name: str, joules: float, kind: str = "package-0", largest: float = 1000.0) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "max_energy_range_uj").write_text(str(int(largest * 1e6)))
    (folder / "energy_uj").write_text(str(int(joules * 1e6)))
    return folder


def test_a_machine_without_counters_has_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(meters, "POWERCAP", tmp_path / "none")
    assert Energy(torch.device("cpu")).kwh == {}
    zone(tmp_path, "intel-rapl:0", 5)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # as where only root may read it
    monkeypatch.setattr(meters, "POWERCAP", tmp_path)
    assert Energy(torch.device("cpu")).kwh == {} and add_energy({}, [{}]) is None


def test_packages_are_added_parts_of_them_are_not_and_counters_begin_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(meters, "POWERCAP", tmp_path)
    for name, kind in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:2", "psys"),
    ):
        zone(tmp_path, name, 900, kind)
    energy = Energy(torch.device("cpu"))
    zone(tmp_path, "intel-rapl:0", 950)
    zone(tmp_path, "intel-rapl:1", 950, "package-1")
    energy.sample()
    zone(tmp_path, "intel-rapl:0", 50)  # past 1000
    assert energy.kwh == {"processors": pytest.approx((50 + 100 + 50) / 3.6e6)}
    assert Energy(torch.device("cpu"), processors=False).kwh == {}
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert energy.kwh == {}  # a sum that lacks a part is no sum


def test_a_gpu_is_asked_by_its_uuid(monkeypatch):
    joules, asked = iter((1000.0, 1000.0, 4600.0, 4600.0)), []
    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(joules) * 1e3,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-ab"))
    energy = Energy(torch.device("cuda", 0), processors=False)
    assert energy.kwh == {"gpu": pytest.approx(1e-3)} and asked == [b"GPU-12-ab"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Energy(torch.device("cuda", 0), processors=False).kwh == {}


def test_energy_adds_up_over_processes_and_parts_that_were_all_measured():
    assert add_energy({}, [{"gpu": 1.0, "processors": 2.0}, {"gpu": 3.0}]) == {"gpu": 4.0, "processors": 2.0}
    assert add_energy({"gpu": 1.0}, [{"gpu": 1.0, "processors": 2.0}]) == {"gpu": 2.0}
    assert add_energy(None, [{"gpu": 1.0}]) is None and add_energy({"gpu": 1.0}, [{}]) is None
