# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The other way: a URFM encoder as a folder that `timm.create_model("local-dir:FOLDER")` loads, strictly and equal."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from ..configuration_urfm import nearest_name
from ..image_processing_urfm import URFMImageProcessor
from ..merging import merge_adapters
from ..modeling_urfm import URFMModel
from .conversion import TO_TIMM, parameters, put_in_place
from .conversion_files import ConversionError
from .conversion_keys import TIMM, Fate
from .conversion_libraries import TIMM_NAMES, quiet, timm_reference, timm_sizes
from .conversion_parity import compare, compare_preprocessing, parity_images
from .conversion_processors import RESAMPLE
from .results import write_json


ACTIVATIONS = {"gelu": None, "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
               "relu": "relu", "silu": "silu", "swish": "silu"}  # fmt: skip
# By hand: what a processor of ours can do and a transform of timm can't.
ONLY_OURS = ("do_crop_scan_region", "do_pad_square", "do_percentile_rescale")


def convert_to_timm(source: str, output_dir: Path, facts: dict, images: Path | None = None) -> tuple[list[Fate], dict]:
    """Write `model.safetensors` and `config.json` as timm's Hub models have them, and `conversion.json`.

    Args:
        source: a URFM folder or Hub id; of a pre-training or a fine-tuned model the encoder alone is taken, and an adapter
            is merged into it.
        facts: of `hub.results.run_facts` and `timings`, for `results.json`.
        images: a folder of images to compare on, instead of pydicom's real ultrasound and phantoms.

    Returns:
        The fate of every weight, and what `conversion.json` says.

    Raises:
        ConversionError: no URFM folder, a setting that timm does not have, or outputs that differ.
    """
    import timm

    model, processor, unused = _load(source)
    config = timm_config(model.config, processor)
    state, fates = to_timm_keys(dict(model.state_dict()))
    fates += [Fate(key, "left out", "no part of the encoder") for key in unused]
    temporary = output_dir.resolve().parent / f".tmp-{output_dir.resolve().name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", config)
        # As its users will load it, from the files themselves.
        theirs = timm.create_model(f"local-dir:{temporary}", pretrained=True).eval().requires_grad_(False)
        frames, against = parity_images(images), f"timm {timm.__version__} {config['architecture']}"
        parity = compare(model, theirs, timm_reference(theirs), against, processor, frames)
        if parity["dtype"] != "float32":
            raise ConversionError(
                f"The outputs differ from timm's by {parity['max_abs_float32']:.1e} in float32. Nothing is written."
            )
        notes = [f"timm has no {name}: use URFM's processor for that" for name in ONLY_OURS if getattr(processor, name)]
        preprocessing = None
        if model.config.layer_norm_eps != 1e-6:
            notes.append(f"timm's norms have an epsilon of 1e-6, this model's {model.config.layer_norm_eps}")
        if not any(getattr(processor, name) for name in ONLY_OURS):
            data = timm.data.resolve_data_config({}, model=theirs)
            transform = timm.data.create_transform(**data, is_training=False)
            preprocessing = compare_preprocessing(transform, _settings(processor), frames)
        record = {
            "source": Path(source).name if Path(source).exists() else f"hf-hub:{source}", "layout": TO_TIMM,
            "keys": {"copied": len(state), "left out": len(unused)}, "notes": notes, "parity": parity,
            "preprocessing_parity": preprocessing,
        }  # fmt: skip
        write_json(temporary / "conversion.json", record)
        metrics = {"parameters": parameters(model), "parity": parity, "preprocessing_parity": preprocessing,
                   "keys": record["keys"], "fates": [str(fate) for fate in fates]}  # fmt: skip
        write_json(temporary / "results.json", facts | {"metrics": metrics})
        put_in_place(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return fates, record


class _Telling(URFMModel):
    """The encoder, which tells of a decoder that it leaves behind."""

    _keys_to_ignore_on_load_unexpected = None


def _load(source: str) -> tuple[URFMModel, URFMImageProcessor, list[str]]:
    """The encoder of a URFM folder, its processor, and the keys of its weights that are not of the encoder."""
    path = Path(source)
    source = source.removeprefix("hf-hub:")
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1 or path.parent.is_dir()
    if not path.is_dir() and looks_local:
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = f" Did you mean {str(path.parent / nearest_name(path.name, beside))!r}?" if beside else ""
        raise FileNotFoundError(f"{source}: no such folder.{near}")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type != "urfm":
            raise ConversionError(f"{source} is a {config.model_type!r} model, no URFM. To URFM: leave --to out.")
        with quiet():
            model, report = _Telling.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True
            )
        merge_adapters(model)
        processor = URFMImageProcessor.from_pretrained(source)
    except ConversionError:
        raise
    except Exception as error:  # transformers and the Hub client have a dozen ways to say no
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{source} can't be read as a URFM folder: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConversionError(f"{source} lacks weights of URFMModel: {', '.join(missing[:5])}.")
    for key, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ConversionError(f"{source}: {key} holds values that are NaN or infinite.")
    return model.eval(), processor, sorted(map(str, report["unexpected_keys"]))


def to_timm_keys(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[Fate]]:
    """Our keys as timm's, queries, keys and values joined, and the fate of each of ours."""
    names = {ours: theirs for theirs, ours in TIMM.items()}
    out, fates, fused = {}, [], {}
    for key, value in state.items():
        parts = key.split(".")
        layer = parts[1] if parts[0] == "layers" else ""
        general = ".".join(["layers", "#", *parts[2:]]) if layer else key
        stem, _, kind = general.rpartition(".")
        if stem.startswith("layers.#.attention.") and stem[-6:] in ("q_proj", "k_proj", "v_proj"):
            target = f"blocks.{layer}.attn.qkv.{kind}"
            fused.setdefault(target, {})[stem[-6]] = value
        else:
            target = names[general] if general in names else f"{names[stem]}.{kind}"
            target = target.replace("#", layer)
            out[target] = value.detach().contiguous()
        fates.append(Fate(key, "copied", target))
    out |= {target: torch.cat([three[part] for part in "qkv"]).detach() for target, three in fused.items()}
    return out, fates


def timm_config(config, processor: URFMImageProcessor) -> dict:
    """`config.json` of a timm model on the Hub."""
    if config.hidden_act not in ACTIVATIONS:
        raise ConversionError(f"timm has no activation {config.hidden_act!r}.")
    pool = "avg" if config.pooling == "mean" else "token"
    arguments = timm_sizes(config.to_dict(), config.num_attention_heads) | {"global_pool": pool}
    arguments |= {"fc_norm": False} if pool == "avg" else {}
    arguments |= {"act_layer": ACTIVATIONS[config.hidden_act]} if ACTIVATIONS[config.hidden_act] else {}
    size, side = dict(processor.size), config.image_size
    crop = dict(processor.crop_size or {}) if processor.do_center_crop else size
    if set(crop.values()) != {side}:
        raise ConversionError(f"The processor gives images of {crop}, the position embedding is for {side} px.")
    grown = size.get("shortest_edge") or size["height"]
    names = {number: name for name, number in RESAMPLE.items()}
    if int(processor.resample) not in names:
        raise ConversionError(f"The processor resamples by {processor.resample}; there are {', '.join(RESAMPLE)}.")
    return {
        "architecture": TIMM_NAMES.get(config.hidden_size, "vit_base_patch16_224"),
        "num_classes": 0,
        "num_features": config.hidden_size,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "urfm", "custom_load": False, "input_size": [3, side, side], "fixed_input_size": True,
            "interpolation": names[int(processor.resample)], "crop_pct": side / grown,
            "crop_mode": "center" if size.get("shortest_edge") else "squash", "mean": list(processor.image_mean),
            "std": list(processor.image_std), "num_classes": 0, "pool_size": None, "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }  # fmt: skip


def _settings(processor: URFMImageProcessor) -> dict:
    names = ("size", "resample", "default_to_square", "do_center_crop", "crop_size", "image_mean", "image_std")
    values = {name: getattr(processor, name) for name in names if getattr(processor, name, None) is not None}
    return {name: dict(value) if name.endswith("size") else value for name, value in values.items()}
