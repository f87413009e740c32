# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A URFM folder as one that needs no PyTorch code: ONNX, `torch.export`, 8-bit weights, and the exact preprocessing.

    export_model("urfm", Path("urfm-onnx"))

    urfm-onnx/
      onnx/model.onnx             float32, any batch and image size
      onnx/model_quantized.onnx   8-bit weights (int8)
      model.pt2                   torch.export
      config.json, preprocessor_config.json      as transformers.js reads them
      preprocessing.json, preprocessing.py, preprocessing.mjs     every step and number, in numpy and in JavaScript
      export.json, README.md      how far each format is from PyTorch, and what the limits are

Every format is compared with PyTorch on real images before anything is written. Not for clinical use.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..configuration_urfm import URFMConfig, nearest_name
from ..flags import check_choice
from ..image_processing_urfm import URFMImageProcessor
from ..merging import merge_adapters
from ..modeling_urfm import (
    URFMForImageClassification,
    URFMForSemanticSegmentation,
    URFMModel,
    URFMPreTrainedModel,
)
from .export_check import (
    compare,
    other_sizes,
    refuse_exact,
    refuse_int8,
    run_over,
    top1_agreement,
    verification_images,
)
from .export_folder import check_preprocessing, limits_of, write_folder
from .export_graph import OPSET, OUTPUTS, ExportedModel, save_int8, save_onnx, save_torch_export, to_torch_export
from .results import sha256_of, write_json


FORMATS = ("onnx", "torch_export", "int8")
FILES = {"onnx": "onnx/model.onnx", "torch_export": "model.pt2", "int8": "onnx/model_quantized.onnx"}
CLASSES = {
    "encoder": URFMModel,
    "classifier": URFMForImageClassification,
    "segmenter": URFMForSemanticSegmentation,
}


def export_model(
    source: str,
    output_dir: Path,
    formats: tuple[str, ...] = FORMATS,
    images: str | None = None,
    progress: bool = True,
) -> dict:
    """Export a model, compare every format with PyTorch, and write the folder in one step.

    Args:
        source: a URFM folder or Hub id: an encoder, a checkpoint of pre-training (its encoder), a classifier, a segmenter,
            or an adapter of peft (merged into its base).
        output_dir: not there yet, empty, or an earlier export, which is replaced.
        formats: of `FORMATS`.
        images: what to compare on, as `--dataset` takes it. None: the frames that ship, and phantoms.

    Returns:
        The content of `export.json`.

    Raises:
        ValueError: what can't be exported, or a format that differs from PyTorch by more than its tolerance; nothing is
            left then. FileNotFoundError: no such folder.
    """
    for name in formats:
        check_choice("--formats", name, FORMATS)
    output_dir = output_dir.resolve()  # "." has no name
    _check_output(output_dir)
    if images is not None and not Path(images).exists():
        raise FileNotFoundError(f"--images {images}: no such file or folder.")
    model, task = load_for_export(source)
    processor = URFMImageProcessor.from_pretrained(source)
    description, arrays = verification_images(images)
    difference = check_preprocessing(processor, model.config, arrays)
    pixels = processor(arrays, return_tensors="np")["pixel_values"]
    batches = [pixels, *other_sizes(pixels, model.config.patch_size)]
    expected = [run_over(torch_runner(model, task), batch) for batch in batches]
    graph = ExportedModel(model, task)

    temporary = output_dir.with_name(f".tmp-{output_dir.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        found = {}
        for name in tqdm(formats, desc="export", disable=not progress):
            path = temporary / FILES[name]
            path.parent.mkdir(exist_ok=True)
            _write(graph, name, path, temporary)
            found[name] = _measure(name, path, task, model.config.problem_type, batches, expected)
        shutil.rmtree(temporary / "unused", ignore_errors=True)
        facts = {
            "source": Path(source).name if Path(source).is_dir() else source, "task": task, "opset": OPSET,
            "inputs": {"pixel_values": ["batch", model.config.num_channels, "height", "width"]},
            "outputs": list(OUTPUTS[task]), "compared_on": description, "preprocessing": difference,
            "formats": found, "limits": limits_of(model.config, task, processor, formats),
        }  # fmt: skip
        write_folder(temporary, model.config, processor, facts)
        write_json(temporary / "export.json", facts)
        replace_folder(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


# ---------------------------------------------------------------- loading


def load_for_export(source: str) -> tuple[URFMPreTrainedModel, str]:
    """A model in float32 and eval mode with its adapter merged, and its task: "encoder", "classifier" or "segmenter".

    Raises:
        ValueError: another family of models, or weights that are missing (they would be random).
        FileNotFoundError: nothing of that name.
    """
    _check_source(source)
    config = URFMConfig.from_pretrained(source)
    if config.model_type != "urfm":
        raise ValueError(f"{source} is a {config.model_type!r} model; recipes/convert.py makes a URFM folder of a ViT.")
    task = task_of(config)
    model, report = CLASSES[task].from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{source} lacks weights of {type(model).__name__}: {', '.join(missing[:5])} ...")
    merge_adapters(model)
    return model.eval().requires_grad_(False), task


def task_of(config: URFMConfig) -> str:
    """What the class that wrote the weights is for; without one, an encoder.

    >>> task_of(URFMConfig(architectures=["URFMForSemanticSegmentation"]))
    'segmenter'
    """
    name = (config.architectures or [""])[0]
    return "classifier" if "Classification" in name else "segmenter" if "Segmentation" in name else "encoder"


def _check_source(source: str) -> None:
    path = Path(source)
    if path.is_file():
        raise ValueError(f"{source} is a file; a URFM folder or Hub id is needed. recipes/convert.py takes files.")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{source} holds no config.json.")
    elif source.startswith((".", "/", "~")) or source.count("/") != 1 or path.parent.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = f" Did you mean {str(path.parent / nearest_name(path.name, siblings))!r}?" if siblings else ""
        raise FileNotFoundError(f"{source}: no such folder.{near}")


# ---------------------------------------------------------------- writing and running


def _write(graph: ExportedModel, name: str, path: Path, temporary: Path) -> None:
    if name == "torch_export":
        return save_torch_export(to_torch_export(graph), path)
    if name == "onnx":
        return save_onnx(graph, path)
    plain = temporary / FILES["onnx"]
    if not plain.is_file():
        plain = temporary / "unused" / "model.onnx"
        plain.parent.mkdir(exist_ok=True)
        save_onnx(graph, plain)
    save_int8(plain, path)


def _measure(name: str, path: Path, task: str, problem: str | None, batches: list, expected: list) -> dict:
    """Run one format on everything and say how far it is from PyTorch; ValueError where that is too far."""
    run = torch_export_runner(path) if name == "torch_export" else onnx_runner(path)
    got = [run_over(run, batch) for batch in batches]
    errors = [compare(outputs, wanted) for outputs, wanted in zip(got, expected)]
    agreement = top1_agreement(task, problem, got[0], expected[0])
    if name == "int8":
        refuse_int8(task, errors, agreement)
    else:
        refuse_exact(name, errors)
    files = [path, *path.parent.glob(f"{path.name}_data")]
    others = [
        {"batch": len(batch), "height": batch.shape[2], "width": batch.shape[3],
         "max_abs": max(error["max_abs"] for error in part.values())}
        for batch, part in zip(batches[1:], errors[1:])
    ]  # fmt: skip
    return {
        "file": FILES[name], "bytes": sum(file.stat().st_size for file in files),
        "sha256": {file.name: sha256_of(file) for file in files}, "height": batches[0].shape[2],
        "width": batches[0].shape[3], "errors": errors[0], "top1_agreement": agreement, "other_sizes": others,
    }  # fmt: skip


def torch_runner(model: URFMPreTrainedModel, task: str):
    """PyTorch, eager."""

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model(pixel_values=torch.from_numpy(pixels))
        return {name: outputs[name].numpy() for name in OUTPUTS[task]}

    return run


def onnx_runner(path: Path, threads: int = 0):
    """ONNX Runtime on the processor; `threads` 0: as many as it takes by itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(None, {"pixel_values": pixels})))


def torch_export_runner(path: Path):
    """The file as a user would load it."""
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in module(torch.from_numpy(pixels)).items()}

    return run


def _check_output(output_dir: Path) -> None:
    if output_dir.is_file():
        raise ValueError(f"--output_dir {output_dir} is a file.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / "export.json").is_file():
        raise ValueError(f"--output_dir {output_dir} holds something else than an export; name a new folder.")


def replace_folder(temporary: Path, output_dir: Path) -> None:
    """`temporary` becomes `output_dir`; an earlier export there goes."""
    old = output_dir.with_name(f".old-{output_dir.name}")
    if output_dir.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a run that was killed here
        os.replace(output_dir, old)
    os.replace(temporary, output_dir)
    shutil.rmtree(old, ignore_errors=True)


__all__ = ["FORMATS", "export_model", "load_for_export", "task_of"]
