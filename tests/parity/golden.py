"""Golden answers of a tiny configuration: weights and inputs from sines, so that no library's random numbers count, in
double precision, so that no processor's order of sums does (in single precision they differ by up to 1e-4).

After an intended change of the networks:  python -m tests.parity.golden  (export environment), and say why in the
commit. A change that nobody intended shows as a failing test.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from contract.sizes import SMALL
from contract.tensors import FUSION_DECODER, LABEL_BOX_MAX, LABEL_PAD, TensorSpec, network_specs
from export.networks.build import build_tags

FILE = Path(__file__).with_name("golden.json")
TINY = replace(
    SMALL, name="tiny", roi=32, tokens=8, width=32, depth=4, heads=2, window=4, adapter=16, neck=16, aggregation=4,
    prompt_heads=2, prompt_mlp=32, text_width=32, text_depth=2, text_heads=2, feature_dtype="float64",
)  # fmt: skip
PROBES = 6  # values stored per output, evenly spread


def sines(count: int, phase: float) -> np.ndarray:
    """Values in -1..1 with no short period: the step is an irrational part of a turn."""
    return np.sin(np.arange(count, dtype=np.float64) * math.pi * (math.sqrt(5) - 1) + phase)


def fill(model: nn.Module) -> None:
    """Every parameter from sines: matrices at 1/sqrt(inputs), norm weights around 1, the rest small. In place."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            values = sines(parameter.numel(), phase=0.7 * index)
            if parameter.ndim > 1:
                values *= math.sqrt(2 / parameter[0].numel())
            elif "norm" in name or "ln_" in name:
                values = (1 if name.endswith("weight") else 0) + 0.2 * values
            else:
                values *= 0.2
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))


def golden_input(tensor: TensorSpec, phase: float) -> torch.Tensor:
    shape = (1, *tensor.shape)
    values = sines(math.prod(shape), phase).reshape(shape)
    match tensor.name:
        case "organ_mask" | "mask_prompt":
            values = values > 0.3
        case "input_ids":
            values = 25000 + 24000 * values
        case "eot_index":
            values = 40 + 30 * values
        case "point_coords":
            values = 16 + 15 * values
        case "point_labels":
            values = LABEL_PAD + np.arange(values.size).reshape(shape) % (LABEL_BOX_MAX - LABEL_PAD + 1)
        case "use_text":
            values = np.ones(shape)
    return torch.from_numpy(values.astype(tensor.dtype.replace("float32", "float64")))


def answers() -> dict[str, torch.Tensor]:
    """Outputs of the three networks, chained: the decoder reads what the other two gave."""
    model = build_tags(TINY).double()
    fill(model)
    model.eval()
    known: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for name, network in model.networks().items():
            spec = network_specs(TINY)[name]
            for position, tensor in enumerate(spec.inputs):
                known.setdefault(tensor.name, golden_input(tensor, phase=0.3 * position))
            given = network(*(known[tensor.name] for tensor in spec.inputs))
            outputs |= dict(zip([tensor.name for tensor in spec.outputs], given, strict=True))
            known |= outputs
    return outputs


def summary(output: torch.Tensor) -> dict[str, list[float]]:
    """Mean, standard deviation, mean product with sines (sees any exchange of voxels), and values at even steps."""
    values = output.numpy().astype(np.float64).ravel()
    projection = float(np.mean(values * sines(values.size, 0.1)))
    places = np.linspace(0, values.size - 1, PROBES).astype(int)
    return {
        "moments": [round(float(number), 7) for number in (values.mean(), values.std(), projection)],
        "probes": [round(float(number), 6) for number in values[places]],
    }


if __name__ == "__main__":
    found = answers()
    assert tuple(found)[-2:] == tuple(tensor.name for tensor in network_specs(TINY)[FUSION_DECODER].outputs)
    FILE.write_text(json.dumps({name: summary(output) for name, output in found.items()}, indent=2) + "\n")
