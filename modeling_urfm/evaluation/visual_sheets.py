# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Sheets and films of what `visuals` computed: a row an image, a column a view, at the original aspect, with legends.

Colour maps are perceptually even and safe without colour vision: inferno for attention, viridis for similarity, and
`visuals.PatchColours` for components.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from . import visuals
from .visuals import PatchColours, Prediction, Sight


INK, SLATE = "#1f2933", (0.36, 0.42, 0.48)
ROWS_PER_SHEET = 12
# A GIF's delays are whole hundredths of a second, and browsers slow down those below two.
SHORTEST_DELAY_CS = 2


@dataclass(frozen=True)
class Scale:
    """What the colours of a panel mean: `cmap` runs from `low` to `high`."""

    cmap: str
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Panel:
    """A column of a sheet.

    Attributes:
        title: may have two lines. pictures: (height, width, 3) uint8, one an image, each of its image's size.
        legend: a Scale; the shares of variance of three components; or None.
    """

    title: str
    pictures: list[np.ndarray]
    legend: Scale | tuple[float, float, float] | None = None


# ---------------------------------------------------------------- panels


def image_panel(sights: Sequence[Sight]) -> Panel:
    """The images as they are."""
    return Panel("image", [sight.image for sight in sights])


def rollout_panel(sights: Sequence[Sight]) -> Panel:
    """Attention over the image, in units of an even share, on one scale for all images."""
    maps = [sight.rollout * len(sight.rollout) / sight.rollout.sum() for sight in sights]
    flat = torch.cat(maps)
    scale = Scale("inferno", float(flat.quantile(0.01)), float(flat.quantile(0.99)), "attention, 1 = even share")
    pictures = [
        _blended(sight, visuals.on_image(m, sight, smooth=True), scale, (0.35, 0.8)) for sight, m in zip(sights, maps)
    ]
    return Panel("attention rollout", pictures, scale)


def pca_panel(sights: Sequence[Sight], colours: PatchColours) -> Panel:
    """Patch tokens as colours, dimmed where a patch shows no ultrasound."""
    return Panel(
        "patch tokens", [_coloured(sight, sight.tokens, colours, sight.lit) for sight in sights], colours.explained
    )


def similarity_panel(sights: Sequence[Sight], patch: int, number: int | None = None) -> Panel:
    """Cosine similarity to a patch of the first image, which is framed there; one scale for all images."""
    query = sights[0].tokens[patch]
    maps = visuals.similarities(sights, query)
    lit = torch.cat([m[s.lit] if s.lit.any() else m for m, s in zip(maps, sights)])
    scale = Scale("viridis", float(lit.quantile(0.02)), 1.0, "cosine similarity")
    pictures = [_blended(sight, visuals.on_image(m, sight), scale, (0.65, 0.65)) for sight, m in zip(sights, maps)]
    pictures[0] = framed(pictures[0], visuals.patch_box(patch, sights[0]))
    return Panel("similarity to patch" + (f" {number}" if number else ""), pictures, scale)


def hidden_panel(sights: Sequence[Sight], predictions: Sequence[Prediction]) -> Panel:
    """The image without its hidden patches."""
    pictures = []
    for sight, prediction in zip(sights, predictions):
        hidden = visuals.on_image(prediction.hidden, sight)
        picture = np.where((hidden > 0.5)[..., None], np.array(SLATE), sight.image / 255)
        pictures.append(_unseen_dimmed(picture, sight, np.isnan(hidden)))
    return Panel("what the model sees", pictures)


def prediction_panels(
    sights: Sequence[Sight], predictions: Sequence[Prediction], colours: PatchColours | None = None
) -> list[Panel]:
    """Predicted features as colours, dimmed where the patch was visible; with a teacher also its own, and how near both are.

    Args:
        colours: of an earlier call for other images; None fits them to the teacher's features, or to the predicted ones.
    """
    unit = torch.nn.functional.normalize
    colours = colours or prediction_colours(sights, predictions)
    drawn = [_coloured(s, unit(p.predicted, dim=-1), colours, p.hidden) for s, p in zip(sights, predictions)]
    if predictions[0].target is None:
        return [Panel("predicted features", drawn, colours.explained)]
    targets = [_coloured(s, unit(p.target, dim=-1), colours, None) for s, p in zip(sights, predictions)]
    scale = Scale("viridis", 0.0, 1.0, "cosine, prediction and teacher")
    nearness = []
    for sight, prediction in zip(sights, predictions):
        cosine = visuals.on_image(prediction.cosine, sight)
        nearness.append(_blended(sight, cosine, scale, (1.0, 1.0)))
    return [
        Panel("teacher's features", targets, colours.explained),
        Panel("predicted features", drawn, colours.explained),
        Panel("agreement", nearness, scale),
    ]


def prediction_colours(sights: Sequence[Sight], predictions: Sequence[Prediction]) -> PatchColours:
    """Colours of the teacher's features or, without a teacher, of the predicted ones."""
    given = [p.predicted if p.target is None else p.target for p in predictions]
    kept = [s.lit & p.hidden if p.target is None else s.lit for s, p in zip(sights, predictions)]
    if not any(keep.any() for keep in kept):
        kept = [p.hidden for p in predictions]
    return PatchColours([torch.nn.functional.normalize(g, dim=-1) for g in given], kept)


def reconstruction_panel(sights, predictions, processor, patch_size: int) -> Panel:
    """Of a model with pixel targets: the image with its hidden patches as predicted."""
    pictures = []
    for sight, prediction in zip(sights, predictions):
        picture = visuals.reconstruction(prediction, sight, processor, patch_size)
        pictures.append(_unseen_dimmed(picture, sight, np.isnan(picture[..., 0])))
    return Panel("predicted pixels", pictures)


def framed(picture: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """A white frame with a black border around (left, top, right, bottom)."""
    drawn = Image.fromarray(picture)
    draw, line = ImageDraw.Draw(drawn), max(1, round(min(picture.shape[:2]) / 120))
    left, top, right, bottom = (round(side) for side in box)
    for colour, grow in (("black", line), ("white", 0)):
        corners = (left - grow, top - grow, right - 1 + grow, bottom - 1 + grow)
        draw.rectangle(corners, outline=colour, width=line)
    return np.array(drawn)


def _blended(sight: Sight, values: np.ndarray, scale: Scale, strength: tuple[float, float]) -> np.ndarray:
    """Values as colours over the image, at an opacity from that of the lowest to that of the highest value; where there is
    no value, the image alone, dimmed."""
    share = np.nan_to_num((values - scale.low) / max(scale.high - scale.low, 1e-9)).clip(0, 1)
    colours = matplotlib.colormaps[scale.cmap](share)[..., :3]
    opacity = (strength[0] + (strength[1] - strength[0]) * share)[..., None]
    picture = (1 - opacity) * sight.image / 255 + opacity * colours
    return _unseen_dimmed(picture, sight, np.isnan(values))


def _coloured(sight: Sight, features: torch.Tensor, colours: PatchColours, bright: torch.Tensor | None) -> np.ndarray:
    """Features as colours; those of patches that are not `bright` at a quarter of the light."""
    rgb = colours(features)
    if bright is not None:
        rgb = rgb * torch.where(bright, 1.0, 0.25)[:, None]
    picture = visuals.on_image(rgb, sight)
    return _unseen_dimmed(picture, sight, np.isnan(picture[..., 0]))


def _unseen_dimmed(picture: np.ndarray, sight: Sight, unseen: np.ndarray) -> np.ndarray:
    """-> uint8; outside of what the model saw, the image at a third of its light."""
    picture = np.where(unseen[..., None], sight.image / 255 / 3, picture)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


# ---------------------------------------------------------------- sheets


def save_sheets(names: Sequence[str], panels: Sequence[Panel], path: Path, dpi: int) -> list[Path]:
    """Write `path`, and further pages beside it (`sheet-02.png` ...) where there are more than `ROWS_PER_SHEET` images."""
    paths = []
    for page, start in enumerate(range(0, len(names), ROWS_PER_SHEET), 1):
        rows = slice(start, start + ROWS_PER_SHEET)
        paths.append(path if page == 1 else path.with_name(f"{path.stem}-{page:02}{path.suffix}"))
        part = [Panel(panel.title, panel.pictures[rows], panel.legend) for panel in panels]
        figure = _sheet(names[rows], part)
        content = io.BytesIO()
        figure.savefig(content, dpi=dpi, format="png")
        _write(paths[-1], content.getvalue())
    return paths


def _sheet(names: Sequence[str], panels: Sequence[Panel]):
    """Everything is placed by hand, in inches, so that no picture is stretched or shrunk to make room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    column, gap, left, top, legend = 2.1, 0.07, 0.34, 0.34, 0.62
    # A picture that is taller than wide gets a row of 1.3 columns at most.
    heights = [column * min(p.shape[0] / p.shape[1], 1.3) for p in panels[0].pictures]
    width = left + len(panels) * (column + gap)
    height = top + sum(heights) + gap * len(heights) + legend
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def axes(x, y, w, h):
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    for number, panel in enumerate(panels):
        x, y = left + number * (column + gap), top
        figure.text((x + column / 2) / width, 1 - (top - 0.08) / height, panel.title, ha="center", va="bottom",
                    fontsize=9, color=INK)  # fmt: skip
        for name, picture, row_height in zip(names, panel.pictures, heights):
            axis = axes(x, y, column, row_height)
            axis.imshow(picture, interpolation="nearest" if picture.shape[1] < 400 else "antialiased")
            axis.axis("off")
            if number == 0:
                figure.text(0.1 / width, 1 - (y + row_height / 2) / height, shortened(name, int(row_height * 16)),
                            rotation=90, ha="left", va="center", fontsize=7, color=INK)  # fmt: skip
            y += row_height + gap
        if isinstance(panel.legend, Scale):
            _draw_scale(axes(x + 0.15, y + 0.02, column - 0.3, 0.1), panel.legend)
        elif panel.legend:
            _draw_components(axes(x + 0.15, y + 0.02, column - 0.3, 0.3), panel.legend)
    return figure


def _draw_scale(axis, scale: Scale):
    ramp = np.linspace(0, 1, 256)[None]
    axis.imshow(ramp, cmap=scale.cmap, aspect="auto", extent=(scale.low, scale.high, 0, 1))
    axis.set_yticks([])
    axis.set_xticks([scale.low, (scale.low + scale.high) / 2, scale.high])
    axis.xaxis.set_major_formatter("{x:.2f}")
    axis.tick_params(labelsize=6, length=2, pad=1, colors=INK)
    axis.set_xlabel(scale.label, fontsize=6.5, labelpad=1, color=INK)


def _draw_components(axis, explained: Sequence[float]):
    axis.imshow(component_ramps(1, 256), aspect="auto", extent=(0, 1, 0, 3), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([2.5, 1.5, 0.5], ["1", "2", "3"])
    axis.tick_params(labelsize=6, length=0, pad=1, colors=INK)
    shares = ", ".join(f"{share:.0%}" for share in explained)
    axis.set_xlabel(f"principal components: {shares}", fontsize=6.5, labelpad=3, color=INK)


def component_ramps(height: int, width: int) -> np.ndarray:
    """(3 * height, width, 3) uint8: how each component runs while the two others are in the middle."""
    ramps = torch.full((3, width, 3), 0.5, dtype=torch.float64)
    for i in range(3):
        ramps[i, :, i] = torch.linspace(0, 1, width, dtype=torch.float64)
    return (visuals.component_colours(ramps).numpy() * 255).round().astype(np.uint8).repeat(height, axis=0)


def shortened(name: str, length: int) -> str:
    """`name` with its middle left out where it is longer than `length` characters."""
    length = max(length, 5)
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[len(name) - (length - length // 2) :]}"


# ---------------------------------------------------------------- films


def film_stride(frame_rate: float, frames: int, max_frames: int) -> int:
    """Of how many frames one is shown: all, unless there are more than `max_frames` or they come too fast for a GIF."""
    fastest = 100 / SHORTEST_DELAY_CS
    return max(-(-frames // max_frames), int(np.ceil(frame_rate / fastest - 1e-6)), 1)


def film_delays(frame_rate: float, frames: int) -> list[int]:
    """Milliseconds that each frame stays, in whole hundredths of a second, right in the sum: a GIF knows no others."""
    step = 100 / Fraction(frame_rate)
    ends = [round(step * (i + 1)) for i in range(frames)]
    return [10 * (end - begin) for begin, end in zip([0, *ends], ends)]


def save_film(panels: Sequence[Panel], frame_rate: float, path: Path, width: int = 300) -> None:
    """Write the panels beside each other, four a row, as a GIF that runs for ever at `frame_rate`.

    All frames have one palette, chosen from all of them, and no dithering: what stays the same keeps its colour.

    Args:
        panels: pictures are frames, all of one size. width: of a panel in pixels.
    """
    original = panels[0].pictures[0].shape
    size = (width, max(1, round(width * original[0] / original[1])))
    ground, corners = _film_ground(panels, size)
    frames = []
    for i in range(len(panels[0].pictures)):
        frame = ground.copy()
        for panel, corner in zip(panels, corners):
            frame.paste(Image.fromarray(panel.pictures[i]).resize(size, Image.Resampling.BICUBIC), corner)
        frames.append(frame)
    palette = _shared_palette(frames)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    content = io.BytesIO()
    frames[0].save(
        content, "GIF", save_all=True, append_images=frames[1:], loop=0, optimize=False,
        duration=film_delays(frame_rate, len(frames)),
    )  # fmt: skip
    _write(path, content.getvalue())


def _film_ground(panels: Sequence[Panel], size: tuple[int, int]) -> tuple[Image.Image, list[tuple[int, int]]]:
    """What is the same in all frames: titles above, legends below. -> the picture, and the upper left corners of panels."""
    (width, height), top, legend, gap = size, 22, 36, 4
    columns = min(4, len(panels))
    row_height = top + height + legend
    rows = -(-len(panels) // columns)
    ground = Image.new("RGB", (columns * (width + gap) - gap, rows * row_height), "white")
    draw, large, small = ImageDraw.Draw(ground), ImageFont.load_default(13), ImageFont.load_default(11)
    corners = []
    for number, panel in enumerate(panels):
        left, upper = number % columns * (width + gap), number // columns * row_height
        corners.append((left, upper + top))
        draw.text((left + width / 2, upper + top / 2), panel.title, INK, large, anchor="mm")
        bar, y = width - 40, upper + top + height + 5
        if isinstance(panel.legend, Scale):
            ramp = matplotlib.colormaps[panel.legend.cmap](np.linspace(0, 1, bar)[None].repeat(9, axis=0))[..., :3]
            ground.paste(Image.fromarray((ramp * 255).round().astype(np.uint8)), (left + 20, y))
            text = f"{panel.legend.low:.2f}  {panel.legend.label}  {panel.legend.high:.2f}"
        elif panel.legend:
            ground.paste(Image.fromarray(component_ramps(4, bar)), (left + 20, y - 3))
            text = "principal components: " + ", ".join(f"{share:.0%}" for share in panel.legend)
        else:
            continue
        draw.text((left + width / 2, y + 20), text, INK, small, anchor="mm")
    return ground, corners


def _shared_palette(frames: Sequence[Image.Image]) -> Image.Image:
    """64 greys for the ultrasound, and 192 colours of a few frames, evenly chosen, each that occurs counted once: else
    black ground takes most of them."""
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 6).astype(int))]
    pixels = np.concatenate([np.asarray(frame).reshape(-1, 3) for frame in chosen])
    codes = np.unique((pixels >> 2).astype(np.uint32) @ np.array([1 << 12, 1 << 6, 1], np.uint32))
    colours = (np.stack([codes >> 12, codes >> 6 & 63, codes & 63], axis=-1) * 255 // 63).astype(np.uint8)
    colours = colours[np.ptp(colours, axis=1) > 12]
    entries = [level * 255 // 63 for level in range(64) for _ in range(3)]
    if len(colours):
        entries += Image.fromarray(colours[None]).quantize(192, method=Image.Quantize.MEDIANCUT).getpalette()[: 192 * 3]
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries)
    return palette


def _write(path: Path, content: bytes) -> None:
    """In one step: killed at any moment, the file is the old or the new one."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
