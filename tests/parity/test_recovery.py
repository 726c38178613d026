"""What was exported comes back: a bundle's ONNX files hold the weights of its checkpoint, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

from typer.testing import CliRunner  # noqa: E402

from contract.bundle import load_bundle  # noqa: E402
from contract.sizes import SMALL  # noqa: E402
from contract.tensors import FUSION_DECODER, NETWORKS, network_specs  # noqa: E402
from export.__main__ import command_line  # noqa: E402
from export.checkpoint import load_checkpoint  # noqa: E402
from export.networks.build import build_tags  # noqa: E402
from export.parity import example_inputs  # noqa: E402
from export.recovery import WeightsNotFound, weights_in  # noqa: E402
from export.to_onnx import write_onnx  # noqa: E402

BUNDLE = Path(__file__).resolve().parents[2] / "model_repository"
TINY = replace(SMALL, name="tiny", roi=32, tokens=8, width=32, depth=4, heads=1, window=4, text_depth=1, text_width=16)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_every_network_come_back_to_the_bit(tmp_path, name):
    network, spec = build_tags(TINY).networks()[name], network_specs(TINY)[name]
    expected = {key: torch.randn_like(weight) for key, weight in network.state_dict().items()}
    network.load_state_dict(expected)
    write_onnx(network, spec, tmp_path / "model.onnx")
    found = weights_in(tmp_path / "model.onnx", build_tags(TINY).networks()[name], spec)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        if key == "logit_scale":  # its exponential is in the graph
            torch.testing.assert_close(found[key], weight, rtol=1e-6, atol=0)
        else:
            assert torch.equal(found[key], weight), key


def test_a_graph_of_another_depth_is_refused_by_name(tmp_path):
    deeper = replace(TINY, text_depth=2)
    spec = network_specs(TINY)["clip_text_embedder"]
    write_onnx(build_tags(deeper).clip_text_embedder, spec, tmp_path / "model.onnx")
    with pytest.raises(WeightsNotFound, match="clip_text_embedder: its graph is not"):
        weights_in(tmp_path / "model.onnx", build_tags(TINY).clip_text_embedder, spec)


def test_the_shipped_bundle_gives_a_checkpoint_that_answers_as_it_does(tmp_path):
    out = tmp_path / "checkpoint.pt"
    done = CliRunner().invoke(command_line(), ["checkpoint", str(BUNDLE), "--out", str(out)])
    assert done.exit_code == 0, done.output
    checkpoint, bundle = load_checkpoint(out, SMALL), load_bundle(BUNDLE)
    assert (checkpoint.meta.grid, checkpoint.meta.training) == (bundle.grid, bundle.training)
    inputs = example_inputs(network_specs(SMALL)[FUSION_DECODER], batch=1, seed=0)
    (served, _) = onnxruntime.InferenceSession(bundle.onnx_path(FUSION_DECODER)).run(None, inputs)
    with torch.no_grad():
        logits, _ = checkpoint.model.fusion_decoder(*map(torch.from_numpy, inputs.values()))
    np.testing.assert_allclose(logits.numpy(), served, atol=1e-4)


def test_an_altered_bundle_is_refused_in_one_line(tmp_path):
    (tmp_path / "bundle.json").write_text("{}")
    done = CliRunner().invoke(command_line(), ["checkpoint", str(tmp_path), "--out", str(tmp_path / "checkpoint.pt")])
    assert done.exit_code == 1
    assert done.stderr.startswith("refused: no usable bundle.json")
    assert not (tmp_path / "checkpoint.pt").exists()
