"""Where a tumour leaves its region of interest, and so where the next regions must be.

A neighbour is shifted by half a region: what was found so far is its previous mask, and half of it is new.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.domain.geometry import Geometry
from service.domain.restore import Tile
from service.domain.roi import Corner, Lattice

MAX_ROIS = 27  # 3 x 3 x 3 half-shifted regions: a cube of 256 mm, or far more along one axis; half a minute on a CPU
BORDER_VOX = 2  # a mask that comes this near to the border goes on beyond it


def neighbours(
    tile: Tile, tumour: np.ndarray, tiles: Sequence[Tile], lattice: Lattice, source: Geometry
) -> list[Corner]:  # fmt: skip
    """Corners of the regions into which the tumour found in `tile` goes on.

    A face counts when the tumour touches it, the source goes on beyond it, and no other of the `tiles` has that part of
    the tumour in its interior.
    Args: tumour: (S, S, S) bool, the parts found in the tile that the prompts mean.
    """
    size, roi, corner, found = lattice.size, lattice.roi(tile.corner), np.array(tile.corner), tumour.copy()
    for other in tiles:
        if other is not tile:
            low = np.array(other.corner) - corner + BORDER_VOX
            high = np.maximum(low + size - 2 * BORDER_VOX, 0)
            found[tuple(map(slice, np.maximum(low, 0), high))] = False
    leaving: list[Corner] = []
    for axis in range(3):
        for side, start in ((-1, 0), (1, size - BORDER_VOX)):
            outward = np.eye(3, dtype=int)[axis]
            layer = np.argwhere(found.take(range(start, start + BORDER_VOX), axis)) + start * outward
            if len(layer) and source.contains(roi.to_lps_mm(layer + side * BORDER_VOX * outward)).any():
                z, y, x = (corner + side * size // 2 * outward).tolist()
                leaving.append((z, y, x))
    return leaving
