"""The interface of an ONNX file in the contract's words, so that "file fits contract" is one comparison. No torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from contract.tensors import BATCH, NetworkSpec, TensorSpec


class InterfaceBroken(ValueError):
    """An ONNX file's tensor names, dtypes or shapes differ from the contract."""


def interface(model: onnx.ModelProto, name: str) -> NetworkSpec:
    """What the file takes and gives. Raises: InterfaceBroken when any axis but the first is dynamic, or the first
    is not `B`."""
    return NetworkSpec(name, tensors(model.graph.input), tensors(model.graph.output))


def tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(tensor(value) for value in values)


def tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    batch, *axes = kind.shape.dim
    if batch.dim_param != BATCH or any(axis.dim_value < 1 for axis in axes):
        raise InterfaceBroken(f"{value.name}: only the leading axis may be dynamic, and it must be called {BATCH}")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    return TensorSpec(value.name, dtype, tuple(axis.dim_value for axis in axes))


def check_interface(model: onnx.ModelProto, spec: NetworkSpec) -> None:
    """Raises: InterfaceBroken naming the first tensor that differs, or the count that does."""
    found = interface(model, spec.name)
    for side, ours, theirs in (("input", spec.inputs, found.inputs), ("output", spec.outputs, found.outputs)):
        if len(ours) != len(theirs):
            raise InterfaceBroken(f"{spec.name}: {len(theirs)} {side}s, the contract has {len(ours)}")
        for expected, got in zip(ours, theirs, strict=True):
            if expected != got:
                raise InterfaceBroken(f"{spec.name}: {side} is {got}, the contract says {expected}")
