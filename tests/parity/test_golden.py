"""The networks still give the answers they gave: a few stored numbers of a tiny, sine-filled configuration."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from tests.parity.golden import FILE, answers, summary  # noqa: E402

TOLERANCE = 2e-6  # of the stored magnitude: they are rounded to 1e-6


@pytest.fixture(scope="module")
def found():
    return answers()


EXPECTED = json.loads(FILE.read_text())


@pytest.mark.parametrize("tensor", EXPECTED)
def test_an_output_still_has_its_golden_values(found, tensor):
    for kind, numbers in summary(found[tensor]).items():
        scale = max(1.0, float(np.abs(EXPECTED[tensor][kind]).max()))
        np.testing.assert_allclose(numbers, EXPECTED[tensor][kind], rtol=0, atol=TOLERANCE * scale)


def test_every_output_has_golden_values_and_none_is_constant(found):
    assert list(found) == list(EXPECTED)
    assert all(float(output.std()) > 1e-3 * float(output.abs().max()) for output in found.values())
