# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a fine-tuning leaves behind: predictions, figures, the adapter's or model's files and its card."""

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from ..data.labelled import LabelledDataset
from ..evaluation.report_plots import (
    plot_cases,
    plot_confusion,
    plot_overlays,
    plot_regression,
    plot_reliability,
    plot_roc,
)
from ..image_processing_urfm import URFMImageProcessor
from .arguments import ADAPTERS
from .assess import Outputs, decisions, errors_of
from .methods import CONTROL_BASE, unwrapped


SHOWN = 10  # worst cases, and rows of a sheet of overlays
HEADLINE = {
    "classification": "macro_f1",
    "multilabel": "average_precision",
    "regression": "mae",
    "segmentation": "dice",
}
FIGURES = ("confusion.png", "roc.png", "reliability.png", "regression.png", "overlays.png", "worst.png")
CODE = ("configuration_urfm.py", "modeling_urfm.py", "image_processing_urfm.py")


def remove_earlier(folder: Path, args) -> None:
    """Remove what a run of another task or method left in `folder`, and no file of this one replaces.

    A model's weights beside an adapter would be loaded in its place, and figures would show what is not in the results.
    """
    adapter = args.method in ADAPTERS
    stale = ["model*.safetensors*", *CODE] if adapter else ["adapter_config.json", "adapter_model.safetensors"]
    for pattern in (*stale, *FIGURES):
        for path in folder.glob(pattern):
            path.unlink()
    if not (adapter and args.random_init):
        shutil.rmtree(folder / CONTROL_BASE, ignore_errors=True)


def write_predictions(
    data: LabelledDataset, task: str, by_split: dict[str, Outputs], thresholds: list[float] | None, path: Path
) -> None:
    """A row an image: id, patient, split, what it is and what the model says, in one step.

    Columns: classification: label, predicted, and probability_NAME of every class; multilabel: label_NAME, predicted_NAME,
    probability_NAME; regression: target_NAME, predicted_NAME; segmentation: dice, iou, hausdorff95.
    """
    rows = np.concatenate([outputs.rows for outputs in by_split.values()])
    columns = {
        "id": [data.corpus.id(int(row)) for row in rows],
        "patient": [str(patient) for patient in data.patients[rows]],
        "split": [split for split, outputs in by_split.items() for _ in outputs.rows],
    }
    names, every = data.label_names, list(by_split.values())
    if task == "segmentation":
        columns |= {name: np.concatenate([o.per_image[name] for o in every]) for name in every[0].per_image}
    else:
        labels, values = (np.concatenate([getattr(o, name) for o in every]) for name in ("labels", "values"))
        if task == "regression":
            for k, name in enumerate(names):
                columns |= {f"target_{name}": labels[:, k], f"predicted_{name}": values[:, k]}
        else:
            decided = np.concatenate([decisions(task, outputs, thresholds) for outputs in every])
            if task == "classification":
                columns |= {"label": [names[i] for i in labels], "predicted": [names[i] for i in decided]}
            for k, name in enumerate(names):
                if task == "multilabel":
                    columns |= {f"label_{name}": labels[:, k].astype(np.int64), f"predicted_{name}": decided[:, k]}
                columns[f"probability_{name}"] = values[:, k]
    temporary = path.with_name(f".tmp-{path.name}")
    pq.write_table(pa.table(columns), temporary)
    os.replace(temporary, path)


def draw(data: LabelledDataset, task: str, outputs: Outputs, thresholds: list[float] | None, folder: Path) -> None:
    """The figures of the test images, and `worst.png`, the ten that the model is most wrong about."""
    names = list(data.label_names)
    worst = np.argsort(-errors_of(task, outputs), kind="stable")[:SHOWN]
    if task == "segmentation":
        # From best to worst in even steps, so that the sheet shows what is usual too.
        order = np.argsort(-outputs.per_image["dice"], kind="stable")
        even = order[np.unique(np.linspace(0, len(order) - 1, SHOWN).round().astype(int))]
        for chosen, name in ((even, "overlays.png"), (worst, "worst.png")):
            rows = outputs.rows[chosen]
            titles = [
                f"{data.corpus.id(int(row))}\nDice {outputs.per_image['dice'][i]:.2f}" for i, row in zip(chosen, rows)
            ]
            plot_overlays(
                [_picture(data, row) for row in rows], [data.mask(int(row)) for row in rows],
                [outputs.masks[i] for i in chosen], titles, folder / name, names,
            )  # fmt: skip
        return
    decided = decisions(task, outputs, thresholds) if task != "regression" else None
    if task == "classification":
        plot_confusion(outputs.labels, decided, names, folder / "confusion.png")
    if task == "regression":
        plot_regression(outputs.labels, outputs.values, names, folder / "regression.png")
    else:
        plot_roc(outputs.labels, outputs.values, names, folder / "roc.png")
        plot_reliability(outputs.labels, outputs.values, folder / "reliability.png")
    titles = [f"{data.corpus.id(int(outputs.rows[i]))}\n{_said(task, outputs, decided, i, names)}" for i in worst]
    plot_cases([_picture(data, outputs.rows[i]) for i in worst], titles, folder / "worst.png")


def _picture(data: LabelledDataset, row: int) -> np.ndarray:
    return data.corpus[int(row)]["pixels"].numpy()


def _said(task: str, outputs: Outputs, decided: np.ndarray | None, i: int, names: list[str]) -> str:
    """A line on what image `i` is and what the model takes it for."""
    if task == "classification":
        label, guess = int(outputs.labels[i]), int(decided[i])
        share = f"{outputs.values[i, guess]:.2f}"
        return (
            f"{names[label]}, right at {share}" if guess == label else f"{names[label]}, not {names[guess]} ({share})"
        )
    if task == "multilabel":
        true, guess = ([names[k] for k in np.flatnonzero(row)] for row in (outputs.labels[i], decided[i]))
        return f"{'+'.join(true) or 'none'}, not {'+'.join(guess) or 'none'}"
    return f"{names[0]} {outputs.labels[i, 0]:.3g}, predicted {outputs.values[i, 0]:.3g}"


def write_model(model: nn.Module, processor: URFMImageProcessor, folder: Path) -> None:
    """Weights, config and processor of an adapter (a few MB), or of a model whose class ships with the package alone.

    The config beside an adapter is the adapted model's: its labels are what `from_pretrained` builds the head for.
    """
    folder.mkdir(parents=True)
    config = copy.deepcopy(unwrapped(model).config)
    for name in ("auto_map", "quantization_config"):  # no code lies here; the base may be loaded in full precision
        if hasattr(config, name):
            delattr(config, name)
    if model is not unwrapped(model):
        model.save_pretrained(folder)
        config.save_pretrained(folder)
    else:
        model.config = config
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
