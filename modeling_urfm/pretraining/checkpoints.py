# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a run: whole or not there, checked before they are believed, refused where a run would not go on exactly.

A checkpoint is written as `.tmp-checkpoint-STEP`, hashed, forced to the disk and renamed; it counts from the rename on. One
of the same step that is in the way is renamed first and removed last, so that a kill at any instant leaves one of the two.
`output_dir` must be seen by all ranks: on several nodes, a shared file system.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_model

from ..configuration_urfm import URFMConfig
from ..data.shards import sync_folder


logger = logging.getLogger(__name__)
STATE, CHECKSUMS = "progress.json", "checksums.json"
# Fields of a fingerprint that say how the same images are shared out and how fast is learnt from them, not which ones are
# seen in which order.
ELASTIC = (
    "num_processes", "per_device_train_batch_size", "gradient_accumulation_steps", "total_steps", "engine",
    "learning_rate", "base_learning_rate", "warmup_ratio", "max_grad_norm",
)  # fmt: skip
# What a model's config says about its file, not about the model.
NOT_THE_MODEL = ("transformers_version", "auto_map", "architectures", "dtype", "_name_or_path", "model_type")
READ_WHEN_RESUMING = (".safetensors", ".bin", ".pkl", ".pt", ".distcp", ".json")
WRITE_FAILURES = ("PytorchStreamWriter", "iostream")  # in torch.save's RuntimeErrors
# Found damaged by this process: they don't count among the checkpoints that are kept.
_known_damaged: set[Path] = set()


# ---------------------------------------------------------------- writing


def save_checkpoint(
    accelerator,
    output_dir: Path,
    step: int,
    progress: dict,
    keep: int,
    rank_state: dict | None = None,
    config: URFMConfig | None = None,
    required: bool = False,
) -> Path | None:
    """Write `output_dir/checkpoint-STEP`; every rank calls it. The `keep` newest whole ones stay.

    Where the disk is full or fails, nothing half-written stays, no older checkpoint is touched, and the run can go on:
    the error is logged and None returned, so that the next call tries again. (With DeepSpeed and FSDP a rank that fails
    while it writes stops the run: the others wait for it inside the engine.)

    Args:
        progress: JSON-able, the same on every rank. rank_state: what differs by rank, tensors and plain values.
        config: of the model, as config.json. required: raise where nothing could be written, as there is no next time.

    Raises:
        OSError: nothing could be written, and `required`, or the engine can't go on.
    """
    output_dir = Path(output_dir)
    temporary = output_dir / f".tmp-checkpoint-{step}"
    reason = _together(accelerator, _prepare, output_dir, temporary)
    if not reason:
        reason = _write_states(accelerator, temporary, rank_state)
    if not reason:
        reason = _together(
            accelerator, _finish, temporary, {"step": step, **progress}, config, accelerator.num_processes, keep
        )
    final = output_dir / f"checkpoint-{step}"
    if not reason:
        return final
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    there = [p.name for p in list_checkpoints(output_dir)]
    free = shutil.disk_usage(output_dir).free / 1e6 if output_dir.is_dir() else 0
    message = (
        f"NO CHECKPOINT at step {step}: {reason}. The disk has {free:.0f} MB free. Older ones in {output_dir}: "
        f"{', '.join(there) or 'none'}."
    )
    if required:
        raise OSError(message)
    if accelerator.is_main_process:
        logger.error("%s Training goes on; the next checkpoint is tried as usual.", message)
    return None


def _together(accelerator, action, *arguments) -> str | None:
    """`action` on the main process; all ranks learn why it failed, or None."""
    reason = [None]
    if accelerator.is_main_process:
        try:
            action(*arguments)
        except OSError as error:
            reason = [_plain(error)]
    return broadcast_object_list(reason)[0]


def _plain(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


def _prepare(output_dir: Path, temporary: Path):
    """Room for a new one: what a killed run left half-done goes, and the disk must hold one more like the last."""
    output_dir.mkdir(parents=True, exist_ok=True)
    there = list_checkpoints(output_dir)
    for left in (*output_dir.glob(".tmp-checkpoint-*"), *output_dir.glob(".deleted-checkpoint-*")):
        shutil.rmtree(left)
    for replaced in output_dir.glob(".replaced-checkpoint-*"):
        if replaced not in there:  # its successor has its name
            shutil.rmtree(replaced)
    if there:
        needed = sum(p.stat().st_size for p in there[-1].rglob("*") if p.is_file())
        free = shutil.disk_usage(output_dir).free
        if free < needed:
            raise OSError(f"no room, {there[-1].name} took {needed / 1e6:.0f} MB")
    temporary.mkdir()


def _write_states(accelerator, temporary: Path, rank_state: dict | None) -> str | None:
    """Every rank's part, by the engine. Returns why it failed on some rank, or None."""
    reason = None
    # Plain names, whatever is wrapped around the model: one process and several can read each other's.
    handle = accelerator.register_save_state_pre_hook(
        lambda models, weights, folder: _unwrap(accelerator, models, weights)
    )
    try:
        accelerator.save_state(str(temporary), safe_serialization=True)
        if rank_state is not None:
            torch.save(rank_state, temporary / f"rank_state_{accelerator.process_index}.bin")
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save says so when a write fails; any other RuntimeError is no matter of the disk.
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in WRITE_FAILURES):
            raise
        if _engine_of(accelerator) in ("DEEPSPEED", "FSDP"):
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"The checkpoint {temporary} could not be written: {_plain(error)}. Older ones are whole."
            ) from error
        reason = _plain(error)
    finally:
        handle.remove()
    return next(filter(None, gather_object([reason])), None)


def _unwrap(accelerator, models, weights):
    weights[:] = [accelerator.unwrap_model(model).state_dict() for model, _ in zip(models, list(weights))]


def _engine_of(accelerator) -> str:
    return str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))


def _finish(temporary: Path, progress: dict, config: URFMConfig | None, ranks: int, keep: int):
    """The main process's part, from the engine's files to the rename."""
    for rank in range(ranks):
        if not (temporary / f"random_states_{rank}.pkl").is_file():
            raise OSError(f"rank {rank} wrote nothing into it: the folder must be on a disk that all nodes share")
    (temporary / STATE).write_text(json.dumps(progress))
    if config is not None:
        config.to_json_file(temporary / "config.json", use_diff=False)
    seal(temporary)
    _rename(temporary, temporary.with_name(temporary.name.removeprefix(".tmp-")))
    _prune(temporary.parent, progress["step"], keep)


def seal(folder: Path):
    """Write the checksums of all files, and force files and folders to the disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = dict(zip((p.relative_to(folder).as_posix() for p in files), _in_threads(_sum_and_sync, files)))
    with (folder / CHECKSUMS).open("w") as file:
        json.dump({"algorithm": "sha256", "files": sums}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        sync_folder(inner)
    sync_folder(folder)


def _rename(temporary: Path, final: Path):
    replaced = final.with_name(f".replaced-{final.name}")
    if final.exists():
        os.replace(final, replaced)
    os.replace(temporary, final)
    sync_folder(final.parent)  # what it replaces may only go when the new one is sure to stay
    _known_damaged.discard(final)
    if replaced.exists():
        _remove(replaced)


def _prune(output_dir: Path, step: int, keep: int):
    """Keep the `keep` newest up to this step. Later ones, of an earlier run or damaged, are not this run's to remove."""
    known = [p for p in list_checkpoints(output_dir) if _step(p) <= step]
    damaged = {p: "found damaged" if p in _known_damaged else _damage_at_a_glance(p) for p in known}
    good = [p for p in known if not damaged[p]]
    for old in known:
        if old not in good[-keep:]:
            if damaged[old]:
                logger.warning("removing %s, which is no use: %s", old, damaged[old])
            _remove(old)


def _remove(folder: Path):
    """Renamed first: half of a checkpoint must not look like one."""
    going = folder.with_name(".deleted-" + re.sub(r"^\.\w+-(?=checkpoint)", "", folder.name))
    shutil.rmtree(going, ignore_errors=True)
    os.replace(folder, going)
    shutil.rmtree(going, ignore_errors=True)


def _in_threads(action, items: list) -> list:
    # Hashing lets go of the interpreter, so threads are enough.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(action, items))


def _sum_and_sync(path: Path) -> dict:
    with path.open("r+b") as file:
        digest = _digest(file)
        os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _digest(file) -> str:
    digest = hashlib.sha256()
    while part := file.read(8 << 20):
        digest.update(part)
    return digest.hexdigest()


# ---------------------------------------------------------------- finding


def _step(folder: Path) -> int:
    return int(folder.name.rsplit("-", 1)[1])


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, damaged ones among them."""
    found = {}
    # A run killed between two renames left the older one of a step under this name.
    for prefix in (".replaced-checkpoint-", "checkpoint-"):
        for path in Path(output_dir).glob(f"{prefix}*"):
            if re.fullmatch(r"\d+", path.name.removeprefix(prefix)) and path.is_dir():
                found[_step(path)] = path
    return [found[step] for step in sorted(found)]


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest that is not damaged at a glance (its files are not read)."""
    whole = [p for p in list_checkpoints(output_dir) if p not in _known_damaged and not _damage_at_a_glance(p)]
    return whole[-1] if whole else None


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, with the file's name; None if it is as it was written.

    One from before checksums were written can't be checked: None.
    """
    try:
        wrong = _damage_at_a_glance(folder)
        files = None if wrong else _sums(folder)
        if files is None:
            return wrong

        def check(name):
            try:
                with (folder / name).open("rb") as file:
                    return (
                        None if _digest(file) == files[name]["sha256"] else f"{name} has other content than was written"
                    )
            except OSError as error:
                return f"{name} cannot be read ({error.strerror or error})"

        return next(filter(None, _in_threads(check, list(files))), None)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def _sums(folder: Path) -> dict | None:
    """Name -> size and checksum; None for a checkpoint from before there were any."""
    if not (folder / CHECKSUMS).is_file():
        return None
    content = json.loads((folder / CHECKSUMS).read_text())
    files = content["files"]
    if content["algorithm"] != "sha256" or not all({"size", "sha256"} <= set(entry) for entry in files.values()):
        raise ValueError(content["algorithm"])
    return files


def _damage_at_a_glance(folder: Path) -> str | None:
    """Damage that shows without reading the files."""
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    if not there:
        return "it is empty"
    try:
        files = _sums(folder)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUMS} has other content than was written"
    if files is None:
        return None if _is_of_an_earlier_version(folder) else f"{CHECKSUMS} is missing"
    for name, entry in files.items():
        if name not in there:
            return f"{name} is missing"
        size, was = there[name].stat().st_size, entry["size"]
        if size != was:
            how = "empty" if size == 0 else "truncated" if size < was else "longer than it was"
            return f"{name} is {how} ({size} of {was} bytes)"
    extra = sorted(name for name in there if name not in files and name != CHECKSUMS)
    for name in extra:
        if name.endswith(READ_WHEN_RESUMING) and not there[name].name.startswith("."):
            return f"{name} does not belong to it: move that file away to use the checkpoint"
    return None


def _is_of_an_earlier_version(folder: Path) -> bool:
    try:
        return "position" not in json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return False


def find_checkpoint(asked: str | None, output_dir: Path, accelerator=None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names, its files checked; None where a run starts from zero.

    Args:
        accelerator: with it the main process alone reads and checks, and the other ranks are told.

    Raises:
        FileNotFoundError: a folder was named that is no checkpoint; those that are there are listed.
        ValueError: the one that was named is damaged, or with "latest" all that are there.
    """
    if asked is None:
        return None
    answer = [None, None]
    if accelerator is None or accelerator.is_main_process:
        try:
            answer[0] = _find(asked, Path(output_dir))
        except (FileNotFoundError, ValueError) as error:
            answer[1] = error
    if accelerator is not None:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _find(asked: str, output_dir: Path) -> Path | None:
    there = list_checkpoints(output_dir)
    if asked != "latest":
        names = ", ".join(str(p) for p in there) or f"none in {output_dir}"
        folder = Path(asked)
        if not folder.is_dir() or not any((folder / name).is_file() for name in (STATE, CHECKSUMS)):
            raise FileNotFoundError(f"--resume_from_checkpoint {asked}: no checkpoint there. There are: {names}.")
        if wrong := damage_of(folder):
            raise ValueError(
                f"--resume_from_checkpoint {asked} is damaged: {wrong}. There are: {names}; `latest` takes the newest whole one."
            )
        return folder
    if not there:
        logger.warning("--resume_from_checkpoint latest: no checkpoint in %s, starting from zero.", output_dir)
        return None
    reasons = []
    # A run that was begun anew here has lower steps than one before it, and is the one that is meant.
    for folder in sorted(there, key=lambda path: (_began(path), _step(path)), reverse=True):
        wrong = damage_of(folder)
        if not wrong:
            return folder
        _known_damaged.add(folder)
        reasons.append(f"{folder.name}: {wrong}")
        logger.warning("%s is damaged: %s. The one before is tried.", folder, wrong)
    raise ValueError(
        f"--resume_from_checkpoint latest: every checkpoint in {output_dir} is damaged ({'; '.join(reasons)}). To start from "
        "zero, move them away."
    )


def _began(folder: Path) -> float:
    """When the run that wrote it was begun, in seconds since 1970; without an answer it is looked at first."""
    try:
        return float(json.loads((folder / STATE).read_text()).get("began", 0.0))
    except (OSError, ValueError, AttributeError, TypeError):
        return math.inf


# ---------------------------------------------------------------- loading


def read_progress(folder: Path) -> dict:
    """What `save_checkpoint` was given as `progress`, and `step`.

    Raises:
        ValueError: the checkpoint is of a version whose runs this one can't continue.
    """
    progress = json.loads((Path(folder) / STATE).read_text())
    if "position" not in progress:
        raise ValueError(
            f"{folder} was written by an earlier version of this recipe, which saw the images in another order: finish that run "
            "with the version that began it, or start a new one from its final model with --init_from."
        )
    return progress


def load_checkpoint(accelerator, folder: Path, fingerprint: dict, elastic: bool = False) -> dict:
    """Restore all that `accelerator` holds; returns the progress that was saved, with this rank's `rank_state` if any.

    Args:
        elastic: the fields in ELASTIC may differ, where the engine's files allow it.

    Raises:
        ValueError: the checkpoint is of another run or version; every field that differs is named.
    """
    folder = Path(folder)
    progress = read_progress(folder)
    check_same_run(folder, progress, fingerprint, elastic)
    handle = accelerator.register_load_state_pre_hook(lambda models, _: _load_unwrapped(accelerator, models, folder))
    try:
        accelerator.load_state(str(folder))
    finally:
        handle.remove()
    # Accelerate counts micro-steps, of which another accumulation makes another number; checkpoints are between steps.
    accelerator.step = 0
    rank_state = folder / f"rank_state_{accelerator.process_index}.bin"
    if rank_state.is_file():
        progress["rank_state"] = torch.load(rank_state, map_location="cpu", weights_only=True)
    return progress


def _load_unwrapped(accelerator, models: list, folder: Path):
    """Plain names into the plain model; Accelerate then has none left to load. Engines that save themselves give none."""
    for number, model in enumerate(models):
        file = folder / (f"model_{number}.safetensors" if number else "model.safetensors")
        load_model(accelerator.unwrap_model(model), file)
    models.clear()


def check_same_run(folder: Path, progress: dict, fingerprint: dict, elastic: bool = False):
    """Raises ValueError where going on from `progress` would not be this run going on."""
    differing = differences(progress["fingerprint"], fingerprint)
    names = {name for name, _, _ in differing}
    saved_engine, engine = (str(f.get("engine", "")).lower() for f in (progress["fingerprint"], fingerprint))
    if names & {"num_processes", "engine"}:
        for kind in ("deepspeed", "fsdp"):
            ranks_matter = kind == "deepspeed"
            if (kind in saved_engine or kind in engine) and (ranks_matter or "engine" in names):
                raise ValueError(_says(folder, differing) + _why_not(kind))
    if names and not (elastic and names <= set(ELASTIC)):
        advice = "Resume with the same value, or start anew in another --output_dir."
        if names <= set(ELASTIC):
            advice = (
                "Resume with the same value, or give --allow_elastic_resume: the images then come in the same order, but the "
                "result is not bit for bit that of one run."
            )
        raise ValueError(_says(folder, differing) + advice)
    if names:
        logger.info("%s", _says(folder, differing) + "Resuming all the same (--allow_elastic_resume).")


def differences(saved: dict, current: dict) -> list[tuple[str, object, object]]:
    """(field, saved, current) of every field that differs; a model's config field by field, as `config.NAME`."""
    current, found = json.loads(json.dumps(current)), []
    for name in sorted(saved.keys() | current.keys()):
        was, now = saved.get(name), current.get(name)
        if name == "model" and isinstance(was, dict) and isinstance(now, dict):
            defaults = json.loads(
                URFMConfig().to_json_string(use_diff=False)
            )  # what a config leaves out is the default
            for field in sorted((was.keys() | now.keys()) - set(NOT_THE_MODEL)):
                there, here = (values.get(field, defaults.get(field)) for values in (was, now))
                if there != here:
                    found.append((f"config.{field}", there, here))
        elif was != now:
            found.append((name, was, now))
    return found


def _says(folder: Path, differing: list) -> str:
    there = ", ".join(f"{name}={was!r}" for name, was, _ in differing)
    here = ", ".join(f"{name}={now!r}" for name, _, now in differing)
    return f"{folder} was written with {there}, this run has {here}. "


def _why_not(kind: str) -> str:
    if kind == "deepspeed":
        return (
            "DeepSpeed can't go on with another number of ranks or another ZeRO stage, --allow_elastic_resume or not: each rank's "
            "file holds that rank's part of the optimizer. Resume with the same, or start anew from the weights with --init_from."
        )
    return (
        "FSDP writes its checkpoints in a format of its own: another engine can't read them, nor it theirs. Resume with the same "
        "engine (another number of ranks is possible), or start anew from the weights with --init_from."
    )
