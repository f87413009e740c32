# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The cards of models and adapters: `hub_cards/*.md`, Jinja templates, filled from what a run recorded.

Nothing in a card is written by hand. What was not measured is said to be so. Whatever a file brought (labels, licences)
is escaped. The same record gives the same bytes. The data-set card is `data.card`'s.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from jinja2 import TemplateError

from ..data.card import largest_first, markdown_cell, number, organ_name
from . import provenance as provenance_module
from . import scrub
from .results import finite


TEMPLATES = Path(__file__).resolve().parents[2] / "hub_cards"
HEADLINES = {
    "classification": "macro_f1", "multilabel": "average_precision", "regression": "mae", "segmentation": "dice",
}  # fmt: skip
# Ids that the Hub has for licences of models (huggingface.co/docs/hub/repositories-licenses), as far as they are usual.
LICENCES = frozenset(
    "apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-4.0 cc-by-3.0 cc-by-nc-3.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 openrail bigscience-openrail-m "
    "creativeml-openrail-m llama3 gemma other unknown".split()
)


@dataclass
class Facts:
    """What is known of a model, scrubbed: what may leave and nothing else.

    Attributes:
        results: of `results.json`. config: of `config.json`. provenance, conversion, adapter: of `provenance.json`,
            `conversion.json` and `adapter_config.json`, empty where there is none. figures: names of those that lie beside.
    """

    results: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    conversion: dict = field(default_factory=dict)
    adapter: dict = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)

    def records(self) -> dict[str, dict]:
        """Files that leave with the model: name to content."""
        named = {
            "results.json": self.results,
            "provenance.json": self.provenance,
            "conversion.json": self.conversion,
        }
        return {name: content for name, content in named.items() if content}

    @property
    def data(self) -> list[dict]:
        """What it was trained on, as `provenance.data_facts` has it. Older runs left the name of a made data set only."""
        if self.provenance:
            return self.provenance["data"]
        name = (self.results.get("metrics") or {}).get("dataset")
        return [{"kind": "made", "name": name, "left_out": {}}] if name else []

    @property
    def base(self) -> dict:
        """What training began from, as `provenance.base_facts` has it; empty where it isn't known."""
        return self.provenance.get("base") or {}


def make_facts(results: dict, config: dict, provenance: dict | None = None, conversion: dict | None = None,
               adapter: dict | None = None, figures: list[str] | None = None) -> Facts:  # fmt: skip
    """`Facts` of contents as they lie in an output folder; this is where they are scrubbed."""
    results, provenance, conversion = finite(results), finite(provenance), finite(conversion)  # NaN is "not measured"
    made_of = provenance_module.public_provenance(provenance) if provenance else {}
    settings = {**scrub.public_settings(config), **(made_of.get("training") or {})}
    return Facts(
        scrub.public_results(results, settings) if results else {},
        config,
        made_of,
        scrub.public_conversion(conversion) if conversion else {},
        adapter or {},
        figures or [],
    )


def read_facts(folder: Path) -> Facts:
    """`Facts` of an output folder; files that are not there are left out.

    Raises:
        ValueError: a file that is no JSON, or not of the form that the recipes write.
    """

    def read(name: str) -> dict:
        path = Path(folder) / name
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no JSON object.")
        return content

    contents = [
        read(name)
        for name in ("results.json", "config.json", provenance_module.FILE, "conversion.json", "adapter_config.json")
    ]
    try:
        return make_facts(*contents, [p.name for p in sorted(Path(folder).glob("*.png"))])
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder}: results.json or {provenance_module.FILE} is not as the recipes write it: {error}"
        ) from error


def template(name: str) -> Path:
    """A template of `hub_cards/`.

    Raises:
        FileNotFoundError: the package was installed without the repository's folder.
    """
    path = TEMPLATES / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the cards' templates come with a clone of the project, not with the package.")
    return path


def render(
    kind: str,
    name: str,
    facts: Facts,
    *,
    base_model: str | None = None,
    license: str | None = None,
    source_url: str | None = None,
    carbon_intensity: float | None = None,
) -> str:
    """The text of a model's README.md.

    Args:
        kind: "encoder", "pretraining", "model" or "adapter". name: ORG/NAME, or the folder's name before publication.
        base_model: Hub id of the base. license: id of the licence; None: the recorded one. source_url: of converted weights.
        carbon_intensity: of the electricity, in g CO2 per kWh; only with it emissions are stated.

    Raises:
        ValueError: a carbon intensity below 0, or a record that is not of the form that the recipes write.
    """
    if carbon_intensity is not None and not 0 <= carbon_intensity < 5000:
        raise ValueError(f"carbon_intensity {carbon_intensity}: grams of CO2 per kWh, from 0 to 5000.")
    metrics = facts.results.get("metrics") or {}
    base = base_model or facts.base.get("name")
    tuned = kind in ("model", "adapter")
    used = template("adapter_card.md" if tuned else "model_card.md")
    task = metrics.get("task")
    segments = task == "segmentation" or "Segmentation" in _architecture(facts)
    try:
        data = metadata(kind, name, facts, base_model=base_model, license=license, source_url=source_url,
                        carbon_intensity=carbon_intensity)  # fmt: skip
        card = ModelCard.from_template(
            data, template_path=str(used), name=name, kind=kind, facts=facts, results=facts.results, metrics=metrics,
            config=facts.config, provenance=facts.provenance, conversion=facts.conversion, adapter=facts.adapter,
            figures=facts.figures, base=base, data=facts.data,
            task=task, segments=segments, attentive="Attentive" in _architecture(facts),
            auto_class="AutoModelForSemanticSegmentation" if segments else "AutoModelForImageClassification",
            labels=labels_of(facts), headline=HEADLINES.get(task), scores=scores(metrics), licence=data.license,
            source_url=_url(source_url or facts.conversion.get("source_url")), carbon_intensity=carbon_intensity,
            kwh=energy_kwh(facts.provenance), emissions=data.get("co2_eq_emissions"), teacher=_teacher(facts.provenance),
            cell=markdown_cell, number=number, largest_first=largest_first, organ_name=organ_name, data_name=data_name,
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the card of {name} can't be filled: a file of the run is not as the recipes write it ({error})."
        ) from error
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def metadata(
    kind: str, name: str, facts: Facts, *, base_model: str | None = None, license: str | None = None,
    source_url: str | None = None, carbon_intensity: float | None = None,
) -> ModelCardData:  # fmt: skip
    """The YAML at the head of a card, as the Hub reads it."""
    metrics = facts.results.get("metrics") or {}
    tuned = kind in ("model", "adapter")
    pipeline = "image-feature-extraction"
    if tuned:
        pipeline = "image-segmentation" if metrics.get("task") == "segmentation" or "Segmentation" in _architecture(facts) else (
            "image-classification")  # fmt: skip
    hub_data = [part["name"] for part in facts.data if part["kind"] == "hub" and part["name"]]
    base = base_model or facts.base.get("name")
    tags = ["ultrasound", "medical-imaging", "urfm"]
    tags += [metrics["method"]] if tuned and metrics.get("method") else []
    if not tuned:
        tags += ["foundation-model", "feature-extraction"] + ([] if facts.conversion else ["masked-image-modeling"])
    evaluations = [
        EvalResult(task_type=pipeline, dataset_type=hub_data[0] if hub_data else "other",
                   dataset_name=hub_data[0] if hub_data else data_name((facts.data or [{}])[0]),
                   dataset_split="test", metric_type=key, metric_value=round(value, 4))
        for key, value, _ in scores(metrics)
    ] if tuned else []  # fmt: skip
    extra = {}
    kwh = energy_kwh(facts.provenance)
    if kwh is not None and carbon_intensity is not None:
        device = ((facts.provenance.get("hardware") or {}).get("devices") or ["unknown"])[0]
        extra["co2_eq_emissions"] = {
            "emissions": round(kwh * carbon_intensity, 3), "source": "energy measured by the machine's counters",
            "training_type": "fine-tuning" if tuned else "pre-training", "hardware_used": device,
        }  # fmt: skip
    relation = {"adapter": "adapter", "model": "finetune"}.get(kind)
    return ModelCardData(
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag=pipeline,
        **licence_of(facts, license),
        base_model=base,
        **({"base_model_relation": relation} if relation and base else {}),
        datasets=sorted(set(hub_data)) or None,
        tags=tags,
        model_name=name.rsplit("/", 1)[-1] if evaluations else None,
        eval_results=evaluations or None,
        **extra,
    )


def licence_of(facts: Facts, given: str | None) -> dict[str, str]:
    """`license` of the YAML, with `license_name` where the Hub has no id for it.

    What was given counts, then what a conversion recorded. Weights that only data made here went into, or an adapter's, are
    under Apache 2.0 as those are; of all others nobody here knows.
    """
    # Fine-tuned weights hold those of their base, of which older runs recorded nothing.
    whole = not facts.adapter and (facts.base or (facts.results.get("metrics") or {}).get("method"))
    ours = bool(facts.data) and all(part["kind"] == "made" for part in facts.data) and not whole
    named = given or facts.conversion.get("license") or ("apache-2.0" if ours else "unknown")
    key = re.sub(r"[\s_]+", "-", str(named).strip().lower())
    if key in LICENCES:
        return {"license": key}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", key).strip("-") or "see-the-card"}


def scores(metrics: dict) -> list[tuple[str, float, list[float]]]:
    """(name, value, 95 % interval) of the test's finite figures that have an interval."""
    test = metrics.get("test") or {}
    return [
        (key, value, test[f"{key}_ci95"])
        for key, value in test.items()
        if isinstance(value, float) and math.isfinite(value) and _is_interval(test.get(f"{key}_ci95"))
    ]


def eval_results(facts: Facts) -> str | None:
    """`.eval_results/*.yaml` in the Hub's format, which carries results on benchmarks of the Hub alone; else None."""
    parts, metrics = facts.data, facts.results.get("metrics") or {}
    headline = HEADLINES.get(metrics.get("task"))
    value = next((value for key, value, _ in scores(metrics) if key == headline), None)
    if len(parts) != 1 or parts[0]["kind"] != "hub" or not parts[0]["name"] or value is None:
        return None
    if any(note.startswith(("split cut", "only ", "no test side")) for note in parts[0].get("notes", ())):
        return None  # tested on a part that was cut here: no figure of the benchmark
    entry = EvalResultEntry(
        dataset_id=parts[0]["name"],
        task_id="default",
        value=round(value, 4),
        notes=f"{headline}, {metrics.get('method')}",
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)


def energy_kwh(provenance: dict) -> float | None:
    """kWh of all counters; None where nothing was measured."""
    energy = provenance.get("energy_kwh")
    return sum(energy.values()) if energy else None


def data_name(part: dict) -> str:
    """What a card calls a data set."""
    if part.get("name"):
        return part["name"]
    return {"corpus": "a corpus of recipes/prepare.py", "local": "local images"}.get(part.get("kind"), "not recorded")


def _teacher(provenance: dict) -> str:
    teacher = provenance.get("teacher")
    if not teacher:
        return "not recorded"
    return {"open_clip:local-dir": "a CLIP from a local folder", "transformers": "an encoder from a local folder",
            "demo": "the small CLIP that ships with the package"}.get(teacher["spec"], teacher["spec"])  # fmt: skip


def _architecture(facts: Facts) -> str:
    return str((facts.config.get("architectures") or [""])[0])


def labels_of(facts: Facts) -> list[str]:
    """What the model tells apart, in order."""
    named = (facts.results.get("metrics") or {}).get("label_names")
    return named or [str(label) for label in (facts.config.get("id2label") or {}).values()]


def _is_interval(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, float) and math.isfinite(v) for v in value)


def _url(text: object) -> str | None:
    return text if isinstance(text, str) and scrub.URL.fullmatch(text) else None
