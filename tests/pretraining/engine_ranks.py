# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What each rank of test_engine.py does under `accelerate launch`: a few steps on one global batch, one with NaN.

    accelerate launch --config_file FILE tests/pretraining/engine_ranks.py OUTPUT [--accumulation N] [--mixed_precision P]

Rank 0 writes OUTPUT.json (losses, what became of the step with NaN) and OUTPUT.safetensors (the whole weights).
"""

import argparse
import json
import os
from types import SimpleNamespace

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from modeling_urfm import URFMConfig, URFMForPreTraining
from modeling_urfm.pretraining import engine
from modeling_urfm.pretraining.engine import check_wrapped, end_run, make_accelerator, whole_state_dict
from modeling_urfm.pretraining.guard import StepGuard
from modeling_urfm.pretraining.meters import Clock, Window
from modeling_urfm.pretraining.schedules import parameter_groups


CONFIG = URFMConfig(
    image_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=64,
    target_hidden_size=16,
)  # fmt: skip
BATCH, STEPS, BROKEN = 8, 6, 3  # images a step over all ranks; steps; the step in which one rank's loss is NaN


def batches():
    """Every step's global batch: pixels (8, 3, 64, 64), targets (8, 16, 16), mask (8, 16)."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(16).expand(BATCH, 16) % 4 != 0
    for _ in range(STEPS):
        yield torch.rand(BATCH, 3, 64, 64, generator=generator), torch.rand(BATCH, 16, 16, generator=generator), mask


def forced_fsdp2(args):
    """Accelerate's own FSDP2 on processors, where it leaves it out: its code and the file's options, without a GPU."""
    os.environ.pop("ACCELERATE_USE_FSDP")
    engine.parent_command = lambda: []
    accelerator = make_accelerator(args)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # from the environment that the launcher has set
    type(accelerator.state)._shared_state["distributed_type"] = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if accelerator.mixed_precision != "no":
        accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
    engine._prepare_fsdp(accelerator)
    return accelerator


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--mixed_precision")
    parser.add_argument("--force_fsdp2", action="store_true")
    options = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    args = SimpleNamespace(
        gradient_accumulation_steps=options.accumulation, max_grad_norm=0.5, report_to="none", output_dir=".",
        mixed_precision=options.mixed_precision, per_device_train_batch_size=BATCH // ranks // options.accumulation,
    )  # fmt: skip
    accelerator = forced_fsdp2(args) if options.force_fsdp2 else make_accelerator(args)
    assert not is_deepspeed_zero3_enabled()  # or transformers would shard the teacher as it is loaded
    torch.manual_seed(0)
    model = URFMForPreTraining(CONFIG)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-2, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, schedule)
    check_wrapped(accelerator, model)
    guard = StepGuard(accelerator, optimizer, output_dir=f"{options.output}-guard")
    window = Window(accelerator, Clock(), flops_per_image=1.0, peak_flops=None)
    losses, skipped, norms = [], [], []
    for step, batch in enumerate(batches()):
        mine = [part.chunk(ranks)[accelerator.process_index].chunk(options.accumulation) for part in batch]
        total = torch.zeros(())
        for pixels, targets, mask in zip(*mine):
            with accelerator.accumulate(model), accelerator.autocast():
                loss = model(
                    pixels, target_features=targets, bool_masked_pos=mask, num_items_in_batch=BATCH * 12
                ).loss  # fmt: skip
                total += loss.detach()
                if step == BROKEN and accelerator.process_index == ranks - 1:
                    loss = loss * float("nan")
                accelerator.backward(loss * options.accumulation * ranks)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    norm = guard.judge(step, total, norm, [f"image of step {step}"])
                optimizer.step()
                if accelerator.sync_gradients:
                    scheduler.step()
                optimizer.zero_grad()
        window.add(total, norm, guard.found_inf, BATCH)
        losses.append(accelerator.reduce(total, "sum").item())
        skipped.append(bool(optimizer.step_was_skipped))
        norms.append(norm.item())
    assert guard.skipped == 1 and guard.stop_asked() is None
    taken = [loss for step, loss in enumerate(losses) if step != BROKEN]
    assert abs(window.entry(0.0)["loss"] - sum(taken) / len(taken)) < 1e-5
    state = whole_state_dict(accelerator, model)
    assert (state is None) == (not accelerator.is_main_process)
    facts = {"losses": losses, "skipped": skipped, "norms": norms, "ranks": accelerator.num_processes,
             "engine": str(accelerator.distributed_type.value), "threads": torch.get_num_threads()}  # fmt: skip
    every = [None] * ranks
    if ranks > 1:
        torch.distributed.all_gather_object(every, skipped)
        assert all(one == skipped for one in every)
    if accelerator.is_main_process:
        save_file(state, f"{options.output}.safetensors")
        with open(f"{options.output}.json", "w") as file:
            json.dump(facts, file)
    end_run(accelerator)


if __name__ == "__main__":
    main()
