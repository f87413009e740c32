# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Which key of a checkpoint becomes which of ours, which is left out, and what can't be represented: by keys and shapes.

Nothing is dropped in silence: a key is copied, left out for a reason that is known (a decoder, a classifier), or refused,
and one refused key ends the conversion.
"""

import re
from dataclasses import dataclass, field

import torch

from ..configuration_urfm import URFMConfig
from ..modeling_urfm import URFMModel
from .conversion_files import ConversionError


# What weights can be called inside a checkpoint; the average of the weights over training is preferred.
EMA_ENTRIES = ("ema_state_dict", "model_ema", "state_dict_ema", "ema")
RAW_ENTRIES = ("state_dict", "model", "model_state_dict", "module", "weights")

TIMM = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "blocks.#.norm1": "layers.#.layernorm_before",
    "blocks.#.norm2": "layers.#.layernorm_after",
    "blocks.#.attn.proj": "layers.#.attention.o_proj",
    "blocks.#.mlp.fc1": "layers.#.mlp.fc1",
    "blocks.#.mlp.fc2": "layers.#.mlp.fc2",
}
_SHARED = {
    "embeddings.cls_token": "embeddings.cls_token",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embeddings.projection",
    "layernorm": "layernorm",
}
_NEW = ("layernorm_before", "layernorm_after", "attention.q_proj", "attention.k_proj", "attention.v_proj",
        "attention.o_proj", "mlp.fc1", "mlp.fc2")  # fmt: skip
# transformers writes the names of its version 4 to files and has others in memory; both are in use.
TRANSFORMERS = _SHARED | {f"layers.#.{name}": f"layers.#.{name}" for name in _NEW} | {
    "encoder.layer.#.layernorm_before": "layers.#.layernorm_before",
    "encoder.layer.#.layernorm_after": "layers.#.layernorm_after",
    "encoder.layer.#.attention.attention.query": "layers.#.attention.q_proj",
    "encoder.layer.#.attention.attention.key": "layers.#.attention.k_proj",
    "encoder.layer.#.attention.attention.value": "layers.#.attention.v_proj",
    "encoder.layer.#.attention.output.dense": "layers.#.attention.o_proj",
    "encoder.layer.#.intermediate.dense": "layers.#.mlp.fc1",
    "encoder.layer.#.output.dense": "layers.#.mlp.fc2",
}  # fmt: skip
PARAMETERS = ("embeddings.cls_token", "embeddings.position_embeddings")  # the others are modules of weight and bias
STEMS = {"timm": "patch_embed.proj.weight", "transformers": "embeddings.patch_embeddings.projection.weight"}

# Both are read on the key without the encoder's prefix.
REFUSED = (
    (r"(^|\.)(ls\d\.gamma|gamma_\d|lambda_?\d|layer_scale\d?)", "layer scale"),
    (r"\.(q_norm|k_norm|ln_q|ln_k)\.", "a norm of queries and keys"),
    (r"\.(attn|mlp)\.(norm|inner_attn_ln|ffn_ln)\.", "a norm inside a layer"),
    (r"(^|\.)(reg_token|register_token|storage_token)", "register tokens"),
    (r"(^|\.)(dist_token|distillation_token|head_dist|distillation_classifier)", "a distillation token"),
    (r"(^|\.)(norm_pre|ln_pre|pre_layr?norm)(\.|$)", "a norm before the first layer"),
    (r"(^|\.)(patch_embed\.(backbone|conv|proj\.\d)|conv_stem|stem|conv1|layer[1-4])(\.|$)", "a convolutional stem"),
    (r"rope|rotary|(^|\.)freqs", "rotary position embeddings"),
    (r"relative_position|rel_pos", "a relative position bias"),
    (r"(^|\.)fc_norm\.", "a norm after pooling: its tokens have no norm, and a norm of a mean is no mean of norms"),
    (r"(^|\.)attn_pool\.", "attention pooling"),
    (r"\.mlp\.(w\d|fc1_[gx]|gate)", "a gated MLP"),
    (r"\.(q_bias|v_bias)$", "biases of queries and values apart from their weights (BEiT)"),
    (r"lora_|\.base_layer\.", "an adapter that is not merged; merge it into the weights first"),
    (r"running_(mean|var)$|num_batches_tracked$", "batch normalisation"),
)
LEFT_OUT = (
    (r"^(decoder|dec_|enc(oder)?_to_dec)", "decoder"),
    (r"^(embeddings\.)?mask_token$", "mask token"),
    (r"^(head|heads|classifier|pre_logits|fc|last_layer)\.", "classifier or projection head"),
    (r"^pooler\.", "pooling head; here pooler_output is the CLS token itself"),
    (r"^(proj|projector|projection|projection_head|predictor)(\.|$)", "projection head"),
    (r"^logit_(scale|bias)$", "scale of CLIP's loss"),
)
# Only beside an encoder that has a prefix of its own.
LEFT_OUT_BESIDE = (
    (r"^(text|text_model|token_embedding|transformer|positional_embedding|ln_final|text_projection)(\.|$)", "text tower"),
    (r"^(criterion|loss|loss_fn)(\.|$)", "part of a loss"),
)  # fmt: skip


@dataclass
class Fate:
    """What becomes of one key (or entry) of the source: `outcome` is "copied", "left out" or "refused"."""

    key: str
    outcome: str
    detail: str

    def __str__(self) -> str:
        joint = {"copied": " as ", "left out": ": ", "refused": ": "}[self.outcome]
        return f"{self.key} -> {self.outcome}{joint}{self.detail}"


@dataclass
class Plan:
    """How a state dict becomes ours.

    Attributes:
        family: whose names the keys have, "timm" or "transformers". prefix: that they begin with.
        fates: of every key. sources: our key to theirs and the part of it (0, 1, 2 of a fused qkv; None: whole).
        sizes: fields of URFMConfig that the shapes tell. cls_position: the position embedding has a row for CLS.
    """

    family: str
    prefix: str
    fates: list[Fate]
    sources: dict[str, tuple[str, int | None]]
    sizes: dict
    cls_position: bool
    notes: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- which of the entries


def choose_state(content: dict, wanted: str | None) -> tuple[dict, str, list[Fate], dict]:
    """The state dict of a checkpoint, which one it is, the fates of the rest, and what its other entries say.

    Args:
        wanted: "ema" or "raw" where a file holds both; None prefers the averaged weights.

    Returns:
        The state dict; "" or the entry's name; fates of the entries that are not it; short texts beside it (URFM's
        released files name their architecture under `model`).
    """
    bad = [key for key in content if not isinstance(key, str)]
    if bad:
        raise ConversionError(f"The file has a key {ascii(bad[0])[:60]} that is no text.")
    if _stems(content):
        if wanted is not None:
            raise ConversionError(f"--weights {wanted}: the file holds one set of weights alone. Leave the option out.")
        nested = [key for key, value in content.items() if isinstance(value, dict) and _stems(value)]
        if nested:
            raise ConversionError(
                f"The file holds an encoder, and another one under {ascii(nested[0])}. Save one alone."
            )
        return content, "", [], {}
    found = {key: value for key, value in content.items() if isinstance(value, dict) and _stems(value)}
    if not found:
        raise ConversionError(_no_encoder(content))
    ema, raw = ([name for name in names if name in found] for names in (EMA_ENTRIES, RAW_ENTRIES))
    strange = [
        name for name in EMA_ENTRIES if name not in found and isinstance(content.get(name), dict) and content[name]
    ]
    if strange and not ema and wanted != "raw":
        keys = ", ".join(shown(str(key)) for key in list(content[strange[0]])[:5])
        raise ConversionError(
            f"The averaged weights, {strange[0]}, hold no encoder that is known: {keys}. --weights raw takes "
            f"{', '.join(map(ascii, found))} instead."
        )
    if len(ema) > 1 or len(raw) > 1 or (not ema and not raw and len(found) > 1):
        raise ConversionError(
            f"The file holds several encoders, {', '.join(map(ascii, found))}, and nothing says which one is meant. Save "
            "the one that is meant alone."
        )
    if wanted is not None and not (raw and (ema or strange)):
        there = ", ".join(map(ascii, found))
        raise ConversionError(
            f"--weights {wanted}: the file holds one set of weights alone, {there}. Leave the option out."
        )
    name = raw[0] if wanted == "raw" else (ema or raw or list(found))[0]
    fates = [Fate(shown(key), "left out", _left_out_entry(key, value, name, ema)) for key, value in content.items()
             if key != name]  # fmt: skip
    said = {key: value[:200] for key, value in content.items() if isinstance(value, str)}
    return found[name], name, fates, said


def _stems(state: dict) -> list[tuple[str, str]]:
    """(family, prefix) of every encoder whose patch embedding is in a state dict."""
    return [
        (family, key[: -len(stem)])
        for key in state
        for family, stem in STEMS.items()
        if isinstance(key, str) and (key == stem or key.endswith("." + stem)) and isinstance(state[key], torch.Tensor)
    ]


def _left_out_entry(key: str, value, name: str, ema: list[str]) -> str:
    if isinstance(value, dict) and _stems(value):
        what = "weights of the last step" if name in ema else "averaged weights" if key in ema else "another encoder"
        return f"{what}, {len(value)} keys; {name} is taken"
    return f"no weights of the encoder ({type(value).__name__})"


def _no_encoder(content: dict) -> str:
    states = [content, *(value for value in content.values() if isinstance(value, dict))]
    keys = [key for state in states for key, value in state.items() if isinstance(value, torch.Tensor)]
    for pattern, reason in ((r"(^|\.)(class_embedding|resblocks\.\d)", "a norm before the first layer (CLIP's own ViT)"),
                            *REFUSED):  # fmt: skip
        refused = next((key for key in map(str, keys) if re.search(pattern, key)), None)
        if refused is not None:
            return f"There is no plain ViT in the file: {shown(refused)} is of {reason}, which URFM's encoder can't compute."
    some = ", ".join(shown(str(key)) for key in (keys or content)) or "nothing"
    return f"There is no ViT in the file: no key ends with {' or '.join(STEMS.values())}. It holds: {some[:300]}."


# ---------------------------------------------------------------- the plan


def make_plan(state: dict, within: str | None = None) -> Plan:
    """The fate of every key. Only names and shapes are looked at, so tensors on "meta" will do.

    Args:
        within: keys that do not begin with this are another part of the model (a CLIP's text tower).

    Raises:
        ConversionError: with every key that is refused, missing or of a wrong shape.
    """
    stems = _stems(state)
    if not stems:
        raise ConversionError(_no_encoder(state))
    if len(stems) > 1:
        prefixes = ", ".join(ascii(prefix) for _, prefix in stems)
        raise ConversionError(f"The weights hold several encoders, under {prefixes}. Save the one that is meant alone.")
    family, prefix = stems[0]
    fates, sources = [], {}
    for key, value in state.items():
        fate, targets = _fate(str(key), value, family, prefix, within)
        for part, target in enumerate(targets):
            if target in sources:
                fate = Fate(fate.key, "refused", f"{target} has come from {shown(sources[target][0])} already")
                break
            sources[target] = (str(key), part if len(targets) > 1 else None)
        fates.append(fate)
    _raise_refused(fates)
    plan = Plan(family, prefix, fates, sources, {}, True)
    _measure(plan, state)
    return plan


def _fate(key: str, value, family: str, prefix: str, within: str | None) -> tuple[Fate, list[str]]:
    """The fate of a key, and ours that it becomes."""
    name = shown(key)
    if not isinstance(value, torch.Tensor):
        return Fate(name, "left out", f"no weights ({type(value).__name__})"), []
    inner = key[len(prefix) :] if key.startswith(prefix) else None
    if inner is None:
        if within is not None and not key.startswith(within):
            return Fate(name, "left out", "no part of the image tower"), []
        inner = _without_parents(key, prefix)
    else:
        targets = _targets(inner, family)
        if targets:
            shape = " (in three parts)" if len(targets) > 1 else ""
            return Fate(name, "copied", " + ".join(targets) + shape), targets
    # First what is left out: a decoder may have what an encoder may not.
    for pattern, reason in LEFT_OUT if key.startswith(prefix) else LEFT_OUT + LEFT_OUT_BESIDE:
        if re.search(pattern, inner):
            return Fate(name, "left out", reason), []
    for pattern, reason in REFUSED:
        if re.search(pattern, inner):
            return Fate(name, "refused", f"{reason}; URFM's encoder can't compute that"), []
    return Fate(name, "refused", "unknown: no part of a plain ViT, of a decoder or of a head"), []


def _without_parents(key: str, prefix: str) -> str:
    """`module.decoder.x` beside the encoder `module.encoder.` is `decoder.x`."""
    parents = prefix.rstrip(".").split(".")
    for count in range(len(parents) - 1, 0, -1):
        parent = ".".join(parents[:count]) + "."
        if key.startswith(parent):
            return key[len(parent) :]
    return key


def _targets(key: str, family: str) -> list[str]:
    stem, _, kind = key.rpartition(".")
    number = re.fullmatch(r"(blocks|layers|encoder\.layer)\.(0|[1-9]\d{0,3})\.(.+)", stem)
    general = f"{number[1]}.#.{number[3]}" if number else stem
    layer = number[2] if number else ""
    if family == "timm" and general == "blocks.#.attn.qkv" and kind in ("weight", "bias"):
        return [f"layers.{layer}.attention.{part}_proj.{kind}" for part in "qkv"]
    table = TIMM if family == "timm" else TRANSFORMERS
    if table.get(key) in PARAMETERS:
        return [table[key]]
    if general in table and table[general] not in PARAMETERS and kind in ("weight", "bias"):
        return [f"{table[general].replace('#', layer)}.{kind}"]
    return []


def _measure(plan: Plan, state: dict) -> None:
    """Read the sizes off the shapes, then compare every shape with what a model of these sizes has."""

    def shape(target: str) -> tuple[int, ...] | None:
        key, _ = plan.sources.get(target, (None, None))
        return tuple(state[key].shape) if key is not None else None

    for target, what in (
        ("embeddings.cls_token", "CLS token"),
        ("embeddings.position_embeddings", "position embedding"),
    ):
        if shape(target) is None:
            hint = "; rotary, relative or unsaved ones can't be represented" if "position" in target else ""
            raise ConversionError(f"refused: the encoder has no {what} ({_theirs(plan, target)} is missing{hint}).")
    stem, positions = shape("embeddings.patch_embeddings.projection.weight"), shape("embeddings.position_embeddings")
    if len(stem) != 4 or stem[2] != stem[3]:
        raise ConversionError(f"refused: the patch embedding has shape {stem}; (width, 3, patch, patch) is needed.")
    if stem[1] != 3:
        raise ConversionError(f"refused: the patch embedding takes {stem[1]} channels; URFM's processors give 3.")
    if len(positions) != 3 or positions[0] != 1:
        raise ConversionError(
            f"refused: the position embedding has shape {positions}; (1, 1 + patches, width) is needed."
        )
    side, bare_side = (int(max(positions[1] - count, 0) ** 0.5) for count in (1, 0))
    plan.cls_position = side > 0 and side**2 == positions[1] - 1
    if not plan.cls_position:
        if bare_side**2 != positions[1] or not bare_side:
            raise ConversionError(
                f"refused: a position embedding of {positions[1]} rows is none of a square image with one CLS token; the "
                f"nearest has {side**2 + 1}."
            )
        side = bare_side
    layers = {int(target.split(".")[1]) for target in plan.sources if target.startswith("layers.")}
    first = shape("layers.0.mlp.fc1.weight")
    if not layers or not first:
        raise ConversionError(f"refused: the encoder has no layer 0 ({_theirs(plan, 'layers.0.mlp.fc1.weight')}).")
    plan.sizes = {
        "image_size": side * stem[2], "patch_size": stem[2], "num_channels": 3, "hidden_size": stem[0],
        "num_hidden_layers": max(layers) + 1, "intermediate_size": first[0],
        "qkv_bias": shape("layers.0.attention.q_proj.bias") is not None,
    }  # fmt: skip
    if plan.sizes["num_hidden_layers"] > len(layers):
        missing = min(set(range(max(layers) + 1)) - layers)
        raise ConversionError(f"refused: layer {missing} of {max(layers) + 1} is missing.")
    _check_shapes(plan, state)


def _check_shapes(plan: Plan, state: dict) -> None:
    config = URFMConfig(**plan.sizes, num_attention_heads=1, position_embedding_type="learned")
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in URFMModel(config).state_dict().items()}
    wrong = [f"{_theirs(plan, key)} is missing" for key in expected if key not in plan.sources]
    wrong += [
        f"{shown(plan.sources[key][0])} has no place: the other layers have none" for key in plan.sources
        if key not in expected
    ]  # fmt: skip
    for key, (theirs, part) in plan.sources.items():
        want, have = expected.get(key), tuple(state[theirs].shape)
        if want is None:
            continue
        if part is not None:
            want = (3 * want[0], *want[1:])
        if key == "embeddings.position_embeddings" and not plan.cls_position:
            want = (1, want[1] - 1, want[2])
        if have != want and part in (None, 0):
            wrong.append(f"{shown(theirs)} has shape {have}, expected {want}")
    if wrong:
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise ConversionError("refused: the weights are not of one plain ViT:\n  " + "\n  ".join(wrong[:20]) + more)


def _theirs(plan: Plan, target: str) -> str:
    """What the source would call one of our keys."""
    number = re.fullmatch(r"layers\.(\d+)\.(.+)", target)
    general, layer = (f"layers.#.{number[2]}", number[1]) if number else (target, "")
    stem, _, kind = general.rpartition(".")
    table = TIMM if plan.family == "timm" else TRANSFORMERS
    for theirs, ours in reversed(table.items()):
        if ours in (general, stem):
            return plan.prefix + theirs.replace("#", layer) + (f".{kind}" if ours == stem else "")
    return f"{plan.prefix}blocks.{layer}.attn.qkv.{kind}"


def _raise_refused(fates: list[Fate]) -> None:
    by_reason: dict[str, list[str]] = {}
    for fate in fates:
        if fate.outcome == "refused":
            by_reason.setdefault(fate.detail, []).append(fate.key)
    if by_reason:
        lines = [
            f"{', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''} -> refused: {reason}"
            for reason, keys in by_reason.items()
        ]
        raise ConversionError("The encoder can't be converted:\n  " + "\n  ".join(lines))


def shown(key: str) -> str:
    """A key as it can be printed: no control characters, no endless line."""
    text = key if key.isascii() and key.isprintable() else ascii(key)
    return text if len(text) <= 200 else text[:200] + "..."
