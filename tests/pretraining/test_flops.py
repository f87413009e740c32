# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""FLOPs by formula against torch's counter, and the measured matrix-product rate."""

import time

import pytest
import torch

from modeling_urfm import URFMConfig, URFMForPreTraining
from modeling_urfm.pretraining.flops import (
    count_flops,
    forward_flops,
    matmul_rate,
    model_flop_utilisation,
    step_flops,
    vit_forward_flops,
)


DECODERS = [
    {},
    {"decoder_hidden_size": 512, "decoder_intermediate_size": 2048},
    {"decoder_type": "cross_attention", "decoder_hidden_size": 384, "decoder_num_hidden_layers": 4,
     "decoder_num_attention_heads": 6, "decoder_intermediate_size": 1536, "decoder_mask_fraction": 0.5,
     "mask_ratio": 0.8},
    {"target": "pixel", "decoder_hidden_size": 512, "patch_size": 32, "decoder_intermediate_size": 2048},
]  # fmt: skip


@pytest.mark.parametrize("changes", DECODERS, ids=["released", "mae_size", "fast", "pixel"])
def test_a_step_is_what_torch_counts(changes):
    """At full size, on the meta device; the gradient to the pixels, which nobody takes, is the formula's only excess."""
    with torch.device("meta"):
        config = URFMConfig(**changes)
        model = URFMForPreTraining._from_config(config, attn_implementation="eager").train()
        pixels = torch.zeros(2, 3, 224, 224)
        targets = None if config.target == "pixel" else torch.zeros(2, config.num_patches, 768)
        forward = count_flops(lambda: model(pixels, target_features=targets)) / 2
        both = count_flops(lambda: model(pixels, target_features=targets).loss.backward()) / 2
    assert forward == sum(forward_flops(config).values())
    assert step_flops(config) == pytest.approx(both, rel=0.01) and step_flops(config) >= both


def test_parts():
    """Ten times the decoder's depth is ten times its layers; the encoder does not see the decoder."""
    shallow, deep = (
        forward_flops(URFMConfig(decoder_num_hidden_layers=layers, decoder_hidden_size=512)) for layers in (1, 11)
    )
    assert shallow["encoder"] == deep["encoder"] and deep["decoder"] > 9 * shallow["decoder"]
    assert 8.5e9 < shallow["encoder"] < 8.8e9  # 50 tokens of ViT-B/16


@pytest.mark.parametrize("positions", [None, 5])
def test_teachers(positions):
    timm = pytest.importorskip("timm")
    from modeling_urfm.pretraining.teacher import CLIP_MEAN, CLIP_STD, Teacher, _TimmTower

    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    for block in trunk.blocks:
        block.attn.fused_attn = False  # torch counts no fused attention on a CPU
    teacher = Teacher(_TimmTower(trunk, -1), 192, 224, CLIP_MEAN, CLIP_STD, "tiny")
    asked = None if positions is None else torch.arange(positions)[None]
    counted = count_flops(lambda: teacher(torch.zeros(1, 3, 224, 224), (14, 14), asked))
    assert vit_forward_flops(196, 768, 192, 12, 768, positions=positions) == pytest.approx(counted, rel=0.01)


def test_matmul_rate_is_short_and_plausible():
    started = time.perf_counter()
    rate = matmul_rate(torch.float32, seconds=0.1)
    assert time.perf_counter() - started < 20 and 1e8 < rate < 1e15
    assert model_flop_utilisation(rate / 4, 2.0, rate) == 0.5


def test_measuring_the_machine_draws_no_random_number_of_the_runs():
    before = torch.get_rng_state()
    assert matmul_rate(torch.float32, "cpu", 0.01) > 1e8
    assert torch.equal(before, torch.get_rng_state())
