"""Which plans a server may load, what a failing comparison does, and the repository of those that pass. No GPU."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from google.protobuf import text_format  # noqa: E402
from tritonclient.grpc import model_config_pb2  # noqa: E402

from contract.bundle import Bundle, onnx_file  # noqa: E402
from contract.grid import fixed_grid  # noqa: E402
from contract.tensors import ENSEMBLE, NETWORKS  # noqa: E402
from export.precision import Precision  # noqa: E402
from export.tensorrt_build import BuildOptions, PlanRefused  # noqa: E402
from export.tensorrt_command import library, read_graph  # noqa: E402
from export.tensorrt_parity import PlanParityBroken, delete_plan, differences  # noqa: E402
from export.tensorrt_plan import FACTS_FILE, PLAN_FILE, PlanFacts, Server, check_plan, read_facts  # noqa: E402
from export.tensorrt_repository import write_plan_repository  # noqa: E402
from export.triton_config import Serving  # noqa: E402

PLAN = b"engine"
SERVER = Server("10.13.3.9", "9.0")
FACTS = PlanFacts(
    network="sam_encoder", bundle="vit_b 1.0.0", onnx_sha256="abc", plan_sha256=hashlib.sha256(PLAN).hexdigest(),
    tensorrt="10.13.3.9", cuda="13.0", gpu="NVIDIA H100", compute_capability="9.0", precision="fp16",
    batches=(1, 1, 4), workspace_bytes=2**32, version_compatible=False, build_s=61.0,
)  # fmt: skip


def checked(facts, server=SERVER, most_batch=4):
    check_plan(facts, server, bundle="vit_b 1.0.0", onnx_sha256="abc", most_batch=most_batch)


def test_a_plan_for_this_server_is_accepted():
    checked(FACTS)
    checked(replace(FACTS, tensorrt="10.9.0", version_compatible=True))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(FACTS, compute_capability="8.9", gpu="NVIDIA L4"), r"capability 8\.9 \(NVIDIA L4\).* has 9\.0"),
        (replace(FACTS, tensorrt="10.9.0"), r"TensorRT 10\.9\.0, the server has 10\.13"),
        (replace(FACTS, tensorrt="10.14.1", version_compatible=True), "TensorRT 10.14.1"),
        (replace(FACTS, tensorrt="9.3.0", version_compatible=True), "TensorRT 9.3.0"),
        (replace(FACTS, onnx_sha256="other"), "weights"),
        (replace(FACTS, bundle="vit_b 0.9.0"), "weights of vit_b 0.9.0"),
        (replace(FACTS, batches=(1, 1, 2)), "no profile for batch 1 to 4, only for 1 to 2"),
        (replace(FACTS, batches=(2, 2, 4)), "no profile for batch 1 to 4, only for 2 to 4"),
    ],
    ids=["GPU", "TensorRT", "newer", "other major", "weights", "bundle", "batch", "least batch"],
)
def test_a_plan_for_another_server_or_bundle_is_refused_in_one_line(facts, words):
    with pytest.raises(PlanRefused, match=words) as refusal:
        checked(facts)
    assert "\n" not in str(refusal.value)


def test_facts_come_back_and_belong_to_their_plan(tmp_path):
    (tmp_path / PLAN_FILE).write_bytes(PLAN)
    with pytest.raises(PlanRefused, match=FACTS_FILE):
        read_facts(tmp_path)
    FACTS.write(tmp_path)
    assert read_facts(tmp_path) == FACTS
    (tmp_path / PLAN_FILE).write_bytes(b"another engine")
    with pytest.raises(PlanRefused, match="not the one"):
        read_facts(tmp_path)


LOGITS = np.linspace(-9, 9, 1000).reshape(1, 1, 10, 10, 10)


def test_a_close_answer_passes_with_its_figures():
    (found,) = differences({"mask_logits": LOGITS}, {"mask_logits": LOGITS + 0.001}, Precision.FP16)
    assert found.tensor == "mask_logits"
    assert found.relative == pytest.approx(0.001 / 9)
    assert found.dice == 1.0


@pytest.mark.parametrize(
    ("answer", "words"),
    [(LOGITS * 1.1, "differs"), (LOGITS - 0.15, "Dice 0.99"), (np.where(LOGITS > 8.9, np.nan, LOGITS), "by nan of")],
    ids=["values", "mask", "NaN"],
)  # fmt: skip
def test_an_answer_too_far_away_is_refused_by_value_by_mask_and_for_nan(answer, words):
    with pytest.raises(PlanParityBroken, match=words):
        differences({"mask_logits": LOGITS}, {"mask_logits": answer}, Precision.FP16)


def test_bfloat16_may_differ_more_than_float16():
    answer = {"mask_logits": LOGITS * 1.04}
    differences({"mask_logits": LOGITS}, answer, Precision.BF16)
    with pytest.raises(PlanParityBroken):
        differences({"mask_logits": LOGITS}, answer, Precision.FP16)


def test_a_plan_that_failed_is_gone_with_its_facts(tmp_path):
    (tmp_path / PLAN_FILE).write_bytes(PLAN)
    FACTS.write(tmp_path)
    delete_plan(tmp_path)
    delete_plan(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"most_batch": 5}, {"usual_batch": 3, "most_batch": 2}, {"workspace_bytes": 1}],
    ids=str)  # fmt: skip
def test_options_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match=r"batches|workspace"):
        BuildOptions(**wrong)


@pytest.fixture
def bundle(tmp_path):
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "bundle.json").write_text("{}")
    files = {onnx_file(network): "abc" for network in NETWORKS}
    grid = fixed_grid(1.0)
    return Bundle("vit_b", "1.0.0", "vit_b", grid, {}, (), (), trained=True, files=files, directory=directory)


@pytest.fixture
def folders(tmp_path):
    for network in NETWORKS:
        folder = tmp_path / "plans" / network
        folder.mkdir(parents=True)
        (folder / PLAN_FILE).write_bytes(PLAN)
        replace(FACTS, network=network).write(folder)
    return tmp_path / "plans"


def test_plans_that_fit_become_a_repository_of_the_same_ensemble(tmp_path, bundle, folders):
    out = tmp_path / "repository"
    write_plan_repository(bundle, folders, out, server=SERVER, serving=Serving())
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {
        "bundle.json",
        "tags/config.pbtxt",
        *(f"{network}/{name}" for network in NETWORKS for name in ("config.pbtxt", "1/model.plan", f"1/{FACTS_FILE}")),
    }
    assert (out / ENSEMBLE / "1").is_dir()
    for network in NETWORKS:
        text = (out / network / "config.pbtxt").read_text()
        assert text_format.Parse(text, model_config_pb2.ModelConfig()).platform == "tensorrt_plan"


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a\x3a\xff\xff"], ids=["empty", "text", "cut off"])
def test_a_damaged_onnx_file_is_refused_in_one_line(bundle, content):
    path = bundle.onnx_path(NETWORKS[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(PlanRefused, match=r"sam_encoder: .*model\.onnx is damaged or another network") as refusal:
        read_graph(bundle, NETWORKS[0])
    assert "\n" not in str(refusal.value)


def test_a_missing_library_is_said_in_one_line():
    with pytest.raises(PlanRefused, match="no_such_library is not installed here; `pip install it`"):
        library("no_such_library", "it")


def test_one_plan_that_does_not_fit_leaves_no_repository(tmp_path, bundle, folders):
    replace(FACTS, network=NETWORKS[2], compute_capability="8.0").write(folders / NETWORKS[2])
    with pytest.raises(PlanRefused, match=NETWORKS[2]):
        write_plan_repository(bundle, folders, tmp_path / "repository", server=SERVER, serving=Serving())
    assert not (tmp_path / "repository").exists()
