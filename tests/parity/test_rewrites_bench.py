"""`python -m bench.rewrites`: both forms of each rewrite answer alike, and the folded stem saves what is claimed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

from bench.rewrites import REWRITES, measured, timed  # noqa: E402
from contract.sizes import VIT_B  # noqa: E402


def sizes(roi):
    return replace(VIT_B, roi=roi, tokens=roi // VIT_B.patch)


@pytest.mark.parametrize("rewrite", REWRITES)
def test_both_forms_give_one_answer(rewrite):
    plain, rewritten = (timed(form, sizes(32), runs=0, threads=2)[-1] for form in REWRITES[rewrite])
    assert np.abs(plain - rewritten).max() < 1e-5 * np.abs(plain).max()


def test_up_to_the_first_block_five_times_less_time_and_ten_times_less_memory():
    """At half the paper's region, where both factors are smaller than at the whole."""
    plain, rewritten = (measured(form, sizes(64), runs=1, threads=2) for form in REWRITES["folded stem"])
    assert plain.cpu_ms > 5 * rewritten.cpu_ms
    assert plain.peak_mib > 10 * rewritten.peak_mib
