"""A bundle back to the checkpoint that it was exported from, so that weights are never lost while they are served.

The exporter transposes, gathers and folds weights; it does not mix them. So the same network is exported once more with
every weight replaced by a number of its own: where that number lies in the new graph, the weight lies in the bundle's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from onnx import numpy_helper
from torch import Tensor, nn

from contract.bundle import Bundle, BundleInvalid, load_bundle
from contract.tensors import NetworkSpec, network_specs
from export.checkpoint import Meta, save_checkpoint
from export.networks.build import build_tags
from export.refusal import refusal
from export.to_onnx import write_onnx

FIRST_NUMBER = 0x3F800001  # bits of the first float32 above 1; the next 9 * 10**8 bit patterns are finite, too
LOGIT_SCALE = "logit_scale"  # the one weight that is folded into a function of it: its exponential


class WeightsNotFound(ValueError):
    """The bundle's graph is not what this version exports, or holds a weight in a way that is not understood."""


def main(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The bundle's directory.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write: trains on, averages and exports like any other.")],
) -> None:
    """Write the checkpoint that a bundle was exported from."""
    try:
        checkpoint = recovered(load_bundle(bundle))
    except (BundleInvalid, WeightsNotFound) as error:
        raise refusal(error) from error
    save_checkpoint(checkpoint, out)
    typer.echo(f"{out}: {sum(weight.numel() for weight in checkpoint['state_dict'].values()):,} weights")


def recovered(bundle: Bundle) -> dict[str, Any]:
    """The document that `export.checkpoint` reads. Weights are equal to the bit, but `logit_scale` to a rounding.

    Raises: WeightsNotFound naming the network and, if it is one, the weight.
    """
    specs = network_specs(bundle.sizes)
    weights = {
        f"{name}.{key}": weight
        for name, network in build_tags(bundle.sizes).networks().items()
        for key, weight in weights_in(bundle.onnx_path(name), network, specs[name]).items()
    }
    meta = {key: value for key, value in asdict(bundle).items() if key in {part.name for part in fields(Meta)}}
    return {"config": bundle.configuration, "state_dict": weights, "meta": meta}


def weights_in(path: Path, network: nn.Module, spec: NetworkSpec) -> dict[str, Tensor]:
    """The weights of one ONNX file, by their names in `network`, whose own are overwritten.

    Raises: WeightsNotFound, also for weights that were never trained: the exporter merges equal tensors.
    """
    numbers = numbered(network.state_dict())
    network.load_state_dict(numbers)
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(network, spec, Path(folder) / "numbered.onnx")
        places = constants(Path(folder) / "numbered.onnx")
    held = constants(path)
    if {name: place.shape for name, place in places.items()} != {name: value.shape for name, value in held.items()}:
        raise WeightsNotFound(f"{spec.name}: its graph is not what this version exports")
    values = np.full(sum(number.numel() for number in numbers.values()), np.nan, np.float32)
    for name, place in places.items():
        index = place.view(np.int32).astype(np.int64) - FIRST_NUMBER
        if np.all((index >= 0) & (index < values.size)):
            values[index] = held[name]
        elif LOGIT_SCALE in numbers and place.size == 1 and np.isclose(place, numbers[LOGIT_SCALE].exp(), rtol=1e-6):
            values[_index(numbers[LOGIT_SCALE])] = np.log(held[name].item())
    weights = {key: torch.tensor(values[_index(number)]) for key, number in numbers.items()}
    if (missing := next((key for key, weight in weights.items() if weight.isnan().any()), None)) is not None:
        raise WeightsNotFound(f"{spec.name}: {missing} is not in its graph as it is")
    return weights


def numbered(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same shapes in which no number occurs twice."""
    sizes = [weight.numel() for weight in weights.values()]
    numbers = torch.arange(FIRST_NUMBER, FIRST_NUMBER + sum(sizes), dtype=torch.int32).view(torch.float32)
    parts = zip(weights.items(), numbers.split(sizes), strict=True)
    return {key: part.reshape(weight.shape) for (key, weight), part in parts}


def _index(number: Tensor) -> np.ndarray:
    """Which weight of all each is, counted from 0, in the shape of its tensor."""
    return number.numpy().view(np.int32) - FIRST_NUMBER  # type: ignore[no-any-return]


def constants(path: Path) -> dict[str, np.ndarray]:
    """The float32 initialisers of an ONNX file, by name."""
    graph = onnx.load(path).graph
    return {
        constant.name: np.ascontiguousarray(numpy_helper.to_array(constant))
        for constant in graph.initializer
        if constant.data_type == onnx.TensorProto.FLOAT
    }
