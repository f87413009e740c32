# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Files from strangers: nothing in them is run, damage is seen, and every refusal says why and what to do."""

import argparse
import json
import os
import pickle
import random
import zipfile

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from modeling_urfm.hub import conversion, conversion_parity
from modeling_urfm.hub.conversion import convert
from modeling_urfm.hub.conversion_files import ConversionError, find_source, read_weights

from . import layouts
from .layouts import SMALL
from .running_hub import running_hub


@pytest.fixture(autouse=True)
def one_image(monkeypatch):
    monkeypatch.setattr(conversion, "parity_images", lambda folder=None: IMAGES or IMAGES.extend(two()) or IMAGES)


IMAGES: list = []


def two() -> list:
    return conversion_parity.parity_images()[-1:]


@pytest.fixture
def state():
    return layouts.mae_encoder(SMALL)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm-was-done",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, monkeypatch, state, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "args": Harm()}, "harm.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match="mkdir.*weights_only=True") as caught:
        convert("harm.pth")
    assert "safetensors" in str(caught.value) and not os.path.exists("harm-was-done")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"a": Harm()}))
    with pytest.raises(ConversionError):
        convert("plain.bin")
    assert not os.path.exists("harm-was-done")


def test_the_arguments_of_a_training_script_are_refused_with_a_way_to_resave(tmp_path, monkeypatch, state):
    monkeypatch.chdir(tmp_path)
    layouts.checkpoint(tmp_path / "c.pth", state, args=argparse.Namespace(lr=1e-3))
    with pytest.raises(ConversionError, match="needs 'argparse.Namespace'") as caught:
        convert("c.pth")
    script = str(caught.value).split('-c "')[1].rstrip('"')
    try:
        exec(script, {})  # the way that is shown works
    finally:
        torch.serialization.clear_safe_globals()
    assert convert("weights.pth", num_attention_heads=2).record["keys"]["copied"] == 30


def test_files_cut_at_any_byte_and_changed_at_any_byte_never_pass_for_whole(tmp_path, state):
    whole = tmp_path / "whole.pth"
    torch.save({"model": state}, whole)
    save_file(state, tmp_path / "whole.safetensors")
    generator = random.Random(0)
    for name in ("whole.pth", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        damaged = tmp_path / f"damaged{os.path.splitext(name)[1]}"
        for cut in [0, 1, 7, len(content) - 1, *(generator.randrange(len(content)) for _ in range(20))]:
            damaged.write_bytes(content[:cut])
            with pytest.raises(ConversionError, match="damaged.*Fetch it again"):
                read_weights([damaged])
    content = bytearray(whole.read_bytes())
    with zipfile.ZipFile(whole) as archive:  # a bit of a weight: torch itself does not notice
        info = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[info.header_offset + 300 + info.file_size // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(content)
    torch.load(tmp_path / "flipped.pth", weights_only=True)
    with pytest.raises(ConversionError, match="flipped.pth is damaged: Bad CRC-32"):
        read_weights([tmp_path / "flipped.pth"])
    for _ in range(40):  # whatever else is changed: refused, or read, but never another error
        changed = bytearray(whole.read_bytes())
        for _ in range(generator.randrange(1, 4)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        damaged = tmp_path / "changed.pth"
        damaged.write_bytes(changed)
        try:
            convert(str(damaged), num_attention_heads=2)
        except ConversionError:
            pass


def test_an_archive_that_is_compressed_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ConversionError, match="is compressed"):
        convert(str(tmp_path / "b.pth"))


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.full((32,), float("nan")), "32 values of 32 that are NaN"),
        (torch.full((32,), 1e300, dtype=torch.float64), "infinite"),
        (torch.ones(32, dtype=torch.int64), "weights are of floating point"),
        (torch.ones(32, dtype=torch.complex64), "floating point"),
        (torch.ones(32).to_sparse(), "no plain dense tensor"), (torch.empty(32, device="meta"), "no plain dense tensor"),
        (torch.ones(1).expand(32), "more than its storage holds"),
    ],
)  # fmt: skip
def test_values_that_are_no_weights(tmp_path, state, value, message):
    torch.save(state | {"norm.bias": value}, tmp_path / "c.pth")
    with pytest.raises(ConversionError, match=f"norm.bias.*{message}"):
        convert(str(tmp_path / "c.pth"), num_attention_heads=2)


def test_a_tensor_that_claims_to_be_huge_takes_no_memory(tmp_path, state):
    side = 10**6
    huge = torch.zeros(1).as_strided((1, 1 + side**2, 32), (0, 0, 0))
    torch.save(state | {"pos_embed": huge}, tmp_path / "c.pth")
    with pytest.raises(ConversionError, match="pos_embed claims"):
        convert(str(tmp_path / "c.pth"), num_attention_heads=2)


@pytest.mark.parametrize(
    "content", [[1], None, torch.ones(3), {"model": "name"}, {}, {"model": {}}, {"a": torch.ones(2)}]
)
def test_content_that_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ConversionError, match="not a dict of weights|no ViT in the file"):
        convert(str(tmp_path / "c.pth"))


def test_keys_that_are_no_text_or_would_write_to_the_terminal(tmp_path, state):
    torch.save(state | {3: torch.ones(2)}, tmp_path / "c.pth")
    with pytest.raises(ConversionError, match="a key 3 that is no text"):
        convert(str(tmp_path / "c.pth"))
    torch.save({"model": state | {"\x1b[31mred\n": torch.ones(2)}}, tmp_path / "c.pth")
    with pytest.raises(ConversionError) as caught:
        convert(str(tmp_path / "c.pth"))
    assert "\x1b" not in str(caught.value) and "unknown" in str(caught.value)


def test_places_that_are_not_there(tmp_path):
    with pytest.raises(ConversionError, match="neither a file nor a folder"):
        convert(os.devnull)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="Did you mean '.*weights.pth'"):
        convert(str(tmp_path / "weight.pth"))
    with pytest.raises(ConversionError, match="holds neither config.json.*Name the file: .*weights.pth"):
        convert(str(tmp_path))
    with pytest.raises(ConversionError, match="weights.pth.*damaged"):
        convert(str(tmp_path / "weights.pth"))
    (tmp_path / "weights.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ConversionError, match="pointer of Git LFS"):
        convert(str(tmp_path / "weights.pth"))
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(ConversionError, match="a file of weights is .pth"):
        convert(str(tmp_path / "weights.onnx"))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConversionError, match="holds config.json but no weights"):
        convert(str(tmp_path))
    for text in ("{", "[]", '"a"', "[" * 10**5):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConversionError, match="config.json (is no JSON|holds no JSON object)"):
            convert(str(tmp_path))


def test_a_file_beside_its_config_is_its_folder(tmp_path):
    layouts.timm_folder(tmp_path / "t")
    assert find_source(str(tmp_path / "t/model.safetensors")).kind == "timm"
    torch.save({}, tmp_path / "t/pytorch_model.bin")
    with pytest.raises(ConversionError, match="lies beside model.safetensors, which is read first"):
        find_source(str(tmp_path / "t/pytorch_model.bin"))
    layouts.transformers_folder(tmp_path / "v", processor=False)
    os.rename(tmp_path / "v/model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(ConversionError, match="config.json says what no weight does"):
        convert(str(tmp_path / "alone.safetensors"))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_together_and_only_beside_their_index(tmp_path, suffix):
    layouts.transformers_folder(tmp_path / "v")
    from safetensors.torch import load_file

    state = load_file(tmp_path / "v/model.safetensors")
    (tmp_path / "v/model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    parts = [dict(list(state.items())[:9]), dict(list(state.items())[9:])]
    for name, part in zip(names, parts, strict=True):
        (save_file if suffix == "safetensors" else torch.save)(part, tmp_path / "v" / name)
    index = tmp_path / f"v/{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {k: n for n, p in zip(names, parts, strict=True) for k in p}}))
    record = convert(str(tmp_path / "v")).record
    assert record["files"] == 2 and record["keys"]["copied"] == 38
    for name, message in (("../x.safetensors", "no file of weights beside it"), ("x.safetensors", "is missing")):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ConversionError, match=message):
            convert(str(tmp_path / "v"))


@pytest.mark.slow
def test_sources_on_the_hub(tmp_path, monkeypatch):
    """With the real client: a released file by its name, folders of two libraries, what is not there, and no network."""
    ema, _ = layouts.released_urfm(tmp_path / "mae_vit_small.pth")
    layouts.timm_folder(tmp_path / "t")
    layouts.open_clip_folder(tmp_path / "c")
    with running_hub(tmp_path / "hub") as hub:
        with hub.connected(tmp_path / "home"):
            api = HfApi()
            for name, place in (("urfm", "mae_vit_small.pth"), ("timm", "t"), ("clip", "c")):
                api.create_repo(f"lab/{name}")
                if place.endswith(".pth"):
                    api.upload_file(path_or_fileobj=tmp_path / place, path_in_repo=place, repo_id=f"lab/{name}")
                else:
                    api.upload_folder(folder_path=tmp_path / place, repo_id=f"lab/{name}")
            record = convert("lab/urfm/mae_vit_small.pth", num_attention_heads=2).record
            assert record["layout"] == "URFM as released" and record["source"].startswith("hf-hub:lab/urfm@")
            assert convert("hf-hub:lab/timm").record["layout"] == "timm"
            assert convert("lab/clip").record["layout"] == "open_clip"
            with pytest.raises(ConversionError, match="Files of weights there: lab/urfm/mae_vit_small.pth"):
                convert("lab/urfm")
            with pytest.raises(ConversionError, match="lab/urfm has no file b.pth"):
                convert("lab/urfm/b.pth")
            with pytest.raises(ConversionError, match="lab/none can't be had from the Hub"):
                convert("lab/none")
        with hub.connected(tmp_path / "home", offline=True):
            assert convert("lab/timm").record["layout"] == "timm"  # from the cache
            assert convert("lab/urfm/mae_vit_small.pth", num_attention_heads=2).record["keys"]["copied"] == 30
            with pytest.raises(ConversionError, match="hf download lab/other --local-dir FOLDER"):
                convert("lab/other")
