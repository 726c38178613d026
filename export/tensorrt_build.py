"""One network's ONNX file to a TensorRT plan, through `tensorrt`, or `tensorrt_rtx` as a proof that it compiles.

Both libraries have the same builder, network, parser and profiles; which one is used is an argument. Engines are
strongly typed: the types are those of the graph (`precision`). A plan fits the kind of GPU on which it was built.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from contract.tensors import NetworkSpec, TensorSpec
from export.precision import Precision, with_precision
from export.triton_config import MAX_BATCH

GIB = 2**30


class PlanRefused(ValueError):
    """An engine was not built, or must not be served. One line that says why."""


@dataclass(frozen=True)
class BuildOptions:
    """What a plan is built for; recorded beside it."""

    precision: Precision = Precision.FP16
    usual_batch: int = 1  # the profile is tuned for it: a click waits for one region
    most_batch: int = MAX_BATCH
    # Scratch memory, fixed: a plan must not find less at the hospital than where it was built. 8 GiB were too little
    # for the encoder of the paper's size in FP32 at batch 4 (TensorRT for RTX); 16 were enough
    workspace_bytes: int = 16 * GIB
    version_compatible: bool = False  # runs on later minor versions of TensorRT too, at some cost in size and time

    def __post_init__(self) -> None:
        if not 1 <= self.usual_batch <= self.most_batch <= MAX_BATCH:
            raise ValueError(f"batches must satisfy 1 <= usual <= most <= {MAX_BATCH}")
        if self.workspace_bytes < GIB // 4:
            raise ValueError("a workspace below 0.25 GiB leaves no fast tactic for these networks")


@dataclass(frozen=True, eq=False)
class BuiltPlan:
    """A serialised engine, and the library's timings of its tactics for the next build."""

    plan: bytes
    timing_cache: bytes
    seconds: float


def build_plan(
    library: ModuleType,
    model: onnx.ModelProto,
    spec: NetworkSpec,
    options: BuildOptions,
    *,
    timing_cache: bytes = b"",
    ahead_of_time: str | None = None,
) -> BuiltPlan:
    """Compile `model`.

    Args:
        library: `tensorrt` or `tensorrt_rtx`.
        ahead_of_time: a compute capability such as "SM89" to compile for without a GPU; `tensorrt_rtx` only.
    Raises: PlanRefused naming the operator or tensor that was not accepted.
    """
    started = time.perf_counter()
    log = collecting_logger(library)
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse(with_precision(model, options.precision).SerializeToString()):
        fault = parser.get_error(0)
        raise PlanRefused(f"{spec.name}: the parser stopped at {fault.node_name() or 'the file'}: {fault.desc()}")
    check_tensors(library, network, spec)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.clear_flag(library.BuilderFlag.TF32)  # what the graph keeps in float32 is to be float32
    if options.version_compatible:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
    config.add_optimization_profile(profile(builder, spec, options))
    cache = config.create_timing_cache(timing_cache)
    config.set_timing_cache(cache, ignore_mismatch=False)
    if ahead_of_time is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, ahead_of_time), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanRefused(f"{spec.name}: not compiled: {log.faults[-1] if log.faults else 'no reason was given'}")
    timings = config.get_timing_cache()
    serialised = bytes(timings.serialize()) if timings is not None else b""
    return BuiltPlan(bytes(plan), serialised, time.perf_counter() - started)


def collecting_logger(library: ModuleType) -> Any:
    """A logger that keeps what went wrong and prints nothing."""

    class Collector(library.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.faults: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.faults.append(" ".join(message.split()))

    return Collector()


def profile(builder: Any, spec: NetworkSpec, options: BuildOptions) -> Any:
    """Batch 1 to the largest; every other axis is fixed."""
    found = builder.create_optimization_profile()
    for tensor in spec.inputs:
        batches = (1, options.usual_batch, options.most_batch)
        found.set_shape(tensor.name, *((batch, *tensor.shape) for batch in batches))
    return found


def check_tensors(library: ModuleType, network: Any, spec: NetworkSpec) -> None:
    """Raises: PlanRefused: the parsed network's inputs or outputs are not the contract's."""
    sides = (
        (spec.inputs, [network.get_input(index) for index in range(network.num_inputs)]),
        (spec.outputs, [network.get_output(index) for index in range(network.num_outputs)]),
    )
    for expected, found in sides:
        stated = tuple(TensorSpec(t.name, np.dtype(library.nptype(t.dtype)).name, tuple(t.shape)[1:]) for t in found)
        if stated != expected:
            differing = next((s for s in stated if s not in expected), None)
            raise PlanRefused(f"{spec.name}: the contract does not have {differing or 'so few tensors'}")
