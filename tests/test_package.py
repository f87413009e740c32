# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What importing the package costs and brings in; the examples of the docstrings run."""

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_urfm
from modeling_urfm import configuration_urfm
from modeling_urfm import modeling_urfm as model_file


ROOT = Path(__file__).resolve().parents[1]
MODEL_FILES = ("configuration_urfm.py", "modeling_urfm.py", "image_processing_urfm.py")
ALLOWED = {"numpy", "PIL", "torch", "torchvision", "huggingface_hub", "transformers"} | set(sys.stdlib_module_names)


def test_importing_it_brings_in_nothing_of_the_training_stack():
    stack = ("datasets", "accelerate", "open_clip", "timm", "peft", "scipy", "pydicom", "sklearn", "matplotlib")
    code = f"import modeling_urfm, sys; print([m for m in {stack} if m in sys.modules])"
    plain = code.replace("import modeling_urfm, sys", NEEDED + "; import sys")
    ours, needed = (
        set(
            ast.literal_eval(
                subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True).stdout
            )
        )
        for c in (code, plain)
    )
    assert ours <= needed  # transformers itself may look for some of them


NEEDED = (
    "import torch, torchvision; from transformers import PreTrainedModel, AutoModel, AutoConfig, AutoBackbone, AutoImageProcessor, "
    "AutoModelForPreTraining, AutoModelForImageClassification, AutoModelForSemanticSegmentation; "
    "import transformers.image_processing_backends"
)


@pytest.mark.slow
def test_importing_it_costs_at_most_a_tenth_more_than_what_it_needs():
    def seconds(code):
        timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        return min(
            float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)
            for _ in range(5)
        )

    assert seconds("import modeling_urfm") < 1.1 * seconds(NEEDED)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_the_files_that_travel_import_only_what_every_user_has(name):
    for node in ast.walk(ast.parse((ROOT / "modeling_urfm" / name).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level in (0, 1)
            if node.level == 1:
                assert f"{node.module}.py" in MODEL_FILES
            else:
                names = [node.module]
        assert all(n.split(".")[0] in ALLOWED for n in names), names


@pytest.mark.parametrize(("package", "forbidden"), [
    ("data", ("pretraining", "evaluation", "finetuning", "hub")), ("pretraining", ("evaluation", "finetuning", "hub")),
    ("evaluation", ("finetuning", "hub")), ("finetuning", ("hub",)), ("hub", ("evaluation", "finetuning")),
])  # fmt: skip
def test_imports_run_one_way(package, forbidden):
    for path in (ROOT / "modeling_urfm" / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                assert (node.module or "").split(".")[0] not in forbidden, path


@pytest.mark.parametrize("module", [configuration_urfm, model_file])
def test_the_examples_of_the_docstrings_run(module):
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0 and result.attempted > 0


def test_every_public_name_is_there():
    assert all(hasattr(modeling_urfm, name) for name in modeling_urfm.__all__)
