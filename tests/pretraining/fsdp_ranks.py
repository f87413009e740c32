# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What each of two gloo ranks does in test_engine.py: torch's own `fully_shard` around URFM on a CPU mesh.

    torchrun --standalone --nproc_per_node 2 tests/pretraining/fsdp_ranks.py FOLDER

Rank 0 trains the same model unsharded beside it and writes FOLDER/facts.json and the weights FOLDER/{sharded,averaged}.safetensors.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from engine_ranks import BATCH, CONFIG, batches
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from modeling_urfm import URFMForPreTraining
from modeling_urfm.pretraining.ema import ShardedEMA
from modeling_urfm.pretraining.engine import whole_state_dict
from modeling_urfm.pretraining.schedules import make_optimizer


def fresh():
    torch.manual_seed(0)
    return URFMForPreTraining(CONFIG)


def shard(model, mesh):
    """As recipes/accelerate/fsdp2.yaml has it: the patch embedding, each layer, the decoder, then the rest."""
    parts = [model.urfm.embeddings.patch_embeddings, *model.urfm.layers, *model.decoder.layers, model.decoder, model]
    for part in parts:
        fully_shard(part, mesh=mesh)
    return model


def step(model, optimizer, batch, scale=1):
    pixels, targets, mask = batch
    loss = model(pixels, target_features=targets, bool_masked_pos=mask, num_items_in_batch=BATCH * 12).loss
    (loss * scale).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach(), float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def main():
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))
    facts = {}

    model, plain = shard(fresh(), mesh), fresh()
    optimizer, plain_optimizer = (make_optimizer(m, 1e-2, 0.05, 0.95) for m in (model, plain))
    trained = [p for p in model.parameters() if p.requires_grad]
    facts["sharded"] = all(isinstance(p, DTensor) for p in trained)
    facts["share"] = sum(p.to_local().numel() for p in model.parameters()) / sum(p.numel() for p in plain.parameters())

    def train(model, optimizer, start, stop):
        losses = []
        for batch in list(batches())[start:stop]:
            loss, norm = step(model, optimizer, [part.chunk(ranks)[rank] for part in batch], scale=ranks)
            dist.all_reduce(loss)
            losses.append((loss.item(), norm))
        return losses

    facts["losses"] = train(model, optimizer, 0, 4)
    facts["plain_losses"] = [(a.item(), b) for a, b in (step(plain, plain_optimizer, x) for x in list(batches())[:4])]

    # ---- fused AdamW's own way to leave out a step, which `guard.StepGuard` uses, on sharded parameters
    for found in (1.0, 0.0):
        before = [p.to_local().clone() for p in trained]
        count = float(optimizer.state[trained[0]]["step"])
        optimizer.found_inf = torch.tensor(found)
        train(model, optimizer, 0, 1)
        moved = not all(torch.equal(a, p.to_local()) for a, p in zip(before, trained))
        facts[f"found_inf={found:.0f}"] = {
            "moved": moved,
            "counted": float(optimizer.state[trained[0]]["step"]) - count,
        }
    del optimizer.found_inf

    # ---- the weights, whole and plainly named, and their moving average
    accelerator = SimpleNamespace(
        unwrap_model=lambda model, **_: model, is_main_process=rank == 0, device=torch.device("cpu")
    )
    ema = ShardedEMA(model, 0.9)
    ema.update(model)
    train(model, optimizer, 1, 2)
    ema.update(model)
    weights = whole_state_dict(accelerator, model)
    torchs = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with ema.swapped(model):
        averaged = whole_state_dict(accelerator, model)
    if rank == 0:
        facts["as_torch"] = weights.keys() == torchs.keys() and all(torch.equal(weights[n], torchs[n]) for n in torchs)
        save_file(weights, folder / "sharded.safetensors")
        save_file(averaged, folder / "averaged.safetensors")

    # ---- saved in parts, read into a new model, and trained on: as if nothing had happened
    states = get_state_dict(model, optimizer)
    dcp.save({"model": states[0], "optimizer": states[1]}, checkpoint_id=folder / "parts")
    again = shard(fresh(), mesh)
    optimizer_again = make_optimizer(again, 1e-2, 0.05, 0.95)
    states = dict(zip(("model", "optimizer"), get_state_dict(again, optimizer_again)))
    dcp.load(states, checkpoint_id=folder / "parts")
    set_state_dict(again, optimizer_again, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
    facts["resumed_losses"] = [train(*pair, 4, 6) for pair in ((model, optimizer), (again, optimizer_again))]
    facts["resumed_equal"] = all(
        torch.equal(a.to_local(), b.to_local()) for a, b in zip(model.parameters(), again.parameters())
    )
    if rank == 0:
        (folder / "facts.json").write_text(json.dumps(facts))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
