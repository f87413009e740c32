# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What is said of outputs: collapse is named, and errors of targets of unlike units are comparable."""

import numpy as np

from modeling_urfm.finetuning.assess import Outputs, errors_of, scores_with_intervals


def segmentation(dice: list[float], found: bool) -> dict:
    masks = [np.full((4, 4), int(found and i == 0), np.uint8) for i in range(len(dice))]
    outputs = Outputs(np.arange(len(dice)), masks=masks, per_image={"dice": np.array(dice)})
    patients = np.array([f"p{i}" for i in range(len(dice))])
    return scores_with_intervals("segmentation", outputs, None, patients, 20, 0)


def test_background_for_every_image_is_a_collapse_unless_nothing_is_there():
    assert segmentation([0.0, 1.0, 0.0], found=False)["collapsed"] is True
    assert segmentation([0.4, 1.0, 0.0], found=True)["collapsed"] is False
    assert segmentation([1.0, 1.0], found=False)["collapsed"] is False


def test_the_worst_case_is_not_that_of_the_largest_unit():
    labels = np.array([[0.0, 0.0], [1000.0, 1.0], [2000.0, 2.0]])
    outputs = Outputs(np.arange(3), labels, labels + np.array([[10.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert errors_of("regression", outputs).argmax() == 1
