# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The parts of a weight that ranks hold, and their putting together, whatever the engine: ZeRO-3 and FSDP2 take it apart."""

import torch


def plain_name(name: str) -> str:
    """A parameter's name without what DDP, torch.compile and activation checkpointing have put into it."""
    for wrapper in ("_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def held_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this rank holds, sharing its memory."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.data
    if hasattr(parameter, "to_local"):
        return parameter.detach().to_local()
    return parameter.data


def whole_of(part: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """All ranks' parts put together in `parameter`'s shape; the part itself where it is whole. Every rank calls it."""
    if hasattr(parameter, "ds_tensor"):  # DeepSpeed's own gathering goes through bf16 under autocast; this one doesn't
        group = parameter.ds_process_group
        ranks = torch.distributed.get_world_size(group)
        if torch.distributed.get_backend(group) == "nccl":  # it can't send what is kept in the host's memory
            part = part.to("cuda")
        parts = [torch.empty_like(part) for _ in range(ranks)]
        torch.distributed.all_gather(parts, part.contiguous(), group=group)
        return torch.cat([p.flatten() for p in parts])[: parameter.ds_numel].view(parameter.ds_shape)
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            part,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        ).full_tensor()
    return part


def part_of(whole: torch.Tensor, part: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """This rank's part of a whole value, shaped as `part`."""
    if hasattr(parameter, "ds_tensor"):
        rank, flat = torch.distributed.get_rank(parameter.ds_process_group), whole.flatten()
        here = flat[rank * part.numel() : (rank + 1) * part.numel()]
        return torch.nn.functional.pad(here, (0, part.numel() - here.numel())).view_as(part)  # the last part is padded
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        # Every rank has read the same file, so nothing need be sent.
        return distribute_tensor(
            whole.to(part.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        ).to_local()
    return whole
