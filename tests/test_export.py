# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Models leave PyTorch: graphs of any size that give the same, and a preprocessing that others can follow exactly.

The slow tests with transformers.js need Node and a folder where it is installed, named by URFM_TRANSFORMERS_JS:
`mkdir js && cd js && npm install @huggingface/transformers --ignore-scripts`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from modeling_urfm import (
    URFMConfig,
    URFMForImageClassification,
    URFMForPreTraining,
    URFMForSemanticSegmentation,
    URFMImageProcessor,
    URFMImageProcessorPil,
    URFMModel,
)
from modeling_urfm.finetuning.heads import URFMAttentiveForImageClassification
from modeling_urfm.hub import export, export_check, export_graph
from modeling_urfm.hub.export import export_model, load_for_export, onnx_runner, task_of
from modeling_urfm.hub.export_check import compare, nearest, refuse_exact, refuse_int8, top1_agreement
from modeling_urfm.hub.export_folder import JAVASCRIPT, check_preprocessing, limits_of, preprocessing_parameters
from modeling_urfm.hub.export_graph import AnySizeEmbeddings, cubic_weights
from modeling_urfm.hub.preprocessing_numpy import preprocess
from modeling_urfm.hub.saving import save_model_folder


pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
pytest.importorskip("onnxscript", reason="needs the extra 'export'")
SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
DECODER = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16, "target_hidden_size": 8,
}  # fmt: skip
SIZES = ((1, 32, 32), (5, 32, 32), (1, 16, 16), (2, 24, 64), (3, 72, 40))
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")


def save(path: Path, kind, processor=None, **values) -> Path:
    torch.manual_seed(0)
    model = kind(URFMConfig(**SMALL | values))
    save_model_folder(model, processor or URFMImageProcessor(size={"height": 32, "width": 32}), path)
    return path


def write_images(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(write_images(tmp_path_factory.mktemp("images") / "scans"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "urfm", URFMForPreTraining, pooling="mean", **DECODER)


@pytest.fixture(scope="module")
def exported(source, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "urfm-onnx"
    return folder, export_model(str(source), folder, images=images, progress=False)


# ---------------------------------------------------------------- graphs


@pytest.mark.parametrize("count, side", [(14, 14), (7, 14), (20, 14), (3, 2), (1, 4)])
def test_positions_are_interpolated_as_torch_does(count, side):
    values = torch.randn(1, 3, side, side)
    weights = cubic_weights(count, side)
    expected = F.interpolate(values, (count, side), mode="bicubic", align_corners=False)
    torch.testing.assert_close((weights @ values), expected, atol=1e-5, rtol=1e-5)
    assert count != side or torch.equal(weights, torch.eye(side))


def test_embeddings_for_any_size_are_the_models(source):
    model = URFMModel.from_pretrained(source)
    for batch, height, width in SIZES:
        pixels = torch.randn(batch, 3, height, width)
        expected = model.embeddings(pixels)
        torch.testing.assert_close(AnySizeEmbeddings(model.embeddings)(pixels), expected, atol=1e-5, rtol=1e-5)


def test_every_format_gives_what_torch_gives_at_any_size(source, exported):
    folder, facts = exported
    model = URFMModel.from_pretrained(source).eval()
    runners = {
        "onnx": onnx_runner(folder / "onnx/model.onnx"), "int8": onnx_runner(folder / "onnx/model_quantized.onnx"),
        "torch_export": export.torch_export_runner(folder / "model.pt2"),
    }  # fmt: skip
    for batch, height, width in SIZES:
        pixels = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            expected = model(pixels)
        for name, run in runners.items():
            got = run(pixels.numpy())
            assert set(got) == {"last_hidden_state", "pooler_output"}
            tolerance = 0.2 if name == "int8" else 2e-5
            for output, value in got.items():
                np.testing.assert_allclose(value, expected[output].numpy(), atol=tolerance, rtol=0)
    assert facts["formats"]["int8"]["errors"]["pooler_output"]["cosine_lowest"] > 0.99


def test_graphs_name_their_sides_and_carry_no_paths(exported):
    import onnx

    folder, _ = exported
    proto = onnx.load(folder / "onnx/model.onnx")
    assert {part.domain: part.version for part in proto.opset_import}[""] == 18
    sides = [side.dim_param or side.dim_value for side in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]
    place = str(Path(export.__file__).parents[2]).encode()
    for path in folder.rglob("*"):
        assert path.is_dir() or place not in path.read_bytes(), path.name
    names = {node.op_type for node in onnx.load(folder / "onnx/model_quantized.onnx").graph.node}
    assert "Resize" not in names and "MatMulInteger" in names | {"DynamicQuantizeMatMul"}


def test_what_is_written(exported):
    folder, facts = exported
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.json", "preprocessor_config.json", "preprocessing.json", "preprocessing.py", "preprocessing.mjs",
        "export.json", "README.md", "model.pt2", "onnx/model.onnx", "onnx/model_quantized.onnx",
    }  # fmt: skip
    assert json.loads((folder / "export.json").read_text())["formats"].keys() == facts["formats"].keys()
    assert facts["source"] == "urfm" and facts["task"] == "encoder"
    for line in facts["formats"].values():
        assert line["sha256"] and line["bytes"] > 1000 and 0 <= line["top1_agreement"] <= 1
        assert [(part["batch"], part["height"], part["width"]) for part in line["other_sizes"]] == [
            (1, 16, 40), (3, 48, 32), (1, 40, 16)
        ]  # fmt: skip
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "ViTImageProcessor" and "auto_map" not in processor
    assert json.loads((folder / "config.json").read_text())["model_type"] == "vit"


def test_the_guides_snippet_runs_without_torch(exported):
    folder, _ = exported
    snippet = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    check = "import sys; assert 'torch' not in sys.modules and outputs[1].shape == (1, 16)"
    subprocess.run([sys.executable, "-c", f"{snippet}\n{check}"], cwd=folder, check=True, timeout=120)


def test_a_graph_that_differs_leaves_nothing(source, images, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write", lambda graph, name, path, temporary: path.write_bytes(b""))
    monkeypatch.setattr(export, "torch_export_runner", lambda path: lambda pixels: {
        "last_hidden_state": np.ones((len(pixels), 1 + pixels.shape[2] * pixels.shape[3] // 64, 16), np.float32),
        "pooler_output": np.ones((len(pixels), 16), np.float32),
    })  # fmt: skip
    with pytest.raises(ValueError, match="differs from PyTorch's by up to .* Nothing was written"):
        export_model(str(source), tmp_path / "out", ("torch_export",), images, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_tolerances():
    good = {"pooler_output": np.eye(3, dtype=np.float32)}
    error = compare(good, good)
    refuse_exact("onnx", [error])
    refuse_int8("encoder", [error], 1.0)
    assert error["pooler_output"]["max_abs"] == 0 and error["pooler_output"]["cosine_lowest"] == 1
    bad = compare({"pooler_output": np.roll(good["pooler_output"], 1, 0)}, good)
    with pytest.raises(ValueError, match="cosine of 0.000"):
        refuse_int8("encoder", [bad], 1.0)
    with pytest.raises(ValueError, match="limit"):
        refuse_exact("onnx", [compare({"pooler_output": good["pooler_output"] * np.nan}, good)])
    logits = compare({"logits": good["pooler_output"]}, {"logits": good["pooler_output"]})
    with pytest.raises(ValueError, match="50.0% of the answers"):
        refuse_int8("classifier", [logits], 0.5)
    refuse_int8("classifier", [logits], None)  # a regression
    with pytest.raises(ValueError, match="more than 10% of the largest"):
        refuse_int8("classifier", [{"logits": logits["logits"] | {"max_abs": 0.2}}], None)


def test_agreement_by_task():
    logits = {"logits": np.array([[1.0, 2.0], [3.0, 1.0]])}
    other = {"logits": np.array([[1.0, 2.0], [0.5, 1.0]])}
    assert top1_agreement("classifier", None, other, logits) == 0.5
    assert top1_agreement("classifier", "multi_label_classification", other, logits) == 1.0
    assert top1_agreement("classifier", "regression", other, logits) is None
    assert nearest(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])).tolist() == [1, 0, 1]


# ---------------------------------------------------------------- what is refused


def test_sources_that_are_none(tmp_path, source):
    with pytest.raises(FileNotFoundError, match="Did you mean .*urfm"):
        load_for_export(str(source.parent / "urfn"))
    with pytest.raises(ValueError, match="is a file"):
        load_for_export(str(source / "config.json"))
    with pytest.raises(ValueError, match="no config.json"):
        load_for_export(str(tmp_path))
    lacking = shutil.copytree(source, tmp_path / "lacking")
    config = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps(config | {"architectures": ["URFMForImageClassification"]}))
    with pytest.raises(ValueError, match="lacks weights .*classifier"):
        load_for_export(str(lacking))
    (lacking / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="'vit' model"):
        load_for_export(str(lacking))


def test_options_that_are_none(source, tmp_path, images):
    with pytest.raises(ValueError, match="'ony' does not exist. Did you mean 'onnx'"):
        export_model(str(source), tmp_path / "out", ("ony",), images)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="something else"):
        export_model(str(source), tmp_path / "full", images=images)
    with pytest.raises(FileNotFoundError, match="--images nowhere: no such"):
        export_model(str(source), tmp_path / "out", images="nowhere")
    with pytest.raises(ValueError, match="at least 3"):
        export_check.verification_images(str(write_images(tmp_path / "two", 2)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"do_resize": False}, "do_resize"), ({"resample": 0}, "resample=0"), ({"do_pad": True}, "do_pad"),
        ({"size": {"shortest_edge": 32}}, "no fixed size"),
    ],
)  # fmt: skip
def test_preprocessing_that_has_no_exact_description(options, message):
    with pytest.raises(ValueError, match=message):
        preprocessing_parameters(URFMImageProcessor(**options))


# ---------------------------------------------------------------- preprocessing


PROCESSORS = [
    {}, {"do_pad_square": True}, {"do_percentile_rescale": True}, {"resample": 2}, {"resample": 1}, {"do_normalize": False},
    {"do_crop_scan_region": True, "do_pad_square": True, "do_percentile_rescale": True, "lower_percentile": 2.5},
    {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    {"do_rescale": False, "image_mean": 0.5, "image_std": 0.25},
]  # fmt: skip


def frames() -> list[np.ndarray]:
    """Of every kind that the processor takes, larger and smaller than the model's size."""
    rng = np.random.default_rng(0)
    small, large = rng.random((20, 27, 3)), rng.random((70, 50))
    return [
        (255 * large).astype(np.uint8), (255 * small).astype(np.uint8), small.astype(np.float32),
        (255 * small).astype(np.float32), (65535 * large).astype(np.uint16), (200 * large).astype(np.uint16),
        (255 * rng.random((33, 64, 4))).astype(np.uint8), large > 0.5,
    ]  # fmt: skip


@pytest.mark.parametrize("options", PROCESSORS, ids=str)
def test_the_reference_is_the_processor(options):
    options = {"size": {"height": 32, "width": 32}} | options
    pil, plain = URFMImageProcessorPil(**options), URFMImageProcessor(**options)
    parameters = json.loads(json.dumps(preprocessing_parameters(plain)))
    scale = 1 if options.get("do_rescale", True) else 255
    for image in frames():
        box = pil.get_regions([image])[0][2:6] if options.get("do_crop_scan_region") else None
        got = preprocess(image, parameters, box)
        expected = pil(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale, rtol=1e-6)
        np.testing.assert_allclose(got, plain(image, return_tensors="np")["pixel_values"], atol=0.05 * scale, rtol=0)


def test_8_bit_images_are_resized_as_pillow_does():
    image = frames()[0]
    steps = [{"name": "resize", "height": 31, "width": 77, "filter": "bicubic"}]
    got = preprocess(image, {"input": {"unit_floats_times": 255}, "steps": steps})
    expected = np.array(Image.fromarray(image).resize((77, 31), Image.Resampling.BICUBIC))
    assert np.array_equal(got[0, 0], expected)


def test_parameters_carry_the_processors_numbers():
    parameters = preprocessing_parameters(URFMImageProcessor())
    assert [step["name"] for step in parameters["steps"]] == ["resize", "rescale", "normalize"]
    assert parameters["image_mean"] == [0.485, 0.456, 0.406] and parameters["size"] == {"height": 224, "width": 224}
    assert parameters["output"]["shape"] == ["batch", 3, 224, 224] and parameters["resample"] == 3
    with pytest.raises(ValueError, match="num_channels=1"):
        check_preprocessing(URFMImageProcessor(), URFMConfig(num_channels=1), [])
    with pytest.raises(ValueError, match="'blur' is not known"):
        preprocess(np.zeros((4, 4), np.uint8), {"input": {"unit_floats_times": 255}, "steps": [{"name": "blur"}]})


@needs_node
def test_javascript_gives_the_same(tmp_path):
    shutil.copyfile(JAVASCRIPT, tmp_path / "preprocessing.mjs")
    jobs, expected = [], []
    for options in PROCESSORS:
        parameters = preprocessing_parameters(URFMImageProcessor(**{"size": {"height": 32, "width": 32}} | options))
        for image in frames():
            if image.dtype == bool:
                continue
            box = (3, 2, 16, 20) if options.get("do_crop_scan_region") else None
            expected.append(preprocess(image, parameters, box))
            channels = 1 if image.ndim == 2 else image.shape[2]
            jobs.append({"parameters": parameters, "box": box, "kind": image.dtype.name, "channels": channels,
                         "data": image.ravel().tolist(), "height": image.shape[0], "width": image.shape[1]})  # fmt: skip
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    (tmp_path / "run.mjs").write_text("""
import fs from 'node:fs';
import { preprocess } from './preprocessing.mjs';
const KINDS = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };
const results = JSON.parse(fs.readFileSync('jobs.json')).map(({ parameters, box, kind, data, ...image }) =>
  preprocess({ ...image, data: KINDS[kind].from(data) }, parameters, box));
fs.writeFileSync('results.json', JSON.stringify(results.map(({ data, dims }) => ({ data: [...data], dims }))));
""")
    subprocess.run(["node", "run.mjs"], cwd=tmp_path, check=True, timeout=120)
    for got, wanted, job in zip(json.loads((tmp_path / "results.json").read_text()), expected, jobs, strict=True):
        assert tuple(got["dims"]) == wanted.shape
        scale = 1 if any(step["name"] == "rescale" for step in job["parameters"]["steps"]) else 255
        np.testing.assert_allclose(np.reshape(got["data"], wanted.shape), wanted, atol=2e-5 * scale, rtol=1e-5)


# ---------------------------------------------------------------- every kind of model


@pytest.mark.parametrize(
    "task, config, processor, says",
    [
        ("classifier", {"num_labels": 3, "problem_type": "multi_label_classification"}, {}, "sigmoid of logits"),
        ("classifier", {"num_labels": 1}, {}, "Values, not classes"), ("segmenter", {"num_labels": 1}, {}, "logits > 0"),
        ("encoder", {}, {"do_pad_square": True}, "own pipeline refuses"),
    ],
)  # fmt: skip
def test_what_transformers_js_does_otherwise_is_said(task, config, processor, says):
    limits = limits_of(URFMConfig(**SMALL | config), task, URFMImageProcessor(**processor), ("onnx",))
    assert any(says in limit for limit in limits)
    assert not any(says in limit for limit in limits_of(URFMConfig(**SMALL), task, URFMImageProcessor(), ("onnx",)))


def test_tasks():
    assert task_of(URFMConfig()) == "encoder"
    assert task_of(URFMConfig(architectures=["URFMAttentiveForImageClassification"])) == "classifier"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, values, formats",
    [
        # The plain classifier is exported by tests/recipes/test_export.py.
        (URFMAttentiveForImageClassification, {"num_labels": 3}, ("onnx",)),
        (URFMForSemanticSegmentation, {"num_labels": 3}, ("onnx", "int8")),
    ],
)
def test_heads(kind, values, formats, images, tmp_path):
    processor = URFMImageProcessor(size={"height": 32, "width": 32}, do_crop_scan_region=True, do_pad_square=True)
    source = save(tmp_path / "model", kind, processor, **values)
    facts = export_model(str(source), tmp_path / "out", formats, images, progress=False)
    assert facts["outputs"] == ["logits"] and facts["formats"]["onnx"]["top1_agreement"] == 1.0
    plain = URFMForImageClassification if kind is URFMAttentiveForImageClassification else kind
    model = plain.from_pretrained(source).eval()
    run = onnx_runner(tmp_path / "out/onnx/model.onnx")
    for batch, height, width in SIZES:
        pixels = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            np.testing.assert_allclose(run(pixels.numpy())["logits"], model(pixels).logits.numpy(), atol=2e-5, rtol=0)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert len(config["id2label"]) == values["num_labels"]
    processor = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "URFMImageProcessor"


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_is_merged(use_dora, source, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = URFMForImageClassification.from_pretrained(source, num_labels=3)
    adapted = get_peft_model(model, LoraConfig(r=2, use_dora=use_dora, modules_to_save=["classifier"]))
    torch.manual_seed(1)
    for name, value in adapted.named_parameters():
        if "lora_B" in name or "classifier" in name:
            torch.nn.init.normal_(value, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    model.config.architectures = ["URFMForImageClassification"]
    model.config.save_pretrained(tmp_path / "adapter")
    merged, task = load_for_export(str(tmp_path / "adapter"))
    assert task == "classifier" and not any("lora" in name for name, _ in merged.named_parameters())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = adapted.eval()(pixels).logits
        torch.testing.assert_close(merged(pixels).logits, expected, atol=1e-5, rtol=1e-5)
        plain = URFMForImageClassification.from_pretrained(source, num_labels=3)(pixels).logits
    assert (expected - plain).abs().max() > 1e-2


@pytest.fixture
def graph_is_there(exported, monkeypatch):
    """The ONNX file of the fixture in place of one that takes seconds to make."""
    import onnx

    proto = onnx.load(exported[0] / "onnx/model.onnx")
    monkeypatch.setattr(export, "save_onnx", lambda graph, path: export_graph._save(onnx, proto, path))


@pytest.mark.usefixtures("graph_is_there")
def test_weights_that_one_file_cannot_hold(source, images, tmp_path, monkeypatch):
    monkeypatch.setattr(export_graph, "MAX_ONE_FILE", 10_000)
    facts = export_model(str(source), tmp_path / "out", ("onnx", "int8"), images, progress=False)
    assert (tmp_path / "out/onnx/model.onnx_data").is_file() and len(facts["formats"]["onnx"]["sha256"]) == 2
    options = json.loads((tmp_path / "out/config.json").read_text())["transformers.js_config"]
    assert options["use_external_data_format"]["model.onnx"] == 1


@pytest.mark.usefixtures("graph_is_there")
def test_an_export_replaces_an_earlier_one_and_int8_stands_alone(exported, source, images, tmp_path, monkeypatch):
    folder = shutil.copytree(exported[0], tmp_path / "out")
    (tmp_path / ".old-out/onnx").mkdir(parents=True)  # of an export that was killed while it replaced another
    monkeypatch.chdir(folder)
    export_model(str(source), Path("."), ("int8",), images, progress=False)
    assert [path.name for path in (folder / "onnx").iterdir()] == ["model_quantized.onnx"]
    assert not (folder / "model.pt2").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((folder / "config.json").read_text())["transformers.js_config"] == {"dtype": "q8"}


@pytest.mark.slow
def test_torch_export_needs_torch_alone(exported):
    code = (
        "import sys, torch\n"
        "model = torch.export.load('model.pt2').module()\n"
        "assert model(torch.zeros(1, 3, 48, 24))['pooler_output'].shape == (1, 16)\n"
        "assert 'transformers' not in sys.modules and 'modeling_urfm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=exported[0], check=True, timeout=300)


# ---------------------------------------------------------------- transformers.js


JAVASCRIPT_USER = """
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import fs from 'node:fs';
const [modules, folder, image] = process.argv.slice(2);
const found = createRequire(modules + '/').resolve('@huggingface/transformers');
const { AutoModel, RawImage, Tensor, env, pipeline } = await import(pathToFileURL(found));
const { preprocess } = await import(pathToFileURL(folder + '/preprocessing.mjs'));
env.allowRemoteModels = false;
const parameters = JSON.parse(fs.readFileSync(folder + '/preprocessing.json'));
const { data, dims } = preprocess(await RawImage.read(image), parameters);
const results = { pixels: [...data] };
for (const dtype of ['fp32', 'q8']) {
  const model = await AutoModel.from_pretrained(folder, { dtype });
  const { pooler_output } = await model({ pixel_values: new Tensor('float32', data, dims) });
  results[dtype] = [...pooler_output.data];
}
const extract = await pipeline('image-feature-extraction', folder, { dtype: 'fp32' });
results.pipeline = [...(await extract(image, { pool: true })).data];
console.log(JSON.stringify(results));
"""


@pytest.mark.slow
@needs_node
@pytest.mark.skipif(
    "URFM_TRANSFORMERS_JS" not in os.environ, reason="URFM_TRANSFORMERS_JS names no folder with transformers.js"
)
def test_transformers_js_gives_the_same_features(exported, source, tmp_path):
    (tmp_path / "user.mjs").write_text(JAVASCRIPT_USER)
    image = np.kron(np.random.default_rng(0).integers(0, 256, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "scan.png")
    Image.fromarray(image[:32, :32]).save(tmp_path / "as_large_as_the_model.png")
    model, processor = URFMModel.from_pretrained(source).eval(), URFMImageProcessorPil.from_pretrained(source)
    for name, pixels, exact in (("scan", image, False), ("as_large_as_the_model", image[:32, :32], True)):
        line = subprocess.run(
            ["node", "user.mjs", os.environ["URFM_TRANSFORMERS_JS"], str(exported[0]), f"{name}.png"],
            cwd=tmp_path, check=True, timeout=300, capture_output=True, text=True,
        ).stdout.splitlines()[-1]  # fmt: skip
        got, pixels = json.loads(line), processor(pixels, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(pixels).pooler_output[0].numpy()
        np.testing.assert_allclose(np.reshape(got["pixels"], pixels.shape), pixels.numpy(), atol=1e-5)
        np.testing.assert_allclose(got["fp32"], expected, atol=2e-5)
        np.testing.assert_allclose(got["q8"], expected, atol=0.2)
        # Its own pipeline resizes in its own way, and is exact where there is nothing to resize.
        np.testing.assert_allclose(got["pipeline"], expected, atol=2e-5 if exact else 1.0)
