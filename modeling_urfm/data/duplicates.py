# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Equal and nearly equal images, found in a corpus of any size by hashes of 256 bits.

Near-duplicates are pairs whose perceptual hashes differ in at most `radius` bits. By the pigeonhole principle two such
hashes agree exactly in one of `radius + 1` bands of bits (multi-index hashing: Norouzi, Punjani, Fleet, CVPR 2012), so
only images that share a band are compared: memory and time grow with the corpus, not with its square.
"""

import hashlib
from array import array

import cv2
import numpy as np


HASH_BITS = 256
# On phantoms: a re-encoded (JPEG 75) copy differs in 0 to 6 bits, one of half the size in 0 to 14, one of a third at JPEG 60
# in 2 to 20; frames of one loop in 18 to 120 (5 % below 38), images of two patients in 76 and more
# (`tests/data/test_duplicates.py`).
NEAR_DUPLICATE_BITS = 16
# Of whole frames as read: a re-encoded or halved copy differs in 0 to 4 bits, the next frame of a loop in 12 and more.
SAME_FRAME_BITS = 8
# To keep a benchmark out, an image too many left out costs less than one too few: this also finds its image cut to the scan
# region by other hands (about 32 bits).
EXCLUSION_BITS = 40


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


def _bands(words: np.ndarray, radius: int) -> np.ndarray:
    """The keys of `radius + 1` bands of bits, (bands, n) uint16.

    Bits are dealt out in turn, as the lowest frequencies of many images agree. 16 bits of a wider band do: they can only
    give more candidates.
    """
    keys = np.zeros((radius + 1, len(words)), np.uint16)
    for band in range(radius + 1):
        for place, bit in enumerate(range(band, HASH_BITS, radius + 1)[:16]):
            ones = (words[:, bit // 64] >> np.uint64(63 - bit % 64)).astype(np.uint16) & np.uint16(1)
            keys[band] |= ones << np.uint16(place)
    return keys


def repeats(keys: np.ndarray) -> np.ndarray:
    """(n,) hashes -> bool, True for every one that stood before."""
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), bool)
    again[first] = False
    return again


def near_repeats(words: np.ndarray, radius: int = NEAR_DUPLICATE_BITS) -> np.ndarray:
    """(n, 4) uint64 -> bool, True for every image that is near an earlier one which itself stays (greedy, in order).

    Only images that stay are remembered: a thousand views of one still probe cost a thousand comparisons, no matrix.
    """
    gone = np.ones(len(words), bool)
    first = np.sort(np.unique(words, axis=0, return_index=True)[1])  # equal ones need no comparison
    gone[first] = False
    words = words[first]
    keys = _bands(words, radius)
    stay: list[dict[int, array]] = [{} for _ in keys]  # of every band: a key to the rows that have it and stay
    for row in range(len(words)):
        own = keys[:, row].tolist()
        alike = [rows[key] for rows, key in zip(stay, own) if key in rows]
        if alike:
            others = words[np.frombuffer(b"".join(alike), np.uint32)]
            if (np.bitwise_count(others ^ words[row]).sum(1, dtype=np.int32) <= radius).any():
                gone[first[row]] = True
                continue
        for rows, key in zip(stay, own):
            rows.setdefault(key, array("I")).append(row)
    return gone


def nearest(words: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance in bits of every row of `words` to the nearest of `others`, and that one's row; HASH_BITS + 1 and 0 where
    there is none.

    As a product of matrices of 1 and -1, of which 256 - 2 x distance comes out, exactly: ten times as fast as counting.
    """
    best, where = np.full(len(words), HASH_BITS + 1, np.int32), np.zeros(len(words), np.int64)
    for j in range(0, len(others), 8192):
        theirs = _signs(others[j : j + 8192]).T
        for i in range(0, len(words), 1024):
            product = _signs(words[i : i + 1024]) @ theirs
            at = product.argmax(1)
            distance = ((HASH_BITS - product[np.arange(len(at)), at]) / 2).astype(np.int32)
            nearer = distance < best[i : i + 1024]
            best[i : i + 1024][nearer], where[i : i + 1024][nearer] = distance[nearer], at[nearer] + j
    return best, where


def _signs(words: np.ndarray) -> np.ndarray:
    """(n, 4) uint64 -> (n, 256) float32, 1 for every bit that is set and -1 for every other."""
    bits = np.unpackbits(words.astype(">u8").view(np.uint8).reshape(len(words), -1), axis=1)
    return bits.astype(np.float32) * 2 - 1
