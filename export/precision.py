"""An ONNX graph in float32 to one with its heavy products in float16 or bfloat16, for strongly typed engines.

TensorRT takes the types that the graph states, so the graph has to state them. Half precision: convolutions and
products with weights, the two products of an attention, and whatever only moves, joins or rectifies their results.
Float32 stays everything else: norms, softmax, residual sums, similarities, click sampling, prompt maps, resizing, and
the last weighted layer before a logit or a text feature. Inputs and outputs keep the contract's types.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

WEIGHTED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
MOVING = frozenset({"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity", "Relu", "LeakyRelu", "Concat"})
WITH_CONSTANT = frozenset({"Add", "Mul", "Div"})  # moving too, when the other operand is a constant: bias, scale
DATA_INPUTS = {"Concat": None}  # of the moving ones, all inputs carry data; of the others the first
FULL_OUTPUTS = frozenset({"mask_logits", "semantic_map", "text_features"})


class Precision(StrEnum):
    """Of the heavy products."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


TYPES = {
    Precision.FP16: (TensorProto.FLOAT16, np.float16),
    Precision.BF16: (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}


def with_precision(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """The model itself for FP32, else a new one. The graph must have no subgraphs (ours have none)."""
    if precision is Precision.FP32:
        return model
    return Lowering(model, precision).result()


class Lowering:
    """One pass over the nodes in order. Of each float tensor it knows in which type it was made; it casts on demand."""

    def __init__(self, model: onnx.ModelProto, precision: Precision) -> None:
        self.model, self.graph = model, model.graph
        self.low, self.dtype = TYPES[precision]
        self.suffix = f"__{precision.value}"
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        self.floats = self.float_tensors()
        self.constants = self.constant_tensors()
        self.full = {id(node) for node in self.last_weighted()}
        self.made_low: set[str] = set()
        self.nodes: list[NodeProto] = []
        self.cast: dict[tuple[str, int], str] = {}
        self.lowered: dict[str, TensorProto] = {}

    def result(self) -> onnx.ModelProto:
        for node in self.graph.node:
            self.add(node)
        used = {name for node in self.nodes for name in node.input}
        weights = [tensor for tensor in self.graph.initializer if tensor.name in used]
        weights += self.lowered.values()
        graph = helper.make_graph(
            self.nodes, self.graph.name, self.graph.input, self.graph.output, weights, value_info=self.shapes()
        )
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def shapes(self) -> Iterator[ValueInfoProto]:
        """Those that the exporter wrote down, with the types of now: inference alone does not find all of them."""
        for value in self.graph.value_info:
            copy = ValueInfoProto()
            copy.CopyFrom(value)
            if value.name in self.made_low:
                copy.type.tensor_type.elem_type = self.low
            yield copy

    def add(self, node: NodeProto) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        low = self.is_low(node)
        for place, name in enumerate(node.input):
            if name in self.floats:
                copy.input[place] = self.as_low(name) if low else self.as_full(name)
        self.nodes.append(copy)
        if not low:
            return
        for place, name in enumerate(node.output):
            self.made_low.add(name)
            if name in self.outputs:  # keeps its name and type at the graph's border
                copy.output[place] = f"{name}{self.suffix}"
                self.cast[name, self.low] = copy.output[place]
                self.nodes.append(helper.make_node("Cast", [copy.output[place]], [name], to=TensorProto.FLOAT))

    def is_low(self, node: NodeProto) -> bool:
        if node.op_type in WEIGHTED:
            return id(node) not in self.full and (self.has_weight(node) or self.in_attention(node))
        data = [name for name in node.input if name in self.floats]
        if node.op_type in MOVING:
            data = data[:1] if node.op_type not in DATA_INPUTS else data
        elif node.op_type not in WITH_CONSTANT:
            return False
        varying = [name for name in data if name not in self.constants]
        return bool(varying) and all(name in self.made_low for name in varying)

    def has_weight(self, node: NodeProto) -> bool:
        return any(name in self.constants for name in node.input[:2])

    def in_attention(self, node: NodeProto) -> bool:
        """The product that softmax reads, perhaps scaled and masked before, or the one that reads softmax."""
        before = self.producers.get(node.input[0])
        if before is not None and before.op_type == "Softmax":
            return True
        after = self.consumers.get(node.output[0], [])
        while len(after) == 1 and after[0].op_type in WITH_CONSTANT:
            after = self.consumers.get(after[0].output[0], [])
        return any(reader.op_type == "Softmax" for reader in after)

    def as_low(self, name: str) -> str:
        if name in self.initializers:
            if name not in self.lowered:
                values = numpy_helper.to_array(self.initializers[name]).astype(self.dtype)
                self.lowered[name] = numpy_helper.from_array(values, f"{name}{self.suffix}")
            return self.lowered[name].name
        if name in self.made_low and name not in self.outputs:
            return name
        return self.converted(name, self.low, self.suffix)

    def as_full(self, name: str) -> str:
        if name not in self.made_low or name in self.outputs:
            return name
        return self.converted(name, TensorProto.FLOAT, "__fp32")

    def converted(self, name: str, to: int, suffix: str) -> str:
        if (name, to) not in self.cast:
            self.cast[name, to] = f"{name}{suffix}"
            self.nodes.append(helper.make_node("Cast", [name], [f"{name}{suffix}"], to=to))
        return self.cast[name, to]

    def float_tensors(self) -> set[str]:
        """Names of all float32 tensors, by the types that the exporter wrote down or, where one lacks, inferred."""
        graph = self.graph
        known = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
        known |= {value.name: value.type.tensor_type.elem_type for value in graph.output}
        if any(name and name not in known for name in self.producers):
            graph = onnx.shape_inference.infer_shapes(self.model).graph
            known |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        found = {name for name, kind in known.items() if kind == TensorProto.FLOAT}
        return found | {name for name, tensor in self.initializers.items() if tensor.data_type == TensorProto.FLOAT}

    def constant_tensors(self) -> set[str]:
        """Weights, and what is computed from weights alone."""
        constants = set(self.initializers)
        for node in self.graph.node:
            if all(name in constants for name in node.input if name):
                constants |= set(node.output)
        return constants

    def last_weighted(self) -> Iterator[NodeProto]:
        """The last layers with weights on the ways to the outputs that stay in float32."""
        waiting, seen = [name for name in FULL_OUTPUTS if name in self.producers], set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.producers:
                continue
            seen.add(name)
            node = self.producers[name]
            if node.op_type in WEIGHTED and self.has_weight(node):
                yield node
            else:
                waiting += node.input
