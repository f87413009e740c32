# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Frozen encoders of every source against their own code, and what is said of specs that don't work."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from modeling_urfm import URFMConfig, URFMForImageClassification, URFMForPreTraining, URFMImageProcessor, URFMModel
from modeling_urfm.evaluation.encoders import load_encoder
from modeling_urfm.evaluation.preparation import Preparation, ProcessorPreparation, preparation_of
from modeling_urfm.pretraining.teacher import DEMO_TEACHER, load_teacher


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL = {"image_size": 32, "patch_size": 8, **SIZES}
DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
           "decoder_intermediate_size": 32, "target_hidden_size": 8}  # fmt: skip
CLIP_PROCESSOR = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}


def images(count=2):
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, 256, (1 + 2 * (n % 2), 50 + n, 71), dtype=np.uint8)) for n in range(count)]


def drawn(model):
    """All weights at random, so that no bias or norm is trivial."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def urfm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "urfm"
    drawn(URFMForPreTraining(URFMConfig(**SMALL, **DECODER))).save_pretrained(folder)
    URFMImageProcessor(**SQUARE).save_pretrained(folder)
    return folder


def processed(folder, count=2):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return torch.cat([processor(i.expand(3, -1, -1), return_tensors="pt").pixel_values for i in images(count)])


def prepared(encoder, count=2):
    return torch.stack([encoder.prepare(image) for image in images(count)])


@torch.no_grad()
def test_urfm_checkpoint_gives_what_the_model_gives(urfm):
    encoder, model = load_encoder(str(urfm)), URFMModel.from_pretrained(urfm).eval()
    pixels = processed(urfm)
    torch.testing.assert_close(prepared(encoder), pixels)
    output = model(pixels)
    assert (encoder.size, encoder.grid, encoder.hidden_size) == ((32, 32), (4, 4), 32)
    torch.testing.assert_close(encoder.features(pixels), output.pooler_output)
    torch.testing.assert_close(encoder.features(pixels, "cls"), output.last_hidden_state[:, 0])
    torch.testing.assert_close(encoder.features(pixels, "mean"), output.last_hidden_state[:, 1:].mean(1))
    torch.testing.assert_close(encoder.features(pixels, "tokens"), output.last_hidden_state[:, 1:])
    cls, patches = encoder.tokens(pixels)
    assert cls.shape == (2, 32) and patches.shape == (2, 16, 32) and not patches.requires_grad
    with pytest.raises(ValueError, match="Did you mean 'pooled'"):
        encoder.features(pixels, "poled")
    assert load_encoder(str(urfm), image_size=48).grid == (6, 6)


def test_fingerprint_knows_weights_processor_pooling_and_dtype(urfm, tmp_path):
    first = load_encoder(str(urfm)).fingerprint
    assert load_encoder(str(urfm)).fingerprint == first
    found = {first, load_encoder(str(urfm), dtype=torch.bfloat16).fingerprint}
    found.add(load_encoder(str(urfm), image_size=48).fingerprint)
    shutil.copytree(urfm, tmp_path / "pooling")
    config = json.loads((urfm / "config.json").read_text())
    (tmp_path / "pooling" / "config.json").write_text(json.dumps(config | {"pooling": "mean"}))
    found.add(load_encoder(str(tmp_path / "pooling")).fingerprint)
    model = URFMModel.from_pretrained(urfm)
    model.layernorm.bias.data[3] += 1e-3
    model.save_pretrained(tmp_path / "weights")
    URFMImageProcessor(**SQUARE).save_pretrained(tmp_path / "weights")
    found.add(load_encoder(str(tmp_path / "weights")).fingerprint)
    found.add(load_encoder(f"random:{urfm}").fingerprint)
    assert len(found) == 6


def test_random_weights_are_those_of_the_seed(urfm):
    state = torch.random.get_rng_state()
    fingerprints = [load_encoder(f"random:{urfm}", seed=seed).fingerprint for seed in (0, 0, 1)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert torch.equal(state, torch.random.get_rng_state())


@torch.no_grad()
@pytest.mark.parametrize("dora", [False, True])
def test_adapter_is_merged_and_its_head_left_behind(urfm, tmp_path, dora):
    from peft import LoraConfig, get_peft_model

    model = URFMForImageClassification.from_pretrained(urfm, num_labels=5)
    settings = LoraConfig(target_modules=["q_proj", "fc1"], modules_to_save=["classifier"], r=2, use_dora=dora)
    adapted = drawn(get_peft_model(model, settings))
    adapted.save_pretrained(tmp_path)
    encoder, pixels = load_encoder(str(tmp_path)), processed(urfm)  # the processor is the base's
    # Only what an adapter holds was saved: the base is as it was.
    fresh = URFMForImageClassification.from_pretrained(urfm, num_labels=5)
    expected = transformers_peft(fresh, tmp_path)(pixels)
    torch.testing.assert_close(encoder.features(pixels), expected.pooler_output, atol=1e-5, rtol=1e-5)
    plain = URFMModel.from_pretrained(urfm).eval()(pixels).pooler_output
    assert not torch.allclose(encoder.features(pixels), plain, atol=1e-3)


def transformers_peft(model, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).eval().base_model.model.urfm


PEERS = {
    "vit": (transformers.ViTConfig(**SMALL), transformers.ViTModel, transformers.ViTImageProcessor(**SQUARE)),
    "mae": (transformers.ViTMAEConfig(**SMALL), transformers.ViTMAEModel, transformers.ViTImageProcessor(**SQUARE)),
    "dinov2": (transformers.Dinov2Config(**SMALL, mlp_ratio=2), transformers.Dinov2Model,
               transformers.BitImageProcessor(**CLIP_PROCESSOR)),
    "siglip": (transformers.SiglipVisionConfig(**SMALL), transformers.SiglipVisionModel,
               transformers.SiglipImageProcessor(**SQUARE)),
    "clip": (transformers.CLIPConfig(vision_config=SMALL, text_config=SIZES | {"vocab_size": 9}), transformers.CLIPModel,
             transformers.CLIPImageProcessor(**CLIP_PROCESSOR)),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", PEERS)
def test_transformers_encoders_give_what_they_give(name, tmp_path):
    config, kind, processor = PEERS[name]
    model = drawn(kind(config))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder, pixels = load_encoder(f"transformers:{tmp_path}"), processed(tmp_path)
    assert isinstance(encoder.prepare, Preparation)
    torch.testing.assert_close(prepared(encoder), pixels)
    if name == "mae":
        model.config.mask_ratio = 0.0
        hidden = model(pixels, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        pooled, patches = hidden[:, 0], hidden[:, 1:]
        torch.testing.assert_close(encoder.features(pixels), encoder.features(pixels))  # nothing is hidden at random
    elif name == "clip":
        output = model.vision_model(pixels)
        pooled, patches = output.pooler_output, model.vision_model.post_layernorm(output.last_hidden_state)[:, 1:]
    else:
        output = model(pixels)
        pooled = output.pooler_output
        patches = output.last_hidden_state[:, 0 if name == "siglip" else 1 :]
    torch.testing.assert_close(encoder.features(pixels), pooled)
    torch.testing.assert_close(encoder.features(pixels, "tokens"), patches)
    if name == "siglip":
        with pytest.raises(ValueError, match="no CLS token"):
            encoder.features(pixels, "cls")
    assert load_encoder(f"transformers:{tmp_path}", image_size=48).grid == (6, 6)


@torch.no_grad()
def test_a_pooler_that_was_never_trained_is_not_used(tmp_path):
    config, kind, processor = PEERS["vit"]
    drawn(kind(config, add_pooling_layer=False)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder, pixels = load_encoder(f"transformers:{tmp_path}"), processed(tmp_path)
    torch.testing.assert_close(encoder.features(pixels), encoder.features(pixels, "cls"))


@torch.no_grad()
def test_timm_encoder_as_its_own_transform(tmp_path):
    import timm

    encoder = load_encoder("timm:vit_tiny_patch16_224?pretrained=false")
    trunk = encoder.module.trunk
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(trunk), is_training=False)
    image = (
        torch.nn.functional.interpolate(images()[1][None].float(), (300, 410), mode="bicubic")[0].clamp(0, 255).byte()
    )
    pixels = transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
    assert (encoder.prepare(image) - pixels).abs().mean() < 0.005
    tokens = trunk.forward_features(pixels[None])
    torch.testing.assert_close(encoder.features(pixels[None]), tokens[:, 0])
    torch.testing.assert_close(encoder.features(pixels[None], "tokens"), tokens[:, 1:])
    with pytest.raises(ValueError, match="Did you mean timm:vit_tiny_patch16_224"):
        load_encoder("timm:vit_tiny_patch16_22")


@torch.no_grad()
def test_a_convolutional_network_has_a_grid():
    encoder = load_encoder("timm:test_resnet?pretrained=false", image_size=64)
    cls, patches = encoder.tokens(torch.zeros(1, 3, 64, 64))
    assert cls is None and patches.shape == (1, encoder.grid[0] * encoder.grid[1], encoder.hidden_size)


@torch.no_grad()
def test_open_clip_tower_is_the_teachers():
    encoder = load_encoder(f"open_clip:local-dir:{DEMO_TEACHER}")
    image = images()[1][:, :50, :50]  # square: nothing to crop
    teacher = load_teacher("demo", dtype=torch.float32)
    pixels = encoder.prepare(image)[None]
    torch.testing.assert_close(encoder.features(pixels, "tokens"), teacher.tower(pixels))
    assert encoder.features(pixels).shape == (1, encoder.hidden_size)
    assert load_encoder(f"random:open_clip:local-dir:{DEMO_TEACHER}").fingerprint != encoder.fingerprint
    with pytest.raises(ValueError, match="names no weights.*openai"):
        load_encoder("open_clip:ViT-B-32")
    with pytest.raises(ValueError, match="--encoder open_clip:local-dir"):
        load_encoder("open_clip:hf-hub:nobody/nothing")


def test_a_rule_or_the_processor_itself():
    rule = preparation_of(URFMImageProcessor(**SQUARE))
    cropping = URFMImageProcessor(do_crop_scan_region=True, do_pad_square=True, **SQUARE)
    itself = preparation_of(cropping)
    assert isinstance(rule, Preparation) and isinstance(itself, ProcessorPreparation)
    image = torch.zeros(1, 90, 120, dtype=torch.uint8)
    image[:, 20:70, 30:80] = torch.randint(1, 255, (50, 50), generator=torch.Generator().manual_seed(0))
    expected = cropping(image.expand(3, -1, -1), return_tensors="pt").pixel_values[0]
    again = pickle.loads(pickle.dumps(itself))
    torch.testing.assert_close(again(image), expected)
    assert repr(again) == repr(itself) and "do_crop_scan_region" in repr(itself)
    shrunk = rule.shrink(image)
    assert shrunk.dtype == torch.uint8 and shrunk.shape == (1, 32, 32)


def test_a_missing_processor_is_asked_for(urfm, tmp_path):
    shutil.copytree(urfm, tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no image processor.*\?processor="):
        load_encoder(str(tmp_path / "bare"))
    encoder = load_encoder(f"{tmp_path / 'bare'}?processor={urfm}")
    assert encoder.fingerprint == load_encoder(str(urfm)).fingerprint


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tim:resnet18", "Did you mean 'timm'"),
        ("transformers:", "names no encoder"),
        ("{models}/urfn", "Did you mean '.*urfm'"),
        ("{models}", "holds no config.json; it holds: .*urfm"),
        ("{models}/urfm?procesor=x", "Did you mean 'processor'"),
        ("{models}/urfm?processor=", "has no value"),
        ("{models}/vit", "is a 'vit' model: name it transformers:"),
        ("transformers:{models}/lacking", "lacks weights of ViTModel: .*q_proj"),
        ("transformers:nobody/nothing", "hf download"),
    ],
)
def test_specs_that_do_not_work_say_why(urfm, spec, says):
    models = urfm.parent
    if not (models / "vit").exists():
        config, kind, processor = PEERS["vit"]
        for name in ("vit", "lacking"):
            model = kind(config)
            if name == "lacking":
                state = {key: value for key, value in model.state_dict().items() if "q_proj" not in key}
                model.save_pretrained(models / name, state_dict=state)
            else:
                model.save_pretrained(models / name)
            processor.save_pretrained(models / name)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        load_encoder(spec.format(models=models))
