"""`python -m bench.gpu.paper_size` runs to its table. The GPU is pretended: times and memory mean nothing here."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

from bench.gpu import paper_size  # noqa: E402
from contract.tensors import NETWORKS  # noqa: E402
from tests.parity.little import LITTLE  # noqa: E402


@pytest.fixture
def records(monkeypatch):
    """What the script would write, with the network in little on the CPU as the GPU."""
    found = {}
    for name, value in {
        "is_available": True, "get_device_name": "NVIDIA H100", "synchronize": None,
        "reset_peak_memory_stats": None, "max_memory_allocated": 2**30,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name, value in {
        "DEVICE": "cpu", "VIT_B": replace(LITTLE, name="vit_b"), "captured": lambda run: run, "WARM_UPS": 1, "RUNS": 1,
        "DTYPES": {"bf16": torch.bfloat16}, "write_record": lambda name, bundle, figures: found.update(figures),
    }.items():  # fmt: skip
        monkeypatch.setattr(paper_size, name, value)
    return found


def test_one_table_of_every_network_and_way_and_of_both_stems(records, capsys):
    paper_size.main(batches=[1], compile=False)
    rows = [(row["what"], row["precision"], row["batch"], row["way"]) for row in records["rows"]]
    ways = ("eager", "CUDA graph")
    expected = [(network, "bf16", 1, way) for network in NETWORKS for way in ways]
    assert rows == [*expected, ("stem, plain", "fp32", 1, "eager"), ("stem, folded", "fp32", 1, "eager")]
    assert all(row["ms"] > 0 and row["peak_gib"] == 1 for row in records["rows"])
    assert all(
        (row["share"] is not None) == (row["what"] in ("sam_encoder", "fusion_decoder")) for row in records["rows"]
    )
    printed = capsys.readouterr().out
    assert "vit_b on NVIDIA H100" in printed
    assert "tensorrt is not here and was not measured" in printed


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(paper_size.typer.BadParameter, match="no GPU here"):
        paper_size.main()
