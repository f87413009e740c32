# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Two places where transformers (5.24) does not ask its own registers, so that a registered family would be left out.

`connect` is called when `modeling_urfm` is imported. Other families' models are not touched.
"""

import functools
from pathlib import Path

from transformers import AutoBackbone, PreTrainedConfig
from transformers.models.auto import auto_factory, modeling_auto

from ..configuration_urfm import URFMConfig


# What says where a config is had from.
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


def connect() -> None:
    """Have `AutoBackbone` read folders, also offline, and the segmentation pipeline know our model by name."""
    # The pipeline compares with a table of names, not with what was registered, and logs an error.
    modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault("urfm", "URFMForSemanticSegmentation")
    if not hasattr(AutoBackbone.from_pretrained, "reads_folders"):
        AutoBackbone.from_pretrained = classmethod(_reading_folders(AutoBackbone.from_pretrained.__func__))


def _reading_folders(plain):
    """`AutoBackbone.from_pretrained` that asks the Hub for a repository of that name only where it isn't ours.

    transformers asks first, with the caller's name alone: without its token, and though a folder or the cache has it all.
    What the Hub doesn't know is then taken for a model of timm.
    """

    @functools.wraps(plain)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        if not _is_urfm(pretrained_model_name_or_path, kwargs):
            return plain(cls, pretrained_model_name_or_path, *args, **kwargs)
        kwargs.pop("use_timm_backbone", None)
        # What every other Auto class does: the method of the class above the one that asks.
        return super(auto_factory._BaseAutoBackboneClass, cls).from_pretrained(
            pretrained_model_name_or_path, *args, **kwargs
        )

    from_pretrained.reads_folders = True
    return from_pretrained


def _is_urfm(name: str | Path, options: dict) -> bool:
    if options.get("config") is not None:
        return isinstance(options["config"], URFMConfig)
    try:
        found, _ = PreTrainedConfig.get_config_dict(
            name, **{key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
        )
    except (OSError, ValueError):  # not there, or no config: transformers says what is wrong
        return False
    return found.get("model_type") == URFMConfig.model_type


__all__ = ["connect"]
