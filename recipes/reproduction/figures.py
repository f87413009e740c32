# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The pictures of the report, drawn from `results.json` alone. Every arm has one colour, marker and line in all of them.

Colours are those of Okabe and Ito (2008); nothing is told by colour alone, so that they are read in grey as well.
"""

from collections.abc import Sequence
from pathlib import Path

from modeling_urfm.evaluation.corruptions import PUBLISHED, SEVERITIES
from modeling_urfm.evaluation.plots import INK, figure, save

from .measures import FAILS, HOLDS, UNDECIDED


DPI = 130
GREY = "#8a949e"
# Arm to colour, marker, line.
LOOKS = {
    "teacher": ("#000000", "*", "-"),
    "teacher-other": ("#666666", "*", "--"),
    "scratch": ("#666666", "x", ":"),
    "scratch-longer": ("#999999", "X", "-."),
    "medical": ("#0072B2", "o", "-"),
    "frames": ("#56B4E9", "^", "-"),
    "other": ("#009E73", "D", "-."),
    "random": ("#CC79A7", "v", ":"),
    "pixel": ("#D55E00", "s", "--"),
    "deblur": ("#E69F00", "P", "--"),
    "medical-augmented": ("#004C78", "h", "-."),
    "pixel-augmented": ("#8A3D00", "d", ":"),
}
# Filled, crossed, hollow: told apart in grey.
VERDICTS = {
    HOLDS: {"color": "#0072B2", "marker": "o", "markerfacecolor": "#0072B2"},
    FAILS: {"color": "#D55E00", "marker": "X", "markerfacecolor": "#D55E00"},
    UNDECIDED: {"color": GREY, "marker": "D", "markerfacecolor": "white"},
}
TASKS = {"organ": "organs (15 classes)", "lesion": "lesions (3 classes)"}
SCORE = "macro-F1 (points)"
BESIDE = 2.9  # inches that words take at the right of a forest plot
FAR = 1000.0  # per cent: where what was never reached is drawn


def draw_all(results: dict, output_dir: Path) -> list[str]:
    """Draw every figure that the results have numbers for, as PNG into `output_dir`; their names."""
    drawn = []
    for name, draw in {
        "claims.png": claims, "signal.png": signal, "labels.png": labels, "training_time.png": training_time,
        "robustness.png": robustness, "ablations.png": ablations,
    }.items():  # fmt: skip
        drawing = draw(results)
        if drawing is None:
            (output_dir / name).unlink(missing_ok=True)  # of an earlier report on more units
        else:
            save(drawing, output_dir / name, DPI)
            drawn.append(name)
    return drawn


def claims(results: dict):
    """All claims with their intervals, grouped by question: differences in points above, shares in per cent below."""
    panels = [[c for c in results["claims"] if (c["below"] is None) is points] for points in (True, False)]
    panels = [panel for panel in panels if panel]
    if not panels:
        return None
    lines = [len(panel) + len({c["question"] for c in panel}) for panel in panels]
    drawing, axes = figure(len(panels), 1, (12.5, 1.6 + 0.235 * sum(lines) + 0.5 * len(panels)))
    axes[0, 0].get_gridspec().set_height_ratios([count + 1.5 for count in lines])
    for axis, panel in zip(axes[:, 0], panels):
        _forest(axis, _grouped(panel))
        if panel[0]["below"] is None:
            axis.axvline(0, color=INK, linewidth=1)
            axis.set_xlabel("difference in points (slopes: per 10 dB); a claim holds to the right of 0", fontsize=9)
        else:
            axis.set_xscale("log")
            axis.axvline(100, color=INK, linewidth=1)
            axis.set_xlim(right=1.3 * FAR)
            ticks = [tick for tick in (1, 3, 10, 30, 100) if tick >= axis.get_xlim()[0]]
            axis.set_xticks([*ticks, FAR], [*map(str, ticks), "not reached"])
            axis.minorticks_off()
            axis.set_xlabel("per cent of what the other has or took; a claim holds to the left of 100", fontsize=9)
    _legend_of_verdicts(drawing)
    drawing.suptitle(
        f"What was claimed, and what was measured ({len(results['claims'])} claims, 95 % intervals)", fontsize=12
    )
    return drawing


def signal(results: dict):
    """Score against signal-to-noise ratio; below it the gap between medical and pixel, and what that is of the teacher's lead."""
    levels = results["design"]["levels"]
    rows, gaps = results["tables"]["frozen"], results["tables"]["gaps"]
    rows = [
        row for row in rows if row["arm"] in LOOKS and any(_column(level, "organ") in row["cells"] for level in levels)
    ]
    rows = [row for row in rows if not row["arm"].endswith("-augmented")]
    if not rows:
        return None
    drawing, axes = figure(3, 2, (10.5, 9.4))
    axes[0, 0].get_gridspec().set_height_ratios([1.9, 1, 1])
    for (axis, below, lowest), (task, words) in zip(axes.T, TASKS.items()):
        for number, row in enumerate(rows):
            shift = 0.28 * (number - (len(rows) - 1) / 2)  # side by side, so that intervals do not hide each other
            points = [(level + shift, row["cells"].get(_column(level, task))) for level in levels]
            _line(axis, row, points)
        axis.set_title(words)
        for one, column in ((below, task), (lowest, f"share/{task}")):
            one.axhline(0, color=INK, linewidth=1)
            _line(one, {"arm": "medical", "label": None}, [(row["level"], row["cells"].get(column)) for row in gaps])
        low, high = lowest.get_ylim()
        lowest.set_ylim(max(low, -100), min(high, 200))  # where the lead is small, a share of it is anything
        for one in (axis, below, lowest):
            one.set_xticks(levels, [f"{level:g}" for level in levels])
            one.invert_xaxis()
        lowest.set_xlabel("signal-to-noise ratio (dB); the signal sinks to the right")
    axes[0, 0].set_ylabel(SCORE)
    axes[1, 0].set_ylabel("medical less\npixel (points)")
    axes[2, 0].set_ylabel("the same, % of the\nteacher's lead (post hoc)")
    return _finished(drawing, axes)


def labels(results: dict):
    """Score against the share of labels: linear probes on organs and lesions, and fine-tuning on organs."""
    probed, tuned = results["tables"]["labels"], results["tables"]["finetuned"]
    shown = [row for row in probed if row["arm"] in LOOKS]
    if not shown:
        return None
    drawing, axes = figure(1, 3, (13, 4.8))
    for axis, (task, words) in zip(axes[0], TASKS.items()):
        for row in shown:
            _line(axis, row, [(100 * point["x"], point["cell"]) for point in row["tasks"].get(task, [])])
        axis.set(title=f"linear probe, {words}")
    for row in tuned:
        cells = [(100 * share, row["cells"].get(f"organ/finetune@{share:g}/in")) for share in (0.1, 1.0)]
        if row["arm"] in LOOKS:
            _line(axes[0, 2], row, cells)
    axes[0, 0].set_ylabel(SCORE)
    axes[0, 2].set_title("fine-tuned, organs (15 classes)")
    for axis in axes[0]:
        _log_axis(axis)
        axis.set_xlabel("labels used (%)")
    return _finished(drawing, axes)


def training_time(results: dict):
    """Score against pre-training steps, against CPU seconds, and against the share of a fine-tuning."""
    pretrained, tuned = results["tables"]["training"], results["tables"]["finetuning"]
    if not pretrained and not tuned:
        return None
    drawing, axes = figure(1, 3, (13, 4.8))
    for row in pretrained:
        points = row["points"]
        _line(axes[0, 0], row, [(point["x"], point["cell"]) for point in points])
        _line(axes[0, 1], row, [(point["cpu_s"], point["cell"]) for point in points if point["cpu_s"] is not None])
        if row["arm"] == "medical":
            cached = [(point["cpu_s_cached"], point["cell"]) for point in points]
            _line(axes[0, 1], {**row, "label": "the same, teacher's features from a cache"}, cached, hollow=True)
    for row in tuned:
        _line(axes[0, 2], row, [(100 * point["x"], point["cell"]) for point in row["points"]])
    axes[0, 0].set(xlabel="pre-training steps", title="linear probe, organs", ylabel=SCORE)
    axes[0, 1].set(xlabel="CPU seconds, with the teacher on every image", title="the same, over time")
    axes[0, 2].set(xlabel="images shown (% of the usual fine-tuning)", title="fine-tuned on all labels, organs")
    _log_axis(axes[0, 0])
    _log_axis(axes[0, 2], of_lines=False)
    _log_axis(axes[0, 1], of_lines=False)
    return _finished(drawing, axes)


def robustness(results: dict):
    """Score on clean and corrupted images, a panel a corruption."""
    chosen = ("teacher", "scratch", "medical", "medical-augmented", "pixel", "pixel-augmented")
    rows = [row for row in results["tables"]["robustness"] if row["arm"] in chosen]
    if not rows:
        return None
    drawing, axes = figure(1, len(PUBLISHED), (13, 4.8))
    for axis, name in zip(axes[0], PUBLISHED):
        for row in rows:
            columns = ["clean", *(f"{name}-{severity}" for severity in SEVERITIES)]
            _line(axis, row, [(x, row["cells"].get(column)) for x, column in enumerate(columns)])
        axis.set_xticks(range(1 + len(SEVERITIES)), ["clean", *map(str, SEVERITIES)])
        axis.set(title=name, xlabel="severity")
    axes[0, 0].set_ylabel(SCORE)
    low, high = zip(*(axis.get_ylim() for axis in axes[0]))
    for axis in axes[0]:
        axis.set_ylim(min(low), max(high))
    return _finished(drawing, axes)


def ablations(results: dict):
    """Every variant less the baseline; thick the interval of each, thin the one that holds for all together."""
    rows = results["tables"]["ablations"]
    if not rows:
        return None
    drawing, axes = figure(1, 1, (11, 1.5 + 0.28 * len(rows)))
    axis = axes[0, 0]
    words = {HOLDS: "better", FAILS: "worse", UNDECIDED: "undecided"}
    _forest(axis, rows, words)
    for y, row in enumerate(rows):
        axis.plot(row["ci95_all"], [y, y], color=VERDICTS[row["verdict"]]["color"], linewidth=0.8, zorder=1)
    axis.axvline(0, color=INK, linewidth=1)
    home = results["design"]["home"]
    axis.set_xlabel(f"variant less the baseline, points of macro-F1 (linear probe at {home:g} dB, organs and lesions)\n"
                    "thick: interval of each; thin: intervals of all together", fontsize=9)  # fmt: skip
    _legend_of_verdicts(drawing, words)
    return drawing


# ---------------------------------------------------------------- parts


def _column(level: float, task: str) -> str:
    return f"{level:g}/{task}/linear/in"


def _grouped(rows: Sequence[dict]) -> list[dict]:
    """The rows with a heading {"heading"} before each question."""
    grouped, question = [], None
    for row in rows:
        if row["question"] != question:
            question = row["question"]
            grouped.append({"heading": question})
        grouped.append(row)
    return grouped


def _forest(axis, rows: Sequence[dict], words: dict[str, str] | None = None):
    """One line a row, the first at the top: its name, its value with the interval, and at the right both in words."""
    beside, drawing = axis.get_yaxis_transform(), axis.figure
    drawing.get_layout_engine().set(rect=(0, 0, 1 - BESIDE / drawing.get_figwidth(), 1))
    for y, row in enumerate(rows):
        if "heading" in row:
            axis.axhline(y + 0.5, color=GREY, linewidth=0.6)
            continue
        look = VERDICTS[row["verdict"]]
        low, high = (FAR if end is None else end for end in row["ci95"])
        value = FAR if row["value"] is None else row["value"]
        axis.plot([low, high], [y, y], color=look["color"], linewidth=2.2, solid_capstyle="butt", zorder=2)
        axis.plot([value], [y], linestyle="", markersize=6, zorder=3, **look)
        for shift, text in ((6, (words or {}).get(row["verdict"], row["verdict"])), (76, row["shown"])):
            axis.annotate(
                text, (1, y), xycoords=beside, xytext=(shift, 0), textcoords="offset points", va="center", fontsize=8,
                color=INK, annotation_clip=False,
            ).set_in_layout(False)  # fmt: skip
    axis.set_yticks(range(len(rows)), [row.get("heading", row.get("name")) for row in rows], fontsize=8)
    for label, row in zip(axis.get_yticklabels(), rows):
        if "heading" in row:
            label.set(fontweight="bold", fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _line(axis, row: dict, points: Sequence[tuple[float, dict | None]], hollow: bool = False):
    """An arm's line through the points that have a cell, each with its interval."""
    points = [(x, cell) for x, cell in points if cell is not None and cell["value"] is not None]
    if not points:
        return
    colour, marker, line = LOOKS[row["arm"]]
    x, values = [x for x, _ in points], [cell["value"] for _, cell in points]
    lows, highs = (
        [max(0, sign * (cell["ci95"][end] - cell["value"])) for _, cell in points] for end, sign in ((0, -1), (1, 1))
    )
    axis.errorbar(
        x, values, [lows, highs], color=colour, marker=marker, linestyle=(0, (1, 1)) if hollow else line, linewidth=1.6,
        markersize=6, elinewidth=1, capsize=2, markerfacecolor="white" if hollow else colour, label=row["label"],
    )  # fmt: skip


def _log_axis(axis, of_lines: bool = True):
    """A logarithmic x axis with plain numbers: at the points of the lines, or at 1, 2, 5 of every power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    if of_lines:
        points = sorted({round(float(x), 3) for line in axis.lines for x in line.get_xdata() if x})
        axis.set_xticks(points)
    else:
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}" if x < 100 else f"{x:.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())


def _legend_of_verdicts(drawing, words: dict[str, str] | None = None):
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linewidth=2.2, markersize=6, label=(words or {}).get(verdict, verdict), **look)
        for verdict, look in VERDICTS.items()
    ]
    drawing.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _finished(drawing, axes):
    """With grids, and one legend for all panels below them."""
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}
    drawing.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize=9,
    )
    return drawing
