# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Pre-train URFM: an encoder that predicts, for masked patches, the features that a frozen teacher sees there.

    accelerate launch recipes/pretrain.py                        # the demo: data and teacher ship, minutes on two cores
    accelerate launch recipes/pretrain.py --dataset FOLDER       # the demo's model on your PNG, JPEG or DICOM files
    accelerate launch recipes/pretrain.py --config recipes/configs/urfm_base.yaml --dataset FOLDER_OR_HUB_ID
    accelerate launch recipes/pretrain.py --config recipes/configs/urfm_base.yaml --dataset corpus \
        --balance_by organ --max_images_per_source 50000 --augment speckle blur gain contrast --augment_student_only
    accelerate launch recipes/pretrain.py --config recipes/configs/urfm_base_fast.yaml --dataset corpus \
        --target_cache corpus-targets                            # features that recipes/cache_targets.py computed once
    accelerate launch recipes/pretrain.py --dry_run              # what it will need: steps, hours, memory, disk

Every value of the config file is also a flag (`--help` lists them); a flag overrides the file. The result is a folder
that `AutoModel.from_pretrained` loads, with a card, `results.json`, `loss.png` and `targets.png`.
Several GPUs or nodes, DeepSpeed, FSDP: `accelerate launch --config_file recipes/accelerate/FILE.yaml recipes/pretrain.py
...`; recipes/README.md leads from a corpus to a published model. After a kill, or SIGTERM or SIGUSR1 (Slurm's warning), which
write a checkpoint first, the same command with `--resume_from_checkpoint latest` goes on exactly where it was.
"""

import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_urfm import URFMForPreTraining, URFMImageProcessor
from modeling_urfm.data.demo import PHANTOM_SNR_DB, example_images, open_datasets
from modeling_urfm.data.streaming import EpochPlan
from modeling_urfm.data.transforms import (
    AugmentedCorpus,
    PretrainTransform,
    StreamBatchSampler,
    UltrasoundAugmentation,
    collate,
)
from modeling_urfm.evaluation.organ_knn import EVALUATION_SEED, OrganKNN
from modeling_urfm.evaluation.plots import plot_loss, plot_targets
from modeling_urfm.evaluation.predictions import masked_predictions
from modeling_urfm.flags import said_plainly
from modeling_urfm.hub import cards, provenance
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.hub.saving import save_model_folder
from modeling_urfm.modeling_urfm import patchify
from modeling_urfm.pretraining import dry_run
from modeling_urfm.pretraining.arguments import augmentation_strengths, parse_arguments
from modeling_urfm.pretraining.batches import DeviceBatches, Normalize
from modeling_urfm.pretraining.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from modeling_urfm.pretraining.ema import ShardedEMA
from modeling_urfm.pretraining.engine import (
    check_wrapped,
    end_run,
    engine_name,
    follow_launcher,
    make_accelerator,
    precision,
    whole_state_dict,
)
from modeling_urfm.pretraining.flops import matmul_rate, step_flops, synchronize
from modeling_urfm.pretraining.guard import StepGuard, StopSignals, ignore_stop_signals
from modeling_urfm.pretraining.masking import PatchMasks, batch_mask
from modeling_urfm.pretraining.meters import (
    Clock,
    Energy,
    Window,
    add_energy,
    forget_peak_memory,
    peak_memory,
    target_cosine,
)
from modeling_urfm.pretraining.schedules import (
    RunLength,
    cosine_schedule,
    make_optimizer,
    scaled_learning_rate,
    set_peak,
)
from modeling_urfm.pretraining.startup import check_writable, initial_model, open_target_cache, run_fingerprint
from modeling_urfm.pretraining.target_cache import weights_hash
from modeling_urfm.pretraining.teacher import TeacherError, load_teacher
from modeling_urfm.pretraining.teacher_images import cache_bytes_an_image
from modeling_urfm.pretraining.tracing import step_trace


HERE = Path(__file__).resolve().parent
logger = logging.getLogger("pretrain")


def main():
    started = time.perf_counter()
    follow_launcher()
    signals = StopSignals()
    args, config = parse_arguments(HERE / "configs" / "demo.yaml")
    accelerator = make_accelerator(args)
    logging.basicConfig(format="%(message)s", level=logging.INFO if accelerator.is_main_process else logging.ERROR)
    logging.captureWarnings(True)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells every file of every checkpoint
    output_dir = Path(args.output_dir)
    check_writable(output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir, accelerator)

    # ---- the teacher first: one that can't be had is known before any data is read
    teacher = None
    if config.target == "representation" and not args.target_cache:
        teacher = the_teacher(args, accelerator.device)
    elif args.augment_student_only and not args.target_cache:
        raise SystemExit("--augment_student_only needs a teacher; with --target pixel there is none.")

    # ---- data
    snr_db = tuple(args.phantom_snr_db or PHANTOM_SNR_DB)
    data_started = time.perf_counter()
    corpus = open_datasets(args, accelerator.is_main_process)
    for name, reason in corpus.left_out:
        logger.warning("left out: %s: %s", name, reason)
    logger.info("data: %s", corpus.description)
    plan = EpochPlan(corpus, args.balance_by or (), args.balance_temperature, args.max_images_per_source)
    if plan.length != len(corpus) or args.balance_by:
        logger.info("an epoch: %d images%s", plan.length, plan.description)
    cache = open_target_cache(args, config, corpus) if args.target_cache else None
    knn = OrganKNN(config.image_size, snr_db=snr_db) if args.eval_steps and accelerator.is_main_process else None
    data_s = time.perf_counter() - data_started

    # ---- model
    features = teacher or cache
    if features and features.hidden_size != config.target_hidden_size:
        was, config.target_hidden_size = config.target_hidden_size, features.hidden_size
        logger.info("target_hidden_size: %d, the teacher's (the config has %d)", features.hidden_size, was)
    set_seed(args.seed)  # every process begins with the same weights
    model = initial_model(config, args.init_from)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()

    # ---- optimiser
    accumulation, ranks = args.gradient_accumulation_steps, accelerator.num_processes
    global_batch = args.per_device_train_batch_size * accumulation * ranks
    learning_rate = args.learning_rate or scaled_learning_rate(args.base_learning_rate, global_batch)
    strengths = augmentation_strengths(args.augment)
    progress = {"step": 0, "position": 0, "history": [], "evaluations": [], "unreadable": {}, "skipped": 0,
                "training_s": 0.0, "energy_kwh": {}, "began": time.time()}  # fmt: skip
    if checkpoint:
        progress = read_progress(checkpoint)
    elif accelerator.is_main_process and (there := list_checkpoints(output_dir)):
        logger.warning(
            "%s holds checkpoints of an earlier run, up to %s: remove them, or give another --output_dir. Until this run has "
            "written one, --resume_from_checkpoint latest takes those.", output_dir, there[-1].name,
        )  # fmt: skip
    length = RunLength(
        plan.length, global_batch, args.num_train_epochs, args.max_train_steps,
        start=(progress["step"], progress.get("position", 0)),
    )  # fmt: skip
    total_steps = length.total_steps
    fingerprint = run_fingerprint(
        args, config, corpus=corpus.fingerprint, target_cache=cache.key if cache else None, total_steps=total_steps,
        num_processes=ranks, engine=engine_name(accelerator), mixed_precision=precision(accelerator),
    )  # fmt: skip
    optimizer = make_optimizer(model, learning_rate, args.weight_decay, args.adam_beta2)
    scheduler = cosine_schedule(optimizer, length, args.warmup_ratio)
    log_run(model, args, global_batch, learning_rate, total_steps, accelerator)
    encoder_size, whole_size = model.urfm.num_parameters(), model.num_parameters()
    checkpoint_size = dry_run.checkpoint_bytes(model, bool(args.ema_decay))
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    check_wrapped(accelerator, model)
    set_seed(args.seed, device_specific=True)  # and drops other paths
    ema = ShardedEMA(accelerator.unwrap_model(model), args.ema_decay) if args.ema_decay else None
    if ema:
        accelerator.register_for_checkpointing(ema)
    if checkpoint:
        load_checkpoint(accelerator, checkpoint, fingerprint, elastic=args.allow_elastic_resume)
        if args.allow_elastic_resume:
            set_peak(scheduler.scheduler, learning_rate)  # the rule gives another batch another rate
        logger.info("resumed from %s at step %d of %d", checkpoint, progress["step"], total_steps)
    if args.report_to != "none" and not args.dry_run:
        accelerator.init_trackers("urfm", config={k: str(v) for k, v in vars(args).items()})
    guard = StepGuard(
        accelerator, optimizer, signals, args.max_skipped_steps, output_dir, skipped=progress.get("skipped", 0)
    )

    def published() -> URFMForPreTraining | None:
        """What would be published now, whole, on the main process, whatever the engine has made of the model."""
        with ema.swapped(model) if ema else nullcontext():
            state = whole_state_dict(accelerator, model)
        if not accelerator.is_main_process:
            return None
        with torch.device("meta"):  # no random numbers are drawn
            whole = URFMForPreTraining(config)
        whole.load_state_dict(state, assign=True)
        return whole.to(accelerator.device).eval()

    def evaluate(step: int):
        if not args.eval_steps or (progress["evaluations"] and progress["evaluations"][-1]["step"] == step):
            return
        whole, entry = published(), {"step": step, "training_s": clock.seconds}
        if knn:
            accuracy, interval = knn(whole.urfm)
            entry |= {"knn_accuracy": accuracy, "ci95": interval}
            tqdm.write(f"step {step}: kNN organ accuracy on held-out phantoms {accuracy:.1%}")
            accelerator.log({"knn_accuracy": accuracy}, step=step)
        progress["evaluations"].append(entry)
        accelerator.wait_for_everyone()

    clock, energy = Clock(progress["training_s"]), Energy(accelerator.device, accelerator.is_local_main_process)
    if not args.dry_run:
        with clock.paused():
            evaluate(progress["step"])

    # ---- batches
    effects = {name: strength for name, strength in strengths.items() if name != "vertical_flip"}
    transform = PretrainTransform(
        config.image_size, scale=(args.min_crop_scale, 1.0), vertical_flip=0.5 * strengths.get("vertical_flip", 0.0)
    )
    masks = PatchMasks(config, args.loss_on_scan_region)
    images = AugmentedCorpus(
        corpus, transform, args.seed,
        UltrasoundAugmentation(effects, args.augment_probability) if effects else None,
        student_only=args.augment_student_only and not cache,
        masks=masks, targets=cache,
    )  # fmt: skip
    loader = DataLoader(
        images,
        batch_sampler=StreamBatchSampler(
            plan.length, args.per_device_train_batch_size, args.seed, accumulation, ranks, accelerator.process_index,
            start=progress["position"], order=plan.order,
        ),
        num_workers=args.dataloader_num_workers, collate_fn=collate, pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator().manual_seed(args.seed),  # else it draws from the one that a checkpoint restored
    )  # fmt: skip
    grid = (config.image_size // config.patch_size,) * 2
    batches = DeviceBatches(loader, accelerator.device, grid, teacher, cache)

    # ---- the loop
    computed_in = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(accelerator), torch.float32)
    peak_flops = matmul_rate(computed_in, accelerator.device)
    forget_peak_memory(accelerator.device)
    window = Window(accelerator, clock, step_flops(config), peak_flops)
    step, last = progress["step"], total_steps
    if args.dry_run:
        last = step + dry_run.STEPS
    seconds, unreadable = [], []
    bar = tqdm(
        total=total_steps, initial=step, unit="step", desc="pre-training",
        disable=args.dry_run or not accelerator.is_local_main_process,
    )  # fmt: skip

    def energy_kwh() -> dict[str, float] | None:
        """Of all processes and of the run's earlier parts; every process calls it."""
        return add_energy(progress.get("energy_kwh"), gather_object([energy.kwh]))

    def save(step: int, required: bool):
        note_unreadable(unreadable, progress["unreadable"])
        unreadable.clear()
        state = progress | {
            "step": step, "position": length.position(step), "skipped": guard.skipped, "fingerprint": fingerprint,
            "training_s": clock.seconds, "energy_kwh": energy_kwh(),
        }  # fmt: skip
        with clock.paused():
            save_checkpoint(
                accelerator, output_dir, step, state, keep=args.save_total_limit, config=config, required=required
            )

    model.train()
    with step_trace(
        output_dir / "profile" if args.profile and not args.dry_run else None, accelerator.process_index
    ) as traced:
        while step < last:
            step_started, waited = time.perf_counter(), batches.waited
            # The loss is divided by the patches that it is taken over in the whole step, over all processes, so that
            # accumulation and several processes give the gradient of one large batch.
            micro_batches, items = (next(batches) for _ in range(accumulation)), global_batch * masks.predicted
            if args.loss_on_scan_region:  # how many show ultrasound is known when all have been read
                micro_batches = list(micro_batches)
                counted = sum(batch.counted for batch in micro_batches)
                items = accelerator.reduce(counted, reduction="sum").clamp(min=1)
            ids = []
            loss = torch.zeros((), device=accelerator.device)
            for batch in micro_batches:
                ids += batch.ids
                unreadable += batch.unreadable
                with accelerator.accumulate(model):
                    with accelerator.autocast():  # FSDP2's own forward has none
                        outputs = model(
                            batch.pixels, target_features=batch.targets, bool_masked_pos=batch.mask, loss_mask=batch.loss_mask,
                            predicted_indices=batch.predicted, num_items_in_batch=items,
                        )  # fmt: skip
                    loss += outputs.loss.detach()
                    # Accelerate divides by the micro-steps and averages over the processes; `items` has done both.
                    accelerator.backward(guard.marked(outputs.loss) * accumulation * ranks)
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or float("inf"))
                        norm = guard.judge(step, loss, norm, ids)
                    optimizer.step()
                    optimizer.zero_grad()
            scheduler.step()
            if ema:
                ema.update(accelerator.unwrap_model(model))
            window.add(loss, norm, guard.found_inf, global_batch)
            step += 1
            if args.dry_run:
                synchronize(accelerator.device)
                seconds.append((time.perf_counter() - step_started, batches.waited - waited))
            bar.update()
            traced()
            if args.dry_run:
                continue

            stop = guard.stop_asked()
            if step % args.logging_steps == 0 or step == total_steps or stop:
                note_unreadable(unreadable, progress["unreadable"])
                unreadable.clear()
                entry = {"step": step, **window.entry(batches.waited), "learning_rate": scheduler.get_last_lr()[0],
                         "cosine": target_cosine(outputs, batch), "skipped": guard.skipped}  # fmt: skip
                progress["history"].append(entry)
                accelerator.log({k: v for k, v in entry.items() if k != "step" and v is not None}, step=step)
                bar.set_postfix_str(
                    f"loss {entry['loss'] or math.nan:.4f}, lr {entry['learning_rate']:.1e}, "
                    f"{entry['images_per_s']:.0f} images/s"
                )
                window.restart(batches.waited)
                energy.sample()
            if (args.eval_steps and step % args.eval_steps == 0) or step == total_steps:
                with clock.paused():
                    evaluate(step)
            if (args.checkpointing_steps and step % args.checkpointing_steps == 0) or step == total_steps or stop:
                save(step, required=bool(stop))
            if stop and step < total_steps:
                bar.close()
                logger.warning(
                    "%s: checkpoint written after step %d of %d. Go on with --resume_from_checkpoint latest.",
                    stop, step, total_steps,
                )  # fmt: skip
                end_run(accelerator)
                return
    bar.close()
    batches.close()

    if args.dry_run:
        measured = sorted(seconds[1:])
        step_s = measured[len(measured) // 2][0]
        logger.info("%s", dry_run.describe({
            "encoder": encoder_size, "whole": whole_size, "ranks": ranks, "device": accelerator.device.type,
            "engine": fingerprint["engine"], "global_batch": global_batch, "images": len(corpus),
            "batch": f"{args.per_device_train_batch_size} x {accumulation} micro-steps x {ranks} processes",
            "images_per_epoch": plan.length, "total_steps": total_steps, "step_s": step_s,
            "data_wait": sum(wait for _, wait in measured) / sum(second for second, _ in measured),
            "peak_bytes": peak_memory(accelerator.device), "checkpoint_bytes": checkpoint_size,
            "mfu": window.utilisation(global_batch / step_s), "checkpoints": args.save_total_limit,
            "cache_bytes": cache.bytes if cache else None, "output_dir": output_dir,
            "cache_bytes_an_image": cache_bytes_an_image(corpus, teacher) if accelerator.is_main_process and teacher else None,
        }))  # fmt: skip
        end_run(accelerator)
        return

    # ---- what is left behind
    final, spent, devices = published(), energy_kwh(), gather_object([device_name(accelerator.device)])
    if accelerator.is_main_process:
        training_s = clock.seconds
        evaluations = progress["evaluations"]
        untrained = bool(knn) and evaluations[0]["step"] == 0
        results = {
            **run_facts(args.seed),
            "metrics": {
                "knn_accuracy": evaluations[-1]["knn_accuracy"] if knn else None,
                "knn_accuracy_ci95": evaluations[-1]["ci95"] if knn else None,
                "knn_accuracy_untrained": evaluations[0]["knn_accuracy"] if untrained else None,
                "knn_accuracy_untrained_ci95": evaluations[0]["ci95"] if untrained else None,
                **of_history(progress["history"]),
                "steps": total_steps, "steps_skipped": guard.skipped, "global_batch": global_batch,
                "num_processes": ranks, "engine": fingerprint["engine"], "images_seen": length.position(total_steps),
                "learning_rate": learning_rate,
                "images": len(corpus), "images_per_epoch": plan.length, "images_left_out": len(corpus.left_out),
                "unreadable": progress["unreadable"],
                "left_out": [f"{name}: {reason}" for name, reason in corpus.left_out],
                "files_beside": dict(corpus.companions),
                "parameters": final.num_parameters(), "device": str(accelerator.device.type),
                "images_per_s": round(length.position(total_steps) / max(training_s, 1e-9), 1),
            },
            "timings": {"data_s": round(data_s, 1), "training_s": round(training_s, 1),
                        "total_s": round(time.perf_counter() - started, 1)},
            "history": progress["history"], "evaluations": evaluations,
        }  # fmt: skip
        output_dir.mkdir(parents=True, exist_ok=True)
        plot_loss(progress["history"], evaluations, output_dir / "loss.png", f"{config.loss_type} loss")
        draw_targets(final, teacher, args, snr_db, output_dir / "targets.png")
        processor = URFMImageProcessor(size={"height": config.image_size, "width": config.image_size})
        made_of = provenance.pretraining_provenance(
            args, config, corpus, teacher_weights=teacher_weights(teacher, cache), devices=devices, energy=spent
        )
        figures = [path.name for path in output_dir.glob("*.png")]
        facts = cards.make_facts(results, config.to_dict(), made_of, figures=figures)
        save_model_folder(final, processor, output_dir, cards.render("pretraining", output_dir.resolve().name, facts))
        write_json(output_dir / provenance.FILE, made_of)
        write_json(output_dir / "results.json", results)
        say_goodbye(results, args.output_dir)
    end_run(accelerator)


def the_teacher(args, device):
    return load_teacher(args.teacher, layer=args.teacher_layer, normalize=args.teacher_normalize, device=device)


def teacher_weights(teacher, cache) -> str | None:
    """Hash of the teacher's weights, which a cache may know where there is no teacher."""
    return weights_hash(teacher.tower) if teacher else (cache.key.get("teacher_weights") if cache else None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def note_unreadable(fresh: list[str], known: dict[str, str]):
    """An image that can't be read costs that image: it is named once, whichever process met it. Every process calls it."""
    for text in gather_object(fresh):
        name, _, reason = text.partition(": ")
        if name not in known:
            logger.warning("unreadable, replaced by the next image: %s", text)
        known[name] = reason


def of_history(history: list[dict]) -> dict:
    """What the log says of the whole run: its loss at both ends, and how the machine was used in the middle of it."""

    def median(name):
        values = sorted(entry[name] for entry in history if entry.get(name) is not None)
        return round(values[len(values) // 2], 4) if values else None

    losses = [round(entry["loss"], 4) for entry in history if entry["loss"] is not None] or [None]
    return {
        "loss_first": losses[0], "loss_last": losses[-1],
        "data_wait": median("data_wait"), "mfu": median("mfu"), "memory_gib": median("memory_gib"),
    }  # fmt: skip


def log_run(model, args, global_batch, learning_rate, total_steps, accelerator):
    encoder, whole = (m.num_parameters() / 1e6 for m in (model.urfm, model))
    logger.info("model: encoder %.1f M parameters, with decoder %.1f M", encoder, whole)
    logger.info(
        "run: %d steps of %d images (%d processes on %s), peak learning rate %.2e, into %s",
        total_steps, global_batch, accelerator.num_processes, accelerator.device.type, learning_rate, args.output_dir,
    )  # fmt: skip


@torch.no_grad()
def draw_targets(model, teacher, args, snr_db, path: Path):
    """`targets.png`: held-out phantoms and a real frame, what is hidden, the teacher's features and the prediction."""
    config, device = model.config, model.device
    if teacher is None and config.target == "representation":  # it trained from a cache
        try:
            teacher = the_teacher(args, device)
        except TeacherError as error:
            logger.warning("no %s: %s", path.name, str(error).splitlines()[0])
            return
    names, images = example_images(config.image_size, snr_db, EVALUATION_SEED)
    pixels = images.to(device)
    mask = batch_mask(config, len(pixels), torch.Generator().manual_seed(0)).to(device)
    predictions = masked_predictions(model, Normalize(device)(pixels), mask)
    grid = (config.image_size // config.patch_size,) * 2
    targets = teacher(pixels, grid) if teacher else patchify(pixels, config.patch_size)
    plot_targets(names, images, mask, targets, predictions, path)


def say_goodbye(results: dict, output_dir: str):
    metrics = results["metrics"]
    if metrics["knn_accuracy_untrained"] is not None:
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
    with said_plainly(Path(__file__)):
        main()
