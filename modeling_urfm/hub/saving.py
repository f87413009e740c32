# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The folder that `from_pretrained` loads: weights, config, processor, the three code files and the card."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from .. import configuration_urfm, image_processing_urfm, modeling_urfm
from ..configuration_urfm import URFMConfig
from ..image_processing_urfm import URFMImageProcessor


CODE_FILES = (configuration_urfm, modeling_urfm, image_processing_urfm)
# transformers fills in the saved class alone; with these every Auto class finds its own.
AUTO_MAP = {
    "AutoConfig": "configuration_urfm.URFMConfig",
    "AutoModel": "modeling_urfm.URFMModel",
    "AutoModelForPreTraining": "modeling_urfm.URFMForPreTraining",
    "AutoModelForImageClassification": "modeling_urfm.URFMForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_urfm.URFMForSemanticSegmentation",
    "AutoBackbone": "modeling_urfm.URFMBackbone",
}
# A list names both backends; a string would always give the torchvision one.
PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": ["image_processing_urfm.URFMImageProcessorPil", "image_processing_urfm.URFMImageProcessor"]
}
PNG = b"\x89PNG\r\n\x1a\n"
# What an image is made of. Matplotlib writes its own name too; a viewer may have written anything.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sRGB", b"gAMA", b"pHYs")


def save_model_folder(
    model: PreTrainedModel,
    processor: URFMImageProcessor,
    output_dir: Path,
    card: str | None = None,
) -> None:
    """Write a model so that it loads in a clean process, with the package or with `trust_remote_code=True`.

    Every file is written beside its place and moved there, weights before the config that points to them: killed at any
    moment, the folder holds the old or the new file, never half of one.

    >>> import tempfile
    >>> from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel
    >>> folder = Path(tempfile.mkdtemp())
    >>> config = URFMConfig(image_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> save_model_folder(URFMModel(config), URFMImageProcessor(), folder)
    >>> sorted(path.name for path in folder.glob("*.json"))
    ['config.json', 'preprocessor_config.json']
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    temporary = output_dir / ".tmp-model"
    shutil.rmtree(temporary, ignore_errors=True)
    model.config.auto_map = dict(AUTO_MAP)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    add_auto_map(temporary / "preprocessor_config.json", PROCESSOR_AUTO_MAP)
    for module in CODE_FILES:
        shutil.copyfile(module.__file__, temporary / Path(module.__file__).name)
    if card is not None:
        (temporary / "README.md").write_text(card, encoding="utf-8")
    move_into(temporary, output_dir)


def add_auto_map(path: Path, auto_map: dict) -> None:
    """Set `auto_map` in a JSON file."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"auto_map": auto_map}, indent=2, sort_keys=True) + "\n")


def move_into(temporary: Path, output_dir: Path) -> None:
    """Move every file of `temporary` into `output_dir`, each in one step, weights first and configs last."""

    def turn(path: Path) -> int:
        return 0 if "safetensors" in path.name else 2 if path.name.endswith("config.json") else 1

    for path in sorted(temporary.iterdir(), key=turn):
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(path, output_dir / path.name)
    temporary.rmdir()


# ---------------------------------------------------------------- what leaves of a folder


def publish_weights(
    source: Path, staging: Path, architecture: str | None, max_shard_size: str, stem: str = "model"
) -> dict[str, Path]:
    """The weights that leave: name in the repository to the file, which is the old one if nothing about it changes.

    Args:
        architecture: class of the model file whose weights they must be, every one of them; "URFMModel" takes the encoder
            alone. Of another class, or None, all weights leave as they are.
        max_shard_size: such as "5GB". stem: of the file's name.

    Raises:
        ValueError: weights that are missing, of another shape or more than the class has, or not finite; damaged files.
    """
    largest, files = as_bytes(max_shard_size), weight_files(source, stem)
    shapes, headers = {}, set()
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                headers |= set(file.metadata() or {})
                shapes |= {key: list(file.get_slice(key).get_shape()) for key in file.keys()}
                for key in file.keys():
                    if not file.get_tensor(key).isfinite().all():
                        raise ValueError(f"{path}: {key} holds numbers that are not finite: its training has failed.")
        names = published_names(shapes, architecture)
        check_weights(source, architecture, {name: shapes[key] for key, name in names.items()})
        same = headers <= {"format"} and all(key == names.get(key) for key in shapes)
        if same and [path.name for path in files] == [f"{stem}.safetensors"]:
            if files[0].stat().st_size <= largest:
                return {files[0].name: files[0]}
        state = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                state |= {names[key]: file.get_tensor(key) for key in file.keys() if key in names}
    except SafetensorError as error:
        raise ValueError(f"{source}: the weights are damaged: {error}") from error
    save_torch_state_dict(
        state, staging, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=largest, metadata={"format": "pt"}
    )  # fmt: skip
    return {path.name: path for path in sorted(staging.glob(f"{stem}*.safetensors*"))}


def as_bytes(size: str) -> int:
    """ "5GB" as 5 * 10**9.

    Raises:
        ValueError: no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B", str(size).strip().upper())
    if not found or not float(found[1]):
        raise ValueError(f"max_shard_size {size!r}: a size such as 5GB or 500MB is wanted.")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))


def weight_files(folder: Path, stem: str = "model") -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names.

    Raises:
        ValueError: there is none, or one that the index names is missing.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(f"{folder} holds no {stem}.safetensors.")
    try:
        files = [folder / Path(name).name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights: {error!r}") from error
    for path in files:
        if not path.is_file():
            raise ValueError(f"{index} names {path.name}, which is not there.")
    return files


def published_names(keys: Iterable[str], architecture: str | None) -> dict[str, str]:
    """Every weight that leaves, and what it is called then: of a pre-training or fine-tuned model the encoder's alone."""
    if architecture != "URFMModel" or not any(key.startswith("urfm.") for key in keys):
        return {key: key for key in keys}
    return {key: key.removeprefix("urfm.") for key in keys if key.startswith("urfm.")}


def check_weights(source: Path, architecture: str | None, shapes: dict[str, list[int]]) -> None:
    """ValueError where the weights are not those that the class of `source/config.json` has."""
    cls = getattr(modeling_urfm, architecture or "", None)
    if cls is None:
        return
    with torch.device("meta"):
        wanted = {key: list(value.shape) for key, value in cls(_config(source)).state_dict().items()}
    for what, keys in (("lacks", wanted.keys() - shapes.keys()), ("has the unknown", shapes.keys() - wanted.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (" ..." if len(keys) > 3 else "")
            raise ValueError(f"{source} {what} weights {some} of {architecture}.")
    for key, shape in wanted.items():
        if shapes[key] != shape:
            raise ValueError(f"{source}: {key} has the shape {shapes[key]}, its config.json wants {shape}.")


def _config(folder: Path) -> URFMConfig:
    try:
        return URFMConfig.from_pretrained(folder)
    except StrictDataclassError as error:
        raise ValueError(f"{folder}/config.json: {' '.join(str(error).split())}") from error


def publish_config(source: Path, staging: Path, architecture: str | None, remote_code: bool) -> None:
    """`config.json` as it leaves: the fields that a URFM model has, of `architecture`, with `auto_map` for `remote_code`."""
    config = _config(source)
    known = {name for name in URFMConfig().to_dict() if name[0] != "_"} | {
        "id2label",
        "label2id",
        "problem_type",
        "dtype",
    }
    config.architectures = [architecture] if architecture else config.architectures
    config.auto_map = dict(AUTO_MAP)
    config.save_pretrained(staging)
    path = staging / "config.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name in known | {"auto_map"}}
    if not remote_code:
        content.pop("auto_map", None)
    if architecture in ("URFMModel", "URFMForPreTraining"):  # the labels of an encoder are those of somebody's head
        content = {
            name: value for name, value in content.items() if name not in ("id2label", "label2id", "problem_type")
        }
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def clean_png(path: Path, staged: Path) -> Path:
    """`path` if nothing but an image is in it, else `staged`, the image without texts, times and other companions.

    Raises:
        ValueError: no PNG.
    """
    data, kept, position, clean = path.read_bytes(), [PNG], len(PNG), True
    if not data.startswith(PNG):
        raise ValueError(f"{path} is no PNG.")
    kind = b""
    while kind != b"IEND" and position + 12 <= len(data):
        end, kind = (
            position + 12 + int.from_bytes(data[position : position + 4], "big"),
            data[position + 4 : position + 8],
        )
        if kind in PNG_CHUNKS:
            kept.append(data[position:end])
        else:
            clean = False
        position = end
    if clean and position == len(data):
        return path
    staged.write_bytes(b"".join(kept))
    return staged
