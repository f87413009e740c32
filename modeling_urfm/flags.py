# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A recipe's arguments: a dataclass whose fields are flags, and a YAML file under them. A flag overrides the file."""

import argparse
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields
from pathlib import Path
from typing import Union, get_args, get_origin

import yaml

from .configuration_urfm import CHOICES, nearest_name


def flag(text: str, default=None):
    """A field of a dataclass of arguments, with the line that `--help` shows."""
    return field(default=default, metadata={"help": text})


def helps_of(cls: type) -> dict[str, str]:
    """Name to line of help, of a dataclass whose fields were made by `flag`."""
    return {f.name: f.metadata["help"] for f in fields(cls)}


@contextmanager
def said_plainly(recipe: Path) -> Iterator[None]:
    """What this project's own code refuses ends `recipe` in one line on stderr and exit code 1.

    An error that another library raised keeps its traceback: in a training of days it is all there is to go by.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        ours = (Path(__file__).resolve().parent, recipe.resolve().parent)
        raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if not any(folder in raised.parents for folder in ours):
            raise
        sys.exit(f"{recipe.name}: {error}")


def parse_sections(
    sections: dict[str, tuple[type, dict[str, str]]],
    description: str,
    default_config: str | Path | None = None,
    argv: Sequence[str] | None = None,
    positional: tuple[str, str] | None = None,
) -> dict[str, dict]:
    """Read `--config FILE.yaml`, then let every flag override it.

    Args:
        sections: of the file: name to a dataclass and the fields of it that are flags, each with its help.
        positional: name and help of what stands on the command line without a flag, any number of values.

    Returns:
        The values of each section, and of the positional under "".

    Raises:
        SystemExit: as argparse does, after a message, for a flag or value that does not exist.
        ValueError: a key of the file that does not exist (the nearest is named), or a value that does not fit.
    """
    first = argparse.ArgumentParser(add_help=False)
    shown = " and ".join(f"`{name}`" for name in sections)
    first.add_argument(
        "--config", default=default_config and str(default_config), help=f"YAML file with the section {shown}."
    )
    known, _ = first.parse_known_args(argv)

    parser = argparse.ArgumentParser(parents=[first], allow_abbrev=False, description=description)
    if positional:
        parser.add_argument(positional[0], nargs="*", help=positional[1])
    names = {title: _add_group(parser, title, cls, helps) for title, (cls, helps) in sections.items()}
    every = [name for group in names.values() for name in group]
    for section, values in _read_file(known.config, list(sections)).items():
        for name in values:
            check_choice(f"{known.config}: {section}: key", name, names[section])
        parser.set_defaults(**{
            name: _as_type(f"{known.config}: {section}: {name}", value, *names[section][name])
            for name, value in values.items() if value is not None
        })  # fmt: skip
    parse = parser.parse_known_intermixed_args if positional else parser.parse_known_args
    given, unknown = parse(argv)
    for text in unknown:
        if text.startswith("--"):
            near = nearest_name(text.split("=")[0][2:], ["config", *every])
            parser.error(f"{text.split('=')[0]} does not exist. Did you mean --{near}? --help lists all.")
    if unknown:
        parser.error(f"{' '.join(unknown)}: a value without a flag before it. --help lists the flags.")
    given = vars(given)
    values = {title: {name: given[name] for name in group if name in given} for title, group in names.items()}
    return values | ({"": given[positional[0]]} if positional else {})


def check_choice(name: str, value, choices) -> None:
    """ValueError, with the nearest of the choices, for a value that is none of them."""
    if value not in choices:
        named = [str(choice) for choice in choices if choice is not None]
        near = nearest_name(value, named)
        raise ValueError(f"{name} {value!r} does not exist. Did you mean {near!r}? There are: {', '.join(named)}.")


def _read_file(path: str | None, sections: list[str]) -> dict[str, dict]:
    if path is None:
        return {}
    if not Path(path).is_file():
        siblings = sorted(p.name for p in Path(path).parent.glob("*.y*ml")) if Path(path).parent.is_dir() else []
        raise FileNotFoundError(f"--config {path}: no such file. Beside it: {', '.join(siblings) or 'no YAML file'}.")
    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected the section {' and '.join(f'`{name}`' for name in sections)}.")
    for section, values in content.items():
        check_choice(f"{path}: section", section, sections)
        if not isinstance(values, dict | None):
            raise ValueError(f"{path}: {section}: expected lines of `name: value`, got {values!r}.")
    return {section: values or {} for section, values in content.items()}


def _as_type(where: str, value, kind: type, many: bool):
    """A value of the file as the flag would have given it: "8e-3" is a number, a single data set is a list of one."""
    if many:
        return [_as_type(where, part, kind, False) for part in (value if isinstance(value, list) else [value])]
    if kind is str and not isinstance(value, (list, dict)):
        return str(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float or number == int(number):
                return kind(number)
        except (ValueError, OverflowError):
            pass
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
    raise ValueError(f"{where}: {value!r} is not {wanted}.")


def _add_group(parser, title: str, cls: type, helps: dict[str, str]) -> dict[str, tuple[type, bool]]:
    """A flag for every field of `cls` in `helps`; without one on the command line or in the file it stays unset.

    Returns the type of every field, and whether it takes several values.
    """
    group, types_of = parser.add_argument_group(title), {}
    for name, text in helps.items():
        kind = cls.__dataclass_fields__[name].type
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        many = get_origin(kind) is list
        kind = get_args(kind)[0] if many else kind
        types_of[name] = (kind, many)
        default = getattr(cls, name, None)
        options = (
            {"action": argparse.BooleanOptionalAction}
            if kind is bool
            else {"type": kind, "nargs": "+" if many else None}
        )
        choices = {"choices": CHOICES[name]} if title == "model" and name in CHOICES else {}
        shown = "" if default is None else f" [{default}]"
        group.add_argument(
            f"--{name}", default=argparse.SUPPRESS, help=text.replace("%", "%%") + shown, **options, **choices
        )
    return types_of
