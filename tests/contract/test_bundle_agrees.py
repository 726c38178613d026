"""The shipped model_repository: contract = ONNX files = config.pbtxt = bundle.json. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.bundle import load_bundle, onnx_file
from contract.tensors import ENSEMBLE, NETWORKS, NetworkSpec, TensorSpec, network_specs
from export.interface import check_interface
from export.triton_config import THREADS, configs
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
DTYPES = {"TYPE_FP32": "float32", "TYPE_FP16": "float16", "TYPE_INT32": "int32"}


@pytest.fixture(scope="module")
def bundle():
    require((REPOSITORY / "bundle.json").exists(), "model_repository/bundle.json is missing: run `python -m export`")
    return load_bundle(REPOSITORY)


def config(model):
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def spec_of(message):
    """A Triton model's interface in the contract's words."""

    def tensors(side):
        return tuple(
            TensorSpec(tensor.name, DTYPES[model_config_pb2.DataType.Name(tensor.data_type)], tuple(tensor.dims))
            for tensor in side
        )

    return NetworkSpec(message.name, tensors(message.input), tensors(message.output))


@pytest.mark.parametrize("network", NETWORKS)
def test_each_onnx_file_has_the_contracts_interface(bundle, network):
    model = onnx.load_model(bundle.onnx_path(network))
    check_interface(model, network_specs(bundle.sizes)[network])


@pytest.mark.parametrize("network", NETWORKS)
def test_each_onnx_file_is_whole_at_opset_18_and_names_no_path(bundle, network):
    model = onnx.load_model(bundle.onnx_path(network), load_external_data=False)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("model", [*NETWORKS, ENSEMBLE])
def test_each_triton_model_has_the_contracts_interface(bundle, model):
    assert spec_of(config(model)) == network_specs(bundle.sizes)[model]


def test_the_configurations_are_what_the_generator_writes_today(bundle):
    digests = {network: bundle.files[onnx_file(network)] for network in NETWORKS}
    texts = configs(network_specs(bundle.sizes), bundle=bundle.identity, digests=digests, threads=THREADS)
    for model, text in texts.items():
        assert (REPOSITORY / model / "config.pbtxt").read_text() == text, f"{model}: run `python -m export` again"


@pytest.mark.parametrize("network", NETWORKS)
def test_the_backend_beside_each_onnx_file_is_the_one_in_export(bundle, network):
    source = (ROOT / "export" / "triton_model.py").read_text()
    assert (REPOSITORY / network / "1" / "model.py").read_text() == source


def test_the_ensemble_has_a_version_folder_that_git_keeps(bundle):
    assert (REPOSITORY / ENSEMBLE / "1" / ".gitkeep").exists()


def test_the_shipped_bundle_is_trained_and_for_research_only(bundle):
    assert bundle.trained
    assert "Research use only" in bundle.intended_use
    assert {"CT", "MR"} <= set(bundle.intensity)
