# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What `train_demo_teacher.py --pairs scenes` learns from, what it is tested on, and what it says of the result."""

import numpy as np
from tqdm.auto import tqdm

from .scenes import COLOURS, KINDS, draw_scene


NUM_HELD_OUT = 600


def scene_pairs(seed: int, num_scenes: int) -> tuple[list[np.ndarray], list[str]]:
    """Images, each (128, 128, 3) uint8, and as many captions."""
    scenes = [draw_scene(seed, index) for index in tqdm(range(num_scenes), desc="scenes", unit="image")]
    return [scene.image for scene in scenes], [scene.caption for scene in scenes]


def held_out_scenes(seed: int) -> tuple[list[np.ndarray], dict[str, np.ndarray], dict[str, list[str]]]:
    """Images of another seed; the classes of their main things by task, (images,) each; the text of each class."""
    scenes = [draw_scene(seed, index) for index in range(NUM_HELD_OUT)]
    kinds, colours = list(KINDS), list(COLOURS)
    labels = {
        "kind": np.array([kinds.index(scene.things[0].kind) for scene in scenes]),
        "colour": np.array([colours.index(scene.things[0].colour) for scene in scenes]),
    }
    texts = {
        "kind": [f"a picture of a large {kind}" for kind in kinds],
        "colour": [f"a picture of a large {colour} thing" for colour in colours],
    }
    return [scene.image for scene in scenes], labels, texts


def describe_scene_teacher(results: dict, table: str, train_seed: int, test_seed: int) -> str:
    """The README of the teacher's folder, from its `results.json`."""
    images = results["metrics"]["images"]
    return f"""# A teacher of another domain

The CLIP of `modeling_urfm/assets/demo_teacher`, trained in the same way by `{results["command"]}`,
but on {images} drawn scenes in colour (`recipes/reproduction/scenes.py`, seed {train_seed}) and their captions. It has seen no
ultrasound: it stands to the demo's teacher as CLIP stands to BiomedCLIP, for the comparison in `recipes/reproduce.py`. Not
for any use on patients. Apache-2.0.

Accuracy on {NUM_HELD_OUT} other scenes, where the main thing is the largest of one to four, and on 300 phantoms (seed {test_seed}),
for which it has no words. kNN and linear probe of the mean patch feature: half of the images for training, the untrained
network's in brackets.

{table}
"""
