import io
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modeling_urfm.data.duplicates import (
    EXCLUSION_BITS,
    HASH_BITS,
    NEAR_DUPLICATE_BITS,
    near_repeats,
    nearest,
    perceptual_hash,
    pixel_hash,
    repeats,
    to_words,
)
from modeling_urfm.data.phantoms import phantom_frame


def random_words(n: int, rng: np.random.Generator, near: int = 0) -> np.ndarray:
    """n hashes; the last `near` differ from one of the others in up to 30 bits."""
    bits = rng.integers(0, 2, (n, HASH_BITS))
    for row in range(n - near, n):
        bits[row] = bits[rng.integers(0, max(1, n - near))]
        bits[row, rng.choice(HASH_BITS, rng.integers(0, 31), replace=False)] ^= 1
    return np.packbits(bits.astype(np.uint8), axis=1).view(">u8").astype(np.uint64)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) uint64 -> (n, m), the bits that differ, counted."""
    return np.bitwise_count(a[:, None] ^ b[None]).sum(-1, dtype=np.int32)


def bits_that_differ(a: np.ndarray, b: np.ndarray) -> int:
    return sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b))


@given(st.integers(0, 10_000), st.integers(1, 50), st.integers(0, 40))
def test_near_repeats_are_those_of_a_plain_loop(seed, n, radius):
    words = random_words(n, np.random.default_rng(seed), near=n // 2)
    gone, stay = near_repeats(words, radius), []
    for i in range(n):  # greedy, in order
        near = any(bits_that_differ(words[i], words[j]) <= radius for j in stay)
        assert gone[i] == near
        stay += [] if near else [i]


def test_repeats_and_nearest():
    assert repeats(np.array([3, 1, 3, 3, 1, 2])).tolist() == [False, False, True, True, True, False]
    words = random_words(300, np.random.default_rng(0), near=100)
    table = distances(words[:150], words[150:])
    best, where = nearest(words[:150], words[150:])
    assert best.tolist() == table.min(1).tolist() and where.tolist() == table.argmin(1).tolist()
    assert (nearest(words, words[:0])[0] == HASH_BITS + 1).all()


def test_many_views_of_one_probe_cost_no_matrix():
    """20,000 hashes within a few bits of one another: all pairs of them would take 6 GB and minutes."""
    rng = np.random.default_rng(0)
    bits = np.repeat(rng.integers(0, 2, (1, HASH_BITS)), 20_000, 0)
    bits[np.arange(20_000)[:, None], rng.integers(0, HASH_BITS, (20_000, 6))] ^= 1
    words = np.packbits(bits.astype(np.uint8), axis=1).view(">u8").astype(np.uint64)
    tracemalloc.start()
    gone = near_repeats(words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert gone.mean() > 0.99 and peak < 100e6


def test_hash_as_text_and_as_words():
    image = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    text = perceptual_hash(image)
    assert len(text) == 64 and to_words([text]).shape == (1, 4)
    assert "".join(f"{int(word):016x}" for word in to_words([text])[0]) == text
    assert pixel_hash(image) == pixel_hash(image.copy()) != pixel_hash(image.reshape(70, 50))


def region(patient: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    phantom = phantom_frame(3, patient, frame, image_size=256, snr_db=15)
    rows, columns = np.flatnonzero(phantom.scan_mask.any(1)), np.flatnonzero(phantom.scan_mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return phantom.image[box], phantom.scan_mask[box]


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def halved(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def bits() -> dict[str, np.ndarray]:
    """Distances of 256-px phantoms to copies of themselves, to the next frame of the loop and to other patients."""
    found: dict[str, list] = {"jpeg 75": [], "half": [], "brighter": [], "next frame": [], "other patient": []}
    first = []
    for patient in range(30):
        (image, mask), (following, its_mask) = region(patient, 0), region(patient, 1)
        hashed = perceptual_hash(image, mask)
        half_mask = halved(mask.astype(np.uint8)) > 0
        for name, other in (
            ("jpeg 75", perceptual_hash(jpeg(image, 75), mask)), ("half", perceptual_hash(halved(image), half_mask)),
            ("brighter", perceptual_hash(np.minimum(image * 1.1 + 5, 255).astype(np.uint8), mask)),
            ("next frame", perceptual_hash(following, its_mask)),
        ):  # fmt: skip
            found[name].append(distances(to_words([hashed]), to_words([other]))[0, 0])
        first.append(hashed)
    words = to_words(first)
    found["other patient"] = distances(words, words)[np.triu_indices(30, 1)].tolist()
    return {name: np.array(values) for name, values in found.items()}


def test_copies_are_near_and_other_images_are_not(bits):
    assert bits["jpeg 75"].max() <= NEAR_DUPLICATE_BITS
    assert (bits["half"] <= NEAR_DUPLICATE_BITS).mean() >= 0.9 and bits["half"].max() <= EXCLUSION_BITS
    assert (bits["brighter"] <= NEAR_DUPLICATE_BITS).all()
    assert (bits["next frame"] <= NEAR_DUPLICATE_BITS).mean() <= 0.05
    assert bits["other patient"].min() > 1.5 * EXCLUSION_BITS


def test_a_flat_image_hashes_alike_whatever_its_grey():
    hashes = {perceptual_hash(np.full((40, 60), grey, np.uint8)) for grey in (0, 7, 200)}
    assert len(hashes) == 1 or len({h[1:] for h in hashes}) == 1  # the first bit is the mean's
