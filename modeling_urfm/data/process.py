# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""One input file to the frames that may enter a corpus: read, find the scan region, clean, judge, hash, encode.

`process_unit` is a generator of events, a pure function of the file's content and the settings. It runs in a process of
its own (`isolation.py`), whoever hands out the files: threads of one machine, or Ray.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from .archives import ArchiveReader
from .deidentify import Pseudonyms, attributes_that_leave, patient_of, study_of
from .duplicates import perceptual_hash, pixel_hash
from .listing import Unit, member_of
from .organs import organ_of_header
from .overlays import find_overlays, has_doppler, inpaint
from .quality import QualityThresholds, is_frozen, judge
from .reading import Source, UnreadableFile, open_source
from .reasons import REASONS
from .sampling import sample_frames
from .scan_region import Layout, ScanRegion, find_layout


# More frames than these tell no more of where the scan region is.
LAYOUT_FRAMES = 16
REVIEW_SIDE = 640  # longest side of the pictures in the private review page, in pixels


@dataclass(frozen=True)
class Settings:
    """What decides the result of a file; two runs with equal settings and key give equal bytes.

    Attributes:
        frames_per_clip: frames taken of a file that has more; 0 takes all. frame_sampling: "even" or "change".
        marks: what to do with text, calipers and marks in the scan region: "inpaint", or "drop" the frame.
        drop_doppler: leave out frames with colour over the B-mode picture.
        max_size: longest side of an image that leaves, in pixels; larger ones are reduced, smaller ones stay.
        image_format: "jpeg" (quality 95) or "png" (lossless). licence: of local files.
        key: of the keyed hashes. reference: outlines drawn by hand, by the file's SHA-256, for the review page.
    """

    frames_per_clip: int = 8
    frame_sampling: str = "even"
    marks: str = "inpaint"
    drop_doppler: bool = False
    max_size: int = 512
    image_format: str = "jpeg"
    licence: str = "unknown"
    thresholds: QualityThresholds = QualityThresholds()
    key: bytes = field(default=b"", repr=False)
    reference: dict = field(default_factory=dict, repr=False, hash=False)


# Events, in the order of the frames. `opened` comes first unless the file is rejected.
@dataclass(frozen=True)
class Opened:
    kind: str
    frames_in: int


@dataclass(frozen=True)
class Dropped:
    """`frames` frames did not enter, or, with 0, the whole file was rejected. `detail` is private."""

    code: str
    frames: int
    detail: str = ""


@dataclass(frozen=True)
class Kept:
    """A frame's row, without `image`'s struct: `encoded` are its bytes. `raw_hash`: perceptual, of the frame as read."""

    row: dict
    encoded: bytes
    raw_hash: str


@dataclass(frozen=True)
class Review:
    """Before and after of a frame, for the private page."""

    frame: int
    before: bytes
    after: bytes | None
    height: int
    width: int
    outlines: list
    reasons: list
    facts: dict


Event = Opened | Dropped | Kept | Review


def process_unit(unit: Unit, settings: Settings, review: bool) -> Iterator[Event]:
    """All that becomes of one file. The numbers of `Kept` and of `Dropped` frames add up to `Opened.frames_in`."""
    cv2.setNumThreads(1)  # the files are what runs in parallel
    try:
        if unit.problem:
            raise UnreadableFile(unit.name, REASONS[unit.problem], unit.problem)
        source, data = _open(unit)
    except UnreadableFile as error:
        yield Dropped(error.code, 0, error.reason)
        return
    yield Opened(source.kind, source.num_frames)
    pseudonyms = Pseudonyms(settings.key)
    common = _facts_of_file(unit, source, settings, pseudonyms)
    reference = _reference(unit, data, settings) if review and settings.reference else None

    limit = source.num_frames if unit.exclude else settings.frames_per_clip or source.num_frames
    indices = sample_frames(source, limit, settings.frame_sampling)
    if len(indices) < source.num_frames:
        yield Dropped("sampling", source.num_frames - len(indices))
    # Of a loop, several frames tell where the scan region is, and what stands still in it. Pages and slices differ.
    samples = _readable(source, indices) if source.is_loop else {}
    size = next(iter(samples.values())).shape if samples else None
    samples = {index: frame for index, frame in samples.items() if frame.shape == size}
    loop_layout = find_layout(list(samples.values()), source.header, True) if samples else None
    before = None
    for index in indices:
        try:
            frame = samples[index] if index in samples else source.frame(index)
        except UnreadableFile as error:
            yield Dropped("undecodable", 1, f"frame {index}: {error.reason}")
            continue
        if samples and frame.shape != size:  # a video may change its size on the way
            yield Dropped("undecodable", 1, f"frame {index}: {frame.shape} where the first has {size}")
            continue
        layout = loop_layout or find_layout([frame], source.header, False)
        if unit.exclude and layout.view is None:  # it is compared all the same
            layout = Layout(_whole(frame))
        others = [other for i, other in samples.items() if i != index]
        cleaned = clean_frame(frame, layout, others, before, settings, judged=not unit.exclude)
        before = cleaned.grey if source.is_loop else None
        kept = None
        if cleaned.code is None:
            kept = _kept(cleaned, index, layout.view, common, source, frame, settings)
            yield kept
        else:
            yield Dropped(cleaned.code, 1)
        if review:
            yield _review(frame, index, layout, cleaned, kept, reference, common)


def _whole(frame: np.ndarray) -> ScanRegion:
    """All of a frame."""
    height, width = frame.shape[:2]
    corners = ((0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1))
    return ScanRegion(0, 0, height, width, np.ones((height, width), bool), corners, "unknown", "pixels")


def _open(unit: Unit) -> tuple[Source, bytes | None]:
    if unit.member is None:
        return open_source(unit.path), None
    data = _archives().read(unit.path, member_of(unit))
    return open_source(unit.name, data), data


@lru_cache(maxsize=1)
def _archives() -> ArchiveReader:
    """One a process: it keeps its archive open, as the next member is mostly of the same one."""
    return ArchiveReader()


def _readable(source: Source, indices: Sequence[int]) -> dict[int, np.ndarray]:
    found = {}
    for place in np.unique(np.linspace(0, len(indices) - 1, LAYOUT_FRAMES).astype(int)).tolist():
        try:
            found[indices[place]] = source.frame(indices[place])
        except UnreadableFile:  # said when its turn comes
            continue
    return found


def _facts_of_file(unit: Unit, source: Source, settings: Settings, pseudonyms: Pseudonyms) -> dict:
    """The columns that all frames of a file share."""
    clip = pseudonyms("input", *unit.identity)
    header = source.header
    attributes = dict.fromkeys(("maker", "model", "transducer", "frame_rate"))
    patient, study, organ = pseudonyms("patient-of-file", clip), None, "unknown"
    if header is not None:
        attributes = attributes_that_leave(header)
        patient, study = patient_of(header, clip, pseudonyms), study_of(header, pseudonyms)
        organ = organ_of_header(header)
    if unit.patient is not None:
        patient = pseudonyms("patient-of-set", unit.source, unit.patient)
    rate = attributes.pop("frame_rate") or source.frame_rate
    return attributes | {
        "frame_rate": rate, "organ": unit.organ or organ, "label": unit.label, "view": unit.view, "source": unit.source,
        "licence": unit.licence or settings.licence, "patient": patient, "study": study, "clip": clip,
    }  # fmt: skip


@dataclass(frozen=True)
class Cleaned:
    """What became of one frame. `code`: why it is dropped, None if it isn't.

    Attributes:
        image: (height, width) or, with Doppler, (height, width, 3) uint8, the region's box; 0 outside the region.
        grey: (height, width) uint8, the same in grey before marks were painted over; None without a region.
    """

    code: str | None
    image: np.ndarray | None = None
    grey: np.ndarray | None = None
    mask: np.ndarray | None = None
    mode: str = "b-mode"
    marks: np.ndarray | None = None  # of the whole frame


def clean_frame(
    frame: np.ndarray, layout: Layout, others: Sequence[np.ndarray], before: np.ndarray | None, settings: Settings,
    judged: bool = True,
) -> Cleaned:  # fmt: skip
    """Cut a frame to its scan region, paint over what a person or the scanner wrote on it, and judge the rest.

    Args:
        frame: (height, width, 3) uint8. others: further frames of its loop. before: `Cleaned.grey` of the frame before it.
        judged: False for images of a set to exclude: they are compared, whatever their quality.
    """
    region = layout.view
    if region is None:
        return Cleaned("spectral" if layout.spectral else "m-mode" if layout.m_mode else "no-region")
    box = np.s_[region.top : region.top + region.height, region.left : region.left + region.width]
    mask = region.mask[box]
    if min(region.height, region.width) < settings.thresholds.min_side and judged:
        return Cleaned("too-small", mask=mask)
    overlays = find_overlays(frame, region.mask, others)
    marks = overlays.marks & region.mask
    doppler = has_doppler(overlays, region.mask)
    mode = "doppler" if doppler else "b-mode"
    if doppler and settings.drop_doppler and judged:
        return Cleaned("doppler", mask=mask, mode=mode, marks=marks)
    if marks.any() and settings.marks == "drop" and judged:
        return Cleaned("marks", mask=mask, mode=mode, marks=marks)
    painted = inpaint(frame, marks, region.mask) if marks.any() else frame
    image = np.where(mask[..., None], painted[box], np.uint8(0))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    untouched = np.where(mask, cv2.cvtColor(frame[box], cv2.COLOR_RGB2GRAY), np.uint8(0))
    # A B-mode picture is grey: a tint, or what is left of a coloured mark, goes here.
    result = {"image": image if doppler else grey, "grey": untouched, "mask": mask, "mode": mode, "marks": marks}
    code = None
    if judged:
        code = judge(grey, mask, settings.thresholds)
        code = code or ("frozen" if is_frozen(untouched, before, mask, settings.thresholds) else None)
    return Cleaned(code, **result)


def _kept(
    cleaned: Cleaned,
    index: int,
    region: ScanRegion,
    common: dict,
    source: Source,
    frame: np.ndarray,
    settings: Settings,
) -> Kept:
    image, mask = cleaned.image, cleaned.mask
    height, width = image.shape[:2]
    scale = min(1.0, settings.max_size / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    spacing = region.spacing_mm or source.spacing_mm
    if spacing:
        spacing = [spacing[0] * height / image.shape[0], spacing[1] * width / image.shape[1]]
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    row = common | {
        "frame": index, "geometry": region.geometry, "mode": cleaned.mode, "spacing_mm": spacing,
        "pixel_hash": pixel_hash(image), "perceptual_hash": perceptual_hash(grey, mask),
    }  # fmt: skip
    return Kept(row, encode(image, settings.image_format), perceptual_hash(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)))


def encode(image: np.ndarray, image_format: str, quality: int = 95) -> bytes:
    """(height, width) grey or (height, width, 3) RGB uint8 to the bytes of a file without any metadata."""
    image = image if image.ndim == 2 else image[..., ::-1]
    if image_format == "png":
        return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()
    # Colour at full resolution: the edge between red and blue is what Doppler is about.
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return cv2.imencode(".jpg", image, options)[1].tobytes()


# ---------------------------------------------------------------- the private review page


def _reference(unit: Unit, data: bytes | None, settings: Settings):
    """The outline that somebody drew by hand for this file."""
    if data is not None:
        return settings.reference.get(hashlib.sha256(data).hexdigest())
    with open(unit.path, "rb") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return settings.reference.get(digest.hexdigest())


def _review(
    frame: np.ndarray, index: int, layout: Layout, cleaned: Cleaned, kept: Kept | None, reference: list | None, common: dict
) -> Review:  # fmt: skip
    height, width = frame.shape[:2]
    region, outlines, facts = layout.view, [], {}
    for declared in layout.declared:
        top, left, h, w = declared["box"]
        corners = [[left, top], [left + w, top], [left + w, top + h], [left, top + h]]
        label = "declared, believed" if declared["believed"] else f"declared, not believed: {declared['why']}"
        outlines.append({"kind": "declared", "polygon": corners, "label": label})
    if region is not None:
        outlines.append(
            {"kind": "found", "polygon": region.polygon, "label": f"{region.geometry}, by {region.found_by}"}
        )
        facts |= {"geometry": region.geometry, "found by": region.found_by,
                  "scan region": f"{region.width} x {region.height} px at ({region.left}, {region.top})"}  # fmt: skip
    if reference is not None:
        outlines.append({"kind": "reference", "polygon": reference, "label": "drawn by hand"})
        drawn = cv2.fillPoly(np.zeros((height, width), np.uint8), [np.round(reference).astype(np.int32)], 1) > 0
        found = region.mask if region is not None else np.zeros_like(drawn)
        facts["overlap with the outline drawn by hand"] = (
            f"IoU {(drawn & found).sum() / max(1, (drawn | found).sum()):.3f}"
        )
    if cleaned.marks is not None:
        contours, _ = cv2.findContours(cleaned.marks.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outlines += [
            {"kind": "marks", "polygon": c[:, 0].tolist(), "label": "painted over"} for c in contours if len(c) > 2
        ]
        facts["painted over"] = f"{cleaned.marks.sum() / max(1, region.mask.sum()):.2%} of the scan region"
    facts |= {"regions declared": "; ".join(o["label"] for o in outlines if o["kind"] == "declared") or "none"}
    shown = kept.row if kept else common
    facts |= {name: str(value) for name, value in shown.items() if value is not None and not name.endswith("hash")}
    scale = min(1.0, REVIEW_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    before = encode(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), "jpeg", 85)
    reasons = [] if cleaned.code is None else [cleaned.code]
    return Review(index, before, kept.encoded if kept else None, height, width, outlines, reasons, facts)
