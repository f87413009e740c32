# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The model family: parity with timm and ViTMAE, the contract of pre-training, heads, backbone, compile and export."""

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modeling_urfm import (
    URFMBackbone,
    URFMConfig,
    URFMForImageClassification,
    URFMForPreTraining,
    URFMForSemanticSegmentation,
    URFMModel,
)
from modeling_urfm.modeling_urfm import draw_mask, patchify, resize_position_embeddings, sincos_position_embeddings


def tiny(**values) -> URFMConfig:
    defaults = {
        "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 64, "decoder_hidden_size": 24, "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48, "target_hidden_size": 20,
        "decode_head_hidden_size": 16,
    }  # fmt: skip
    return URFMConfig(**(defaults | values))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---------------------------------------------------------------- parity


def from_timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's ViT keys as ours; the one `qkv` split in three."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "layers.",
        "attn.proj": "attention.o_proj",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    converted = {}
    for key, value in state.items():
        if key.startswith("norm."):
            key = key.replace("norm.", "layernorm.")
        else:
            for theirs, ours in names.items():
                key = key.replace(theirs, ours)
        if ".attn.qkv." in key:
            for name, part in zip("qkv", value.chunk(3)):
                converted[key.replace("attn.qkv", f"attention.{name}_proj")] = part
        else:
            converted[key] = value
    return converted


def test_the_encoder_equals_timms_vit_base_patch16_224():
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_base_patch16_224", num_classes=0).eval()
    torch.nn.init.normal_(theirs.cls_token, std=0.5)
    ours = URFMModel(URFMConfig(position_embedding_type="learned")).eval()
    ours.load_state_dict(from_timm(theirs.state_dict()), strict=True)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        outputs = ours(pixels)
        torch.testing.assert_close(outputs.last_hidden_state, theirs.forward_features(pixels), atol=1e-5, rtol=0)
        torch.testing.assert_close(outputs.pooler_output, theirs(pixels), atol=1e-5, rtol=0)


def test_in_pixel_mode_the_loss_and_its_gradient_equal_vitmaes():
    ours = URFMForPreTraining(tiny(target="pixel", layer_norm_eps=1e-6)).train()
    config = ours.config
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **{
                k: getattr(config, k)
                for k in config.to_dict()
                if k.startswith("decoder_num") or k in (
                    "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "mask_ratio",
                    "intermediate_size", "layer_norm_eps", "decoder_hidden_size", "decoder_intermediate_size",
                )
            },
            norm_pix_loss=True,
        )
    ).train()  # fmt: skip
    decoder = {"embed": "decoder_embed", "position_embeddings": "decoder_pos_embed", "layers": "decoder_layers",
               "layernorm": "decoder_norm", "predictor": "decoder_pred"}  # fmt: skip
    state = {}
    for key, value in ours.state_dict().items():
        parts = key.split(".")
        parts[0] = {"urfm": "vit"}.get(parts[0], parts[0])
        if parts[0] == "decoder":
            parts[1] = decoder.get(parts[1], parts[1])
        state[".".join(parts)] = torch.randn_like(value) * 0.1
    theirs.load_state_dict(state, strict=True)
    for (_, mine), value in zip(ours.named_parameters(), state.values()):
        mine.data.copy_(value)

    pixels, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    expected = theirs(pixels, noise=noise)
    got = ours(pixels, bool_masked_pos=expected.mask.bool())
    torch.testing.assert_close(got.predictions, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=0)
    expected.loss.backward()
    got.loss.backward()
    torch.testing.assert_close(
        ours.urfm.layers[0].attention.q_proj.weight.grad, theirs.vit.layers[0].attention.q_proj.weight.grad,
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


def test_the_position_embedding_is_maes():
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    # MAE's released code, and so its weights, have the columns first; transformers swaps the halves to match.
    rows_first = build_2d_sinusoidal_position_embedding(14, 14, 768, cls_token=True)
    theirs = torch.cat([rows_first[:, 384:], rows_first[:, :384]], dim=1)
    torch.testing.assert_close(sincos_position_embeddings(14, 768)[0], theirs, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize("kind", ["sincos", "learned"])
def test_position_embeddings_are_parameters_that_loading_keeps(tmp_path, kind):
    model = URFMModel(tiny(position_embedding_type=kind))
    positions = model.embeddings.position_embeddings
    assert isinstance(positions, torch.nn.Parameter) and positions.shape == (1, 17, 32)
    assert positions.requires_grad is (kind == "learned")
    with torch.no_grad():
        positions.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = URFMModel.from_pretrained(tmp_path).embeddings.position_embeddings
    torch.testing.assert_close(loaded, positions)
    assert loaded.requires_grad is (kind == "learned")


def test_other_sizes_are_interpolated_with_rows_and_columns_apart():
    model = URFMModel(tiny()).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 64)).last_hidden_state.shape == (1, 1 + 4 * 8, 32)
        assert model(torch.randn(1, 3, 64, 32)).last_hidden_state.shape == (1, 1 + 8 * 4, 32)
    # An embedding that only grows along the columns keeps doing so when the grid gets another shape.
    ramp = torch.arange(4.0).repeat(4)[None, :, None]
    resized = resize_position_embeddings(torch.cat([torch.zeros(1, 1, 1), ramp], dim=1), (2, 8))[0, 1:, 0].view(2, 8)
    assert torch.allclose(resized[0], resized[1]) and (resized[0].diff() > 0).all()


@pytest.mark.parametrize(
    ("size", "says"), [((3, 32, 30), "nearest width that is: 32"), ((1, 32, 32), "Repeat the grey")]
)
def test_pixels_that_do_not_fit_are_refused(size, says):
    with pytest.raises(ValueError, match=says):
        URFMModel(tiny())(torch.zeros(1, *size))


def test_pooling_is_cls_or_the_mean_of_patches():
    pixels = torch.randn(2, 3, 32, 32)
    for pooling in ("cls", "mean"):
        outputs = URFMModel(tiny(pooling=pooling)).eval()(pixels)
        tokens = outputs.last_hidden_state
        torch.testing.assert_close(outputs.pooler_output, tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(1))


def test_drop_path_drops_whole_samples_in_training_only():
    model = URFMModel(tiny(drop_path_rate=0.5))
    rates = [layer.drop_path.rate for layer in model.layers]
    assert rates == [0.0, 0.25, 0.5]
    drop = model.layers[-1].drop_path.train()
    kept = drop(torch.ones(4000, 2, 2))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert abs((kept[:, 0, 0] > 0).float().mean() - 0.5) < 0.05
    assert torch.equal(drop.eval()(torch.ones(4, 2, 2)), torch.ones(4, 2, 2))


# ---------------------------------------------------------------- masks


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["random", "block"]),
    st.integers(2, 14),
    st.integers(1, 14),
    st.floats(0.01, 0.99),
    st.integers(0, 99),
)
def test_a_mask_has_its_count_in_every_row_and_is_a_function_of_its_generator(strategy, height, width, ratio, seed):
    count = max(1, min(height * width - 1, round(ratio * height * width)))
    masks = [
        draw_mask(4, (height, width), count, strategy, torch.Generator().manual_seed(seed)) for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*masks)
    assert masks[0].shape == (4, height * width) and (masks[0].sum(1) == count).all()


def test_random_masks_hide_every_patch_equally_often():
    mask = draw_mask(4000, (7, 7), 36, "random", torch.Generator().manual_seed(0)).float().mean(0)
    assert (mask - 36 / 49).abs().max() < 5 * math.sqrt(0.25 / 4000)


def test_block_masks_hang_together():
    """Neighbours of a hidden patch are hidden far more often than with random masks."""

    def togetherness(strategy):
        mask = draw_mask(500, (14, 14), 80, strategy, torch.Generator().manual_seed(0)).view(-1, 14, 14).float()
        return (mask[:, 1:] * mask[:, :-1]).sum() / mask[:, 1:].sum()

    assert togetherness("block") > 0.8 > 0.6 > togetherness("random")


def test_in_eval_mode_the_mask_is_fixed_and_touches_no_random_state():
    model = URFMForPreTraining(tiny()).eval()
    state = torch.get_rng_state()
    first, second = model(torch.randn(3, 3, 32, 32, generator=torch.Generator())), model(torch.zeros(2, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.bool_masked_pos[:2], second.bool_masked_pos)
    model.train()
    assert not torch.equal(model(torch.zeros(2, 3, 32, 32)).bool_masked_pos, second.bool_masked_pos)


# ---------------------------------------------------------------- pre-training


def test_only_visible_patches_reach_the_encoder_and_only_masked_ones_the_loss():
    model = URFMForPreTraining(tiny()).eval()
    pixels, targets = torch.randn(2, 3, 32, 32), torch.randn(2, 16, 20)
    outputs = model(pixels, target_features=targets, output_hidden_states=True, output_attentions=True)
    hidden = outputs.bool_masked_pos
    assert hidden.sum(1).tolist() == [12, 12]
    assert outputs.hidden_states[0].shape == (2, 1 + 4, 32) and len(outputs.hidden_states) == 4
    changed = pixels.clone().view(2, 3, 4, 8, 4, 8)
    for image in range(2):
        for patch in hidden[image].nonzero().flatten().tolist():
            changed[image, :, patch // 4, :, patch % 4] = 0.0
    assert torch.equal(model(changed.view_as(pixels), bool_masked_pos=hidden).predictions, outputs.predictions)
    targets[~hidden] = 123.0
    assert torch.equal(model(pixels, target_features=targets, bool_masked_pos=hidden).loss, outputs.loss)


@pytest.mark.parametrize("loss_type", ["cosine", "smooth_l1", "mse"])
@pytest.mark.parametrize("decoder_type", ["self_attention", "cross_attention"])
def test_losses_equal_a_loop_in_numpy(loss_type, decoder_type):
    model = URFMForPreTraining(tiny(loss_type=loss_type, decoder_type=decoder_type)).eval()
    targets, loss_mask = torch.randn(2, 16, 20) * 3 + 1, torch.rand(2, 16) > 0.3
    outputs = model(torch.randn(2, 3, 32, 32), target_features=targets, loss_mask=loss_mask)
    losses = []
    for image in range(2):
        for patch in range(16):
            if not (outputs.bool_masked_pos[image, patch] and loss_mask[image, patch]):
                continue
            where = patch
            if decoder_type == "cross_attention":
                where = outputs.predicted_indices[image].tolist().index(patch)
            p, t = outputs.predictions[image, where].detach().double().numpy(), targets[image, patch].double().numpy()
            if loss_type == "cosine":
                losses.append(-p @ t / np.linalg.norm(p) / np.linalg.norm(t))
                continue
            d = np.abs(p - (t - t.mean()) / np.sqrt(t.var() + 1e-5))
            losses.append(np.mean(d**2 if loss_type == "mse" else np.where(d < 1, d**2 / 2, d - 0.5)))
    assert outputs.loss.item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_the_cross_attention_decoder_predicts_its_fraction():
    model = URFMForPreTraining(tiny(decoder_type="cross_attention", decoder_mask_fraction=0.5)).train()
    outputs = model(torch.randn(3, 3, 32, 32), target_features=torch.randn(3, 16, 20),
                    generator=torch.Generator().manual_seed(3))  # fmt: skip
    assert outputs.predictions.shape == (3, 6, 20) and outputs.predicted_indices.shape == (3, 6)
    assert outputs.bool_masked_pos.gather(1, outputs.predicted_indices).all()
    assert all(len(set(row)) == 6 for row in outputs.predicted_indices.tolist())
    again = model(torch.randn(3, 3, 32, 32), generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.predicted_indices, outputs.predicted_indices)


def test_a_cross_attention_prediction_does_not_depend_on_which_others_are_predicted():
    whole = URFMForPreTraining(tiny(decoder_type="cross_attention")).eval()
    part = URFMForPreTraining(tiny(decoder_type="cross_attention", decoder_mask_fraction=0.5)).eval()
    part.load_state_dict(whole.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    all_of_them, some = whole(pixels), part(pixels)
    where = (all_of_them.predicted_indices[:, None] == some.predicted_indices[:, :, None]).float().argmax(-1)
    expected = all_of_them.predictions.gather(1, where[..., None].expand(-1, -1, 20))
    torch.testing.assert_close(some.predictions, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["representation", "pixel"])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(target):
    """num_items_in_batch makes gradient accumulation and several ranks exact, also when loss_mask varies the count."""
    model = URFMForPreTraining(tiny(target=target)).train()
    pixels, loss_mask = torch.randn(4, 3, 32, 32), torch.rand(4, 16) > 0.5
    mask = draw_mask(4, (4, 4), 12, generator=torch.Generator().manual_seed(0))
    targets = torch.randn(4, 16, 20) if target == "representation" else None

    def backward(rows, items):
        part = None if targets is None else targets[rows]
        model(pixels[rows], part, mask[rows], loss_mask[rows], num_items_in_batch=items).loss.backward()

    backward(slice(0, 4), None)
    whole = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    items = (mask & loss_mask).sum()
    for rows in (slice(0, 1), slice(1, 4)):
        backward(rows, items)
    for expected, p in zip(whole, (p for p in model.parameters() if p.requires_grad)):
        torch.testing.assert_close(p.grad, expected, atol=1e-6, rtol=1e-4)


def test_a_batch_that_shows_no_ultrasound_has_loss_zero():
    model = URFMForPreTraining(tiny()).train()
    outputs = model(torch.zeros(2, 3, 32, 32), torch.randn(2, 16, 20), loss_mask=torch.zeros(2, 16, dtype=torch.bool))
    outputs.loss.backward()
    assert outputs.loss == 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def uneven():
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :3] = mask[1, :5] = True
    return mask


@pytest.mark.parametrize(
    ("values", "inputs", "says"),
    [
        ({}, {"target_features": torch.zeros(2, 16, 21)}, r"expected \(batch, patches, .* = \(2, 16, 20\)"),
        ({"target": "pixel"}, {"target_features": torch.zeros(2, 16, 20)}, "must be None"),
        ({}, {"bool_masked_pos": torch.zeros(2, 15, dtype=torch.bool)}, r"expected \(batch, patches\) = \(2, 16\)"),
        ({}, {"bool_masked_pos": uneven()}, "same number of patches in every row, got 3 to 5"),
        ({}, {"bool_masked_pos": torch.zeros(2, 16, dtype=torch.bool)}, "nearest valid count: 1"),
        ({}, {"bool_masked_pos": torch.ones(2, 16, dtype=torch.bool)}, "nearest valid count: 15"),
        ({}, {"loss_mask": torch.ones(2, 4, dtype=torch.bool)}, r"loss_mask has shape \(2, 4\)"),
    ],
)
def test_inputs_of_pre_training_that_do_not_fit_are_refused(values, inputs, says):
    with pytest.raises(ValueError, match=says):
        URFMForPreTraining(tiny(**values))(torch.zeros(2, 3, 32, 32), **inputs)


def test_a_given_mask_decides_its_own_count_and_other_sizes_work():
    model = URFMForPreTraining(tiny(target="pixel")).eval()
    mask = torch.zeros(1, 32, dtype=torch.bool)
    mask[:, :5] = True
    outputs = model(torch.randn(1, 3, 32, 64), bool_masked_pos=mask)
    assert outputs.predictions.shape == (1, 32, 192) and outputs.loss.isfinite()


def test_patchify_is_row_column_channel():
    pixels = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    patches = patchify(pixels, 2)
    expected = [pixels[1, c, 2 + y, x].item() for y in range(2) for x in range(2) for c in range(3)]
    assert patches[1, 2].tolist() == expected


# ---------------------------------------------------------------- heads, backbone, loading


@pytest.mark.parametrize(
    ("problem", "labels", "loss"),
    [
        ("single_label_classification", torch.tensor([0, 2]), F.cross_entropy),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0]]), F.binary_cross_entropy_with_logits),
        ("regression", torch.randn(2, 3), F.mse_loss),
    ],
)
def test_classification_by_problem_type(problem, labels, loss):
    model = URFMForImageClassification(tiny(num_labels=3, problem_type=problem)).eval()
    outputs = model(torch.randn(2, 3, 32, 32), labels=labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))


@pytest.mark.parametrize(
    ("patch", "size", "expected"), [(8, (32, 48), (8, 12)), (16, (32, 64), (8, 16)), (2, (32, 32), (16, 16))]
)
def test_segmentation_logits_are_at_a_quarter_or_finer(patch, size, expected):
    model = URFMForSemanticSegmentation(tiny(patch_size=patch, num_labels=3)).eval()
    assert model(torch.randn(1, 3, *size)).logits.shape == (1, 3, *expected)


def test_segmentation_ignores_255_and_learns_from_the_rest():
    model = URFMForSemanticSegmentation(tiny(num_labels=3)).train()
    labels = torch.full((2, 32, 32), 255)
    pixels = torch.randn(2, 3, 32, 32)
    assert model(pixels, labels=labels).loss == 0
    labels[:, :4] = 1
    outputs = model(pixels, labels=labels)
    resized = F.interpolate(outputs.logits, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(resized, labels, ignore_index=255))
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    binary = URFMForSemanticSegmentation(tiny(num_labels=1))
    assert 0 < binary(pixels, labels=(labels == 1).long()).loss < 5


def test_one_checkpoint_serves_every_class_without_a_warning(tmp_path, caplog):
    pretrained = URFMForPreTraining(tiny())
    pretrained.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 32, 32)
    transformers.logging.enable_propagation()
    encoder, report = URFMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert "UNEXPECTED" not in caplog.text
    backbone = URFMBackbone.from_pretrained(tmp_path, out_indices=[3])
    expected = pretrained.eval().urfm(pixels).last_hidden_state
    torch.testing.assert_close(encoder.eval()(pixels).last_hidden_state, expected)
    maps = backbone.eval()(pixels).feature_maps[0]
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), expected[:, 1:])
    _, report = URFMForImageClassification.from_pretrained(tmp_path, num_labels=2, output_loading_info=True)
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}


def test_transformers_own_frameworks_take_the_backbone():
    config = tiny(num_hidden_layers=4, out_indices=[1, 2, 3, 4])
    upernet = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=config, num_labels=2, hidden_size=16, auxiliary_in_channels=32)
    )
    assert upernet.eval()(torch.randn(1, 3, 64, 64)).logits.shape == (1, 2, 64, 64)
    config = tiny(num_hidden_layers=4, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    dpt = transformers.DPTForDepthEstimation(
        transformers.DPTConfig(
            backbone_config=config, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, patch_size=8,
            reassemble_factors=[4, 2, 1, 0.5],
        )
    )  # fmt: skip
    assert dpt.eval()(torch.randn(1, 3, 64, 64)).predicted_depth.ndim == 3


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@torch.no_grad()
def test_attention_implementations_agree(attention):
    model = URFMModel(tiny()).eval()
    pixels = torch.randn(2, 3, 32, 32)
    model.set_attn_implementation("eager")
    expected = model(pixels).last_hidden_state
    model.set_attn_implementation(attention)
    torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_attention_is_switched_in_the_decoder_too():
    model = URFMForPreTraining(tiny()).eval()
    model.set_attn_implementation("eager")
    assert model.decoder.config._attn_implementation == model.config._attn_implementation == "eager"
    assert model.decoder.layers[0].attention.config._attn_implementation == "eager"


def test_segmentation_exports_strictly_and_gives_hidden_states_when_asked():
    model, pixels = URFMForSemanticSegmentation(tiny(num_labels=3)).eval(), torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (pixels,), strict=True).module()(pixels)
    torch.testing.assert_close(exported.logits, model(pixels).logits, atol=1e-5, rtol=1e-5)
    assert model(pixels).hidden_states is None and len(model(pixels, output_hidden_states=True).hidden_states) == 4


def test_gradient_checkpointing_changes_no_gradient():
    model = URFMForPreTraining(tiny(target="pixel")).train()
    pixels, mask = torch.randn(2, 3, 32, 32), draw_mask(2, (4, 4), 12)

    def gradients():
        model.zero_grad()
        model(pixels, bool_masked_pos=mask).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = gradients()
    model.gradient_checkpointing_enable()
    for expected, got in zip(plain, gradients()):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "pretraining_random", "pretraining_block", "cross", "segmentation"])
def test_it_compiles_as_one_graph(kind):
    torch.compiler.reset()
    pixels = torch.randn(2, 3, 32, 32)
    if kind == "encoder":
        model, inputs = URFMModel(tiny()), {}
    elif kind == "segmentation":
        model, inputs = URFMForSemanticSegmentation(tiny(num_labels=2)), {}
    else:
        values = {"mask_strategy": "block"} if kind == "pretraining_block" else {}
        if kind == "cross":
            values = {"decoder_type": "cross_attention", "decoder_mask_fraction": 0.5}
        model, inputs = URFMForPreTraining(tiny(**values)), {"target_features": torch.randn(2, 16, 20)}
    model.eval()
    got = torch.compile(model, fullgraph=True)(pixels, **inputs)  # cold: no call before has installed any hook
    expected = model(pixels, **inputs)
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-4)


def test_export_with_a_dynamic_batch():
    model = URFMModel(tiny()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes={"pixel_values": {0: batch}})
    pixels = torch.randn(5, 3, 32, 32)
    got = exported.module()(pixels).last_hidden_state
    torch.testing.assert_close(got, model(pixels).last_hidden_state, atol=1e-5, rtol=1e-5)
