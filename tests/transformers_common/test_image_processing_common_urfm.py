# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""transformers' common image-processor tests over both URFM backends (marker `common`)."""

import unittest

import numpy as np
import pytest
from PIL import Image

from modeling_urfm import URFMImageProcessor, URFMImageProcessorPil

from .source import load


pytestmark = pytest.mark.common
common = load("test_image_processing_common")


def smooth_image(_url: str) -> Image.Image:
    """Stands in for the photograph that the backends are compared on, which would come from the Hub: 480 x 640, RGB."""
    rows, columns = np.mgrid[0:480, 0:640]
    waves = [127.5 + 127.5 * np.sin(rows / (17 + 5 * c)) * np.cos(columns / (23 + 7 * c)) for c in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


class URFMImageProcessingTester(common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs = {"size": {"height": 32, "width": 48}, "do_pad_square": False, "lower_percentile": 2.0} | kwargs
        super().__init__(parent, num_labels=5, **kwargs)

    def _get_image_processing_classes(self):  # theirs looks the folder's name up among the models of the library
        return {"torchvision": URFMImageProcessor, "pil": URFMImageProcessorPil}


class URFMImageProcessingTest(
    common.PostProcessSemanticSegmentationTestMixin, common.ImageProcessingTestMixin, unittest.TestCase
):
    image_processor_tester_class = URFMImageProcessingTester
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        np.random.seed(0)  # their inputs are drawn from the global generator
        patch = pytest.MonkeyPatch()
        patch.setattr(common, "load_test_image", smooth_image)
        self.addCleanup(patch.undo)

    @unittest.skip("torchvision is a dependency: the file that travels to the Hub holds both backends")
    def test_pil_can_run_without_torchvision(self):
        pass


class URFMUltrasoundOptionsTest(URFMImageProcessingTest):
    """The same with every option of ours on."""

    class image_processor_tester_class(URFMImageProcessingTester):  # noqa: N801
        def __init__(self, parent):
            super().__init__(parent, do_crop_scan_region=True, do_pad_square=True, do_percentile_rescale=True)
