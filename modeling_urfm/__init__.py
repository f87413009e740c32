# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""URFM: a general ultrasound representation foundation model for transformers.

Importing this package registers the model family with transformers' Auto classes, so that
`AutoModel.from_pretrained("urfm")` loads a URFM folder or Hub id without `trust_remote_code`.
It imports nothing of the training stack: `modeling_urfm.pretraining`, `.finetuning`, `.data`, `.evaluation` and `.hub` do,
when used.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

from ._version import __version__
from .configuration_urfm import URFMConfig
from .finetuning import adapters
from .hub import loading
from .image_processing_urfm import URFMImageProcessor, URFMImageProcessorPil
from .modeling_urfm import (
    URFMBackbone,
    URFMForImageClassification,
    URFMForPreTraining,
    URFMForSemanticSegmentation,
    URFMModel,
    URFMPreTrainedModel,
)


AutoConfig.register("urfm", URFMConfig, exist_ok=True)
AutoModel.register(URFMConfig, URFMModel, exist_ok=True)
AutoModelForPreTraining.register(URFMConfig, URFMForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(URFMConfig, URFMForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(URFMConfig, URFMForSemanticSegmentation, exist_ok=True)
AutoBackbone.register(URFMConfig, URFMBackbone, exist_ok=True)
AutoImageProcessor.register(
    URFMConfig,
    image_processor_classes={"torchvision": URFMImageProcessor, "pil": URFMImageProcessorPil},
    exist_ok=True,
)
adapters.connect()  # peft's default targets, and adapters in from_pretrained
loading.connect()  # backbones from folders, and the segmentation pipeline

__all__ = [
    "__version__",
    "URFMBackbone",
    "URFMConfig",
    "URFMForImageClassification",
    "URFMForPreTraining",
    "URFMForSemanticSegmentation",
    "URFMImageProcessor",
    "URFMImageProcessorPil",
    "URFMModel",
    "URFMPreTrainedModel",
]
