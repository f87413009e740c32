# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What lies beside the graphs of an export: the configs that transformers.js reads, the exact preprocessing, a guide."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from .. import image_processing_urfm
from ..configuration_urfm import URFMConfig
from ..image_processing_urfm import URFMImageProcessor, URFMImageProcessorPil, find_scan_region
from . import preprocessing_numpy
from .preprocessing_numpy import preprocess
from .results import write_json


JAVASCRIPT = Path(image_processing_urfm.__file__).parent / "assets" / "export" / "preprocessing.mjs"
FILTER_NAMES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
EXACT, CLOSE = 1e-5, 0.05  # of the reference to the Pillow backend, and to torchvision's (two levels of 8 bits)
# A class of transformers and of transformers.js with the same inputs and outputs: there the weights are in the graph, and
# the class only says what goes in and out.
SAME_AS = {
    "encoder": ("vit", "ViTModel", "ViTImageProcessor"),
    "classifier": ("vit", "ViTForImageClassification", "ViTImageProcessor"),
    "segmenter": ("segformer", "SegformerForSemanticSegmentation", "SegformerImageProcessor"),
}


# ---------------------------------------------------------------- preprocessing


def preprocessing_parameters(processor: URFMImageProcessor) -> dict:
    """Every step from an image to `pixel_values`, with its numbers: the content of `preprocessing.json`.

    The names that `preprocessor_config.json` has too mean the same.

    Raises:
        ValueError: an option that no graph of fixed rules can follow.
    """
    options = processor.to_dict()
    if not (options["do_convert_rgb"] and options["do_resize"]):
        raise ValueError(
            "do_convert_rgb=False and do_resize=False are for Python alone: an export needs images of one kind."
        )
    if options.get("do_pad"):
        raise ValueError("do_pad=True is for Python alone; do_pad_square=True has an exact description.")
    resample = int(options["resample"])
    if resample not in FILTER_NAMES:
        raise ValueError(
            f"resample={resample} has no exact description; there are 1 (lanczos), 2 (bilinear), 3 (bicubic)."
        )
    white = 255 if options["do_rescale"] else 1
    steps = []
    if options["do_crop_scan_region"]:
        note = "Cut to the scan region, found by modeling_urfm's find_scan_region or known from the scanner: argument `box`."
        steps.append({"name": "crop_scan_region", "note": note})
    if options["do_percentile_rescale"]:
        percentiles = {"lower": options["lower_percentile"], "upper": options["upper_percentile"], "white": white}
        note = (
            "Nearest rank, over all pixels and channels: low to 0, high to `white`, clipped, in float32 from here on."
        )
        steps.append({"name": "percentile_rescale", **percentiles, "note": note})
    if options["do_pad_square"]:
        steps.append({"name": "pad_square", "note": "Black, the smaller half above and to the left."})
    size = {key: value for key, value in options["size"].items() if value is not None}
    if not (set(size) == {"height", "width"} or set(size) == {"shortest_edge"} and options.get("do_center_crop")):
        raise ValueError(f"size={size} gives images of no fixed size; height and width are needed.")
    a = {"a": -0.5} if FILTER_NAMES[resample] == "bicubic" else {}
    note = ("Pillow's resize: antialiased (the filter widens where an image shrinks), edges renormalised, columns first, "
            "then rows, 8-bit images rounded to 8 bits after each. cv2.resize and canvas are not the same.")  # fmt: skip
    steps.append({"name": "resize", **size, "filter": FILTER_NAMES[resample], "note": " ".join([note, *_spoken(a)])})
    output = size
    if options.get("do_center_crop"):
        crop = {key: value for key, value in options["crop_size"].items() if value is not None}
        steps.append({"name": "center_crop", **crop})
        output = crop
    if options["do_rescale"]:
        steps.append({"name": "rescale", "factor": options["rescale_factor"]})
    mean, std = (_three(options[key]) for key in ("image_mean", "image_std"))
    if options["do_normalize"]:
        steps.append({"name": "normalize", "mean": mean, "std": std})
    return {
        "input": {
            "channels": "RGB; grey is repeated, alpha is composited over black",
            "uint8": "0 to 255", "uint16": "divided by 257", "float": "0 to 255, or all in [0, 1]",
            "unit_floats_times": white,
        },
        "steps": steps,
        "output": {"name": "pixel_values", "dtype": "float32", "layout": "NCHW, RGB",
                   "shape": ["batch", 3, output["height"], output["width"]]},
        "size": size, "resample": resample, "rescale_factor": options["rescale_factor"] if options["do_rescale"] else 1.0,
        "image_mean": mean if options["do_normalize"] else [0.0] * 3,
        "image_std": std if options["do_normalize"] else [1.0] * 3,
    }  # fmt: skip


def _spoken(a: dict) -> list[str]:
    return ["Bicubic with a = -0.5 (OpenCV's and PyTorch's plain one has -0.75)."] if a else []


def _three(value) -> list[float]:
    return [float(v) for v in value] if np.ndim(value) else [float(value)] * 3


def check_preprocessing(processor: URFMImageProcessor, config: URFMConfig, images: list[np.ndarray]) -> dict:
    """How far the numpy reference is from both backends of the processor, in normalised units.

    Raises:
        ValueError: it is not the same; or a model that doesn't take three channels.
    """
    if config.num_channels != 3:
        raise ValueError(
            f"num_channels={config.num_channels}: only models of three channels have an exact preprocessing."
        )
    parameters = preprocessing_parameters(processor)
    pil = URFMImageProcessorPil.from_dict(processor.to_dict())
    furthest = {"reference_to_pil": 0.0, "reference_to_torchvision": 0.0}
    for image in images:
        found = preprocess(image, parameters, _box(image) if processor.do_crop_scan_region else None)
        for name, backend in (("reference_to_pil", pil), ("reference_to_torchvision", processor)):
            wanted = backend(image, return_tensors="np")["pixel_values"]
            furthest[name] = max(furthest[name], float(np.abs(found - wanted).max()))
    for name, limit in (("reference_to_pil", EXACT), ("reference_to_torchvision", CLOSE)):
        if not furthest[name] <= limit:
            raise ValueError(
                f"the described preprocessing differs by {furthest[name]:.3g} ({name}); the limit is {limit}."
            )
    return furthest


def _box(image: np.ndarray) -> tuple[int, int, int, int] | None:
    return find_scan_region(torch.from_numpy(image if image.ndim == 2 else image.transpose(2, 0, 1)))


# ---------------------------------------------------------------- configs and guide


def write_folder(folder: Path, config: URFMConfig, processor: URFMImageProcessor, facts: dict) -> None:
    """Write all but the graphs and `export.json` into `folder`."""
    parameters = preprocessing_parameters(processor)
    write_json(folder / "config.json", javascript_config(config, facts["task"], folder / "onnx"))
    write_json(folder / "preprocessor_config.json", javascript_processor(processor, facts["task"], parameters))
    write_json(folder / "preprocessing.json", parameters)
    shutil.copyfile(preprocessing_numpy.__file__, folder / "preprocessing.py")
    shutil.copyfile(JAVASCRIPT, folder / "preprocessing.mjs")
    (folder / "README.md").write_text(guide(facts, parameters), encoding="utf-8")


def javascript_config(config: URFMConfig, task: str, onnx: Path) -> dict:
    """`config.json`: transformers.js knows no URFM, but a class that takes and gives the same."""
    model_type, architecture, _ = SAME_AS[task]
    kept = (
        "image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "hidden_act", "qkv_bias", "layer_norm_eps", "problem_type",
    )  # fmt: skip
    content = {"model_type": model_type, "architectures": [architecture]}
    if model_type == "vit":
        content |= {name: getattr(config, name) for name in kept}
    if task != "encoder":
        content |= {"id2label": config.id2label, "label2id": config.label2id}
    there = {path.name for path in onnx.glob("model*")}
    # Without a choice transformers.js takes 8 bits in a browser, and 32 in Node.
    options = {}
    if len(there & {"model.onnx", "model_quantized.onnx"}) == 1:
        options["dtype"] = "fp32" if "model.onnx" in there else "q8"
    if any(name.endswith("_data") for name in there):
        options["use_external_data_format"] = {
            name.removesuffix("_data"): 1 for name in there if name.endswith("_data")
        }
    content["urfm"] = {"model_type": "urfm", "task": task, "pooling": config.pooling}
    return content | ({"transformers.js_config": options} if options else {})


def javascript_processor(processor: URFMImageProcessor, task: str, parameters: dict) -> dict:
    """`preprocessor_config.json`: ours, under the name of a class of transformers.js with the same options.

    Where that class would leave a step out without a word (scan region, square, percentiles) the name stays ours, which
    transformers.js refuses.
    """
    content = json.loads(processor.to_json_string())
    content.pop("auto_map", None)
    content["image_processor_type"] = SAME_AS[task][2] if is_plain(parameters) else "URFMImageProcessor"
    content |= {"image_mean": _three(content["image_mean"]), "image_std": _three(content["image_std"])}
    return content


def is_plain(parameters: dict) -> bool:
    """Whether transformers.js has all steps."""
    return {step["name"] for step in parameters["steps"]} <= {"resize", "center_crop", "rescale", "normalize"}


def limits_of(config: URFMConfig, task: str, processor: URFMImageProcessor, formats) -> list[str]:
    """What an export can't do, in sentences."""
    patch = config.patch_size
    limits = [
        f"Height and width are multiples of {patch}, at least {2 * patch}. ONNX Runtime does not check it: pixels beyond the "
        "last whole patch are left out.",
        "Inference alone: no masks, losses, attention maps or hidden states.",
    ]
    if "torch_export" in formats:
        limits.append(
            f"model.pt2 takes sides of up to {512 * patch} and is read by the PyTorch that wrote it, or a newer one."
        )
    if "int8" in formats:
        limits.append("int8 saves time where the processor multiplies 8-bit integers (VNNI, AMX, ARM's dot product).")
    if processor.do_crop_scan_region:
        limits.append("The scan region is found by the Python package alone; elsewhere give `box`.")
    limits.append(
        "transformers.js resizes without antialiasing in Node and with the canvas's own filter in browsers, and reads 16-bit "
        "images as 8 bits; preprocessing.mjs gives the exact pixels."
    )
    if not is_plain(preprocessing_parameters(processor)):
        limits.append(
            "transformers.js's own pipeline refuses this preprocessing: give its model what preprocessing.mjs gives."
        )
    if task == "classifier" and config.problem_type == "multi_label_classification":
        limits.append(
            "Several labels: probabilities are the sigmoid of logits; transformers.js's pipeline takes a softmax."
        )
    if task == "classifier" and (config.problem_type == "regression" or config.num_labels == 1):
        limits.append("Values, not classes: they are the logits; transformers.js's pipeline takes a softmax.")
    if task == "segmenter" and config.num_labels == 1:
        limits.append("One label: the mask is where logits > 0; transformers.js's pipeline takes an argmax instead.")
    return limits


def guide(facts: dict, parameters: dict) -> str:
    """README.md of the folder."""
    formats, shape = facts["formats"], parameters["output"]["shape"]
    file = next((line["file"] for name, line in formats.items() if name != "torch_export"), None)
    lines = [
        "---", "library_name: transformers.js", "tags:", "- ultrasound", "- medical-imaging", "- urfm", "- onnx", "---",
        f"# {facts['source']}, exported", "",
        f"A URFM {facts['task']} for use without PyTorch code. **Not for clinical use.** Compared with PyTorch on "
        f"{facts['compared_on']}; all numbers and checksums are in `export.json`.", "",
        "| format | file | MB | largest error | mean error | lowest cosine | same answers |", "| --- " * 7 + "|",
        *(f"| {table_row(name, line)} |" for name, line in formats.items()), "",
        "`pixel_values` is " + f"(batch, {', '.join(map(str, shape[1:]))}) float32; other sizes work too. Outputs: "
        + ", ".join(f"`{name}`" for name in facts["outputs"]) + ".", "",
    ]  # fmt: skip
    if file is not None:
        lines += [
            "## Python without PyTorch", "", "```python", "import json, numpy, onnxruntime",
            "from preprocessing import preprocess", "", 'parameters = json.load(open("preprocessing.json"))',
            "image = numpy.zeros((480, 640), numpy.uint8)  # your frame: grey or RGB",
            f'session = onnxruntime.InferenceSession("{file}")',
            'outputs = session.run(None, {"pixel_values": preprocess(image, parameters)})', "```", "",
            "## JavaScript", "", "```js", "import { AutoModel, RawImage, Tensor } from '@huggingface/transformers';",
            "import { preprocess } from './preprocessing.mjs';", "",
            "const { data, dims } = preprocess(await RawImage.read('frame.png'), parameters);  // of preprocessing.json",
            "const model = await AutoModel.from_pretrained('ORG/NAME', { dtype: '"
            + ("q8" if "int8" in formats else "fp32") + "' });",
            "const outputs = await model({ pixel_values: new Tensor('float32', data, dims) });", "```", "",
        ]  # fmt: skip
    steps = [
        f"{place}. `{step['name']}` "
        + ", ".join(f"{key} {value}" for key, value in step.items() if key not in ("name", "note"))
        + (f". {step['note']}" if "note" in step else "")
        for place, step in enumerate(parameters["steps"], start=1)
    ]
    read = parameters["input"]
    lines += [
        "## Preprocessing, for C++ and others", "",
        f"Channels: {read['channels']}. uint8: {read['uint8']}; uint16: {read['uint16']}; float: {read['float']}. Then:", "",
        *steps, "",
        f"Layout: {parameters['output']['layout']}. `preprocessing.py` writes every step out; it equals the processor to "
        f"{facts['preprocessing']['reference_to_pil']:.0e} (Pillow) and {facts['preprocessing']['reference_to_torchvision']:.2g} "
        "(torchvision, whose 8-bit rounding differs), in normalised units.", "",
        "## Limits", "", *(f"- {limit}" for limit in facts["limits"]), "",
    ]  # fmt: skip
    return "\n".join(lines)


def table_row(name: str, line: dict) -> str:
    """One format of `export.json` as the cells of a table."""
    main = line["errors"].get("pooler_output") or line["errors"]["logits"]
    worst = max(error["max_abs"] for error in line["errors"].values())
    mean = max(error["mean_abs"] for error in line["errors"].values())
    same = "-" if line["top1_agreement"] is None else f"{line['top1_agreement']:.1%}"
    cells = (name, line["file"], f"{line['bytes'] / 1e6:.1f}", f"{worst:.2g}", f"{mean:.2g}",
             f"{main['cosine_lowest']:.6f}", same)  # fmt: skip
    return " | ".join(cells)


__all__ = ["check_preprocessing", "javascript_config", "preprocessing_parameters", "write_folder"]
