# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Engines: that what was asked for is in force or the run stops, and that every engine takes the same steps."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config import config_args
from accelerate.state import AcceleratorState, DistributedType, GradientState
from accelerate.utils import DeepSpeedPlugin
from safetensors.torch import load_file

from modeling_urfm import URFMConfig, URFMForPreTraining
from modeling_urfm.pretraining import engine
from modeling_urfm.pretraining.engine import (
    Asked,
    asked_of_launcher,
    check_wrapped,
    launched_by_launcher,
    make_accelerator,
    whole_state_dict,
)


HERE = Path(__file__).resolve().parent
FILES = HERE.parents[1] / "recipes" / "accelerate"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ARGUMENTS = SimpleNamespace(
    gradient_accumulation_steps=2, per_device_train_batch_size=4, max_grad_norm=0.5, mixed_precision=None,
    report_to="none", output_dir=".",
)  # fmt: skip
LAUNCHER_VARIABLES = ("WORLD_SIZE", "LOCAL_RANK", "RANK", "SLURM_STEP_NUM_TASKS", "FSDP_VERSION")
SMALL = URFMConfig(
    image_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=32,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Every test begins as a plain `python` would, and leaves no Accelerate behind."""
    for name in [n for n in os.environ if n.startswith("ACCELERATE_")] + list(LAUNCHER_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine, "parent_command", lambda: ["bash"])
    threads = torch.get_num_threads()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def launched(*flags):
    """The command line of a launcher's process, as the installed script makes it."""
    return [sys.executable, "/usr/bin/accelerate", "launch", *map(str, flags), "recipes/pretrain.py", "--num_processes"]


# ---------------------------------------------------------------- the files


@pytest.mark.parametrize(
    "name, ranks, kind",
    [
        ("cpu", 1, None), ("cpu_2proc", 2, None), ("gpu", 1, None), ("multi_gpu", 8, None), ("multi_node", 16, None),
        ("deepspeed_zero1", 8, "DeepSpeed"), ("deepspeed_zero2", 8, "DeepSpeed"), ("deepspeed_zero3", 8, "DeepSpeed"),
        ("deepspeed_zero3_offload", 8, "DeepSpeed"), ("deepspeed_zero2_cpu", 2, "DeepSpeed"),
        ("deepspeed_zero3_cpu", 2, "DeepSpeed"), ("fsdp2", 8, "FSDP"),
    ],
)  # fmt: skip
def test_every_file_is_one_that_accelerate_takes(name, ranks, kind):
    path = FILES / f"{name}.yaml"
    config_args.load_config_from_file(str(path))  # an unknown key at the top is its error
    known = {action.dest for action in accelerate_launch.launch_command_parser()._actions}
    for section, keys in yaml.safe_load(path.read_text()).items():  # one in a section would be dropped without a word
        if isinstance(keys, dict):
            prefix = "fsdp_" if section == "fsdp_config" else ""
            assert {k if k.startswith(prefix) else prefix + k for k in keys} <= known
    asked = asked_of_launcher(launched("--config_file", path))
    assert asked == Asked(ranks=ranks, engine=kind, cpu=name in ("cpu", "cpu_2proc"))
    assert asked_of_launcher(launched("--config_file", path, "--num_processes", 3)).ranks == 3


def test_there_is_a_test_and_a_line_in_the_readme_for_every_file():
    readme = (FILES / "README.md").read_text()
    assert len(list(FILES.glob("*.yaml"))) == 12
    assert all(f"`{path.name}`" in readme for path in FILES.glob("*.yaml"))


def test_fsdp2_names_parts_of_the_model():
    names = yaml.safe_load((FILES / "fsdp2.yaml").read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    parts = {type(module).__name__ for module in URFMForPreTraining(SMALL).modules()}
    assert set(names.split(",")) <= parts


# ---------------------------------------------------------------- what was asked


@pytest.mark.parametrize(
    "command",
    [
        ["python", "recipes/pretrain.py"],
        ["bash", "-c", "accelerate launch --num_processes 2 recipes/pretrain.py"],  # the shell, not the launcher
        ["slurmstepd: [42.0]"],
        ["python", "-m", "ipykernel_launcher", "-f", "kernel.json"],
        ["python", "-m", "pytest", "tests"],
        ["python", "launch.py", "--num_processes", "2"],
        ["accelerate", "test"],
        [],
    ],
)
def test_what_is_no_launcher_is_not_taken_for_one(command):
    assert asked_of_launcher(command) is None and not launched_by_launcher(command)


@pytest.mark.parametrize(
    "command",
    [
        ["torchrun", "--nproc_per_node", "2", "recipes/pretrain.py"],
        ["/usr/bin/python", "/opt/bin/torchrun", "--standalone", "recipes/pretrain.py"],
        ["python", "-m", "torch.distributed.run", "recipes/pretrain.py"],
        ["python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x", "recipes/pretrain.py"],
    ],
)
def test_other_launchers_are_known_and_say_nothing(command):
    assert launched_by_launcher(command) and asked_of_launcher(command) is None


@pytest.mark.parametrize(
    "start",
    [
        ["python", "/usr/bin/accelerate", "launch"],
        ["accelerate", "launch"],
        ["python", "-m", "accelerate.commands.launch"],
        ["python", "-W", "ignore", "-m", "accelerate.commands.accelerate_cli", "launch"],
        ["python", "/usr/bin/accelerate-launch"],
        ["python", "/site-packages/accelerate/commands/launch.py"],
    ],
)
def test_accelerate_launch_is_read_however_it_was_written(start):
    # What follows the script is the script's: it is not mistaken for the launcher's.
    command = [*start, "--cpu", "--num-processes=2", "recipes/pretrain.py", "--num_processes", "5"]
    assert launched_by_launcher(command)
    assert asked_of_launcher(command) == Asked(ranks=2, engine=None, cpu=True)


def test_the_launchers_default_file_counts_and_flags_override_it(tmp_path, monkeypatch):
    default = tmp_path / "default_config.yaml"
    for module in (accelerate_launch, config_args):
        monkeypatch.setattr(module, "default_config_file", str(default))
    assert asked_of_launcher(launched()) == Asked(ranks=None)  # no file: the launcher's own guess is no one's wish
    default.write_text("distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config: {zero_stage: 2}\n")
    assert asked_of_launcher(launched()) == Asked(ranks=4, engine="DeepSpeed")
    assert asked_of_launcher(launched("--num_processes", 1)) == Asked(ranks=1, engine="DeepSpeed")
    assert asked_of_launcher(launched("--multi_gpu", "--num_processes", 2)) == Asked(ranks=2)
    assert asked_of_launcher(launched("--cpu")) == Asked(ranks=None, cpu=True)  # then Accelerate reads no default file


def test_a_launch_that_cannot_be_read_is_not_judged(tmp_path):
    assert asked_of_launcher(launched("--config_file", tmp_path / "gone.yaml")) is None
    assert asked_of_launcher(["accelerate", "launch", "--no_such_flag"]) is None


# ---------------------------------------------------------------- stops, and no false alarms


def test_the_recipes_accumulation_holds_whatever_the_launcher_says(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    accelerator = make_accelerator(ARGUMENTS)
    assert accelerator.gradient_accumulation_steps == 2 and accelerator.num_processes == 1
    check_wrapped(accelerator, accelerator.prepare(torch.nn.Linear(1, 1)))


@pytest.mark.parametrize(
    "command, environment",
    [
        (["bash"], {}),
        (["slurmstepd: [42.0]"], {"SLURM_STEP_NUM_TASKS": "8"}),  # a sweep by srun, say: warned of, not stopped
        (launched(), {}),
        (launched("--config_file", FILES / "cpu.yaml"), {"ACCELERATE_USE_CPU": "true"}),
        (launched("--cpu"), {"ACCELERATE_USE_CPU": "true"}),
        (launched("--num_processes", 1, "--config_file", FILES / "cpu_2proc.yaml"), {}),
    ],
)
def test_ordinary_runs_start(monkeypatch, command, environment, caplog):
    monkeypatch.setattr(engine, "parent_command", lambda: command)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    accelerator = make_accelerator(ARGUMENTS)
    assert accelerator.num_processes == 1
    assert ("8 tasks" in caplog.text) == ("SLURM_STEP_NUM_TASKS" in environment)


@pytest.mark.parametrize(
    "command, environment, reason",
    [
        ([], {"WORLD_SIZE": "2"}, "2 processes were launched but 1 is in force: each would train alone"),
        ([], {"ACCELERATE_USE_FSDP": "true"}, "FSDP was asked for, and Accelerate leaves it out on processors"),
        ([], {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "true"}, "ACCELERATE_USE_CPU=true turns it off"),
        (launched("--cpu", "--num_processes", 2), {"ACCELERATE_USE_CPU": "true"}, "2 processes were asked for, 1 started"),
        (launched("--cpu", "--config_file", FILES / "deepspeed_zero2_cpu.yaml"), {"ACCELERATE_USE_CPU": "true"},
         "DeepSpeed was asked for and is not in force .it was launched with --cpu"),
        (launched("--cpu", "--config_file", FILES / "fsdp2.yaml"), {}, "FSDP was asked for and is not in force"),
    ],
)  # fmt: skip
def test_what_is_not_in_force_stops_the_run_with_the_reason(monkeypatch, command, environment, reason):
    monkeypatch.setattr(engine, "parent_command", lambda: command)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=reason):
        make_accelerator(ARGUMENTS)


def test_fsdp_of_the_first_version_is_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit, match="fsdp_version: 2"):
        make_accelerator(ARGUMENTS)


def test_a_default_file_that_asks_for_several_on_processors_is_caught(tmp_path, monkeypatch):
    """`accelerate config` writes MULTI_CPU for them, and its launcher then starts one."""
    default = tmp_path / "default_config.yaml"
    default.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 4\n")
    for module in (accelerate_launch, config_args):
        monkeypatch.setattr(module, "default_config_file", str(default))
    monkeypatch.setattr(engine, "parent_command", launched)
    with pytest.raises(SystemExit, match="4 processes were asked for, 1 started.*cpu_2proc.yaml"):
        make_accelerator(ARGUMENTS)


@pytest.mark.parametrize(
    "kind, reason",
    [
        (DistributedType.MULTI_GPU, "nothing sums the gradients of Linear"),
        (DistributedType.FSDP, "2 parameters are not sharded, such as weight"),
        (DistributedType.DEEPSPEED, "ZeRO stage 3 was asked for, and the model has stage None"),
    ],
)
def test_a_model_that_its_engine_does_not_hold_stops_the_run(kind, reason):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 3}})
    accelerator = SimpleNamespace(
        num_processes=2, distributed_type=kind, device=torch.device("cpu"), reduce=lambda tensor, reduction: tensor * 2,
        state=SimpleNamespace(deepspeed_plugin=plugin),
    )  # fmt: skip
    with pytest.raises(SystemExit, match=reason):
        check_wrapped(accelerator, torch.nn.Linear(2, 2))
    accelerator.reduce = lambda tensor, reduction: tensor
    with pytest.raises(SystemExit, match="1 took part"):
        check_wrapped(accelerator, torch.nn.Linear(2, 2))


def test_deepspeeds_config_follows_the_recipes_flags(monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "9.0")
    plugin = DeepSpeedPlugin(zero_stage=3)
    plugin.set_mixed_precision("bf16")
    accelerator = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin), mixed_precision="bf16", num_processes=3,
        distributed_type=DistributedType.DEEPSPEED,
    )  # fmt: skip
    engine._prepare_deepspeed(accelerator, ARGUMENTS)
    config = plugin.deepspeed_config
    assert config["gradient_accumulation_steps"] == 2 and config["gradient_clipping"] == 0.5
    assert config["train_micro_batch_size_per_gpu"] == 4 and config["train_batch_size"] == 24
    assert not config["bf16"]["enabled"] and config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not plugin.zero3_init_flag and engine.precision(accelerator) == "bf16"


# ---------------------------------------------------------------- weights


def test_the_whole_weights_are_a_copy_with_plain_names():
    model = URFMForPreTraining(SMALL)
    accelerator = make_accelerator(ARGUMENTS)
    for prepared in (accelerator.prepare(model), accelerator.prepare(torch.compile(model))):
        state = whole_state_dict(accelerator, prepared)
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    with torch.no_grad():
        model.decoder.mask_token.add_(1)
    assert not torch.equal(state["decoder.mask_token"], model.decoder.mask_token)


def test_only_buffers_that_are_saved_are_among_the_weights():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    state = whole_state_dict(make_accelerator(ARGUMENTS), model)
    assert state.keys() == model.state_dict().keys()


# ---------------------------------------------------------------- real ranks


def test_one_of_several_processes_ends_with_what_is_registered_but_without_pythons_own_end():
    """A thread that still runs stands for gloo's: it must not be met by an interpreter that is taken down."""
    code = """if True:
    import atexit, threading, time
    from types import SimpleNamespace
    from modeling_urfm.pretraining.engine import end_run

    def said(text):
        return lambda: print(text, end=" ")

    atexit.register(said("registered"))
    threading.Thread(target=time.sleep, args=(60,)).start()
    accelerator = SimpleNamespace(num_processes=2, wait_for_everyone=said("waited"), end_training=said("closed"))
    end_run(accelerator)
    print("not reached")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["waited", "closed", "registered"]


def launch(script, *arguments, file=None, flags=(), check=True, script_flags=()):
    where = ["--config_file", str(FILES / f"{file}.yaml")] if file else []
    command = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", *where, *flags, str(HERE / script)]
    done = subprocess.run(
        [*command, *map(str, arguments), *script_flags], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr[-5000:]
    return done


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Six steps of one process, in fp32 and under bf16 autocast: (facts, weights) of each."""
    found = {}
    for precision in ("no", "bf16"):
        output = tmp_path_factory.mktemp("one") / precision
        launch("engine_ranks.py", output, file="cpu", script_flags=["--mixed_precision", precision])
        found[precision] = json.loads(Path(f"{output}.json").read_text()), load_file(f"{output}.safetensors")
    return found


OFFLOAD = ["--offload_optimizer_device", "cpu", "--offload_param_device", "cpu"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "file, flags, precision, accumulation, kind",
    [
        # What tests/recipes/test_engines.py shows over fifty steps of the recipe is repeated here by hand alone.
        pytest.param("cpu_2proc", [], "no", 2, "MULTI_CPU", marks=pytest.mark.long),
        pytest.param("deepspeed_zero2_cpu", ["--zero_stage", "1"], "no", 2, "DEEPSPEED", marks=pytest.mark.long),
        ("deepspeed_zero2_cpu", [], "bf16", 2, "DEEPSPEED"),
        ("deepspeed_zero3_cpu", OFFLOAD, "no", 1, "DEEPSPEED"),
        ("deepspeed_zero3_cpu", [], "bf16", 1, "DEEPSPEED"),
        ("fsdp2", ["--num_processes", "2"], "no", 1, "FSDP"),
        ("fsdp2", ["--num_processes", "2"], "bf16", 2, "FSDP"),
    ],
)
def test_every_engine_takes_the_steps_of_one_process(tmp_path, one_process, file, flags, precision, accumulation, kind):
    """Also a step with NaN on one rank, which none takes; DeepSpeed finds it by itself, in every stage and precision."""
    if kind == "DEEPSPEED":
        pytest.importorskip("deepspeed")
    script_flags = ["--mixed_precision", precision, "--accumulation", str(accumulation)]
    script_flags += ["--force_fsdp2"] if kind == "FSDP" else []  # Accelerate's code for GPUs, made to run here
    launch("engine_ranks.py", tmp_path / "two", file=file, flags=flags, script_flags=script_flags)
    facts, weights = json.loads((tmp_path / "two.json").read_text()), load_file(tmp_path / "two.safetensors")
    wanted, wanted_weights = one_process[precision]
    assert facts["engine"] == kind and facts["ranks"] == 2
    assert facts["losses"] == pytest.approx(wanted["losses"], abs=1e-5 if precision == "no" else 1e-3)
    assert facts["norms"][:3] == pytest.approx(wanted["norms"][:3], rel=1e-4 if precision == "no" else 0.05)
    assert not math.isfinite(facts["norms"][3])
    assert facts["skipped"] == [kind == "DEEPSPEED" and step == 3 for step in range(6)]
    assert weights.keys() == wanted_weights.keys() and {w.dtype for w in weights.values()} == {torch.float32}
    if precision == "no":
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, wanted_weights[name], atol=1e-4, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "file, flags",
    [
        ("multi_node", []),
        pytest.param(
            "deepspeed_zero2_cpu", ["--same_network", "--deepspeed_multinode_launcher", "standard"], marks=pytest.mark.long
        ),
    ],
)  # fmt: skip
def test_a_launcher_on_each_of_two_machines_makes_one_run(tmp_path, one_process, file, flags):
    """Both on this one: the files and flags of the README's Slurm script."""
    if flags:
        pytest.importorskip("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = [*flags, "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1",
             "--main_process_port", port]  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(FILES / f"{file}.yaml"), *flags]
    script = [str(HERE / "engine_ranks.py"), str(tmp_path / "two"), "--mixed_precision", "no"]
    machines = [
        subprocess.Popen(
            [*command, "--machine_rank", rank, *script], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors[0][-3000:] + errors[1][-3000:]
    facts = json.loads((tmp_path / "two.json").read_text())
    assert facts["ranks"] == 2 and facts["losses"] == pytest.approx(one_process["no"][0]["losses"], abs=1e-5)


@pytest.mark.distributed
def test_torchs_fully_shard_trains_saves_and_resumes_as_one_process(tmp_path):
    """Accelerate leaves FSDP out on processors; torch's own on a CPU mesh is what it would use on GPUs."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "fsdp_ranks.py"), str(tmp_path)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-5000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["sharded"] and facts["share"] < 0.6  # of the weights a rank holds; small tensors split unevenly
    for sharded, plain in zip(facts["losses"], facts["plain_losses"], strict=True):
        assert sharded == pytest.approx(plain, abs=1e-5)  # loss and norm of the gradient
    assert facts["found_inf=1"] == {"moved": False, "counted": 0.0}
    assert facts["found_inf=0"] == {"moved": True, "counted": 1.0}
    assert facts["as_torch"]
    assert facts["resumed_equal"] and facts["resumed_losses"][0] == facts["resumed_losses"][1]
    sys.path.insert(0, str(HERE))
    try:
        from engine_ranks import CONFIG
    finally:
        sys.path.remove(str(HERE))
    weights, averaged = (load_file(tmp_path / f"{name}.safetensors") for name in ("sharded", "averaged"))
    for state in (weights, averaged):
        URFMForPreTraining(CONFIG).load_state_dict(state)  # strict: in a plain process
    assert any(not torch.equal(weights[name], averaged[name]) for name in weights)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--cpu", "--num_processes", "2"], "2 processes were asked for, 1 started"),
        (["--config_file", str(FILES / "fsdp2.yaml"), "--num_processes", "2"], "FSDP was asked for"),
        (["--config_file", str(FILES / "deepspeed_zero2_cpu.yaml"), "--cpu"], "DeepSpeed was asked for"),
    ],
)
def test_a_real_launch_stops_with_the_reason(tmp_path, flags, reason):
    done = launch("engine_ranks.py", tmp_path / "none", flags=flags, check=False)
    assert done.returncode != 0 and reason in done.stderr and not (tmp_path / "none.json").exists()


@pytest.mark.distributed
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
@pytest.mark.parametrize("file", ["cpu", "cpu_2proc"])
def test_a_killed_launcher_leaves_no_rank_behind(tmp_path, file):
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, sys, time, pathlib\nfrom modeling_urfm.pretraining.engine import follow_launcher\nfollow_launcher()\n"
        f"pathlib.Path({str(tmp_path)!r}, f'rank{{os.getpid()}}').touch()\ntime.sleep(120)\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FILES / f"{file}.yaml")]
    launcher = subprocess.Popen([*command, str(script)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    ranks, wanted = [], 2 if file == "cpu_2proc" else 1
    for _ in range(600):
        ranks = [int(path.name[4:]) for path in tmp_path.glob("rank[0-9]*")]
        if len(ranks) == wanted:
            break
        time.sleep(0.1)
    assert len(ranks) == wanted
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    for _ in range(100):
        if not any(Path(f"/proc/{rank}").exists() for rank in ranks):
            return
        time.sleep(0.1)
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    pytest.fail("a rank outlived its launcher")
