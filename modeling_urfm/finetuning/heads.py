# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Heads on frozen tokens: a learnt query that pools them, and the standardisation that a linear head is trained on.

Shapes: B images, L patches, D features, K labels, H heads.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..configuration_urfm import URFMConfig
from ..modeling_urfm import URFMModel, URFMPreTrainedModel


class AttentionPooling(nn.Module):
    """One learnt query a head attends to all tokens (attentive probing; V-JEPA, Bardes et al., 2024, in its lightest form).

    Keys and values are linear in the normalised tokens, as wide as they are: 2 D^2 parameters.
    """

    def __init__(self, config: URFMConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 1 + L, D) tokens to (B, D)."""
        batch, _, width = tokens.shape
        tokens = self.norm(tokens)
        heads = (batch, -1, self.num_heads, width // self.num_heads)
        query = self.query.to(tokens.dtype).expand(batch, -1, -1)
        query, key, value = (t.reshape(heads).transpose(1, 2) for t in (query, self.key(tokens), self.value(tokens)))
        # Autocast gives keys and values its own type, the query keeps the parameter's.
        return F.scaled_dot_product_attention(query.to(key.dtype), key, value).transpose(1, 2).reshape(batch, width)


class AttentiveHead(nn.Module):
    """Pooling and classifier: what `--method attentive` trains. Its names are those of the whole model's parts."""

    def __init__(self, config: URFMConfig):
        super().__init__()
        self.pooling = AttentionPooling(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 1 + L, D) tokens to (B, K) logits."""
        return self.classifier(self.pooling(tokens))


class URFMAttentiveForImageClassification(URFMPreTrainedModel):
    """The encoder with attention pooling over all tokens and a linear layer: classification, multi-label or regression.

    `AutoModelForImageClassification.from_pretrained(folder)` gives this class for a folder that holds it.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: URFMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.urfm = URFMModel(config)
        head = AttentiveHead(config)
        self.pooling, self.classifier = head.pooling, head.classifier
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, AttentionPooling):  # at first every token counts alike
            init.zeros_(module.query)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """As of `URFMForImageClassification`: `logits` (B, K), and `loss` where labels are given."""
        outputs = self.urfm(pixel_values, **kwargs)
        logits = self.classifier(self.pooling(outputs.last_hidden_state))
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class StandardisedLinear(nn.Module):
    """A linear layer on features that are standardised by the training images: what `--method linear` trains.

    Args:
        mean, deviation: (D,) of the training images' features.
    """

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, num_labels: int):
        super().__init__()
        self.register_buffer("mean", mean.float())
        # A feature that hardly varies would be blown up to noise.
        self.register_buffer("deviation", deviation.float().clamp(min=1e-2 * float(deviation.mean()) + 1e-12))
        self.linear = nn.Linear(len(mean), num_labels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D) pooled features to (B, K) logits."""
        return self.linear((features.float() - self.mean) / self.deviation)

    @torch.no_grad()
    def fold_into(self, classifier: nn.Linear) -> None:
        """Give `classifier`, which takes features as they are, the weights that yield the same logits."""
        weight = self.linear.weight.double() / self.deviation.double()
        classifier.weight.copy_(weight)
        classifier.bias.copy_(self.linear.bias.double() - weight @ self.mean.double())


@torch.no_grad()
def unstandardise(classifier: nn.Linear, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Have a regression head that learnt standardised targets give them in their units. mean, deviation: (K,)."""
    mean, deviation = (value.to(classifier.weight) for value in (mean, deviation))
    classifier.weight.mul_(deviation[:, None])
    classifier.bias.mul_(deviation).add_(mean)


__all__ = [
    "AttentionPooling",
    "AttentiveHead",
    "StandardisedLinear",
    "URFMAttentiveForImageClassification",
    "unstandardise",
]
