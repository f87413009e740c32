# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a model makes of a scan, as numbers and pictures; `page` writes them down."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from models import Case, Onlooker
from scans import Scan

from modeling_urfm.evaluation import visuals
from modeling_urfm.evaluation.visual_sheets import Panel, pca_panel, rollout_panel
from modeling_urfm.evaluation.visuals import PatchColours, Sight


# A picture is looked at with so many patches a side at least: 8, as the demo was trained with, show little to the eye.
LEAST_GRID = 16


@dataclass(frozen=True)
class Look:
    """All that a page shows of one scan.

    Attributes:
        scan: what was read. tokens, attention: pictures of its frames' scan region, with what their colours mean.
        labels: answers of the head. probabilities: (N, labels), a row a frame; None of a model without head.
        regression: they are values. strange: the head knows nothing like it. cases: the nearest ones, nearest first.
    """

    scan: Scan
    tokens: Panel
    attention: Panel
    labels: list[str]
    probabilities: np.ndarray | None
    strange: bool
    cases: list[Case]
    regression: bool = False


def look_at(scan: Scan, onlooker: Onlooker) -> Look:
    """Show every frame of a scan to the model; of each it sees the scan region alone."""
    frames = list(scan.seen)
    sights = looked(frames, onlooker)
    colours = PatchColours([s.tokens for s in sights], [s.lit for s in sights])
    head = onlooker.head
    return Look(
        scan=scan,
        tokens=pca_panel(sights, colours),
        attention=rollout_panel(sights),
        labels=head.labels if head else [],
        probabilities=head.probabilities(frames) if head else None,
        strange=bool(head and head.strange(frames)),
        cases=onlooker.cases(frames),
        regression=bool(head and head.regression),
    )


def looked(frames: Sequence[np.ndarray], onlooker: Onlooker) -> list[Sight]:
    """The frames as the encoder sees them, with at least `LEAST_GRID` patches a side."""
    patch, native = onlooker.model.config.patch_size, onlooker.encoder.size[0]
    names = [str(number) for number in range(len(frames))]
    side = max(native // patch, LEAST_GRID) * patch
    return visuals.look(
        onlooker.model, onlooker.processor, names, frames, image_size=side, batch_size=4, progress=False
    )
