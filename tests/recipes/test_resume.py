# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/pretrain.py killed, told to stop, damaged and resumed: the weights are bit for bit those of one run.

`pytest -m "distributed and not long"` kills four times; `pytest -m long` two dozen times more, over every engine that a CPU
has.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil  # comes with accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_urfm import URFMForPreTraining

from ..data.small_corpus import write_small_corpus


ROOT = Path(__file__).resolve().parents[2]
RECIPE, ENGINES = ROOT / "recipes" / "pretrain.py", ROOT / "recipes" / "accelerate"
STEPS, EVERY, IMAGES = 60, 3, 30  # 60 steps of 8 images are 16 epochs; most steps stand beside an epoch's boundary
CONFIG = f"""\
model:
  {{image_size: 64, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64,
   decoder_hidden_size: 32, decoder_num_hidden_layers: 1, decoder_num_attention_heads: 2,
   decoder_intermediate_size: 64}}
training:
  {{teacher: demo, max_train_steps: {STEPS}, checkpointing_steps: {EVERY}, logging_steps: 1, dataloader_num_workers: 2,
   augment: [speckle, gain], learning_rate: 1.0e-3}}
"""
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
ONE = (8, [sys.executable])
LAUNCHED = (8, ACCELERATE)
DDP, ZERO2, ZERO3 = (
    (4, [*ACCELERATE, "--config_file", str(ENGINES / f"{name}.yaml")])
    for name in ("cpu_2proc", "deepspeed_zero2_cpu", "deepspeed_zero3_cpu")
)


class Run:
    """One pre-training of the small corpus into `output`, in as many lives as it takes."""

    def __init__(self, folder: Path, name: str, engine=ONE, *options):
        self.output, self.log = folder / name, folder / f"{name}.log"
        config, corpus = folder / "tiny.yaml", folder / "corpus"
        config.write_text(CONFIG)
        if not corpus.is_dir():
            write_small_corpus(corpus, patients={"train": IMAGES // 3}, frames=3, rows_per_shard=8)
        batch, program = engine
        self.command = [
            *program, str(RECIPE), "--config", str(config), "--dataset", str(corpus), "--output_dir", str(self.output),
            "--per_device_train_batch_size", str(batch), *map(str, options),
        ]  # fmt: skip

    def start(self, *options) -> psutil.Popen:
        with self.log.open("a") as log:
            command = [*self.command, *map(str, options)]
            return psutil.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)

    def finish(self, *options) -> dict[str, torch.Tensor]:
        """To its end; the published weights."""
        assert self.start(*options).wait(timeout=900) == 0, self.said()
        return load_file(self.output / "model.safetensors")

    def refuse(self, *options) -> str:
        self.log.unlink(missing_ok=True)
        assert self.start(*options).wait(timeout=900) != 0
        return self.said()

    def said(self) -> str:
        return self.log.read_text()[-6000:]

    def newest(self) -> int:
        steps = [int(p.name.split("-")[1]) for p in self.output.glob("checkpoint-*")]
        return max(steps, default=0)

    def when_it_trains(self, process, beyond: int) -> int:
        """Wait for a checkpoint later than `beyond`."""
        began = time.monotonic()
        while self.newest() <= beyond:
            assert process.poll() is None, self.said()
            assert time.monotonic() - began < 600, self.said()
            time.sleep(0.01)
        return self.newest()

    def losses(self) -> list[float]:
        return [entry["loss"] for entry in json.loads((self.output / "results.json").read_text())["history"]]


def kill_all(process):
    """SIGKILL for the launcher, its ranks and their readers, ranks first: none gets to do anything about it."""
    family = [*process.children(recursive=True), process]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            pass
    process.wait()
    psutil.wait_procs(family, timeout=30)


def kill_and_resume(run: Run, kills: int, dice: random.Random) -> tuple[dict[str, torch.Tensor], list[int]]:
    """`kills` lives that end by SIGKILL, each after a checkpoint of its own, and one to the end."""
    killed_after, options = [], ["--resume_from_checkpoint", "latest"]
    for _ in range(kills):
        process = run.start(*options)
        run.when_it_trains(process, beyond=run.newest())
        time.sleep(dice.uniform(0, 0.4))
        assert process.poll() is None, f"it was done before it could be killed\n{run.said()}"
        kill_all(process)
        killed_after.append(run.newest())
    return run.finish(*options), killed_after


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} differ, such as {different[0]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(folder):
    """One process, not interrupted; its last ten checkpoints are kept."""
    run = Run(folder, "whole", ONE, "--save_total_limit", "10")
    run.weights = run.finish()
    return run


# ---------------------------------------------------------------- killed


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "engine", "options"),
    [("one", ONE, ["--ema_decay", "0.9", "--drop_path_rate", "0.1"]), ("zero2", ZERO2, [])],
    ids=["one", "zero2"],
)
def test_killed_twice_the_weights_are_those_of_one_run(folder, name, engine, options):
    if engine is ZERO2:
        pytest.importorskip("deepspeed")
    expected = Run(folder, f"{name}-whole", engine, *options)
    weights = expected.finish()
    run = Run(folder, f"{name}-killed", engine, *options)
    got, _ = kill_and_resume(run, 2, random.Random(0))
    same(weights, got)
    assert expected.losses() == run.losses() and len(run.losses()) == STEPS
    assert len(list(run.output.glob("checkpoint-*"))) == 2 and not list(run.output.glob(".*checkpoint*"))


VARIANTS = {
    "one": (ONE, ["--drop_path_rate", "0.1"]),
    "ddp": (DDP, ["--loss_on_scan_region"]),
    "zero2": (ZERO2, []),
    "zero3": (ZERO3, ["--ema_decay", "0.9"]),
    "ema": (ONE, ["--ema_decay", "0.9", "--dataloader_num_workers", "0"]),
    "accumulation": (DDP, ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]),
}


@pytest.mark.long
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_killed_again_and_again(folder, variant):
    """Four kills each: 24 over the variants."""
    engine, options = VARIANTS[variant]
    if variant.startswith("zero"):
        pytest.importorskip("deepspeed")
    weights = Run(folder, f"{variant}-long", engine, *options).finish()
    dice = random.Random(variant)
    got, killed_after = kill_and_resume(Run(folder, f"{variant}-long-killed", engine, *options), 4, dice)
    print(f"{variant}: killed after the checkpoints of steps {killed_after}")
    same(weights, got)


# ---------------------------------------------------------------- damaged


@pytest.mark.distributed
def test_a_damaged_newest_checkpoint_is_left_for_the_one_before(folder, whole):
    """As if a power cut had taken the end of the run: the newest is cut short, the one before has a flipped bit."""
    run = Run(folder, "damaged", ONE, "--save_total_limit", "10")
    run.output.mkdir()
    for step in (30, 33, 36, 39):
        source = whole.output / f"checkpoint-{step}"
        if source.is_dir():
            shutil.copytree(source, run.output / source.name)
    for source in whole.output.glob("checkpoint-*"):
        shutil.copytree(source, run.output / source.name, dirs_exist_ok=True)
    newest, before = (run.output / f"checkpoint-{step}" for step in (STEPS, STEPS - EVERY))
    with (newest / "optimizer.bin").open("r+b") as file:
        file.truncate(1000)
    content = bytearray((before / "model.safetensors").read_bytes())
    content[-100] ^= 4
    (before / "model.safetensors").write_bytes(content)
    said = run.refuse("--resume_from_checkpoint", before)
    assert "is damaged: model.safetensors has other content than was written" in said
    same(whole.weights, run.finish("--resume_from_checkpoint", "latest"))
    assert f"{newest.name} is damaged: optimizer.bin is truncated" in run.said()
    assert f"{before.name} is damaged: model.safetensors" in run.said()
    assert f"resumed from {run.output}/checkpoint-{STEPS - 2 * EVERY} at step {STEPS - 2 * EVERY}" in run.said()
    # it has written them anew, and resuming the finished run gives the same again
    same(whole.weights, run.finish("--resume_from_checkpoint", newest))


# ---------------------------------------------------------------- told to stop


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("engine", "number", "to"),
    [
        (ONE, signal.SIGTERM, "group"), pytest.param(ONE, signal.SIGUSR1, "process", marks=pytest.mark.long),
        (LAUNCHED, signal.SIGTERM, "process"), pytest.param(LAUNCHED, signal.SIGUSR1, "process", marks=pytest.mark.long),
        pytest.param(DDP, signal.SIGTERM, "process", marks=pytest.mark.long), (DDP, signal.SIGUSR1, "ranks"),
    ],
    ids=["one-TERM-all", "one-USR1", "launcher-TERM", "launcher-USR1", "ddp-launcher-TERM", "ddp-USR1-ranks"],
)  # fmt: skip
def test_a_signal_ends_it_with_a_checkpoint_and_nothing_trains_on(folder, whole, engine, number, to, request):
    """To the process alone, to all of its group with the readers, to the launcher, or to ranks as srun does."""
    run = Run(folder, f"signal-{request.node.callspec.id}", engine)
    process = run.start()
    run.when_it_trains(process, beyond=0)
    family = process.children(recursive=True)
    ranks = [p for p in family if str(RECIPE) in p.cmdline() and p.parent() == process]
    if to == "group":
        os.killpg(process.pid, number)
    else:
        for target in ranks if to == "ranks" else [process]:
            target.send_signal(number)
    code = process.wait(timeout=60)
    gone, alive = psutil.wait_procs(family, timeout=60)
    for orphan in alive:
        orphan.kill()
    assert not alive, f"{len(alive)} go on\n{run.said()}"
    if engine is ONE or to == "ranks":  # a launcher that is signalled itself has an exit code of its own
        assert code == 0, run.said()
    assert "checkpoint written after step" in run.said()
    assert not (run.output / "model.safetensors").exists() and run.newest() < STEPS
    weights = run.finish("--resume_from_checkpoint", "latest")
    if engine is not DDP:
        same(whole.weights, weights)


# ---------------------------------------------------------------- not finite


@pytest.mark.distributed
@pytest.mark.parametrize("engine", [ONE, ZERO2], ids=["one", "zero2"])
def test_a_run_that_leaves_the_numbers_stops_with_its_images_on_disk(folder, engine, request):
    """A learning rate of 1e30: the first step's weights give no loss that is finite."""
    if engine is ZERO2:
        pytest.importorskip("deepspeed")
    run = Run(folder, f"absurd-{request.node.callspec.id}", engine, "--learning_rate", "1e30", "--warmup_ratio", "0",
              "--max_skipped_steps", "4", "--checkpointing_steps", "1")  # fmt: skip
    said = run.refuse()
    assert "4 steps in a row had a loss or a gradient that is not finite" in said
    written = json.loads((run.output / "nonfinite.json").read_text())
    assert written["in_a_row"] == 4 and all(step["ids"] for step in written["steps"])
    newest = run.output / f"checkpoint-{run.newest()}"
    assert f"the last good checkpoint is {newest}" in said.replace("\n", " ")
    if engine is ONE:
        state = load_file(newest / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
    else:
        assert (run.output / "nonfinite-rank1.json").is_file()


@pytest.mark.distributed
def test_weights_that_are_no_numbers_stop_a_run_at_once(folder, whole):
    bad = folder / "bad"
    shutil.copytree(whole.output, bad, ignore=shutil.ignore_patterns("checkpoint-*"))
    state = load_file(bad / "model.safetensors")
    state["urfm.layernorm.weight"][3] = float("inf")
    save_file(state, bad / "model.safetensors", metadata={"format": "pt"})
    run = Run(folder, "from-bad", ONE, "--init_from", bad, "--max_skipped_steps", "3", "--checkpointing_steps", "100")
    said = run.refuse()
    assert "3 steps in a row" in said and "there is no checkpoint in" in said
    assert [s["step"] for s in json.loads((run.output / "nonfinite.json").read_text())["steps"]] == [0, 1, 2]


# ---------------------------------------------------------------- another run, other ranks


@pytest.mark.distributed
def test_another_run_is_refused_and_other_ranks_go_on_in_the_same_order_if_asked(folder, whole):
    def from_the_middle(name, engine, *options):
        run = Run(folder, name, engine, *options)
        run.output.mkdir()
        step = STEPS - 9 * EVERY
        shutil.copytree(whole.output / f"checkpoint-{step}", run.output / f"checkpoint-{step}")
        return run, ["--resume_from_checkpoint", "latest"]

    run, latest = from_the_middle("other", ONE)
    for options, says in (
        (["--seed", "5"], "was written with seed=0, this run has seed=5"),
        (["--mask_ratio", "0.5"], "config.mask_ratio=0.75, this run has config.mask_ratio=0.5"),
        (
            ["--per_device_train_batch_size", "4"],
            "per_device_train_batch_size=8, this run has per_device_train_batch_size=4",
        ),
    ):
        said = run.refuse(*latest, *options)
        assert says in said.replace("\n", " "), said
    two, latest = from_the_middle("two", DDP)
    said = two.refuse(*latest)
    assert "num_processes=1" in said and "num_processes=2" in said and "--allow_elastic_resume" in said
    two.finish(*latest, "--allow_elastic_resume")
    assert two.losses() == pytest.approx(whole.losses(), abs=1e-4)  # the same images, masks and crops in every step
    model = URFMForPreTraining.from_pretrained(two.output).state_dict()
    assert all(torch.allclose(model[name], weight, atol=1e-2) for name, weight in whole.weights.items())


@pytest.mark.distributed
def test_deepspeed_says_why_it_cannot_go_on_with_other_ranks(folder, whole):
    pytest.importorskip("deepspeed")
    run = Run(folder, "to-deepspeed", ZERO2)
    run.output.mkdir()
    shutil.copytree(whole.output / f"checkpoint-{STEPS}", run.output / f"checkpoint-{STEPS}")
    said = run.refuse("--resume_from_checkpoint", "latest", "--allow_elastic_resume")
    assert "DeepSpeed can't go on with another number of ranks" in said
