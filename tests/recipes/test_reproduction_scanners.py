# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Frames of another scanner: the same patients, another probe, depth and picture."""

import numpy as np
import pytest

from modeling_urfm.data.phantom_anatomy import ANATOMY
from modeling_urfm.data.phantoms import ORGANS, phantom_frame
from recipes.reproduction.scanners import OTHER_PROBE, other_picture, other_scanner_frame


FRAMES = [other_scanner_frame(0, patient, snr_db=10.0) for patient in range(60)]


def test_a_frame_is_a_function_of_its_arguments():
    again = other_scanner_frame(0, 4, snr_db=10.0)
    assert np.array_equal(again.image, FRAMES[4].image) and again.image.dtype == np.uint8
    assert not np.array_equal(other_scanner_frame(1, 4, snr_db=10.0).image, again.image)
    assert other_scanner_frame(0, 4, image_size=64, snr_db=10.0).image.shape == (64, 64)


def test_the_patient_is_the_same_and_the_scanner_is_not():
    probes, scales = {organ: set() for organ in ORGANS}, []
    for patient, frame in enumerate(FRAMES):
        usual = phantom_frame(0, patient, probe=ANATOMY[frame.organ][1], snr_db=10.0)
        assert (frame.organ, frame.lesion, frame.snr_db) == (usual.organ, usual.lesion, usual.snr_db)
        assert not np.array_equal(frame.image, usual.image)
        # The usual depth of the other probe: forced, it leaves the draws after it in their places.
        scale = frame.depth_mm / phantom_frame(0, patient, probe=frame.probe, snr_db=10.0).depth_mm
        assert 1.15 <= scale <= 1.3 or 0.8 <= scale <= 0.87
        probes[frame.organ].add(frame.probe)
        scales.append(scale)
    assert min(scales) < 1 < max(scales)
    for organ, seen in probes.items():
        assert seen == {OTHER_PROBE[ANATOMY[organ][1]]}
    assert {"sector", "linear", "curved"} == set().union(*probes.values())


def test_the_picture_is_inside_the_scan_and_shows_something():
    for frame in FRAMES:
        assert not frame.image[~frame.scan_mask].any()
        inside = frame.image[frame.scan_mask]
        assert inside.std() > 8 and 20 < inside.mean() < 235
    assert not any(np.array_equal(frame.image, other.image) for frame, other in zip(FRAMES, FRAMES[15:]))


def test_makers_pictures_are_lighter_and_darker_sharper_and_smoother():
    frame = phantom_frame(0, 3, organ="liver", snr_db=20)
    pictures = [other_picture(frame.image, frame.scan_mask, np.random.default_rng(n)).astype(float) for n in range(40)]
    mean = np.array([picture[frame.scan_mask].mean() for picture in pictures])
    usual = frame.image[frame.scan_mask].mean()
    assert (mean > usual + 10).any() and (mean < usual - 10).any()

    def speckle(image):
        """Contrast from pixel to pixel over that within the scan."""
        return np.abs(np.diff(image, axis=0))[frame.scan_mask[1:]].mean() / image[frame.scan_mask].std()

    found, usual = np.array([speckle(picture) for picture in pictures]), speckle(frame.image.astype(float))
    assert (found > 1.1 * usual).any() and (found < 0.8 * usual).any()


def test_lesions_and_organs_can_be_forced():
    frame = other_scanner_frame(0, 2, organ="breast", lesion="malignant", snr_db=20.0)
    assert (frame.organ, frame.lesion) == ("breast", "malignant") and frame.mask.any()
    with pytest.raises(ValueError, match="organ 'brain' does not exist"):
        other_scanner_frame(0, 2, organ="brain", snr_db=20.0)
