# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The source's own library: what it says that no weight does, its encoder with the same weights, and its preprocessing.

Configs are data from others: only names that a plain ViT has are passed on, and nothing is fetched.
"""

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..configuration_urfm import nearest_name
from .conversion_files import ConversionError, Source
from .conversion_keys import Plan
from .conversion_processors import IMAGENET, open_clip_processor, squeezed, timm_processor, transformers_processor
from .conversion_weights import number_of_heads


TIMM_NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224",
              1024: "vit_large_patch16_224", 1280: "vit_huge_patch14_224"}  # fmt: skip


@dataclass
class Described:
    """What weights can't tell.

    Attributes:
        settings: fields of URFMConfig. processor: options of URFMImageProcessor.
        reference: maps normalised pixels (B, 3, H, W) to all tokens (B, 1 + patches, D) and the pooled ones (B, D) or
            None, by the source's own code. against: its name. module: its weights, to change their number format.
        preprocess: a PIL image to its pixels (3, H, W) as the source itself prepares them, or None.
        assumed: what is not written anywhere and was taken from habit.
    """

    settings: dict
    processor: dict
    reference: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
    against: str
    module: nn.Module
    preprocess: Callable | None = None
    assumed: list[str] = field(default_factory=list)


def describe(source: Source, plan: Plan, state: dict, num_attention_heads: int | None) -> Described:
    """Build the source's encoder in its own library, with its weights in it, and read off the rest.

    Raises:
        ConversionError: the library is not installed, config and weights differ, or the config asks for what URFM's
            encoder can't compute.
    """
    weights = {key: state[key].detach().to(torch.float32) for key, _ in plan.sources.values()}
    if source.kind == "transformers":
        described = _of_transformers(source, plan, weights)
    elif plan.family == "transformers":
        raise ConversionError(
            f"{source.name} has the keys of transformers' ViT. Its config.json says what no weight does (layer_norm_eps, "
            "activation): put it beside the weights and name the folder."
        )
    else:
        weights = {key.removeprefix(plan.prefix): value for key, value in weights.items()}
        build = {"file": _of_weights, "timm": _of_timm, "open_clip": _of_open_clip}[source.kind]
        described = build(source, plan, weights, num_attention_heads)
    heads, said = described.settings["num_attention_heads"], num_attention_heads
    if said is not None and said != heads:
        raise ConversionError(f"--num_attention_heads {said}: the config says {heads}. Leave the option out.")
    return described


def _import(name: str):
    try:
        return __import__(name)
    except ImportError as error:
        raise ConversionError(
            f"Showing that the outputs are equal needs {name}: pip install 'urfm[train]' ({error})."
        ) from error


# ---------------------------------------------------------------- timm


def _of_weights(source: Source, plan: Plan, weights: dict, num_attention_heads: int | None) -> Described:
    """Weights without a config, as the released URFM, MAE and those who build on it save them."""
    timm = _import("timm")
    heads, usual = number_of_heads(plan.sizes["hidden_size"], num_attention_heads)
    sizes = plan.sizes
    name = TIMM_NAMES.get(sizes["hidden_size"], "vit_base_patch16_224")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0, **timm_sizes(sizes, heads, plan.cls_position))
    named = f"timm {timm.__version__} {name}"
    _load_timm(model, weights, named)
    assumed = [
        "layer_norm_eps 1e-6 and GELU, as in MAE and timm",
        f"preprocessing: {sizes['image_size']} px squeezed, bicubic, ImageNet's mean and standard deviation, as MAE's",
        "pooler_output is the CLS token",
    ]
    if usual:
        assumed.insert(0, f"{heads} attention heads, the usual number at a width of {sizes['hidden_size']}")
    return Described(
        _timm_settings(model, plan), squeezed(sizes["image_size"], 3, IMAGENET), timm_reference(model), named, model,
        assumed=assumed,
    )  # fmt: skip


def timm_sizes(sizes: dict, heads: int, cls_position: bool = True) -> dict:
    """Arguments of a plain ViT of timm."""
    ratio = sizes["intermediate_size"] / sizes["hidden_size"]
    if int(sizes["hidden_size"] * ratio) != sizes["intermediate_size"]:  # timm cuts the product off
        ratio = (sizes["intermediate_size"] + 0.5) / sizes["hidden_size"]
    arguments = {
        "img_size": sizes["image_size"], "patch_size": sizes["patch_size"], "embed_dim": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"], "num_heads": heads, "qkv_bias": sizes["qkv_bias"],
        "mlp_ratio": ratio,
    }  # fmt: skip
    return arguments if cls_position else arguments | {"no_embed_class": True}


def _load_timm(model: nn.Module, weights: dict, named: str) -> None:
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        reasons = "; ".join(line.strip()[:200] for line in str(error).splitlines()[1:4])
        raise ConversionError(f"The weights do not load strictly into {named}: {reasons}") from error
    model.eval().requires_grad_(False)


def _timm_model(name: str, arguments: dict, plan: Plan) -> nn.Module:
    """A plain ViT of timm on "meta", from a config that somebody else wrote."""
    timm = _import("timm")
    base = str(name).split(".")[0]
    if not isinstance(name, str) or base not in timm.list_models():
        near = nearest_name(base, timm.list_models())
        raise ConversionError(f"The config names timm's {ascii(name)}, which does not exist. The nearest: {near}.")
    known = set(inspect.signature(timm.models.vision_transformer.VisionTransformer.__init__).parameters) - {"self"}
    for key, value in arguments.items():
        if key not in known or not isinstance(value, (int, float, str, bool, list, tuple, type(None))):
            raise ConversionError(f"The config gives model_args.{key}, which is no plain setting of a ViT.")
    for key, ours in (("depth", "num_hidden_layers"), ("embed_dim", "hidden_size"), ("img_size", "image_size")):
        value = arguments.get(key, plan.sizes[ours])
        value = value[0] if isinstance(value, (list, tuple)) and len(set(map(str, value))) == 1 else value
        if value != plan.sizes[ours]:
            raise ConversionError(f"The config says {key} {value}, the weights {plan.sizes[ours]}.")
    arguments = {"img_size": plan.sizes["image_size"]} | arguments | {"num_classes": 0}
    if arguments.get("global_pool") == "avg":
        arguments.setdefault("fc_norm", False)  # a norm after pooling would have its weights, which are refused
    if not plan.cls_position:
        arguments["no_embed_class"] = True
    try:
        with torch.device("meta"):
            model = timm.create_model(base, pretrained=False, **arguments)
    except Exception as error:  # timm has no common kind for what it can't build
        raise ConversionError(f"timm can't build {name} with {arguments}: {error}") from error
    _check_timm(model, name)
    return model


def _check_timm(model: nn.Module, name: str) -> None:
    """Refuse what no key shows."""
    from timm.models.vision_transformer import VisionTransformer

    if type(model) is not VisionTransformer:
        raise ConversionError(f"{name} is a {type(model).__name__} of timm, no plain ViT.")
    blocks = {type(block).__name__ for block in model.blocks}
    attention = {type(getattr(block, "attn", None)).__name__ for block in model.blocks}
    for what, wrong in (
        (f"layers of type {', '.join(blocks)}", blocks != {"Block"}),
        (f"attention of type {', '.join(attention)}", attention != {"Attention"}),
        ("a convolutional stem", type(model.patch_embed).__name__ != "PatchEmbed"),
        ("a norm of patches", not isinstance(model.patch_embed.norm, nn.Identity)),
        ("a norm before the first layer", not isinstance(model.norm_pre, nn.Identity)),
        ("no norm after the last layer", isinstance(model.norm, nn.Identity)),
        ("a norm after pooling", not isinstance(model.fc_norm, nn.Identity)),
        ("register tokens", bool(getattr(model, "num_reg_tokens", 0))),
        ("no CLS token", not getattr(model, "has_class_token", True)),
        ("pooling over CLS too", bool(getattr(model, "pool_include_prefix", False))),
        ("an image that is not square", len(set(model.patch_embed.grid_size)) != 1),
        (f"pooling {model.global_pool!r}", model.global_pool not in ("token", "avg", "")),
    ):
        if wrong:
            raise ConversionError(f"refused: {name} has {what}, which URFM's encoder can't compute.")


def _timm_settings(model: nn.Module, plan: Plan) -> dict:
    """Fields of URFMConfig, read off a model of timm."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    epsilons = {norm.eps for norm in norms}
    acts = {_activation(block.mlp.act) for block in model.blocks}
    if len(epsilons) != 1 or len(acts) != 1:
        raise ConversionError(f"refused: layers differ: layer_norm_eps {sorted(epsilons)}, activations {sorted(acts)}.")
    return plan.sizes | {
        "num_attention_heads": model.blocks[0].attn.num_heads, "layer_norm_eps": epsilons.pop(),
        "hidden_act": acts.pop(), "pooling": "mean" if model.global_pool == "avg" else "cls",
    }  # fmt: skip


def _activation(act: nn.Module) -> str:
    name = type(act).__name__
    if name == "GELU":
        return "gelu" if getattr(act, "approximate", "none") == "none" else "gelu_pytorch_tanh"
    names = {"GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu", "SiLU": "silu"}
    if name not in names:
        raise ConversionError(f"refused: activation {name}, which URFM's encoder can't compute.")
    return names[name]


def timm_reference(model: nn.Module):
    """Tokens and pooled tokens of a model of timm."""

    def run(pixels: torch.Tensor):
        tokens = model.forward_features(pixels)
        return tokens, model.forward_head(tokens, pre_logits=True) if model.global_pool else None

    return run


def _of_timm(source: Source, plan: Plan, weights: dict, num_attention_heads: int | None) -> Described:
    timm = _import("timm")
    config = source.config
    arguments = dict(_section(config, "model_args", {}))
    if "global_pool" in config:
        arguments.setdefault("global_pool", config["global_pool"])
    arguments.pop("num_classes", None)
    model = _timm_model(config["architecture"], arguments, plan)
    named = f"timm {timm.__version__} {config['architecture']}"
    _load_timm(model, weights, named)
    values = _section(config, "pretrained_cfg", config)
    try:
        data = timm.data.resolve_data_config({}, pretrained_cfg=values)
        transform = timm.data.create_transform(**data, is_training=False)
        processor = timm_processor(data, plan.sizes["image_size"])
    except ConversionError:
        raise
    except Exception as error:  # values of any kind, in a file of somebody else's
        raise ConversionError(f"The config's pretrained_cfg can't be read: {type(error).__name__}: {error}") from error
    return Described(_timm_settings(model, plan), processor, timm_reference(model), named, model, transform)


def _section(config: dict, name: str, default: dict) -> dict:
    value = config.get(name, default)
    if not isinstance(value, dict):
        raise ConversionError(f"The config's {name} is {type(value).__name__}, no object.")
    return value


# ---------------------------------------------------------------- open_clip


def _of_open_clip(source: Source, plan: Plan, weights: dict, num_attention_heads: int | None) -> Described:
    """The trunk of a CLIP of open_clip whose image tower is timm's (BiomedCLIP)."""
    open_clip = _import("open_clip")
    from open_clip.model import CLIPVisionCfg, _build_vision_tower
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model_cfg = _section(source.config, "model_cfg", {})
    values = _section(model_cfg, "vision_cfg", {})
    name = values.get("timm_model_name")
    if not name:
        raise ConversionError("refused: the image tower is open_clip's own ViT, with a norm before the first layer.")
    _timm_model(name, {}, plan)  # before open_clip builds it: the name is one of timm's, and of a plain ViT
    try:
        vision = CLIPVisionCfg(**values | {"timm_model_pretrained": False})
        with torch.device("meta"):
            trunk = _build_vision_tower(model_cfg["embed_dim"], vision, model_cfg.get("quick_gelu", False)).trunk
        side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        preprocess = PreprocessCfg(**{"size": side} | _section(source.config, "preprocess_cfg", {}))
        transform = image_transform_v2(preprocess, is_train=False)
        processor = open_clip_processor(preprocess, plan.sizes["image_size"])
    except ConversionError:
        raise
    except Exception as error:  # values of any kind, in a file of somebody else's
        raise ConversionError(f"The open_clip config can't be built: {type(error).__name__}: {error}") from error
    _check_timm(trunk, name)
    named = f"open_clip {open_clip.__version__} {name}"
    _load_timm(trunk, weights, named)
    return Described(_timm_settings(trunk, plan), processor, timm_reference(trunk), named, trunk, transform)


# ---------------------------------------------------------------- transformers


def _of_transformers(source: Source, plan: Plan, weights: dict) -> Described:
    import transformers
    from transformers import ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel

    is_mae = source.config["model_type"] == "vit_mae"
    kind, model_kind = (ViTMAEConfig, ViTMAEModel) if is_mae else (ViTConfig, ViTModel)
    # Its own fields and no others: a config can also name kernels and code to fetch.
    values = {key: source.config[key] for key in kind.__annotations__ if key in source.config}
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # of training alone
    values |= {"mask_ratio": 0.0} if is_mae else {}
    try:
        config = kind(**values)
    except Exception as error:  # of a dozen kinds, for values of any kind
        raise ConversionError(f"config.json is none of {kind.__name__}: {error}") from error
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise ConversionError(
            f"config.json says {config.num_attention_heads} heads at a width of {config.hidden_size}."
        )
    if source.config.get("head_dim") not in (None, config.hidden_size // config.num_attention_heads):
        raise ConversionError(f"refused: head_dim {source.config['head_dim']}, which is not the width over the heads.")
    for name, found in plan.sizes.items():
        said = getattr(config, name)
        said = said[0] if isinstance(said, (list, tuple)) and len(set(said)) == 1 else said
        if said != found:
            raise ConversionError(f"config.json says {name} {said}, the weights {found}.")
    options = {} if is_mae else {"add_pooling_layer": False}
    try:
        with quiet():
            model, report = model_kind.from_pretrained(
                None, config=config, state_dict=weights, dtype=torch.float32, attn_implementation="sdpa",
                output_loading_info=True, **options,
            )  # fmt: skip
    except Exception as error:  # of many kinds, for values of any kind
        raise ConversionError(f"transformers can't build {model_kind.__name__} of config.json: {error!r}") from error
    wrong = [f"{name}: {sorted(map(str, keys))[:5]}" for name, keys in report.items() if keys]
    if wrong:
        raise ConversionError(f"The weights do not load strictly into {model_kind.__name__}: {'; '.join(wrong)}")
    model.eval().requires_grad_(False)
    settings = plan.sizes | {
        "num_attention_heads": config.num_attention_heads, "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": config.hidden_act, "pooling": "cls",
    }  # fmt: skip

    def run(pixels: torch.Tensor):
        # MAE's encoder hides patches at random, whatever it is used for; ordered noise keeps all in their places.
        patches = (plan.sizes["image_size"] // plan.sizes["patch_size"]) ** 2
        noise = {"noise": torch.arange(patches).float().expand(len(pixels), -1)} if is_mae else {}
        return model(pixels, **noise).last_hidden_state, None

    named = f"transformers {transformers.__version__} {model_kind.__name__}"
    processor, preprocess, assumed = transformers_processor(source, plan.sizes["image_size"], is_mae)
    return Described(settings, processor, run, named, model, preprocess, assumed)


@contextmanager
def quiet():
    """No bars and no report of transformers while weights are loaded or saved; what it would say is checked."""
    from transformers.utils import logging as log

    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
