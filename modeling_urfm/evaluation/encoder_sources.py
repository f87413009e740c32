# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Where frozen encoders come from: URFM folders and transformers; `encoder_timm` has timm and open_clip.

Each `load_X(source, pretrained, image_size, processor)` gives a tower and its preparation. A tower maps normalised pixels
(B, 3, H, W) to CLS (B, D) or None, patch tokens (B, L, D) in raster order, both after the last norm, and the pooled
features (B, D') that the encoder's own code gives, or None.
"""

import hashlib
import inspect
from pathlib import Path

import torch
from torch import nn

from ..configuration_urfm import nearest_name
from ..image_processing_urfm import URFMImageProcessor
from ..merging import merge_adapters
from ..modeling_urfm import URFMModel  # whose from_pretrained reads adapters, too
from .preparation import Preparation, ProcessorPreparation, preparation_of


# Parts that play no role in features and that checkpoints of other tasks lack.
UNUSED = {"pooler", "head", "mask_token", "decoder"}


# ---------------------------------------------------------------- URFM


class UrfmTower(nn.Module):
    def __init__(self, model: URFMModel):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor):
        output = self.model(pixel_values=pixels)
        return output.last_hidden_state[:, 0], output.last_hidden_state[:, 1:], output.pooler_output


def load_urfm(source: str, pretrained: bool, image_size: int | None, processor: str | None):
    """A URFM encoder, whatever head its checkpoint carries, or a peft adapter merged into it."""
    from transformers import AutoConfig
    from transformers.utils import find_adapter_config_file

    _check_place(source)
    adapter = pretrained and _read(find_adapter_config_file, source) is not None
    if not adapter:  # which may come without a config, as it has its base's
        config = _read(AutoConfig.from_pretrained, source)
        if config.model_type != "urfm":
            raise ValueError(f"--encoder {source} is a {config.model_type!r} model: name it transformers:{source}.")
    if not pretrained:
        return UrfmTower(URFMModel(config)), prepared([source], processor, image_size, URFMImageProcessor)
    model = _read(URFMModel.from_pretrained, source, dtype=torch.float32)
    places = [source, model.name_or_path] if adapter else [source]
    merge_adapters(model)
    return UrfmTower(model), prepared(places, processor, image_size, URFMImageProcessor)


# ---------------------------------------------------------------- transformers


class TransformersTower(nn.Module):
    """A vision encoder of transformers. `pools`: its pooler's weights were in the checkpoint, or it has none."""

    def __init__(self, model: nn.Module, size: tuple[int, int], pools: bool):
        super().__init__()
        self.model, self.pools = model, pools
        config, parameters = model.config, inspect.signature(model.forward).parameters
        patch = getattr(config, "patch_size", None)
        patch = (patch, patch) if isinstance(patch, int) else patch
        self.patches = (size[0] // patch[0]) * (size[1] // patch[1]) if patch else 0
        self.interpolate = "interpolate_pos_encoding" in parameters
        # MAE's encoder hides patches at random, whatever it is used for; ordered noise keeps all in their places.
        self.is_mae = config.model_type == "vit_mae"
        if self.is_mae:
            config.mask_ratio = 0.0
        # CLIP's last_hidden_state has not passed its last norm (its pooled CLS alone does), SigLIP's has: look once.
        norm, seen = getattr(model, "post_layernorm", None), []
        self.norm_is_due = False
        if norm is not None:
            hook = norm.register_forward_hook(lambda module, args, output: seen.append(output.ndim))
            with torch.no_grad():
                self(torch.zeros(1, 3, *size))
            hook.remove()
            self.norm_is_due = 3 not in seen

    def forward(self, pixels: torch.Tensor):
        options = {"interpolate_pos_encoding": True} if self.interpolate else {}
        if self.is_mae:
            options["noise"] = torch.arange(self.patches, device=pixels.device).float().expand(len(pixels), -1)
        output = self.model(pixel_values=pixels, **options)
        tokens = output.last_hidden_state
        pooled = getattr(output, "pooler_output", None) if self.pools else None
        pooled = pooled.flatten(1) if pooled is not None else None
        if tokens.ndim == 4:  # a convolutional network's map
            return None, tokens.flatten(2).transpose(1, 2), pooled
        if self.norm_is_due:
            tokens = self.model.post_layernorm(tokens)
        extra = tokens.shape[1] - self.patches
        if extra <= 0:  # no CLS, or a hierarchical one that merges patches
            return None, tokens, pooled
        return tokens[:, 0], tokens[:, extra:], pooled


def load_transformers(source: str, pretrained: bool, image_size: int | None, processor: str | None):
    """A vision encoder of transformers' own code; a checkpoint's own code is never run."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor

    _check_place(source)
    config = _read(AutoConfig.from_pretrained, source, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"transformers has no vision encoder for {type(config).__name__} of {source}.")
    kind, missing = MODEL_MAPPING[type(config)], []
    if pretrained:
        model, report = _read(
            kind.from_pretrained, source, config=config, dtype=torch.float32, output_loading_info=True
        )
        missing = report["missing_keys"]
        _check_missing(source, model, missing)
    else:
        model = kind._from_config(config, dtype=torch.float32)
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{source}: {kind.__name__} takes no images.")
    prepare = prepared([source], processor, image_size, AutoImageProcessor)
    pools = pretrained and not any({"pooler", "head"} & set(key.split(".")) for key in missing)
    return TransformersTower(model.eval(), prepare.size, pools), prepare


# ---------------------------------------------------------------- what all need


def fingerprint_of(tower: nn.Module, prepare, dtype: torch.dtype) -> str:
    """Of weights, preprocessing, pooling and number format."""
    facts = [type(tower).__name__, repr(prepare), str(dtype), str(getattr(tower, "pools", ""))]
    if isinstance(tower, UrfmTower):
        facts.append(tower.model.config.pooling)
    digest = hashlib.sha256("\n".join(facts).encode())
    for name, value in sorted(tower.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def grid_of(patches: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of so many tokens of an image of `size`."""
    rows = round((patches * size[0] / size[1]) ** 0.5)
    if rows == 0 or patches % rows:
        raise ValueError(f"{patches} patch tokens of an image of {size[0]} x {size[1]} pixels are no grid.")
    return rows, patches // rows


def _check_place(source: str):
    """A path that is not there is named before the Hub is asked for it."""
    path = Path(source)
    if path.exists():
        if not path.is_dir():
            raise ValueError(f"--encoder {source} is a file; a folder with config.json and weights is needed.")
        if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
            there = ", ".join(sorted(p.name for p in path.iterdir())[:10]) or "nothing"
            raise ValueError(f"--encoder {source} holds no config.json; it holds: {there}.")
    elif source.startswith((".", "/", "~")) or source.count("/") != 1 or path.parent.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = nearest_name(path.name, siblings) if siblings else None
        hint = f" Did you mean {str(path.parent / near)!r}?" if near else ""
        raise FileNotFoundError(f"--encoder {source}: no such folder.{hint}")


def _read(function, source: str, **options):
    """Call a `from_pretrained`; what the Hub client and the formats' readers raise gets one answer."""
    try:
        return function(source, **options)
    except Exception as error:  # they have a dozen ways to say no
        raise cannot_be_had(source, "FOLDER", error) from error


def cannot_be_had(source: str, local: str, error: Exception) -> ValueError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if Path(source).is_dir():  # the network has no part in it
        return ValueError(f"The encoder {source} can't be had: {reason}")
    return ValueError(
        f"The encoder {source} can't be had: {reason}\n"
        f"  If it lies on the Hub and this machine has no network, fetch it on another one:  hf download ID --local-dir "
        f"FOLDER\n  then bring the folder here and name it:  --encoder {local}"
    )


def _check_missing(source: str, model: nn.Module, missing):
    """transformers draws at random what a checkpoint lacks; features of such an encoder would be noise."""
    missing = [key for key in sorted(missing) if not UNUSED & set(key.split("."))]
    if missing:
        raise ValueError(f"{source} lacks weights of {type(model).__name__}: {', '.join(missing[:5])} ...")


def prepared(places: list[str], processor: str | None, image_size, kind) -> Preparation | ProcessorPreparation:
    """The preparation by the processor that was named, or else by that of the first place that has one."""
    from transformers import AutoImageProcessor

    tried = []
    for place in [processor] if processor else places:
        try:
            found = (AutoImageProcessor if processor or kind is None else kind).from_pretrained(place)
        except Exception as error:  # as in `_read`
            tried.append(f"{place}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}")
            continue
        return preparation_of(found, image_size)
    if processor:
        raise ValueError(f"There is no image processor at {tried[0]}")
    raise ValueError(
        f"The encoder has no image processor ({'; '.join(tried)}), and no normalisation is taken for granted. Name the "
        f"processor that it was trained with: {places[0]}?processor=FOLDER_OR_ID, or copy its preprocessor_config.json "
        "into the folder."
    )
