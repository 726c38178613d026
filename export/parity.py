"""torch against ONNX Runtime on seeded inputs: largest difference per output, and Dice of the masks.

Zero-initialised parameters (relative positions, label embeddings, every extension) hide export faults, because a
wrong path times zero is right. `randomise_zeros` gives them values; parity on a graph is only evidence after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from contract.tensors import LABEL_BOX_MAX, LABEL_PAD, NetworkSpec, TensorSpec

TOLERANCE = 1e-4  # absolute for values up to FULL_SCALE, in proportion beyond: float32 carries 7 digits
FULL_SCALE = 10.0  # |logit| of a sure voxel
HALF_TOLERANCE = 2e-2  # float16 features: 3 digits
LEAST_DICE = 0.9999
RANDOM_STD = 0.05  # of randomised parameters: large enough that a lost path changes logits by far more than 1e-4
MOST_TOKEN, FIRST_EOT, LAST_EOT = 49405, 2, 76  # ordinary vocabulary; where an end token may stand
THREADS = 2


class ParityBroken(ValueError):
    """ONNX Runtime's answer differs from torch's."""


@dataclass(frozen=True)
class Difference:
    """One output compared: largest absolute difference, largest magnitude, what was allowed, Dice of value > 0."""

    tensor: str
    largest: float
    magnitude: float
    tolerance: float
    dice: float

    def __post_init__(self) -> None:
        # Written so that NaN fails: every comparison with NaN is false.
        if not (self.largest <= self.tolerance and self.dice >= LEAST_DICE):
            raise ParityBroken(
                f"{self.tensor}: torch and ONNX Runtime differ by {self.largest:.2e} (allowed {self.tolerance:.0e}), "
                f"Dice {self.dice:.6f} (at least {LEAST_DICE})"
            )


def example_inputs(spec: NetworkSpec, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Random inputs of the contract's shapes, in the ranges the networks see, in positional order."""
    generator = np.random.default_rng(seed)
    return {tensor.name: example(tensor, batch, generator) for tensor in spec.inputs}


def example(tensor: TensorSpec, batch: int, generator: np.random.Generator) -> np.ndarray:
    shape = (batch, *tensor.shape)
    match tensor.name:
        case "organ_mask" | "mask_prompt":
            values = generator.random(shape) > 0.5
        case "input_ids":
            values = generator.integers(1, MOST_TOKEN, shape, endpoint=True)
        case "eot_index":
            values = generator.integers(FIRST_EOT, LAST_EOT, shape, endpoint=True)
        case "point_coords":  # some outside the cube: they must sample zeros
            values = generator.uniform(-8, 136, shape)
        case "point_labels":
            values = generator.integers(LABEL_PAD, LABEL_BOX_MAX, shape, endpoint=True)
        case "use_text":
            values = np.ones(shape)
        case "align_feat":  # unit length over channels
            values = unit(generator.standard_normal(shape), axis=1)
        case "text_features":
            values = unit(generator.standard_normal(shape), axis=-1)
        case _:
            values = generator.standard_normal(shape)
    return values.astype(tensor.dtype)


def unit(vectors: np.ndarray, axis: int) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=axis, keepdims=True)


def randomise_zeros(model: nn.Module, seed: int) -> int:
    """Fill every all-zero parameter with small random values, in place. Returns: how many there were."""
    generator = torch.Generator().manual_seed(seed)
    zeros = [parameter for parameter in model.parameters() if not parameter.any()]
    with torch.no_grad():
        for parameter in zeros:
            parameter.copy_(RANDOM_STD * torch.randn(parameter.shape, generator=generator))
    return len(zeros)


def compare(network: nn.Module, spec: NetworkSpec, path: Path, *, batch: int, seed: int) -> tuple[Difference, ...]:
    """Each output of the ONNX file at `path` against torch's. Raises: ParityBroken, also for NaN."""
    feeds = example_inputs(spec, batch, seed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    answers = session.run([tensor.name for tensor in spec.outputs], feeds)
    with torch.inference_mode():
        expected = network.eval()(*(torch.from_numpy(feed) for feed in feeds.values()))
    return tuple(
        difference(tensor, reference.numpy(), answer)
        for tensor, reference, answer in zip(spec.outputs, expected, answers, strict=True)
    )


def difference(tensor: TensorSpec, expected: np.ndarray, answer: np.ndarray) -> Difference:
    """Raises: ParityBroken."""
    tensor.check(answer)
    tensor.check(expected)
    magnitude = float(np.abs(expected.astype(np.float32)).max())
    relative = HALF_TOLERANCE if tensor.dtype == "float16" else TOLERANCE
    return Difference(
        tensor=tensor.name,
        largest=float(np.abs(expected.astype(np.float64) - answer.astype(np.float64)).max()),
        magnitude=magnitude,
        tolerance=relative * max(1.0, magnitude / FULL_SCALE),
        dice=dice(expected > 0, answer > 0) if tensor.name == "mask_logits" else 1.0,
    )


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """1 when both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0
