# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The parts of REPORT.md that are tables: what each arm scored, how it was trained, what the ablations say."""

from collections.abc import Sequence
from dataclasses import fields

from modeling_urfm.evaluation.corruptions import PUBLISHED, SEVERITIES

from .design import CLEAN_FROM, IMAGE_SIZE, STUDENT_SIZE, Arm
from .markdown import cell, cells_table, folded, number, table
from .measures import FAILS, HOLDS, UNDECIDED


CLEAN_LEVELS = f"{CLEAN_FROM:g} dB and above"
KEPT = {"kept": "kept (%)", "drop": "lost"}


def teacher(results: dict) -> str:
    rows, design = results["tables"]["frozen"], results["design"]
    parts = [
        _frozen_table(rows, design, "linear", "in"),
        folded("Linear probe, another scanner's images", _frozen_table(rows, design, "linear", "out")),
        folded("kNN", _frozen_table(rows, design, "knn", "in")),
        folded("kNN, another scanner's images", _frozen_table(rows, design, "knn", "out")),
    ]
    sides = {"in": "in distribution", "out": "another scanner"}
    masks = cells_table(rows, {f"{design['home']:g}/mask/linear/{side}": words for side, words in sides.items()})
    parts.append(folded(f"Lesion masks from frozen features, Dice, {design['home']:g} dB", masks))
    return "\n\n".join([
        "## The teacher first: frozen features\n\nWhat the teacher does not see no student can learn from it, so its own probe "
        "is the first row. Linear probe on frozen features, macro-F1 in points ± standard deviation over seeds, the 95 % "
        "interval below. Guessing has about 33 points in lesions, always the most frequent class 21: probes of features that "
        "hold little tend to the latter as labels grow, so weak arms lie below 33 there, and gaps in lesions are some points "
        "wider for it.", *filter(None, parts),
    ])  # fmt: skip


def _frozen_table(rows: Sequence[dict], design: dict, protocol: str, side: str) -> str:
    columns = {
        f"{level:g}/{task}/{protocol}/{side}": f"{level:g} dB {task}s"
        for level in design["levels"] for task in ("organ", "lesion")
    }  # fmt: skip
    return cells_table(rows, columns)


def design(results: dict) -> str:
    design = results["design"]
    patients = design["test_patients"]
    low = " and ".join(f"{level:g}" for level in design["low"])
    arms = [
        [results["arms"].get(name, name) + where, f"`{name}`" * (name in results["arms"]), f"{chosen['learning_rate']:g}",
         _differences(chosen)]
        for settings, where in (("settings", ""), ("settings_clean", f", {CLEAN_LEVELS}"))
        for name, chosen in design[settings].items()
    ]  # fmt: skip
    encoder, organ, lesion = design["encoder"], design["organ"], design["lesion"]
    corpus = (
        f"{design['patients']} patients x {design['frames']} frames x {design['views']} crops, and the real frames that come "
        "with pydicom, without labels"
    )
    text = f"""
## Data, arms, budget

- Corpus: {corpus}; the same anatomy at {", ".join(f"{level:g}" for level in design["levels"])} dB. "Low signal" is {low} dB;
  what is asked once is asked at {design["home"]:g} dB.
- Labels: organs {organ[0]} for training, {organ[1]} for validation, {patients["organ/in"]} and {patients["organ/out"]} (another
  scanner) for the test; lesions {lesion[0]}, {lesion[1]}, {patients["lesion/in"]} and {patients["lesion/out"]}. One image a
  patient; splits are by patient. A share of the labels holds one image of each class at least.
- Encoder: {encoder["num_hidden_layers"]} layers x {encoder["hidden_size"]}, {encoder["image_size"]} px, patches of
  {encoder["patch_size"]}; the same for all arms, with the same weights at the start of a seed.
- Pre-training: {design["steps"]} steps of {design["batch"]} images, the same images in the same order for all arms of a seed.
- Tuning: {_budget(results)}
- The scale (image and patch size, steps, batch, decoder) was found before, with targets of the medical teacher in six runs and
  with pixels in one (`recipes/EXPERIMENTS.md`), on phantoms that are in no test set here: if that favours an arm, it is the
  medical one.
- Seeds: {", ".join(map(str, design["seeds"]))}. A seed sets weights, order and masks alone. The teachers, the corpus and the
  labelled sets are one draw each: how much others would change is in no interval.

{table(["arm", "name", "learning rate", "differs from the defaults by"], arms) if arms else ""}

{_tuning(results)}

{_pretraining(results)}
"""
    return text


def _budget(results: dict) -> str:
    """What each arm had to choose from, as the units of the tuning have it, not as it was planned."""
    design, rows = results["design"], {row["subject"]: row for row in results["tables"]["tuning"]}
    if not rows:
        return "none in this run; the settings are those that the full one chose."
    noisy = {name: row for name, row in rows.items() if not name.startswith("finetune") and not name.endswith("-clean")}
    again = {name.removesuffix("-clean"): row for name, row in rows.items() if name.endswith("-clean")}
    parts = []
    if noisy:
        parts.append(
            f"{_choices(noisy)}, learning rate and mask ratio, in {design['tuning_steps']} steps each, at {design['home']:g} dB, "
            "on validation alone, with a seed of its own. Frames, augmentation, more steps and the ablations inherit the settings "
            "of `medical` or `pixel`."
        )
    if again:
        level = next(iter(again.values()))["level"]
        parts.append(f"Once more at {level:g} dB, for {CLEAN_LEVELS}: {_choices(again)}.")
    if "finetune" in rows:
        by_kind = {}
        for tried in rows["finetune"]["tried"]:
            by_kind.setdefault(tried["kind"], {"tried": []})["tried"].append(tried)
        parts.append(
            f"Fine-tuning: {_choices(by_kind)}, the learning rate, on all labels of the organs; each keeps its rate for other "
            "tasks and shares of the labels."
        )
    if "finetune-longer" in rows:
        count = len(rows["finetune-longer"]["tried"])
        parts.append(f"No pre-training, fine-tuned longer, chose once more, at that length, from {count}.")
    return " ".join(parts)


def _choices(rows: dict[str, dict]) -> str:
    """How many candidates each had."""
    counts = {name: len(row["tried"]) for name, row in rows.items()}
    if len(set(counts.values())) > 1:
        return f"unequal choices ({', '.join(f'{name} {count}' for name, count in counts.items())})"
    return f"{', '.join(counts)} chose from {min(counts.values())} candidates each"


def _differences(chosen: dict) -> str:
    """What an arm's settings change: `Arm`'s fields and the model's."""
    default = Arm(chosen["targets"])
    changed = {"targets": chosen["targets"]} | {
        field.name: chosen[field.name]
        for field in fields(Arm)
        if field.name not in ("targets", "learning_rate", "model")
        and chosen.get(field.name, getattr(default, field.name)) != getattr(default, field.name)
    }
    said = (name if value is True else f"{name} {value}" for name, value in (changed | chosen["model"]).items())
    return ", ".join(text.replace("_", " ") for text in said)


def _tuning(results: dict) -> str:
    rows = []
    for row in results["tables"]["tuning"]:
        for tried in row["tried"]:
            what = ", ".join(
                f"{name.replace('_', ' ')} {value}"
                for name, value in tried.items()
                if name not in ("score", "organ", "lesion", "chosen")
            )
            best = "best" if tried["chosen"] else ""
            rows.append([row["subject"], f"{row['level']:g}", what, f"{tried['score']:.1f}", best])
    lines = table(["arm", "dB", "tried", "validation score (points)", ""], rows)
    return folded("What the tuning tried, on validation", lines) if rows else ""


def _pretraining(results: dict) -> str:
    rows = [
        [
            row["label"], f"{row['level']:g}", row["seeds"], row["steps"], row["images"], number(row["student_cpu_s"], 0),
            number(row["teacher_cpu_s"], 0), number(row["loss_first"], 3), number(row["loss_last"], 3),
            number(row["blind"], 3), number(row["ratio"], 2), number(row["late"], 2),
        ] for row in results["tables"]["pretraining"]
    ]  # fmt: skip
    if not rows:
        return ""
    head = ["arm", "dB", "seeds", "steps", "images", "student, CPU s", "teacher, CPU s", "first loss", "last loss",
            "blind loss", "last / first", "late fall"]  # fmt: skip
    words = (
        "Means over seeds. The teacher's seconds are those of seeing every image that is shown. Targets averaged over frames are "
        "counted as one image too, since all frames of a loop are in the corpus; elsewhere they need a pass of the teacher for "
        "every frame of the loop. A cosine loss is given as "
        "1 - cosine. *Blind loss* is that of a student that knows where a patch is and nothing of the image. *Late fall* is the "
        "part of the whole fall of the loss that its last quarter brought: near 0, the loss is at its floor, which need not be "
        "0: speckle cannot be predicted."
    )
    return folded("Pre-training: steps, seconds, losses", f"{words}\n\n{table(head, rows)}")


def finetuned(results: dict) -> str:
    columns = {
        f"{task}/finetune@{share}/{side}": f"{words}{', another scanner' if side == 'out' else ''}{more}"
        for task, words in (("organ", "organs"), ("lesion", "lesions"), ("mask", "masks (Dice)"))
        for share, more in (("1", ""), ("0.1", ", 10 %"))
        for side in ("in", "out") if side == "in" or share == "1"
    }  # fmt: skip
    lines = cells_table(results["tables"]["finetuned"], columns)
    return f"Fine-tuned at {results['design']['home']:g} dB:\n\n{lines}" if lines else ""


def labels(results: dict) -> str:
    parts = []
    for task in ("organ", "lesion"):
        rows = [row for row in results["tables"]["labels"] if task in row["tasks"]]
        shares = sorted({point["x"] for row in rows for point in row["tasks"][task]})
        cells = [
            [row["label"], *(cell({p["x"]: p["cell"] for p in row["tasks"][task]}.get(share)) for share in shares)]
            for row in rows
        ]
        if cells:
            head = ["linear probe", *(f"{100 * share:.3g} % of the labels" for share in shares)]
            parts.append(folded(f"Scores by share of the labels, {task}s", table(head, cells)))
    return "\n\n".join(parts)


def gaps(results: dict) -> str:
    rows = [
        [
            f"{row['level']:g}",
            *(cell(row["cells"].get(task), "+") for task in ("mean", "organ", "lesion")),
            *(cell(row["cells"].get(f"share/{task}"), "+") for task in ("mean", "organ", "lesion")),
        ] for row in results["tables"]["gaps"]
    ]  # fmt: skip
    head = ["dB", "mean", "organs", "lesions", *(f"{task}, % of the lead" for task in ("mean", "organs", "lesions"))]
    words = (
        "Medical less pixel, linear probe, in points; and in per cent of the teacher's lead over random weights at the same level "
        "(post hoc: decided on after the first results were seen), which is unstable where that lead is small:"
    )
    return "\n\n".join(filter(None, (words, table(head, rows), _ends(results)))) if rows else ""


def _ends(results: dict) -> str:
    """What the gap is bounded by at the cleanest and at the noisiest level."""
    arms = {row["arm"]: row["cells"] for row in results["tables"]["frozen"]}
    levels = results["design"]["levels"]

    best, worst = max(levels), min(levels)
    try:
        high, low = (
            {arm: number(arms[arm][f"{level:g}/organ/linear/in"]["value"]) for arm in ("medical", "pixel", "teacher", "scratch")}
            for level in (best, worst)
        )  # fmt: skip
    except KeyError:
        return ""
    return (
        f"A possible reason, found afterwards: both ends bound the gap in organs. At {best:g} dB medical has {high['medical']} of "
        f"100 points, its teacher {high['teacher']}, and pixels see the organ too ({high['pixel']}). At {worst:g} dB the teacher "
        f"itself is down to {low['teacher']} and random weights have {low['scratch']}, which leaves little to teach (medical has "
        f"{low['medical']}, pixel {low['pixel']}). It does not explain lesions."
    )


def robustness(results: dict) -> str:
    columns = {"clean": "clean"}
    columns |= {f"{kind}/{name}": f"{words} under {name}" for kind, words in KEPT.items() for name in PUBLISHED}
    columns |= {f"{name}-{SEVERITIES[-1]}": f"strongest {name}" for name in PUBLISHED}
    lines = cells_table(results["tables"]["robustness"], columns)
    words = f"""
Organs at {results["design"]["home"]:g} dB alone. Corruptions are laid on at {IMAGE_SIZE} px, with the lengths in pixels of the
published protocol, which has 224 px; students see {STUDENT_SIZE} px, so a blur's sigma of 1 to 3 px is half of that for them.
*Kept* is the part of the lead over chance on clean images that is left, *lost* is in points; both are means over severities.
Who has more to lose loses more points: the claims are of what is kept.
""".strip()
    return f"{words}\n\n{lines}" if lines else ""


def defaults(results: dict) -> str:
    """Which settings the ablations speak for: a change where the interval that holds for all variants together excludes 0."""
    rows, arms = results["tables"]["ablations"], results["design"]["settings"]
    if not rows:
        return ""
    best, better = rows[0], [f"`{row['name']}`" for row in rows if row["ci95_all"][0] > 0]
    low, high = best["ci95_all"]
    follows = (
        f"For another default than the baseline's setting speak: {', '.join(better)}."
        if better
        else "That excludes 0 from below: the baseline's settings stay, every variant is worse."
        if high < 0
        else "That contains 0: nothing here speaks for another default than the baseline's settings."
    )
    named = {
        word: "; ".join(row["name"] for row in rows if row["verdict"] == verdict) or "none"
        for word, verdict in (("better", HOLDS), ("worse", FAILS), ("undecided", UNDECIDED))
    }
    lines = table(
        ["variant", "less the baseline (95 % interval)", "interval of all together", "sd over seeds", "seeds"],
        [
            [
                row["name"], row["shown"], f"{row['ci95_all'][0]:+.1f} to {row['ci95_all'][1]:+.1f}", number(row["sd"]),
                len(row["seeds"]),
            ] for row in rows
        ],
    )  # fmt: skip
    share = arms["baseline"]["length"]
    return f"""
The baseline is the arm `medical` with {share:g} times its steps; one thing at a time is different from it. All run at its
learning rate, which was tuned for it and not for the variants, and are compared on test patients: scores of a variant that is
chosen here are a little too good.

The best of {len(rows)} variants is {best["name"]}: {best["shown"]} points. The interval that allows for having chosen the best is
{low:+.1f} to {high:+.1f}; from {len(best["seeds"])} seeds, where these differ by more than patients, it is too narrow. {follows}

By the interval of each alone:

- better: {named["better"]};
- worse: {named["worse"]};
- undecided (by cost, or after a rehearsal): {named["undecided"]}.

{lines}"""
