# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Train the small CLIP that ships as the demo's teacher, on clean phantoms and their captions.

    python recipes/train_demo_teacher.py                                  # about 13 minutes on two cores
    python recipes/train_demo_teacher.py --max_train_steps 50 --output_dir try
    python recipes/train_demo_teacher.py --pairs scenes                   # the same CLIP, but of another domain

It stands in for BiomedCLIP: trained on image-text pairs, laid out like BiomedCLIP's Hub folder (`open_clip_config.json`,
weights with `visual.trunk.*`, tokenizer), loaded by the same code. Its phantoms are clean (20 to 40 dB) and their
patients are in no corpus and no evaluation; on most of them noise is laid in training, as BiomedCLIP too has seen pictures
of good and bad scanners.

`--pairs scenes` gives the teacher that `recipes/reproduce.py` compares it with, as CLIP stands to BiomedCLIP: the same
network, steps and batches, but it learns from drawn scenes (`reproduction/scenes.py`) and never sees ultrasound.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CustomTextCLIP
from reproduction.scene_teacher import describe_scene_teacher, held_out_scenes, scene_pairs
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from modeling_urfm.data.phantoms import ORGANS, generate_phantoms, usable_cores
from modeling_urfm.evaluation.probes import knn_accuracy
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.pretraining.schedules import RunLength, cosine_schedule, make_optimizer
from modeling_urfm.pretraining.teacher import CLIP_MEAN, CLIP_STD, DEMO_TEACHER, load_teacher


# Seeds of phantoms and scenes that nothing else uses: what the teacher learns from, and what it is tested on.
TRAIN_SEED, TEST_SEED = 7_000_001, 7_000_002
CLEAN_DB = (20.0, 40.0)
TEST_DB = {"clean": CLEAN_DB, "noisy": (5.0, 15.0)}
# What a caption says of a lesion, one of each kind in the order of LESIONS.
FINDINGS = (
    "no focal lesion",
    "an oval, circumscribed, homogeneous mass",
    "an irregular, heterogeneous mass with posterior shadowing, suspicious for malignancy",
)
IMAGE_SIZE, CONTEXT_LENGTH = 128, 40
FRAMES = 3  # of a patient
OUTPUT_DIRS = {"phantoms": DEMO_TEACHER, "scenes": Path(__file__).resolve().parent / "reproduction" / "other_teacher"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", choices=("phantoms", "scenes"), default="phantoms", help="What it learns from.")
    parser.add_argument("--output_dir", help="Folder of the result; by default the teacher of these pairs is replaced.")
    parser.add_argument("--num_patients", type=int, default=2500, help="Patients, 3 frames each; or as many scenes.")
    parser.add_argument("--max_train_steps", type=int, default=2000, help="Steps of the optimiser.")
    parser.add_argument("--per_device_train_batch_size", type=int, default=64, help="Image-text pairs a step.")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="Peak learning rate.")
    parser.add_argument("--weight_decay", type=float, default=0.05, help="AdamW's.")
    parser.add_argument("--seed", type=int, default=0, help="Seeds weights, order and crops.")
    args = parser.parse_args()
    args.output_dir = args.output_dir or str(OUTPUT_DIRS[args.pairs])
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)

    if args.pairs == "phantoms":
        images, captions = phantom_pairs(args.num_patients)
    else:
        images, captions = scene_pairs(TRAIN_SEED, FRAMES * args.num_patients)
    pixels = stack(images)
    tokenizer = make_tokenizer(captions)
    tokens = tokenize(captions, tokenizer)
    config = {
        "model_cfg": {
            "embed_dim": 64,
            "custom_text": True,  # a text tower of its own, under `text.`, as BiomedCLIP's
            "vision_cfg": {
                "timm_model_name": "test_vit4", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
                "image_size": IMAGE_SIZE, "patch_dropout": 0.5,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH, "vocab_size": len(tokenizer), "width": 64, "heads": 4, "layers": 2,
                "hf_tokenizer_name": "demo_teacher",  # the files beside this one
            },
        },
        "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
    }  # fmt: skip
    towers = {key: value for key, value in config["model_cfg"].items() if key != "custom_text"}
    model = CustomTextCLIP(**towers, output_dict=True)
    for block in model.visual.trunk.blocks:
        # timm starts these scales at 1e-5, for nets hundreds of layers deep; here they would only delay the start.
        block.ls1.gamma.data.fill_(1.0)
        block.ls2.gamma.data.fill_(1.0)
    untrained = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(model, args.learning_rate, args.weight_decay, beta2=0.98)
    length = RunLength(len(pixels), args.per_device_train_batch_size, 1, args.max_train_steps)
    scheduler = cosine_schedule(optimizer, length, warmup_ratio=0.1)
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
        images = augment(pixels[batch].float() / 255, generator)
        if args.pairs == "phantoms":
            images = add_noise(images, generator)
        outputs = model(normalize(images.expand(-1, 3, -1, -1)), tokens[batch])
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
    tokenizer.save_pretrained(temporary)
    save(model.state_dict(), temporary)
    metrics = evaluate(model, tokenizer, temporary, untrained, args.pairs)
    metrics |= {"loss_last": round(loss.item(), 4), "images": len(pixels), "steps": args.max_train_steps}
    results = {
        **run_facts(args.seed),
        "metrics": metrics,
        "timings": {"training_s": round(training_s, 1), "total_s": round(time.perf_counter() - started, 1)},
    }  # fmt: skip
    write_json(temporary / "results.json", results)
    if args.pairs == "phantoms":
        text = describe_teacher(results)
    else:
        text = describe_scene_teacher(results, table(metrics), TRAIN_SEED, TEST_SEED)
    (temporary / "README.md").write_text(text)
    shutil.rmtree(output_dir, ignore_errors=True)
    temporary.rename(output_dir)
    size = sum(p.stat().st_size for p in output_dir.iterdir()) / 2**20
    print(json.dumps(metrics, indent=2))
    print(f"{output_dir}: {size:.1f} MiB. Use it with --teacher open_clip:local-dir:{args.output_dir}")


def phantom_pairs(num_patients: int) -> tuple[Sequence, list[str]]:
    """Clean phantoms in grey, FRAMES of each patient, and as many captions."""
    phantoms = generate_phantoms(
        num_patients,
        frames_per_patient=FRAMES,
        snr_db=CLEAN_DB,
        seed=TRAIN_SEED,
        num_proc=usable_cores(),
        progress=True,
    )
    return phantoms["image"], list(phantoms["caption"])


def stack(images) -> torch.Tensor:
    """(images, 1 or 3, 128, 128) uint8, of grey or colour images."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def make_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """A token a word, in lower case; padding first and the end last, since open_clip pools where the token is largest."""
    normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[.,:]"), " ")])
    words = {word for caption in captions for word in normalizer.normalize_str(caption).split()}
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *sorted(words), "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", vocabulary["<end>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=CONTEXT_LENGTH,
    )


def tokenize(captions: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """(captions, CONTEXT_LENGTH) token ids, as open_clip's own wrapper makes them."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop, flip and gain an image, since the student's crops will differ as much: (batch, 1 or 3, size, size)."""
    batch = len(pixels)
    scale = (torch.rand(batch, generator=generator) * 0.5 + 0.5).sqrt()
    shift = (torch.rand(batch, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    flip = (torch.rand(batch, generator=generator) < 0.5).float() * 2 - 1
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * flip, scale, shift
    grid = F.affine_grid(theta, (batch, 1, IMAGE_SIZE, IMAGE_SIZE), align_corners=False)
    gain = torch.rand(batch, 1, 1, 1, generator=generator) * 0.5 + 0.75
    return (F.grid_sample(pixels, grid, align_corners=False) * gain).clamp(0, 1)


def add_noise(pixels: torch.Tensor, generator: torch.Generator, probability: float = 0.7) -> torch.Tensor:
    """Clean pictures as a noisier scanner would show them: (batch, 1, size, size) in [0, 1].

    Grey levels are taken back to echo power (60 dB from black to white), complex Gaussian noise that grows with depth is
    added at 0 to 30 dB, and the sum is compressed again, at the same brightness of soft tissue (the 80th percentile).
    """
    batch, decades = len(pixels), 6 * math.log(10)
    lit = (F.avg_pool2d(pixels, 9, 1, 4) > 0.02).float()
    power = torch.exp(pixels * decades) * lit
    kernel = torch.tensor([0.2, 0.6, 0.2])
    field = torch.randn(2 * batch, 1, *pixels.shape[-2:], generator=generator)
    field = F.conv2d(field, torch.outer(kernel, kernel)[None, None], padding=1).unflatten(0, (2, batch))
    depth = torch.linspace(0, 1, pixels.shape[-2]).view(1, 1, -1, 1)
    noise = field.square().sum(0) * (0.45 + 1.1 * depth**1.5) ** 2 * lit
    snr_db = torch.rand(batch, 1, 1, 1, generator=generator) * 30
    noise *= (
        power.sum((1, 2, 3), keepdim=True) / noise.sum((1, 2, 3), keepdim=True).clamp(min=1e-6) * 10 ** (-snr_db / 10)
    )
    grey = torch.log(power + noise + 1e-3) / decades

    def tissue(values):
        return torch.stack(
            [v[shown > 0].quantile(0.8) if (shown > 0).any() else v.new_zeros(()) for v, shown in zip(values, lit)]
        )

    noisy = ((grey + (tissue(pixels) - tissue(grey)).view(-1, 1, 1, 1)) * lit).clamp(0, 1)
    return torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < probability, noisy, pixels)


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) / torch.tensor(CLIP_STD).view(1, 3, 1, 1)


def save(state: dict[str, torch.Tensor], folder: Path):
    """Half precision: the loader computes in what it finds faster."""
    save_file({key: value.half().contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")


def evaluate(model, tokenizer, folder: Path, untrained: dict, pairs: str) -> dict:
    """What it knows of new patients' phantoms, clean and noisy, and of new scenes if it learned from scenes."""
    metrics = {}
    for name, snr_db in TEST_DB.items():
        phantoms = generate_phantoms(20 * len(ORGANS), frames_per_patient=1, snr_db=snr_db, seed=TEST_SEED)
        labels = {task: np.array(phantoms[task]) for task in ("organ", "lesion")}
        texts = {"organ": [f"An ultrasound scan showing the {organ}" for organ in ORGANS], "lesion": FINDINGS}
        texts = texts if pairs == "phantoms" else {}  # scenes have taught it no words for them
        found = accuracies(model, tokenizer, folder, untrained, stack(phantoms["image"]), labels, texts)
        metrics |= {f"{name}_{key}": value for key, value in found.items()}
    if pairs == "scenes":
        images, labels, texts = held_out_scenes(TEST_SEED)
        found = accuracies(model, tokenizer, folder, untrained, stack(images), labels, texts)
        metrics |= {f"scenes_{key}": value for key, value in found.items()}
    return {key: round(value, 4) for key, value in metrics.items()}


@torch.no_grad()
def accuracies(model, tokenizer, folder: Path, untrained: dict, images, labels: dict, texts: dict) -> dict:
    """Zero-shot accuracy by text, and probes of the mean patch feature as the student sees it, task by task.

    Args:
        folder: has the config; weights are written there. untrained: the state dict before training.
        images: (images, 1 or 3, 128, 128) uint8. labels: (images,) of each task, half of them to fit the probes on.
        texts: of each task that has them, one a class.
    """
    metrics = {}
    pixels = resize(images.expand(-1, 3, -1, -1).float() / 255)
    half = np.arange(len(pixels)) // len(ORGANS) % 2 == 0
    model.eval()
    features = {}
    for key, state in (("_untrained", untrained), ("", model.state_dict())):
        save(state, folder)
        teacher = load_teacher(f"open_clip:local-dir:{folder}", dtype=torch.float32)
        grid = (IMAGE_SIZE // 16,) * 2
        features[key] = np.concatenate([teacher(p, grid).mean(1).numpy() for p in pixels.split(50)])
    embedded = torch.cat([model.encode_image(normalize(p), normalize=True) for p in pixels.split(50)])
    for task, y in labels.items():
        if task in texts:
            classes = model.encode_text(tokenize(texts[task], tokenizer), normalize=True)
            metrics[f"{task}_zero_shot"] = float(((embedded @ classes.T).argmax(1).numpy() == y).mean())
        for key, x in features.items():
            metrics[f"{task}_knn{key}"] = knn_accuracy(x[half], y[half], x[~half], y[~half], k=5)
            scaler = StandardScaler().fit(x[half])
            probe = LogisticRegression(C=0.05, max_iter=2000).fit(scaler.transform(x[half]), y[half])
            metrics[f"{task}_linear{key}"] = float(probe.score(scaler.transform(x[~half]), y[~half]))
        metrics[f"{task}_largest_class"] = float(np.bincount(y[~half]).max() / (~half).sum())
    return metrics


def resize(pixels: torch.Tensor) -> torch.Tensor:
    return F.interpolate(pixels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True).clamp(0, 1)


def table(metrics: dict) -> str:
    """The accuracies in Markdown: a row for each task of scenes, if there are any, and of phantoms."""
    rows = {"kind of the main thing": "scenes_kind", "its colour": "scenes_colour"}
    rows = rows if "scenes_kind_knn" in metrics else {}
    for task in ("organ", "lesion"):
        rows |= {f"{task}, {low:g} to {high:g} dB": f"{name}_{task}" for name, (low, high) in TEST_DB.items()}
    lines = ["| | zero-shot | kNN | linear probe | largest class |", "| --- | --- | --- | --- | --- |"]
    for title, task in rows.items():
        share = {k.removeprefix(f"{task}_"): f"{v:.1%}" for k, v in metrics.items() if k.startswith(f"{task}_")}
        lines.append(
            f"| {title} | {share.get('zero_shot', '-')} | {share['knn']} ({share['knn_untrained']}) | "
            f"{share['linear']} ({share['linear_untrained']}) | {share['largest_class']} |"
        )
    return "\n".join(lines)


def describe_teacher(results: dict) -> str:
    m = results["metrics"]
    return f"""# The demo's teacher

A CLIP of {IMAGE_SIZE}-px images (timm's `test_vit4`, patch 16, 96 features) and short captions, trained by
`{results["command"]}` on {m["images"]} clean synthetic ultrasound phantoms (20 to 40 dB, phantom seed {TRAIN_SEED}) and their
captions; noise was laid on most of them in training. Same layout as BiomedCLIP's Hub folder:
`open_clip.create_model_from_pretrained` and `open_clip.get_tokenizer` take it as `local-dir:`. It knows the organs of
phantoms alone, and not their lesions: not for any use on patients. Apache-2.0.

Accuracy on phantoms of other patients (seed {TEST_SEED}, 300 images; kNN and linear probe of the mean patch feature: half
of them for training, the untrained network's in brackets):

{table(m)}
"""


if __name__ == "__main__":
    main()
