# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Compare frozen encoders under one protocol: the same images, splits, seeds and probes for every one of them.

    python recipes/evaluate.py --encoders urfm random:urfm --datasets phantoms:organ       # minutes on two cores
    python recipes/evaluate.py --encoders urfm random:urfm --datasets phantoms:lesion phantoms:depth phantoms:lesion_mask
    python recipes/evaluate.py --encoders urfm transformers:facebook/dinov2-base \\
        open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 --datasets busi/ \\
        --protocols knn linear attentive few_shot label_efficiency retrieval robustness
    python recipes/evaluate.py --encoders urfm --datasets ultrabench:AUL=processed ultrabench:GBCU=processed \\
        --protocols linear linear_usjepa                            # beside US-JEPA's published table
    python recipes/evaluate.py --encoders mine --datasets busi/ --compare_with evaluation # with an earlier run
    accelerate launch --multi_gpu --num_processes 8 recipes/evaluate.py ...               # features on all of them

Encoders are those of `modeling_urfm.evaluation.encoders`. Data sets: a folder of classes, a table, images with masks, a
corpus, `phantoms:...`, `ultrabench:TASK=FOLDER` (what `ultrabench` wrote, or the folder above it). Features are computed
once and kept in `--cache_dir`. OUTPUT_DIR gets `report.html` (one file, no network), `results.json`, a folder of PNG
plots a data set, and the predictions that a later `--compare_with` needs. Not for clinical use.
"""

import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from modeling_urfm.data.labelled import TASKS, LabelledDataset, load_labelled
from modeling_urfm.data.labelled_phantoms import PREFIX, TASK_OF
from modeling_urfm.evaluation import protocols as P
from modeling_urfm.evaluation.benchmarks import (
    PUBLISHED_PROTOCOL,
    PUBLISHED_SOURCE,
    VERSION,
    benchmark_task,
    published_column,
)
from modeling_urfm.evaluation.comparison import (
    compare_encoders,
    labels_fingerprint,
    load_outputs,
    rank_encoders,
    read_other,
    save_outputs,
    short_names,
)
from modeling_urfm.evaluation.corruptions import CORRUPTIONS
from modeling_urfm.evaluation.encoders import KINDS, load_encoder
from modeling_urfm.evaluation.frozen import FrozenFeatures, ProtocolSettings, run_protocols
from modeling_urfm.evaluation.report import write_report
from modeling_urfm.evaluation.report_pictures import dataset_plots, rank_plots
from modeling_urfm.evaluation.segmentation_protocol import check_sees
from modeling_urfm.flags import check_choice, flag, helps_of, parse_sections
from modeling_urfm.hub.results import run_facts, write_json
from modeling_urfm.pretraining.engine import end_run, make_sharing_accelerator
from modeling_urfm.pretraining.startup import check_writable


logger = logging.getLogger("evaluate")
BENCHMARK = "ultrabench:"
TABLED = ("knn", "linear", "linear_usjepa", "attentive", "segmentation", "retrieval")


@dataclass
class EvaluateArguments:
    """The `evaluate` section of a config file."""

    encoders: list[str] | None = flag("Encoders: a URFM folder or Hub id, transformers:ID, timm:NAME, open_clip:NAME, "
                                      "random:SPEC (the same architecture with random weights). [urfm random:urfm]")  # fmt: skip
    datasets: list[str] | None = flag("Data sets: folders, tables, phantoms:organ|lesion|lesion_mask|depth|findings, "
                                      "ultrabench:TASK=FOLDER. [phantoms:organ]")  # fmt: skip
    task: str | None = flag("classification, multilabel, regression or segmentation, where the data set does not say. "
                            "[classification]")  # fmt: skip
    protocols: list[str] | None = flag(f"Of {', '.join(P.PROTOCOLS)}. [those that fit the task, but "
                                       f"{' and '.join(P.ON_REQUEST)}]")  # fmt: skip
    output_dir: str = flag("Folder for the report, results.json, plots and predictions.", "evaluation")
    cache_dir: str | None = flag("Folder for features. [features, in the output folder]")
    compare_with: list[str] | None = flag(
        "Output folders of earlier runs on the same data: their encoders stand beside."
    )
    label_columns: list[str] | None = flag("Columns of labels of a table. [found by their names]")
    patient_column: str | None = flag("Column of patients of a table. [found by its name]")
    image_column: str | None = flag("Column of images of a table. [found by its name]")
    split_column: str | None = flag("Column that says train, validation or test. [found by its name]")
    image_root: str | None = flag("Folder that a table's paths start from. [the table's own]")
    validation_fraction: float = flag(
        "Share of the patients that choose settings, where the data set has no split.", 0.15
    )
    test_fraction: float = flag("Share of the patients that are tested, where the data set has no split.", 0.2)
    seed: int = flag("Of the split and of random encoders.", 0)
    seeds: list[int] | None = flag("Seeds of the probes and of the subsets of labels. [0 1 2 3 4]")
    fractions: list[float] | None = flag("Shares of the labels for label_efficiency. [0.01 0.05 0.1 0.25 0.5 1]")
    shots: list[int] | None = flag("Images a class for few_shot. [1 5 10]")
    corruptions: list[str] | None = flag(f"Of {', '.join(CORRUPTIONS)}, for robustness. [all]")
    bootstrap_draws: int = flag("Draws of patients for intervals and tests.", 1000)
    kind: str = flag("Features for probes: pooled (the encoder's own), cls or mean (of the patches).", "pooled")
    image_size: int | None = flag("Side in pixels that every encoder gets. [its own]")
    dtype: str = flag("Number format of the encoders: float32 or bfloat16.", "float32")
    per_device_batch_size: int = flag("Images a process and a forward.", 32)
    num_workers: int | None = flag("Threads a process that read and resize images. [its cores]")

    def __post_init__(self):
        self.encoders = self.encoders or ["urfm", "random:urfm"]
        self.datasets = self.datasets or ["phantoms:organ"]
        self.seeds = list(self.seeds or P.SEEDS)
        self.fractions, self.shots = sorted(self.fractions or P.FRACTIONS), sorted(self.shots or P.SHOTS)
        self.corruptions = list(self.corruptions or CORRUPTIONS)
        check_choice("--task", self.task, (None, *TASKS))
        check_choice("--kind", self.kind, KINDS[:-1])
        check_choice("--dtype", self.dtype, ("float32", "bfloat16"))
        for flag_name, choices in (("protocols", P.PROTOCOLS), ("corruptions", CORRUPTIONS)):
            for value in getattr(self, flag_name) or ():
                check_choice(f"--{flag_name}", value, choices)
        for flag_name in ("encoders", "datasets", "seeds"):
            values = getattr(self, flag_name)
            if len(set(values)) < len(values):
                raise ValueError(f"--{flag_name} has a value twice: {' '.join(map(str, values))}.")
        if any(not 0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"--fractions {self.fractions}: a share of the labels lies in (0, 1].")
        if self.shots[0] < 1:
            raise ValueError(f"--shots {self.shots[0]} must be at least 1.")
        for name, least in (
            ("bootstrap_draws", 0), ("image_size", 1), ("per_device_batch_size", 1), ("num_workers", 1),
        ):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least {least}.")
        if Path(self.output_dir).resolve() in [Path(folder).resolve() for folder in self.compare_with or ()]:
            raise ValueError(f"--compare_with {self.output_dir} is this run's --output_dir: it would be overwritten.")


def main():
    started = time.perf_counter()
    args = read_arguments()
    output_dir = Path(args.output_dir)
    check_writable(output_dir)
    accelerator = make_sharing_accelerator()
    logging.basicConfig(format="%(message)s", level=logging.INFO if accelerator.is_main_process else logging.ERROR)

    # ---- what can fail soon fails first: encoders, then data, then an earlier run
    dtype = getattr(torch, args.dtype)
    encoders = [
        load_encoder(spec, image_size=args.image_size, device=accelerator.device, dtype=dtype, seed=args.seed)
        for spec in args.encoders
    ]
    datasets = {spec: open_dataset(spec, args, accelerator.is_main_process) for spec in args.datasets}
    plans = {spec: plan(spec, data, args) for spec, data in datasets.items()}
    described = {spec: describe(data) for spec, data in datasets.items()}
    others = [read_other(Path(folder), described) for folder in args.compare_with or ()]
    for data in datasets.values():
        if data.task == "segmentation":
            for encoder in encoders:
                check_sees(encoder, data)
    for data in datasets.values():
        logger.info(data.description)

    # ---- features, by all ranks
    opened = time.perf_counter()
    features = {
        (spec, encoder.name): FrozenFeatures(
            data, encoder, Path(args.cache_dir or output_dir / "features"), args.kind, args.per_device_batch_size,
            args.num_workers, accelerator, accelerator.is_main_process,
        )
        for spec, data in datasets.items() for encoder in encoders
    }  # fmt: skip
    for (spec, _), found in features.items():
        found.compute_all(plans[spec][0], args.corruptions)
        found.accelerator = None  # what follows is read from the cache, by the main process alone

    # ---- probes, by the main process
    extracted = time.perf_counter()
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        settings = ProtocolSettings(
            args.seeds, args.fractions, args.shots, args.corruptions, args.bootstrap_draws, str(accelerator.device)
        )
        entries, plots = {}, {}
        for spec, data in datasets.items():
            of_spec = {name: found for (where, name), found in features.items() if where == spec}
            entries[spec], plots[spec] = evaluate(
                spec, data, of_spec, *plans[spec], described[spec], others, settings, output_dir
            )
        metrics = {
            "seeds": args.seeds, "encoders": {e.name: describe_encoder(e, args) for e in encoders}, "datasets": entries,
        }  # fmt: skip
        metrics["ranks"] = rank_encoders(
            entries, list(dict.fromkeys(e for d in entries.values() for e in d["encoders"]))
        )
        plots[""] = rank_plots(metrics["ranks"], output_dir)
        now = time.perf_counter()
        timings = {"open_s": opened - started, "features_s": extracted - opened, "protocols_s": now - extracted,
                   "total_s": now - started}  # fmt: skip
        results = {**run_facts(args.seed), "metrics": metrics, "timings": {k: round(v, 1) for k, v in timings.items()}}
        write_json(output_dir / "results.json", results)
        write_report(results, plots, output_dir / "report.html")
        print_table(metrics)
        print(f"{output_dir / 'report.html'} after {now - started:.0f} s.")
    end_run(accelerator)


def read_arguments() -> EvaluateArguments:
    sections = {"evaluate": (EvaluateArguments, helps_of(EvaluateArguments))}
    return EvaluateArguments(**parse_sections(sections, __doc__.splitlines()[0])["evaluate"])


# ---------------------------------------------------------------- data


def open_dataset(spec: str, args: EvaluateArguments, progress: bool) -> LabelledDataset:
    """A data set with labels; what UltraBench and phantoms are for is known, others are of `--task`."""
    options = {
        "patient_column": args.patient_column, "image_column": args.image_column, "split_column": args.split_column,
        "image_root": args.image_root, "validation_fraction": args.validation_fraction,
        "test_fraction": args.test_fraction, "seed": args.seed, "progress": progress,
    }  # fmt: skip
    if spec.startswith(BENCHMARK):
        name, _, folder = spec.removeprefix(BENCHMARK).partition("=")
        task = benchmark_task(name)
        if not folder:
            raise ValueError(f"--datasets {spec}: write {BENCHMARK}{task.name}=FOLDER, with what `ultrabench` wrote.")
        inside = Path(folder) / f"{task.folder}_v{VERSION}"
        return load_labelled(
            str(inside if inside.is_dir() else folder), task.task, label_columns=[task.column], **options
        )
    task = args.task or "classification"
    if spec.startswith(PREFIX):
        task = TASK_OF.get(spec.removeprefix(PREFIX).partition("?")[0], task)
    return load_labelled(spec, task, label_columns=args.label_columns, **options)


def plan(spec: str, data: LabelledDataset, args: EvaluateArguments) -> tuple[list[str], dict[str, str]]:
    """Protocols to run, and why others that were asked for are not."""
    fit, refused = P.protocols_for(data.task, args.protocols)
    for reason in refused.values():
        logger.warning("%s: %s", spec, reason)
    if not fit:
        raise SystemExit(f"{spec}: nothing to do. {' '.join(refused.values())}")
    return fit, refused


def describe(data: LabelledDataset) -> dict:
    """What `results.json` says of a data set before anything is measured."""
    sides = {side: data.rows(side) for side in ("train", "validation", "test")}
    return {
        "task": data.task, "images": len(data), "patients": len(set(data.patients)), "label_names": list(data.label_names),
        "splits": {
            side: {"images": len(rows), "patients": len(set(data.patients[rows]))} for side, rows in sides.items()
        },
        "fingerprint": data.fingerprint, "split_fingerprint": data.split_fingerprint,
        "labels_fingerprint": labels_fingerprint(data.labels, sides["test"]),
        "notes": list(data.notes), "left_out": [list(line) for line in data.left_out],
    }  # fmt: skip


def describe_encoder(encoder, args: EvaluateArguments) -> dict:
    return {"fingerprint": encoder.fingerprint, "image_size": list(encoder.size), "grid": list(encoder.grid),
            "hidden_size": encoder.hidden_size, "kind": args.kind, "dtype": args.dtype}  # fmt: skip


# ---------------------------------------------------------------- one data set


def evaluate(spec, data, features, names, refused, described, others, settings, output_dir) -> tuple[dict, dict]:
    """Every protocol on every encoder, what earlier runs found, and the tests between them: its entry, and its plots."""
    entry = {**described, "refused": refused, "encoders": {}, "comparisons": {}, "outputs": {}}
    ids = [data.corpus.id(int(row)) for row in data.rows("test")]
    outcomes, shown = {}, {}
    for name, found in features.items():
        facts, outcomes[name], shown[name] = run_protocols(
            found, names, settings, lambda protocol, name=name: logger.info("%s: %s: %s", spec, name, protocol)
        )
        entry["encoders"][name] = facts
        entry["outputs"][name] = {
            protocol: save_outputs(output_dir / "predictions", f"{spec}-{name}-{protocol}", outcome, ids)
            for protocol, outcome in outcomes[name].items()
        }
    for other, folder in zip(others, short_names([other["folder"] for other in others])):
        if spec not in other["datasets"]:
            continue
        then = other["datasets"][spec]
        for name, facts in then["encoders"].items():
            shared = {protocol: facts[protocol] for protocol in names if protocol in facts}
            known = f"{name} [{folder}]"
            entry["encoders"][known] = shared
            outcomes[known] = {
                protocol: load_outputs(other["folder"] / "predictions" / file, shared[protocol], ids)
                for protocol, file in then["outputs"].get(name, {}).items() if protocol in shared
            }  # fmt: skip
    sides = P.Sides.of(data)
    for protocol in names:
        found = {name: of_name[protocol] for name, of_name in outcomes.items() if protocol in of_name}
        if len(found) > 1 and settings.draws:
            entry["comparisons"][protocol] = compare_encoders(sides, found, settings.draws)
    if spec.startswith(BENCHMARK):
        task = benchmark_task(spec.removeprefix(BENCHMARK).partition("=")[0])
        if task.published:
            entry["published"] = {
                "source": PUBLISHED_SOURCE, "protocol": PUBLISHED_PROTOCOL, "figures": published_column(task.published),
            }  # fmt: skip
    folder = output_dir / "plots" / "".join(c if c.isalnum() else "_" for c in spec)[-60:].strip("_")
    values = {} if data.task == "segmentation" else {name: found.of() for name, found in features.items()}
    shown = {name: examples for name, examples in shown.items() if examples}
    return entry, dataset_plots(data, entry, outcomes, values, shown, folder)


def print_table(metrics: dict):
    """The score that counts, of every data set and protocol, as lines of Markdown."""
    for spec, entry in metrics["datasets"].items():
        names = [p for p in TABLED if any(p in facts for facts in entry["encoders"].values())]
        primary = P.PRIMARY[entry["task"]]
        print(f"\n{spec}: {primary} (retrieval: mean average precision), mean ± deviation over seeds [95 % interval]")
        print(f"| encoder | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
        for encoder, facts in entry["encoders"].items():
            cells = [cell(facts.get(p), "mean_average_precision" if p == "retrieval" else primary) for p in names]
            print(f"| {encoder} | {' | '.join(cells)} |")


def cell(facts: dict | None, metric: str) -> str:
    if facts is None:
        return ""
    if facts["collapsed"]:
        return "collapsed"
    summary = facts["scores"][metric]
    spread = f" ± {summary['sd']:.3f}" if summary["n"] > 1 else ""
    low, high = summary["ci95"]
    interval = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{summary['mean']:.3f}{spread}{interval}"


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The features that were finished are kept.")
