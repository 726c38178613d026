"""Where the network looks: cubes on one endless isotropic lattice, so that neighbours meet voxel on voxel.

What enters: the source's geometry and the places that prompts name. What leaves: corners of regions of interest (ROI).
All ROIs of a request share the lattice's axes, whatever plane the series was acquired in: z toward the head, y toward
posterior, x toward left. Decision: docs/decisions/0004-region-of-interest.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import ceil
from typing import TypeAlias

import numpy as np
from scipy import ndimage

from service.domain.geometry import Geometry
from service.domain.prompts import Prompts

Corner: TypeAlias = tuple[int, int, int]  # lattice index z, y, x of an ROI's first voxel
MARGIN_VOX = 8  # surroundings that a prompted place should have on every side; else it is tiled
LPS_OF_CANONICAL = (2, 1, 0)  # canonical axes z, y, x point along +S, +P, +L of the patient


@dataclass(frozen=True, eq=False)
class Lattice:
    """The isotropic grid of one request. Lattice coordinates are z, y, x; voxel centres are integers."""

    directions: np.ndarray  # (3, 3) columns: unit vectors of z, y, x in LPS
    origin_lps_mm: np.ndarray  # (3,) where lattice coordinate 0, 0, 0 lies
    spacing_mm: float
    size: int  # voxels per side of an ROI
    frame_of_reference_uid: str

    def to_lattice(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(..., 3) LPS mm to (..., 3) lattice coordinates z, y, x."""
        return (np.asarray(points_lps_mm, float) - self.origin_lps_mm) @ self.directions / self.spacing_mm  # type: ignore[no-any-return]

    def window(self, corner: Corner, shape: tuple[int, int, int]) -> Geometry:
        """The lattice points from `corner` on, as a grid."""
        affine = np.eye(4)
        affine[:3, :3] = self.directions * self.spacing_mm
        affine[:3, 3] = self.origin_lps_mm + affine[:3, :3] @ np.array(corner)
        return Geometry(shape, affine, self.frame_of_reference_uid)

    def roi(self, corner: Corner) -> Geometry:
        return self.window(corner, (self.size,) * 3)


def lattice_on(source: Geometry, *, spacing_mm: float, size: int) -> Lattice:
    """The lattice through the source's first voxel: where spacings agree, its points are source voxel centres."""
    return Lattice(
        canonical_directions(source), source.affine[:3, 3], spacing_mm, size, source.frame_of_reference_uid
    )  # fmt: skip


def canonical_directions(source: Geometry) -> np.ndarray:
    """(3, 3) columns z, y, x: the source's image axes and their normal, turned to head, posterior and left.

    Under gantry tilt the step from slice to slice is not the normal; the images' own plane is kept and the step is
    sheared away. Of all 48 ways to permute and flip the axes, the one closest to the patient's axes is taken, which is
    never a mirror image of the patient.
    """
    step, down, right = source.affine[:3, :3].T
    column = right / np.linalg.norm(right)
    row = down - column * (column @ down)
    row /= np.linalg.norm(row)
    normal = np.cross(row, column)
    normal *= np.sign(normal @ step)
    axes = np.stack([normal, row, column], axis=1)
    along_patient = axes[list(LPS_OF_CANONICAL)]  # row k: how far each axis points along canonical direction k
    best = max(permutations(range(3)), key=lambda order: sum(abs(along_patient[k, order[k]]) for k in range(3)))
    return np.stack([axes[:, axis] * np.sign(along_patient[k, axis]) for k, axis in enumerate(best)], axis=1)


def extents_of(prompts: Prompts, source: Geometry, lattice: Lattice) -> list[np.ndarray]:
    """Each place that the prompts point at as (2, 3) lattice coordinates, smallest then largest: foreground clicks,
    boxes, connected parts of the previous mask."""
    points = lattice.to_lattice(prompts.foreground_lps_mm)
    boxes = lattice.to_lattice(prompts.boxes_lps_mm)
    extents = [np.stack([point, point]) for point in points]
    extents += [np.stack([corners.min(axis=0), corners.max(axis=0)]) for corners in boxes]
    return extents if prompts.mask is None else extents + mask_extents(prompts.mask, source, lattice)


def mask_extents(mask: np.ndarray, grid: Geometry, lattice: Lattice) -> list[np.ndarray]:
    """(2, 3) lattice coordinates of each connected part of a mask. Args: mask: (D, H, W) bool on `grid`."""
    bounds = bounding_box(mask)
    if bounds is None:
        return []
    labels, _ = ndimage.label(mask[bounds], np.ones((3, 3, 3)))
    start = np.array([side.start for side in bounds])
    extents = []
    for part in ndimage.find_objects(labels):
        low, high = np.array([s.start for s in part]) + start, np.array([s.stop - 1 for s in part]) + start
        corners = lattice.to_lattice(grid.to_lps_mm(box_corners(low, high)))
        extents.append(np.stack([corners.min(axis=0), corners.max(axis=0)]))
    return extents


def first_corners(extents: Iterable[np.ndarray], size: int) -> list[Corner]:
    """ROIs centred on the prompted places. Places that fit into one ROI share it; a place too large for one is tiled.

    Args: extents: (2, 3) lattice coordinates each, in the order of the prompts.
    """
    groups: list[np.ndarray] = []
    for extent in extents:
        for number, group in enumerate(groups):
            union = np.stack([np.minimum(group[0], extent[0]), np.maximum(group[1], extent[1])])
            if np.all(union[1] - union[0] <= size - 1 - 2 * MARGIN_VOX):
                groups[number] = union
                break
        else:
            groups.append(extent)
    corners = [corner for group in groups for corner in cover(group, size, margin=MARGIN_VOX)]
    return list(dict.fromkeys(corners))


def cover(extent: np.ndarray, size: int, *, margin: int) -> list[Corner]:
    """Corners of the fewest ROIs that cover (2, 3) lattice coordinates, evenly spread, overlapping by a quarter."""
    usable, stride = size - 1 - 2 * margin, 3 * size // 4
    centres = []
    for low, high in extent.T:
        count = 1 + max(0, ceil((high - low - usable) / stride))
        ends = (low + usable / 2, high - usable / 2) if count > 1 else ((low + high) / 2,) * 2
        centres.append(np.linspace(*ends, count))
    return [_corner(np.array(centre), size) for centre in product(*centres)]


def _corner(centre: np.ndarray, size: int) -> Corner:
    # round half up: numpy's rounding to even would move equal clicks to either side
    z, y, x = np.floor(centre - (size - 1) / 2 + 0.5).astype(int).tolist()
    return (z, y, x)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds every True, or None. Args: mask: (D, H, W) bool."""
    sides = []
    for axis in range(3):
        (found,) = np.nonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not found.size:
            return None
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return (sides[0], sides[1], sides[2])


def box_corners(low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> np.ndarray:
    """(8, 3): all corners between two opposite ones."""
    return np.array(list(product(*zip(low, high, strict=True))), float)
