"""From logits back to the source: blending, the surface's place, which parts stay."""

from __future__ import annotations

import numpy as np
import pytest

from service.domain.components import attached
from service.domain.prompts import Prompts
from service.domain.restore import LOGIT_LIMIT, Tile, blend, restore, tent
from service.domain.roi import Lattice, box_corners, lattice_on
from tests.fakes.source import grid

AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)


def lattice(source=None, size: int = 16, spacing_mm: float = 1.0) -> Lattice:
    return lattice_on(source or grid(AXIAL, (1, 1, 1), (40, 40, 40)), spacing_mm=spacing_mm, size=size)


def tile(corner, low, high, size: int = 16, logit: float = 4.0) -> Tile:
    """Positive from `low` to `high` in ROI voxels."""
    logits = np.full((size,) * 3, -4.0, np.float32)
    logits[tuple(map(slice, low, high))] = logit
    return Tile(corner, logits)


def whole(prompts_mask_shape) -> Prompts:
    """A prompt that means everything."""
    return Prompts(mask=np.ones(prompts_mask_shape, bool))


def test_half_shifted_tents_weigh_to_the_same_everywhere():
    side = tent(8)[:, 4, 4] / tent(8)[4, 4, 4] * 0.875
    assert side.tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125])
    assert (side[:4] + side[4:]).tolist() == pytest.approx([1, 1, 1, 1])


def test_overlapping_regions_are_averaged_and_none_outvotes_the_others():
    loud, quiet = (
        Tile((0, 0, 0), np.full((8, 8, 8), 500, np.float32)),
        Tile((4, 0, 0), np.full((8, 8, 8), -2, np.float32)),
    )
    logits, covered = blend([loud, quiet], (0, 0, 0), (16, 8, 8))
    assert logits[0, 0, 0] == LOGIT_LIMIT
    # in plane 4 the first counts 0.875 and the second 0.125
    assert logits[4, 3, 3] == pytest.approx(0.875 * LOGIT_LIMIT - 0.125 * 2)
    assert logits[11, 3, 3] == pytest.approx(-2)
    assert logits[12, 3, 3] == -LOGIT_LIMIT
    assert covered.any(axis=(1, 2)).tolist() == [True] * 12 + [False] * 4


def test_a_mask_is_restored_voxel_for_voxel_where_grids_agree():
    source = grid(AXIAL, (1, 1, 1), (40, 40, 40))
    mask = restore([tile((5, 6, 7), (2, 3, 4), (9, 8, 7))], lattice(source), source, prompts=whole(source.shape_zyx))
    expected = np.zeros(source.shape_zyx, bool)
    expected[7:14, 9:14, 11:14] = True
    assert np.array_equal(mask.voxels, expected)
    assert mask.score == pytest.approx(1 / (1 + np.exp(-4)))


def test_the_surface_lies_where_logits_cross_zero():
    source = grid(AXIAL, (1, 1, 0.25), (20, 20, 100))
    coarse = tile((0, 0, 0), (4, 4, 4), (9, 9, 9), logit=12.0)  # clipped to 8, against -4 outside
    mask = restore([coarse], lattice(source), source, prompts=whole(source.shape_zyx))
    # between voxel 8 (8) and 9 (-4) the value is 0 at 8.67 mm: quarter-millimetre voxels to 8.5 are in
    (columns,) = np.nonzero(mask.voxels[6, 6])
    assert (columns[0] * 0.25, columns[-1] * 0.25) == (3.5, 8.5)


def test_regions_meet_without_a_seam():
    source = grid(AXIAL, (1, 1, 1), (40, 40, 40))
    tiles = [tile((0, 0, 0), (4, 4, 4), (16, 12, 12)), tile((8, 0, 0), (0, 4, 4), (12, 12, 12))]
    mask = restore(tiles, lattice(source), source, prompts=whole(source.shape_zyx))
    expected = np.zeros(source.shape_zyx, bool)
    expected[4:20, 4:12, 4:12] = True
    assert np.array_equal(mask.voxels, expected)


def test_no_tiles_or_nothing_found_is_an_empty_mask():
    source = grid(AXIAL, (1, 1, 1), (40, 40, 40))
    for tiles in ([], [tile((0, 0, 0), (0, 0, 0), (0, 0, 0))], [tile((-50, 0, 0), (1, 1, 1), (5, 5, 5))]):
        mask = restore(tiles, lattice(source), source, prompts=whole(source.shape_zyx))
        assert (mask.voxels.any(), mask.score) == (False, 0.0)


# Parts: A at columns 2..4, B at columns 10..12, C at columns 30..31, all in row 5 of a 1 mm grid.
GRID = grid(AXIAL, (1, 1, 1), (3, 11, 40), (0, 0, 0))
FOUND = np.zeros(GRID.shape_zyx, bool)
FOUND[1, 5, [2, 3, 4, 10, 11, 12, 30, 31]] = True


def at(*columns: float) -> np.ndarray:
    return GRID.to_lps_mm(np.array([[1, 5, column] for column in columns], float))


def kept(prompts: Prompts, previous: np.ndarray | None = None) -> list[int]:
    """First columns of the parts that stay."""
    stay = attached(FOUND, GRID, prompts, previous)
    assert not (stay & ~FOUND).any()
    return [column for column in (2, 10, 30) if stay[1, 5, column]]


@pytest.mark.parametrize(
    ("foreground", "background", "expected"),
    [
        ([3], [], [2]),
        ([3, 30], [], [2, 30]),
        ([6], [], [2]),  # beside: 2 mm from A, 4 mm from B
        ([22], [], [30]),  # 8 mm from C, 10 mm from B
        ([3], [4], [2]),  # both in one part: the network has weighed them
        ([3, 11], [30], [2, 10]),
    ],
)
def test_a_click_means_the_part_that_it_hits_or_the_nearest(foreground, background, expected):
    labels = np.array([1] * len(foreground) + [0] * len(background), np.int32)
    assert kept(Prompts(points_lps_mm=at(*foreground, *background), labels=labels)) == expected


def test_a_click_far_from_everything_means_nothing():
    assert kept(Prompts(points_lps_mm=at(21.0) + np.array([0, 30, 0]), labels=np.array([1]))) == []


def test_a_box_and_a_previous_mask_mean_what_they_overlap_but_for_background_clicks():
    box = GRID.to_lps_mm(box_corners((0, 4, 4), (2, 6, 11)))[np.newaxis]
    assert kept(Prompts(boxes_lps_mm=box)) == [2, 10]
    assert kept(Prompts(boxes_lps_mm=box, points_lps_mm=at(11), labels=np.array([0]))) == [2]
    previous = np.zeros_like(FOUND)
    previous[1, 5, 12:31] = True
    assert kept(Prompts(), previous) == [10, 30]
