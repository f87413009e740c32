# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Train the small CLIP that ships as the demo's teacher, on clean phantoms and their captions.

    python recipes/train_demo_teacher.py                                  # about 13 minutes, one thread
    python recipes/train_demo_teacher.py --max_train_steps 50 --output_dir try

It stands in for BiomedCLIP: trained on image-text pairs, laid out like BiomedCLIP's Hub folder (`open_clip_config.json`
and weights with `visual.trunk.*`), loaded by the same code. Its phantoms are clean (20 to 40 dB) and their patients are
in no corpus and no evaluation.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm.auto import tqdm

from modeling_urfm.data.phantoms import LESIONS, ORGANS, generate_phantoms, usable_cores
from modeling_urfm.evaluation.probes import knn_accuracy
from modeling_urfm.pretraining.schedules import cosine_schedule, make_optimizer
from modeling_urfm.pretraining.teacher import CLIP_MEAN, CLIP_STD, DEMO_TEACHER, load_teacher


# Seeds of phantoms that nothing else uses: what the teacher learns from, and what it is tested on.
TRAIN_SEED, TEST_SEED = 7_000_001, 7_000_002
CLEAN_DB = (20.0, 40.0)
IMAGE_SIZE, CONTEXT_LENGTH = 160, 40


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default=str(DEMO_TEACHER), help="Folder of the result.")
    parser.add_argument("--num_patients", type=int, default=1500, help="Patients, 3 frames each.")
    parser.add_argument("--max_train_steps", type=int, default=1000, help="Steps of the optimiser.")
    parser.add_argument("--per_device_train_batch_size", type=int, default=64, help="Image-text pairs a step.")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="Peak learning rate.")
    parser.add_argument("--weight_decay", type=float, default=0.05, help="AdamW's.")
    parser.add_argument("--seed", type=int, default=0, help="Seeds weights, order and crops.")
    args = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)

    phantoms = generate_phantoms(
        args.num_patients,
        frames_per_patient=3,
        snr_db=CLEAN_DB,
        seed=TRAIN_SEED,
        num_proc=usable_cores(),
        progress=True,
    )
    pixels = stack(phantoms)
    vocabulary = make_vocabulary(phantoms["caption"])
    tokens = tokenize(phantoms["caption"], vocabulary)
    config = {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {
                "timm_model_name": "test_vit4", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
                "image_size": IMAGE_SIZE, "patch_dropout": 0.5,
            },
            "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": len(vocabulary), "width": 64, "heads": 4, "layers": 2},
        },
        "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
    }  # fmt: skip
    model = CustomTextCLIP(**config["model_cfg"], output_dict=True)
    for block in model.visual.trunk.blocks:
        # timm starts these scales at 1e-5, for nets hundreds of layers deep; here they would only delay the start.
        block.ls1.gamma.data.fill_(1.0)
        block.ls2.gamma.data.fill_(1.0)
    untrained = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(model, args.learning_rate, args.weight_decay, beta2=0.98)
    scheduler = cosine_schedule(optimizer, args.max_train_steps // 10, args.max_train_steps)
    contrast = ClipLoss()
    generator = torch.Generator().manual_seed(args.seed)
    model.train()
    training_started = time.perf_counter()
    bar = tqdm(range(args.max_train_steps), desc="training the teacher", unit="step")
    order = torch.randperm(len(pixels), generator=generator)
    for step in bar:
        first = step * args.per_device_train_batch_size % (len(order) - args.per_device_train_batch_size)
        if first < args.per_device_train_batch_size and step:
            order = torch.randperm(len(pixels), generator=generator)
        batch = order[first : first + args.per_device_train_batch_size]
        images = normalize(augment(pixels[batch].float() / 255, generator))
        outputs = model(images, tokens[batch])
        loss = contrast(outputs["image_features"], outputs["text_features"], outputs["logit_scale"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}")
    training_s = time.perf_counter() - training_started

    # ---- written whole, then moved into place
    output_dir = Path(args.output_dir)
    temporary = output_dir.with_name(f".tmp-{output_dir.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (temporary / "vocabulary.json").write_text(json.dumps(vocabulary) + "\n")
    save(model.state_dict(), temporary)
    metrics = evaluate(model, vocabulary, temporary, untrained)
    metrics |= {"loss_last": round(loss.item(), 4), "images": len(pixels), "steps": args.max_train_steps}
    results = {
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("torch", "open_clip_torch", "timm", "numpy", "scipy")}
        | {"python": platform.python_version()},
        "seed": args.seed, "metrics": metrics,
        "timings": {"training_s": round(training_s, 1), "total_s": round(time.perf_counter() - started, 1)},
    }  # fmt: skip
    (temporary / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (temporary / "README.md").write_text(describe(results))
    shutil.rmtree(output_dir, ignore_errors=True)
    temporary.rename(output_dir)
    size = sum(p.stat().st_size for p in output_dir.iterdir()) / 2**20
    print(json.dumps(metrics, indent=2))
    print(f"{output_dir}: {size:.1f} MiB. Use it with --teacher open_clip:local-dir:{args.output_dir}")


def stack(phantoms) -> torch.Tensor:
    """(images, 1, 128, 128) uint8."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in phantoms["image"]]))[:, None]


def make_vocabulary(captions: list[str]) -> list[str]:
    """Padding first, the end last: open_clip pools where the token is largest."""
    return ["<pad>", *sorted({word for caption in captions for word in words(caption)}), "<end>"]


def words(caption: str) -> list[str]:
    return caption.lower().replace(",", " ").replace(".", " ").replace(":", " ").split()


def tokenize(captions: list[str], vocabulary: list[str]) -> torch.Tensor:
    """(captions, CONTEXT_LENGTH) token ids; words that are not in the vocabulary are left out."""
    ids = {word: i for i, word in enumerate(vocabulary)}
    out = torch.zeros(len(captions), CONTEXT_LENGTH, dtype=torch.long)
    for row, caption in zip(out, captions):
        known = [ids[word] for word in words(caption) if word in ids][: CONTEXT_LENGTH - 1]
        row[: len(known) + 1] = torch.tensor([*known, len(vocabulary) - 1])
    return out


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop, flip and gain an image, since the student's crops will differ as much: (batch, 3, 160, 160)."""
    batch = len(pixels)
    scale = (torch.rand(batch, generator=generator) * 0.5 + 0.5).sqrt()
    shift = (torch.rand(batch, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    flip = (torch.rand(batch, generator=generator) < 0.5).float() * 2 - 1
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * flip, scale, shift
    grid = F.affine_grid(theta, (batch, 1, IMAGE_SIZE, IMAGE_SIZE), align_corners=False)
    gain = torch.rand(batch, 1, 1, 1, generator=generator) * 0.5 + 0.75
    return (F.grid_sample(pixels, grid, align_corners=False) * gain).clamp(0, 1).expand(-1, 3, -1, -1)


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) / torch.tensor(CLIP_STD).view(1, 3, 1, 1)


def save(state: dict[str, torch.Tensor], folder: Path):
    """Half precision: the loader computes in what it finds faster."""
    save_file({key: value.half().contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")


@torch.no_grad()
def evaluate(model, vocabulary: list[str], folder: Path, untrained: dict) -> dict:
    """On new patients: zero-shot accuracy by text, and kNN accuracy of the mean patch feature as the student sees it."""
    phantoms = generate_phantoms(20 * len(ORGANS), frames_per_patient=1, snr_db=CLEAN_DB, seed=TEST_SEED)
    pixels = stack(phantoms).expand(-1, 3, -1, -1).float() / 255
    organ, lesion = np.array(phantoms["organ"]), np.array(phantoms["lesion"])
    half = np.arange(len(organ)) // len(ORGANS) % 2 == 0

    def features(folder):
        teacher = load_teacher(f"open_clip:local-dir:{folder}", normalize="l2", dtype=torch.float32)
        return np.concatenate([teacher(p, (10, 10)).mean(1).numpy() for p in pixels.split(50)])

    def knn(x, y):
        return round(knn_accuracy(x[half], y[half], x[~half], y[~half], k=5), 4)

    trained = features(folder)
    save(untrained, folder)
    random = features(folder)
    save(model.state_dict(), folder)
    model.eval()
    images = torch.cat([model.encode_image(normalize(resize(p)), normalize=True) for p in pixels.split(50)])
    texts = model.encode_text(
        tokenize([f"An ultrasound scan showing the {name}" for name in ORGANS], vocabulary), normalize=True
    )
    zero_shot = float(((images @ texts.T).argmax(1).numpy() == organ).mean())
    return {
        "organ_zero_shot_accuracy": round(zero_shot, 4),
        "organ_knn_accuracy": knn(trained, organ), "organ_knn_accuracy_untrained": knn(random, organ),
        "lesion_knn_accuracy": knn(trained, lesion), "lesion_knn_accuracy_untrained": knn(random, lesion),
        "lesion_majority": round(float(np.bincount(lesion[~half]).max() / (~half).sum()), 4), "lesions": list(LESIONS),
    }  # fmt: skip


def resize(pixels: torch.Tensor) -> torch.Tensor:
    return F.interpolate(pixels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True).clamp(0, 1)


def describe(results: dict) -> str:
    metrics = results["metrics"]
    return f"""# The demo's teacher

A CLIP of {IMAGE_SIZE}-px images (timm's `test_vit4`, patch 16, 96 features) and short captions, trained by
`{results["command"]}` on {metrics["images"]} synthetic, clean ultrasound phantoms (phantom seed {TRAIN_SEED}). Same
layout as BiomedCLIP's Hub folder; `vocabulary.json` holds the words of its text tower. It knows phantoms alone: not for
any use on patients. Apache-2.0.

Measured on phantoms of other patients (seed {TEST_SEED}, 20 to 40 dB): 15-way organ, zero-shot
{metrics["organ_zero_shot_accuracy"]:.1%}; organ by kNN of the mean patch feature {metrics["organ_knn_accuracy"]:.1%} (untrained:
{metrics["organ_knn_accuracy_untrained"]:.1%}); lesion (3-way) by kNN {metrics["lesion_knn_accuracy"]:.1%} (untrained
{metrics["lesion_knn_accuracy_untrained"]:.1%}, largest class {metrics["lesion_majority"]:.1%}).
"""


if __name__ == "__main__":
    main()
