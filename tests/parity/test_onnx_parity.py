"""torch = ONNX Runtime on weights without zeros, and an export that fails writes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

from contract.bundle import load_bundle, sha256  # noqa: E402
from contract.sizes import CONFIGURATIONS, SMALL  # noqa: E402
from contract.tensors import CLIP_TEXT_EMBEDDER, FUSION_DECODER, NETWORKS, SAM_ENCODER, network_specs  # noqa: E402
from export import repository  # noqa: E402
from export.checkpoint import untrained  # noqa: E402
from export.parity import ParityBroken, compare, dice, difference  # noqa: E402
from export.repository import write_repository  # noqa: E402
from export.to_onnx import write_onnx  # noqa: E402

# One head and 2 x 2 x 2 windows of 8: at batch 1 the batched product's leading axis equals the window, the very case
# in which the exporter has mistaken one for the other.
TRAP = replace(SMALL, name="trap", roi=64, tokens=16, width=64, depth=4, heads=1, adapter=32, neck=16, aggregation=4)
SPECS = network_specs(TRAP)


@pytest.fixture(scope="module")
def model():
    return untrained(TRAP, seed=5).model


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    for name, network in model.networks().items():
        write_onnx(network, SPECS[name], folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in NETWORKS}


def test_no_parameter_is_zero_when_parity_is_measured(model):
    zero = [name for name, parameter in model.named_parameters() if not parameter.any()]
    assert zero == []
    assert any("rel_pos" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_runtime_equals_torch_within_1e_4(model, files, network, batch):
    found = compare(getattr(model, network), SPECS[network], files[network], batch=batch, seed=batch)
    assert [output.tensor for output in found] == [tensor.name for tensor in SPECS[network].outputs]
    for output in found:
        assert output.magnitude > 0.01, "an output near zero proves nothing"
        assert output.largest <= 1e-4
        assert output.dice >= 0.9999


@pytest.mark.parametrize(
    ("network", "part"),
    [
        (SAM_ENCODER, "rel_pos_d"), (SAM_ENCODER, "rel_pos_h"), (SAM_ENCODER, "rel_pos_w"),
        (FUSION_DECODER, "label_embed"), (FUSION_DECODER, "map_embed"), (FUSION_DECODER, "detail.weight"),
    ],
)  # fmt: skip
def test_parity_notices_when_a_zero_initialised_part_is_lost(model, files, network, part):
    lost = {name: parameter for name, parameter in getattr(model, network).named_parameters() if part in name}
    kept = {name: parameter.detach().clone() for name, parameter in lost.items()}
    with torch.no_grad():
        for parameter in lost.values():
            parameter.zero_()
    try:
        with pytest.raises(ParityBroken):
            compare(getattr(model, network), SPECS[network], files[network], batch=1, seed=1)
    finally:
        with torch.no_grad():
            for name, parameter in lost.items():
                parameter.copy_(kept[name])


def test_the_same_weights_give_the_same_file(model, files, tmp_path):
    write_onnx(model.clip_text_embedder, SPECS[CLIP_TEXT_EMBEDDER], tmp_path / "again.onnx")
    assert sha256(tmp_path / "again.onnx") == sha256(files[CLIP_TEXT_EMBEDDER])


def test_the_file_holds_no_trace_of_the_machine_that_wrote_it(files):
    for path in files.values():
        assert b".py" not in path.read_bytes()


def test_nan_is_refused():
    logits = SPECS[FUSION_DECODER].outputs[0]
    good = np.ones((1, *logits.shape), np.float32)
    bad = good.copy()
    bad[0, 0, 1, 2, 3] = np.nan
    for pair in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(ParityBroken, match="mask_logits"):
            difference(logits, *pair)


def test_masks_that_differ_are_refused_even_when_logits_hardly_do():
    logits = SPECS[FUSION_DECODER].outputs[0]
    with pytest.raises(ParityBroken, match="Dice 0"):
        difference(
            logits, np.full((1, *logits.shape), 1e-5, np.float32), np.full((1, *logits.shape), -1e-5, np.float32)
        )


def test_dice_by_hand():
    assert dice(np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)) == 0.5
    assert dice(np.zeros(4, bool), np.zeros(4, bool)) == 1.0


@pytest.fixture
def fast_export(monkeypatch, files):
    """The repository writer with files exported before, so that its own work is what is tested."""
    monkeypatch.setitem(CONFIGURATIONS, TRAP.name, TRAP)
    monkeypatch.setattr(
        repository, "write_onnx", lambda network, spec, path: path.write_bytes(files[spec.name].read_bytes())
    )


@pytest.mark.usefixtures("fast_export")
def test_a_repository_is_a_bundle_that_says_it_is_untrained(tmp_path):
    export = write_repository(untrained(TRAP, seed=5), tmp_path / "out", name="trap", version="0.0.1", threads=1)
    bundle = load_bundle(tmp_path / "out")
    assert bundle == export.bundle
    assert (bundle.identity, bundle.trained, bundle.configuration) == ("trap 0.0.1", False, "trap")
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "out/bundle.json",
        "out/tags/config.pbtxt",
        "out/tags/1/.gitkeep",
        *(f"out/{network}/{file}" for network in NETWORKS for file in ("config.pbtxt", "1/model.onnx", "1/model.py")),
    }


@pytest.mark.usefixtures("fast_export")
def test_failing_parity_leaves_the_old_bundle_and_no_new_file(tmp_path):
    out = tmp_path / "out"
    write_repository(untrained(TRAP, seed=5), out, name="trap", version="0.0.1", threads=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ParityBroken):  # weights of another seed against files of this one
        write_repository(untrained(TRAP, seed=6), out, name="trap", version="0.0.2", threads=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
