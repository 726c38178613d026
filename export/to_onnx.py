"""One network to one ONNX file: static shapes but for the batch axis, weights inside, no trace of this machine.

The dynamo exporter is used because it keeps every output shape static. It has silently miscompiled relative
positions before (a reshape straight after a batched product), which zero-initialised tables hide: `parity` is
therefore never skipped, and runs on weights without zeros.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from contract.tensors import BATCH, NetworkSpec
from export.interface import check_interface
from export.parity import example_inputs

OPSET = 18  # oldest with every operator we need, so that the widest range of runtimes reads it
TRACED_BATCH = 2  # torch.export treats an axis of 1 as a constant


def write_onnx(network: nn.Module, spec: NetworkSpec, path: Path) -> None:
    """Export `network` to `path` and check it against the contract. Raises: InterfaceBroken, onnx checker errors."""
    examples = tuple(torch.from_numpy(a) for a in example_inputs(spec, batch=TRACED_BATCH, seed=0).values())
    batch = torch.export.Dim(BATCH)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports absent libraries that we do not use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations and renamed axes; parity is the judge
        program = torch.onnx.export(
            network.eval(),
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=tuple({0: batch} for _ in examples),
            verbose=False,
        )
    model = without_traces(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    check_interface(model, spec)
    onnx.save_model(model, path, save_as_external_data=False)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model less the exporter's stack traces and scopes: they hold this machine's paths and differ per run."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    return model
