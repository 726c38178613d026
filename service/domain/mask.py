"""The result: a mask on the source grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.domain.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Mask:
    """A binary mask on the source grid, with the model's confidence in it."""

    voxels: np.ndarray  # (D, H, W) bool
    geometry: Geometry
    score: float  # 0..1, mean foreground probability inside the mask; 0 when empty
    complete: bool = True  # False: it was still growing when the permitted number of regions was used up

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape_zyx or self.voxels.dtype != bool:
            raise ValueError("a mask is bool with the shape of its geometry")

    @property
    def volume_ml(self) -> float:
        return float(np.count_nonzero(self.voxels)) * self.geometry.voxel_volume_mm3 / 1000
