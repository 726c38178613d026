"""A short run of tests.fuzz; `python -m tests.fuzz` makes the long one of 20 000 inputs."""

from __future__ import annotations

import pytest

from tests.fuzz import run

INPUTS = 300


@pytest.mark.slow
def test_mutated_files_give_a_result_or_a_refusal_in_bounded_time_and_memory(tmp_path):
    report = run(INPUTS, seed=20261125, directory=tmp_path)
    assert report.findings == []
    assert len(report.outcomes) > 5  # not all alike: results, and refusals of several kinds
    assert report.outcomes["volume"] + report.outcomes["result"] > INPUTS // 10
    assert report.outcomes["result"] > 0
