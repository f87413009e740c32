# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""From tensors that somebody else saved to ours: checked, split, in float32; and what no shape tells."""

import torch

from ..configuration_urfm import nearest_divisor
from ..modeling_urfm import sincos_position_embeddings
from .conversion_files import ConversionError
from .conversion_keys import Plan, shown


HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # the ViTs of the literature: Ti, S, B, L, H, g


def number_of_heads(width: int, given: int | None) -> tuple[int, bool]:
    """Attention heads of an encoder, which no shape tells, and whether they are only the usual ones for its width."""
    if given is not None:
        if given < 1 or width % given:
            near = nearest_divisor(width, max(given, 1))
            raise ConversionError(
                f"--num_attention_heads {given} does not divide the width {width}. The nearest: {near}."
            )
        return given, False
    if width not in HEADS:
        near = nearest_divisor(width, max(1, round(width / 64)))
        raise ConversionError(
            f"No weight tells how many attention heads an encoder {width} wide has, and it is none of the usual ones "
            f"({', '.join(map(str, HEADS))}). Give --num_attention_heads; with heads of about 64 it were {near}."
        )
    return HEADS[width], True


def take_weights(plan: Plan, state: dict) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Our state dict in float32, and the number formats that the source had.

    Raises:
        ConversionError: a tensor that is not dense, not of floating point, or holds NaN or infinite values.
    """
    dtypes = set()
    for key in dict.fromkeys(theirs for theirs, _ in plan.sources.values()):
        dtypes.add(str(_checked(key, state[key]).dtype).removeprefix("torch."))
    ours = {}
    for target, (key, part) in plan.sources.items():
        value = state[key].detach() if part is None else state[key].detach().chunk(3)[part]
        value = value.to(torch.float32, copy=True).contiguous()
        if not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise ConversionError(
                f"{shown(key)} holds {bad} values of {value.numel()} that are NaN or infinite (in float32)."
            )
        ours[target] = value
    if not plan.cls_position:
        positions = ours["embeddings.position_embeddings"]
        ours["embeddings.position_embeddings"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        plan.notes.append(
            f"the {positions.shape[1]} positions are those of a square image and none of CLS: a row of zeros is added"
        )
    return ours, sorted(dtypes)


def _checked(key: str, value: torch.Tensor) -> torch.Tensor:
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        raise ConversionError(f"{shown(key)} is no plain dense tensor ({value.layout}, {value.dtype}, {value.device}).")
    if not value.is_floating_point():
        raise ConversionError(f"{shown(key)} is of {value.dtype}; weights are of floating point.")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ConversionError(f"{shown(key)} claims {value.numel():,} values, more than its storage holds.")
    return value


def position_type(positions: torch.Tensor, dtypes: list[str]) -> str:
    """ "sincos" where a position embedding (1, 1 + patches, width) is MAE's fixed one, as exactly as its format can say."""
    side, width = int((positions.shape[1] - 1) ** 0.5), positions.shape[2]
    if width % 4:
        return "learned"
    coarse = {"bfloat16": 2**-8, "float16": 2**-11}
    tolerance = max([1e-5, *(coarse.get(dtype, 0.0) for dtype in dtypes)])
    gap = (sincos_position_embeddings(side, width) - positions).abs().max()
    return "sincos" if gap <= tolerance else "learned"
