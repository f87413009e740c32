# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""transformers' `Trainer` with our losses, layer-wise learning rates and validation score."""

import contextlib
import ctypes
import sys
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..pretraining.engine import launched_by_launcher
from ..pretraining.meters import forget_peak_memory, peak_memory
from .arguments import FROZEN, FinetuneArguments
from .assess import logits_of, run, validation_score
from .losses import task_loss
from .methods import parameter_groups


class FinetuneTrainer(Trainer):
    """Trains on `task_loss` and is judged by `validation_score`.

    Args:
        task: of `arguments.TASKS`. class_weights: of `losses.class_weights`. smoothing: of labels, in training alone.
        layer_decay: of `methods.parameter_groups`. validation_collator: collates the validation images, unvaried.
    """

    def __init__(
        self, *args, task, class_weights=None, smoothing=0.0, layer_decay=1.0, validation_collator=None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.task, self.class_weights, self.smoothing = task, class_weights, smoothing
        self.layer_decay, self.validation_collator = layer_decay, validation_collator
        # The loss is a mean over the batch: Trainer must divide it by the accumulation steps itself.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = logits_of(model, inputs)
        loss = task_loss(self.task, logits, inputs["labels"], self.class_weights, self.smoothing)
        return (loss, {"logits": logits}) if return_outputs else loss

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = parameter_groups(
                self.model if model is None else model,
                self.args.learning_rate,
                self.args.weight_decay,
                self.layer_decay,
            )
            self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate, betas=(0.9, 0.999), fused=True)
        return self.optimizer

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """The validation score; every rank takes all validation images, few as they are, and gets the same figures."""
        scores = validation_score(self.task, self.outputs(self.eval_dataset))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def outputs(self, images):
        """(logits, labels) of every batch of `images`, in order, in the precision of the training."""
        loader = torch.utils.data.DataLoader(
            images, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.validation_collator
        )
        model = self.model_wrapped if self.is_fsdp_enabled or self.is_deepspeed_enabled else self.model
        return run(model.to(self.args.device), loader, self.args.device, self.accelerator.autocast)


class Meter(TrainerCallback):
    """Seconds and peak memory of the epochs, validation and checkpoints left out of the seconds.

    Attributes:
        epoch_s: list of seconds. peak_bytes: the most memory held while training (`peak_memory`).
    """

    def __init__(self, device: torch.device):
        self.device, self.epoch_s, self.peak_bytes = device, [], 0

    def on_train_begin(self, args, state, control, **kwargs):
        forget_peak_memory(self.device)
        _forget_resident_peak()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.epoch_s.append(time.perf_counter() - self.started)
        peak = peak_memory(self.device) if self.device.type == "cuda" else _resident_peak() or peak_memory(self.device)
        self.peak_bytes = max(self.peak_bytes, peak)


class Bar(TrainerCallback):
    """A bar over the steps with the last loss and validation score, instead of Trainer's lines for every epoch."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step",
            disable=not state.is_local_process_zero,
        )  # fmt: skip
        self.shown = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.shown |= {
            name.removeprefix("eval_"): f"{logs[name]:.3f}" for name in ("loss", "eval_score") if name in logs
        }
        self.bar.set_postfix(self.shown)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def _forget_resident_peak():
    """Have Linux count the peak of this process's memory anew (proc(5)); what came before, such as reading, is no training."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _resident_peak() -> int | None:
    """Bytes this process held at most since then; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def training_arguments(
    args: FinetuneArguments, hidden_size: int, images: int, encoder_parameters: int, output_dir: Path
) -> TrainingArguments:
    """What Trainer is told, where nothing was said by the method's defaults for `images` training images."""
    epochs, recompute = args.epochs(images), {}
    if args.method not in FROZEN and args.checkpoints_activations(encoder_parameters):
        recompute = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(output_dir), num_train_epochs=epochs, max_steps=args.max_train_steps or -1,
        per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=2 * args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.peak_learning_rate(hidden_size), lr_scheduler_type="cosine", warmup_steps=args.warmup_ratio,
        weight_decay=args.settings.weight_decay if args.weight_decay is None else args.weight_decay,
        max_grad_norm=args.max_grad_norm, bf16=args.bf16, use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch", save_strategy="best", logging_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_score", greater_is_better=True, save_total_limit=args.save_total_limit,
        restore_callback_states_from_checkpoint=True,
        seed=args.seed, dataloader_num_workers=args.dataloader_num_workers, dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        remove_unused_columns=False, label_names=["labels"], report_to=args.report_to, deepspeed=args.deepspeed,
        ddp_find_unused_parameters=False, **recompute,
    )  # fmt: skip


def make_trainer(args: FinetuneArguments, model, settings: TrainingArguments, train, validation, *, weights, collators):
    """A `FinetuneTrainer` with its meter and early stopping.

    Args:
        train, validation: data sets. collators: of the two. weights: of `losses.class_weights`.
    """
    if settings.gradient_checkpointing and settings.device.type == "cpu":
        give_back_freed_memory()
    meter = Meter(settings.device)
    callbacks: list[TrainerCallback] = [meter, Bar()]
    if patience := args.patience(settings.num_train_epochs):
        callbacks.append(EarlyStoppingCallback(patience))
    trainer = FinetuneTrainer(
        model, settings, train_dataset=train, eval_dataset=validation, data_collator=collators[0], callbacks=callbacks,
        task=args.task, class_weights=weights, smoothing=args.label_smoothing if args.task != "regression" else 0.0,
        layer_decay=args.layer_decay if args.method == "full" else 1.0, validation_collator=collators[1],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer, meter


def give_back_freed_memory() -> None:
    """Have glibc return blocks of 4 MiB and more to the system as they are freed (mallopt(3)); elsewhere nothing changes.

    By itself it keeps blocks of up to 32 MiB, and between them the heap of a ViT-B/16 with recomputed activations grows to
    more than twice of what is in use, as much as without recomputing.
    """
    if sys.platform.startswith("linux"):
        mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(mmap_threshold, 4 * 2**20)


def use_all_cores(cores: int) -> None:
    """Launchers leave every rank one thread, and Trainer leaves it at that."""
    if launched_by_launcher() and not torch.cuda.is_available():
        torch.set_num_threads(cores)
