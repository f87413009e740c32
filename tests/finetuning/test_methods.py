# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What each method trains, at which rate, and what is refused."""

import pytest
import torch
from torch import nn

from modeling_urfm import URFMConfig, URFMForImageClassification, URFMForSemanticSegmentation
from modeling_urfm.finetuning.arguments import METHODS, SETTINGS, FinetuneArguments, parse_arguments
from modeling_urfm.finetuning.heads import StandardisedLinear, unstandardise
from modeling_urfm.finetuning.methods import (
    DECODE_HEAD_WIDTH,
    build_model,
    count_parameters,
    load_config,
    load_processor,
    parameter_groups,
    with_adapter,
)

from .tiny import save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def arguments(**given) -> FinetuneArguments:
    return FinetuneArguments(**{"task": "classification", "dataset": "x"} | given)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_lora_trains_at_most_two_percent_of_a_vit_b_16_with_its_head(task):
    config = URFMConfig(num_labels=15, decode_head_hidden_size=DECODE_HEAD_WIDTH)
    cls = URFMForSemanticSegmentation if task == "segmentation" else URFMForImageClassification
    with torch.device("meta"):
        model = with_adapter(arguments(task=task), cls(config))
    counted = count_parameters(model, task)
    assert counted["trainable_share"] <= 0.02
    assert 85e6 < counted["parameters"] < 90e6 and counted["head_parameters"] < counted["trainable_parameters"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained(base, method):
    model = build_model(arguments(method=method, model_name_or_path=str(base)), ("a", "b", "c"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    encoder = {name for name in trained if "urfm." in name}
    if method in ("linear", "attentive"):
        assert trained and not encoder
    elif method == "full":
        assert "urfm.layers.0.mlp.fc1.weight" in trained and "urfm.embeddings.position_embeddings" not in trained
        assert model.urfm.layers[1].drop_path.rate == pytest.approx(0.1)
    else:
        assert encoder and all("lora_" in name for name in encoder)
        assert any("magnitude" in name for name in encoder) == (method == "dora")
    assert any("classifier" in name for name in trained)


def test_frozen_weights_have_no_gradient(base):
    model = build_model(arguments(method="lora", model_name_or_path=str(base)), ("a", "b"))
    model(pixel_values=torch.randn(2, 3, 32, 32)).logits.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_lower_layers_learn_slower(base):
    model = build_model(arguments(method="full", model_name_or_path=str(base)), ("a", "b"))
    groups = parameter_groups(model, 1e-3, 0.05, 0.5)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = dict(model.named_parameters())
    for name, expected in {
        "classifier.weight": (1e-3, 0.05), "classifier.bias": (1e-3, 0.0), "urfm.layernorm.weight": (1e-3, 0.0),
        "urfm.layers.1.mlp.fc1.weight": (5e-4, 0.05), "urfm.layers.0.mlp.fc1.weight": (2.5e-4, 0.05),
        "urfm.embeddings.cls_token": (1.25e-4, 0.0),
    }.items():  # fmt: skip
        assert rate[id(named[name])] == pytest.approx(expected), name
    assert len(rate) == sum(p.requires_grad for p in model.parameters())


def test_random_weights_are_another_encoder_and_follow_the_seed(base):
    models = []
    for random_init in (False, True, True):
        torch.manual_seed(5)  # the base was drawn with another
        models.append(build_model(arguments(random_init=random_init, model_name_or_path=str(base)), ("a", "b")))
    weights = [model.get_base_model().urfm.layers[0].mlp.fc1.base_layer.weight for model in models]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


def test_a_standardised_head_folds_into_a_plain_one():
    torch.manual_seed(0)
    features = 3 + torch.randn(20, 6) * torch.tensor([1, 5, 0.1, 2, 1, 0])
    head = StandardisedLinear(features.mean(0), features.std(0, correction=0), 2)
    nn.init.normal_(head.linear.weight)
    nn.init.normal_(head.linear.bias)
    plain = nn.Linear(6, 2)
    head.fold_into(plain)
    torch.testing.assert_close(plain(features), head(features), atol=1e-4, rtol=1e-4)
    expected = plain(features) * torch.tensor([2.0, 3.0]) + torch.tensor([10.0, -1.0])
    unstandardise(plain, torch.tensor([10.0, -1.0]), torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(plain(features), expected)


def test_the_processor_is_the_model_s_and_takes_the_flags(base):
    args = arguments(model_name_or_path=str(base), image_size=64, pad_square=True)
    processor = load_processor(args, load_config(str(base)))
    assert processor.size["height"] == 64 and processor.do_pad_square and not processor.do_crop_scan_region
    with pytest.raises(ValueError, match="nearest: 32"):
        load_processor(arguments(model_name_or_path=str(base), image_size=35), load_config(str(base)))


def test_what_is_no_pre_trained_urfm_is_refused(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_config("nowhere")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="'vit'"):
        load_config(str(tmp_path / "vit"))
    (tmp_path / "vit" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge"):
        load_config(str(tmp_path / "vit"))
    load_config(str(base)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        load_processor(arguments(model_name_or_path=str(tmp_path / "bare")), load_config(str(tmp_path / "bare")))


@pytest.mark.parametrize(("given", "message"), [
    ({"task": "classify"}, "Did you mean 'classification'"), ({"method": "lorra"}, "Did you mean 'lora'"),
    ({"task": None}, "--task"), ({"dataset": None}, "--dataset"),
    ({"method": "attentive", "task": "segmentation"}, "linear, lora or full"),
    ({"label_fraction": 0.0}, "label_fraction"), ({"lora_rank": 0}, "A value that is not: 1"),
    ({"validation_fraction": 0.5, "test_fraction": 0.5}, "below 1"),
    ({"load_in_4bit": True, "method": "full"}, "lora or dora"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        arguments(**given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU")
def test_four_bits_need_a_gpu():
    with pytest.raises(ValueError, match="CUDA GPU"):
        arguments(load_in_4bit=True)


def test_defaults_follow_from_the_method_and_the_number_of_images():
    args = arguments()
    assert args.method == "lora" and args.epochs(400) == 50 and args.epochs(10) == 100 and args.epochs(10**6) == 10
    assert args.peak_learning_rate(768) == SETTINGS["lora"].learning_rate
    assert args.peak_learning_rate(192) == 2 * SETTINGS["lora"].learning_rate
    assert args.checkpoints_activations(86_000_000) and not args.checkpoints_activations(2_000_000)
    assert not arguments(method="full").checkpoints_activations(86_000_000)
    assert arguments(learning_rate=1e-4, num_train_epochs=3).epochs(400) == 3


@pytest.mark.parametrize("name", ["lora", "full"])
def test_the_config_files_are_the_defaults(name):
    file = f"recipes/configs/finetune_{name}.yaml"
    args = parse_arguments(argv=["--config", file, "--task", "classification", "--dataset", "x"])
    settings = SETTINGS[name]
    assert args.method == name and args.peak_learning_rate(768) == settings.learning_rate
    assert args.weight_decay == settings.weight_decay and args.batch_size == settings.batch_size
