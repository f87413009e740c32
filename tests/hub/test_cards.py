# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Cards say what was measured and no more, their snippets run, and what files brought stays text."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image

from modeling_urfm.hub import cards
from modeling_urfm.hub.staging import stage

from .leaving import (
    LABELS,
    finetuned_provenance,
    finetuned_results,
    provenance,
    results,
    save_adapter,
    save_classifier,
    save_pretrained,
)


BLOCK = re.compile(r"```python\n(.*?)```", re.S)
CONFIG = {"architectures": ["URFMModel"], "num_hidden_layers": 2, "hidden_size": 32, "patch_size": 8, "image_size": 32,
          "target": "representation"}  # fmt: skip
MADE = {"kind": "made", "name": "demo", "images": 66, "fingerprint": "00112233", "left_out": {}}


def text_of(made_of: dict | None = None, kind: str = "encoder", conversion: dict | None = None, **options) -> str:
    return cards.render(kind, "acme/urfm", cards.make_facts(results(), CONFIG, made_of, conversion), **options)


def tuned(labels=LABELS, made_of: dict | None = None, method="lora", **metrics) -> cards.Facts:
    adapter = {"r": 4} if method == "lora" else None
    return cards.make_facts(
        finetuned_results(method, labels, **metrics), CONFIG | {"architectures": ["URFMForImageClassification"]},
        made_of or finetuned_provenance(), adapter=adapter,
    )  # fmt: skip


def tables_are_whole(text: str) -> bool:
    """Whether every line of a table has as many cells as its head, and none stands alone."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block.lstrip().startswith("|")]
    return bool(blocks) and all(
        len(rows) > 2 and len({len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.startswith("|")}) == 1
        for rows in blocks
    )


def test_the_snippets_run_as_they_are(tmp_path, monkeypatch):
    """From folders that are called as the repositories are; in clean processes and from a server: test_loading.py."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    encoder = save_pretrained(tmp_path / "urfm")
    sources = {"urfm": (encoder, {}), "pretraining": (encoder, {"kind": "pretraining"}),
               "classifier": (save_classifier(tmp_path / "classifier"), {}),
               "adapter": (save_adapter(tmp_path / "adapter", encoder), {"base_model": "acme/urfm"})}  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.new("L", (50, 40), 90).save("scan.png")
    for name, (source, options) in sources.items():
        publication = stage(source, f"acme/{name}", tmp_path / "staging" / name, **options)
        for file, path in publication.files.items():
            target = tmp_path / "acme" / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    run = {name: BLOCK.findall(Path("acme", name, "README.md").read_text()) for name in sources}
    assert {name: len(blocks) for name, blocks in run.items()} == {
        "urfm": 3,
        "pretraining": 4,
        "classifier": 2,
        "adapter": 2,
    }
    for name, blocks in run.items():
        for block in blocks:
            assert f"acme/{name}" in block
            space: dict = {}
            exec(compile(block, f"{name}/README.md", "exec"), space)
            if "probabilities" in space:
                assert (
                    sum(space["probabilities"].values()) == pytest.approx(1, abs=1e-5)
                    and list(space["probabilities"]) == LABELS
                )
    assert space["model"].config.num_labels == 2


def test_what_was_not_measured_is_said_to_be_so():
    text = cards.render("encoder", "acme/urfm", cards.make_facts({}, CONFIG))
    assert "energy | not measured" in text and "CO2 | not measured" in text and "training time | not measured" in text
    assert "Downstream quality on patients: not measured." in text and "seed | not recorded" in text
    assert "Not stated: ask" in text and "None" not in text and "Undefined" not in text
    text = cards.render("adapter", "acme/lora", cards.make_facts({}, CONFIG, adapter={"r": 8}))
    assert "Not measured." in text and "labels that are not recorded" in text and "None" not in text
    for text in (text_of(), text_of(provenance())):
        assert "Not for clinical use" in text and "k-nearest" not in text and tables_are_whole(text)


def test_the_hub_reads_its_head():
    facts = tuned(made_of=finetuned_provenance(data=[MADE | {"kind": "hub", "name": "acme/scans"}]))
    data = ModelCard(cards.render("adapter", "acme/lora", facts, base_model="acme/urfm", license="MIT")).data
    assert (data.library_name, data.pipeline_tag, data.license, data.base_model) == (
        "peft",
        "image-classification",
        "mit",
        "acme/urfm",
    )
    assert data.datasets == ["acme/scans"] and data.get("base_model_relation") == "adapter" and "lora" in data.tags
    assert [(e.metric_type, e.metric_value, e.dataset_type) for e in data.eval_results] == [
        ("accuracy", 0.75, "acme/scans"), ("macro_f1", 0.7, "acme/scans"),
    ]  # fmt: skip
    data = ModelCard(text_of(provenance(data=[MADE]))).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "image-feature-extraction",
        "apache-2.0",
    )
    assert data.eval_results is None and data.base_model is None


def test_emissions_need_a_measured_energy_and_the_intensity_of_the_electricity():
    measured = provenance(energy_kwh={"gpu": 1.5, "processors": 0.5})
    assert "CO2 | not measured" in text_of(measured) and "co2_eq" not in text_of(measured)
    assert "CO2 | not measured" in text_of(provenance(), carbon_intensity=300)
    text = text_of(measured, carbon_intensity=300)
    assert "2 kWh by the counters of the GPUs and the processors" in text and "600 g at 300 g/kWh" in text
    emissions = ModelCard(text).data.get("co2_eq_emissions")
    assert (
        emissions["emissions"] == 600
        and emissions["training_type"] == "pre-training"
        and emissions["hardware_used"] == "cpu"
    )
    with pytest.raises(ValueError, match="grams of CO2"):
        text_of(measured, carbon_intensity=-1)


@pytest.mark.parametrize(("given", "recorded", "parts", "expected"), [
    (None, None, [MADE], {"license": "apache-2.0"}),
    (None, None, [MADE, MADE | {"kind": "local"}], {"license": "unknown"}),
    (None, "cc-by-nc-4.0", [], {"license": "cc-by-nc-4.0"}), ("Apache 2.0", "mit", [], {"license": "apache-2.0"}),
    ("Our own: terms!", None, [MADE], {"license": "other", "license_name": "our-own-terms"}),
])  # fmt: skip
def test_the_licence_is_the_given_one_then_the_recorded_one(given, recorded, parts, expected):
    conversion = {"layout": "urfm", "license": recorded} if recorded else None
    facts = cards.make_facts(results(), CONFIG, provenance(data=parts), conversion)
    assert cards.licence_of(facts, given) == expected


def test_a_fine_tuned_copy_of_a_base_that_nobody_recorded_has_no_licence_of_ours():
    recorded = finetuned_results("full", LABELS)
    recorded["metrics"]["dataset"] = "phantoms:organ"
    old = cards.make_facts(recorded, CONFIG)
    assert old.data and cards.licence_of(old, None) == {"license": "unknown"}


def test_what_is_not_finite_was_not_measured():
    nan = float("nan")
    broken = results(knn_accuracy=nan, knn_accuracy_untrained=0.1, loss_last=nan)
    text = cards.render("encoder", "acme/urfm", cards.make_facts(broken, CONFIG))
    assert "nan" not in text.lower().split() and "k-nearest" not in text
    half = results(knn_accuracy=0.5)
    half["metrics"].pop("knn_accuracy_ci95", None)  # a figure without an interval is shown as it is
    assert "phantoms: 50.0 %; the same" in cards.render("encoder", "acme/urfm", cards.make_facts(half, CONFIG))
    wrong = {"layout": "timm", "parity": {"max_abs": "far"}}
    with pytest.raises(ValueError, match="card of acme/urfm can't be filled"):
        cards.render("encoder", "acme/urfm", cards.make_facts({}, CONFIG, conversion=wrong))


def test_a_base_from_a_local_folder_is_not_said_to_be_the_published_file():
    base = {"kind": "local", "name": None, "revision": None, "weights": "ab" * 32}
    text = cards.render("adapter", "acme/m", tuned(made_of=finetuned_provenance(base=base)), base_model="acme/urfm")
    assert "read from a local folder" in text and "ab" * 32 in text
    base |= {"kind": "hub", "name": "acme/urfm"}
    assert "read from a local" not in cards.render("adapter", "acme/m", tuned(made_of=finetuned_provenance(base=base)))


def test_what_files_brought_stays_text():
    labels = ["<script>alert(1)</script>", "a|b\n# heading", "{{ 7 * 7 }}"]
    text = cards.render("adapter", "acme/lora", tuned(labels))
    assert "<script>" not in text and "\n# heading" not in text and "49" not in text.split("## Evaluation")[0]
    assert r"a\|b \# heading" in text and tables_are_whole(text)
    corpus = {"manifest_sha256": "ab" * 32, "images": 9, "patients": 3, "by_licence": {"CC BY 4.0": 5, "x|<b>": 4},
              "by_organ": {"liver": 9}, "by_source": {"busi": 5, "local": 4}, "by_maker": {"GE": 9},
              "patients_by_organ": {"liver": 3}, "exclusions": []}  # fmt: skip
    text = text_of(provenance(data=[MADE | {"kind": "corpus", "name": None, "corpus": corpus}]))
    assert "<b>" not in text and "| CC BY 4.0 | 5 |" in text and "| other | 4 |" in text and "| liver | 9 | 3 |" in text
    assert "overlap with benchmarks is not measured" in text and "**BUSI**" in text
    assert tables_are_whole(text)


def test_a_conversion_shows_where_the_weights_are_from_and_how_near_they_are():
    conversion = {
        "layout": "timm", "sha256": "ab" * 32, "license": "mit", "source_url": "https://example.org/w",
        "source": "/home/anna/w.pth", "keys": {"copied": 12},
        "parity": {"against": "timm 1.0.31", "images": 8, "max_abs": 3e-6, "mean_abs": 2e-7, "tolerance": 1e-5},
    }  # fmt: skip
    text = cards.render("encoder", "acme/urfm", cards.make_facts({}, CONFIG, conversion=conversion))
    assert "3.0e-06 (mean 2.0e-07), allowed 1e-05" in text and "timm 1.0.31, on 8 images" in text
    assert "https://example.org/w" in text and "/home" not in text and ModelCard(text).data.license == "mit"
    assert "masked image modelling" not in text.split("## Use")[0]
    unsafe = cards.render(
        "encoder", "acme/urfm", cards.make_facts({}, CONFIG, conversion=conversion | {"source_url": "javascript:x"})
    )
    assert "javascript" not in unsafe


def test_results_on_a_benchmark_of_the_hub_are_told_in_its_format():
    hub = MADE | {"kind": "hub", "name": "acme/bench"}
    facts = tuned(made_of=finetuned_provenance(data=[hub]))
    (entry,) = parse_eval_result_entries(yaml.safe_load(cards.eval_results(facts)))
    assert (entry.dataset_id, entry.value) == ("acme/bench", 0.7)
    cut = hub | {"notes": ["split cut by patient, seed 0: train 65%, validation 15%, test 20%"]}
    assert cards.eval_results(tuned(made_of=finetuned_provenance(data=[cut]))) is None
    assert cards.eval_results(tuned()) is None


def test_a_collapsed_model_and_a_control_say_so():
    test = {"accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "images": 4, "patients": 2, "collapsed": True}
    facts = tuned(method="full")
    facts.results["metrics"]["test"] = test
    facts.results["metrics"]["random_init"] = True
    text = cards.render("model", "acme/m", facts)
    assert "it has collapsed" in text and "A control" in text
