# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The pictures of a pre-training run: its loss, and what it learnt to predict."""

from pathlib import Path

import numpy as np
import torch


INK, ACCENT = "#1f2933", "#0b6e99"


def figure(rows: int, columns: int, size: tuple[float, float]):
    """A matplotlib figure of `size` (width, height) in inches, and its axes (rows, columns)."""
    # The object interface: no global backend is touched, and no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing, drawing.subplots(rows, columns, squeeze=False)


def plot_loss(history: list[dict], evaluations: list[dict], path: Path, loss_name: str = "loss"):
    """Loss over steps, and the kNN accuracy on held-out phantoms on its own axis below.

    Args:
        history: `{"step", "loss", ...}` a logged step.
        evaluations: `{"step", "knn_accuracy"}` an evaluation; the second panel is left out when there is none.
    """
    rows = 1 + bool(evaluations)
    drawing, axes = figure(rows, 1, (6.4, 2.6 * rows))
    axis = axes[0, 0]
    steps, losses = [h["step"] for h in history], np.array([h["loss"] for h in history], dtype=float)  # None: skipped
    axis.plot(steps, losses, color=ACCENT, alpha=0.35, linewidth=1)
    window = max(1, len(losses) // 20)
    if len(losses) >= 3 * window:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axis.plot(steps[window - 1 :], smooth, color=ACCENT, linewidth=2)
    axis.set(ylabel=loss_name, xlabel="step" if rows == 1 else "", title="Pre-training loss on masked patches")
    if evaluations:
        below = axes[1, 0]
        below.plot([e["step"] for e in evaluations], [100 * e["knn_accuracy"] for e in evaluations], "o-", color=INK)
        below.set(ylabel="kNN accuracy (%)", xlabel="step", title="15-way organ, held-out phantoms")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    save(drawing, path, dpi=130)


def plot_curves(curves: dict[str, list[list[dict]]], epochs_per_step: float, path: Path):
    """kNN accuracy of several configurations over epochs and over time: thin lines are runs, thick ones their means.

    Args:
        curves: name to runs, each a list of `{"step", "training_s", "knn_accuracy"}`; all of one name at the same steps.
    """
    drawing, axes = figure(1, 2, (9.6, 3.6))
    colours = (INK, ACCENT, "#c2571a", "#5b8c2a", "#8a4fa3", "#a38b00")
    for (name, runs), colour in zip(curves.items(), colours * (1 + len(curves) // len(colours))):
        accuracy = np.array([[100 * point["knn_accuracy"] for point in run] for run in runs])
        epochs = np.array([[epochs_per_step * point["step"] for point in run] for run in runs])
        minutes = np.array([[point["training_s"] / 60 for point in run] for run in runs])
        for axis, across in zip(axes[0], (epochs, minutes)):
            for x, y in zip(across, accuracy):
                axis.plot(x, y, color=colour, alpha=0.25, linewidth=1)
            axis.plot(across.mean(0), accuracy.mean(0), color=colour, linewidth=2, label=name)
    axes[0, 0].set(xlabel="epochs", ylabel="kNN accuracy (%)", title="15-way organ, held-out phantoms")
    axes[0, 1].set(xlabel="training time (minutes)", title="the same, over time")
    axes[0, 0].legend(frameon=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    save(drawing, path, dpi=130)


def plot_targets(
    names: list[str],
    images: torch.Tensor,
    masks: torch.Tensor,
    targets: torch.Tensor,
    predictions: torch.Tensor,
    path: Path,
):
    """A row an image: the image, what the student saw of it, the teacher's features and the student's predictions.

    Features are shown as colours: the first three principal components of the teacher's features over all rows, the same
    projection for the predictions, so that equal colours mean equal features. Predictions stand where the student had to
    predict; where it saw the patch, the picture is dimmed.

    Args:
        images: (rows, channels, height, width) in [0, 1].
        masks: (rows, patches), True = hidden from the student.
        targets, predictions: (rows, patches, features), raster order.
    """
    side = int(masks.shape[1] ** 0.5)
    targets, predictions = (torch.nn.functional.normalize(t.float().cpu(), dim=-1) for t in (targets, predictions))
    flat = targets.reshape(-1, targets.shape[-1])
    mean = flat.mean(0)
    components = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:3].T
    projected = (flat - mean) @ components
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)

    def colours(features):
        rgb = (((features - mean) @ components) - low) / (high - low).clamp(min=1e-6)
        return rgb.clamp(0, 1).reshape(len(features), side, side, 3).numpy()

    target_rgb, predicted_rgb = colours(targets), colours(predictions)
    hidden = masks.cpu().reshape(-1, side, side).numpy()
    drawing, axes = figure(len(names), 4, (8.0, 2.05 * len(names)))
    titles = ("image", "what the student sees", "teacher's features", "student's predictions")
    for row, name in enumerate(names):
        image = images[row].float().cpu().mean(0).numpy()
        scale = image.shape[0] // side
        pixels_hidden = np.kron(hidden[row], np.ones((scale, scale), dtype=bool))
        seen = np.repeat(image[..., None], 3, axis=-1)
        seen[pixels_hidden] = (0.36, 0.42, 0.48)
        predicted = predicted_rgb[row] * np.where(hidden[row], 1.0, 0.25)[..., None]
        for column, picture in enumerate((image, seen, target_rgb[row], predicted)):
            axis = axes[row, column]
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(titles[column], fontsize=10, color=INK)
        axes[row, 0].set_ylabel(name, fontsize=8, color=INK)
    save(drawing, path, dpi=110)


def save(drawing, path: Path, dpi: int):
    """Write a figure as PNG in one step: never half a file."""
    temporary = path.with_name(f".tmp-{path.name}")
    drawing.savefig(temporary, dpi=dpi, format="png")
    temporary.replace(path)
