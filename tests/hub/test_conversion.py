# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Weights of every layout give the tokens that their own library gives; what can't be represented is refused by name."""

import json
import sys

import pytest
import timm
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from modeling_urfm import URFMForImageClassification, URFMForPreTraining, URFMModel
from modeling_urfm.hub import conversion, conversion_parity, conversion_to_timm
from modeling_urfm.hub.conversion import check_free, convert, write_converted
from modeling_urfm.hub.conversion_files import ConversionError
from modeling_urfm.hub.conversion_keys import choose_state, make_plan
from modeling_urfm.hub.conversion_to_timm import convert_to_timm
from modeling_urfm.hub.conversion_weights import number_of_heads

from . import layouts
from .layouts import SMALL


FACTS = {"command": "convert", "versions": {}, "seed": None, "timings": {}}


@pytest.fixture(scope="module")
def images():
    return conversion_parity.parity_images()[1:7:4]  # a real image and a phantom


@pytest.fixture(autouse=True)
def few_images(monkeypatch, images):
    for module in (conversion, conversion_to_timm):
        monkeypatch.setattr(module, "parity_images", lambda folder=None: images)


def tokens_of_timm(state: dict, pixels: torch.Tensor) -> torch.Tensor:
    """The plain ViT of timm, with these weights; nothing of the conversion is used."""
    model = timm.models.VisionTransformer(
        img_size=48, patch_size=16, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=0
    )
    model.load_state_dict(state, strict=True)
    return model.eval().forward_features(pixels)


@torch.no_grad()
def gap(model: URFMModel, state: dict) -> float:
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    return float((model(pixels).last_hidden_state - tokens_of_timm(state, pixels)).abs().max())


# ---------------------------------------------------------------- released URFM


def test_released_urfm_takes_the_averaged_weights_and_equals_timm(tmp_path):
    ema, raw = layouts.released_urfm(tmp_path / "urfm.pth")
    converted = convert(str(tmp_path / "urfm.pth"), num_attention_heads=2, license="mit")
    assert gap(converted.model, ema) <= 1e-5 < gap(converted.model, raw)
    assert converted.record["layout"] == "URFM as released" and converted.record["weights"] == "ema_state_dict"
    assert converted.record["declared_architecture"] == "mae_vit_base_patch16_dec768d8b"
    assert converted.model.config.position_embedding_type == "sincos"
    assert converted.record["parity"]["max_abs"] <= 1e-5 and converted.record["parity"]["images"] == 2
    fates = {fate.key: fate for fate in converted.fates}
    content = torch.load(tmp_path / "urfm.pth", weights_only=True)
    assert set(fates) == set(content["ema_state_dict"]) | (set(content) - {"ema_state_dict"})
    assert fates["module.decoder_pos_embed"].outcome == "left out" and fates["module.mask_token"].outcome == "left out"
    raw_one = convert(str(tmp_path / "urfm.pth"), num_attention_heads=2, weights="raw")
    assert gap(raw_one.model, raw) <= 1e-5


def test_the_folder_loads_and_says_where_it_is_from(tmp_path):
    ema, _ = layouts.released_urfm(tmp_path / "urfm.pth")
    out = tmp_path / "out"
    write_converted(convert(str(tmp_path / "urfm.pth"), num_attention_heads=2), out, FACTS)
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "config.json", "preprocessor_config.json", "configuration_urfm.py", "modeling_urfm.py",
        "image_processing_urfm.py", "README.md", "conversion.json", "results.json",
    }  # fmt: skip
    model, processor = AutoModel.from_pretrained(out), AutoImageProcessor.from_pretrained(out)
    assert gap(model, ema) <= 1e-5 and not model.embeddings.position_embeddings.requires_grad
    assert (
        dict(processor.size) == {"height": 48, "width": 48}
        and processor.image_mean == (0.485, 0.456, 0.406)
        or [*processor.image_mean] == [0.485, 0.456, 0.406]
    )
    record = json.loads((out / "conversion.json").read_text())
    assert record["license"] == "unknown" and record["source_url"] == "unknown" and len(record["sha256"]) == 64
    assert record["source"] == "urfm.pth" and str(tmp_path) not in json.dumps(record)
    assert "Conversion" in (out / "README.md").read_text()
    assert len(json.loads((out / "results.json").read_text())["metrics"]["fates"]) == 54
    check_free(out)  # a former conversion may be replaced, another model not
    with pytest.raises(FileExistsError, match="no such conversion"):
        check_free(out, to_timm=True)
    (out / "conversion.json").unlink()
    (out / "config.json").unlink()  # weights of another kind, a thesis: nothing is written over
    with pytest.raises(FileExistsError, match="holds files of no such conversion"):
        check_free(out)
    (tmp_path / "clone/.git").mkdir(parents=True)
    check_free(tmp_path / "clone")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp")]


def test_averaged_weights_that_are_no_encoder_are_not_passed_over(tmp_path):
    content = {"ema_state_dict": {"shadow.0": torch.ones(2)}, "state_dict": layouts.mae_encoder(SMALL), "model": "x"}
    with pytest.raises(ConversionError, match="averaged weights, ema_state_dict, hold no encoder.*--weights raw"):
        choose_state(content, None)
    assert choose_state(content, "raw")[1] == "state_dict"
    with pytest.raises(ConversionError, match="one set of weights alone"):
        choose_state({"model": layouts.mae_encoder(SMALL)}, "ema")
    with pytest.raises(ConversionError, match="several encoders, 'student', 'teacher'"):
        choose_state({"student": layouts.mae_encoder(SMALL), "teacher": layouts.mae_encoder(SMALL)}, None)


@pytest.mark.parametrize("sizes, heads", [(layouts.BASE, 12), (layouts.LARGE, 16), (layouts.HUGE, 16)])
def test_sizes_of_the_released_models_are_found_without_their_weights(sizes, heads):
    plan = make_plan(layouts.prefixed(layouts.mae_encoder(sizes, device="meta"), "module."))
    assert plan.sizes == {
        "image_size": 224, "patch_size": sizes["patch"], "num_channels": 3, "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["depth"], "intermediate_size": sizes["mlp"], "qkv_bias": True,
    }  # fmt: skip
    assert number_of_heads(sizes["width"], None) == (heads, True)


# ---------------------------------------------------------------- MAE and those who build on it


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder.", "backbone.", "_orig_mod.model."])
def test_mae_checkpoints_of_several_groups(tmp_path, prefix):
    encoder, decoder = layouts.mae_encoder(SMALL), layouts.mae_decoder(SMALL)
    outer = prefix if "encoder" not in prefix and "backbone" not in prefix else prefix.rpartition("encoder.")[0]
    state = layouts.prefixed(encoder, prefix) | layouts.prefixed(decoder, outer)
    path = layouts.checkpoint(tmp_path / "c.pth", state, optimizer={"state": {}}, epoch=3, scaler={}, args={"lr": 1e-3})
    converted = convert(str(path), num_attention_heads=2)
    assert gap(converted.model, encoder) <= 1e-5
    assert converted.record["layout"] == "MAE-style checkpoint" and converted.record["keys"]["left out"] == 24
    assert "assumed: layer_norm_eps 1e-6" in " ".join(converted.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_become_float32_and_sincos_is_still_seen(tmp_path, dtype):
    encoder = {key: value.to(dtype) for key, value in layouts.mae_encoder(SMALL).items()}
    torch.save(encoder, tmp_path / "c.pt")
    converted = convert(str(tmp_path / "c.pt"), num_attention_heads=2)
    assert {value.dtype for value in converted.model.state_dict().values()} == {torch.float32}
    assert converted.model.config.position_embedding_type == "sincos"
    assert gap(converted.model, encoder) <= 1e-5
    assert f"the source's weights are {str(dtype)[6:]}; float32 is written" in converted.notes


REFUSED = {
    "blocks.0.ls1.gamma": "layer scale", "blocks.0.gamma_1": "layer scale", "blocks.1.attn.q_norm.weight": "norm of queries",
    "reg_token": "register tokens", "register_tokens": "register tokens", "dist_token": "distillation token",
    "norm_pre.weight": "norm before the first layer", "patch_embed.backbone.stem.conv.weight": "convolutional stem",
    "patch_embed.proj.0.weight": "convolutional stem", "rope.periods": "rotary", "fc_norm.weight": "norm after pooling",
    "blocks.0.attn.relative_position_bias_table": "relative position", "attn_pool.latent": "attention pooling",
    "blocks.0.mlp.w12.weight": "gated MLP", "blocks.0.attn.q_bias": "biases of queries", "something.else": "unknown",
    "blocks.0.attn.lora_A.weight": "adapter", "blocks.0.norm3.weight": "unknown", "norm.scale": "unknown",
    "blocks.00.norm1.weight": "unknown", "pos_embed.weight": "unknown",
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_encoder_cannot_compute_is_refused_by_name(key):
    state = layouts.mae_encoder(SMALL) | {key: torch.ones(2)}
    with pytest.raises(ConversionError, match=rf"{key.replace('.', '[.]')} -> refused: .*{REFUSED[key]}"):
        make_plan(state)
    if key != "something.else":
        make_plan(layouts.mae_encoder(SMALL) | {"decoder_" + key: torch.ones(2)})  # a decoder may have it


@pytest.mark.parametrize(
    "missing, message",
    [
        ("cls_token", "no CLS token"), ("pos_embed", "no position embedding"), ("blocks.1.mlp.fc2.bias", "is missing"),
        ("norm.weight", "norm.weight is missing"), ("blocks.1.attn.qkv.bias", r"blocks.1.attn.qkv.bias is missing"),
        ("blocks.0.attn.qkv.bias", "has no place"), ("patch_embed.proj.bias", "patch_embed.proj.bias is missing"),
        ("patch_embed.proj.weight", "no ViT in the file"),
    ],
)  # fmt: skip
def test_missing_keys(missing, message):
    state = layouts.mae_encoder(SMALL)
    del state[missing]
    with pytest.raises(ConversionError, match=message):
        make_plan(state) if missing != "patch_embed.proj.weight" else choose_state(state, None)


@pytest.mark.parametrize(
    "key, shape, message",
    [
        ("blocks.1.mlp.fc1.weight", (63, 32), r"has shape \(63, 32\), expected \(64, 32\)"),
        ("blocks.0.attn.qkv.weight", (95, 32), r"expected \(96, 32\)"),
        ("pos_embed", (1, 12, 32), "nearest has 10"), ("pos_embed", (10, 32), r"\(1, 1 \+ patches, width\) is needed"),
        ("patch_embed.proj.weight", (32, 1, 16, 16), "1 channels"), ("patch_embed.proj.weight", (32, 768), "patch"),
        ("patch_embed.proj.weight", (32, 3, 16, 8), "patch"), ("cls_token", (1, 2, 32), "expected"), ("pos_embed", (), "needed"),
        ("pos_embed", (1, 0, 32), "none of a square"), ("blocks.0.mlp.fc1.weight", (), "no layer 0"),
    ],
)  # fmt: skip
def test_wrong_shapes(key, shape, message):
    with pytest.raises(ConversionError, match=message):
        make_plan(layouts.mae_encoder(SMALL) | {key: torch.ones(shape)})


def test_a_layer_that_is_missing_and_two_encoders():
    state = {key: value for key, value in layouts.mae_encoder(SMALL | {"depth": 3}).items() if "blocks.1." not in key}
    with pytest.raises(ConversionError, match="layer 1 of 3 is missing"):
        make_plan(state)
    encoder = layouts.mae_encoder(SMALL)
    with pytest.raises(ConversionError, match="several encoders"):
        make_plan(layouts.prefixed(encoder, "encoder_q.") | layouts.prefixed(encoder, "encoder_k."))


def test_heads_that_no_width_tells_must_be_given():
    with pytest.raises(ConversionError, match="--num_attention_heads"):
        number_of_heads(100, None)
    with pytest.raises(ConversionError, match="3 does not divide the width 32. The nearest: 2"):
        number_of_heads(32, 3)


# ---------------------------------------------------------------- timm, transformers, open_clip


@pytest.mark.parametrize(
    "cfg, arguments",
    [
        ({}, {}), ({"crop_pct": 1.0}, {"no_embed_class": True, "qkv_bias": False}), ({}, {"global_pool": "avg", "fc_norm": False}),
        ({"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}, {"act_layer": "quick_gelu"}),
        ({"crop_pct": 0.94}, {"act_layer": "gelu_tanh"}),
    ],
)  # fmt: skip
def test_timm_folders(tmp_path, images, cfg, arguments):
    layouts.timm_folder(tmp_path / "t", cfg=cfg, **arguments)
    converted = convert(str(tmp_path / "t"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 't'}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        pixels = torch.randn(2, 3, 48, 48)
        output = converted.model(pixels)
        assert (output.last_hidden_state - theirs.forward_features(pixels)).abs().max() <= 1e-5
        assert (output.pooler_output - theirs(pixels)).abs().max() <= 1e-5
    assert converted.model.config.pooling == ("mean" if "fc_norm" in arguments else "cls")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=theirs), is_training=False)
    if cfg.get("crop_pct") != 0.94:  # an odd margin there: a pixel aside, and said so
        processed = converted.processor(images[0], return_tensors="pt")["pixel_values"][0]
        assert (processed - transform(images[0])).abs().max() <= 0.04
    else:
        assert "a pixel aside" in " ".join(converted.notes)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"architecture": "vit_base_patch16_225"}, "nearest: vit_base_patch16_224"), ({"architecture": 3}, "does not exist"),
        ({"architecture": "local-dir:/tmp"}, "does not exist"), ({"architecture": "swin_tiny_patch4_window7_224"}, "swin"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "no plain setting"), ({"model_args": []}, "list, no object"),
        ({"model_args": layouts.TIMM_ARGUMENTS | {"depth": 10**9}}, "depth 1000000000, the weights 2"),
        ({"pretrained_cfg": {"input_size": [3, 64, 64]}}, "input_size"), ({"pretrained_cfg": {"mean": "x"}}, "pretrained_cfg"),
        ({"pretrained_cfg": {"input_size": [3, 48, 48], "crop_mode": "border"}}, "crop_mode 'border'"),
        ({"model_args": layouts.TIMM_ARGUMENTS | {"num_heads": 3}}, "timm can't build"), ({"global_pool": "map"}, "refused"),
        ({"model_args": layouts.TIMM_ARGUMENTS | {"norm_layer": "rmsnorm"}}, "strictly"),
    ],
)  # fmt: skip
def test_timm_configs_that_do_not_fit(tmp_path, change, message):
    layouts.timm_folder(tmp_path / "t")
    config = json.loads((tmp_path / "t/config.json").read_text())
    (tmp_path / "t/config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConversionError, match=message):
        convert(str(tmp_path / "t"))


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("ViTModel", {}), ("ViTForImageClassification", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
        ("ViTForMaskedImageModeling", {"qkv_bias": False}), ("ViTMAEForPreTraining", {}), ("ViTMAEModel", {}),
    ],
)  # fmt: skip
def test_transformers_folders(tmp_path, kind, settings):
    import transformers

    layouts.transformers_folder(tmp_path / "t", kind, processor=kind != "ViTMAEModel", **settings)
    converted = convert(str(tmp_path / "t"))
    config = converted.model.config
    assert config.layer_norm_eps == settings.get("layer_norm_eps", 1e-12)
    assert config.hidden_act == settings.get("hidden_act", "gelu") and config.num_attention_heads == 2
    pixels = torch.randn(2, 3, 48, 48)
    is_mae = "MAE" in kind
    theirs = (transformers.ViTMAEModel if is_mae else transformers.ViTModel).from_pretrained(tmp_path / "t").eval()
    theirs.config.mask_ratio = 0.0
    with torch.no_grad():
        output = theirs(pixels, **({"noise": torch.arange(9.0).expand(2, -1)} if is_mae else {})).last_hidden_state
        assert (converted.model(pixels).last_hidden_state - output).abs().max() <= 1e-5
    assert config.position_embedding_type == ("sincos" if is_mae else "learned")
    assert (converted.record["preprocessing_parity"] is None) == (kind == "ViTMAEModel")
    if kind == "ViTModel":
        assert "pooling head" in " ".join(map(str, converted.fates))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "dinov2"}, "layer scale"), ({"model_type": "nothing"}, "These can: vit, vit_mae"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3, the weights 2"), ({"image_size": "a"}, "none of ViTConfig"),
        ({"model_type": "urfm"}, "URFM folder already"), ({"hidden_act": "gelo"}, "gelo"), ({"head_dim": 8}, "head_dim 8"),
        ({"image_size": [48, 32]}, r"\[48, 32\], the weights 48"), ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
    ],
)  # fmt: skip
def test_transformers_configs_that_do_not_fit(tmp_path, change, message):
    layouts.transformers_folder(tmp_path / "t", processor=False)
    config = json.loads((tmp_path / "t/config.json").read_text())
    (tmp_path / "t/config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "t"))


def test_open_clip_with_a_trunk_of_timm(tmp_path):
    import open_clip.model

    state = layouts.open_clip_folder(tmp_path / "c")
    converted = convert(str(tmp_path / "c"))
    vision = open_clip.model.CLIPVisionCfg(timm_model_name="test_vit", timm_pool="", image_size=160)
    visual = open_clip.model._build_vision_tower(16, vision).eval()
    visual.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("visual.")}, strict=True)
    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert (converted.model(pixels).last_hidden_state - visual.trunk.forward_features(pixels)).abs().max() <= 1e-5
        projected = visual.head(converted.model(pixels).pooler_output)
        assert (projected - visual(pixels)).abs().max() <= 1e-4
    assert list(converted.processor.image_mean) == [0.48, 0.46, 0.41] and converted.processor.do_center_crop
    assert converted.record["preprocessing_parity"]["max_abs"] <= 0.04
    assert converted.record["left_out"] == {"classifier or projection head": 1, "no part of the image tower": 3}


def test_clips_own_vit_and_other_trunks_are_refused(tmp_path):
    state = {
        "visual.class_embedding": torch.ones(4),
        "visual.ln_pre.weight": torch.ones(4),
        "logit_scale": torch.ones(()),
    }
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ConversionError, match="class_embedding is of a norm before the first layer"):
        convert(str(tmp_path / "clip.pt"))
    layouts.open_clip_folder(tmp_path / "c", "test_vit2")
    with pytest.raises(ConversionError, match="register tokens"):
        convert(str(tmp_path / "c"))


# ---------------------------------------------------------------- parity, other sizes, the other way


def test_outputs_that_differ_end_the_conversion(tmp_path, monkeypatch):
    layouts.timm_folder(tmp_path / "t")
    real = conversion._build

    def wrong(config, ours):
        ours["layers.1.attention.k_proj.weight"] = ours["layers.1.attention.q_proj.weight"]
        return real(config, ours)

    monkeypatch.setattr(conversion, "_build", wrong)
    with pytest.raises(ConversionError, match="outputs differ from those of timm.*in float64"):
        convert(str(tmp_path / "t"))


def test_large_tokens_are_compared_in_float64(tmp_path):
    state = layouts.mae_encoder(SMALL)
    state["norm.weight"] *= 1e6
    state["blocks.0.norm1.weight"] += 3 * torch.rand(32)
    torch.save(state, tmp_path / "c.pth")
    record = convert(str(tmp_path / "c.pth"), num_attention_heads=2).record
    assert record["parity"]["max_abs"] <= record["parity"]["tolerance"]


def test_another_size_interpolates_as_the_model_does(tmp_path):
    layouts.timm_folder(tmp_path / "t")
    small, large = convert(str(tmp_path / "t")), convert(str(tmp_path / "t"), image_size=80)
    assert large.model.config.image_size == 80 and dict(large.processor.crop_size) == {"height": 80, "width": 80}
    pixels = torch.randn(1, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(large.model(pixels).last_hidden_state, small.model(pixels).last_hidden_state)
    with pytest.raises(ConversionError, match="72 is not divisible by the patch size 16. The nearest: 64"):
        convert(str(tmp_path / "t"), image_size=72)


@pytest.mark.parametrize(
    "arguments", [{}, {"global_pool": "avg", "fc_norm": False, "act_layer": "quick_gelu", "qkv_bias": False}]
)
def test_to_timm_and_back(tmp_path, arguments):
    state = layouts.timm_folder(tmp_path / "t", **arguments)
    write_converted(convert(str(tmp_path / "t")), tmp_path / "urfm", FACTS)
    convert_to_timm(str(tmp_path / "urfm"), tmp_path / "back", FACTS)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    first = timm.create_model(f"local-dir:{tmp_path / 't'}", pretrained=True, num_classes=0).eval()
    assert {key: value for key, value in state.items() if "head" not in key}.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert (theirs(pixels) - first(pixels)).abs().max() <= 1e-5
    data = timm.data.resolve_data_config({}, model=theirs)
    assert (
        list(data["mean"]) == [0.5, 0.5, 0.5]
        and data["interpolation"] == "bicubic"
        and data["input_size"] == (3, 48, 48)
    )
    record = json.loads((tmp_path / "back/conversion.json").read_text())
    assert record["parity"]["max_abs"] <= 1e-5 and record["preprocessing_parity"]["max_abs"] <= 0.04
    write_converted(convert(str(tmp_path / "back")), tmp_path / "again", FACTS)
    again = AutoModel.from_pretrained(tmp_path / "again").state_dict()
    for key, value in AutoModel.from_pretrained(tmp_path / "urfm").state_dict().items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=0)


def test_to_timm_of_other_urfm_models_and_of_what_is_none(tmp_path):
    from modeling_urfm import URFMConfig, URFMImageProcessor
    from modeling_urfm.hub.saving import save_model_folder

    config = URFMConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16,
        target_hidden_size=8, num_labels=3,
    )  # fmt: skip
    processor = URFMImageProcessor(size={"height": 32, "width": 32}, do_crop_scan_region=True)
    for name, kind in (("p", URFMForPreTraining), ("c", URFMForImageClassification)):
        save_model_folder(kind(config), processor, tmp_path / name)
        fates, record = convert_to_timm(str(tmp_path / name), tmp_path / f"{name}-timm", FACTS)
        assert record["parity"]["max_abs"] <= 1e-5 and "do_crop_scan_region" in record["notes"][0]
        keys = AutoModelForPreTraining.from_pretrained(tmp_path / name).state_dict() if name == "p" else {}
        assert sum(fate.outcome == "left out" for fate in fates) == (sum("decoder" in key for key in keys) or 2)
    assert {fate.key for fate in fates if fate.outcome == "left out"} == {"classifier.weight", "classifier.bias"}
    with pytest.raises(FileNotFoundError, match="Did you mean .*p"):
        convert_to_timm(str(tmp_path / "q"), tmp_path / "x", FACTS)
    layouts.transformers_folder(tmp_path / "v", processor=False)
    with pytest.raises(ConversionError, match="is a 'vit' model, no URFM"):
        convert_to_timm(str(tmp_path / "v"), tmp_path / "x", FACTS)
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".tmp*"))


def test_a_loss_is_left_out_only_beside_an_encoder():
    state, loss = layouts.mae_encoder(SMALL), {"criterion.weight": torch.ones(3)}
    fates = make_plan(layouts.prefixed(state, "model.encoder.") | loss).fates
    assert str(fates[-1]) == "criterion.weight -> left out: part of a loss"
    with pytest.raises(ConversionError, match="criterion.weight -> refused: unknown"):
        make_plan(state | loss)


def test_to_timm_merges_an_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    layouts.released_urfm(tmp_path / "urfm.pth")
    write_converted(convert(str(tmp_path / "urfm.pth"), num_attention_heads=2), tmp_path / "urfm", FACTS)
    model = URFMForImageClassification.from_pretrained(tmp_path / "urfm", num_labels=3)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    AutoImageProcessor.from_pretrained(tmp_path / "urfm").save_pretrained(tmp_path / "adapter")
    convert_to_timm(str(tmp_path / "adapter"), tmp_path / "timm", FACTS)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = adapted.eval().base_model.model.urfm(pixels).pooler_output
        assert (theirs(pixels) - expected).abs().max() <= 1e-5
        plain = AutoModel.from_pretrained(tmp_path / "urfm")(pixels).pooler_output
    assert (plain - expected).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("size, name", [("BASE", "vit_base_patch16_224"), ("LARGE", "vit_large_patch16_224")])
def test_released_files_at_full_size_equal_timm(tmp_path, size, name):
    """Random weights in the released layout: timm's own model, loaded strictly by hand, gives the same to 1e-5."""
    ema, _ = layouts.released_urfm(tmp_path / "urfm.pth", getattr(layouts, size), raw_seed=0)
    converted = convert(str(tmp_path / "urfm.pth"))
    write_converted(converted, tmp_path / "urfm", FACTS)
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
    theirs.load_state_dict(ema, strict=True, assign=True)
    model = AutoModel.from_pretrained(tmp_path / "urfm").eval()
    with torch.no_grad():
        pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        difference = (model(pixels).last_hidden_state - theirs.eval().forward_features(pixels)).abs().max()
    print(f"{name}: {float(difference):.1e}, on images {converted.record['parity']['max_abs']:.1e}", file=sys.stderr)
    assert difference <= 1e-5 and converted.record["parity"]["max_abs"] <= 1e-5
