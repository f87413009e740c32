# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The model that a method trains: loaded, given a head for the labels, and frozen or adapted as the method says."""

import logging
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..configuration_urfm import URFMConfig, nearest_multiple
from ..image_processing_urfm import URFMImageProcessor
from ..modeling_urfm import URFMForImageClassification, URFMForSemanticSegmentation
from ..pretraining.schedules import NO_DECAY
from .adapters import ADAPTER_CONFIG, TARGET_MODULES
from .arguments import ADAPTERS, FROZEN, FinetuneArguments
from .heads import URFMAttentiveForImageClassification


logger = logging.getLogger(__name__)
PROBLEM_TYPES = {
    "classification": "single_label_classification", "multilabel": "multi_label_classification", "regression": "regression",
}  # fmt: skip
# Beside an adapter on random weights, these: `recipes/finetune.py --random_init` leaves them in this folder of its output.
CONTROL_BASE = "random_base"
# Width of the decode head: with adapters of rank 8 it keeps a ViT-B/16 under 2 % of trained parameters.
DECODE_HEAD_WIDTH = 96


def load_config(name: str) -> URFMConfig:
    """The config of a pre-trained URFM model.

    Raises:
        ValueError: another kind of model, or an adapter. FileNotFoundError: no such folder.
    """
    if (Path(name) / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{name} holds an adapter: fine-tune its base model, or merge it first "
            "(PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...))."
        )
    if not Path(name).is_dir() and ("/" not in name or name.startswith((".", "/"))):
        raise FileNotFoundError(
            f"--model_name_or_path {name}: no such folder. Pre-train one (accelerate launch recipes/pretrain.py writes urfm/), "
            "or give a folder or a Hub id."
        )
    values, _ = PreTrainedConfig.get_config_dict(name)
    if values.get("model_type") != "urfm":
        raise ValueError(
            f"{name} is a model of type {values.get('model_type')!r}; this recipe fine-tunes 'urfm'. recipes/evaluate.py "
            "compares encoders of any type."
        )
    return URFMConfig.from_pretrained(name)


def load_processor(args: FinetuneArguments, config: URFMConfig) -> URFMImageProcessor:
    """The processor beside the model, changed by `image_size`, `crop_scan_region` and `pad_square`.

    Raises:
        ValueError: there is none, or a size that is no multiple of the patch.
    """
    try:
        processor = URFMImageProcessor.from_pretrained(args.model_name_or_path)
    except OSError as error:
        raise ValueError(
            f"{args.model_name_or_path} has no preprocessor_config.json, so that nobody knows how its images were prepared. "
            "Write one beside the weights: URFMImageProcessor(size={'height': "
            f"{config.image_size}, 'width': {config.image_size}}}).save_pretrained({args.model_name_or_path!r})."
        ) from error
    if args.image_size is not None:
        if args.image_size % config.patch_size:
            near = nearest_multiple(args.image_size, config.patch_size)
            raise ValueError(
                f"image_size={args.image_size} is no multiple of the patch, {config.patch_size}. The nearest: {near}."
            )
        processor.size = {"height": args.image_size, "width": args.image_size}
    processor.do_crop_scan_region = args.crop_scan_region or processor.do_crop_scan_region
    processor.do_pad_square = args.pad_square or processor.do_pad_square
    return processor


def build_model(args: FinetuneArguments, label_names: tuple[str, ...]) -> PreTrainedModel:
    """The encoder with a new head for `label_names`, on the CPU, or in 4 bits on the GPU; torch's seed decides the head.

    Raises:
        ValueError: weights that do not fill the encoder.
    """
    config = load_config(args.model_name_or_path)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: index for index, name in config.id2label.items()}
    config.problem_type = PROBLEM_TYPES.get(args.task)
    if args.task == "segmentation":
        config.decode_head_hidden_size = min(config.decode_head_hidden_size, DECODE_HEAD_WIDTH)
    if args.method == "full":
        config.drop_path_rate = args.drop_path_rate
    cls = model_class(args)
    if args.random_init:
        model = cls(config)
    else:
        options = {"quantization_config": four_bits()} if args.load_in_4bit else {"dtype": torch.float32}
        with _quiet():
            model, found = cls.from_pretrained(
                args.model_name_or_path,
                config=config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        lacking = sorted(key for key in found["missing_keys"] if key.startswith("urfm."))
        if lacking:
            raise ValueError(f"{args.model_name_or_path} lacks weights of the encoder: {', '.join(lacking[:5])} ...")
    model.config.architectures = [cls.__name__]
    if args.method in FROZEN:
        model.urfm.requires_grad_(False)
    if args.method in ADAPTERS:
        return with_adapter(args, model)
    return model


def model_class(args: FinetuneArguments) -> type[PreTrainedModel]:
    if args.task == "segmentation":
        return URFMForSemanticSegmentation
    return URFMAttentiveForImageClassification if args.method == "attentive" else URFMForImageClassification


def head_name(task: str) -> str:
    """The module of the model that is new."""
    return "decode_head" if task == "segmentation" else "classifier"


def four_bits():
    """NF4 with double quantisation (QLoRA; Dettmers et al., 2023), the head left out."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["classifier", "decode_head"],
    )  # fmt: skip


def with_adapter(args: FinetuneArguments, model: PreTrainedModel):
    """`model` under a LoRA or DoRA adapter that takes the head along."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from peft.tuners.lora import LoraLayer

    if args.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    settings = LoraConfig(
        r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, use_dora=args.method == "dora",
        target_modules=list(TARGET_MODULES), modules_to_save=[head_name(args.task)],
    )  # fmt: skip
    adapted = get_peft_model(model, settings)
    base = Path(args.output_dir, CONTROL_BASE) if args.random_init else Path(args.model_name_or_path)
    # A folder by its whole path, so that the adapter finds it from wherever it is loaded; a Hub id as it is.
    name = os.path.abspath(base) if args.random_init or base.is_dir() else args.model_name_or_path
    adapted.peft_config["default"].base_model_name_or_path = name
    if args.bf16:
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False  # autocast casts; peft's cast to fp32 would be kept beside it
    return adapted


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model under an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trained_head(model: nn.Module, task: str) -> nn.Module:
    """The head that is trained: under an adapter, its copy."""
    head = getattr(unwrapped(model), head_name(task))
    return head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head


def count_parameters(model: nn.Module, task: str) -> dict[str, int | float]:
    """Parameters of the model, those that are trained, of these the head's, and the trained share."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = sum(p.numel() for p in trained_head(model, task).parameters())
    # An adapter keeps the untrained head beside the trained one; and 4 bits are packed, two weights in one.
    whole = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in model.parameters())
    whole -= head if hasattr(model, "get_base_model") else 0
    return {
        "parameters": whole, "trainable_parameters": trained, "head_parameters": head,
        "trainable_share": round(trained / whole, 6),
    }  # fmt: skip


def parameter_groups(model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float) -> list[dict]:
    """Trained parameters by learning rate and weight decay.

    With L layers, the head and the last norm learn at `learning_rate`, layer i at `layer_decay` ** (L - i) of it, the
    embeddings at `layer_decay` ** (L + 1) (ELECTRA, Clark et al., 2020; BEiT). Biases, norms, tokens, position embeddings
    and magnitudes have no weight decay.
    """
    base = unwrapped(model)
    layers = base.config.num_hidden_layers if hasattr(base, "config") else 0
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        below = layers + 1 if ".embeddings." in name else 0
        if ".layers." in name:
            below = layers - int(name.split(".layers.")[1].split(".")[0])
        decays = parameter.ndim > 1 and name.split(".")[-1] not in (*NO_DECAY, "query")
        rate = learning_rate * layer_decay**below
        group = {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((below, decays), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


@contextmanager
def _quiet():
    """transformers' table of new weights says nothing here: the head is meant to be new, all else is checked."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
