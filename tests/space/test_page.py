# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A look at a scan as HTML: complete, escaped, every picture inside."""

from dataclasses import replace

import numpy as np
import page
import pytest
import scans
import views
from frame import frame_html

from tests.data.raw_inputs import image_bytes
from tests.data.test_pages import HOSTILE, Page, image_of


@pytest.fixture(scope="module")
def still(onlooker, phantom):
    return views.look_at(scans.scan_of(image_bytes(phantom)), onlooker)


@pytest.fixture(scope="module")
def loop(onlooker, echo):
    return views.look_at(scans.scan_of(echo), onlooker)


def test_a_still(still, onlooker):
    answer = page.answer_of(still, onlooker)
    shown = Page(answer["html"])
    assert len(answer["frames"]) == 1 and not [a for a in shown.all("input") if a["type"] == "range"]
    pictures = [a for a in shown.all("img") if "data-view" in a]
    assert [a["data-view"] for a in pictures] == ["scan", "tokens", "attention"] and all(a["alt"] for a in pictures)
    assert image_of(pictures[0]).size == (192, 192)
    assert image_of(pictures[1]).size == image_of(pictures[2]).size == still.scan.seen.shape[2:0:-1]
    assert len(shown.all("polygon")) == 2 and len(shown.all("li")) == page.SHOWN_ANSWERS + len(still.cases)
    assert (
        "What the model sees" in shown.text
        and "found from the pixels" in shown.text
        and "192 x 192 pixels" in shown.text
    )


def test_a_loop_has_a_slider_and_a_picture_a_frame(loop, onlooker):
    answer = page.answer_of(loop, onlooker)
    shown = Page(answer["html"])
    (slider,) = (a for a in shown.all("input") if a["type"] == "range")
    assert slider["max"] == "29" and slider["aria-valuetext"] == "1 of 30"
    assert {"for": slider["id"]} in shown.all("label")
    assert len({frame["tokens"] for frame in answer["frames"]}) > 20
    assert answer["frames"][4]["name"] == "frame 5 of 30" and "30 frames at 30 a second" in shown.text
    for words in ("SonoSite", "found from what moves", "Of a DICOM header only"):
        assert words in shown.text
    shares = [answer["share"] for answer in answer["frames"][0]["answers"]]
    assert shares == sorted(shares, reverse=True)


def test_playing_lasts_as_long_as_the_loop(loop):
    assert page.playing_rate(loop.scan) == pytest.approx(30, abs=0.01)
    assert page.playing_rate(replace(loop.scan, total=300)) == pytest.approx(3, abs=0.01)
    assert page.playing_rate(replace(loop.scan, frame_rate=None)) == 10


def test_without_region_and_far_from_all_cases_it_says_so(still, onlooker):
    odd = replace(still, scan=replace(still.scan, polygon=(), found_by="", geometry="unknown"), strange=True)
    shown = Page(page.answer_of(odd, onlooker)["html"])
    assert "No ultrasound picture was found" in shown.text and "they mean little" in shown.text
    assert not shown.all("polygon") and "Likeliest" not in shown.text


def test_a_model_without_head(still, onlooker):
    shown = Page(page.answer_of(replace(still, probabilities=None, labels=[]), onlooker)["html"])
    assert "no head that names" in shown.text and "Likeliest" not in shown.text


def test_values_of_a_regression_are_no_shares(still, onlooker):
    values = np.array([[1234.5678, -0.01234, 57.0]])
    look = replace(still, probabilities=values, labels=["weight_g", "slope", "ef"], regression=True)
    answer = page.answer_of(look, replace(onlooker, head=replace(onlooker.head, regression=True)))
    shown = Page(answer["html"])
    assert [a["text"] for a in answer["frames"][0]["answers"]] == ["1235", "-0.01234", "57"]
    assert "Values" in shown.text and "1235" in shown.text and "%" not in shown.text.split("Values")[1].split("File")[0]
    assert "Likeliest" not in shown.text


def test_text_of_models_and_indexes_is_escaped(still, onlooker):
    look = replace(
        still, labels=[HOSTILE] * len(still.labels), cases=[replace(case, label=HOSTILE, picture=None) for case in still.cases],
        scan=replace(still.scan, attributes={"maker": HOSTILE}),
    )  # fmt: skip
    hostile = replace(onlooker, name=HOSTILE, cases_note=HOSTILE, head=replace(onlooker.head, note=HOSTILE))
    shown = Page(page.answer_of(look, hostile)["html"])
    assert not shown.all("script") and shown.text.count(HOSTILE) >= 9
    assert not Page(frame_html(HOSTILE, {})).all("script")


def test_the_page_before_anything_was_dropped(examples):
    shown = Page(frame_html("urfm", examples))
    assert [a["data-example"] for a in shown.all("button")] == list(examples) and len(examples) >= 5
    assert "stays on this machine" in shown.text
    assert "travels to the machine" in Page(frame_html("urfm", examples, local=False)).text
    assert "Not for clinical use" in shown.text and {"for": "u-file"} in shown.all("label")
    assert all("alt" in a for a in shown.all("img"))
    assert all(not a.get("src", "data:").startswith("http") for _, a in shown.tags)
    for example in examples.values():
        assert np.ptp(example.thumbnail) > 50 and scans.scan_of(example.data).polygon
