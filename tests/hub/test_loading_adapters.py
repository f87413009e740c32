# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Adapters of every usual shape find their places, in the model that they were trained in and in others, or say why not."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from huggingface_hub import HfApi
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForImageClassification

from modeling_urfm import URFMForImageClassification, URFMImageProcessor, URFMModel
from modeling_urfm.evaluation.encoders import load_encoder
from modeling_urfm.finetuning import adapters
from modeling_urfm.finetuning.outputs import write_model

from ..finetuning.tiny import SIDE, save_base
from .running_hub import running_hub


HEAD = {"modules_to_save": ["classifier"]}
KINDS = {
    "all-linear": LoraConfig(r=2, target_modules="all-linear", use_rslora=True, **HEAD),
    "by pattern": LoraConfig(r=2, target_modules=r"urfm\.layers\.1\..*q_proj", **HEAD),
    "a norm too": LoraConfig(r=2, modules_to_save=["classifier", "layernorm"]),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"], **HEAD),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def adapt(base, folder, config, cls=URFMForImageClassification, **changes):
    torch.manual_seed(1)
    model = get_peft_model(cls.from_pretrained(base, **changes), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    write_model(model, URFMImageProcessor(size={"height": SIDE, "width": SIDE}), folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_with_its_head_in_the_encoder_alone_and_under_any_name(base, tmp_path, pixels, kind):
    model = adapt(base, tmp_path / "adapter", KINDS[kind], num_labels=3)
    logits, pooled = model(pixel_values=pixels).logits, model.get_base_model().urfm(pixels).pooler_output
    assert torch.equal(AutoModelForImageClassification.from_pretrained(tmp_path / "adapter")(pixels).logits, logits)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "adapter")(pixels).pooler_output, pooled)
    for name in ("a", "layers"):  # "a" begins `attention`, "layers" is a part of every key
        loaded = URFMForImageClassification.from_pretrained(base, num_labels=3)
        loaded.load_adapter(tmp_path / "adapter", adapter_name=name)
        assert torch.equal(loaded(pixels).logits, logits)
    encoder = load_encoder(str(tmp_path / "adapter"))
    assert set(encoder.module.model.state_dict()) == set(URFMModel.from_pretrained(base).state_dict())
    torch.testing.assert_close(encoder.features(pixels), pooled, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_of_the_encoder_alone_takes_a_new_head(base, tmp_path, pixels):
    model = adapt(base, tmp_path / "adapter", LoraConfig(r=2), URFMModel)
    classifier = URFMForImageClassification.from_pretrained(tmp_path / "adapter", num_labels=3)
    assert classifier(pixels).logits.shape == (2, 3)
    assert torch.equal(classifier.urfm(pixels).pooler_output, model(pixel_values=pixels).pooler_output)


@torch.no_grad()
def test_one_of_the_head_alone(base, tmp_path, pixels):
    URFMForImageClassification.from_pretrained(base, num_labels=3).save_pretrained(tmp_path / "classifier")
    model = adapt(tmp_path / "classifier", tmp_path / "adapter", LoraConfig(r=2, target_modules=["classifier"]))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded(pixels).logits, model(pixel_values=pixels).logits)


@torch.no_grad()
def test_evaluated_with_its_own_pooling_and_random_where_that_is_asked_for(base, tmp_path, pixels):
    adapt(base, tmp_path / "adapter", LoraConfig(r=2, **HEAD), num_labels=3, pooling="cls")  # the base has "mean"
    expected = AutoModel.from_pretrained(tmp_path / "adapter")(pixels).pooler_output
    encoder = load_encoder(str(tmp_path / "adapter"))
    torch.testing.assert_close(encoder.features(pixels), expected, atol=1e-5, rtol=1e-5)
    assert load_encoder(f"random:{tmp_path / 'adapter'}").fingerprint != encoder.fingerprint


def test_a_head_that_neither_brings_is_reported(base, tmp_path, caplog):
    adapt(base, tmp_path / "headless", LoraConfig(r=2), num_labels=3)
    adapt(base, tmp_path / "whole", LoraConfig(r=2, **HEAD), num_labels=3)
    caplog.clear()
    URFMForImageClassification.from_pretrained(tmp_path / "whole")
    assert "classifier" not in caplog.text
    URFMForImageClassification.from_pretrained(tmp_path / "headless")
    report = caplog.text
    assert "classifier.weight" in report and "newly initialized" in report


def test_offloaded_weights_are_refused_not_left_empty(base, tmp_path):
    adapt(base, tmp_path / "adapter", LoraConfig(r=2, **HEAD), num_labels=3)
    where = {"device_map": {"urfm": "disk", "classifier": "cpu"}, "offload_folder": str(tmp_path / "offload")}
    with pytest.raises(ValueError, match="offloaded"):
        URFMForImageClassification.from_pretrained(tmp_path / "adapter", **where)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("./gone/urfm", "the base model ./gone/urfm is not there"),
        ("lab/gone", "is an adapter of lab/gone, which can't"),
    ],
)
def test_a_base_that_is_gone_is_named(base, tmp_path, place, message):
    adapt(base, tmp_path / "adapter", LoraConfig(r=2, **HEAD), num_labels=3)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": place}))
    with pytest.raises(OSError, match=message):
        AutoModelForImageClassification.from_pretrained(tmp_path / "adapter")


def test_looking_for_a_module_does_not_use_up_what_is_to_happen_on_its_import(tmp_path, monkeypatch):
    (tmp_path / "imported_later.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    adapters._when_loaded("imported_later", lambda module: seen.append(module.value))
    assert importlib.util.find_spec("imported_later") is not None and not seen
    importlib.import_module("imported_later")
    assert seen == [1] and not any(getattr(finder, "name", None) == "imported_later" for finder in sys.meta_path)
    del sys.modules["imported_later"]


@torch.no_grad()
def test_what_a_user_pushes_brings_its_code_by_either_way(base, tmp_path, pixels):
    """`push_to_hub`, and `save_pretrained(push_to_hub=True)`, which sends only what it takes for new."""
    from modeling_urfm.hub.saving import save_model_folder

    processor = URFMImageProcessor.from_pretrained(base)
    save_model_folder(URFMForImageClassification.from_pretrained(base, num_labels=3), processor, tmp_path / "saved")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    with running_hub(tmp_path / "hub") as hub, hub.connected(tmp_path / "home"):
        model.push_to_hub("lab/pushed")
        model.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="lab/again")
        for repo in ("lab/pushed", "lab/again"):
            there = {file.rfilename for file in HfApi(endpoint=hub.url).model_info(repo).siblings}
            assert {"config.json", "model.safetensors", "modeling_urfm.py", "configuration_urfm.py"} <= there
        adapted = get_peft_model(model, LoraConfig(r=2))
        adapted.push_to_hub("lab/adapter")
        shutil.rmtree(tmp_path / "again")
        base_again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
        loaded = PeftModel.from_pretrained(base_again, "lab/adapter")
        assert torch.equal(loaded(pixel_values=pixels).logits, adapted.eval()(pixel_values=pixels).logits)
