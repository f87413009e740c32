# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Frozen encoders of timm and open_clip; towers and loaders are as `encoder_sources` describes them."""

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..configuration_urfm import nearest_name
from ..flags import check_choice
from ..pretraining.teacher import CLIP_MEAN, CLIP_STD, TeacherError, _load_open_clip, _open_clip_files
from .encoder_sources import cannot_be_had, prepared
from .preparation import Preparation


# ---------------------------------------------------------------- timm


class TimmTower(nn.Module):
    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels: torch.Tensor):
        tokens = self.trunk.forward_features(pixels)
        pooled = self.trunk.forward_head(tokens, pre_logits=True)
        pooled = pooled if pooled.ndim == 2 else None
        if tokens.ndim == 4:  # (B, D, H, W) of convolutions, (B, H, W, D) of Swin
            last = tokens.shape[1] != self.trunk.num_features
            return None, tokens.flatten(1, 2) if last else tokens.flatten(2).transpose(1, 2), pooled
        prefix = getattr(self.trunk, "num_prefix_tokens", 0)
        cls = tokens[:, 0] if getattr(self.trunk, "cls_token", None) is not None else None
        return cls, tokens[:, prefix:], pooled


def load_timm(source: str, pretrained: bool, image_size: int | None, processor: str | None):
    """A model of timm without its classifier, prepared for as its own config says."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm:{source} needs timm: pip install 'urfm[train]' ({error}).") from error
    if not source.startswith(("local-dir:", "hf-hub:")) and source.split(".")[0] not in timm.list_models():
        near = nearest_name(source, timm.list_models())
        raise ValueError(f"--encoder timm:{source}: timm has no such model. Did you mean timm:{near}?")
    try:
        trunk = _create(source, pretrained, image_size)
    except Exception as error:  # the Hub client's, and timm's own of many kinds
        raise cannot_be_had(f"timm:{source}", "timm:local-dir:FOLDER", error) from error
    values = timm.data.resolve_model_data_config(trunk)
    if processor is not None:
        return TimmTower(trunk), prepared([], processor, image_size, None)
    return TimmTower(trunk), _timm_preparation(values, image_size)


def _create(source: str, pretrained: bool, image_size: int | None) -> nn.Module:
    """Transformers of timm are built for one size; convolutional networks take any, and no such option."""
    import timm

    if image_size is not None:
        try:
            return timm.create_model(source, pretrained=pretrained, num_classes=0, img_size=image_size)
        except TypeError:
            pass
    return timm.create_model(source, pretrained=pretrained, num_classes=0)


def _timm_preparation(values: dict, image_size: int | None) -> Preparation:
    """As timm's transform for evaluation: resized to size / crop_pct, then cropped."""
    size = tuple(values["input_size"][1:]) if image_size is None else (image_size, image_size)
    grown = tuple(int(side / (values.get("crop_pct") or 1.0)) for side in size)
    squeezed = values.get("crop_mode", "center") == "squash" or size[0] != size[1]
    return Preparation(size, grown if squeezed else grown[0], _interpolation(values["interpolation"]),
                       _levels(values["mean"]), _levels(values["std"]))  # fmt: skip


# ---------------------------------------------------------------- open_clip


class ClipTower(nn.Module):
    """The vision tower of open_clip's own ViT (OpenAI's layout), before its projection."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, pixels: torch.Tensor):
        last = len(self.visual.transformer.resblocks) - 1
        found = self.visual.forward_intermediates(
            pixels, indices=[last], output_fmt="NLC", intermediates_only=True, normalize_intermediates=True,
            output_extra_tokens=True,
        )  # fmt: skip
        return found["image_intermediates_prefix"][0][:, 0], found["image_intermediates"][0], None


def load_open_clip(source: str, pretrained: bool, image_size: int | None, processor: str | None):
    """The vision tower of a CLIP. From the Hub or a folder, it alone is built and loaded."""
    if source.startswith(("hf-hub:", "local-dir:")):
        visual, values = _open_clip_tower(source, pretrained)
    else:
        visual, values = _open_clip_model(source, pretrained)
    if image_size is not None:
        _resize_clip(visual, image_size)
    tower = TimmTower(visual.trunk) if hasattr(visual, "trunk") else ClipTower(visual)
    if processor is not None:
        return tower, prepared([], processor, image_size, None)
    size = values.get("size", 224) if image_size is None else image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    squeezed = values.get("resize_mode", "shortest") == "squash" or size[0] != size[1]
    mean, std = values.get("mean") or CLIP_MEAN, values.get("std") or CLIP_STD
    interpolation = _interpolation(values.get("interpolation") or "bicubic")
    return tower, Preparation(size, size if squeezed else size[0], interpolation, _levels(mean), _levels(std))


def _open_clip_tower(source: str, pretrained: bool) -> tuple[nn.Module, dict]:
    kind, _, place = source.partition(":")
    try:
        tower, _, size, mean, std = _load_open_clip(place, kind == "local-dir", -1)
        config = json.loads(Path(_open_clip_files(place, kind == "local-dir")[0]).read_text())
    except TeacherError as error:  # the same words, of an encoder
        lines = [line for line in str(error).splitlines() if "--teacher demo" not in line]
        text = "\n".join(lines).replace("--teacher", "--encoder").replace("The teacher", "The encoder")
        raise ValueError(text) from error
    visual = getattr(tower, "visual", None)
    visual = tower if visual is None else visual
    if not pretrained:
        _draw_anew(visual)
    return visual, {"size": size} | config.get("preprocess_cfg", {}) | {"mean": mean, "std": std}


def _open_clip_model(source: str, pretrained: bool) -> tuple[nn.Module, dict]:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(f"open_clip:{source} needs open_clip: pip install 'urfm[train]' ({error}).") from error
    name, _, tag = source.partition("/")
    if name not in open_clip.list_models():
        near = nearest_name(name, open_clip.list_models())
        raise ValueError(f"--encoder open_clip:{source}: open_clip has no such model. Did you mean open_clip:{near}?")
    if pretrained:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not tags:
            raise ValueError(f"--encoder open_clip:{source}: open_clip has no weights for {name}.")
        if not tag:
            raise ValueError(f"--encoder open_clip:{source} names no weights: write open_clip:{name}/TAG, with one of: "
                             f"{', '.join(tags)}.")  # fmt: skip
        check_choice(f"--encoder open_clip:{source}: weights", tag, tags)
    try:
        visual = open_clip.create_model(name, pretrained=tag if pretrained else None).visual
    except Exception as error:
        raise cannot_be_had(f"open_clip:{source}", "open_clip:local-dir:FOLDER", error) from error
    if not (hasattr(visual, "trunk") or hasattr(visual, "transformer")):
        raise ValueError(f"--encoder open_clip:{source}: {type(visual).__name__} has no patch tokens; a ViT is needed.")
    return visual, dict(visual.preprocess_cfg)


def _resize_clip(visual: nn.Module, side: int):
    """Position embeddings for images of `side` pixels."""
    if hasattr(visual, "trunk"):
        visual.trunk.set_input_size(img_size=side)
        return
    was, now = visual.grid_size, tuple(side // patch for patch in visual.patch_size)
    cls, patches = visual.positional_embedding[:1], visual.positional_embedding[1:]
    maps = patches.T.reshape(1, -1, *was)
    maps = F.interpolate(maps, size=now, mode="bicubic", antialias=True, align_corners=False)
    visual.positional_embedding = nn.Parameter(torch.cat([cls, maps[0].flatten(1).T]))
    visual.grid_size = now


def _draw_anew(module: nn.Module):
    """Random weights in place of a tower's: each part's own initialisation, and a small normal draw where it has none."""
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
        for value in part.parameters(recurse=False):
            if not hasattr(part, "reset_parameters"):
                nn.init.normal_(value, std=0.02)


# ---------------------------------------------------------------- what both need


def _levels(values) -> tuple[float, ...]:
    return tuple(255 * float(value) for value in values)


def _interpolation(name: str) -> str:
    """timm may leave it to chance, which is for training."""
    return "bicubic" if name in ("random", "lanczos") else name
