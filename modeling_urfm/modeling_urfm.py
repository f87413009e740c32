# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""PyTorch URFM: a ViT encoder of ultrasound images, its masked pre-training, its heads and its backbone.

Shapes: B images, C channels, H x W pixels, h x w patches, L = h * w, N visible patches, M predicted patches,
D features, T target features.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_urfm import URFMConfig, nearest_multiple, num_masked, num_predicted


@dataclass
class URFMForPreTrainingOutput(ModelOutput):
    """
    Output of [`URFMForPreTraining`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): Mean over the predicted masked patches; None without targets.
        predictions (`torch.FloatTensor`): (batch, patches, target) with the self-attention decoder, (batch, predicted,
            target) with the cross-attention decoder.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`): True where a patch was masked.
        predicted_indices (`torch.LongTensor` of shape `(batch, predicted)`, *optional*): Raster indices of the patches
            in `predictions`; None with the self-attention decoder, which predicts all.
        hidden_states, attentions (`tuple`, *optional*): The encoder's, of CLS and the visible patches.
    """

    loss: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    bool_masked_pos: torch.BoolTensor | None = None
    predicted_indices: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# ---------------------------------------------------------------- masks and patches


def draw_mask(
    batch_size: int,
    grid: tuple[int, int],
    num_masked: int,
    strategy: str = "random",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    fixed: bool = False,
) -> torch.BoolTensor:
    """Draw which patches are hidden: `num_masked` of `grid[0] * grid[1]` in every row.

    "random" hides patches one by one (MAE, He et al. 2022). "block" hides rectangles of at least 16 patches (of an
    eighth of a small grid) and an aspect ratio of at least 0.3 (BEiT, Bao et al. 2022), drawn one after the other until
    the count is reached; the last one is cut at a row. Without loops or host syncs, so that it can be compiled.

    Args:
        generator: the source of randomness, on any device; None takes torch's default of `device`.
        fixed: the same mask, always and for every row, without any randomness.

    Returns:
        (batch_size, patches), True where hidden.
    """
    height, width = grid
    length = height * width
    num_blocks = 64 if strategy == "block" else 0
    shape = (batch_size, length + 4 * num_blocks)
    if fixed:
        noise_BX = _fixed_noise(shape[1], device).expand(shape)
    else:
        noise_BX = torch.rand(shape, generator=generator, device=generator.device if generator else device).to(device)
    order_BL = noise_BX[:, :length]
    if strategy == "block":
        area, aspect, top, left = noise_BX[:, length:].reshape(batch_size, 4, num_blocks).unbind(1)
        smallest = min(16, max(1, length // 8))
        area = smallest + area * max(num_masked / 2 - smallest, 0)
        aspect = torch.exp((2 * aspect - 1) * -torch.log(torch.tensor(0.3, device=aspect.device)))
        rows = (area * aspect).sqrt().round().clamp(1, height)
        columns = (area / aspect).sqrt().round().clamp(1, width)
        top = (top * (height - rows + 1)).floor().unsqueeze(-1)
        left = (left * (width - columns + 1)).floor().unsqueeze(-1)
        y = torch.arange(length, device=noise_BX.device) // width
        x = torch.arange(length, device=noise_BX.device) % width
        inside_BKL = (y >= top) & (y < top + rows.unsqueeze(-1)) & (x >= left) & (x < left + columns.unsqueeze(-1))
        # A patch's rank is the first block that covers it, then its raster position: whole blocks go first, in turn.
        first_BL = inside_BKL.to(torch.uint8).argmax(1)
        raster = torch.arange(length, device=noise_BX.device) / length
        order_BL = torch.where(inside_BKL.any(1), first_BL + raster, num_blocks + order_BL)
    hidden = order_BL.argsort(dim=1)[:, :num_masked]
    return torch.zeros(batch_size, length, dtype=torch.bool, device=device).scatter(1, hidden, True)


def _fixed_noise(count: int, device: torch.device | str | None) -> torch.Tensor:
    """`count` numbers in [0, 1) from an integer hash: equal on every device, and no random state is touched."""
    x = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    for _ in range(3):
        x = (x * 69069 + 1) & 0xFFFFFFFF
        x = x ^ (x >> 16)
    return x / 2**32


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut (B, C, H, W) into (B, L, patch_size**2 * C), every patch in (row, column, channel) order, as MAE does."""
    batch, channels, height, width = pixel_values.shape
    h, w = height // patch_size, width // patch_size
    patches = pixel_values.reshape(batch, channels, h, patch_size, w, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, h * w, patch_size**2 * channels)


def to_autocast_dtype(tokens: torch.Tensor) -> torch.Tensor:
    """What autocast would make of an input of a linear layer, done once where several layers take the same input."""
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # "meta" has none
        return tokens.to(torch.get_autocast_dtype(device))
    return tokens


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; nobody waits for a copy to a GPU, while one to the CPU that isn't waited for holds anything."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def take(tokens_BLD: torch.Tensor, indices_BN: torch.Tensor) -> torch.Tensor:
    """Rows `indices_BN` of (B, L, D): (B, N, D)."""
    return tokens_BLD.gather(1, indices_BN.unsqueeze(-1).expand(-1, -1, tokens_BLD.shape[-1]))


def sincos_position_embeddings(grid: int, width: int) -> torch.Tensor:
    """Fixed 2-d sin-cos embedding (1, 1 + grid**2, width) with a zero row for CLS, in MAE's layout.

    The first half encodes the column, the second the row (the order in MAE's released code and weights), each as
    sines then cosines of `width / 4` frequencies from 1 to 1/10000.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis[None].expand(grid, -1, -1)
    rows = axis[:, None].expand(-1, grid, -1)
    table = torch.cat([columns, rows], dim=-1).reshape(grid * grid, width)
    return torch.cat([table.new_zeros(1, width), table])[None].float()


def resize_position_embeddings(embeddings: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Interpolate (1, 1 + patches, D), made for a square grid, to `grid` (bicubic, in fp32); CLS stays as it is."""
    side = int((embeddings.shape[1] - 1) ** 0.5)
    if tuple(grid) == (side, side):
        return embeddings
    patches = embeddings[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches.float(), size=grid, mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).to(embeddings.dtype)
    return torch.cat([embeddings[:, :1], patches], dim=1)


class URFMPositionEmbeddings(nn.Module):
    """Base of the modules that own `position_embeddings`, a parameter that is trained only where it is learned."""

    learned = False

    def __setattr__(self, name: str, value):
        # transformers' loader replaces every parameter by one that requires a gradient; a fixed embedding stays fixed,
        # also inside another model (UperNet, DPT).
        if name == "position_embeddings" and isinstance(value, nn.Parameter):
            value.requires_grad_(self.learned)
        super().__setattr__(name, value)


# ---------------------------------------------------------------- encoder


class URFMPatchProjection(nn.Conv2d):
    """The convolution of patches to embeddings, which can also be had for some of the patches alone.

    A convolution whose stride is its kernel is one matrix product over patches, so those that nobody looks at (three of
    four in masked pre-training) need not be computed. Both ways are of this module, whose hooks an engine that shards
    parameters (ZeRO-3, FSDP) needs to find called.
    """

    def forward(self, pixel_values: torch.Tensor, visible_indices: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) to (B, L, D), or to (B, N, D) of the patches at the raster indices (B, N)."""
        if visible_indices is None:
            return super().forward(pixel_values).flatten(2).transpose(1, 2)
        batch, channels, height, width = pixel_values.shape
        rows, columns = self.kernel_size
        h, w = height // rows, width // columns
        patches = pixel_values.reshape(batch, channels, h, rows, w, columns).permute(0, 2, 4, 1, 3, 5)
        image = torch.arange(batch, device=pixel_values.device).unsqueeze(1)
        # One pass over the pixels of the visible patches: the permuted view is never laid out whole.
        patches = patches[image, visible_indices // w, visible_indices % w]
        return F.linear(patches.flatten(2), self.weight.flatten(1), self.bias)


class URFMPatchEmbeddings(nn.Module):
    """(B, C, H, W) pixels to (B, L, D) patch embeddings, or to (B, N, D) of the patches at `visible_indices`."""

    def __init__(self, config: URFMConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.projection = URFMPatchProjection(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor, visible_indices: torch.Tensor | None = None) -> torch.Tensor:
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values has {pixel_values.shape[1]} channels, the model takes num_channels={self.num_channels}."
                + (" Repeat the grey channel 3 times (URFMImageProcessor does)." if pixel_values.shape[1] == 1 else "")
            )
        if not torch.compiler.is_compiling():  # a guard on the size would forbid dynamic shapes in an export
            for name, size in zip(("height", "width"), pixel_values.shape[-2:]):
                if size % self.patch_size:
                    raise ValueError(
                        f"The {name} of pixel_values, {size}, is not divisible by patch_size={self.patch_size}. The "
                        f"nearest {name} that is: {nearest_multiple(size, self.patch_size)}."
                    )
        return self.projection(pixel_values.to(self.projection.weight.dtype), visible_indices)


class URFMEmbeddings(URFMPositionEmbeddings):
    """Patch embeddings plus position embeddings, with a CLS token in front; only the visible patches when asked."""

    def __init__(self, config: URFMConfig):
        super().__init__()
        self.config = config
        self.patch_size = config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = URFMPatchEmbeddings(config)
        self.learned = config.position_embedding_type == "learned"
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + config.num_patches, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor, visible_indices: torch.Tensor | None = None) -> torch.Tensor:
        grid = (pixel_values.shape[-2] // self.patch_size, pixel_values.shape[-1] // self.patch_size)
        patches = self.patch_embeddings(pixel_values, visible_indices)
        positions = resize_position_embeddings(self.position_embeddings, grid)
        patches = patches + (
            positions[:, 1:] if visible_indices is None else F.embedding(visible_indices, positions[0, 1:])
        )
        cls_token = (self.cls_token + positions[:, :1]).expand(patches.shape[0], -1, -1).to(patches.dtype)
        return torch.cat([cls_token, patches], dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: (B, heads, tokens, D / heads) to (B, tokens, heads, D / heads) and the weights."""
    shape = query.shape
    # The rows of a head beside each other, at one copy: products of strided heads would copy in the slow direction.
    query, key, value = (heads.flatten(0, 1) for heads in (query * scaling, key, value))
    weights = torch.bmm(query, key.transpose(1, 2)).unflatten(0, shape[:2])
    if attention_mask is not None:
        weights = weights + attention_mask
    # Exponentials and their sum are in fp32 inside, whatever the type: a cast before only costs memory and time.
    weights = F.softmax(weights, dim=-1).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    attended = torch.bmm(weights.flatten(0, 1), value).view(shape)
    return attended.transpose(1, 2).contiguous(), weights


class URFMAttention(nn.Module):
    """Multi-head attention of `hidden_states` to itself, or to `memory` where that is given."""

    def __init__(self, config: URFMConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = to_autocast_dtype(hidden_states)
        memory = hidden_states if memory is None else to_autocast_dtype(memory)
        split_heads = (*hidden_states.shape[:1], -1, self.config.num_attention_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(split_heads).transpose(1, 2)
        key = self.k_proj(memory).view(split_heads).transpose(1, 2)
        value = self.v_proj(memory).view(split_heads).transpose(1, 2)
        implementation = self.config._attn_implementation
        in_bf16_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
        if implementation == "sdpa" and self.training and in_bf16_on_cpu and attention_mask is None:
            # The fused kernel's gradient on a CPU multiplies in fp32: with the 50 tokens of masked pre-training, forward
            # and backward take it 3 to 4 times as long as three matrix products in bf16 (recipes/EXPERIMENTS.md).
            implementation = "eager"
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attended, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(attended.reshape(*hidden_states.shape).contiguous()), weights


class URFMMLP(nn.Module):
    def __init__(self, config: URFMConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class URFMDropPath(nn.Module):
    """Stochastic depth a sample (Huang et al., 2016): drops the residual branch with `rate`, in training only."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = torch.rand(hidden_states.shape[0], 1, 1, device=hidden_states.device) >= self.rate
        return hidden_states * (keep / (1 - self.rate)).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class URFMLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer, over the tokens themselves or, for the cross-attention decoder, over `memory`."""

    def __init__(self, config: URFMConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.attention = URFMAttention(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = URFMMLP(config)
        self.drop_path = URFMDropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, memory, **kwargs)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class URFMPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading, shared by the whole family."""

    config: URFMConfig
    config_class = URFMConfig
    base_model_prefix = "urfm"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["URFMEmbeddings", "URFMLayer", "URFMDecoder", "URFMDecodeHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": URFMLayer, "attentions": URFMAttention}
    _input_embed_layer = "patch_embeddings"
    # A pre-trained checkpoint carries its decoder; the other models leave it behind on purpose.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As in transformers, but weights that the checkpoint should hold and does not are an error: transformers draws them
        at random and logs it. A new head, or a new decoder for an encoder alone, is drawn as ever; and with
        `output_loading_info=True` the caller gets the report and decides.

        Raises:
            ValueError: weights of the encoder are missing, or any of a checkpoint of this very class.
        """
        model, report = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if output_loading_info:
            return model, report
        if pretrained_model_name_or_path is not None:  # else the caller brings a config and the weights
            _check_missing(cls, model, report, pretrained_model_name_or_path)
        return model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the code is saved too where `config.auto_map` names it, as it does in a published model.

        A model that was loaded with the package, trained on and pushed then still loads without the package.
        """
        auto_map = getattr(self.config, "auto_map", None) or {}
        # Loaded without the package, it is transformers that saves the code.
        if f"modeling_urfm.{type(self).__name__}" in auto_map.values() and not self.is_remote_code():
            if kwargs.get("is_main_process", True):
                os.makedirs(save_directory, exist_ok=True)
                custom_object_save(self, save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def _get_files_timestamps(self, working_dir):
        """With `push_to_hub=True` only what is newer than this is sent; the code, just saved, always is."""
        return {name: time for name, time in super()._get_files_timestamps(working_dir).items() if name[-3:] != ".py"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        if isinstance(module, URFMEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            if self.config.position_embedding_type == "learned":
                init.trunc_normal_(module.position_embeddings, std=std)
            else:
                init.copy_(module.position_embeddings, _sincos_like(module.position_embeddings))
        elif isinstance(module, URFMDecoder):
            init.trunc_normal_(module.mask_token, std=std)
            init.copy_(module.position_embeddings, _sincos_like(module.position_embeddings))


def _sincos_like(embeddings: torch.Tensor) -> torch.Tensor:
    return sincos_position_embeddings(int((embeddings.shape[1] - 1) ** 0.5), embeddings.shape[-1]).to(embeddings)


def _check_missing(cls: type, model: PreTrainedModel, report: dict, name) -> None:
    """Refuse a model of which weights were drawn at random though its checkpoint should hold them."""
    encoder = ("embeddings.", "layers.", "layernorm.")
    resized = {key for key, *_ in report["mismatched_keys"]}  # the caller has allowed these by name
    missing = sorted(set(report["missing_keys"]) - resized)
    if cls.__name__ not in (model.config.architectures or ()):
        missing = [key for key in missing if key.removeprefix(f"{cls.base_model_prefix}.").startswith(encoder)]
    if missing:
        unknown = sorted(report["unexpected_keys"])[:3]
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {cls.__name__}, which would be random: {', '.join(missing[:3])} ..."
            + (f" It holds {', '.join(unknown)} ... instead." if unknown else "")
            + " Its config.json does not belong to its weights, or a part of them is gone."
        )


def _encoder_layers(config: URFMConfig) -> nn.ModuleList:
    rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
    return nn.ModuleList(URFMLayer(config, rate) for rate in rates)


def _stages(encoder: nn.Module, pixel_values: torch.Tensor, **kwargs) -> list[torch.Tensor]:
    """The embedding and the output of every layer of a URFMModel or URFMBackbone, before the final norm."""
    stages = [encoder.embeddings(pixel_values)]
    for layer in encoder.layers:
        stages.append(layer(stages[-1], None, **kwargs))
    return stages


class URFMModel(URFMPreTrainedModel):
    """
    The encoder: a plain pre-norm ViT with a CLS token and a final norm.

    Example:

    ```python
    >>> import torch
    >>> from modeling_urfm import URFMConfig, URFMModel

    >>> model = URFMModel(URFMConfig(image_size=64, hidden_size=96, num_hidden_layers=2, num_attention_heads=3)).eval()
    >>> outputs = model(torch.zeros(1, 3, 64, 96))
    >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
    (torch.Size([1, 25, 96]), torch.Size([1, 96]))

    ```"""

    def __init__(self, config: URFMConfig):
        super().__init__(config)
        self.embeddings = URFMEmbeddings(config)
        self.layers = _encoder_layers(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        visible_indices: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Normalised pixels; height and
                width are multiples of the patch size and need not be `config.image_size` or equal.
            visible_indices (`torch.LongTensor` of shape `(batch, visible)`, *optional*): Raster indices of the only
                patches to encode, for masked pre-training. All by default.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for the tokens (CLS first) to attend to.

        Returns:
            `last_hidden_state` (batch, 1 + patches, hidden), after the final norm, and `pooler_output` (batch, hidden),
            the CLS token or the mean of the patches by `config.pooling`.

        Raises:
            ValueError: no pixels, another number of channels, or a size that the patch does not divide.
        """
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        hidden_states = self.embeddings(pixel_values, visible_indices)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        pooled = hidden_states[:, 0] if self.config.pooling == "cls" else hidden_states[:, 1:].mean(dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


# ---------------------------------------------------------------- pre-training


class URFMDecoder(URFMPositionEmbeddings):
    """Predicts the targets of masked patches from the encoded visible ones.

    "self_attention" (MAE): visible tokens and mask tokens, in place, through self-attention; predicts all patches.
    "cross_attention" (CrossMAE, Fu et al. 2024): mask queries attend to the visible tokens only, each by itself, so
    that any part of the masked patches can be predicted at its share of the cost.
    """

    def __init__(self, config: URFMConfig):
        super().__init__()
        inner = deepcopy(config)
        inner.hidden_size = config.decoder_hidden_size
        inner.num_attention_heads = config.decoder_num_attention_heads
        inner.intermediate_size = config.decoder_intermediate_size
        self.config = inner
        self.embed = nn.Linear(config.hidden_size, inner.hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + config.num_patches, inner.hidden_size))
        self.layers = nn.ModuleList(URFMLayer(inner) for _ in range(config.decoder_num_hidden_layers))
        self.layernorm = nn.LayerNorm(inner.hidden_size, eps=config.layer_norm_eps)
        self.predictor = nn.Linear(inner.hidden_size, config.prediction_size)

    def forward(
        self,
        encoded: torch.Tensor,
        visible_indices: torch.Tensor,
        masked_indices: torch.Tensor,
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """(B, 1 + N, D) with the raster indices (B, N) and (B, M) to (B, L, T), or (B, M, T) by cross-attention."""
        encoded = self.embed(encoded)
        positions = resize_position_embeddings(self.position_embeddings, grid).to(encoded.dtype)
        if self.config.decoder_type == "self_attention":
            masked = self.mask_token.to(encoded.dtype).expand(*masked_indices.shape, -1)
            restore = torch.cat([visible_indices, masked_indices], dim=1).argsort(dim=1)
            tokens = torch.cat([encoded[:, :1], take(torch.cat([encoded[:, 1:], masked], dim=1), restore)], dim=1)
            tokens = tokens + positions
            memory = None
        else:
            tokens = self.mask_token.to(encoded.dtype) + F.embedding(masked_indices, positions[0, 1:])
            # CLS has row 0 of the position embeddings, the patches those from 1 on.
            memory_indices = F.pad(visible_indices + 1, (1, 0))
            memory = encoded + F.embedding(memory_indices, positions[0])
        for layer in self.layers:
            tokens = layer(tokens, None, memory)
        tokens = self.predictor(self.layernorm(tokens))
        return tokens[:, 1:] if memory is None else tokens


class URFMForPreTraining(URFMPreTrainedModel):
    """
    Masked image modelling: predict, for the patches that are hidden, a teacher's features (URFM) or the pixels (MAE).

    The teacher is never part of this model: its features come in as `target_features`
    (`modeling_urfm.pretraining.teacher` computes them).

    Example:

    ```python
    >>> import torch
    >>> from modeling_urfm import URFMConfig, URFMForPreTraining

    >>> config = URFMConfig(image_size=64, hidden_size=96, num_hidden_layers=2, num_attention_heads=3,
    ...                     decoder_hidden_size=64, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    >>> model = URFMForPreTraining(config)
    >>> generator = torch.Generator().manual_seed(0)
    >>> outputs = model(torch.zeros(2, 3, 64, 64), target_features=torch.ones(2, 16, 768), generator=generator)
    >>> outputs.predictions.shape, outputs.bool_masked_pos.sum(1).tolist()
    (torch.Size([2, 16, 768]), [12, 12])

    ```"""

    # Here the decoder belongs to the model: a key of it that does not fit is reported.
    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: URFMConfig):
        super().__init__(config)
        if config.num_patches < 2:
            raise ValueError(
                f"Masked pre-training needs at least 2 patches; image_size={config.image_size} with patch_size="
                f"{config.patch_size} has 1. The nearest image_size: {2 * config.patch_size}."
            )
        self.urfm = URFMModel(config)
        self.decoder = URFMDecoder(config)
        self.post_init()

    def set_attn_implementation(self, *args, **kwargs):
        """Switch the attention of the encoder and of the decoder, which has a config of its own widths."""
        super().set_attn_implementation(*args, **kwargs)
        self.decoder.config._attn_implementation = self.config._attn_implementation

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        target_features: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        loss_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        predicted_indices: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> URFMForPreTrainingOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Normalised pixels.
            target_features (`torch.FloatTensor` of shape `(batch, patches, config.target_hidden_size)`, *optional*):
                The teacher's patch features of the same crop, in raster order; or `(batch, predicted,
                config.target_hidden_size)`, of the predicted patches alone: those of `predicted_indices`, in that
                order, else all the masked ones in raster order. None with `config.target="pixel"`.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`, *optional*): True = masked; the same count
                in every row. When None it is drawn at `config.mask_ratio`: with `generator`; without one from torch's
                default in training, while in eval mode every row gets one fixed mask, so that the output is a function
                of the image alone.
            loss_mask (`torch.BoolTensor` of shape `(batch, patches)`, *optional*): True = shows ultrasound; the loss
                leaves out the other patches.
            generator (`torch.Generator`, *optional*): Draws the mask and the part of it that is predicted.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*): Divides the sum of the loss in place of the number
                of patches counted here; give the masked patches over all ranks and accumulation steps, so that the
                gradients equal those of one large batch.
            predicted_indices (`torch.LongTensor` of shape `(batch, predicted)`, *optional*): Raster indices of the
                patches to predict, all of them masked by `bool_masked_pos`, which must then be given and mask as many
                patches as `config.mask_ratio` says. Without it the cross-attention decoder draws
                `config.decoder_mask_fraction` of the masked ones. The self-attention decoder always predicts them all.
                A mask and indices in the CPU's memory are checked there, and no GPU is waited for; those on a GPU are
                checked by it.

        Raises:
            ValueError: inputs whose shapes or counts do not fit; what was expected is named.
        """
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        patch_size = self.config.patch_size
        grid = (pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size)
        batch, length = pixel_values.shape[0], grid[0] * grid[1]
        if loss_mask is not None and tuple(loss_mask.shape) != (batch, length):
            raise ValueError(f"loss_mask has shape {tuple(loss_mask.shape)}, expected {(batch, length)}.")

        fixed = generator is None and not self.training
        count = num_masked(length, self.config.mask_ratio)
        if predicted_indices is not None:
            self._check_predicted(predicted_indices, bool_masked_pos, (batch, length), count)
        elif bool_masked_pos is not None:
            count = self._count_masked(bool_masked_pos, (batch, length), count)
        if bool_masked_pos is None:
            bool_masked_pos = draw_mask(
                batch, grid, count, self.config.mask_strategy, generator, pixel_values.device, fixed
            )
        else:
            bool_masked_pos = moved(bool_masked_pos, pixel_values.device).bool()
        # A stable sort of the mask lists the visible patches, then the masked ones, each in raster order.
        order = bool_masked_pos.to(torch.uint8).argsort(dim=1, stable=True)
        visible_indices, masked_indices = order[:, : length - count], order[:, length - count :]
        drawn = self.config.decoder_type == "cross_attention" and self.config.decoder_mask_fraction < 1
        if predicted_indices is not None:
            masked_indices = moved(predicted_indices, pixel_values.device).long()
        elif drawn:
            predicted = num_predicted(count, self.config.decoder_mask_fraction)
            chosen = draw_mask(batch, (1, count), predicted, "random", generator, pixel_values.device, fixed)
            part = chosen.to(torch.uint8).argsort(dim=1, stable=True, descending=True)[:, :predicted]
            masked_indices = masked_indices.gather(1, part)
        # Targets of a drawn part can't be given in its order, which nobody outside knows.
        predicted = length if predicted_indices is None and drawn else masked_indices.shape[1]
        self._check_targets(target_features, (batch, length, self.config.target_hidden_size), predicted)

        outputs = self.urfm(pixel_values, visible_indices=visible_indices, **kwargs)
        predictions = self.decoder(outputs.last_hidden_state, visible_indices, masked_indices, grid)

        loss = None
        if self.config.target == "pixel" or target_features is not None:
            losses = self._patch_losses(predictions, pixel_values, target_features, masked_indices)
            items = losses.numel()
            if loss_mask is not None:
                counted = moved(loss_mask, pixel_values.device).bool().gather(1, masked_indices)
                losses = torch.where(counted, losses, 0.0)
                # A batch without any counted patch has loss 0 and no gradient, not NaN.
                items = counted.sum().clamp(min=1)
            items = items if num_items_in_batch is None else num_items_in_batch
            loss = losses.sum() / (moved(items, losses.device) if torch.is_tensor(items) else items)

        return URFMForPreTrainingOutput(
            loss=loss,
            predictions=predictions,
            bool_masked_pos=bool_masked_pos,
            predicted_indices=masked_indices if self.config.decoder_type == "cross_attention" else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _check_targets(self, target_features: torch.Tensor | None, expected: tuple[int, int, int], predicted: int):
        """Refuse targets of another shape than `expected`, for all patches or for `predicted` ones."""
        if target_features is None:
            return
        if self.config.target == "pixel":
            raise ValueError(
                "config.target='pixel' makes its targets from pixel_values; target_features must be None, or config.target "
                "'representation'."
            )
        of_predicted = (expected[0], predicted, expected[2])
        if tuple(target_features.shape) not in (expected, of_predicted):
            raise ValueError(
                f"target_features has shape {tuple(target_features.shape)}, expected (batch, patches, "
                f"config.target_hidden_size) = {expected}"
                + (f", or {of_predicted} of the predicted patches alone." if of_predicted != expected else ".")
                + (" Give predicted_indices for targets of a part." if predicted == expected[1] else "")
            )

    def _check_predicted(self, indices, bool_masked_pos, expected: tuple[int, int], count: int):
        """Refuse `predicted_indices` that are not (batch, 1 to `count`) patches of a mask that hides `count` a row."""
        if bool_masked_pos is None:
            raise ValueError("predicted_indices needs bool_masked_pos: what is predicted must be masked.")
        if tuple(bool_masked_pos.shape) != expected:
            raise ValueError(
                f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, expected (batch, patches) = {expected}."
            )
        all_of_them = self.config.decoder_type == "self_attention"
        shape, fewest = tuple(indices.shape), count if all_of_them else 1
        if len(shape) != 2 or shape[0] != expected[0] or not fewest <= shape[1] <= count:
            nearest = min(max(shape[-1] if shape else count, fewest), count)
            raise ValueError(
                f"predicted_indices has shape {shape}, expected ({expected[0]}, {count if all_of_them else f'1 to {count}'})"
                + (f": the self-attention decoder predicts all {count} masked patches" if all_of_them else "")
                + f". The nearest: {(expected[0], nearest)}."
            )
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(f"predicted_indices is {indices.dtype}, expected torch.int64: raster indices of patches.")
        indices = indices.long()
        if torch.compiler.is_compiling() or bool_masked_pos.device.type != "cpu" or indices.device.type != "cpu":
            # Counting here would wait for the GPU, and a graph can't: the device asserts it by itself.
            mask = moved(bool_masked_pos, indices.device).bool()
            torch._assert_async((mask.sum(1) == count).all(), f"predicted_indices needs {count} masked patches a row")
            torch._assert_async(
                mask.gather(1, indices).all(), "predicted_indices must all be masked by bool_masked_pos"
            )
            return
        counts = bool_masked_pos.bool().sum(1)
        if (counts != count).any():
            raise ValueError(
                f"With predicted_indices, bool_masked_pos must mask {count} of {expected[1]} patches in every row "
                f"(config.mask_ratio={self.config.mask_ratio}), got {int(counts.min())} to {int(counts.max())}."
            )
        outside = indices[(indices < 0) | (indices >= expected[1])]
        if len(outside):
            raise ValueError(
                f"predicted_indices holds {int(outside[0])}; the patches are 0 to {expected[1] - 1}. The nearest: "
                f"{min(max(int(outside[0]), 0), expected[1] - 1)}."
            )
        visible = ~bool_masked_pos.bool().gather(1, indices)
        if visible.any():
            row, place = visible.nonzero()[0].tolist()
            raise ValueError(
                f"predicted_indices holds patch {int(indices[row, place])} of image {row}, which bool_masked_pos leaves "
                "visible; only masked patches are predicted."
            )

    @staticmethod
    def _count_masked(bool_masked_pos: torch.Tensor, expected: tuple[int, int], default: int) -> int:
        """Masked patches a row of a mask that was given."""
        if tuple(bool_masked_pos.shape) != expected:
            raise ValueError(
                f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, expected (batch, patches) = {expected}."
            )
        if torch.compiler.is_compiling():
            # A graph has static shapes: there the mask must have config.mask_ratio's count, and that is asserted.
            torch._assert_async(
                (bool_masked_pos.bool().sum(1) == default).all(), f"compiled for {default} masked patches a row"
            )
            return default
        counts = bool_masked_pos.bool().sum(1).tolist()  # of the mask where it lies: one on the CPU waits for no GPU
        if len(set(counts)) > 1:
            raise ValueError(
                f"bool_masked_pos must mask the same number of patches in every row, got {min(counts)} to {max(counts)}."
            )
        if not 0 < counts[0] < expected[1]:
            nearest = min(max(counts[0], 1), expected[1] - 1)
            raise ValueError(
                f"bool_masked_pos masks {counts[0]} of {expected[1]} patches in every row; at least one must be masked and "
                f"one visible. The nearest valid count: {nearest}."
            )
        return counts[0]

    def _patch_losses(self, predictions, pixel_values, target_features, indices) -> torch.Tensor:
        """The loss of each of the patches `indices` (B, M), in fp32: (B, M)."""
        if self.config.decoder_type == "self_attention":
            predictions = take(predictions, indices)
        predictions = predictions.float()
        if self.config.target == "pixel":
            targets = take(patchify(pixel_values.float(), self.config.patch_size), indices)
            mean, variance = targets.mean(-1, keepdim=True), targets.var(-1, keepdim=True)
            return F.mse_loss(predictions, (targets - mean) / (variance + 1e-6).sqrt(), reduction="none").mean(-1)
        targets = moved(target_features, predictions.device).float()
        targets = targets if targets.shape[1] == indices.shape[1] else take(targets, indices)
        if self.config.loss_type == "cosine":
            return -F.cosine_similarity(predictions, targets, dim=-1)
        targets = F.layer_norm(targets, targets.shape[-1:])
        distance = F.smooth_l1_loss if self.config.loss_type == "smooth_l1" else F.mse_loss
        return distance(predictions, targets, reduction="none").mean(-1)


# ---------------------------------------------------------------- heads and backbone


class URFMForImageClassification(URFMPreTrainedModel):
    """
    The encoder with a linear layer on `pooler_output`: single label, multi-label or regression.

    `config.problem_type` ("single_label_classification", "multi_label_classification", "regression") chooses the loss;
    unset, it follows from `num_labels` and the labels' type, as everywhere in transformers.

    Example:

    ```python
    >>> import torch
    >>> from modeling_urfm import URFMConfig, URFMForImageClassification

    >>> config = URFMConfig(image_size=64, hidden_size=96, num_hidden_layers=2, num_attention_heads=3, num_labels=3)
    >>> outputs = URFMForImageClassification(config)(torch.zeros(2, 3, 64, 64), labels=torch.tensor([0, 2]))
    >>> outputs.logits.shape, outputs.loss.shape
    (torch.Size([2, 3]), torch.Size([]))

    ```
    """

    # The loss below is a mean over the batch: Trainer must divide it by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: URFMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.urfm = URFMModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Normalised pixels.
            labels (*optional*): (batch,) of class ids in [0, num_labels); (batch, num_labels) of 0 and 1 as floats for
                several labels; (batch,) or (batch, num_labels) of floats for regression.

        Returns:
            `logits` (batch, num_labels), and `loss` where labels are given.
        """
        outputs = self.urfm(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class URFMDecodeHead(nn.Module):
    """Fuses patch tokens of several layers and refines them at a quarter of the image's resolution or finer."""

    def __init__(self, config: URFMConfig, num_levels: int):
        super().__init__()
        width = config.decode_head_hidden_size
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(num_levels)
        )
        self.projections = nn.ModuleList(nn.Linear(config.hidden_size, width) for _ in range(num_levels))
        self.refine = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, levels: list[torch.Tensor], grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        """`levels` of (B, L, D) on `grid` to logits (B, labels, *size)."""
        fused = sum(
            project(norm(level)) for level, norm, project in zip(levels, self.norms, self.projections, strict=True)
        )
        fused = fused.transpose(1, 2).reshape(fused.shape[0], -1, *grid)
        fused = F.interpolate(fused, size=size, mode="bilinear", align_corners=False)
        return self.classifier(F.gelu(self.norm(self.refine(F.gelu(fused)))))


class URFMForSemanticSegmentation(URFMPreTrainedModel):
    """
    The encoder with a light decode head over four of its layers, evenly spaced up to the last.

    Logits are at a quarter of the input's resolution (rounded up), or at the patch grid where that is finer.

    Example:

    ```python
    >>> import torch
    >>> from modeling_urfm import URFMConfig, URFMForSemanticSegmentation

    >>> config = URFMConfig(image_size=64, hidden_size=96, num_hidden_layers=4, num_attention_heads=3, num_labels=2)
    >>> masks = torch.zeros(1, 64, 96, dtype=torch.long)
    >>> outputs = URFMForSemanticSegmentation(config)(torch.zeros(1, 3, 64, 96), labels=masks)
    >>> outputs.logits.shape
    torch.Size([1, 2, 16, 24])

    ```
    """

    accepts_loss_kwargs = False

    def __init__(self, config: URFMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.urfm = URFMModel(config)
        depth = config.num_hidden_layers
        self.levels = sorted({max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)})
        self.decode_head = URFMDecodeHead(config, len(self.levels))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Normalised pixels.
            labels (`torch.LongTensor` of shape `(batch, label_height, label_width)`, *optional*): Class ids in
                [0, num_labels), `config.semantic_loss_ignore_index` (255) where the loss is not taken. With
                `num_labels=1`: 0 and 1, for a sigmoid. Logits are resized to the labels, not the labels to them.

        Returns:
            `logits` (batch, num_labels, about height / 4, about width / 4), and `loss` where labels are given.
        """
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        height, width = pixel_values.shape[-2:]
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        size = (max(grid[0], -(-height // 4)), max(grid[1], -(-width // 4)))
        # Layer by layer: recorded hidden states would need hooks, which a compiler can't install.
        stages = _stages(self.urfm, pixel_values, **kwargs)
        # The last level is taken after the encoder's final norm, so that this norm is trained too.
        levels = [stages[i] for i in self.levels[:-1]] + [self.urfm.layernorm(stages[-1])]
        logits = self.decode_head([level[:, 1:] for level in levels], grid, size)
        return SemanticSegmenterOutput(loss=self._loss(logits, labels) if labels is not None else None, logits=logits)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the pixels that are not ignored; 0 where all are."""
        logits = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        valid = labels != self.config.semantic_loss_ignore_index
        if self.num_labels == 1:
            losses = F.binary_cross_entropy_with_logits(logits[:, 0], (labels * valid).float(), reduction="none")
            losses = losses * valid
        else:
            losses = F.cross_entropy(
                logits, labels.long(), ignore_index=self.config.semantic_loss_ignore_index, reduction="none"
            )
        return losses.sum() / valid.sum().clamp(min=1)


class URFMBackbone(BackboneMixin, URFMPreTrainedModel):
    """
    The encoder as a backbone for transformers' own frameworks (UperNet, DPT, ...).

    Example:

    ```python
    >>> import torch
    >>> from modeling_urfm import URFMBackbone, URFMConfig

    >>> config = URFMConfig(image_size=64, hidden_size=96, num_hidden_layers=4, num_attention_heads=3, out_indices=[2, 4])
    >>> [tuple(map_.shape) for map_ in URFMBackbone(config)(torch.zeros(1, 3, 64, 96)).feature_maps]
    [(1, 96, 4, 6), (1, 96, 4, 6)]

    ```"""

    def __init__(self, config: URFMConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.embeddings = URFMEmbeddings(config)
        self.layers = _encoder_layers(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Normalised pixels.

        Returns:
            `feature_maps`: for each of `out_features` the tokens after the final norm, (batch, hidden, height / patch,
            width / patch), or (batch, 1 + patches, hidden) with `reshape_hidden_states=False`.
        """
        grid = (pixel_values.shape[-2] // self.config.patch_size, pixel_values.shape[-1] // self.config.patch_size)
        stages = _stages(self, pixel_values, **kwargs)
        feature_maps = []
        for name, stage in zip(self.stage_names, stages, strict=True):
            if name in self.out_features:
                stage = self.layernorm(stage)
                if self.config.reshape_hidden_states:
                    stage = stage[:, 1:].transpose(1, 2).reshape(stage.shape[0], -1, *grid).contiguous()
                feature_maps.append(stage)
        return BackboneOutput(feature_maps=tuple(feature_maps))


__all__ = [
    "URFMPreTrainedModel",
    "URFMModel",
    "URFMForPreTraining",
    "URFMForImageClassification",
    "URFMForSemanticSegmentation",
    "URFMBackbone",
]
