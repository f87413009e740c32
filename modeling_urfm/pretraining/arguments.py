# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a pre-training run is asked to do: a YAML file of two sections, `model` and `training`, and flags over it."""

import argparse
import importlib.util
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Union, get_args, get_origin

import yaml

from ..configuration_urfm import CHOICES, URFMConfig, nearest_name


def _help(text: str, default=None):
    return field(default=default, metadata={"help": text})


@dataclass
class PretrainArguments:
    """The `training` section. Names are those of transformers' examples where those have one."""

    dataset: list[str] | None = _help(
        "What to train on, one or several: 'demo' (phantoms and pydicom's real examples), a folder of images or DICOM "
        "files, a `datasets` image folder, Parquet files, or a Hub id."
    )
    dataset_split: str = _help("Split of a data set that has several.", "train")
    phantom_patients: int = _help("Patients (4 frames each) in the 'demo' corpus.", 450)
    phantom_snr_db: list[float] | None = _help("Lowest and highest signal-to-noise ratio of the phantoms, in dB.")
    teacher: str = _help(
        "Frozen encoder whose features are the targets: 'demo' (ships with the package), "
        "'open_clip:hf-hub:ID', 'open_clip:local-dir:FOLDER', 'transformers:ID_OR_FOLDER'.",
        "open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    )
    teacher_layer: int = _help(
        "Layer of the teacher: -1 is the last, after its norm; -2 the one before, and so on.", -1
    )
    teacher_normalize: str = _help("Normalisation of the teacher's features: 'none', 'l2' or 'layer_norm'.", "none")
    output_dir: str = _help("Folder for the model, its card, figures, results and checkpoints.", "urfm")
    init_from: str | None = _help("Folder or Hub id of a URFM model to continue from (weights only).")
    per_device_train_batch_size: int = _help("Images a process and a micro-step.", 64)
    gradient_accumulation_steps: int = _help("Micro-steps a step of the optimiser.", 1)
    learning_rate: float | None = _help("Peak learning rate. Default: base_learning_rate x global batch / 256.")
    base_learning_rate: float = _help("Learning rate for 256 images a step (linear scaling rule).", 1.5e-4)
    weight_decay: float = _help("AdamW's, on matrices only: not on biases, norms, tokens, position embeddings.", 0.05)
    adam_beta2: float = _help("AdamW's second beta (0.95 as in MAE).", 0.95)
    max_grad_norm: float = _help("Largest norm of the gradient; larger ones are scaled down. 0: no clipping.", 1.0)
    num_train_epochs: float = _help("Passes over the data.", 300.0)
    max_train_steps: int | None = _help("Steps of the optimiser; overrides num_train_epochs.")
    warmup_ratio: float = _help("Share of the steps in which the learning rate rises linearly.", 0.05)
    min_crop_scale: float = _help("Smallest area of a random crop, of the image's; the largest is 1.", 0.2)
    loss_on_scan_region: bool = _help(
        "Take the loss over patches that show ultrasound only, found from the pixels.", False
    )
    mixed_precision: str | None = _help("'no', 'bf16' or 'fp16'. Default: what `accelerate launch` was told.")
    gradient_checkpointing: bool = _help("Recompute activations in the backward pass: slower, less memory.", False)
    ema_decay: float | None = _help("Decay of an exponential moving average of the weights; it is what is published.")
    seed: int = _help("Seeds weights, order, crops and masks.", 0)
    dataloader_num_workers: int = _help("Processes a rank that read and crop images; 0: the training process.", 2)
    logging_steps: int = _help("Steps between two entries in the log and the trackers.", 10)
    report_to: str = _help("Tracker: 'none', 'tensorboard', 'trackio', 'wandb' or 'all'.", "none")
    eval_steps: int | None = _help("Steps between two kNN evaluations on held-out phantoms; also before and after.")
    checkpointing_steps: int | None = _help("Steps between two checkpoints; one is always written at the end.")
    save_total_limit: int = _help("Checkpoints that are kept.", 2)
    resume_from_checkpoint: str | None = _help("A checkpoint folder, or 'latest' for the newest in output_dir.")

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("No dataset: name a folder, Parquet files or a Hub id with --dataset, or 'demo'.")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_total_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("max_train_steps", "eval_steps", "checkpointing_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or be left out.")
        if self.num_train_epochs <= 0 and self.max_train_steps is None:
            raise ValueError(f"num_train_epochs={self.num_train_epochs} must be above 0.")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio={self.warmup_ratio} is outside [0, 1]. The nearest valid value: "
                             f"{min(max(self.warmup_ratio, 0.0), 1.0)}.")  # fmt: skip
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"min_crop_scale={self.min_crop_scale} is outside (0, 1]. The nearest valid value: "
                             f"{1.0 if self.min_crop_scale > 1 else 0.01}.")  # fmt: skip
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} is outside (0, 1). A usual value: 0.9999.")
        if self.phantom_snr_db is not None and len(self.phantom_snr_db) != 2:
            raise ValueError(f"phantom_snr_db={self.phantom_snr_db}: give the lowest and the highest, e.g. 0 10.")
        if self.phantom_snr_db is not None and self.phantom_snr_db[0] > self.phantom_snr_db[1]:
            raise ValueError(f"phantom_snr_db={self.phantom_snr_db}: the lowest comes first. The nearest valid value: "
                             f"{self.phantom_snr_db[::-1]}.")  # fmt: skip
        _check_choice("mixed_precision", self.mixed_precision, (None, "no", "bf16", "fp16"))
        _check_choice("teacher_normalize", self.teacher_normalize, ("none", "l2", "layer_norm"))
        _check_choice("report_to", self.report_to, ("none", "tensorboard", "trackio", "wandb", "all"))
        if self.report_to not in ("none", "all") and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(
                f"report_to={self.report_to!r} is not installed: pip install {self.report_to}, or --report_to none."
            )


def parse_arguments(
    default_config: str | Path, argv: Sequence[str] | None = None
) -> tuple[PretrainArguments, URFMConfig]:
    """Read `--config FILE.yaml`, then let every flag override it.

    Raises:
        SystemExit: as argparse does, after a message, for a flag or value that does not exist.
        ValueError: a key of the file that does not exist (the nearest is named), or a value that does not fit.
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", default=str(default_config), help="YAML file of `model` and `training` values.")
    known, _ = first.parse_known_args(argv)

    parser = argparse.ArgumentParser(
        parents=[first], allow_abbrev=False, description="Pre-train URFM: predict a frozen teacher's features of masked patches.",
    )  # fmt: skip
    training = _add_group(
        parser, "training", PretrainArguments, {f.name: f.metadata["help"] for f in fields(PretrainArguments)}
    )
    model = _add_group(parser, "model", URFMConfig, _model_help())
    for section, values in _read_sections(known.config).items():
        names = training if section == "training" else model
        for name in values:
            _check_choice(f"{known.config}: {section}: key", name, names)
        parser.set_defaults(**{
            name: _as_type(f"{known.config}: {section}: {name}", value, *names[name])
            for name, value in values.items() if value is not None
        })  # fmt: skip
    given, unknown = parser.parse_known_args(argv)
    for flag in unknown:
        if flag.startswith("--"):
            near = nearest_name(flag.split("=")[0][2:], ["config", *training, *model])
            parser.error(f"{flag.split('=')[0]} does not exist. Did you mean --{near}? --help lists all.")
    if unknown:
        parser.error(f"{' '.join(unknown)}: a value without a flag before it. --help lists the flags.")
    given = vars(given)

    def values(names):
        return {name: given[name] for name in names if name in given}

    return PretrainArguments(**values(training)), URFMConfig(**values(model))


def _read_sections(path: str) -> dict[str, dict]:
    if not Path(path).is_file():
        siblings = sorted(p.name for p in Path(path).parent.glob("*.y*ml")) if Path(path).parent.is_dir() else []
        raise FileNotFoundError(f"--config {path}: no such file. Beside it: {', '.join(siblings) or 'no YAML file'}.")
    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected the sections `model` and `training`.")
    for section, values in content.items():
        _check_choice(f"{path}: section", section, ("model", "training"))
        if not isinstance(values, dict | None):
            raise ValueError(f"{path}: {section}: expected lines of `name: value`, got {values!r}.")
    return {section: values or {} for section, values in content.items()}


def _as_type(where: str, value, kind: type, many: bool):
    """A value of the file as the flag would have given it: "8e-3" is a number, a single data set is a list of one."""
    if many:
        return [_as_type(where, part, kind, False) for part in (value if isinstance(value, list) else [value])]
    if kind is str and not isinstance(value, (list, dict)):
        return str(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float or number == int(number):
                return kind(number)
        except (ValueError, OverflowError):
            pass
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
    raise ValueError(f"{where}: {value!r} is not {wanted}.")


def _check_choice(name: str, value, choices):
    if value not in choices:
        named = [str(choice) for choice in choices if choice is not None]
        near = nearest_name(value, named)
        raise ValueError(f"{name} {value!r} does not exist. Did you mean {near!r}? There are: {', '.join(named)}.")


def _add_group(parser, title: str, cls: type, helps: dict[str, str]) -> dict[str, tuple[type, bool]]:
    """A flag for every field of `cls` in `helps`; without one on the command line or in the file it stays unset.

    Returns the type of every field, and whether it takes several values.
    """
    group, types_of = parser.add_argument_group(title), {}
    for name, text in helps.items():
        kind = cls.__dataclass_fields__[name].type
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        many = get_origin(kind) is list
        kind = get_args(kind)[0] if many else kind
        types_of[name] = (kind, many)
        default = getattr(cls, name, None)
        options = (
            {"action": argparse.BooleanOptionalAction}
            if kind is bool
            else {"type": kind, "nargs": "+" if many else None}
        )
        choices = {"choices": CHOICES[name]} if cls is URFMConfig and name in CHOICES else {}
        shown = "" if default is None else f" [{default}]"
        group.add_argument(
            f"--{name}", default=argparse.SUPPRESS, help=text.replace("%", "%%") + shown, **options, **choices
        )
    return types_of


def _model_help() -> dict[str, str]:
    """The fields of URFMConfig that decide a pre-training, each with a line."""
    return {
        "image_size": "Height and width of the crops, in pixels.",
        "patch_size": "Height and width of a patch, in pixels.",
        "hidden_size": "Width of the encoder.",
        "num_hidden_layers": "Layers of the encoder.",
        "num_attention_heads": "Heads of the encoder.",
        "intermediate_size": "Width inside the encoder's MLPs.",
        "hidden_act": "Activation of the MLPs.",
        "qkv_bias": "Whether queries, keys and values have a bias.",
        "layer_norm_eps": "Epsilon of the norms.",
        "initializer_range": "Standard deviation of the initial weights.",
        "drop_path_rate": "Stochastic depth of the last layer.",
        "pooling": "What pooler_output is.",
        "position_embedding_type": "Fixed or learned position embedding.",
        "mask_ratio": "Share of the patches that is hidden.",
        "mask_strategy": "Hidden one by one or in rectangles.",
        "decoder_type": "MAE's decoder over all tokens, or mask queries over the visible ones.",
        "decoder_hidden_size": "Width of the decoder.",
        "decoder_num_hidden_layers": "Layers of the decoder.",
        "decoder_num_attention_heads": "Heads of the decoder.",
        "decoder_intermediate_size": "Width inside the decoder's MLPs.",
        "decoder_mask_fraction": "Share of the hidden patches that the cross-attention decoder predicts.",
        "target": "The teacher's features, or normalised pixels (MAE's baseline; needs no teacher).",
        "target_hidden_size": "Width of the teacher's features; found from the teacher when left out.",
        "loss_type": "Loss against the features.",
    }  # fmt: skip
