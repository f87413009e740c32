# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Files of weights that others made: where they are, and how they are read without running anything in them.

A pickle is read by `torch.load(weights_only=True)` and by nothing else: a file that needs more is refused. Names of
weights inside an index are taken only where they lie beside it.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..configuration_urfm import nearest_name


SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")
# In the order in which they are looked for: what can hold no code comes first.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CLIP_CONFIG = "open_clip_config.json"
PROCESSOR = "preprocessor_config.json"
MAX_JSON_BYTES = 50 * 2**20


class ConversionError(ValueError):
    """A source that can't be converted, and why."""


@dataclass
class Source:
    """Where the weights are, and what lies beside them.

    Attributes:
        name: as it was named, without the folders above it.
        kind: "file", "timm", "transformers" or "open_clip".
        weights: the files that hold them. config: of `kind`'s library; {} for a file.
        processor: the folder that holds the source's own `preprocessor_config.json`, if any.
        hub: id and commit where it came from the Hub.
    """

    name: str
    kind: str
    weights: list[Path]
    config: dict = field(default_factory=dict)
    processor: Path | None = None
    hub: str | None = None


# ---------------------------------------------------------------- where


def find_source(source: str) -> Source:
    """A file, a folder, or a Hub id (`ORG/NAME`, `hf-hub:ORG/NAME`, `ORG/NAME/FILE`).

    Raises:
        FileNotFoundError: no such file or folder; the nearest name beside it is said.
        ConversionError: nothing there that is known, or the Hub can't be reached.
    """
    path = Path(source)
    if not source.startswith("hf-hub:"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConversionError(f"{source} is neither a file nor a folder.")
        if path.is_file():
            return _of_file(path)
        if path.is_dir():
            found = _of_place(source, lambda name: _inside(path, name), _listing(path))
            found.name = path.resolve().name
            return found
        looks_local = source.startswith((".", "/", "~")) or "/" not in source or path.parent.is_dir()
        if looks_local or (path.suffix in SUFFIXES and source.count("/") < 2):
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            near = f" Did you mean {str(path.parent / nearest_name(path.name, beside))!r}?" if beside else ""
            raise FileNotFoundError(f"{source}: no such file or folder.{near}")
    return _of_hub(source.removeprefix("hf-hub:"))


def _inside(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def _of_file(path: Path) -> Source:
    """A file of weights with its config beside it is that folder: the config says what weights can't."""
    if path.name in (*NAMES, *CLIP_NAMES) and any(_inside(path.parent, n) for n in ("config.json", CLIP_CONFIG)):
        source = _of_place(str(path.parent), lambda name: _inside(path.parent, name), _listing(path.parent))
        source.name = path.parent.resolve().name
        if path.name not in [p.name for p in source.weights]:
            named = ", ".join(p.name for p in source.weights)
            raise ConversionError(f"{path} lies beside {named}, which is read first: name the folder instead.")
        return source
    if path.suffix not in SUFFIXES:
        near = f"{path.stem}{nearest_name(path.suffix, SUFFIXES)}"
        raise ConversionError(
            f"{path}: a file of weights is {', '.join(SUFFIXES)}. If it is one, name it {near}; for a folder, name the "
            "folder."
        )
    return Source(path.name, "file", [path])


def _of_place(name: str, get: Callable[[str], Path | None], listing: list[str] | None) -> Source:
    """A folder or Hub repository, by the configs in it. `get` gives a file's path, or None."""
    config_path = get("config.json")
    config = read_json(config_path) if config_path else {}
    if config.get("model_type") == "urfm":
        raise ConversionError(
            f"{name} is a URFM folder already: AutoModel.from_pretrained loads it. To timm: --to timm."
        )
    model_type = config.get("model_type")
    if "architecture" in config:
        kind, names = "timm", NAMES
    elif model_type in ("vit", "vit_mae"):
        kind, names = "transformers", NAMES
    elif (clip_path := get(CLIP_CONFIG)) is not None:
        kind, names, config, config_path = "open_clip", CLIP_NAMES, read_json(clip_path), clip_path
    elif config:
        raise ConversionError(f"{name}: {_no_plain_vit(model_type)}")
    else:
        weights = [n for n in listing or [] if n.endswith(SUFFIXES)]
        hint = f" Name the file: {name}/{weights[0]}." if weights else ""
        raise ConversionError(
            f"{name} holds neither config.json nor {CLIP_CONFIG}; it holds: {', '.join(listing or []) or 'nothing'}.{hint}"
        )
    found = next((path for path in map(get, names) if path is not None), None)
    if found is None:
        raise ConversionError(f"{name} holds {config_path.name} but no weights: {', '.join(names)}.")
    weights = [found]
    if found.name.endswith(".index.json"):
        weights = _shards(found, get)
    processor = get(PROCESSOR) if kind == "transformers" else None
    return Source(name, kind, weights, config, processor.parent if processor else None)


def _no_plain_vit(model_type) -> str:
    reasons = {
        "dinov2": "layer scale", "dinov2_with_registers": "register tokens and layer scale",
        "dinov3_vit": "rotary position embeddings and register tokens", "beit": "relative position bias",
        "data2vec-vision": "relative position bias", "deit": "a distillation token", "ijepa": "no CLS token",
        "siglip_vision_model": "no CLS token", "siglip": "no CLS token", "clip": "a norm before the first layer",
        "clip_vision_model": "a norm before the first layer", "vit_hybrid": "a convolutional stem",
        "swin": "windows and merged patches", "convnext": "convolutions", "resnet": "convolutions",
    }  # fmt: skip
    why = reasons.get(str(model_type))
    because = f" It has {why}, which URFM's encoder can't compute." if why else ""
    return f"a transformers model of type {model_type!r} can't be converted.{because} These can: vit, vit_mae."


def _shards(index: Path, get: Callable[[str], Path | None]) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ConversionError(f"{index.name}: there is no weight_map in it.")
    paths = []
    for name in sorted(set(map(str, names.values()))):
        if Path(name).name != name or "\\" in name or not name.endswith((".safetensors", ".bin")):
            raise ConversionError(f"{index.name} points to {ascii(name)}, which is no file of weights beside it.")
        path = get(name)
        if path is None:
            raise ConversionError(f"{index.name} points to {name}, which is missing.")
        paths.append(path)
    return paths


def _of_hub(name: str) -> Source:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    parts = name.split("/")
    if len(parts) < 2 or not all(parts):
        raise ConversionError(f"{name!r} is no Hub id: ORG/NAME, or ORG/NAME/FILE.")
    repo, file = "/".join(parts[:2]), "/".join(parts[2:])
    offline: list[Exception] = []

    def get(wanted: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo, wanted))
        except LocalEntryNotFoundError as error:  # no network: the cache may hold another of the names
            offline.append(error)
        except EntryNotFoundError:
            pass
        except Exception as error:  # the client has a dozen ways to say no
            raise _cannot_be_had(repo, error) from error
        return None

    try:
        if not file:
            source = _of_place(repo, get, None)
        else:
            path = get(file)
            if path is None:
                raise ConversionError(f"{repo} has no file {file}.{_hub_listing(repo)}")
            source = _of_file(path)
    except ConversionError as error:
        if offline:
            raise _cannot_be_had(repo, offline[0]) from error
        raise ConversionError(f"{error}{'' if file else _hub_listing(repo)}") from error
    commit = source.weights[0].parent.name if source.weights[0].parent.parent.name == "snapshots" else None
    source.name, source.hub = name, f"{repo}@{commit}" if commit else repo
    return source


def _hub_listing(repo: str) -> str:
    """The files of weights of a repository, where the Hub tells; only a help for the reader."""
    from huggingface_hub import HfApi

    try:
        files = [sibling.rfilename for sibling in HfApi().model_info(repo).siblings or []]
    except Exception:
        return ""
    files = [file for file in files if file.endswith(SUFFIXES)]
    return f" Files of weights there: {', '.join(f'{repo}/{file}' for file in files)}." if files else ""


def _cannot_be_had(repo: str, error: Exception) -> ConversionError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ConversionError(
        f"{repo} can't be had from the Hub: {reason}\n  Without a network, fetch it on another machine:  hf download "
        f"{repo} --local-dir FOLDER\n  then bring the folder here and name it or the file in it. A gated model needs:  hf "
        "auth login"
    )


# ---------------------------------------------------------------- reading


def read_json(path: Path) -> dict:
    """A JSON object; ConversionError for anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of its encoding
        raise ConversionError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path.name} holds no JSON object.")
    return content


def read_weights(paths: list[Path]) -> dict:
    """The content of one file of weights, or of all shards together.

    Raises:
        ConversionError: a damaged file, one that needs more than `weights_only=True`, or shards with the same key.
    """
    if len(paths) == 1:
        return _read_one(paths[0])
    together: dict = {}
    for path in tqdm(paths, desc="shards", delay=2):
        part = _read_one(path)
        twice = [key for key in part if key in together]
        if twice:
            raise ConversionError(f"{path.name} holds {ascii(str(twice[0]))}, which another shard holds too.")
        together |= part
    return together


def _read_one(path: Path) -> dict:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:  # its own kinds
            raise ConversionError(
                f"{path.name} is damaged, no whole file of safetensors: {error}. Fetch it again."
            ) from error
    content = _read_pickle(path)
    if not isinstance(content, dict):
        raise ConversionError(f"{path.name} holds {type(content).__name__}, not a dict of weights.")
    return content


def _read_pickle(path: Path):
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(b"version https://git-lfs"):
        raise ConversionError(f"{path.name} is a pointer of Git LFS, not the file. Fetch the file:  git lfs pull")
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_archive(path)
    elif not head.startswith(b"\x80"):  # an archive that was cut has lost its list of contents, which stands at the end
        raise ConversionError(f"{path.name} is neither an archive of torch.save nor a pickle: damaged? Fetch it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which read all the same
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        raise ConversionError(_refusal(path, error, is_zip)) from error
    except Exception as error:  # truncated, another format, or made to harm: torch has no common kind for these
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{path.name} can't be read as weights ({reason}): damaged? Fetch it again.") from error


def _check_archive(path: Path) -> None:
    """torch reads an archive without comparing its checksums, and so would take damaged weights for good ones."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise ConversionError(f"{path.name}: {ascii(packed[0])} is compressed, as torch.save never writes.")
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ConversionError(f"{path.name} claims to hold more bytes than it has.")
            for entry in tqdm(archive.infolist(), desc=f"checksums {path.name}", delay=2):
                with archive.open(entry) as file:
                    while file.read(2**22):
                        pass
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ConversionError(f"{path.name} is damaged: {error}. Fetch it again.") from error


def _refusal(path: Path, error: Exception, is_zip: bool) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wanted = []
    if is_zip:
        try:  # looks at the pickle's opcodes; nothing is run
            wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:
            pass
    reason = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[-1] if lines else "")
    needs = f"needs {', '.join(map(ascii, wanted))}" if wanted else f"is refused by torch: {reason[:300]}"
    ask = (
        f"{path.name} {needs}, but a pickle is only read with torch.load(weights_only=True), as anything else could run "
        "code.\n  Ask its makers for safetensors"
    )
    if wanted == ["argparse.Namespace"]:  # what MAE's own training script saves beside the weights; holds no code
        return (
            f"{ask}, or keep the weights alone; this allows argparse.Namespace and nothing else:\n"
            f'    python -c "import argparse, torch; torch.serialization.add_safe_globals([argparse.Namespace]); c = '
            f"torch.load('{path.name}', weights_only=True); c.pop('args', None); torch.save(c, 'weights.pth')\""
        )
    return f"{ask}, or save the state dict alone where the file is trusted:  torch.save(state_dict, 'weights.pth')"
