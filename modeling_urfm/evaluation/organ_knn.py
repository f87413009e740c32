# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The measure that is taken while a model trains: kNN organ accuracy on held-out phantoms."""

import numpy as np
import torch

from ..data.demo import PHANTOM_SIZE
from ..data.phantoms import ORGANS, generate_phantoms, usable_cores
from ..image_processing_urfm import URFMImageProcessor
from .probes import bootstrap_interval, embed, knn_predict


# Phantoms of this seed are in no corpus and were seen by no teacher.
EVALUATION_SEED = 9_000_001


class OrganKNN:
    """15-way organ accuracy of a frozen encoder's features, on phantoms of patients that it never saw.

    Args:
        image_size: side of the images, in pixels.
        snr_db: lowest and highest signal-to-noise ratio of the phantoms, in dB.
        patients: patients in all, one frame each; two thirds are for the neighbours, one third is tested.
    """

    def __init__(self, image_size: int, snr_db: tuple[float, float], patients: int = 60 * len(ORGANS)):
        phantoms = generate_phantoms(
            patients, frames_per_patient=1, image_size=PHANTOM_SIZE, snr_db=snr_db, seed=EVALUATION_SEED,
            num_proc=usable_cores(),
        )  # fmt: skip
        processor = URFMImageProcessor(size={"height": image_size, "width": image_size})
        self.pixels = processor(phantoms["image"][:], return_tensors="pt").pixel_values
        self.labels = np.array(phantoms["organ"])
        # Organs take turns from patient to patient: every third round of all organs is for testing.
        self.test = np.arange(patients) // len(ORGANS) % 3 == 2

    def __call__(self, encoder: torch.nn.Module) -> tuple[float, tuple[float, float]]:
        """Accuracy of `encoder` (a URFMModel) in [0, 1], and its 95 % interval over the test patients."""
        features, train = embed(encoder, self.pixels.split(64)), ~self.test
        found = knn_predict(features[train], self.labels[train], features[self.test])
        right = (found == self.labels[self.test]).astype(float)
        return float(right.mean()), bootstrap_interval(right)
