# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Pre-training with a mask and predicted patches that are given, and the shorter ways that must change no number."""

import pytest
import torch
from torch.nn import functional as F

from modeling_urfm import URFMConfig, URFMForPreTraining, URFMModel
from modeling_urfm.modeling_urfm import take

from .test_modeling_urfm import tiny


CROSS = {"decoder_type": "cross_attention", "decoder_mask_fraction": 0.5}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def drawn(config: URFMConfig, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A mask, and the patches of it that are predicted, not in raster order."""
    hidden = torch.rand(batch, config.num_patches).argsort(1)[:, : config.num_masked_patches]
    mask = torch.zeros(batch, config.num_patches, dtype=torch.bool).scatter(1, hidden, True)
    part = config.num_predicted_patches if config.decoder_type == "cross_attention" else config.num_masked_patches
    return mask, hidden[:, :part]


@pytest.mark.parametrize("loss_type", ["cosine", "smooth_l1"])
def test_given_patches_are_predicted_in_their_order(loss_type):
    config = tiny(loss_type=loss_type, **CROSS)
    model = URFMForPreTraining(config).train()
    pixels, targets = torch.randn(2, 3, 32, 32), torch.randn(2, 16, 20)
    mask, predicted = drawn(config)
    outputs = model(pixels, target_features=targets, bool_masked_pos=mask, predicted_indices=predicted)
    assert torch.equal(outputs.predicted_indices, predicted) and outputs.predictions.shape == (2, 6, 20)
    assert torch.equal(outputs.bool_masked_pos, mask)
    # A prediction depends on its own patch alone: all masked ones, picked, are the same.
    every = mask.nonzero()[:, 1].view(2, -1)
    whole = model(pixels, bool_masked_pos=mask, predicted_indices=every)
    place = (every.unsqueeze(1) == predicted.unsqueeze(2)).int().argmax(2)
    torch.testing.assert_close(take(whole.predictions, place), outputs.predictions, atol=1e-5, rtol=1e-4)
    # Targets of all patches, and of the predicted ones alone.
    alone = model(pixels, target_features=take(targets, predicted), bool_masked_pos=mask, predicted_indices=predicted)
    torch.testing.assert_close(alone.loss, outputs.loss)
    if loss_type == "cosine":
        by_hand = -F.cosine_similarity(outputs.predictions, take(targets, predicted), dim=-1).mean()
        torch.testing.assert_close(outputs.loss, by_hand)


def test_the_self_attention_decoder_takes_all_masked_patches():
    config = tiny()
    model = URFMForPreTraining(config).train()
    pixels, targets = torch.randn(2, 3, 32, 32), torch.randn(2, 16, 20)
    mask, _ = drawn(config)
    masked = mask.nonzero()[:, 1].view(2, -1)
    expected = model(pixels, target_features=targets, bool_masked_pos=mask)
    for given in ({"predicted_indices": masked}, {}):
        for some in (targets, take(targets, masked)):
            outputs = model(pixels, target_features=some, bool_masked_pos=mask, **given)
            torch.testing.assert_close(outputs.loss, expected.loss)
    assert outputs.predicted_indices is None and outputs.predictions.shape == (2, 16, 20)


def test_a_loss_mask_and_a_divisor_go_with_predicted_patches():
    config = tiny(**CROSS)
    model = URFMForPreTraining(config).train()
    pixels, targets = torch.randn(2, 3, 32, 32), torch.randn(2, 16, 20)
    mask, predicted = drawn(config)
    lit = torch.rand(2, 16) < 0.5
    given = {"bool_masked_pos": mask, "predicted_indices": predicted, "target_features": take(targets, predicted)}
    predictions = model(pixels, **given).predictions
    losses = -F.cosine_similarity(predictions, take(targets, predicted), dim=-1)
    outputs = model(pixels, loss_mask=lit, num_items_in_batch=torch.tensor(5.0), **given)
    torch.testing.assert_close(outputs.loss, (losses * lit.gather(1, predicted)).sum() / 5)
    torch.testing.assert_close(model(pixels, num_items_in_batch=24, **given).loss, losses.sum() / 24)


def test_a_pixel_model_takes_predicted_patches():
    config = tiny(target="pixel", **CROSS)
    mask, predicted = drawn(config)
    outputs = URFMForPreTraining(config)(torch.randn(2, 3, 32, 32), bool_masked_pos=mask, predicted_indices=predicted)
    assert outputs.predictions.shape == (2, 6, 192) and outputs.loss.isfinite()


MASK = torch.arange(16).expand(2, -1) >= 4  # 12 of 16 are masked, as mask_ratio says


@pytest.mark.parametrize(
    ("values", "inputs", "says"),
    [
        (CROSS, {"bool_masked_pos": None}, "needs bool_masked_pos"),
        (CROSS, {"bool_masked_pos": MASK[:, :9]}, r"shape \(2, 9\), expected .*\(2, 16\)"),
        (CROSS, {"bool_masked_pos": torch.arange(16).expand(2, -1) >= 5}, "must mask 12 of 16 .*got 11 to 11"),
        (CROSS, {"predicted_indices": torch.full((2, 3), 1)}, "patch 1 of image 0, which .*visible"),
        (CROSS, {"predicted_indices": torch.tensor([[4, 5], [6, 0]])}, "patch 0 of image 1"),
        (CROSS, {"predicted_indices": torch.full((2, 3), 16)}, "holds 16; .*0 to 15. The nearest: 15"),
        (CROSS, {"predicted_indices": torch.full((2, 3), -1)}, "holds -1; .*The nearest: 0"),
        (CROSS, {"predicted_indices": torch.zeros(2, 13, dtype=torch.long)}, r"\(2, 1 to 12\).*nearest: \(2, 12\)"),
        (CROSS, {"predicted_indices": torch.zeros(2, 0, dtype=torch.long)}, r"nearest: \(2, 1\)"),
        (CROSS, {"predicted_indices": torch.zeros(3, 4, dtype=torch.long)}, r"nearest: \(2, 4\)"),
        (CROSS, {"predicted_indices": torch.zeros(4, dtype=torch.long)}, r"expected \(2, 1 to 12\)"),
        (CROSS, {"predicted_indices": torch.full((2, 3), 5.0)}, "float32, expected torch.int64"),
        (CROSS, {"target_features": torch.zeros(2, 5, 20)}, r"\(2, 16, 20\), or \(2, 6, 20\) of the predicted"),
        ({}, {}, r"predicts all 12 masked patches. The nearest: \(2, 12\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(values, inputs, says):
    defaults = {"bool_masked_pos": MASK, "predicted_indices": torch.arange(4, 10).expand(2, -1)}
    with pytest.raises(ValueError, match=says):
        URFMForPreTraining(tiny(**values))(torch.randn(2, 3, 32, 32), **defaults | inputs)


def test_targets_of_a_part_that_is_drawn_inside_are_refused():
    with pytest.raises(ValueError, match="Give predicted_indices for targets of a part"):
        URFMForPreTraining(tiny(**CROSS))(torch.randn(2, 3, 32, 32), target_features=torch.zeros(2, 6, 20))


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize("values", [CROSS, {}], ids=["cross", "self"])
def test_nothing_waits_for_the_device(values, where):
    """A tensor on "meta" has no values: reading one, which on a GPU would wait for it, fails."""
    config = tiny(**values)
    mask, predicted = drawn(config)
    with torch.device("meta"):
        model = URFMForPreTraining(config).train()
        pixels, targets = torch.zeros(2, 3, 32, 32), torch.zeros(2, *predicted.shape[1:], 20)
    lit, items = torch.ones(2, 16, dtype=torch.bool, device="meta"), torch.zeros((), device="meta")
    outputs = model(
        pixels, target_features=targets, bool_masked_pos=mask.to(where), predicted_indices=predicted.to(where),
        loss_mask=lit, num_items_in_batch=items,
    )  # fmt: skip
    outputs.loss.backward()
    if where == "cpu":  # a mask alone is counted where it lies
        model(pixels, bool_masked_pos=mask)


def test_indices_of_32_bits_are_indices():
    mask, predicted = drawn(tiny(**CROSS))
    model = URFMForPreTraining(tiny(**CROSS))
    outputs = model(torch.randn(2, 3, 32, 32), bool_masked_pos=mask, predicted_indices=predicted.int())
    assert torch.equal(outputs.predicted_indices, predicted)


def test_a_mask_of_integers_is_counted_as_one():
    mask = MASK.long() * 3
    outputs = URFMForPreTraining(tiny())(torch.randn(2, 3, 32, 32), bool_masked_pos=mask)
    assert torch.equal(outputs.bool_masked_pos, MASK)


# ---------------------------------------------------------------- shorter ways


@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
@pytest.mark.parametrize("kind", ["sincos", "learned"])
def test_embedding_the_visible_patches_alone_equals_picking_them(size, kind):
    model = URFMModel(tiny(position_embedding_type=kind))
    torch.nn.init.normal_(model.embeddings.patch_embeddings.projection.bias)
    pixels = torch.randn(3, 3, *size, requires_grad=True)
    visible = torch.rand(3, size[0] * size[1] // 64).argsort(1)[:, :5]
    whole = model.embeddings(pixels)
    expected = torch.cat([whole[:, :1], take(whole[:, 1:], visible)], dim=1)
    got = model.embeddings(pixels, visible)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weights = [p for p in model.embeddings.parameters() if p.requires_grad] + [pixels]
    noise = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad((got * noise).sum(), weights), torch.autograd.grad((expected * noise).sum(), weights)
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_projection_is_a_convolution_still():
    """Its parameter has a convolution's name and shape, and engines that hook modules see it called."""
    model = URFMForPreTraining(tiny())
    projection = model.urfm.embeddings.patch_embeddings.projection
    assert isinstance(projection, torch.nn.Conv2d) and projection.weight.shape == (32, 3, 8, 8)
    assert "urfm.embeddings.patch_embeddings.projection.weight" in model.state_dict()
    called = []
    projection.register_forward_hook(lambda *_: called.append(True))
    model(torch.randn(2, 3, 32, 32))
    assert called


@pytest.mark.parametrize("values", [CROSS, {}], ids=["cross", "self"])
def test_bf16_autocast_on_a_cpu_trains_as_fp32(values):
    """There attention is written out as matrix products; its loss and gradients are fp32's to bf16's precision."""
    config = tiny(hidden_size=64, intermediate_size=128, decoder_hidden_size=32, **values)
    model = URFMForPreTraining(config).train()
    pixels, targets = torch.randn(4, 3, 32, 32), torch.randn(4, 16, 20)
    mask, predicted = drawn(config, 4)

    def gradients(**autocast):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, **autocast):
            loss = model(
                pixels, target_features=targets, bool_masked_pos=mask,
                predicted_indices=predicted if values else predicted.sort(1).values,
            ).loss  # fmt: skip
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    (loss, gradient), (expected, plain) = gradients(), gradients(enabled=False)
    torch.testing.assert_close(loss, expected, atol=1e-2, rtol=0)
    assert F.cosine_similarity(gradient, plain, dim=0) > 0.995
    assert 0.97 < gradient.norm() / plain.norm() < 1.03


def test_attention_in_bf16_on_a_cpu_is_the_fused_ones():
    """Training takes the products, evaluation torch's kernel."""
    layer = URFMModel(tiny(hidden_size=64)).layers[0].attention.bfloat16()
    tokens = torch.randn(2, 10, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(layer.train()(tokens)[0], layer.eval()(tokens)[0], atol=2e-2, rtol=2e-2)
    assert layer.train()(tokens)[1] is not None and layer.eval()(tokens)[1] is None


def test_an_attention_mask_in_bf16_training_on_a_cpu_hides_tokens():
    """Masks are made for the kernel that is configured, so with one it is that kernel that runs."""
    model = URFMModel(tiny()).bfloat16().train()
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)
    shown = torch.arange(17)[None] < 9
    other = pixels.clone()
    other[:, :, 16:] += 1  # patches 9 to 16 are of the lower half
    states = [model(p, attention_mask=shown.long()).last_hidden_state[:, :9] for p in (pixels, other)]
    torch.testing.assert_close(*states)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("values", [CROSS, {}], ids=["cross", "self"])
def test_given_patches_compile_as_one_graph(values, training):
    torch.compiler.reset()
    config = tiny(**values)
    model = URFMForPreTraining(config).train(training)
    mask, predicted = drawn(config)
    inputs = {"target_features": torch.randn(2, predicted.shape[1], 20), "bool_masked_pos": mask,
              "predicted_indices": predicted}  # fmt: skip
    pixels = torch.randn(2, 3, 32, 32)
    got = torch.compile(model, fullgraph=True)(pixels, **inputs)
    expected = model(pixels, **inputs)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.predictions, expected.predictions, atol=1e-5, rtol=1e-4)


def test_given_patches_export():
    config = tiny(**CROSS)
    model = URFMForPreTraining(config).eval()
    mask, predicted = drawn(config)
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "bool_masked_pos": mask, "predicted_indices": predicted}
    exported = torch.export.export(model, (), inputs)
    torch.testing.assert_close(exported.module()(**inputs)["predictions"], model(**inputs).predictions)
