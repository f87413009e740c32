# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How fast this is, beside what one could use instead.

    python recipes/bench.py pretrain           # steps of pre-training: URFM's ways, ViTMAE, SimMIM; minutes on two cores
    python recipes/bench.py pretrain --quick   # does it run? tiny models, seconds
    python recipes/bench.py embed              # features of a folder, beside transformers' own pipeline (bench_embed.py)
    python recipes/bench.py finetune           # what each way to fine-tune costs and gives (bench_finetune.py)
    python recipes/bench.py export             # exported encoders beside PyTorch, on a processor (bench_export.py)
    python recipes/bench.py cost               # hours of a pre-training on GPUs, by counting, nothing is run (bench_cost.py)

`pretrain` times whole steps (forward, backward, clipping, fused AdamW, gradients set to None) of ViT-B/16 at 224 px under bf16
autocast, at one batch size, in one process and in turns, so that what else the machine does slows all rows alike.
Ratios are of times within one round. Weights, pixels and the teacher are random: they make no difference to the speed. It writes
`results.json` and `table.md` into `--output_dir`.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining
from transformers.utils import logging as transformers_logging

from modeling_urfm import URFMConfig, URFMForPreTraining
from modeling_urfm.data.memory import keep_freed_memory
from modeling_urfm.data.phantoms import usable_cores
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.pretraining.flops import (
    count_flops,
    matmul_rate,
    model_flop_utilisation,
    step_flops,
    synchronize,
    vit_forward_flops,
)
from modeling_urfm.pretraining.schedules import make_optimizer
from modeling_urfm.pretraining.target_codec import TargetCodec
from modeling_urfm.pretraining.teacher import untrained_teacher


sys.path.append(str(Path(__file__).resolve().parent))  # the parts beside this file, however it was started
import bench_cost  # noqa: E402
import bench_embed  # noqa: E402
import bench_export  # noqa: E402
import bench_finetune  # noqa: E402


CONFIGS = Path(__file__).resolve().parent / "configs"
PEER = "ViTMAE (transformers)"
CACHED, ONLINE, RELEASED = "URFM fast, targets from the cache", "URFM fast, teacher online", "URFM as released, online"
TEACHER_ALONE = "the teacher's forward alone"
# What --quick makes small.
QUICK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64}
QUICK_DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
                 "decoder_intermediate_size": 64}  # fmt: skip
COMPONENTS = 128  # of the cache's codec: about what a corpus needs; decoding is one product of this width
# What an operation of torch is for, in the table of where the time goes; the first name that fits counts.
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "convolution"),
    "attention": ("scaled_dot_product", "aten::bmm", "aten::baddbmm", "softmax"),
    "optimiser, clipping": ("adamw", "linalg_vector_norm", "foreach", "aten::mul_", "zero_"),
    "norms, activations": ("layer_norm", "gelu"),
    "copies and casts": ("aten::copy_", "aten::cat", "gather", "index"),
    "sums, additions": ("aten::sum", "aten::add"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pretrain = commands.add_parser("pretrain", help="Steps of pre-training beside its peers'.")
    pretrain.add_argument("--batch_size", type=int, default=32, help="Images a step, the same for every row.")
    pretrain.add_argument("--rounds", type=int, default=5, help="Turns that every row gets.")
    pretrain.add_argument("--ranks", type=int, nargs="*", default=[1, 2], help="Processes to measure; none: skipped.")
    pretrain.add_argument("--sizes", nargs="*", default=["small", "base", "large"], help="Encoders; none: skipped.")
    pretrain.add_argument("--rows", nargs="*", help="Only rows whose name contains one of these.")
    pretrain.add_argument("--no_memory", action="store_true", help="Leave out peak memory and the profile.")
    pretrain.add_argument("--no_startup", action="store_true", help="Leave out the time to the first step.")
    pretrain.add_argument(
        "--default_allocator", action="store_true",
        help="Leave freed memory to the C library; else it is kept for all rows, as recipes/pretrain.py does.",
    )  # fmt: skip
    pretrain.add_argument("--threads", type=int, default=usable_cores(), help="Threads of torch on a CPU.")
    pretrain.add_argument("--quick", action="store_true", help="Tiny models: only to see that it runs.")
    pretrain.add_argument("--output_dir", default="bench", help="Folder for results.json and table.md.")
    bench_embed.add_arguments(commands.add_parser("embed", help="Features of a folder, beside the pipeline's."))
    bench_finetune.add_arguments(commands.add_parser("finetune", help="What each way to fine-tune costs and gives."))
    bench_export.add_arguments(commands.add_parser("export", help="Exported encoders beside PyTorch."))
    bench_cost.add_arguments(commands.add_parser("cost", help="Hours of a pre-training on GPUs, an estimate."))
    args = parser.parse_args()
    beside = {
        "embed": bench_embed.bench_embed, "finetune": bench_finetune.bench_finetune, "export": bench_export.bench_export,
        "cost": bench_cost.bench_cost,
    }  # fmt: skip
    if args.command in beside:
        return beside[args.command](args)
    if args.quick:
        args.batch_size, args.rounds, args.sizes, args.ranks = 2, 2, args.sizes[:1], args.ranks[:1]
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    if not args.default_allocator:
        keep_freed_memory()
    bench_pretrain(args)


# ---------------------------------------------------------------- rows


@dataclass
class Row:
    """A way to pre-train: a model, the loss of a batch of `pixels` in [0, 1], and the model FLOPs of an image."""

    name: str
    model: nn.Module | None
    loss: Callable[[torch.Tensor], torch.Tensor]
    flops: float
    optimizer: torch.optim.Optimizer | None = None

    def forward_backward(self, pixels: torch.Tensor):
        if self.model is None:
            return self.loss(pixels)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            loss = self.loss(pixels)
        return loss.backward()

    def step(self, pixels: torch.Tensor):
        self.forward_backward(pixels)
        if self.model is None:
            return
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, 1e-4, 0.05, 0.95)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def config_of(name: str, quick: bool, **changes) -> URFMConfig:
    values = yaml.safe_load((CONFIGS / name).read_text())["model"] | changes
    return URFMConfig(**values | (QUICK | QUICK_DECODER if quick else {}))


def fast_config(size: str, quick: bool) -> URFMConfig:
    """The fast config with the encoder of another size."""
    encoder = yaml.safe_load((CONFIGS / f"urfm_{size}.yaml").read_text())["model"]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return config_of("urfm_base_fast.yaml", quick, **{name: encoder[name] for name in names})


def make_rows(quick: bool, device: torch.device) -> list[Row]:
    """Every row of the table; the two of the fast config share its model."""
    size = {"img_size": 64, "depth": 2} if quick else {}
    teacher = untrained_teacher("vit_tiny_patch16_224" if quick else "vit_base_patch16_224", device=device, **size)
    # As ViTMAE; what the released URFM does is not known, and what urfm_base.yaml does is chosen by our experiment.
    like_mae = {"target_hidden_size": teacher.hidden_size, "mask_ratio": 0.75}
    released = config_of("urfm_base.yaml", quick, **like_mae)
    mae_size = config_of(
        "urfm_base.yaml", quick, **like_mae,
        decoder_hidden_size=512, decoder_num_attention_heads=16, decoder_intermediate_size=2048,
    )  # fmt: skip
    fast = config_of("urfm_base_fast.yaml", quick, target_hidden_size=teacher.hidden_size)
    cached, codes = urfm_row(CACHED, fast, device), None
    codec = random_codec(fast, teacher.hidden_size).to(device)

    def from_codes(pixels):
        nonlocal codes
        if codes is None or len(codes) != len(pixels):
            codes = torch.randn(len(pixels), fast.num_predicted_patches, COMPONENTS + 1, device=device).half()
        return codec.decode(codes)

    rows = [
        mae_row(quick, device),
        simmim_row(quick, device),
        with_targets(urfm_row(RELEASED, released, device), released, teacher),
        with_targets(urfm_row("URFM, MAE's decoder, online", mae_size, device), mae_size, teacher),
        with_targets(Row(ONLINE, cached.model, cached.loss, cached.flops), fast, teacher),
        cached,
    ]
    cached.loss = masked_loss(cached.model, fast, lambda pixels, predicted: from_codes(pixels))
    grid = (fast.image_size // fast.patch_size,) * 2
    rows.append(Row(TEACHER_ALONE, None, lambda pixels: teacher(pixels, grid), teacher_flops(teacher, fast, None)))
    return rows


def urfm_row(name: str, config: URFMConfig, device) -> Row:
    model = URFMForPreTraining(config).to(device).train()
    return Row(name, model, None, step_flops(config))


def with_targets(row: Row, config: URFMConfig, teacher) -> Row:
    """The row with targets that the teacher computes in every step, of the patches that are predicted."""
    grid = (config.image_size // config.patch_size,) * 2
    row.loss = masked_loss(row.model, config, lambda pixels, predicted: teacher(pixels, grid, predicted))
    predicted = config.num_masked_patches
    if config.decoder_type == "cross_attention":
        predicted = config.num_predicted_patches
    row.flops += teacher_flops(teacher, config, predicted)
    return row


def masked_loss(model, config: URFMConfig, targets: Callable) -> Callable[[torch.Tensor], torch.Tensor]:
    masks = {}

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) not in masks:
            masks[len(pixels)] = [drawn.to(pixels.device) for drawn in draw(config, len(pixels))]
        mask, predicted = masks[len(pixels)]
        return model(
            pixels, target_features=targets(pixels, predicted), bool_masked_pos=mask, predicted_indices=predicted
        ).loss

    return loss


def draw(config: URFMConfig, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A mask, and the masked patches that are predicted, as the loader gives them."""
    hidden = torch.rand(batch, config.num_patches).argsort(1)[:, : config.num_masked_patches]
    mask = torch.zeros(batch, config.num_patches, dtype=torch.bool).scatter(1, hidden, True)
    part = config.num_predicted_patches if config.decoder_type == "cross_attention" else config.num_masked_patches
    return mask, hidden[:, :part].sort(1).values


def random_codec(config: URFMConfig, width: int) -> TargetCodec:
    components = min(COMPONENTS, width)
    basis = torch.linalg.qr(torch.randn(width, components)).Q.T
    side = config.image_size // config.patch_size
    return TargetCodec(torch.randn(width) / width, basis, 0.0, 0.1, (side, side), torch.arange(0))


def teacher_flops(teacher, config: URFMConfig, positions: int | None) -> int:
    trunk = teacher.tower.trunk
    return vit_forward_flops(
        config.num_patches, config.patch_size**2 * 3, teacher.hidden_size, len(trunk.blocks),
        trunk.blocks[0].mlp.fc1.out_features, positions=positions,
    )  # fmt: skip


def mae_row(quick: bool, device) -> Row:
    config = ViTMAEConfig(norm_pix_loss=True, **QUICK | QUICK_DECODER if quick else {})
    model = ViTMAEForPreTraining(config).to(device).train()
    return Row(PEER, model, lambda pixels: model(pixels).loss, peer_flops(ViTMAEForPreTraining, config))


def simmim_row(quick: bool, device) -> Row:
    """SimMIM hides 60 % and encodes all patches, hidden ones as a mask token; its head predicts all pixels."""
    config = ViTConfig(encoder_stride=16, **QUICK if quick else {})
    model = ViTForMaskedImageModeling(config).to(device).train()
    patches = (config.image_size // config.patch_size) ** 2

    def loss(pixels, model=model):
        mask = torch.rand(len(pixels), patches, device=pixels.device) < 0.6
        return model(pixels, bool_masked_pos=mask).loss

    return Row("SimMIM (transformers)", model, loss, peer_flops(ViTForMaskedImageModeling, config, patches))


def peer_flops(kind, config, patches: int = 0) -> float:
    """Forward and backward, as torch counts them."""
    with torch.device("meta"):
        model = kind._from_config(config, attn_implementation="eager").train()
        pixels = torch.zeros(1, 3, config.image_size, config.image_size)
        inputs = {"bool_masked_pos": torch.ones(1, patches, dtype=torch.bool)} if patches else {}
        return count_flops(lambda: model(pixels, **inputs).loss.backward())


# ---------------------------------------------------------------- measuring


def bench_pretrain(args):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    torch.manual_seed(0)
    rows = make_rows(args.quick, device)
    if args.rows:
        rows = [row for row in rows if row.name == PEER or any(part in row.name for part in args.rows)]
    image_size = QUICK["image_size"] if args.quick else 224
    pixels = torch.rand(args.batch_size, 3, image_size, image_size, device=device)
    metrics = {"rows": time_rows(rows, pixels, args.rounds)}
    print_rows(metrics["rows"])
    if not args.no_memory:
        measure_memory(rows, metrics["rows"], pixels)
        metrics["time_goes"] = {
            row.name: where_time_goes(row, pixels) for row in rows if row.name in (PEER, CACHED, TEACHER_ALONE)
        }
    rows.clear()
    gc.collect()
    metrics["sizes"] = {size: time_size(size, args, pixels) for size in args.sizes}
    metrics["ranks"] = {ranks: time_ranks(ranks, args) for ranks in args.ranks}
    metrics["startup_s"] = {} if args.no_startup else time_startup(args)
    facts = {"device": device_name(device), "threads": torch.get_num_threads(), "batch_size": args.batch_size}
    table = markdown(metrics, facts)
    print("\n" + table)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table)
    timings = {"total_s": round(time.perf_counter() - started, 1)}
    write_json(folder / "results.json", {**run_facts(0), "metrics": facts | metrics, "timings": timings})


def time_rows(rows: list[Row], pixels: torch.Tensor, rounds: int) -> dict:
    """Every row in turn, `rounds` times; each round measures the machine's matrix-product rate too."""
    device = pixels.device
    steps = {row.name: max(1, round(0.3 / timed(row, pixels, 2))) for row in rows}  # the first steps warm up
    taken = {row.name: [] for row in rows}
    rates = []
    for turn in range(rounds):
        rates.append(matmul_rate(torch.bfloat16, device, 0.5))
        for row in rows[turn % len(rows) :] + rows[: turn % len(rows)]:
            taken[row.name].append(timed(row, pixels, steps[row.name]))
    found = {}
    for row in rows:
        seconds = taken[row.name]
        ratios = [peer / own for peer, own in zip(taken[PEER], seconds)]
        utilisation = [model_flop_utilisation(row.flops, len(pixels) / own, rate) for own, rate in zip(seconds, rates)]
        found[row.name] = {
            "images_per_s": round(len(pixels) / statistics.median(seconds), 2),
            "ratio": round(statistics.median(ratios), 2), "ratio_lowest": round(min(ratios), 2),
            "ratio_highest": round(max(ratios), 2), "gflops_per_image": round(row.flops / 1e9, 1),
            "mfu": round(statistics.median(utilisation), 3), "matmul_gflops": round(statistics.median(rates) / 1e9),
        }  # fmt: skip
        if row.model is not None:
            found[row.name]["parameters_m"] = round(sum(p.numel() for p in row.model.parameters()) / 1e6, 1)
    if RELEASED in taken and CACHED in taken:
        against = [slow / fast for slow, fast in zip(taken[RELEASED], taken[CACHED])]
        found[CACHED]["ratio_to_released"] = round(statistics.median(against), 2)
    return found


def timed(row: Row, pixels: torch.Tensor, steps: int = 1) -> float:
    """Seconds a step."""
    synchronize(pixels.device)
    started = time.perf_counter()
    for _ in range(steps):
        row.step(pixels)
    synchronize(pixels.device)
    return (time.perf_counter() - started) / steps


def measure_memory(rows: list[Row], found: dict, pixels: torch.Tensor):
    """`peak_mb_per_image`, without and with gradient checkpointing: what an image more in the batch adds to the peak."""
    small = max(1, len(pixels) // 4)
    for row in rows:
        if row.model is None:
            continue
        for p in row.model.parameters():  # gradients are there before, as in the middle of an accumulation
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        for name, enable in (("peak_mb_per_image", False), ("peak_mb_per_image_checkpointed", True)):
            row.model.gradient_checkpointing_enable() if enable else row.model.gradient_checkpointing_disable()
            low = peak_memory(row.forward_backward, pixels[:small])
            high = peak_memory(row.forward_backward, pixels[: 2 * small])
            found[row.name][name] = round((high - low) / small / 1e6, 1)
        row.model.gradient_checkpointing_disable()
        row.optimizer.zero_grad()


def peak_memory(function: Callable[[torch.Tensor], object], pixels: torch.Tensor) -> int:
    """The most bytes that `function` holds at a time above what was held before; on a CPU the same in every run."""
    if pixels.device.type == "cuda":
        function(pixels)  # workspaces of its libraries are made once
        torch.cuda.reset_peak_memory_stats(pixels.device)
        before = torch.cuda.memory_allocated(pixels.device)
        function(pixels)
        return torch.cuda.max_memory_allocated(pixels.device) - before
    with silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        function(pixels)
    events = traced.profiler.kineto_results.events()
    held = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def silent():
    """Without what torch's profiler writes to stderr each time that it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def where_time_goes(row: Row, pixels: torch.Tensor) -> dict[str, float]:
    """Shares of a step's time by what operations are for; on a CPU, where they run one after the other."""
    with silent(), profile(activities=[ProfilerActivity.CPU]) as traced:
        row.step(pixels)
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in traced.key_averages():
        kind = next((k for k, names in KINDS.items() if any(n in event.key.lower() for n in names)), "the rest")
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: round(share / total, 3) for kind, share in shares.items()}


def time_size(size: str, args, pixels: torch.Tensor) -> dict:
    config = fast_config(size, args.quick)
    row = urfm_row(size, config, pixels.device)
    targets = torch.randn(len(pixels), config.num_predicted_patches, config.target_hidden_size, device=pixels.device)
    row.loss = masked_loss(row.model, config, lambda pixels, predicted: targets)
    timed(row, pixels)
    seconds = statistics.median(timed(row, pixels) for _ in range(3))
    found = {"images_per_s": round(len(pixels) / seconds, 2), "gflops_per_image": round(row.flops / 1e9, 1),
             "parameters_m": round(sum(p.numel() for p in row.model.parameters()) / 1e6, 1)}  # fmt: skip
    del row
    gc.collect()
    return found


# ---------------------------------------------------------------- processes of their own


def time_ranks(ranks: int, args) -> dict:
    """Images/s of the fast config from the cache by `ranks` processes under DDP, with the same images a step together.

    On a CPU they share the threads; on GPUs each has one.
    """
    if torch.cuda.is_available() and ranks > torch.cuda.device_count():
        return {"skipped": f"{torch.cuda.device_count()} GPUs"}
    with tempfile.TemporaryDirectory() as scratch:
        torch.multiprocessing.spawn(rank_main, (ranks, args, scratch), nprocs=ranks)
        return json.loads((Path(scratch) / "found.json").read_text())


def rank_main(rank: int, ranks: int, args, scratch: str):
    transformers_logging.set_verbosity_error()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    torch.set_num_threads(max(1, args.threads // ranks))
    if not args.default_allocator:
        keep_freed_memory()
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{scratch}/meet", rank=rank, world_size=ranks
    )
    torch.manual_seed(0)
    config, batch = fast_config("base", args.quick), args.batch_size // ranks
    row = urfm_row("", config, device)
    row.model = nn.parallel.DistributedDataParallel(row.model) if ranks > 1 else row.model
    targets = torch.randn(batch, config.num_predicted_patches, config.target_hidden_size, device=device)
    row.loss = masked_loss(row.model, config, lambda pixels, predicted: targets)
    pixels = torch.rand(batch, 3, config.image_size, config.image_size, device=device)
    timed(row, pixels, 2)  # DDP lays its buckets out anew after the first step
    seconds = []
    for _ in range(3):
        torch.distributed.barrier()
        seconds.append(timed(row, pixels))
    if rank == 0:
        found = {"images_per_s": round(ranks * batch / statistics.median(seconds), 2), "batch_a_rank": batch}
        (Path(scratch) / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def time_startup(args) -> dict[str, float]:
    """Seconds from the start of a process to the end of its first step: imports, a model from its config, one image."""
    ways = {PEER: "mae_row({quick}, device)", CACHED: "first_urfm_row({quick}, device)"}
    found = {}
    for name, row in ways.items():
        code = FIRST_STEP.format(row=row.format(quick=args.quick), threads=args.threads)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
        found[name] = round(time.perf_counter() - started, 1)
    return found


def first_urfm_row(quick: bool, device) -> Row:
    config = config_of("urfm_base_fast.yaml", quick)
    row = urfm_row(CACHED, config, device)
    targets = torch.randn(1, config.num_predicted_patches, config.target_hidden_size, device=device)
    row.loss = masked_loss(row.model, config, lambda pixels, predicted: targets)
    return row


FIRST_STEP = """
import torch
from bench import *
torch.set_num_threads({threads})
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
row = {row}
size = row.model.config.image_size
row.step(torch.rand(1, 3, size, size, device=device))
synchronize(device)
"""


# ---------------------------------------------------------------- what is said


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line] \
        if Path("/proc/cpuinfo").is_file() else []  # fmt: skip
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"


def print_rows(rows: dict):
    print(f"{'':38} {'images/s':>9} {'x ViTMAE':>9} {'':>15} {'GFLOP':>7} {'MFU':>6}")
    for name, row in rows.items():
        spread = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        print(
            f"{name:38} {row['images_per_s']:9.2f} {row['ratio']:9.2f} {spread:>15} {row['gflops_per_image']:7.1f} "
            f"{row['mfu']:6.1%}"
        )


def markdown(metrics: dict, facts: dict) -> str:
    """The tables for README and the log of experiments."""
    rate = next(iter(metrics["rows"].values()))["matmul_gflops"]
    lines = [
        f"{facts['device']}; batch {facts['batch_size']}, bf16 autocast; measured matrix products: {rate} GFLOP/s.",
        "",
        "| | images/s | x ViTMAE (lowest to highest) | GFLOP an image | MFU | peak MB an image | with checkpointing |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in metrics["rows"].items():
        memory = [row.get("peak_mb_per_image", ""), row.get("peak_mb_per_image_checkpointed", "")]
        lines.append(
            f"| {name} | {row['images_per_s']:.2f} | {row['ratio']:.2f} ({row['ratio_lowest']:.2f} to "
            f"{row['ratio_highest']:.2f}) | {row['gflops_per_image']} | {row['mfu']:.0%} | {memory[0]} | {memory[1]} |"
        )
    cached = metrics["rows"].get(CACHED, {})
    if "ratio_to_released" in cached:
        lines += ["", f"{CACHED}: {cached['ratio_to_released']:.2f} times {RELEASED}."]
    if metrics["sizes"]:
        lines += ["", f"| {CACHED} | parameters, M | images/s | GFLOP an image |", "|---|---|---|---|"]
        lines += [
            f"| {size} | {row['parameters_m']} | {row['images_per_s']:.2f} | {row['gflops_per_image']} |"
            for size, row in metrics["sizes"].items()
        ]
    if metrics["ranks"]:
        lines += ["", f"| processes, {CACHED} | images/s together |", "|---|---|"]
        lines += [
            f"| {ranks} | {row.get('images_per_s', row.get('skipped'))} |" for ranks, row in metrics["ranks"].items()
        ]
    if metrics["startup_s"]:
        lines += ["", "| startup to the end of the first step | s |", "|---|---|"]
        lines += [f"| {name} | {seconds} |" for name, seconds in metrics["startup_s"].items()]
    if metrics.get("time_goes"):
        lines += ["", f"| where the time goes | {' | '.join(metrics['time_goes'])} |"]
        lines += ["|---" * (1 + len(metrics["time_goes"])) + "|"]
        for kind in [*KINDS, "the rest"]:
            shares = " | ".join(f"{shares[kind]:.1%}" for shares in metrics["time_goes"].values())
            lines.append(f"| {kind} | {shares} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
