# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The image processors: kinds of input, options, errors, label maps, round trips, and agreement of the two backends."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTImageProcessor

from modeling_urfm.data.reading import open_source, ultrasound_examples
from modeling_urfm.image_processing_urfm import URFMImageProcessor, URFMImageProcessorPil, find_scan_region


BACKENDS = [URFMImageProcessor, URFMImageProcessorPil]
MEAN = torch.tensor(URFMImageProcessor.image_mean)[:, None, None]
STD = torch.tensor(URFMImageProcessor.image_std)[:, None, None]
PLAIN = {"do_resize": False, "do_normalize": False}  # what is left is reading and the range [0, 1]

both = pytest.mark.parametrize("backend", BACKENDS)


def pixels(processor, images, **kwargs):
    return processor(images, return_tensors="pt", **kwargs).pixel_values


def smooth(height=150, width=200, seed=0):
    """A smooth RGB image, (height, width, 3) uint8 over the full range."""
    rows, columns = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [127.5 + 127.5 * np.sin(rows / 17 + p) * np.cos(columns / 23 + p) for p in phase]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


def speckle(height, width, seed=0):
    return np.random.default_rng(seed).rayleigh(50, (height, width)).clip(0, 255).astype(np.uint8)


def fan_image(height=480, width=640, text=True):
    """A sector between 45 degrees on a black ground, with text-like marks and a flat bar around it. Box: see test."""
    rows, columns = np.mgrid[0:height, 0:width]
    radius = np.hypot(rows - 60, columns - width / 2)
    angle = np.arctan2(columns - width / 2, rows - 60)
    image = np.where((radius < 350) & (radius > 40) & (np.abs(angle) < np.pi / 4), speckle(height, width), 0)
    if text:
        image[8:22, 8:200:4] = 255  # a line of letters
        image[30:44, 8:100:4] = 255
        image[300:420:10, 600:612] = 200  # a ruler
        image[460:480, :] = 70  # a flat bar of the user interface
    return image.astype(np.uint8)


@both
def test_defaults(backend):
    processor = backend()
    out = pixels(processor, smooth())
    assert out.shape == (1, 3, 224, 224) and out.dtype == torch.float32
    assert processor.size == {"height": 224, "width": 224} and processor.rescale_factor == 1 / 255
    options = ("do_crop_scan_region", "do_pad_square", "do_percentile_rescale")
    assert not any(getattr(processor, option) for option in options)


def test_equals_the_processor_of_vit_on_rgb():
    ours = URFMImageProcessor()
    theirs = ViTImageProcessor(resample=3, image_mean=ours.image_mean, image_std=ours.image_std)
    assert torch.equal(pixels(ours, smooth()), pixels(theirs, smooth()))


@both
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16, np.int64, bool])
def test_dtypes_and_their_ranges(backend, dtype):
    top = {np.uint8: 255, np.uint16: 65535, np.int64: 255}.get(dtype, 1)
    image = np.array([[0, top], [top, 0]]).astype(dtype)
    out = pixels(backend(**PLAIN), image)
    assert torch.allclose(out[0], torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(3, 2, 2), atol=1e-6)


@both
def test_sixteen_bits_keep_their_precision(backend):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    out = pixels(backend(**PLAIN), ramp)[0, 0]
    assert torch.allclose(out, torch.arange(65536).reshape(256, 256) / 65535, atol=1e-6)
    expected = pixels(backend(**PLAIN), ramp)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32)), torch.from_numpy(ramp)):
        assert torch.equal(pixels(backend(**PLAIN), image), expected)
    big_endian = ramp.astype(">u2")[:, ::-1]  # foreign byte order, negative strides
    assert torch.equal(pixels(backend(**PLAIN), big_endian), expected.flip(-1))


@both
def test_floats_of_both_ranges(backend):
    image = smooth()
    expected = pixels(backend(), image)
    for float_image in (image / 255, image.astype(np.float32), (image / 255).astype(np.float32)):
        out = pixels(backend(), float_image)
        assert (out - expected).abs().max() < 0.03  # 8-bit resizing rounds to one level, 1 / 255 / 0.225
        assert out.min() >= ((0 - MEAN) / STD).min() and out.max() <= ((1 - MEAN) / STD).max()  # no overshoot
    unscaled = pixels(backend(do_rescale=False, do_normalize=False), image / 255)
    assert 0 <= unscaled.min() and unscaled.max() <= 1
    # floats of 0..255 and of 0..1 give the same
    assert torch.allclose(pixels(backend(), image / 255), pixels(backend(), image.astype(np.float32)), atol=1e-5)
    normalised = np.linspace(-2, 2, 64).reshape(8, 8)
    kept = pixels(backend(do_rescale=False, **PLAIN), normalised)
    assert torch.allclose(kept[0, 0], torch.from_numpy(normalised).float())


@both
def test_pillow_modes(backend):
    processor = backend(**PLAIN)
    rgb = Image.fromarray(smooth(40, 50))
    expected = pixels(processor, rgb)
    palette = rgb.quantize(256)
    assert torch.equal(pixels(processor, palette), pixels(processor, palette.convert("RGB")))
    for mode in ("L", "RGBA", "CMYK", "YCbCr", "LA", "F", "1", "RGBX", "PA", "HSV", "LAB"):
        try:
            image = rgb.convert(mode)
        except ValueError:
            image = rgb.convert("L").convert(mode)
        out = pixels(processor, image)
        assert out.shape == expected.shape and 0 <= out.min() and out.max() <= 1 and out.std() > 0.1, mode
    grey = rgb.convert("L")
    assert torch.allclose(pixels(processor, grey.convert("F")), pixels(processor, grey), atol=1e-6)
    narrow = Image.fromarray(smooth(3, 4))  # channels are never looked for in the height or width of a PIL image
    assert pixels(processor, narrow).shape == (1, 3, 3, 4)


@both
def test_alpha_is_composited_over_black(backend):
    image = np.full((5, 6, 4), 200, np.uint8)
    image[:2, :, 3] = 0
    image[2:, :, 3] = 255
    for kind in (image, Image.fromarray(image), torch.from_numpy(image), image / 255.0, image.astype(np.uint16) * 257):
        out = pixels(backend(**PLAIN), kind)[0]
        assert out[:, :2].abs().max() == 0 and torch.allclose(out[:, 2:], torch.full((3, 3, 6), 200 / 255), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(5, 90), width=st.integers(5, 90), channels=st.sampled_from([None, 1, 3, 4]),
    dtype=st.sampled_from(["uint8", "uint16", "float32", "bool"]), size=st.sampled_from([16, 32, 224]),
    options=st.fixed_dictionaries({}, optional={name: st.just(True) for name in
        ("do_crop_scan_region", "do_pad_square", "do_percentile_rescale")}), seed=st.integers(0, 9),
)  # fmt: skip
def test_every_kind_and_layout_is_the_same_image(height, width, channels, dtype, size, options, seed):
    shape = (height, width) if channels is None else (height, width, channels)
    values = np.random.default_rng(seed).integers(0, 256, shape)
    image = {
        "uint8": values.astype(np.uint8), "uint16": (values * 257).astype(np.uint16),
        "float32": (values / 255).astype(np.float32), "bool": values > 127,
    }[dtype]  # fmt: skip
    kinds = [image, torch.from_numpy(image)]
    if channels is not None:
        kinds += [image.transpose(2, 0, 1), torch.from_numpy(image).permute(2, 0, 1)]
    if dtype == "uint8":
        kinds.append(Image.fromarray(image[..., 0] if channels == 1 else image))
    for backend in BACKENDS:
        out = pixels(backend(size=size, **options), kinds)
        assert out.shape == (len(kinds), 3, size, size) and out.dtype == torch.float32
        assert torch.isfinite(out).all()
        assert all(torch.equal(one, out[0]) for one in out)


@both
def test_batches_of_mixed_sizes_and_kinds(backend, tmp_path):
    image = smooth()
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(speckle(30, 40).astype(np.uint16) * 200).save(tmp_path / "b.png")
    batch = [image, [Image.fromarray(image), torch.rand(50, 60)], (np.random.rand(3, 20, 90),), np.stack([image] * 2),
             str(tmp_path / "a.png"), tmp_path / "b.png"]  # fmt: skip
    out = pixels(backend(), batch)
    assert out.shape == (8, 3, 224, 224)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[4]) and torch.equal(out[0], out[6])
    assert torch.equal(pixels(backend(), batch[1][1])[0], out[2])  # an image is independent of its batch
    assert torch.equal(out[7], pixels(backend(), speckle(30, 40).astype(np.uint16) * 200)[0])  # 16 bits from the file


@both
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.full((8, 8), np.nan), "64 of 64 values are NaN or infinite"),
        (np.where(np.eye(8), np.inf, 0.5), "8 of 64 values are NaN"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.zeros((8, 0), np.uint8), "empty"),
        (torch.zeros(0, 8, 8), "empty"),
        (np.zeros((8, 8, 0), np.uint8), "empty"),
        (Image.new("L", (0, 5)), "empty"),
        (np.zeros((1, 1, 1), np.uint8), r"1 x 1 pixels"),
        (np.zeros((1, 1, 3), np.uint8), r"1 x 1 pixels"),
        (np.zeros((1, 1), np.uint8), r"1 x 1 pixels"),
        (Image.new("RGB", (1, 1)), r"1 x 1 pixels"),
        (np.zeros((1, 30), np.uint8), r"1 x 30 pixels"),
        (np.zeros((8, 8, 2), np.uint8), "neither 1, 3 nor 4 channels"),
        (np.zeros((5, 8, 8), np.uint8), "neither 1, 3 nor 4 channels.*batch of grey images"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
        (np.full((8, 8), 300), "integer values from 300 to 300"),
        (np.full((8, 8), -1, np.int16), "integer values from -1"),
        (np.linspace(-1, 1, 64).reshape(8, 8), "float values from -1 to 1"),
        (np.full((8, 8), 4095.0), "do_percentile_rescale"),
        (np.zeros((8, 8), np.complex64), "complex64"),
        (np.full((8, 8), "x"), "dtype"),
        (None, "NoneType is no image"),
        (7, "int is no image"),
        ("no/such/file.png", "no file 'no/such/file.png'"),
    ],
)
def test_errors_say_which_image_and_why(backend, bad, reason):
    good = np.zeros((8, 8), np.uint8)
    with pytest.raises(ValueError, match=rf"(?s)image 2 \(of 4\): .*{reason}"):
        backend()([good, good, bad, good])


@both
def test_more_errors(backend, tmp_path):
    good = np.zeros((8, 8), np.uint8)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rest is missing")
    with pytest.raises(ValueError, match=r"image 1 \(of 2\).*broken.png"):
        backend()([good, tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="image 0: empty: an empty list"):
        backend()([])
    with pytest.raises(ValueError, match=r"image 0 \(of 1\) has 1 channels but image_mean has 3"):
        backend(do_convert_rgb=False)(good)
    with pytest.raises(ValueError, match="0 <= lower < upper <= 100, got 60 and 40"):
        backend(do_percentile_rescale=True, lower_percentile=60, upper_percentile=40)(good)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("scale", [0.25, 1, 2])
def test_scan_region_of_a_fan(text, scale):
    image = Image.fromarray(fan_image(text=text)).resize((int(640 * scale), int(480 * scale)), Image.Resampling.BOX)
    top, left, height, width = find_scan_region(torch.from_numpy(np.array(image)))
    # the sector: rows 60 + 40 cos(45) .. 410, columns 320 -/+ 350 sin(45); one cell is 5 pixels
    expected = np.array([88, 72, 410, 568])
    found = np.array([top, left, top + height, left + width]) / scale
    assert np.abs(found - expected).max() <= 15


def test_scan_region_of_rectangles_and_of_nothing():
    image = torch.zeros(200, 300, dtype=torch.uint8)
    assert find_scan_region(image) is None  # constant
    image[20:40, 20:180:3] = 255
    assert find_scan_region(image) is None  # only a line of text
    image[60:180, 90:240] = torch.from_numpy(speckle(120, 150))
    box = find_scan_region(image)
    assert np.abs(np.array(box) - (60, 90, 120, 150)).max() <= 6
    assert find_scan_region(image.float() / 255) == box  # any range
    assert find_scan_region(image.expand(3, -1, -1)) == box
    grey = torch.full((200, 300), 128.0)  # a grey ground, a region without speckle
    grey[60:180, 90:240] = 20
    assert np.abs(np.array(find_scan_region(grey)) - (60, 90, 120, 150)).max() <= 6
    full = torch.from_numpy(speckle(200, 300))
    assert find_scan_region(full) == (0, 0, 200, 300)


@pytest.mark.parametrize(
    ("name", "frame", "edges"),
    [  # top, left, bottom, right, read off the pictures; a dim rim may be missed
        ("examples_rgb_color.dcm", 0, (54, 6, 172, 312)),
        ("examples_jpeg2k.dcm", 0, (108, 12, 340, 625)),
        ("examples_ybr_color.dcm", 10, (20, 84, 206, 232)),
    ],
)
def test_scan_region_of_real_frames_without_their_headers(name, frame, edges):
    """GE's two have four lines of text above the picture, as wide as it; SonoSite's has a bar below it."""
    path = next(p for p in ultrasound_examples() if p.name == name)
    image = torch.from_numpy(open_source(path).frame(frame)).permute(2, 0, 1)
    top, left, height, width = find_scan_region(image)
    found, slack = np.array([top, left, top + height, left + width]), 0.04 * max(image.shape)
    assert np.abs(found - edges).max() <= slack, found


@both
def test_crop_and_fallback(backend):
    image = fan_image()
    top, left, height, width = find_scan_region(torch.from_numpy(image))
    expected = pixels(backend(), image[top : top + height, left : left + width])
    assert torch.equal(pixels(backend(do_crop_scan_region=True), image), expected)
    flat = np.full((30, 40), 9, np.uint8)
    assert torch.equal(pixels(backend(do_crop_scan_region=True), flat), pixels(backend(), flat))


@both
def test_pad_square(backend):
    image = np.full((50, 100), 255, np.uint8)
    out = pixels(backend(do_pad_square=True, do_normalize=False, size=100), image)[0]
    assert out[:, :25].max() == 0 and out[:, 75:].max() == 0 and out[:, 25:75].min() == 1
    out = pixels(backend(do_pad_square=True, do_normalize=False, size=101), image.T[:, :49])[0]
    assert out[:, :, :25].max() < 0.1 and out[:, :, 76:].max() < 0.1 and out[:, :, 28:73].min() > 0.99


@both
def test_percentile_rescale(backend):
    processor = backend(do_percentile_rescale=True, lower_percentile=10, upper_percentile=90, **PLAIN)
    image = np.arange(101 * 4).reshape(4, 101) * 10 - 700  # beyond every usual range, negative values too
    out = pixels(processor, image)[0, 0]
    low, high = np.percentile(image, (10, 90), method="nearest")
    assert torch.allclose(out, torch.from_numpy((image - low) / (high - low)).clamp(0, 1).float(), atol=0.02)
    assert out.min() == 0 and out.max() == 1
    twelve_bits = (np.random.default_rng(0).random((64, 64)) * 4095).astype(np.uint16)
    assert 0.4 < pixels(processor, twelve_bits).mean() < 0.6 and pixels(backend(**PLAIN), twelve_bits).max() < 0.07
    for constant in (0, 7, 255):
        assert pixels(processor, np.full((8, 8), constant, np.uint8)).abs().max() == 0
    spark = np.zeros((32, 32), np.uint8)
    spark[3, 3] = 40  # both percentiles are 0
    assert pixels(processor, spark).max() == 1
    unit = pixels(backend(do_percentile_rescale=True, do_rescale=False, **PLAIN), image)
    assert 0 <= unit.min() and unit.max() == 1


@both
@pytest.mark.parametrize("mode", ["array", "tensor", "pil", "batch"])
def test_segmentation_maps(backend, mode):
    image, labels = smooth(60, 90), np.zeros((60, 90), np.uint8)
    labels[10:40, 20:50] = 3
    maps = {"array": labels, "tensor": torch.from_numpy(labels).long()[None], "pil": Image.fromarray(labels),
            "batch": np.stack([labels, labels])}[mode]  # fmt: skip
    images = [image, image] if mode == "batch" else image
    out = backend(size=(30, 45))(images, segmentation_maps=maps, return_tensors="pt")
    assert out.labels.shape == (len(out.pixel_values), 30, 45) and out.labels.dtype == torch.int64
    expected = torch.zeros(30, 45, dtype=torch.long)
    expected[5:20, 10:25] = 3
    assert all(torch.equal(one, expected) for one in out.labels)


@both
def test_labels_follow_crop_and_padding(backend):
    image = fan_image()
    labels = (image > 0).astype(np.int64) * 2
    processor = backend(do_crop_scan_region=True, do_pad_square=True, size=224)
    out = processor(image, labels, return_tensors="pt")
    region = processor.get_regions(image)[0]
    assert region.width > region.height and region.pad_left == region.pad_right == 0 and region.pad_top > 20
    padded_rows = int(region.pad_top / region.width * 224) - 1
    assert (out.labels[0, :padded_rows] == 255).all() and (out.labels[0, -padded_rows:] == 255).all()
    inside = out.labels[0] != 255
    assert set(out.labels[0][inside].unique().tolist()) == {0, 2}
    lit = out.pixel_values[0, 0] > ((0 - MEAN) / STD)[0] + 0.2
    assert ((out.labels[0] == 2) == lit)[inside].float().mean() > 0.95
    centre = backend(do_center_crop=True, crop_size=300, size=224)(image, labels, return_tensors="pt")
    assert (centre.labels[0, :30] == 255).all() and centre.labels.shape == (1, 300, 300)


@both
def test_segmentation_map_errors(backend):
    image = np.zeros((20, 30), np.uint8)
    with pytest.raises(ValueError, match=r"segmentation map 1 \(of 2\): shape \(30, 20\), but its image is 20 x 30"):
        backend()([image, image], [image, image.T])
    with pytest.raises(ValueError, match="2 images but 1 segmentation maps"):
        backend()([image, image], [image])
    with pytest.raises(ValueError, match="whole numbers"):
        backend()(image, image + 0.5)
    with pytest.raises(ValueError, match=r"segmentation map 0 \(of 1\): shape"):
        backend()(image, Image.new("RGB", (30, 20)))
    palette = Image.fromarray(image + 2).convert("P")
    palette.putpalette([9, 9, 9] * 256)
    assert (backend()(image, palette, return_tensors="pt").labels == 2).all()  # indices, not colours


@both
def test_post_process_semantic_segmentation(backend):
    logits = torch.zeros(2, 3, 8, 8)
    logits[0, 1, :, :4], logits[1, 2, 4:] = 1, 1
    outputs, processor = SimpleNamespace(logits=logits), backend()
    first, second = processor.post_process_semantic_segmentation(outputs)
    assert first.shape == (8, 8) and first.dtype == torch.int64 and first[0].tolist() == [1] * 4 + [0] * 4
    first, second = processor.post_process_semantic_segmentation(outputs, target_sizes=[(16, 32), (40, 20)])
    assert first.shape == (16, 32) and (first[:, :14] == 1).all() and (first[:, 18:] == 0).all()
    assert second.shape == (40, 20) and (second[25:] == 2).all()
    sizes = torch.tensor([[16, 32], [40, 20]])
    assert torch.equal(processor.post_process_semantic_segmentation(outputs, sizes)[0], first)
    scored = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    assert scored[1].segmentation_scores.shape == (3, 40, 20)
    with pytest.raises(ValueError, match="1 target_sizes for logits of a batch of 2"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(1, 1)])


@both
def test_post_process_inverts_crop_and_padding(backend):
    image = fan_image()
    labels = (image > 0).astype(np.uint8)
    labels[200:300, 280:360] = 2
    processor = backend(do_crop_scan_region=True, do_pad_square=True)
    seen = processor(image, labels, return_tensors="pt").labels
    logits = torch.nn.functional.one_hot(seen.masked_fill(seen == 255, 0), 3).permute(0, 3, 1, 2).float()
    outputs, regions = SimpleNamespace(logits=logits), processor.get_regions(image)
    (restored,) = processor.post_process_semantic_segmentation(outputs, regions=regions)
    assert restored.shape == image.shape
    assert (restored == torch.from_numpy(labels)).float().mean() > 0.95
    assert (restored[200:300, 280:360] == 2).float().mean() > 0.95 and (restored == 2).sum() < 9000
    (marked,) = processor.post_process_semantic_segmentation(outputs, regions=regions, outside_label=255)
    top, left, height, width = regions[0][2:6]
    assert (marked == 255).sum() == image.size - height * width and (marked[:top] == 255).all()
    with pytest.raises(ValueError, match="not both"):
        processor.post_process_semantic_segmentation(outputs, [(4, 4)], regions=regions)


@both
def test_options_survive_a_round_trip(backend, tmp_path):
    options = {"do_crop_scan_region": True, "do_pad_square": True, "do_percentile_rescale": True,
               "lower_percentile": 0.5, "upper_percentile": 99.5, "size": {"height": 64, "width": 64}}  # fmt: skip
    processor = backend(**options)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {key: saved[key] for key in options} == options and saved["image_processor_type"] == "URFMImageProcessor"
    for other in BACKENDS:
        loaded = other.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
    image = fan_image()
    assert torch.equal(pixels(backend.from_pretrained(tmp_path), image), pixels(processor, image))
    overridden = backend.from_pretrained(tmp_path, do_pad_square=False)
    assert torch.equal(pixels(overridden, image), pixels(processor, image, do_pad_square=False))


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("shape", [(480, 640), (150, 200), (700, 500)])
@pytest.mark.parametrize("options", [{}, {"do_crop_scan_region": True, "do_pad_square": True}])
def test_backends_agree(shape, resample, options):
    one, other = (backend(resample=resample, **options) for backend in BACKENDS)
    image = smooth(*shape)
    difference = (pixels(one, image) - pixels(other, image)).abs()
    assert difference.max() < 0.04 and difference.mean() < 0.005  # one level of 8 bits is 0.0171 to 0.0175
    for precise in (image / 255, image[..., 0].astype(np.uint16) * 257):
        assert (pixels(one, precise) - pixels(other, precise)).abs().max() < 1e-3
    rescaled = [pixels(p, image, do_percentile_rescale=True) for p in (one, other)]
    assert (rescaled[0] - rescaled[1]).abs().max() < 1e-3
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    difference = (pixels(one, noise) - pixels(other, noise)).abs()
    assert difference.max() < 0.04 and difference.mean() < 0.005
    labels = [p(image, image[..., 0] // 32, return_tensors="pt").labels for p in (one, other)]
    assert torch.equal(*labels)


def test_empty_ones_in_a_batch_are_named_and_never_dropped():
    fine = np.zeros((20, 20, 3), np.uint8)
    for batch, says in (
        ([np.zeros((0, 20, 20, 3), np.uint8), fine], r"image 0: empty: shape \(0, 20, 20, 3\)"),
        ([fine, []], "image 1: empty: an empty list"),
        ([fine, np.zeros((1, 20, 3), np.uint8)], "image 1 .*1 x 20 pixels"),
    ):
        with pytest.raises(ValueError, match=says):
            URFMImageProcessor()(batch)


def test_premultiplied_alpha_is_read():
    pixels = URFMImageProcessor()(Image.new("La", (20, 20)), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)


def test_a_single_logit_is_a_sigmoids():
    logits = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])[None, None]
    outputs = SimpleNamespace(logits=logits)
    assert URFMImageProcessor().post_process_semantic_segmentation(outputs)[0].tolist() == [[0, 1], [1, 0]]
