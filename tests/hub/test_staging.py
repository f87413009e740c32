# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What leaves is what should, loads, and names nobody; what must not leave is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from modeling_urfm import URFMForImageClassification, URFMModel
from modeling_urfm.hub.results import write_json
from modeling_urfm.hub.staging import StagingError, kind_of, stage

from ..data.small_corpus import write_small_corpus
from .leaving import LABELS, PRIVATE, SECRET, save_adapter, save_classifier, save_pretrained


CODE = {"configuration_urfm.py", "modeling_urfm.py", "image_processing_urfm.py"}
RECORDS = {"README.md", "results.json", "provenance.json"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    pretrained = save_pretrained(root / "urfm")
    return {
        "encoder": pretrained, "model": save_classifier(root / "classifier"),
        "adapter": save_adapter(root / "adapter", pretrained),
    }  # fmt: skip


@pytest.fixture
def copied(made, tmp_path):
    """A folder of `made` that a test may change."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(made[name], tmp_path / name))

    return copy


def put(publication, folder: Path) -> Path:
    """The repository as a download gives it."""
    for name, path in publication.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return folder


def features(folder: Path) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(torch.randn(2, 3, 32, 32)).last_hidden_state


def names_somebody(publication) -> list[str]:
    return [name for name, path in publication.files.items() if SECRET.lower().encode() in path.read_bytes().lower()]


def test_of_a_pre_training_the_encoder_leaves_and_gives_the_same_features(made, tmp_path):
    publication = stage(made["encoder"], "acme/urfm", tmp_path / "staging")
    assert (publication.kind, publication.repo_type) == ("encoder", "model")
    assert set(publication.files) == CODE | RECORDS | {
        "config.json", "preprocessor_config.json", "model.safetensors", "loss.png", "targets.png",
    }  # fmt: skip
    folder = put(publication, tmp_path / "repo")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["URFMModel"] and len(config["auto_map"]) == 6
    assert not [key for key in load_file(folder / "model.safetensors") if key.startswith(("urfm.", "decoder."))]
    assert torch.equal(features(folder), features(made["encoder"]))
    assert "checkpoint-3/" in publication.notes[-1] and "notes.txt" in publication.notes[-1]
    listed = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"]
    assert listed == ["image_processing_urfm.URFMImageProcessorPil", "image_processing_urfm.URFMImageProcessor"]
    assert AutoImageProcessor.from_pretrained(folder).size == {"height": 32, "width": 32}


def test_nothing_that_leaves_names_anybody(made, tmp_path):
    write_corpus(tmp_path / "corpus")
    for kind, source in (*made.items(), ("pretraining", made["encoder"]), ("corpus", tmp_path / "corpus")):
        more = {"base_model": "acme/urfm"} if kind == "adapter" else {}
        publication = stage(source, f"acme/{kind}", tmp_path / kind / "staging", kind=kind, **more)
        assert names_somebody(publication) == []
        assert not {"predictions.parquet", "worst.png", "overlays.png", "nonfinite.json"} & set(publication.files)


def test_what_is_recorded_leaves_as_counts_and_hashes(made, tmp_path):
    publication = stage(made["encoder"], "acme/urfm", tmp_path)
    results = json.loads(publication.files["results.json"].read_text())
    assert results["command"] == "accelerate launch recipes/pretrain.py --dataset ... --seed 3 --output_dir=..."
    assert results["metrics"]["left_out"] == {"damaged": 1, "empty": 1}
    assert results["metrics"]["unreadable"] == {"another reason": 1, "truncated": 1}
    assert results["history"] == [{"step": 1, "loss": 0.5}] and results["versions"]["torch"] == "2.14.1"
    provenance = json.loads(publication.files["provenance.json"].read_text())
    assert provenance["data"][0]["name"] is None and provenance["data"][0]["fingerprint"] == "00112233aabbccdd"
    assert provenance["data"][0]["left_out"] == {"another reason": 1, "damaged": 1}
    assert provenance["teacher"]["spec"] == "open_clip:local-dir" and provenance["training"] == {
        "seed": 3,
        "max_train_steps": 3,
    }


def test_the_same_folder_gives_the_same_bytes(made, tmp_path):
    first, second = (stage(made["encoder"], "acme/urfm", tmp_path / name) for name in "ab")
    assert {n: p.read_bytes() for n, p in first.files.items()} == {n: p.read_bytes() for n, p in second.files.items()}


def test_with_its_decoder_the_weights_are_referred_to_where_they_lie(made, tmp_path):
    publication = stage(made["encoder"], "acme/urfm-pt", tmp_path / "staging", kind="pretraining")
    assert publication.files["model.safetensors"] == made["encoder"] / "model.safetensors"
    model = AutoModelForPreTraining.from_pretrained(put(publication, tmp_path / "repo"))
    assert all(
        torch.equal(value, load_file(made["encoder"] / "model.safetensors")[k])
        for k, value in model.state_dict().items()
    )
    encoder = put(stage(made["encoder"], "acme/urfm", tmp_path / "again"), tmp_path / "encoder")
    with pytest.raises(ValueError, match="lacks weights decoder"):
        stage(encoder, "acme/urfm-pt", tmp_path / "more", kind="pretraining")


def test_a_published_encoder_can_be_published_again_and_large_weights_are_cut(made, tmp_path):
    folder = put(stage(made["encoder"], "acme/urfm", tmp_path / "staging"), tmp_path / "repo")
    again = stage(folder, "acme/urfm", tmp_path / "again")
    assert again.files["model.safetensors"] == folder / "model.safetensors"
    cut = stage(made["encoder"], "acme/urfm", tmp_path / "cut", max_shard_size="20KB")
    weights = [name for name in cut.files if "safetensors" in name]
    assert len(weights) > 2 and "model.safetensors.index.json" in weights and "model.safetensors" not in weights
    cut_folder = put(cut, tmp_path / "cut_repo")
    assert torch.equal(features(cut_folder), features(folder))
    whole = put(stage(cut_folder, "acme/urfm", tmp_path / "whole"), tmp_path / "whole_repo")
    assert (whole / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_how_images_are_prepared_leaves_whole(copied, tmp_path):
    from modeling_urfm import URFMImageProcessor

    folder = copied("encoder")
    options = {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
               "do_crop_scan_region": True, "image_mean": (0.1, 0.2, 0.3)}  # fmt: skip
    URFMImageProcessor(**options).save_pretrained(folder)
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(content | {"made_by": SECRET}))
    publication = stage(folder, "acme/urfm", tmp_path / "staging")
    loaded = AutoImageProcessor.from_pretrained(put(publication, tmp_path / "repo"))
    assert {name: getattr(loaded, name) for name in options} == options
    assert SECRET not in publication.files["preprocessor_config.json"].read_text()


def test_a_fine_tuned_model_leaves_with_its_head_and_labels(made, tmp_path):
    publication = stage(made["model"], "acme/classifier", tmp_path / "staging")
    assert publication.kind == "model" and "confusion.png" in publication.files
    folder = put(publication, tmp_path / "repo")
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is URFMForImageClassification and list(model.config.id2label.values()) == LABELS
    assert any("mal|ig_nant" in note for note in publication.notes)
    encoder = put(stage(made["model"], "acme/urfm", tmp_path / "enc", kind="encoder"), tmp_path / "enc_repo")
    assert "id2label" not in json.loads((encoder / "config.json").read_text())
    assert type(AutoModel.from_pretrained(encoder)) is URFMModel


def test_an_adapter_names_its_base_on_the_hub_and_loads_on_it(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StagingError, match="--base_model ORG/NAME"):
        stage(made["adapter"], "acme/lora", tmp_path / "staging")
    with pytest.raises(ValueError, match="no id of a repository on the Hub"):
        stage(made["adapter"], "acme/lora", tmp_path / "staging", base_model=str(made["encoder"]))
    put(stage(made["encoder"], "acme/urfm", tmp_path / "e"), tmp_path / "acme" / "urfm")
    publication = stage(made["adapter"], "acme/lora", tmp_path / "a", base_model="acme/urfm")
    folder = put(publication, tmp_path / "acme" / "lora")
    content = json.loads((folder / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == "acme/urfm" and content["revision"] is None
    assert not CODE & set(publication.files)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = (
            AutoModelForImageClassification.from_pretrained(f).eval()(pixels).logits for f in (folder, made["adapter"])
        )
    assert torch.equal(ours, theirs)


def test_a_recorded_base_of_the_hub_is_kept_with_its_revision(copied, tmp_path):
    folder = copied("adapter")
    content = json.loads((folder / "adapter_config.json").read_text())
    write_json(
        folder / "adapter_config.json", content | {"base_model_name_or_path": "acme/urfm", "revision": "ab" * 20}
    )
    (folder / "provenance.json").unlink()
    publication = stage(folder, "acme/lora", tmp_path / "staging")
    content = json.loads(publication.files["adapter_config.json"].read_text())
    assert content["base_model_name_or_path"] == "acme/urfm" and content["revision"] == "ab" * 20
    assert any("not recorded" in note for note in publication.notes)


def test_a_control_on_random_weights_is_refused(copied, tmp_path):
    folder = copied("adapter")
    results = json.loads((folder / "results.json").read_text())
    results["metrics"]["random_init"] = True
    write_json(folder / "results.json", results)
    with pytest.raises(StagingError, match="random weights"):
        stage(folder, "acme/lora", tmp_path / "staging", base_model="acme/urfm")


def test_an_attentive_model_leaves_without_code_that_would_load_half_of_it(made, tmp_path):
    from modeling_urfm.finetuning.heads import URFMAttentiveForImageClassification

    from .leaving import head_config, processor

    folder = tmp_path / "attentive"
    URFMAttentiveForImageClassification(head_config()).save_pretrained(folder)
    processor().save_pretrained(folder)
    publication = stage(folder, "acme/attentive", tmp_path / "staging")
    assert not CODE & set(publication.files) and "auto_map" not in publication.files["config.json"].read_text()
    assert "must be installed" in publication.files["README.md"].read_text()
    model = AutoModelForImageClassification.from_pretrained(put(publication, tmp_path / "repo"))
    assert type(model) is URFMAttentiveForImageClassification


def write_corpus(folder: Path) -> Path:
    results = write_small_corpus(folder, frames=1)
    write_json(
        folder / "results.json", results | {"command": f"python recipes/prepare.py {PRIVATE} --output_dir corpus"}
    )
    (folder / "README.md").write_text(PRIVATE)
    (folder / "patients.csv").write_text(SECRET)
    return folder


def test_a_corpus_leaves_as_it_lies_with_its_id_on_the_card(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    publication = stage(folder, "acme/corpus", tmp_path / "staging")
    assert (publication.kind, publication.repo_type) == ("corpus", "dataset")
    shards = [name for name in publication.files if name.startswith("data/")]
    assert shards and all(publication.files[name] == folder / name for name in shards)
    assert set(publication.files) - set(shards) == {"README.md", "results.json", "manifest.parquet"}
    card = publication.files["README.md"].read_text()
    assert 'load_dataset("acme/corpus")' in card and "FOLDER" not in card


def test_what_is_private_or_has_other_columns_is_refused(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    private = tmp_path / "corpus-private"
    private.mkdir()
    with pytest.raises(StagingError, match="private part"):
        stage(private, "acme/corpus", tmp_path / "staging")
    (folder / ".urfm-private").touch()
    with pytest.raises(StagingError, match="private part"):
        stage(folder / "data", "acme/corpus", tmp_path / "staging", kind="corpus")
    (folder / ".urfm-private").unlink()

    picture = "data:image/png;base64,AA/tmp/BB+/home/CC"  # is no place
    (folder / "corpus.html").write_text(f'<img src="{picture}">')
    assert "corpus.html" in stage(folder, "acme/corpus", tmp_path / "whole").files
    (folder / "corpus.html").write_text(f'<img src="{picture}"> of {PRIVATE}/1.png')
    with pytest.raises(StagingError, match="corpus.html would tell of"):
        stage(folder, "acme/corpus", tmp_path / "staging")
    (folder / "corpus.html").unlink()
    results = (folder / "results.json").read_text()
    (folder / "results.json").write_text('{"metrics": {"splits": []}}')
    with pytest.raises(StagingError, match="not as recipes/prepare.py writes it"):
        stage(folder, "acme/corpus", tmp_path / "staging")
    (folder / "results.json").write_text(results)

    import pyarrow as pa
    import pyarrow.parquet as pq

    shard = sorted((folder / "data").glob("*.parquet"))[0]
    table = pq.read_table(shard)
    pq.write_table(table.append_column("patient_name", pa.array([SECRET] * len(table))), shard)
    with pytest.raises(ValueError, match="patient_name"):
        stage(folder, "acme/corpus", tmp_path / "staging")
    cells = [cell | {"path": f"{PRIVATE}/1.png"} for cell in table.column("image").to_pylist()]
    pq.write_table(
        table.set_column(0, table.schema.field("image"), pa.array(cells, table.schema.field("image").type)), shard
    )
    with pytest.raises(ValueError, match="names of files"):
        stage(folder, "acme/corpus", tmp_path / "staging")
    shard.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="no whole Parquet"):
        stage(folder, "acme/corpus", tmp_path / "staging")


def test_a_space_takes_the_package_and_its_model_along(made, tmp_path):
    space = tmp_path / "space"
    (space / "__pycache__").mkdir(parents=True)
    texts = {
        "app.py": "import modeling_urfm\n", "README.md": "---\nsdk: gradio\n---\n", "page.css": "", "requirements.txt": "gradio\n",
        "__pycache__/a.py": SECRET, ".env": SECRET, "log.csv": SECRET,
    }  # fmt: skip
    for name, text in texts.items():
        (space / name).write_text(text)
    publication = stage(space, "acme/demo", tmp_path / "staging", model=made["encoder"])
    assert (publication.kind, publication.repo_type) == ("space", "space")
    wanted = {"app.py", "README.md", "requirements.txt", "page.css", "urfm/model.safetensors", "urfm/config.json"}
    wanted |= {"modeling_urfm/__init__.py", "modeling_urfm/assets/demo_teacher/open_clip_model.safetensors"}
    assert wanted <= set(publication.files)
    assert names_somebody(publication) == [] and not [
        n for n in publication.files if "pycache" in n or n.endswith(".csv")
    ]
    alone = stage(space, "acme/demo", tmp_path / "alone")
    assert not [name for name in alone.files if name.startswith("urfm/")] and "URFM_MODEL" in "".join(alone.notes)


def test_what_it_is_not_is_said(made, copied, tmp_path):
    with pytest.raises(StagingError, match="Did you mean .*urfm[?]"):
        stage(made["encoder"].with_name("ufrm"), "acme/urfm", tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StagingError, match="other: no such folder.$"):
        stage(tmp_path / "empty" / "other", "acme/urfm", tmp_path / "s")  # with nothing beside it
    with pytest.raises(StagingError, match="is a file"):
        stage(made["encoder"] / "config.json", "acme/urfm", tmp_path / "s")
    with pytest.raises(StagingError, match="nothing that is published"):
        kind_of(tmp_path / "empty")
    (tmp_path / "empty" / "checkpoint-7").mkdir()
    with pytest.raises(StagingError, match="checkpoint-7 but no model yet"):
        kind_of(tmp_path / "empty")
    with pytest.raises(ValueError, match="'encoder'"):
        stage(made["encoder"], "acme/urfm", tmp_path / "s", kind="encodr")
    with pytest.raises(StagingError, match="no fine-tuned model"):
        stage(made["encoder"], "acme/urfm", tmp_path / "s", kind="model")
    with pytest.raises(ValueError, match="5GB or 500MB"):
        stage(made["encoder"], "acme/urfm", tmp_path / "s", max_shard_size="large")
    with pytest.raises(StagingError, match="--model names the model of a Space"):
        stage(made["encoder"], "acme/urfm", tmp_path / "s", model=made["encoder"])
    with pytest.raises(StagingError, match="--license .*prepare.py"):
        stage(write_corpus(tmp_path / "corpus"), "acme/c", tmp_path / "s", license="mit")
    folder = copied("encoder")
    adapter = copied("adapter")
    (adapter / "config.json").unlink()
    with pytest.raises(StagingError, match="config.json can't be read"):
        stage(adapter, "acme/a", tmp_path / "s", base_model="acme/urfm")
    (folder / "preprocessor_config.json").write_text("[]")
    with pytest.raises(StagingError, match="preprocessor_config.json is no JSON object"):
        stage(folder, "acme/urfm", tmp_path / "s")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(StagingError, match="how its images must be prepared"):
        stage(folder, "acme/urfm", tmp_path / "s")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"model_type": "urfm", "architectures": "URFMModel"}, "architectures 'URFMModel': none of"),
        ("config.json", {"model_type": "urfm", "architectures": ["Other"]}, "none of .*URFMForImageClassification"),
        ("config.json", {"model_type": "urfm", "hidden_size": "wide"}, "config.json: .*'hidden_size' expected int"),
        ("config.json", {"architecture": "vit_base_patch16_224"}, "model of timm.* hf upload"),
        ("export.json", {}, "export of recipes/export.py.* hf upload ORG/NAME"),
        ("model.safetensors.index.json", {"metadata": {}}, "is no index of weights"),
    ],
)
def test_what_other_recipes_and_hands_left_is_said_in_a_line(copied, tmp_path, name, content, message):
    folder = copied("encoder")
    write_json(folder / name, content)
    if "index" in name:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=message):
        stage(folder, "acme/urfm", tmp_path / "s")


def test_weights_that_do_not_fit_are_no_publication(copied, tmp_path):
    folder = copied("encoder")
    state = load_file(folder / "model.safetensors")
    for change, message in (
        ({"urfm.layernorm.weight": torch.ones(3)}, "has the shape"), ({"urfm.more": torch.ones(3)}, "unknown weights more"),
        ({"urfm.layernorm.weight": torch.full_like(state["urfm.layernorm.weight"], torch.nan)}, "not finite"),
    ):  # fmt: skip
        save_file(state | change, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            stage(folder, "acme/urfm", tmp_path / "s")
    save_file({k: v for k, v in state.items() if "cls_token" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights embeddings.cls_token"):
        stage(folder, "acme/urfm", tmp_path / "s")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        stage(folder, "acme/urfm", tmp_path / "s")
    save_file(state, folder / "model.safetensors", {"format": "pt", "made_by": SECRET})
    publication = stage(folder, "acme/urfm", tmp_path / "s2", kind="pretraining")  # the header is written anew
    assert names_somebody(publication) == []
