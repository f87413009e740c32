# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What of a folder leaves for the Hub: chosen file by file, scrubbed, and put beside each other with its card.

Nothing is sent here and nothing is changed in the folder. What must be written anew lies in a staging folder; large files
that leave as they are are referred to where they lie. The same folder gives the same bytes, so that a second publication
sends nothing.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError

from ..configuration_urfm import nearest_name
from ..flags import check_choice
from . import cards, scrub
from .publishing_errors import check_repo_id
from .results import write_json
from .saving import CODE_FILES, PROCESSOR_AUTO_MAP, add_auto_map, clean_png, publish_config, publish_weights


KINDS = ("encoder", "pretraining", "model", "adapter", "corpus", "space")  # "model": a fine-tuned whole model
# No case is in them.
FIGURES = ("loss.png", "targets.png", "confusion.png", "roc.png", "reliability.png", "regression.png")
PRIVATE_MARKER = ".urfm-private"  # as data.prepare leaves it
ENCODERS = ("URFMModel", "URFMForPreTraining", "URFMBackbone")
ATTENTIVE = "URFMAttentiveForImageClassification"
ARCHITECTURES = (*ENCODERS, "URFMForImageClassification", "URFMForSemanticSegmentation", ATTENTIVE)
TEXT = {".md", ".json", ".yaml", ".txt", ".html"}
SPACE_FILES = {".py", ".md", ".txt", ".html", ".css", ".js", ".svg"}


class StagingError(ValueError):
    """A folder that can't be published as asked; the message says why and what to do."""


@dataclass
class Publication:
    """What is to stand in a repository.

    Attributes:
        repo_id: ORG/NAME. repo_type: "model", "dataset" or "space". kind: one of `KINDS`.
        files: name in the repository to the local file. notes: for the person who publishes; they don't leave.
    """

    repo_id: str
    repo_type: str
    kind: str
    files: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def stage(
    source: Path,
    repo_id: str,
    staging: Path,
    *,
    kind: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    source_url: str | None = None,
    carbon_intensity: float | None = None,
    max_shard_size: str = "5GB",
    model: Path | None = None,
) -> Publication:
    """Everything that leaves of `source`, ready to be sent.

    Args:
        source: what `recipes/pretrain.py`, `finetune.py`, `convert.py` or `prepare.py` left, or the Space's folder.
        repo_id: ORG/NAME. staging: an empty folder, for what is written anew; it must last until all is sent.
        kind: one of `KINDS`; None: found out. base_model: Hub id of an adapter's or model's base.
        license: id of the licence of the weights; None: the recorded one, else "unknown" where real images were used.
        source_url: where converted weights come from. carbon_intensity: of the electricity, in g CO2 per kWh.
        max_shard_size: weights are cut into files of at most this. model: the folder of the Space's model.

    Raises:
        StagingError: no such kind of folder, a private one, an adapter whose base nobody else has, or something that
            must not leave; the message says what to do.
    """
    source, staging = Path(source), Path(staging)
    if not source.is_dir():
        if source.exists():
            raise StagingError(f"{source} is a file: the folder that a recipe left is published.")
        beside = [p.name for p in source.parent.glob("*/")] if source.parent.is_dir() else []
        near = f" Did you mean {source.parent / nearest_name(source.name, beside)}?" if beside else ""
        raise StagingError(f"{source}: no such folder.{near}")
    _refuse_private(source)
    kind = kind_of(source) if kind is None else kind
    check_choice("kind", kind, KINDS)
    staging.mkdir(parents=True, exist_ok=True)
    repo_type = {"corpus": "dataset", "space": "space"}.get(kind, "model")
    publication = Publication(repo_id, repo_type, kind)
    extra = {"license": license, "source_url": source_url, "carbon_intensity": carbon_intensity}
    if model is not None and kind != "space":
        raise StagingError(f"--model names the model of a Space; {source} is of the kind {kind}.")
    if kind == "corpus":
        if given := [name for name, value in {**extra, "base_model": base_model}.items() if value is not None]:
            raise StagingError(
                f"--{given[0]} is of weights; the licence of a corpus is that of its sources (prepare.py)."
            )
        _stage_corpus(source, staging, publication)
    elif kind == "space":
        _stage_space(source, staging, publication, model, base_model, max_shard_size, extra)
    elif kind == "adapter":
        _stage_adapter(source, staging, publication, base_model, extra)
    else:
        _stage_model(source, staging, publication, base_model, max_shard_size, extra)
    _check(publication, source)
    if left := left_behind(source, publication):
        publication.notes.append(f"stays here: {', '.join(left)}")
    publication.files = dict(sorted(publication.files.items()))
    return publication


def kind_of(folder: Path) -> str:
    """Which of `KINDS` a folder is; a pre-training folder is an "encoder", whose decoder stays behind.

    Raises:
        StagingError: none of them; what is missing is said.
    """
    if (folder / "adapter_config.json").is_file() and not list(folder.glob("model*.safetensors")):
        return "adapter"
    if (folder / "manifest.parquet").is_file() and (folder / "data").is_dir():
        return "corpus"
    if (folder / "app.py").is_file() and (folder / "README.md").is_file():
        if "\nsdk:" in (folder / "README.md").read_text(encoding="utf-8", errors="replace"):
            return "space"
    if (folder / "export.json").is_file():
        raise StagingError(
            f"{folder} is an export of recipes/export.py, ready to be shared as it is: hf upload ORG/NAME {folder} --private"
        )
    if (folder / "config.json").is_file():
        config = _model_config(folder)
        if not list(folder.glob("model*.safetensors")):
            raise StagingError(
                f"{folder} has a config.json but no model.safetensors: the run has not ended, or was moved."
            )
        return "encoder" if (_architecture(config, folder) or "URFMModel") in ENCODERS else "model"
    if checkpoints := sorted(p.name for p in folder.glob("checkpoint-*")):
        raise StagingError(
            f"{folder} holds checkpoints up to {checkpoints[-1]} but no model yet: the run must end first "
            "(--resume_from_checkpoint latest)."
        )
    raise StagingError(
        f"{folder} is nothing that is published: no config.json with weights (recipes/pretrain.py, finetune.py, convert.py), no "
        "adapter_config.json, no manifest.parquet with data/ (recipes/prepare.py), no app.py with a Space's README.md."
    )


def _model_config(folder: Path) -> dict:
    """The content of config.json; StagingError where it is of no URFM model."""
    config = _read(folder / "config.json")
    if "model_type" not in config and "architecture" in config:
        raise StagingError(f"{folder} is a model of timm, to be shared as it is: hf upload ORG/NAME {folder} --private")
    if config.get("model_type") != "urfm":
        raise StagingError(f"{folder} is a model of type {config.get('model_type')!r}: recipes/convert.py converts it.")
    return config


def _architecture(config: dict, folder: Path) -> str | None:
    """The class that the weights are of; None where config.json doesn't say."""
    named = config.get("architectures")
    if named in (None, []):
        return None
    if not isinstance(named, list) or named[0] not in ARCHITECTURES:
        raise StagingError(f"{folder}/config.json: architectures {named!r}: none of {', '.join(ARCHITECTURES)}.")
    return named[0]


def _refuse_private(source: Path) -> None:
    place = source.resolve()
    for folder in (place, *place.parents):
        if (folder / PRIVATE_MARKER).exists() or (folder == place and folder.name.endswith("-private")):
            raise StagingError(
                f"{source} is the private part of a corpus: it holds the key of the hashes and the names of the files. It "
                "never leaves; publish the corpus beside it."
            )


# ---------------------------------------------------------------- models


def _stage_model(source, staging, publication, base_model, max_shard_size, extra) -> None:
    architecture = _architecture(_read(source / "config.json"), source)
    attentive = architecture == ATTENTIVE
    if publication.kind == "encoder":
        architecture = "URFMModel"
    elif publication.kind == "pretraining":
        architecture = "URFMForPreTraining"
    else:
        if architecture in (*ENCODERS, None):
            raise StagingError(
                f"{source} is no fine-tuned model (architectures: {architecture or 'none'}): kind 'encoder'."
            )
        if base_model is not None:
            check_repo_id(base_model)
    publication.files |= publish_weights(source, staging, architecture, max_shard_size)
    publish_config(source, staging, architecture, remote_code=not attentive)
    publication.files["config.json"] = staging / "config.json"
    _stage_processor(source, staging, publication, remote_code=not attentive)
    if attentive:
        publication.notes.append("its head is in the package alone: users need the package urfm, and the card says so")
    else:
        for module in CODE_FILES:
            name = Path(module.__file__).name
            shutil.copyfile(module.__file__, staging / name)
            publication.files[name] = staging / name
    _stage_records(source, staging, publication, base_model, extra)


def _stage_adapter(source, staging, publication, base_model, extra) -> None:
    facts = cards.read_facts(source)
    if facts.results.get("metrics", {}).get("random_init") or (source / "random_base").is_dir():
        raise StagingError(
            f"{source} is a control on random weights (--random_init), which lie nowhere else: it is not published."
        )
    content = _read(source / "adapter_config.json")
    base_model = base_model or hub_base(content.get("base_model_name_or_path"), facts.provenance)
    if base_model is None:
        raise StagingError(
            f"{source} was trained on the local folder {content.get('base_model_name_or_path')!r}, which others don't have: "
            "publish that first, then give its id with --base_model ORG/NAME."
        )
    check_repo_id(base_model)
    _model_config(source)
    kept = {}
    for name, value in content.items():
        if scrub.find_place(json.dumps(value)) is None and name not in ("base_model_name_or_path", "revision"):
            kept[name] = value
    if isinstance(kept.get("auto_mapping"), dict):  # of remote code it would name the folder that it came from
        kept["auto_mapping"] |= {"parent_library": "modeling_urfm.modeling_urfm"}
    revision = content.get("revision")
    kept |= {"base_model_name_or_path": base_model, "revision": revision if content.get("base_model_name_or_path") == base_model
             else None}  # fmt: skip
    write_json(staging / "adapter_config.json", kept)
    publication.files["adapter_config.json"] = staging / "adapter_config.json"
    publication.files |= publish_weights(source, staging, None, "50GB", stem="adapter_model")
    publish_config(source, staging, None, remote_code=False)
    publication.files["config.json"] = staging / "config.json"
    _stage_processor(source, staging, publication, remote_code=False)
    _stage_records(source, staging, publication, base_model, extra)


def hub_base(recorded: object, provenance: dict) -> str | None:
    """The Hub id of the base that was recorded; None where it is a folder of some machine, or not recorded."""
    known = (provenance.get("base") or {}).get("kind")
    if known is not None and known != "hub":
        return None
    if not isinstance(recorded, str) or not scrub.HUB_ID.fullmatch(recorded) or Path(recorded).exists():
        return None
    return recorded if known == "hub" or recorded.count("/") == 1 else None


def _stage_processor(source: Path, staging: Path, publication: Publication, remote_code: bool) -> None:
    from ..image_processing_urfm import URFMImageProcessor

    path = staging / "preprocessor_config.json"
    if not (source / path.name).is_file():
        raise StagingError(
            f"{source} has no preprocessor_config.json: nobody would know how its images must be prepared. "
            "URFMImageProcessor(...).save_pretrained(folder) writes one."
        )
    _read(source / path.name)
    known = set(URFMImageProcessor().to_dict()) | set(URFMImageProcessor.valid_kwargs.__annotations__)
    try:
        URFMImageProcessor.from_pretrained(source).save_pretrained(staging)
    except (AttributeError, TypeError, ValueError) as error:
        raise StagingError(f"{source / path.name}: {error}") from error
    content = _read(path)
    write_json(path, {name: value for name, value in content.items() if name in known})
    if remote_code:
        add_auto_map(path, PROCESSOR_AUTO_MAP)
    publication.files[path.name] = path


def _stage_records(source: Path, staging: Path, publication: Publication, base_model: str | None, extra: dict) -> None:
    """Results, provenance, conversion, figures, evaluation results and the card."""
    facts = cards.read_facts(source)
    for name in FIGURES:
        if (source / name).is_file():
            publication.files[name] = clean_png(source / name, staging / name)
    facts.figures = [name for name in FIGURES if name in publication.files]
    for name, content in facts.records().items():
        write_json(staging / name, content)
        publication.files[name] = staging / name
    if labels := cards.labels_of(facts) if publication.kind in ("model", "adapter") else []:
        publication.notes.append(f"these labels leave, in config.json and the card: {', '.join(labels)}")
    if not facts.provenance and not facts.conversion:
        publication.notes.append("no provenance.json: the card says 'not recorded' of data, settings and energy")
    card = cards.render(publication.kind, publication.repo_id, facts, base_model=base_model, **extra)
    (staging / "README.md").write_text(card, encoding="utf-8")
    publication.files["README.md"] = staging / "README.md"
    if results := cards.eval_results(facts):
        path = staging / ".eval_results" / "test.yaml"
        path.parent.mkdir()
        path.write_text(results, encoding="utf-8")
        publication.files[".eval_results/test.yaml"] = path
    if cards.licence_of(facts, extra["license"])["license"] == "unknown":
        publication.notes.append("the licence of the weights is unknown: give it with --license")


# ---------------------------------------------------------------- corpora and the Space


def _stage_corpus(source: Path, staging: Path, publication: Publication) -> None:
    from ..data.card import data_card, published_command
    from ..data.shards import SPLITS

    if not (source / "results.json").is_file():
        raise StagingError(
            f"{source} has no results.json: recipes/prepare.py has not finished it. The same command goes on."
        )
    shards = [p for p in sorted((source / "data").glob("*.parquet")) if p.name.split("-")[0] in SPLITS]
    if not shards:
        raise StagingError(f"{source}/data holds no shard (train-*.parquet, ...).")
    for path in [*shards, source / "manifest.parquet", source / "exclusions.parquet"]:
        if path.is_file():
            scrub.check_parquet(path)
            publication.files[path.relative_to(source).as_posix()] = path
    if (source / "corpus.html").is_file():
        publication.files["corpus.html"] = source / "corpus.html"
    results = _read(source / "results.json")
    try:
        results["command"] = published_command(str(results.get("command", "")), results.get("settings", {}))
        card = data_card(cards.template("dataset_card.md"), results, publication.repo_id)
    except (TemplateError, TypeError, AttributeError) as error:
        raise StagingError(f"{source}/results.json is not as recipes/prepare.py writes it: {error}") from error
    write_json(staging / "results.json", results)
    (staging / "README.md").write_text(card, encoding="utf-8")
    for name in ("results.json", "README.md"):
        publication.files[name] = staging / name
    publication.notes.append(
        "have you looked at review.html in the private folder? The card says what a person must check"
    )


def _stage_space(source, staging, publication, model, base_model, max_shard_size, extra) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        hidden = any(part.startswith((".", "_")) and part != "__init__.py" for part in name.parts)
        if path.is_file() and path.suffix in SPACE_FILES and not hidden:
            publication.files[name.as_posix()] = path
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package.parent)
        if path.is_file() and (path.suffix == ".py" or "assets" in name.parts) and "__pycache__" not in name.parts:
            publication.files[name.as_posix()] = path
    if model is None:
        publication.notes.append(
            "no model goes with the Space: set the variable URFM_MODEL in its settings to a model's id"
        )
        return
    inner = stage(
        Path(model),
        publication.repo_id,
        staging / "urfm",
        base_model=base_model,
        max_shard_size=max_shard_size,
        **extra,
    )
    if inner.repo_type != "model":
        raise StagingError(f"{model} is a {inner.kind}: the Space shows a model or an adapter.")
    publication.files |= {f"urfm/{name}": path for name, path in inner.files.items()}
    publication.notes += inner.notes


# ---------------------------------------------------------------- checks


def left_behind(source: Path, publication: Publication) -> list[str]:
    """Names of what lies in `source` and does not leave, folders with a slash."""
    leave = {name.split("/")[0] for name in publication.files}
    return sorted(f"{p.name}/" if p.is_dir() else p.name for p in source.iterdir() if p.name not in leave)


def _check(publication: Publication, source: Path) -> None:
    """The last look: no text that leaves tells of a place on a machine. The package's own code is not looked at."""
    places = [source.resolve(), Path.home(), Path.cwd()]
    for name, path in publication.files.items():
        if path.suffix not in TEXT or name.startswith("modeling_urfm/"):
            continue
        text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", path.read_text(encoding="utf-8", errors="replace"))  # pictures
        found = scrub.find_place(text, places)
        if found:
            raise StagingError(
                f"{name} would tell of {found!r}, a place on a machine: nothing leaves. Remove it and try again."
            )


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StagingError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise StagingError(f"{path} is no JSON object.")
    return content
