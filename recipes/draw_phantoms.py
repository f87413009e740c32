# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Draw a contact sheet of the phantoms: the 15 organs across, without a lesion, with a benign-like and a malignant-like one.

python recipes/draw_phantoms.py --output phantoms.png                     # the README's picture
python recipes/draw_phantoms.py --output noisy.png --snr_db 0
"""

import argparse
import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modeling_urfm.data.phantoms import LESIONS, ORGANS, phantom_frame


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("phantoms.png"), help="PNG to write.")
    parser.add_argument("--image_size", type=int, default=160, help="Side of an image in pixels.")
    parser.add_argument("--snr_db", type=float, default=25.0, help="Signal-to-noise ratio in dB.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the patients.")
    args = parser.parse_args()

    columns = 5
    figure = Figure(figsize=(columns * 2.1, 9 * 2.1), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(9, columns)
    for number, organ in enumerate(ORGANS):
        for row, lesion in enumerate(LESIONS):
            frame = phantom_frame(
                args.seed, number + 15 * row, organ=organ, lesion=lesion, image_size=args.image_size, snr_db=args.snr_db
            )
            axis = axes[number // columns * 3 + row, number % columns]
            axis.imshow(frame.image, cmap="gray", vmin=0, vmax=255)
            if frame.mask.any():
                axis.contour(frame.mask, levels=[0.5], colors="#e0a030", linewidths=0.6)
            axis.set_title(f"{organ}, lesion {lesion}", fontsize=7, color="white")
            axis.axis("off")
    temporary = args.output.with_name(f".tmp-{args.output.name}")
    figure.savefig(temporary, dpi=90, format="png")
    os.replace(temporary, args.output)
    print(f"{args.output}: {len(ORGANS)} organs at {args.snr_db:g} dB")


if __name__ == "__main__":
    main()
