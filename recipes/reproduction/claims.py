# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The claims: what is said, by whom, how it is measured here, and what phantoms cannot tell about it."""

from collections.abc import Sequence
from dataclasses import replace

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
from .design import FULL, HOME, IMAGE_SIZE, LONGER, SCRATCH_LONGER, STUDENT_SIZE, Scale
from .measures import (
    BASELINE,
    BOTH,
    DICE,
    F1,
    Claim,
    Measure,
    ablation_differences,
    above,
    average,
    corrupted,
    finetuned_tasks,
    gap,
    gap_slope,
    judge,
    keeps_more,
    low_levels,
    scratch_protocol,
    share_slope,
    simultaneous,
)
from .scores import Answers, Estimate, Missing, estimate, mean, minus


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
        *_generalisation(answers, scale), *_labels(answers, scale), *_time(answers, units, scale), *_signal(answers, scale),
        *_robustness(answers), *_beyond(answers, scale), *_ablation(answers),
    ]  # fmt: skip


DRAWN = "Phantoms are drawn: that a gap is there says something of the method, its size nothing of patients' images."
SCANNER = "The other scanner is a second drawing routine; real hospitals differ in more than it changes."
AT_HOME = f"Asked at {HOME:g} dB alone, of one small encoder and one short schedule."
# Beside every claim that medical is above pixel or above no pre-training; the top of the report has it in full.
TAUGHT = "The teacher brings the task, in words, and noise (see the top)."
# Of every look under way, at pre-training and fine-tuning.
EARLY = "A look under way comes before the learning rate has fallen, which counts against medical."
AS_LONG = "no pre-training, fine-tuned as long (post hoc)"
RATES = "Rates of fine-tuning were chosen on organs, where pixel and no pre-training stay near chance: masks may want others."
HARDLY = "In so short a time an encoder without pre-training hardly starts to learn these images."
TIMES = f"{LONGER['medical-longer'].length:g} times the steps"
INHERITED = "The learning rate is the one that was tuned for fewer steps."


def without(scale: Scale) -> str:
    """Who pre-training is compared with, in words."""
    return "no pre-training" + (f", fine-tuned {SCRATCH_LONGER} times as long" if scale is FULL else "")


def _generalisation(answers: Answers, scale: Scale) -> list[Claim]:
    paper = "The paper claims better generalisation than earlier methods."
    probes = paper + (
        " In US-JEPA's linear probes URFM is above USF-MAE, a masked autoencoder, on all eight data sets of UltraBench."
    )
    low, tasks = low_levels(scale), finetuned_tasks(scale)
    where, tuned = named(low), f"Fine-tuned on all labels ({plural(tasks)})"

    def gap_of(protocol, side, levels=(HOME,), tasks=BOTH):
        return above(answers, "medical", "pixel", protocol, side=side, levels=levels, tasks=tasks)

    def tuned_gap(side):
        return lambda: replace(gap_of("finetune@1", side, tasks=tasks)(), note=_unfinished(answers, "pixel"))

    def claim(name, measure, cannot, paper=paper, unit=F1):
        return Claim(name, "generalisation", measure, paper, f"{cannot} {TAUGHT}", unit)

    scratch = above(answers, "medical", "scratch", "finetune@1", f"{scratch_protocol(scale)}@1", tasks=tasks)
    as_long = above(answers, "medical", "scratch", "finetune@1", tasks=tasks)
    coarse = "Masks are those of 8 x 8 patches, enlarged; drawn lesions have sharper outlines than real ones."
    return [
        claim(f"Linear probe at {where}: medical above pixel", gap_of("linear", "in", low), DRAWN, probes),
        claim(f"Linear probe at {where}, other scanner: medical above pixel", gap_of("linear", "out", low), SCANNER),
        claim(f"kNN at {where}: medical above pixel", gap_of("knn", "in", low), DRAWN),
        claim(f"kNN at {where}, other scanner: medical above pixel", gap_of("knn", "out", low), SCANNER),
        claim(f"{tuned}: medical above pixel", tuned_gap("in"), AT_HOME),
        claim(f"{tuned}, other scanner: medical above pixel", tuned_gap("out"), SCANNER),
        claim(f"{tuned}: medical above {without(scale)}", scratch, AT_HOME),
        *[claim(f"{tuned}: medical above {AS_LONG}", as_long, f"{AT_HOME} {HARDLY}")] * (scale is FULL),
        claim("Lesion masks from frozen features: medical above pixel", gap_of("linear", "in", tasks=("mask",)), coarse, unit=DICE),
        claim("Lesion masks, fine-tuned: medical above pixel", gap_of("finetune@1", "in", tasks=("mask",)), f"{coarse} {RATES}",
              unit=DICE),
        claim(f"Lesion masks, fine-tuned: medical above {AS_LONG}",
              above(answers, "medical", "scratch", "finetune@1", tasks=("mask",)), f"{coarse} {RATES}", unit=DICE),
    ]  # fmt: skip


def _unfinished(answers: Answers, arm: str) -> str | None:
    """Fine-tuning that ends below a linear probe of the frozen features has not ended."""
    tuned, frozen = (answers.score(arm, f"{HOME:g}/organ/{protocol}/in") for protocol in ("finetune@1", "linear"))
    if estimate(minus(frozen, tuned)).ci95[0] <= 0:
        return None
    return (
        f"{arm} has {estimate(tuned).value:.1f} in organs, less than a linear probe of its frozen features, "
        f"{estimate(frozen).value:.1f}: that fine-tuning is unfinished, and a longer one was not tried"
    )


def _labels(answers: Answers, scale: Scale) -> list[Claim]:
    paper = "The paper claims better label efficiency than earlier methods."
    validated = (
        f"Settings and epoch are chosen on all labels of validation ({scale.organ[1]} patients of organs, {scale.lesion[1]} "
        "of lesions), however few train."
    )
    few = "A tenth of these labels is some dozens of images; how many a clinic needs depends on its task."
    rough = "Read off a curve of a few shares of this labelled set; it says nothing of a set of another size."
    two = "Read off a curve of two points, a tenth and all of the labels: an order of magnitude, no more."
    scratch, nothing = scratch_protocol(scale), without(scale)

    def a_tenth(arm, task):
        return mean([answers.score(arm, f"{HOME:g}/{task}/linear@0.1#{draw}/in") for draw in scale.label_seeds])

    def probed(task):
        return lambda: estimate(minus(a_tenth("medical", task), a_tenth("pixel", task)))

    def tuned(task, theirs=f"{scratch}@0.1"):
        return above(answers, "medical", "scratch", "finetune@0.1", theirs, tasks=(task,))

    def needed(arm, protocol="linear"):
        def measure():
            target = answers.score(arm, f"{HOME:g}/organ/{protocol}/in")
            note = _untrained_above_pixel(answers) if arm == "pixel" else None
            return scaled(reaching(label_curve(answers, "medical", "organ", scale), target), 100.0, note)

        return measure

    def needed_finetuned():
        curve = [(share, answers.score("medical", f"{HOME:g}/organ/finetune@{share:g}/in")) for share in (0.1, 1.0)]
        return scaled(reaching(curve, answers.score("scratch", f"{HOME:g}/organ/{scratch}@1/in")), 100.0)

    def claim(name, measure, cannot, unit=F1, below=None):
        return Claim(name, "label efficiency", measure, paper, f"{cannot} {validated} {TAUGHT}", unit, below)

    share = {"unit": "% of the labels", "below": 100.0}
    times = f", {SCRATCH_LONGER} times as long," if scale is FULL else ""
    return [
        claim(f"Fine-tuned on 10 % of the organs' labels: medical above {nothing}", tuned("organ"), few),
        claim(f"Fine-tuned on 10 % of the lesions' labels: medical above {nothing}", tuned("lesion"), few),
        *[claim(f"Fine-tuned on 10 % of the {task}s' labels: medical above {AS_LONG}", tuned(task, "finetune@0.1"),
                f"{few} {HARDLY}") for task in BOTH if scale is FULL],
        claim("Linear probe on 10 % of the organs' labels: medical above pixel", probed("organ"), few),
        claim("Linear probe on 10 % of the lesions' labels: medical above pixel", probed("lesion"), few),
        claim("Linear probe, organs: medical needs fewer labels for pixel's score", needed("pixel"), rough, **share),
        claim("Linear probe, organs: medical needs fewer labels for an untrained encoder's score", needed("scratch"), rough,
              **share),
        claim(f"Linear probe, organs: medical needs fewer labels for what fine-tuning without pre-training{times} has",
              needed("scratch", f"{scratch}@1"), rough, **share),
        claim(f"Fine-tuned, organs: medical needs fewer labels for the score of {nothing}", needed_finetuned, two, **share),
    ]  # fmt: skip


def _time(answers: Answers, units: dict[str, dict], scale: Scale) -> list[Claim]:
    paper = "The paper claims better training-time efficiency than earlier methods."
    few = f"Where the target learns little, few steps are enough to pass it; one small model, one batch size. {EARLY}"
    known = (
        f"Seconds of this code at these sizes, taken as known without error: the interval is that of the steps. {EARLY}"
    )
    machine = f"{known} A teacher as large as BiomedCLIP on a GPU costs another share."
    filled = f"{known} Filling the cache, once for all runs on a corpus, is not counted."
    tuning = f"The time of pre-training is not counted. {EARLY}"
    times = SCRATCH_LONGER if scale is FULL else 1

    def steps():
        return reaching(training_curve(answers, "medical", "organ"), average(answers, "pixel", tasks=("organ",)))

    def share_of_steps():
        found = steps()
        return scaled(found, 100 / training_cost(answers, "pixel")["steps"], _at_once(answers, found))

    def share_of_seconds(online):
        def measure():
            found, ours, theirs = steps(), training_cost(answers, "medical"), training_cost(answers, "pixel")
            seconds = ours["student_cpu_s"] + (ours["images"] * teacher_seconds(units) if online else 0)
            return scaled(found, 100 * seconds / ours["steps"] / theirs["student_cpu_s"], _at_once(answers, found))

        return measure

    def share_of_finetuning():
        curve = finetuning_curve(answers, "medical", "organ")
        target = answers.score("scratch", f"{HOME:g}/organ/{scratch_protocol(scale)}@1/in")
        return scaled(reaching(curve, target), 100.0 / times)

    def claim(name, measure, cannot, unit=F1, below=None):
        return Claim(name, "training time", measure, paper, f"{cannot} {TAUGHT}", unit, below)

    seconds = {"unit": "% of pixel's CPU seconds", "below": 100.0}
    return [
        claim("Organs: medical needs fewer steps for pixel's final linear score", share_of_steps, few, "% of the steps", 100.0),
        claim("Organs: medical needs fewer CPU seconds for pixel's final linear score, teacher on every image",
              share_of_seconds(True), machine, **seconds),
        claim("Organs: medical needs fewer CPU seconds for pixel's final linear score, features cached",
              share_of_seconds(False), filled, **seconds),
        claim(f"Fine-tuned, organs: medical is sooner at the final score of {without(scale)}", share_of_finetuning, tuning,
              "% of that fine-tuning", 100.0),
        claim(f"Linear probe: medical above pixel, pixel with {TIMES}", above(answers, "medical", "pixel-longer"),
              f"{AT_HOME} {INHERITED}"),
    ]  # fmt: skip


def _at_once(answers: Answers, steps: Estimate) -> str | None:
    """Is few steps' being enough no more than what an untrained encoder could do?"""
    first = f"step {steps.least:g}, the first that was looked at, is enough" if steps.value <= steps.least else None
    return "; ".join(filter(None, (first, _untrained_above_pixel(answers)))) or None


def _untrained_above_pixel(answers: Answers) -> str | None:
    """A share of what pixel needed says little where pixel learned nothing that can be told."""
    try:
        untrained, pixel = (average(answers, arm, tasks=("organ",)) for arm in ("scratch", "pixel"))
        learned = estimate(minus(pixel, untrained)).ci95[0] > 0
    except Missing:
        return None
    if learned:
        return None
    return (
        f"pixel's own score, {estimate(pixel).value:.1f}, is not above an untrained encoder's, {estimate(untrained).value:.1f}, by "
        "more than the interval: it takes little to reach it"
    )


def _signal(answers: Answers, scale: Scale) -> list[Claim]:
    paper = "The paper's reason for a teacher's features as targets: ultrasound has a low signal-to-noise ratio."
    noise = "The noise is simulated, at a ratio that was set; the ratio of a patient's image is not known."
    ends = (
        "A gap also shrinks, whatever the noise, at the ceiling (both arms near what the task allows) and at the floor (both near "
        "chance)."
    )
    post_hoc = (
        "Post hoc: this measure was decided on after the first results were seen. The lead is of linear probes, too."
    )

    def slope(of, tasks, arms=("medical", "pixel")):
        def measure():
            levels = sorted(set(scale.levels).intersection(*(_levels(answers, arm) for arm in arms)), reverse=True)
            if len(levels) < 2:
                raise Missing(f"{' and '.join(arms)} share fewer than two levels")
            found = of(answers, levels, tasks)
            partly = None if len(levels) == len(scale.levels) else f"of {named(levels)} alone"
            return replace(found, note="; ".join(filter(None, (partly, found.note))) or None)

        return measure

    def larger(level, than, tasks):
        return lambda: estimate(minus(gap(answers, level, tasks), gap(answers, than, tasks)))

    def claim(name, measure, cannot, unit=F1, paper=paper):
        return Claim(name, "signal-to-noise", measure, paper, f"{cannot} {TAUGHT}", unit)

    per, best, worst = f"{F1} per 10 dB", max(scale.levels), min(scale.levels)
    of_lead = "percentage points of the teacher's lead per 10 dB"
    pairs = [(HOME, best, f"at {HOME:g} dB than at the clean end, {best:g} dB")]
    pairs += [(worst, HOME, f"at {worst:g} dB, the lowest, than at {HOME:g} dB")] * (worst < HOME)
    four = ("medical", "pixel", "teacher", "scratch")
    return [
        claim("The gap between medical and pixel grows as the signal sinks", slope(gap_slope, BOTH), f"{noise} {ends}", per),
        claim("The gap in organs grows as the signal sinks", slope(gap_slope, ("organ",)), ends, per),
        claim("The gap in lesions grows as the signal sinks", slope(gap_slope, ("lesion",)), ends, per),
        *[claim(f"The gap{words} is larger {where}", larger(level, than, tasks), ends)
          for level, than, where in pairs for words, tasks in (("", BOTH), (" in organs", ("organ",)))],
        *[claim(f"The gap{words} as a share of the teacher's lead over random weights grows as the signal sinks (post hoc)",
                slope(share_slope, tasks, four), post_hoc, of_lead, None)
          for words, tasks in (("", BOTH), (" in organs", ("organ",)))],
        claim(f"Linear probe at the lowest noise, {best:g} dB: medical above pixel",
              above(answers, "medical", "pixel", levels=(best,)), ends),
        claim(f"Linear probe at the highest noise, {worst:g} dB: medical above pixel",
              above(answers, "medical", "pixel", levels=(worst,)), f"{noise} {ends}"),
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
    made = (
        f"Computed corruptions of organs at {HOME:g} dB, laid on at {IMAGE_SIZE} px with the lengths of the published 224 px; "
        f"students see {STUDENT_SIZE} px, so half of a blur's sigma. A scanner's own artefacts were not tested."
    )
    known = "The augmentation holds the kinds of change that are tested; of changes that it does not hold this says nothing."
    kept = "percentage points of the lead over chance"

    def keeps(better, worse, corruptions=PUBLISHED) -> Measure:
        return lambda: keeps_more(answers, better, worse, corruptions)

    def claim(name, measure, cannot, paper=weakness, unit=kept):
        return Claim(name, "robustness", measure, paper, cannot, unit)

    every = f"{', '.join(PUBLISHED[:-1])} and {PUBLISHED[-1]}".capitalize()
    more, mended, organ = "keeps more of its lead over chance", "with augmentation than without", {"tasks": ("organ",)}
    above_pixel = f"{made} {TAUGHT}"
    return [
        claim(f"{every}, organs: medical {more} than pixel", keeps("medical", "pixel"), above_pixel),
        *[claim(f"{name.capitalize()}, organs: medical {more} than pixel", keeps("medical", "pixel", (name,)), above_pixel)
          for name in PUBLISHED],
        claim("On the corrupted images, organs: medical above pixel",
              lambda: estimate(minus(corrupted(answers, "medical"), corrupted(answers, "pixel"))), above_pixel, weakness, F1),
        *[claim(f"{name.capitalize()}, organs: medical {more} {mended}", keeps("medical-augmented", "medical", (name,)), known)
          for name in PUBLISHED],
        claim(f"On clean images, organs: medical better {mended}", above(answers, "medical-augmented", "medical", **organ),
              AT_HOME, None, F1),
        claim(f"{every}, organs: pixel {more} {mended}", keeps("pixel-augmented", "pixel"), known, None),
        claim(f"On clean images, organs: pixel better {mended}", above(answers, "pixel-augmented", "pixel", **organ), AT_HOME,
              None, F1),
    ]  # fmt: skip


# ---------------------------------------------------------------- what the paper does not ask


def _beyond(answers: Answers, scale: Scale) -> list[Claim]:
    low, tasks = low_levels(scale), finetuned_tasks(scale)
    passes = "Of photographs: dBOT's student reaches 85.7 on ImageNet, its CLIP teacher 84.5."
    bound = (
        "No contest of equals: the teacher sees twice the student's resolution, and was trained on other phantoms, their "
        "captions and noise of 0 to 30 dB."
    )
    small = "Small networks and a short schedule; a million images and 1,200 epochs may end otherwise."
    taught = f"{DRAWN} {TAUGHT}"

    def claim(name, measure, cannot, paper=None):
        return Claim(name, "beyond the paper", measure, paper, cannot)

    def masks(name, b, protocol="linear", paper=None):
        return Claim(f"Lesion masks{name} (post hoc)", "beyond the paper",
                     above(answers, "medical", b, protocol, tasks=("mask",)), paper, f"{AT_HOME} {TAUGHT}", DICE)  # fmt: skip

    def at_low(name, a, b, cannot, paper=None):
        return claim(f"Linear probe at {named(low)}: {name}", above(answers, a, b, levels=low), cannot, paper)

    return [
        at_low("targets averaged over frames above medical", "frames", "medical",
               "Phantoms' speckle is drawn anew for every frame; neighbouring frames of a real loop share some of it."),
        at_low("medical above a teacher of another domain", "medical", "other",
               "That teacher saw drawn scenes without noise; CLIP saw photographs, which have more in common with anything. "
               + TAUGHT),
        at_low("a teacher of another domain above pixel", "other", "pixel", DRAWN),
        at_low("medical above an untrained teacher", "medical", "random", taught),
        at_low("medical above deblurring", "medical", "deblur", taught, "DeblurringMIM is the same authors' earlier method."),
        at_low("medical above an untrained encoder", "medical", "scratch", taught),
        at_low("pixel above an untrained encoder", "pixel", "scratch", small),
        at_low("the student (medical) above its teacher", "medical", "teacher", bound, passes),
        claim(f"Fine-tuned on all labels ({plural(tasks)}): the student above its teacher",
              above(answers, "medical", "teacher", "finetune@1", tasks=tasks), bound, passes),
        masks(" from frozen features: the student (medical) above its teacher", "teacher", paper=passes),
        masks(", fine-tuned: the student above its teacher", "teacher", "finetune@1", passes),
        masks(" from frozen features: medical above an untrained encoder", "scratch"),
        claim(f"Linear probe: the student with {TIMES} above its teacher",
              above(answers, "medical-longer", "teacher"), f"{bound} {INHERITED}", passes),
        claim(f"Linear probe: medical above pixel, both with {TIMES}",
              above(answers, "medical-longer", "pixel-longer"), f"{small} {INHERITED} {TAUGHT}"),
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
    alone = (
        "One thing was changed at a time, at the baseline's learning rate, one noise level and a short schedule; effects need not "
        "add up. Compared on test patients: another choice of variant needs new ones."
    )
    return [Claim(name, "ablation", measure, None, alone)]


def named(levels: Sequence[float]) -> str:
    return " and ".join(f"{level:g}" for level in levels) + " dB"


def plural(tasks: Sequence[str]) -> str:
    return " and ".join(f"{task}s" for task in tasks)
