# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The API reference, a page a module, made from the docstrings by pdoc. A warning ends it with an error.

    python tests/docs/build_api.py --output_dir api     # then open api/index.html

Names that begin with an underscore are left out, as are the modules that bear such a name.
"""

import argparse
import importlib
import pkgutil
import sys
import typing
import warnings
from pathlib import Path

import modeling_urfm


def public_modules() -> list[str]:
    """The package and every module in it without an underscore in front, by its full name, in order."""
    found = (module.name for module in pkgutil.walk_packages(modeling_urfm.__path__, "modeling_urfm."))
    return ["modeling_urfm", *sorted(name for name in found if not any(p.startswith("_") for p in name.split(".")))]


def build(output_dir: Path) -> list[Path]:
    """Write the reference into `output_dir` and return its pages.

    Raises:
        UserWarning: what pdoc warns of: an annotation that can't be evaluated, a module that can't be imported.
    """
    import pdoc

    modules = public_modules()
    # pdoc stops at `modeling_urfm.__all__`, which names what users import and no module; below that it walks by itself.
    specs = [name for name in modules if name.count(".") < 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other packages', as they are imported
        for name in modules:
            importlib.import_module(name)
    # URFMConfig's fields include transformers' own, whose annotations are text; pdoc reads it where the class stands.
    sys.modules["modeling_urfm.configuration_urfm"].Literal = typing.Literal
    sys.modules["modeling_urfm"].Literal = typing.Literal
    modeling_urfm.__doc__ += list_of(modules[1:])
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"URFM {modeling_urfm.__version__}. Not for clinical use."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*specs, output_directory=output_dir)
    return sorted(output_dir.rglob("*.html"))


def list_of(modules: list[str]) -> str:
    """A Markdown list of modules, each with the first line of its docstring; pdoc turns the names into links."""
    first = {name: (sys.modules[name].__doc__ or "").strip().split("\n")[0] for name in modules}
    return "\n\n" + "\n".join(f"- `{name}`: {line}" if line else f"- `{name}`" for name, line in first.items()) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="api", help="Folder of the pages. [api]")
    folder = Path(parser.parse_args().output_dir)
    print(f"{len(build(folder))} pages: {folder / 'index.html'}")
