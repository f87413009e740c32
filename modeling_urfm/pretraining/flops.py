# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Model FLOPs of a pre-training step, the machine's matrix-product rate, and the share of it that a run makes use of.

Counted as everywhere: a multiply-add is 2 FLOPs; matrix products, convolutions and the two products of attention count,
norms, activations, the loss and the optimiser do not. A backward pass is twice its forward pass, and what gradient
checkpointing computes again is no model FLOP (Chowdhery et al., PaLM, 2022).
"""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_urfm import URFMConfig


def forward_flops(config: URFMConfig) -> dict[str, int]:
    """FLOPs an image of `encoder` and `decoder`, forward, in masked pre-training at `config.image_size`.

    The encoder takes CLS and the visible patches; the decoder is counted with all that it computes, which with
    self-attention is more than the masked patches.
    """
    visible = config.num_patches - config.num_masked_patches
    encoder = _linear(visible, config.patch_size**2 * config.num_channels, config.hidden_size)
    encoder += config.num_hidden_layers * _layer(1 + visible, 1 + visible, config.hidden_size, config.intermediate_size)
    if config.decoder_type == "self_attention":
        queries = memory = 1 + config.num_patches
    else:
        queries, memory = config.num_predicted_patches, 1 + visible
    width = config.decoder_hidden_size
    decoder = _linear(1 + visible, config.hidden_size, width)
    decoder += config.decoder_num_hidden_layers * _layer(queries, memory, width, config.decoder_intermediate_size)
    decoder += _linear(queries, width, config.prediction_size)
    return {"encoder": encoder, "decoder": decoder}


def step_flops(config: URFMConfig) -> int:
    """FLOPs an image of encoder and decoder, forward and backward; the teacher's come on top (`count_flops`)."""
    return 3 * sum(forward_flops(config).values())


def vit_forward_flops(
    patches: int, patch_pixels: int, hidden_size: int, layers: int, intermediate_size: int, *,
    prefix: int = 1, positions: int | None = None,
) -> int:  # fmt: skip
    """FLOPs an image of a plain ViT, forward, as a teacher is one.

    Args:
        patches: all of the image's, none is masked. patch_pixels: height * width * channels of a patch.
        prefix: tokens besides the patches, such as CLS.
        positions: the last layer's outputs that are asked for, where it computes no others; None for all.
    """
    tokens = patches + prefix
    last = tokens if positions is None else positions
    return (
        _linear(patches, patch_pixels, hidden_size)
        + (layers - 1) * _layer(tokens, tokens, hidden_size, intermediate_size)
        + _layer(last, tokens, hidden_size, intermediate_size)
    )


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def _layer(queries: int, memory: int, width: int, intermediate: int) -> int:
    """A transformer layer of `queries` tokens that attend to `memory` tokens."""
    attention = 2 * _linear(queries, width, width) + 2 * _linear(memory, width, width)
    attention += 2 * _linear(queries, memory, width)
    return attention + 2 * _linear(queries, width, intermediate)


def count_flops(function: Callable[[], object]) -> int:
    """FLOPs that torch counts while `function` runs; tensors on the "meta" device cost no time.

    On a CPU torch does not count its fused attention: give a model `attn_implementation="eager"`.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def matmul_rate(dtype: torch.dtype, device: torch.device | str = "cpu", seconds: float = 0.5) -> float:
    """The matrix products that this machine does in `dtype`, in FLOP/s: the best of several shapes and repeats.

    On a CPU with as many threads as torch is set to. Shapes are those of a ViT's MLP on a batch's tokens, and large
    squares; what is best differs between machines.

    Args:
        seconds: how long to measure, about, after the warm-up.
    """
    device = torch.device(device)
    shapes = [(1600, 768, 3072), (1600, 3072, 768), (2048, 2048, 2048)]
    if device.type != "cpu":
        shapes = [(16384, 1024, 4096), (16384, 4096, 1024), (8192, 8192, 8192)]
    best = 0.0
    generator = torch.Generator(device).manual_seed(0)  # a run's own random numbers are not touched
    for rows, inner, columns in shapes:
        a = torch.randn(rows, inner, device=device, dtype=dtype, generator=generator)
        b = torch.randn(columns, inner, device=device, dtype=dtype, generator=generator)
        started, repeats = time.perf_counter(), 0
        _timed_product(a, b)
        while repeats < 3 or time.perf_counter() - started < seconds / len(shapes):
            best = max(best, _linear(rows, inner, columns) / _timed_product(a, b))
            repeats += 1
    return best


def _timed_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds of a linear layer's product (tokens, in) x (out, in)."""
    synchronize(a.device)
    started = time.perf_counter()
    torch.nn.functional.linear(a, b)
    synchronize(a.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for what `device` was given to do; a CPU has done it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def model_flop_utilisation(flops_per_image: float, images_per_s: float, rate: float) -> float:
    """The share of `rate` (FLOP/s, `matmul_rate` times the devices in use) that was spent as model FLOPs."""
    return flops_per_image * images_per_s / rate
