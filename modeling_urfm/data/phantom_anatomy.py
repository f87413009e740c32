# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Anatomy of the phantoms: 15 organs painted as maps of echogenicity and attenuation.

A painter gets a `Tissue`, whose coordinates are in millimetres (x across, z down from the probe), paints the patient's
anatomy on it, and returns the sites where a lesion may sit. All randomness comes from the patient's generator, in the
same order in every frame, so that the frames of a patient show the same anatomy.

Echogenicities are in dB against liver, attenuations in dB/cm (two-way, at the probe's frequency) against what the
time-gain compensation expects; textbook orders of magnitude (Szabo, *Diagnostic Ultrasound Imaging*, 2nd ed., ch. 7
and appendix B), set by eye where books give a range.
"""

from dataclasses import dataclass

import numpy as np


FLUID, BLOOD, FAT, MUSCLE, LIVER, BONE = -42.0, -33.0, -7.0, -8.0, 0.0, 24.0


@dataclass(frozen=True)
class Site:
    """Where a lesion may sit: its centre and largest radius in mm, and whether fluid surrounds it there."""

    x: float
    z: float
    radius: float
    in_fluid: bool = False


class Tissue:
    """Maps over the samples of the beams, each (depth samples, beams), float32.

    Attributes:
        x, z: position of each sample in mm, after the frame's motion.
        echo: echogenicity in dB. att: attenuation in dB/cm against the compensation. mask: 1 in a lesion.
        phase: phase of the heart cycle in [0, 1).
    """

    def __init__(self, x: np.ndarray, z: np.ndarray, phase: float, rng: np.random.Generator):
        self.x, self.z, self.phase = x, z, phase
        self.echo = np.full(x.shape, MUSCLE, np.float32)
        self.att = np.zeros(x.shape, np.float32)
        self.mask = np.zeros(x.shape, np.float32)
        self.width, self.depth = float(np.abs(x).max()), float(z.max())
        # Smooth random fields from a few plane waves: tissue is nowhere uniform. Drawn from the patient's generator.
        self.fields = []
        for scale in (30.0, 9.0):
            angle, phase_shift = rng.uniform(0, 2 * np.pi, (2, 5)).astype(np.float32)
            k = (2 * np.pi / (scale * rng.uniform(0.6, 1.6, 5))).astype(np.float32)
            waves = sum(
                np.sin(kx * x + kz * z + p) for kx, kz, p in zip(k * np.cos(angle), k * np.sin(angle), phase_shift)
            )
            self.fields.append(waves * np.float32(0.45))

    def fill(self, cover: np.ndarray, echo: float, att: float = 0.0, texture: float = 1.2):
        """Lay tissue where `cover` (0 to 1) is; `texture` is its unevenness in dB."""
        value = echo + texture * (0.6 * self.fields[0] + 0.7 * self.fields[1])
        self.echo += cover * (value - self.echo)
        self.att += cover * (att - self.att)

    def brighten(self, cover: np.ndarray, echo: float, att: float | None = None):
        """Lay a reflector: never darker than what is there."""
        self.echo += (np.clip(echo - self.echo, 0, None) * cover).astype(np.float32, copy=False)
        if att is not None:
            self.att += (cover * (att - self.att)).astype(np.float32, copy=False)

    def oval(self, cx, cz, rx, rz, tilt=0.0, wobble=0.0, rng=None, lobes=5):
        """Radius field of an oval, 1 on its outline; `wobble` is the outline's unevenness (rng draws it)."""
        # Plain floats throughout: a float64 of numpy's would make every array twice as wide.
        c, s = float(np.cos(tilt)), float(np.sin(tilt))
        dx, dz = self.x - float(cx), self.z - float(cz)
        u, v = (c * dx + s * dz) * (1 / rx), (c * dz - s * dx) * (1 / rz)
        r = np.sqrt(u * u + v * v)
        if wobble:
            # The outline as a table over the angle, read at each sample.
            theta = np.linspace(-np.pi, np.pi, 257, dtype=np.float32)
            outline = np.ones_like(theta)
            for n in range(2, 2 + lobes):
                outline += wobble / n**0.5 * rng.normal() * np.sin(n * theta + rng.uniform(0, 6.28))
            index = (np.arctan2(v, u) * (128 / np.pi) + 128.5).astype(np.int16)
            r /= np.clip(outline, 0.4, 2.0)[index]
        return r

    def inside(self, r, size, edge=0.5):
        """1 inside the outline, 0 outside, with an edge of `edge` mm on an oval of about `size` mm."""
        return np.clip((1 - r) * np.float32(size / edge) + 0.5, 0, 1)

    def rim(self, r, size, thickness):
        """1 on the outline, over `thickness` mm. Brighter where the outline lies across the beam, as mirrors do."""
        return np.exp(-(((r - 1) * np.float32(size / thickness)) ** 2))

    def band(self, top, bottom, edge=0.4):
        """1 between two depths (mm; numbers or fields)."""
        return np.clip((self.z - top) / edge + 0.5, 0, 1) * np.clip((bottom - self.z) / edge + 0.5, 0, 1)

    def vessel(self, cx, cz, r, rng, wall=4.0, echo=BLOOD):
        """A round or oval vessel in cross-section, with a wall and enhancement behind it."""
        field = self.oval(cx, cz, r * rng.uniform(0.95, 1.4), r, rng.uniform(-0.6, 0.6))
        self.fill(self.inside(field, r, 0.6), echo, -1.2, 0.4)
        if wall:
            self.brighten(0.8 * self.rim(field, r, 0.45), wall)

    def wall_layers(self, rng, fat_mm: float):
        """Skin, subcutaneous fat with septa, and a fascia; returns the depth where they end."""
        wave = (1.0 * self.fields[0]).astype(np.float32) * np.float32(min(1.2, 0.12 * fat_mm))
        end = np.float32(1.5 + fat_mm) + wave
        self.fill(self.band(1.5, end), FAT, 0.1, 1.5)
        septa = np.exp(-((np.sin((self.z + 0.9 * wave) * np.float32(rng.uniform(1.1, 1.7))) / 0.18) ** 2))
        self.brighten(0.6 * septa * self.band(2.0, end), 3.0)
        self.fill(self.band(-1.0, 1.5), 6.0, 0.3)
        self.brighten(self.band(end - 0.3, end + 0.4), 9.0)
        return end

    def stripes(self, cover, rng, spacing=1.6, gain=6.0):
        """Fibres of a muscle, along x."""
        angle = rng.uniform(-0.08, 0.08)
        wave = np.sin((self.z + angle * self.x + 0.3 * self.fields[0]) * np.float32(2 * np.pi / spacing))
        self.echo += cover * (gain * np.clip(wave - 0.55, 0, 1) * 2).astype(np.float32)


def thyroid(t: Tissue, rng) -> list[Site]:
    end = t.wall_layers(rng, rng.uniform(2.5, 6))
    straps = t.band(end, end + 4.5)
    t.fill(straps, -12, 0.1)
    t.stripes(straps, rng)
    z, w, h = float(np.mean(end)) + 12.5, rng.uniform(9, 12), rng.uniform(6.5, 8.5)
    sites = []
    for side in (-1, 1):
        lobe = t.oval(side * (w + 1.5), z, w, h, side * 0.15, 0.05, rng)
        t.fill(t.inside(lobe, h), 5.0 + rng.normal(0, 0.8), 0.1, 1.0)
        t.brighten(0.5 * t.rim(lobe, h, 0.5), 9.0)
        sites.append(Site(side * (w + 1.5), z, 0.55 * h))
        t.vessel(side * (2 * w + 6.5), z + 1.5, rng.uniform(3.2, 4.2), rng, 8.0)
    t.fill(t.inside(t.oval(0, z - 3.5, 8, 2.6), 2.6), 5.0)
    trachea = t.oval(0, z + 6.5, 8, 8.5)
    t.fill(t.inside(trachea, 8), -25, 22)
    t.brighten(t.rim(trachea, 8, 0.7) * (t.z < z + 3), 18)
    return sites


def breast(t: Tissue, rng) -> list[Site]:
    fat = rng.uniform(4, 9)
    end = t.wall_layers(rng, fat)
    depth = float(np.mean(end)) + rng.uniform(13, 18)
    bottom = depth + 1.2 * t.fields[0]
    gland = t.band(end, bottom, 1.2)
    t.fill(gland, 5.5, 0.35, 2.2)
    for _ in range(5):
        lobule = t.oval(rng.uniform(-18, 18), rng.uniform(fat + 5, depth - 2), rng.uniform(2, 5), rng.uniform(1.2, 2.6),
                        rng.uniform(-0.3, 0.3), 0.12, rng)  # fmt: skip
        t.fill(0.85 * t.inside(lobule, 2, 0.8) * gland, FAT - 4, 0.1)
    for x0, slope in zip(rng.uniform(-18, 18, 4), rng.uniform(-0.7, 0.7, 4)):
        ligament = np.exp(-(((t.x - x0 - slope * t.z + 0.8 * t.fields[1]) / 0.45) ** 2)) * t.band(2, bottom)
        t.brighten(0.7 * ligament, 9.0)
    muscle = t.band(bottom + 2.5, bottom + 9.5)
    t.fill(t.band(bottom, bottom + 2.5), FAT - 3)
    t.fill(muscle, -9, 0.1)
    t.stripes(muscle, rng, 1.3, 8)
    for x0 in (-13, 13):
        rib = t.oval(x0 + rng.uniform(-3, 3), float(np.mean(bottom)) + 14, 6, 3.2)
        t.fill(t.inside(rib, 3), -12, 28)
        t.brighten(t.rim(rib, 3, 0.6) * (t.z < float(np.mean(bottom)) + 13.5), BONE - 4)
    return [Site(rng.uniform(-9, 9), (fat + depth) / 2 + 1.5, min(6.5, (depth - fat) / 2 - 1.0))]


def heart(t: Tissue, rng) -> list[Site]:
    t.fill(t.band(0, 400), -13, 0.0, 2.0)
    t.fill(t.band(-1, 14), -5, 0.2, 2.0)
    beat = 1 + 0.16 * np.sin(2 * np.pi * t.phase)
    length, tilt = rng.uniform(42, 50), rng.uniform(-0.12, 0.12)
    outer = t.oval(0, 78, 48, 62, tilt, 0.03, rng)
    t.fill(t.inside(outer, 50, 1.5), 1.0, 0.25, 1.5)
    t.brighten(0.6 * t.rim(outer, 50, 1.2), 11)
    for side in (-1, 1):
        left = side > 0
        ventricle = t.oval(
            side * 21, 62, (17 if left else 13) * beat, length * 0.72 * beat**0.5, side * 0.16 + tilt, 0.04, rng
        )
        t.fill(t.inside(ventricle, 18, 1.2), BLOOD, -0.25, 0.6)
        atrium = t.oval(side * 20, 62 + length * 0.98, 17 / beat**0.5, 17 / beat**0.5, 0, 0.05, rng)
        t.fill(t.inside(atrium, 16, 1.2), BLOOD, -0.25, 0.6)
        t.brighten(0.5 * t.rim(atrium, 16, 1.0), 8)
        swing = 0.55 * np.sin(2 * np.pi * t.phase + 1.2)
        leaflet = np.abs(
            t.z - (62 + length * 0.66) - (t.x - side * 20) * np.float32(swing * np.sign(1 if left else -1)) * 0.7
        )
        t.brighten(np.exp(-((leaflet / 1.3) ** 2)) * (np.abs(t.x - side * 20) < 14), 9)
    return [Site(24, 62 + 14, 7.0, True), Site(-22, 62 + length, 7.0, True)]


def _abdomen(t: Tissue, rng) -> float:
    return float(np.mean(t.wall_layers(rng, rng.uniform(6, 22))))


def _diaphragm(t: Tissue, cx, cz, rx, rz):
    arc = t.oval(cx, cz, rx, rz)
    beyond = np.clip((arc - 1) * 30, 0, 1) * (t.z > cz)
    t.fill(beyond, -10, 4.0, 3.0)
    t.brighten(t.rim(arc, min(rx, rz), 1.6) * (t.z > cz), 18)


def _liver_body(t: Tissue, rng, end, vessels=7, echo=None):
    t.fill(t.band(end, 400), LIVER + rng.normal(0, 1.0) if echo is None else echo, 0.15, 1.0)
    for _ in range(vessels):
        x, z = rng.uniform(-50, 50), rng.uniform(end + 15, end + 85)
        r = rng.uniform(2, 5.5)
        portal = rng.random() < 0.5
        field = t.oval(x, z, r * rng.uniform(1.0, 4.5), r, rng.uniform(-1.2, 1.2), 0.06, rng)
        t.fill(t.inside(field, r, 0.8), BLOOD, -0.4, 0.4)
        if portal:
            t.brighten(0.7 * t.rim(field, r, 0.9), 8)


def liver(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng)
    _liver_body(t, rng, end)
    _diaphragm(t, rng.uniform(-8, 8), end + 20, rng.uniform(75, 90), rng.uniform(70, 88))
    return [Site(rng.uniform(-28, 28), end + rng.uniform(25, 50), 15.0)]


def gallbladder(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng)
    _liver_body(t, rng, end, 4)
    x, z, tilt = rng.uniform(-10, 10), end + rng.uniform(34, 46), rng.uniform(-0.5, 0.5)
    rx, rz = rng.uniform(26, 36), rng.uniform(11, 16)
    body = t.oval(x, z, rx, rz, tilt, 0.05, rng, 3)
    t.brighten(t.rim(body, rz, 1.6), 11)
    t.fill(t.inside(body, rz, 0.9), FLUID, -1.0, 0.3)
    if rng.random() < 0.35:
        sx, sz, r = x + rng.uniform(-8, 8), z + rz * 0.62, rng.uniform(2.5, 5)
        stone = t.oval(sx, sz, r, r * 0.8)
        t.fill(t.inside(stone, r), 4, 26)
        t.brighten(t.rim(stone, r, 0.9) * (t.z < sz), 21)
    gut = t.oval(x + 38, z + 28, 20, 12, 0, 0.15, rng)
    t.fill(t.inside(gut, 12, 2), 2, 6, 3)
    t.brighten(t.rim(gut, 12, 1.5) * (t.z < z + 24), 16)
    return [Site(x - 0.45 * rx * np.cos(tilt), z + 0.35 * rz, 0.5 * rz, True)]


def pancreas(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng)
    t.fill(t.band(end, 400), -4, 0.3, 2.5)
    t.fill(t.inside(t.oval(-30, end + 18, 55, 20, 0.1, 0.04, rng), 20, 1.5), LIVER, 0.15)
    bow = 0.0045 * t.x**2 - 0.05 * t.x
    z = end + rng.uniform(36, 44)
    thick = rng.uniform(9, 12) + 2.5 * np.exp(-(((t.x + 28) / 14) ** 2))
    body = t.band(z - thick - bow + 2, z + thick * 0.6 - bow, 1.5) * np.clip((55 - np.abs(t.x)) / 6, 0, 1)
    t.fill(body, 5.0 + rng.normal(0, 1), 0.2, 1.8)
    duct = np.exp(-(((t.z - z + bow + 2) / 1.0) ** 2)) * body
    t.fill(0.7 * duct, -22)
    t.fill(t.band(z + 7 - bow, z + 15 - bow, 1.0) * np.clip((40 - np.abs(t.x)) / 5, 0, 1), BLOOD, -0.5, 0.4)
    t.vessel(rng.uniform(-4, 6), z + 27, rng.uniform(3.5, 4.5), rng, 12.0)
    t.vessel(8, z + 43, rng.uniform(8, 10), rng, 10.0)
    spine = t.oval(2, z + 68, 26, 14)
    t.fill(t.inside(spine, 14), -12, 20)
    t.brighten(t.rim(spine, 14, 1.4) * (t.z < z + 64), BONE - 4)
    return [Site(rng.uniform(-28, 22), z - 2, 10.0)]


def spleen(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng)
    t.fill(t.band(end, 400), -6, 0.4, 3.0)
    x, z, tilt = rng.uniform(-6, 6), end + rng.uniform(34, 42), rng.uniform(0.1, 0.4)
    body = t.oval(x, z, rng.uniform(52, 60), rng.uniform(24, 30), tilt, 0.03, rng, 3)
    notch = t.oval(x + 6, z + 40, 42, 24, tilt)
    cover = t.inside(body, 26, 0.9) * (1 - t.inside(notch, 24, 1.2))
    t.fill(cover, 1.5 + rng.normal(0, 0.7), 0.05, 0.5)
    t.brighten(0.7 * t.rim(body, 26, 1.1), 9)
    _diaphragm(t, x - 30, z - 10, 78, 62)
    kidney_part = t.oval(x + 34, z + 44, 30, 17, -0.4)
    t.fill(t.inside(kidney_part, 17, 1.2), -5, 0.1)
    t.fill(t.inside(t.oval(x + 34, z + 44, 17, 7, -0.4), 7, 2), 9, 0.4)
    for _ in range(2):
        t.vessel(x + rng.uniform(-8, 14), z + rng.uniform(12, 20), rng.uniform(2, 3.2), rng)
    return [Site(x + rng.uniform(-18, 10), z - 4, 11.0)]


def kidney(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng)
    if rng.random() < 0.6:
        _liver_body(t, rng, end, 3)
    else:
        t.fill(t.band(end, 400), -6, 0.3, 3.0)
    x, z, tilt = rng.uniform(-6, 6), end + rng.uniform(40, 50), rng.uniform(-0.3, 0.3)
    rx, rz = rng.uniform(48, 56), rng.uniform(22, 27)
    t.fill(t.inside(t.oval(x, z, rx + 5, rz + 4, tilt), rz, 1.5), 3, 0.2, 2.0)
    bean = t.oval(x, z, rx, rz, tilt, 0.025, rng, 3)
    t.fill(t.inside(bean, rz, 0.9), -5 + rng.normal(0, 0.8), 0.1)
    t.brighten(0.7 * t.rim(bean, rz, 1.0), 10)
    for angle in np.linspace(0, 2 * np.pi, 9)[:-1] + rng.uniform(0, 0.7):
        px, pz = 0.68 * rx * np.cos(angle), 0.62 * rz * np.sin(angle)
        c, s = np.cos(tilt), np.sin(tilt)
        pyramid = t.oval(x + c * px - s * pz, z + s * px + c * pz, 6.5, 5.2, rng.uniform(0, 3), 0.05, rng)
        t.fill(0.9 * t.inside(pyramid, 5, 1.2), -14)
    sinus = t.oval(x, z, 0.56 * rx, 0.36 * rz, tilt, 0.16, rng, 7)
    t.fill(t.inside(sinus, 10, 2.0), 9, 0.5, 3.0)
    muscle = t.band(z + rz + 16, z + rz + 60)
    t.fill(0.7 * muscle, -9, 0.6)
    t.stripes(0.7 * muscle, rng, 3.5, 6)
    return [Site(x + rng.choice([-1, 1]) * 0.62 * rx, z - 0.2 * rz, 0.48 * rz)]


def bladder(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng)
    t.fill(t.band(end, 400), -5, 0.4, 3.0)
    z, rx, rz = end + rng.uniform(34, 42), rng.uniform(38, 50), rng.uniform(24, 32)
    body = t.oval(0, z, rx, rz, rng.uniform(-0.1, 0.1), 0.05, rng, 3)
    t.fill(t.inside(t.oval(0, z, rx + 4, rz + 4), rz, 1.2), 0, 0.1)
    t.brighten(0.6 * t.rim(body, rz, 1.4), 9)
    t.fill(t.inside(body, rz, 1.0), FLUID, -1.1, 0.2)
    # Reverberation of the wall near the probe, as in every bladder.
    t.brighten(0.8 * t.inside(body, rz, 2) * np.exp(-np.clip(t.z - (z - rz), 0, None) / 5.0), -18)
    t.fill(t.band(z + rz + 6, 400), 2, 0.7, 3.0)
    return [Site(rng.uniform(-16, 16), z + rz * 0.72, 9.0, True)]


def prostate(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng) * 0.6
    t.fill(t.band(end, 400), -5, 0.4, 2.5)
    top = end + rng.uniform(10, 16)
    fluid = t.oval(0, top + 8, 34, 13, 0, 0.05, rng, 3)
    t.fill(t.inside(fluid, 13, 1.0), FLUID, -1.0, 0.2)
    t.brighten(0.6 * t.rim(fluid, 13, 1.3), 9)
    z, rx, rz = top + 40, rng.uniform(24, 29), rng.uniform(16, 20)
    gland = t.oval(0, z, rx, rz, 0, 0.03, rng, 3)
    t.fill(t.inside(gland, rz, 0.9), 2.5, 0.2)
    t.brighten(0.7 * t.rim(gland, rz, 0.9), 10)
    zone = t.oval(0, z - 0.2 * rz, 0.62 * rx, 0.64 * rz, 0, 0.07, rng)
    t.fill(t.inside(zone, 10, 1.2), -7, 0.2, 3.0)
    t.brighten(0.6 * t.rim(zone, 10, 0.7), 6)
    t.fill(np.exp(-((t.x / 1.4) ** 2)) * t.band(z - rz * 0.6, z + 2), -16)
    t.brighten(t.band(z + rz + 7, z + rz + 9.5) * np.clip((40 - np.abs(t.x)) / 8, 0, 1), 16, 3.0)
    return [Site(rng.choice([-1, 1]) * 0.55 * rx, z + 0.52 * rz, 0.36 * rz)]


def uterus(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng) * 0.7
    t.fill(t.band(end, 400), -4, 0.4, 3.0)
    fluid = t.oval(-18, end + 14, 26, 11, 0.1, 0.05, rng, 3)
    t.fill(t.inside(fluid, 11, 1.0), FLUID, -0.9, 0.2)
    t.brighten(0.5 * t.rim(fluid, 11, 1.2), 8)
    z, tilt = end + rng.uniform(42, 50), rng.uniform(-0.5, -0.1)
    rx, rz = rng.uniform(36, 42), rng.uniform(18, 22)
    body = t.oval(2, z, rx, rz * (1 + 0.22 * np.tanh((t.x - 2) / 20)), tilt, 0.03, rng, 3)
    t.fill(t.inside(body, rz, 1.1), -4 + rng.normal(0, 0.7), 0.25, 1.6)
    t.brighten(0.5 * t.rim(body, rz, 1.0), 7)
    stripe = t.oval(6, z - 1.5, 0.62 * rx, rng.uniform(3, 5.5), tilt, 0.06, rng)
    t.fill(t.inside(t.oval(6, z - 1.5, 0.68 * rx, 8, tilt), 8, 1.2), -9)
    t.fill(t.inside(stripe, 4, 0.9), 8, 0.1, 1.0)
    return [Site(rng.uniform(-6, 14), z - 0.5 * rz, 0.44 * rz)]


def ovary(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng) * 0.5
    t.fill(t.band(end, 400), -3, 0.3, 3.5)
    x, z = rng.uniform(-5, 5), end + rng.uniform(26, 34)
    rx, rz = rng.uniform(19, 24), rng.uniform(13, 17)
    body = t.oval(x, z, rx, rz, rng.uniform(-0.4, 0.4), 0.04, rng, 3)
    t.fill(t.inside(body, rz, 0.9), -5, 0.1)
    t.brighten(0.5 * t.rim(body, rz, 0.8), 7)
    for angle in rng.uniform(0, 0.9) + np.arange(7) * 0.9:
        r = rng.uniform(2.2, 4.6)
        follicle = t.oval(x + 0.66 * rx * np.cos(angle), z + 0.62 * rz * np.sin(angle), r, r * rng.uniform(0.8, 1.0))
        t.fill(t.inside(follicle, r, 0.5), FLUID, -1.6, 0.2)
    for _ in range(2):
        t.vessel(x + rng.choice([-1, 1]) * (rx + rng.uniform(6, 12)), z + rng.uniform(2, 14), rng.uniform(2.5, 4), rng)
    return [Site(x, z, 0.5 * rz)]


def fetus(t: Tissue, rng) -> list[Site]:
    end = _abdomen(t, rng)
    t.fill(t.band(end, end + 11), 1, 0.2, 1.5)
    t.fill(t.band(end + 11, 400), FLUID + 2, -0.1, 0.4)
    placenta = t.band(end + 8, end + rng.uniform(22, 30) + 2.5 * t.fields[0], 1.5) * np.clip(
        (t.x + rng.uniform(-10, 20)) / 8, 0, 1
    )
    t.fill(placenta, 3.5, 0.2, 2.0)
    z, rx, rz, tilt = end + rng.uniform(58, 66), rng.uniform(44, 50), rng.uniform(33, 38), rng.uniform(-0.4, 0.4)
    skull = t.oval(0, z, rx, rz, tilt, 0.015, rng, 3)
    t.fill(t.inside(t.oval(0, z, rx + 3.5, rz + 3.5, tilt), rz, 1.2), 0, 0.2)
    t.fill(t.inside(skull, rz, 1.0), -13, 0.2, 2.5)
    # A skull mirrors where the beam meets it squarely: bright near and far, thin at the sides.
    c, s = np.cos(tilt), np.sin(tilt)
    across = np.abs((c * (t.z - z) - s * t.x) / rz)
    t.brighten(t.rim(skull, rz, 1.7) * np.clip(0.35 + 0.75 * across, 0, 1), 20, 1.2)
    u, v = c * t.x + s * (t.z - z), c * (t.z - z) - s * t.x
    midline = np.exp(-((v / 0.9) ** 2)) * (np.abs(u) < 0.8 * rx) * (np.abs(u - 12) > 5)
    t.brighten(0.9 * midline, 8)
    for side in (-1, 1):
        t.fill(0.9 * t.inside(t.oval(-6, z + side * 9, 13, 4, tilt), 4, 1), FLUID + 6, 0.0, 0.5)
        t.fill(0.7 * t.inside(t.oval(-10, z + side * 9, 7, 2.4, tilt), 2.4, 1), 6)
    t.fill(t.band(z + rz + 22, 400), 0, 0.4, 2.5)
    return [Site(rng.uniform(8, 20), z + 15, 7.0)]


def lung(t: Tissue, rng) -> list[Site]:
    end = float(np.mean(t.wall_layers(rng, rng.uniform(2, 6))))
    muscle = t.band(end, end + 8)
    t.fill(muscle, -8, 0.1)
    t.stripes(muscle, rng, 1.5, 7)
    pleura = end + rng.uniform(10, 13)
    slope = 0.02 * t.x + 0.25 * t.fields[0]
    wet = rng.random() < 0.5
    t.fill(t.band(pleura + slope, 400), -24, 1.2, 1.0)
    for k in (2, 3):  # A-lines: the pleura seen again at multiples of its depth
        line = np.exp(-(((t.z - k * (pleura + slope)) / 0.6) ** 2))
        t.brighten((0.75 if not wet else 0.25) * line / (k - 1), 0.0)
    if wet:
        for x0 in rng.uniform(-15, 15, rng.integers(2, 5)):  # B-lines: comets from the pleura to the far edge
            comet = np.exp(-(((t.x - x0) / rng.uniform(0.7, 1.8)) ** 2)) * (t.z > pleura + slope)
            t.brighten(0.85 * comet, -2 + rng.normal(0, 2))
            t.att -= comet * 1.2
    t.brighten(np.exp(-(((t.z - pleura - slope) / 0.7) ** 2)), 17)
    for x0 in (-19, 19):
        x0 = x0 + rng.uniform(-3, 3)
        rib = t.oval(x0, pleura - 3.5, 5.5, 3)
        t.fill(t.inside(rib, 3), -14, 45)
        t.brighten(t.rim(rib, 3, 0.6) * (t.z < pleura - 3.5), BONE - 3)
    return [Site(rng.uniform(-6, 6), pleura + 5.5, 5.0)]


def carotid(t: Tissue, rng) -> list[Site]:
    end = float(np.mean(t.wall_layers(rng, rng.uniform(2.5, 6))))
    muscle = t.band(end, end + 5.5)
    t.fill(t.band(end, 400), -5, 0.2, 2.0)
    t.fill(muscle, -10, 0.1)
    t.stripes(muscle, rng)
    z, r = end + rng.uniform(13, 17), rng.uniform(3.2, 4.1)
    pulse = 1 + 0.05 * np.sin(2 * np.pi * t.phase)
    if rng.random() < 0.55:
        slope = rng.uniform(-0.08, 0.08)
        axis = z + slope * t.x + 0.3 * t.fields[0]
        t.fill(t.band(axis - r * pulse, axis + r * pulse, 0.4), FLUID + 4, -1.6, 0.4)
        for side in (-1, 1):  # intima and media-adventitia: two bright lines with a dark one between
            for offset, level in ((0.0, 7.0), (1.1, 13.0)):
                line = np.exp(-(((t.z - axis - side * (r * pulse + offset)) / 0.32) ** 2))
                t.brighten(line, level)
        t.fill(t.band(axis - r - 8.5, axis - r - 3.2, 0.5), BLOOD, -0.8, 0.4)
        return [Site(rng.uniform(-8, 8), z + r * 0.62, r * 0.5, True)]
    lumen = t.oval(-3, z, r * pulse, r * pulse)
    t.brighten(t.rim(t.oval(-3, z, r + 1.2, r + 1.2), r, 0.45), 13)
    t.fill(t.inside(lumen, r, 0.4), FLUID + 4, -1.6, 0.4)
    t.brighten(0.7 * t.rim(lumen, r, 0.3), 6)
    t.vessel(rng.uniform(5, 8), z - 3.5, rng.uniform(3.5, 5), rng, 3.0)
    return [Site(-3 + 0.3 * r, z + r * 0.5, r * 0.5, True)]


# Organ: its painter, the usual probe, the depths that are used (mm), and the view that a caption names.
ANATOMY = {
    "thyroid": (thyroid, "linear", (38, 44), "transverse"),
    "breast": (breast, "linear", (40, 46), "radial"),
    "heart": (heart, "sector", (140, 155), "apical four-chamber"),
    "liver": (liver, "curved", (130, 150), "subcostal"),
    "gallbladder": (gallbladder, "curved", (110, 130), "longitudinal"),
    "pancreas": (pancreas, "curved", (120, 140), "transverse epigastric"),
    "spleen": (spleen, "curved", (115, 135), "intercostal"),
    "kidney": (kidney, "curved", (115, 135), "longitudinal"),
    "bladder": (bladder, "curved", (110, 130), "transverse suprapubic"),
    "prostate": (prostate, "curved", (95, 105), "transverse"),
    "uterus": (uterus, "curved", (105, 120), "sagittal"),
    "ovary": (ovary, "curved", (75, 88), "transvaginal"),
    "fetus": (fetus, "curved", (130, 150), "transventricular"),
    "lung": (lung, "linear", (48, 58), "intercostal"),
    "carotid": (carotid, "linear", (36, 42), "cervical"),
}  # fmt: skip


def paint_lesion(t: Tissue, kind: str, site: Site, rng) -> str:
    """Paint a lesion at `site`; returns how a caption describes it. Marks it in `t.mask`."""
    benign = kind == "benign"
    size = site.radius * rng.uniform(0.65, 1.0)
    x, z = site.x + rng.normal(0, 0.08 * site.radius), site.z + rng.normal(0, 0.08 * site.radius)
    if benign:  # wider than tall, smooth
        field = t.oval(x, z, size * 1.15, size * rng.uniform(0.62, 0.8), rng.uniform(-0.15, 0.15), 0.02, rng, 3)
    else:  # taller than wide, lobulated and spiculated
        field = t.oval(x, z, size * rng.uniform(0.7, 0.85), size * 1.05, rng.uniform(-0.3, 0.3), 0.13, rng, 9)
    cover = t.inside(field, size, 0.35 if benign else 0.9)
    t.mask = np.maximum(t.mask, cover)
    if benign and not site.in_fluid and rng.random() < 0.4:
        t.fill(cover, FLUID, -2.2, 0.2)
        t.brighten(0.6 * t.rim(field, size, 0.5), 7)
        return "an oval anechoic cyst with posterior enhancement"
    if benign:
        t.fill(cover, -2.0 if site.in_fluid else -12.0, 0.1, 0.4)
        t.brighten(0.7 * t.rim(field, size, 0.5), 6)
        return "a smooth polyp" if site.in_fluid else "an oval, circumscribed, homogeneous mass"
    shadow = 260.0 / max(size, 3.0) / 10
    t.fill(cover, -1.0 if site.in_fluid else -17.0, shadow, 4.0)
    for _ in range(7):  # microcalcifications
        a, r = rng.uniform(0, 6.28), rng.uniform(0, 0.6) * size
        spot = ((t.x - x - r * np.cos(a)) ** 2 + (t.z - z - r * np.sin(a)) ** 2) / np.float32(0.12 * size) ** 2
        t.brighten(np.exp(-spot), 12)
    return "an irregular, heterogeneous mass with posterior shadowing, suspicious for malignancy"
