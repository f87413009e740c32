# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Adapters become part of the weights: what exports, conversions and frozen encoders work on is a plain model."""

from torch import nn


def merge_adapters(model: nn.Module) -> None:
    """Add the weights of peft's adapters to those of the layers that they change, in place, and take them out.

    A model that `from_pretrained` made of an adapter is no `PeftModel`, which alone has `merge_and_unload`. A model without
    adapters stays as it is, and peft is not needed.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(path, module.get_base_layer())
        elif isinstance(module, AuxiliaryTrainingWrapper):  # a head that was trained with the adapter
            model.set_submodule(path, module.modules_to_save[module.active_adapters[0]])
