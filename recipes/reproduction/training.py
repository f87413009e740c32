# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""One pre-training: the package's model, objective, masks, optimiser and schedule, on arrays in memory."""

import copy
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from modeling_urfm import URFMConfig, URFMForPreTraining, URFMModel
from modeling_urfm.data.augmentations import UltrasoundAugmentation
from modeling_urfm.modeling_urfm import patchify
from modeling_urfm.pretraining.batches import Normalize
from modeling_urfm.pretraining.ema import ShardedEMA
from modeling_urfm.pretraining.masking import scan_region_patches
from modeling_urfm.pretraining.schedules import RunLength, cosine_schedule, make_optimizer
from modeling_urfm.pretraining.teacher import faster_dtype

from .design import DECODER, ENCODER, IMAGE_SIZE, PATCH_SIZE, STUDENT_SIZE, Arm


AUGMENTATION = {"speckle": 1.0, "blur": 1.0, "gain": 1.0, "contrast": 1.0}
WARMUP, WEIGHT_DECAY, BETA2, MAX_NORM = 0.1, 0.05, 0.95, 1.0


@dataclass
class Trained:
    """What a pre-training gave.

    Attributes:
        encoder: after the last step. checkpoints: step to the encoder then. losses: step to the mean loss since the last one.
        cpu_s: of all steps, without the teacher.
    """

    encoder: URFMModel
    checkpoints: dict[int, URFMModel] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    cpu_s: float = 0.0


def new_model(arm: Arm, target_size: int, seed: int) -> URFMForPreTraining:
    """A model with random weights; the encoder's are the same for all arms of a seed."""
    pixel = arm.targets == "pixel"
    config = {**ENCODER, **DECODER, **arm.model}
    if pixel and (
        arm.blur or arm.augment
    ):  # clean pixels behind what is shown: given as targets, normalised by the loss
        config |= {"target_hidden_size": PATCH_SIZE**2 * 3, "loss_type": "mse"}
    else:
        config |= {"target": "pixel"} if pixel else {"target_hidden_size": target_size}
    torch.manual_seed(seed)
    model = URFMForPreTraining(URFMConfig(**config))
    model.urfm = new_encoder(seed)
    return model


def new_encoder(seed: int) -> URFMModel:
    """The encoder with random weights, which every arm of a seed starts from."""
    torch.manual_seed(seed)
    return URFMModel(URFMConfig(**ENCODER))


def pretrain(arm: Arm, images: np.ndarray, targets: np.ndarray | None, seed: int, steps: int, batch: int,
             checkpoints: tuple[int, ...] = ()) -> Trained:  # fmt: skip
    """Train a new encoder on the processor, in the faster precision.

    Args:
        images: (crops, size, size) uint8. targets: (crops, patches, features) of the teacher; None for pixels.
        seed: of weights, order, masks and augmentation: which crops a step shows is the same for all arms.
        checkpoints: steps after which a copy of the encoder is kept.
    """
    model = new_model(arm, targets.shape[-1] if targets is not None else 0, seed)
    optimizer = make_optimizer(model, arm.learning_rate, WEIGHT_DECAY, BETA2)
    schedule = cosine_schedule(optimizer, RunLength(batch, batch, steps, steps), WARMUP)
    masks, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    augment = UltrasoundAugmentation(AUGMENTATION) if arm.augment else None
    normalize, ema = Normalize("cpu"), ShardedEMA(model, arm.ema) if arm.ema else None
    order = _stream(len(images), steps * batch, np.random.default_rng(seed))
    trained, recent = Trained(model.urfm), []
    model.train()
    torch.manual_seed(seed)
    started = time.process_time()
    bar = tqdm(range(1, steps + 1), desc="pre-training", unit="step", mininterval=5)
    for step in bar:
        rows = order[(step - 1) * batch : step * batch]
        shown = torch.from_numpy(images[rows])[:, None].float() / 255
        sharp = shrink(shown)
        seen = _seen(shown, sharp, arm, augment, rng)
        inputs = normalize(seen.expand(-1, 3, -1, -1))
        given = None
        if targets is not None:
            given = torch.from_numpy(targets[rows]).float()
        elif arm.blur or arm.augment:
            given = patchify(normalize(sharp.expand(-1, 3, -1, -1)), PATCH_SIZE)
        loss_mask = scan_region_patches(sharp, PATCH_SIZE) if arm.scan_region else None
        with autocast():
            loss = model(inputs, target_features=given, loss_mask=loss_mask, generator=masks).loss
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {step} is not finite: lower the learning rate {arm.learning_rate}."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if ema:
            ema.update(model)
        recent.append(loss.item())
        if step == 1 or step % max(1, steps // 20) == 0:
            trained.losses[step] = float(np.mean(recent))
            bar.set_postfix_str(f"loss {trained.losses[step]:.3f}")
            recent.clear()
        if step in checkpoints:
            trained.checkpoints[step] = copy.deepcopy(model.urfm).eval()
    trained.cpu_s = time.process_time() - started
    if ema:
        with ema.swapped(model):
            trained.encoder = copy.deepcopy(model.urfm)
    trained.encoder.eval()
    return trained


def autocast() -> torch.autocast:
    """In `precision`: bf16 where the processor multiplies in it; elsewhere float32, which is the faster there."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bfloat16")


def precision() -> str:
    return str(faster_dtype(torch.device("cpu"))).removeprefix("torch.")


def _stream(count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` rows of `count`, in one random order after the other."""
    return np.concatenate([rng.permutation(count) for _ in range(-(-length // count))])[:length]


def shrink(pixels: torch.Tensor) -> torch.Tensor:
    """Images as students see them: (batch, channels, size, size) to half of the size, each pixel the mean of 2 x 2."""
    return F.avg_pool2d(pixels, IMAGE_SIZE // STUDENT_SIZE)


def _seen(shown: torch.Tensor, sharp: torch.Tensor, arm: Arm, augment, rng: np.random.Generator) -> torch.Tensor:
    """What the student sees of (batch, 1, size, size) in [0, 1]; `sharp` is the same at its own size."""
    if augment:  # at full size, as the corruptions of the test images
        return shrink(torch.stack([augment(image, rng) for image in shown]))
    if arm.blur:
        size = 2 * round(3 * arm.blur) + 1
        return TF.gaussian_blur(sharp, [size, size], [arm.blur, arm.blur])
    return sharp
