# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Which frames of a cine loop stand for it: neighbours are nearly the same image."""

import cv2
import numpy as np

from .reading import Source, UnreadableFile


FRAME_SAMPLINGS = ("even", "change")
MAX_CANDIDATES = 128  # frames that are compared to find where a loop changes


def sample_frames(source: Source, limit: int, how: str = "even") -> list[int]:
    """At most `limit` frame numbers, ascending.

    Args:
        how: "even": the middles of `limit` equal parts of the loop. "change": the loop is cut into parts between which it
            changes equally much (mean absolute difference of neighbouring frames at 64 x 64), so that a still stretch
            gives few frames and a sweep many.
    """
    if source.num_frames <= limit:
        return list(range(source.num_frames))
    if how == "even":
        return _middles(np.arange(source.num_frames), limit)
    candidates = np.unique(np.linspace(0, source.num_frames - 1, max(limit, MAX_CANDIDATES)).astype(int))
    readable, small = [], []
    for index in candidates.tolist():
        try:
            frame = source.frame(index)
        except UnreadableFile:  # said when its turn comes
            continue
        readable.append(index)
        small.append(cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32))
    change = [float(np.abs(b - a).mean()) for a, b in zip(small[:-1], small[1:])]
    if len(readable) <= limit or sum(change) == 0:
        return _middles(np.arange(source.num_frames), limit)
    way = np.r_[0, np.cumsum(change)] / sum(change)
    picked = {int(np.abs(way - (part + 0.5) / limit).argmin()) for part in range(limit)}
    # Two parts may have one nearest frame (a cut in the video): the largest gaps give what is missing.
    while len(picked) < limit:
        places = sorted(picked | {-1, len(readable)})
        gap = max(range(len(places) - 1), key=lambda i: places[i + 1] - places[i])
        picked.add((places[gap] + places[gap + 1]) // 2)
    return [readable[i] for i in sorted(picked)]


def _middles(numbers: np.ndarray, parts: int) -> list[int]:
    return [int(numbers[int((part + 0.5) * len(numbers) / parts)]) for part in range(parts)]
