# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""How a recipe ends: our own refusals in a line, other libraries' errors with their traceback."""

from pathlib import Path

import pytest
import torch

from modeling_urfm import URFMConfig
from modeling_urfm.flags import said_plainly


RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "pretrain.py"


def test_what_we_refuse_is_one_line():
    with pytest.raises(SystemExit, match=r"^pretrain\.py: mask_ratio=2"), said_plainly(RECIPE):
        URFMConfig(mask_ratio=2)


def test_what_another_library_raises_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shape"), said_plainly(RECIPE):
        torch.nn.Linear(2, 2)(torch.zeros(1, 3))
    with pytest.raises(KeyError), said_plainly(RECIPE):  # of ours, but no refusal
        {}["a"]
