# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""An upload to the frames that are shown: read in a process of its own, which a hostile file may end without harm.

What comes back is pixels, numbers and words of vocabularies. No text of the file does: neither its name, nor an attribute
that is not on the allow-list of `modeling_urfm.data.deidentify`.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from modeling_urfm.data.deidentify import attributes_that_leave
from modeling_urfm.data.isolation import IsolatedWorker, WorkerDied
from modeling_urfm.data.organs import organ_of_header
from modeling_urfm.data.reading import Source, UnreadableFile, open_source
from modeling_urfm.data.reasons import REASONS
from modeling_urfm.data.sampling import sample_frames
from modeling_urfm.data.scan_region import ScanRegion, find_layout


MAX_UPLOAD_MB = 128
# Of a longer loop these many frames are shown, evenly chosen: what a page holds and a processor sees in some seconds.
MAX_FRAMES = 32
STILL_SIDE, LOOP_SIDE = 1024, 640  # longest side of what is shown, in pixels
READ_SECONDS = 45
MAX_FRAME_RATE = 10_000  # frames a second; what declares more is damaged (`deidentify` has the same limit)
LAYOUT_FRAMES = 16  # of a loop tell where its scan region is
# What to do about it, where there is something.
ADVICE = {
    "archive-nested": "Unpack the archive and drop one file of it.",
    "encrypted": "Decrypt it first.",
    "truncated": "Copy it again: the end is missing.",
    "other-modality": "Only ultrasound (US) is shown here.",
    "no-pixels": "Drop the image object of the study.",
    "no-image": "Drop a PNG, JPEG, TIFF, DICOM, MP4, AVI or GIF file.",
}


class Refused(ValueError):
    """An upload that is not shown; the message is for the person who dropped it and quotes nothing of the file."""


@dataclass(frozen=True)
class Scan:
    """What is shown of a file.

    Attributes:
        frames: (N, height, width, 3) uint8 RGB, as the file has them, reduced to `STILL_SIDE` or `LOOP_SIDE`.
        seen: (N, rows, columns, 3) uint8, the scan region cut out and black around its outline; whole frames without one.
        numbers: of these frames in the file, from 0. total: frames of the file.
        kind: "dicom", "image", "video" or "volume". is_loop: the frames follow one another in time.
        frame_rate: of the file, frames a second, where it tells.
        polygon: outline of the scan region, (x, y) in pixels of `frames`; empty where none was found.
        geometry: "sector", "curved", "linear" or "unknown". found_by: "declared", "motion", "pixels", or "" without one.
        size: (height, width) of the file's frames. attributes: those on the allow-list.
    """

    frames: np.ndarray
    seen: np.ndarray
    numbers: tuple[int, ...]
    total: int
    kind: str
    is_loop: bool = False
    frame_rate: float | None = None
    polygon: tuple[tuple[float, float], ...] = ()
    geometry: str = "unknown"
    found_by: str = ""
    size: tuple[int, int] = (0, 0)
    attributes: dict[str, str] = field(default_factory=dict)


def refusal(code: str) -> str:
    """A sentence or two for a code of `modeling_urfm.data.reasons`."""
    reason = REASONS.get(code, REASONS["damaged"])
    return f"This file can't be shown: {reason}. {ADVICE.get(code, '')}".strip()


def scan_of(data: bytes) -> Scan:
    """Read a file's content.

    Raises:
        UnreadableFile: no ultrasound in it, or damaged.
    """
    cv2.setNumThreads(1)
    source = open_source("upload", data)
    numbers, frames, original = _frames(source)
    # The header's regions are in pixels of the file: of a picture that was reduced they say nothing.
    header = source.header if frames[0].shape[:2] == original else None
    some = frames[:: -(-len(frames) // LAYOUT_FRAMES)] if source.is_loop else frames[:1]
    view = find_layout(some, header, source.is_loop).view
    return Scan(
        frames=np.stack(frames),
        seen=np.stack([_cut(frame, view) for frame in frames]),
        numbers=tuple(numbers),
        total=source.num_frames,
        kind=source.kind,
        is_loop=source.is_loop,
        frame_rate=source.frame_rate if source.frame_rate and 0 < source.frame_rate < MAX_FRAME_RATE else None,
        polygon=view.polygon if view else (),
        geometry=view.geometry if view else "unknown",
        found_by=view.found_by if view else "",
        size=original,
        attributes=_attributes(source, view),
    )


def _frames(source: Source) -> tuple[list[int], list[np.ndarray], tuple[int, int]]:
    """Numbers, frames that are small enough to be shown, and their (height, width) in the file, which is that of the first:
    frames that can't be decoded, or are of another size, are left out, as players do."""
    longest = STILL_SIDE if source.num_frames == 1 else LOOP_SIDE
    numbers, frames, original, problem = [], [], None, None
    for number in sample_frames(source, MAX_FRAMES):
        try:
            frame = source.frame(number)
        except UnreadableFile as error:
            problem = problem or error
            continue
        original = original or frame.shape[:2]
        if frame.shape[:2] == original:
            numbers.append(number)
            frames.append(reduced(frame, longest))
    if not frames:
        raise problem or UnreadableFile("upload", "no frame", "no-image")
    return numbers, frames, original


def reduced(frame: np.ndarray, longest: int) -> np.ndarray:
    """With `longest` pixels on its longer side, if it has more."""
    scale = longest / max(frame.shape[:2])
    if scale >= 1:
        return frame
    height, width = (max(2, round(side * scale)) for side in frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _cut(frame: np.ndarray, view: ScanRegion | None) -> np.ndarray:
    """What a corpus would keep of a frame: the box of the view, black outside the outline, where names may stand."""
    if view is None:
        return frame
    rows, columns = slice(view.top, view.top + view.height), slice(view.left, view.left + view.width)
    return np.where(view.mask[rows, columns, None], frame[rows, columns], 0)


def _attributes(source: Source, view: ScanRegion | None) -> dict[str, str]:
    """Words of vocabularies and numbers, in the order in which they are shown."""
    told = attributes_that_leave(source.header) if source.header is not None else {}
    organ = organ_of_header(source.header) if source.header is not None else "unknown"
    found = {
        "maker": told.get("maker"),
        "model": told.get("model"),
        "transducer": told.get("transducer"),
        "organ in the header": None if organ == "unknown" else organ.replace("_", " "),
        "pixel spacing": f"{view.spacing_mm[0]:.3g} mm" if view and view.spacing_mm else None,
    }
    return {name: str(value) for name, value in found.items() if value}


def read_upload(data: bytes) -> Iterator[Scan | str]:
    """For `IsolatedWorker`: the scan, or the code of why there is none."""
    try:
        yield scan_of(data)
    except UnreadableFile as error:
        yield error.code


class ScanReader:
    """Reads one upload after the other, in a process with limits on time and memory."""

    def __init__(self, timeout_s: float = READ_SECONDS):
        self.worker, self.lock = IsolatedWorker(read_upload, timeout_s), threading.Lock()

    def __call__(self, data: bytes) -> Scan:
        """
        Raises:
            Refused: it holds nothing that can be shown, took too long, or ended its process.
        """
        if not data:
            raise Refused(refusal("empty"))
        with self.lock:
            try:
                (result,) = list(self.worker(data))
            except WorkerDied as error:
                raise Refused(refusal(error.code)) from None
        if isinstance(result, str):
            raise Refused(refusal(result))
        return result

    def close(self) -> None:
        with self.lock:
            self.worker.close()
