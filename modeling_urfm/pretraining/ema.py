# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Exponential moving average of the weights, of that part of them which a rank holds: no engine makes it whole."""

import contextlib
from collections.abc import Iterator

import torch

from .parts import held_part, part_of, plain_name, whole_of


class ShardedEMA:
    """An average in fp32 of every parameter that is trained, with a rising decay at the start.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that short runs aren't dominated by the random start; the
    first step copies. Held are: the whole of a plain parameter (one process, DDP, ZeRO-1 and 2), this rank's part under
    ZeRO-3 (`ds_tensor`) and FSDP2 (`DTensor`). `state_dict` is whole and plainly named whatever the engine.

    Args:
        model: the model after `accelerator.prepare`, wrapped or not.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self._parameters = trained_parameters(model)
        self.average = {name: held_part(p).detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module):
        """Move towards `model`'s weights by one step."""
        step, self.updates = self.updates, self.updates + 1
        decay = min(self.decay, (1 + step) / (10 + step)) if step else 0.0
        averages, now = [], []
        for name, parameter in trained_parameters(model).items():
            part, average = held_part(parameter), self.average[name]
            if part.dtype == average.dtype and part.device == average.device:
                averages.append(average)
                now.append(part)
            else:  # bf16 weights, or weights that are kept in the host's memory
                average.lerp_(part.to(average), 1 - decay)
        if averages:
            torch._foreach_lerp_(averages, now, 1 - decay)

    @contextlib.contextmanager
    def swapped(self, model: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """Inside, `model` has the averaged weights (rounded to its own type); after it, its own, bit for bit.

        Every rank enters it.
        """
        parameters = trained_parameters(model)
        own = {name: held_part(p).detach().clone() for name, p in parameters.items()}
        try:
            _put(parameters, self.average)
            yield model
        finally:
            _put(parameters, own)

    def state_dict(self) -> dict:
        """`updates`, and `average`: name -> the whole average, on the CPU of rank 0, which writes checkpoints; empty on
        the others, which lend their parts. Every rank calls it.
        """
        average = {}
        for name, part in self.average.items():  # one at a time: no device need hold them all
            whole = whole_of(part, self._parameters[name])
            if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
                average[name] = whole.to("cpu", copy=True)
        return {"updates": self.updates, "average": average}

    @torch.no_grad()
    def load_state_dict(self, state: dict):
        """Take this rank's part of whole averages, whatever number of ranks wrote them.

        Raises:
            ValueError: averages of another model, or written by an earlier version.
        """
        if "average" not in state:
            raise ValueError("The moving average in this checkpoint was written by an earlier version.")
        if differing := sorted(state["average"].keys() ^ self.average.keys()):
            raise ValueError(
                f"The moving average in this checkpoint is of another model: {differing[0]} is in one only."
            )
        for name, whole in state["average"].items():
            part = self.average[name]
            part.copy_(part_of(whole, part, self._parameters[name]))
        self.updates = state["updates"]


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter, without what wrappers add to the names; what is not trained stays what it is."""
    return {plain_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _put(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]):
    gathered = [p for p in parameters.values() if getattr(p, "ds_status", None) is not None and _is_gathered(p)]
    if gathered:
        # ZeRO-3 keeps small parameters gathered; they would go on showing what their parts were.
        gathered[0].partition(param_list=gathered, has_been_updated=False)
    for name, parameter in parameters.items():
        held_part(parameter).copy_(values[name])
    if gathered:
        gathered[0].all_gather(param_list=gathered)


def _is_gathered(parameter) -> bool:
    return parameter.ds_status.name == "AVAILABLE"
