"""The compile proof: NVIDIA's parser and compiler (TensorRT for RTX, ahead of time, no GPU) accept every graph.

A proxy: the same builder code and profiles as for `tensorrt`, but no plan for Triton, and nothing is run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # TensorRT's of its own functions
]

from onnx import TensorProto  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from contract.sizes import SMALL, VIT_B  # noqa: E402
from contract.tensors import FUSION_DECODER, NETWORKS, SAM_ENCODER, network_specs  # noqa: E402
from export.__main__ import command_line  # noqa: E402
from export.checkpoint import untrained  # noqa: E402
from export.parity import example_inputs  # noqa: E402
from export.precision import Precision, with_precision  # noqa: E402
from export.tensorrt_build import BuildOptions, PlanRefused, build_plan  # noqa: E402
from export.tensorrt_parity import differences  # noqa: E402
from export.to_onnx import write_onnx  # noqa: E402
from tests.conftest import require  # noqa: E402

try:
    import tensorrt_rtx
except ImportError:
    tensorrt_rtx = None

TARGET = "SM89"
BUNDLE = Path(__file__).resolve().parents[2] / "model_repository"
# `small` as it is, and `vit_b` with one block for each level; its text tower has one block too.
SIZES = {"small": SMALL, "vit_b of reduced depth": replace(VIT_B, name="vit_b, shallow", depth=4, text_depth=1)}


@pytest.fixture(scope="module", params=SIZES, ids=str)
def graphs(request, tmp_path_factory):
    """(specs, network name to ONNX file) of random weights without zeros."""
    sizes, folder = SIZES[request.param], tmp_path_factory.mktemp("onnx")
    model, specs = untrained(sizes, seed=3).model, network_specs(sizes)
    for name, network in model.networks().items():
        write_onnx(network, specs[name], folder / f"{name}.onnx")
    return specs, {name: folder / f"{name}.onnx" for name in NETWORKS}


@pytest.fixture
def rtx():
    require(tensorrt_rtx is not None, "tensorrt_rtx is not installed (the extra `proof`)")
    return tensorrt_rtx


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32], ids=lambda precision: precision.value)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_operator_of_every_network_compiles_with_its_profile(rtx, graphs, network, precision):
    specs, files = graphs
    built = build_plan(
        rtx, onnx.load(files[network]), specs[network], BuildOptions(precision=precision), ahead_of_time=TARGET
    )
    assert len(built.plan) > 10_000


def test_the_command_compiles_the_served_bundle_also_in_bfloat16_and_calls_it_no_plan(rtx):
    given = ["tensorrt", "--bundle", str(BUNDLE), "--compile-proof", "--precision", "bf16", "--batch", "2"]
    done = CliRunner().invoke(command_line(), given)
    assert done.exit_code == 0, done.output
    assert all(f"{network} " in done.stdout for network in NETWORKS)
    assert done.stdout.count(f"MiB for {TARGET}") == len(NETWORKS)
    assert "Not plans for Triton, and nothing was run" in done.stdout


def test_an_operator_that_the_parser_does_not_know_is_named(rtx, graphs):
    specs, files = graphs
    model = onnx.load(files[NETWORKS[1]])
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "NoSuchOperator"
    with pytest.raises(PlanRefused, match=r"clip_text_embedder: the parser stopped at node_softmax"):
        build_plan(rtx, model, specs[NETWORKS[1]], BuildOptions(), ahead_of_time=TARGET)


def test_a_graph_of_another_size_is_refused_before_it_is_compiled(rtx, graphs):
    specs, files = graphs
    other = replace(specs[FUSION_DECODER], outputs=specs[FUSION_DECODER].outputs[:1])
    with pytest.raises(PlanRefused, match=r"the contract does not have .*semantic_map"):
        build_plan(rtx, onnx.load(files[FUSION_DECODER]), other, BuildOptions(), ahead_of_time=TARGET)


def types_of(model):
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    return kinds | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("network", NETWORKS)
def test_heavy_products_are_half_and_norms_softmax_and_logits_are_not(graphs, network):
    specs, files = graphs
    model = with_precision(onnx.load(files[network]), Precision.FP16)
    onnx.checker.check_model(model, full_check=True)
    kinds = types_of(model)
    read = {}
    for node in model.graph.node:
        read.setdefault(node.op_type, []).append(kinds[node.input[0]])
    for full in ("Softmax", "LayerNormalization", "ReduceMean", "Reciprocal", "Resize", "Exp", "Log", "ReduceSum"):
        assert set(read.get(full, [])) <= {TensorProto.FLOAT}, full
    heavy = [kind for operator in ("MatMul", "Conv", "Gemm") for kind in read.get(operator, [])]
    assert heavy.count(TensorProto.FLOAT16) > 0.6 * len(heavy)
    for value, tensor in zip(model.graph.output, specs[network].outputs, strict=True):
        assert onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name == tensor.dtype


@pytest.mark.parametrize("network", NETWORKS)
def test_half_precision_keeps_the_answer_within_the_plans_tolerances(graphs, network):
    """ONNX Runtime rounds to float16 where the graph says so and computes in float32 between: not a GPU's arithmetic,
    but the same loss at every border of a product."""
    specs, files = graphs
    if specs[SAM_ENCODER].inputs[0].shape[-1] > 64:
        pytest.skip(
            "one run of the paper's size takes minutes on a CPU; `python -m export` compares it at reduced depth"
        )
    feeds = example_inputs(specs[network], batch=1, seed=4)
    lowered = with_precision(onnx.load(files[network]), Precision.FP16).SerializeToString()
    answers = []
    for source in (files[network].read_bytes(), lowered):
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        answers.append(
            dict(zip([tensor.name for tensor in specs[network].outputs], session.run(None, feeds), strict=True))
        )
    found = differences(*answers, Precision.FP16)
    assert any(difference.relative > 0 for difference in found), "nothing was lowered"
    assert all(np.isfinite(answer).all() for answer in answers[1].values())
