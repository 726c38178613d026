"""Logits of one or more regions in, one mask on the source's own grid out.

Where regions overlap their logits are averaged, each counting less toward its own border. Logits, not masks, are
interpolated to the source voxel centres: the surface lies where they cross 0, also on anisotropic and tilted grids.
Only the part of the source that some region found positive is ever computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from service.domain.components import CLICK_REACH_MM, attached
from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.domain.resample import onto_box
from service.domain.roi import Corner, Lattice, bounding_box, box_corners

LOGIT_LIMIT = 8.0  # probability 0.9997: beyond it a region must not outvote its neighbours


@dataclass(frozen=True, eq=False)
class Tile:
    """What the network found in one region."""

    corner: Corner
    logits: np.ndarray  # (S, S, S) float32; > 0 is tumour


def blend(tiles: Sequence[Tile], corner: Corner, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Blended logits in a window of the lattice.

    Returns: (Z, Y, X) float32, and (Z, Y, X) bool: covered by some tile. Logits are -LOGIT_LIMIT where not covered.
    """
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for tile in tiles:
        offset = np.array(tile.corner) - corner
        low = np.maximum(offset, 0)
        high = np.minimum(offset + tile.logits.shape, shape)
        if np.any(low >= high):
            continue
        window, part = tuple(map(slice, low, high)), tuple(map(slice, low - offset, high - offset))
        weight = tent(tile.logits.shape[0])[part]
        total[window] += weight * np.clip(tile.logits[part], -LOGIT_LIMIT, LOGIT_LIMIT)
        weights[window] += weight
    return _mean(total, weights), weights > 0


def restore(
    tiles: Sequence[Tile], lattice: Lattice, source: Geometry, *, prompts: Prompts, complete: bool = True
) -> Mask:
    """The mask that the prompts mean, on the source grid; empty when nothing was found."""
    voxels = np.zeros(source.shape_zyx, bool)
    probability, count = 0.0, 0
    for box in _touched(tiles, lattice, source):
        logits = _on_source(tiles, lattice, source, box)
        grid = source.crop(tuple(s.start for s in box), tuple(s.stop for s in box))
        found = attached(logits > 0, grid, prompts, None if prompts.mask is None else prompts.mask[box])
        voxels[box] |= found
        probability += float(np.sum(expit(logits[found]), dtype=float))
        count += int(np.count_nonzero(found))
    return Mask(voxels, source, probability / count if count else 0.0, complete)


def tent(size: int) -> np.ndarray:
    """(S, S, S) float32 weights that fall linearly from the middle to the border, and are never 0 inside."""
    index = np.arange(size)
    side = (np.minimum(index, size - 1 - index) + 0.5).astype(np.float32) / (size / 2)
    return side[:, None, None] * side[None, :, None] * side[None, None, :]  # type: ignore[no-any-return]


def _touched(tiles: Sequence[Tile], lattice: Lattice, source: Geometry) -> list[tuple[slice, slice, slice]]:
    """Boxes of source voxels outside of which nothing was found. Boxes within a click's reach of each other are one, so
    that each can be judged by itself, and far-apart lesions never cost the space between them."""
    boxes: list[np.ndarray] = []  # (2, 3) start, stop
    for tile in tiles:
        if (bounds := bounding_box(tile.logits > 0)) is None:
            continue
        low, high = np.array([s.start - 1 for s in bounds]), np.array([s.stop for s in bounds])
        index = source.to_index(lattice.roi(tile.corner).to_lps_mm(box_corners(low, high)))
        box = np.stack([np.floor(index.min(axis=0)), np.ceil(index.max(axis=0)) + 1]).astype(int)
        box = np.clip(box, 0, source.shape_zyx)
        if np.all(box[0] < box[1]):
            boxes.append(box)
    reach = np.ceil(CLICK_REACH_MM * np.linalg.norm(source.inverse[:3, :3], axis=1)).astype(int)
    separate: list[np.ndarray] = []
    while boxes:
        box = boxes.pop()
        near = [other for other in separate if np.all((box[0] - reach <= other[1]) & (other[0] <= box[1] + reach))]
        if not near:
            separate.append(box)
            continue
        separate = [other for other in separate if not any(other is one for one in near)]
        both = np.stack([box, *near])
        boxes.append(np.stack([both[:, 0].min(axis=0), both[:, 1].max(axis=0)]))
    return [(slice(*box[:, 0].tolist()), slice(*box[:, 1].tolist()), slice(*box[:, 2].tolist())) for box in separate]


def _on_source(
    tiles: Sequence[Tile], lattice: Lattice, source: Geometry, box: tuple[slice, slice, slice]
) -> np.ndarray:  # fmt: skip
    """Blended logits at the source voxel centres of a box, float32."""
    shape = tuple(side.stop - side.start for side in box)
    total, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for tile in tiles:
        roi, weight = lattice.roi(tile.corner), tent(tile.logits.shape[0])
        total += onto_box(weight * np.clip(tile.logits, -LOGIT_LIMIT, LOGIT_LIMIT), roi, source, box)
        weights += onto_box(weight, roi, source, box)
    return _mean(total, weights)


def _mean(total: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """total / weights in place; -LOGIT_LIMIT where the weight is 0."""
    covered = weights > 0
    np.divide(total, weights, out=total, where=covered)
    total[~covered] = -LOGIT_LIMIT
    return total
