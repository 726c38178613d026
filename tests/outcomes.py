"""Outcomes on phantom series, for the tests of result objects."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from contract.bundle import Bundle
from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.outcome import Lineage, Outcome
from service.dicom.profiles import Profile, profile_named
from service.dicom.series import Series
from service.domain.mask import Mask
from service.domain.prompts import Prompts

BUNDLE = Bundle("small", "1.2", "small", 1.0, {}, (), (), trained=True)


def read(paths: Iterable[Path], uid: str | None = None) -> Series:
    return read_series(list(paths), series_instance_uid=uid, limits=SeriesLimits(4000, 1024 * 512 * 512))


def outcome_of(
    series: Series,
    voxels: np.ndarray,
    *,
    prompts: Prompts | None = None,
    profile: Profile | None = None,
    lineage: Lineage | None = None,
) -> Outcome:
    asked = prompts or Prompts(text="liver tumour")
    return Outcome(series, Mask(voxels, series.geometry, 0.9), asked, BUNDLE, profile or profile_named(), lineage)


def ring(shape_zyx: tuple[int, int, int]) -> np.ndarray:
    """An asymmetric body with two holes in one slice, and an islet within the larger hole."""
    voxels = np.zeros(shape_zyx, bool)
    voxels[1:4, 3:20, 5:30] = True
    voxels[2, 6:12, 8:16] = False
    voxels[2, 8:10, 10:13] = True
    voxels[2, 14:17, 20:27] = False
    voxels[3, 3:9, 5:9] = False
    return voxels
