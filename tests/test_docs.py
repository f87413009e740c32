# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What the library tells its users is true: examples run, commands and links exist, the reference builds."""

import contextlib
import doctest
import functools
import importlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

import pytest

from modeling_urfm import URFMModel

from .docs.build_api import public_modules
from .docs.markdown import (
    COMMAND,
    ROOT,
    SCRIPT,
    anchors,
    code_spans,
    commands_of,
    flags_of,
    guides,
    kept_files,
    links,
    text_of,
)  # fmt: skip
from .finetuning.tiny import tiny_config
from .hub.running_hub import running_hub


# Words that stand for what a user has.
LAUNCHERS = {"accelerate launch": "accelerate", "torchrun": "torchrun"}
KNOWN_PROGRAMS = {
    "accelerate", "bash", "hf", "npm", "node", "pip", "pytest", "python", "ruff", "sbatch", "srun", "tensorboard", "torchrun",
    "ultrabench",
}  # fmt: skip
SHELL = {"export", "head", "trap", "[", "scontrol", "cd", "cp", "set", "USR1"}
# Examples that users start from; each has one that runs.
ENTRY_POINTS = (
    "URFMConfig", "URFMModel", "URFMForPreTraining", "URFMForImageClassification", "URFMForSemanticSegmentation",
    "URFMBackbone", "URFMImageProcessor.preprocess", "data.corpus:load_corpus", "data.labelled:load_labelled",
    "data.phantoms:phantom_frame", "data.phantoms:generate_phantoms", "data.phantom_dicom:write_phantom_export",
    "data.reading:open_source", "data.organs:find_organ", "data.scan_region:find_layout", "evaluation.encoders:load_encoder",
    "evaluation.intervals:bootstrap_scores", "hub.saving:save_model_folder",
)  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def shown_commands():
    """Every command of the guides, of the docstrings of scripts and of the configs' comments."""
    scripts = [path for path in kept_files() if SCRIPT.match(name_of(path)) and "fixtures" not in path.parts]
    configs = [path for path in kept_files() if path.suffix == ".yaml" and path.is_relative_to(ROOT / "recipes")]
    return [command for path in (*guides_and_notebooks(), *scripts, *configs) for command in commands_of(path)]


def guides_and_notebooks() -> list[Path]:
    return [*guides(), *(path for path in kept_files() if path.suffix == ".ipynb")]


def has_help(script: str) -> bool:
    """Tests, and what only tests start, have none."""
    return not script.startswith("tests/") or "argparse" in (ROOT / script).read_text()


# ---------------------------------------------------------------- links, files, programs


@pytest.mark.parametrize("guide", guides_and_notebooks(), ids=name_of)
def test_links_and_anchors_exist(guide):
    broken = []
    for target in links(text_of(guide)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (guide.parent / urllib.parse.unquote(file)) if file else guide
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path.read_text())):
            broken.append(target)
    assert not broken, f"{name_of(guide)}: {broken}"


@pytest.mark.parametrize("guide", guides_and_notebooks(), ids=name_of)
def test_files_of_the_repository_that_are_named_exist(guide):
    """`recipes/bench.py`, `modeling_urfm/data/reasons.py`: as code in the text, from the root."""
    missing = []
    for span in code_spans(text_of(guide)):
        for word in span.split():
            path = word.rstrip(".,:;").split("?")[0]
            known = re.match(r"(recipes|modeling_urfm|tests|hub_cards|\.ci)/", path)
            if known and not re.search(r"[*{]|[A-Z]{3,}", Path(path).name) and not (ROOT / path).exists():
                missing.append(path)
    assert not missing, f"{name_of(guide)}: {missing}"


def test_commands_name_scripts_files_and_programs_that_exist():
    wrong = []
    for command in shown_commands():
        is_script = SCRIPT.match(command.program)
        if not (is_script or command.program in KNOWN_PROGRAMS | SHELL):
            wrong.append(f"{command.where}: {command.program}")
        for word in (*command.before, command.program, *command.after):
            if re.match(r"(recipes|tests|hub_cards)/", word) and not re.search(r"[*{$]|[A-Z]{3,}", word):
                if not (ROOT / word).exists():
                    wrong.append(f"{command.where}: no {word}")
        if command.before and " ".join(command.before[:2]).startswith("accelerate"):
            assert command.before[1] == "launch", command
    assert not wrong, wrong


def test_markers_that_are_named_exist(pytestconfig):
    known = [line.split(":")[0] for line in pytestconfig.getini("markers")]
    for command in shown_commands():
        if command.program == "pytest" and "-m" in command.after:
            expression = command.after[command.after.index("-m") + 1]
            assert set(re.findall(r"\w+", expression)) - {"and", "or", "not"} <= set(known), command


def test_extras_that_are_installed_exist():
    """`pip install -e ".[train,demo]"`; pip itself only warns of an unknown one."""
    project = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    known = set(re.findall(r"^([\w-]+) = \[", project, re.M))
    asked = [(command.where, extra) for command in shown_commands() if command.program == "pip"
             for word in command.after for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*)\]", word)))]  # fmt: skip
    assert len(asked) >= 3 and not [(where, extra) for where, extra in asked if extra not in known]


def test_the_table_of_where_things_live_names_what_is_there():
    names = {path.name for path in kept_files()}
    table = (ROOT / "CONTRIBUTING.md").read_text().split("Where things live")[1]
    named = {Path(span).name for span in code_spans(table) if span.endswith(".py")}
    missing = [name for name in named if "*" not in name and name not in names]
    assert not missing


@pytest.mark.slow
def test_every_flag_that_is_shown_exists():
    """Of scripts by their --help, of launchers by their parsers; a flag named alone in the text belongs to one of them."""
    wanted = {}
    for command in shown_commands():
        if SCRIPT.match(command.program) and has_help(command.program):
            sub = command.after[0] if command.program == "recipes/bench.py" and command.after else ""
            wanted.setdefault(f"{command.program} {sub}".strip(), []).append((command.where, command.flags))
        for words, launcher in LAUNCHERS.items():
            if " ".join(command.before).startswith(words):
                wanted.setdefault(launcher, []).append((command.where, flags_of(command.before)))
    scripts = {name_of(p) for p in kept_files() if p.parent == ROOT / "recipes" and "__main__" in p.read_text()}
    called = sorted(set(wanted) | {s for s in scripts if s != "recipes/bench.py"})
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "docs" / "flags_of_scripts.py", *called],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    known = {name: set(flags) for name, flags in json.loads(done.stdout.splitlines()[-1]).items()}
    wrong = [
        f"{where}: {name} has no {flag}"
        for name, shown in wanted.items() for where, flags in shown for flag in flags if flag not in known[name]
    ]  # fmt: skip
    every = set().union(*known.values()) | OF_OTHERS
    for guide in guides_and_notebooks():
        for span in code_spans(text_of(guide)):
            if not COMMAND.match(span):
                loose = {flag.rstrip(".,;:)") for flag in re.findall(r"(?<![\w-])--[a-zA-Z]\w[\w-]*", span)}
                wrong += [f"{name_of(guide)}: no script has {flag}" for flag in loose - every]
    assert not wrong, "\n".join(wrong)


OF_OTHERS = {"--durations", "--logdir"}  # flags of programs that are not ours


# ---------------------------------------------------------------- examples


def test_every_example_of_every_docstring_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.redirect_stdout(io.StringIO()):  # libraries that speak when they are first imported, to save
        URFMModel(tiny_config()).save_pretrained(tmp_path)
    failed, attempted = [], 0
    for name in public_modules():
        module = importlib.import_module(name)
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        attempted += result.attempted
        if result.failed:
            failed.append(name)
    assert not failed and attempted > 60


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_have_an_example(name):
    assert ">>>" in (pkgutil.resolve_name(f"modeling_urfm.{name}").__doc__ or "")


@pytest.mark.slow
def test_every_python_block_of_the_guides_and_cards_runs(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with running_hub(tmp_path / "hub") as hub:
        done = subprocess.run(
            [sys.executable, ROOT / "tests" / "docs" / "run_guides.py", work, *map(name_of, guides())],
            env=hub.environment(tmp_path / "home"), capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["errors"], "\n".join(told["errors"])
    assert told["ran"]["README.md"] >= 2 and told["ran"]["urfm/README.md"] >= 1


# ---------------------------------------------------------------- the reference


@pytest.mark.slow
def test_the_reference_builds_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "docs" / "build_api.py", "--output_dir", tmp_path / "api"],
        capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {
        path.relative_to(tmp_path / "api").with_suffix("").as_posix() for path in (tmp_path / "api").rglob("*.html")
    }
    assert {name.replace(".", "/") for name in public_modules()} <= pages
    page = (tmp_path / "api" / "modeling_urfm.html").read_text()
    assert "URFMModel" in page and "Arguments:" in page and "_reading_adapters" not in page
