# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Hours by counting: against a count by hand, and against what was measured."""

import argparse
import re

import pytest

from recipes import bench_cost


def arguments(*flags) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_cost.add_arguments(parser)
    return parser.parse_args(flags)


def by_hand(queries, memory, width, inner) -> int:
    """FLOPs of a transformer layer: q and o, k and v, both products of attention, both layers of the MLP."""
    return (
        2 * (2 * queries * width * width) + 2 * (2 * memory * width * width)
        + 2 * (2 * queries * memory * width) + 2 * (2 * queries * width * inner)
    )  # fmt: skip


def test_the_fast_config_counted_by_hand():
    """196 patches, of which 157 are hidden, 39 seen and 39 predicted."""
    encoder = 2 * 39 * 768 * 768 + 12 * by_hand(40, 40, 768, 3072)
    decoder = 2 * 40 * 768 * 384 + 4 * by_hand(39, 40, 384, 1536) + 2 * 39 * 384 * 768
    patches = 2 * 196 * 768 * 768
    cost = bench_cost.cost_of("urfm_base_fast")
    assert cost.student == 3 * (encoder + decoder)
    assert cost.teacher_once == patches + 12 * by_hand(197, 197, 768, 3072)
    assert cost.teacher_online == patches + 11 * by_hand(197, 197, 768, 3072) + by_hand(39, 197, 768, 3072)
    # A million images, ten times, on eight A100 at 35 %.
    online = 1e7 * (cost.student + cost.teacher_online) / (8 * 312e12 * 0.35) / 3600
    assert bench_cost.hours(cost.flops(10**6, 10, cached=False), 1e7, 8, 312e12, 0.35) == pytest.approx(online)
    cached = (1e7 * cost.student + 1e6 * cost.teacher_once) / (8 * 312e12 * 0.35) / 3600
    assert bench_cost.hours(cost.flops(10**6, 10, cached=True), 1e7, 8, 312e12, 0.35) == pytest.approx(cached)


def test_what_was_measured_on_an_h200_is_near_the_lower_rate():
    """3,610 images/s of the fast config, with a teacher that costs next to nothing."""
    cost = bench_cost.cost_of("urfm_base_fast")
    share = 3610 * cost.student / (bench_cost.PEAK_TFLOPS["H100, H200 (SXM)"] * 1e12)
    assert share == pytest.approx(min(bench_cost.MFU), abs=0.005)


def test_recomputed_activations_and_other_grids_cost_more(tmp_path):
    large, huge = bench_cost.cost_of("urfm_large"), bench_cost.cost_of("urfm_huge")
    (tmp_path / "kept.yaml").write_text(
        (bench_cost.CONFIGS / "urfm_large.yaml").read_text().replace("gradient_checkpointing: true", "")
    )
    assert large.student == bench_cost.cost_of(str(tmp_path / "kept.yaml")).student * 4 / 3  # forward twice
    assert huge.teacher_online == huge.teacher_once > large.teacher_online  # 16 x 16 patches, the teacher has 14 x 14


def test_reading_can_be_what_takes_the_time():
    assert bench_cost.hours(1e15, 3.6e6, 1, 1e15, 0.5, images_per_s=1000) == 1
    assert bench_cost.hours(3.6e18, 3.6e6, 1, 1e15, 0.5, images_per_s=1000) == 2


def test_tables(capsys):
    flags = ["--images", "1000", "--epochs", "2", "--mfu", "0.5", "--gpus", "1", "4", "--configs", "urfm_base_fast"]
    text = bench_cost.bench_cost(arguments(*flags))
    assert capsys.readouterr().out.strip() == text
    assert "Hours on 1 / 4 GPUs at an MFU of 50%, an estimate" in text
    rows = [line for line in text.splitlines() if line.startswith("| `urfm_base_fast`")]
    assert [row.count("|") for row in rows] == [9, 9, 5] and "94 M" in rows[2]
    every = bench_cost.bench_cost(arguments())
    assert all(f"`{name}`" in every for name in bench_cost.NAMES) and "35%" in every and "8%" in every


def test_the_page_has_what_the_command_prints():
    """`recipes/RUNNING_FOR_REAL.md`; after a change of a config: python recipes/bench.py cost."""
    page = (bench_cost.CONFIGS.parent / "RUNNING_FOR_REAL.md").read_text()
    printed = bench_cost.bench_cost(arguments())

    def cells(text, first):
        return [re.split(r" *\| *", row.strip("| ")) for row in re.findall(rf"^\| {first}.*$", text, re.M)]

    for name in bench_cost.NAMES:
        online, cached, *later = cells(printed, f"`{name}`")
        shown = page.split(f"| `{name}` | online", 1)[1].splitlines()[:2]
        for row, at_best, measured in zip(shown, (online, cached), later):
            row = re.split(r" *\| *", row.strip("| "))[-6:]
            assert row == [*at_best[2:7], measured[6]], name
        assert f"({later[2][1].split(' / ')[1]})" in page and f"{later[2][2]} GB (" in page, name
