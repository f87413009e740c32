# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Small output folders as the recipes leave them, with names in every place where a name may not leave."""

import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from modeling_urfm import (
    URFMConfig,
    URFMForImageClassification,
    URFMForPreTraining,
    URFMImageProcessor,
)
from modeling_urfm.hub.saving import save_model_folder


SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16, "target_hidden_size": 8,
}  # fmt: skip
SECRET = "Mustermann"  # in file names, folders, commands, errors and pictures; never in what leaves
PRIVATE = f"/home/dr_{SECRET}/clinic"


def picture(path: Path) -> None:
    """A PNG with a comment, as a viewer may leave one."""
    info = PngInfo()
    info.add_text("Comment", f"{PRIVATE}/scan.dcm")
    Image.new("RGB", (16, 12), (90, 10, 10)).save(path, pnginfo=info)


def processor() -> URFMImageProcessor:
    return URFMImageProcessor(size={"height": 32, "width": 32})


def results(**metrics) -> dict:
    return {
        "command": f"accelerate launch {PRIVATE}/recipes/pretrain.py --dataset {PRIVATE} --seed 3 --output_dir={SECRET}",
        "versions": {"urfm": "0.1.0", "torch": "2.14.1", "peft": None, "where": PRIVATE},
        "seed": 3,
        "metrics": {
            "images": 12, "images_seen": 24, "steps": 3, "global_batch": 8, "learning_rate": 1e-3, "parameters": 1234,
            "device": "cpu", "engine": "plain", "loss_first": 0.5, "loss_last": 0.25, "knn_accuracy": None,
            "left_out": [f"{SECRET}/1.dcm: damaged DICOM header: {PRIVATE}/1.dcm", "a.png: the file is empty"],
            "unreadable": {f"{SECRET}/2.png#0": f"OSError: {PRIVATE}/2.png", "b.png#0": "truncated: 3 of 9 bytes"},
            "files_beside": {f".{SECRET}": 2}, "by_patient": {SECRET.lower(): 3}, "cases": [SECRET], "note": SECRET,
            **metrics,
        },
        "timings": {"training_s": 7.2, "total_s": 9.0, "host": SECRET},
        "history": [{"step": 1, "loss": 0.5, "image": SECRET}],
        "evaluations": [],
    }  # fmt: skip


def provenance(**changes) -> dict:
    return {
        "what": "pre-training",
        "data": [{"kind": "local", "name": SECRET, "description": PRIVATE, "split": "train", "images": 12,
                  "fingerprint": "00112233aabbccdd", "left_out": {"damaged": 1, f"{SECRET}": 1}}],
        "teacher": {"spec": f"open_clip:local-dir:{PRIVATE}", "layer": -1, "normalize": "none", "weights": "0123456789abcdef"},
        "base": None, "training": {"seed": 3, "dataset": PRIVATE, "max_train_steps": 3, "teacher": PRIVATE, "where": SECRET},
        "seed": 3, "versions": {"torch": "2.14.1"}, "code": {"commit": "ab" * 20, "dirty": True, "path": PRIVATE},
        "hardware": {"devices": ["cpu"], "processes": 1, "processor": "A Processor", "cores": 2, "system": "Linux",
                     "host": SECRET},
        "energy_kwh": None, "user": SECRET,
        **changes,
    }  # fmt: skip


def save_pretrained(folder: Path, **changes) -> Path:
    """As `recipes/pretrain.py` leaves it, with checkpoints and the rest beside the model."""
    torch.manual_seed(0)
    save_model_folder(URFMForPreTraining(URFMConfig(**SMALL)), processor(), folder, f"# {PRIVATE}\n")
    for name, content in (("results.json", results()), ("provenance.json", provenance(**changes))):
        (folder / name).write_text(json.dumps(content))
    for name in ("loss.png", "targets.png"):
        picture(folder / name)
    (folder / "checkpoint-3").mkdir()
    for name in ("checkpoint-3/optimizer.bin", "nonfinite.json", "notes.txt"):
        (folder / name).write_text(PRIVATE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": PRIVATE, "made_by": SECRET}))
    return folder


def scores() -> dict:
    return {"accuracy": 0.75, "accuracy_ci95": [0.5, 0.9], "macro_f1": 0.7, "macro_f1_ci95": [0.4, 0.8], "images": 8,
            "patients": 4, "collapsed": False, "worst": SECRET}  # fmt: skip


def finetuned_results(method: str, labels: list[str], **metrics) -> dict:
    return results(
        task="classification", method=method, random_init=False, label_names=labels, positive_label=labels[1],
        train={"images": 20, "patients": 10}, validation={**scores()}, test=scores(), thresholds=[0.5],
        parameters=1000, trainable_parameters=100, epochs=3.0, best_epoch=2.0, dataset=PRIVATE,
        dataset_fingerprint="00112233aabbccdd", split_fingerprint="ddccbbaa33221100",
        notes=["split cut by patient, seed 0: train 65%, validation 15%, test 20%", f"2 images that are equal byte for byte "
               f"were left out: {SECRET}/1.png", f"made by {SECRET}"],
        **metrics,
    )  # fmt: skip


def finetuned_provenance(**changes) -> dict:
    base = {"kind": "local", "name": SECRET, "revision": None, "weights": "cd" * 32}
    return provenance(**({"what": "fine-tuning", "teacher": None, "base": base} | changes))


LABELS = ["benign", "mal|ig_nant"]


def head_config(**changes) -> URFMConfig:
    return URFMConfig(
        **SMALL, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)}, **changes
    )


def save_classifier(folder: Path) -> Path:
    """As `recipes/finetune.py --method full` leaves it."""
    torch.manual_seed(1)
    save_model_folder(URFMForImageClassification(head_config()), processor(), folder)
    (folder / "results.json").write_text(json.dumps(finetuned_results("full", LABELS)))
    (folder / "provenance.json").write_text(json.dumps(finetuned_provenance()))
    for name in ("confusion.png", "worst.png", "overlays.png"):
        picture(folder / name)
    (folder / "predictions.parquet").write_text(SECRET)
    return folder


def save_adapter(folder: Path, base: Path, **metrics) -> Path:
    """As `recipes/finetune.py --method lora` leaves it, of the encoder in `base`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    model = URFMForImageClassification.from_pretrained(base, config=head_config())
    model = get_peft_model(model, LoraConfig(r=2, modules_to_save=["classifier"], init_lora_weights=False))
    model.save_pretrained(folder)
    config = model.base_model.model.config
    config.architectures = ["URFMForImageClassification"]
    if hasattr(config, "auto_map"):
        del config.auto_map
    config.save_pretrained(folder)
    processor().save_pretrained(folder)
    shutil.rmtree(folder / "README.md", ignore_errors=True)
    content = finetuned_results("lora", LABELS, **metrics)
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "provenance.json").write_text(json.dumps(finetuned_provenance()))
    return folder
