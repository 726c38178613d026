"""A mask laid from one grid onto another, by nearest neighbour: prompt masks that come from other software."""

from __future__ import annotations

import itertools

import numpy as np

from service.domain.geometry import Geometry
from service.errors import MaskMismatch


def regrid(voxels: np.ndarray, geometry: Geometry, onto: Geometry) -> np.ndarray:
    """The mask on another grid. Both grids lie in the same patient frame; that is the caller's to check.

    Args: voxels: bool with the shape of `geometry`.
    Returns: bool (D, H, W) on `onto`.   Raises: MaskMismatch when no foreground voxel falls into that grid.
    """
    laid = np.zeros(onto.shape_zyx, bool)
    start, stop = _reach(voxels, geometry, onto)
    # Index in the mask of voxel (z, y, x) of the target: a matrix, so that one slice at a time needs no coordinates.
    step = (geometry.inverse @ onto.affine)[:3]
    y, x = np.arange(start[1], stop[1])[:, None], np.arange(start[2], stop[2])[None, :]
    for z in range(start[0], stop[0]):
        at = [np.rint(step[i, 0] * z + step[i, 1] * y + step[i, 2] * x + step[i, 3]).astype(int) for i in range(3)]
        inside = np.logical_and.reduce([(a >= 0) & (a < n) for a, n in zip(at, geometry.shape_zyx, strict=True)])
        part = laid[z, start[1] : stop[1], start[2] : stop[2]]
        part[inside] = voxels[at[0][inside], at[1][inside], at[2][inside]]
    if not laid.any():
        raise MaskMismatch(
            "The mask has no foreground voxel inside the series. Check that both belong to the same examination."
        )
    return laid


def _reach(voxels: np.ndarray, geometry: Geometry, onto: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The box of `onto`, [start, stop) in z, y, x, outside which no foreground voxel can fall."""
    occupied = [np.flatnonzero(voxels.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not all(indices.size for indices in occupied):
        return np.zeros(3, int), np.zeros(3, int)
    sides = [(indices[0] - 0.5, indices[-1] + 0.5) for indices in occupied]
    corners = onto.to_index(geometry.to_lps_mm(np.array(list(itertools.product(*sides)))))
    start = np.clip(np.floor(corners.min(axis=0)), 0, onto.shape_zyx).astype(int)
    stop = np.clip(np.ceil(corners.max(axis=0)) + 1, 0, onto.shape_zyx).astype(int)
    return start, stop
