# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""URFM model configuration."""

import difflib

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig


CHOICES = {
    "pooling": ("cls", "mean"),
    "position_embedding_type": ("sincos", "learned"),
    "mask_strategy": ("random", "block"),
    "decoder_type": ("self_attention", "cross_attention"),
    "target": ("representation", "pixel"),
    "loss_type": ("cosine", "smooth_l1", "mse"),
}


@strict
class URFMConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of the URFM family: a plain ViT encoder, the decoder of its masked pre-training, and its heads.

    The defaults are the encoder and decoder of the released URFM ViT-B/16 (Kang et al., *URFM: A general Ultrasound
    Representation Foundation Model*, iScience 28(8), 2025): 12 layers of 768, a fixed sin-cos position embedding, a
    self-attention decoder of 8 layers of 768, targets of 768 features a patch (BiomedCLIP's patch tokens).

    Args:
        image_size (`int`, defaults to 224):
            Height and width in pixels that the position embedding is made for. Other sizes are interpolated to.
        patch_size (`int`, defaults to 16):
            Height and width of a patch in pixels; divides `image_size`.
        num_channels (`int`, defaults to 3):
            Channels of `pixel_values`. Grey images are repeated to 3.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, qkv_bias, layer_norm_eps:
            The encoder, as in ViT. `num_attention_heads` divides `hidden_size`.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the truncated normal initialisation.
        drop_path_rate (`float`, defaults to 0.0):
            Stochastic depth in [0, 1), growing linearly from 0 at the first layer to this at the last.
        pooling (`"cls"` or `"mean"`, defaults to `"cls"`):
            What `pooler_output` is: the CLS token, or the mean of the patch tokens, after the last norm.
        position_embedding_type (`"sincos"` or `"learned"`, defaults to `"sincos"`):
            Fixed 2-d sin-cos embedding in MAE's layout (needs a `hidden_size` divisible by 4), or learned.
        mask_ratio (`float`, defaults to 0.75):
            Share of the patches that is masked in pre-training, in (0, 1).
        mask_strategy (`"random"` or `"block"`, defaults to `"random"`):
            Patches drawn one by one (MAE), or in rectangles (BEiT).
        decoder_type (`"self_attention"` or `"cross_attention"`, defaults to `"self_attention"`):
            MAE's decoder over all tokens, or mask queries that attend to the visible tokens (CrossMAE).
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size:
            The decoder.
        decoder_mask_fraction (`float`, defaults to 1.0):
            Share of the masked patches that the cross-attention decoder predicts, in (0, 1].
        target (`"representation"` or `"pixel"`, defaults to `"representation"`):
            What the masked patches are predicted as: a teacher's features, or normalised pixels (MAE's baseline).
        target_hidden_size (`int`, defaults to 768):
            Features a patch of the teacher. Not used with `target="pixel"`.
        loss_type (`"cosine"`, `"smooth_l1"` or `"mse"`, defaults to `"cosine"`):
            Negative cosine, or smooth-L1 / MSE against layer-normalised targets. Pixel targets always use MSE.
        decode_head_hidden_size (`int`, defaults to 256):
            Channels of the segmentation head.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label that the segmentation loss leaves out.
        out_features (`list[str]`, *optional*), out_indices (`list[int]`, *optional*):
            Stages that `URFMBackbone` returns: `"stem"` (0) is the embedding, `"stage1"` (1) the first layer, and so
            on. The last stage when neither is given.
        reshape_hidden_states (`bool`, defaults to `True`):
            Whether the backbone's maps are (batch, hidden, height, width), else (batch, 1 + patches, hidden).

    Raises:
        ValueError: a value that does not fit the others; the message names the nearest one that does.

    Example:

    ```python
    >>> from modeling_urfm import URFMConfig, URFMModel

    >>> config = URFMConfig(image_size=64, hidden_size=96, num_hidden_layers=2, num_attention_heads=3)
    >>> model = URFMModel(config)
    >>> config.num_patches
    16

    ```"""

    model_type = "urfm"

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    drop_path_rate: float | int = 0.0
    pooling: str = "cls"
    position_embedding_type: str = "sincos"
    mask_ratio: float | int = 0.75
    mask_strategy: str = "random"
    decoder_type: str = "self_attention"
    decoder_hidden_size: int = 768
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 3072
    decoder_mask_fraction: float | int = 1.0
    target: str = "representation"
    target_hidden_size: int = 768
    loss_type: str = "cosine"
    decode_head_hidden_size: int = 256
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    reshape_hidden_states: bool = True

    def __post_init__(self, **kwargs):
        self._check_values()
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_size`, without the CLS token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_masked_patches(self) -> int:
        """Patches that are masked when no mask is given; as MAE counts: what int() leaves visible is visible."""
        return num_masked(self.num_patches, self.mask_ratio)

    @property
    def num_predicted_patches(self) -> int:
        """Masked patches that are predicted: all, or the cross-attention decoder's share of them."""
        return num_predicted(self.num_masked_patches, self.decoder_mask_fraction)

    @property
    def prediction_size(self) -> int:
        """Width of the decoder's output: the teacher's features, or the pixels of a patch."""
        return self.patch_size**2 * self.num_channels if self.target == "pixel" else self.target_hidden_size

    def _check_values(self):
        """Refuse what can't work, by name and with the nearest value that can."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"{name}={value!r} is not one of {', '.join(map(repr, choices))}. Did you mean "
                    f"{nearest_name(value, choices)!r}?"
                )
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"hidden_act={self.hidden_act!r} is no activation of transformers. Did you mean "
                f"{nearest_name(self.hidden_act, ACT2FN)!r}?"
            )
        positive = (
            "image_size patch_size num_channels hidden_size num_attention_heads intermediate_size decoder_hidden_size "
            "decoder_num_hidden_layers decoder_num_attention_heads decoder_intermediate_size target_hidden_size "
            "num_hidden_layers decode_head_hidden_size"
        )
        for name in positive.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be a positive integer; the smallest is 1.")
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                default = type(self).__dataclass_fields__[name].default
                raise ValueError(f"{name}={getattr(self, name)} must be above 0; the default is {default}.")

        if self.image_size % self.patch_size:
            near = nearest_multiple(self.image_size, self.patch_size)
            raise ValueError(
                f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}. The nearest image_size "
                f"that is: {near}."
            )
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            width_value, heads_value = getattr(self, width), getattr(self, heads)
            if width_value % heads_value:
                near = nearest_divisor(width_value, heads_value)
                raise ValueError(
                    f"{heads}={heads_value} does not divide {width}={width_value}. The nearest {heads} that does: {near}; "
                    f"or the nearest {width}: {nearest_multiple(width_value, heads_value)}."
                )
        sincos_widths = ["decoder_hidden_size"] + ["hidden_size"] * (self.position_embedding_type == "sincos")
        for name in sincos_widths:
            if getattr(self, name) % 4:
                near = nearest_multiple(getattr(self, name), 4)
                raise ValueError(
                    f"{name}={getattr(self, name)} is not divisible by 4, as a 2-d sin-cos position embedding needs. The "
                    f"nearest that is: {near}."
                )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(
                f"drop_path_rate={self.drop_path_rate} is outside [0, 1). The nearest valid value: "
                f"{0.0 if self.drop_path_rate < 0 else 0.9}."
            )
        if not 0 < self.decoder_mask_fraction <= 1:
            raise ValueError(
                f"decoder_mask_fraction={self.decoder_mask_fraction} is outside (0, 1]. The nearest valid value: "
                f"{1.0 if self.decoder_mask_fraction > 1 else round(1 / self.num_patches, 4)}."
            )
        if self.decoder_mask_fraction < 1 and self.decoder_type == "self_attention":
            raise ValueError(
                f"decoder_mask_fraction={self.decoder_mask_fraction} needs decoder_type='cross_attention': the "
                "self-attention decoder always predicts every masked patch (decoder_mask_fraction=1.0)."
            )
        if not 0 < self.mask_ratio < 1:
            near = 1 / self.num_patches if self.mask_ratio <= 0 else 1 - 1 / self.num_patches
            raise ValueError(
                f"mask_ratio={self.mask_ratio} is outside (0, 1): some patches must be masked and some visible. The "
                f"nearest valid value for {self.num_patches} patches: {near:.4g}."
            )


def num_masked(num_patches: int, mask_ratio: float) -> int:
    """How many of `num_patches` a mask at `mask_ratio` hides: MAE's count, but at least 1 hidden and 1 visible."""
    hidden = num_patches - int(num_patches * (1 - mask_ratio))
    return max(1, min(hidden, num_patches - 1))


def num_predicted(num_masked_patches: int, decoder_mask_fraction: float) -> int:
    """How many of the masked patches a decoder with `decoder_mask_fraction` predicts: at least 1."""
    return max(1, round(num_masked_patches * decoder_mask_fraction))


def nearest_name(value, names) -> str:
    """The one of `names` that is spelt most like `value`, whatever the case."""
    by_lower = {name.lower(): name for name in names}
    return by_lower[difflib.get_close_matches(str(value).lower(), by_lower, n=1, cutoff=0.0)[0]]


def nearest_multiple(value: int, factor: int) -> int:
    """The positive multiple of `factor` that is nearest to `value`; the smaller one of two equally near."""
    below = value // factor * factor
    return below if below and value - below <= below + factor - value else below + factor


def nearest_divisor(value: int, divisor: int) -> int:
    """The divisor of `value` that is nearest to `divisor`; the smaller one of two equally near."""
    return min((d for d in range(1, value + 1) if value % d == 0), key=lambda d: (abs(d - divisor), d))


__all__ = ["URFMConfig"]
