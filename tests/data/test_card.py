# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The data-set card: YAML that the Hub and `datasets` understand, counts, and no word that a file or a folder brought."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modeling_urfm.data.card import (
    data_card,
    hub_licence,
    largest_first,
    markdown_cell,
    number,
    published_command,
    published_settings,
    size_category,
)
from modeling_urfm.data.public import PUBLIC
from modeling_urfm.data.shards import COLUMNS

from .small_corpus import write_small_corpus


TEMPLATE = Path(__file__).parents[2] / "hub_cards" / "dataset_card.md"


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_load_dataset_with_the_card_beside_by_its_own_snippet(tmp_path):
    folder = tmp_path / "corpus"
    results = write_small_corpus(folder)
    card = data_card(TEMPLATE, results)
    (folder / "README.md").write_text(card)
    (folder / "results.json").write_text("{}")
    (folder / "corpus.html").write_text("<html></html>")
    snippet = re.search(r"```python\n(.*?)```", card, re.S).group(1)
    snippet += "\nprint({split: part.num_rows for split, part in corpus.items()}, image.size, organ)"
    # A process of its own: `datasets` reads HF_HOME when it is imported.
    run = subprocess.run(
        [sys.executable, "-c", snippet.replace('"FOLDER"', repr(str(folder)))], capture_output=True, text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert run.stdout.strip() == "{'train': 18, 'test': 6} (128, 128) heart", run.stderr


@pytest.mark.parametrize(
    "patients", [{"train": 2}, {"train": 2, "validation": 1}, {"train": 1, "validation": 0, "test": 1}]
)
def test_only_splits_that_exist_are_listed(tmp_path, patients):
    metadata = front_matter(data_card(TEMPLATE, write_small_corpus(tmp_path, patients)))
    files = metadata["configs"][0]["data_files"]
    assert [f["split"] for f in files] == [split for split, count in patients.items() if count]
    for file in files:
        assert list(tmp_path.glob(file["path"]))
    assert metadata["task_categories"] == ["image-feature-extraction"] and metadata["size_categories"] == ["n<1K"]


def test_a_card_without_an_image_or_without_figures_says_so():
    card = data_card(TEMPLATE, {})
    assert "configs" not in front_matter(card) and "not measured" in card and "0 B-mode" in card


def test_counts_reasons_exclusions_and_sources(tmp_path):
    results = write_small_corpus(tmp_path)
    card = data_card(TEMPLATE, results)
    for line in (
        "| heart | 6 | 25.0 % |", "| GE | 6 | 25.0 % |", "| unknown | 6 | 25.0 % |", "| local | 15 | 62.5 % |",
        "| train | 18 | 6 | 3 |", "| 40 | sampling | not among the frames sampled from its loop |",
        "80 frames = 24 kept + 56 left out", "9 input files: 0 kept whole, 8 in part, 1 rejected",
        "| 1 | truncated | the file ends before what it declares |", "| `quality.min_side` | 64 |",
        "(780 images): 4 frames equal", "in 41 of 256 bits",
    ):  # fmt: skip
        assert line in card, line
    assert f"**{markdown_cell(PUBLIC['busi'].title)}**" in card and markdown_cell(PUBLIC["busi"].licence) in card
    assert "\n\n\n" not in card.replace("\n\n\n## ", "\n\n## ")
    results["metrics"]["exclusions"] = []
    assert "No test set was excluded" in data_card(TEMPLATE, results)


def test_every_column_is_explained():
    assert re.findall(r"^\| `(\w+)` \|", TEMPLATE.read_text(), re.M) == list(COLUMNS)


def test_no_clock_no_path_and_the_same_bytes_again(tmp_path):
    results = write_small_corpus(tmp_path)
    card = data_card(TEMPLATE, results)
    assert data_card(TEMPLATE, results | {"timings": {"total_s": 1.0}}) == card
    for private in ("98765", "Mustermann", "/data", str(tmp_path)):
        assert private not in card
    assert "`python recipes/prepare.py ... --output_dir ... --frames_per_clip 8 --marks inpaint`" in card


def test_a_name_from_a_header_stays_text(tmp_path):
    results = write_small_corpus(tmp_path, maker="a|b\n# `<script>`{{ 7 * 7 }}[x](y)")
    line = next(line for line in data_card(TEMPLATE, results).splitlines() if line.startswith("| a"))
    assert line == r"| a\|b \# \`&lt;script&gt;\`\{\{ 7 \* 7 \}\}\[x\](y) | 24 | 100.0 % |"


@given(st.text())
def test_a_cell_is_one_line_and_never_ends_its_cell(text):
    cell = markdown_cell(text)
    assert cell and len(cell.splitlines()) == 1 and not re.search(r"(?<!\\)(\\\\)*\|", cell) and "<" not in cell


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("python recipes/prepare.py 19750312 --seed 3", "python recipes/prepare.py ... --seed ..."),
        (
            "python /home/smith/r/prepare.py a b c --marks inpaint --n 8",
            "python recipes/prepare.py ... --marks inpaint --n 8",
        ),
        ("accelerate launch prepare.py --marks=smith --n=8", "accelerate launch recipes/prepare.py --marks=... --n=8"),
        ("prepare.py --drop --marks drop inpaint", "recipes/prepare.py --drop --marks ..."),
        ("prepare.py 'Erika' --output_dir inpaint", "recipes/prepare.py ... --output_dir ..."),
        ("python prepare.py INPUT INPUT --drop /data/Smith", "python recipes/prepare.py INPUT INPUT --drop ..."),
        ("prepare.py 'unclosed", ""),
    ],
)
def test_what_is_shown_of_a_command(command, shown):
    assert published_command(command, {"marks": "inpaint", "n": 8, "output_dir": "inpaint"}) == shown


@given(st.lists(st.text(st.characters(categories=["L", "Nd"]), min_size=6, max_size=12), min_size=1, max_size=4))
def test_no_positional_word_of_a_command_is_shown(words):
    words = [f"Q{word}" for word in words]
    shown = published_command(f"prepare.py {' '.join(words)} --n 8", {"n": 8})
    assert shown == "recipes/prepare.py ... --n 8"


def test_settings_that_may_name_somebody_stay():
    settings = {"n": 8, "marks": "drop", "inputs": ["x"], "output_dir": "smith", "key_file": "k", "note": "Dr. Smith",
                "limits": {"side": 64, "path": "a"}, "sides": [1, 2], "none": None}  # fmt: skip
    assert published_settings(settings) == {
        "n": 8, "marks": "drop", "limits.side": 64, "sides": [1, 2], "none": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("licences", "fields"),
    [
        ({"CC BY 4.0": 3}, {"license": "cc-by-4.0"}),
        ({"CC0": 1, "MIT": 0}, {"license": "cc0-1.0"}),
        ({"unknown": 1}, {"license": "other", "license_name": "not-stated"}),
        ({"of the authors": 1}, {"license": "other", "license_name": "see-the-card"}),
        ({"MIT": 1, "CC0-1.0": 1}, {"license": "other", "license_name": "several-see-the-card"}),
        ({}, {"license": "other", "license_name": "not-stated"}),
    ],
)
def test_licence_of_the_yaml(licences, fields):
    assert hub_licence(licences) == fields


def test_sizes_numbers_and_order():
    assert [size_category(n) for n in (0, 999, 1000, 10**6, 10**9)] == ["n<1K", "n<1K", "1K<n<10K", "1M<n<10M", "n>1B"]
    assert number(1234567) == "1,234,567" and number(None) == "not measured" and number(True) == "True"
    assert largest_first({"b": 2, "a": 2, "unknown": 9, None: 1, "c": 3}) == [
        ("c", 3), ("a", 2), ("b", 2), ("unknown", 10),
    ]  # fmt: skip
