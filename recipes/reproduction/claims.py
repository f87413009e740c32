# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The claims: what is said, by whom, how it is measured here, and what phantoms cannot tell about it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from modeling_urfm.evaluation.corruptions import PUBLISHED

from .curves import (
    finetuning_curve,
    label_curve,
    reaching,
    scaled,
    teacher_seconds,
    training_cost,
    training_curve,
)
from .design import HOME, SCRATCH_LONGER, Scale
from .measures import (
    BASELINE,
    BOTH,
    DICE,
    F1,
    Claim,
    ablation_differences,
    above,
    average,
    corrupted,
    drop,
    finetuned_tasks,
    judge,
    low_levels,
    simultaneous,
)
from .scores import Answers, Missing, combine, estimate, mean, minus


def judge_all(answers: Answers, units: dict[str, dict], scale: Scale) -> tuple[list[dict], list[str]]:
    """Every claim that can be measured, in order, and a line on each that can't."""
    judged, left_out = [], []
    for claim in claims(answers, units, scale):
        try:
            judged.append(judge(claim))
        except Missing as missing:
            left_out.append(f"{claim.name}: {missing}")
    return judged, left_out


def claims(answers: Answers, units: dict[str, dict], scale: Scale) -> list[Claim]:
    """All of them, grouped by question."""
    return [
        *_generalisation(answers, scale), *_labels(answers, scale), *_time(answers, units), *_signal(answers, scale),
        *_robustness(answers), *_beyond(answers, scale), *_ablation(answers),
    ]  # fmt: skip


DRAWN = "Phantoms are drawn: that a gap is there says something of the method, its size nothing of patients' images."
SCANNER = "The other scanner is a second drawing routine; real hospitals differ in more than it changes."
AT_HOME = f"Asked at {HOME:g} dB alone, of one small encoder and one short schedule."


def _generalisation(answers: Answers, scale: Scale) -> list[Claim]:
    paper = "The paper claims better generalisation than earlier methods."
    probes = paper + (
        " In US-JEPA's linear probes URFM is above USF-MAE, a masked autoencoder, on all eight data sets of UltraBench."
    )
    low, tasks = low_levels(scale), finetuned_tasks(scale)
    where, tuned = named(low), f"Fine-tuned on all labels ({plural(tasks)})"

    def gap(protocol, side, levels=(HOME,), tasks=BOTH, other="pixel"):
        return above(answers, "medical", other, protocol, side=side, levels=levels, tasks=tasks)

    def claim(name, measure, cannot, paper=paper, unit=F1):
        return Claim(name, "generalisation", measure, paper, cannot, unit)

    coarse = "Masks are those of 8 x 8 patches, enlarged; drawn lesions have sharper outlines than real ones."
    return [
        claim(f"Linear probe at {where}: medical above pixel", gap("linear", "in", low), DRAWN, probes),
        claim(f"Linear probe at {where}, other scanner: medical above pixel", gap("linear", "out", low), SCANNER),
        claim(f"kNN at {where}: medical above pixel", gap("knn", "in", low), DRAWN),
        claim(f"kNN at {where}, other scanner: medical above pixel", gap("knn", "out", low), SCANNER),
        claim(f"{tuned}: medical above pixel", gap("finetune@1", "in", tasks=tasks), AT_HOME),
        claim(f"{tuned}, other scanner: medical above pixel", gap("finetune@1", "out", tasks=tasks), SCANNER),
        claim(f"{tuned}: medical above no pre-training", gap("finetune@1", "in", tasks=tasks, other="scratch"), AT_HOME),
        claim("Lesion masks from frozen features: medical above pixel", gap("linear", "in", tasks=("mask",)), coarse, unit=DICE),
        claim("Lesion masks, fine-tuned: medical above pixel", gap("finetune@1", "in", tasks=("mask",)), coarse, unit=DICE),
    ]  # fmt: skip


def _labels(answers: Answers, scale: Scale) -> list[Claim]:
    paper = "The paper claims better label efficiency than earlier methods."
    few = "A tenth of these labels is some dozens of images; how many a clinic needs depends on its task."
    rough = "Read off a curve of a few shares of this labelled set; it says nothing of a set of another size."
    two = "Read off a curve of two points, a tenth and all of the labels: an order of magnitude, no more."

    def a_tenth(arm, task):
        return mean([answers.score(arm, f"{HOME:g}/{task}/linear@0.1#{draw}/in") for draw in scale.label_seeds])

    def probed(task):
        return lambda: estimate(minus(a_tenth("medical", task), a_tenth("pixel", task)))

    def tuned(task):
        return above(answers, "medical", "scratch", "finetune@0.1", tasks=(task,))

    def needed(arm, protocol="linear"):
        def measure():
            target = answers.score(arm, f"{HOME:g}/organ/{protocol}/in")
            return scaled(reaching(label_curve(answers, "medical", "organ", scale), target), 100.0)

        return measure

    def needed_finetuned():
        curve = [(share, answers.score("medical", f"{HOME:g}/organ/finetune@{share:g}/in")) for share in (0.1, 1.0)]
        return scaled(reaching(curve, answers.score("scratch", f"{HOME:g}/organ/finetune@1/in")), 100.0)

    def claim(name, measure, cannot, unit=F1, below=None):
        return Claim(name, "label efficiency", measure, paper, cannot, unit, below)

    share = {"unit": "% of the labels", "below": 100.0}
    return [
        claim("Fine-tuned on 10 % of the organs' labels: medical above no pre-training", tuned("organ"), few),
        claim("Fine-tuned on 10 % of the lesions' labels: medical above no pre-training", tuned("lesion"), few),
        claim("Linear probe on 10 % of the organs' labels: medical above pixel", probed("organ"), few),
        claim("Linear probe on 10 % of the lesions' labels: medical above pixel", probed("lesion"), few),
        claim("Linear probe: medical reaches pixel's score with fewer labels", needed("pixel"), rough, **share),
        claim("Linear probe: medical reaches an untrained encoder's score with fewer labels", needed("scratch"), rough, **share),
        claim("A probe of medical reaches fine-tuning from scratch with fewer labels", needed("scratch", "finetune@1"), rough,
              **share),
        claim("Fine-tuned: medical reaches no pre-training's score with fewer labels", needed_finetuned, two, **share),
    ]  # fmt: skip


def _time(answers: Answers, units: dict[str, dict]) -> list[Claim]:
    paper = "The paper claims better training-time efficiency than earlier methods."
    few = "Where the target learns little, few steps are enough to pass it; one small model, one batch size."
    machine = "Seconds of this code at these sizes: a teacher as large as BiomedCLIP on a GPU costs another share."
    filled = "Seconds of this code at these sizes; filling the cache, once for all runs on a corpus, is not counted."
    slowing = "The learning rate falls over the whole fine-tuning: its first part is not a fine-tuning cut short."

    def steps():
        return reaching(
            training_curve(answers, "medical", "organ"), answers.score("pixel", f"{HOME:g}/organ/linear/in")
        )

    def share_of_steps():
        found = steps()
        note = _at_once(answers, found.least) if found.value <= found.least else None
        return scaled(found, 100 / training_cost(answers, "pixel")["steps"], note)

    def share_of_seconds(online):
        def measure():
            ours, theirs = training_cost(answers, "medical"), training_cost(answers, "pixel")
            seconds = ours["student_cpu_s"] + (ours["images"] * teacher_seconds(units) if online else 0)
            return scaled(steps(), 100 * seconds / ours["steps"] / theirs["student_cpu_s"])

        return measure

    def share_of_finetuning():
        curve = finetuning_curve(answers, "medical", "organ")
        return scaled(reaching(curve, answers.score("scratch", f"{HOME:g}/organ/finetune@1/in")), 100.0)

    def claim(name, measure, cannot, unit=F1, below=None):
        return Claim(name, "training time", measure, paper, cannot, unit, below)

    seconds = {"unit": "% of pixel's CPU seconds", "below": 100.0}
    return [
        claim("Medical reaches pixel's final linear score in fewer steps", share_of_steps, few, "% of the steps", 100.0),
        claim("Medical reaches pixel's final score in fewer CPU seconds, teacher on every image", share_of_seconds(True),
              machine, **seconds),
        claim("Medical reaches pixel's final score in fewer CPU seconds, features cached", share_of_seconds(False), filled,
              **seconds),
        claim("Fine-tuned: medical reaches no pre-training's final score sooner", share_of_finetuning, slowing,
              "% of the fine-tuning", 100.0),
        claim(f"Fine-tuned, organs: medical above no pre-training with {SCRATCH_LONGER} times the fine-tuning",
              above(answers, "medical", "scratch", "finetune@1", f"finetune{SCRATCH_LONGER}x@1", tasks=("organ",)), AT_HOME),
        claim("Linear probe: medical above pixel with four times the steps", above(answers, "medical", "pixel-longer"), AT_HOME),
    ]  # fmt: skip


def _at_once(answers: Answers, first: float) -> str:
    """The first look was enough: was it training at all, or would an untrained encoder have done?"""
    words = f"step {first:g}, the first that was looked at, is enough"
    try:
        untrained, pixel = (estimate(average(answers, arm, tasks=("organ",))).value for arm in ("scratch", "pixel"))
    except Missing:
        return words
    return f"{words}; an untrained encoder has {untrained:.1f}, pixel in the end {pixel:.1f}"


def _signal(answers: Answers, scale: Scale) -> list[Claim]:
    paper = "The paper's reason for a teacher's features as targets: ultrasound has a low signal-to-noise ratio."
    noise = "The noise is simulated speckle of a ratio that was set; the ratio of a patient's image is not known."
    ceiling = "A gap also shrinks where both arms come near to what the task allows, whatever the noise."

    def gap(level, tasks):
        return minus(*(average(answers, arm, levels=(level,), tasks=tasks) for arm in ("medical", "pixel")))

    def slope(tasks):
        def measure():
            both = (set(scale.levels) & _levels(answers, "medical")) & _levels(answers, "pixel")
            levels = sorted(both, reverse=True)
            if len(levels) < 2:
                raise Missing("medical and pixel share fewer than two levels")
            x = np.array(levels) - np.mean(levels)  # least squares, in points per 10 dB of falling ratio
            found = estimate(combine(*((-10 * w, gap(level, tasks)) for w, level in zip(x / (x @ x), levels))))
            return replace(found, note=None if len(levels) == len(scale.levels) else f"of {named(levels)} alone")

        return measure

    def claim(name, measure, cannot, unit=F1):
        return Claim(name, "signal-to-noise", measure, paper, cannot, unit)

    per, best, worst = f"{F1} per 10 dB", max(scale.levels), min(scale.levels)
    return [
        claim("The gap between medical and pixel grows as the signal sinks", slope(BOTH), noise, per),
        claim("The gap between medical and pixel in organs grows as the signal sinks", slope(("organ",)), ceiling, per),
        claim("The gap between medical and pixel in lesions grows as the signal sinks", slope(("lesion",)), ceiling, per),
        claim(f"Linear probe at the lowest noise, {best:g} dB: medical above pixel", lambda: estimate(gap(best, BOTH)), ceiling),
        claim(f"Linear probe at the highest noise, {worst:g} dB: medical above pixel", lambda: estimate(gap(worst, BOTH)), noise),
    ]  # fmt: skip


def _levels(answers: Answers, arm: str) -> set[float]:
    """At which an arm's linear probe was asked about organs."""
    keys = {key for unit in answers.units.get(arm, {}).values() for key in unit["answers"]}
    return {float(key.split("/")[0]) for key in keys if key.endswith("/organ/linear/in")}


def _robustness(answers: Answers) -> list[Claim]:
    weakness = (
        "US-JEPA on URFM, macro-F1 under the strongest blur: POCUS 91.7 to 46.8, Butterfly 92.1 to 22.4; Butterfly -44.6 % "
        "under the strongest speckle."
    )
    floor = "An arm whose clean score is low has less to lose; the scores themselves are in the table."
    made = "Blur, contrast and speckle are computed; a scanner's own artefacts were not tested."
    known = "The augmentation holds the kinds of change that are tested; of changes that it does not hold this says nothing."

    def loses_less(better, worse, corruptions=PUBLISHED):
        return lambda: estimate(minus(drop(answers, worse, corruptions), drop(answers, better, corruptions)))

    def claim(name, measure, cannot, paper=weakness):
        return Claim(name, "robustness", measure, paper, cannot)

    every = f"{', '.join(PUBLISHED[:-1])} and {PUBLISHED[-1]}".capitalize()
    mended, organ = "when pre-trained with augmentation", {"tasks": ("organ",)}
    return [
        claim(f"{every}: medical loses less than pixel (organs)", loses_less("medical", "pixel"), floor),
        *[claim(f"{name.capitalize()}: medical loses less than pixel", loses_less("medical", "pixel", (name,)), floor)
          for name in PUBLISHED],
        claim("On the corrupted images: medical above pixel",
              lambda: estimate(minus(corrupted(answers, "medical"), corrupted(answers, "pixel"))), made),
        *[claim(f"{name.capitalize()}: medical loses less {mended}", loses_less("medical-augmented", "medical", (name,)), known)
          for name in PUBLISHED],
        claim(f"On clean images: medical better {mended}", above(answers, "medical-augmented", "medical", **organ), AT_HOME,
              None),
        claim(f"{every}: pixel loses less {mended}", loses_less("pixel-augmented", "pixel"), known, None),
        claim(f"On clean images: pixel better {mended}", above(answers, "pixel-augmented", "pixel", **organ), AT_HOME, None),
    ]  # fmt: skip


# ---------------------------------------------------------------- what the paper does not ask


def _beyond(answers: Answers, scale: Scale) -> list[Claim]:
    low, tasks = low_levels(scale), finetuned_tasks(scale)
    passes = "Of photographs: dBOT's student reaches 85.7 on ImageNet, its CLIP teacher 84.5."
    bound = "The teacher saw clean phantoms with captions, at twice the student's resolution: no contest of equals."
    small = "Small networks and a short schedule; a million images and 1,200 epochs may end otherwise."

    def claim(name, measure, cannot, paper=None):
        return Claim(name, "beyond the paper", measure, paper, cannot)

    def at_low(name, a, b, cannot, paper=None):
        return claim(f"Linear probe at {named(low)}: {name}", above(answers, a, b, levels=low), cannot, paper)

    return [
        at_low("targets averaged over frames above medical", "frames", "medical",
               "Phantoms' speckle is drawn anew for every frame; neighbouring frames of a real loop share some of it."),
        at_low("medical above a teacher of another domain", "medical", "other",
               "That teacher saw drawn scenes; CLIP saw photographs, which have more in common with anything."),
        at_low("a teacher of another domain above pixel", "other", "pixel", DRAWN),
        at_low("medical above an untrained teacher", "medical", "random", DRAWN),
        at_low("medical above deblurring", "medical", "deblur", DRAWN, "DeblurringMIM is the same authors' earlier method."),
        at_low("medical above an untrained encoder", "medical", "scratch", DRAWN),
        at_low("pixel above an untrained encoder", "pixel", "scratch", small),
        at_low("the student (medical) above its teacher", "medical", "teacher", bound, passes),
        claim(f"Fine-tuned on all labels ({plural(tasks)}): the student above its teacher",
              above(answers, "medical", "teacher", "finetune@1", tasks=tasks), bound, passes),
        claim("Linear probe: the student with four times the steps above its teacher",
              above(answers, "medical-longer", "teacher"), bound, passes),
        claim("Linear probe: medical above pixel, both with four times the steps",
              above(answers, "medical-longer", "pixel-longer"), small),
    ]  # fmt: skip


def _ablation(answers: Answers) -> list[Claim]:
    found = ablation_differences(answers)
    best = max(found, key=lambda name: found[name].value, default=None)

    def measure():
        if best is None:
            raise Missing(f"no unit of {BASELINE}, or none of a variant")
        note = f"{best}, the best of {len(found)}; the interval allows for having chosen it"
        return replace(found[best], note=note, interval=simultaneous(found)[best])

    name = "Linear probe: the best variant of medical above the baseline"
    alone = "One thing was changed at a time, at one noise level and one short schedule; effects need not add up."
    return [Claim(name, "ablation", measure, None, alone)]


def named(levels: Sequence[float]) -> str:
    return " and ".join(f"{level:g}" for level in levels) + " dB"


def plural(tasks: Sequence[str]) -> str:
    return " and ".join(f"{task}s" for task in tasks)
