# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What the model looks at: rollout against a loop, pixels to patches and back, stable colours, sheets, films, the page."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_urfm import URFMConfig, URFMForPreTraining, URFMImageProcessor
from modeling_urfm.data.phantoms import phantom_frame
from modeling_urfm.evaluation import visual_sheets as sheets
from modeling_urfm.evaluation import visuals
from modeling_urfm.evaluation.viewer import directions, write_viewer
from modeling_urfm.modeling_urfm import patchify


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = dict(
    image_size=64, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=32,
)  # fmt: skip


def tiny(**changes):
    torch.manual_seed(0)
    return URFMForPreTraining._from_config(URFMConfig(**SIZES | changes), attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def model():
    return tiny(target_hidden_size=24, initializer_range=0.2, pooling="mean")


@pytest.fixture(scope="module")
def processor():
    return URFMImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture(scope="module")
def images():
    """A square sector, a wide frame with a caption beside its sector, a tall one."""
    first, second = (
        np.repeat(phantom_frame(3, i, organ=organ, image_size=96).image[..., None], 3, axis=-1)
        for i, organ in enumerate(("heart", "breast"))
    )
    wide = np.zeros((120, 200, 3), np.uint8)
    wide[10:106, 80:176] = first
    return [first, wide, np.pad(second, ((20, 30), (0, 0), (0, 0)))]


@pytest.fixture(scope="module")
def sights(model, processor, images):
    return visuals.look(model.urfm, processor, ["a", "b <i>", "c"], images, batch_size=2, progress=False)


def test_three_rows_are_no_three_channels(model, processor):
    strip = np.random.default_rng(0).integers(0, 255, (3, 90, 3), dtype=np.uint8)
    (sight,) = visuals.look(model.urfm, processor, ["strip"], [strip], progress=False)
    assert (sight.region.height, sight.region.width) == (3, 90)


def test_rollout_is_the_product_of_mixed_layers(model, processor, images):
    pixels = processor(images[:2], return_tensors="pt").pixel_values
    attentions = model.urfm(pixels, output_attentions=True).attentions
    expected = []
    for image in range(2):
        mixed = np.eye(65)
        for layer in attentions:
            weights = layer[image].double().detach().numpy().mean(0)
            mixed = (0.5 * weights + 0.5 * np.eye(65)) @ mixed
        expected.append(mixed)
    cls = visuals.attention_rollout(attentions, "cls").detach()
    mean = visuals.attention_rollout(attentions, "mean").detach()
    for image in range(2):
        np.testing.assert_allclose(cls[image], expected[image][0, 1:], atol=1e-6)
        np.testing.assert_allclose(mean[image], expected[image][1:, 1:].mean(0), atol=1e-6)
        assert expected[image].sum(1) == pytest.approx(1)


def test_a_look_gives_the_encoders_own_tokens_whatever_the_batch(model, processor, images, sights):
    for sight, image in zip(sights, images):
        outputs = model.urfm(processor(image, return_tensors="pt").pixel_values)
        torch.testing.assert_close(sight.tokens, outputs.last_hidden_state[0, 1:].detach(), atol=2e-5, rtol=1e-4)
        assert sight.image is image and sight.grid == (8, 8) and 0 <= sight.pixels.min() and sight.pixels.max() <= 1
        assert sight.lit.any() and not sight.lit.all()
    finer = visuals.look(model.urfm, processor, ["a"], images[:1], image_size=128, progress=False)
    assert finer[0].grid == (16, 16)
    blind = URFMForPreTraining(URFMConfig(**SIZES))
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        visuals.look(blind.urfm, processor, ["a"], images[:1], progress=False)


@pytest.mark.parametrize("crop, pad", [(False, False), (True, False), (True, True), (False, True)])
def test_every_pixel_finds_its_patch_and_every_patch_its_pixels(model, processor, images, crop, pad):
    seen = visuals.look(model.urfm, processor, "abc", images, crop_scan_region=crop, pad_square=pad, progress=False)
    for sight in seen:
        numbers = visuals.on_image(torch.arange(64.0), sight)
        assert numbers.shape == sight.image.shape[:2]
        region = sight.region
        inside = np.zeros(numbers.shape, bool)
        inside[region.top : region.top + region.height, region.left : region.left + region.width] = True
        np.testing.assert_array_equal(np.isfinite(numbers), inside)
        for x, y in ((region.left, region.top), visuals.centre_of(sight),
                     (region.left + region.width - 1, region.top + region.height - 1)):  # fmt: skip
            patch = visuals.patch_at(x, y, sight)
            assert numbers[y, x] == patch
            left, top, right, bottom = visuals.patch_box(patch, sight)
            assert left <= x + 0.5 < right and top <= y + 0.5 < bottom
        smooth = visuals.on_image(torch.arange(64.0), sight, smooth=True)
        assert np.isfinite(smooth[inside]).all() and np.isnan(smooth[~inside]).all()
    wide = seen[1]
    with pytest.raises(ValueError, match=r"200 x 120 pixels .*\. The nearest: "):
        visuals.patch_at(500, 20, wide)
    if crop:
        assert wide.region.left > 60
        with pytest.raises(ValueError, match=rf"2,60 on b: the model saw x from .* nearest: {wide.region.left},60"):
            visuals.patch_at(2, 60, wide)


def test_a_loop_is_cut_at_one_place(model, processor, images):
    frames = [np.zeros((120, 200, 3), np.uint8) for _ in range(3)]
    for i, frame in enumerate(frames):  # the sector fills step by step
        frame[10 : 50 + 28 * i, 80:176] = images[0][: 40 + 28 * i]
    options = {"crop_scan_region": True, "pad_square": True, "progress": False}
    jumping = visuals.look(model.urfm, processor, "abc", frames, **options)
    steady = visuals.look(model.urfm, processor, "abc", frames, steady=True, **options)
    assert len({s.region for s in jumping}) > 1 and len({s.region for s in steady}) == 1
    region = steady[0].region
    assert (region.image_height, region.image_width) == (120, 200) and region.left > 60
    assert steady[0].image.shape == (120, 200, 3)
    torch.testing.assert_close(steady[2].tokens, jumping[2].tokens, atol=2e-5, rtol=1e-4)


def test_colours_say_which_features_are_equal_and_do_not_turn_over(sights):
    tokens, lit = [s.tokens for s in sights], [s.lit for s in sights]
    colours, again = visuals.PatchColours(tokens, lit), visuals.PatchColours(tokens, lit)
    assert torch.equal(colours(tokens[0]), again(tokens[0]))
    flat = torch.cat([t[keep] for t, keep in zip(tokens, lit)]).double().numpy()
    values = np.linalg.svd(flat - flat.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(colours.explained, values[:3] / values.sum(), rtol=1e-6)
    turned = visuals.PatchColours([-t for t in tokens], lit)  # the opposite features: another sign of each component
    assert turned.explained == pytest.approx(colours.explained)
    rgb = colours(torch.cat(tokens))
    assert rgb.shape == (192, 3) and rgb.min() >= 0 and rgb.max() <= 1
    # Without any lit patch, all count.
    assert visuals.PatchColours(tokens, [torch.zeros_like(keep) for keep in lit])(tokens[0]).isfinite().all()


def test_two_of_three_components_survive_without_the_red_green_axis():
    def luminance_and_blue_yellow(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722], linear[..., 2] - linear[..., :2].mean(-1)

    steps = torch.linspace(0, 1, 9)
    lightness = torch.stack([steps, torch.full((9,), 0.5), torch.full((9,), 0.5)], dim=-1)
    yellow = torch.stack([torch.full((9,), 0.5), steps, torch.full((9,), 0.5)], dim=-1)
    bright, _ = luminance_and_blue_yellow(visuals.component_colours(lightness).numpy())
    _, blue = luminance_and_blue_yellow(visuals.component_colours(yellow).numpy())
    assert (np.diff(bright) > 0.01).all() and (np.diff(blue) < -0.01).all()


def test_similarity_is_one_at_the_patch_itself(sights):
    maps = visuals.similarities(sights, sights[0].tokens[27])
    assert maps[0].argmax() == 27 and maps[0][27] == pytest.approx(1, abs=1e-6)
    unit = torch.nn.functional.normalize(sights[2].tokens, dim=-1)
    query = torch.nn.functional.normalize(sights[0].tokens[27], dim=0)
    torch.testing.assert_close(maps[2], unit @ query, atol=1e-6, rtol=1e-5)


class FakeTeacher(torch.nn.Module):
    name, hidden_size = "fake", 24

    def forward(self, pixels, grid):
        return torch.arange(len(pixels) * grid[0] * grid[1] * 24.0).reshape(len(pixels), -1, 24).sin()


def test_predictions_are_of_hidden_patches_and_of_the_same_ones_in_every_image(model, processor, sights):
    plain = visuals.predict(model, processor, sights, seed=4, batch_size=2)
    again = visuals.predict(model, processor, sights, seed=4)
    for prediction, other in zip(plain, again):
        assert int(prediction.hidden.sum()) == 48 and torch.equal(prediction.hidden, plain[0].hidden)
        assert (
            not prediction.predicted[~prediction.hidden].any() and prediction.predicted[prediction.hidden].any(1).all()
        )
        torch.testing.assert_close(prediction.predicted, other.predicted, atol=1e-5, rtol=1e-4)
        assert prediction.target is None
    assert not torch.equal(visuals.predict(model, processor, sights[:1], seed=5)[0].hidden, plain[0].hidden)
    taught = visuals.predict(model, processor, sights, teacher=FakeTeacher(), seed=4)
    torch.testing.assert_close(taught[2].cosine.isnan(), ~taught[2].hidden)
    narrow = FakeTeacher()
    narrow.hidden_size = 99
    with pytest.raises(ValueError, match="width 99, the model predicts 24"):
        visuals.predict(model, processor, sights, teacher=narrow)


def test_a_perfect_prediction_of_pixels_gives_the_image_back(processor, images):
    model = tiny(target="pixel")
    sight = visuals.look(model.urfm, processor, ["a"], images[1:2], progress=False)[0]
    prediction = visuals.predict(model, processor, [sight])[0]
    patches = patchify(visuals.normalized(sight.pixels[None], processor), 8)[0]
    perfect = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    drawn = visuals.reconstruction(visuals.Prediction(prediction.hidden, perfect), sight, processor, 8)
    expected = sight.region.give_back(sight.pixels, 0.0).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-4)
    drawn = visuals.reconstruction(prediction, sight, processor, 8)
    assert np.abs(drawn - expected).max() > 0.1  # an untrained one does not
    panel = sheets.reconstruction_panel([sight], [prediction], processor, 8)
    assert panel.pictures[0].shape == sight.image.shape and panel.legend is None


# ---------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def panels(model, processor, sights):
    colours = visuals.PatchColours([s.tokens for s in sights], [s.lit for s in sights])
    predictions = visuals.predict(model, processor, sights, teacher=FakeTeacher())
    return [
        sheets.image_panel(sights), sheets.rollout_panel(sights), sheets.pca_panel(sights, colours),
        sheets.similarity_panel(sights, 27, 1), sheets.hidden_panel(sights, predictions),
        *sheets.prediction_panels(sights, predictions),
    ]  # fmt: skip


def test_panels_keep_each_images_size_and_frame_the_patch(panels, sights):
    for panel in panels:
        assert [p.shape for p in panel.pictures] == [s.image.shape for s in sights]
        assert all(p.dtype == np.uint8 for p in panel.pictures)
    left, top, right, bottom = visuals.patch_box(27, sights[0])
    framed = panels[3].pictures[0]
    assert (framed[round(top), round(left) : round(right)] == 255).all()
    assert (framed[round(top) - 1, round(left) : round(right)] == 0).all()


def test_sheets_are_paged_and_keep_the_aspect(tmp_path, panels, monkeypatch):
    monkeypatch.setattr(sheets, "ROWS_PER_SHEET", 2)
    paths = sheets.save_sheets(["a", "b <i>", "c"], panels[:3], tmp_path / "sheet.png", dpi=60)
    assert (
        [p.name for p in paths]
        == ["sheet.png", "sheet-02.png"]
        == sorted((p.name for p in tmp_path.iterdir()), reverse=True)
    )
    first = np.asarray(Image.open(paths[0]).convert("L")).astype(int)
    assert first.shape[1] == pytest.approx(60 * (0.34 + 3 * 2.17), abs=1)
    # The second row is 120 x 200: black ground at its corners, white paper around.
    column = first[:, 40]  # just inside of the pictures
    dark = np.flatnonzero(column < 10)
    runs = np.split(dark, np.flatnonzero(np.diff(dark) > 2) + 1)
    assert len(runs[-1]) == pytest.approx(60 * 2.1 * 120 / 200, abs=2)
    assert sheets.shortened("a very long name.png", 10) == "a ve…e.png" and sheets.shortened("short", 10) == "short"


def test_a_film_runs_at_its_rate_with_one_palette(tmp_path, panels):
    frames = [np.roll(panels[0].pictures[0], 5 * i, axis=1) for i in range(12)]
    still = sheets.Panel("still", [panels[2].pictures[0]] * 12, (0.5, 0.3, 0.1))
    film = [
        sheets.Panel("moving", frames),
        still,
        sheets.Panel("scale", frames, sheets.Scale("viridis", 0, 1, "cosine")),
    ]
    sheets.save_film(film, 30.0, tmp_path / "loop.gif", width=96)
    with Image.open(tmp_path / "loop.gif") as gif:
        assert gif.info["loop"] == 0 and gif.n_frames == 12 and gif.size == (3 * 100 - 4, 22 + 96 + 36)
        durations, stills = [], []
        for i in range(12):
            gif.seek(i)
            durations.append(gif.info["duration"])
            stills.append(np.asarray(gif.convert("RGB"))[22:118, 100:196])
    assert sum(durations) == 400 and set(durations) <= {30, 40}
    assert all((s == stills[0]).all() for s in stills)
    assert np.abs(stills[0].astype(int) - still.pictures[0]).mean() < 8
    assert [p.name for p in tmp_path.iterdir()] == ["loop.gif"]
    assert sheets.film_stride(30, 30, 60) == 1 and sheets.film_stride(30, 200, 60) == 4
    assert sheets.film_stride(50, 60, 60) == 1 and sheets.film_stride(120, 60, 60) == 3


def test_the_page_holds_all_and_nothing_that_a_name_says(tmp_path, sights):
    write_viewer(tmp_path / "viewer.html", sights, patch=27)
    page = (tmp_path / "viewer.html").read_text()
    assert "b &lt;i&gt;" in page and "b <i>" not in page and not re.search(r"https?://", page)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert data["start"] == 27 and data["width"] == 32 and len(base64.b64decode(data["palette"])) == 768
    held = [np.frombuffer(base64.b64decode(i["tokens"]), np.int8).reshape(64, 32).astype(float) for i in data["images"]]
    held = [h / np.linalg.norm(h, axis=1, keepdims=True) for h in held]
    exact = visuals.similarities(sights, sights[0].tokens[27])
    for tokens, expected in zip(held, exact):
        np.testing.assert_allclose(tokens @ held[0][27], expected, atol=0.01)
    assert directions(sights[0]).dtype == np.int8


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_in_chromium(tmp_path, sights):
    write_viewer(tmp_path / "viewer.html", sights, patch=27)
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'chromium'}",
         "--window-size=1200,900", f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "viewer.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    shot = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    # viridis over the pictures: drawn by the script alone, as the pictures are grey.
    coloured = np.abs(shot - shot.mean(-1, keepdims=True)).max(-1) > 25
    assert coloured.sum() > 50_000
