# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Adapters meet the model family: peft learns our default targets, and `from_pretrained` takes an adapter's folder.

`connect` is called when `modeling_urfm` is imported. It imports nothing: peft is told at once where it is loaded, else in
the moment in which it is.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import json
import sys
from pathlib import Path

from ..configuration_urfm import URFMConfig
from ..modeling_urfm import URFMForImageClassification, URFMPreTrainedModel


# Attention and MLP: all matrices of the encoder but the patch projection.
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
ADAPTER_CONFIG = "adapter_config.json"
ATTENTIVE = "URFMAttentiveForImageClassification"
_TABLES = "peft.utils.constants"


def connect() -> None:
    """Register the default LoRA targets with peft, and have `from_pretrained` of every URFM class read adapter folders."""
    if _TABLES in sys.modules:
        _register(sys.modules[_TABLES])
    elif not any(isinstance(finder, _WhenPeftLoads) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenPeftLoads())
    if not hasattr(URFMPreTrainedModel.from_pretrained, "reads_adapters"):
        URFMPreTrainedModel.from_pretrained = classmethod(
            _reading_adapters(URFMPreTrainedModel.from_pretrained.__func__)
        )


def _register(tables) -> None:
    """`LoraConfig(target_modules=None)` on a URFM model then means `TARGET_MODULES`; DoRA is LoRA to peft."""
    tables.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault("urfm", list(TARGET_MODULES))


class _WhenPeftLoads(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in the way of one import, lets it happen, and tells peft our targets before anybody has read its tables."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register(module)


def _reading_adapters(plain):
    """`PreTrainedModel.from_pretrained` for folders that hold an adapter and the config of the adapted model.

    transformers takes a local folder with a `config.json` for a whole model, and the config of an adapter on the Hub from
    its base, whose head may have other labels. Here the config is the adapter's and the weights are the base's. A folder
    of an attentive model gives that class, so that its pooling is never left out without a word.
    """

    @functools.wraps(plain)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        name, config = str(pretrained_model_name_or_path), kwargs.get("config")
        # An Auto class has found the adapter and put its base in the name's place, unless a config lies in the folder.
        adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
        if adapter is None and (Path(name) / ADAPTER_CONFIG).is_file():
            adapter = name
        if adapter is not None and not (Path(name) / "model.safetensors").is_file():
            if Path(name) == Path(str(adapter)):
                name = _base_of(Path(name))
            if not isinstance(config, URFMConfig) or name != str(adapter):
                kwargs["config"] = _config_of(str(adapter), kwargs) or config
            options = {"token": kwargs.get("token")} | (kwargs.pop("adapter_kwargs", None) or {})
            options.pop("_adapter_model_path", None)
            name_in_model = kwargs.pop("adapter_name", None) or "default"
            with _head_comes_with_the_adapter(cls):
                loaded = plain(cls, name, *args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            _attach(model, str(adapter), name_in_model, {k: v for k, v in options.items() if v is not None})
            return loaded
        if cls is URFMForImageClassification and ATTENTIVE in (_architectures(name, config) or ()):
            from .heads import URFMAttentiveForImageClassification as cls
        return plain(cls, pretrained_model_name_or_path, *args, **kwargs)

    from_pretrained.reads_adapters = True
    return from_pretrained


def _attach(model: URFMPreTrainedModel, adapter: str, name: str, options: dict) -> None:
    """Put the adapter's weights and head into `model`, for inference.

    transformers' `load_adapter` does the same, but (5.24, with peft 0.21) leaves DoRA's magnitudes out, and an encoder
    alone without its adapter's weights.
    """
    from peft import PeftConfig, inject_adapter_in_model, load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(adapter, **options)
    config.inference_mode = True
    prefix = "base_model.model."
    weights = {key.removeprefix(prefix): value for key, value in load_peft_weights(adapter, "cpu", **options).items()}
    if not hasattr(model, "urfm"):  # the encoder alone: heads stay behind
        start = f"{model.base_model_prefix}."
        weights = {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
        config.modules_to_save = None
    inject_adapter_in_model(config, model, name)
    left = set_peft_model_state_dict(model, weights, adapter_name=name)
    lacking = [key for key in left.missing_keys if f".{name}" in key]
    if left.unexpected_keys or lacking:
        raise ValueError(
            f"{adapter} does not fit {type(model).__name__}: unknown weights {left.unexpected_keys[:3]}, missing {lacking[:3]}."
        )
    model._hf_peft_config_loaded = True
    model.requires_grad_(False).eval()


def _base_of(folder: Path) -> str:
    """The base that the adapter in `folder` was trained on: a Hub id or a folder."""
    base = json.loads((folder / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG} names no base model: set base_model_name_or_path to its folder or id."
        )
    if not Path(base).is_dir() and (folder / Path(base).name).is_dir():
        return str(folder / Path(base).name)  # a base that was moved along with its adapter
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise FileNotFoundError(
            f"{folder / ADAPTER_CONFIG}: the base model {base} is not there. Set base_model_name_or_path to where it lies now, "
            "or load the base and call PeftModel.from_pretrained(base, folder)."
        )
    return base


def _config_of(adapter: str, kwargs: dict) -> URFMConfig | None:
    """The config beside an adapter, of a folder or a repository; None where there is none."""
    given = {key: kwargs[key] for key in ("cache_dir", "token", "local_files_only") if kwargs.get(key) is not None}
    try:
        return URFMConfig.from_pretrained(adapter, **given)
    except OSError:
        return None


def _architectures(name: str, config) -> list[str] | None:
    """Which class wrote the weights, from the config or from the folder's."""
    if isinstance(config, URFMConfig):
        return config.architectures
    file = Path(name) / "config.json"
    return json.loads(file.read_text()).get("architectures") if file.is_file() else None


@contextlib.contextmanager
def _head_comes_with_the_adapter(cls):
    """No report that the base lacks the head: the adapter brings it."""
    before = cls._keys_to_ignore_on_load_missing
    cls._keys_to_ignore_on_load_missing = [*(before or []), r"^classifier\.", r"^decode_head\."]
    try:
        yield
    finally:
        cls._keys_to_ignore_on_load_missing = before


__all__ = ["TARGET_MODULES", "connect"]
