# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""One encoder on one labelled data set: its features as protocols ask for them, and the protocols one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import protocols as P
from .corruptions import CORRUPTIONS, SEVERITIES, Corruption
from .encoders import FrozenEncoder
from .features import extract_features
from .segmentation_protocol import segmentation, segmentation_robustness


@dataclass
class FrozenFeatures:
    """Features of a labelled data set, computed when they are asked for, once.

    Attributes:
        data: a `LabelledDataset`. kind: of the features that probes get: "pooled", "cls" or "mean".
        cache_dir: where they are kept, or None. accelerator: whose ranks share the work, or None.
    """

    data: object
    encoder: FrozenEncoder
    cache_dir: Path | None = None
    kind: str = "pooled"
    batch_size: int = 32
    num_workers: int | None = None
    accelerator: object = None
    progress: bool = True
    _kept: dict = field(default_factory=dict, repr=False)

    def of(self, kind: str | None = None, corruption: Corruption | None = None) -> np.ndarray:
        """Features of all images; with a corruption, of the test images."""
        kind = kind or self.kind
        if corruption is None and kind in self._kept:
            return self._kept[kind]
        rows = np.arange(len(self.data)) if corruption is None else self.data.rows("test")
        found = extract_features(
            self.encoder, self.data.corpus, rows, kind=kind, corruption=corruption, cache_dir=self.cache_dir,
            batch_size=self.batch_size, num_workers=self.num_workers, accelerator=self.accelerator, progress=self.progress,
        )  # fmt: skip
        if corruption is None:
            self._kept[kind] = found
        return found

    def corrupted(self, corruption: Corruption) -> np.ndarray:
        """Of the test images, of the kind that the task's probe takes."""
        return self.of("tokens" if self.data.task == "segmentation" else None, corruption)

    def compute_all(self, protocols: Sequence[str], corruptions: Sequence[str] = tuple(CORRUPTIONS)) -> None:
        """Whatever these protocols will ask for, into the cache: every rank calls it."""
        if self.data.task != "segmentation":
            self.of()
        if "attentive" in protocols or self.data.task == "segmentation":
            self.of("tokens")
        if "robustness" in protocols:
            for corruption in corruptions:
                for severity in SEVERITIES:
                    self.corrupted(Corruption(corruption, severity))


@dataclass(frozen=True)
class ProtocolSettings:
    """What protocols have in common, from the command line."""

    seeds: Sequence[int] = P.SEEDS
    fractions: Sequence[float] = P.FRACTIONS
    shots: Sequence[int] = P.SHOTS
    corruptions: Sequence[str] = tuple(CORRUPTIONS)
    draws: int = 1000
    device: str = "cpu"


def run_protocols(
    features: FrozenFeatures,
    names: Sequence[str],
    settings: ProtocolSettings,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[dict, dict, dict]:
    """Run protocols that fit the data's task.

    Args:
        names: protocols. tell: is called with the name of each before it starts.

    Returns:
        {protocol: facts} for `results.json`; {protocol: `Outcome`} of those with predictions of test images; {row: ids} of
        test images that the segmentation probe segmented.
    """
    data, sides = features.data, P.Sides.of(features.data)
    draws, device, seeds = settings.draws, settings.device, settings.seeds
    facts, outcomes, shown, trained = {}, {}, {}, None
    for name in names:
        tell(name)
        if name == "knn":
            outcomes[name] = P.knn(sides, features.of(), draws=draws)
        elif name == "linear":
            outcomes[name] = P.linear(sides, features.of(), seeds=seeds, draws=draws, device=device)
        elif name == "linear_usjepa":
            outcomes[name] = P.linear_usjepa(sides, features.of(), seeds=seeds, draws=draws, device=device)
        elif name == "attentive":
            outcomes[name] = P.attentive(sides, features.of("tokens"), seeds=seeds, draws=draws, device=device)
        elif name == "retrieval":
            outcomes[name] = P.retrieval(sides, features.of(), draws=draws)
        elif name == "segmentation":
            outcomes[name], shown = segmentation(
                data, features.of("tokens"), features.encoder, seeds=seeds, draws=draws, device=device,
                progress=features.progress,
            )  # fmt: skip
        elif name == "few_shot":
            facts[name] = P.few_shot(sides, features.of(), shots=settings.shots, seeds=seeds, device=device)
        elif name == "label_efficiency":
            facts[name] = P.label_efficiency(
                features.of(), data.labels, data.patients, data.splits, settings.fractions, seeds, task=data.task,
                num_outputs=sides.num_outputs, device=device,
            )  # fmt: skip
        elif data.task == "segmentation":  # robustness
            trained = (
                outcomes.get("segmentation")
                or segmentation(
                    data, features.of("tokens"), features.encoder, seeds=seeds, draws=0, device=device, progress=False
                )[0]
            )
            facts[name] = segmentation_robustness(data, trained, features.corrupted, settings.corruptions)
        else:
            trained = outcomes.get("linear") or P.linear(sides, features.of(), seeds=seeds, draws=0, device=device)
            facts[name] = P.robustness(sides, trained, features.corrupted, settings.corruptions)
    facts |= {name: outcome.facts for name, outcome in outcomes.items()}
    return {name: facts[name] for name in names}, outcomes, shown
