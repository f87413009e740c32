# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Print, as JSON, the flags that scripts and launchers know. One process for all, as each would import torch anew.

python tests/docs/flags_of_scripts.py recipes/pretrain.py "recipes/bench.py embed" accelerate torchrun
"""

import argparse
import contextlib
import io
import json
import re
import runpy
import sys
from pathlib import Path


def help_of(script: str, *commands: str) -> str:
    """What `script COMMANDS --help` prints. An error has a text too: it names no flag."""
    out, path = io.StringIO(), list(sys.path)
    sys.argv = [script, *commands, "--help"]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{script} --help ended with {stop.code}: {out.getvalue()[-500:]}") from stop
    finally:
        sys.path[:] = path
    return out.getvalue()


def flags_of_launcher(name: str) -> set[str]:
    """From its parser: accelerate's own help hides what the command line doesn't call for."""
    if name == "accelerate":
        from accelerate.commands.launch import launch_command_parser as get_parser
    else:
        from torch.distributed.run import get_args_parser as get_parser
    known = {flag for action in get_parser()._actions for flag in action.option_strings}
    return known | {"--" + flag[2:].replace("-", "_") for flag in known}  # both spellings are taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="+", help="Scripts, with a subcommand where they have one, or launchers.")
    known = {}
    for given in parser.parse_args().scripts:
        if given in ("accelerate", "torchrun"):
            known[given] = sorted(flags_of_launcher(given))
        else:
            known[given] = sorted(set(re.findall(r"--[A-Za-z][\w-]*", help_of(*given.split()))))
    print(json.dumps(known))
