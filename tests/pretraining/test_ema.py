# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The moving average: what it is, and that it is the same whatever part of the weights a rank holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from modeling_urfm.pretraining.ema import ShardedEMA, trained_parameters

from .ema_ranks import DECAY, model_and_optimizer, train


HERE = Path(__file__).resolve().parent
ENGINES = HERE.parents[1] / "recipes" / "accelerate"


def test_the_moving_average_is_one():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema, expected = ShardedEMA(model, 0.9), 0.0
    for step in range(30):
        torch.nn.init.constant_(model.weight, step)
        ema.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = step if step == 0 else decay * expected + (1 - decay) * step
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-4)


def test_it_is_put_in_and_taken_out_bit_for_bit():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    model[1].bias.requires_grad_(False)
    ema = ShardedEMA(model, 0.5)
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.add_(torch.rand(3, 3))
        ema.update(model)
    own = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the midst"), ema.swapped(model) as inside:
        assert inside is model and torch.equal(model[0].weight, ema.average["0.weight"])
        assert not torch.equal(model[0].weight, own["0.weight"]) and torch.equal(model[1].bias, own["1.bias"])
        raise RuntimeError("in the midst")
    assert all(torch.equal(own[name], p) for name, p in model.state_dict().items())
    assert "1.bias" not in ema.average


def test_wrappers_do_not_show_in_names():
    class Wrapper(torch.nn.Module):  # as DistributedDataParallel
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = torch.nn.Linear(2, 2)
    plain, wrapped = ShardedEMA(model, 0.9), ShardedEMA(Wrapper(torch.compile(model)), 0.9)
    assert list(trained_parameters(Wrapper(model))) == ["weight", "bias"] == list(wrapped.average)
    checkpointed = Wrapper(torch.nn.Sequential(checkpoint_wrapper(torch.nn.Linear(2, 2))))
    assert list(trained_parameters(checkpointed)) == ["0.weight", "0.bias"]
    plain.update(Wrapper(model))
    wrapped.load_state_dict(plain.state_dict())
    assert wrapped.updates == 1
    with pytest.raises(ValueError, match="of another model: bias is in one only"):
        ShardedEMA(torch.nn.Linear(2, 2, bias=False), 0.9).load_state_dict(plain.state_dict())


def test_weights_in_bf16_are_averaged_in_fp32():
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    ema = ShardedEMA(model, 0.999)
    for step in range(200):
        torch.nn.init.constant_(model.weight, 1 + step % 2)
        ema.update(model)
    assert ema.average["weight"].dtype == torch.float32 and ema.average["weight"].item() == pytest.approx(1.5, abs=0.03)
    with ema.swapped(model):
        assert model.weight.dtype == torch.bfloat16


def reference(folder):
    """The averages of one plain process."""
    model, optimizer = model_and_optimizer()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    ema = ShardedEMA(model, DECAY)
    train(accelerator, model, optimizer, ema, folder)
    return ema.state_dict()["average"]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["fully_shard", "cpu_2proc", "deepspeed_zero2_cpu", "deepspeed_zero3_cpu"])
def test_two_ranks_average_as_one_process_and_skip_together(tmp_path, engine):
    """Also: a loss that is not finite on one rank alone is skipped by both, and never reaches the weights."""
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    output = tmp_path / "run"
    program = TORCHRUN if engine == "fully_shard" else [*LAUNCH, str(ENGINES / f"{engine}.yaml")]
    options = ["--fully_shard"] if engine == "fully_shard" else []
    done = subprocess.run(
        [*program, str(HERE / "ema_ranks.py"), str(output), *options], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": str(not engine.startswith("deepspeed")).lower(),
                          "PYTHONPATH": str(HERE.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    expected, got = reference(tmp_path / "one"), load_file(f"{output}.safetensors")
    assert expected.keys() == got.keys()
    for name in expected:
        assert torch.allclose(expected[name], got[name], atol=1e-5), name
    for rank, name in enumerate(("nonfinite.json", "nonfinite-rank1.json")):
        written = json.loads((output / name).read_text())["steps"]
        assert [(s["rank"], s["ids"]) for s in written] == [(rank, [f"3-{rank}"])]
