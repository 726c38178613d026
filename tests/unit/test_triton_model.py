"""The Python backend that is copied into the repository, run under a stand-in for Triton's own module."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self):
        return self.array


@dataclass
class Response:
    output_tensors: list = field(default_factory=list)
    error: str | None = None


@pytest.fixture
def model(tmp_path, monkeypatch):
    """`total = image + 10 * weight` per item of the batch, opened as Triton opens it: version 1 of a model folder."""
    monkeypatch.setitem(
        sys.modules,
        "triton_python_backend_utils",
        SimpleNamespace(
            Tensor=Tensor,
            InferenceResponse=Response,
            TritonError=str,
            get_input_tensor_by_name=lambda request, name: request[name],
        ),
    )
    monkeypatch.delitem(sys.modules, "export.triton_model", raising=False)
    module = importlib.import_module("export.triton_model")
    monkeypatch.setitem(sys.modules, "export.triton_model", module)  # forgotten again with the stand-in

    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in ("image", "weight", "total")
    }
    nodes = [helper.make_node("Mul", ["weight", "ten"], ["w"]), helper.make_node("Add", ["image", "w"], ["total"])]
    ten = helper.make_tensor("ten", TensorProto.FLOAT, [1], [10.0])
    graph = helper.make_graph(nodes, "g", [values["image"], values["weight"]], [values["total"]], [ten])
    (tmp_path / "1").mkdir()
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "1" / "model.onnx",
    )
    config = {
        "input": [{"name": "image"}, {"name": "weight"}],
        "output": [{"name": "total"}],
        "parameters": {"threads": {"string_value": "1"}},
    }
    instance = module.TritonPythonModel()
    instance.initialize({"model_config": json.dumps(config), "model_repository": str(tmp_path), "model_version": "1"})
    return instance


def request(image, weight):
    arrays = {"image": np.array(image, np.float32), "weight": np.array(weight, np.float32)}
    return {name: Tensor(name, array) for name, array in arrays.items()}


def test_one_request_gets_one_response_with_the_configured_output_name(model):
    (response,) = model.execute([request([[1, 2]], [[3, 4]])])
    assert response.error is None
    (tensor,) = response.output_tensors
    assert tensor.name == "total"
    np.testing.assert_array_equal(tensor.array, [[31, 42]])


def test_requests_of_unequal_batch_are_joined_and_each_gets_its_own_rows_back(model):
    first, second = model.execute([request([[1, 2]], [[0, 0]]), request([[3, 4], [5, 6]], [[1, 1], [2, 2]])])
    np.testing.assert_array_equal(first.output_tensors[0].array, [[1, 2]])
    np.testing.assert_array_equal(second.output_tensors[0].array, [[13, 14], [25, 26]])


def test_a_failing_run_answers_every_request_with_an_error_that_carries_no_values(model):
    responses = model.execute([request([[1, 2, 777]], [[1, 2, 777]]), request([[1, 2, 777]], [[1, 2, 777]])])
    assert len(responses) == 2
    for response in responses:
        assert response.error.startswith("inference failed: ")
        assert "777" not in response.error
        assert response.output_tensors == []


def test_the_model_still_answers_after_a_failure(model):
    model.execute([request([[1, 2, 3]], [[1, 2, 3]])])
    (response,) = model.execute([request([[1, 2]], [[0, 1]])])
    np.testing.assert_array_equal(response.output_tensors[0].array, [[1, 12]])
