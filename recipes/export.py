# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A URFM model for use without PyTorch code: ONNX, torch.export, 8-bit weights, and the exact preprocessing.

    python recipes/export.py urfm --output_dir urfm-onnx                      # a folder or Hub id; all formats
    python recipes/export.py liver-lora --output_dir liver-onnx --formats onnx int8       # an adapter is merged
    python recipes/export.py urfm --output_dir urfm-onnx --images /data/clinic            # compared on your images

Any batch and image size, opset 18. transformers.js reads the folder; its README.md says how to use it from Python, JavaScript
and C++. Each format is compared with PyTorch on real images first, and one that differs too much leaves nothing behind.
Needs `pip install 'urfm[export,data]'`. Not for clinical use.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from transformers.utils import logging as transformers_logging

from modeling_urfm.hub.export import FORMATS, export_model
from modeling_urfm.hub.export_folder import table_row
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.pretraining.startup import check_writable


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("source", help="A URFM folder or Hub id: encoder, classifier, segmenter or adapter.")
    parser.add_argument("--output_dir", default="urfm-onnx", help="Folder for the export. [urfm-onnx]")
    parser.add_argument("--formats", nargs="+", default=FORMATS, help="onnx, torch_export, int8. [all]")
    parser.add_argument("--images", help="Images to compare on, as --dataset takes them. [frames that ship, phantoms]")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    check_writable(Path(args.output_dir))
    started = time.perf_counter()
    facts = export_model(args.source, Path(args.output_dir), tuple(dict.fromkeys(args.formats)), args.images)
    print(f"{facts['source']}: {facts['task']}, compared with PyTorch on {facts['compared_on']}\n")
    print("format | file | MB | largest error | mean error | lowest cosine | same answers")
    for name, line in facts["formats"].items():
        print(table_row(name, line))
        for part in line["other_sizes"]:
            print(f"    {part['batch']} x {part['height']} x {part['width']}: largest error {part['max_abs']:.2g}")
    print("\nLimits:", *facts["limits"], sep="\n- ")
    timings = {"total_s": round(time.perf_counter() - started, 1)}
    metrics = {name: facts[name] for name in ("task", "compared_on", "preprocessing", "formats")}
    # The folder is made to be shared: no places of this machine.
    command = shlex.join(["python", "recipes/export.py", facts["source"], "--formats", *facts["formats"]])
    content = {**run_facts(None), "command": command, "metrics": metrics, "timings": timings}
    write_json(Path(args.output_dir) / "results.json", content)
    print(f"\n{args.output_dir} after {timings['total_s']:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except ImportError as error:
        sys.exit(f"export.py: {error}. Install what it needs: pip install 'urfm[export,data]'")
    except (ValueError, OSError) as error:
        sys.exit(f"export.py: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. Nothing was written.")
