# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What is concluded from the units of `recipes/reproduce.py`: planted truths come back, missing parts are said, reports repeat."""

import copy
import json
import math
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from modeling_urfm.hub.results import finite
from modeling_urfm.pretraining.teacher import DEMO_TEACHER
from recipes.reproduction import analysis
from recipes.reproduction.analysis import analyse, compare_with, read_units
from recipes.reproduction.claims import claims
from recipes.reproduction.curves import first_reached, share_of_organs
from recipes.reproduction.design import CLEAN_ARMS, FULL, HOME, LEVELS, QUICK, SCRATCH_LONGER, settings_of
from recipes.reproduction.measures import CHANCE, FAILS, HOLDS, QUESTIONS, UNDECIDED, shown, simultaneous, verdict
from recipes.reproduction.report import as_markdown, write_report
from recipes.reproduction.scores import (
    DRAWS,
    Answers,
    Estimate,
    computed,
    estimate,
    macro_f1,
    minus,
    over_seeds,
    patient_draws,
    seed_draws,
)
from recipes.reproduction.units import encode

from .planted_units import planted_units, truth_of


LINEAR_AT_LOW = "Linear probe at 0 and -6 dB: medical above pixel"
LABELS_OF_PIXEL = "Linear probe, organs: medical needs fewer labels for pixel's score"
STEPS_OF_PIXEL = "Organs: medical needs fewer steps for pixel's final linear score"
SLOPE = "The gap between medical and pixel grows as the signal sinks"
SHARE = "The gap as a share of the teacher's lead over random weights grows as the signal sinks (post hoc)"
NO_PRETRAINING = f"no pre-training, fine-tuned {SCRATCH_LONGER} times as long"
AS_LONG = "no pre-training, fine-tuned as long (post hoc)"
TUNED = "Fine-tuned on all labels (organs and lesions): medical above "


def skill(arm, level, task, protocol, side):
    """Medical above pixel by 20 points at 0 dB and by 0.5 points more for every dB less; organs as lesions."""
    gap = 0.2 - 0.005 * level
    p = {"teacher": 0.75, "medical": 0.4 + gap, "medical-augmented": 0.58, "scratch": 0.3, "pixel": 0.4}.get(arm, 0.5)
    if share := re.match(r"linear@([\d.]+)", protocol):  # straight on a logarithmic axis, all the way to the last point
        return p + 0.2 * math.log10(share_of_organs(float(share[1]), FULL) if task == "organ" else float(share[1]))
    if step := re.match(r"linear-step(\d+)", protocol):
        return p + 0.2 * math.log10(int(step[1]) / FULL.steps)
    if corrupted := re.match(r"linear/\w+-(\d)", protocol):
        return p * (1 - int(corrupted[1]) * (0.1 if arm == "medical-augmented" else 0.2))
    if protocol.startswith("finetune5x@1/"):
        return p + 0.15
    if tuned := re.match(r"finetune@1-share([\d.]+)", protocol):
        return p * (0.5 + 0.5 * float(tuned[1]))
    return p


def equal_skill(arm, level, task, protocol, side):
    return 0.5


def swapped_skill(arm, *question):
    return skill({"medical": "pixel", "pixel": "medical"}.get(arm, arm), *question)


@pytest.fixture(scope="module")
def units():
    return planted_units(FULL, skill, spread=0.01)


@pytest.fixture(scope="module")
def results(units):
    return analyse(units, FULL)


def by_name(results: dict) -> dict:
    return {claim["name"]: claim for claim in results["claims"]}


def markdown(results: dict) -> str:
    return as_markdown(json.loads(json.dumps(finite(results))), [])


def contains(ci95, value) -> bool:
    return ci95[0] <= value <= ci95[1]


# ---------------------------------------------------------------- the bootstrap


def test_macro_f1_of_draws_is_that_of_scikit_learn_on_the_drawn_images():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 40)  # few images: draws without a class, answers of classes that are not drawn
    answers = np.where(rng.random(40) < 0.5, truth, rng.integers(0, 8, 40))
    weights = patient_draws("a test set", 40)
    found = macro_f1(truth, answers, weights)
    assert len(found) == 1 + DRAWS and found[0] == pytest.approx(
        f1_score(truth, answers, average="macro", zero_division=0)
    )
    for draw in range(1, 60):
        rows = np.repeat(np.arange(40), weights[draw].astype(int))
        expected = f1_score(truth[rows], answers[rows], average="macro", zero_division=0)
        assert found[draw] == pytest.approx(expected), draw


def test_interval_equals_that_of_a_slow_loop(units):
    answers = Answers(units)
    difference = minus(*(answers.score(arm, "0/lesion/linear/in") for arm in ("medical", "pixel")))
    truth = truth_of(FULL)["lesion/in"]
    weights, seeds = patient_draws("lesion/in", len(truth)), seed_draws(3)
    slow = []
    for draw in range(1, 40):
        rows = np.repeat(np.arange(len(truth)), weights[draw].astype(int))
        of_seed = []
        for seed in range(3):
            a, b = (
                np.array([int(c, 36) for c in units[f"arm-{arm}-{seed}"]["answers"]["0/lesion/linear/in"]])
                for arm in ("medical", "pixel")
            )
            of_seed.append(100 * (np.subtract(*(f1_score(truth[rows], x[rows], average="macro") for x in (a, b)))))
        slow.append(float(seeds[draw] @ of_seed))
    assert over_seeds(difference)[1:40] == pytest.approx(slow)


def test_draws_are_of_all_patients_and_the_same_for_all():
    weights = patient_draws("organ/in", 450)
    assert (weights[0] == 1).all() and (weights.sum(1) == 450).all() and weights is patient_draws("organ/in", 450)
    assert not np.array_equal(weights, patient_draws("lesion/in", 450))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_seeds_alone_differ_an_interval_is_that_of_students_t(seeds):
    weights = seed_draws(seeds)
    assert weights.shape == (1 + DRAWS, seeds)
    assert weights.sum(1) == pytest.approx(1) and weights[0] == pytest.approx(1 / seeds)
    values = np.random.default_rng(1).standard_normal(seeds)
    found = estimate({seed: np.full(1 + DRAWS, value) for seed, value in enumerate(values)}).ci95
    half = stats.t.ppf(0.975, seeds - 1) * values.std(ddof=1) / math.sqrt(seeds)
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_one_seed_says_nothing_of_others():
    assert (seed_draws(1) == 1).all() and seed_draws(1).shape == (1 + DRAWS, 1)


@pytest.mark.parametrize("of_seeds, of_patients", [(1.0, 0.0), (0.05, 10.0), (1.0, 10.0), (1.0, 3.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(of_seeds, of_patients):
    """Whether seeds, patients or both make an experiment vary: 95 %, or more where both have a share."""
    rng, patients, experiments = np.random.default_rng(0), 300, 2000
    weights = patient_draws("of a simulation", patients) / patients
    seeds, difficulty = rng.standard_normal((experiments, 3, 1)), rng.standard_normal((experiments, 1, patients))
    scores = of_seeds * seeds + (of_patients * difficulty) @ weights.T
    held = np.mean([contains(estimate(dict(enumerate(score))).ci95, 0) for score in scores])
    assert 0.93 <= held <= 0.985


def test_intervals_of_macro_f1_hold_the_truth():
    rng, truth, weights = np.random.default_rng(0), np.arange(450) % 15, patient_draws("organ/in", 450)
    covered, repeats = 0, 100
    for _ in range(repeats):
        difficulty, scores = rng.standard_normal(450), {"a": {}, "b": {}}
        for arm, p in (("a", 0.6), ("b", 0.45)):
            for seed in range(3):
                latent = 0.7 * difficulty + math.sqrt(1 - 0.49) * rng.standard_normal(450)
                right = latent < np.quantile(rng.standard_normal(20_000), p + 0.02 * rng.standard_normal())
                wrong = (truth + rng.integers(1, 15, 450)) % 15
                scores[arm][seed] = 100 * macro_f1(truth, np.where(right, truth, wrong), weights)
        covered += contains(estimate(minus(scores["a"], scores["b"])).ci95, 15)
    assert covered / repeats >= 0.93


def test_a_ratio_is_of_means_and_of_each_seed_alone():
    part, whole = {0: np.array([1.0, 2.0]), 1: np.array([3.0, 4.0])}, {1: np.array([6.0, 8.0]), 0: np.array([4.0, 2.0])}
    found = computed(np.divide, {seed: np.resize(x, 1 + DRAWS) for seed, x in part.items()},
                     {seed: np.resize(x, 1 + DRAWS) for seed, x in whole.items()})  # fmt: skip
    assert found.value == pytest.approx(2 / 5) and found.by_seed == (0.25, 0.5) and found.seeds == (0, 1)
    first = seed_draws(2)[1]
    assert found.draws[0] == pytest.approx(first @ [2, 4] / (first @ [2, 8]))


def test_estimate_of_what_is_not_always_reached():
    draws = np.concatenate([np.full(960, 20.0), np.full(40, np.inf)])
    found = Estimate(20.0, draws, (0, 1), (20.0, np.inf), most=100.0)
    assert found.ci95 == (20.0, np.inf) and math.isnan(found.sd)
    assert shown(found, below=100.0) == "20 % (20 to > 100)" and verdict(found, below=100.0) == UNDECIDED
    never = Estimate(np.inf, np.full(1000, np.inf), (0,), (np.inf,), most=100.0)
    assert shown(never, below=100.0) == "> 100 %" and verdict(never, below=100.0) == FAILS
    cut_short = Estimate(np.inf, np.full(1000, np.inf), (0,), (np.inf,), most=80.0)
    assert shown(cut_short, below=100.0) == "> 80 %" and verdict(cut_short, below=100.0) == UNDECIDED
    at_once = Estimate(5.0, np.full(1000, 5.0), (0,), (5.0,), least=5.0, most=100.0)
    assert shown(at_once, below=100.0) == "≤ 5 %" and verdict(at_once, below=100.0) == HOLDS


@pytest.mark.parametrize(
    "ends, expected", [((1, 2), HOLDS), ((-2, -1), FAILS), ((-1, 1), UNDECIDED), ((0, 1), UNDECIDED)]
)
def test_verdict_of_a_difference(ends, expected):
    assert verdict(Estimate(0.0, np.zeros(3), (0,), (0.0,), interval=ends)) == expected


def test_first_reached_is_that_of_a_slow_search():
    rng, x = np.random.default_rng(0), np.array([0.01, 0.05, 0.1, 0.5, 1.0])
    curves, targets = rng.random((200, 5)), rng.random(200)
    for found, curve, target in zip(first_reached(x, curves, targets), curves, targets):
        fine = np.exp(np.linspace(np.log(x[0]), np.log(x[-1]), 20_001))
        above = np.interp(np.log(fine), np.log(x), curve) >= target
        assert found == pytest.approx(fine[above.argmax()] if above.any() else np.inf, rel=1e-3)


def test_intervals_that_hold_together_are_wider_and_do():
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        values = rng.standard_normal(16)
        found = {
            str(i): Estimate(value, value + rng.standard_normal(1000), (0,), (value,)) for i, value in enumerate(values)
        }
        together = simultaneous(found)
        held += all(contains(interval, 0) for interval in together.values())
        assert together["0"][0] < found["0"].ci95[0] and together["0"][1] > found["0"].ci95[1]
    assert 0.9 <= held / 200 <= 0.99


# ---------------------------------------------------------------- planted truths


def test_planted_scores_lie_in_their_intervals(results):
    """Answers that are wrong in all ways alike have a macro-F1 of about the share that is right."""
    inside = []
    for row in results["tables"]["frozen"]:
        for column, cell in row["cells"].items():
            level, task, protocol, side = column.split("/")
            if task in ("organ", "lesion"):
                inside.append(
                    contains(cell["ci95"], 100 * skill(row["arm"], float(level), task, f"{protocol}/{side}", side))
                )
    assert len(inside) > 100 and np.mean(inside) > 0.9


def test_fine_tuning_that_ends_below_the_frozen_probe_is_said_to_be_unfinished(results):
    def stunted(arm, level, task, protocol, side):
        return 0.2 if arm == "pixel" and protocol.startswith("finetune@1/") else skill(arm, level, task, protocol, side)

    found = by_name(analyse(planted_units(FULL, stunted, spread=0.01), FULL))
    assert "that fine-tuning is unfinished" in found[f"{TUNED}pixel"]["note"]
    assert by_name(results)[f"{TUNED}pixel"]["note"] is None


def test_planted_differences_come_back_with_the_verdict_that_is_theirs(results):
    found = by_name(results)
    assert contains(found[LINEAR_AT_LOW]["ci95"], 21.5) and found[LINEAR_AT_LOW]["verdict"] == HOLDS
    assert contains(found[SLOPE]["ci95"], 5.0) and found[SLOPE]["unit"].endswith("per 10 dB")
    assert found["Linear probe at 0 and -6 dB: the student (medical) above its teacher"]["verdict"] == FAILS
    for level, than, gap in (("0 dB than at the clean end, 30 dB", 30, 15), ("-6 dB, the lowest, than at 0 dB", 0, 3)):
        assert contains(found[f"The gap in organs is larger at {level}"]["ci95"], gap), than
    assert contains(found[SHARE]["ci95"], 100 * 5 / 45) and found[SHARE]["unit"].endswith("lead per 10 dB")
    blur = found["Blur, organs: medical keeps more of its lead over chance with augmentation than without"]
    kept = [(100 * p * left - CHANCE) / (100 * p - CHANCE) for p, left in ((0.58, 0.8), (0.6, 0.6))]
    assert contains(blur["ci95"], 100 * (kept[0] - kept[1])) and blur["verdict"] == HOLDS
    # 20 points less on a curve that falls by 20 a decade: a tenth of the labels.
    assert contains(found[LABELS_OF_PIXEL]["ci95"], 10) and found[LABELS_OF_PIXEL]["verdict"] == HOLDS
    # Without pre-training it is 30, and 45 after five times as long; medical is 60 times (1 + share) / 2.
    assert contains(found[f"{TUNED}{NO_PRETRAINING}"]["ci95"], 15)
    assert contains(found[f"{TUNED}{AS_LONG}"]["ci95"], 30)
    sooner = found[f"Fine-tuned, organs: medical is sooner at the final score of {NO_PRETRAINING}"]
    assert contains(sooner["ci95"], 50 / SCRATCH_LONGER) and sooner["verdict"] == HOLDS
    rows = {row["arm"]: row["cells"] for row in results["tables"]["finetuned"]}
    assert contains(rows["scratch"]["mean/finetune@1/in"]["ci95"], 30)
    assert contains(rows["scratch-longer"]["mean/finetune@1/in"]["ci95"], 45)
    assert {row["level"] for row in results["tables"]["gaps"]} == set(LEVELS)
    for row in results["tables"]["gaps"]:
        gap = 20 - 0.5 * row["level"]
        assert contains(row["cells"]["mean"]["ci95"], gap), row
        assert contains(row["cells"]["share/mean"]["ci95"], 100 * gap / 45), row


def test_labels_and_steps_that_are_needed_are_read_off_the_curve():
    def closer(arm, level, task, protocol, side):
        return skill(arm, level, task, protocol, side) + (0.05 if arm == "pixel" else 0)

    found = by_name(analyse(planted_units(FULL, closer, rng_seed=1), FULL))
    labels, steps = found[LABELS_OF_PIXEL], found[STEPS_OF_PIXEL]
    for needed in (labels, steps):  # 15 points less on curves that fall by 20 a decade
        assert contains(needed["ci95"], 100 * 10**-0.75) and 10 < needed["value"] < 30 and needed["verdict"] == HOLDS
    online, cached = (
        found[f"Organs: medical needs fewer CPU seconds for pixel's final linear score, {how}"]
        for how in ("teacher on every image", "features cached")
    )
    # A step takes 0.05 s of pixel and 0.04 s of medical, and 32 images 0.032 s of the teacher.
    assert online["value"] == pytest.approx(steps["value"] * 0.072 / 0.05, rel=1e-3)
    assert cached["value"] == pytest.approx(steps["value"] * 0.04 / 0.05, rel=1e-3)


def test_what_a_share_says_little_of_is_noted():
    def pixel_learns_nothing(arm, level, task, protocol, side):
        worse = {"pixel": 0.07, "teacher": 0.31}
        return worse[arm] if arm in worse else skill(arm, level, task, protocol, side)

    results = analyse(planted_units(FULL, pixel_learns_nothing), FULL)
    found = by_name(results)
    shares = [claim for claim in results["claims"] if "pixel's" in claim["name"] and claim["below"]]
    assert len(shares) == 4
    for claim in shares:
        assert "is not above an untrained encoder's, " in claim["note"], claim["name"]
    assert "the teacher's lead at 30 dB is" in found[SHARE]["note"]
    robust = found["Blur, organs: medical keeps more of its lead over chance than pixel"]
    assert (
        robust["note"].startswith("pixel's lead over chance on clean images is")
        and "medical's lead" not in robust["note"]
    )
    text = markdown(results)
    assert all(claim["note"] in text for claim in (*shares, robust))


def test_no_difference_is_undecided():
    results = analyse(planted_units(FULL, equal_skill, rng_seed=1), FULL)
    found = by_name(results)
    assert found[LINEAR_AT_LOW]["verdict"] == found[SLOPE]["verdict"] == UNDECIDED
    differences = [claim for claim in results["claims"] if claim["below"] is None]
    assert np.mean([claim["verdict"] == UNDECIDED for claim in differences]) > 0.85
    assert found["Linear probe: the best variant of medical above the baseline"]["verdict"] == UNDECIDED


def test_a_claim_that_is_wrong_does_not_hold_and_says_so():
    results = analyse(planted_units(FULL, swapped_skill), FULL)
    found = by_name(results)
    assert found[LINEAR_AT_LOW]["verdict"] == found[SLOPE]["verdict"] == FAILS
    labels = found[LABELS_OF_PIXEL]
    assert labels["verdict"] == FAILS and labels["shown"] == "> 100 %" and labels["value"] == math.inf


def test_every_claim_is_whole_and_asks_one_of_the_questions(results, units):
    assert len(results["claims"]) == len(claims(Answers(units), units, FULL)) and not results["left_out"]
    assert len(by_name(results)) == len(results["claims"])
    for claim in results["claims"]:
        assert claim["question"] in QUESTIONS and claim["verdict"] in (HOLDS, FAILS, UNDECIDED), claim
        assert claim["seeds"] == [0, 1, 2] and claim["cannot_conclude"].endswith(".") and claim["unit"], claim
        low, high = claim["ci95"]
        assert low <= claim["value"] <= high or claim["below"], claim
        assert claim["sd"] is not None and claim["shown"], claim
    assert [c["question"] for c in results["claims"]] == sorted(
        (c["question"] for c in results["claims"]), key=QUESTIONS.index
    )
    assert results["metrics"][HOLDS] + results["metrics"]["does_not_hold"] + results["metrics"][UNDECIDED] == len(
        results["claims"]
    )


# ---------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    "pattern",
    ["arm-pixel", "arm-medical", "arm-(other|random|frames|deblur)", "tune", "untrained", "augmented", "longer", "ablation",
     "data-(30|10|-6)", "arm|untrained|augmented|longer|ablation"],
)  # fmt: skip
def test_parts_that_are_missing_are_left_out_and_said(units, results, pattern):
    fewer = {name: unit for name, unit in units.items() if not re.match(pattern, name)}
    found = analyse(fewer, FULL)
    assert len(found["claims"]) + len(found["left_out"]) == len(results["claims"])
    assert set(found["units"]["missing"]) == set(units) - set(fewer)
    whole = by_name(results)
    for claim in found["claims"]:
        if not claim["note"]:
            assert claim["shown"] == whole[claim["name"]]["shown"], claim["name"]
    text = markdown(found)
    for line in found["left_out"]:
        assert line in text


@pytest.mark.parametrize("pattern", ["arm-pixel", "arm|untrained|augmented|longer|ablation"])
def test_pictures_of_parts_are_drawn_where_there_is_something_to_draw(units, pattern, tmp_path):
    (tmp_path / "ablations.png").write_text("of an earlier report")
    found = analyse({name: unit for name, unit in units.items() if not re.match(pattern, name)}, FULL)
    write_report(found, tmp_path)
    named = re.findall(r"\]\((\S+)\)", (tmp_path / "REPORT.md").read_text())
    assert set(named) | {"REPORT.md"} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "ablations.png").is_file() == (pattern == "arm-pixel")


def test_arms_are_compared_on_the_seeds_that_both_have(units):
    fewer = {name: unit for name, unit in units.items() if name not in ("arm-medical-0", "arm-pixel-2")}
    claim = by_name(analyse(fewer, FULL))[LINEAR_AT_LOW]
    assert claim["seeds"] == [1] and claim["n"] == 1 and math.isnan(claim["sd"])
    fewer = {name: unit for name, unit in units.items() if name not in ("arm-medical-0", "arm-pixel-1", "arm-pixel-2")}
    found = analyse(fewer, FULL)
    assert f"{LINEAR_AT_LOW}: no seed has all of it" in found["left_out"]


def test_levels_that_are_missing_are_noted(units):
    fewer = copy.deepcopy(units)
    for name, unit in fewer.items():
        if name.startswith("arm-pixel"):
            unit["answers"] = {key: text for key, text in unit["answers"].items() if not key.startswith("10/")}
    assert by_name(analyse(fewer, FULL))[SLOPE]["note"] == "of 30 and 0 and -6 dB alone"


def test_reading_units_refuses_what_is_not_there_or_damaged(units, tmp_path):
    with pytest.raises(FileNotFoundError, match="python recipes/reproduce.py"):
        read_units(tmp_path)
    unit = units["arm-medical-0"]
    (tmp_path / "arm-medical-0.json").write_text(json.dumps(unit))
    (tmp_path / ".tmp-arm-pixel-0.json").write_text("{")  # being written
    assert read_units(tmp_path) == {"arm-medical-0": unit}
    for text in (
        "",
        "[]",
        json.dumps(unit)[:-100],
        json.dumps({**unit, "answers": {}}),
        json.dumps({"unit": unit["unit"]}),
    ):
        (tmp_path / "arm-pixel-0.json").write_text(text)
        with pytest.raises(ValueError, match="arm-pixel-0.json is damaged .*remove it"):
            read_units(tmp_path)


def test_units_that_do_not_belong_together_are_refused(units):
    with pytest.raises(ValueError, match="data-0.json is of the full experiment, not of the quick one"):
        analyse({"data-0": units["data-0"]}, QUICK)
    with pytest.raises(ValueError, match="kind data"):
        analyse({"arm-medical-0": units["arm-medical-0"]}, FULL)
    other = copy.deepcopy(units["data-10"])
    other["truth"]["organ/in"] = other["truth"]["organ/in"][::-1]
    with pytest.raises(ValueError, match="data-0 and data-10 do not hold the same truth"):
        analyse({"data-0": units["data-0"], "data-10": other}, FULL)
    short = copy.deepcopy(units["arm-medical-1"])
    short["answers"]["0/organ/linear/in"] = encode(np.zeros(3, int))
    with pytest.raises(ValueError, match="arm medical, seed 1, has 3 answers 0/organ/linear/in to 450 images"):
        analyse(units | {"arm-medical-1": short}, FULL)


def test_units_of_another_design_are_refused_by_name(units, monkeypatch):
    def refused(message, name, unit):
        with pytest.raises(ValueError, match=message) as raised:
            analyse({**units, name: unit}, FULL)
        assert "\n" not in str(raised.value)

    def without(name, field):
        return {key: value for key, value in units[name].items() if key != field}

    one = units["arm-medical-1"]
    of, of_clean = one["settings"], one["settings_clean"]
    for message, unit in (
        ("made by another design .0000, this is .*remove it", one | {"fingerprint": "0000"}),
        ("made by another design .None, this is", without("arm-medical-1", "fingerprint")),
        ("other settings than design.py: learning_rate 0.5, not ", one | {"settings": of | {"learning_rate": 0.5}}),
        (
            "other settings of the clean end than design.py: ema 0.9, not 0.0",
            one | {"settings_clean": of_clean | {"ema": 0.9}},
        ),
        ("other rate of fine-tuning than design.py: 0.5, not", one | {"finetune_rate": 0.5}),
    ):
        refused(f"arm-medical-1.json .*{message}", "arm-medical-1", unit)
    other = asdict(settings_of("other", HOME))
    for name in ("augmented-medical-augmented-0", "longer-pixel-longer-2", "ablation-baseline-1"):
        refused(f"{name}.json has other settings than", name, units[name] | {"settings": other})
    refused(
        "untrained-scratch-0.json has other rate",
        "untrained-scratch-0",
        without("untrained-scratch-0", "finetune_rate"),
    )
    refused(
        "untrained-scratch-0.json has other rate of the longer fine-tuning than design.py: 0.5, not",
        "untrained-scratch-0",
        units["untrained-scratch-0"] | {"finetune_rate_longer": 0.5},
    )
    refused("arm-medical-7.json is none of the units", "arm-medical-7", one | {"unit": one["unit"] | {"seed": 7}})
    refused("arm-medical-0.json is none of the units", "arm-medical-0", one)  # a renamed file
    # Without settings of its own for the clean end a unit was trained with the others there, which is not what they are now.
    monkeypatch.setitem(analysis.CLEAN_ARMS, "medical", replace(CLEAN_ARMS["medical"], learning_rate=7e-3))
    refused(
        "other settings of the clean end than design.py: .*not 0.007",
        "arm-medical-1",
        without("arm-medical-1", "settings_clean"),
    )


# ---------------------------------------------------------------- reports


def test_results_are_a_function_of_the_units(units, results, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--report_only", "--output_dir", "elsewhere"])
    again = analyse(dict(units), FULL)
    assert json.dumps(finite(again)) == json.dumps(finite(results))
    assert again["command"] == "python recipes/reproduce.py" and set(again["timings"]) == {
        "units_cpu_h",
        "longest_unit_cpu_s",
    }
    assert {"command", "versions", "seed", "metrics", "timings", "claims"} <= set(again)


def test_a_report_is_a_function_of_results_json(results, tmp_path):
    write_report(results, tmp_path / "a")
    write_report(json.loads((tmp_path / "a" / "results.json").read_text()), tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted([
        "REPORT.md", "ablations.png", "claims.png", "labels.png", "results.json", "robustness.png", "signal.png",
        "training_time.png",
    ])  # fmt: skip
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_report_shows_every_claim_with_its_verdict_and_the_teacher_first(results):
    text = as_markdown(json.loads(json.dumps(finite(results))), ["claims.png"])
    lines = text.splitlines()
    assert text.index("![") < text.index("## ") and text.count("\n- **") == 5  # one picture, five lines
    for claim in results["claims"]:
        row = next(line for line in lines if line.startswith(f"| {claim['name']} |"))
        assert f"| {claim['verdict']} |" in row and claim["shown"] in row
    table = text[text.index("## The teacher first") :]
    assert next(line for line in table.splitlines() if line.startswith("| t")).startswith(
        "| the medical teacher itself |"
    )
    assert (
        "python recipes/reproduce.py" in text
        and "None" not in text.replace("None is missing", "")
        and "nan" not in text
    )
    widths = {}
    for number, line in enumerate(lines):  # every row of a table has as many cells as its head
        if line.startswith("|"):
            widths[number] = widths.get(number - 1, line.count(" | "))
            assert line.count(" | ") == widths[number], line


def test_an_unequal_budget_of_the_tuning_is_said(units):
    fewer = copy.deepcopy({name: unit for name, unit in units.items() if unit["unit"]["kind"] in ("data", "tune")})
    text = markdown(analyse(fewer, FULL))
    assert "medical, pixel, deblur, other, random chose from 8 candidates each, learning rate and mask ratio" in text
    assert "Once more at 30 dB, for 10 dB and above: medical, pixel chose from 8 candidates each" in text
    assert "Fine-tuning: medical, pixel, deblur, scratch, teacher chose from 4 candidates each" in text
    assert "| finetune | 0 | kind scratch, learning rate 0.0003 | 50.3 | best |" in text
    del fewer["tune-pixel-100"]["tried"][0], fewer["tune-medical-clean-100"]
    finetune = fewer["tune-finetune-100"]  # of any kinds
    finetune["tried"] = [t | {"kind": "frames"} for t in finetune["tried"] if t["kind"] == "medical"]
    finetune["best"] = {"frames": finetune["tried"][0]}
    text = markdown(analyse(fewer, FULL))
    assert "unequal choices (medical 8, pixel 7, deblur 8, other 8, random 8)" in text
    assert "for 10 dB and above: pixel chose from 8" in text and "Fine-tuning: frames chose from 4" in text
    del fewer["tune-finetune-100"], fewer["tune-pixel-clean-100"]
    text = markdown(analyse(fewer, FULL))
    assert "Once more" not in text and "Fine-tuning:" not in text


def test_what_the_report_says_of_the_teacher_is_what_its_recipe_does(results):
    text = " ".join(markdown(results).split())
    assert "7,500 clean phantoms (20 to 40 dB)" in text and "noise of 0 to 30 dB was laid on 70 % of the images" in text
    assert json.loads((DEMO_TEACHER / "results.json").read_text())["metrics"]["images"] == 7500
    recipe = (Path(__file__).resolve().parents[2] / "recipes" / "train_demo_teacher.py").read_text()
    for line in (
        "CLEAN_DB = (20.0, 40.0)",
        "probability: float = 0.7",
        "torch.rand(batch, 1, 1, 1, generator=generator) * 30",
    ):
        assert line in recipe
    above = [
        claim
        for claim in results["claims"]
        if re.search("medical (above|is|needs).*(pixel|pre-training)", claim["name"])
    ]
    assert len(above) >= 20 and all(
        "brings the task, in words, and noise" in claim["cannot_conclude"] for claim in above
    )


def test_the_report_fits_any_folder(results):
    links = re.findall(
        r"\]\(([^)]+)\)", as_markdown(json.loads(json.dumps(finite(results))), ["claims.png", "signal.png"])
    )
    assert links and all("/" not in link for link in links), links


@pytest.mark.parametrize("planted", [swapped_skill, equal_skill])
def test_reports_of_other_outcomes_are_written(planted):
    results = analyse(planted_units(FULL, planted), FULL)
    text = markdown(results)
    assert f"| {LINEAR_AT_LOW} |" in text and ("| > 100 % of the labels |" in text) == (planted is swapped_skill)


def test_the_quick_scale_is_reported_and_compared_with_the_full_one(results, tmp_path):
    quick = analyse(planted_units(QUICK, skill), QUICK)
    assert quick["claims"] and all(claim["seeds"] == [0] and math.isnan(claim["sd"]) for claim in quick["claims"])
    compared = compare_with(quick, json.loads(json.dumps(results)))
    pairs = {(row["level"], row["higher"], row["lower"]) for row in compared}
    assert (HOME, "medical", "pixel") in pairs and (HOME, "teacher", "medical") in pairs
    assert {row["level"] for row in compared} == set(QUICK.levels) and all(
        row["same"] and row["agrees"] for row in compared
    )
    assert all(row["committed"]["ci95"][0] > 0 for row in compared)
    write_report(quick | {"compared": compared}, tmp_path)
    text = (tmp_path / "REPORT.md").read_text()
    assert "## Against the committed results" in text and "--quick" in text and "There is one seed" in text
    assert (
        f"at least {0.05 * len(quick['claims']):.0f} can be expected to miss" in text
        and "fine-tuned 5 times" not in text
    )
    assert "Fine-tuned on all labels (organs): medical above no pre-training" in by_name(quick)

    swapped = compare_with(analyse(planted_units(QUICK, swapped_skill), QUICK), results)
    row = next(r for r in swapped if (r["level"], r["higher"], r["lower"]) == (HOME, "medical", "pixel"))
    assert not row["same"] and not row["agrees"] and row["here"]["value"] < 0 < row["committed"]["value"]
