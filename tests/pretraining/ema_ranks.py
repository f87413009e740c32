# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What each rank of test_ema.py does: steps with a moving average, one of them not finite on one rank alone.

    python -m torch.distributed.run --nproc_per_node 2 tests/pretraining/ema_ranks.py OUTPUT [--fully_shard]
    accelerate launch --config_file FILE tests/pretraining/ema_ranks.py OUTPUT

Rank 0 writes OUTPUT.safetensors: the averages, whole.
"""

import argparse
import copy
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from safetensors.torch import save_file

from modeling_urfm.pretraining.ema import ShardedEMA, held_part, trained_parameters
from modeling_urfm.pretraining.engine import end_run, make_accelerator, whole_state_dict
from modeling_urfm.pretraining.guard import StepGuard
from modeling_urfm.pretraining.schedules import parameter_groups


STEPS, BROKEN, DECAY = 6, 3, 0.6


def model_and_optimizer():
    torch.manual_seed(0)
    # 5 outputs are no multiple of two ranks: parts are padded.
    model = torch.nn.Sequential(torch.nn.Linear(7, 9), torch.nn.GELU(), torch.nn.Linear(9, 5))
    model[2].bias.requires_grad_(False)
    return model, torch.optim.AdamW(parameter_groups(model, 0.05), lr=0.05, fused=True)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.rand(8, 7, generator=generator), torch.rand(8, 5, generator=generator)


def train(accelerator, model, optimizer, ema, folder=".", clip=None):
    """The steps, whatever the engine. Returns the guard."""
    guard = StepGuard(accelerator, optimizer, output_dir=folder)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    for step in range(STEPS):
        x, y = (part.chunk(ranks)[rank] for part in send_to_device(batch(step), accelerator.device))
        loss = (model(x) - y).square().mean()
        if step == BROKEN and rank == ranks - 1:
            loss = loss * float("inf")
        before = [held_part(p).clone() for p in model.parameters()]
        accelerator.backward(guard.marked(loss))
        norm = (clip or accelerator.clip_grad_norm_)(model.parameters(), 1.0)
        guard.judge(step, loss, norm, [f"{step}-{rank}"])
        optimizer.step()
        optimizer.zero_grad()
        assert guard.stop_asked() is None
        same = all(torch.equal(a, held_part(p)) for a, p in zip(before, model.parameters()))
        assert same == (step == BROKEN), (step, same)
        if step != BROKEN:
            ema.update(model)
    assert guard.skipped == 1 and all(torch.isfinite(held_part(p)).all() for p in model.parameters())
    return guard


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--fully_shard", action="store_true")
    args = parser.parse_args()
    model, optimizer = model_and_optimizer()
    clip = None
    if args.fully_shard:  # torch's own: Accelerate leaves it out on processors
        from torch.distributed.fsdp import fully_shard

        accelerator = Accelerator(cpu=True)
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh)
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=0.05, fused=True)
        clip = torch.nn.utils.clip_grad_norm_
    else:
        accelerator = make_accelerator(SimpleNamespace(
            gradient_accumulation_steps=1, per_device_train_batch_size=4, max_grad_norm=1.0, mixed_precision="no",
            report_to="none", output_dir=args.output,
        ))  # fmt: skip
        model, optimizer = accelerator.prepare(model, optimizer)
    ema = ShardedEMA(model, DECAY)
    train(accelerator, model, optimizer, ema, folder=args.output, clip=clip)

    own = whole_state_dict(accelerator, model)
    parts = {name: held_part(p).clone() for name, p in trained_parameters(model).items()}
    with ema.swapped(model):
        published = whole_state_dict(accelerator, model)
    after = whole_state_dict(accelerator, model)
    state = broadcast_object_list([ema.state_dict()])[0]  # as all ranks read the same file
    again = ShardedEMA(model, DECAY)
    again.load_state_dict(copy.deepcopy(state))
    for name, part in parts.items():
        assert torch.equal(part, held_part(trained_parameters(model)[name])), name
        # what pads the last part is nobody's
        rank_has = part.numel()
        parameter = trained_parameters(model)[name]
        if hasattr(parameter, "ds_numel"):
            rank_has = max(0, min(rank_has, parameter.ds_numel - accelerator.process_index * part.numel()))
        assert torch.equal(again.average[name].flatten()[:rank_has], ema.average[name].flatten()[:rank_has]), name
    assert again.updates == ema.updates == STEPS - 1
    # it trains on, with its own weights
    x, _ = send_to_device(batch(0), accelerator.device)
    outputs = model(x)
    if accelerator.is_main_process:
        assert all(torch.equal(own[name], after[name]) for name in own)
        for name, average in state["average"].items():
            assert torch.equal(published[name], average), name
        assert torch.equal(published["2.bias"], own["2.bias"]) and "2.bias" not in state["average"]
        plain, _ = model_and_optimizer()
        plain.load_state_dict(own)
        assert torch.allclose(plain(x), outputs, atol=1e-6)
        save_file(state["average"], f"{args.output}.safetensors")
    end_run(accelerator)


if __name__ == "__main__":
    main()
