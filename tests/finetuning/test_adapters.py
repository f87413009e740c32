# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Adapters load by every usual way, with the head that they bring, and merge."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation, pipeline

from modeling_urfm import URFMForImageClassification, URFMForSemanticSegmentation, URFMImageProcessor, URFMModel
from modeling_urfm.finetuning.adapters import TARGET_MODULES, connect
from modeling_urfm.finetuning.heads import URFMAttentiveForImageClassification
from modeling_urfm.finetuning.outputs import write_model

from .tiny import SIDE, save_base


connect()
LABELS = {i: f"class {i}" for i in range(5)}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def adapted(base, cls, dora=False):
    """An adapter whose weights all differ from their start."""
    torch.manual_seed(1)
    model = cls.from_pretrained(base, id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    head = "classifier" if cls is URFMForImageClassification else "decode_head"
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, use_dora=dora, modules_to_save=[head]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("cls", "auto"),
    [
        (URFMForImageClassification, AutoModelForImageClassification),
        (URFMForSemanticSegmentation, AutoModelForSemanticSegmentation),
    ],
)
@torch.no_grad()
def test_every_way_of_loading_gives_the_same_logits_and_so_does_merging(base, cls, auto, dora, pixels, tmp_path):
    model = adapted(base, cls, dora)
    expected = model(pixel_values=pixels).logits
    write_model(model, URFMImageProcessor.from_pretrained(base), tmp_path / "adapter")
    folder = str(tmp_path / "adapter")

    for loaded in (auto.from_pretrained(folder), cls.from_pretrained(folder)):
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, expected, atol=1e-5, rtol=0)
        assert loaded.config.id2label == LABELS and not any(p.requires_grad for p in loaded.parameters())
    on_base = PeftModel.from_pretrained(cls.from_pretrained(base, num_labels=5), folder).eval()
    torch.testing.assert_close(on_base(pixel_values=pixels).logits, expected, atol=1e-5, rtol=0)
    merged = on_base.merge_and_unload()
    torch.testing.assert_close(merged(pixel_values=pixels).logits, expected, atol=1e-5, rtol=0)
    encoder = AutoModel.from_pretrained(folder)
    assert isinstance(encoder, URFMModel)
    of_adapter = model.get_base_model().urfm(pixels).last_hidden_state
    torch.testing.assert_close(encoder(pixels).last_hidden_state, of_adapter, atol=1e-5, rtol=0)


def test_the_pipeline_runs_an_adapter_and_the_folder_is_small(base, tmp_path, pixels):
    model = adapted(base, URFMForImageClassification)
    processor = URFMImageProcessor.from_pretrained(base)
    write_model(model, processor, tmp_path / "adapter")
    classify = pipeline("image-classification", model=str(tmp_path / "adapter"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8))
    answers = classify(image, top_k=5)
    expected = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert {a["label"]: pytest.approx(a["score"], abs=1e-5) for a in answers} == {
        LABELS[i]: expected[i] for i in range(5)
    }
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_a_base_loads_as_before(base, pixels):
    model = URFMForImageClassification.from_pretrained(base, num_labels=3)
    assert type(model) is URFMForImageClassification and model.config.num_labels == 3
    assert type(AutoModelForImageClassification.from_pretrained(base)) is URFMForImageClassification


def test_a_base_that_has_gone_is_named(base, tmp_path):
    write_model(
        adapted(base, URFMForImageClassification), URFMImageProcessor.from_pretrained(base), tmp_path / "adapter"
    )
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(FileNotFoundError, match="gone is not there"):
        AutoModelForImageClassification.from_pretrained(str(tmp_path / "adapter"))


@torch.no_grad()
def test_an_attentive_folder_loads_with_its_pooling(base, tmp_path, pixels):
    torch.manual_seed(0)
    model = URFMAttentiveForImageClassification.from_pretrained(base, num_labels=5).eval()
    model.pooling.query.normal_()
    write_model(model, URFMImageProcessor.from_pretrained(base), tmp_path / "attentive")
    loaded = AutoModelForImageClassification.from_pretrained(str(tmp_path / "attentive"))
    assert type(loaded) is URFMAttentiveForImageClassification
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)
    assert model(pixels, labels=torch.tensor([0, 1])).loss > 0


def test_our_targets_are_peft_s_default():
    assert TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["urfm"] == list(TARGET_MODULES)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["peft", "modeling_urfm"])
def test_peft_knows_the_targets_whichever_is_imported_first(first):
    connected = "from modeling_urfm.finetuning.adapters import connect; connect()"
    code = f"""
import sys
{"import peft" if first == "peft" else ""}
{connected}
{"" if first == "peft" else "assert 'peft' not in sys.modules"}
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as table
assert "fc2" in table["urfm"] and len(sys.meta_path) == len(set(map(id, sys.meta_path)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
