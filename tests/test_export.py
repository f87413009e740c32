# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The encoder leaves PyTorch: ONNX, where the extra `export` is installed."""

import pytest
import torch

from modeling_urfm import URFMConfig, URFMModel


@pytest.mark.slow
def test_onnx_runtime_gives_what_torch_gives(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = URFMConfig(image_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96)
    model = URFMModel(config).eval()
    path = tmp_path / "urfm.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        model, (torch.randn(2, 3, 64, 64),), path, dynamo=True, input_names=["pixel_values"],
        output_names=["last_hidden_state", "pooler_output"], dynamic_shapes={"pixel_values": {0: batch}},
    )  # fmt: skip
    pixels = torch.randn(3, 3, 64, 64)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens, pooled = session.run(None, {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        expected = model(pixels)
    torch.testing.assert_close(torch.from_numpy(tokens), expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(pooled), expected.pooler_output, atol=1e-4, rtol=1e-4)
