# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What scanners draw over the picture, drawn over phantoms for tests: text, calipers, rulers, cursors, colour.

Every function takes an RGB image, returns a new one, and says which pixels it drew, so that recall can be counted.
`draw_scene` makes whole pictures with known identities in them; `read_text` is what tesseract reads in a picture.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modeling_urfm.data.phantoms import phantom_frame


COLOURS = {
    "white": (255, 255, 255), "grey": (190, 190, 190), "yellow": (255, 255, 0), "green": (0, 255, 0),
    "cyan": (0, 255, 255), "orange": (255, 165, 0), "black": (0, 0, 0),
}  # fmt: skip
FONTS = (
    "bitmap", "hershey", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "LiberationSans-Regular.ttf",
    "LiberationSans-Bold.ttf", "LiberationSerif-Regular.ttf", "LiberationMono-Regular.ttf",
)  # fmt: skip
BACKINGS = ("none", "outline", "shadow", "black box", "white box")
_SURNAMES = (
    "MARTINEZ", "SCHNEIDER", "KOWALSKI", "OKAFOR", "TANAKA", "JOHANSSON", "PEREIRA", "NGUYEN", "HAMILTON", "Lindqvist",
    "Abernathy", "Fitzgerald",
)  # fmt: skip
_GIVEN = ("MARIA", "THOMAS", "AGNES", "CHIDI", "HIROSHI", "ELSA", "Jonathan", "Beatrice", "Gregory")


@dataclass
class Scene:
    """A picture with identities drawn in. `drawn`: the pixels of the letters (not of their boxes), (h, w) bool."""

    image: np.ndarray
    mask: np.ndarray
    drawn: np.ndarray
    tokens: list[str]
    kind: dict = field(default_factory=dict)


@lru_cache(maxsize=64)
def _font(name: str, size: int):
    if name == "bitmap":
        return ImageFont.load_default_imagefont()
    try:
        return ImageFont.truetype(name, size)
    except OSError:  # the font is not installed: Pillow brings one
        return ImageFont.load_default(size)


def text_alpha(text: str, font: str, size: int, thick: bool = False, grow: int = 0) -> np.ndarray:
    """The coverage of each pixel by the letters, (h, w) float32 in [0, 1], with a margin of `grow` + 2 pixels.

    Args:
        size: the nominal height in pixels; "bitmap" has one size only (11), which is repeated to whole multiples.
        grow: the letters' strokes are this much wider on each side (for outlines).
    """
    margin = grow + 2
    if font == "hershey":
        scale, weight = size / 30, 2 if thick else 1
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
        alpha = np.zeros((height + base + 2 * margin, width + 2 * margin), np.uint8)
        origin = (margin, margin + height)
        cv2.putText(
            alpha, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, weight + 2 * grow, cv2.LINE_AA if size % 2 else 8
        )
        return alpha.astype(np.float32) / 255
    face = _font(font, size)
    left, top, right, bottom = face.getbbox(text)
    canvas = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin))
    width = 0 if font == "bitmap" else grow
    ImageDraw.Draw(canvas).text((margin - left, margin - top), text, 255, font=face, stroke_width=width)
    alpha = np.asarray(canvas)
    if font == "bitmap":
        if grow:
            alpha = cv2.dilate(alpha, np.ones((2 * grow + 1,) * 2, np.uint8))
        times = max(1, size // 11)
        alpha = alpha.repeat(times, 0).repeat(times, 1)
    return alpha.astype(np.float32) / 255


def blend(image: np.ndarray, alpha: np.ndarray, top: int, left: int, colour) -> np.ndarray:
    """Colour over the image where `alpha` says so; what falls off the image is cut."""
    height, width = image.shape[:2]
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + alpha.shape[0], height), min(left + alpha.shape[1], width)
    result = image.copy()
    if y1 > y0 and x1 > x0:
        part = alpha[y0 - top : y1 - top, x0 - left : x1 - left, None]
        below = result[y0:y1, x0:x1].astype(np.float32)
        result[y0:y1, x0:x1] = (below * (1 - part) + np.float32(colour) * part + 0.5).astype(np.uint8)
    return result


def draw_text(
    image: np.ndarray, text: str, top: int, left: int, *, font: str = "DejaVuSans.ttf", size: int = 16,
    colour=(255, 255, 255), opacity: float = 1.0, backing: str = "none", vertical: bool = False, thick: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Text over a picture. Returns the picture, and the letters' pixels (covered at least by half), (h, w) bool."""
    alpha = text_alpha(text, font, size, thick)
    turn = (lambda a: np.ascontiguousarray(np.rot90(a))) if vertical else (lambda a: a)
    if backing in ("black box", "white box"):
        box = np.ones(alpha.shape, np.float32)
        image = blend(image, turn(box), top, left, (0, 0, 0) if backing == "black box" else (255, 255, 255))
    elif backing == "outline":
        grown = text_alpha(text, font, size, thick, grow=1)
        image = blend(image, turn(grown) * opacity, top - 1, left - 1, (0, 0, 0))
    elif backing == "shadow":
        image = blend(image, turn(alpha) * opacity, top + 1, left + 1, (0, 0, 0))
    image = blend(image, turn(alpha) * opacity, top, left, colour)
    letters = blend(np.zeros_like(image), turn(alpha), top, left, (255, 255, 255))[..., 0] > 127
    return image, letters


def identities(rng: np.random.Generator) -> list[str]:
    """A name, a date and a number, as scanners write them."""
    day, month, year = rng.integers(10, 29), rng.integers(10, 13), rng.integers(1930, 2024)
    dates = (f"{day}/{month}/{year}", f"{year}-{month}-{day}", f"{day}.{month}.{year}")
    surname, given = _SURNAMES[rng.integers(len(_SURNAMES))], _GIVEN[rng.integers(len(_GIVEN))]
    names = (f"{surname}, {given}", f"{given} {surname}", f"{surname}^{given}")
    return [names[rng.integers(3)], dates[rng.integers(3)], f"ID {rng.integers(10**6, 10**7)}"]


def backdrop(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A phantom as RGB, dark, medium or bright, and its scan mask."""
    seed, patient, snr_db = int(rng.integers(10**6)), int(rng.integers(10**6)), float(rng.uniform(5, 40))
    frame = phantom_frame(seed, patient, image_size=size, snr_db=snr_db)
    gain = rng.choice([0.5, 1.0, 1.0, 1.5])
    grey = np.clip(frame.image.astype(np.float32) * gain, 0, 255).astype(np.uint8)
    return grey[..., None].repeat(3, -1), frame.scan_mask


def draw_scene(rng: np.random.Generator, size: int | None = None, **fixed) -> Scene:
    """A phantom with three lines of identities at random places, the kind drawn at random but for what is `fixed`.

    The kind: font, size, colour, opacity, backing, vertical, thick, border (over the edge of the fan), quality (of the
    JPEG compression that follows; 0 is none), chroma (its subsampling: 4:4:4 or 4:2:0).
    """
    size = size or int(rng.choice([256, 384, 512, 640]))
    image, mask = backdrop(rng, size)
    backing = str(rng.choice(BACKINGS, p=[0.4, 0.2, 0.15, 0.15, 0.1]))
    kind = {
        "font": str(rng.choice(FONTS)), "size": int(rng.choice([8, 9, 10, 11, 12, 14, 16, 20, 24, 32, 40])),
        "colour": str(rng.choice([name for name in COLOURS if name != "black"])),
        "opacity": float(rng.choice([1.0, 1.0, 1.0, 0.7])), "backing": backing, "vertical": bool(rng.random() < 0.12),
        "thick": bool(rng.random() < 0.3), "border": bool(rng.random() < 0.2),
        "quality": int(rng.choice([0, 0, 75, 85, 95])), "chroma": int(rng.choice([444, 420])),
    }  # fmt: skip
    kind |= fixed
    if kind["backing"] == "white box":
        kind["colour"] = "black"
    style = {key: kind[key] for key in ("font", "size", "opacity", "backing", "vertical", "thick")}
    drawn = np.zeros(mask.shape, bool)
    free = np.ones(mask.shape, bool)
    tokens = []
    inside = cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    for text in identities(rng):
        height, width = text_alpha(text, style["font"], style["size"], style["thick"]).shape
        height, width = (width, height) if style["vertical"] else (height, width)
        if height >= size or width >= size:
            continue
        # Places where the whole line lies inside (or, over the border, between a half and nine tenths of it).
        share = cv2.boxFilter(
            inside.astype(np.float32), -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT
        )
        taken = cv2.boxFilter(
            (~free).astype(np.float32), -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT
        )
        places = (share > 0.5) & (share < 0.95) if kind["border"] else share > 0.999
        places = np.argwhere(places[: size - height, : size - width] & (taken < 1e-6)[: size - height, : size - width])
        if not len(places):
            continue
        top, left = places[rng.integers(len(places))].tolist()
        image, letters = draw_text(image, text, top, left, colour=COLOURS[kind["colour"]], **style)
        free[max(0, top - 4) : top + height + 4, max(0, left - 4) : left + width + 4] = False
        drawn |= letters
        tokens.append(text)
    if kind["quality"]:
        image = compress(image, kind["quality"], kind["chroma"])
    return Scene(image, mask, drawn & mask, tokens, kind)


def compress(image: np.ndarray, quality: int, chroma: int = 420) -> np.ndarray:
    """There and back through JPEG."""
    sampling = {420: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, 444: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}[chroma]
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return np.ascontiguousarray(cv2.imdecode(cv2.imencode(".jpg", image[..., ::-1], options)[1], 1)[..., ::-1])


# ---------------------------------------------------------------- marks


def _strokes(image: np.ndarray, draw, colour) -> tuple[np.ndarray, np.ndarray]:
    canvas = np.zeros(image.shape[:2], np.uint8)
    draw(canvas)
    result = image.copy()
    result[canvas > 0] = colour
    return result, canvas > 0


def draw_calipers(
    image: np.ndarray, points, *, colour=(255, 255, 255), arm: int = 5, shape: str = "+", dotted: bool = True
):
    """Two measuring crosses and the dotted line between them. points: two (x, y)."""

    def draw(canvas):
        (x0, y0), (x1, y1) = points
        for x, y in points:
            ends = ((arm, 0), (0, arm)) if shape == "+" else ((arm, arm), (arm, -arm))
            for dx, dy in ends:
                cv2.line(canvas, (x - dx, y - dy), (x + dx, y + dy), 255, 1)
        if dotted:
            steps = max(2, int(np.hypot(x1 - x0, y1 - y0) / 5))
            for t in np.linspace(0, 1, steps):
                canvas[int(round(y0 + t * (y1 - y0))), int(round(x0 + t * (x1 - x0)))] = 255

    return _strokes(image, draw, colour)


def draw_ellipse(image: np.ndarray, centre, axes, *, colour=(255, 255, 255), spacing: int = 5):
    """A dotted ellipse, as for a circumference."""

    def draw(canvas):
        steps = max(12, int(np.pi * (axes[0] + axes[1]) / spacing))
        for t in np.linspace(0, 2 * np.pi, steps, endpoint=False):
            x, y = int(round(centre[0] + axes[0] * np.cos(t))), int(round(centre[1] + axes[1] * np.sin(t)))
            if 0 <= y < canvas.shape[0] and 0 <= x < canvas.shape[1]:
                canvas[y : y + 2, x : x + 2] = 255

    return _strokes(image, draw, colour)


def draw_ruler(image: np.ndarray, x: int, *, colour=(255, 255, 255), spacing: int = 20, length: int = 5):
    """Depth ticks down a column."""

    def draw(canvas):
        for i, y in enumerate(range(spacing // 2, canvas.shape[0], spacing)):
            canvas[y, x : x + (2 * length if i % 5 == 0 else length)] = 255

    return _strokes(image, draw, colour)


def draw_arrow(image: np.ndarray, tip, *, colour=(255, 255, 255), size: int = 10):
    """A filled cursor arrow; a focus mark is alike."""

    def draw(canvas):
        x, y = tip
        cv2.fillPoly(canvas, [np.int32([(x, y), (x + size, y + size // 2), (x + size // 2, y + size)])], 255)

    return _strokes(image, draw, colour)


def draw_line(image: np.ndarray, start, end, *, colour=(0, 255, 0), dash: int = 0):
    """A guide or gate line, dashed on request."""

    def draw(canvas):
        if not dash:
            return cv2.line(canvas, start, end, 255, 1)
        steps = int(np.hypot(end[0] - start[0], end[1] - start[1]))
        for i in range(steps):
            if i // dash % 2 == 0:
                t = i / steps
                canvas[int(start[1] + t * (end[1] - start[1])), int(start[0] + t * (end[0] - start[0]))] = 255

    return _strokes(image, draw, colour)


def draw_doppler(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, flow: str = "colour", outline: bool = True
):
    """A colour window over the middle of the region. Returns the picture, its coloured pixels, and the outline's.

    flow: "colour" (red and blue), "power" (black-red-orange-yellow), "elastography" (blue-green-red over the window).
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cy, cx = (rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2
    h, w = (rows[-1] - rows[0]) // 5, (columns[-1] - columns[0]) // 6
    shape = image.shape[:2]
    window = np.zeros(shape, np.uint8)
    slant = int(rng.integers(0, w // 2 + 1))
    corners = np.int32(
        [(cx - w + slant, cy - h), (cx + w + slant, cy - h), (cx + w - slant, cy + h), (cx - w - slant, cy + h)]
    )
    cv2.fillPoly(window, [corners], 1)
    sigma = max(2.0, h / 5)
    field = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), sigma)
    field /= field.std()
    grain = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), 1.0) * 0.6
    value = field + grain
    if flow == "elastography":
        level = np.clip((field + 1.5) / 3 * 255, 0, 255).astype(np.uint8)
        colour = cv2.applyColorMap(level, cv2.COLORMAP_JET)[..., ::-1].astype(np.float32)
        where = window > 0
        painted = 0.45 * image.astype(np.float32) + 0.55 * colour
    else:
        where = (window > 0) & (np.abs(field) > 0.7 if flow == "colour" else field > 0.7)
        strength = np.clip((np.abs(value) - 0.3) / 1.5, 0.15, 1)
        if flow == "colour":
            red = np.stack([120 + 135 * strength, 255 * strength**2 * 0.8, 0 * strength], -1)
            blue = np.stack([0 * strength, 220 * strength**2 * 0.8, 120 + 135 * strength], -1)
            painted = np.where((value > 0)[..., None], red, blue)
        else:
            painted = np.stack([90 + 165 * strength, 255 * strength**1.5 * 0.9, 60 * strength**3], -1)
    where &= mask
    result = image.copy()
    result[where] = painted[where].clip(0, 255).astype(np.uint8)
    border = np.zeros(shape, np.uint8)
    if outline:
        cv2.polylines(border, [corners], True, 1, 1)
        result[border > 0] = (255, 255, 255) if flow == "power" else (0, 255, 0)
    return result, where & (border == 0), (border > 0) & mask


# ---------------------------------------------------------------- reading


def has_tesseract() -> bool:
    return shutil.which("tesseract") is not None


def read_text(image: np.ndarray, zoom: float = 1.0, mode: int = 11) -> str:
    """What tesseract reads in a picture: letters and digits in one string of capitals. mode: its page segmentation."""
    if zoom != 1:
        image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    command = ["tesseract", "stdin", "stdout", "--psm", str(mode), "-l", "eng", "--dpi", "96"]
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(command, input=data, capture_output=True, env=environment, timeout=120)
    return plain(done.stdout.decode("utf-8", "replace"))


def plain(text: str) -> str:
    """Letters and digits alone, as capitals: what two readings of one text have in common."""
    return "".join(c for c in text.upper() if c.isalnum())


def parts(tokens: list[str]) -> list[str]:
    """The pieces of identities that must not be read: names, whole dates, numbers."""
    pieces = []
    for token in tokens:
        words = token.replace(",", " ").replace("^", " ").split()
        pieces += [plain(word) for word in words if len(plain(word)) >= 4]
    return pieces
