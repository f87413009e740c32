# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A page that shows what a URFM model sees in an image, a DICOM file or a cine loop. Works without a network.

    python hub_cards/space/app.py                                      # from a clone: trains the demo first if there is none
    python hub_cards/space/app.py --model liver-lora --index features  # an adapter, and cases of recipes/embed.py
    python hub_cards/space/app.py --model ORG/urfm-base --host 0.0.0.0 --port 80

On the Hub the same file runs unchanged; there the variables URFM_MODEL and URFM_INDEX say what the flags do. Without a model
named, `urfm/` beside this file is taken, then `urfm/` where it was started and in the clone. What is dropped on the page is read
in memory, answered, and forgotten: nothing is written to disk, logged or counted. Not for clinical use.
"""

import argparse
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path


HERE = Path(__file__).resolve().parent
CLONE = HERE.parent.parent
# For the processes that read uploads, too: they start without this file's folder on their path.
PATHS = [str(HERE), *([] if find_spec("modeling_urfm") else [str(CLONE)])]
sys.path[:0] = [path for path in PATHS if path not in sys.path]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    on_hub = "SPACE_ID" in os.environ
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model, index = os.environ.get("URFM_MODEL"), os.environ.get("URFM_INDEX")
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if on_hub else "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    for name, default, kind, text in (
        (
            "model",
            model or None,
            str,
            "Folder or Hub id of an encoder, a classifier or an adapter. [$URFM_MODEL, else urfm/]",
        ),
        (
            "index",
            index or None,
            str,
            "Folder of recipes/embed.py with cases to compare with. [$URFM_INDEX, else simulated ones]",
        ),
        ("port", port, int, "Where it is served. [7860]"),
        ("host", host, str, "127.0.0.1: for this machine alone; 0.0.0.0: for its network. [127.0.0.1]"),
    ):
        parser.add_argument(f"--{name}", default=default, type=kind, help=text)
    args = parser.parse_args(arguments)
    if not 0 <= args.port <= 65535:
        parser.error(f"--port {args.port}: from 0 to 65535. The default: 7860.")
    return args


def find_model(named: str | None) -> str:
    """The model to show: the one named, else the demo's, which is trained where this is a clone without it.

    Raises:
        FileNotFoundError: nothing is named, nothing is there, and nothing can be trained.
    """
    if named:
        return named
    for folder in (HERE / "urfm", Path("urfm"), CLONE / "urfm"):
        if (folder / "config.json").is_file():
            return str(folder)
    recipe = CLONE / "recipes" / "pretrain.py"
    if not recipe.is_file():
        raise FileNotFoundError(
            "there is no model: put a folder urfm/ beside app.py, or set the variable URFM_MODEL (or --model) to a Hub id."
        )
    folder = CLONE / "urfm"
    print(f"There is no model yet: training the demo into {folder}, about four minutes on two cores.", flush=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", str(recipe), "--output_dir", str(folder)]
    if subprocess.run(command, cwd=CLONE).returncode:
        raise FileNotFoundError(f"the demo's training failed; see above. The command was: {' '.join(command)}")
    return str(folder)


def bind(host: str, port: int) -> socket.socket:
    """The place on the network, taken before a model is trained or loaded; 0 is any free port.

    Raises:
        ValueError: another program has it, or this machine has no such address.
    """
    where = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    where.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        where.bind((host, port))
    except OSError as error:
        where.close()
        other = f" Another one: --port {port + 1 if port < 65535 else 7860}." if error.errno == errno.EADDRINUSE else ""
        raise ValueError(f"--host {host} --port {port} can't be had: {error.strerror or error}.{other}") from None
    return where


def in_our_words(error: Exception) -> str:
    """The package says --encoder where this script says --model; the flags of a command of another script stay."""
    return re.sub(r"(?<!embed\.py )--encoder", "--model", str(error))


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is removed
    with bind(args.host, args.port) as where, tempfile.TemporaryDirectory(prefix="urfm-space-") as own:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": own}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*PATHS, os.environ.get("PYTHONPATH")]))
        place = find_model(args.model)
        # Imported here: the processes that read uploads import this file's top, and need none of it.
        from models import load_onlooker
        from server import serve

        print(f"Loading {place} ...", flush=True)
        serve(load_onlooker(place, args.index), where)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"app.py: {in_our_words(error)}")
    except KeyboardInterrupt:
        pass
