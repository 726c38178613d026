"""A mask laid from one grid onto another, by nearest neighbour: prompt masks that come from other software."""

from __future__ import annotations

import numpy as np

from service.domain.geometry import Geometry
from service.errors import MaskMismatch


def regrid(voxels: np.ndarray, geometry: Geometry, onto: Geometry) -> np.ndarray:
    """The mask on another grid. Both grids lie in the same patient frame; that is the caller's to check.

    Args: voxels: bool with the shape of `geometry`.
    Returns: bool (D, H, W) on `onto`.   Raises: MaskMismatch when no foreground voxel falls into that grid.
    """
    depth, height, width = onto.shape_zyx
    laid = np.zeros(onto.shape_zyx, bool)
    # Index in the mask of voxel (z, y, x) of the target: a matrix, so that one slice at a time needs no coordinates.
    step = (geometry.inverse @ onto.affine)[:3]
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    for z in range(depth):
        at = [np.rint(step[i, 0] * z + step[i, 1] * y + step[i, 2] * x + step[i, 3]).astype(int) for i in range(3)]
        inside = np.logical_and.reduce([(a >= 0) & (a < n) for a, n in zip(at, geometry.shape_zyx, strict=True)])
        laid[z][inside] = voxels[at[0][inside], at[1][inside], at[2][inside]]
    if not laid.any():
        raise MaskMismatch(
            "The mask has no foreground voxel inside the series. Check that both belong to the same examination."
        )
    return laid
