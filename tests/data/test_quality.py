import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_urfm.data.phantoms import ORGANS, phantom_frame
from modeling_urfm.data.quality import QualityThresholds, flat_share, is_frozen, judge


LIMITS = QualityThresholds()
WHOLE = np.ones((160, 200), bool)


def speckle(level: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(level * rng.rayleigh(0.8, WHOLE.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("organ", ORGANS)
@pytest.mark.parametrize("snr_db", [5, 30])
def test_every_organ_is_good_enough(organ, snr_db):
    frame = phantom_frame(5, 1, organ=organ, image_size=192, snr_db=snr_db)
    assert judge(frame.image, frame.scan_mask, LIMITS) is None


def drawing() -> np.ndarray:
    image = np.full(WHOLE.shape, 90, np.uint8)
    image[40:100, 50:120] = 180
    return image


@pytest.mark.parametrize(
    "code, image",
    [
        ("blank", np.zeros(WHOLE.shape, np.uint8)), ("blank", speckle(4)), ("saturated", np.full(WHOLE.shape, 255, np.uint8)),
        ("saturated", speckle(600)), ("not-ultrasound", drawing()), (None, speckle(60)),
    ],
)  # fmt: skip
def test_each_threshold(code, image):
    assert judge(image, WHOLE, LIMITS) == code


def test_too_small_and_nothing_inside():
    assert judge(speckle(60)[:40], WHOLE[:40], LIMITS) == "too-small"
    assert judge(speckle(60), ~WHOLE, LIMITS) == "blank"


def test_what_lies_outside_the_region_does_not_count():
    mask = np.zeros(WHOLE.shape, bool)
    mask[:, 60:140] = True
    image = np.where(mask, speckle(60), np.uint8(255))
    assert judge(image, mask, LIMITS) is None


@given(st.integers(0, 50), st.integers(8, 90), st.integers(8, 90))
def test_flat_share_is_that_of_a_plain_loop(seed, height, width):
    rng = np.random.default_rng(seed)
    image = (rng.integers(0, 3, (height, width)) * rng.integers(0, 60)).astype(np.uint8)
    mask = rng.random((height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)[:height, :width] < 0.8
    lit = flat = 0
    for y in range(0, height - 7, 8):
        for x in range(0, width - 7, 8):
            block = image[y : y + 8, x : x + 8].astype(float)
            if mask[y : y + 8, x : x + 8].all() and block.mean() > LIMITS.blank_level:
                lit, flat = lit + 1, flat + (block.std() < LIMITS.flat_deviation)
    assert flat_share(image, mask, LIMITS) == pytest.approx(flat / lit if lit else 0)


def test_frozen_is_the_same_picture_again():
    image = speckle(60)
    noisy = np.clip(
        image.astype(int) + np.random.default_rng(1).integers(0, 2, image.shape) * (np.arange(200) % 5 == 0), 0, 255
    )
    assert is_frozen(image, image.copy(), WHOLE, LIMITS)
    assert is_frozen(noisy.astype(np.uint8), image, WHOLE, LIMITS)  # as compression leaves it
    assert not is_frozen(speckle(60, 1), image, WHOLE, LIMITS)
    assert not is_frozen(image, None, WHOLE, LIMITS)
    assert not is_frozen(image, image[:100], WHOLE, LIMITS)
