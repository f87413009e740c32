# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The pictures of a fine-tuning and of a comparison of encoders, for a screen and for a paper's appendix.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart; lines also differ by their markers.
Every function writes one PNG to `path`, at 150 dots per inch, in one step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .plots import INK, figure, save
from .scores import (
    CALIBRATION_BINS,
    IGNORE,
    calibration_error,
    confusion_table,
    counts_by_threshold,
    nan_mean,
    ranking_scores,
)
from .statistics import summarise


DPI = 150
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*<>"
OVERLAY = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")  # no black: it lies on black
GREY = "#8a949e"
METRICS = {
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "iou": "IoU",
    "dice": "Dice",
}


def style(number: int) -> dict:
    """Colour and marker of line `number`: no two of the first 40 are alike."""
    return {"color": OKABE_ITO[number % len(OKABE_ITO)], "marker": MARKERS[number % len(MARKERS)]}


def plot_confusion(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str], path: Path):
    """Which class (row) was taken for which (column): counts, coloured by the share of the row.

    Args:
        labels, predicted: (images,) int. names: of the classes.
    """
    table = confusion_table(labels, predicted, len(names))
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 2.2 + 0.38 * max(len(names), 4)
    drawing, axes = figure(1, 1, (side + 0.8, side))
    axis = axes[0, 0]
    picture = axis.imshow(share, cmap="cividis", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(table)):
        colour = "white" if share[row, column] < 0.5 else "black"
        axis.text(column, row, str(table[row, column]), ha="center", va="center", fontsize=7, color=colour)
    places = range(len(names))
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, names)) > 24 else {}
    axis.set_xticks(places, [_short(name) for name in names], fontsize=8, **slant)
    axis.set_yticks(places, [_short(name) for name in names], fontsize=8)
    axis.set(xlabel="predicted", ylabel="label", title=f"{int(table.trace())} of {int(table.sum())} right")
    drawing.colorbar(picture, ax=axis, shrink=0.8, label="share of the label")
    save(drawing, path, DPI)


def plot_roc(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], path: Path):
    """Sensitivity against 1 - specificity, one curve a class against the rest (with two classes: class 1 alone).

    Args:
        labels: (images,) int, or (images, labels) 0/1 when several can be true. probabilities: (images, classes).
        names: of the classes, or of the labels.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    positive = labels > 0.5 if labels.ndim == 2 else labels[:, None] == np.arange(probabilities.shape[1])
    columns = [1] if labels.ndim == 1 and len(names) == 2 else range(len(names))
    drawn = [column for column in columns if 0 < positive[:, column].sum() < len(positive)]
    left_out = [names[column] for column in columns if column not in drawn]
    drawing, axes = figure(1, 1, (5.4 + 2.2 * (len(drawn) > 5), 4.6))
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for number, column in enumerate(drawn):
        true, false, _ = counts_by_threshold(positive[:, column], probabilities[:, column])
        area = ranking_scores(positive[:, [column]], probabilities[:, [column]])["auroc"]
        x, y = np.append(0, false / false[-1]), np.append(0, true / true[-1])
        line = "-" if number < len(OKABE_ITO) else "--"
        axis.plot(x, y, line, color=style(number)["color"], label=f"{_short(names[column])}  {area:.3f}")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    if left_out:
        axis.set_xlabel(f"1 - specificity\nnot drawn, without both kinds: {_short(', '.join(left_out), 60)}")
    if drawn:
        outside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(drawn) > 5 else {"loc": "lower right"}
        axis.legend(title="AUROC", frameon=False, fontsize=8, **outside)
    _finish(axes)
    save(drawing, path, DPI)


def plot_reliability(labels: np.ndarray, probabilities: np.ndarray, path: Path):
    """How often the answer is right at each confidence, and below it how many images have that confidence.

    Args:
        labels: (images,) int: the most probable class counts; or (images, labels) 0/1: every decision counts, by its
            probability.
        probabilities: (images, classes).
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if labels.ndim == 2:
        confidence, right, words = probabilities.ravel(), labels.ravel() > 0.5, ("probability", "share that is true")
    else:
        confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
        words = ("confidence", "share that is right")
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bin_of = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bin_of, minlength=CALIBRATION_BINS)
    filled = counts > 0
    sums = [np.bincount(bin_of, values, CALIBRATION_BINS)[filled] for values in (right, confidence)]
    accuracy, mean = sums[0] / counts[filled], sums[1] / counts[filled]
    columns = zip(probabilities.T, labels.T > 0.5) if labels.ndim == 2 else [(confidence, right)]
    error = nan_mean([calibration_error(*column) for column in columns])

    drawing, axes = figure(2, 1, (4.8, 5.4))
    above, below = axes[:, 0]
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    above.bar(edges[:-1][filled], accuracy, 1 / CALIBRATION_BINS, align="edge", color=OKABE_ITO[5], edgecolor="white")
    above.plot(mean, accuracy, "o-", color=INK, markersize=4, linewidth=1)
    above.set(ylabel=words[1], xlim=(0, 1), ylim=(0, 1), title=f"expected calibration error {error:.3f}")
    below.bar(edges[:-1], counts, 1 / CALIBRATION_BINS, align="edge", color=GREY, edgecolor="white")
    below.set(xlabel=words[0], ylabel="decisions" if labels.ndim == 2 else "images", xlim=(0, 1))
    _finish(axes)
    save(drawing, path, DPI)


def plot_regression(targets: np.ndarray, predictions: np.ndarray, names: Sequence[str], path: Path):
    """Prediction against target, and the difference against their mean with its limits (Bland & Altman, 1986).

    Args:
        targets, predictions: (images, targets). names: of the targets, with units.
    """
    targets, predictions = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (targets, predictions))
    drawing, axes = figure(len(names), 2, (8.4, 3.7 * len(names)))
    for row, name in enumerate(names):
        left, right = axes[row]
        x, y = targets[:, row], predictions[:, row]
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        left.plot(ends, ends, color=GREY, linewidth=1, linestyle=":")
        left.scatter(x, y, s=10, alpha=0.5, color=OKABE_ITO[0], linewidths=0)
        left.set(xlabel=f"{name}, target", ylabel="predicted")
        difference, spread = y - x, 1.96 * (y - x).std()
        right.scatter((x + y) / 2, difference, s=10, alpha=0.5, color=OKABE_ITO[0], linewidths=0)
        for level, line in ((0, "-"), (-spread, "--"), (spread, "--")):
            right.axhline(difference.mean() + level, color=INK, linewidth=1, linestyle=line)
        title = f"bias {difference.mean():.3g}, 95 % limits ±{spread:.3g}"
        right.set(xlabel="mean of both", ylabel="predicted - target", title=title)
    _finish(axes)
    save(drawing, path, DPI)


def plot_overlays(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    titles: Sequence[str],
    path: Path,
    class_names: Sequence[str] | None = None,
):
    """A row an image: the image, its mask as a filled outline, the prediction likewise. Pixels of 255 are grey.

    Args:
        images: (channels, height, width) uint8, 1 or 3 channels; sizes may differ from row to row.
        masks, predictions: (height, width) ids. titles: a line an image.
        class_names: of the ids from 0 (background); a legend is drawn with them.
    """
    drawing, axes = figure(len(images), 3, (8.0, 2.75 * len(images) + 0.5))
    shown = set()
    for row, (image, mask, predicted) in enumerate(zip(images, masks, predictions)):
        for column, ids in enumerate((None, mask, predicted)):
            axis = axes[row, column]
            _show(axis, image)
            for class_id in [] if ids is None else np.setdiff1d(ids, [0]):
                colour = GREY if class_id == IGNORE else OVERLAY[(class_id - 1) % len(OVERLAY)]
                area = (ids == class_id).astype(float)
                axis.contourf(area, levels=[0.5, 1.5], colors=[colour], alpha=0.3)
                axis.contour(area, levels=[0.5], colors=[colour], linewidths=1.4)
                shown.add((int(class_id), colour))
            if row == 0:
                axis.set_title(("image", "mask", "prediction")[column], fontsize=10, color=INK)
        axes[row, 0].set_ylabel(_short(titles[row], 32), fontsize=7, color=INK)
    if class_names is not None and shown:
        _class_legend(drawing, sorted(shown), class_names)
    save(drawing, path, DPI)


def plot_cases(images: Sequence[np.ndarray], titles: Sequence[str], path: Path):
    """Images in rows of five, each under its title (of one or two lines): the ten worst, say.

    Args:
        images: (channels, height, width) uint8; sizes may differ.
    """
    columns = min(5, max(len(images), 1))
    rows = max(1, -(-len(images) // columns))
    drawing, axes = figure(rows, columns, (2.3 * columns, 2.65 * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, title in zip(axes.flat, images, titles):
        axis.set_axis_on()
        _show(axis, image)
        axis.set_title("\n".join(_short(line, 34) for line in title.split("\n")), fontsize=7, color=INK)
    save(drawing, path, DPI)


def plot_label_efficiency(curves: Mapping[str, Mapping[float, Sequence[float]]], metric: str, path: Path):
    """A score over the share of labels trained on: mean over seeds, with the band of the seeds' 95 % interval (t).

    Args:
        curves: encoder to {fraction in (0, 1]: values over seeds}. A fraction without a finite value (all collapsed)
            leaves a gap.
        metric: name of the values, for the axis.
    """
    drawing, axes = figure(1, 1, (6.4, 4.2))
    axis = axes[0, 0]
    fractions = sorted({fraction for curve in curves.values() for fraction in curve})
    for number, (name, curve) in enumerate(curves.items()):
        summaries = [summarise(curve.get(fraction, ())) for fraction in fractions]
        x, mean = 100 * np.array(fractions), np.array([summary["mean"] for summary in summaries])
        low, high = np.array([summary["ci95"] for summary in summaries]).T
        if ((mean >= 0) & (mean <= 1) | np.isnan(mean)).all():
            low, high = np.clip((low, high), 0, 1)  # a share: the band of a few seeds would reach beyond it
        axis.fill_between(x, low, high, color=style(number)["color"], alpha=0.18, linewidth=0)
        axis.plot(x, mean, **style(number), markersize=5, label=_short(name, 40))
    axis.set_xscale("log")
    axis.set_xticks(100 * np.array(fractions), [f"{100 * fraction:g}" for fraction in fractions])
    axis.minorticks_off()
    axis.set(xlabel="labels used (%)", ylabel=METRICS.get(metric, metric.replace("_", " ")))
    _finish(axes)
    axis.legend(frameon=False, fontsize=8)
    save(drawing, path, DPI)


def plot_robustness(
    curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path, metric: str = "macro_f1", columns: int = 4
):
    """A panel a corruption: the score on clean images and at severities 1, 2, 3, a line an encoder; all axes alike.

    Args:
        curves: corruption to {encoder: [clean, severity 1, 2, 3]}.
    """
    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    drawing, axes = figure(rows, columns, (2.5 * columns + 0.4, 2.4 * rows + 0.6))
    every = [value for panel in curves.values() for line in panel.values() for value in line if np.isfinite(value)]
    low, high = min(every, default=0), max(every, default=1)
    margin = 0.05 * max(high - low, 0.05)
    encoders = list(dict.fromkeys(name for panel in curves.values() for name in panel))
    for axis, (corruption, panel) in zip(axes.flat, curves.items()):
        for name, line in panel.items():
            look = style(encoders.index(name))
            axis.plot(range(len(line)), line, **look, markersize=4, label=_short(name, 40))
        longest = max(len(line) for line in panel.values())
        axis.set_xticks(range(longest), ["clean", *map(str, range(1, longest))])
        axis.set(title=corruption.replace("_", " "), ylim=(low - margin, high + margin))
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel(METRICS.get(metric, metric.replace("_", " ")))
    _finish(axes)
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}
    drawing.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3), frameon=False
    )
    save(drawing, path, DPI)


def plot_critical_difference(ranks: Mapping[str, float], critical_difference: float, path: Path):
    """Mean ranks on a line (1 is the best, at the left); a bar joins encoders that do not differ (Demsar, 2006).

    Args:
        ranks: encoder to mean rank. critical_difference: of `friedman_nemenyi`; NaN draws no bars.
    """
    order = sorted(ranks, key=ranks.get)
    values = np.array([ranks[name] for name in order])
    half = -(-len(order) // 2)
    groups = _groups_without_difference(values, critical_difference)
    height = 1.3 + 0.16 * len(groups) + 0.26 * half
    drawing, axes = figure(1, 1, (7.6, height))
    axis = axes[0, 0]
    axis.set_axis_off()
    worst = max(len(order), 2)
    axis.set(xlim=(1 - 0.62 * (worst - 1), worst + 0.62 * (worst - 1)), ylim=(-(0.5 + 0.3 * len(groups) + half), 1.7))
    axis.plot([1, worst], [0, 0], color=INK, linewidth=1.4)
    for tick in range(1, worst + 1):
        axis.plot([tick, tick], [0, 0.14], color=INK, linewidth=1)
        axis.text(tick, 0.24, str(tick), ha="center", va="bottom", fontsize=8, color=INK)
    for number, (start, end) in enumerate(groups):
        depth = -0.3 * (number + 1)
        axis.plot(values[[start, end]] + np.array([-0.03, 0.03]), [depth, depth], color=OKABE_ITO[1], linewidth=4)
    for place, (name, value) in enumerate(zip(order, values)):
        left = place < half
        depth = -(0.3 * len(groups) + 0.6 + (place if left else len(order) - 1 - place))
        end = 1 - 0.08 * (worst - 1) if left else worst + 0.08 * (worst - 1)
        axis.plot([value, value, end], [0, depth, depth], color=INK, linewidth=0.9)
        text = f"{_short(name, 34)}  {value:.2f}" if left else f"{value:.2f}  {_short(name, 34)}"
        axis.text(end, depth, f" {text} ", ha="right" if left else "left", va="center", fontsize=8, color=INK)
    if np.isfinite(critical_difference):
        reach = min(critical_difference, 1.6 * (worst - 1))
        axis.plot([1, 1 + reach], [1.2, 1.2], color=OKABE_ITO[1], linewidth=4, solid_capstyle="butt")
        axis.text(1, 1.35, f"critical difference {critical_difference:.2f}", fontsize=8, color=INK, va="bottom")
    save(drawing, path, DPI)


def plot_embedding(points: np.ndarray, groups: np.ndarray, path: Path, title: str = ""):
    """Images as points of two dimensions (t-SNE, UMAP), a colour and a marker a group.

    Args:
        points: (images, 2). groups: (images,) str, the organ say.
    """
    names = np.unique(groups)
    drawing, axes = figure(1, 1, (7.2, 5.2))
    axis = axes[0, 0]
    for number, name in enumerate(names):
        chosen = points[np.asarray(groups) == name]
        axis.scatter(*chosen.T, s=18, alpha=0.75, linewidths=0, **style(number), label=_short(str(name)))
    axis.set(xticks=[], yticks=[], title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    save(drawing, path, DPI)


def _groups_without_difference(values: np.ndarray, critical_difference: float) -> list[tuple[int, int]]:
    """First and last place of every longest run of sorted mean ranks that lie within the critical difference."""
    runs = []
    for start in range(len(values)):
        end = int(np.flatnonzero(values - values[start] <= critical_difference).max(initial=start))
        if end > start and (not runs or end > runs[-1][1]):
            runs.append((start, end))
    return runs


def _show(axis, image: np.ndarray):
    image = np.asarray(image)
    picture = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def _class_legend(drawing, shown: list[tuple[int, str]], class_names: Sequence[str]):
    from matplotlib.patches import Patch

    named = [
        Patch(color=colour, alpha=0.6, label="not counted" if class_id == IGNORE else str(class_names[class_id]))
        for class_id, colour in shown
    ]
    drawing.legend(handles=named, loc="outside lower center", ncols=min(len(named), 5), frameon=False, fontsize=8)


def _finish(axes):
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
