"""Real tumours through the real service: an answer on the right grid. `python -m bench.tumours` does all twelve."""

from __future__ import annotations

import numpy as np
import pytest

from bench.tumours import ask, read_case
from tests.conftest import shared

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.mark.parametrize("name", ["STS_008_CT", "STS_002_MR_T1"])
@pytest.mark.parametrize("method", ["click", "box"])
def test_a_real_tumour_gets_a_mask_on_the_grid_of_its_series(service, name, method):
    case = read_case(shared(f"tumours/{name}"))
    mask = ask(service, case, method)  # raises on a refusal or another grid
    assert mask.shape == case.truth.shape
    assert mask.dtype == np.bool_
