# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The table of tasks, and that published figures are complete and stay apart."""

import pytest

from modeling_urfm.evaluation.benchmarks import PUBLISHED, PUBLISHED_COLUMNS, TASKS, benchmark_task, published_column


def test_fourteen_tasks_of_ten_data_sets():
    kinds = [task.task for task in TASKS.values()]
    assert len(TASKS) == 14 and kinds.count("classification") == kinds.count("segmentation") == 7
    assert len({task.folder.split("_mass")[0].split("_liver")[0] for task in TASKS.values()} | {"fatty_liver"}) >= 10
    for task in TASKS.values():
        assert task.published in (None, *PUBLISHED_COLUMNS)
        assert task.task == "classification" or task.classes[0] == "background"


def test_names_are_found_in_whatever_case():
    assert benchmark_task("fatty-liver") is TASKS["FATTY_LIVER"]
    with pytest.raises(ValueError, match="POCUS"):
        benchmark_task("POCS")


def test_published_figures():
    assert all(len(figures) == len(PUBLISHED_COLUMNS) for figures in PUBLISHED.values()) and len(PUBLISHED) == 10
    column = published_column("FATTY LIVER")
    assert column["URFM"] == "82.6 ± 6.0" and "constant" in column["SAMUS"] and "constant" not in column["DINOv3"]
    assert published_column("AUL")["URFM"] == "71.5 ± 1.1"
