# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What speed costs in quality: pre-training configurations side by side on phantoms, over epochs and over time.

    python recipes/compare_pretraining.py                                # all arms, three seeds: 35 minutes on two cores
    python recipes/compare_pretraining.py --arms fast cached --seeds 0   # a part of it
    python recipes/compare_pretraining.py --num_train_epochs 2 --seeds 0 # does it run?

Each arm is `recipes/pretrain.py` on the demo's data with the demo's teacher and encoder (3 layers x 192, 128 px), but with
patches of 8 px: 256 of them, near ViT-B/16's 196. The decoder has the proportions of the full-size configuration that the
arm stands for:

- released: MAE's decoder as wide as the encoder and two thirds as deep, all hidden patches predicted, teacher online
  (urfm_base.yaml, but with MAE's mask ratio of 0.75)
- fast: the decoder, mask ratio and predicted share of urfm_base_fast.yaml, teacher online
- cached: the same, features from a target cache
- longer: as `fast`, for `--longer` times the epochs: about the time that `released` takes

Runs that are finished are not repeated; `--jobs` runs go on side by side, each on its share of the cores, so that their
times compare. OUTPUT_DIR gets `results.json`, `curves.png` and a folder a run.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from modeling_urfm import URFMImageProcessor, URFMModel
from modeling_urfm.data.demo import PHANTOM_SIZE, PHANTOM_SNR_DB
from modeling_urfm.data.phantoms import ORGANS, generate_phantoms, usable_cores
from modeling_urfm.evaluation.plots import plot_curves
from modeling_urfm.evaluation.probes import bootstrap_interval, embed, knn_predict
from modeling_urfm.hub.results import run_facts, write_json


HERE = Path(__file__).resolve().parent
FAST = {
    "patch_size": 8, "mask_ratio": 0.8,
    "decoder_type": "cross_attention", "decoder_mask_fraction": 0.25,
    "decoder_hidden_size": 96, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3, "decoder_intermediate_size": 384,
}  # fmt: skip
RELEASED = {
    "patch_size": 8, "mask_ratio": 0.75,
    "decoder_type": "self_attention", "decoder_mask_fraction": 1.0,
    "decoder_hidden_size": 192, "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3, "decoder_intermediate_size": 768,
}  # fmt: skip
ARMS = {"released": RELEASED, "fast": FAST, "cached": FAST, "longer": FAST}
PROBE_SEED = 9_100_001  # phantoms that neither training nor the evaluations on the way have seen


def main():
    args = parse(sys.argv[1:])
    started = time.perf_counter()
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    runs = [(arm, seed) for seed in args.seeds for arm in args.arms]
    if "cached" in args.arms:
        cache(output_dir, args)
    cores = queue.SimpleQueue()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else []
    for part in np.array_split(sorted(affinity), args.jobs):
        cores.put(part.tolist())
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(runs), unit="run", desc="pre-training") as bar:
        for _ in pool.map(lambda run: train(*run, output_dir, cores, args), runs):
            bar.update()
    results = {
        (arm, seed): json.loads((output_dir / name(arm, seed) / "results.json").read_text()) for arm, seed in runs
    }
    probed = probe(runs, output_dir, args)
    table = {arm: summary(arm, args.seeds, results, probed) for arm in args.arms}
    curves = {arm: [results[arm, seed]["evaluations"] for seed in args.seeds] for arm in args.arms}
    global_batch = next(iter(results.values()))["metrics"]["global_batch"]
    per_epoch = next(iter(results.values()))["metrics"]["images_per_epoch"]
    plot_curves(curves, global_batch / per_epoch, output_dir / "curves.png")
    write_json(output_dir / "results.json", {
        **run_facts(0), "seeds": args.seeds, "metrics": table,
        "curves": {arm: dict(zip(map(str, args.seeds), parts)) for arm, parts in curves.items()},
        "timings": {"total_s": round(time.perf_counter() - started, 1)},
    })  # fmt: skip
    print_table(table, args.seeds)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="Configurations.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Each arm runs once with each.")
    parser.add_argument("--num_train_epochs", type=float, default=6, help="Passes over the demo's data.")
    parser.add_argument(
        "--longer", type=float, default=3.7, help="Passes of the arm `longer`, as a multiple of --num_train_epochs."
    )
    parser.add_argument("--eval_steps", type=int, default=50, help="Steps between two points of a curve.")
    parser.add_argument(
        "--probe_patients", type=int, default=3000, help="Phantoms of the final probes, half for testing."
    )
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="Runs side by side, one core each.")
    parser.add_argument("--output_dir", default="compared", help="Folder for runs, results.json and curves.png.")
    parser.add_argument("--phantom_patients", type=int, default=450, help="Patients of the demo's data, 4 frames each.")
    return parser.parse_args(argv)


def name(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"


def cache(output_dir: Path, args):
    """Targets of the demo's data; finished parts of it are kept."""
    command = [sys.executable, str(HERE / "cache_targets.py"), "--dataset", "demo", "--teacher", "demo",
               "--phantom_patients", str(args.phantom_patients), "--output_dir", str(output_dir / "targets")]  # fmt: skip
    run(command, output_dir / "cache.log")


def train(arm: str, seed: int, output_dir: Path, cores: queue.SimpleQueue, args):
    """One run of `recipes/pretrain.py` on cores of its own, unless it is there."""
    folder = output_dir / name(arm, seed)
    flags = ARMS[arm] | {
        "seed": seed, "output_dir": folder, "num_train_epochs": args.num_train_epochs, "eval_steps": args.eval_steps,
        "phantom_patients": args.phantom_patients, "logging_steps": 50, "resume_from_checkpoint": "latest",
    }  # fmt: skip
    if arm == "longer":  # its points lie on the others' clock
        flags |= {
            "num_train_epochs": args.longer * args.num_train_epochs,
            "eval_steps": round(args.longer * args.eval_steps),
        }
    if arm == "cached":
        flags["target_cache"] = output_dir / "targets"
    command = [sys.executable, str(HERE / "pretrain.py")]
    for flag, value in flags.items():
        command += [f"--{flag}", str(value)]
    told = folder.with_suffix(".flags.json")
    flags = {flag: str(value) for flag, value in flags.items()}
    if told.is_file() and json.loads(told.read_text()) != flags:
        raise SystemExit(
            f"{folder} was trained with other flags ({told.name}): give another --output_dir, or remove both."
        )
    write_json(told, flags)
    if (folder / "results.json").is_file():
        return
    mine = cores.get()
    try:
        run(command, output_dir / f"{name(arm, seed)}.log", mine)
    finally:
        cores.put(mine)


def run(command: list[str], log: Path, cores: list[int] | None = None):
    """Run a recipe; what it says goes into `log`, and its end is shown where it fails."""
    pinned = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=pinned)
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}; the end of {log}:\n{end}")


def probe(runs: list[tuple[str, int]], output_dir: Path, args) -> dict:
    """kNN and a linear probe of the frozen encoders, 15 organs: what each test image was found to be right (0 or 1)."""
    patients = args.probe_patients
    phantoms = generate_phantoms(
        patients, frames_per_patient=1, image_size=PHANTOM_SIZE, snr_db=PHANTOM_SNR_DB, seed=PROBE_SEED,
        num_proc=usable_cores(),
    )  # fmt: skip
    pixels = URFMImageProcessor(size={"height": PHANTOM_SIZE, "width": PHANTOM_SIZE})(
        phantoms["image"][:], return_tensors="pt"
    ).pixel_values
    labels, test = np.array(phantoms["organ"]), np.arange(patients) // len(ORGANS) % 2 == 1
    found = {}
    for arm, seed in tqdm(runs, unit="run", desc="probing"):
        features = embed(URFMModel.from_pretrained(output_dir / name(arm, seed)), pixels.split(64))
        scaled = StandardScaler().fit(features[~test]).transform(features)
        linear = LogisticRegression(max_iter=2000, C=0.1).fit(scaled[~test], labels[~test]).predict(scaled[test])
        nearest = knn_predict(features[~test], labels[~test], features[test])
        found[arm, seed] = {
            "linear": (linear == labels[test]).astype(float),
            "knn": (nearest == labels[test]).astype(float),
        }
    return found


def summary(arm: str, seeds: list[int], results: dict, probed: dict) -> dict:
    """Of one arm: accuracies by seed, their mean, its spread over the seeds, and the time that training took."""
    facts = {"training_s": [results[arm, seed]["timings"]["training_s"] for seed in seeds]}
    for kind in ("linear", "knn"):
        rights = [probed[arm, seed][kind] for seed in seeds]
        values = [float(right.mean()) for right in rights]
        facts[kind] = {
            "by_seed": values, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "ci95_over_images": bootstrap_interval(np.mean(rights, axis=0)),
        }  # fmt: skip
    return facts


def print_table(table: dict, seeds: list[int]):
    print(f"\n15 organs, frozen encoder, seeds {', '.join(map(str, seeds))}: mean ± standard deviation over seeds")
    print("| arm | linear probe | kNN | training, s |\n| --- | --- | --- | --- |")
    for arm, facts in table.items():
        cells = [
            f"{100 * facts[kind]['mean']:.1f}" + (f" ± {100 * facts[kind]['std']:.1f}" if len(seeds) > 1 else "")
            for kind in ("linear", "knn")
        ]
        print(f"| {arm} | {cells[0]} | {cells[1]} | {', '.join(f'{s:.0f}' for s in facts['training_s'])} |")


if __name__ == "__main__":
    main()
