# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Small files of exactly the layouts that others save encoders in: names, nesting and dtypes are theirs, weights random."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


SMALL = {"width": 32, "depth": 2, "mlp": 64, "patch": 16, "grid": 3}
BASE = {"width": 768, "depth": 12, "mlp": 3072, "patch": 16, "grid": 14}
LARGE = {"width": 1024, "depth": 24, "mlp": 4096, "patch": 16, "grid": 14}
HUGE = {"width": 1280, "depth": 32, "mlp": 5120, "patch": 14, "grid": 16}


def mae_positions(width: int, grid: int) -> torch.Tensor:
    """(1, 1 + grid**2, width) as MAE's `get_2d_sincos_pos_embed` gives it: written from its description, not from ours."""
    omega = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    table = np.zeros((1 + grid * grid, width))
    for row in range(grid):
        for column in range(grid):
            x, y = column * omega, row * omega
            table[1 + row * grid + column] = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
    return torch.from_numpy(table).float()[None]


def mae_encoder(sizes: dict, seed: int = 0, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The encoder's part of a MAE checkpoint, in timm's names. Every weight is drawn, so that no two can be mixed up."""
    generator = torch.Generator().manual_seed(seed)
    width, mlp, patch = sizes["width"], sizes["mlp"], sizes["patch"]

    def draw(*shape: int, around: float = 0.0) -> torch.Tensor:
        if device == "meta":
            return torch.empty(shape, device="meta")
        return around + 0.05 * torch.randn(shape, generator=generator)

    state = {"cls_token": draw(1, 1, width), "pos_embed": mae_positions(width, sizes["grid"]),
             "patch_embed.proj.weight": draw(width, 3, patch, patch), "patch_embed.proj.bias": draw(width)}  # fmt: skip
    for layer in range(sizes["depth"]):
        shapes = {"norm1": width, "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": width,
                  "mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}  # fmt: skip
        for name, shape in shapes.items():
            is_norm = isinstance(shape, int)
            shape = (shape,) if is_norm else shape
            state[f"blocks.{layer}.{name}.weight"] = draw(*shape, around=1.0 if is_norm else 0.0)
            state[f"blocks.{layer}.{name}.bias"] = draw(shape[0])
    return state | {"norm.weight": draw(width, around=1.0), "norm.bias": draw(width)}


def mae_decoder(sizes: dict, width: int = 16, target: int = 24) -> dict[str, torch.Tensor]:
    """The rest of a MAE checkpoint: its decoder of one block, with a position embedding of its own."""
    inner = mae_encoder(sizes | {"width": width, "depth": 1, "mlp": 4 * width}, seed=1)
    state = {"mask_token": torch.randn(1, 1, width), "decoder_pos_embed": inner["pos_embed"],
             "decoder_embed.weight": torch.randn(width, sizes["width"]), "decoder_embed.bias": torch.randn(width)}  # fmt: skip
    state |= {f"decoder_{key}": value for key, value in inner.items() if key.startswith("blocks")}
    state |= {f"decoder_norm.{kind}": torch.ones(width) for kind in ("weight", "bias")}
    return state | {"decoder_pred.weight": torch.randn(target, width), "decoder_pred.bias": torch.randn(target)}


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


def released_urfm(path: Path, sizes: dict = SMALL, raw_seed: int = 7) -> tuple[dict, dict]:
    """As URFM was released: averaged weights beside the last ones, under `module.`; `model` is a name. Returns both.

    With `raw_seed` 0 both are the same tensors, and the file is half as large.
    """
    ema = mae_encoder(sizes, 0)
    raw = mae_encoder(sizes, raw_seed) if raw_seed else ema
    content = {
        "epoch": 1199, "model": "mae_vit_base_patch16_dec768d8b", "optimizer": {"state": {}, "param_groups": [{"lr": 0.0}]},
        "state_dict": prefixed(raw | mae_decoder(sizes), "module."),
        "ema_state_dict": prefixed(ema | mae_decoder(sizes), "module."),
    }  # fmt: skip
    torch.save(content, path)
    return ema, raw


def checkpoint(path: Path, state: dict, **beside) -> Path:
    """MAE's own nesting: the state dict under `model`."""
    torch.save({"model": state} | beside, path)
    return path


TIMM_ARGUMENTS = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}


def timm_folder(folder: Path, architecture: str = "vit_base_patch16_224", cfg: dict | None = None, **arguments) -> dict:
    """As timm's models lie on the Hub, with a classifier. Returns the weights."""
    import timm

    folder.mkdir()
    torch.manual_seed(0)
    arguments = TIMM_ARGUMENTS | arguments
    model = timm.create_model(architecture, num_classes=5, **arguments)
    state = {key: value + 0.02 * torch.randn_like(value) for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    values = {"tag": "augreg", "custom_load": False, "input_size": [3, 48, 48], "fixed_input_size": True, "crop_pct": 0.9,
              "interpolation": "bicubic", "crop_mode": "center", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
              "num_classes": 5, "first_conv": "patch_embed.proj", "classifier": "head"}  # fmt: skip
    config = {"architecture": architecture, "num_classes": 5, "num_features": 32, "global_pool": model.global_pool,
              "model_args": arguments, "pretrained_cfg": values | (cfg or {})}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return state


def transformers_folder(folder: Path, kind: str = "ViTForImageClassification", processor: bool = True, **settings):
    """As transformers saves a ViT or ViTMAE, in the names of its files. Returns the model."""
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, kind)
    values = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
              "image_size": 48, "patch_size": 16} | settings  # fmt: skip
    if "MAE" in kind.__name__:
        values |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = kind(kind.config_class(**values)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            is_fixed = "MAE" in kind.__name__ and name.endswith("position_embeddings")
            value.copy_(mae_positions(32, 3) if is_fixed else value + 0.02 * torch.randn_like(value))
    model.save_pretrained(folder)
    if processor:
        transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder)
    return model


def open_clip_folder(folder: Path, architecture: str = "test_vit", image_size: int = 160) -> dict:
    """As BiomedCLIP lies on the Hub: a timm trunk under `visual.trunk.`, projections, and a text tower. Returns all."""
    import timm

    folder.mkdir()
    torch.manual_seed(0)
    trunk = timm.create_model(architecture, num_classes=0)
    state = prefixed({k: v + 0.02 * torch.randn_like(v) for k, v in trunk.state_dict().items()}, "visual.trunk.")
    state |= {"visual.head.proj.weight": torch.randn(16, trunk.num_features), "logit_scale": torch.tensor(4.6),
              "text.transformer.embeddings.word_embeddings.weight": torch.randn(8, 4),
              "text.proj.0.weight": torch.randn(4, 4)}  # fmt: skip
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    vision = {"timm_model_name": architecture, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
              "image_size": image_size}  # fmt: skip
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"hf_model_name": "somewhere/else"}},
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return state
