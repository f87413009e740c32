# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A teacher's features of an image in a few hundred bytes to a few kilobytes, as pictures are compressed.

The length of every patch's feature is split off. Its direction goes through two orthonormal transforms, principal
components over the channels (fitted on a sample of the corpus) and a cosine transform over the grid, is rounded with one
step for all coefficients, which is what spends bits where they lower the error most (reverse water-filling), and is
packed by Zstandard in an order that puts coefficients of like size together. The step is the largest with which features
that were not fitted on come back as close as was asked.

Shapes: B images, H x W the teacher's grid, P = H * W patches, T the width of its features, K the components that are
kept, M patches that a student predicts.
"""

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F


CODEC_VERSION = 1
# The logarithm of a patch's length is rounded to this: 1 % of the length, and a cosine does not see it at all.
LOG_NORM_STEP = 0.04
# Below half a step and this much more a coefficient becomes 0: fewer bits for the same error, as most are near 0.
DEAD_ZONE = 0.15
# Components at the end that together give back less than this share of what all of them give back are left out.
TAIL = 0.005
# Where all patches share most of their direction, a cosine near 1 says little. This share of what tells them apart must
# come back too.
MIN_EXPLAINED = 0.85
HELD_OUT = 5  # every fifth image of the sample
ZSTD_LEVEL = 15
HEAD = struct.Struct("<II")  # of an image: symbols up to the last that is not 0, and how many of them are large
ESCAPE = -128  # stands in the stream of bytes for a number that needs two


def cosine_transform(size: int) -> torch.Tensor:
    """The orthonormal DCT-II: (size, size), frequencies x places."""
    places, frequencies = torch.arange(size, dtype=torch.float64) + 0.5, torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * frequencies[:, None] * places) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def _over_the_grid(rows: torch.Tensor, columns: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """`rows` (h, H) and `columns` (w, W) applied to maps (..., H, W, C): (..., h, w, C)."""
    many = maps.reshape(-1, *maps.shape[-2:])  # `columns @ maps` would take twice as long
    maps = torch.bmm(columns.expand(len(many), -1, -1), many).view(*maps.shape[:-2], len(columns), -1)
    return (rows @ maps.flatten(-2)).unflatten(-1, maps.shape[-2:])


def crop_weights(start: float, length: float, size: int, out: int, flip: bool = False) -> torch.Tensor:
    """Weights (out, size) that interpolate a crop of an axis of `size` places onto `out` places.

    Bilinear between the centres of places, as RoI-align with one sample a bin; where the crop has more places than `out`,
    the triangle widens with them (antialiasing as in `F.interpolate`). What a crop's rim needs from beyond it is
    taken from the image; beyond the image there is nothing, and the weights of what is there add up to 1.

    Args:
        start, length: of the crop, in units of the axis.
    """
    scale = length * size / out
    # In numpy, which is quicker with what is so small: every crop needs two of these.
    centres = start * size + (np.arange(out) + 0.5) * scale - 0.5
    weights = np.maximum(1 - np.abs(centres[:, None] - np.arange(size)) / max(scale, 1.0), 0)
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy((weights[::-1] if flip else weights).astype(np.float32))


class TargetCodec:
    """Features to bytes and back; made by `fit_codec` or `load`.

    Args:
        mean: (T,) of the patches' directions. basis: (K, T) orthonormal.
        log_norm: mean logarithm of the patches' lengths.
        scan: (H * W * (K + 1),) the order in which coefficients are written; component K is the length.
    """

    def __init__(self, mean: torch.Tensor, basis: torch.Tensor, log_norm: float, step: float, grid, scan: torch.Tensor):
        self.mean, self.basis, self.log_norm, self.step, self.grid = mean, basis, log_norm, step, tuple(grid)
        self.scan = scan
        self.rows, self.columns = (cosine_transform(side) for side in self.grid)
        self.rows_back, self.columns_back = self.rows.T.contiguous(), self.columns.T.contiguous()
        # Of |basis^T c + mean|^2 = |c|^2 + 2 c . (basis mean) + |mean|^2.
        self.twice_centre, self.squared_mean = F.pad(2 * basis @ mean, (0, 1)), float(mean @ mean)
        # From what `crop` gives to features, in one product. Lengths are relative to the usual one, so that halves hold them.
        self.back = self._back = torch.cat([basis, mean[None]]) * math.exp(log_norm)

    @property
    def components(self) -> int:
        return len(self.basis)

    def to(self, device) -> "TargetCodec":
        moved = TargetCodec.__new__(TargetCodec)
        moved.__dict__ = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in self.__dict__.items()}
        return moved

    # ---- to bytes

    def quantize(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, P, T), float32, to symbols int16 (B, H * W * (K + 1)) and the cosines (B, P) of what comes back."""
        norm = features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        unit = features / norm
        length = (norm.log() - self.log_norm) * (self.step / LOG_NORM_STEP)
        maps = torch.cat([(unit - self.mean) @ self.basis.T, length], dim=-1).unflatten(1, self.grid)
        symbols = _rounded(_over_the_grid(self.rows, self.columns, maps), self.step)
        back = _over_the_grid(self.rows_back, self.columns_back, symbols * self.step)[..., :-1].flatten(1, 2)
        cosine = F.cosine_similarity(back @ self.basis + self.mean, unit, dim=-1)
        return symbols.flatten(1)[:, self.scan].to(torch.int16), cosine

    def pack(self, symbols: np.ndarray) -> bytes:
        """Symbols int16 (H * W * (K + 1),) to bytes: one byte each up to the last that is not 0, then the large ones."""
        import pyarrow as pa

        filled = np.flatnonzero(symbols)
        symbols = symbols[: filled[-1] + 1 if len(filled) else 1]
        large = np.abs(symbols) > 127
        small = np.where(large, ESCAPE, symbols).astype(np.int8)
        plain = small.tobytes() + symbols[large].astype("<i2").tobytes()
        return HEAD.pack(len(symbols), int(large.sum())) + pa.Codec("zstd", ZSTD_LEVEL).compress(plain, asbytes=True)

    # ---- and back

    def unpack(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Where the symbols that are not 0 stand, and what they are, as floats."""
        import pyarrow as pa

        count, large = HEAD.unpack_from(data)
        frame = memoryview(data)[HEAD.size :]
        plain = np.frombuffer(pa.decompress(frame, decompressed_size=count + 2 * large, codec="zstd"), np.int8)
        filled = np.flatnonzero(plain[:count] != 0)
        values = plain[filled].astype(np.float32)
        if large:
            values[values == ESCAPE] = plain[count:].view("<i2")
        return filled, values

    def maps(self, data: bytes) -> torch.Tensor:
        """(H, W, K + 1), float32: what `decode` takes, of the teacher's own grid."""
        filled, values = self.unpack(data)
        cells = torch.zeros(len(self.scan))
        cells[self.scan[torch.from_numpy(filled)]] = torch.from_numpy(values * np.float32(self.step))
        maps = _over_the_grid(self.rows_back, self.columns_back, cells.view(*self.grid, -1))
        # Rounding has changed the length of the direction, basis^T c + mean; the patch gets the length that it had.
        length = torch.exp(maps[..., -1:] * (LOG_NORM_STEP / self.step))
        maps[..., -1:] = 0
        squared = (maps * (maps + self.twice_centre)).sum(-1, keepdim=True) + self.squared_mean
        length /= squared.clamp_min(1e-12).sqrt_()
        maps *= length
        maps[..., -1:] = length
        return maps

    def crop(self, data: bytes, crop, grid: tuple[int, int], positions: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (M, K + 1), float16, of the patches `positions` (raster order; None: all) of a crop cut into `grid`.

        Interpolating codes and decoding gives what decoding and interpolating would: both are linear.

        Args:
            crop: top, left, height, width in units of the image; flip_horizontal, flip_vertical, which act on the crop.
        """
        maps = self.maps(data)
        rows = crop_weights(crop.top, crop.height, self.grid[0], grid[0], crop.flip_vertical)
        columns = crop_weights(crop.left, crop.width, self.grid[1], grid[1], crop.flip_horizontal)
        codes = _over_the_grid(rows, columns, maps).flatten(0, 1)
        return (codes if positions is None else codes[positions]).half()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., K + 1) to features (..., T), float32, on the codes' device."""
        if self._back.device != codes.device:
            self._back = self.back.to(codes.device)
        with torch.autocast(codes.device.type, enabled=False):
            return codes.float() @ self._back

    def __getstate__(self):
        return self.__dict__ | {"_back": self.back}  # a worker decodes nothing, and must not hold memory of the device

    # ---- on disk

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        numbers = torch.tensor([self.log_norm, self.step], dtype=torch.float64)
        save_file(
            {"mean": self.mean, "basis": self.basis.contiguous(), "numbers": numbers, "scan": self.scan.to(torch.int32),
             "grid": torch.tensor(self.grid)},
            path,
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> "TargetCodec":
        from safetensors.torch import load_file

        held = load_file(path)
        log_norm, step = held["numbers"].tolist()
        return cls(held["mean"], held["basis"], log_norm, step, held["grid"].tolist(), held["scan"].long())


def _rounded(coefficients: torch.Tensor, step: float) -> torch.Tensor:
    """To whole numbers of steps, as floats."""
    whole = (coefficients.abs() / step + (0.5 - DEAD_ZONE)).floor().clamp_max(32767)
    return whole.copysign(coefficients) + 0.0


def fit_codec(features: torch.Tensor, grid: tuple[int, int], min_cosine: float) -> tuple[TargetCodec, dict]:
    """The codec for a teacher, fitted on features (B, P, T) of a sample of images.

    Returns:
        The codec, and what is known of it: `step`, `components`, and on the images that were not fitted on
        `cosine` (mean over patches) and `explained` (share of the directions' variance that comes back).

    Raises:
        ValueError: a feature is not finite.
    """
    if not torch.isfinite(features).all():
        raise ValueError("The teacher gives features that are not finite; no target can be made of them.")
    features = features.float()
    norm = features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    unit, log_norm = features / norm, float(norm.log().mean())
    held = torch.arange(len(unit)) % HELD_OUT == HELD_OUT - 1
    fitted, held = (unit[~held], unit[held]) if held.any() else (unit, unit)
    fitted = fitted.flatten(0, 1).double()
    mean = fitted.mean(0)
    _, vectors = torch.linalg.eigh((fitted - mean).T @ (fitted - mean) / len(fitted))
    basis, mean = vectors.T.flip(0).float().contiguous(), mean.float()  # the largest first, all T of them

    # Both transforms are orthonormal: errors and cosines are what they are among the coefficients.
    rows, columns = (cosine_transform(side) for side in grid)
    rows_back, columns_back = rows.T.contiguous(), columns.T.contiguous()
    places = ((held - mean) @ basis.T).unflatten(1, grid)
    centre = basis @ mean
    wanted = places + centre
    coefficients = _over_the_grid(rows, columns, places)
    variance = float(((wanted - wanted.flatten(0, 2).mean(0)) ** 2).sum().clamp_min(1e-12))

    def quality(step: float, components: int) -> tuple[float, float]:
        rounded = _rounded(coefficients[..., :components], step) * step
        got = centre.expand_as(wanted).clone()
        got[..., :components] += _over_the_grid(rows_back, columns_back, rounded)
        cosine = F.cosine_similarity(got, wanted, dim=-1).mean()
        return float(cosine), 1 - float(((got - wanted) ** 2).sum()) / variance

    def largest_step(components: int) -> float:
        low, high = 1e-4, 1.0
        for _ in range(14):
            middle = math.sqrt(low * high)
            cosine, explained = quality(middle, components)
            enough = cosine >= min_cosine and (explained >= MIN_EXPLAINED or variance < 1e-6 * wanted.numel())
            low, high = (middle, high) if enough else (low, middle)
        return low

    step = largest_step(len(basis))
    rounded = _rounded(coefficients, step) * step
    given_back = (2 * coefficients * rounded - rounded**2).sum((0, 1, 2)).cumsum(0)
    components = max(1, int(torch.searchsorted(given_back, (1 - TAIL) * given_back[-1])) + 1)
    if components < len(basis):
        cut = largest_step(components)
        # A tail that can't be spared shows in a step that has to be much smaller.
        step, components = (cut, components) if cut > 0.9 * step else (step, len(basis))
    cosine, explained = quality(step, components)

    codec = TargetCodec(mean, basis[:components].contiguous(), log_norm, step, grid, torch.arange(0))
    codec.scan = torch.arange(math.prod(grid) * (components + 1))
    sizes = torch.zeros(len(codec.scan))
    for part in features.split(32):
        sizes += codec.quantize(part)[0].abs().float().sum(0)
    codec.scan = torch.argsort(sizes, descending=True, stable=True)
    report = {"step": round(step, 5), "components": components, "sample_cosine": round(cosine, 4),
              "sample_explained": round(explained, 4), "sample_images": len(features)}  # fmt: skip
    return codec, report
