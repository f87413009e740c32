# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What was saved loads everywhere: by every Auto class and pipeline, from a folder, the Hub and its cache, and for ever."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    ViTConfig,
    ViTModel,
    pipeline,
)
from transformers.models.auto import auto_factory

from modeling_urfm import (
    URFMBackbone,
    URFMConfig,
    URFMForImageClassification,
    URFMForPreTraining,
    URFMForSemanticSegmentation,
    URFMImageProcessor,
    URFMImageProcessorPil,
    URFMModel,
    image_processing_urfm,
)
from modeling_urfm.finetuning.outputs import write_model
from modeling_urfm.hub.saving import save_model_folder

from .running_hub import running_hub


FIRST = Path(__file__).parents[1] / "fixtures" / "first_release"
CHECKS = Path(__file__).with_name("loading_checks.py")
SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16, "target_hidden_size": 8, "decode_head_hidden_size": 8, "initializer_range": 0.2,
}  # fmt: skip
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
HIDDEN = torch.arange(16).expand(2, -1) % 4 != 0


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Results are compared with those of other processes to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs() -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixels": torch.randn(2, 3, 32, 32, generator=generator).numpy(),
        "large": torch.randn(2, 3, 48, 48, generator=generator).numpy(),
        "image": np.random.default_rng(0).rayleigh(60, (40, 60)).clip(0, 255).astype(np.uint8),
        "hidden": HIDDEN.numpy(),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind, and what their models gave before they were saved."""
    root = tmp_path_factory.mktemp("saved")
    given = inputs()
    pixels, large, image = torch.from_numpy(given["pixels"]), torch.from_numpy(given["large"]), given["image"]
    processor = URFMImageProcessor(size={"height": 32, "width": 32})
    torch.manual_seed(0)
    whole = URFMForPreTraining(URFMConfig(**SMALL)).eval()
    encoder = whole.urfm
    models = {
        "urfm": encoder, "urfm-pretraining": whole,
        "classifier": URFMForImageClassification(URFMConfig(**SMALL, **LABELS)).eval(),
        "segmenter": URFMForSemanticSegmentation(URFMConfig(**SMALL, **LABELS)).eval(),
    }  # fmt: skip
    for name, model in models.items():
        save_model_folder(model, processor, root / name)
    shutil.copytree(root / "classifier", root / "moved")
    expected = {}
    with torch.no_grad():
        output = encoder(pixels)
        backbone = URFMBackbone.from_pretrained(root / "urfm", out_indices=[1, 2])
        prepared = processor(image, return_tensors="pt").pixel_values
        pil = URFMImageProcessorPil(size={"height": 32, "width": 32})
        scores = models["classifier"](prepared).logits.softmax(-1)[0]
        masks = processor.post_process_semantic_segmentation(models["segmenter"](prepared), target_sizes=[image.shape])[
            0
        ]
        logits = models["classifier"](pixels).logits
        expected |= {
            "tokens": output.last_hidden_state, "pooled": output.pooler_output, "logits": logits,
            "predictions": whole(pixels, bool_masked_pos=HIDDEN).predictions,
            "masks": models["segmenter"](pixels).logits, "maps": torch.stack(backbone(pixels).feature_maps),
            "prepared torchvision": prepared, "prepared pil": pil(image, return_tensors="pt").pixel_values,
            "piped tokens": encoder(prepared).last_hidden_state,
            "piped labels": ["abc"[i] for i in scores.argsort(descending=True)],
            "piped scores": scores.sort(descending=True).values,
            "piped parts": ["abc"[i] for i in masks.unique()],
            "piped masks": torch.stack([(masks == i) * 255 for i in masks.unique()]),
            "auto device": logits, "cpu": logits, "auto dtype": logits, "tag": logits, "commit": logits,
        }  # fmt: skip
    for name, cls, head in (
        ("adapter", URFMForImageClassification, "classifier"),
        ("dora", URFMForSemanticSegmentation, "decode_head"),
    ):
        torch.manual_seed(1)
        model = cls.from_pretrained(root / "urfm", **LABELS)
        model = get_peft_model(
            model, LoraConfig(r=2, lora_alpha=4, use_dora=name == "dora", modules_to_save=[head])
        ).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        write_model(model, URFMImageProcessor(size={"height": 48, "width": 48}), root / name)
        with torch.no_grad():
            expected |= dict.fromkeys((name, f"{name} by class", f"{name} loaded"), model(pixel_values=large).logits)
            if name == "adapter":
                pooled = model.get_base_model().urfm(large).pooler_output
                expected |= {"adapter by peft": expected[name], "adapter without config": expected[name]}
                expected |= {"adapter in encoder": pooled, "encoder of adapter": pooled, "evaluated": pooled}
    shutil.copytree(root / "adapter", root / "bare", ignore=shutil.ignore_patterns("config.json", "pre*"))
    Image.fromarray(image).save(root / "picture.png")
    np.savez(root / "inputs.npz", **given)
    return root, {name: np.asarray(value) for name, value in expected.items()}


# ---------------------------------------------------------------- in this process, from folders


def test_every_auto_class_and_both_backends(saved):
    root, expected = saved
    pixels = torch.from_numpy(inputs()["pixels"])
    assert type(AutoConfig.from_pretrained(root / "urfm")) is URFMConfig
    for auto, cls, name in (
        (AutoModel, URFMModel, "urfm"), (AutoModelForPreTraining, URFMForPreTraining, "urfm-pretraining"),
        (AutoModelForImageClassification, URFMForImageClassification, "classifier"),
        (AutoModelForSemanticSegmentation, URFMForSemanticSegmentation, "segmenter"), (AutoBackbone, URFMBackbone, "urfm"),
    ):  # fmt: skip
        assert type(auto.from_pretrained(root / name)) is cls and type(auto.from_pretrained(str(root / name))) is cls
    with torch.no_grad():
        model = AutoModelForImageClassification.from_pretrained(root / "classifier")
        assert np.array_equal(model(pixels).logits, expected["logits"])
    for backend, cls in (("torchvision", URFMImageProcessor), ("pil", URFMImageProcessorPil)):
        assert type(AutoImageProcessor.from_pretrained(root / "urfm", backend=backend)) is cls


def test_a_backbone_of_a_folder_asks_nobody_and_other_families_are_left_alone(saved, monkeypatch):
    root, expected = saved
    asked = []
    monkeypatch.setattr(
        auto_factory,
        "hf_api",
        lambda: type("Api", (), {"repo_exists": lambda self, name: asked.append(name) or True})(),
    )
    backbone = AutoBackbone.from_pretrained(root / "urfm", out_indices=[1, 2], use_timm_backbone=False)
    with torch.no_grad():
        maps = torch.stack(backbone(torch.from_numpy(inputs()["pixels"])).feature_maps)
    assert np.array_equal(maps, expected["maps"]) and not asked
    with pytest.raises(Exception, match="ViT"):  # which has no backbone: transformers is asked, and says so
        vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        folder = root / "vit"
        ViTModel(vit).save_pretrained(folder)
        AutoBackbone.from_pretrained(folder)
    assert asked == [folder]


def broken(saved, name: str, part: str, tmp_path) -> Path:
    """A copy of a folder without the weights whose name holds `part`."""
    folder = shutil.copytree(saved[0] / name, tmp_path / "broken", dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if part not in key}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("name", "part", "auto"), [
    ("urfm", "layers.1.attention.q_proj.weight", AutoModel), ("urfm", "layernorm.bias", AutoBackbone),
    ("classifier", "position_embeddings", AutoModelForImageClassification),
    ("classifier", "classifier.bias", AutoModelForImageClassification),
    ("classifier", "mlp.fc1", AutoModel), ("urfm-pretraining", "mask_token", AutoModelForPreTraining),
    ("segmenter", "decode_head.refine", AutoModelForSemanticSegmentation), ("urfm", "cls_token", AutoModelForPreTraining),
])  # fmt: skip
def test_weights_that_are_missing_are_never_drawn_at_random(saved, tmp_path, name, part, auto):
    with pytest.raises(
        ValueError, match=f"broken lacks .*{part.split('.')[-1]}.*would be random|would be random.*{part}"
    ):
        auto.from_pretrained(broken(saved, name, part, tmp_path))


def test_what_may_be_drawn_is_drawn(saved, tmp_path):
    root = saved[0]
    assert AutoModelForImageClassification.from_pretrained(root / "urfm", num_labels=4).config.num_labels == 4
    assert AutoModelForPreTraining.from_pretrained(root / "urfm").decoder is not None
    AutoModel.from_pretrained(broken(saved, "urfm-pretraining", "mask_token", tmp_path))  # the decoder stays behind
    AutoModelForImageClassification.from_pretrained(root / "classifier", num_labels=5, ignore_mismatched_sizes=True)
    assert AutoModel.from_pretrained(root / "urfm", num_hidden_layers=1).config.num_hidden_layers == 1
    with pytest.raises(ValueError, match="layers.2"):
        AutoModel.from_pretrained(root / "urfm", num_hidden_layers=3)
    _, report = AutoModel.from_pretrained(
        broken(saved, "urfm", "layers.1.mlp.fc1.weight", tmp_path), output_loading_info=True
    )
    assert report["missing_keys"] == {"layers.1.mlp.fc1.weight"}


def test_a_model_of_another_family_is_refused(saved, tmp_path):
    vit = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(vit).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="vit lacks .* weights of URFMModel.* It holds "):
        URFMModel.from_pretrained(tmp_path / "vit")


@pytest.mark.parametrize("split", ["disk", "cpu"])
def test_layers_on_several_devices(saved, tmp_path, split):
    """Offloading stands for a second device here: accelerate moves inputs between them in the same way."""
    root, expected = saved
    where = {"urfm.embeddings": split, "urfm.layers.0": "cpu", "urfm.layers.1": split, "urfm.layernorm": "cpu"}
    options = {"offload_folder": str(tmp_path / "offload")}
    pixels = torch.from_numpy(inputs()["pixels"])
    for name, auto, head, key in (
        ("classifier", AutoModelForImageClassification, "classifier", "logits"),
        ("segmenter", AutoModelForSemanticSegmentation, "decode_head", "masks"),
    ):
        model = auto.from_pretrained(root / name, device_map=where | {head: split}, **options)
        with torch.no_grad():
            assert np.array_equal(model(pixels).logits, expected[key])


def test_a_pipeline_takes_padding_off_and_warns_of_a_crop(saved, tmp_path, monkeypatch):
    root = saved[0]
    folder, image = shutil.copytree(root / "segmenter", tmp_path / "padding"), inputs()["image"]
    processor = URFMImageProcessor(size={"height": 32, "width": 32}, do_pad_square=True)
    processor.save_pretrained(folder)
    piped = pipeline("image-segmentation", model=str(folder))
    found = {part["label"]: np.asarray(part["mask"]) for part in piped(str(root / "picture.png"))}
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(processor(image, return_tensors="pt").pixel_values)
    right = processor.post_process_semantic_segmentation(outputs, regions=processor.get_regions(image))[0].numpy()
    assert set(found) == {"abc"[i] for i in np.unique(right)}
    assert all(np.array_equal(found["abc"[i]] > 0, right == i) for i in np.unique(right))

    warnings = []
    monkeypatch.setattr(image_processing_urfm.logger, "warning_once", warnings.append)
    piped.image_processor.do_crop_scan_region = True
    piped(str(root / "picture.png"))
    assert "get_regions" in warnings[0]


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_what_a_user_saves_again_still_brings_its_code_and_both_backends(saved, tmp_path, backend):
    model = AutoModelForImageClassification.from_pretrained(saved[0] / "classifier")
    processor = AutoImageProcessor.from_pretrained(saved[0] / "classifier", backend=backend)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (saved[0] / "classifier").iterdir()}
    for name in ("config.json", "preprocessor_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (saved[0] / "classifier", tmp_path))
        assert ours["auto_map"] == theirs["auto_map"] and "_auto_class" not in theirs
    URFMModel(URFMConfig(**SMALL)).save_pretrained(tmp_path / "bare")  # no code is named there, and none is needed
    assert not list((tmp_path / "bare").glob("*.py"))


def test_adapters_in_a_model_that_is_there(saved):
    root, expected = saved
    large = torch.from_numpy(inputs()["large"])
    model = AutoModelForSemanticSegmentation.from_pretrained(root / "urfm", num_labels=3)
    model.load_adapter(str(root / "dora"))
    with torch.no_grad():
        assert np.array_equal(model(large).logits, expected["dora"])
    with pytest.raises(ValueError, match="'default'"):
        model.load_adapter(str(root / "dora"))
    with pytest.raises(ValueError, match="no adapter_config.json"):
        model.load_adapter(str(root / "segmenter"), adapter_name="other")
    model = AutoModelForSemanticSegmentation.from_pretrained(root / "urfm", num_labels=3)
    model.load_adapter(str(root / "dora"), is_trainable=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trained) and not any("base_layer" in name for name in trained)


def test_an_adapter_says_what_it_lacks(saved, tmp_path):
    root = saved[0]
    half = shutil.copytree(root / "adapter", tmp_path / "half")
    (half / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match="half holds adapter_config.json, but neither of"):
        AutoModelForImageClassification.from_pretrained(half)
    with pytest.raises(ValueError, match="bare does not fit .*num_labels=2.*Pass num_labels"):
        AutoModelForImageClassification.from_pretrained(root / "bare")
    with pytest.raises(ValueError, match="dora does not fit URFMForImageClassification"):
        AutoModelForImageClassification.from_pretrained(root / "dora")


# ---------------------------------------------------------------- folders of the first release


@pytest.fixture(scope="module")
def first():
    return {**np.load(FIRST / "expected_models.npz"), **np.load(FIRST / "expected_adapters.npz")}


def same(value: torch.Tensor, expected: np.ndarray):
    """To 1e-6 of the largest value: another processor or release of torch may order its sums in another way."""
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=1e-6 * max(1.0, np.abs(expected).max()))


@torch.no_grad()
def test_folders_of_the_first_release_load_for_ever(first):
    pixels = torch.from_numpy(first["pixels"])
    outputs = AutoModel.from_pretrained(FIRST / "pretrained")(pixels)
    same(outputs.last_hidden_state, first["last_hidden_state"])
    same(outputs.pooler_output, first["pooler_output"])
    whole = AutoModelForPreTraining.from_pretrained(FIRST / "pretrained")
    same(whole(pixels, bool_masked_pos=torch.from_numpy(first["hidden"])).predictions, first["predictions"])
    classifier = AutoModelForImageClassification.from_pretrained(FIRST / "classifier")
    same(classifier(pixels).logits, first["logits"])
    assert classifier.config.id2label == {0: "liver", 1: "kidney", 2: "thyroid"}
    maps = AutoBackbone.from_pretrained(FIRST / "pretrained", out_indices=[0, 1, 2])(pixels).feature_maps
    for i in range(3):
        same(maps[i], first[f"map{i}"])
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained(FIRST / "pretrained", backend=backend)
        same(processor(first["image"], return_tensors="pt").pixel_values, first[backend])


@torch.no_grad()
def test_adapters_of_the_first_release_load_for_ever(first, monkeypatch):
    monkeypatch.chdir(FIRST)  # their base is recorded as `pretrained`
    pixels = torch.from_numpy(first["pixels"])
    same(AutoModelForImageClassification.from_pretrained("adapter")(pixels).logits, first["adapter"])
    same(
        AutoModelForSemanticSegmentation.from_pretrained("segmenter_adapter")(pixels).logits, first["segmenter_adapter"]
    )
    base = AutoModelForImageClassification.from_pretrained("pretrained", num_labels=3)
    same(PeftModel.from_pretrained(base, "adapter")(pixel_values=pixels).logits, first["adapter"])


# ---------------------------------------------------------------- in processes of their own, from the Hub


def run_checks(mode: str, root: Path, out: Path, places: list[str], environment: dict) -> dict:
    """The results of loading_checks.py, with its input closed: a prompt would end it."""
    environment = environment | {"INPUTS": str(root / "inputs.npz"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, str(CHECKS), mode, str(out), *places], cwd=root.parent, env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "all of them" in done.stdout, done.stderr[-4000:] + done.stdout[-1000:]
    if mode == "package":
        assert "is not supported for" not in done.stderr and "custom code" not in done.stdout + done.stderr
    return dict(np.load(out))


def check(results: dict, expected: dict, place: str, modes: str):
    """Bit-equal where nothing but loading lies between; close where the numbers are others."""
    seen = {name.removeprefix(f"{place} "): value for name, value in results.items() if name.startswith(f"{place} ")}
    assert len(seen) >= (30 if modes == "package" else 18)
    for name, value in seen.items():
        if name in ("eager", "bf16", "after", "evaluated") or name.startswith("piped s"):
            continue
        if name in expected:
            assert np.array_equal(value, expected[name].reshape(value.shape)), name
    np.testing.assert_allclose(seen["eager"], expected["logits"], atol=1e-5)
    np.testing.assert_allclose(seen["bf16"], expected["logits"], atol=0.1)
    np.testing.assert_allclose(seen["piped scores"], expected["piped scores"], atol=1e-6)
    if "evaluated" in seen:  # merged
        np.testing.assert_allclose(seen["evaluated"], expected["evaluated"], atol=1e-4)
    if "after" in seen:
        assert not np.array_equal(seen["after"], seen["tag"])


@pytest.fixture(scope="module")
def published(saved, tmp_path_factory):
    """The folders on a Hub, private, `moved` and the adapters with other weights after their tag `v1`."""
    root, home = saved[0], tmp_path_factory.mktemp("home")
    with running_hub(tmp_path_factory.mktemp("hub") / "root") as hub:
        with hub.connected(home):
            api = HfApi(endpoint=hub.url, token=hub.token)
            commit = None
            for name in ("urfm", "urfm-pretraining", "classifier", "segmenter", "moved", "adapter", "dora", "bare"):
                folder = root / name
                if (folder / "adapter_config.json").is_file():
                    folder = shutil.copytree(folder, home / name)
                    file = folder / "adapter_config.json"
                    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "lab/urfm"}))
                names = [f"lab/{name}"] + ["lab/untagged"] * (name == "adapter")
                for repo in names:
                    api.create_repo(repo, private=True)
                    info = api.upload_folder(folder_path=str(folder), repo_id=repo)
                if name in ("moved", "adapter", "dora"):
                    commit = info.oid if name == "moved" else commit
                    api.create_tag(f"lab/{name}", tag="v1")
                    weights = next(folder.glob("*model.safetensors"))
                    changed = {key: value * 0.5 for key, value in load_file(weights).items()}
                    save_file(changed, home / "changed", metadata={"format": "pt"})
                    api.upload_file(
                        path_or_fileobj=str(home / "changed"), path_in_repo=weights.name, repo_id=f"lab/{name}"
                    )
        yield hub, commit


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["clean", "package"])
def test_from_folders_from_the_hub_and_then_offline(saved, published, tmp_path, mode):
    (root, expected), (hub, commit) = saved, published
    home = tmp_path / "home"
    environment = hub.environment(home) | {"COMMIT": commit}
    results = run_checks(mode, root, tmp_path / "online.npz", [f"{root}/", "lab/"], environment)
    check(results, expected, f"{root}/", mode)
    check(results, expected, "lab/", mode)
    hub.forget_requests()
    environment = hub.environment(home, offline=True) | {"COMMIT": commit}
    results = run_checks(mode, root, tmp_path / "offline.npz", ["lab/"], environment)
    check(results, expected, "lab/", mode)
    assert not hub.requests()


@pytest.mark.slow
def test_the_first_release_s_own_code_still_runs(first, tmp_path):
    """Without the package, a folder brings the code that it was written by."""
    code = f"""
import sys, os
sys.path[:] = [p for p in sys.path if os.path.realpath(p) != {str(Path(__file__).parents[2])!r}]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
import numpy, torch
from transformers import AutoImageProcessor, AutoModel
expected = numpy.load("expected_models.npz")
model = AutoModel.from_pretrained("pretrained", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules")
with torch.no_grad():
    tokens = model(torch.from_numpy(expected["pixels"])).last_hidden_state
print(float(numpy.abs(tokens.numpy() - expected["last_hidden_state"]).max()))
processor = AutoImageProcessor.from_pretrained("pretrained", trust_remote_code=True)
assert numpy.array_equal(processor(expected["image"], return_tensors="np").pixel_values, expected["torchvision"])
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run([sys.executable, "-c", code], cwd=FIRST, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-5
