# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""`provenance.json`: what a model was made of and with, recorded by the run itself.

Local folders and files are never named in it, not even by their last part: their fingerprints and counts stand for them.
Data sets of the Hub and those that are made here are named.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..data.card import citations
from ..data.shards import SPLITS
from ..pretraining.teacher import NORMALIZATIONS
from . import scrub
from .results import run_facts, sha256_of


FILE = "provenance.json"
COUNTED = ("by_organ", "by_source", "by_licence", "by_maker", "by_geometry", "by_mode")
SYSTEMS = ("Linux", "Darwin", "Windows")
NOTHING = re.compile(r"(?!)")
PACKAGE = Path(__file__).resolve().parents[1]


def pretraining_provenance(
    args, config, corpus, *, teacher_weights: str | None, devices: Sequence[str], energy: dict | None
) -> dict:
    """What a pre-training run was made of.

    Args:
        args: of `recipes/pretrain.py`. config: of the model. corpus: as opened, one part for each of `args.dataset`.
        teacher_weights: their hash; None where it isn't known. devices: what each process computed on.
        energy: kWh by part of the machine, or None.
    """
    parts = [corpus] if len(args.dataset) == 1 else corpus.parts
    teacher = None
    if config.target == "representation":
        teacher = {
            "spec": named_teacher(args.teacher), "layer": args.teacher_layer, "normalize": args.teacher_normalize,
            "weights": teacher_weights,
        }  # fmt: skip
    return {
        "what": "pre-training",
        "data": [data_facts(name, part, args.dataset_split) for name, part in zip(args.dataset, parts)],
        "teacher": teacher,
        "base": base_facts(args.init_from) if args.init_from else None,
        "training": scrub.public_settings(vars(args)),
        **_made_with(args.seed, devices, energy),
    }


def finetuning_provenance(args, data, *, devices: Sequence[str], energy: dict | None) -> dict:
    """What a fine-tuning run was made of. `data`: a `LabelledDataset`."""
    base = base_facts(args.model_name_or_path)
    if args.random_init:
        base |= {"weights": None, "random": True}
    facts = data_facts(data.name, data.corpus, None, made_by=args.dataset) | {
        "fingerprint": data.fingerprint, "split_fingerprint": data.split_fingerprint,
        "left_out": scrub.counts_by_reason(f"{name}: {reason}" for name, reason in data.left_out),
        "patients": len(set(data.patients.tolist())), "notes": scrub.public_notes(data.notes),
    }  # fmt: skip
    return {
        "what": "fine-tuning", "data": [facts], "teacher": None, "base": base,
        "training": scrub.public_settings(vars(args)), **_made_with(args.seed, devices, energy),
    }  # fmt: skip


def _made_with(seed: int, devices: Sequence[str], energy: dict | None) -> dict:
    return {
        "seed": seed,
        "versions": run_facts(seed)["versions"],
        "code": code_facts(),
        "hardware": {"devices": sorted(set(devices)), "processes": len(devices), "processor": processor_name(),
                     "cores": os.cpu_count(), "system": platform.system()},
        "energy_kwh": energy,
    }  # fmt: skip


# ---------------------------------------------------------------- parts


def data_facts(name: str, corpus, split: str | None, made_by: str | None = None) -> dict:
    """What a data set is and how much of it there is, without where it lies.

    Args:
        name: what was asked for. corpus: `data.corpus.Corpus`. made_by: the same for a `LabelledDataset`, whose own name
            may be another.
    """
    asked = str(made_by or name)
    kind = "made" if scrub.MADE.fullmatch(asked) else "local" if Path(asked).exists() else "hub"
    if kind == "hub" and not scrub.HUB_ID.fullmatch(asked):
        kind = "local"
    facts = {
        "kind": kind, "name": None if kind == "local" else asked, "split": split, "images": len(corpus),
        "fingerprint": corpus.fingerprint,
        "left_out": scrub.counts_by_reason(f"{file}: {reason}" for file, reason in corpus.left_out),
    }  # fmt: skip
    if kind == "hub":
        facts |= hub_facts(asked, corpus)
    if kind == "local" and (Path(asked) / "manifest.parquet").is_file() and (Path(asked) / "results.json").is_file():
        facts |= {"kind": "corpus", "corpus": corpus_facts(Path(asked))}
    return facts


def hub_facts(name: str, corpus) -> dict:
    """Of a data set of the Hub the commit that was read and, of a corpus of `recipes/prepare.py`, its summary."""
    from huggingface_hub import hf_hub_download

    # `datasets` says which commit it read in the name of its cache alone.
    files = getattr(getattr(corpus, "table", None), "cache_files", None) or []
    names = [part for file in files for part in Path(file["filename"]).parts if re.fullmatch("[0-9a-f]{40}", part)]
    if not names:
        return {"revision": None}
    where = {"repo_id": name, "repo_type": "dataset", "revision": names[-1]}
    try:
        hf_hub_download(filename="manifest.parquet", **where)
        folder = Path(hf_hub_download(filename="results.json", **where)).parent
        return {"revision": names[-1], "corpus": corpus_facts(folder)}
    except (OSError, ValueError, AttributeError):  # no corpus of ours, or the Hub can't be asked
        return {"revision": names[-1]}


def corpus_facts(folder: Path) -> dict:
    """A summary of a corpus of `recipes/prepare.py`: counts, licences, citations, and the hash of its manifest."""
    metrics = json.loads((folder / "results.json").read_text()).get("metrics", {})
    return {
        "manifest_sha256": sha256_of(folder / "manifest.parquet"),
        "images": metrics.get("frames_kept"), "patients": metrics.get("patients"),
        **{name: metrics.get(name) for name in COUNTED},
        "patients_by_organ": patients_by_organ(folder),
        "splits": metrics.get("splits"), "exclusions": metrics.get("exclusions") or [],
        "citations": citations(metrics.get("by_source") or {}),
    }  # fmt: skip


def patients_by_organ(folder: Path) -> dict[str, int]:
    """Patients of each organ in all splits of a corpus; a patient with two organs counts for both."""
    import pyarrow.parquet as pq

    found = defaultdict(set)
    for path in sorted((folder / "data").glob("*.parquet")):
        if path.name.split("-")[0] in SPLITS:
            table = pq.read_table(path, columns=["organ", "patient"])
            for organ, patient in set(zip(*(table.column(name).to_pylist() for name in ("organ", "patient")))):
                found[organ or "unknown"].add(patient)
    return {organ: len(patients) for organ, patients in sorted(found.items())}


def base_facts(name: str) -> dict:
    """The model that training began from: its id if it is of the Hub, and the hash of its weights where they are at hand."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).exists() or not scrub.HUB_ID.fullmatch(str(name)):
        files = sorted(Path(name).glob("model*.safetensors"))
        return {"kind": "local", "name": None, "revision": None, "weights": _digest_of(files)}
    cached = try_to_load_from_cache(name, "config.json")
    folder = Path(cached).parent if isinstance(cached, str) else None
    files = sorted(folder.glob("model*.safetensors")) if folder else []
    return {"kind": "hub", "name": name, "revision": folder.name if folder else None, "weights": _digest_of(files)}


def _digest_of(files: Sequence[Path]) -> str | None:
    """Of one file its SHA-256, of several that of theirs."""
    digests = [sha256_of(path) for path in files]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def named_teacher(spec: str) -> str:
    """A teacher's spec without the folder that it lies in.

    >>> named_teacher("open_clip:local-dir:/home/anna/biomedclip"), named_teacher("open_clip:hf-hub:ORG/NAME")
    ('open_clip:local-dir', 'open_clip:hf-hub:ORG/NAME')
    """
    scheme, _, place = spec.rpartition(":")
    if spec == "demo" or (scheme == "open_clip:hf-hub" and scrub.HUB_ID.fullmatch(place)):
        return spec
    if scheme == "transformers" and scrub.HUB_ID.fullmatch(place) and not Path(place).exists():
        return spec
    return scheme if scheme in ("open_clip:local-dir", "open_clip:hf-hub", "transformers") else "local"


def code_facts() -> dict | None:
    """Commit of the code and whether files differ from it; None where the package lies in no repository of its own."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=PACKAGE, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else the commit would be of a project that we lie in
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def processor_name() -> str | None:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


# ---------------------------------------------------------------- what leaves


def public_provenance(content: dict) -> dict:
    """`provenance.json` as it leaves: read again field by field, whoever wrote it."""
    hardware, code, energy = (content.get(name) or {} for name in ("hardware", "code", "energy_kwh"))
    teacher = content.get("teacher") or {}
    return {
        "what": _one_of(("pre-training", "fine-tuning"), content.get("what")),
        "data": [_public_data(part) for part in content.get("data") or [] if isinstance(part, dict)],
        "teacher": {
            "spec": named_teacher(str(teacher.get("spec"))), "layer": _number(teacher.get("layer")),
            "normalize": _one_of(NORMALIZATIONS, teacher.get("normalize")), "weights": _hash(teacher.get("weights")),
        } if teacher else None,
        "base": _public_base(content.get("base")),
        "training": scrub.public_settings(content.get("training") or {}),
        "seed": _number(content.get("seed")),
        "versions": scrub.public_versions(content.get("versions")),
        "code": {"commit": _hash(code.get("commit")), "dirty": bool(code.get("dirty"))} if code else None,
        "hardware": {
            "devices": [word for word in map(_words, hardware.get("devices") or []) if word],
            "processes": _number(hardware.get("processes")), "processor": _words(hardware.get("processor")),
            "cores": _number(hardware.get("cores")), "system": _one_of(SYSTEMS, hardware.get("system")),
        } if hardware else None,
        "energy_kwh": {k: v for k, v in energy.items() if k in ("gpu", "processors") and _number(v) is not None} or None,
    }  # fmt: skip


def _public_data(part: dict) -> dict:
    kind = part.get("kind") if part.get("kind") in ("made", "hub", "corpus") else "local"
    name = part.get("name") if isinstance(part.get("name"), str) else None
    shown = {
        "kind": kind,
        "name": name if name and {"made": scrub.MADE, "hub": scrub.HUB_ID}.get(kind, NOTHING).fullmatch(name) else None,
        "split": _one_of(SPLITS, part.get("split")),
        **{key: _number(part.get(key)) for key in ("images", "patients") if key in part},
        **{key: _hash(part.get(key)) for key in ("fingerprint", "split_fingerprint") if key in part},
        "left_out": scrub.counts_by_reason(part.get("left_out")),
    }
    if part.get("notes"):
        shown["notes"] = scrub.public_notes(part["notes"])
    corpus = part.get("corpus")
    if kind == "hub":
        shown["revision"] = _hash(part.get("revision"))
    if kind in ("corpus", "hub") and isinstance(corpus, dict):
        counts = {name: _counts(corpus.get(name)) for name in (*COUNTED, "patients_by_organ")}
        shown["corpus"] = {
            "manifest_sha256": _hash(corpus.get("manifest_sha256")),
            "images": _number(corpus.get("images")), "patients": _number(corpus.get("patients")), **counts,
            "splits": {split: scrub.numbers(corpus["splits"][split]) for split in SPLITS if split in (corpus.get("splits") or {})},
            "exclusions": scrub.numbers(corpus.get("exclusions") or []),
            "citations": citations(counts["by_source"] or {}),
        }  # fmt: skip
    return shown


def _public_base(base: object) -> dict | None:
    if not isinstance(base, dict):
        return None
    name = base.get("name") if base.get("kind") == "hub" else None
    shown = {
        "kind": "hub" if base.get("kind") == "hub" else "local",
        "name": name if isinstance(name, str) and scrub.HUB_ID.fullmatch(name) else None,
        "revision": _hash(base.get("revision")), "weights": _hash(base.get("weights")),
    }  # fmt: skip
    return shown | ({"random": True} if base.get("random") else {})


def _number(value):
    return value if scrub.is_number(value) else None


def _one_of(words: Sequence[str], value):
    return value if value in words else None


def _hash(value):
    return value if isinstance(value, str) and scrub.DIGEST.fullmatch(value) else None


def _words(value):
    """Names of devices and the like: letters, digits and a few signs, on one line."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][\w ()@.,+-]{0,79}", value) else None


def _counts(table: object) -> dict[str, int] | None:
    """Names to counts; a name of any other form is added to "other"."""
    if not isinstance(table, dict):
        return None
    kept: dict[str, int] = {}
    for name, count in table.items():
        known = name if scrub.WORDS.fullmatch(str(name)) else "other"
        kept[known] = kept.get(known, 0) + (_number(count) or 0)
    return kept
