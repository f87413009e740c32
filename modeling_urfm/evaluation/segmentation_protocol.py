# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The segmentation probe on a labelled data set: its scores on whole images, examples to look at, and corrupted images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from .corruptions import CORRUPTIONS, Corruption
from .protocols import SEEDS, Outcome, assess_images, summarise_robustness
from .scores import IGNORE, image_segmentation_scores
from .segmentation_probe import Box, SegmentationProbe, finer, fit_segmentation_probe, mask_as_seen, seen_box
from .sweeps import SweepSettings


SCORES = ("dice", "iou", "hausdorff95")
EXAMPLES = 6


@dataclass(frozen=True)
class TrainedSegmentation:
    """A probe, and where what the encoder sees lies in each test image: (box, height, width)."""

    probe: SegmentationProbe
    places: tuple[tuple[Box, int, int], ...]

    def predict(self, number: int, tokens: np.ndarray, seeds: int | None = None) -> list[np.ndarray]:
        """Ids of test image `number` from its tokens (tokens, features), one array a seed."""
        return self.probe.predict(tokens, *self.places[number], seeds=seeds)


def check_sees(encoder, data) -> None:
    """ValueError, naming the encoder, unless its patches can be laid over masks: known before any features are."""
    try:
        seen_box(encoder.prepare, *data.mask(0).shape)
    except ValueError as error:
        raise ValueError(f"--encoders {encoder.name}, {data.name}: {error}") from None


def segmentation(
    data,
    tokens: np.ndarray,
    encoder,
    *,
    seeds: Sequence[int] = SEEDS,
    draws: int = 1000,
    settings: SweepSettings | None = None,
    device="cpu",
    progress: bool = True,
) -> tuple[Outcome, dict]:
    """Segmentation probe: train, choose, and score the whole test images.

    Args:
        data: a `LabelledDataset` of task "segmentation". tokens: (images, tokens, features) of all its images.
        encoder: a `FrozenEncoder`: its grid, and its processor, which says what of an image it sees.

    Returns:
        The outcome, with Dice, IoU and the 95 % Hausdorff distance (pixels of the original image) of every image and seed,
        and {row: ids predicted with the first seed} of a few test images: the best, the worst and between.
    """
    classes, boxes, masks = len(data.label_names), {}, [None] * len(data)
    train, validation, test = (data.rows(split) for split in ("train", "validation", "test"))
    for row in tqdm(np.concatenate([train, validation]), desc="masks", unit="mask", disable=not progress):
        mask = data.mask(int(row))
        masks[row] = mask_as_seen(mask, _box(encoder, boxes, mask.shape), finer(encoder.grid))
    options = {} if settings is None else {"settings": settings}
    probe = fit_segmentation_probe(
        tokens, masks, train, validation, grid=encoder.grid, num_classes=classes, seeds=seeds, device=device, **options
    )
    values = np.empty((len(seeds), len(test), len(SCORES)))
    shown, places, wanted, answers = {}, [], set(), [set() for _ in seeds]
    for number, row in enumerate(tqdm(test, desc="segmenting", unit="image", disable=not progress)):
        mask = data.mask(int(row))
        wanted |= set(np.unique(mask[mask != IGNORE]).tolist())
        places.append((_box(encoder, boxes, mask.shape), *mask.shape))
        for seed, predicted in enumerate(probe.predict(tokens[row], *places[-1])):
            values[seed, number] = list(image_segmentation_scores(mask, predicted, classes).values())
            answers[seed] |= set(np.unique(predicted).tolist())
    trained = TrainedSegmentation(probe, tuple(places))
    order = np.argsort(values[0, :, 0], kind="stable")
    for number in order[np.unique(np.linspace(0, len(order) - 1, EXAMPLES).round().astype(int))]:
        shown[int(test[number])] = trained.predict(int(number), tokens[test[number]], seeds=1)[0]
    # One id for every pixel of every image, most often background, is this task's one answer to everything.
    fallen = [seed for seed, ids in enumerate(answers) if len(ids) == 1 and len(wanted) > 1]
    outcome = assess_images(
        values,
        SCORES,
        data.patients[test],
        draws=draws,
        fallen=fallen,
        facts={"chosen": list(probe.chosen)},
        probe=trained,
    )
    return outcome, shown


def segmentation_robustness(
    data, outcome: Outcome, corrupted: Callable[[Corruption], np.ndarray], names: Sequence[str] = tuple(CORRUPTIONS)
) -> dict:
    """As `protocols.robustness`, with the probe of the first seed; `clean` is that of all seeds."""
    masks = [data.mask(int(row)) for row in data.rows("test")]

    def mean_dice(corruption: Corruption) -> float:
        tokens = corrupted(corruption)
        predicted = (outcome.probe.predict(number, tokens[number], seeds=1)[0] for number in range(len(masks)))
        classes = len(data.label_names)
        return float(np.mean([image_segmentation_scores(m, p, classes)["dice"] for m, p in zip(masks, predicted)]))

    return summarise_robustness("dice", outcome.facts, mean_dice, names)


def _box(encoder, boxes: dict, shape: tuple[int, int]) -> Box:
    if shape not in boxes:
        boxes[shape] = seen_box(encoder.prepare, *shape)
    return boxes[shape]
