# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""REPORT.md, written from `results.json` alone: whatever the numbers are, the words say them and presume none."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from modeling_urfm.data.shards import write_atomically
from modeling_urfm.hub.results import finite, write_json

from . import sections
from .figures import draw_all
from .markdown import NONE, cell, folded, number, picture, table
from .measures import FAILS, HOLDS, QUESTIONS, UNDECIDED


PAPER = QUESTIONS[:5]
TEACHER = """
**What the medical teacher brings.** It is the demo's, a CLIP that was trained on 7,500 clean phantoms (20 to 40 dB) of other
patients with captions that name organ and finding; noise of 0 to 30 dB was laid on 70 % of the images that it was shown
(`recipes/train_demo_teacher.py`). So it brings knowledge of the task, as labels in words, and of noise, which no arm without it
has: where "medical" is above pixels or above no pre-training, that knowledge can be the reason as well as the kind of target.
BiomedCLIP's captions likewise name organs and findings.
""".strip()
ASKED = {
    "generalisation": "Generalisation",
    "label efficiency": "Label efficiency",
    "training time": "Training time",
    "signal-to-noise": "Signal-to-noise ratio",
    "robustness": "Robustness",
    "beyond the paper": "Beyond the paper: controls, our idea, the teacher, longer training",
    "ablation": "Ablations, and which defaults follow",
}
PICTURES = {
    "label efficiency": "labels.png", "training time": "training_time.png", "signal-to-noise": "signal.png",
    "robustness": "robustness.png", "ablation": "ablations.png",
}  # fmt: skip


TABLES = {
    "generalisation": sections.finetuned, "label efficiency": sections.labels, "signal-to-noise": sections.gaps,
    "robustness": sections.robustness, "ablation": sections.defaults,
}  # fmt: skip


def write_report(results: dict, output_dir: Path) -> None:
    """Write `results.json`, the figures and `REPORT.md`, all from `results`: equal results give equal files.

    Args:
        results: what `analysis.analyse` returned, or `results.json` as read; with `compared`, what `compare_with` returned.
    """
    results = json.loads(json.dumps(finite(results), allow_nan=False))  # as it will be read: the same from either
    output_dir.mkdir(parents=True, exist_ok=True)
    pictures = draw_all(results, output_dir)
    write_atomically(output_dir / "REPORT.md", as_markdown(results, pictures))
    write_json(output_dir / "results.json", results)


def as_markdown(results: dict, pictures: Sequence[str]) -> str:
    """The report, with those figures that were drawn."""
    parts = [
        _opening(results, pictures), _claims(results), sections.teacher(results), sections.design(results),
        *(_question(results, question, pictures) for question in QUESTIONS), _compared(results), _run(results),
    ]  # fmt: skip
    text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)  # where a picture or a table was left out


# ---------------------------------------------------------------- the parts of the report


def _opening(results: dict, pictures: Sequence[str]) -> str:
    claims = results["claims"]
    lines = [f"- {summary(results, question)}" for question in PAPER]
    return f"""
# URFM's claims, tested on phantoms

The paper says that features of a medical teacher are better targets than pixels for masked image modelling of ultrasound. Here
both, and controls, are trained from scratch on simulated images whose signal-to-noise ratio is set. Written by
`{results["command"]}` from [results.json](results.json) beside it; not for clinical use.

{TEACHER}

{picture("claims.png", pictures, "Every claim with its value, 95 % interval and verdict")}

{_counted(claims)}. The first of each question:

{chr(10).join(lines)}
"""


def summary(results: dict, question: str) -> str:
    """One line: the verdict on the claim that stands for a question, its value, and how its other claims fared."""
    claims = [claim for claim in results["claims"] if claim["question"] == question]
    name = ASKED[question].partition(":")[0]
    if not claims:
        return f"**{name}: not measured** in this run."
    first = claims[0]
    noted = f"; {first['note']}" if first["note"] else ""
    return f"**{name}.** {first['name']}: **{first['verdict']}**, {measured(first)}{noted} ({_counted(claims)})."


def measured(claim: dict) -> str:
    """A claim's value and interval with their unit."""
    return f"{claim['shown']} {claim['unit'].removeprefix('% ')}"


def _counted(claims: Sequence[dict]) -> str:
    count = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in (HOLDS, FAILS, UNDECIDED)}
    number = "1 claim" if len(claims) == 1 else f"{len(claims)} claims"
    holds, fails = ("holds" if count[HOLDS] == 1 else "hold"), ("does" if count[FAILS] == 1 else "do")
    return f"{number}: {count[HOLDS]} {holds}, {count[FAILS]} {fails} not hold, {count[UNDECIDED]} undecided"


def _claims(results: dict) -> str:
    rows, question, paper, limits = [], None, None, None
    for claim in results["claims"]:
        if claim["question"] != question:
            question = claim["question"]
            rows.append([f"**{ASKED[question]}**", "", "", "", "", ""])
        noted = f"<br>({claim['note']})" if claim["note"] else ""
        rows.append([
            claim["name"], _unless_above(claim["paper"], paper), measured(claim) + noted, number(claim["sd"]),
            claim["verdict"], _unless_above(claim["cannot_conclude"], limits),
        ])  # fmt: skip
        paper, limits = claim["paper"], claim["cannot_conclude"]
    head = [
        "claim",
        "the paper, or others",
        "measured (95 % interval)",
        "sd over seeds",
        "verdict",
        "what this cannot tell",
    ]
    left_out, count = "\n".join(f"- {line}" for line in results["left_out"]), 0.05 * len(results["claims"])
    # Without a seeds' share they are too narrow; with one they are rather too wide.
    missed = "at least" if len(results["design"]["seeds"]) == 1 else "up to about"
    return f"""
## Claim by claim

A claim holds where the 95 % interval of its value lies on the claimed side (above 0; of shares, below 100 %), does not hold
where it lies on the other side, and is undecided where it contains the border. Of {len(results["claims"])} intervals of 95 %,
{missed} {count:.0f} can be expected to miss the truth by chance. "≤": the least that was tried is enough; ">": all of it is not
enough.

{table(head, rows)}

{folded(f"Not measured here: {len(results['left_out'])} claims", left_out) if left_out else ""}
"""


def _unless_above(text: str | None, above: str | None) -> str:
    return NONE if text is None else "as above" if text == above else text


def _question(results: dict, question: str, pictures: Sequence[str]) -> str:
    if PICTURES.get(question) not in pictures and not any(claim["question"] == question for claim in results["claims"]):
        return ""
    parts = [f"## {ASKED[question]}", summary(results, question)]
    if question in PICTURES:
        parts.append(picture(PICTURES[question], pictures, ASKED[question]))
    if question in TABLES:
        parts.append(TABLES[question](results))
    return "\n\n".join(part for part in parts if part)


def _compared(results: dict) -> str:
    if "compared" not in results:
        return ""
    rows = results["compared"]
    same, against = sum(row["same"] for row in rows), sum(not row["agrees"] for row in rows)
    arms = results["arms"]
    lines = table(
        ["dB", "higher there", "lower there", "difference there", "here", "order"],
        [
            [
                f"{row['level']:g}", arms.get(row["higher"], row["higher"]), arms.get(row["lower"], row["lower"]),
                cell(row["committed"], "+"), cell(row["here"], "+"),
                "the same" if row["same"] else "reversed, within the interval" if row["agrees"] else "reversed",
            ] for row in rows
        ],
    )  # fmt: skip
    return f"""
## Against the committed results

Pairs of arms whose order the committed results tell (linear probe, mean of organs and lesions, interval without 0): {len(rows)};
in the same order here: {same}; reversed by more than the interval here: {against}.

{lines if rows else ""}
"""


def _run(results: dict) -> str:
    units, timings, design = results["units"], results["timings"], results["design"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    versions += f"; computed in {results['precision']}"
    missing = units["missing"]
    some = ", ".join(f"`{name}`" for name in missing[:12]) + (
        f" and {len(missing) - 12} more" if len(missing) > 12 else ""
    )
    seeds = len(design["seeds"])
    return f"""
## How it was run

```
{results["command"]}
```

- {units["done"]} units, each one arm and one seed on one thread: {timings["units_cpu_h"]:g} CPU hours in all, the longest
  {timings["longest_unit_cpu_s"] / 60:.1f} CPU minutes. {f"Missing: {len(missing)} ({some})." if missing else "None is missing."}
- Versions: {versions}.
- Seeds of the arms: {", ".join(map(str, design["seeds"]))}; of the bootstrap: {results["seed"]}.
- Intervals: percentiles of {design["draws"]} draws of test patients{" and of seeds" if seeds > 1 else ""}, the same for all arms.
  {_about_seeds(seeds)}
"""


def _about_seeds(seeds: int) -> str:
    if seeds == 1:
        return "There is one seed: how much another one would change is not in the intervals."
    return (
        f"{seeds} seeds are few, so their share is as wide as Student's t makes it for {seeds}; what is of a patient and a seed "
        "together counts in both shares, so that intervals are rather too wide (but not those of all ablations together). The "
        "standard deviation over seeds stands beside them. Teachers, corpus and labelled sets are the same in all draws."
    )
