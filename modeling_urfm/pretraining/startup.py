# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What is settled before a run reads any data: a place for its result, and the weights that it starts from."""

import logging
import os
from pathlib import Path

from ..configuration_urfm import URFMConfig
from ..modeling_urfm import URFMForPreTraining
from .target_cache import TargetCache, cache_key
from .teacher import TeacherError, load_teacher


logger = logging.getLogger(__name__)

# What an encoder and a decoder compute by: with other values their weights would not load, or compute something else.
ENCODER = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads",
           "intermediate_size", "hidden_act", "qkv_bias", "layer_norm_eps", "position_embedding_type")  # fmt: skip
DECODER = ("decoder_type", "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads",
           "decoder_intermediate_size", "target", "target_hidden_size")  # fmt: skip


def check_writable(output_dir: Path):
    """Known before anything is done: the result has a place. Nothing is created yet."""
    place = next(p for p in (output_dir, *output_dir.resolve().parents) if p.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"--output_dir {output_dir}: {place} is a file.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"--output_dir {output_dir}: {place} is not writable.")


def initial_model(config: URFMConfig, init_from: str | None) -> URFMForPreTraining:
    """Random weights, or those of `--init_from`, which must be of the config's kind.

    An encoder alone (converted, or published without its decoder) gets a decoder of random weights.
    """
    if init_from is None:
        return URFMForPreTraining(config)
    if Path(init_from).is_dir() and not (Path(init_from) / "config.json").is_file():
        raise FileNotFoundError(f"--init_from {init_from}: the folder holds no config.json.")
    was = type(config).from_pretrained(init_from)
    has_decoder = (was.architectures or [URFMForPreTraining.__name__])[0] == URFMForPreTraining.__name__
    for name in ENCODER + (DECODER if has_decoder else ()):
        value = getattr(was, name)
        if value != getattr(config, name):
            flag = f"--{name} {value}" if not isinstance(value, bool) else f"--{name}" if value else f"--no-{name}"
            raise ValueError(f"--init_from {init_from} has {name}={value}, this run has {name}={getattr(config, name)}: "
                             f"give {flag}.")  # fmt: skip
    if not has_decoder:
        logger.warning("--init_from %s is an encoder alone: the decoder starts from random weights", init_from)
    return URFMForPreTraining.from_pretrained(init_from, config=config)


def open_target_cache(args, config: URFMConfig, corpus) -> TargetCache:
    """The cache of `--target_cache`, if it is of this corpus and teacher.

    The teacher is loaded to compare its weights, and let go. Where it can't be had, its name has to do.

    Raises:
        TargetCacheError: a stale, foreign or unfinished cache; the differing field is named.
    """
    if config.target == "pixel":
        raise ValueError("--target_cache holds a teacher's features; with --target pixel there is no teacher.")
    teacher = None
    try:
        teacher = load_teacher(args.teacher, layer=args.teacher_layer)
    except TeacherError as error:
        reason = str(error).splitlines()[0]
        logger.warning("the target cache's teacher is compared by its name alone: %s", reason)
    key = cache_key(corpus, args.teacher, args.teacher_layer, teacher)
    side = config.image_size // config.patch_size
    return TargetCache.open(args.target_cache, key, (side, side), args.teacher_normalize)


def run_fingerprint(args, config: URFMConfig, **known) -> dict:
    """What must be the same for a run to be resumed exactly; `checkpoints.ELASTIC` names what may differ on request.

    Args:
        known: what the flags alone don't tell, such as `corpus` (its fingerprint) or `num_processes`.
    """
    given = (
        "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "base_learning_rate",
        "warmup_ratio", "weight_decay", "adam_beta2", "max_grad_norm", "ema_decay", "teacher", "teacher_layer",
        "teacher_normalize", "min_crop_scale", "balance_by", "balance_temperature", "max_images_per_source", "augment",
        "augment_probability", "augment_student_only", "loss_on_scan_region",
    )  # fmt: skip
    return {**{name: getattr(args, name) for name in given}, "model": config.to_diff_dict(), **known}
