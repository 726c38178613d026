"""Parameters, operations and memory of a graph, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from contract.bundle import load_bundle  # noqa: E402
from contract.sizes import VIT_B  # noqa: E402
from contract.tensors import CLIP_TEXT_EMBEDDER, NETWORKS, network_specs  # noqa: E402
from export.__main__ import command_line  # noqa: E402
from export.describe import analyse, parameters  # noqa: E402
from export.networks.build import Tags  # noqa: E402
from export.parity import example_inputs  # noqa: E402
from export.precision import Precision, with_precision  # noqa: E402

BUNDLE = Path(__file__).resolve().parents[2] / "model_repository"


@pytest.fixture
def model():
    """(B, 4) times (4, 6), ReLU, times (6, 2): 24 + 12 weights."""
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "two"], ["mask_logits"]),
    ]
    shapes = {"one": (4, 6), "two": (6, 2)}
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    sizes = {"x": 4, "mask_logits": 2}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", size]) for name, size in sizes.items()]
    graph = helper.make_graph(nodes, "little", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_figures_by_hand(model):
    found = analyse(model, batch=3)
    assert found.operations == 2 * 3 * 4 * 6 + 2 * 3 * 6 * 2
    assert found.weight_bytes == 36 * 4
    assert found.peak_bytes == 2 * 3 * 6 * 4, "a and b are alive at once, x no longer"


def test_operations_grow_with_the_batch_and_weights_do_not(model):
    one, four = analyse(model, 1), analyse(model, 4)
    assert four.operations == 4 * one.operations
    assert four.weight_bytes == one.weight_bytes


def test_half_precision_halves_the_weights_but_those_before_the_logits(model):
    found = analyse(with_precision(model, Precision.FP16), batch=1)
    assert found.weight_bytes == 24 * 2 + 12 * 4


@pytest.mark.parametrize("network", NETWORKS)
def test_operations_of_the_bundles_graphs_are_those_that_torch_counts(network):
    bundle = load_bundle(BUNDLE)
    with torch.device("meta"):
        module = Tags(bundle.sizes).networks()[network]
    for batch in (1, 3):
        inputs = example_inputs(network_specs(bundle.sizes)[network], batch, seed=0).values()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            module(*(torch.from_numpy(array).to("meta") for array in inputs))
        graph = onnx.load(bundle.onnx_path(network))
        for precision in Precision:
            assert analyse(with_precision(graph, precision), batch).operations == counter.get_total_flops()


def test_a_tensor_of_unknown_shape_is_not_counted_as_nothing(model):
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["B", "x"]))
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ValueError, match=r"a: its shape \(2, 0\) is not known"):
        analyse(model, batch=2)


def test_parameters_are_those_of_the_networks():
    assert parameters(VIT_B)[CLIP_TEXT_EMBEDDER] == 123_650_304, "CLIP L/14's text tower"


def test_the_command_prints_a_line_for_each_network_precision_and_batch():
    given = ["--bundle", str(BUNDLE), "--precision", "fp32", "--precision", "fp16", "--batch", "1", "--batch", "4"]
    done = CliRunner().invoke(command_line(), ["describe", *given], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [row[:3] for row in rows] == [
        [network, precision, batch] for network in NETWORKS for precision in ("fp32", "fp16") for batch in "14"
    ]
    counted = parameters(load_bundle(BUNDLE).sizes)
    assert [row[3] for row in rows] == [f"{counted[network]:,}" for network in NETWORKS for _ in range(4)]
