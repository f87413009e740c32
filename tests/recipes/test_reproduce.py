# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""recipes/reproduce.py: its parts at a very small scale, the committed choices, and the quick run against the committed table."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from recipes.reproduction import corpora, design, downstream, training, units
from recipes.reproduction.design import ABLATIONS, ARMS, AUGMENTED, FULL, LONGER, QUICK, Arm
from recipes.reproduction.units import Unit, decode, decode_dice, encode, encode_dice, plan, run_unit


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


RESULTS = RECIPES / "results"
UNITS = {path.stem: json.loads(path.read_text()) for path in sorted((RESULTS / "units").glob("*.json"))}
TINY = dataclasses.replace(
    QUICK, name="tiny", patients=8, steps=4, tuning_steps=2, organ=(60, 30, 30, 30), lesion=(40, 20, 20, 20), levels=(0.0,),
    finetune_passes={"organ": 64, "lesion": 64, "mask": 64},
)  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 128, 128)).astype(np.uint8)


def fixed_targets(count: int = 40) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 64, 96)).astype(np.float16)


# ---------------------------------------------------------------- data


def test_a_level_is_made_once_and_holds_phantoms_and_every_real_frame(tmp_path):
    corpus = corpora.unlabelled(tmp_path, 0.0, TINY)
    real = sum(len(loop) for loop in corpora.real_loops())
    assert real >= 34 and len(corpus.images) == TINY.views * (TINY.patients * TINY.frames + real)
    assert corpus.images.dtype == np.uint8 and corpus.images.shape[1:] == (128, 128)
    again = corpora.unlabelled(tmp_path, 0.0, TINY)
    assert (again.images == corpus.images).all() and len(list(tmp_path.iterdir())) == 1
    # Four frames of a loop were cut alike: they resemble each other more than another view of the same patient.
    first = corpus.images[corpus.loops == 0].astype(float)
    other = corpus.images[corpus.loops == 1].astype(float)
    assert len(first) == TINY.frames and list(corpus.frames[:4]) == [0, 1, 2, 3]
    assert np.abs(first[0] - first[1]).mean() < np.abs(first[0] - other[0]).mean()


def test_levels_share_patients_and_splits_share_none(tmp_path):
    clean, noisy = (corpora.labelled(tmp_path, level, TINY, "lesion") for level in (30.0, -6.0))
    assert (clean.labels == noisy.labels).all() and (clean.masks == noisy.masks).all()
    assert not (clean.images == noisy.images).all()
    rows = np.concatenate(list(clean.rows.values()))
    assert list(clean.rows) == ["train", "validation", "in", "out"] and len(set(rows)) == len(rows) == len(clean.labels)
    organ = corpora.labelled(tmp_path, 30.0, TINY, "organ")
    assert (organ.labels == np.arange(len(organ.labels)) % 15).all() and len(organ.classes) == 15


def test_targets_averaged_over_a_loop_stay_in_the_loop():
    corpus = corpora.Unlabelled(IMAGES[:10], np.array([0] * 4 + [1] * 6), np.r_[0:4, 0:6])
    values = fixed_targets(10)
    averaged = corpora.averaged_over_frames(values, corpus, reach=1)
    for row, members in ((0, (0, 1)), (3, (2, 3)), (4, (4, 5)), (6, (5, 6, 7)), (9, (8, 9))):
        expected = np.mean([values[m].astype(np.float32) for m in members], 0)
        np.testing.assert_allclose(averaged[row], expected, atol=2e-3)


# ---------------------------------------------------------------- training


def test_arms_of_a_seed_start_from_one_encoder_and_see_the_same_crops():
    start = training.new_encoder(3).state_dict()
    for arm in (
        Arm("medical"),
        Arm("pixel"),
        Arm("pixel", blur=1.5),
        Arm("medical", model={"decoder_type": "cross_attention"}),
    ):
        model = training.new_model(arm, 96, 3)
        assert all(torch.equal(value, start[name]) for name, value in model.urfm.state_dict().items())
    assert (
        training._stream(7, 20, np.random.default_rng(1)) == training._stream(7, 20, np.random.default_rng(1))
    ).all()
    assert sorted(training._stream(7, 14, np.random.default_rng(1))) == sorted([*range(7)] * 2)


def test_a_training_is_a_function_of_its_seed_and_lowers_the_loss():
    targets = np.broadcast_to(fixed_targets(1), (40, 64, 96))  # the same for every image: can be learnt by heart
    arm = Arm("medical", learning_rate=2e-3)
    runs = [training.pretrain(arm, IMAGES, targets, seed=0, steps=40, batch=8, checkpoints=(10,)) for _ in range(2)]
    losses = [list(run.losses.values()) for run in runs]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0] - 0.15
    kept = runs[0].checkpoints[10].state_dict()
    assert any(not torch.equal(kept[name], value) for name, value in runs[0].encoder.state_dict().items())


def test_deblurring_predicts_the_sharp_pixels_of_blurred_images():
    sharp = torch.rand(2, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    small = training.shrink(sharp)
    seen = training._seen(sharp, small, Arm("pixel", blur=1.5), None, np.random.default_rng(0))
    assert seen.shape == small.shape == (2, 1, 64, 64) and seen.std() < 0.5 * small.std()
    assert torch.equal(training._seen(sharp, small, Arm("pixel"), None, np.random.default_rng(0)), small)
    model = training.new_model(Arm("pixel", blur=1.5), 0, 0)
    assert model.config.target == "representation" and model.config.target_hidden_size == 8 * 8 * 3
    # The same loss as pixel targets where nothing is blurred, but for the unbiased variance: 1 % at 192 numbers a patch.
    plain = training.new_model(Arm("pixel"), 0, 0)
    plain.load_state_dict(model.state_dict())
    inputs = small.expand(-1, 3, -1, -1)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, ::2] = True
    given = training.patchify(inputs, 8)
    a = model.eval()(inputs, target_features=given, bool_masked_pos=mask).loss
    b = plain.eval()(inputs, bool_masked_pos=mask).loss
    assert abs(a - b) < 0.02 * b


# ---------------------------------------------------------------- units


def test_answers_survive_their_encoding():
    classes, dice = np.array([0, 9, 10, 35]), np.array([0.0, 0.07, 0.5, 0.994, 1.0])
    assert encode(classes) == "09az" and (decode(encode(classes)) == classes).all()
    np.testing.assert_allclose(decode_dice(encode_dice(dice)), dice.round(2))


def test_every_unit_has_a_name_of_its_own_and_stands_behind_what_it_needs():
    for scale in (FULL, QUICK):
        planned = plan(scale)
        names = [unit.name for unit in planned]
        assert len(set(names)) == len(names) and all(
            set(n) <= set(units.DIGITS + units.DIGITS.upper() + "-.") for n in names
        )
        kinds = [unit.kind for unit in planned]
        assert kinds[: len(scale.levels)] == ["data"] * len(scale.levels) and "data" not in kinds[len(scale.levels) :]
    assert {unit.subject for unit in plan(FULL)} >= {*ARMS, *AUGMENTED, *LONGER, *ABLATIONS}
    assert len(FULL.seeds) >= 3


@pytest.mark.slow
def test_units_of_every_kind_leave_their_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "FULL", TINY)  # so that everything is asked
    monkeypatch.setattr(units, "LOW", (0.0,))
    chosen = [
        Unit("data", "0"), Unit("arm", "medical", 0), Unit("arm", "deblur", 0), Unit("arm", "frames", 0), Unit("arm", "random", 0),
        Unit("untrained", "scratch", 0), Unit("untrained", "teacher", 0), Unit("augmented", "pixel-augmented", 0),
        Unit("ablation", "EMA 0.99", 0), Unit("ablation", "teacher's last layer but one", 0),
        Unit("ablation", "loss on the scan region", 0), Unit("ablation", "cross-attention, a quarter predicted", 0),
        Unit("ablation", "targets layer-normalised", 0), Unit("tune", "pixel", 100),
    ]  # fmt: skip
    for unit in chosen:
        run_unit(unit, tmp_path, TINY)
    found = {unit.name: json.loads((tmp_path / "units" / f"{unit.name}.json").read_text()) for unit in chosen}
    truth, answers = found["data-0"]["truth"], found["arm-medical-0"]["answers"]
    assert len(truth["organ/in"]) == TINY.organ[2] and len(truth["lesion/out"]) == TINY.lesion[3]
    for key in (
        "linear/in",
        "linear/out",
        "knn/in",
        "linear@0.1#0/in",
        "linear/blur-3",
        "finetune@1/in",
        "finetune@0.1/out",
    ):
        assert len(answers[f"0/organ/{key}"]) == len(truth["organ/out" if key.endswith("out") else "organ/in"]), key
    assert {"0/mask/linear/in", "0/mask/finetune@1/in", "0/lesion/knn/out"} <= set(answers)
    assert f"0/organ/finetune{design.SCRATCH_LONGER}x@1/in" in found["untrained-scratch-0"]["answers"]
    assert found["arm-medical-0"]["pretraining"]["0"]["images"] == TINY.steps * TINY.batch
    assert found["arm-medical-0"]["settings_clean"] == dataclasses.asdict(design.CLEAN_ARMS["medical"])
    assert len(found["tune-pixel-100"]["tried"]) == len(design.LEARNING_RATES) * len(design.MASK_RATIOS)


def test_data_of_another_design_are_refused_before_any_work(tmp_path):
    units.check_data(tmp_path / "data", FULL)
    units.check_data(tmp_path / "data", FULL)
    with pytest.raises(ValueError, match="holds data of the full experiment"):
        units.check_data(tmp_path / "data", QUICK)
    command = [sys.executable, str(RECIPES / "reproduce.py"), "--quick", "--output_dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and "give another --output_dir" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "units").exists() and not (tmp_path / "logs").exists()


def test_a_unit_that_does_not_exist_is_refused_with_the_nearest():
    command = [sys.executable, str(RECIPES / "reproduce.py"), "--only", "arm-medcal-0", "--list"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and "arm-medical-0" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_run_that_is_ended_leaves_no_unit_running(tmp_path):
    command = [sys.executable, str(RECIPES / "reproduce.py"), "--quick", "--output_dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("logs/*.log")):
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.terminate()
    assert process.wait(timeout=60) != 0
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not list(tmp_path.glob("units/*.json"))


def test_a_share_of_the_labels_has_every_class_and_grows(tmp_path):
    data = corpora.labelled(tmp_path, 0.0, TINY, "organ")
    small, large = (downstream.labelled_share(data, data.rows["train"], share, 0) for share in (0.01, 0.5))
    assert set(small) < set(large) <= set(data.rows["train"]) and len(set(data.labels[small])) == 15


# ---------------------------------------------------------------- what is committed


@pytest.mark.skipif(not UNITS, reason="no units are committed")
def test_arms_are_set_as_the_committed_tuning_chose():
    for subject in design.TUNED:
        best = UNITS[f"tune-{subject}-100"]["best"]
        if subject == "finetune":
            assert {kind: tried["learning_rate"] for kind, tried in best.items()} == design.FINETUNE_RATE
            continue
        if subject == "finetune-longer":
            assert best["scratch"]["learning_rate"] == design.SCRATCH_LONGER_RATE
            continue
        name, _, clean = subject.partition("-")
        arm = design.settings_of(name, design.CLEAN if clean else design.HOME)
        assert (arm.learning_rate, arm.model["mask_ratio"]) == (best["learning_rate"], best["mask_ratio"]), subject


@pytest.mark.skipif(not UNITS, reason="no units are committed")
def test_committed_units_are_of_this_design_and_within_the_time():
    arms = {**ARMS, **AUGMENTED, **LONGER, **ABLATIONS}
    for name, unit in UNITS.items():
        assert unit["fingerprint"] == units.fingerprint(FULL), name
        assert unit["timings"]["cpu_s"] < 20 * 60, name
        if "settings" in unit:
            assert unit["settings"] == dataclasses.asdict(arms[unit["unit"]["subject"]]), name
    assert sum(unit["timings"]["cpu_s"] for unit in UNITS.values()) < 2 * 4 * 3600


QUOTED = r"[+-]\d+\.\d+ \([+-]\d+\.\d+ to [+-]\d+\.\d+\)"


@pytest.mark.skipif(not UNITS, reason="no units are committed")
def test_what_is_quoted_of_the_results_is_in_them():
    results = json.loads((RESULTS / "results.json").read_text())
    ablations = sorted(row["shown"] for row in results["tables"]["ablations"])
    assert sorted(re.findall(QUOTED, (RECIPES / "configs" / "urfm_base.yaml").read_text())) == ablations
    verdicts = {claim["shown"]: claim["verdict"] for claim in results["claims"]}
    page = (RECIPES / "RUNNING_FOR_REAL.md").read_text().partition("<!-- defaults -->")[2]
    assert set(re.findall(QUOTED, page)) <= {*verdicts, *ablations}
    readme = (RECIPES.parent / "README.md").read_text()
    rows = readme.partition("## Do the paper's claims hold?")[2].partition("\n## ")[0].splitlines()
    rows = [row for row in rows if re.search(QUOTED, row)]
    assert len(rows) > 10
    for row in rows:
        _, _, measured, verdict, _ = row.split("|")
        assert verdict.strip().startswith(verdicts[measured.strip()]), row


@pytest.mark.slow
def test_the_quick_run_reproduces_the_order_of_the_committed_table(tmp_path):
    started = time.perf_counter()
    command = [sys.executable, str(RECIPES / "reproduce.py"), "--quick", "--output_dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    cpu_s = results["timings"]["units_cpu_h"] * 3600
    print(
        f"{time.perf_counter() - started:.0f} s, {cpu_s:.0f} CPU seconds", json.dumps(results.get("compared"), indent=1)
    )
    assert cpu_s < 2 * 8 * 60  # two cores
    if UNITS:
        assert results["compared"] and all(row["agrees"] for row in results["compared"]), results["compared"]
    pair = {(row["level"], row["a"], row["b"]): row["cell"]["value"] for row in results["tables"]["pairs"]}
    assert pair.get((0.0, "medical", "pixel"), -pair.get((0.0, "pixel", "medical"), 1.0)) > 0  # with or without a table
    assert (tmp_path / "REPORT.md").stat().st_size > 2000 and (tmp_path / "claims.png").stat().st_size > 10_000
    # Nothing is repeated: the same command is done at once.
    before = (tmp_path / "units" / "arm-medical-0.json").stat().st_mtime_ns
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "units" / "arm-medical-0.json").stat().st_mtime_ns == before
