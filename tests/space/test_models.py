# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The model of the Space: heads, simulated cases and their cache, an index of recipes/embed.py."""

import models
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_urfm import URFMForImageClassification
from modeling_urfm.data.phantoms import ORGANS
from modeling_urfm.evaluation.encoders import load_encoder
from modeling_urfm.evaluation.feature_shards import embed_corpus, open_images
from tests.finetuning.tiny import save_base, tiny_config


def test_an_encoder_gets_a_head_on_simulated_organs(onlooker):
    frames = [models.case_image(n) for n in range(15)]
    found = np.concatenate([onlooker.head.probabilities([frame]) for frame in frames])
    assert onlooker.head.labels == list(ORGANS) and found.shape == (15, 15)
    assert np.allclose(found.sum(1), 1, atol=1e-5) and (found.argmax(1) == np.arange(15)).mean() > 0.3
    assert "no real image" in onlooker.head.note and onlooker.name == "urfm"


def test_the_nearest_of_a_case_is_itself(onlooker):
    cases = onlooker.cases([models.case_image(20)])
    assert len(cases) == models.NEAREST and cases[0].label == ORGANS[20 % 15]
    assert cases[0].similarity == pytest.approx(1, abs=1e-5)
    assert np.array_equal(cases[0].picture, models.case_image(20))
    assert [c.similarity for c in cases] == sorted((c.similarity for c in cases), reverse=True)


def test_what_is_unlike_all_cases_is_known(onlooker):
    assert not onlooker.head.strange([models.case_image(3)])
    assert onlooker.head.strange([np.full((64, 64, 3), 255, np.uint8)])


def test_the_cache_gives_the_same_and_a_damaged_one_is_written_anew(onlooker, cache, tmp_path, monkeypatch):
    (kept,) = cache.iterdir()
    path = tmp_path / kept.name
    path.write_bytes(kept.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(models, "case_image", lambda number: pytest.fail("computed again"))
        first = models.simulated_cases(onlooker.encoder, tmp_path, progress=False)
    path.write_bytes(path.read_bytes()[:1000])
    second = models.simulated_cases(onlooker.encoder, tmp_path, progress=False)
    assert np.array_equal(first.features, second.features) and np.array_equal(first.probe.weights, second.probe.weights)
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


def test_no_home_to_write_to_is_no_reason_to_fail(onlooker, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "PATIENTS_PER_ORGAN", 5)  # another number: what the cache holds does not count
    monkeypatch.setattr(models, "case_image", lambda number: np.full((40, 40, 3), number, np.uint8))
    (tmp_path / "file").write_text("")
    assert len(models.simulated_cases(onlooker.encoder, tmp_path / "file" / "cache", progress=False).features) == 75


@pytest.mark.parametrize(
    "problem, exclusive, title",
    [
        ("single_label_classification", True, "Class"),
        ("multi_label_classification", False, "Findings"),
        ("regression", False, "Values"),
    ],
)
def test_a_classifier_answers_with_its_own_labels(tmp_path, problem, exclusive, title):
    torch.manual_seed(0)
    names = {0: "benign", 1: "malignant", 2: "normal"}
    config = tiny_config(num_labels=3, id2label=names, problem_type=problem)
    save_base(tmp_path)  # its processor
    URFMForImageClassification(config).save_pretrained(tmp_path)
    head = models.own_head(str(tmp_path))
    assert head.labels == ["benign", "malignant", "normal"] and (head.exclusive, head.title) == (exclusive, title)
    found = head.probabilities([models.case_image(1)])
    assert found.shape == (1, 3) and (abs(found.sum() - 1) < 1e-5) == exclusive
    assert head.regression == (title == "Values") == (found.min() < 0)  # values, no shares
    assert not head.strange([models.case_image(1)])


def test_an_encoder_has_no_head_of_its_own(tiny_folder, onlooker):
    assert models.own_head(str(tiny_folder)) is None and onlooker.head.title == "Organ"


def test_a_segmentation_model_says_that_its_masks_are_not_shown(tmp_path, tiny_folder):
    config = tiny_config(num_labels=2)
    config.architectures = ["URFMForSemanticSegmentation"]
    config.save_pretrained(tmp_path)
    assert models.own_head(str(tmp_path)) is None and "masks are not shown" in models.hidden_head(str(tmp_path))
    assert models.hidden_head(str(tiny_folder)) == ""


def test_cases_of_an_index(tiny_folder, tmp_path):
    for organ, number in (("liver", 3), ("kidney", 7)):
        (tmp_path / "data" / organ).mkdir(parents=True)
        Image.fromarray(models.case_image(number)).save(tmp_path / "data" / organ / "Mustermann.png")
    encoder = load_encoder(str(tiny_folder))
    dataset = {"name": str(tmp_path / "data"), "split": "train"}
    embed_corpus(
        encoder, open_images(**dataset, progress=False), tmp_path / "features", dataset=dataset, progress=False
    )
    search, note = models.index_cases(str(tiny_folder), encoder, tmp_path / "features")
    cases = search([models.case_image(7)])
    assert len(cases) == 2 and cases[0].similarity == pytest.approx(1, abs=1e-4) and "2 images" in note
    assert np.array_equal(cases[0].picture, models.case_image(7)) and "Mustermann" not in cases[0].label
    (tmp_path / "data" / "liver" / "Mustermann.png").rename(tmp_path / "elsewhere.png")
    cases = models.index_cases(str(tiny_folder), encoder, tmp_path / "features")[0]([models.case_image(7)])
    assert [case.picture for case in cases] == [None, None]


def test_a_case_is_called_after_its_class_and_never_after_a_patient(tmp_path):
    (tmp_path / "classes" / "train").mkdir(parents=True)
    classes = models.holds_classes({"name": str(tmp_path / "classes"), "split": "train"})
    patients = models.holds_classes({"name": str(tmp_path), "split": "train"})
    assert classes and not patients and models.holds_classes({"name": str(tmp_path / "test"), "split": "train"})
    line = {"row": 4, "id": "benign/1.png#0"}
    assert models.label_of(line, classes) == "benign" and models.label_of(line, patients) == "case 5"
    assert models.label_of(line | {"id": "Mustermann Erika/1.dcm#0"}, patients) == "case 5"
    assert models.label_of(line | {"id": "left_kidney/1.png#0"}, patients) == "kidney"
    assert models.label_of(line | {"id": "1.png#0"}, classes) == "case 5"
    assert models.label_of(line | {"organ": "unknown", "label": "cyst"}, patients) == "cyst"
    assert models.label_of(line | {"organ": "liver", "label": None}, patients) == "liver"


def test_an_index_of_another_encoder_is_refused(tiny_folder, tmp_path):
    torch.manual_seed(1)
    other = save_base(tmp_path / "other", hidden_size=16)
    Image.fromarray(models.case_image(0)).save(tmp_path / "one.png")
    dataset = {"name": str(tmp_path / "one.png"), "split": "train"}
    corpus = open_images(**dataset, progress=False)
    embed_corpus(load_encoder(str(other)), corpus, tmp_path / "features", dataset=dataset, progress=False)
    with pytest.raises(ValueError, match="made by another encoder"):
        models.index_cases(str(tiny_folder), load_encoder(str(tiny_folder)), tmp_path / "features")
    with pytest.raises(FileNotFoundError, match="no features were written there"):
        models.index_cases(str(tiny_folder), load_encoder(str(tiny_folder)), tmp_path)
