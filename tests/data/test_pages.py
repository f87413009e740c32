# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""corpus.html and review.html: complete, escaped, the same bytes again, and what a browser makes of them."""

import base64
import io
import re
import shutil
import stat
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from modeling_urfm.data import review
from modeling_urfm.data.markup import bin_edges, histogram
from modeling_urfm.data.pages import choose_rows, read_thumbnails, shard_paths, survey_shards, write_corpus_page
from modeling_urfm.data.review import ReviewRow, write_review_page

from .small_corpus import encoded, picture, write_small_corpus


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert('x')</script>\"&"


class Page(HTMLParser):
    """Tags in order with their attributes, the text, and whether every tag is closed where it should be."""

    VOID = {"meta", "img", "br", "input"}

    def __init__(self, markup: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def image_of(attributes: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1])))


def corpus_page(folder: Path, results: dict, **options) -> Page:
    write_corpus_page(folder, results, **options)
    return Page((folder / "corpus.html").read_text())


# ---- corpus.html


def test_the_page_shows_the_corpus_and_what_was_left_out(tmp_path):
    page = corpus_page(tmp_path, write_small_corpus(tmp_path))
    images = page.all("img")
    assert len(images) == 24  # 4 organs of 6 rows
    assert all(max(image_of(a).size) <= 160 and a["alt"] for a in images)
    assert {"heart, sector, b-mode, train 0", "heart, curved, doppler, train 12"} <= {a["alt"] for a in images}
    text = " ".join(page.text.split())
    for words in (
        "24 images", "8 patients", "3 organs", "80 frames = 24 kept + 56 left out", "near-duplicate16looks the same",
        "truncated1the file ends", "set 1780441 of 256 bits", "dicom8080802456", "unknown1001000", "frames_per_clip8",
        "heart 6 images, 2 patients",
    ):  # fmt: skip
        assert words in text, words


def test_nothing_but_the_file_itself_and_no_script(tmp_path):
    page = corpus_page(tmp_path, write_small_corpus(tmp_path))
    assert not page.all("script") and not page.all("link")
    assert all(a["src"].startswith("data:image/jpeg;base64,") for a in page.all("img"))
    assert all(a["href"].startswith("#") for a in page.all("a"))
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for a in page.all("a")} == anchors
    assert any("default-src 'none'" in a.get("content", "") for a in page.all("meta"))
    assert all(a["scope"] for a in page.all("th")) and len(page.all("caption")) == len(page.all("table"))


def test_the_same_bytes_again_without_clock_and_path(tmp_path):
    pages = []
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        results = write_small_corpus(tmp_path / name)
        write_corpus_page(tmp_path / name, results | {"timings": {"total_s": seconds}})
        pages.append((tmp_path / name / "corpus.html").read_bytes())
    assert pages[0] == pages[1] and b"Mustermann" not in pages[0] and str(tmp_path).encode() not in pages[0]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["corpus.html", "data", "manifest.parquet"]


def test_text_of_headers_is_escaped(tmp_path):
    results = write_small_corpus(tmp_path, maker=HOSTILE, source=HOSTILE, organ=HOSTILE, geometry=HOSTILE)
    page = corpus_page(tmp_path, results)
    assert not page.all("script") and page.text.count(HOSTILE) >= 4
    assert any(HOSTILE in a["title"] for a in page.all("figure") if "title" in a)


def test_an_empty_corpus_and_missing_figures_still_give_a_page(tmp_path):
    results = write_small_corpus(tmp_path, {})
    page = corpus_page(tmp_path, {"metrics": {"splits": {}}})
    assert not page.all("img") and "not measured" in page.text and "No test set was excluded" in page.text
    assert "0 images" in " ".join(corpus_page(tmp_path, results).text.split())


def test_results_of_another_corpus_are_refused(tmp_path):
    results = write_small_corpus(tmp_path)
    results["metrics"]["splits"]["train"]["rows"] += 1
    with pytest.raises(ValueError, match="hold 24 rows, results.json says 25"):
        write_corpus_page(tmp_path, results)


def test_survey_and_thumbnails_equal_a_plain_read(tmp_path):
    import datasets

    write_small_corpus(tmp_path, {"train": 9, "validation": 2, "test": 3}, frames=4, rows_per_shard=7)
    paths = shard_paths(tmp_path)
    rows = {s: datasets.Dataset.from_parquet([str(p) for p in paths[s]], cache_dir=str(tmp_path / "hf")) for s in paths}
    plain = [row for split in ("train", "validation", "test") for row in rows[split]]
    survey = survey_shards(paths)
    assert [survey.organs[code] for code in survey.organ] == [row["organ"] for row in plain]
    assert survey.splits == {"train": (36, 9, 6), "validation": (8, 2, 2), "test": (12, 3, 2)}
    assert survey.patient.tolist() == [int(row["patient"][:16], 16) for row in plain]
    assert survey.spacing.tolist() == [row["spacing_mm"][0] for row in plain if row["spacing_mm"]]
    assert survey.counts["maker"]["unknown"] == sum(row["maker"] is None for row in plain)
    thumbnails = list(read_thumbnails(paths, choose_rows(survey.organ, 4, 3)))
    assert len(thumbnails) == 12
    for thumbnail in thumbnails:
        split, row = thumbnail.place
        expected = rows[split][row]
        assert (expected["clip"], expected["frame"]) == (thumbnail.facts["clip"], thumbnail.facts["frame"])
        assert abs(thumbnail.brightness - np.asarray(expected["image"].convert("L"), float).mean()) < 3
        assert thumbnail.full_size == expected["image"].size


@given(st.lists(st.integers(0, 4), max_size=300), st.integers(1, 20))
def test_chosen_rows_are_spread_evenly(organs, each):
    organ = np.array(organs, np.int16)
    chosen = choose_rows(organ, 5, each)
    assert (np.diff(chosen) > 0).all()
    for code in range(5):
        rows = np.flatnonzero(organ == code)
        places = np.searchsorted(rows, chosen[organ[chosen] == code])
        assert len(places) == min(each, len(rows))
        if len(places) > 1:
            assert np.diff(places).max() - np.diff(places).min() <= 1


def test_many_organs_keep_the_page_small():
    assert len(choose_rows(np.repeat(np.arange(100, dtype=np.int16), 50), 100, 12)) == 400


@given(
    st.one_of(
        arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e6)),
        arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 10**6)),
    )
)
def test_every_value_is_in_a_bar(values):
    edges = bin_edges(values)
    assert edges[0] <= values.min() and (np.diff(edges) > 0).all() and 2 <= len(edges) <= 64
    assert np.quantile(values, 0.995, method="higher") <= edges[-1]
    page = Page(histogram("t", values, "mm", "note"))
    assert sum(int(t.replace(",", "")) for t in re.findall(r": ([\d,]+)(?=\D|$)", page.text.split("note")[0])) >= len(
        values
    )


def test_histogram_counts_whole_numbers_one_by_one_and_says_when_there_is_none():
    page = Page(histogram("Frames", np.array([1, 2, 2, 8]), "images", ""))
    assert "2: 2" in page.text and "8: 1" in page.text and len(page.all("rect")) == 3
    assert "median 2" in page.all("svg")[0]["aria-label"]
    assert "not measured" in histogram("Spacing", np.empty(0), "mm", "")


# ---- review.html


def review_rows(count: int = 3):
    outlines = [{"kind": "found", "polygon": [[1, 2], [30, 2], [30, 40.5]], "label": HOSTILE},
                {"kind": "marks", "polygon": [[0, 0], [1, 1]], "label": "too few corners"}]  # fmt: skip
    for number in range(count):
        image = encoded(picture(number))
        kept = number % 2 == 0
        yield ReviewRow(
            f"ward/{HOSTILE}/m\udcfcller{number}.dcm", f"{number:032x}", number, "kept" if kept else "dropped",
            [] if kept else ["near-duplicate"], image, image if kept else None, (256, 128), outlines,
            {"geometry": "sector", HOSTILE: HOSTILE}, detail=HOSTILE,
        )  # fmt: skip
    yield ReviewRow("broken.dcm", "f" * 32, 0, "rejected", ["truncated"], detail="ends early")


def test_review_before_and_after_with_outlines(tmp_path):
    write_review_page(tmp_path, review_rows())
    page = Page((tmp_path / "review.html").read_text())
    assert stat.S_IMODE((tmp_path / "review.html").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["review.html"]
    assert not page.all("script") and len(page.all("article")) == 4
    assert len(page.all("img")) == 5 and all(a["loading"] == "lazy" for a in page.all("img"))
    assert [a["points"] for a in page.all("polygon")] == ["1.0,2.0 30.0,2.0 30.0,40.5"] * 3
    assert {a["viewbox"] for a in page.all("svg")} == {"0 0 128 256"}
    text = " ".join(page.text.split())
    for words in (
        "never share", "Nothing of this leaves.", "No picture could be read.", "near-duplicate: looks the same",
        "truncated: the file ends", "ends early", HOSTILE, "m\\udcfcller0.dcm", "all (4)", "kept (2)", "rejected (1)",
        "Sign-off", "2 kept, 1 rejected",
    ):  # fmt: skip
        assert words in text, words
    assert "A sample" not in text
    write_review_page(tmp_path, review_rows(), every=20)
    assert "one input file of 20 is shown" in (tmp_path / "review.html").read_text()


def test_review_goes_on_in_further_pages_and_old_ones_go(tmp_path, monkeypatch):
    monkeypatch.setattr(review, "PAGE_ROWS", 3)
    (tmp_path / "review-0009.html").write_text("of an earlier run")
    write_review_page(tmp_path, review_rows(7))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["review-0002.html", "review-0003.html", "review.html"]
    pages = [Page((tmp_path / name).read_text()) for name in ("review.html", "review-0002.html", "review-0003.html")]
    rows = [a["id"] for page in pages for a in page.all("article")]
    assert rows == [f"row-{n}" for n in range(1, 9)]
    assert [{a["href"] for a in page.all("a")} for page in pages] == [
        {"#rows", "review-0002.html", "review-0003.html"},
        {"review.html", "review-0003.html"},
        {"review-0002.html", "review.html"},
    ]
    assert all("never share" in page.text for page in pages) and "4 kept, 1 rejected" in pages[0].text
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in tmp_path.iterdir())


def test_review_without_a_row_and_with_an_unknown_status(tmp_path):
    write_review_page(tmp_path, [])
    assert "No frame was read." in (tmp_path / "review.html").read_text()
    with pytest.raises(ValueError, match="one of kept, dropped, rejected"):
        write_review_page(tmp_path, [ReviewRow("a", "b", 0, "partly")])
    assert not list(tmp_path.iterdir())  # the old page is not mistaken for the new one


# ---- in a browser


def screenshot(page: Path, target: Path, *flags: str) -> np.ndarray:
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         f"--user-data-dir={target.parent / 'chromium'}", "--window-size=1200,1600", f"--screenshot={target}", *flags,
         page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return np.asarray(Image.open(target).convert("RGB")).astype(int)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_both_pages_in_chromium(tmp_path):
    write_corpus_page(tmp_path, write_small_corpus(tmp_path))
    light = screenshot(tmp_path / "corpus.html", tmp_path / "light.png", "--blink-settings=preferredColorScheme=1")
    dark = screenshot(tmp_path / "corpus.html", tmp_path / "dark.png", "--blink-settings=preferredColorScheme=0")
    assert light[0, 0].min() > 240 and dark[0, 0].max() < 40
    # The doppler phantoms are the only thing in magenta: thumbnails are drawn.
    assert ((light[..., 0] - light[..., 1]) > 60).sum() > 2000
    for name, rows in (("with", None), ("without", ())):
        outlines = [{"kind": "found", "polygon": [[9, 9], [110, 9], [110, 110], [9, 110]], "label": "sector"}]
        image = encoded(Image.new("L", (128, 128), 60))
        row = ReviewRow("a.dcm", "0" * 32, 0, "kept", [], image, image, (128, 128), outlines if rows is None else rows)
        (tmp_path / name).mkdir()
        write_review_page(tmp_path / name, [row])
    # The first screen is the warning and the sign-off; the pictures follow.
    window = "--window-size=1200,2400"
    drawn, plain = (
        screenshot(tmp_path / n / "review.html", tmp_path / f"{n}.png", window) for n in ("with", "without")
    )
    teal = [((np.abs(shot - (47, 196, 178)).max(-1)) < 12).sum() for shot in (drawn, plain)]
    assert teal[0] > teal[1] + 1000
