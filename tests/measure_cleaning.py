# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How well frames are cleaned, on phantoms of a seed that nothing was tuned on: scan region, text, false alarms.

    python tests/measure_cleaning.py --seed 60001 --cases 60

The figures in README come from this command. tesseract must be installed for the readings.
"""

import argparse
import sys
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modeling_urfm.data.overlays import find_overlays, inpaint  # noqa: E402
from modeling_urfm.data.phantoms import phantom_frame  # noqa: E402
from modeling_urfm.data.scan_region import find_layout  # noqa: E402
from tests.data.screens import compress, draw_scene, has_tesseract, parts, read_text  # noqa: E402
from tests.data.test_scan_region import DRAWN, fill, frames_of, header_of, iou, on_screen  # noqa: E402


def row(name: str, values) -> None:
    values = np.array(values, float)
    print(
        f"{name:48} mean {values.mean():.3f}  5 % below {np.percentile(values, 5):.3f}  worst {values.min():.3f}  n {len(values)}"
    )


def overlap(frames: list[np.ndarray], mask: np.ndarray, is_loop: bool = False) -> float:
    view = find_layout(frames, None, is_loop).view
    return iou(view.mask, mask) if view else 0.0


def regions(seed: int, cases: int) -> None:
    rng = np.random.default_rng(seed)
    kinds: dict[str, list] = {}
    for case in range(cases):
        size, snr = int(rng.choice([128, 192, 256, 384, 512])), float(rng.uniform(5, 40))
        for name, plain in (("alone on a black screen", True), ("among text, bars and rulers", False)):
            frames, mask = on_screen(seed, case, 1, size, snr=snr, plain=plain)
            kinds.setdefault(f"still, {name}", []).append(overlap(frames, mask))
        kinds.setdefault("still, among them, JPEG 80", []).append(overlap([compress(frames[0], 80)], mask))
        if case % 3 == 0:
            frames, mask = on_screen(seed, case, 8, size, snr=snr)
            kinds.setdefault("loop of 8 frames, among them", []).append(overlap(frames, mask, True))
    for name, values in kinds.items():
        row("IoU, " + name, values)
    for name, drawn in DRAWN.items():
        frames = frames_of(name)
        view = find_layout(frames, header_of(name), len(frames) > 1).view
        print(
            f"IoU with the outline drawn by hand, {name:24} {iou(view.mask, fill(drawn['polygon'], view.mask.shape)):.3f}"
        )


def text(seed: int, cases: int) -> None:
    rng = np.random.default_rng([seed, 1])
    recall: dict[str, list] = {}
    before = after = 0
    for _ in range(2 * cases):
        scene = draw_scene(rng)
        if not scene.drawn.any():
            continue
        marks = find_overlays(scene.image, scene.mask).marks & scene.mask
        recall.setdefault(scene.kind["colour"], []).append((marks & scene.drawn).sum() / scene.drawn.sum())
        if has_tesseract():
            cleaned = np.where(scene.mask[..., None], inpaint(scene.image, marks, scene.mask), np.uint8(0))
            readings = [read_text(image, 2) for image in (scene.image, cleaned)]
            before += sum(part in readings[0] for part in parts(scene.tokens))
            after += sum(part in readings[1] for part in parts(scene.tokens))
    for name, values in sorted(recall.items()):
        row(f"letters' pixels found, {name}", values)
    row("letters' pixels found, all", sum(recall.values(), []))
    print(f"names, dates and numbers that tesseract reads: {before} before, {after} after")


def false_alarms(seed: int, cases: int) -> None:
    shares = []
    for case in range(2 * cases):
        size, snr = (128, 192, 256, 384, 512)[case % 5], 5 + 35 * case / (2 * cases)
        frame = phantom_frame(seed, case, image_size=size, snr_db=snr)
        marks = find_overlays(frame.image[..., None].repeat(3, -1), frame.scan_mask).marks
        shares.append((marks & frame.scan_mask).sum() / frame.scan_mask.sum())
    shares = np.array(shares)
    print(f"clean phantoms, share painted over: mean {shares.mean():.2%}, worst {shares.max():.1%}, "
          f"above 2 %: {(shares > 0.02).mean():.1%}, n {len(shares)}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=60001)
    parser.add_argument("--cases", type=int, default=60)
    arguments = parser.parse_args()
    regions(arguments.seed, arguments.cases)
    text(arguments.seed, arguments.cases)
    false_alarms(arguments.seed, arguments.cases)
