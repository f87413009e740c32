# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The engine that `accelerate launch` was told to use: started, made to follow the recipe's flags, and checked.

An engine that is asked for and not had costs a cluster's weekend without a word: every rank of a launch can train alone,
FSDP is left out on processors, a launcher can start one process where two were asked for. Here a run stops at its start
with the reason. What Accelerate can't hide of its engines is in this file, so that the recipe has no branch on them.
"""

import atexit
import contextlib
import ctypes
import io
import logging
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    is_torch_xla_available,
)
from torch.nn.parallel import DistributedDataParallel

from ..data.memory import keep_freed_memory
from ..data.phantoms import usable_cores
from .parts import held_part, plain_name, whole_of


logger = logging.getLogger(__name__)
GUIDE = "recipes/accelerate/README.md has a file for each engine."
# Buckets of DeepSpeed's collectives, in elements: its own 500 M are larger than these models, and are allocated.
BUCKET = 50_000_000


@dataclass
class Asked:
    """What the launcher of this process was told, as far as it can be known; None where nothing was said."""

    ranks: int | None = None
    engine: str | None = None  # "DeepSpeed" or "FSDP"
    cpu: bool = False


# ---------------------------------------------------------------- start


def refuse_left_out() -> None:
    """Stop where Accelerate would leave out the engine that was asked for, without a word.

    Raises:
        SystemExit: DeepSpeed with ACCELERATE_USE_CPU, or FSDP on processors.
    """
    no_gpu = not torch.accelerator.is_available() and not is_torch_xla_available()
    if _is_set("ACCELERATE_USE_DEEPSPEED") and _is_set("ACCELERATE_USE_CPU"):
        raise SystemExit("DeepSpeed was asked for, and ACCELERATE_USE_CPU=true turns it off: unset that. On processors "
                         "take recipes/accelerate/deepspeed_zero2_cpu.yaml, which has use_cpu: false.")  # fmt: skip
    if _is_set("ACCELERATE_USE_FSDP") and (no_gpu or _is_set("ACCELERATE_USE_CPU")):
        raise SystemExit("FSDP was asked for, and Accelerate leaves it out on processors without a word: nothing would be "
                         "sharded. On a CPU take DeepSpeed (deepspeed_zero3_cpu.yaml) or plain data parallel training "
                         f"(cpu_2proc.yaml). {GUIDE}")  # fmt: skip


def make_accelerator(args) -> Accelerator:
    """An `Accelerator` that has the engine and the number of ranks that were asked for, and that follows `args`.

    Args:
        args: with `gradient_accumulation_steps`, `per_device_train_batch_size`, `max_grad_norm`, `mixed_precision`,
            `report_to` and `output_dir`. These hold whatever the launcher's file or environment say.

    Raises:
        SystemExit: the engine or the number of ranks in force would not be those asked for; with the reason.
    """
    asked = asked_of_launcher(parent_command()) or Asked()
    refuse_left_out()
    deepspeed, fsdp = (_is_set(f"ACCELERATE_USE_{name}") for name in ("DEEPSPEED", "FSDP"))
    no_gpu = not torch.accelerator.is_available() and not is_torch_xla_available()
    if fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise SystemExit(f"FSDP version {os.environ.get('FSDP_VERSION', '1')} was asked for; this recipe shards with version "
                         f"2. Set fsdp_version: 2, as recipes/accelerate/fsdp2.yaml does.")  # fmt: skip

    # Ranks on processors talk through gloo. DeepSpeed must not be told `cpu`, the others must.
    several_on_cpu = no_gpu and "LOCAL_RANK" in os.environ
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if several_on_cpu and deepspeed:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    accelerator = Accelerator(
        # As a plugin: the number alone would give way to ACCELERATE_GRADIENT_ACCUMULATION_STEPS, set by the launcher.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        mixed_precision=args.mixed_precision, step_scheduler_with_optimizer=False, project_dir=args.output_dir,
        log_with=None if args.report_to == "none" else args.report_to,
        # Accelerate's launcher does not pass use_cpu on to several ranks.
        cpu=(several_on_cpu or asked.cpu) and not deepspeed, kwargs_handlers=handlers,
    )  # fmt: skip
    _check_in_force(accelerator, asked)
    if accelerator.device.type == "cpu":
        # Launchers leave one thread to a process; the ranks of a machine share its cores.
        torch.set_num_threads(usable_cores())
        if accelerator.mixed_precision == "fp16":
            logger.warning("mixed_precision fp16 has no effect on a CPU; bf16 has.")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _prepare_deepspeed(accelerator, args)
    elif accelerator.distributed_type == DistributedType.FSDP:
        _prepare_fsdp(accelerator)
    return accelerator


def make_sharing_accelerator() -> Accelerator:
    """One rank or several, for work that is shared out and gathered but not trained.

    Raises:
        SystemExit: fewer processes are in force than were launched: each would compute everything.
    """
    launched, on_cpu = int(os.environ.get("WORLD_SIZE", 1)), not torch.cuda.is_available()
    # Ranks wait for one another at the end only, where a slow one may take its time.
    handler = InitProcessGroupKwargs(timeout=timedelta(days=7), **({"backend": "gloo"} if on_cpu else {}))
    accelerator = Accelerator(cpu=launched > 1 and on_cpu, kwargs_handlers=[handler] if launched > 1 else None)
    if accelerator.num_processes != launched:
        raise SystemExit(
            f"{launched} processes were launched but {accelerator.num_processes} is in force: each would compute "
            f"everything. On processors: ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 {os.path.relpath(sys.argv[0])}"
        )
    if on_cpu:  # launchers leave one thread to a process
        torch.set_num_threads(usable_cores())
        keep_freed_memory()
    return accelerator


def _check_in_force(accelerator: Accelerator, asked: Asked):
    """Compare what runs with what was asked: by the environment of the ranks, and by the launcher's command line."""
    ranks, kind = accelerator.num_processes, accelerator.distributed_type
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if ranks != launched:
        hint = (
            "this device has no distributed backend in Accelerate; on processors set ACCELERATE_USE_CPU=true"
            if accelerator.device.type != "cpu"
            else "no backend was found to join them"
        )
        raise SystemExit(
            f"{launched} processes were launched but {ranks} is in force: each would train alone ({hint})."
        )
    engine = {DistributedType.DEEPSPEED: "DeepSpeed", DistributedType.FSDP: "FSDP"}.get(kind)
    for name, wanted in (("DeepSpeed", _is_set("ACCELERATE_USE_DEEPSPEED")), ("FSDP", _is_set("ACCELERATE_USE_FSDP"))):
        if (wanted or asked.engine == name) and engine != name:
            why = "it was launched with --cpu, which turns it off" if asked.cpu else "Accelerate did not take it up"
            raise SystemExit(f"{name} was asked for and is not in force ({why}), but {kind.value}. {GUIDE}")
    if asked.ranks and ranks < asked.ranks:
        how = (
            "`accelerate launch --cpu --num_processes N` and distributed_type MULTI_CPU start one process; take "
            "--config_file recipes/accelerate/cpu_2proc.yaml --num_processes N"
            if accelerator.device.type == "cpu"
            else "num_processes counts the ranks of all machines, and must be a multiple of num_machines"
        )
        raise SystemExit(f"{asked.ranks} processes were asked for, {ranks} started: {how}. For one: --num_processes 1.")
    if asked.cpu and accelerator.device.type != "cpu":
        raise SystemExit(
            f"use_cpu was asked for, and this run is on {accelerator.device.type}: {kind.value} ignores it."
        )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if ranks == 1 and tasks > 1 and not launched_by_launcher():
        logger.warning("srun started %d tasks of this; each trains alone. One run over all: %s", tasks, GUIDE)


def _prepare_deepspeed(accelerator: Accelerator, args):
    """Make DeepSpeed's config follow the recipe's flags, with the numerics of the other engines.

    Its gradients that are not finite are its own matter: with a norm that is inf or NaN every stage and precision skips
    the step on all ranks (`optimizer.step_was_skipped`).
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    plugin = accelerator.state.deepspeed_plugin
    config, zero = plugin.deepspeed_config, plugin.deepspeed_config["zero_optimization"]
    if accelerator.mixed_precision == "fp16":
        raise SystemExit(
            "DeepSpeed in fp16 keeps the weights themselves in fp16. Take --mixed_precision bf16, or 'no'."
        )
    micro, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    config["train_micro_batch_size_per_gpu"] = micro
    config["gradient_accumulation_steps"] = plugin.gradient_accumulation_steps = accumulation
    config["train_batch_size"] = micro * accumulation * accelerator.num_processes
    config["gradient_clipping"] = plugin.gradient_clipping = float(args.max_grad_norm)
    # The recipe's own AdamW also where its state is offloaded: torch's is as fast there, and nothing is compiled.
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    for name in ("reduce_bucket_size", "allgather_bucket_size"):
        zero.setdefault(name, BUCKET)
    zero["stage3_gather_16bit_weights_on_model_save"] = True  # Accelerate's own checks ask for it
    if accelerator.mixed_precision == "bf16":
        # DeepSpeed's bf16 casts weights, norms and position embeddings; autocast does what DDP and one process do.
        config["bf16"] = {"enabled": False}
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    # transformers would shard whatever `from_pretrained` loads under ZeRO-3: the teacher, and weights to start from.
    plugin.zero3_init_flag = False
    plugin.dschf = None
    unset_hf_deepspeed_config()
    if zero["stage"] == 3:
        _confine_zero3_linear()


def _confine_zero3_linear():
    """Keep ZeRO-3's own linear function to the weights that it splits.

    It takes the place of torch's in the whole process, and adds the bias in another step: a teacher in bf16, which no engine
    holds, would see features rounded otherwise than under the other engines.
    """
    from deepspeed.runtime.zero import partition_parameters

    of_torch, of_zero3 = torch.nn.functional.linear, partition_parameters.zero3_linear_wrap

    def linear(input, weight, bias=None):
        return (of_zero3 if hasattr(weight, "ds_tensor") else of_torch)(input, weight, bias)

    partition_parameters.zero3_linear_wrap = linear


def _prepare_fsdp(accelerator: Accelerator):
    """FSDP2 with the numerics of the other engines: bf16 weights for the layers, but fp32 residuals and reductions."""
    if accelerator.mixed_precision == "bf16":
        from torch.distributed.fsdp import MixedPrecisionPolicy

        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def engine_name(accelerator: Accelerator) -> str:
    """ "plain" for one process, else what joins several: "MULTI_GPU", "DEEPSPEED ZeRO-2", "FSDP" ..."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return f"{kind.value} ZeRO-{accelerator.state.deepspeed_plugin.deepspeed_config['zero_optimization']['stage']}"
    return "plain" if kind == DistributedType.NO else kind.value


def precision(accelerator: Accelerator) -> str:
    """What matrix products run in: "no", "bf16" or "fp16". Under DeepSpeed `accelerator.mixed_precision` doesn't know."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        return "bf16" if config.get("torch_autocast", {}).get("enabled") else "no"
    return accelerator.mixed_precision


def check_wrapped(accelerator: Accelerator, model: torch.nn.Module):
    """After `accelerator.prepare`: the ranks reach each other, and the engine holds the model. Every rank calls it.

    Raises:
        SystemExit: the model is not what the engine that is in force makes of one.
    """
    ranks, kind = accelerator.num_processes, accelerator.distributed_type
    met = int(accelerator.reduce(torch.ones((), device=accelerator.device), reduction="sum").item())
    if met != ranks:
        raise SystemExit(f"{ranks} processes are in force but {met} took part in a sum over all.")
    wrapper = getattr(model, "_orig_mod", model)  # torch.compile is the outermost
    if kind == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"]
        found = getattr(wrapper, "zero_optimization_stage", lambda: None)()
        sharded = all(hasattr(p, "ds_tensor") for p in model.parameters())
        if found != stage or (stage == 3 and not sharded):
            raise SystemExit(f"ZeRO stage {stage} was asked for, and the model has stage {found}.")
    elif kind == DistributedType.FSDP:
        from torch.distributed.tensor import DTensor

        whole = [n for n, p in model.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if whole:
            raise SystemExit(f"FSDP was asked for, and {len(whole)} parameters are not sharded, such as {whole[0]}.")
    elif ranks > 1 and not isinstance(wrapper, DistributedDataParallel):
        raise SystemExit(f"{ranks} processes are in force, and nothing sums the gradients of {type(wrapper).__name__}.")


# ---------------------------------------------------------------- weights


@torch.no_grad()
def whole_state_dict(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """A copy of the weights as a plain process has them, on the CPU of the main process; None on the others.

    Every rank calls it, whatever the engine: where weights are sharded they are gathered one by one.
    """
    bare = accelerator.unwrap_model(model, keep_torch_compile=False)
    tensors = {**dict(bare.named_parameters()), **_saved_buffers(bare)}
    state = {}
    for name, tensor in tensors.items():
        tensor = whole_of(held_part(tensor), tensor)
        if accelerator.is_main_process:
            state[plain_name(name)] = tensor.to("cpu", copy=True)
    return state if accelerator.is_main_process else None


def _saved_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The persistent buffers of a model, by name."""
    names = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        for name in part._buffers
        if name not in part._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in module.named_buffers() if name in names}


# ---------------------------------------------------------------- the launcher


def parent_command() -> list[str]:
    """The command line of the process that started this one; empty where it can't be read (no Linux)."""
    try:
        line = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in line.split(b"\0")[:-1]]


def _accelerate_arguments(command: list[str]) -> list[str] | None:
    """What follows `accelerate launch` in a command line, however that was written; None where it is another command."""
    for place, word in enumerate(command[:8]):
        if word in ("accelerate.commands.launch", "accelerate-launch") or word.endswith(
            ("/accelerate-launch", "/accelerate/commands/launch.py")
        ):
            return command[place + 1 :]
        named = Path(word).name == "accelerate" or word == "accelerate.commands.accelerate_cli"
        if named and command[place + 1 : place + 2] == ["launch"]:
            return command[place + 2 :]
    return None


def launched_by_launcher(command: list[str] | None = None) -> bool:
    """Whether the parent is the launcher of Accelerate, torch or DeepSpeed."""
    command = parent_command() if command is None else command
    words = command[:8]
    modules = {"torch.distributed.run", "torch.distributed.launch", "deepspeed.launcher.launch"}
    files = ("torchrun", "torch/distributed/run.py", "deepspeed/launcher/launch.py")
    return _accelerate_arguments(command) is not None or any(
        word in modules or any(word == file or word.endswith(f"/{file}") for file in files) for word in words
    )


def asked_of_launcher(command: list[str]) -> Asked | None:
    """What `accelerate launch` was told by its flags and its config file, read by Accelerate's own parser.

    None where the command is another one or can't be read that way: then nothing is compared with it.
    """
    arguments = _accelerate_arguments(command)
    if arguments is None:
        return None
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        # The parser's module may set up logging, and says again what its process has said.
        from accelerate.commands import launch

        launch.logger.disabled = True
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parser = launch.launch_command_parser()
            given = parser.parse_args(arguments).num_processes
            told, file, _ = launch._validate_launch_command(parser.parse_args(arguments))
    except (Exception, SystemExit) as reason:
        logger.debug("the launcher's command line could not be read: %s", reason)
        return None
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    ranks = given if given is not None else getattr(file, "num_processes", None)
    engine = "DeepSpeed" if told.use_deepspeed else "FSDP" if told.use_fsdp else None
    return Asked(ranks=None if told.tpu else ranks, engine=engine, cpu=bool(told.cpu or told.use_cpu))


def follow_launcher():
    """Have this process told to stop (SIGTERM) when its launcher dies: a killed launch leaves no rank training.

    Linux only, and only where the parent is a launcher; a run from a shell outlives its terminal as before.
    """
    parent = os.getppid()
    if not sys.platform.startswith("linux") or not launched_by_launcher():
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it died before this was set
        os.kill(os.getpid(), signal.SIGTERM)


def end_run(accelerator: Accelerator):
    """Close trackers and the process group; of several processes each ends here, with exit code 0. Every rank calls it.

    A thread of gloo can hold the tensors of the last collective a little longer than Python lives, where DeepSpeed keeps the
    group alive; letting go of them then aborts the process, and the launcher calls a run failed that has saved all (torch
    2.14). So what is registered for the end is called, and Python is not taken down around that thread.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")
