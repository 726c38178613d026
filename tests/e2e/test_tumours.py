"""Real tumours through the real service: an answer on the right grid. `python -m training evaluate` scores them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from demo.answers import Grid, zipped
from tests.conftest import shared

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.mark.parametrize("name", ["STS_008_CT", "STS_002_MR_T1"])
@pytest.mark.parametrize("prompt", ["click", "box"])
def test_a_real_tumour_gets_a_mask_on_the_grid_of_its_series(service, name, prompt):
    directory = shared(f"tumours/{name}")
    grid = Grid(directory / "image")
    inside = np.argwhere(grid.nifti((directory / "mask.nii.gz").read_bytes()))
    click = grid.lps_mm(inside[[len(inside) // 2]])[0]
    corners = grid.lps_mm(np.array([inside.min(axis=0), inside.max(axis=0)]))
    prompts = {"click": {"points": [{"lps_mm": click.tolist()}]}, "box": {"boxes": [{"lps_mm": corners.tolist()}]}}
    answer = service.post(
        "/segment",
        params={"format": "nifti"},
        files={"files": ("series.zip", zipped(directory / "image"))},
        data={"prompts": json.dumps(prompts[prompt])},
    )
    answer.raise_for_status()
    mask = grid.nifti(answer.content)  # raises on another grid
    assert mask.shape == grid.shape_zyx
