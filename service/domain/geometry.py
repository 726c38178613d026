"""Grids in space: voxel indices (z, y, x) to and from DICOM's patient frame (LPS, mm), by one affine matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Geometry:
    """A regular grid of voxels in the patient frame.

    `affine` maps (z, y, x, 1) to LPS mm; integer indices are voxel centres. Axes may be oblique and, under gantry
    tilt, not orthogonal; the matrix is always invertible. Source: PS3.3 C.7.6.2.1.1.
    """

    shape_zyx: tuple[int, int, int]
    affine: np.ndarray  # (4, 4) float64
    frame_of_reference_uid: str

    def __post_init__(self) -> None:
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError("affine must be a finite 4 x 4 matrix")
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise ValueError("affine is not invertible")

    @cached_property
    def inverse(self) -> np.ndarray:
        return np.linalg.inv(self.affine)

    @property
    def spacing_zyx_mm(self) -> np.ndarray:
        """Distance between neighbours along each axis, (3,) mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)  # type: ignore[no-any-return]

    @property
    def voxel_volume_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_lps_mm(self, index_zyx: np.ndarray) -> np.ndarray:
        """(N, 3) voxel indices z, y, x to (N, 3) LPS mm."""
        return np.asarray(index_zyx, float) @ self.affine[:3, :3].T + self.affine[:3, 3]  # type: ignore[no-any-return]

    def to_index(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(N, 3) LPS mm to (N, 3) fractional voxel indices z, y, x."""
        return np.asarray(points_lps_mm, float) @ self.inverse[:3, :3].T + self.inverse[:3, 3]  # type: ignore[no-any-return]

    def contains(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(N,) bool: the point lies inside some voxel of the grid (half a voxel beyond the outer centres counts)."""
        index = self.to_index(points_lps_mm)
        return np.all((index >= -0.5) & (index <= np.array(self.shape_zyx) - 0.5), axis=1)  # type: ignore[no-any-return]

    def crop(self, start_zyx: tuple[int, int, int], stop_zyx: tuple[int, int, int]) -> Geometry:
        """The sub-grid [start, stop) in the same place."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_lps_mm(np.array([start_zyx]))[0]
        shape = tuple(int(b - a) for a, b in zip(start_zyx, stop_zyx, strict=True))
        return Geometry(shape, affine, self.frame_of_reference_uid)  # type: ignore[arg-type]
