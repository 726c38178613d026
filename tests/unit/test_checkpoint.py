"""Checkpoints are read as plain tensors, and every way in which one can be wrong is named."""

from __future__ import annotations

import pickle
from dataclasses import asdict, replace

import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from contract.grid import fixed_grid  # noqa: E402
from contract.intensity import IntensityRule  # noqa: E402
from contract.sizes import SMALL  # noqa: E402
from export.checkpoint import CheckpointInvalid, load_checkpoint, read_meta_file, untrained  # noqa: E402

TINY = replace(SMALL, name="tiny", roi=32, tokens=8, width=32, depth=4, heads=1, window=4, text_depth=1, text_width=16)


def document(**changes):
    meta = {
        "grid": asdict(fixed_grid(1.5)),
        "intensity": {"CT": {"kind": "window", "low": -100.0, "high": 200.0, "mean": 50.0, "std": 60.0}},
        "targets": ["liver"],
        "findings": ["tumour"],
        "training": {"steps": 3},
        "quality": {"dice": 0.5},
    }
    weights = untrained(TINY, seed=1).model.state_dict()
    return {"config": "tiny", "state_dict": weights, "meta": meta} | changes


def saved(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    return path


def test_weights_and_description_come_back(tmp_path):
    content = document()
    checkpoint = load_checkpoint(saved(tmp_path, content), TINY)
    assert checkpoint.trained
    assert not checkpoint.model.training
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][name])
    assert checkpoint.meta.intensity == {"CT": IntensityRule("window", -100.0, 200.0, 50.0, 60.0)}
    assert (checkpoint.meta.grid, checkpoint.meta.targets) == (fixed_grid(1.5), ("liver",))
    assert checkpoint.meta.quality == {"dice": 0.5}


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    with pytest.raises(CheckpointInvalid, match="asked for 'tiny'"):
        load_checkpoint(saved(tmp_path, document(config="vit_b")), TINY)


@pytest.mark.parametrize("part", ["config", "state_dict", "meta"])
def test_a_missing_part_is_named(tmp_path, part):
    content = document()
    del content[part]
    with pytest.raises(CheckpointInvalid, match=part):
        load_checkpoint(saved(tmp_path, content), TINY)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("fusion_decoder.logit_scale"), r"fusion_decoder\.logit_scale is missing$"),
        (lambda weights: weights.update({"other": torch.ones(1)}), "other is unknown$"),
        (
            lambda weights: weights.update({"sam_encoder.depth_embed": torch.ones(1, 8, 48)}),
            r"sam_encoder\.depth_embed is \(1, 8, 48\), the model needs \(1, 8, 32\)$",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_the_first_weight_that_does_not_fit_is_named_in_one_line(tmp_path, change, words):
    content = document()
    change(content["state_dict"])
    with pytest.raises(CheckpointInvalid, match=words) as refusal:
        load_checkpoint(saved(tmp_path, content), TINY)
    assert "\n" not in str(refusal.value)


def test_weights_that_are_not_named_are_refused(tmp_path):
    with pytest.raises(CheckpointInvalid, match="lacks or misstates"):
        load_checkpoint(saved(tmp_path, document(state_dict=[torch.ones(1)])), TINY)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"grid": {"first_mm": 1.0}}', '{"grid": 1}'])
def test_a_description_that_is_not_one_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "meta.json"
    path.write_text(text)
    with pytest.raises(CheckpointInvalid, match=r"meta\.json lacks or misstates a part of meta") as refusal:
        read_meta_file(path)
    assert "\n" not in str(refusal.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    content = document()
    content["state_dict"]["fusion_decoder.logit_scale"].fill_(float("nan"))
    with pytest.raises(CheckpointInvalid, match="not finite"):
        load_checkpoint(saved(tmp_path, content), TINY)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    proof = tmp_path / "proof"
    with pytest.raises(CheckpointInvalid, match="plain tensors"):
        load_checkpoint(saved(tmp_path, document(extra=Trap(proof))), TINY)
    path = tmp_path / "raw.pt"
    path.write_bytes(pickle.dumps(Trap(proof), protocol=2))
    with pytest.raises(CheckpointInvalid, match="plain tensors"):
        load_checkpoint(path, TINY)
    assert not proof.exists()


def test_the_same_seed_gives_the_same_untrained_weights_and_says_untrained():
    one, other = untrained(TINY, seed=4), untrained(TINY, seed=4)
    assert not one.trained
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])
