# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Pre-train URFM: an encoder that predicts, for masked patches, the features that a frozen teacher sees there.

    accelerate launch recipes/pretrain.py                        # the demo: data and teacher ship, minutes on two cores
    accelerate launch recipes/pretrain.py --dataset FOLDER       # the demo's model on your PNG, JPEG or DICOM files
    accelerate launch recipes/pretrain.py --config recipes/configs/urfm_base.yaml --dataset FOLDER_OR_HUB_ID
    accelerate launch recipes/pretrain.py --config recipes/configs/urfm_base.yaml --dataset corpus \
        --balance_by organ --max_images_per_source 50000 --augment speckle blur gain contrast --augment_student_only
    accelerate launch recipes/pretrain.py --max_train_steps 20 --output_dir try   # does it run?

Every value of the config file is also a flag (`--help` lists them); a flag overrides the file. The result is a folder
that `AutoModel.from_pretrained` loads, with a card, `results.json`, `loss.png` and `targets.png`.
Several processes: `accelerate launch --multi_gpu --num_processes 8 recipes/pretrain.py ...`.
"""

import logging
import math
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_urfm import URFMForPreTraining, URFMImageProcessor
from modeling_urfm.data.corpus import join_corpora, load_corpus
from modeling_urfm.data.demo import PHANTOM_SNR_DB, demo_corpus, example_images
from modeling_urfm.data.phantoms import usable_cores
from modeling_urfm.data.streaming import EpochPlan
from modeling_urfm.data.transforms import (
    AugmentedCorpus,
    EpochBatchSampler,
    PretrainTransform,
    UltrasoundAugmentation,
    collate,
    to_float,
)
from modeling_urfm.evaluation.organ_knn import EVALUATION_SEED, OrganKNN
from modeling_urfm.evaluation.plots import plot_loss, plot_targets
from modeling_urfm.evaluation.predictions import masked_predictions
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.hub.saving import model_card, save_model_folder
from modeling_urfm.modeling_urfm import patchify
from modeling_urfm.pretraining.arguments import augmentation_strengths, parse_arguments
from modeling_urfm.pretraining.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from modeling_urfm.pretraining.masking import batch_mask, scan_region_patches, step_generator
from modeling_urfm.pretraining.schedules import ModelEMA, cosine_schedule, make_optimizer, scaled_learning_rate
from modeling_urfm.pretraining.startup import check_writable, initial_model
from modeling_urfm.pretraining.teacher import load_teacher


HERE = Path(__file__).resolve().parent
logger = logging.getLogger("pretrain")


def main():
    started = time.perf_counter()
    args, config = parse_arguments(HERE / "configs" / "demo.yaml")
    accelerator = make_accelerator(args)
    logging.basicConfig(format="%(message)s", level=logging.INFO if accelerator.is_main_process else logging.ERROR)
    logging.captureWarnings(True)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells every file of every checkpoint
    output_dir = Path(args.output_dir)
    check_writable(output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    set_seed(args.seed)

    # ---- the teacher first: one that can't be had is known before any data is read
    teacher = None
    if config.target == "representation":
        teacher = load_teacher(
            args.teacher, layer=args.teacher_layer, normalize=args.teacher_normalize, device=accelerator.device
        )
        if teacher.hidden_size != config.target_hidden_size:
            was, config.target_hidden_size = config.target_hidden_size, teacher.hidden_size
            logger.info("target_hidden_size: %d, the teacher's (the config has %d)", teacher.hidden_size, was)
    elif args.augment_student_only:
        raise SystemExit("--augment_student_only needs a teacher; with --target pixel there is none.")

    model = initial_model(config, args.init_from)

    # ---- data
    snr_db = tuple(args.phantom_snr_db or PHANTOM_SNR_DB)
    data_started = time.perf_counter()
    corpora = [
        demo_corpus(args.phantom_patients, snr_db=snr_db, progress=accelerator.is_main_process)
        if name == "demo"
        else load_corpus(name, split=args.dataset_split, progress=accelerator.is_main_process)
        for name in args.dataset
    ]
    corpus = join_corpora(corpora)
    for name, reason in corpus.left_out:
        logger.warning("left out: %s: %s", name, reason)
    logger.info("data: %s", corpus.description)
    plan = EpochPlan(corpus, args.balance_by or (), args.balance_temperature, args.max_images_per_source)
    if plan.length != len(corpus) or args.balance_by:
        logger.info("an epoch: %d images%s", plan.length, plan.description)
    knn = OrganKNN(config.image_size, snr_db=snr_db) if args.eval_steps else None
    data_s = time.perf_counter() - data_started

    # ---- optimiser
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    accumulation, ranks = args.gradient_accumulation_steps, accelerator.num_processes
    global_batch = args.per_device_train_batch_size * accumulation * ranks
    learning_rate = args.learning_rate or scaled_learning_rate(args.base_learning_rate, global_batch)
    micro_steps = math.ceil(plan.length / (args.per_device_train_batch_size * ranks)) * args.num_train_epochs
    total_steps = args.max_train_steps or max(1, math.ceil(micro_steps / accumulation))
    optimizer = make_optimizer(model, learning_rate, args.weight_decay, args.adam_beta2)
    scheduler = cosine_schedule(optimizer, round(args.warmup_ratio * total_steps), total_steps)
    log_run(model, args, global_batch, learning_rate, total_steps, accelerator)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    unwrapped = accelerator.unwrap_model(model)
    ema = ModelEMA(unwrapped, args.ema_decay) if args.ema_decay else None
    if ema:
        accelerator.register_for_checkpointing(ema)
    published = ema.module if ema else unwrapped
    if args.report_to != "none":
        accelerator.init_trackers("urfm", config={k: str(v) for k, v in vars(args).items()})

    # ---- where to begin
    strengths = augmentation_strengths(args.augment)
    fingerprint = {
        "corpus": corpus.fingerprint, "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": accumulation, "num_processes": ranks, "seed": args.seed,
        "total_steps": total_steps, "model": config.to_diff_dict(), "teacher": args.teacher,
        "min_crop_scale": args.min_crop_scale,
        # None where nothing is asked: what was saved before these options existed can be resumed.
        "balance": [args.balance_by, args.balance_temperature] if args.balance_by else None,
        "max_images_per_source": args.max_images_per_source,
        "augment": [strengths, args.augment_probability, args.augment_student_only] if strengths else None,
    }  # fmt: skip
    progress = {"history": [], "evaluations": [], "unreadable": {}, "training_s": 0.0, "images_seen": 0,
                "fingerprint": fingerprint}  # fmt: skip
    step = 0
    if checkpoint:
        progress = load_checkpoint(accelerator, checkpoint, fingerprint)
        step = progress.pop("step")
        logger.info("resumed from %s at step %d of %d", checkpoint, step, total_steps)

    def evaluate():
        if knn and (not progress["evaluations"] or progress["evaluations"][-1]["step"] != step):
            accuracy, interval = knn(published.urfm)
            progress["evaluations"].append({"step": step, "knn_accuracy": accuracy, "ci95": interval})
            accelerator.log({"knn_accuracy": accuracy}, step=step)
            tqdm.write(f"step {step}: kNN organ accuracy on held-out phantoms {accuracy:.1%}")

    evaluate()

    # ---- the loop
    effects = {name: strength for name, strength in strengths.items() if name != "vertical_flip"}
    transform = PretrainTransform(
        config.image_size, scale=(args.min_crop_scale, 1.0), vertical_flip=0.5 * strengths.get("vertical_flip", 0.0)
    )
    augmentation = UltrasoundAugmentation(effects, args.augment_probability) if effects else None
    loader = DataLoader(
        AugmentedCorpus(corpus, transform, args.seed, augmentation, student_only=args.augment_student_only),
        batch_sampler=EpochBatchSampler(
            plan.length, args.per_device_train_batch_size, seed=args.seed, num_replicas=ranks,
            rank=accelerator.process_index, start=step * accumulation, order=plan.order,
        ),
        num_workers=args.dataloader_num_workers, collate_fn=collate, pin_memory=accelerator.device.type == "cuda",
    )  # fmt: skip
    batches = iter(loader)
    normalize = Normalize(accelerator.device)
    grid = (config.image_size // config.patch_size,) * 2
    # With --loss_on_scan_region and a part predicted, the share of lit patches among that part is an expectation.
    predicted_share = config.num_predicted_patches / config.num_masked_patches
    loop_started = time.perf_counter()
    window, window_started, window_loss = 0, loop_started, torch.zeros((), device=accelerator.device)
    window_images = 0
    bar = tqdm(
        total=total_steps, initial=step, unit="step", desc="pre-training", disable=not accelerator.is_local_main_process
    )
    model.train()
    while step < total_steps:
        # All micro-batches of a step are masked first: the loss is divided by what they hide together, over all ranks,
        # so that accumulation and several ranks give the gradient of one large batch.
        generator = step_generator(args.seed, step, accelerator.process_index)
        micro_batches = []
        for _ in range(accumulation):
            batch = next(batches)
            for text in filter(None, batch["unreadable"]):
                name, _, reason = text.partition(": ")
                if name not in progress["unreadable"]:
                    logger.warning("unreadable, replaced by the next image: %s", text)
                progress["unreadable"][name] = reason
            pixels = batch["pixels"]
            clean = batch.get("teacher_pixels", pixels)
            mask = batch_mask(config, len(pixels), generator)
            loss_mask = scan_region_patches(to_float(clean), config.patch_size) if args.loss_on_scan_region else None
            micro_batches.append((pixels, clean, mask, loss_mask))
        hidden = sum(int((mask if lit is None else mask & lit).sum()) for _, _, mask, lit in micro_batches)
        items = accelerator.reduce(torch.tensor(float(hidden), device=accelerator.device), reduction="sum")
        items = (items * predicted_share).clamp(min=1)
        for pixels, clean, mask, loss_mask in micro_batches:
            # Batches come as bytes, grey ones in one channel; the other two are views of it.
            pixels, clean = (
                to_float(part.to(accelerator.device, non_blocking=True)).expand(-1, 3, -1, -1)
                for part in (pixels, clean)
            )
            targets = teacher(clean, grid) if teacher else None
            with accelerator.accumulate(model):
                outputs = model(
                    normalize(pixels), target_features=targets, bool_masked_pos=mask, loss_mask=loss_mask,
                    generator=generator, num_items_in_batch=items,
                )  # fmt: skip
                # Accelerate divides by the micro-steps and averages over the ranks; `items` has done both.
                accelerator.backward(outputs.loss * accumulation * ranks)
                if accelerator.sync_gradients and args.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                scheduler.step() if accelerator.sync_gradients else None
                optimizer.zero_grad()
            window_loss += outputs.loss.detach()
        if ema:
            ema.update(unwrapped)
        step, window = step + 1, window + 1
        images = ranks * sum(len(batch[0]) for batch in micro_batches)  # ranks have equally many
        window_images += images
        progress["images_seen"] += images
        bar.update()

        if step % args.logging_steps == 0 or step == total_steps:
            loss = (accelerator.reduce(window_loss, reduction="sum") / window).item()
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"The loss is {loss} at step {step}. The checkpoints in {output_dir} are from before."
                )
            now = time.perf_counter()
            entry = {"step": step, "loss": loss, "learning_rate": scheduler.get_last_lr()[0],
                     "images_per_s": window_images / (now - window_started)}  # fmt: skip
            progress["history"].append(entry)
            accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=step)
            bar.set_postfix_str(
                f"loss {loss:.4f}, lr {entry['learning_rate']:.1e}, {entry['images_per_s']:.0f} images/s"
            )
            window, window_images, window_started = 0, 0, now
            window_loss.zero_()
        due = args.eval_steps and step % args.eval_steps == 0
        if due or step == total_steps:
            evaluate()
        if (args.checkpointing_steps and step % args.checkpointing_steps == 0) or step == total_steps:
            spent = {"training_s": progress["training_s"] + time.perf_counter() - loop_started}
            save_checkpoint(accelerator, output_dir, step, progress | spent, keep=args.save_total_limit)
        window_started = time.perf_counter() if due else window_started  # images/s are of training alone
    bar.close()
    training_s = progress["training_s"] + time.perf_counter() - loop_started

    # ---- what is left behind
    state_dict = ema.module.state_dict() if ema else accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        final = URFMForPreTraining(config)  # whole, whatever the engine has made of the one that was trained
        final.load_state_dict(state_dict)
        final.to(accelerator.device)
        history, evaluations = progress["history"], progress["evaluations"]
        results = {
            **run_facts(args.seed),
            "metrics": {
                "knn_accuracy": evaluations[-1]["knn_accuracy"] if knn else None,
                "knn_accuracy_ci95": evaluations[-1]["ci95"] if knn else None,
                "knn_accuracy_untrained": evaluations[0]["knn_accuracy"] if knn else None,
                "knn_accuracy_untrained_ci95": evaluations[0]["ci95"] if knn else None,
                "loss_first": round(history[0]["loss"], 4), "loss_last": round(history[-1]["loss"], 4),
                "steps": total_steps, "global_batch": min(global_batch, plan.length * accumulation),
                "num_processes": ranks, "images_seen": progress["images_seen"], "learning_rate": learning_rate,
                "images": len(corpus), "images_per_epoch": plan.length, "images_left_out": len(corpus.left_out),
                "unreadable": progress["unreadable"],
                "left_out": [f"{name}: {reason}" for name, reason in corpus.left_out],
                "files_beside": dict(corpus.companions),
                "parameters": final.num_parameters(), "device": str(accelerator.device.type),
                "images_per_s": round(progress["images_seen"] / max(training_s, 1e-9), 1),
            },
            "timings": {"data_s": round(data_s, 1), "training_s": round(training_s, 1),
                        "total_s": round(time.perf_counter() - started, 1)},
            "history": history, "evaluations": evaluations,
        }  # fmt: skip
        output_dir.mkdir(parents=True, exist_ok=True)
        plot_loss(history, evaluations, output_dir / "loss.png", f"{config.loss_type} loss")
        draw_targets(final, teacher, config, snr_db, normalize, output_dir / "targets.png")
        processor = URFMImageProcessor(size={"height": config.image_size, "width": config.image_size})
        card = model_card(
            HERE.parent / "hub_cards" / "model_card.md", results, config, name=output_dir.resolve().name,
            repo=output_dir.resolve().name, teacher=args.teacher if teacher else "none", data=corpus.description,
        )  # fmt: skip
        save_model_folder(final, processor, output_dir, card)
        write_json(output_dir / "results.json", results)
        say_goodbye(results, args.output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def make_accelerator(args) -> Accelerator:
    """The engine that `accelerate launch` was told; on processors without a GPU its ranks talk through gloo."""
    several_on_cpu = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps, mixed_precision=args.mixed_precision,
        step_scheduler_with_optimizer=False, log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.output_dir, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if several_on_cpu else None,
    )  # fmt: skip
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != asked:
        raise SystemExit(
            f"{asked} processes were launched but {accelerator.num_processes} is in force: each would train alone."
        )
    if accelerator.device.type == "cpu" and asked == 1:
        # `accelerate launch` leaves one thread to a process on a CPU.
        torch.set_num_threads(usable_cores())
    if accelerator.distributed_type == "DEEPSPEED":
        plugin = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = args.per_device_train_batch_size
        if plugin.zero_stage == 3:  # else its weights could not be saved whole, which would be known at the end
            plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return accelerator


class Normalize:
    """[0, 1] to what the encoder takes: the processor's mean and deviation."""

    def __init__(self, device):
        processor = URFMImageProcessor()
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1)
            for values in (processor.image_mean, processor.image_std)
        )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std


def log_run(model, args, global_batch, learning_rate, total_steps, accelerator):
    encoder, whole = (m.num_parameters() / 1e6 for m in (model.urfm, model))
    logger.info("model: encoder %.1f M parameters, with decoder %.1f M", encoder, whole)
    logger.info(
        "run: %d steps of %d images (%d processes on %s), peak learning rate %.2e, into %s",
        total_steps, global_batch, accelerator.num_processes, accelerator.device.type, learning_rate, args.output_dir,
    )  # fmt: skip


@torch.no_grad()
def draw_targets(model, teacher, config, snr_db, normalize, path: Path):
    """`targets.png`: held-out phantoms and a real frame, what is hidden, the teacher's features and the prediction."""
    names, images = example_images(config.image_size, snr_db, EVALUATION_SEED)
    pixels = images.to(normalize.mean.device)
    mask = batch_mask(config, len(pixels), torch.Generator().manual_seed(0)).to(pixels.device)
    predictions = masked_predictions(model, normalize(pixels), mask)
    grid = (config.image_size // config.patch_size,) * 2
    targets = teacher(pixels, grid) if teacher else patchify(pixels, config.patch_size)
    plot_targets(names, images, mask, targets, predictions, path)


def say_goodbye(results: dict, output_dir: str):
    metrics = results["metrics"]
    if metrics["knn_accuracy"] is not None:
        before, after = (
            "{:.1%} (95 % interval {:.1%} to {:.1%})".format(metrics[name], *metrics[f"{name}_ci95"])
            for name in ("knn_accuracy_untrained", "knn_accuracy")
        )
        print(f"kNN organ accuracy on held-out phantoms, chance 6.7%: before training {before}, after it {after}")
    print(
        f"Done in {results['timings']['total_s']:.0f} s. {output_dir}/ holds the model, loss.png and targets.png. Load it:\n"
    )
    print("    import modeling_urfm; from transformers import AutoModel")
    print(f'    model = AutoModel.from_pretrained("{output_dir}")')


if __name__ == "__main__":
    main()
