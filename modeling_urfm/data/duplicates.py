# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Equal and nearly equal images, found in a corpus of any size by hashes of 256 bits.

Near-duplicates are pairs whose perceptual hashes differ in at most `radius` bits. By the pigeonhole principle two such
hashes agree exactly in one of `radius + 1` bands of bits (multi-index hashing: Norouzi, Punjani, Fleet, CVPR 2012), so
only images that share a band are compared: memory and time grow with the corpus, not with its square.
"""

import hashlib
from collections.abc import Iterator

import cv2
import numpy as np


HASH_BITS = 256
# On phantoms: a re-encoded (JPEG 75) copy differs in 0 to 6 bits, one of half the size in 0 to 14, one of a third at JPEG 60
# in 2 to 20; frames of one loop in 18 to 120 (5 % below 38), images of two patients in 76 and more
# (`tests/data/test_duplicates.py`).
NEAR_DUPLICATE_BITS = 16
# Of whole frames as read: a re-encoded or halved copy differs in 0 to 4 bits, the next frame of a loop in 12 and more.
SAME_FRAME_BITS = 8
# To keep a benchmark out, an image too many left out costs less than one too few.
EXCLUSION_BITS = 24
_PORTION = 1 << 18  # pairs that are compared at once: some 20 MB


def pixel_hash(image: np.ndarray) -> str:
    """SHA-256 of the size and the pixels, 64 hex digits. `image`: (height, width) or (height, width, 3) uint8."""
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def perceptual_hash(grey: np.ndarray, mask: np.ndarray | None = None) -> str:
    """256 bits as 64 hex digits: which of the 16 x 16 lowest cosine frequencies of the image lie above their median.

    The DCT hash of Zauner (2010) with more bits, as many images of one organ are alike.

    Args:
        grey: (height, width) uint8. mask: bool, True where ultrasound shows; the rest is taken as grey as the mean inside,
            or else the fan's outline, which all images of one probe share, would be most of the hash.
    """
    if mask is not None and mask.any() and not mask.all():
        grey = np.where(mask, grey, np.uint8(grey[mask].mean()))
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:16, :16].ravel()
    # The mean (the first one) says how bright, not what. Rounded, so that a flat image's noise of 1e-6 is no pattern.
    low = np.round(low, 2)
    return np.packbits(low > np.median(low[1:])).tobytes().hex()


def to_words(hashes: list[str]) -> np.ndarray:
    """(n,) hashes of 64 hex digits -> (n, 4) uint64."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=">u8").reshape(len(hashes), 4).astype(np.uint64)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) uint64 -> (n, m) int, the bits that differ."""
    return np.bitwise_count(a[:, None] ^ b[None]).sum(-1, dtype=np.int32)


def _bands(words: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """The keys of each of `radius + 1` bands of bits, (n,) uint64."""
    bits = np.unpackbits(words.astype(">u8").view(np.uint8).reshape(len(words), -1), axis=1)
    for band in range(radius + 1):
        # Interleaved, as the lowest frequencies of many images agree. 64 bits of a wider band do: they can only give
        # more pairs.
        part = bits[:, band :: radius + 1][:, :64].astype(np.uint64)
        yield part @ (np.uint64(1) << np.arange(part.shape[1], dtype=np.uint64))


def near_pairs(words: np.ndarray, radius: int = NEAR_DUPLICATE_BITS) -> np.ndarray:
    """All rows i < j of `words` within `radius` bits of one another: (pairs, 2) int64, sorted."""
    found = [np.zeros((0, 2), np.int64)]
    for keys in _bands(words, radius):
        order = np.argsort(keys, kind="stable")
        for a, b in _of_equal_keys(order, keys[order]):
            a, b = np.minimum(a, b), np.maximum(a, b)
            near = np.bitwise_count(words[a] ^ words[b]).sum(1, dtype=np.int32) <= radius
            found.append(np.stack([a[near], b[near]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _of_equal_keys(order: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of places in `order` whose sorted keys are equal, in portions of bounded size.

    Two of equal keys stand k places apart, k below the size of their group: for every k all such pairs at once.
    """
    ends = np.searchsorted(keys, keys, side="right")
    left = np.arange(len(keys))
    for k in range(1, len(keys)):
        left = left[left + k < ends[left]]
        if not len(left):
            return
        for start in range(0, len(left), _PORTION):
            part = left[start : start + _PORTION]
            yield order[part], order[part + k]


def repeats(keys: np.ndarray) -> np.ndarray:
    """(n,) hashes -> bool, True for every one that stood before."""
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), bool)
    again[first] = False
    return again


def near_repeats(words: np.ndarray, radius: int = NEAR_DUPLICATE_BITS) -> np.ndarray:
    """(n, 4) uint64 -> bool, True for every image that is near an earlier one which itself stays (greedy, in order)."""
    # Equal hashes first: a thousand copies would make half a million pairs.
    first = np.sort(np.unique(words, axis=0, return_index=True)[1])
    gone = np.ones(len(words), bool)
    gone[first] = False
    for i, j in near_pairs(words[first], radius=radius).tolist():
        if not gone[first[i]]:
            gone[first[j]] = True
    return gone


def nearest(words: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance of every row of `words` to the nearest of `others`, in bits; HASH_BITS + 1 where there is none."""
    best = np.full(len(words), HASH_BITS + 1, np.int32)
    for i in range(0, len(words), 128):
        for j in range(0, len(others), 8192):
            block = distances(words[i : i + 128], others[j : j + 8192]).min(1)
            best[i : i + 128] = np.minimum(best[i : i + 128], block)
    return best
