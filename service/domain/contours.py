"""A mask's outline as closed curves, slice by slice, between the pixels.

Curves are those of marching squares at one half: every vertex lies half way between a pixel centre inside and one
outside, so that exactly the mask's pixel centres are inside. Steps of one pixel become slopes, as a hand would draw
them. Coordinates are (row, column), integers are pixel centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from contourpy import FillType, LineType, contour_generator
from scipy.spatial.distance import cdist

HALF = 0.5  # the level between 0 and 1
COLLINEAR_PIXELS2 = 1e-9  # twice the area of a triangle of three vertices on one line


@dataclass(frozen=True, eq=False)
class Region:
    """One connected part of a slice: its outline and its holes, each (N, 2) row, column, N >= 3, not closed up."""

    outline: np.ndarray
    holes: tuple[np.ndarray, ...]


def regions_of(slice_mask: np.ndarray) -> list[Region]:
    """Args: slice_mask: (H, W) bool. Returns: its parts; pixels that touch at a corner only may be one part or two."""
    rows, columns = np.flatnonzero(slice_mask.any(axis=1)), np.flatnonzero(slice_mask.any(axis=0))
    if not rows.size:
        return []
    low = np.array([rows[0], columns[0]])
    part = slice_mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(part, 1).astype(float)
    generator = contour_generator(
        z=padded, name="serial", fill_type=FillType.OuterOffset, line_type=LineType.Separate
    )  # fmt: skip
    points, offsets = generator.filled(HALF, np.inf)  # type: ignore[misc]  # two lists, by this fill type
    regions = []
    for polygon, starts in zip(points, offsets, strict=True):
        curves = [
            polygon[a : b - 1, ::-1] - 1 + low for a, b in pairwise(starts)
        ]  # x, y -> row, column; the last vertex repeats the first
        regions.append(Region(curves[0], tuple(curves[1:])))
    return regions


def keyhole(region: Region) -> np.ndarray:
    """One curve around the region and its holes: each hole hangs on by a channel without width, walked both ways."""
    curve = region.outline
    remaining = list(region.holes)
    while remaining:
        distances = [cdist(curve, hole) for hole in remaining]
        nearest = min(range(len(remaining)), key=lambda number: distances[number].min())
        hole = remaining.pop(nearest)
        on_curve, on_hole = np.unravel_index(distances[nearest].argmin(), distances[nearest].shape)
        around = np.concatenate([np.roll(hole, -int(on_hole), axis=0), hole[on_hole][None]])
        curve = np.concatenate([curve[: on_curve + 1], around, curve[on_curve:]])
    return curve


def simplified(curve: np.ndarray) -> np.ndarray:
    """The same curve without vertices on the straight line between their neighbours; at least three stay."""
    before, after = np.roll(curve, 1, axis=0), np.roll(curve, -1, axis=0)
    one, other = curve - before, after - curve
    twice_area = np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0])
    forward = np.sum(one * other, axis=1) > 0  # the tip of a channel turns back on itself and stays
    kept = curve[~((twice_area <= COLLINEAR_PIXELS2) & forward)]
    return kept if len(kept) >= 3 else curve


def filled(curves: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixel centres inside an odd number of the curves (even-odd rule), (row, column) each.

    Every edge toggles the pixels to the right of where it crosses a row's centre line.
    """
    height, width = shape
    toggles = np.zeros((height, width + 1), np.int64)
    for curve in curves:
        r0, c0 = curve.T
        r1, c1 = np.roll(curve, -1, axis=0).T
        for a_row, a_column, b_row, b_column in zip(r0, c0, r1, c1, strict=True):
            low, high = (a_row, b_row) if a_row < b_row else (b_row, a_row)
            rows = np.arange(max(int(np.ceil(low)), 0), min(int(np.ceil(high)), height))  # low <= row < high
            if rows.size:
                crossed = a_column + (rows - a_row) * (b_column - a_column) / (b_row - a_row)
                first = np.clip(np.floor(crossed).astype(int) + 1, 0, width)
                np.add.at(toggles, (rows, first), 1)
    return np.cumsum(toggles[:, :width], axis=1) % 2 == 1  # type: ignore[no-any-return]
