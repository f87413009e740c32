# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""A URFM model as a graph that needs no PyTorch code: `torch.export`, ONNX, and ONNX with 8-bit weights.

All graphs take `pixel_values` (batch, channels, height, width), float32, where batch, height and width are free; height and
width are multiples of the patch size, of at least two patches. The position embeddings are interpolated inside the graph.
"""

import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from ..modeling_urfm import URFMEmbeddings, URFMPreTrainedModel


OPSET = 18  # the one that torch's exporter writes without converting; onnxruntime >= 1.14, onnxruntime-web and -mobile
OUTPUTS = {
    "encoder": ("last_hidden_state", "pooler_output"),
    "classifier": ("logits",),
    "segmenter": ("logits",),
}
# Names of the free sides in the ONNX graph; `*` stands for what is fixed.
SIDES = {
    "pixel_values": ("batch", "*", "height", "width"),
    "last_hidden_state": ("batch", "tokens", "*"),
    "pooler_output": ("batch", "*"),
    "logits": ("batch", "*", "logits_height", "logits_width"),
}
MAX_PATCHES = 512  # a side: torch.export wants a bound
# Protobuf takes no file of 2 GiB; the weights of larger models lie beside the graph.
MAX_ONE_FILE = 1_800_000_000


def cubic_weights(count: int, side: int) -> torch.Tensor:
    """Bicubic interpolation of `side` values to `count`, as a matrix (count, side).

    The same numbers as `F.interpolate(mode="bicubic", align_corners=False)`: a = -0.75, no antialiasing, edges repeated;
    the unit matrix where `count` is `side`. Written out, as runtimes differ in their cubic resizing and some have none.

    >>> cubic_weights(2, 4)
    tensor([[ 0.5000,  0.5938, -0.0938,  0.0000],
            [ 0.0000, -0.0938,  0.5938,  0.5000]])
    """
    a = -0.75
    place = (torch.arange(count, dtype=torch.float32) + 0.5) * (side / count) - 0.5
    first, columns = place.floor(), torch.arange(side, dtype=torch.float32)
    weights = 0.0
    for tap in range(-1, 3):
        away = (place - first - tap).abs()
        near = ((a + 2) * away - (a + 3)) * away * away + 1
        far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
        taken = (first + tap).clamp(0, side - 1)
        weights = weights + (taken[:, None] == columns) * torch.where(away <= 1, near, far)[:, None]
    return weights


class AnySizeEmbeddings(nn.Module):
    """`URFMEmbeddings` without a question about the size, so that a graph holds for all of them."""

    def __init__(self, embeddings: URFMEmbeddings):
        super().__init__()
        self.patch_size, self.patch_embeddings = embeddings.patch_size, embeddings.patch_embeddings
        positions = embeddings.position_embeddings.detach()
        side = int((positions.shape[1] - 1) ** 0.5)
        self.register_buffer("cls_token", embeddings.cls_token.detach() + positions[:, :1])
        self.register_buffer("grid", positions[0, 1:].reshape(side, side, -1).contiguous())

    def forward(self, pixel_values: torch.Tensor, visible_indices: None = None) -> torch.Tensor:
        """(B, C, H, W) to (B, 1 + L, D)."""
        rows, columns = pixel_values.shape[-2] // self.patch_size, pixel_values.shape[-1] // self.patch_size
        side, width = self.grid.shape[1:]
        grid = (cubic_weights(columns, side) @ self.grid).reshape(side, columns * width)
        grid = (cubic_weights(rows, side) @ grid).reshape(1, rows * columns, width)
        patches = self.patch_embeddings(pixel_values) + grid
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)


class ExportedModel(nn.Module):
    """A model of the family whose output is a dictionary of plain tensors, by `OUTPUTS`."""

    def __init__(self, model: URFMPreTrainedModel, task: str):
        super().__init__()
        self.model, self.task = model.eval().requires_grad_(False), task
        encoder = getattr(model, "urfm", model)
        encoder.embeddings = AnySizeEmbeddings(encoder.embeddings)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(pixel_values=pixel_values)
        return {name: outputs[name] for name in OUTPUTS[self.task]}


def to_torch_export(model: ExportedModel, attention: str = "sdpa") -> torch.export.ExportedProgram:
    """The graph of `torch.export`.

    Args:
        attention: "sdpa" is the faster one in PyTorch, "eager", written out, in ONNX Runtime (ViT-B/16, batch 1, two
            cores: 141 against 180 ms).
    """
    config, encoder = model.model.config, getattr(model.model, "urfm", model.model)
    patch = config.patch_size
    before = config._attn_implementation
    model.model.set_attn_implementation(attention)
    sides = {
        0: torch.export.Dim("batch", min=1),
        2: patch * torch.export.Dim("rows", min=2, max=MAX_PATCHES),
        3: patch * torch.export.Dim("columns", min=2, max=MAX_PATCHES),
    }
    # No side of the example equals another or the grid's: what is equal by chance would be taken for the rule.
    side = encoder.embeddings.grid.shape[0]
    example = torch.zeros(2, config.num_channels, patch * (side + 3), patch * (side + 5))
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(model, (example,), dynamic_shapes={"pixel_values": sides}, strict=False)
    finally:
        model.model.set_attn_implementation(before)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that made it
    return program


def save_torch_export(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a `.pt2` file: `torch.export.load(path).module()(pixel_values)` needs PyTorch alone."""
    with _quiet():
        torch.export.save(program, path)


def save_onnx(model: ExportedModel, path: Path) -> None:
    """Write an ONNX file by torch's dynamo exporter, with opset 18 and the weights inside.

    Weights that no single file can hold go into `NAME.onnx_data` beside it, where transformers.js looks for them.
    """
    import onnx

    outputs = list(OUTPUTS[model.task])
    with _quiet():
        program = torch.onnx.export(
            to_torch_export(model, "eager"), dynamo=True, opset_version=OPSET, input_names=["pixel_values"],
            output_names=outputs, verbose=False,
        )  # fmt: skip
    proto = program.model_proto
    _name_sides(proto.graph)
    del proto.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces
    for function in proto.functions:
        del function.metadata_props[:]
    _save(onnx, proto, path)


def save_int8(onnx_path: Path, path: Path) -> None:
    """Write an ONNX file with the weights of the encoder's linear layers in 8 bits and inputs quantised as they come.

    Per output channel, signed, in 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which
    overflow with all 8. The patch convolution, norms, softmax, position embeddings and a classifier on pooled features
    stay in float32: they cost little, and precision is lost there first.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load(str(onnx_path), load_external_data=False)
    matrices = {value.name for value in proto.graph.initializer if len(value.dims) == 2}
    layers = [node.name for node in proto.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_dynamic(
            str(onnx_path), str(path), op_types_to_quantize=["MatMul"], nodes_to_quantize=layers, per_channel=True,
            reduce_range=True, weight_type=QuantType.QInt8, use_external_data_format=_has_data(onnx_path),
        )  # fmt: skip
    finally:
        logging.getLogger().removeFilter(_no_advice)
    if _has_data(onnx_path):  # 8-bit weights mostly fit into one file after all
        made = onnx.load(str(path))
        for beside in path.parent.glob(f"{path.name}*"):
            beside.unlink()
        _save(onnx, made, path)


def _save(onnx, proto, path: Path) -> None:
    if proto.ByteSize() <= MAX_ONE_FILE:
        onnx.save_model(proto, str(path))
        return
    onnx.save_model(proto, str(path), save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024)


def _has_data(path: Path) -> bool:
    return path.with_name(f"{path.name}_data").is_file()


def _name_sides(graph) -> None:
    """Call the free sides by their names in place of the exporter's symbols."""
    for value in (*graph.input, *graph.output):
        for side, name in zip(value.type.tensor_type.shape.dim, SIDES[value.name]):
            if name != "*":
                side.dim_param = name
    del graph.value_info[:]  # in terms of the symbols, and not needed


def _no_advice(record: logging.LogRecord) -> bool:
    """Not shown: onnxruntime's advice to pre-process, which fixes shapes."""
    return "pre-processing before quantization" not in record.getMessage()


class _quiet(warnings.catch_warnings):
    """Exporters warn of their own parts' futures."""

    def __enter__(self):
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered


__all__ = ["AnySizeEmbeddings", "ExportedModel", "cubic_weights", "save_int8", "save_onnx", "save_torch_export"]
