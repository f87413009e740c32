# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The teacher: parity with timm, open_clip and transformers, only the vision tower, frozen, errors that say what to do.

All models here are small and random; they are written to a temporary folder in the layout of the real ones.
"""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from modeling_urfm import URFMConfig, URFMModel
from modeling_urfm.data.phantoms import phantom_frame
from modeling_urfm.modeling_urfm import take
from modeling_urfm.pretraining.teacher import (
    CLIP_MEAN,
    CLIP_STD,
    DEMO_TEACHER,
    IMAGENET_MEAN,
    Teacher,
    TeacherError,
    _TimmTower,
    faster_dtype,
    load_teacher,
    untrained_teacher,
)


open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")

# BiomedCLIP's text tower: a second repository, which offline tests can't reach and this one does not exist anyway.
ABSENT_TEXT_TOWER = {
    "hf_model_name": "no-such-organisation/no-such-model",
    "hf_tokenizer_name": "no-such-organisation/no-such-model",
    "hf_proj_type": "mlp",
    "hf_pooler_type": "cls_last_hidden_state_pooler",
    "context_length": 256,
}
TIMM_VISION = {
    "timm_model_name": "test_vit", "timm_model_pretrained": False,
    "timm_pool": "", "timm_proj": "linear", "image_size": 160,
}  # fmt: skip
CLIP_VISION = {"image_size": 64, "patch_size": 16, "width": 48, "head_width": 16, "layers": 3}


def write_open_clip(folder, vision, *, safetensors=False, embed_dim=32, preprocess=True, drop=(), extra=None):
    """A folder as BiomedCLIP's on the Hub with random weights; returns its vision tower."""
    from open_clip.model import _build_vision_tower

    torch.manual_seed(0)
    visual = _build_vision_tower(embed_dim, dict(vision)).eval()
    config = {"model_cfg": {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": ABSENT_TEXT_TOWER}}
    if preprocess:
        config["preprocess_cfg"] = {"mean": CLIP_MEAN, "std": CLIP_STD}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {f"visual.{name}": tensor for name, tensor in visual.state_dict().items() if name not in drop}
    state |= {"text.transformer.embeddings.word_embeddings.weight": torch.zeros(4, 2), "logit_scale": torch.tensor(1.0)}
    state |= extra or {}
    if safetensors:
        from safetensors.torch import save_file

        save_file(state, folder / "open_clip_model.safetensors")
    else:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    return visual


def images(size, batch=2, seed=0):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def normalized(pixels, mean=CLIP_MEAN, std=CLIP_STD):
    return (pixels - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm_teacher")
    return folder, write_open_clip(folder, TIMM_VISION)


# ---- open_clip: timm's trunks and open_clip's own ViT


@pytest.mark.parametrize("safetensors", [False, True])
def test_timm_trunk_parity(tmp_path, safetensors):
    """BiomedCLIP's layout: the patch tokens after the last norm, un-projected; no text tower is needed."""
    visual = write_open_clip(tmp_path, TIMM_VISION, safetensors=safetensors)
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}", dtype=torch.float32)
    pixels = images(160)
    with torch.no_grad():
        expected = visual.trunk.forward_features(normalized(pixels))[:, 1:]
    grid = (int(expected.shape[1] ** 0.5),) * 2
    torch.testing.assert_close(teacher(pixels, grid), expected, rtol=1e-5, atol=1e-5)
    assert teacher.hidden_size == 64 and expected.shape[1] == 100
    assert teacher.name == f"open_clip:local-dir:{tmp_path}"


@pytest.mark.slow
def test_biomedclip_layout_at_full_size(tmp_path):
    """The very structure of BiomedCLIP's vision tower, with random weights: 196 patch tokens of 768."""
    vision = TIMM_VISION | {"timm_model_name": "vit_base_patch16_224", "image_size": 224}
    visual = write_open_clip(tmp_path, vision, embed_dim=512)
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}", dtype=torch.float32)
    pixels = images(224, batch=1)
    with torch.no_grad():
        expected = visual.trunk.forward_features(normalized(pixels))[:, 1:]
    grid = (int(expected.shape[1] ** 0.5),) * 2
    torch.testing.assert_close(teacher(pixels, grid), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape == (1, 196, 768) and teacher.hidden_size == 768
    names = {f"visual.{name}" for name in visual.state_dict()}
    assert {"visual.trunk.cls_token", "visual.trunk.blocks.11.mlp.fc2.bias", "visual.head.proj.weight"} <= names


def test_open_clip_vit_parity(tmp_path):
    visual = write_open_clip(tmp_path, CLIP_VISION)
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}", dtype=torch.float32)
    pixels = images(64)
    with torch.no_grad():
        tokens = visual.ln_post(visual.transformer(visual._embeds(normalized(pixels))))[:, 1:]
    torch.testing.assert_close(teacher(pixels, (4, 4)), tokens, rtol=1e-5, atol=1e-5)
    assert teacher.hidden_size == 48


@pytest.mark.parametrize("vision", [TIMM_VISION, CLIP_VISION], ids=["timm", "open_clip"])
def test_earlier_layers(tmp_path, vision):
    visual = write_open_clip(tmp_path, vision)
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    caught = []
    blocks[-2].register_forward_hook(lambda module, args, output: caught.append(output))
    size, grid = (160, (10, 10)) if hasattr(visual, "trunk") else (64, (4, 4))
    with torch.no_grad():
        visual(normalized(images(size)))
    spec, last = f"open_clip:local-dir:{tmp_path}", len(blocks) - 1
    for layer in (-2, last - 1):
        teacher = load_teacher(spec, layer=layer, dtype=torch.float32)
        torch.testing.assert_close(teacher(images(size), grid), caught[0][:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        load_teacher(spec, layer=last)(images(size), grid), load_teacher(spec)(images(size), grid)
    )
    with pytest.raises(ValueError, match=rf"{-last - 1} to {last}"):
        load_teacher(spec, layer=last + 1)


def test_registers_and_classless_trunks_lose_their_prefix_only(tmp_path):
    vision = TIMM_VISION | {"timm_model_name": "test_vit2"}  # mean pooling, a register, no norm before pooling
    visual = write_open_clip(tmp_path, vision | {"timm_pool": "avg"})
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}", dtype=torch.float32)
    with torch.no_grad():
        tokens = visual.trunk.forward_features(normalized(images(160)))
    torch.testing.assert_close(
        teacher(images(160), (10, 10)), tokens[:, visual.trunk.num_prefix_tokens :], rtol=1e-5, atol=1e-5
    )
    assert teacher(images(160), (10, 10)).shape[1] == 100


def test_only_the_vision_tower_is_built(timm_folder, monkeypatch):
    """open_clip itself fails on this folder (its text tower names a repository that doesn't exist); we don't look."""
    folder, _ = timm_folder

    def forbidden(*args, **kwargs):
        raise AssertionError("a text tower was asked for")

    monkeypatch.setattr("open_clip.model._build_text_tower", forbidden)
    monkeypatch.setattr("open_clip.model.HFTextEncoder", forbidden)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", forbidden)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", forbidden)
    assert load_teacher(f"open_clip:local-dir:{folder}").hidden_size == 64


@pytest.mark.parametrize("safetensors", [False, True])
def test_hub_downloads_two_files(tmp_path, monkeypatch, safetensors):
    write_open_clip(tmp_path, TIMM_VISION, safetensors=safetensors)
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(repo, name):
        asked.append(name)
        if not (tmp_path / name).is_file():
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_teacher("open_clip:hf-hub:org/name").hidden_size == 64
    files = ["open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    assert asked == (files[:2] if safetensors else files)


def test_hub_cache_is_used_offline(tmp_path, monkeypatch):
    """The real huggingface_hub on a cache that holds config and weights; then on an empty one."""
    from huggingface_hub import constants

    commit = "0" * 40
    write_open_clip(tmp_path / "models--org--name" / "snapshots" / commit, TIMM_VISION)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_teacher("open_clip:hf-hub:org/name").hidden_size == 64
    with pytest.raises(TeacherError, match="hf download org/other (.|\n)*open_clip:local-dir:FOLDER"):
        load_teacher("open_clip:hf-hub:org/other")


# ---- what happens around the tower


def test_normalisation_of_the_input(tmp_path):
    """Mean and std from preprocess_cfg; OpenAI CLIP's when there is none."""
    write_open_clip(tmp_path, CLIP_VISION, preprocess=False)
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}")
    assert teacher.image_mean == CLIP_MEAN and teacher.image_std == CLIP_STD
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    plain = load_teacher(f"open_clip:local-dir:{tmp_path}")
    torch.testing.assert_close(plain(normalized(images(64)), (4, 4)), teacher(images(64), (4, 4)), rtol=1e-5, atol=1e-5)


def test_grids_are_interpolated(timm_folder):
    teacher = load_teacher(f"open_clip:local-dir:{timm_folder[0]}")
    own = teacher(images(160), (10, 10))
    as_map = own.transpose(1, 2).unflatten(2, (10, 10))
    for grid in ((16, 16), (6, 8)):
        expected = F.interpolate(as_map, size=grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
        torch.testing.assert_close(teacher(images(160), grid), expected)
    torch.testing.assert_close(teacher(images(160), (10, 10)), own)


def test_images_are_resized(timm_folder):
    teacher = load_teacher(f"open_clip:local-dir:{timm_folder[0]}")
    pixels = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    resized = F.interpolate(pixels, size=(160, 160), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(teacher(pixels, (10, 10)), teacher(resized, (10, 10)))


def test_normalisation_of_the_features(timm_folder):
    spec = f"open_clip:local-dir:{timm_folder[0]}"
    plain = load_teacher(spec)(images(160), (16, 16))
    unit = load_teacher(spec, normalize="l2")(images(160), (16, 16))
    layer_norm = load_teacher(spec, normalize="layer_norm")(images(160), (16, 16))
    torch.testing.assert_close(unit, plain / plain.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(layer_norm, F.layer_norm(plain, (64,)))
    with pytest.raises(ValueError, match="Did you mean 'layer_norm'"):
        load_teacher(spec, normalize="layernorm")


def test_dtype(timm_folder):
    spec = f"open_clip:local-dir:{timm_folder[0]}"
    full, half = load_teacher(spec, dtype=torch.float32), load_teacher(spec, dtype=torch.bfloat16)
    a, b = full(images(160), (10, 10)), half(images(160), (10, 10))
    assert a.dtype == b.dtype == torch.float32 and not torch.equal(a, b)
    assert F.cosine_similarity(a, b, dim=-1).min() > 0.99
    with torch.autocast("cpu", torch.bfloat16):  # the student's autocast does not reach the teacher
        assert torch.equal(full(images(160), (10, 10)), a)


def test_precision_is_the_machines_not_the_moments():
    """Resuming needs the very same targets: no timing decides."""
    cpu = torch.device("cpu")
    assert {faster_dtype(cpu) for _ in range(5)} == {load_teacher("demo").dtype}
    assert faster_dtype(torch.device("meta")) == torch.float32


# ---- frozen, and never in a checkpoint


def test_frozen_deterministic_and_never_saved(timm_folder):
    teacher = load_teacher(f"open_clip:local-dir:{timm_folder[0]}", device="cpu")
    first = teacher(images(160), (10, 10))
    assert not list(teacher.parameters()) and not list(teacher.buffers()) and not teacher.state_dict()
    student = nn.Linear(2, 2)
    student.teacher = teacher
    student.train()
    assert not teacher.training and torch.equal(first, teacher(images(160), (10, 10)))
    assert set(student.state_dict()) == {"weight", "bias"} and len(list(student.parameters())) == 2
    student.requires_grad_(True)
    pixels = images(160).requires_grad_()
    again = teacher(pixels, (10, 10))
    assert torch.equal(first, again) and not again.requires_grad
    weight = torch.ones(64, requires_grad=True)
    (again * weight).sum().backward()  # not an inference tensor: a loss can save it
    assert weight.grad is not None and pixels.grad is None


# ---- transformers


def transformers_model(kind):
    import transformers

    torch.manual_seed(0)
    small = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    small |= dict(image_size=64, patch_size=16)
    text = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**small))
    if kind == "vit_classifier":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**small))
    if kind == "dinov2":
        small.pop("intermediate_size")
        return transformers.Dinov2Model(transformers.Dinov2Config(**small))
    if kind == "dinov3":
        return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**small, num_register_tokens=4))
    if kind == "clip_vision":
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**small))
    if kind == "clip":
        return transformers.CLIPModel(transformers.CLIPConfig(vision_config=small, text_config=text, projection_dim=8))
    if kind == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig(vision_config=small, text_config=text))
    return URFMModel(URFMConfig(**small))


@pytest.mark.parametrize("kind", ["vit", "vit_classifier", "dinov2", "dinov3", "clip_vision", "clip", "siglip", "urfm"])
def test_transformers_parity(tmp_path, kind):
    model = transformers_model(kind).eval()
    model.save_pretrained(tmp_path)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    size = {"height": 64, "width": 64}
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": mean, "image_std": std, "size": size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = f"transformers:{tmp_path}"
    teacher = load_teacher(spec, dtype=torch.float32)
    pixels = normalized(images(64), mean, std)
    encoder = {"vit_classifier": "vit", "clip": "vision_model", "siglip": "vision_model"}.get(kind)
    encoder = getattr(model, encoder) if encoder else model
    with torch.no_grad():
        output = encoder(pixels, output_hidden_states=True)
    prefix = {"dinov3": 5, "siglip": 0}.get(kind, 1)
    last = output.last_hidden_state
    if kind in ("clip", "clip_vision"):
        last = encoder.post_layernorm(last)  # CLIP norms the pooled CLS only; "after the last norm" holds for all
    torch.testing.assert_close(teacher(images(64), (4, 4)), last[:, prefix:], rtol=1e-5, atol=1e-5)
    earlier = load_teacher(spec, layer=-2, dtype=torch.float32)
    torch.testing.assert_close(earlier(images(64), (4, 4)), output.hidden_states[2][:, prefix:], rtol=1e-5, atol=1e-5)
    assert (teacher.hidden_size, tuple(teacher.image_mean)) == (32, mean)


def test_transformers_without_an_image_processor(tmp_path):
    transformers_model("vit").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no image processor"):
        assert load_teacher(f"transformers:{tmp_path}").image_mean == IMAGENET_MEAN


# ---- errors that say what to do


def test_unknown_specs():
    for spec, meant in (
        ("openclip:hf-hub:org/name", "open_clip:hf-hub:"),
        ("transformer:org/name", "transformers:"),
        ("open_clip:local-dir", "open_clip:local-dir:"),
    ):
        with pytest.raises(ValueError, match=f"nearest form: {meant}"):
            load_teacher(spec)


def test_folders_that_lack_something(tmp_path, timm_folder):
    with pytest.raises(TeacherError, match="absent.*does not exist"):
        load_teacher(f"open_clip:local-dir:{tmp_path / 'absent'}")
    with pytest.raises(TeacherError, match="open_clip_config.json does not exist"):
        load_teacher(f"open_clip:local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(TeacherError, match="open_clip_model.safetensors or open_clip_pytorch_model.bin is missing"):
        load_teacher(f"open_clip:local-dir:{tmp_path}")
    with pytest.raises(TeacherError, match="transformers:FOLDER"):
        load_teacher(f"transformers:{tmp_path}")


def test_weights_that_do_not_fit(tmp_path):
    spec = f"open_clip:local-dir:{tmp_path}"
    write_open_clip(tmp_path, CLIP_VISION, drop=("transformer.resblocks.2.ln_1.weight",))
    with pytest.raises(TeacherError, match="transformer.resblocks.2.ln_1.weight"):
        load_teacher(spec)
    write_open_clip(tmp_path, CLIP_VISION, extra={"visual.extra": torch.zeros(1)})
    with pytest.raises(TeacherError, match="extra"):
        load_teacher(spec)
    write_open_clip(tmp_path, CLIP_VISION, extra={"visual.proj": torch.zeros(1)})
    with pytest.raises(TeacherError, match="proj"):
        load_teacher(spec)
    torch.save({"a": torch.zeros(1)}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(TeacherError, match="no key begins with 'visual.'"):
        load_teacher(spec)


def test_transformers_folder_with_incomplete_weights(tmp_path):
    """transformers fills what is missing with random numbers and goes on: a teacher of noise must not pass."""
    from safetensors.torch import load_file, save_file

    transformers_model("vit").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if "layers.1." not in name and "layer.1." not in name}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"1\."):
        load_teacher(f"transformers:{tmp_path}")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_text_tower_is_not_built(tmp_path, monkeypatch, kind):
    transformers_model(kind).save_pretrained(tmp_path)

    def forbidden(*args, **kwargs):
        raise AssertionError("the whole model was built")

    monkeypatch.setattr(f"transformers.{ {'clip': 'CLIPModel', 'siglip': 'SiglipModel'}[kind] }.__init__", forbidden)
    assert load_teacher(f"transformers:{tmp_path}").hidden_size == 32


def test_transformers_input_size_is_the_processors_where_positions_are_interpolated(tmp_path):
    """DINOv2 is built for 518 px and used at 224: a sixth of the tokens."""
    for kind, size in (("dinov2", 96), ("vit", 64)):
        transformers_model(kind).save_pretrained(tmp_path / kind)
        processor = {"size": {"height": 96, "width": 96}, "image_processor_type": "ViTImageProcessor"}
        (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(processor))
        assert load_teacher(f"transformers:{tmp_path / kind}").image_size in (size, (size, size))


def test_open_clip_is_imported_only_when_needed():
    """Importing the module brings in none of the training stack; without open_clip the error says what to install."""
    code = (
        "import sys; sys.modules['open_clip'] = None\n"
        "from modeling_urfm.pretraining.teacher import load_teacher\n"
        "assert 'timm' not in sys.modules and 'datasets' not in sys.modules\n"
        "load_teacher('demo')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'urfm[train]'" in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("open_clip_config.json", b'{"model_cfg": '),
        ("open_clip_config.json", b"{}"),
        ("open_clip_config.json", b'{"model_cfg": {"embed_dim": 8, "vision_cfg": {"no_such": 1}}}'),
        ("open_clip_model.safetensors", b"\x10\x00"),
        ("open_clip_model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ],
)
def test_a_damaged_folder_says_which_file_to_fetch_again(tmp_path, name, content):
    write_open_clip(tmp_path, TIMM_VISION, safetensors=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TeacherError, match=f"{name} is no .*fetch it again"):
        load_teacher(f"open_clip:local-dir:{tmp_path}")


def test_encoders_without_a_grid_are_refused_at_once(tmp_path):
    import transformers

    mae = transformers.ViTMAEConfig(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1,
                                    num_attention_heads=2, intermediate_size=32)  # fmt: skip
    transformers.ViTMAEModel(mae).save_pretrained(tmp_path / "mae")
    with pytest.raises(TeacherError, match="ViTMAEModel gives no square grid"):
        load_teacher(f"transformers:{tmp_path / 'mae'}")
    conv = transformers.ConvNextConfig(image_size=32, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])
    transformers.ConvNextModel(conv).save_pretrained(tmp_path / "conv")
    with pytest.raises(TeacherError, match="ConvNextModel has no patch tokens"):
        load_teacher(f"transformers:{tmp_path / 'conv'}")
    with pytest.raises(TeacherError, match="there is no such folder"):
        load_teacher(f"transformers:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="The nearest form: demo"):
        load_teacher("dmo")


# ---- the demo teacher that ships


def test_demo_teacher():
    teacher = load_teacher("demo")
    features = teacher(images(128), grid=(16, 16))
    assert features.shape == (2, 256, teacher.hidden_size) and torch.isfinite(features).all()
    size = sum(file.stat().st_size for file in DEMO_TEACHER.iterdir())
    assert size <= 6e6, f"{size / 1e6:.1f} MB ship"
    assert {"open_clip_config.json", "open_clip_model.safetensors", "README.md"} <= {
        f.name for f in DEMO_TEACHER.iterdir()
    }


def test_demo_teacher_is_a_whole_clip_to_open_clip():
    """As BiomedCLIP's folder: open_clip itself builds both towers and the tokenizer from it, and texts find their images."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{DEMO_TEACHER}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{DEMO_TEACHER}")
    organs = ("bladder", "heart", "thyroid", "fetus", "liver")
    frames = [phantom_frame(5, 15 * i, organ=o, lesion="absent", snr_db=30) for o in organs for i in range(4)]
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(Image.fromarray(f.image)) for f in frames]), normalize=True)
        texts = model.encode_text(tokenizer([f"An ultrasound scan showing the {o}" for o in organs]), normalize=True)
    found = (images @ texts.T).argmax(1)
    assert (found == torch.arange(len(organs)).repeat_interleave(4)).float().mean() >= 0.8


# ---- some positions only


@pytest.mark.parametrize("layer", [-1, -2, 0])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 3, "init_values": 0.5}),  # registers, layer scale
        ("vit_base_patch16_clip_224", {"img_size": 64, "depth": 3}),  # a norm before the layers
        ("vit_base_patch16_siglip_224", {"img_size": 64, "depth": 3}),  # no CLS
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3, "qk_norm": True, "qkv_bias": False}),
    ],
)
def test_asked_positions_are_computed_alone_and_exactly(name, changes, layer):
    torch.manual_seed(0)
    trunk = timm.create_model(name, num_classes=0, **changes)
    for p in trunk.parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.5)
    tower, side = _TimmTower(trunk, layer), trunk.patch_embed.img_size[0]
    teacher = Teacher(tower, trunk.num_features, side, CLIP_MEAN, CLIP_STD, name, "l2", torch.float32)
    pixels, positions = images(side), torch.rand(2, 16).argsort(1)[:, :5]
    tokens_through = []
    trunk.blocks[layer].mlp.register_forward_hook(lambda m, args, out: tokens_through.append(out.shape[1]))
    everything, some = teacher(pixels, (4, 4)), teacher(pixels, (4, 4), positions)
    torch.testing.assert_close(some, take(everything, positions), rtol=1e-5, atol=1e-5)
    assert tokens_through[1] == 5 < tokens_through[0]
    # On another grid features are interpolated, which takes all of them.
    torch.testing.assert_close(teacher(pixels, (3, 5), positions % 15), take(teacher(pixels, (3, 5)), positions % 15))
    assert tokens_through[-1] > 5


def test_other_towers_give_asked_positions_too(tmp_path):
    write_open_clip(tmp_path, CLIP_VISION)
    teacher = load_teacher(f"open_clip:local-dir:{tmp_path}", dtype=torch.float32)
    pixels, positions = images(64), torch.tensor([[3, 0, 9], [15, 1, 2]])
    torch.testing.assert_close(teacher(pixels, (4, 4), positions), take(teacher(pixels, (4, 4)), positions))
    with pytest.raises(ValueError, match=r"positions has shape \(3, 2\), expected \(2, M\)"):
        teacher(pixels, (4, 4), positions.T)


def test_variants_of_timms_block_are_left_to_timm():
    block = timm.models.vision_transformer.ParallelScalingBlock
    parallel = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, block_fn=block)
    assert _TimmTower(parallel, -1).grid is None and _TimmTower(timm.create_model("test_vit"), -1).grid == (10, 10)


@pytest.mark.parametrize("positions", [None, torch.tensor([[1, 2], [3, 4]])])
def test_targets_enter_a_loss_and_a_graph(timm_folder, positions):
    """They are made under inference_mode, whose own tensors autograd refuses."""
    teacher = load_teacher(f"open_clip:local-dir:{timm_folder[0]}", dtype=torch.float32)
    targets = teacher(images(160), (10, 10), positions)
    assert not targets.is_inference() and not targets.requires_grad and targets.is_contiguous()
    weight = torch.ones(64, requires_grad=True)

    def loss(weight, targets):
        return -F.cosine_similarity(targets * weight, targets + 1, dim=-1).sum()

    loss(weight, targets).backward()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    again = weight.detach().clone().requires_grad_()
    compiled(again, targets).backward()
    torch.testing.assert_close(again.grad, weight.grad)


def test_an_untrained_teacher_is_biomedclips_structure_at_any_size():
    teacher = untrained_teacher("vit_tiny_patch16_224", torch.float32, img_size=32, depth=1)
    assert teacher(images(32), (2, 2)).shape == (2, 4, 192) and teacher.image_size == 32
