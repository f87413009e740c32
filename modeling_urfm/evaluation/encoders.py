# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Any image encoder, frozen: its features under its own preprocessing, behind one interface.

A spec names the encoder:

    urfm, DIR, ORG/NAME          a URFM folder or Hub id: an encoder, a checkpoint of pre-training or of fine-tuning, an
                                 adapter of peft (merged into the encoder that it was trained on)
    transformers:DIR_OR_ID       a vision encoder of transformers, or the vision part of a CLIP or SigLIP
    timm:NAME                    a model of timm; timm:local-dir:DIR and timm:hf-hub:ID as timm knows them
    open_clip:NAME/TAG           a CLIP of open_clip and its weights; open_clip:hf-hub:ID and open_clip:local-dir:DIR need
                                 no text tower (BiomedCLIP)
    random:SPEC                  the same architecture with random weights, drawn by the seed

Options follow a question mark: `?processor=DIR_OR_ID` where an encoder has no image processor of its own (there is no
default: wrong normalisation would look like a bad encoder), `?pretrained=false` for random weights of timm and open_clip.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..flags import check_choice
from .encoder_sources import fingerprint_of, grid_of, load_transformers, load_urfm
from .encoder_timm import load_open_clip, load_timm


KINDS = ("pooled", "cls", "mean", "tokens")
SCHEMES = ("transformers", "timm", "open_clip", "random")


@dataclass
class FrozenEncoder:
    """An encoder in eval mode, without gradients.

    Attributes:
        name: its spec. size: (height, width) in pixels that it takes. grid: rows and columns of its patch tokens.
        hidden_size: width of its tokens. dtype: of its weights.
        fingerprint: changes with weights, preprocessing, pooling and dtype: what its features depend on.
        module: maps normalised pixels to (CLS or None, patch tokens, its own pooled features or None).
        prepare: one image, uint8 (1 or 3, height, width), to float32 (3, *size), as the encoder's own processor does.
            Its halves are `prepare.shrink` and `prepare.normalize`. It can be pickled.
    """

    name: str
    size: tuple[int, int]
    grid: tuple[int, int]
    hidden_size: int
    fingerprint: str
    module: nn.Module
    prepare: Callable[[torch.Tensor], torch.Tensor]
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @torch.no_grad()
    def tokens(self, batch: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Normalised pixels (B, 3, H, W) -> CLS (B, D), None where there is none, and patches (B, L, D); float32."""
        cls, patches, _ = self.module(batch.to(self.device, self.dtype))
        return None if cls is None else cls.float(), patches.float()

    @torch.no_grad()
    def features(self, batch: torch.Tensor, kind: str = "pooled") -> torch.Tensor:
        """Features of normalised pixels (B, 3, H, W), float32.

        Args:
            kind: "pooled" is the encoder's own: URFM's by `config.pooling`; of a CLIP, its pooled token before the
                projection into the space that it shares with text; "cls" the CLS token, "mean" the mean of the patches,
                both after the last norm: (B, D). "tokens": all patches, (B, L, D).

        Raises:
            ValueError: a kind that does not exist, or "cls" of an encoder without CLS token.
        """
        check_choice("kind", kind, KINDS)
        cls, patches, pooled = self.module(batch.to(self.device, self.dtype))
        if kind == "tokens":
            return patches.float()
        if kind == "cls" and cls is None:
            raise ValueError(f"{self.name} has no CLS token: take --kind mean.")
        if kind == "cls" or (kind == "pooled" and pooled is None and cls is not None):
            return cls.float()
        return patches.float().mean(1) if kind == "mean" or pooled is None else pooled.float()


def load_encoder(
    spec: str, *, image_size: int | None = None, device="cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> FrozenEncoder:
    """Load a frozen encoder.

    Args:
        spec: see the module's docstring.
        image_size: side in pixels, if it is not to be the encoder's own; position embeddings are interpolated.
        dtype: of its weights. On a GPU and on processors that multiply in bfloat16 that is twice as fast or more.
        seed: of random weights.

    Raises:
        ValueError: a spec that is not understood, a folder that holds no encoder, weights that are missing, a processor
            that is missing. FileNotFoundError: nothing of that name; the nearest name is given.

    >>> import tempfile
    >>> from modeling_urfm import URFMConfig, URFMImageProcessor, URFMModel
    >>> folder = tempfile.mkdtemp()
    >>> URFMModel(URFMConfig(image_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)).save_pretrained(folder)
    >>> _ = URFMImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    >>> encoder = load_encoder(folder)
    >>> encoder.size, encoder.grid, encoder.hidden_size
    ((32, 32), (2, 2), 32)
    """
    source, options = _options(spec)
    random = source.startswith("random:")
    source = source.removeprefix("random:")
    scheme, _, rest = source.partition(":")
    load = {"transformers": load_transformers, "timm": load_timm, "open_clip": load_open_clip}.get(scheme)
    if load is None:
        if rest and "/" not in scheme and len(scheme) > 1:  # no path
            check_choice("the scheme of --encoder", scheme, SCHEMES)
        load, rest = load_urfm, source
    if not rest:
        raise ValueError(f"--encoder {spec!r} names no encoder: write a folder or an id after the last colon.")
    pretrained = not random and options.pop("pretrained", "true").lower() not in ("false", "0", "no")
    # What a checkpoint lacks and nobody uses (mask tokens, poolers) is drawn; so is the whole of `random:`.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower, prepare = load(rest, pretrained=pretrained, image_size=image_size, processor=options.get("processor"))
    tower = tower.requires_grad_(False).eval()
    try:
        with torch.no_grad():
            _, patches, _ = tower(torch.zeros(1, 3, *prepare.size))
    except Exception as error:  # of a dozen libraries: a size that it can't take, an output that is no map of patches
        raise ValueError(
            f"{spec} can't encode images of {prepare.size[0]} x {prepare.size[1]} pixels: {error}"
        ) from error
    fingerprint = fingerprint_of(tower, prepare, dtype)
    device = torch.device(device)
    tower = tower.to(device, dtype)
    grid = grid_of(patches.shape[1], prepare.size)
    return FrozenEncoder(spec, prepare.size, grid, patches.shape[2], fingerprint, tower, prepare, dtype)


def _options(spec: str) -> tuple[str, dict[str, str]]:
    """A spec without its options, and these."""
    source, _, query = spec.partition("?")
    options = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        check_choice(f"--encoder {spec}: option", name, ("processor", "pretrained"))
        if not equals or not value:
            raise ValueError(f"--encoder {spec}: option {name!r} has no value. Write {name}=VALUE.")
        options[name] = value
    return source, options
