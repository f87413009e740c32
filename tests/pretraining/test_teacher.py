# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Teachers: parity with timm, open_clip and transformers; only the vision tower; errors that say how to get one."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
import transformers
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch.nn import functional as F

from modeling_urfm import URFMConfig, URFMModel
from modeling_urfm.pretraining.teacher import CLIP_MEAN, CLIP_STD, DEMO_TEACHER, TeacherError, faster_dtype, load_teacher


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def biomedclip_config(timm_name: str, size: int) -> dict:
    """BiomedCLIP's open_clip_config.json, but for the tower's name and size."""
    text = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    return {
        "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {"timm_model_name": timm_name, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
                           "image_size": size},
            "text_cfg": {"hf_model_name": text, "hf_tokenizer_name": text, "hf_proj_type": "mlp",
                         "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 256},
        },
        "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
    }  # fmt: skip


def biomedclip_stand_in(folder, timm_name="test_vit", size=160, binary=True):
    """A folder laid out as BiomedCLIP's Hub page, with random weights and keys of a text tower that must not be needed."""
    from open_clip.model import _build_vision_tower

    config = biomedclip_config(timm_name, size)
    visual = _build_vision_tower(512, config["model_cfg"]["vision_cfg"])
    state = {f"visual.{k}": v.clone() for k, v in visual.state_dict().items()}
    state |= {"text.transformer.embeddings.word_embeddings.weight": torch.zeros(10, 4), "logit_scale": torch.ones(())}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if binary:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    return visual.eval()


def normalized(pixels, mean=CLIP_MEAN, std=CLIP_STD):
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


@pytest.mark.parametrize("binary", [True, False])
def test_biomedclips_layout_gives_timms_patch_tokens(tmp_path, binary):
    visual = biomedclip_stand_in(tmp_path, binary=binary)
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}", dtype=torch.float32)
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        expected = visual.trunk.forward_features(normalized(pixels))[:, 1:]
    torch.testing.assert_close(teacher(pixels, (10, 10)), expected, atol=1e-5, rtol=0)
    assert (teacher.hidden_size, teacher.image_size) == (64, 160)


@pytest.mark.slow
def test_the_very_size_of_biomedclip(tmp_path):
    visual = biomedclip_stand_in(tmp_path, "vit_base_patch16_224", 224)
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}", dtype=torch.float32)
    pixels = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = visual.trunk.forward_features(normalized(pixels))[:, 1:]
    torch.testing.assert_close(teacher(pixels, (14, 14)), expected, atol=1e-5, rtol=0)
    assert teacher.hidden_size == 768


def test_only_the_vision_tower_is_built(tmp_path):
    """In a process without any network the text tower's name would fail at once; nothing of transformers' models loads."""
    biomedclip_stand_in(tmp_path)
    code = (
        "import sys, torch\n"
        "from modeling_urfm.pretraining.teacher import load_teacher\n"
        "import open_clip.model\n"
        "def refuse(*a, **k): raise AssertionError('a text tower was built')\n"
        "open_clip.model._build_text_tower = refuse\n"
        f"t = load_teacher('open_clip:local-dir:{tmp_path}')\n"
        "print(t(torch.rand(1, 3, 160, 160), (10, 10)).shape)\n"
        "assert not any('bert' in name for name in sys.modules if 'transformers.models' in name), 'a text model was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert "[1, 100, 64]" in done.stdout


def test_openais_layout_with_open_clips_own_vit(tmp_path):
    config = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 48, "layers": 3, "head_width": 16},
              "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}}  # fmt: skip
    clip = CLIP(**config).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.save({"state_dict": clip.state_dict()}, tmp_path / "open_clip_pytorch_model.bin")
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}", dtype=torch.float32)
    clip.visual.output_tokens = True
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        # open_clip's own tokens are taken after the norm
        expected = clip.visual(normalized(pixels))[1]
    torch.testing.assert_close(teacher(pixels, (4, 4)), expected, atol=1e-5, rtol=0)
    assert teacher.image_mean == CLIP_MEAN


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "dinov2", "dinov3_vit", "urfm"])
def test_vision_encoders_of_transformers(tmp_path, kind):
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64, "patch_size": 16}
    prefix = 1
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**small), add_pooling_layer=False)
    elif kind in ("clip", "siglip"):
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "vocab_size": 20, "projection_dim": 8}
        name = {"clip": "CLIP", "siglip": "Siglip"}[kind]
        config = getattr(transformers, f"{name}Config")(vision_config=small, text_config=text)
        model, prefix = getattr(transformers, f"{name}Model")(config), int(kind == "clip")
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**{k: v for k, v in small.items() if k != "intermediate_size"}))
    elif kind == "dinov3_vit":
        model, prefix = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**small, num_register_tokens=4)), 5
    else:
        model = URFMModel(URFMConfig(**small))
    model.eval().save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    teacher = load_teacher(f"transformers:{tmp_path}", dtype=torch.float32)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = getattr(model, "vision_model", model)(normalized(pixels, (0.5,) * 3, (0.25,) * 3)).last_hidden_state[:, prefix:]
    torch.testing.assert_close(teacher(pixels, (4, 4)), expected, atol=1e-5, rtol=1e-5)
    assert not hasattr(teacher._held[0].model, "text_model")


def test_layers_grids_and_normalisations(tmp_path):
    visual = biomedclip_stand_in(tmp_path)
    spec, pixels = f"open_clip:local-dir:{tmp_path}", torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        earlier = visual.trunk.forward_intermediates(normalized(pixels), indices=[3], output_fmt="NLC", intermediates_only=True)[0]
    for layer in (3, -3):
        torch.testing.assert_close(load_teacher(spec, layer=layer, dtype=torch.float32)(pixels, (10, 10)), earlier, atol=1e-5, rtol=1e-5)
    whole = load_teacher(spec, dtype=torch.float32)
    maps = whole(pixels, (10, 10)).transpose(1, 2).reshape(2, 64, 10, 10)
    resized = F.interpolate(maps, size=(14, 7), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(whole(pixels, (14, 7)), resized, atol=1e-5, rtol=1e-5)
    unit = load_teacher(spec, normalize="l2", dtype=torch.float32)(pixels, (5, 5))
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2, 25))
    standard = load_teacher(spec, normalize="layer_norm", dtype=torch.float32)(pixels, (5, 5))
    assert standard.mean(-1).abs().max() < 1e-5
    # another size of crop is brought to the teacher's own
    assert whole(torch.rand(1, 3, 96, 96), (10, 10)).shape == (1, 100, 64)


def test_it_is_frozen_and_leaves_no_trace_in_a_checkpoint(tmp_path):
    biomedclip_stand_in(tmp_path)
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}")
    holder = torch.nn.Module()
    holder.teacher = teacher
    assert not list(holder.parameters()) and not holder.state_dict()
    holder.train()
    assert not teacher.training and not teacher._held[0].training
    assert not any(p.requires_grad for p in teacher._held[0].parameters())
    features = teacher(torch.rand(1, 3, 160, 160, requires_grad=True), (10, 10))
    assert not features.requires_grad and features.dtype == torch.float32
    assert torch.equal(teacher(torch.full((1, 3, 160, 160), 0.3), (10, 10)), teacher(torch.full((1, 3, 160, 160), 0.3), (10, 10)))


def test_bfloat16_is_near_and_chosen_by_a_trial(tmp_path):
    biomedclip_stand_in(tmp_path)
    spec, pixels = f"open_clip:local-dir:{tmp_path}", torch.rand(2, 3, 160, 160)
    fine, coarse = (load_teacher(spec, dtype=d)(pixels, (10, 10)) for d in (torch.float32, torch.bfloat16))
    assert F.cosine_similarity(fine, coarse, dim=-1).mean() > 0.999
    assert faster_dtype(torch.device("cpu"), 256) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("openclip:hf-hub:a/b", ValueError, "nearest form: open_clip:hf-hub:ID"),
        ("open_clip:local-dir:", ValueError, "nearest form: open_clip:local-dir:FOLDER"),
        ("open_clip:local-dir:nowhere", TeacherError, "does not exist either"),
        ("open_clip:hf-hub:nobody/nothing", TeacherError, "hf download nobody/nothing --local-dir FOLDER"),
        ("transformers:nobody/nothing", TeacherError, "--teacher transformers:FOLDER"),
    ],
)
def test_a_teacher_that_cannot_be_had_says_how_to_get_it(spec, error, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=says):
        load_teacher(spec)


def test_folders_that_lack_or_misfit_something_name_it(tmp_path):
    biomedclip_stand_in(tmp_path)
    spec = f"open_clip:local-dir:{tmp_path}"
    with pytest.raises(ValueError, match="has 6 layers: teacher_layer=6 must be from -6 to 5. The nearest: 5"):
        load_teacher(spec, layer=6)
    with pytest.raises(ValueError, match="Did you mean 'layer_norm'"):
        load_teacher(spec, normalize="layernorm")
    state = torch.load(tmp_path / "open_clip_pytorch_model.bin", weights_only=True)
    state.pop("visual.trunk.norm.weight")
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(TeacherError, match="does not fit the vision tower(.|\n)*trunk.norm.weight"):
        load_teacher(spec)
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(TeacherError, match="holds no weights"):
        load_teacher(spec)


def test_the_demo_teacher_ships_small_and_in_that_layout():
    names = {path.name: path.stat().st_size for path in DEMO_TEACHER.iterdir()}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "README.md", "results.json"} <= set(names)
    assert sum(names.values()) < 6 * 2**20
    teacher = load_teacher("demo")
    features = teacher(torch.rand(2, 3, 128, 128), (10, 10))
    assert features.shape == (2, 100, teacher.hidden_size) and features.isfinite().all()
    metrics = json.loads((DEMO_TEACHER / "results.json").read_text())["metrics"]
    assert metrics["organ_knn_accuracy"] > metrics["organ_knn_accuracy_untrained"] + 0.2


def test_timm_and_the_tower_agree_on_prefix_tokens():
    assert timm.create_model("test_vit4", num_classes=0).num_prefix_tokens == 1
