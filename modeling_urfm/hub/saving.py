# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The folder that `from_pretrained` loads: weights, config, processor, the three code files and the card."""

import json
import os
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from .. import configuration_urfm, image_processing_urfm, modeling_urfm
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


def save_model_folder(
    model: PreTrainedModel,
    processor: URFMImageProcessor,
    output_dir: Path,
    card: ModelCard | None = None,
) -> None:
    """Write a model so that it loads in a clean process, with the package or with `trust_remote_code=True`.

    Every file is written beside its place and moved there, weights before the config that points to them: killed at any
    moment, the folder holds the old or the new file, never half of one.
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
        card.save(temporary / "README.md")
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


def model_card(template: Path, results: dict, config, **values) -> ModelCard:
    """The card of a pre-trained model, filled from what the run measured."""
    metadata = ModelCardData(
        library_name="transformers",
        license="apache-2.0",
        pipeline_tag="image-feature-extraction",
        tags=["ultrasound", "medical-imaging", "foundation-model", "masked-image-modeling", "urfm"],
    )
    return ModelCard.from_template(metadata, template_path=str(template), results=results, config=config, **values)
