# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""URFMConfig: what it refuses and suggests, what it keeps, and that the published presets are valid."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modeling_urfm import URFMConfig
from modeling_urfm.configuration_urfm import nearest_divisor, nearest_multiple, num_masked


CONFIGS = Path(__file__).parent.parent / "recipes" / "configs"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"image_size": 225}, "nearest image_size that is: 224"),
        ({"num_attention_heads": 10}, "nearest num_attention_heads that does: 8"),
        ({"decoder_num_attention_heads": 15}, "nearest decoder_num_attention_heads that does: 16"),
        ({"mask_ratio": 1.0}, "nearest valid value for 196 patches: 0.9949"),
        ({"mask_ratio": 0.0}, "nearest valid value for 196 patches: 0.005102"),
        ({"hidden_size": 770, "num_attention_heads": 10}, "hidden_size=770 is not divisible by 4"),
        ({"mask_ratio": 1}, "nearest valid value for 196 patches: 0.9949"),
        ({"pooling": "means"}, "Did you mean 'mean'"),
        ({"pooling": "CLS"}, "Did you mean 'cls'"),
        ({"hidden_act": "gelo"}, "Did you mean 'gelu'"),
        ({"position_embedding_type": "sin-cos"}, "Did you mean 'sincos'"),
        ({"mask_strategy": "blocks"}, "Did you mean 'block'"),
        ({"decoder_type": "cross-attention"}, "Did you mean 'cross_attention'"),
        ({"target": "pixels"}, "Did you mean 'pixel'"),
        ({"loss_type": "cos"}, "Did you mean 'cosine'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 is outside [0, 1)"),
        ({"decoder_mask_fraction": 1.5, "decoder_type": "cross_attention"}, "nearest valid value: 1.0"),
        ({"decoder_mask_fraction": 0.5}, "needs decoder_type='cross_attention'"),
        ({"num_hidden_layers": 0}, "the smallest is 1"),
        ({"patch_size": 0}, "the smallest is 1"),
        ({"layer_norm_eps": 0.0}, "the default is 1e-06"),
        ({"out_indices": [13]}, "out_indices must be valid indices"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_nearest_that_can(values, says):
    with pytest.raises(ValueError) as error:
        URFMConfig(**values)
    assert says in str(error.value)


def test_a_learned_position_embedding_needs_no_width_divisible_by_4():
    assert URFMConfig(hidden_size=770, num_attention_heads=10, position_embedding_type="learned").hidden_size == 770


def test_a_wrong_type_names_the_field():
    with pytest.raises(Exception, match="image_size"):
        URFMConfig(image_size="large")


@given(st.integers(1, 2000), st.integers(1, 64))
def test_nearest_values_are_valid_and_nearest(value, factor):
    multiple = nearest_multiple(value, factor)
    assert multiple > 0 and multiple % factor == 0
    assert all(abs(value - m) >= abs(value - multiple) for m in range(factor, value + 2 * factor, factor))
    divisor = nearest_divisor(value, factor)
    assert value % divisor == 0
    assert all(abs(d - factor) >= abs(divisor - factor) for d in range(1, value + 1) if value % d == 0)


@given(st.integers(2, 1000), st.floats(0.001, 0.999))
def test_a_mask_hides_and_leaves_at_least_one_patch(patches, ratio):
    hidden = num_masked(patches, ratio)
    assert 1 <= hidden <= patches - 1
    assert abs(hidden - ratio * patches) <= 1.0001


def test_it_survives_saving_with_everything_set(tmp_path):
    config = URFMConfig(
        image_size=64, patch_size=8, pooling="mean", mask_strategy="block", decoder_type="cross_attention",
        decoder_mask_fraction=0.5, out_indices=[2, 4], num_labels=3, loss_type="mse",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    loaded = URFMConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.out_features == ["stage2", "stage4"]


@pytest.mark.parametrize(
    ("name", "width", "depth", "patch"),
    [("base", 768, 12, 16), ("large", 1024, 24, 16), ("huge", 1280, 32, 14), ("small", 384, 12, 16)],
)
def test_the_published_presets_are_the_standard_vits(name, width, depth, patch):
    config = URFMConfig(**yaml.safe_load((CONFIGS / f"urfm_{name}.yaml").read_text())["model"])
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size) == (width, depth, patch)
    assert config.hidden_size // config.num_attention_heads in (64, 80)
    assert (config.image_size, config.target_hidden_size) == (224, 768)
