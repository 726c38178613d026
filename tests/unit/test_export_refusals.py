"""`python -m export` refuses in one line on a terminal of any width, ends with 1 and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from typer.testing import CliRunner  # noqa: E402

from contract.bundle import load_bundle  # noqa: E402
from contract.grid import fixed_grid  # noqa: E402
from contract.sizes import SMALL  # noqa: E402
from contract.tensors import CLIP_TEXT_EMBEDDER, FUSION_DECODER, NETWORKS, SAM_ENCODER  # noqa: E402
from export import tensorrt_command, tensorrt_plan  # noqa: E402
from export.__main__ import command_line  # noqa: E402
from export.networks.build import build_tags  # noqa: E402
from export.tensorrt_build import BuiltPlan  # noqa: E402
from export.tensorrt_plan import FACTS_FILE, PLAN_FILE, PlanFacts  # noqa: E402
from tests.parity import upstream_files as upstream  # noqa: E402

BUNDLE = Path(__file__).resolve().parents[2] / "model_repository"
META = {
    "grid": asdict(fixed_grid(1.0)),
    "intensity": {"CT": {"kind": "window", "low": -100.0, "high": 200.0, "mean": 50.0, "std": 60.0}},
    "targets": [], "findings": [], "training": {}, "quality": {},
}  # fmt: skip
H100 = {"cuda": "13.0", "gpu": "NVIDIA H100", "compute_capability": "9.0"}


def command(*words: object):
    return CliRunner().invoke(command_line(), [str(word) for word in words])


def refusal_of(*words: object) -> str:
    """The one line on stderr of a command that must end with 1."""
    done = command(*words)
    assert done.exit_code == 1, done.output
    (line,) = done.stderr.splitlines()
    return line.removeprefix("refused: ")


def saved(folder, name, document):
    torch.save(document, folder / name)
    return folder / name


def test_a_training_checkpoint_of_another_size_names_the_first_tensor_and_both_shapes(tmp_path):
    weights = build_tags(replace(SMALL, width=96, heads=3)).state_dict()
    path = saved(tmp_path, "last.pt", {"config": "small", "state_dict": weights, "meta": META})
    line = refusal_of("bundle", "--checkpoint", path, "--out", tmp_path / "out")
    assert line == (
        f"the weights in {path} do not fit configuration 'small': "
        "sam_encoder.pos_embed is (1, 8, 8, 96), the model needs (1, 8, 8, 192)"
    )
    assert not (tmp_path / "out").exists()


def test_a_tags_checkpoint_of_another_size_names_the_first_tensor_and_both_shapes(tmp_path):
    tags = saved(tmp_path, "best.pth.tar", upstream.tags(replace(SMALL, width=96, heads=3)))
    clip = saved(tmp_path, "clip.pt", upstream.openai_text(64, 192, 4))
    (tmp_path / "meta.json").write_text(json.dumps(META))
    given = ("--tags", tags, "--clip-text", clip, "--meta", tmp_path / "meta.json")
    line = refusal_of("bundle", *given, "--out", tmp_path / "out")
    assert line.startswith("another size of TAGS or 3DSAM-adapter: encoder_dict.pos_embed is (1, 64, 64, 96), ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("subcommand", [("describe",), ("tensorrt", "--compile-proof"), ("tensorrt", "--out", "plans")])
def test_a_bundle_with_a_damaged_onnx_file_is_refused_before_anything_is_read(tmp_path, subcommand):
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    path = tmp_path / "bundle" / SAM_ENCODER / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    line = refusal_of(*subcommand, "--bundle", tmp_path / "bundle")
    assert line == "sam_encoder/1/model.onnx: sha256 differs from bundle.json"


@pytest.fixture
def gpu(monkeypatch):
    """A machine with TensorRT and an H100, of which the engine is ONNX Runtime: `answer` may change what it gives."""
    machine = SimpleNamespace(answer=lambda outputs: outputs, built=[])

    def build_plan(library, model, spec, options, *, timing_cache):
        machine.built.append((spec.name, timing_cache))
        return BuiltPlan(spec.name.encode(), b"timings", 1.0)

    class Runner:
        def __init__(self, library, plan, spec):
            self.outputs = [tensor.name for tensor in spec.outputs]
            self.session = onnxruntime.InferenceSession(BUNDLE / spec.name / "1" / "model.onnx")

        def __call__(self, feeds):
            return machine.answer(dict(zip(self.outputs, self.session.run(None, feeds), strict=True)))

    monkeypatch.setattr(tensorrt_command, "library", lambda name, package: SimpleNamespace(__version__="10.13.3"))
    monkeypatch.setattr(tensorrt_command, "build_plan", build_plan)
    monkeypatch.setattr(tensorrt_command, "PlanRunner", Runner)
    for module in (tensorrt_command, tensorrt_plan):
        monkeypatch.setattr(module, "this_gpu", lambda: H100)
    return machine


def test_plans_that_answer_alike_are_kept_and_become_a_repository(tmp_path, gpu):
    plans, repository, cache = tmp_path / "plans", tmp_path / "triton", tmp_path / "caches" / "timing.cache"
    given = ("--out", plans, "--repository", repository, "--batch", 1, "--timing-cache", cache)
    done = command("tensorrt", "--bundle", BUNDLE, *given)
    assert done.exit_code == 0, done.output
    assert gpu.built == [(network, b"timings" if place else b"") for place, network in enumerate(NETWORKS)]
    assert cache.read_bytes() == b"timings"
    for network in NETWORKS:
        assert (repository / network / "1" / PLAN_FILE).read_bytes() == network.encode()
        facts = json.loads((repository / network / "1" / FACTS_FILE).read_text())
        assert facts["onnx_sha256"] == load_bundle(BUNDLE).files[f"{network}/1/model.onnx"]
        assert facts["tensorrt"] == "10.13.3"
        assert H100.items() <= facts.items()


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda logits: 1.1 * logits, "differs from ONNX Runtime"), (lambda logits: np.nan * logits, "by nan of")],
    ids=["values", "NaN"],
)
def test_a_plan_that_answers_otherwise_is_deleted_and_no_repository_is_written(tmp_path, gpu, change, words):
    gpu.answer = lambda outputs: outputs | {k: change(v) for k, v in outputs.items() if k == "mask_logits"}
    given = ("--out", tmp_path / "plans", "--repository", tmp_path / "triton", "--batch", 1)
    line = refusal_of("tensorrt", "--bundle", BUNDLE, *given)
    assert line.startswith("mask_logits: the plan ")
    assert words in line
    assert list((tmp_path / "plans" / FUSION_DECODER).iterdir()) == []
    assert not (tmp_path / "triton").exists()


@pytest.mark.parametrize(
    ("changes", "given", "words"),
    [
        ({"compute_capability": "8.9", "gpu": "NVIDIA L4"}, (), "is for compute capability 8.9 (NVIDIA L4), "),
        ({"tensorrt": "10.9.0"}, (), "is of TensorRT 10.9.0, the server has 10.13.3"),
        ({"batches": (1, 1, 2)}, ("--batch", 4), "no profile for batch 1 to 4, only for 1 to 2"),
        (None, (), f"has no plan with a readable {FACTS_FILE}"),
    ],
    ids=["another GPU", "another TensorRT", "no profile", "no facts"],
)
def test_plans_built_elsewhere_are_taken_only_when_they_fit_this_machine(tmp_path, gpu, changes, given, words):
    bundle = load_bundle(BUNDLE)
    for network in NETWORKS:
        folder = tmp_path / "plans" / network
        folder.mkdir(parents=True)
        (folder / PLAN_FILE).write_bytes(b"engine")
        facts = PlanFacts(
            network=network, bundle=bundle.identity, onnx_sha256=bundle.files[f"{network}/1/model.onnx"],
            plan_sha256="ed9f6f25068608efd412958da4dfc19328ca3511251fa6d5f9c42baf230e32f8", tensorrt="10.13.3",
            precision="fp16", batches=(1, 1, 4), workspace_bytes=2**34, version_compatible=False, build_s=1.0, **H100,
        )  # fmt: skip
        facts.write(folder)
    words_of = ("tensorrt", "--bundle", BUNDLE, "--out", tmp_path / "plans", "--no-build")
    done = command(*words_of, "--repository", tmp_path / "fits")
    assert done.exit_code == 0, done.output
    if changes is None:
        (tmp_path / "plans" / CLIP_TEXT_EMBEDDER / FACTS_FILE).unlink()
    else:
        replace(facts, **changes).write(tmp_path / "plans" / FUSION_DECODER)
    line = refusal_of(*words_of, *given, "--repository", tmp_path / "other")
    assert words in line
    assert not (tmp_path / "other").exists()
    assert gpu.built == []


def test_without_a_gpu_no_plan_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_command, "library", lambda name, package: SimpleNamespace(__version__="10.13.3"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refusal_of("tensorrt", "--bundle", BUNDLE, "--out", tmp_path / "plans")
    assert line == "no GPU here: a plan is built on the kind of GPU that will run it"
    assert not (tmp_path / "plans").exists()
