# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a fine-tuning run is asked to do, and the settings that follow from the method where nothing is said."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.labelled import TASKS
from ..flags import check_choice, flag, helps_of, parse_sections


METHODS = ("linear", "attentive", "lora", "dora", "full")
ADAPTERS = ("lora", "dora")
FROZEN = ("linear", "attentive")


@dataclass(frozen=True)
class Settings:
    """Defaults of a method.

    Attributes:
        learning_rate: peak, for an encoder of width 768; a trained encoder of another width takes it times
            sqrt(768 / width), as narrow layers need larger steps under Adam.
        images_seen: how many training images, repeated over epochs, are seen where `num_train_epochs` is not given.
        epochs: fewest and most epochs of that.
    """

    learning_rate: float
    weight_decay: float
    batch_size: int
    images_seen: int
    epochs: tuple[int, int]


# Frozen encoders are run once and their features kept, so that an epoch costs next to nothing.
SETTINGS = {
    "linear": Settings(2e-3, 0.05, 32, 60_000, (20, 200)),
    "attentive": Settings(5e-4, 0.05, 32, 30_000, (15, 100)),
    "lora": Settings(1e-3, 0.01, 16, 20_000, (10, 100)),
    "dora": Settings(1e-3, 0.01, 16, 20_000, (10, 100)),
    "full": Settings(2e-4, 0.05, 16, 20_000, (10, 100)),
}


# A decode head on a frozen encoder: its many tokens are not kept, and it is a deep head.
FROZEN_SEGMENTATION = Settings(1e-3, 0.05, 16, 20_000, (10, 100))


@dataclass
class FinetuneArguments:
    """The `finetune` section. Names are those of transformers' examples where those have one."""

    task: str | None = flag(f"What is learnt: {', '.join(TASKS)}.")
    method: str = flag(
        "linear: the encoder stays as it is, a linear layer (for segmentation the decode head) is trained on it. attentive: "
        "the same with a small attention pooling over its tokens. lora, dora: adapters in attention and MLP, and the head. "
        "full: everything.", "lora",
    )  # fmt: skip
    model_name_or_path: str = flag("Folder or Hub id of a pre-trained URFM model.", "urfm")
    dataset: str | None = flag(
        "Labelled images: a folder (train/CLASS/*, or images/ and masks/), a CSV or Parquet table, a corpus, a data set of "
        "the Hub, a processed task of UltraBench, or phantoms:organ, :lesion, :lesion_mask, :depth, :findings."
    )
    output_dir: str = flag("Folder for the adapter or model, results, predictions and figures.", "finetuned")
    label_columns: list[str] | None = flag("Columns of a table that hold labels or targets.")
    patient_column: str | None = flag("Column of a table that holds the patient.")
    image_column: str | None = flag("Column of a table that holds the image or its path.")
    split_column: str | None = flag("Column of a table that holds train, validation or test.")
    image_root: str | None = flag("Folder that the paths of a table are relative to.")
    validation_fraction: float = flag("Share of the patients for validation, where the data has none.", 0.15)
    test_fraction: float = flag("Share of the patients for the test, where the data has none.", 0.2)
    split_seed: int = flag("Seeds the division into training, validation and test.", 0)
    label_fraction: float = flag(
        "Share of the training images whose labels are used, in (0, 1]; patient after patient.", 1.0
    )
    image_size: int | None = flag("Height and width that the model sees, in pixels. Default: the processor's.")
    crop_scan_region: bool = flag("Cut every image to its scan region first (stored with the processor).", False)
    pad_square: bool = flag("Pad every image to a square instead of squeezing it (stored with the processor).", False)
    random_init: bool = flag("Start from random weights, as a control.", False)
    lora_rank: int = flag("Rank of the adapters.", 8)
    lora_alpha: float = flag("The adapters' output is scaled by lora_alpha / lora_rank.", 16.0)
    lora_dropout: float = flag("Dropout before the adapters.", 0.0)
    load_in_4bit: bool = flag("Hold the frozen weights in 4 bits (QLoRA): needs a CUDA GPU and bitsandbytes.", False)
    layer_decay: float = flag("full: each layer learns this much slower than the one above it.", 0.75)
    drop_path_rate: float = flag("full: stochastic depth of the last layer.", 0.1)
    mixup: float = flag("full: alpha of the Beta distribution that mixes pairs of images and labels; 0: none.", 0.2)
    augment: bool = flag(
        "Train on cropped, turned, flipped, brighter and darker images (not for frozen encoders).", True
    )
    class_weights: str = flag("'balanced': the loss of rare classes counts more; 'none'.", "balanced")
    label_smoothing: float = flag("Share of the label that is spread over all classes.", 0.05)
    num_train_epochs: float | None = flag("Passes over the training images. Default: as many as a small set needs.")
    max_train_steps: int | None = flag("Steps of the optimiser; overrides num_train_epochs.")
    per_device_train_batch_size: int | None = flag(
        "Images a process and a micro-step. Default: 16, of kept features 32."
    )
    gradient_accumulation_steps: int = flag("Micro-steps a step of the optimiser.", 1)
    learning_rate: float | None = flag("Peak learning rate. Default: the method's, for the encoder's width.")
    weight_decay: float | None = flag("AdamW's, on matrices only. Default: the method's.")
    warmup_ratio: float = flag("Share of the steps in which the learning rate rises linearly.", 0.1)
    max_grad_norm: float = flag("Largest norm of the gradient; larger ones are scaled down.", 1.0)
    early_stopping_patience: int | None = flag(
        "Epochs without a better validation score after which training ends; 0: never. Default: a third of all, at least 5."
    )
    gradient_checkpointing: bool | None = flag(
        "Recompute activations in the backward pass: a third of the memory for a third more time. Default: for adapters in "
        "encoders of 50 M parameters and more."
    )
    bf16: bool = flag("Compute in bfloat16 (weights stay fp32).", False)
    seed: int = flag("Seeds head, adapters, order and augmentation.", 0)
    bootstrap_draws: int = flag("Draws of patients behind the 95 % intervals.", 1000)
    dataloader_num_workers: int = flag("Processes a rank that augment images; 0: the training process.", 0)
    report_to: str = flag("Tracker: 'none', 'tensorboard', 'trackio', 'wandb' or 'all'.", "none")
    save_total_limit: int = flag("Checkpoints that are kept while training; the best is always.", 2)
    resume_from_checkpoint: str | None = flag("A checkpoint folder, or 'latest' for the newest in output_dir.")
    deepspeed: str | None = flag("JSON file of DeepSpeed's settings, for Trainer.")

    def __post_init__(self):
        if not self.task:
            raise ValueError(f"No task: give --task with one of {', '.join(TASKS)}.")
        check_choice("task", self.task, TASKS)
        check_choice("method", self.method, METHODS)
        check_choice("class_weights", self.class_weights, ("balanced", "none"))
        check_choice("report_to", self.report_to, ("none", "tensorboard", "trackio", "wandb", "all"))
        if not self.dataset:
            raise ValueError("No dataset: name a folder, a table or a data set with --dataset, or phantoms:organ.")
        if self.method == "attentive" and self.task == "segmentation":
            raise ValueError(
                "method 'attentive' pools an image into one vector; for segmentation take linear, lora or full."
            )
        if self.load_in_4bit:
            self._check_4bit()
        self._check_numbers()

    def _check_4bit(self):
        if self.method not in ADAPTERS:
            raise ValueError(
                f"load_in_4bit holds weights that are not trained: take method lora or dora, not {self.method}."
            )
        if self.random_init:
            raise ValueError(
                "load_in_4bit holds the weights of a folder; random_init has none: leave one of the two out."
            )
        if not torch.cuda.is_available():
            raise ValueError("load_in_4bit (QLoRA) needs a CUDA GPU, and there is none: leave it out.")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError('load_in_4bit needs bitsandbytes: pip install "urfm[qlora]", or leave it out.')

    def _check_numbers(self):
        # name: lowest, whether it is allowed itself, highest, whether it is allowed itself, a value inside
        ranges = {
            "validation_fraction": (0, False, 1, False, 0.15), "test_fraction": (0, False, 1, False, 0.2),
            "label_fraction": (0, False, 1, True, 0.1), "label_smoothing": (0, True, 1, False, 0.1),
            "warmup_ratio": (0, True, 1, False, 0.1), "layer_decay": (0, False, 1, True, 0.75),
            "drop_path_rate": (0, True, 1, False, 0.1), "lora_dropout": (0, True, 1, False, 0.1),
            "mixup": (0, True, math.inf, False, 0.2), "learning_rate": (0, False, math.inf, False, 1e-3),
            "weight_decay": (0, True, math.inf, False, 0.05), "num_train_epochs": (0, False, math.inf, False, 20),
            "max_train_steps": (1, True, math.inf, False, 1), "per_device_train_batch_size": (1, True, math.inf, False, 1),
            "gradient_accumulation_steps": (1, True, math.inf, False, 1), "lora_rank": (1, True, math.inf, False, 8),
            "early_stopping_patience": (0, True, math.inf, False, 10), "bootstrap_draws": (1, True, math.inf, False, 1000),
            "save_total_limit": (1, True, math.inf, False, 2), "image_size": (1, True, math.inf, False, 224),
        }  # fmt: skip
        for name, (low, low_too, high, high_too, usual) in ranges.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not ((low < value or low_too and value == low) and (value < high or high_too and value == high)):
                brackets = f"{'[' if low_too else '('}{low}, {high}{']' if high_too else ')'}"
                nearest = low if value < low and low_too else high if value > high and high_too else usual
                raise ValueError(f"{name}={value} is outside {brackets}. A value that is not: {nearest}.")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} leave nothing to "
                "train on: their sum must be below 1."
            )

    # ---- what follows from the method

    @property
    def settings(self) -> Settings:
        if self.method == "linear" and self.task == "segmentation":
            return FROZEN_SEGMENTATION
        return SETTINGS[self.method]

    @property
    def batch_size(self) -> int:
        return self.per_device_train_batch_size or self.settings.batch_size

    def peak_learning_rate(self, hidden_size: int) -> float:
        """The one that was given, else the method's for an encoder of this width."""
        if self.learning_rate is not None:
            return self.learning_rate
        wider = 1.0 if self.method in FROZEN else math.sqrt(768 / hidden_size)
        return self.settings.learning_rate * wider

    def epochs(self, images: int) -> float:
        """Those that were given, else enough for `images` training images."""
        if self.num_train_epochs is not None:
            return self.num_train_epochs
        fewest, most = self.settings.epochs
        return float(min(max(math.ceil(self.settings.images_seen / images), fewest), most))

    def patience(self, epochs: float) -> int:
        if self.early_stopping_patience is not None:
            return self.early_stopping_patience
        return max(5, math.ceil(epochs / 3))

    def checkpoints_activations(self, encoder_parameters: int) -> bool:
        """Whether activations are recomputed in the backward pass."""
        if self.gradient_checkpointing is not None:
            return self.gradient_checkpointing
        return self.method in ADAPTERS and encoder_parameters >= 50_000_000


def parse_arguments(default_config: str | Path | None = None, argv: Sequence[str] | None = None) -> FinetuneArguments:
    """Read `--config FILE.yaml`, then let every flag override it; errors as in `flags.parse_sections`."""
    sections = {"finetune": (FinetuneArguments, helps_of(FinetuneArguments))}
    values = parse_sections(sections, "Fine-tune URFM on labelled images.", default_config, argv)
    return FinetuneArguments(**values["finetune"])
