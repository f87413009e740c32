# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The physics of ultrasound as augmentations: within [0, 1], within the scan region, as independent loops compute them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from modeling_urfm.data import augmentations as A
from modeling_urfm.data.phantoms import phantom_frame
from modeling_urfm.data.transforms import AugmentedCorpus, PretrainTransform, UltrasoundAugmentation, to_float
from modeling_urfm.pretraining.arguments import AUGMENTATIONS, PretrainArguments, augmentation_strengths


@pytest.fixture(scope="module")
def phantom() -> torch.Tensor:
    image = phantom_frame(3, 1, organ="heart", image_size=96, snr_db=15.0).image
    return torch.from_numpy(image)[None].float() / 255


def sector(size: int = 64) -> torch.Tensor:
    """A lit fan on black with a dark hole: cells outside are exactly 0."""
    y, x = np.mgrid[:size, :size].astype(float)
    r, angle = np.hypot(x - size / 2, y), np.arctan2(x - size / 2, y + 1e-9)
    fan = (r < 0.9 * size) & (np.abs(angle) < 0.6) & (r > 4)
    hole = np.hypot(x - size / 2, y - size / 2) < size / 10
    values = np.random.default_rng(0).uniform(0.2, 0.9, (size, size)) * fan * ~hole
    return torch.from_numpy(values.astype(np.float32))[None], torch.from_numpy(fan), torch.from_numpy(hole)


def test_the_flags_and_the_effects_have_the_same_names():
    assert set(AUGMENTATIONS) == {*A.EFFECTS, "vertical_flip"}


def test_the_mask_is_the_sector_with_what_is_dark_in_it():
    image, fan, hole = sector()
    mask = A.scan_mask(image)
    assert mask[hole].all() and (mask & ~fan).sum() == 0 and (mask & fan).sum() / fan.sum() > 0.99
    assert not A.scan_mask(torch.zeros(3, 8, 8)).any()
    for seed in range(5):  # against a loop
        image = torch.from_numpy((np.random.default_rng(seed).random((1, 9, 7)) > 0.7).astype(np.float32))
        lit = image[0].numpy() > 0
        for y in range(9):
            for x in range(7):
                row, column = np.flatnonzero(lit[y]), np.flatnonzero(lit[:, x])
                between = len(row) and len(column) and row[0] <= x <= row[-1] and column[0] <= y <= column[-1]
                assert bool(A.scan_mask(image)[y, x]) == bool(between)


@pytest.mark.parametrize("name", A.EFFECTS)
def test_every_effect_stays_in_range_leaves_black_black_and_is_a_function_of_its_generator(name, phantom):
    image, fan, _ = sector()
    effect = UltrasoundAugmentation({name: 1.0}, probability=1.0)
    outside, changed = ~A.scan_mask(image), 0
    for seed in range(20):
        for picture in (image, phantom, phantom.expand(3, -1, -1).clone()):
            before = picture.clone()
            got = effect(picture, np.random.default_rng(seed))
            assert got.shape == picture.shape and got.dtype == torch.float32 and torch.equal(picture, before)
            assert 0 <= got.min() and got.max() <= 1 and torch.isfinite(got).all()
            assert torch.equal(got, effect(picture, np.random.default_rng(seed)))
            changed += not torch.equal(got, before)
        assert (effect(image, np.random.default_rng(seed))[0][outside] == 0).all()
    assert changed > 55
    grey, colour = (effect(p, np.random.default_rng(5)) for p in (phantom, phantom.expand(3, -1, -1).clone()))
    assert torch.allclose(grey.expand(3, -1, -1), colour, atol=1e-6)  # the colour of a grey image stays grey
    black = effect(torch.zeros(1, 16, 16), np.random.default_rng(0))
    assert (black == 0).all()


@pytest.mark.parametrize("name", A.EFFECTS)
def test_strength_zero_and_probability_zero_change_nothing(name, phantom):
    for strengths, probability in (({name: 0.0}, 1.0), ({name: 1.0}, 0.0), ({}, 1.0)):
        got = UltrasoundAugmentation(strengths, probability)(phantom, np.random.default_rng(0))
        assert torch.equal(got, phantom)


def test_what_the_flags_say(phantom):
    assert augmentation_strengths(["blur", "gain=0.5"]) == {"blur": 1.0, "gain": 0.5} and not augmentation_strengths(
        None
    )
    for values, says in (
        ({"augment": ["speckel"]}, "augment 'speckel' does not exist. Did you mean 'speckle'"),
        ({"augment": ["blur=2"]}, r"outside \(0, 1\]. The nearest valid value: blur=1"),
        ({"augment": ["blur=much"]}, "'much' is no number. Full strength: blur=1"),
        ({"augment": ["blur"], "augment_probability": 1.5}, "The nearest valid value: 1.0"),
        ({"augment_student_only": True}, "name effects with --augment, e.g. speckle blur"),
        ({"balance_temperature": -1.0}, r"outside \[0, 1\]. The nearest valid value: 0.0"),
        ({"max_images_per_source": 0}, "max_images_per_source=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            PretrainArguments(dataset=["x"], **values)


def test_effects_are_drawn_with_their_probability(phantom):
    effect = UltrasoundAugmentation({"gain": 1.0}, 0.3)
    rng = np.random.default_rng(0)
    changed = sum(not torch.equal(effect(phantom, rng), phantom) for _ in range(1000))
    assert abs(changed - 300) < 5 * (1000 * 0.3 * 0.7) ** 0.5


def test_what_does_not_exist_is_named():
    with pytest.raises(ValueError, match="'blurr' does not exist; there are: speckle, blur"):
        UltrasoundAugmentation({"blurr": 1.0})
    with pytest.raises(ValueError, match=r"strength 3 of gain is outside \[0, 1.5\]"):
        UltrasoundAugmentation({"gain": 3})


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_blur_is_scipys(sigma, phantom):
    size = round(3 * sigma)
    expected = ndimage.gaussian_filter(phantom[0].numpy().astype(float), sigma, radius=size, mode="mirror")
    expected *= A.scan_mask(phantom).numpy()
    got = A.blur(phantom, sigma)[0].numpy()
    assert np.abs(got - expected).max() < 2e-6


def test_speckle_is_a_loop_over_smoothed_noise_of_unit_variance(phantom):
    sigma = 0.35
    noise = np.random.default_rng(7).integers(0, 256, (102, 102), dtype=np.uint8).astype(float)
    noise = (noise - 127.5) / math.sqrt((256**2 - 1) / 12)
    weights = [math.exp(-(k**2) / 2) for k in range(-3, 4)]
    norm = sum(w * w for w in weights)
    expected = np.zeros((96, 96))
    for y in range(96):
        for x in range(96):
            smooth = sum(weights[i] * weights[j] * noise[y + i, x + j] for i in range(7) for j in range(7))
            expected[y, x] = min(1.0, max(0.0, float(phantom[0, y, x]) * (1 + sigma * smooth / norm)))
    got = A.speckle(phantom, sigma, np.random.default_rng(7))[0].numpy()
    assert np.abs(got - expected).max() < 2e-6
    flat = torch.full((1, 256, 256), 0.1)
    ratio = A.speckle(flat, sigma, np.random.default_rng(1)) / flat
    assert ratio.std().item() == pytest.approx(sigma, rel=0.05) and ratio.mean().item() == pytest.approx(1, abs=0.02)


def test_attenuation_shadow_haze_gain_and_contrast_are_their_formulas(phantom):
    mask, fades = A.scan_mask(phantom), np.zeros((96, 96))
    wide = np.pad(mask.numpy().astype(float), 7, mode="edge")
    for y in range(96):
        for x in range(96):
            fades[y, x] = 2 * wide[y : y + 15, x : x + 15].mean() - 1
    fades = fades.clip(0, 1) * mask.numpy()
    image, h, w = phantom[0].numpy().astype(float), 96, 96
    rng = np.random.default_rng(3)
    noise = np.random.default_rng(3).random((h, w), dtype=np.float32)
    got = {
        "attenuation": A.depth_attenuation(phantom, 1.3),
        "shadow": A.acoustic_shadow(phantom, 0.6, (0.4, 0.7), (0.05, 0.1)),
        "haze": A.haze(phantom, 0.5, 0.4, 0.05, rng),
        "gain": A.gain(phantom, 0.1),
        "contrast": A.contrast(phantom, 0.5),
    }
    lit = phantom[0, ::4, ::4][phantom[0, ::4, ::4] > 6 / 255].sort().values
    middle = float(lit[(len(lit) - 1) // 2])
    for y in range(0, h, 5):
        for x in range(0, w, 5):
            value, ramp = image[y, x], min(1.0, 17 * image[y, x])
            distance = math.hypot(x / (w - 1) - 0.5, y / (h - 1))
            above = min(0.0, y - 0.4 * h)
            dark = math.exp(-((above / (0.05 * h)) ** 2) / 2) * math.exp(-(((x - 0.7 * w) / (0.1 * w)) ** 2) / 2)
            expected = {
                "attenuation": value * math.exp(-1.3 * distance),
                "shadow": value * (1 - 0.6 * dark),
                "haze": value + 0.5 * noise[y, x] * math.exp(-((distance - 0.4) ** 2) / (2 * 0.05**2)) * fades[y, x],
                "gain": value + 0.1 * ramp,
                "contrast": value + 0.5 * (middle - value) * ramp,
            }
            for name, wanted in expected.items():
                assert float(got[name][0, y, x]) == pytest.approx(min(1.0, wanted), abs=2e-6), name


def test_usaugment_computes_the_same(phantom):
    """Where it has the effect: attenuation; haze but near the outline; a shadow above its centre (ours goes on below)."""
    theirs = pytest.importorskip("usaugment.albumentations")
    mask = A.scan_mask(phantom)
    image, inside = phantom[0].numpy(), mask.numpy()
    expected = theirs.DepthAttenuation(attenuation_rate=1.7, p=1).apply(image, scan_mask=inside)
    assert np.abs(A.depth_attenuation(phantom, 1.7)[0].numpy() - expected)[inside].max() < 1e-6

    state = np.random.get_state()
    try:
        np.random.seed(4)
        expected = theirs.GaussianShadow(strength=0.7, sigma_x=0.1, sigma_y=0.2, p=1).apply(image, scan_mask=inside)
        np.random.seed(4)
        column, row = np.random.choice(np.arange(96)), np.random.choice(np.arange(96))
        got = A.acoustic_shadow(phantom, 0.7, (row / 96, column / 96), (0.2, 0.1))[0].numpy()
        assert row > 10 and np.abs(got - expected)[:row][inside[:row]].max() < 1e-6

        np.random.seed(5)
        expected = theirs.HazeArtifact(radius=0.5, sigma=0.06, p=1).apply(image, scan_mask=inside)
        np.random.seed(5)
        noise = np.random.uniform(0, 1, (96, 96)).astype(np.float32)
    finally:
        np.random.set_state(state)
    rng = type("Given", (), {"random": lambda self, shape, dtype: noise})()
    middle = ndimage.binary_erosion(inside, np.ones((15, 15)), border_value=1)  # ours fades out near the outline
    assert middle.any() and np.abs(A.haze(phantom, 0.5, 0.5, 0.06, rng)[0].numpy() - expected)[middle].max() < 1e-6


# ---------------------------------------------------------------- in the data set


class One(torch.utils.data.Dataset):
    def __getitem__(self, index):
        pixels = torch.arange(60 * 50, dtype=torch.int32).remainder(251).to(torch.uint8).view(1, 60, 50)
        return {"pixels": pixels, "id": str(index), "index": index, "unreadable": ""}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.integers(0, 99))
def test_the_teacher_sees_the_crop_and_the_student_what_was_made_of_it(epoch, index):
    # A gain near 0 dB and a weak blur may round to the same grey values; speckle does for no epoch and index drawn here.
    effects = UltrasoundAugmentation({"gain": 1.0, "blur": 1.0, "speckle": 1.0}, probability=1.0)
    plain = AugmentedCorpus(One(), PretrainTransform(24), 7)[(epoch, index, 5)]
    both = AugmentedCorpus(One(), PretrainTransform(24), 7, effects)[(epoch, index, 5)]
    student = AugmentedCorpus(One(), PretrainTransform(24), 7, effects, student_only=True)[(epoch, index, 5)]
    assert "teacher_pixels" not in both and not torch.equal(both["pixels"], plain["pixels"])
    assert torch.equal(student["teacher_pixels"], plain["pixels"]) and torch.equal(student["pixels"], both["pixels"])


def test_crops_are_those_of_the_version_before():
    """The stream of crops that published runs were trained with: a change here changes every result."""
    pixels = AugmentedCorpus(One(), PretrainTransform(24), 7)[(2, 3)]["pixels"]
    transform, rng = PretrainTransform(24), np.random.default_rng([7, 2, 3])
    box = transform.box(60, 50, rng)
    assert box == (2, 2, 58, 47) and rng.random() < 0.5
    assert float(to_float(pixels).double().sum()) == pytest.approx(284.98432, abs=1e-5)


def test_vertical_flips_are_drawn_apart():
    image = One()[0]["pixels"]
    flipped = [PretrainTransform(24, vertical_flip=1.0)(image, np.random.default_rng(i)) for i in range(8)]
    plain = [PretrainTransform(24)(image, np.random.default_rng(i)) for i in range(8)]
    assert all(torch.equal(a, b.flip(-2)) for a, b in zip(flipped, plain))
