# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The experiment in units, each one arm and one seed, that can be run in any order and on any day.

A unit leaves `units/NAME.json` with its answers: for every question "LEVEL/TASK/PROTOCOL/SIDE" the class of every test
image as one character ("0" to "9", "a" to "z"), or its Dice in per cent as two ("00" to "99", and "a0" for 100).
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score

from modeling_urfm.hub.results import run_facts, write_json

from . import corpora, downstream
from .design import (
    ABLATIONS,
    ARMS,
    ARMS_OF_KIND,
    AUGMENTED,
    CLAIMED,
    CLEAN,
    CLEAN_ARMS,
    DECODER,
    ENCODER,
    FINETUNE_RATE,
    FINETUNE_RATES,
    FULL,
    HOME,
    LEARNING_RATES,
    LONGER,
    LOW,
    MASK_RATIOS,
    SCRATCH_LONGER,
    SCRATCH_LONGER_RATE,
    TUNED,
    TUNING_SEED,
    UNTRAINED,
    Arm,
    Scale,
    settings_of,
)
from .training import AUGMENTATION, BETA2, MAX_NORM, WARMUP, WEIGHT_DECAY, new_encoder, precision, pretrain


DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        kind: "data" (a level), "tune" (of `design.TUNED`), "arm", "augmented", "longer", "ablation", "untrained".
        subject: the level or the arm. seed: of the arm.
    """

    kind: str
    subject: str
    seed: int | None = None

    @property
    def name(self) -> str:
        plain = "".join(c if c.isalnum() or c in "-." else "-" for c in self.subject.replace("'", "").replace(",", ""))
        return f"{self.kind}-{plain}" + ("" if self.seed is None else f"-{self.seed}")


def plan(scale: Scale) -> list[Unit]:
    """All units in the order in which they are run: what others stand on first, then a whole seed before the next."""
    units = [Unit("data", f"{level:g}") for level in sorted(scale.levels, key=lambda level: abs(level - HOME))]
    if scale is not FULL:
        return units + [Unit("arm", arm, s) for s in scale.seeds for arm in CLAIMED] + [
            Unit("untrained", name, s) for s in scale.seeds for name in UNTRAINED[:2]
        ]  # fmt: skip
    units += [Unit("tune", name, TUNING_SEED) for name in TUNED]
    for seed in scale.seeds:
        units += [Unit("arm", arm, seed) for arm in ARMS]
        units += [Unit("untrained", name, seed) for name in UNTRAINED]
        units += [Unit("augmented", arm, seed) for arm in AUGMENTED]
    for seed in scale.seeds:
        units += [Unit("ablation", name, seed) for name in ABLATIONS]
        units += [Unit("longer", arm, seed) for arm in LONGER]
    return units


def run_unit(unit: Unit, folder: Path, scale: Scale) -> None:
    """Run one unit on one thread, and write its file in one step."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    started, cpu = time.perf_counter(), time.process_time()
    does = {
        "data": _data, "tune": _tune, "arm": _arm, "augmented": _at_home, "longer": _at_home, "ablation": _at_home,
        "untrained": _untrained,
    }[unit.kind]  # fmt: skip
    check_data(folder / "data", scale)
    found = does(unit, folder / "data", scale)
    (folder / "units").mkdir(parents=True, exist_ok=True)
    write_json(folder / "units" / f"{unit.name}.json", {
        "unit": asdict(unit), "scale": scale.name, "fingerprint": fingerprint(scale), **run_facts(unit.seed or 0),
        "precision": precision(), "command": f"{command(scale)} --only {unit.name}", **found,
        "timings": {"total_s": round(time.perf_counter() - started, 1), "cpu_s": round(time.process_time() - cpu, 1)},
    })  # fmt: skip


def fingerprint(scale: Scale) -> str:
    """Of all that decides what the units of a scale are made of and asked, but for the arms' settings, which each unit has."""
    chosen = {
        "scale": asdict(scale), "encoder": ENCODER, "decoder": DECODER, "home": HOME, "low": LOW,
        "seeds": [corpora.UNLABELLED_SEED, corpora.ORGAN_SEED, corpora.LESION_SEED, corpora.FIRST_TEST_PATIENT],
        "augmentation": AUGMENTATION, "optimiser": [WARMUP, WEIGHT_DECAY, BETA2, MAX_NORM],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def check_data(folder: Path, scale: Scale) -> None:
    """Note in `folder` which images it will hold.

    Raises:
        ValueError: it holds those of another scale or design.
    """
    note, now = folder / "made_for.json", {"scale": scale.name, "fingerprint": fingerprint(scale)}
    if not note.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, now)
    elif (was := json.loads(note.read_text())) != now:
        raise ValueError(
            f"{folder} holds data of the {was['scale']} experiment, design {was['fingerprint']}; this is {scale.name}, "
            f"{now['fingerprint']}: give another --output_dir, or remove it."
        )


def command(scale: Scale) -> str:
    """What runs all units of a scale and reports on them."""
    return "python recipes/reproduce.py" + ("" if scale is FULL else f" --{scale.name}")


# ---------------------------------------------------------------- what each kind does


def _data(unit: Unit, data: Path, scale: Scale) -> dict:
    """Images and features of one level; the truth of the test sets, which is the same at all levels."""
    level = float(unit.subject)
    corpus, truth = corpora.unlabelled(data, level, scale), {}
    features, teacher_s = corpora.features(data, level, corpus, "medical")
    for task in ("organ", "lesion"):
        labelled = corpora.labelled(data, level, scale, task)
        for side in ("in", "out"):
            truth[f"{task}/{side}"] = encode(labelled.labels[labelled.rows[side]])
    return {
        "truth": truth,
        "crops": len(corpus.images),
        "teacher_cpu_s": round(teacher_s, 1),
        "floor": _floor(features),
    }


def _floor(features: np.ndarray) -> dict[str, float]:
    """The loss of a student that knows nothing of the image: one feature for all patches, or one for each position."""
    unit = torch.nn.functional.normalize(torch.from_numpy(features[::4].astype(np.float32)), dim=-1)
    return {
        "constant": -round(float(unit.mean((0, 1)).norm()), 4), "position": -round(float(unit.mean(0).norm(dim=-1).mean()), 4),
    }  # fmt: skip


def _tune(unit: Unit, data: Path, scale: Scale) -> dict:
    """The same candidates for every kind of target, on a seed of their own and on validation alone."""
    if unit.subject == "finetune":
        return _tune_finetune(data, scale, tuple(FINETUNE_RATE))
    if unit.subject == "finetune-longer":
        return _tune_finetune(data, scale, ("scratch",), SCRATCH_LONGER)
    name, _, clean = unit.subject.partition("-")
    level, tried = CLEAN if clean else HOME, []
    for rate in LEARNING_RATES:
        for ratio in MASK_RATIOS:
            arm = replace(ARMS[name], learning_rate=rate, model={"mask_ratio": ratio})
            encoder = _pretrain(arm, data, level, scale, unit.seed, steps=scale.tuning_steps).encoder
            scores = _validation_scores(encoder, data, level, scale)
            tried.append({"learning_rate": rate, "mask_ratio": ratio, **scores})
    return {"level": level, "tried": tried, "best": max(tried, key=lambda t: t["score"])}


def _tune_finetune(data: Path, scale: Scale, kinds: tuple[str, ...], longer: int = 1) -> dict:
    organ, tried = corpora.labelled(data, HOME, scale, "organ"), []
    for kind in kinds:
        if kind == "teacher":
            tokens = downstream.TeacherTokens(corpora.teacher("medical", dtype=torch.float32))
        elif kind == "scratch":
            tokens = downstream.StudentTokens(new_encoder(TUNING_SEED))
        else:
            arm = ARMS[kind]
            tokens = downstream.StudentTokens(
                _pretrain(arm, data, HOME, scale, TUNING_SEED, steps=scale.tuning_steps).encoder
            )
        for rate in FINETUNE_RATES:
            found = downstream.finetune(
                tokens, organ, "organ", learning_rate=rate, passes=scale.finetune_passes["organ"] * longer, seed=TUNING_SEED,
                looks=2,
            )  # fmt: skip
            tried.append({"kind": kind, "learning_rate": rate, "score": found["validation"]})
    best = {kind: max((t for t in tried if t["kind"] == kind), key=lambda t: t["score"]) for kind in kinds}
    return {"level": HOME, "tried": tried, "best": best}


def _validation_scores(encoder, data: Path, level: float, scale: Scale) -> dict:
    scores = {}
    for task in ("organ", "lesion"):
        labelled = corpora.labelled(data, level, scale, task)
        features = downstream.embed(downstream.StudentTokens(encoder), labelled.images)
        rows = labelled.rows["validation"]
        answers = downstream.probe(features, labelled).predict(features[rows])[0].argmax(-1)
        scores[task] = float(f1_score(labelled.labels[rows], answers, average="macro"))
    return scores | {"score": sum(scores.values()) / len(scores)}


def _arm(unit: Unit, data: Path, scale: Scale) -> dict:
    """An arm at its levels: frozen features everywhere; the rest at HOME."""
    answers, training = {}, {}
    for level in scale.levels if unit.subject in CLAIMED else LOW:
        arm = settings_of(unit.subject, level)
        steps = _steps(arm, scale)
        looks = tuple(round(share * steps) for share in scale.checkpoints) if level == HOME else ()
        trained = _pretrain(arm, data, level, scale, unit.seed, checkpoints=looks)
        training[f"{level:g}"] = _facts(trained, steps, scale)
        tokens = downstream.StudentTokens(trained.encoder)
        sets = _embedded(tokens, data, level, scale)
        answers |= _frozen(sets, level)
        for step, encoder in trained.checkpoints.items():
            under_way = _embedded(downstream.StudentTokens(encoder), data, level, scale)
            answers |= _at_step(under_way, level, step)
        if level == HOME:
            answers |= _home(tokens, sets, scale)
            if unit.subject in FINETUNE_RATE:
                answers |= _finetuned(tokens, FINETUNE_RATE[unit.subject], data, scale, unit.seed)
    clean = {"settings_clean": asdict(CLEAN_ARMS[unit.subject])} if unit.subject in CLEAN_ARMS else {}
    rate = {"finetune_rate": FINETUNE_RATE[unit.subject]} if unit.subject in FINETUNE_RATE else {}
    return {"settings": asdict(ARMS[unit.subject]), **clean, **rate, "pretraining": training, "answers": answers}


def _untrained(unit: Unit, data: Path, scale: Scale) -> dict:
    """A student without pre-training, or a teacher as the encoder: its frozen features, and fine-tuned."""
    if unit.subject == "scratch":
        tokens, kind = downstream.StudentTokens(new_encoder(unit.seed).eval()), "scratch"
    else:
        which = "other" if unit.subject == "teacher-other" else "medical"
        tokens, kind = downstream.TeacherTokens(corpora.teacher(which, dtype=torch.float32)), "teacher"
    answers = {}
    for level in scale.levels if unit.subject != "teacher-other" else LOW:
        sets = _embedded(tokens, data, level, scale)
        answers |= _frozen(sets, level)
        if level == HOME:
            answers |= _home(tokens, sets, scale)
    rates = {}
    if unit.subject in FINETUNE_RATE:
        rates["finetune_rate"] = FINETUNE_RATE[kind]
        answers |= _finetuned(tokens, FINETUNE_RATE[kind], data, scale, unit.seed)
    if kind == "scratch" and scale is FULL:  # does it lack nothing but time?
        rates["finetune_rate_longer"] = SCRATCH_LONGER_RATE
        answers |= _finetuned(
            tokens, SCRATCH_LONGER_RATE, data, scale, unit.seed, longer=SCRATCH_LONGER, tasks=("organ", "lesion")
        )
    return {**rates, "answers": answers}


def _at_home(unit: Unit, data: Path, scale: Scale) -> dict:
    """An arm that is asked about frozen features at HOME alone, and if it was trained for them about corrupted images."""
    arm = ARMS_OF_KIND[unit.kind][unit.subject]
    trained = _pretrain(arm, data, HOME, scale, unit.seed)
    tokens = downstream.StudentTokens(trained.encoder)
    sets = _embedded(tokens, data, HOME, scale)
    answers = _frozen(sets, HOME)
    if unit.kind == "augmented":
        answers |= _robust(tokens, sets)
    facts = {f"{HOME:g}": _facts(trained, _steps(arm, scale), scale)}
    return {"settings": asdict(arm), "pretraining": facts, "answers": answers}


# ---------------------------------------------------------------- pre-training


def _steps(arm: Arm, scale: Scale) -> int:
    return round(scale.steps * arm.length)


def _pretrain(arm: Arm, data: Path, level: float, scale: Scale, seed: int, steps: int | None = None, checkpoints=()):
    corpus, targets = corpora.unlabelled(data, level, scale), None
    if arm.targets != "pixel":
        targets = np.asarray(corpora.features(data, level, corpus, arm.targets, arm.layer)[0])
        if arm.average_frames:
            targets = corpora.averaged_over_frames(targets, corpus)
        if arm.normalize == "layer_norm":
            x = torch.from_numpy(targets.astype(np.float32))
            targets = torch.nn.functional.layer_norm(x, x.shape[-1:]).numpy()
    return pretrain(arm, corpus.images, targets, seed, steps or _steps(arm, scale), scale.batch, checkpoints)


def _facts(trained, steps: int, scale: Scale) -> dict:
    return {
        "steps": steps, "images": steps * scale.batch, "student_cpu_s": round(trained.cpu_s, 1),
        "losses": {str(step): round(loss, 4) for step, loss in trained.losses.items()},
    }  # fmt: skip


# ---------------------------------------------------------------- answers


def encode(classes: np.ndarray) -> str:
    """(images,) classes below 36 to one character each."""
    return "".join(DIGITS[c] for c in classes)


def decode(text: str) -> np.ndarray:
    """What `encode` was given."""
    return np.array([DIGITS.index(c) for c in text])


def encode_dice(dice: np.ndarray) -> str:
    """(images,) values in [0, 1] to two characters each: per cent, tens as one digit."""
    return "".join(f"{DIGITS[percent // 10]}{percent % 10}" for percent in np.rint(100 * dice).astype(int).tolist())


def decode_dice(text: str) -> np.ndarray:
    """What `encode_dice` was given, rounded to per cent."""
    return np.array([DIGITS.index(tens) * 10 + int(ones) for tens, ones in zip(text[::2], text[1::2])]) / 100


def _keyed(level: float, task: str, answers: dict[str, np.ndarray]) -> dict[str, str]:
    code = encode_dice if task == "mask" else encode
    return {f"{level:g}/{task}/{key}": code(values) for key, values in answers.items()}


def _embedded(tokens, data: Path, level: float, scale: Scale) -> dict[str, tuple[corpora.Labelled, np.ndarray]]:
    """Both labelled sets with their features, task by task."""
    sets = {task: corpora.labelled(data, level, scale, task) for task in ("organ", "lesion")}
    return {task: (labelled, downstream.embed(tokens, labelled.images)) for task, labelled in sets.items()}


def _frozen(sets: dict, level: float) -> dict[str, str]:
    """Linear probe and kNN, in and out of distribution."""
    answers = {}
    for task, (labelled, features) in sets.items():
        answers |= _keyed(level, task, downstream.frozen_answers(features, labelled))
    return answers


def _at_step(sets: dict, level: float, step: int) -> dict[str, str]:
    """The linear probe of an encoder under way."""
    answers = {}
    for task, (labelled, features) in sets.items():
        found = downstream.probe(features, labelled).predict(features[labelled.rows["in"]])[0].argmax(-1)
        answers |= _keyed(level, task, {f"linear-step{step}/in": found})
    return answers


def _home(tokens, sets: dict, scale: Scale) -> dict[str, str]:
    """What is asked at HOME alone of frozen features: masks, few labels, corrupted images."""
    answers = {}
    for task, (labelled, features) in sets.items():
        few = downstream.label_efficiency(features, labelled, scale.fractions, scale.label_seeds)
        answers |= _keyed(HOME, task, few)
    if scale is FULL:
        answers |= _keyed(HOME, "mask", downstream.mask_probe(tokens, sets["lesion"][0])) | _robust(tokens, sets)
    return answers


def _robust(tokens, sets: dict) -> dict[str, str]:
    organ, features = sets["organ"]
    return _keyed(HOME, "organ", downstream.robustness(tokens, features, organ))


def _finetuned(
    tokens, rate: float, data: Path, scale: Scale, seed: int, longer: int = 1, tasks=("organ", "lesion", "mask")
) -> dict[str, str]:
    """Full fine-tuning on all labels and, of organs and lesions, on a tenth of them."""
    answers = {}
    for task in (task for task in tasks if task in scale.finetune_passes):
        labelled = corpora.labelled(data, HOME, scale, "organ" if task == "organ" else "lesion")
        for fraction in (1.0, 0.1) if task != "mask" else (1.0,):
            found = downstream.finetune(
                tokens, labelled, task, learning_rate=rate, seed=seed, fraction=fraction,
                passes=round(scale.finetune_passes[task] * longer * (1 if fraction == 1 else 0.5)),
            )  # fmt: skip
            del found["validation"]
            name = f"finetune{longer}x" if longer > 1 else "finetune"
            for key, values in found.items():
                side, _, share = key.partition("@")
                protocol = f"{name}@{fraction:g}" + (f"-share{share}" if share else "")
                answers |= _keyed(HOME, task, {f"{protocol}/{side}": values})
    return answers
