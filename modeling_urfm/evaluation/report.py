# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""`report.html`: everything of a `results.json` of recipes/evaluate.py in one file that needs no network and prints well."""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..data.shards import write_atomically
from .benchmarks import PUBLISHED_PROTOCOL, PUBLISHED_SOURCE, VERSION
from .protocols import PRIMARY, SEEDS
from .report_plots import METRICS


SHOWN = {
    "classification": (
        "macro_f1", "balanced_accuracy", "accuracy", "auroc", "average_precision", "sensitivity_at_90_specificity",
        "calibration_error",
    ),
    "multilabel": ("macro_f1", "auroc", "average_precision", "exact_match", "accuracy", "calibration_error"),
    "regression": ("r2", "mae", "rmse"),
    "segmentation": ("dice", "iou", "hausdorff95"),
}  # fmt: skip
NAMES = {
    "knn": "kNN (k = 10)",
    "linear": "linear probe",
    "linear_usjepa": "linear probe, US-JEPA’s protocol",
    "attentive": "attentive probe",
    "few_shot": "few shots",
    "label_efficiency": "label efficiency",
    "retrieval": "retrieval",
    "segmentation": "segmentation probe",
    "robustness": "robustness",
}
AS_THEY_ARE = {"r2", "mae", "rmse", "hausdorff95"}  # others are shares, shown in %
SHORT = {
    "balanced_accuracy": "balanced acc.", "average_precision": "AP", "sensitivity_at_90_specificity": "sens. at 90 % spec.",
    "calibration_error": "ECE", "mean_average_precision": "mAP", "hit_at_1": "hit at 1", "hit_at_5": "hit at 5",
    "hausdorff95": "HD95 (px)", "exact_match": "exact match",
}  # fmt: skip
METHODS = {
    "knn": "The ten nearest training images vote, by cosine similarity of features standardised over the training images.",
    "linear": "One linear layer on the frozen features, standardised over the training images; AdamW, cosine schedule, "
    "learning rate and weight decay swept, each layer kept as it was at its lowest validation loss, the best of them chosen "
    "by validation, for every seed. Regression: ridge in closed form, its strength chosen by validation.",
    "linear_usjepa": PUBLISHED_PROTOCOL + ".",
    "attentive": "Eight learnt queries pool the frozen patch tokens, a linear layer follows; learning rate chosen by "
    "validation.",
    "few_shot": "The linear probe on a few images of each class; every seed draws its own, the same for every encoder.",
    "label_efficiency": "The linear probe on a share of the training labels, drawn by patient and stratified by class; every "
    "seed draws its own subset, the same for every encoder, smaller ones within larger ones. The whole validation split "
    "chooses the settings at every fraction. Bands: 95 % interval over seeds (t).",
    "retrieval": "Every test image asks for training images of its class, in the order of cosine similarity.",
    "segmentation": "One linear layer on the frozen patch tokens, bilinear to the mask’s size; cross-entropy plus soft Dice, "
    "settings chosen by validation. Scored on whole original images; the Hausdorff distance is in their pixels, and the "
    "image’s diagonal where a class is missed altogether.",
    "robustness": "The probe of clean images asked about corrupted test images, at severities 1, 2 and 3. Blur (σ = s px), "
    "contrast (towards the median, α = 0.7, 0.5, 0.3) and correlated multiplicative speckle (σ = 0.35 s) as US-JEPA; the "
    "others are ours. Pixels are those of a 224-px image; black around the scan stays black.",
}
STYLE = """
:root{--ink:#1f2933;--soft:#5b6770;--line:#d5dade;--accent:#0b6e99}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif;color:var(--ink);max-width:1060px;
margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.4rem 0 .6rem;border-bottom:2px solid var(--ink)}
h3{font-size:1rem;margin:1.5rem 0 .4rem}p,li{max-width:76ch}.note{color:var(--soft);font-size:.87rem}
table{border-collapse:collapse;font-size:.85rem;margin:.5rem 0 .3rem;font-variant-numeric:tabular-nums}
caption{caption-side:top;text-align:left;white-space:nowrap;font-weight:600;padding:.2rem 0}
th,td{padding:.22rem .5rem;text-align:right;white-space:nowrap;vertical-align:top}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:9rem}
thead th{border-top:2px solid var(--ink);border-bottom:1px solid var(--ink);font-weight:600}
tbody tr:last-child td{border-bottom:2px solid var(--ink)}tbody tr+tr td{border-top:1px solid var(--line)}
.ci{display:block;color:var(--soft);font-size:.78rem}.best{font-weight:700}.bad{color:#a33b00;font-style:italic}
.scroll{overflow-x:auto}figure{margin:1rem 0;break-inside:avoid}figure img{max-width:100%;height:auto}
figcaption{color:var(--soft);font-size:.85rem;max-width:76ch}.pair{display:flex;flex-wrap:wrap;gap:1rem}
.pair figure{flex:1 1 420px;margin:.4rem 0}code{font-size:.85em;overflow-wrap:anywhere;white-space:pre-wrap}
.published{border-left:4px solid var(--accent);padding-left:1rem}
@media print{body{max-width:none;margin:0;font-size:10pt}h2{break-after:avoid}table{break-inside:avoid}}
"""


def write_report(results: Mapping, plots: Mapping[str, Mapping[str, Path]], path: Path) -> None:
    """Write the page.

    Args:
        results: the content of `results.json`. plots: data set (or "" for all together) to {caption: PNG file}.
    """
    metrics = results["metrics"]
    parts = [
        "<h1>Frozen encoders, compared</h1>",
        f"<p class=note>{escape(results['command'])}</p>",
        _encoders(metrics["encoders"]),
        _overview(metrics),
        _ranks(metrics.get("ranks"), plots.get("", {})),
        *(_dataset(name, entry, plots.get(name, {})) for name, entry in metrics["datasets"].items()),
        _published(metrics),
        _methods(metrics),
        _facts(results),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><title>Frozen encoders, compared</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    write_atomically(path, page)


# ---------------------------------------------------------------- cells and tables


def number(value, metric: str) -> str:
    """A score as a reader expects it: shares in %, others with three digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if metric in AS_THEY_ARE else f"{100 * value:.1f}"


def heading(metric: str) -> str:
    return escape(METRICS.get(metric, SHORT.get(metric, metric.replace("_", " "))))


def cell(facts: Mapping | None, metric: str) -> str:
    """Mean ± deviation over seeds and below it the interval; of a collapsed probe the word, never its score."""
    if facts is None:
        return "–"
    if facts["collapsed"]:
        return f"<span class=bad>collapsed<span class=ci>{facts['collapsed_seeds']} of {facts['seeds']} seeds</span></span>"
    summary = facts["scores"].get(metric)
    if summary is None:
        return "–"
    low, high = (number(end, metric) for end in summary["ci95"])
    shown, spread = number(summary["mean"], metric), number(summary["sd"], metric)
    shown += f" ± {spread}" if spread != "–" else ""
    return shown + (f"<span class=ci>{low} to {high}</span>" if "–" not in (low, high) else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Cells are HTML already."""
    titled = f"<caption>{caption}</caption>" if caption else ""
    first = "".join(f"<th>{part}</th>" for part in head)
    body = "".join(f"<tr>{''.join(f'<td>{part}</td>' for part in row)}</tr>" for row in rows)
    return f"<div class=scroll><table>{titled}<thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>"


def figure(path: Path, caption: str) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _with_best(names: Sequence[str], found: Sequence[Mapping | None], metric: str) -> list[str]:
    """Cells of one score, the best mean in bold."""
    means = [f["scores"][metric]["mean"] if f and not f["collapsed"] and metric in f["scores"] else None for f in found]
    sign = -1 if metric in ("mae", "rmse", "hausdorff95", "calibration_error") else 1
    finite = [sign * m for m in means if m is not None and math.isfinite(m)]
    best = max(finite, default=None)
    return [
        f"<span class=best>{cell(f, metric)}</span>"
        if len(names) > 1 and m is not None and sign * m == best
        else cell(f, metric)
        for f, m in zip(found, means)
    ]


# ---------------------------------------------------------------- sections


def _encoders(encoders: Mapping) -> str:
    rows = [
        (f"<b>{escape(name)}</b>", f"{e['image_size'][0]} × {e['image_size'][1]}", f"{e['grid'][0]} × {e['grid'][1]}",
         str(e["hidden_size"]), f"<code>{e['fingerprint'][:12]}</code>")
        for name, e in encoders.items()
    ]  # fmt: skip
    return "<h2>Encoders</h2>" + table(("encoder", "input (px)", "patches", "width", "fingerprint"), rows)


def _overview(metrics: Mapping) -> str:
    """The score that counts, every data set a column: what a reader looks for first."""
    encoders, entries = list(_every_encoder(metrics)), metrics["datasets"]
    columns, head = [], ["encoder"]
    for name, entry in entries.items():
        protocol = "segmentation" if entry["task"] == "segmentation" else "linear"
        found = [entry["encoders"].get(encoder, {}).get(protocol) for encoder in encoders]
        if any(found):
            metric = PRIMARY[entry["task"]]
            head.append(f"{escape(name)}<span class=ci>{NAMES[protocol]}, {heading(metric)}</span>")
            columns.append(_with_best(encoders, found, metric))
    if not columns:
        return ""
    rows = [(escape(encoder), *(column[i] for column in columns)) for i, encoder in enumerate(encoders)]
    text = (
        "<p class=note>Mean ± deviation over seeds; below it the 95 % interval of a single run: a bootstrap that draws "
        "patients with all their images, and one seed. Bold: the highest mean, whether or not the difference is more than "
        "chance; that stands in the paired tests.</p>"
    )
    return "<h2>At a glance</h2>" + table(head, rows) + text


def _every_encoder(metrics: Mapping) -> dict:
    """Those of this run, then those that were read from another."""
    named = dict.fromkeys(metrics["encoders"])
    return named | dict.fromkeys(e for entry in metrics["datasets"].values() for e in entry["encoders"])


def _ranks(ranks: Mapping | None, plots: Mapping) -> str:
    if not ranks:
        return ""
    rows = [(escape(n), f"{r:.2f}") for n, r in sorted(ranks["ranks"].items(), key=lambda item: item[1])]
    count, p = len(ranks["tasks"]), ranks["p"]
    text = f"Mean rank over {count} task{'s' if count > 1 else ''}; a collapsed probe ranks last."
    if p is not None and math.isfinite(p):
        text += (
            f" Friedman’s test: p = {p:.3g}. Nemenyi’s critical difference at 5 %: {ranks['critical_difference']:.2f} ranks "
            "(Demšar, 2006); both are approximations that a handful of tasks strains."
        )
    else:
        text += " A test of ranks needs two tasks or more."
    pictures = "".join(figure(path, caption) for caption, path in plots.items())
    return f"<h2>Ranks over tasks</h2>{table(('encoder', 'mean rank'), rows)}<p class=note>{text}</p>{pictures}"


def _dataset(name: str, entry: Mapping, plots: Mapping) -> str:
    encoders, task = entry["encoders"], entry["task"]
    parts = [f"<h2>{escape(name)}</h2>", _described(entry)]
    for protocol in ("knn", "linear", "linear_usjepa", "attentive", "segmentation", "retrieval"):
        if not any(protocol in found for found in encoders.values()):
            continue
        shown = ("mean_average_precision", "hit_at_1", "hit_at_5") if protocol == "retrieval" else SHOWN[task]
        columns = [_with_best(list(encoders), [f.get(protocol) for f in encoders.values()], metric) for metric in shown]
        rows = [(escape(encoder), *(column[i] for column in columns)) for i, encoder in enumerate(encoders)]
        parts.append(table(("encoder", *map(heading, shown)), rows, NAMES[protocol]))
        parts.append(_pairs(entry["comparisons"].get(protocol, [])))
    for protocol, first in (("few_shot", "images a class"), ("label_efficiency", "labels")):
        parts.append(_by_labels(encoders, protocol, first, PRIMARY[task]))
    parts.append(_robustness(encoders))
    parts.append(f"<div class=pair>{''.join(figure(path, caption) for caption, path in plots.items())}</div>")
    refused = [*entry.get("refused", {}).values(), *entry["notes"]]
    if refused:
        parts.append("<ul class=note>" + "".join(f"<li>{escape(text)}</li>" for text in refused) + "</ul>")
    if entry["left_out"]:
        lines = "".join(f"<li>{escape(str(n))}: {escape(str(why))}</li>" for n, why in entry["left_out"])
        count = len(entry["left_out"])
        parts.append(
            f"<details><summary>{count} left out before training</summary><ul class=note>{lines}</ul></details>"
        )
    return "".join(parts)


def _described(entry: Mapping) -> str:
    sides = "; ".join(
        f"{side}: {s['images']} images of {s['patients']} patients" for side, s in entry["splits"].items()
    )
    classes = ", ".join(entry["label_names"])
    count, word = len(entry["label_names"]), "target" if entry["task"] == "regression" else "label"
    return (
        f"<p>{entry['task'].capitalize()}, {entry['images']} images of {entry['patients']} patients ({sides}). "
        f"{count} {word}{'s' if count > 1 else ''}: {escape(classes)}. Split <code>{entry['split_fingerprint']}</code>.</p>"
    )


def _pairs(pairs: Sequence[Mapping]) -> str:
    if not pairs:
        return ""
    metric = pairs[0]["metric"]
    rows = [
        (f"{escape(p['a'])} − {escape(p['b'])}", number(p["difference"], metric),
         " to ".join(number(end, metric) for end in p["ci95"]), _p(p["p"]), _p(p["p_holm"]))
        for p in pairs
    ]  # fmt: skip
    head = ("pair", f"difference in {heading(metric)}", "95 % interval", "p", "p (Holm)")
    count = len(pairs)
    tail = f"paired bootstrap over test patients, {count} pair{'s' if count > 1 else ''}"
    return f"<details open><summary class=note>{tail}</summary>{table(head, rows)}</details>"


def _p(value) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "&lt; 0.001"


def _by_labels(encoders: Mapping, protocol: str, first: str, metric: str) -> str:
    found = {name: facts[protocol] for name, facts in encoders.items() if protocol in facts}
    if not found:
        return ""
    points = list(next(iter(found.values())))
    shown = [f"{100 * float(p):g} %" if protocol == "label_efficiency" else p for p in points]
    columns = [_with_best(list(found), [f.get(point) for f in found.values()], metric) for point in points]
    rows = [(escape(name), *(column[i] for column in columns)) for i, name in enumerate(found)]
    sizes = [next(iter(found.values()))[point]["train_images"] for point in points]
    rows.append(("<i>training images</i>", *(f"<i>{_span(size)}</i>" for size in sizes)))
    caption = f"{NAMES[protocol]}: {heading(metric)}, mean ± deviation and 95 % interval over seeds"
    return table((f"encoder; {first}:", *shown), rows, caption)


def _span(sizes: Sequence[int]) -> str:
    return str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"


def _robustness(encoders: Mapping) -> str:
    found = {name: facts["robustness"] for name, facts in encoders.items() if "robustness" in facts}
    standing = {name: facts for name, facts in found.items() if not facts["collapsed"]}
    if not standing:
        return ""
    metric = next(iter(standing.values()))["metric"]
    corruptions = list(dict.fromkeys(name for facts in standing.values() for name in facts["curves"]))
    first = set(next(iter(standing.values()))["curves"])  # means over others, of an earlier run, can't stand beside
    rows = []
    for name, facts in found.items():
        if facts["collapsed"]:
            rows.append((escape(name), "<span class=bad>collapsed</span>", *["–"] * (len(corruptions) + 2)))
            continue
        curves = facts["curves"]
        means = [number(sum(curves[c]) / len(curves[c]), metric) if c in curves else "–" for c in corruptions]
        errors = [
            number(facts[key], metric) if set(curves) == first else "–"
            for key in ("mean_corruption_error", "relative_to_clean")
        ]
        rows.append((escape(name), number(facts["clean"], metric), *means, *errors))
    caption = (
        f"{NAMES['robustness']}: {heading(metric)}, mean of three severities; error = 1 − {heading(metric)}; last column: how "
        "much more that is than on clean images"
    )
    return table(("encoder", "clean", *corruptions, "mean error", "− clean"), rows, caption)


def _published(metrics: Mapping) -> str:
    """Published figures beside ours, in columns of their own."""
    parts = []
    for name, entry in metrics["datasets"].items():
        published = entry.get("published")
        if not published:
            continue
        rows = [(escape(encoder), shown, "", "") for encoder, shown in published["figures"].items()]
        rows += [
            (escape(encoder), "", *(cell(facts.get(protocol), "macro_f1") for protocol in ("linear_usjepa", "linear")))
            for encoder, facts in entry["encoders"].items()
        ]
        head = ("encoder", "published", "measured here, US-JEPA’s protocol", "measured here, swept probe")
        parts.append(table(head, rows, f"{escape(name)}: macro-F1, %"))
    if not parts:
        return ""
    text = (
        f"<p class=note>Published: {escape(PUBLISHED_SOURCE)}; {escape(PUBLISHED_PROTOCOL)}. They were not measured here, and "
        f"no test or rank of this report uses them. Data of `ultrabench` {VERSION} may differ from what the authors had."
    )
    other = [
        f"{name} ({e['image_size'][0]} px)" for name, e in metrics["encoders"].items() if e["image_size"] != [224, 224]
    ]
    text += f" Not at 224 px here: {escape(', '.join(other))}.</p>" if other else "</p>"
    return f"<h2>Published figures</h2><div class=published>{''.join(parts)}{text}</div>"


def _methods(metrics: Mapping) -> str:
    used = {p for entry in metrics["datasets"].values() for facts in entry["encoders"].values() for p in facts}
    lines = "".join(f"<li><b>{NAMES[p]}.</b> {escape(METHODS[p])}</li>" for p in METHODS if p in used)
    common = (
        "Encoders are frozen, each behind its own preprocessing. Splits are by patient where patients are known. Test images "
        f"were scored once. Seeds: {len(SEEDS) if 'seeds' not in metrics else len(metrics['seeds'])}. A probe that gives one "
        "answer to every image is reported as collapsed and not scored. Not for clinical use."
    )
    return f"<h2>Methods</h2><p>{common}</p><ul>{lines}</ul>"


def _facts(results: Mapping) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    return f"<h2>Versions</h2><p class=note>{escape(versions)}; seed {results['seed']}.</p>"
