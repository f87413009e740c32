# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Drawn scenes: pure functions of their seed, captions that are true of the image, few words."""

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from recipes.reproduction.scene_teacher import held_out_scenes, scene_pairs
from recipes.reproduction.scenes import COLOURS, GROUNDS, KINDS, PATTERNS, _Pen, draw_scene


SCENES = [draw_scene(0, index) for index in range(300)]


def words_of(captions) -> set[str]:
    return {word for caption in captions for word in re.findall(r"[a-z]+", caption.lower())}


def test_a_scene_is_a_function_of_its_seed_and_index():
    for index in (0, 7):
        again = draw_scene(0, index)
        assert np.array_equal(again.image, SCENES[index].image) and again.caption == SCENES[index].caption
        assert again.image.shape == (128, 128, 3) and again.image.dtype == np.uint8
    for other in (SCENES[1], draw_scene(1, 0)):
        assert not np.array_equal(SCENES[0].image, other.image)
    images, captions = scene_pairs(0, 3)
    assert np.array_equal(images[2], SCENES[2].image) and captions[2] == SCENES[2].caption


def test_captions_name_the_main_thing_first_and_nothing_that_is_not_there():
    said = set()
    for scene in SCENES:
        named = re.findall(rf"(large |small |)(\w+ |)({'|'.join(KINDS)})\b", scene.caption)
        assert named and [kind for *_, kind in named] == [thing.kind for thing in scene.things[: len(named)]], (
            scene.caption
        )
        for (size, colour, _), thing in zip(named, scene.things):
            assert colour.strip() in (thing.colour, "a", "an", ""), scene.caption
            assert size.strip() in ("large" if thing is scene.things[0] else "small", "")
            said |= {f"{size}thing", f"{colour}thing"}
        behind = re.findall(r"on a (\w+ \w+) background", scene.caption)
        assert behind in ([], [f"{scene.pattern} {scene.ground}"])
        said |= {"background"} if behind else set()
    assert {"large thing", "small thing", "red thing", "background"} <= said


def test_captions_count_and_place_what_they_name_and_stay_true_in_a_mirror():
    seen = set()
    for scene in SCENES:
        main, *others = scene.things
        for word in re.findall(" (above|below|beside) ", scene.caption):
            dx, dy = abs(main.x - others[0].x), others[0].y - main.y
            assert {"above": dy > 0, "below": dy < 0, "beside": dx > abs(dy)}[word], scene.caption
            seen.add(word)
        for count, word in enumerate(("one thing:", "two things:", "three things:", "four things:"), start=1):
            if word in scene.caption:
                assert count == len(scene.things)
                seen.add(word)
    assert len(seen) == 7 and not {"left", "right"} & words_of(scene.caption for scene in SCENES)


def test_colours_are_in_the_pixels_where_the_things_are():
    for scene in SCENES:
        for thing in scene.things:
            nearest = min(COLOURS, key=lambda name: np.abs(np.subtract(COLOURS[name], thing.rgb)).sum())
            assert nearest == thing.colour
            low_x, high_x = round(thing.x - thing.radius), round(thing.x + thing.radius)
            low_y, high_y = round(thing.y - thing.radius), round(thing.y + thing.radius)
            box = scene.image[low_y:high_y, low_x:high_x].astype(int)
            share = (np.abs(box - thing.rgb).max(-1) <= 3).mean()
            assert share > 0.1, (thing, share)
        corners = scene.image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        assert np.abs(corners - np.array(GROUNDS[scene.ground])).max() < 130  # at most a lighter shade of the ground


def test_things_lie_apart_inside_the_picture_and_the_main_one_is_the_largest():
    for scene in SCENES:
        for number, thing in enumerate(scene.things):
            assert thing.radius <= min(thing.x, thing.y) and max(thing.x, thing.y) <= 128 - thing.radius
            for other in scene.things[:number]:
                assert max(abs(thing.x - other.x), abs(thing.y - other.y)) > thing.radius + other.radius
        assert all(scene.things[0].radius > 1.4 * other.radius for other in scene.things[1:])
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4}


def test_every_kind_and_pattern_looks_like_no_other():
    drawn = {}
    for kind, paint in KINDS.items():
        canvas = Image.new("RGB", (256, 256))
        paint(_Pen(ImageDraw.Draw(canvas), 128, 128, 100), (250, 200, 150))
        drawn[kind] = np.asarray(canvas).any(-1)
        assert not drawn[kind][:26].any() and not drawn[kind][:, :26].any()  # inside its square
    for kind, shape in drawn.items():
        for other, theirs in drawn.items():
            assert kind == other or (shape & theirs).sum() < 0.9 * (shape | theirs).sum(), (kind, other)
    deviations = {pattern: [s.image[:, -3:].std() for s in SCENES if s.pattern == pattern] for pattern in PATTERNS}
    assert max(deviations["plain"]) < 50 and all(len(values) > 20 for values in deviations.values())


def test_few_words_say_it_all():
    words = words_of(scene.caption for scene in SCENES)
    assert len(words) < 80 and not words & {"ultrasound", "scan", "probe"}
    images, labels, texts = held_out_scenes(1)
    assert words_of(texts["kind"] + texts["colour"]) <= words
    assert np.array_equal(images[5], draw_scene(1, 5).image)
    assert list(KINDS)[labels["kind"][5]] == draw_scene(1, 5).things[0].kind
    assert len(texts["kind"]) == len(KINDS) and set(labels["colour"]) == set(range(len(COLOURS)))


def test_sizes():
    assert draw_scene(0, 0, 64).image.shape == (64, 64, 3)
    with pytest.raises(ValueError, match="the smallest is 32"):
        draw_scene(0, 0, 16)
