# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Frozen target encoders: their patch features are what a student learns to predict.

Of a CLIP only the vision tower is built and loaded: no text tower, no second download.
"""

import json
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..configuration_urfm import nearest_name
from ..modeling_urfm import moved, take


ASSETS = Path(__file__).resolve().parent.parent / "assets"
DEMO_TEACHER = ASSETS / "demo_teacher"
SCHEMES = ("open_clip:hf-hub:", "open_clip:local-dir:", "transformers:")
NORMALIZATIONS = ("none", "l2", "layer_norm")
# open_clip's defaults, OpenAI CLIP's statistics; BiomedCLIP has the same.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TeacherError(RuntimeError):
    """A teacher that can't be had; the message says how to get it or to point to a local copy."""


class Teacher(nn.Module):
    """A frozen encoder that gives patch features for the crop that the student sees.

    It is always in eval mode, has no gradient, and its `state_dict` is empty: it can't get into a checkpoint.

    Args:
        tower: maps normalised pixels to patch tokens (batch, patches, hidden) on a square grid.
        image_size: side in pixels that the tower takes. image_mean, image_std: its own normalisation.
        normalize: "none"; "l2" (unit length a patch, as MILAN); "layer_norm" (zero mean, unit variance a patch).
        dtype: what the tower computes in; None takes bfloat16 where the processor has it (1.4 times as fast
            for the demo's teacher, twice for a ViT-B/16), else float32.
    """

    def __init__(
        self, tower, hidden_size, image_size, image_mean, image_std, name, normalize="none", dtype=None, device=None
    ):
        super().__init__()
        if normalize not in NORMALIZATIONS:
            near = nearest_name(normalize, NORMALIZATIONS)
            raise ValueError(
                f"normalize={normalize!r} does not exist. Did you mean {near!r}? There are: {', '.join(NORMALIZATIONS)}."
            )
        self.name, self.hidden_size, self.image_size, self.normalize = name, hidden_size, image_size, normalize
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        device = torch.device(device or "cpu")
        self.dtype = dtype or faster_dtype(device)
        # Held in a tuple, not as submodules or buffers: nothing here is ever part of a state dict.
        self._held = (tower.requires_grad_(False).eval().to(device, self.dtype),)
        if device.type == "cpu" and self.dtype == torch.bfloat16:
            # There torch's fused attention is slower than its two products: 5 % of a ViT-B/16.
            for module in tower.modules():
                if hasattr(module, "fused_attn"):  # timm's switch
                    module.fused_attn = False
        self._device = device
        # Made once: numbers that go to a GPU in every step would stop its queue in every step.
        self._mean, self._std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (image_mean, image_std))

    @property
    def tower(self) -> nn.Module:
        """The network, frozen, in `dtype`: whoever trains or changes it takes a copy."""
        return self._held[0]

    def train(self, mode: bool = True):
        """Does nothing: a teacher stays in eval mode."""
        return super().train(False)

    def forward(
        self, pixels: torch.Tensor, grid: tuple[int, int], positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features of the patches of `grid`, in raster order, or of those at `positions`, in that order.

        Args:
            pixels: (batch, 3, height, width) in [0, 1], the very crop that the student sees.
            grid: rows and columns of the student's patches; the teacher's own grid is interpolated to it (bilinear, fp32).
            positions: (batch, M) raster indices of the only patches to give. The features are those of all patches,
                picked; where the tower and its grid allow it the last layer computes no others.

        Returns:
            (batch, rows * columns or M, hidden_size), float32, without gradient.
        """
        pixels = pixels.to(self._device, torch.float32)
        if positions is not None:
            if positions.ndim != 2 or len(positions) != len(pixels):
                raise ValueError(f"positions has shape {tuple(positions.shape)}, expected ({len(pixels)}, M).")
            positions = moved(positions, self._device)
        tower = self.tower
        early = positions is not None and getattr(tower, "grid", None) == tuple(grid)
        # The student's autocast, if this is called inside it, must not decide the teacher's precision.
        with torch.inference_mode(), torch.autocast(pixels.device.type, enabled=False):
            size = (self.image_size, self.image_size)
            if tuple(pixels.shape[-2:]) != size:
                pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
                pixels = pixels.clamp(0, 1)
            pixels = ((pixels - self._mean) / self._std).to(self.dtype)
            tokens = tower(pixels, positions).float() if early else self._on_grid(tower(pixels).float(), tuple(grid))
            if positions is not None and not early:
                tokens = take(tokens, positions)
            if self.normalize == "l2":
                tokens = F.normalize(tokens, dim=-1)
            elif self.normalize == "layer_norm":
                tokens = F.layer_norm(tokens, tokens.shape[-1:])
        # A copy outside: autograd refuses to keep an inference tensor for a backward pass, as the loss would ask it to.
        with torch.no_grad():
            return tokens.clone(memory_format=torch.contiguous_format)

    def _on_grid(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        side = int(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise TeacherError(f"{self.name} gives {tokens.shape[1]} patch tokens, which is no square grid.")
        if grid == (side, side):
            return tokens
        maps = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        maps = F.interpolate(maps, size=grid, mode="bilinear", antialias=True, align_corners=False)
        return maps.flatten(2).transpose(1, 2)


def load_teacher(
    spec: str, *, layer: int = -1, normalize: str = "none", dtype: torch.dtype | None = None, device=None
) -> Teacher:
    """Load a frozen teacher.

    Args:
        spec: "open_clip:hf-hub:ORG/NAME" (BiomedCLIP: microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224),
            "open_clip:local-dir:FOLDER" (the same files on disk), "transformers:ID_OR_FOLDER" (a vision encoder of
            transformers, or the vision part of a CLIP or SigLIP), or "demo", the small CLIP that ships here.
        layer: -1 is the last layer, after the final norm and before any projection; -2 the output of the layer before,
            without that norm, and so on; 0 is the first layer.
        normalize, dtype, device: see `Teacher`.

    Raises:
        TeacherError: it can't be had; the message says how to get it.
        ValueError: the spec, the layer or the normalisation does not exist; the nearest one is named.
    """
    if spec == "demo":
        spec = f"open_clip:local-dir:{DEMO_TEACHER}"
    for scheme in SCHEMES:
        if spec.startswith(scheme) and len(spec) > len(scheme):
            source = spec[len(scheme) :]
            break
    else:
        forms = [*SCHEMES, "demo"]
        near = nearest_name(spec, forms)
        example = near + ("" if near == "demo" else "FOLDER" if "local" in near else "ID")
        raise ValueError(
            f"--teacher {spec!r} is not understood. The nearest form: {example}. There are: {', '.join(forms)}."
        )
    load = _load_transformers if scheme == "transformers:" else _load_open_clip
    tower, hidden_size, image_size, mean, std = load(source, "local-dir" in scheme, layer)
    return Teacher(tower, hidden_size, image_size, mean, std, spec, normalize, dtype, device)


def untrained_teacher(name: str = "vit_base_patch16_224", dtype: torch.dtype | None = None, device=None, **changes):
    """A teacher of random weights, by default of BiomedCLIP's structure: its features mean nothing, its speed is the real one's.

    Args:
        name, changes: a ViT of timm and what is different about it, such as `img_size` and `depth`.
    """
    import timm

    trunk = timm.create_model(name, num_classes=0, **changes)
    tower, size = _TimmTower(trunk, -1), trunk.patch_embed.img_size[0]
    return Teacher(tower, tower.hidden_size, size, CLIP_MEAN, CLIP_STD, f"untrained {name}", dtype=dtype, device=device)


def faster_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies in it, else float32.

    A fixed property of the machine and no trial run, which would fall out differently on a busy day: a run that is resumed
    computes what it would have computed.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    else:
        has_bf16 = False
    return torch.bfloat16 if has_bf16 else torch.float32


# ---------------------------------------------------------------- open_clip


def _load_open_clip(source: str, local: bool, layer: int):
    try:
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
    except ImportError as error:
        raise TeacherError(f"The teacher needs open_clip: pip install 'urfm[train]' ({error}).") from error
    config_path, weights_path = _open_clip_files(source, local)
    try:
        config = json.loads(Path(config_path).read_text())
        model, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
        vision = CLIPVisionCfg(**model["vision_cfg"] | {"timm_model_pretrained": False})
        visual = _build_vision_tower(model["embed_dim"], vision, model.get("quick_gelu", False))
    except Exception as error:  # JSON, missing keys, unknown ones, a timm model that does not exist
        raise _damaged(config_path, "no config of an open_clip model", error) from error
    try:
        state = _read_weights(weights_path)
    except Exception as error:  # every format has its own
        raise _damaged(weights_path, "no whole file of weights", error) from error
    ours = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    if not ours:
        raise TeacherError(f"{weights_path} holds no vision tower: no key begins with 'visual.'.")
    try:
        visual.load_state_dict({k: v.float() for k, v in ours.items()}, strict=True)
    except RuntimeError as error:
        raise TeacherError(f"{weights_path} does not fit the vision tower of {config_path}: {error}") from error
    tower = _TimmTower(visual.trunk, layer) if hasattr(visual, "trunk") else _ClipTower(visual, layer)
    size = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    return tower, tower.hidden_size, size, preprocess.get("mean", CLIP_MEAN), preprocess.get("std", CLIP_STD)


def _open_clip_files(source: str, local: bool) -> tuple[str, str]:
    """Paths of the config and the weights (safetensors before bin)."""
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if local:
        folder = Path(source)
        if not (folder / "open_clip_config.json").is_file():
            there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
            raise TeacherError(
                f"{folder / 'open_clip_config.json'} does not exist. The folder "
                + (f"holds: {', '.join(there) or 'nothing'}." if folder.is_dir() else "does not exist either.")
                + f" It must hold open_clip_config.json and {' or '.join(names)}, as the model's Hub page does."
            )
        weights = [folder / name for name in names if (folder / name).is_file()]
        if not weights:
            raise TeacherError(f"{folder} holds no weights: {' or '.join(names)} is missing.")
        return str(folder / "open_clip_config.json"), str(weights[0])
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        config = hf_hub_download(source, "open_clip_config.json")
        try:
            return config, hf_hub_download(source, names[0])
        except LocalEntryNotFoundError:  # offline: the cache may hold the other one
            return config, hf_hub_download(source, names[1])
        except EntryNotFoundError:
            return config, hf_hub_download(source, names[1])
    except Exception as error:  # the Hub client has a dozen ways to say no; all need the same answer
        raise _cannot_be_had(source, f"open_clip:hf-hub:{source}", "open_clip:local-dir:FOLDER", error) from error


def _damaged(path: str, what: str, error: Exception) -> TeacherError:
    return TeacherError(
        f"{path} is {what} ({type(error).__name__}). It may be cut short, or a git-lfs pointer: fetch it again with "
        "hf download ID --local-dir FOLDER."
    )


def _cannot_be_had(source: str, spec: str, local_spec: str, error: Exception) -> TeacherError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TeacherError(
        f"The teacher {spec} can't be had: {reason}\n"
        f"  On a machine with a network, fetch it once:  hf download {source} --local-dir FOLDER\n"
        f"  then bring the folder here and name it:      --teacher {local_spec}\n"
        "  Or try the recipe with the small teacher that ships: --teacher demo"
    )


def _read_weights(path: str) -> dict[str, torch.Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def _layer_index(layer: int, depth: int) -> int:
    if not -depth <= layer < depth:
        raise ValueError(f"The teacher has {depth} layers: teacher_layer={layer} must be from {-depth} to {depth - 1}. "
                         f"The nearest: {max(-depth, min(layer, depth - 1))}.")  # fmt: skip
    return layer % depth


class _TimmTower(nn.Module):
    """Patch tokens of a timm ViT: prefix tokens (CLS, registers) are dropped.

    The last layer is what timm's `forward_features` gives: after the final norm, but for ViTs that mean-pool their patch
    tokens and norm only the mean; theirs come as they are pooled.
    """

    def __init__(self, trunk: nn.Module, layer: int):
        super().__init__()
        self.trunk, self.hidden_size = trunk, trunk.num_features
        self.layer = _layer_index(layer, len(trunk.blocks))
        # Rows and columns of its patches where `positions` can be asked for; None where they can't.
        self.grid = tuple(trunk.patch_embed.grid_size) if _is_plain(trunk, trunk.blocks[self.layer]) else None

    def forward(self, pixels: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        last = self.layer == len(self.trunk.blocks) - 1
        if positions is not None:
            trunk = self.trunk
            tokens = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
            for block in trunk.blocks[: self.layer]:
                tokens = block(tokens)
            tokens = _block_at(trunk.blocks[self.layer], tokens, positions + trunk.num_prefix_tokens)
            return trunk.norm(tokens) if last else tokens
        if last:
            return self.trunk.forward_features(pixels)[:, self.trunk.num_prefix_tokens :]
        return self.trunk.forward_intermediates(
            pixels, indices=[self.layer], output_fmt="NLC", intermediates_only=True, stop_early=True
        )[0]


def _is_plain(trunk: nn.Module, block: nn.Module) -> bool:
    """Whether timm's trunk and its block are the ones that `_block_at` and `_TimmTower` know, not a subclass or variant."""
    from timm.models.vision_transformer import Attention, Block, VisionTransformer

    return (
        type(trunk) is VisionTransformer
        and type(block) is Block
        and type(block.attn) is Attention
        and getattr(block.attn, "gate", None) is None
    )


def _block_at(block: nn.Module, tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """What timm's `Block` gives for the tokens at `indices` (B, M) alone: (B, M, D).

    They attend to all tokens, so keys and values are of all; queries, and what comes after them, are of these.
    """
    attention, normed = block.attn, block.norm1(tokens)
    width = attention.qkv.out_features // 3
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(take(normed, indices), weight[:width], None if bias is None else bias[:width])
    key, value = F.linear(normed, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    query, key, value = (rows.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for rows in (query, key, value))
    attended = F.scaled_dot_product_attention(attention.q_norm(query), attention.k_norm(key), value)
    attended = attention.proj(attention.norm(attended.transpose(1, 2).flatten(2)))
    tokens = take(tokens, indices) + block.ls1(attended)
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


class _ClipTower(nn.Module):
    """Patch tokens of open_clip's own ViT (OpenAI's layout), after its last norm, before its projection."""

    def __init__(self, visual: nn.Module, layer: int):
        super().__init__()
        if not hasattr(visual, "transformer"):
            raise TeacherError(f"{type(visual).__name__} has no patch tokens; a ViT is needed.")
        self.visual, self.hidden_size = visual, visual.transformer.width
        self.depth = len(visual.transformer.resblocks)
        self.layer = _layer_index(layer, self.depth)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        last = self.layer == self.depth - 1
        return self.visual.forward_intermediates(
            pixels, indices=[self.layer], output_fmt="NLC", intermediates_only=True, normalize_intermediates=last
        )["image_intermediates"][0]


# ---------------------------------------------------------------- transformers


def _load_transformers(source: str, local: bool, layer: int):
    from transformers import MODEL_MAPPING, AutoConfig

    try:
        # trust_remote_code=False: a teacher's own code is never run, nor asked about in the middle of a job.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        config = getattr(config, "vision_config", config)  # of a CLIP or SigLIP the vision tower is built, no more
        if type(config) not in MODEL_MAPPING:
            raise ValueError(f"transformers has no vision encoder for {type(config).__name__}")
        model, report = MODEL_MAPPING[type(config)].from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # as above
        if source.startswith((".", "/", "~")) and not Path(source).exists():
            raise TeacherError(f"The teacher transformers:{source} can't be had: there is no such folder.") from error
        raise _cannot_be_had(source, f"transformers:{source}", "transformers:FOLDER", error) from error
    # transformers fills what is missing with random numbers. Poolers, heads and mask tokens play no part in patch
    # features, and checkpoints of other tasks lack them; without anything else the teacher would teach noise.
    missing = [k for k in sorted(report["missing_keys"]) if not {"pooler", "head", "mask_token"} & set(k.split("."))]
    if missing:
        raise TeacherError(f"{source} lacks weights of {type(model).__name__}: {', '.join(missing[:5])} ...")
    mean, std, size = _preprocessing(source)
    kind = type(model).__name__
    if not (hasattr(config, "hidden_size") and hasattr(config, "patch_size")):
        raise TeacherError(f"{source}: {kind} has no patch tokens; a teacher is a plain ViT, as DINOv2's or CLIP's.")
    _layer_index(layer, config.num_hidden_layers)
    built_for = _side(getattr(config, "image_size", size or 224))
    # Where positions are interpolated, as its processor says: DINOv2 is built for 518 px and used at 224.
    for image_size in dict.fromkeys((size or built_for, built_for)):
        try:
            tower = _TransformersTower(model.eval(), config, layer, image_size)
            with torch.no_grad():
                tokens = tower(torch.zeros(1, 3, image_size, image_size))
            if tuple(tokens.shape[1:]) != (tower.patches, config.hidden_size):
                raise ValueError(f"{tuple(tokens.shape[1:])} instead of {(tower.patches, config.hidden_size)} features")
            break
        except Exception as error:  # a size that the encoder can't take, or no plain ViT
            if image_size == built_for:
                raise TeacherError(f"{source}: {kind} gives no square grid of patch tokens ({error}).") from error
    return tower, config.hidden_size, image_size, mean, std


def _preprocessing(source: str):
    """Mean, standard deviation and side in pixels that the encoder's image processor is configured for."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except Exception:  # no processor beside the weights
        warnings.warn(
            f"{source} has no image processor; its pixels are normalised with ImageNet's statistics.", stacklevel=4
        )
        return IMAGENET_MEAN, IMAGENET_STD, None
    size = values.get("crop_size") if values.get("do_center_crop") else values.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    size = _side(size) if size else None
    if values.get("do_normalize") is False:
        return (0.0,) * 3, (1.0,) * 3, size
    return values.get("image_mean") or IMAGENET_MEAN, values.get("image_std") or IMAGENET_STD, size


def _side(size) -> int:
    return int(size) if isinstance(size, (int, float)) else int(size[0])


class _TransformersTower(nn.Module):
    """Patch tokens of a vision encoder of transformers: the last ones of its sequence, as many as its patches."""

    def __init__(self, model: nn.Module, config, layer: int, image_size: int):
        super().__init__()
        self.model, self.depth = model, config.num_hidden_layers
        self.layer = _layer_index(layer, self.depth)
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        self.patches = (image_size // patch) ** 2
        # CLIP's last_hidden_state has not passed its last norm (its pooled CLS alone does), SigLIP's has: look once.
        norm, seen = getattr(model, "post_layernorm", None), []
        if norm is not None:
            hook = norm.register_forward_hook(lambda module, args, output: seen.append(output.ndim))
            with torch.no_grad():
                model(torch.zeros(1, 3, image_size, image_size))
            hook.remove()
        self.norm_is_due = norm is not None and 3 not in seen

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.layer == self.depth - 1:
            tokens = self.model(pixels).last_hidden_state
            tokens = self.model.post_layernorm(tokens) if self.norm_is_due else tokens
        else:  # hidden_states[0] is the embedding
            tokens = self.model(pixels, output_hidden_states=True).hidden_states[self.layer + 1]
        return tokens[:, -self.patches :]
