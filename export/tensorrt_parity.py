"""A plan against ONNX Runtime on seeded inputs: a tolerance per output and Dice of the masks. A miss deletes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime

from contract.tensors import NetworkSpec
from export.parity import THREADS, dice, example_inputs
from export.precision import Precision
from export.tensorrt_build import PlanRefused
from export.tensorrt_plan import FACTS_FILE, PLAN_FILE

Tensors = dict[str, np.ndarray]
Run = Callable[[Tensors], Tensors]

SEED = 2026
# Largest difference over largest magnitude. Float16 keeps 11 bits and bfloat16 8; a deep network loses some of them.
RELATIVE = {Precision.FP32: 1e-3, Precision.FP16: 2e-2, Precision.BF16: 8e-2}
TIGHTER = {"text_features": 0.5, "image_detail": 0.05}  # times RELATIVE; the detail is only moved, never multiplied
LEAST_DICE = {Precision.FP32: 0.9999, Precision.FP16: 0.995, Precision.BF16: 0.98}


class PlanParityBroken(PlanRefused):
    """The plan's answers are not the network's."""


@dataclass(frozen=True)
class PlanDifference:
    """One output compared."""

    tensor: str
    relative: float  # largest absolute difference over largest magnitude
    allowed: float
    dice: float  # of value > 0, for the mask's logits


def compare_plan(
    run: Run, spec: NetworkSpec, onnx_file: Path, *, precision: Precision, batches: tuple[int, ...]
) -> tuple[PlanDifference, ...]:
    """Raises: PlanParityBroken, also for NaN. Args: run: feeds to outputs, by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
    found = []
    for batch in batches:
        feeds = example_inputs(spec, batch, SEED + batch)
        expected = dict(zip([t.name for t in spec.outputs], session.run(None, feeds), strict=True))
        found += differences(expected, run(feeds), precision)
    return tuple(found)


def differences(
    expected: Mapping[str, np.ndarray], answer: Mapping[str, np.ndarray], precision: Precision
) -> list[PlanDifference]:
    """Raises: PlanParityBroken."""
    found = []
    for name, reference in expected.items():
        one, other = reference.astype(np.float64), answer[name].astype(np.float64)
        allowed = RELATIVE[precision] * TIGHTER.get(name, 1.0)
        overlap = dice(one > 0, other > 0) if name == "mask_logits" else 1.0
        difference = PlanDifference(
            name, float(np.abs(one - other).max() / max(1.0, np.abs(one).max())), allowed, overlap
        )
        # Written so that NaN fails: every comparison with NaN is false.
        if not (difference.relative <= allowed and overlap >= LEAST_DICE[precision]):
            raise PlanParityBroken(
                f"{name}: the plan differs from ONNX Runtime by {difference.relative:.1e} of its magnitude "
                f"(allowed {allowed:.0e}), Dice {overlap:.4f} (at least {LEAST_DICE[precision]})"
            )
        found.append(difference)
    return found


def delete_plan(folder: Path) -> None:
    """Nothing of a plan that failed stays where a server could find it."""
    for name in (PLAN_FILE, FACTS_FILE):
        (folder / name).unlink(missing_ok=True)


class PlanRunner:
    """Runs a plan on this machine's GPU; torch holds the memory. Never run in this project's own tests: no GPU."""

    def __init__(self, library: ModuleType, plan: bytes, spec: NetworkSpec) -> None:
        import torch

        self.torch, self.spec = torch, spec
        self.engine = library.Runtime(library.Logger()).deserialize_cuda_engine(plan)
        if self.engine is None:
            raise PlanRefused(f"{spec.name}: this TensorRT cannot read the plan")
        self.context = self.engine.create_execution_context()

    def __call__(self, feeds: Tensors) -> Tensors:
        torch, batch = self.torch, len(next(iter(feeds.values())))
        buffers = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
        for name, buffer in buffers.items():
            self.context.set_input_shape(name, tuple(buffer.shape))
        for tensor in self.spec.outputs:
            shape = (batch, *tensor.shape)
            buffers[tensor.name] = torch.empty(shape, dtype=getattr(torch, tensor.dtype), device="cuda")
        for name, buffer in buffers.items():
            self.context.set_tensor_address(name, buffer.data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        self.context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return {tensor.name: buffers[tensor.name].cpu().numpy() for tensor in self.spec.outputs}
