"""A text alone says what, not where: which grid to search the volume on, and which places to look at closely.

What enters: the volume's geometry, later what the network found on the search grid. What leaves: corners to search, and
a proposed mask on the source grid, which then serves as the previous mask of an ordinary request.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.special import expit

from contract.grid import GridRule
from service.domain.geometry import Geometry
from service.domain.resample import onto_box
from service.domain.restore import Tile, blend
from service.domain.roi import Corner, Lattice, bounding_box, box_corners, cover

SEARCH_ROIS = 12  # regions a search may cost, as far as the grid rule can help it
ORGAN_FILL = 0.8  # of a region's side that an organ's longest side takes when its mask says where it is
MAX_PROPOSALS = 4
SURE = 2.2  # logit, nine tenths: somewhere in what is proposed the networks must be as sure as that
ORGAN_MARGIN_MM = 10.0  # a tumour may bulge out of the organ mask


def search(
    lattice_at: Callable[[float], Lattice], rule: GridRule, source: Geometry, organ_mask: np.ndarray | None
) -> tuple[Lattice, list[Corner]]:
    """The grid and regions that cover the volume, or the organ in it.

    The spacing is such that one region sees across the images, as far as the rule lets it; a long series takes several.
    Args: lattice_at: the request's lattice at a spacing in mm.
    """
    low, high = np.zeros(3), np.array(source.shape_zyx) - 1.0
    bounds = None if organ_mask is None else bounding_box(organ_mask)
    if bounds is not None:
        margin = ORGAN_MARGIN_MM * np.linalg.norm(source.inverse[:3, :3], axis=1)
        low = np.maximum(low, [side.start - gap for side, gap in zip(bounds, margin, strict=True)])
        high = np.minimum(high, [side.stop - 1 + gap for side, gap in zip(bounds, margin, strict=True)])
    extent_mm = (high - low) * source.spacing_zyx_mm
    size = lattice_at(1.0).size
    wide = float(max(extent_mm)) / ORGAN_FILL if bounds is not None else float(max(extent_mm[1:]))
    spacings = sorted({rule.search_mm(wide, size), rule.search_coarsest_mm})
    corners_lps_mm = source.to_lps_mm(box_corners(low, high))
    for spacing_mm in spacings:
        coarse = lattice_at(spacing_mm)
        points = coarse.to_lattice(corners_lps_mm)
        corners = cover(np.stack([points.min(axis=0), points.max(axis=0)]), coarse.size, margin=0)
        if len(corners) <= SEARCH_ROIS:
            break
    return coarse, corners


def propose(tiles: list[Tile], lattice: Lattice, source: Geometry, organ_mask: np.ndarray | None) -> np.ndarray:
    """(D, H, W) bool on the source grid: the most probable parts of what was found, at most MAX_PROPOSALS of them, and
    only such as overlap the organ mask. A part counts by its summed probability, large and certain first, if the
    networks are `SURE` anywhere in it: a search goes over much that nobody pointed at, and silence beats a guess."""
    proposal = np.zeros(source.shape_zyx, bool)
    corners = np.array([tile.corner for tile in tiles])
    start = corners.min(axis=0)
    shape = tuple((corners.max(axis=0) + lattice.size - start).tolist())
    logits, _ = blend(tiles, tuple(start.tolist()), shape)
    parts, count = ndimage.label(logits > 0, np.ones((3, 3, 3)))
    if not count:
        return proposal
    labels = np.arange(1, count + 1)
    labels = labels[ndimage.maximum(logits, parts, labels) >= SURE]
    mass = ndimage.sum_labels(expit(logits), parts, labels)
    bounds = ndimage.find_objects(parts)
    accepted = 0
    for label in labels[np.argsort(-mass, kind="stable")].tolist():
        part = bounds[label - 1]
        low = np.array([side.start for side in part]) + start
        window = lattice.window(tuple(low.tolist()), tuple(side.stop - side.start for side in part))
        accepted += _add(proposal, parts[part] == label, window, source, organ_mask)
        if accepted == MAX_PROPOSALS:
            break
    return proposal


def _add(proposal: np.ndarray, part: np.ndarray, window: Geometry, source: Geometry, organ: np.ndarray | None) -> bool:
    """Lay one part onto the source grid, in place. Returns: whether it was (it may miss the organ or the source)."""
    padded = np.pad(part, 1).astype(np.float32)  # so that its border lies between voxels
    grid = Geometry(padded.shape, window.affine.copy(), window.frame_of_reference_uid)
    grid.affine[:3, 3] = window.to_lps_mm(np.full((1, 3), -1))[0]
    index = source.to_index(grid.to_lps_mm(box_corners(np.zeros(3), np.array(padded.shape) - 1)))
    start = np.maximum(np.floor(index.min(axis=0)), 0).astype(int)
    stop = np.minimum(np.ceil(index.max(axis=0)) + 1, source.shape_zyx).astype(int)
    if np.any(start >= stop):
        return False
    z, y, x = (slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True))
    on_source = onto_box(padded, grid, source, (z, y, x))
    found = on_source > 0.5 * min(1.0, float(on_source.max()))  # a part between thick slices still counts
    if not found.any() or (organ is not None and not (found & organ[z, y, x]).any()):
        return False
    proposal[z, y, x] |= found
    return True
