"""`python -m export describe`: parameters, operations and memory of each network, worked out from the graph itself.

Operations are counted in the ONNX graph, a multiplication and an addition as two, for convolutions and products of
matrices: the rest is a few per cent. Memory is that of weights and of the largest moment of a run that frees what
nobody will read again, at the stated precision; a real engine needs more (workspace) or less (fused operators).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer
from onnx import NodeProto, TensorProto, helper
from rich.console import Console
from rich.table import Table

from contract.bundle import BundleInvalid, load_bundle
from contract.sizes import Sizes
from contract.tensors import BATCH, NETWORKS
from export.networks.build import Tags
from export.precision import Precision, with_precision
from export.refusal import refusal

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Analysis:
    """Of one network at one batch and precision."""

    operations: int
    weight_bytes: int
    peak_bytes: int  # of activations, inputs and outputs included


def main(
    bundle: Annotated[Path, typer.Option(help="Directory of the bundle.")] = Path("model_repository"),
    batch: Annotated[list[int] | None, typer.Option(help="Regions in one run; may be given again.")] = None,
    precision: Annotated[list[Precision] | None, typer.Option(help="May be given again.")] = None,
) -> None:
    """One line per network, precision and batch."""
    console = Console()
    try:
        found = load_bundle(bundle)
    except BundleInvalid as error:
        raise refusal(error) from error
    table = Table("network", "precision", "batch", "parameters", "GFLOP", "weights, MB", "peak activations, MB")
    counted = parameters(found.sizes)
    for network in NETWORKS:
        model = onnx.load(found.onnx_path(network))
        for kind in precision or list(Precision):
            lowered = with_precision(model, kind)
            for size in batch or [1]:
                result = analyse(lowered, size)
                cells = (result.operations / 1e9, result.weight_bytes / 1e6, result.peak_bytes / 1e6)
                table.add_row(network, kind.value, str(size), f"{counted[network]:,}", *(f"{c:,.1f}" for c in cells))
    console.print(table)


def parameters(sizes: Sizes) -> dict[str, int]:
    """By network. The graph cannot say: it holds constants too, and one tensor for two that are equal."""
    with torch.device("meta"):
        networks = Tags(sizes).networks()
    return {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}


def analyse(model: onnx.ModelProto, batch: int) -> Analysis:
    """Args: model: with the batch axis named as in the contract."""
    shapes, sizes = tensor_shapes(model, batch)
    weights = {tensor.name for tensor in model.graph.initializer}
    return Analysis(
        operations=sum(operations(node, shapes) for node in model.graph.node),
        weight_bytes=sum(sizes[name] for name in weights),
        peak_bytes=peak(model.graph, sizes, weights),
    )


IN_BATCHES = re.compile(rf"(?:(\d+)\*)?{BATCH}$")  # an axis such as "B" or "192*B"


def tensor_shapes(model: onnx.ModelProto, batch: int) -> tuple[dict[str, Shape], dict[str, int]]:
    """(shape, bytes) of every tensor: those that the exporter wrote down, with the batch set, and inferred ones.
    Raises: ValueError: an axis is not known, so that nothing can be counted."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output, *fixed.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if (found := IN_BATCHES.match(axis.dim_param)) is not None:
                axis.dim_value = batch * int(found[1] or 1)
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes, sizes = {}, {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        shapes[value.name] = tuple(axis.dim_value for axis in kind.shape.dim)
        if 0 in shapes[value.name]:
            raise ValueError(f"{value.name}: its shape {shapes[value.name]} is not known")
        sizes[value.name] = math.prod(shapes[value.name]) * item_bytes(kind.elem_type)
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        sizes[tensor.name] = math.prod(tensor.dims) * item_bytes(tensor.data_type)
    return shapes, sizes


def item_bytes(kind: int) -> int:
    return 2 if kind == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(kind).itemsize


def operations(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Of a convolution or a matrix product, else 0."""
    if node.op_type == "Conv":
        return 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("MatMul", "Gemm"):
        inner = shapes[node.input[0]][-1]  # no Gemm of ours transposes its first operand
        return 2 * math.prod(shapes[node.output[0]]) * inner
    return 0


def peak(graph: onnx.GraphProto, sizes: Mapping[str, int], weights: set[str]) -> int:
    """Largest sum of tensors alive at one node, when each is freed after its last reader."""
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    end = len(graph.node)
    last |= {value.name: end for value in graph.output}
    alive = sum(sizes[value.name] for value in graph.input)
    most = alive
    for index, node in enumerate(graph.node):
        alive += sum(sizes.get(name, 0) for name in node.output)
        most = max(most, alive)
        done = {*node.input, *node.output} - weights
        alive -= sum(sizes.get(name, 0) for name in done if last.get(name, index) == index)
    return most
