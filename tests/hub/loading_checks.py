# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Loads what test_loading.py has saved or published in every way, in a process of its own, and writes what came out.

    python tests/hub/loading_checks.py clean OUT.npz FOLDER/ lab/   # no package: the code comes from the repositories
    python tests/hub/loading_checks.py package OUT.npz FOLDER/ lab/ # with it: no trust, no prompt

A place ends with a slash: `FOLDER/urfm` and `lab/urfm` are loaded. Outputs are named `PLACE NAME`. The environment names
the images (INPUTS) and the commit that the tag `v1` of `moved` stands on (COMMIT).
"""

# ruff: noqa: E402 -- the path decides what is imported
import os
import sys
from pathlib import Path


PROJECT = Path(__file__).resolve().parents[2]
mode, out, *places = sys.argv[1:]
if mode == "clean":
    sys.path[:] = [p for p in sys.path if os.path.realpath(p) not in (str(PROJECT), str(PROJECT / "tests" / "hub"))]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
    try:
        import modeling_urfm

        raise SystemExit("the package is on the path")
    except ModuleNotFoundError:
        pass
else:
    import modeling_urfm  # noqa: F811

import numpy as np
import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from peft import PeftModel
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module


torch.set_num_threads(1)
torch.set_grad_enabled(False)
TRUST = {"trust_remote_code": True} if mode == "clean" else {}
inputs = np.load(os.environ["INPUTS"])
pixels, large, image = torch.from_numpy(inputs["pixels"]), torch.from_numpy(inputs["large"]), inputs["image"]
picture = Image.fromarray(image)
hidden = torch.from_numpy(inputs["hidden"])
results = {}


def refused(kind: type, call) -> str:
    """The message of the error that `call` must end with."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("it was not refused")


def look(place: str, at_hub: bool):
    def write(name: str, value):
        results[f"{place} {name}"] = np.asarray(value)

    config = AutoConfig.from_pretrained(f"{place}urfm", **TRUST)
    assert type(config).__name__ == "URFMConfig"
    own = type(config).__module__ == "modeling_urfm.configuration_urfm"
    assert own == (mode == "package"), type(config).__module__

    # The Auto classes.
    encoder = AutoModel.from_pretrained(f"{place}urfm", **TRUST)(pixels)
    write("tokens", encoder.last_hidden_state)
    write("pooled", encoder.pooler_output)
    whole = AutoModelForPreTraining.from_pretrained(f"{place}urfm-pretraining", **TRUST)
    write("predictions", whole(pixels, bool_masked_pos=hidden).predictions)
    write("logits", AutoModelForImageClassification.from_pretrained(f"{place}classifier", **TRUST)(pixels).logits)
    write("masks", AutoModelForSemanticSegmentation.from_pretrained(f"{place}segmenter", **TRUST)(pixels).logits)
    if mode == "package" or (at_hub and not HF_HUB_OFFLINE):
        backbone = AutoBackbone.from_pretrained(f"{place}urfm", out_indices=[1, 2], **TRUST)
    else:  # transformers asks the Hub for a repository of that name, whatever it is
        cls = get_class_from_dynamic_module("modeling_urfm.URFMBackbone", f"{place}urfm")
        backbone = cls.from_pretrained(f"{place}urfm", out_indices=[1, 2])
    write("maps", torch.stack(backbone(pixels).feature_maps))
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained(f"{place}urfm", backend=backend, **TRUST)
        assert type(processor).__name__ == "URFMImageProcessor" + "Pil" * (backend == "pil")
        write(f"prepared {backend}", processor(image, return_tensors="pt").pixel_values)

    # Pipelines.
    write("piped tokens", pipeline("image-feature-extraction", model=f"{place}urfm", **TRUST)(picture))
    answers = pipeline("image-classification", model=f"{place}classifier", **TRUST)(picture)
    write("piped labels", [answer["label"] for answer in answers])
    write("piped scores", [answer["score"] for answer in answers])
    parts = pipeline("image-segmentation", model=f"{place}segmenter", **TRUST)(picture)
    write("piped parts", [part["label"] for part in parts])
    write("piped masks", [np.asarray(part["mask"]) for part in parts])

    # Numbers and places.
    for name, options in {
        "auto device": {"device_map": "auto"}, "cpu": {"device_map": "cpu"}, "auto dtype": {"dtype": "auto"},
        "eager": {"attn_implementation": "eager"}, "bf16": {"dtype": torch.bfloat16},
    }.items():  # fmt: skip
        model = AutoModelForImageClassification.from_pretrained(f"{place}classifier", **options, **TRUST)
        write(name, model(pixels.to(model.dtype)).logits.float())

    # Revisions: a tag, the commit that it stands on, and what came after it.
    if at_hub:
        for name, revision in {"tag": "v1", "commit": os.environ["COMMIT"]}.items():
            model = AutoModelForImageClassification.from_pretrained(f"{place}moved", revision=revision, **TRUST)
            write(name, model(pixels).logits)
        write("after", AutoModelForImageClassification.from_pretrained(f"{place}moved", **TRUST)(pixels).logits)
        message = refused(OSError, lambda: AutoModel.from_pretrained(f"{place}urfm", revision="v9", **TRUST))
        assert HF_HUB_OFFLINE or "v9 is not a valid git identifier" in message, message

    # Adapters.
    revision = {"revision": "v1"} if at_hub else {}
    base = AutoModelForImageClassification.from_pretrained(f"{place}urfm", num_labels=3, **TRUST)
    write("adapter by peft", PeftModel.from_pretrained(base, f"{place}adapter", **revision)(pixel_values=large).logits)
    if mode == "clean":
        message = refused(ValueError, lambda: AutoModel.from_pretrained(f"{place}urfm", trust_remote_code=False))
        assert "trust_remote_code=True" in message
        if at_hub:  # transformers leaves DoRA's magnitudes out
            dora = {"num_labels": 3, "adapter_kwargs": revision} | TRUST
            refused(ValueError, lambda: AutoModelForSemanticSegmentation.from_pretrained(f"{place}dora", **dora))
        return
    for name, cls in {"adapter": AutoModelForImageClassification, "dora": AutoModelForSemanticSegmentation}.items():
        model = cls.from_pretrained(f"{place}{name}", **revision)
        assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
        write(name, model(large).logits)
        own_class = getattr(modeling_urfm, type(model).__name__)
        write(f"{name} by class", own_class.from_pretrained(f"{place}{name}", **revision)(large).logits)
        model = cls.from_pretrained(f"{place}urfm", num_labels=3)
        model.load_adapter(f"{place}{name}", **revision)
        write(f"{name} loaded", model(large).logits)
    encoder = AutoModel.from_pretrained(f"{place}urfm")
    encoder.load_adapter(f"{place}adapter", **revision)
    write("adapter in encoder", encoder(large).pooler_output)
    write("encoder of adapter", AutoModel.from_pretrained(f"{place}adapter", **revision)(large).pooler_output)
    model = AutoModelForImageClassification.from_pretrained(f"{place}bare", num_labels=3)
    write("adapter without config", model(large).logits)
    message = refused(ValueError, lambda: AutoModelForImageClassification.from_pretrained(f"{place}bare"))
    assert "Pass num_labels" in message
    refused(ValueError, lambda: AutoModelForImageClassification.from_pretrained(f"{place}dora"))
    piped = pipeline("image-classification", model=f"{place}adapter", **revision)
    assert piped.image_processor.size["height"] == 48  # the adapter's, not the base's
    write("piped adapter", [answer["label"] for answer in piped(picture)])

    from modeling_urfm.evaluation.encoders import load_encoder

    encoder = load_encoder(f"{place}adapter" if not at_hub else f"{place}untagged")
    assert encoder.size == (48, 48)
    write("evaluated", encoder.module(large)[2])


for place in places:
    look(place, at_hub=not Path(place).is_dir())
np.savez(out, **results)
print("all of them")
