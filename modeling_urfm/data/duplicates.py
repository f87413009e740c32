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
_CHUNK = 2048  # pairs are compared in blocks of at most this many squared


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


def near_pairs(words: np.ndarray, others: np.ndarray | None = None, radius: int = NEAR_DUPLICATE_BITS) -> np.ndarray:
    """All pairs within `radius` bits: (pairs, 2) int64, sorted.

    With `others` pairs of (row of `words`, row of `others`); without, of rows i < j of `words`.
    """
    n = len(words)
    both = words if others is None else np.concatenate([words, others])
    found = [np.zeros((0, 2), np.int64)]
    for keys in _bands(both, radius):
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
        ends = np.r_[starts[1:], len(order)]
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1]):
            found += _compare(both, np.sort(order[start:end]), n, others is not None, radius)
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs if others is None else pairs - [0, n]


def _compare(words: np.ndarray, group: np.ndarray, n: int, across: bool, radius: int) -> Iterator[np.ndarray]:
    """Pairs within one band's group, in blocks, so that a large group costs time and no memory."""
    left, right = (group[group < n], group[group >= n]) if across else (group, group)
    for i in range(0, len(left), _CHUNK):
        for j in range(0 if across else i, len(right), _CHUNK):
            a, b = left[i : i + _CHUNK], right[j : j + _CHUNK]
            near = np.argwhere(distances(words[a], words[b]) <= radius)
            pairs = np.stack([a[near[:, 0]], b[near[:, 1]]], axis=1)
            yield pairs if across else pairs[pairs[:, 0] < pairs[:, 1]]


def repeats(keys: np.ndarray) -> np.ndarray:
    """(n,) hashes -> bool, True for every one that stood before."""
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), bool)
    again[first] = False
    return again


def near_repeats(words: np.ndarray, radius: int = NEAR_DUPLICATE_BITS) -> np.ndarray:
    """(n, 4) uint64 -> bool, True for every image that is near an earlier one which itself stays (greedy, in order)."""
    gone = np.zeros(len(words), bool)
    # Equal hashes first: a thousand copies would make half a million pairs.
    unique, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
    gone[:] = True
    gone[first] = False
    order = np.sort(first)
    for i, j in near_pairs(words[order], radius=radius)[:, :].tolist():
        a, b = order[i], order[j]
        if not gone[a]:
            gone[b] = True
    return gone


def nearest(words: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance of every row of `words` to the nearest of `others`, in bits; HASH_BITS + 1 where there is none."""
    best = np.full(len(words), HASH_BITS + 1, np.int32)
    for i in range(0, len(words), 128):
        for j in range(0, len(others), 8192):
            block = distances(words[i : i + 128], others[j : j + 8192]).min(1)
            best[i : i + 128] = np.minimum(best[i : i + 128], block)
    return best
