"""Parameters, operations and memory of a graph, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from export.describe import analyse  # noqa: E402
from export.precision import Precision, with_precision  # noqa: E402


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
    assert found.parameters == 36
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
    assert found.parameters == 36
