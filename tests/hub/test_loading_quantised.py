# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""8-bit weights by torchao and bitsandbytes: the encoder's matrices shrink, norms and embeddings stay, outputs stay close."""

import importlib.util

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    BitsAndBytesConfig,
    TorchAoConfig,
)

from modeling_urfm import URFMForImageClassification, URFMForSemanticSegmentation, URFMImageProcessor, URFMModel
from modeling_urfm.finetuning.outputs import write_model

from ..finetuning.test_adapters import adapted
from ..finetuning.tiny import SIDE, save_base


quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
Int8Tensor = quantization.Int8Tensor
WEIGHTS = quantization.Int8WeightOnlyConfig()
BOTH = quantization.Int8DynamicActivationInt8WeightConfig()
pytestmark = pytest.mark.slow  # CI has torchao where it runs the marked tests


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def close(quantised: torch.Tensor, exact: torch.Tensor):
    """Within 3 % of the largest value, and in the same direction to 0.1 %."""
    quantised, exact = quantised.float().flatten(), exact.float().flatten()
    assert (quantised - exact).abs().max() < 0.03 * exact.abs().max()
    assert torch.cosine_similarity(quantised, exact, dim=0) > 0.999


@torch.no_grad()
@pytest.mark.parametrize("config", [WEIGHTS, BOTH], ids=["weights", "activations too"])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation])
def test_torchao_in_8_bits(base, pixels, tmp_path, config, auto):
    # The head is drawn at random on loading; the whole model is what is compared.
    auto.from_pretrained(base).save_pretrained(tmp_path / "whole")
    exact = auto.from_pretrained(tmp_path / "whole")
    model = auto.from_pretrained(tmp_path / "whole", quantization_config=TorchAoConfig(config))
    for name, parameter in model.named_parameters():
        if "_proj." in name or ".fc" in name:
            assert isinstance(parameter.data, Int8Tensor) == name.endswith("weight"), name
        if "norm" in name or "position" in name or "projection." in name:
            assert type(parameter) is torch.nn.Parameter and parameter.dtype == torch.float32, name
    first = [key for key in ("logits", "pooler_output") if key in exact(pixels)][0]
    close(model(pixels)[first], exact(pixels)[first])


@torch.no_grad()
def test_an_encoder_in_8_bits_is_saved_and_loads_again(base, pixels, tmp_path):
    model = AutoModel.from_pretrained(base, quantization_config=TorchAoConfig(WEIGHTS))
    model.save_pretrained(tmp_path / "small")
    assert (tmp_path / "small" / "model.safetensors").stat().st_size < 0.6 * (base / "model.safetensors").stat().st_size
    again = URFMModel.from_pretrained(tmp_path / "small")
    assert np.array_equal(again(pixels).pooler_output, model(pixels).pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("cls", [URFMForImageClassification, URFMForSemanticSegmentation])
def test_an_adapter_on_a_base_in_8_bits(base, pixels, tmp_path, cls):
    model = adapted(base, cls)
    write_model(model, URFMImageProcessor.from_pretrained(base), tmp_path / "adapter")
    loaded = cls.from_pretrained(tmp_path / "adapter", quantization_config=TorchAoConfig(WEIGHTS))
    close(loaded(pixels).logits, model(pixel_values=pixels).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto"])
def test_half_precision(base, pixels, dtype):
    exact = AutoModel.from_pretrained(base)
    model = AutoModel.from_pretrained(base, dtype=dtype)
    assert model.dtype == (torch.float32 if dtype == "auto" else dtype)
    close(model(pixels.to(model.dtype)).pooler_output, exact(pixels).pooler_output)


@torch.no_grad()
def test_bitsandbytes_in_8_bits(base, pixels):
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    if not torch.cuda.is_available():
        pytest.skip("bitsandbytes multiplies in 8 bits on a GPU")
    exact = AutoModel.from_pretrained(base)
    model = AutoModel.from_pretrained(base, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    close(model(pixels.to(model.device)).pooler_output.cpu(), exact(pixels).pooler_output)
