# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Run the Python blocks of the guides, in order, in a folder that holds what they name. One process for all of them.

    python tests/docs/run_guides.py FOLDER README.md recipes/README.md ...

FOLDER gets tiny ones of `urfm/`, `liver-lora/`, `corpus/`, `scan.png` and `loop.dcm`, made by the recipes themselves, whose
cards are run too. Ids of the Hub are published to HF_ENDPOINT before, with the tag v1: a name with "lora" as the adapter, with
"corpus" as the corpus, any other one as the encoder. The last line of the output is JSON: blocks that ran, and errors.
"""

import argparse
import contextlib
import io
import json
import os
import re
import runpy
import sys
import traceback
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.docs.markdown import Block, blocks  # noqa: E402


TINY = (
    "--image_size 32 --patch_size 16 --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 32 "
    "--target pixel --decoder_hidden_size 32 --decoder_num_hidden_layers 1 --decoder_num_attention_heads 2 "
    "--decoder_intermediate_size 32 --per_device_train_batch_size 8 --max_train_steps 2 --dataloader_num_workers 0"
).split()  # fmt: skip
HUB_ID = re.compile(r"[\"']([A-Za-z][\w.-]*/[\w.-]+)[\"']")
MADE_BY_OTHERS = ("microsoft", "facebook", "google", "timm")


def run_recipe(name: str, *flags) -> None:
    """As a user would, but in this process."""
    script, before = ROOT / "recipes" / f"{name}.py", list(sys.path)
    sys.argv = [str(script), *map(str, flags)]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{name}.py: {stop.code}") from stop
    finally:
        sys.path[:] = before


def make_folders() -> None:
    """What the guides name, in the current folder."""
    import pydicom.data
    from huggingface_hub import DatasetCard
    from PIL import Image

    from modeling_urfm.data.card import data_card
    from modeling_urfm.data.phantoms import phantom_frame
    from tests.data.small_corpus import write_small_corpus
    from tests.finetuning.tiny import save_classes

    Path("images").mkdir()
    for patient in range(10):
        Image.fromarray(phantom_frame(3, patient, image_size=64).image).save(f"images/{patient}.png")
    Image.open("images/5.png").resize((96, 80)).save("scan.png")
    Path("loop.dcm").write_bytes(Path(pydicom.data.get_testdata_file("examples_ybr_color.dcm")).read_bytes())
    run_recipe("pretrain", "--dataset", "images", "--output_dir", "urfm", *TINY)
    save_classes(Path("liver"), images=8)
    run_recipe(
        "finetune", "--task", "classification", "--method", "lora", "--model_name_or_path", "urfm", "--dataset", "liver",
        "--output_dir", "liver-lora", "--num_train_epochs", 1, "--bootstrap_draws", 10,
    )  # fmt: skip
    results = write_small_corpus(Path("corpus"))
    Path("corpus/results.json").write_text(json.dumps(results))
    Path("FOLDER").symlink_to("corpus")  # what the card of a corpus that is not published calls it
    DatasetCard(data_card(ROOT / "hub_cards" / "dataset_card.md", results)).save("corpus/README.md")


def hub_ids(found: list[Block]) -> list[str]:
    """Ids that blocks name, encoders before the adapters that stand on them."""
    ids = {name for block in found for name in HUB_ID.findall(block.text)}
    ids = {name for name in ids if not Path(name).exists() and not Path(name).suffix}
    return sorted(
        (name for name in ids if name.split("/")[0] not in MADE_BY_OTHERS), key=lambda n: ("lora" in n.lower(), n)
    )


def publish(repo_id: str, base: str) -> list[Block]:
    """Put the folder that the id stands for on the Hub; returns the blocks of its card."""
    from modeling_urfm.hub.publishing import publish as send
    from modeling_urfm.hub.staging import stage

    name = repo_id.split("/")[1].lower()
    folder = next((folder for mark, folder in (("lora", "liver-lora"), ("corpus", "corpus")) if mark in name), "urfm")
    publication = stage(
        Path(folder), repo_id, Path("staging") / repo_id, base_model=base if folder == "liver-lora" else None
    )
    send(publication, tag="v1", progress=False)
    return blocks(publication.files["README.md"].read_text())


def run_block(block: Block, where: str, names: dict) -> str | None:
    """The error of a block, or None."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if block.text.lstrip().startswith(">>>"):
                return _run_examples(block, where, names)
            exec(compile("\n" * (block.line - 1) + block.text, where, "exec"), names)
    except BaseException:  # SystemExit too: a block that ends the process is no example
        lines = traceback.format_exc().splitlines()
        at = [line.strip() for line in lines if f'"{where}"' in line]
        return f"{where}:{block.line}: {' '.join(at[-1:])} {lines[-1]}"
    return None


def _run_examples(block: Block, where: str, names: dict) -> str | None:
    import doctest

    example = doctest.DocTestParser().get_doctest(block.text, names, where, where, block.line)
    out = io.StringIO()
    doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out.write)
    return out.getvalue() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="An empty folder to run them in.")
    parser.add_argument("guides", nargs="+", help="Markdown files, from the repository's root.")
    args = parser.parse_args()
    os.chdir(args.folder)
    make_folders()
    import torch
    from PIL import Image

    texts = {guide: (ROOT / guide).read_text() for guide in args.guides}
    texts |= {
        f"{folder}/README.md": Path(folder, "README.md").read_text() for folder in ("urfm", "liver-lora", "corpus")
    }
    found = {name: [b for b in blocks(text) if b.language in ("python", "py")] for name, text in texts.items()}
    ids = hub_ids([block for part in found.values() for block in part])
    base = next((name for name in ids if "lora" not in name and "corpus" not in name), "lab/urfm-tiny")
    for repo_id in dict.fromkeys([base, *ids, "lab/liver-lora-card", "lab/corpus-card"]):
        found[f"card of {repo_id}"] = [block for block in publish(repo_id, base) if block.language == "python"]

    errors, ran = [], {}
    for where, part in found.items():
        image = Image.open("scan.png").convert("RGB")
        names = {"__name__": "__main__", "image": image, "images": [image, image]}
        torch.manual_seed(0)
        for block in part:
            if error := run_block(block, where, names):
                errors.append(error)
                break  # what comes after it may need it
        ran[where] = len(part)
    print(json.dumps({"ran": ran, "ids": ids, "errors": errors}))


if __name__ == "__main__":
    main()
