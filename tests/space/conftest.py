# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The Space is a folder of scripts, no package: its folder is put on the path, as Python does when it runs app.py."""

import sys
from pathlib import Path

import numpy as np
import pytest


SPACE = Path(__file__).resolve().parents[2] / "hub_cards" / "space"
sys.path.append(str(SPACE))
FEW = 4  # simulated cases an organ


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    from tests.finetuning.tiny import save_base

    return save_base(tmp_path_factory.mktemp("model") / "urfm")


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def onlooker(tiny_folder, cache):
    import models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "PATIENTS_PER_ORGAN", FEW)
        yield models.load_onlooker(str(tiny_folder), cache=cache, progress=False)


@pytest.fixture(scope="session")
def echo() -> bytes:
    """pydicom's real echocardiogram: 30 frames."""
    from modeling_urfm.data.reading import ultrasound_examples

    return next(path for path in ultrasound_examples() if path.name == "examples_ybr_color.dcm").read_bytes()


@pytest.fixture(scope="session")
def phantom() -> np.ndarray:
    from modeling_urfm.data.phantoms import phantom_frame

    return phantom_frame(3, 7, image_size=192).image


@pytest.fixture(scope="session")
def examples():
    from examples import load_examples

    return load_examples()
