"""What a report says about a mask: volume, diameters, where it lies. Millimetres in the patient frame.

A voxel counts with its whole extent along the grid's axes, not as its centre alone, so a row of n voxels is n spacings
long. Tilt and anisotropy are in the affine and need no care here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.roi import bounding_box, box_corners
from service.domain.volume import SourceImage

SLICES_AT_ONCE = 8  # decoded together: in parallel where they are compressed, and never a large part of the series


@dataclass(frozen=True, eq=False)
class Measurements:
    """Of one mask. Diameters are 0 and boxes None when it is empty."""

    voxels: int
    volume_ml: float
    max_diameter_mm: float  # largest distance between two points of the mask, in any direction
    long_axis_mm: float  # largest diameter within the axial plane of the largest area
    short_axis_mm: float  # largest diameter there at right angles to the long axis
    bounding_box_lps_mm: np.ndarray | None  # (2, 3) smallest and largest x, y, z, LPS mm, voxels' outer faces
    bounding_box_index: np.ndarray | None  # (2, 3) int, first and last column, row, slice, as the API's `index`
    score: float  # 0..1


@dataclass(frozen=True)
class Intensity:
    """Of the voxels inside a mask, in the unit of the series: HU in CT, arbitrary in MR."""

    mean: float
    deviation: float  # of the voxels, not of a sample: divided by their number


def intensity(source: SourceImage, mask: Mask) -> Intensity:
    """Only slices with a voxel of the mask are decoded, a few at a time. Raises: ValueError for an empty mask; what
    `source.read` raises."""
    slices = np.flatnonzero(mask.voxels.any(axis=(1, 2)))
    if not slices.size:
        raise ValueError("an empty mask has no intensity")
    inside: list[np.ndarray] = []
    for start in range(int(slices[0]), int(slices[-1]) + 1, SLICES_AT_ONCE):
        stop = min(start + SLICES_AT_ONCE, int(slices[-1]) + 1)
        if mask.voxels[start:stop].any():
            inside.append(source.read(start, stop).voxels[mask.voxels[start:stop]])
    values = np.concatenate(inside).astype(float)
    return Intensity(float(values.mean()), float(values.std()))


def measure(mask: Mask) -> Measurements:
    """Time goes with the mask's surface, not its volume: under a second for 5 million voxels."""
    bounds = bounding_box(mask.voxels)
    if bounds is None:
        return Measurements(0, 0.0, 0.0, 0.0, 0.0, None, None, mask.score)
    first, last = np.array([s.start for s in bounds]), np.array([s.stop - 1 for s in bounds])
    part = mask.voxels[bounds]
    geometry = mask.geometry.crop(tuple(first.tolist()), tuple((last + 1).tolist()))
    long_axis_mm, short_axis_mm = _axes_mm(part, geometry)
    return Measurements(
        voxels=int(np.count_nonzero(part)),
        volume_ml=mask.volume_ml,
        max_diameter_mm=_diameter(_outline_lps_mm(part, geometry)),
        long_axis_mm=long_axis_mm,
        short_axis_mm=short_axis_mm,
        bounding_box_lps_mm=_box_lps_mm(part, geometry),
        bounding_box_index=np.stack([first[::-1], last[::-1]]),
        score=mask.score,
    )


def _outline_lps_mm(part: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(N, 3) LPS mm: points with the same convex hull as the mask, each voxel reaching half way to its neighbours."""
    centres = _hull(geometry.to_lps_mm(_row_ends(part)))
    halves = geometry.affine[:3, :3].T / 2  # rows: half a step along each axis
    return _hull((centres[:, None] + np.concatenate([halves, -halves])).reshape(-1, 3))


def _row_ends(part: np.ndarray) -> np.ndarray:
    """(N, 3) int: first and last voxel of each row of the mask; all others lie between two of them."""
    z, y = np.nonzero(part.any(axis=2))
    rows = part[z, y]
    first, last = rows.argmax(axis=1), part.shape[2] - 1 - rows[:, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([z, y, first], axis=1), np.stack([z, y, last], axis=1)])


def _axes_mm(part: np.ndarray, geometry: Geometry) -> tuple[float, float]:
    """Long and short axis in the axial plane of the largest area, mm."""
    part, geometry = _axial(part, geometry)
    largest = int(part.sum(axis=(1, 2)).argmax())
    edges = np.diff(part[largest].astype(np.int8), axis=1, prepend=0, append=0) != 0
    rows, ends = np.nonzero(edges)  # both ends of each run of voxels in a row, as its left faces
    index = np.stack([np.zeros(len(rows)), rows, ends - 0.5], axis=1)
    across = np.nonzero(np.diff(part[largest].astype(np.int8), axis=0, prepend=0, append=0))
    index = np.concatenate([index, np.stack([np.zeros(len(across[0])), across[0] - 0.5, across[1]], axis=1)])
    points = geometry.to_lps_mm(index) - geometry.to_lps_mm(np.zeros((1, 3)))
    right, down = geometry.affine[:3, 2], geometry.affine[:3, 1]
    e1 = right / np.linalg.norm(right)
    e2 = down - e1 * (e1 @ down)
    plane = _hull(points @ np.stack([e1, e2 / np.linalg.norm(e2)], axis=1))
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    a, b = np.unravel_index(distances.argmax(), distances.shape)
    direction = (plane[b] - plane[a]) / distances[a, b]
    return float(distances[a, b]), _widest_chord(plane, direction)


def _axial(part: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
    """The same voxels with their most axial planes as slices: of a sagittal or coronal series, other planes than the
    acquired ones. Of an oblique series the planes are those of its grid that lie nearest to axial."""
    axes = geometry.affine[:3, :3]
    normals = [np.cross(axes[:, (axis + 1) % 3], axes[:, (axis + 2) % 3]) for axis in range(3)]
    along_body = [abs(normal[2]) / np.linalg.norm(normal) for normal in normals]
    order = [int(np.argmax(along_body))]
    order += [axis for axis in range(3) if axis not in order]
    affine = geometry.affine.copy()
    affine[:3, :3] = axes[:, order]
    turned = part.transpose(order)
    return turned, Geometry(turned.shape, affine, geometry.frame_of_reference_uid)


def _widest_chord(polygon: np.ndarray, direction: np.ndarray) -> float:
    """The longest segment across a convex polygon at right angles to `direction`. Args: polygon: (N, 2) any order.

    Its length changes linearly between corners, so that the longest passes through one of them."""
    around = polygon - polygon.mean(axis=0)
    order = np.argsort(np.arctan2(around[:, 1], around[:, 0]))
    start = polygon[order] @ np.stack([direction, [-direction[1], direction[0]]], axis=1)  # along, across
    stop = np.roll(start, -1, axis=0)
    along, rise = start[:, 0], stop[:, 0] - start[:, 0]
    at = along[:, None]  # (N corners, N edges)
    crossed = (np.minimum(start[:, 0], stop[:, 0]) <= at) & (at <= np.maximum(start[:, 0], stop[:, 0]))
    share = np.divide(at - along, rise, out=np.zeros((len(along),) * 2), where=np.abs(rise) > 1e-9)
    across = start[:, 1] + share * (stop[:, 1] - start[:, 1])
    highest = np.where(crossed, across, -np.inf).max(axis=1)
    lowest = np.where(crossed, across, np.inf).min(axis=1)
    return float((highest - lowest).max())


def _hull(points: np.ndarray) -> np.ndarray:
    """The corners of the convex hull; all points when they are too few or too flat to have one."""
    try:
        return points[ConvexHull(points).vertices] if len(points) > points.shape[1] else points
    except QhullError:
        return points


def _diameter(points: np.ndarray) -> float:
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _box_lps_mm(part: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(2, 3) smallest and largest x, y, z over all corners of all voxels."""
    reach = np.abs(box_corners(np.full(3, -0.5), np.full(3, 0.5)) @ geometry.affine[:3, :3].T).max(axis=0)
    points = geometry.to_lps_mm(_row_ends(part))
    return np.stack([points.min(axis=0) - reach, points.max(axis=0) + reach])
