"""Between the source's slices and a region of interest, by linear interpolation, one axis at a time.

ROI axes run along the source's image axes and normal (`lattice_on`), so a slice lies in a plane of the ROI, and under
gantry tilt each slice is merely shifted within that plane. Both directions are therefore products with small weight
matrices: 8 times faster here than `scipy.ndimage.affine_transform`, slices can be added a few at a time, and the same
matrices average when the ROI is coarser than the source. Decision: docs/decisions/0004-region-of-interest.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy as np
from threadpoolctl import threadpool_limits

from service.domain.geometry import Geometry

AVERAGE_ABOVE = 1.5  # grid voxels per ROI voxel from which picking single ones would alias
SKEW_TOLERANCE_VOX = 0.05  # rounding of direction cosines, summed up across a grid


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a grid's slices (axis 0), rows (1) and columns (2) lie in an ROI. For each of these three grid axes:
    ROI coordinate on `axes[a]` = scale[a] * index + shear[a] * slice index + offset[a]."""

    axes: tuple[int, int, int]  # the ROI axis that runs along slices, rows, columns
    scale: np.ndarray  # (3,) ROI voxels per grid voxel; negative where the axes run against each other
    shear: np.ndarray  # (3,) ROI voxels that each slice is shifted by; shear[0] = 0
    offset: np.ndarray  # (3,)
    grid_shape: tuple[int, int, int]
    roi_shape: tuple[int, int, int]

    @property
    def width(self) -> np.ndarray:
        """(3,) grid voxels to average over for one ROI voxel; 0: interpolate only."""
        spanned = 1 / np.abs(self.scale)
        return np.where(spanned > AVERAGE_ABOVE, spanned, 0.0)

    def in_roi(self, axis: int, index: np.ndarray, slices: np.ndarray) -> np.ndarray:
        """(K, N) ROI coordinates of N indices on grid axis 1 or 2, in each of K slices. K is 1 without shear."""
        shift = self.shear[axis] * (slices if self.shear[axis] else slices[:1])
        return self.scale[axis] * index[None, :] + shift[:, None] + self.offset[axis]  # type: ignore[no-any-return]

    def in_grid(self, axis: int, slices: np.ndarray) -> np.ndarray:
        """(K, S) grid coordinates on axis 1 or 2 of all ROI indices, in each of K slices. K is 1 without shear."""
        shift = self.shear[axis] * (slices if self.shear[axis] else slices[:1])
        index = np.arange(self.roi_shape[self.axes[axis]])
        return (index[None, :] - shift[:, None] - self.offset[axis]) / self.scale[axis]  # type: ignore[no-any-return]

    def slices_in_grid(self) -> np.ndarray:
        """(S,) fractional slice of each ROI plane."""
        return (np.arange(self.roi_shape[self.axes[0]]) - self.offset[0]) / self.scale[0]  # type: ignore[no-any-return]

    def slices_needed(self) -> tuple[int, int]:
        """The grid's slices [start, stop) that the ROI is made of; at least one."""
        return _needed(self.slices_in_grid(), self.width[0], self.grid_shape[0])


def align(grid: Geometry, roi: Geometry) -> Alignment:
    """Raises: ValueError: the ROI's axes do not run along the grid's image axes and normal."""
    matrix = roi.inverse @ grid.affine  # grid index -> ROI coordinate
    columns = np.abs(matrix[:3, :3])
    on_row, on_column = int(np.argmax(columns[:, 1])), int(np.argmax(columns[:, 2]))
    axes = (3 - on_row - on_column, on_row, on_column)
    rest = columns.copy()
    for axis, roi_axis in enumerate(axes):
        rest[roi_axis, [0, axis]] = 0  # the slice step may also shift a slice within its plane: shear
    rest[axes[0], 0] = 0
    if on_row == on_column or np.any(rest * np.array(grid.shape_zyx) > SKEW_TOLERANCE_VOX * max(1, columns.max())):
        raise ValueError("the region of interest does not run along the grid's image axes")
    index = list(axes)
    shear = np.array([0.0, *matrix[index[1:], 0]])
    shear[np.abs(shear) * grid.shape_zyx[0] < SKEW_TOLERANCE_VOX] = 0
    return Alignment(
        axes, matrix[index, range(3)], shear, matrix[index, 3], grid.shape_zyx, roi.shape_zyx
    )  # fmt: skip


def slices_needed(source: Geometry, roi: Geometry) -> tuple[int, int]:
    """The source's slices [start, stop) that the ROI is made of: only these need decoding."""
    return align(source, roi).slices_needed()


def slab_onto_roi(slab: np.ndarray, start: int, alignment: Alignment) -> np.ndarray:
    """What slices [start, start + K) contribute to the ROI; the contributions of all needed slices add up to it.

    Beyond the grid its border voxels are repeated (`inside` says where).
    Args: slab: (K, H, W). Returns: (S, S, S) float32.
    """
    _one_blas_thread()
    first, stop = alignment.slices_needed()
    slices = np.arange(start, start + slab.shape[0])
    row_weights, rows = _in_plane(alignment, 1, slices)
    column_weights, columns = _in_plane(alignment, 2, slices)
    planes = row_weights @ slab[:, rows, columns].astype(np.float32, copy=False) @ column_weights.swapaxes(1, 2)
    along = linear_weights(alignment.slices_in_grid() - first, stop - first, alignment.width[0])
    along = along[:, start - first : start - first + slab.shape[0]]
    return _to_roi_axes(np.tensordot(along, planes, axes=1), alignment)


def onto_roi(voxels: np.ndarray, grid: Geometry, roi: Geometry) -> np.ndarray:
    """A whole array on `grid` resampled to the ROI; 0 outside the grid. Args: voxels: (D, H, W), bool or number."""
    alignment = align(grid, roi)
    start, stop = alignment.slices_needed()
    return np.where(inside(grid, roi), slab_onto_roi(voxels[start:stop], start, alignment), np.float32(0))


def onto_box(
    values: np.ndarray, roi: Geometry, grid: Geometry, box: tuple[slice, slice, slice]
) -> np.ndarray:  # fmt: skip
    """The ROI's values at the voxel centres of a box of the grid; 0 outside the ROI.

    Args: values: (S, S, S) float32. Returns: float32 with the shape of `box`.
    """
    _one_blas_thread()
    alignment = align(grid, roi)
    slices, rows, columns = (np.arange(side.start, side.stop) for side in box)
    values = values.transpose(alignment.axes)  # to the order slices, rows, columns
    along = _weights_inside(alignment.scale[0] * slices + alignment.offset[0], values.shape[0])
    row_weights = _weights_inside(alignment.in_roi(1, rows, slices), values.shape[1])
    column_weights = _weights_inside(alignment.in_roi(2, columns, slices), values.shape[2])
    return row_weights @ np.tensordot(along, values, axes=1) @ column_weights.swapaxes(1, 2)  # type: ignore[no-any-return]


def inside(grid: Geometry, roi: Geometry) -> np.ndarray:
    """(S, S, S) bool: the ROI voxel's centre lies inside some voxel of the grid."""
    matrix = grid.inverse @ roi.affine
    index = np.ix_(*(np.arange(n) for n in roi.shape_zyx))
    within = np.ones((1, 1, 1), bool)
    for row, n in zip(matrix[:3], grid.shape_zyx, strict=True):
        coordinate = row[3] + sum(
            (factor * i for factor, i in zip(row[:3], index, strict=True) if abs(factor) * i.size > 1e-3),
            start=np.zeros((1, 1, 1)),
        )
        within = within & (coordinate >= -0.5) & (coordinate <= n - 0.5)
    return np.broadcast_to(within, roi.shape_zyx)


def linear_weights(coordinates: np.ndarray, count: int, width: float = 0.0) -> np.ndarray:
    """Weights of `count` samples at given coordinates: linear interpolation, or its mean over `width` samples around.

    Beyond the ends the last sample is repeated, and linear slopes stay exact.
    Args: coordinates: (..., N). Returns: (..., N, count) float32; rows sum to 1.
    """
    beyond = ceil(width / 2)
    distance = np.clip(coordinates, 0, count - 1)[..., None] - np.arange(-beyond, count + beyond)
    if width:
        weights = (_hat_integral(distance + width / 2) - _hat_integral(distance - width / 2)) / width
        weights[..., beyond] += weights[..., :beyond].sum(axis=-1)
        weights[..., beyond + count - 1] += weights[..., beyond + count :].sum(axis=-1)
        weights = weights[..., beyond : beyond + count]
    else:
        weights = np.maximum(0, 1 - np.abs(distance))
    return weights.astype(np.float32)  # type: ignore[no-any-return]


def _hat_integral(t: np.ndarray) -> np.ndarray:
    """Of the hat function max(0, 1 - |t|), from minus infinity."""
    t = np.clip(t, -1, 1)
    return 0.5 + t - np.sign(t) * t**2 / 2  # type: ignore[no-any-return]


def _weights_inside(coordinates: np.ndarray, count: int) -> np.ndarray:
    """As `linear_weights`, but 0 for coordinates outside the samples' voxels."""
    within = (coordinates >= -0.5) & (coordinates <= count - 0.5)
    return linear_weights(coordinates, count) * within[..., None].astype(np.float32)


def _in_plane(alignment: Alignment, axis: int, slices: np.ndarray) -> tuple[np.ndarray, slice]:
    """Weights (K, S, N) along rows or columns, and the N rows or columns that they are for."""
    coordinates, width = alignment.in_grid(axis, slices), alignment.width[axis]
    start, stop = _needed(coordinates, width, alignment.grid_shape[axis])
    return linear_weights(coordinates - start, stop - start, width), slice(start, stop)


def _needed(coordinates: np.ndarray, width: float, count: int) -> tuple[int, int]:
    """The samples [start, stop) that have weight at some coordinate, clipped to what there is; at least one."""
    reach = 1 + width / 2
    start = int(np.clip(np.floor(coordinates.min() - reach) + 1, 0, count - 1))
    stop = int(np.clip(np.ceil(coordinates.max() + reach), start + 1, count))
    return start, stop


@cache
def _one_blas_thread() -> None:
    """Keep numpy's products on the calling thread, once and for the whole process: they are small, requests run beside
    each other, and on a busy machine OpenBLAS's own threads made them 100 times slower (measured: 250 against 2 ms)."""
    threadpool_limits(limits=1, user_api="blas")


def _to_roi_axes(values: np.ndarray, alignment: Alignment) -> np.ndarray:
    """From the order slices, rows, columns to the ROI's z, y, x."""
    return np.ascontiguousarray(values.transpose(np.argsort(alignment.axes)))
