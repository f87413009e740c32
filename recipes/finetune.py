# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Fine-tune URFM on labelled images: a linear layer, an adapter of a few MB, or everything.

    python recipes/finetune.py --task classification --method lora --model_name_or_path urfm --dataset phantoms:organ \
        --output_dir organ-lora                              # phantoms: drawn as it starts, minutes on two cores
    python recipes/finetune.py --task classification --method lora --model_name_or_path urfm --dataset FOLDER \
        --output_dir OUT                                     # FOLDER/train/CLASS/*, FOLDER/test/CLASS/*
    python recipes/finetune.py --task segmentation --method full --model_name_or_path urfm --dataset FOLDER \
        --output_dir OUT                                     # FOLDER/images/*, FOLDER/masks/*
    python recipes/finetune.py --task multilabel --method linear --model_name_or_path urfm --dataset findings.csv \
        --label_columns cyst stone --patient_column patient --output_dir OUT
    python recipes/finetune.py --task regression --method lora --model_name_or_path urfm --dataset phantoms:depth \
        --output_dir depth-lora
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/finetune.py \
        --config recipes/configs/finetune_full.yaml --task classification --dataset FOLDER --output_dir OUT

Every default is meant to work on a few hundred images; `--help` explains each. `--random_init` gives the control,
`--label_fraction 0.1` a tenth of the labels. OUT holds the adapter or model with its processor and card, `results.json`
(`metrics.test.accuracy`, `.macro_f1`, `.dice`, `.mae` and their 95 % intervals over patients), `predictions.parquet` and
figures. After a kill, the same command with `--resume_from_checkpoint latest` goes on from the best epoch so far.
"""

import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from modeling_urfm.data.labelled import LabelledDataset, load_labelled
from modeling_urfm.data.phantoms import usable_cores
from modeling_urfm.data.splits import label_fraction_rows
from modeling_urfm.finetuning.arguments import ADAPTERS, FROZEN, FinetuneArguments, parse_arguments
from modeling_urfm.finetuning.assess import (
    choose_decisions,
    predict,
    predict_masks,
    run,
    scores_with_intervals,
)
from modeling_urfm.finetuning.heads import AttentiveHead, StandardisedLinear, unstandardise
from modeling_urfm.finetuning.inputs import MOST_BYTES, Batches, Features, PreparedImages, stack
from modeling_urfm.finetuning.losses import class_weights
from modeling_urfm.finetuning.methods import (
    CONTROL_BASE,
    build_model,
    count_parameters,
    load_config,
    load_processor,
    trained_head,
    unwrapped,
)
from modeling_urfm.finetuning.outputs import (
    HEADLINE,
    draw,
    remove_earlier,
    write_model,
    write_predictions,
)
from modeling_urfm.finetuning.resuming import MarkCheckpoints, checkpoint_of, settings_of
from modeling_urfm.finetuning.trainer import make_trainer, training_arguments, use_all_cores
from modeling_urfm.flags import said_plainly
from modeling_urfm.hub import cards, provenance
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.hub.saving import move_into, save_model_folder
from modeling_urfm.pretraining.engine import follow_launcher, refuse_left_out, whole_state_dict
from modeling_urfm.pretraining.meters import Energy, add_energy
from modeling_urfm.pretraining.startup import check_writable


HERE = Path(__file__).resolve().parent
logger = logging.getLogger("finetune")


def main():
    started = time.perf_counter()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for name in ("accelerate", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger().setLevel(logging.ERROR)  # one process speaks
    follow_launcher()
    refuse_left_out()
    args = parse_arguments()
    output_dir = Path(args.output_dir)
    check_writable(output_dir)
    use_all_cores(usable_cores())

    # ---- the model's config and processor first: what can't be had is known before any data is read
    config = load_config(args.model_name_or_path)
    processor = load_processor(args, config)

    # ---- data
    data = load_labelled(
        args.dataset, args.task, label_columns=args.label_columns, patient_column=args.patient_column,
        image_column=args.image_column, split_column=args.split_column, image_root=args.image_root,
        validation_fraction=args.validation_fraction, test_fraction=args.test_fraction, seed=args.split_seed,
    )  # fmt: skip
    rows = {split: data.rows(split) for split in ("train", "validation", "test")}
    if args.label_fraction < 1:
        rows["train"] = label_fraction_rows(data.labels, data.patients, rows["train"], args.label_fraction, args.seed)
    say_data(data, rows)
    data_s = time.perf_counter() - started

    # ---- images at the model's size, and what the loss takes
    targets, mean, deviation = targets_of(args.task, data, rows["train"])
    images = {split: PreparedImages(data, part, processor, targets, title=split) for split, part in rows.items()}
    prepared_s = time.perf_counter() - started - data_s

    # ---- model
    set_seed(args.seed)
    model = build_model(args, data.label_names)
    parameters = count_parameters(model, args.task)
    encoder = unwrapped(model).urfm
    settings = training_arguments(args, config.hidden_size, len(rows["train"]), encoder.num_parameters(), output_dir)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if settings.world_size != launched:
        raise SystemExit(f"{launched} processes were launched but {settings.world_size} is in force: each would train alone. "
                         "recipes/accelerate/README.md has a file for each engine.")  # fmt: skip
    logger.info(
        "%s: %s of %s parameters are trained (%.2f %%), %s at most, peak learning rate %.2g, on %s",
        args.method, f"{parameters['trainable_parameters']:,}", f"{parameters['parameters']:,}",
        100 * parameters["trainable_share"],
        f"{args.max_train_steps} steps" if args.max_train_steps else f"{settings.num_train_epochs:.0f} epochs",
        settings.learning_rate, settings.device.type,
    )  # fmt: skip

    # ---- training
    sharded = settings.deepspeed_plugin is not None or settings.distributed_state.distributed_type == "FSDP"
    if head_alone(args) and sharded:
        raise SystemExit(f"--method {args.method} trains a head of {parameters['trainable_parameters']:,} parameters on features "
                         "computed once: DeepSpeed and FSDP have nothing to shard. Launch it as one process, or with "
                         "recipes/accelerate/multi_gpu.yaml.")  # fmt: skip
    energy = Energy(settings.device, settings.local_process_index == 0)
    weights = class_weights(args.task, data.labels[rows["train"]], len(data.label_names))
    plain, features_s = Batches(processor, args.task), 0.0
    if head_alone(args):
        begun = time.perf_counter()
        train, validation, trained = frozen_features(args, model, images, plain, settings)
        collators, features_s = (stack, stack), time.perf_counter() - begun
    else:
        train, validation, trained = images["train"], images["validation"], model
        varied = Batches(
            processor, args.task, augment=args.augment and args.method not in FROZEN,
            mixup=args.mixup if args.method == "full" else 0.0, num_labels=len(data.label_names),
        )  # fmt: skip
        collators = (varied, plain)
    trainer, meter = make_trainer(
        args, trained, settings, train, validation,
        weights=weights if args.class_weights == "balanced" else None, collators=collators,
    )  # fmt: skip
    run_settings = settings_of(args, data.fingerprint, trainer.args.world_size)
    checkpoint = checkpoint_of(args.resume_from_checkpoint, output_dir, run_settings)
    trainer.add_callback(MarkCheckpoints(run_settings, checkpoint))
    trainer.add_callback(SampleEnergy(energy))
    begun = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    training_s = time.perf_counter() - begun
    state = trainer.state
    # What an earlier part of a resumed run took isn't known.
    spent = add_energy(None if checkpoint else {}, gather_object([energy.kwh]))
    devices = gather_object([torch.cuda.get_device_name() if settings.device.type == "cuda" else settings.device.type])

    # ---- the model as it is published, whole
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        whole = whole_state_dict(trainer.accelerator, trainer.model_wrapped)
        if whole is not None:
            unset_hf_deepspeed_config()  # ZeRO-3 would shard this one too, and only the main process builds it
            model = build_model(args, data.label_names)
            model.load_state_dict(whole)
    if not trainer.is_world_process_zero():
        return
    if isinstance(trained, StandardisedLinear):
        trained.to("cpu").fold_into(model.to("cpu").classifier)
    if args.task == "regression":
        unstandardise(trained_head(model, args.task), mean, deviation)

    # ---- how good it is
    model.to(settings.device)
    outputs = {}
    for split in ("validation", "test"):
        loader = DataLoader(images[split], batch_size=settings.per_device_eval_batch_size, collate_fn=plain)
        batches = run(model, tqdm(loader, desc=split, unit="batch"), settings.device, trainer.accelerator.autocast)
        if args.task == "segmentation":
            outputs[split] = predict_masks(data, rows[split], batches, processor)
        else:
            outputs[split] = predict(args.task, data, rows[split], batches)
    thresholds = choose_decisions(args.task, outputs["validation"])
    scores = {
        split: scores_with_intervals(args.task, outputs[split], thresholds, data.patients[rows[split]], args.bootstrap_draws, 0,
                                     data.label_names)
        for split in outputs
    }  # fmt: skip

    # ---- what is left behind
    history = [{key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}
               for entry in state.log_history if "loss" in entry or "eval_loss" in entry]  # fmt: skip
    best = max((e for e in history if "eval_score" in e), key=lambda e: e["eval_score"], default={"epoch": None})
    results = {
        **run_facts(args.seed),
        "metrics": {
            "task": args.task, "method": args.method, "random_init": args.random_init, "label_fraction": args.label_fraction,
            "label_names": list(data.label_names),
            # Of two classes: whose AUROC, average precision and sensitivity the scores are.
            "positive_label": data.label_names[1] if args.task == "classification" and len(data.label_names) == 2 else None,
            "train": {"images": len(rows["train"]), "patients": len(np.unique(data.patients[rows["train"]]))},
            **scores, "thresholds": thresholds, **parameters,
            "epochs": round(state.epoch, 2), "best_epoch": best["epoch"], "steps": state.global_step,
            "batch_size": args.batch_size * settings.gradient_accumulation_steps * settings.world_size,
            "learning_rate": settings.learning_rate, "device": settings.device.type, "bf16": args.bf16,
            "gradient_checkpointing": settings.gradient_checkpointing,
            "image_size": [processor.size["height"], processor.size["width"]],
            "decode_head_hidden_size": unwrapped(model).config.decode_head_hidden_size,
            "dataset": data.name, "dataset_fingerprint": data.fingerprint, "split_fingerprint": data.split_fingerprint,
            "notes": list(data.notes), "left_out": [f"{name}: {reason}" for name, reason in data.left_out],
        },
        "timings": {
            "data_s": round(data_s, 1), "prepare_s": round(prepared_s, 1), "features_s": round(features_s, 1),
            "training_s": round(training_s, 1), "epoch_s": round(float(np.median(meter.epoch_s)), 3) if meter.epoch_s else None,
            "total_s": round(time.perf_counter() - started, 1),
            # It differs a little from run to run, as times do.
            "peak_memory_mib": round(meter.peak_bytes / 2**20),
        },
        "history": history,
    }  # fmt: skip
    remove_earlier(output_dir, args)
    write_predictions(data, args.task, outputs, thresholds, output_dir / "predictions.parquet")
    draw(data, args.task, outputs["test"], thresholds, output_dir)
    made_of = provenance.finetuning_provenance(args, data, devices=devices, energy=spent)
    save(args, model.to("cpu"), processor, card_of(args, model, results, made_of))
    write_json(output_dir / provenance.FILE, made_of)
    write_json(output_dir / "results.json", results)
    say_goodbye(args, results)


def head_alone(args: FinetuneArguments) -> bool:
    """Whether the encoder is run once, and a head trained on its features."""
    return args.method in FROZEN and args.task != "segmentation"


def targets_of(task: str, data: LabelledDataset, train: np.ndarray):
    """What the loss takes of every row, and the mean and deviation that regression's were standardised by."""
    if task == "segmentation":
        return None, None, None
    if task != "regression":
        return data.labels, None, None
    mean, deviation = data.labels[train].mean(0), data.labels[train].std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    standardised = ((data.labels - mean) / deviation).astype(np.float32)
    return standardised, *(torch.tensor(value, dtype=torch.float32) for value in (mean, deviation))


@torch.no_grad()
def frozen_features(args: FinetuneArguments, model, images: dict, collator: Batches, settings):
    """Features of the training and validation images, and the head that is trained on them."""
    tokens = args.method == "attentive"
    size = sum(len(images[split]) for split in ("train", "validation"))
    patches = images["train"].pixels[0][0].numel() // model.config.patch_size**2
    if tokens and size * (1 + patches) * model.config.hidden_size * 2 > MOST_BYTES:
        raise SystemExit(f"The tokens of {size} images take more than {MOST_BYTES / 2**30:.0f} GiB: take a part with "
                         "--label_fraction, a smaller --image_size, or --method lora, which keeps none.")  # fmt: skip
    encoder = model.urfm.to(settings.device).eval()
    sets = []
    for split in ("train", "validation"):
        loader = DataLoader(images[split], batch_size=settings.per_device_eval_batch_size, collate_fn=collator)
        features, labels = [], []
        for batch in tqdm(loader, desc=f"features, {split}", unit="batch"):
            with torch.autocast(settings.device.type, torch.bfloat16, enabled=args.bf16):
                out = encoder(batch["pixel_values"].to(settings.device))
            features.append(out.last_hidden_state.half().cpu() if tokens else out.pooler_output.float().cpu())
            labels.append(batch["labels"])
        sets.append(Features(torch.cat(features), torch.cat(labels)))
    model.to("cpu")
    if tokens:
        head = AttentiveHead(model.config)
        head.pooling, head.classifier = model.pooling, model.classifier  # trained in place
    else:
        known = sets[0].features
        head = StandardisedLinear(known.mean(0), known.std(0, correction=0), model.config.num_labels)
    return *sets, head


class SampleEnergy(TrainerCallback):
    """Looks at the counters of electricity often enough."""

    def __init__(self, energy: Energy):
        self.energy = energy

    def on_step_end(self, args, state, control, **_):
        if state.global_step % 50 == 0:
            self.energy.sample()


def card_of(args: FinetuneArguments, model, results: dict, made_of: dict) -> str:
    """The card of what is saved, by the name of its folder."""
    output_dir = Path(args.output_dir)
    figures = [path.name for path in output_dir.glob("*.png")]
    adapter = {"r": args.lora_rank} if args.method in ADAPTERS else {}
    facts = cards.make_facts(results, unwrapped(model).config.to_dict(), made_of, adapter=adapter, figures=figures)
    return cards.render("adapter" if adapter else "model", output_dir.resolve().name, facts)


def save(args: FinetuneArguments, model, processor, card: str):
    """Into `output_dir`, every file in one step, weights before the config that points to them."""
    output_dir = Path(args.output_dir)
    if args.method not in ADAPTERS and args.method != "attentive":
        save_model_folder(model, processor, output_dir, card)
        return
    temporary = output_dir / ".tmp-model"
    shutil.rmtree(temporary, ignore_errors=True)
    write_model(model, processor, temporary)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    move_into(temporary, output_dir)
    if args.random_init and args.method in ADAPTERS:  # the adapter is of this very encoder, which lies nowhere else
        save_model_folder(model.unload(), processor, output_dir / CONTROL_BASE)


def say_data(data: LabelledDataset, rows: dict):
    for name, reason in data.left_out[:10]:
        logger.warning("left out: %s: %s", name, reason)
    if len(data.left_out) > 10:
        logger.warning("... and %d more; results.json lists all", len(data.left_out) - 10)
    for note in data.notes:
        logger.info("note: %s", note)
    counts = ", ".join(f"{len(part)} for {split}" for split, part in rows.items())
    logger.info("data: %s: %s; %d labels: %s", data.name, counts, len(data.label_names), ", ".join(data.label_names))


def say_goodbye(args: FinetuneArguments, results: dict):
    test = results["metrics"]["test"]
    for name in dict.fromkeys(("accuracy", HEADLINE[args.task])):
        if name in test:
            low, high = test[f"{name}_ci95"]
            print(f"{name} {test[name]:.3f} (95 % interval {low:.3f} to {high:.3f})")
    print(f"on {test['images']} test images of {test['patients']} patients, which had no part in the training.")
    if test.get("collapsed"):
        print("The model gives one answer to every test image: it has collapsed, and its figures say nothing.")
    print(
        f"Done in {results['timings']['total_s']:.0f} s. {args.output_dir}/ holds the model, predictions and figures. Load it:\n"
    )
    auto = "AutoModelForSemanticSegmentation" if args.task == "segmentation" else "AutoModelForImageClassification"
    print(f"    import modeling_urfm; from transformers import {auto}")
    print(f'    model = {auto}.from_pretrained("{args.output_dir}")')


if __name__ == "__main__":
    with said_plainly(Path(__file__)):
        main()
