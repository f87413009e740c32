# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Arguments, masks and schedules of pre-training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modeling_urfm import URFMConfig, URFMForPreTraining, URFMModel
from modeling_urfm.pretraining.arguments import parse_arguments
from modeling_urfm.pretraining.masking import PatchMasks, scan_region_patches
from modeling_urfm.pretraining.schedules import parameter_groups
from modeling_urfm.pretraining.startup import check_writable, initial_model


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
DEMO = RECIPES / "configs" / "demo.yaml"


def small(**values):
    return URFMConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16,
        target_hidden_size=8, **values,
    )  # fmt: skip


# ---------------------------------------------------------------- arguments


def test_values_of_the_file_have_the_flags_types(tmp_path):
    file = tmp_path / "mine.yaml"

    def read(text):
        file.write_text(text)
        return parse_arguments(DEMO, ["--config", str(file)])[0]

    args = read("training: {dataset: /data/us, learning_rate: 8e-3, max_train_steps: 20.0, output_dir: 2026}")
    assert (args.dataset, args.learning_rate, args.max_train_steps, args.output_dir) == (["/data/us"], 8e-3, 20, "2026")
    for text, says in (
        ("training: {dataset: a, max_train_steps: 2.5}", "training: max_train_steps: 2.5 is not a whole number"),
        ("training: {dataset: a, loss_on_scan_region: 'no'}", "'no' is not true or false"),
        ("training: {dataset: a, phantom_snr_db: [10, 5]}", r"The nearest valid value: \[5.0, 10.0\]"),
        ("training: [a, b]", "expected lines of `name: value`"),
        ("training: {dataset: [", "mine.yaml is no YAML"),
    ):
        with pytest.raises(ValueError, match=says):
            read(text)


def test_a_flag_that_does_not_exist_is_refused_with_the_nearest(capsys):
    for flag, near in (("--learning_rat", "--learning_rate"), ("--batch_size=3", "--patch_size")):
        with pytest.raises(SystemExit):
            parse_arguments(DEMO, [flag])
        assert f"Did you mean {near}" in capsys.readouterr().err


def test_where_a_result_can_go_and_what_it_starts_from_is_known_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        check_writable(tmp_path / "file" / "deeper")
    check_writable(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()
    initial_model(small(), None).save_pretrained(tmp_path / "was")
    state = initial_model(small(), str(tmp_path / "was")).state_dict()
    assert torch.equal(
        state["decoder.mask_token"], load_file(tmp_path / "was" / "model.safetensors")["decoder.mask_token"]
    )
    with pytest.raises(ValueError, match="has hidden_size=16, this run has hidden_size=32: give --hidden_size 16"):
        initial_model(URFMConfig(**small().to_dict() | {"hidden_size": 32}), str(tmp_path / "was"))
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        initial_model(small(), str(tmp_path))


def test_an_encoder_alone_gets_a_decoder_and_must_compute_what_it_did(tmp_path, caplog):
    encoder = URFMModel(small(hidden_act="quick_gelu", qkv_bias=False))
    encoder.config.decoder_hidden_size = 768  # of a decoder that is not there
    encoder.save_pretrained(tmp_path / "encoder")
    for values, says in (
        ({}, "hidden_act=gelu: give --hidden_act quick_gelu"), ({"hidden_act": "quick_gelu"}, "give --no-qkv_bias"),
        ({"hidden_act": "quick_gelu", "qkv_bias": False, "num_attention_heads": 4}, "give --num_attention_heads 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            initial_model(URFMConfig(**small().to_dict() | values), str(tmp_path / "encoder"))
    model = initial_model(small(hidden_act="quick_gelu", qkv_bias=False), str(tmp_path / "encoder"))
    assert "encoder alone" in caplog.text and model.config.decoder_hidden_size == 16
    assert torch.equal(model.urfm.layers[0].mlp.fc1.weight, encoder.layers[0].mlp.fc1.weight)


def test_a_flag_overrides_the_file_and_the_file_the_default(tmp_path):
    args, config = parse_arguments(
        DEMO, ["--mask_ratio", "0.6", "--seed", "7", "--dataset", "a", "b", "--no-gradient_checkpointing"]
    )
    assert (config.mask_ratio, config.image_size, config.patch_size) == (0.6, 128, 16)
    assert (args.seed, args.dataset, args.teacher, args.gradient_checkpointing) == (7, ["a", "b"], "demo", False)
    file = tmp_path / "mine.yaml"
    file.write_text("model: {hidden_size: 96, num_attention_heads: 3}\ntraining: {dataset: [x], output_dir: there}\n")
    args, config = parse_arguments(DEMO, ["--config", str(file)])
    assert (config.hidden_size, config.num_hidden_layers, args.output_dir, args.teacher[:9]) == (
        96,
        12,
        "there",
        "open_clip",
    )


@pytest.mark.parametrize("name", ["urfm_small", "urfm_base", "urfm_base_fast", "urfm_large", "urfm_huge", "demo"])
def test_every_preset_parses(name):
    args, config = parse_arguments(DEMO, ["--config", str(RECIPES / "configs" / f"{name}.yaml"), "--dataset", "x"])
    assert config.num_masked_patches > 0 and args.base_learning_rate > 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("training: {learing_rate: 1}", "Did you mean 'learning_rate'"), ("modle: {}", "Did you mean 'model'"),
        ("model: {depth: 3}", "There are: image_size"), ("training: {warmup_ratio: 2.0, dataset: [x]}", "nearest valid value: 1.0"),
        ("training: {}", "No dataset"), ("training: {dataset: [x], report_to: tensorbord}", "Did you mean 'tensorboard'"),
        ("training: {dataset: [x], max_train_steps: 0}", "max_train_steps=0 must be at least 1"),
        ("training: {dataset: [x]}\nmodel: {image_size: 225}", "The nearest image_size that is: 224"),
    ],
)  # fmt: skip
def test_what_a_file_can_say_wrong_is_named(tmp_path, content, says):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=says):
        parse_arguments(DEMO, ["--config", str(tmp_path / "bad.yaml")])


def test_a_config_that_is_not_there_lists_its_siblings():
    with pytest.raises(FileNotFoundError, match="demo.yaml, finetune_full.yaml, finetune_lora.yaml, urfm_base.yaml"):
        parse_arguments(DEMO, ["--config", str(RECIPES / "configs" / "base.yaml")])


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(DEMO, ["--help"])
    text = capsys.readouterr().out
    for name in (
        "--output_dir",
        "--per_device_train_batch_size",
        "--resume_from_checkpoint",
        "--mask_ratio",
        "--teacher_layer",
    ):
        assert name in text


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("strategy", ["random", "block"])
def test_masks_are_a_function_of_the_generator_and_predicted_patches_are_hidden(strategy):
    config = small(decoder_type="cross_attention", decoder_mask_fraction=0.5, mask_strategy=strategy)
    pixels = torch.zeros(1, 32, 32, dtype=torch.uint8)
    pixels[:, :8] = 200
    masks = PatchMasks(config, on_scan_region=True)
    drawn, again, other = (masks(pixels, np.random.default_rng([0, 5, n])) for n in (1, 1, 2))
    assert all(torch.equal(drawn[name], again[name]) for name in drawn) and not torch.equal(
        drawn["mask"], other["mask"]
    )
    assert drawn["mask"].sum() == 12 and len(drawn["predicted"]) == 6 and drawn["mask"][drawn["predicted"]].all()
    assert drawn["predicted"].tolist() == sorted(drawn["predicted"].tolist())
    assert drawn["loss_mask"].view(4, 4).all(1).tolist() == [True, False, False, False]
    whole = PatchMasks(small())(
        pixels, np.random.default_rng(0)
    )  # a self-attention decoder predicts all that is hidden
    assert torch.equal(whole["predicted"], whole["mask"].nonzero()[:, 0]) and "loss_mask" not in whole


def test_every_hidden_patch_is_predicted_equally_often():
    masks = PatchMasks(small(decoder_type="cross_attention", decoder_mask_fraction=0.25))
    counts = torch.zeros(16)
    for n in range(2000):
        counts[masks(torch.zeros(1, 32, 32, dtype=torch.uint8), np.random.default_rng(n))["predicted"]] += 1
    assert (counts / 2000 - 3 / 16).abs().max() < 0.04  # a standard error of 0.009


def test_the_scan_region_holds_what_is_lit_and_what_lies_between():
    pixels = torch.zeros(1, 3, 40, 40)
    pixels[:, :, 8:16, 8:32] = 0.5  # a lit row of patches 1..3
    pixels[:, :, 24:32, 8:32] = 0.5  # and another below, fluid between them
    region = scan_region_patches(pixels, 8).view(5, 5)
    assert region.nonzero().tolist() == [[1, 1], [1, 2], [1, 3], [3, 1], [3, 2], [3, 3]]
    pixels[:, :, 16:24, [8, 31]] = 0.5  # walls at both sides of the fluid
    assert scan_region_patches(pixels, 8).view(5, 5)[1:4, 1:4].all()
    assert (
        not scan_region_patches(pixels, 8).view(5, 5)[0].any()
        and not scan_region_patches(torch.zeros(1, 3, 16, 16), 8).any()
    )


# ---------------------------------------------------------------- schedules


def test_no_decay_on_biases_norms_tokens_and_positions():
    model = URFMForPreTraining(small(position_embedding_type="learned"))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.05))
    assert all(n.endswith("weight") and "norm" not in n for n in decayed)
    assert {"urfm.embeddings.cls_token", "decoder.mask_token", "urfm.embeddings.position_embeddings"} <= set(plain)
    assert "decoder.position_embeddings" not in decayed + plain  # fixed: not trained at all
    assert len(decayed) + len(plain) == sum(p.requires_grad for p in model.parameters())
