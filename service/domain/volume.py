"""Voxels on a grid, and the seam through which they are read slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.domain.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Volume:
    """Source voxels after rescale. Read-only."""

    voxels: np.ndarray  # (D, H, W) float32, HU or a.u.
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape_zyx or self.voxels.dtype != np.float32:
            raise ValueError("voxels must be float32 with the shape of the geometry")
        self.voxels.flags.writeable = False


class SourceImage(Protocol):
    """What the use case needs of a series: known geometry, voxels on demand. `service.dicom.Series` is one."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def modality(self) -> str: ...  # "CT" or "MR"

    def read(self, start: int, stop: int) -> Volume:
        """Decode slices [start, stop) only; the volume's geometry is that part of the whole. Thread-safe, blocking."""
        ...
