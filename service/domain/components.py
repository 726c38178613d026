"""Which connected parts of what the network found belong to what was asked for.

A network also marks look-alikes. A part stays if a foreground click hits it or is next to it, if it overlaps a box, or
if it overlaps the previous mask. A background click takes away the part that it hits, unless a foreground click hits
it too. Parts connect over faces, edges and corners, since thick slices leave little overlap.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from service.domain.geometry import Geometry
from service.domain.prompts import Prompts

CLICK_REACH_MM = 10.0  # a click that misses means the nearest part within this distance, and none beyond it


def attached(found: np.ndarray, grid: Geometry, prompts: Prompts, previous: np.ndarray | None) -> np.ndarray:
    """The parts of `found` that the prompts mean.

    Args: found: (D, H, W) bool on `grid`. previous: (D, H, W) bool on `grid`, a previous or proposed mask.
    Returns: (D, H, W) bool, an array of its own.
    """
    parts, count = ndimage.label(found, np.ones((3, 3, 3)))
    if not count:
        return found.copy()
    clicked = {_part_at(parts, grid, point, CLICK_REACH_MM) for point in prompts.foreground_lps_mm}
    refused = {_part_at(parts, grid, point, 0.0) for point in prompts.points_lps_mm[prompts.labels == 0]}
    meant = set(np.unique(parts[previous]).tolist()) if previous is not None else set()
    for corners in prompts.boxes_lps_mm:
        index = grid.to_index(corners)
        low = np.maximum(np.ceil(index.min(axis=0)), 0).astype(int)
        high = np.maximum(np.floor(index.max(axis=0)) + 1, 0).astype(int)
        meant |= set(np.unique(parts[tuple(map(slice, low, high))]).tolist())
    kept = np.zeros(count + 1, bool)
    kept[sorted((meant - refused) | clicked)] = True
    kept[0] = False
    return kept[parts]  # type: ignore[no-any-return]


def _part_at(parts: np.ndarray, grid: Geometry, point_lps_mm: np.ndarray, reach_mm: float) -> int:
    """The label at a point, or else the nearest within reach; 0 is none."""
    index = grid.to_index(point_lps_mm[np.newaxis])[0]
    nearest = np.floor(index + 0.5).astype(int)
    if np.all((nearest >= 0) & (nearest < parts.shape)) and parts[tuple(nearest)]:
        return int(parts[tuple(nearest)])
    # how many voxels the reach spans on each axis, also when axes are oblique to each other
    span = np.ceil(reach_mm * np.linalg.norm(grid.inverse[:3, :3], axis=1)).astype(int)
    low, high = np.maximum(nearest - span, 0), np.maximum(nearest + span + 1, 0)
    around = np.argwhere(parts[tuple(map(slice, low, high))]) + low
    if not len(around):
        return 0
    distances_mm = np.linalg.norm(grid.to_lps_mm(around) - point_lps_mm, axis=1)
    best = int(np.argmin(distances_mm))
    return int(parts[tuple(around[best])]) if distances_mm[best] <= reach_mm else 0
