# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Weights that others made as a URFM folder, strictly: every key has a fate, and the outputs are shown to be equal.

source      conversion_files      where it is, read without running anything in it
keys        conversion_keys       what becomes of each
library     conversion_libraries  the source's own code with its weights, and what only its config says
parity      conversion_parity     the same tokens on real images
"""

import hashlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ..configuration_urfm import URFMConfig, nearest_multiple
from ..image_processing_urfm import URFMImageProcessor
from ..modeling_urfm import URFMModel, resize_position_embeddings
from .cards import make_facts, render
from .conversion_files import ConversionError, Source, find_source, read_json, read_weights
from .conversion_keys import Fate, Plan, choose_state, make_plan
from .conversion_libraries import describe, quiet
from .conversion_parity import compare, compare_preprocessing, parity_images
from .conversion_weights import position_type, take_weights
from .results import sha256_of, write_json
from .saving import move_into, save_model_folder


TO_TIMM = "URFM to timm"  # the layout of the other way


@dataclass
class Converted:
    """An encoder that was converted and compared, not yet written.

    Attributes:
        model, processor: what `save_model_folder` takes. fates: of every key and entry of the source.
        record: the content of `conversion.json`. notes: what the reader should know, assumptions among it.
    """

    model: URFMModel
    processor: URFMImageProcessor
    fates: list[Fate]
    record: dict
    notes: list[str] = field(default_factory=list)


def convert(
    source: str,
    *,
    image_size: int | None = None,
    weights: str | None = None,
    num_attention_heads: int | None = None,
    images: Path | None = None,
    license: str | None = None,
    source_url: str | None = None,
) -> Converted:
    """Read, convert and compare; nothing is written.

    Args:
        source: a file, a folder, or a Hub id (`ORG/NAME`, `hf-hub:ORG/NAME`, `ORG/NAME/FILE`).
        image_size: side in pixels that the folder is to be for, if another than the source's: the position embeddings are
            interpolated, as the model itself does for other sizes.
        weights: "ema" or "raw" where a checkpoint holds both; averaged weights are taken by default.
        num_attention_heads: where the width does not tell.
        images: a folder of images to compare on, instead of pydicom's real ultrasound and phantoms.
        license, source_url: recorded; "unknown" where not given.

    Raises:
        ConversionError: the source is damaged, unknown, or holds what URFM's encoder can't compute; outputs differ.
        FileNotFoundError: no such file or folder.
    """
    found = find_source(source)
    content = read_weights(found.weights)
    state, entry, beside, said = choose_state(content, weights)
    plan = make_plan(state, within=_image_tower(found, state))
    ours, dtypes = take_weights(plan, state)
    positions = position_type(ours["embeddings.position_embeddings"], dtypes)
    described = describe(found, plan, state, num_attention_heads)
    config = URFMConfig(**described.settings, position_embedding_type=positions)
    model = _build(config, ours)
    frames = parity_images(images)
    processor = _processor(described.processor, frames[0])
    parity = compare(model, described.module, described.reference, described.against, processor, frames)
    preprocessing = (
        compare_preprocessing(described.preprocess, described.processor, frames) if described.preprocess else None
    )
    fates = [*plan.fates, *beside]
    notes = [*plan.notes, *(f"assumed: {text}" for text in described.assumed)]
    if dtypes != ["float32"]:
        notes.append(f"the source's weights are {', '.join(dtypes)}; float32 is written")
    if any(fate.detail.startswith("pooling head") for fate in plan.fates):
        notes.append("the source passes CLS through a further layer for its pooler_output; here it is CLS itself")
    if preprocessing and preprocessing["shifted"]:
        notes.append("the source rounds odd margins of its centre crop, this processor cuts them off: a pixel aside")
    if image_size is not None and image_size != config.image_size:
        notes.append(
            f"position embeddings were interpolated from {config.image_size} to {image_size} px after the comparison"
        )
        model, processor = (
            _resized(model, image_size),
            URFMImageProcessor(**_other_size(described.processor, image_size)),
        )
    record = {
        "source": f"hf-hub:{found.hub}" if found.hub else found.name,
        "sha256": _digest(found.weights),
        "files": len(found.weights),
        "layout": layout_of(found, plan, entry, said, positions),
        "weights": entry or None,
        "declared_architecture": said.get("model"),
        "keys": dict(Counter(fate.outcome for fate in fates)),
        "left_out": dict(Counter(fate.detail for fate in plan.fates if fate.outcome == "left out")),
        "license": license or "unknown",
        "source_url": source_url or "unknown",
        "source_dtypes": ", ".join(dtypes),
        "position_embeddings": positions,
        "processor": "assumed" if any("preprocessing" in text for text in described.assumed) else "of the source",
        "notes": notes,
        "parity": parity,
        "preprocessing_parity": preprocessing,
    }
    return Converted(model, processor, fates, record, notes)


def layout_of(source: Source, plan: Plan, entry: str, said: dict, positions: str) -> str:
    """What a layout is called."""
    if source.kind == "timm":
        return "timm"
    if source.kind == "transformers":
        return f"transformers {source.config['model_type']}"
    if source.kind == "open_clip":
        return "open_clip"
    if entry in ("ema_state_dict", "state_dict") and "model" in said:
        return "URFM as released"
    if entry or positions == "sincos" or any(fate.detail == "decoder" for fate in plan.fates):
        return "MAE-style checkpoint"
    return "timm state dict"


def _image_tower(source: Source, state: dict) -> str | None:
    """What the keys of a CLIP's image tower begin with: those of the text tower are of no interest."""
    if source.kind != "open_clip":
        return None
    return "module.visual." if any(str(key).startswith("module.visual.") for key in state) else "visual."


def _build(config: URFMConfig, ours: dict[str, torch.Tensor]) -> URFMModel:
    with torch.device("meta"):
        model = URFMModel(config)
    model.load_state_dict(ours, strict=True, assign=True)
    for name, parameter in model.named_parameters():
        learned = config.position_embedding_type == "learned" or "position_embeddings" not in name
        parameter.requires_grad_(learned)
    return model.eval()


def _processor(settings: dict, image) -> URFMImageProcessor:
    """A processor with the source's settings, tried once: they were written by somebody else."""
    try:
        processor = URFMImageProcessor(**settings)
        processor(image, return_tensors="pt")
    except Exception as error:  # values of any kind
        raise ConversionError(f"The source's preprocessing can't be done with {settings}: {error!r}") from error
    return processor


def _resized(model: URFMModel, image_size: int) -> URFMModel:
    patch = model.config.patch_size
    if image_size < 1 or image_size % patch:
        near = nearest_multiple(max(image_size, 1), patch)
        raise ConversionError(
            f"--image_size {image_size} is not divisible by the patch size {patch}. The nearest: {near}."
        )
    state = dict(model.state_dict())
    key, grid = "embeddings.position_embeddings", image_size // patch
    state[key] = resize_position_embeddings(state[key], (grid, grid)).contiguous()
    return _build(URFMConfig(**model.config.to_dict() | {"image_size": image_size}), state)


def _other_size(settings: dict, side: int) -> dict:
    """A processor's options for images of another side; its resize grows in proportion to its crop."""
    square = {"height": side, "width": side}
    if not settings.get("do_center_crop"):
        return settings | {"size": square}
    share = side / settings["crop_size"]["height"]
    return settings | {"crop_size": square, "size": {k: round(v * share) for k, v in settings["size"].items()}}


def _digest(paths: list[Path]) -> str:
    """SHA-256 of the file; of several shards, that of their digests, a line each."""
    digests = [sha256_of(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


# ---------------------------------------------------------------- writing


def check_free(output_dir: Path, to_timm: bool = False) -> None:
    """Refuse to write over anything but a former conversion of the same kind.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if not output_dir.is_dir() or all(path.name.startswith(".") for path in output_dir.iterdir()):
        return
    record = output_dir / "conversion.json"
    layout = read_json(record).get("layout") if record.is_file() else None
    if layout is None or (layout == TO_TIMM) != to_timm:
        raise FileExistsError(f"--output_dir {output_dir} holds files of no such conversion. Name another folder.")


def write_converted(converted: Converted, output_dir: Path, facts: dict) -> None:
    """The folder: weights, config, processor, code, card, `conversion.json` and `results.json`.

    A new folder appears whole or not at all; in one that is there each file is replaced in one step, weights first.

    Args:
        facts: `hub.results.run_facts` and `timings`.
    """
    results = facts | {"metrics": _metrics(converted)}
    temporary = output_dir.resolve().parent / f".tmp-{output_dir.resolve().name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        card = _card(converted, output_dir.resolve().name, results)
        with quiet():
            save_model_folder(converted.model, converted.processor, temporary, card)
        write_json(temporary / "conversion.json", converted.record)
        write_json(temporary / "results.json", results)
        put_in_place(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, output_dir: Path) -> None:
    """Make a finished folder the one that was asked for."""
    output_dir = output_dir.resolve()  # "." can't be removed
    if output_dir.is_dir() and any(output_dir.iterdir()):
        new = {path.name for path in temporary.iterdir()}
        stale = [p for p in output_dir.glob("model*.safetensors*") if p.name not in new]
        move_into(temporary, output_dir)
        for path in stale:  # shards of a former conversion
            path.unlink()
    else:
        if output_dir.is_dir():
            output_dir.rmdir()
        os.replace(temporary, output_dir)


def _metrics(converted: Converted) -> dict:
    record = converted.record
    return {
        "parameters": parameters(converted.model), "parity": record["parity"],
        "preprocessing_parity": record["preprocessing_parity"], "keys": record["keys"],
        "fates": [str(fate) for fate in converted.fates],
    }  # fmt: skip


def parameters(model: nn.Module) -> int:
    """How many weights a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def _card(converted: Converted, name: str, results: dict) -> str | None:
    facts = make_facts(results, converted.model.config.to_dict(), conversion=converted.record)
    try:
        return render("encoder", name, facts)
    except FileNotFoundError:  # the templates come with a clone, not with the package
        return None
