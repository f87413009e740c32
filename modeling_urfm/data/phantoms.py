# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Ultrasound phantoms: images of 15 organs from a fast model of how a B-mode image arises.

Anatomy (`phantom_anatomy.py`) is a map of echogenicity and attenuation over the samples of the beams. From it:

1. Scatterers: circular complex Gaussian reflectivity, the limit of many scatterers a resolution cell, so that the
   envelope is Rayleigh (fully developed speckle; Goodman, *Speckle Phenomena in Optics*, ch. 2), times the echogenicity,
   plus mirror-like echoes where echogenicity steps along the beam.
2. Attenuation, summed along each beam: shadows behind bone, gas and stones, enhancement behind fluid.
3. The point-spread function: Gaussian along the beam and across it, the width across growing away from the focus.
4. Noise: complex Gaussian, amplified with depth by the time-gain compensation, at a signal-to-noise ratio in dB.
5. Envelope, log compression, the scanner's post-processing, and scan conversion to a linear, sector or curved image.

Everything is a pure function of (seed, patient, frame). A 128-px image takes about 10 ms on one core.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates

from .phantom_anatomy import ANATOMY, Tissue, paint_lesion


ORGANS: tuple[str, ...] = tuple(ANATOMY)
LESIONS: tuple[str, ...] = ("absent", "benign", "malignant")
DB = math.log(10) / 20  # exp(DB * level) is the amplitude of a level in dB
PROBES: tuple[str, ...] = ("linear", "sector", "curved")
CAPTIONS = (
    "B-mode ultrasound of the {organ}, {view} view, {probe} probe, {finding}.",
    "{view} ultrasound image of the {organ} with {finding}.",
    "{organ} ultrasound: {finding}.",
    "An ultrasound scan with a {probe} probe showing the {organ}, {finding}.",
)


@dataclass(frozen=True)
class PhantomFrame:
    """One frame.

    Attributes:
        image: (size, size) uint8, black outside the scan region.
        mask: (size, size) uint8, 1 in the lesion. scan_mask: (size, size) bool, True inside the scan region.
        snr_db: the ratio that was asked for. measured_snr_db: the one that the echo data have.
        depth_mm: how deep the probe looks.
    """

    image: np.ndarray
    mask: np.ndarray
    scan_mask: np.ndarray
    organ: str
    lesion: str
    caption: str
    probe: str
    snr_db: float
    measured_snr_db: float
    depth_mm: float


@dataclass(frozen=True)
class _Scanner:
    """What differs from one scanner and sonographer to the next: the probe, and the picture's place on the screen.

    Attributes:
        probe: "linear", "sector" or "curved". depth_mm: how deep it looks.
        radius_mm: of the arc on which the beams start. half_angle: between the middle beam and the outermost one, in
            radians. width_mm: of a linear probe.
        zoom: share of the screen that the picture fills. left, top: the shares of the free margin that lie there.
    """

    probe: str
    depth_mm: float
    radius_mm: float
    half_angle: float
    width_mm: float
    zoom: float
    left: float
    top: float

    @classmethod
    def draw(cls, probe: str, depths_mm: tuple[float, float], rng: np.random.Generator) -> "_Scanner":
        """Depths reach 8 % beyond what is usual for the organ on both sides; radii and angles are those of catalogues."""
        depth_mm = rng.uniform(0.92 * depths_mm[0], 1.08 * depths_mm[1])
        radius_mm, half_angle = {"curved": (rng.uniform(40, 62), rng.uniform(27, 38)),
                                 "sector": (rng.uniform(2, 8), rng.uniform(35, 45)), "linear": (0.0, 0.0)}[probe]  # fmt: skip
        width_mm = min(rng.uniform(36, 46), 1.15 * depth_mm)
        zoom, left, top = rng.uniform(0.78, 1.0), rng.uniform(0, 1), rng.uniform(0, 0.5)
        return cls(probe, depth_mm, radius_mm, np.deg2rad(half_angle), width_mm, zoom, left, top)


@dataclass(frozen=True)
class _Geometry:
    """Where a probe samples (mm), and how its samples become an image."""

    x: np.ndarray  # (depth samples, beams)
    z: np.ndarray
    step_mm: float  # between two samples along a beam
    beam_mm: np.ndarray  # between two beams, at each depth
    coordinates: np.ndarray  # (2, pixels): sample and beam of each pixel inside the scan region
    scan_mask: np.ndarray

    def scan_convert(self, samples: np.ndarray) -> np.ndarray:
        """(depth samples, beams) to (size, size), 0 outside the scan region."""
        image = np.zeros(self.scan_mask.shape, np.float32)
        image[self.scan_mask] = map_coordinates(samples, self.coordinates, order=1, mode="nearest", output=np.float32)
        return image


@lru_cache(maxsize=8)  # the frames of a patient share it
def _geometry(scanner: _Scanner, size: int) -> _Geometry:
    samples, beams = max(96, int(1.3 * size)), max(64, size)
    depth_mm, radius, half_angle = scanner.depth_mm, scanner.radius_mm, scanner.half_angle
    distance = np.linspace(0, depth_mm, samples)
    linear = scanner.probe == "linear"
    if linear:
        z, x = np.meshgrid(distance, np.linspace(-0.5, 0.5, beams) * scanner.width_mm, indexing="ij")
        beam_mm = np.full(samples, scanner.width_mm / beams)
        top, width = 0.0, scanner.width_mm
    else:
        r, angle = np.meshgrid(radius + distance, np.linspace(-half_angle, half_angle, beams), indexing="ij")
        x, z = r * np.sin(angle), r * np.cos(angle) - radius
        beam_mm = r[:, 0] * 2 * half_angle / beams
        top, width = radius * np.cos(half_angle) - radius, 2 * (radius + depth_mm) * np.sin(half_angle)
    # The screen, in mm, with the picture on it; the rest is black.
    span = max(width, depth_mm - top) * 1.02 / scanner.zoom
    left_margin, top_margin = scanner.left * (span - width), scanner.top * (span - (depth_mm - top))
    pixel = (np.arange(size) + 0.5) / size * span
    px, pz = np.meshgrid(pixel - left_margin - width / 2, pixel - top_margin + top)
    if linear:
        row, column = pz, px / scanner.width_mm + 0.5
    else:
        row, column = np.hypot(px, pz + radius) - radius, np.arctan2(px, pz + radius) / half_angle / 2 + 0.5
    row, column = row / depth_mm * (samples - 1), column * (beams - 1)
    scan_mask = (row >= 0) & (row <= samples - 1) & (column >= 0) & (column <= beams - 1)
    return _Geometry(
        x.astype(np.float32), z.astype(np.float32), depth_mm / samples, beam_mm.astype(np.float32),
        np.stack([row[scan_mask], column[scan_mask]]).astype(np.float32), scan_mask,
    )  # fmt: skip


def _blur_across(echo: np.ndarray, geometry: _Geometry, width_mm: float, focus: float) -> np.ndarray:
    """Lateral point-spread function: `width_mm` at the focus (a share of the depth), wider away from it."""
    depth = np.linspace(0, 1, echo.shape[0], dtype=np.float32)
    sigma = width_mm * np.sqrt(1 + (2.6 * (depth - focus)) ** 2) * (1 + depth) / geometry.beam_mm
    lowest, highest = max(0.35, float(sigma.min())), max(0.7, float(sigma.max()))
    levels = np.geomspace(lowest, max(highest, 1.05 * lowest), 3).tolist()
    # Three widths, blended by depth, each scaled so that white noise keeps its power.
    blurred = [
        gaussian_filter1d(echo, s, axis=1, mode="nearest", truncate=2.5) * math.sqrt(2 * math.sqrt(math.pi) * s)
        for s in levels
    ]
    place = np.clip(np.log(np.maximum(sigma, lowest) / lowest) / math.log(levels[1] / levels[0]), 0, 2)[:, None]
    return sum(np.clip(1 - np.abs(place - level), 0, 1) * part for level, part in enumerate(blurred))


def phantom_frame(
    seed: int,
    patient: int,
    frame: int = 0,
    *,
    organ: str | None = None,
    lesion: str | None = None,
    probe: str | None = None,
    depth_scale: float = 1.0,
    image_size: int = 128,
    snr_db: float | tuple[float, float] = 20.0,
    organs: Sequence[str] = ORGANS,
) -> PhantomFrame:
    """Make one frame of one patient: a pure function of its arguments.

    Args:
        organ, lesion, probe: forced; by default the organ goes round with the patient's number, the lesion is drawn
            (40 % absent, 30 % benign-like, 30 % malignant-like), the probe is the organ's usual one.
        depth_scale: how much deeper than usual for the organ the probe looks, 0.5 to 2: the same anatomy in the same
            place, smaller in the picture. Below 1 a lesion may lie deeper than the picture reaches.
        snr_db: mean power of the echoes (after attenuation and blurring, over all samples) over that of the noise, in
            dB. A pair is a range, from which each patient draws its own.

    Raises:
        ValueError: an organ, lesion or probe that does not exist; a depth or a size that is out of range.

    >>> frame = phantom_frame(seed=0, patient=3, organ="liver", lesion="benign", image_size=64)
    >>> frame.image.shape, frame.organ, bool(frame.mask.any())
    ((64, 64), 'liver', True)
    """
    for name, value, known in (("organ", organ, ORGANS), ("lesion", lesion, LESIONS), ("probe", probe, PROBES)):
        if value is not None and value not in known:
            raise ValueError(f"{name} {value!r} does not exist; there are: {', '.join(known)}.")
    if image_size < 32:
        raise ValueError(f"image_size={image_size} is too small for a phantom; the smallest is 32.")
    if not 0.5 <= depth_scale <= 2:
        nearest = 2 if depth_scale > 2 else 0.5
        raise ValueError(f"depth_scale={depth_scale} must be from 0.5 to 2. The nearest: {nearest}.")
    of_patient = np.random.default_rng([seed, patient])
    of_frame = np.random.default_rng([seed, patient, frame + 1])

    # ---- the patient and the scanner's settings
    organ = organ or organs[patient % len(organs)]
    drawn = LESIONS[of_patient.choice(3, p=[0.4, 0.3, 0.3])]
    lesion = lesion or drawn
    paint, usual_probe, depths, view = ANATOMY[organ]
    if probe is None:  # now and then an abdomen is looked at with the heart's probe
        probe = "sector" if usual_probe == "curved" and of_patient.random() < 0.15 else usual_probe
    scanner = _Scanner.draw(probe, depths, of_patient)
    depth_mm = scanner.depth_mm  # the usual one: by it the hand's movements are measured
    scanner = replace(scanner, depth_mm=depth_scale * depth_mm)
    snr = float(of_patient.uniform(*snr_db)) if isinstance(snr_db, (tuple, list)) else float(snr_db)
    dynamic_range, gain, gamma = of_patient.uniform(52, 66), of_patient.uniform(-4, 4), of_patient.uniform(0.85, 1.15)
    sharpen, smooth, focus = of_patient.uniform(0, 0.5), of_patient.uniform(0.35, 0.9), of_patient.uniform(0.35, 0.65)
    lateral_mm = {"linear": 0.32, "curved": 0.95, "sector": 1.2}[probe] * of_patient.uniform(0.85, 1.2)
    axial_mm = {"linear": 0.24, "curved": 0.62, "sector": 0.72}[probe] * of_patient.uniform(0.85, 1.2)
    tgc_error = of_patient.uniform(-0.5, 0.5, 3)  # dB at three depths
    beat = of_patient.uniform()
    # How the probe is held over the organ: its place in mm, its angle in radians, and which of its ends is left.
    place, angle = of_patient.normal(0, 0.04 * depth_mm), of_patient.normal(0, 0.07)
    mirror = -1.0 if of_patient.random() < 0.5 else 1.0

    # ---- motion of the probe and the tissue since the first frame
    geometry = _geometry(scanner, image_size)
    amount = 0.0 if frame == 0 else 1.0
    dx, dz, tilt, squeeze = (amount * of_frame.normal(0, (0.025 * depth_mm, 0.006 * depth_mm, 0.03, 0.012))).tolist()
    x = (geometry.x + (place + dx) + (angle + tilt) * geometry.z) * mirror
    z = geometry.z * (1 + squeeze + dz / depth_mm)
    tissue = Tissue(x, z, (beat + 0.19 * frame) % 1.0, of_patient)
    sites = paint(tissue, of_patient)
    site = sites[of_patient.integers(len(sites))]
    finding = "no focal lesion" if lesion == "absent" else paint_lesion(tissue, lesion, site, of_patient)

    # ---- echoes
    shape = tissue.echo.shape
    field = of_frame.standard_normal((2, *shape), dtype=np.float32)
    step = np.abs(np.diff(tissue.echo, axis=0, prepend=tissue.echo[:1]))
    field[0] += 0.045 * np.minimum(step, 14)  # mirror-like: in phase along an interface, on top of the scatter
    depth = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    # Rough edges of a shadow: beams have a width, so the attenuation that they meet is an average over it.
    loss_db = gaussian_filter1d(
        np.cumsum(tissue.att, axis=0) * np.float32(geometry.step_mm / 10), 1.0, axis=1, mode="nearest"
    )
    loss_db += np.interp(depth[:, 0], (0, 0.5, 1), np.cumsum(tgc_error)).astype(np.float32)[:, None] * 3
    field *= np.exp((tissue.echo - np.clip(loss_db, -9, 45)) * DB) * 0.5**0.5
    axial = max(0.5, axial_mm / geometry.step_mm)
    echo = [
        _blur_across(gaussian_filter1d(part, axial, axis=0, mode="nearest", truncate=2.5), geometry, lateral_mm, focus)
        for part in field * math.sqrt(2 * math.sqrt(math.pi) * axial)
    ]
    signal_power = float(np.mean(echo[0] ** 2 + echo[1] ** 2))
    noise = of_frame.standard_normal((2, *shape), dtype=np.float32) * (0.45 + 1.1 * depth**1.5)
    noise = [gaussian_filter1d(part, 0.6 * axial, axis=0, mode="nearest", truncate=2.0) for part in noise]
    noise_power = float(np.mean(noise[0] ** 2 + noise[1] ** 2))
    scale = math.sqrt(signal_power / noise_power / 10 ** (snr / 10))
    power = (echo[0] + scale * noise[0]) ** 2 + (echo[1] + scale * noise[1]) ** 2

    # ---- what the scanner makes of it: soft tissue stands at about half of the grey scale, at any noise
    level = np.log(power + 1e-12) * (0.5 / DB)
    reference = float(np.percentile(level, 80))
    grey = (level - reference + gain) / dynamic_range + 0.53
    grey = gaussian_filter1d(gaussian_filter1d(grey, smooth, axis=0, truncate=2.5), smooth, axis=1, truncate=2.5)
    if sharpen > 0.15:
        grey += sharpen * (grey - gaussian_filter1d(grey, 1.5, axis=0))
    grey = np.clip(grey, 0, 1) ** gamma
    words = {"organ": organ, "view": view, "probe": probe, "finding": finding}
    return PhantomFrame(
        image=(geometry.scan_convert(grey) * 255 + 0.5).astype(np.uint8),
        mask=(geometry.scan_convert(tissue.mask) > 0.5).astype(np.uint8),
        scan_mask=geometry.scan_mask,
        organ=organ, lesion=lesion, probe=probe, snr_db=snr,
        caption=CAPTIONS[of_frame.integers(len(CAPTIONS))].format(**words),
        measured_snr_db=10 * float(np.log10(signal_power / (scale**2 * noise_power))),
        depth_mm=float(scanner.depth_mm),
    )  # fmt: skip


def generate_phantoms(
    num_patients: int,
    *,
    frames_per_patient: int = 4,
    image_size: int = 128,
    snr_db: float | tuple[float, float] = 20.0,
    seed: int = 0,
    first_patient: int = 0,
    organs: Sequence[str] = ORGANS,
    num_proc: int = 1,
    progress: bool = False,
):
    """A data set of phantoms, the organs going round from patient to patient.

    Patient i of a seed is the same whatever `num_patients`, `first_patient` and `num_proc` are.

    Returns:
        `datasets.Dataset` with `image` (grey), `organ` and `lesion` (class labels), `mask` (0 background, 1 lesion),
        `caption`, `patient_id` and `snr_db`; `frames_per_patient` rows in turn for each patient.

    >>> phantoms = generate_phantoms(2, frames_per_patient=3, image_size=32, organs=("liver", "kidney"))
    >>> len(phantoms), phantoms[0]["image"].size, phantoms.features["organ"].int2str(phantoms["organ"][3])
    (6, (32, 32), 'kidney')
    """
    import datasets

    unknown = [organ for organ in organs if organ not in ORGANS]
    if unknown or not organs:
        raise ValueError(f"organs {unknown or organs} do not exist; there are: {', '.join(ORGANS)}.")
    jobs = [
        (seed, patient, frames_per_patient, image_size, snr_db, tuple(organs))
        for patient in range(first_patient, first_patient + num_patients)
    ]
    rows = map_patients(_patient_rows, jobs, num_proc, progress)
    rows = [row for patient in rows for row in patient]
    features = datasets.Features(
        {
            "image": datasets.Image(), "organ": datasets.ClassLabel(names=list(ORGANS)),
            "lesion": datasets.ClassLabel(names=list(LESIONS)), "mask": datasets.Image(),
            "caption": datasets.Value("string"), "patient_id": datasets.Value("string"), "snr_db": datasets.Value("float32"),
        }
    )  # fmt: skip
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def map_patients(make: Callable, jobs: Sequence, num_proc: int | None = None, progress: bool = False) -> list:
    """`make(job)` of every job, in their order, on `num_proc` processes (by default, on all cores of this one)."""
    num_proc = num_proc or usable_cores()
    if num_proc == 1:
        return list(_bar(map(make, jobs), len(jobs), progress))
    # Forked where that exists: a fresh process would import torch first (10 s), and the children only run numpy.
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_all_start_methods, get_context

    method = "fork" if "fork" in get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(num_proc, mp_context=get_context(method)) as pool:
        return list(_bar(pool.map(make, jobs, chunksize=8), len(jobs), progress))


def usable_cores() -> int:
    """Cores for this process: of a container's or a batch system's share its part beside the other ranks on the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _bar(items, total: int, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(items, total=total, desc="phantoms", unit="patient", disable=not progress)


def _patient_rows(job: tuple) -> list[dict]:
    seed, patient, frames, image_size, snr_db, organs = job
    rows = []
    for number in range(frames):
        frame = phantom_frame(seed, patient, number, image_size=image_size, snr_db=snr_db, organs=organs)
        rows.append(
            {
                "image": {"bytes": encode_png(frame.image), "path": None}, "organ": frame.organ, "lesion": frame.lesion,
                "mask": {"bytes": encode_png(frame.mask), "path": None}, "caption": frame.caption,
                "patient_id": f"phantom-{seed}-{patient}", "snr_db": frame.snr_db,
            }
        )  # fmt: skip
    return rows


def encode_png(pixels: np.ndarray) -> bytes:
    """(height, width) or (height, width, 3) uint8 as a PNG file."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
