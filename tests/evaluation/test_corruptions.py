# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Corruptions: strengths as published, the same for every encoder, and of a size that does not depend on the file."""

import pickle

import numpy as np
import pytest
import torch

from modeling_urfm.data.phantoms import phantom_frame
from modeling_urfm.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Corruption, speckle_noise


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(phantom_frame(5, 0, image_size=96).image)[None]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_worse_with_severity_and_a_pure_function(image, name):
    found = [Corruption(name, severity)(image, 3) for severity in SEVERITIES]
    assert all(f.dtype == torch.uint8 and f.shape == image.shape for f in found)
    distances = [(f.float() - image.float()).abs().mean().item() for f in found]
    assert 0 < distances[0] < distances[1] < distances[2]
    again = pickle.loads(pickle.dumps(Corruption(name, 2)))
    assert torch.equal(again(image, 3), found[1]) and again.key == f"{name}-2"
    colour = Corruption(name, 1)(image.expand(3, -1, -1), 3)
    assert colour.shape == (3, 96, 96)


def test_random_ones_depend_on_the_image(image):
    assert not torch.equal(Corruption("speckle", 1)(image, 0), Corruption("speckle", 1)(image, 1))


def test_published_strengths():
    noise = speckle_noise((200, 300), 1.0, np.random.default_rng(0))
    assert noise.shape == (200, 300) and abs(noise.std() - 1) < 1e-5 and abs(noise.mean()) < 1e-5
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean()
    assert neighbours > 0.6  # correlated: exp(-1/4) for a Gaussian of 1 pixel
    grey = torch.full((1, 224, 224), 100, dtype=torch.uint8)
    deviation = Corruption("speckle", 1)(grey, 0).float().std() / 100
    assert abs(deviation - 0.35) < 0.02
    grey[..., :50] = 50  # the median is 100: what is 50 below it is 35 below it then
    assert Corruption("contrast", 1)(grey, 0)[0, 0, 0].item() == pytest.approx(65, abs=1)


def test_pixels_are_those_of_224(image):
    small = torch.nn.functional.interpolate(image[None].float(), size=(224, 224), mode="bilinear")[0]
    large = torch.nn.functional.interpolate(small[None], size=(448, 448), mode="bilinear")[0]
    small, large = (part.round().to(torch.uint8) for part in (small, large))
    of_small, of_large = (Corruption("blur", 3)(part, 0).float() for part in (small, large))
    shrunk = torch.nn.functional.avg_pool2d(of_large[None], 2)[0]
    assert (shrunk - of_small).abs().mean() < 1.5


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match="blur"):
        Corruption("blurr", 1)
    with pytest.raises(ValueError, match="severity"):
        Corruption("blur", 4)
