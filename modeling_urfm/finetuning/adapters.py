# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Adapters meet the model family: peft learns our default targets, and `from_pretrained` takes an adapter's folder or id.

`connect` is called when `modeling_urfm` is imported. It imports nothing: peft and transformers' pipelines are told at once
where they are loaded, else in the moment in which they are.

What transformers (5.24) does with an adapter by itself, and why it is not left to it:

- The config is the base's, so that the head has the base's labels, and a tag or commit that was asked for of the adapter is
  looked for in the base's repository.
- A pipeline takes the base's image processor, whatever size the adapter was trained at.
- DoRA's magnitudes are left out, and an encoder alone gets the adapter's layers without their weights, both without a word.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from torch import nn
from transformers.models.auto import auto_factory
from transformers.utils import cached_file, find_adapter_config_file

from ..configuration_urfm import URFMConfig
from ..modeling_urfm import URFMForImageClassification, URFMPreTrainedModel


# Attention and MLP: all matrices of the encoder but the patch projection.
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # of every weight in an adapter's file
OF_THE_ENCODER = ("embeddings.", "layers.", "layernorm.")
ATTENTIVE = "URFMAttentiveForImageClassification"
# What holds for the adapter's repository and its base's alike; `revision` and `subfolder` are of one.
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token")
OF_THE_LOADER = ("config", "dtype", "torch_dtype", "attn_implementation", "revision")


def connect() -> None:
    """Register the default LoRA targets with peft, and have every URFM class read adapters, from folders and the Hub."""
    _when_loaded("peft.utils.constants", _register)
    _when_loaded("transformers.pipelines", _leave_adapters_to_us)
    _leave_adapters_to_us(auto_factory)
    if not hasattr(URFMPreTrainedModel.from_pretrained, "reads_adapters"):
        URFMPreTrainedModel.from_pretrained = classmethod(
            _reading_adapters(URFMPreTrainedModel.from_pretrained.__func__)
        )
        URFMPreTrainedModel.load_adapter = _attaching(URFMPreTrainedModel.load_adapter)


def _register(tables) -> None:
    """`LoraConfig(target_modules=None)` on a URFM model then means `TARGET_MODULES`; DoRA is LoRA to peft."""
    tables.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault("urfm", list(TARGET_MODULES))


def _leave_adapters_to_us(module) -> None:
    """Have the Auto classes or the pipelines take a URFM adapter's repository for what it is: config, processor and all.

    Without this they put the base in its place. Our classes' `from_pretrained` then finds the adapter and its base.
    """
    plain = getattr(module, "find_adapter_config_file", None)
    if plain is None or hasattr(plain, "leaves_urfm"):
        return

    @functools.wraps(plain)
    def find(model_id, *args, **kwargs):
        found = plain(model_id, *args, **kwargs)
        return None if found is not None and _is_ours(model_id, found, kwargs) else found

    find.leaves_urfm = True
    module.find_adapter_config_file = find


def _is_ours(model_id: str, adapter_config: str, options: dict) -> bool:
    """Whether the config of an adapted URFM model lies beside an `adapter_config.json`, and no whole model."""
    if Path(model_id).is_dir():
        file = Path(adapter_config).with_name("config.json")
        if _is_whole_model(model_id):
            return False
    else:
        file = cached_file(
            model_id, "config.json", _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False, **options,
        )  # fmt: skip
    return file is not None and Path(file).is_file() and json.loads(Path(file).read_text()).get("model_type") == "urfm"


def _when_loaded(name: str, action) -> None:
    """Call `action(module)` now, or as soon as the module is imported."""
    if name in sys.modules:
        action(sys.modules[name])
    elif not any(isinstance(finder, _WhenLoaded) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenLoaded(name, action))


class _WhenLoaded(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in the way of one import, lets it happen, and acts on the module before anybody has read from it."""

    def __init__(self, name: str, action):
        self.name, self.action = name, action

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        sys.meta_path.remove(self)  # not before: whoever only looks for the module does not import it
        self.loader.exec_module(module)
        self.action(module)


def _reading_adapters(plain):
    """`from_pretrained` that also takes an adapter, by folder or Hub id.

    The config is the adapter's where one lies beside it (its labels and pooling), else the base's with the caller's
    changes; the weights are the base's, and the adapter's over them. A folder of an attentive model gives that class, so
    that its pooling is never left out without a word.
    """

    @functools.wraps(plain)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        name = pretrained_model_name_or_path
        # What an Auto class has found, if it has put the base in the name's place.
        found = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path") or name
        if name is not None and (str(found) != str(name) or not _is_whole_model(name)):
            adapter = _find(str(name), kwargs)
            if adapter is not None:
                return _with_adapter(plain, cls, str(name), adapter, args, kwargs)
        if cls is URFMForImageClassification and name is not None and ATTENTIVE in _architectures(str(name), kwargs):
            from .heads import URFMAttentiveForImageClassification as cls
        return plain(cls, name, *args, **kwargs)

    from_pretrained.reads_adapters = True
    return from_pretrained


def _attaching(plain):
    """`load_adapter` that puts every weight in its place or says which has none. Also takes `revision=` and `token=`."""

    @functools.wraps(plain)
    def load_adapter(self, peft_model_id=None, adapter_name=None, **kwargs):
        adapter_name = adapter_name or "default"
        of_transformers = {"peft_config", "adapter_state_dict", "load_config"} & {k for k, v in kwargs.items() if v}
        if (
            peft_model_id is None
            or of_transformers
            or kwargs.get("hotswap") is True
            or hasattr(self, "_hotswap_enabled")
        ):
            return plain(self, peft_model_id, adapter_name, **kwargs)
        if self._hf_peft_config_loaded and adapter_name in self.peft_config:
            raise ValueError(f"There is an adapter {adapter_name!r} in the model already: give this one another name.")
        adapter = _find(str(peft_model_id), kwargs)
        if adapter is None:
            raise ValueError(f"{peft_model_id} holds no {ADAPTER_CONFIG}.")
        _attach(self, adapter, adapter_name, trainable=bool(kwargs.get("is_trainable")))
        return SimpleNamespace(missing_keys=set(), unexpected_keys=set(), mismatched_keys=set())

    return load_adapter


@dataclass
class _Adapter:
    """name: its folder or id. folder: where its files lie now. options: how a file of its repository is had."""

    name: str
    folder: Path
    options: dict


def _is_whole_model(name: str) -> bool:
    """Whether weights of a whole model lie in a folder. With an adapter beside them, transformers reads both."""
    return any(Path(name).glob("model*.safetensors")) if Path(name).is_dir() else False


def _find(name: str, kwargs: dict) -> _Adapter | None:
    """The adapter that `name` is, with all its files from one commit; None where it is none."""
    options = {key: kwargs[key] for key in (*HUB_OPTIONS, "revision", "subfolder") if kwargs.get(key) is not None}
    given = {key: value for key, value in (kwargs.get("adapter_kwargs") or {}).items() if value is not None}
    adapter = str(given.pop("_adapter_model_path", name))
    if adapter != name:  # an Auto class found one without a config, and put its base in the name's place
        options = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    options |= given
    file = find_adapter_config_file(adapter, **options)
    if file is None:
        return None
    if not Path(adapter).is_dir():
        options["revision"] = Path(file).parts[-2 - len(Path(options.get("subfolder", "")).parts)]
        for other in ("config.json", *ADAPTER_WEIGHTS):
            there = cached_file(adapter, other, _raise_exceptions_for_missing_entries=False, **options)
            if there is not None and other in ADAPTER_WEIGHTS:
                break
    folder = Path(file).parent
    if not any((folder / weights).is_file() for weights in ADAPTER_WEIGHTS):
        raise OSError(f"{adapter} holds {ADAPTER_CONFIG}, but neither of {' and '.join(ADAPTER_WEIGHTS)}.")
    if importlib.util.find_spec("peft") is None:
        raise ImportError(f"{adapter} is an adapter, which needs peft: pip install peft")
    return _Adapter(adapter, folder, options)


def _with_adapter(plain, cls, name: str, adapter: _Adapter, args: tuple, kwargs: dict):
    """The adapter's base by `plain`, and the adapter put into it."""
    from peft import load_peft_weights

    kwargs = {key: value for key, value in kwargs.items() if key not in ("adapter_kwargs", "subfolder")}
    adapter_name = kwargs.pop("adapter_name", None) or "default"
    of_the_base = name != adapter.name and kwargs.get("config")  # what an Auto class read there
    if (adapter.folder / "config.json").is_file() and (of_the_base or kwargs.get("config") is None):
        kwargs["config"] = config = URFMConfig.from_pretrained(adapter.folder)
        for key in [key for key in kwargs if hasattr(config, key) and key not in OF_THE_LOADER]:
            setattr(config, key, kwargs.pop(key))
    if name == adapter.name:
        settings = json.loads((adapter.folder / ADAPTER_CONFIG).read_text())
        name = _base_of(adapter, settings.get("base_model_name_or_path"))
        kwargs.pop("revision", None)  # which was the adapter's
        if settings.get("revision"):
            kwargs["revision"] = settings["revision"]
    with _not_missed(cls, [key.removeprefix(PREFIX) for key in load_peft_weights(adapter.folder, "cpu")]):
        try:
            loaded = plain(cls, name, *args, **kwargs)
        except OSError as error:
            raise OSError(f"{adapter.name} is an adapter of {name}, which can't be had: {error}") from error
    _attach(loaded[0] if isinstance(loaded, tuple) else loaded, adapter, adapter_name)
    return loaded


def _attach(model: URFMPreTrainedModel, adapter: _Adapter, name: str, trainable: bool = False) -> None:
    """Put the adapter's weights and head into `model`, and switch it to inference unless it is to be trained on."""
    from peft import PeftConfig, inject_adapter_in_model, load_peft_weights, set_peft_model_state_dict

    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"{adapter.name} can't be put into weights that are offloaded to the disk or the CPU: load it without offloading, "
            "or merge it into its base first (PeftModel.from_pretrained(base, adapter).merge_and_unload())."
        )
    config = PeftConfig.from_pretrained(adapter.folder)
    config.inference_mode = not trainable
    weights = {key.removeprefix(PREFIX): value for key, value in load_peft_weights(adapter.folder, "cpu").items()}
    start = f"{model.base_model_prefix}."
    under_a_head = any(key.startswith(start) for key in weights)
    adapted = model
    if under_a_head and not hasattr(model, "urfm"):  # the encoder alone: heads stay behind
        weights = {key: value for key, value in weights.items() if key.startswith(start)}
        adapted = nn.Module()  # in which the encoder has the place, and its modules the names, that the adapter knows
        adapted.config, adapted.urfm = model.config, model
    elif hasattr(model, "urfm") and any(key.startswith(OF_THE_ENCODER) for key in weights):  # trained on it alone
        adapted = model.urfm
    if hasattr(model, "peft_config"):
        adapted.peft_config = model.peft_config
    before = set(adapted.state_dict())
    inject_adapter_in_model(config, adapted, name)
    try:
        left = set_peft_model_state_dict(adapted, weights, adapter_name=name)
    except RuntimeError as error:  # a size that differs, of the head if the adapter came without its config
        raise ValueError(
            f"{adapter.name} does not fit {type(model).__name__} with num_labels={model.config.num_labels}: "
            f"{str(error).strip().splitlines()[-1].strip()} Pass num_labels as it was trained with."
        ) from error
    wrapped = (".base_layer.", ".original_module.")  # the model's own weights, under their new names
    lacking = [key for key in left.missing_keys if key not in before and not any(part in key for part in wrapped)]
    if left.unexpected_keys or lacking:
        raise ValueError(
            f"{adapter.name} does not fit {type(model).__name__}: unknown weights {left.unexpected_keys[:3]}, missing "
            f"{lacking[:3]}."
        )
    model.peft_config = adapted.peft_config
    model._hf_peft_config_loaded = True
    if not trainable:
        model.requires_grad_(False).eval()


def _base_of(adapter: _Adapter, base: str | None) -> str:
    """The base that an adapter was trained on: a Hub id or a folder."""
    if not base:
        raise ValueError(
            f"{adapter.name}/{ADAPTER_CONFIG} names no base model: set base_model_name_or_path to its folder or id."
        )
    beside = adapter.folder / Path(base).name
    if not Path(base).is_dir() and beside.is_dir():
        return str(beside)  # a base that was moved along with its adapter
    a_path = Path(base).is_absolute() or base.startswith((".", "~")) or base.count("/") > 1
    if a_path and not Path(base).is_dir():
        raise FileNotFoundError(
            f"{adapter.name}/{ADAPTER_CONFIG}: the base model {base} is not there. Set base_model_name_or_path to where it "
            f"lies now, or load the base and call PeftModel.from_pretrained(base, {adapter.name!r})."
        )
    return base


def _architectures(name: str, kwargs: dict) -> list[str]:
    """Which class wrote the weights, from the config that was given or is of a folder or a repository."""
    config = kwargs.get("config")
    if not isinstance(config, URFMConfig):
        options = {key: kwargs[key] for key in (*HUB_OPTIONS, "revision", "subfolder") if kwargs.get(key) is not None}
        file = cached_file(
            name, "config.json", _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False, **options,
        )  # fmt: skip
        return (json.loads(Path(file).read_text()).get("architectures") or []) if file else []
    return config.architectures or []


@contextlib.contextmanager
def _not_missed(cls, keys: list[str]):
    """No report that the base lacks the weights that the adapter brings: of a head, say."""
    before = cls._keys_to_ignore_on_load_missing
    cls._keys_to_ignore_on_load_missing = [*(before or []), *(f"^{re.escape(key)}$" for key in keys)]
    try:
        yield
    finally:
        cls._keys_to_ignore_on_load_missing = before


__all__ = ["TARGET_MODULES", "connect"]
