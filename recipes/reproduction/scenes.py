# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Drawn scenes with captions: image-text pairs that have nothing to do with ultrasound.

A teacher that learned from them stands to the teacher of phantoms as CLIP stands to BiomedCLIP: the same network and the
same objective, but another domain. One to four things of everyday life in bright colours, the largest of them the main
one, stand on a background. Captions name the main thing first, as those of phantoms always name the organ. They say
"beside", not "left of": training mirrors its images, of phantoms as of scenes, and a caption must stay true.

Everything is a pure function of (seed, index). A 128-px image takes about 1 ms on one core.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw


COLOURS = {
    "red": (205, 30, 35), "orange": (245, 135, 25), "yellow": (245, 220, 40), "green": (40, 150, 60),
    "blue": (40, 90, 215), "purple": (125, 50, 160), "pink": (245, 145, 190), "white": (248, 248, 248),
}  # fmt: skip
# Of backgrounds: none of them is a colour of things, and all differ from those.
GROUNDS = {
    "grey": (128, 128, 128), "beige": (214, 190, 150), "mint": (160, 215, 190), "navy": (22, 28, 70), "brown": (92, 60, 38)
}  # fmt: skip
# Of parts that look alike whatever colour a thing is painted in: these make a kind easy to know.
BLACK, WOOD, GRASS, SEA = (15, 15, 15), (110, 72, 40), (70, 125, 50), (45, 105, 165)
SKY, LIGHT = (190, 225, 245), (250, 240, 190)
PATTERNS = ("plain", "shaded", "striped", "checked", "dotted")
COUNTS = ("one", "two", "three", "four")
CAPTIONS = ("a picture of {main}", "{main}{others}", "{related}", "{count}: {all}")
OVERSAMPLED = 4  # drawn so many times larger, then averaged: smooth edges


@dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Attributes:
        kind: of `KINDS`. colour: of `COLOURS`. rgb: the shade it is drawn in, each in [0, 255].
        x, y: its middle, radius: half its side, in pixels of the image; the image's top left corner is (0, 0).
    """

    kind: str
    colour: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """One image-text pair.

    Attributes:
        image: (size, size, 3) uint8. caption: a sentence in lower case.
        things: one to four, the main one first. pattern, ground: of `PATTERNS` and `GROUNDS`.
    """

    image: np.ndarray
    caption: str
    things: tuple[Thing, ...]
    pattern: str
    ground: str


# ---------------------------------------------------------------- things, in a square from -1 to 1, y downwards


@dataclass(frozen=True)
class _Pen:
    """Draws in a thing's own coordinates: `x`, `y` its middle on the canvas, `radius` half its side there."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float

    def points(self, corners) -> list[tuple[float, float]]:
        return [(self.x + self.radius * x, self.y + self.radius * y) for x, y in corners]

    def polygon(self, corners, rgb):
        self.draw.polygon(self.points(corners), fill=rgb)

    def box(self, left, top, right, bottom, rgb):
        self.draw.rectangle(self.points([(left, top), (right, bottom)]), fill=rgb)

    def disc(self, x, y, radius, rgb):
        self.draw.ellipse(self.points([(x - radius, y - radius), (x + radius, y + radius)]), fill=rgb)

    def ring(self, radius, width, rgb):
        """Its outer radius; `width` inwards."""
        ends = self.points([(-radius, -radius), (radius, radius)])
        self.draw.ellipse(ends, outline=rgb, width=max(1, round(width * self.radius)))

    def line(self, ends, width, rgb):
        self.draw.line(self.points(ends), fill=rgb, width=max(1, round(width * self.radius)))


def _darker(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(value * 3 // 5 for value in rgb)


def _ball(pen: _Pen, rgb):
    pen.disc(0, 0, 1, rgb)
    for x, y in ((0, 0), (0, -0.75), (0.72, -0.22), (0.45, 0.62), (-0.45, 0.62), (-0.72, -0.22)):
        pen.disc(x, y, 0.2, BLACK)


def _wheel(pen: _Pen, rgb):
    pen.ring(1, 0.3, BLACK)
    pen.ring(0.75, 0.25, rgb)
    for angle in np.arange(4) * np.pi / 4:
        x, y = 0.7 * np.cos(angle), 0.7 * np.sin(angle)
        pen.line([(-x, -y), (x, y)], 0.12, rgb)


def _window(pen: _Pen, rgb):
    pen.box(-0.9, -0.9, 0.9, 0.9, rgb)
    for left in (-0.72, -0.2, 0.32):
        for top in (-0.72, -0.2, 0.32):
            pen.box(left, top, left + 0.4, top + 0.4, SKY)


def _tent(pen: _Pen, rgb):
    pen.polygon([(0, -0.9), (1, 0.85), (-1, 0.85)], rgb)
    pen.polygon([(0, -0.5), (0.4, 0.85), (-0.4, 0.85)], BLACK)


def _star(pen: _Pen, rgb):
    angle = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2, 0.42, 1.0)
    pen.polygon(np.stack([reach * np.sin(angle), -reach * np.cos(angle)], 1).tolist(), rgb)


def _ladder(pen: _Pen, rgb):
    for x in (-0.5, 0.5):
        pen.line([(x, -1), (x, 1)], 0.2, rgb)
    for y in np.linspace(-0.8, 0.8, 6):
        pen.line([(-0.5, y), (0.5, y)], 0.14, rgb)


def _fence(pen: _Pen, rgb):
    for y in (-0.15, 0.45):
        pen.line([(-1, y), (1, y)], 0.14, rgb)
    for x in np.linspace(-0.85, 0.85, 6):
        pen.polygon([(x - 0.1, 0.8), (x - 0.1, -0.5), (x, -0.75), (x + 0.1, -0.5), (x + 0.1, 0.8)], rgb)
    pen.box(-1, 0.7, 1, 0.95, GRASS)


def _flower(pen: _Pen, rgb):
    pen.line([(0, 0), (0, 1)], 0.14, GRASS)
    pen.polygon([(0, 0.95), (0.55, 0.45), (0.3, 0.9)], GRASS)
    for angle in np.arange(6) * np.pi / 3:
        pen.disc(0.45 * np.cos(angle), 0.45 * np.sin(angle) - 0.25, 0.3, rgb)
    pen.disc(0, -0.25, 0.26, WOOD)


def _house(pen: _Pen, rgb):
    pen.box(-0.8, -0.15, 0.8, 1, rgb)
    pen.polygon([(-1, -0.15), (0, -1), (1, -0.15)], _darker(rgb))
    for left, top in ((-0.6, 0.1), (0.25, 0.1), (-0.6, 0.55)):
        pen.box(left, top, left + 0.35, top + 0.3, LIGHT)
    pen.box(0.25, 0.55, 0.6, 1, WOOD)


def _tree(pen: _Pen, rgb):
    pen.box(-0.2, 0.2, 0.2, 1, WOOD)
    for x, y in ((0, -0.5), (-0.45, -0.05), (0.45, -0.05)):
        pen.disc(x, y, 0.5, rgb)
    for x, y in ((0, -0.7), (-0.25, -0.4), (0.25, -0.4), (-0.6, 0), (-0.2, 0), (0.2, 0), (0.6, 0)):
        pen.disc(x, y, 0.1, _darker(rgb))


def _car(pen: _Pen, rgb):
    pen.box(-1, -0.1, 1, 0.45, rgb)
    pen.polygon([(-0.65, -0.1), (-0.4, -0.6), (0.4, -0.6), (0.65, -0.1)], rgb)
    pen.polygon([(-0.45, -0.12), (-0.3, -0.45), (0.3, -0.45), (0.45, -0.12)], SKY)
    for x in (-0.55, 0.55):
        pen.disc(x, 0.45, 0.3, BLACK)
        pen.disc(x, 0.45, 0.12, LIGHT)


def _boat(pen: _Pen, rgb):
    pen.polygon([(-1, 0.3), (1, 0.3), (0.65, 0.8), (-0.65, 0.8)], rgb)
    pen.line([(0, -1), (0, 0.3)], 0.1, WOOD)
    pen.polygon([(0.12, -0.95), (0.85, 0.15), (0.12, 0.15)], LIGHT)
    pen.polygon([(-0.12, -0.6), (-0.6, 0.15), (-0.12, 0.15)], LIGHT)
    pen.box(-1, 0.75, 1, 0.95, SEA)


KINDS: dict[str, Callable] = {
    "ball": _ball, "wheel": _wheel, "window": _window, "tent": _tent, "star": _star, "ladder": _ladder,
    "fence": _fence, "flower": _flower, "house": _house, "tree": _tree, "car": _car, "boat": _boat,
}  # fmt: skip


# ---------------------------------------------------------------- scenes


def draw_scene(seed: int, index: int, image_size: int = 128) -> Scene:
    """Draw one scene: a pure function of its arguments.

    Raises:
        ValueError: `image_size` below 32.

    >>> scene = draw_scene(seed=0, index=1, image_size=64)
    >>> scene.image.shape, scene.things[0].kind in scene.caption
    ((64, 64, 3), True)
    """
    if image_size < 32:
        raise ValueError(f"image_size={image_size} is too small for a scene; the smallest is 32.")
    rng = np.random.default_rng([seed, index])
    pattern, ground = _one_of(PATTERNS, rng), _one_of(GROUNDS, rng)
    things = _place(1 + int(rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))), image_size, rng)
    canvas = _background(pattern, _shade(GROUNDS[ground], rng), image_size * OVERSAMPLED, rng)
    draw = ImageDraw.Draw(canvas)
    for thing in things:
        pen = _Pen(draw, *(OVERSAMPLED * value for value in (thing.x, thing.y, thing.radius)))
        KINDS[thing.kind](pen, thing.rgb)
    image = np.asarray(canvas.reduce(OVERSAMPLED))
    return Scene(image, _caption(things, f"{pattern} {ground}", rng), things, pattern, ground)


def _one_of(names, rng: np.random.Generator) -> str:
    return list(names)[rng.integers(len(names))]


def _shade(rgb: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    """No two reds are the same."""
    return tuple(np.clip(np.array(rgb) + rng.integers(-15, 16, 3), 0, 255).tolist())


def _place(wanted: int, size: int, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Up to `wanted` things that don't overlap: the main one near the middle, small ones round it."""
    things = []
    for number in range(wanted):
        radius = size * (rng.uniform(0.27, 0.38) if number == 0 else rng.uniform(0.08, 0.12))
        reach = 0.1 * size if number == 0 else size / 2 - radius - 1
        for _ in range(40):  # where the picture is full, fewer
            x, y = (size / 2 + rng.uniform(-reach, reach, 2)).tolist()
            if all(max(abs(x - o.x), abs(y - o.y)) > radius + o.radius + 2 for o in things):
                colour = _one_of(COLOURS, rng)
                things.append(Thing(_one_of(KINDS, rng), colour, _shade(COLOURS[colour], rng), x, y, radius))
                break
    return tuple(things)


def _background(pattern: str, rgb: tuple[int, int, int], side: int, rng: np.random.Generator) -> Image.Image:
    """(side, side) RGB; of a pattern the second colour is a lighter one of the same hue."""
    canvas = Image.new("RGB", (side, side), rgb)
    lighter = tuple(value + (255 - value) // 4 for value in rgb)
    draw, step = ImageDraw.Draw(canvas), round(side * rng.uniform(0.08, 0.16))
    starts = range(0, side, step)
    if pattern == "shaded":
        ramp = Image.linear_gradient("L").resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(lighter, mask=ramp if rng.random() < 0.5 else ramp.transpose(Image.Transpose.ROTATE_90))
    elif pattern == "striped":
        upright = rng.random() < 0.5
        for a in starts[::2]:
            draw.rectangle((a, 0, a + step - 1, side) if upright else (0, a, side, a + step - 1), fill=lighter)
    elif pattern == "checked":
        for row, top in enumerate(starts):
            for left in starts[row % 2 :: 2]:
                draw.rectangle((left, top, left + step - 1, top + step - 1), fill=lighter)
    elif pattern == "dotted":
        for top in starts:
            for left in starts:
                draw.ellipse(
                    (left + step // 4, top + step // 4, left + 3 * step // 4, top + 3 * step // 4), fill=lighter
                )
    return canvas


def _caption(things: tuple[Thing, ...], ground: str, rng: np.random.Generator) -> str:
    """The main thing is always named; other things, colours, sizes and the background now and then.

    If they always were, they alone would tell the images of a batch apart, and a CLIP would learn no shapes.
    """
    main, *others = (_phrase(thing, number == 0, rng) for number, thing in enumerate(things))
    words = {"main": main, "all": ", ".join([main, *others])}
    words["others"] = f" with {' and '.join(others)}" if others else ""
    words["related"] = f"{main} {_relation(things[0], things[1])} {others[0]}" if others else main
    words["count"] = f"{COUNTS[len(others)]} thing" + ("s" if others else "")
    behind = f", on a {ground} background" if rng.random() < 0.2 else ""
    return _one_of(CAPTIONS, rng).format(**words) + behind + "."


def _phrase(thing: Thing, main: bool, rng: np.random.Generator) -> str:
    words = f"{thing.colour} {thing.kind}" if rng.random() < 0.3 else thing.kind
    if rng.random() < 0.2:
        words = ("large " if main else "small ") + words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _relation(one: Thing, other: Thing) -> str:
    if abs(one.x - other.x) > abs(one.y - other.y):
        return "beside"
    return "above" if one.y < other.y else "below"
