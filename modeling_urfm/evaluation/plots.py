# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The pictures of a pre-training run: its loss, and what it learnt to predict."""

from pathlib import Path

import numpy as np
import torch


INK, ACCENT = "#1f2933", "#0b6e99"


def _figure(rows: int, columns: int, size: tuple[float, float]):
    # The object interface: no global backend is touched, and no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def plot_loss(history: list[dict], evaluations: list[dict], path: Path, loss_name: str = "loss"):
    """Loss over steps, and the kNN accuracy on held-out phantoms on its own axis below.

    Args:
        history: `{"step", "loss", ...}` a logged step.
        evaluations: `{"step", "knn_accuracy"}` an evaluation; the second panel is left out when there is none.
    """
    rows = 1 + bool(evaluations)
    figure, axes = _figure(rows, 1, (6.4, 2.6 * rows))
    axis = axes[0, 0]
    steps, losses = [h["step"] for h in history], np.array([h["loss"] for h in history])
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
    _save(figure, path, dpi=130)


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
    figure, axes = _figure(len(names), 4, (8.0, 2.05 * len(names)))
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
    _save(figure, path, dpi=110)


def _save(figure, path: Path, dpi: int):
    temporary = path.with_name(f".tmp-{path.name}")
    figure.savefig(temporary, dpi=dpi, format="png")
    temporary.replace(path)
