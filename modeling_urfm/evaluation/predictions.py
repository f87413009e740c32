# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What a pre-trained model predicts for every patch that was hidden from it."""

import copy

import torch

from ..modeling_urfm import URFMForPreTraining


@torch.no_grad()
def masked_predictions(model: URFMForPreTraining, pixel_values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Predictions of all masked patches, whatever the decoder and the share of them that it is trained on.

    Args:
        pixel_values: (batch, channels, height, width), normalised.
        mask: (batch, patches), True = hidden.

    Returns:
        (batch, patches, target features); zero where a patch was visible.
    """
    config, training = model.config, model.training
    model.config = copy.copy(config)
    model.config.decoder_mask_fraction = 1.0
    model.eval()
    try:
        outputs = model(pixel_values, bool_masked_pos=mask)
    finally:
        model.config = config
        model.train(training)
    predictions = outputs.predictions.float()
    if outputs.predicted_indices is None:
        return predictions * mask.unsqueeze(-1)
    full = predictions.new_zeros(*mask.shape, predictions.shape[-1])
    return full.scatter(1, outputs.predicted_indices.unsqueeze(-1).expand_as(predictions), predictions)
