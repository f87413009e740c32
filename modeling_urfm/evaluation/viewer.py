# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""One HTML file in which a patch is clicked and every image shows where the model sees the like; nothing from a network.

The tokens are in the page, as directions of 8 bits a feature: the cosines that it shows are right to 0.01.
"""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from ..data.markup import BASE_STYLE
from ..data.shards import write_atomically
from .visuals import Sight


LONGEST_SIDE = 640

STYLE = """
.bar { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: 0.4rem 2rem; align-items: center;
  padding: 0.7rem 0; background: var(--paper); border-bottom: 1px solid var(--line); }
.bar label { display: flex; gap: 0.6rem; align-items: center; }
.scale { display: flex; gap: 0.5rem; align-items: center; }
.scale canvas { width: 160px; height: 12px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 1.2rem;
  align-items: start; margin-top: 1.2rem; }
figure { margin: 0; }
figcaption { font-size: 0.86rem; color: var(--quiet); overflow-wrap: anywhere; }
.view { position: relative; overflow: hidden; cursor: crosshair; background: #000; }
.view:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.view img { display: block; width: 100%; }
.seen { position: absolute; overflow: hidden; }
.seen canvas { position: absolute; image-rendering: pixelated; }
.frame { position: absolute; display: none; border: 2px solid #fff; outline: 2px solid #000; }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const palette = bytes(data.palette), width = data.width;

for (const image of data.images) {
  image.tokens = new Int8Array(bytes(image.tokens).buffer);
  image.count = image.grid[0] * image.grid[1];
  image.lit = bytes(image.lit);
  image.norms = Float64Array.from({length: image.count}, (_, patch) => {
    let sum = 0;
    for (let i = patch * width; i < (patch + 1) * width; i++) sum += image.tokens[i] ** 2;
    return Math.sqrt(sum) || 1;
  });
}

function similarities(query, patch, image) {
  const result = new Float64Array(image.count);
  for (let other = 0; other < image.count; other++) {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += query.tokens[patch * width + i] * image.tokens[other * width + i];
    result[other] = sum / (query.norms[patch] * image.norms[other]);
  }
  return result;
}

let chosen = {image: 0, patch: data.start};
const views = [...document.querySelectorAll(".view")], opacity = document.getElementById("opacity");

function show() {
  const query = data.images[chosen.image];
  const maps = data.images.map(image => similarities(query, chosen.patch, image));
  const lit = maps.flatMap((map, i) => [...map].filter((_, patch) => data.images[i].lit[patch])).sort((a, b) => a - b);
  const low = lit.length ? lit[Math.floor(0.02 * (lit.length - 1))] : -1;
  views.forEach((view, number) => {
    const image = data.images[number], canvas = view.querySelector("canvas"), frame = view.querySelector(".frame");
    const context = canvas.getContext("2d"), picture = context.createImageData(image.grid[1], image.grid[0]);
    maps[number].forEach((value, patch) => {
      const share = Math.min(Math.max((value - low) / Math.max(1 - low, 1e-9), 0), 1), colour = 3 * Math.round(255 * share);
      picture.data.set([palette[colour], palette[colour + 1], palette[colour + 2], 255], 4 * patch);
    });
    context.putImageData(picture, 0, 0);
    canvas.style.opacity = opacity.value;
    image.map = maps[number];
    frame.style.display = number === chosen.image ? "block" : "none";
    if (number === chosen.image) {
      const [h, w] = image.grid, [top, left, height, across] = image.padded;
      const row = Math.floor(chosen.patch / w), column = chosen.patch % w;
      frame.style.left = `${left + across * column / w}%`; frame.style.width = `${across / w}%`;
      frame.style.top = `${top + height * row / h}%`; frame.style.height = `${height / h}%`;
    }
  });
  document.getElementById("low").textContent = low.toFixed(2);
}

function patchUnder(event, view, image) {
  const box = view.querySelector(".seen").getBoundingClientRect(), [top, left, height, across] = image.padded;
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  if (x < 0 || x >= 1 || y < 0 || y >= 1) return null;
  const column = Math.floor((100 * x - left) / across * image.grid[1]);
  const row = Math.floor((100 * y - top) / height * image.grid[0]);
  return row * image.grid[1] + column;
}

views.forEach((view, number) => {
  const image = data.images[number], readout = view.parentElement.querySelector(".value");
  view.addEventListener("click", event => {
    const patch = patchUnder(event, view, image);
    if (patch !== null) { chosen = {image: number, patch}; show(); }
  });
  view.addEventListener("mousemove", event => {
    const patch = patchUnder(event, view, image);
    readout.textContent = patch === null ? "" : image.map[patch].toFixed(2);
  });
  view.addEventListener("mouseleave", () => { readout.textContent = ""; });
  view.addEventListener("keydown", event => {
    const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!move) return;
    event.preventDefault();
    const [h, w] = image.grid;
    const patch = chosen.image === number ? chosen.patch : Math.floor(h / 2) * w + Math.floor(w / 2);
    const row = Math.min(Math.max(Math.floor(patch / w) + move[0], 0), h - 1);
    const column = Math.min(Math.max(patch % w + move[1], 0), w - 1);
    chosen = {image: number, patch: row * w + column};
    show();
  });
});
opacity.addEventListener("input", () => views.forEach(view => { view.querySelector("canvas").style.opacity = opacity.value; }));

const ramp = document.getElementById("ramp").getContext("2d"), strip = ramp.createImageData(256, 1);
for (let i = 0; i < 256; i++) strip.data.set([palette[3 * i], palette[3 * i + 1], palette[3 * i + 2], 255], 4 * i);
ramp.putImageData(strip, 0, 0);
show();
"""


def write_viewer(path: Path, sights: Sequence[Sight], patch: int = 0) -> None:
    """Write the page.

    Args:
        sights: the images, of one encoder. patch: of the first image, the one that is marked when the page opens.
    """
    palette = (matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    data = {
        "width": sights[0].tokens.shape[1], "start": patch, "palette": _text(palette.tobytes()),
        "images": [{
            "grid": list(sight.grid), "padded": _padded(sight), "tokens": _text(directions(sight).tobytes()),
            "lit": _text(sight.lit.numpy().astype(np.uint8).tobytes()),
        } for sight in sights],
    }  # fmt: skip
    figures = "".join(_figure(sight) for sight in sights)
    # The browser itself refuses any other script, and everything that is not in the file.
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>Where the model sees the like</title>
<style>{BASE_STYLE}{STYLE}</style>
</head>
<body>
<h1>Where the model sees the like</h1>
<p>Click on a patch, or move the frame with the arrow keys: every image is coloured by the cosine similarity of its patch
tokens to that one. The page holds the images themselves: share it as you would share them. Not for clinical use.</p>
<div class="bar">
<span class="scale"><span id="low"></span><canvas id="ramp" width="256" height="1"></canvas><span>1.00</span></span>
<label>colour <input id="opacity" type="range" min="0" max="1" step="0.05" value="0.6"></label>
</div>
<div class="sheet">{figures}</div>
<script type="application/json" id="data">{json.dumps(data)}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
    write_atomically(path, page.encode("utf-8", "backslashreplace").decode("utf-8"))


def directions(sight: Sight) -> np.ndarray:
    """(L, hidden) int8: each token scaled so that its largest feature is 127; its direction is what a cosine needs."""
    tokens = sight.tokens.numpy()
    largest = np.abs(tokens).max(axis=1, keepdims=True)
    return np.round(tokens * (127 / np.maximum(largest, 1e-12))).astype(np.int8)


def _padded(sight: Sight) -> list[float]:
    """Top, left, height and width of what the model saw with its padding, in percent of the part without it."""
    region = sight.region
    return [
        -100 * region.pad_top / region.height,
        -100 * region.pad_left / region.width,
        100 * (region.height + region.pad_top + region.pad_bottom) / region.height,
        100 * (region.width + region.pad_left + region.pad_right) / region.width,
    ]


def _figure(sight: Sight) -> str:
    region, (h, w) = sight.region, sight.grid
    image = Image.fromarray(sight.image)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    box = (
        f"top:{100 * region.top / region.image_height:.4f}%;left:{100 * region.left / region.image_width:.4f}%;"
        f"height:{100 * region.height / region.image_height:.4f}%;width:{100 * region.width / region.image_width:.4f}%"
    )
    top, left, height, width = _padded(sight)
    canvas = f"top:{top:.4f}%;left:{left:.4f}%;height:{height:.4f}%;width:{width:.4f}%"
    name = escape(sight.name)
    return (
        f'<figure><div class="view" tabindex="0" role="application" aria-label="{name}: arrow keys choose a patch">'
        f'<img alt="{name}" src="data:image/jpeg;base64,{_text(content.getvalue())}">'
        f'<div class="seen" style="{box}"><canvas width="{w}" height="{h}" style="{canvas}"></canvas>'
        f'<div class="frame"></div></div></div><figcaption>{name} <strong class="value"></strong></figcaption></figure>'
    )


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
