"""How closely to look: worked numbers for the grid rule, the zoom's next step, and the slices kept between looks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contract.grid import GridRule, fixed_grid
from service.domain.volume import SliceCache
from service.domain.zoom import STEP, Seen, Zoom, zoom_on
from tests.fakes.source import FakeSource, grid

RULE = GridRule(1.5, 0.35, 6.0, 3.0, 6.5, fill=0.6)
ZOOM = Zoom(RULE, 64, finest_mm=0.5, coarsest_mm=6.0)
AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)


def place(side_mm: float) -> np.ndarray:
    return np.array([[10.0, 10, 10], [10 + side_mm, 12, 11]])


def test_a_tumour_fills_its_share_of_the_region_within_the_rules_limits():
    assert RULE.spacing_mm(76.8, 64) == pytest.approx(2.0)  # 76.8 mm on 0.6 * 64 = 38.4 voxels
    assert RULE.spacing_mm(1.0, 64) == 0.35
    assert RULE.spacing_mm(900.0, 64) == 6.0
    assert RULE.search_mm(320.0, 64) == pytest.approx(5.0)
    assert (RULE.search_mm(64.0, 64), RULE.search_mm(640.0, 64)) == (3.0, 6.5)


@pytest.mark.parametrize(
    "values", [(1, 2, 6, 3, 6, 0.6), (1, 0, 6, 3, 6, 0.6), (1, 1, 1, 3, 2, 0.6), (1, 1, 1, 1, 1, 1)]
)
def test_a_rule_that_contradicts_itself_is_refused(values):
    first, finest, coarsest, search_finest, search_coarsest, fill = values
    with pytest.raises(ValueError, match="grid rule"):
        GridRule(first, finest, coarsest, search_finest, search_coarsest, fill)


def test_a_box_gives_one_look_and_clicks_three_around_the_spacing_that_suits_most():
    assert ZOOM.first([place(38.4)], np.zeros((0, 3))) == pytest.approx([1.0])
    assert ZOOM.first([], np.zeros((1, 3))) == pytest.approx([1.5, 1.5 * STEP, 1.5 / STEP])


def test_clicks_that_lie_far_apart_stay_in_view_of_every_first_look():
    spread = np.array([[0, 0, 0], [0, 115.2, 3.0]])
    assert ZOOM.first([], spread) == pytest.approx([3.0, 3.0 * STEP])
    assert ZOOM.first([], spread / 2.5) == pytest.approx([1.5, 1.5 * STEP, 1.2])


def test_where_the_scan_ends_there_is_no_wider_look():
    assert replace(ZOOM, coarsest_mm=1.0).first([], np.zeros((1, 3))) == pytest.approx([1.0, 1.0 / STEP])
    assert replace(ZOOM, finest_mm=1.0, coarsest_mm=1.05).first([], np.zeros((1, 3))) == [1.05]


@pytest.mark.parametrize(
    ("spacing", "seen", "following"),
    [
        (1.5, Seen([place(57.6)]), None),  # 38.4 voxels: as it should be
        (1.5, Seen([place(50.0)]), None),  # 1.3: near enough
        (1.5, Seen([place(19.2)]), 0.5),
        (1.5, Seen([place(90.0)], [(0, 0, 32)]), 1.5 * STEP),
        (5.0, Seen([place(300.0)], [(0, 0, 32)]), 6.0),
        (6.0, Seen([place(360.0)], [(0, 0, 32)]), None),  # nothing wider is allowed
        (1.5, Seen([]), 0.75),
        (0.5, Seen([]), None),
    ],
)
def test_the_next_look_is_wider_closer_or_none(spacing, seen, following):
    assert ZOOM.following(spacing, seen, [spacing]) == (following if following is None else pytest.approx(following))


def test_what_left_its_region_is_not_looked_at_as_closely_again():
    seen = Seen([place(40.0)])
    assert ZOOM.following(2.4, seen, [2.4]) == pytest.approx(40 / 38.4)
    assert ZOOM.following(2.4, seen, [2.4], [1.5]) is None  # 1.95 is near enough to 2.4


def test_nothing_is_looked_at_twice():
    leaving = Seen([place(90.0)], [(0, 0, 32)])
    assert ZOOM.following(1.5, leaving, [1.5, 1.5 * STEP]) is None
    assert ZOOM.following(2.4, Seen([place(40.0)]), [2.4, 1.2]) is None


def test_nothing_is_looked_at_more_closely_than_half_the_sources_spacing():
    source = grid(AXIAL, (5.0, 1.6, 1.4), (10, 20, 20))
    assert zoom_on(source, RULE, 64).finest_mm == pytest.approx(0.7)
    assert zoom_on(source, fixed_grid(0.4), 64).finest_mm == 0.4


def test_a_small_scan_is_not_looked_at_from_beyond_its_edges():
    small = grid(AXIAL, (2.0, 1.0, 1.0), (20, 40, 64))  # 64 mm at most
    zoom = zoom_on(small, RULE, 64)
    assert zoom.coarsest_mm == pytest.approx(1.0)
    assert zoom.first([], np.zeros((1, 3))) == pytest.approx([1.0, 1.0 / STEP])
    assert zoom_on(grid(AXIAL, (5.0, 0.9, 0.9), (20, 512, 512)), RULE, 64).coarsest_mm == RULE.coarsest_mm
    assert zoom_on(grid(AXIAL, (5.0, 5.0, 5.0), (4, 4, 4)), RULE, 64).coarsest_mm == pytest.approx(2.5)


def test_slices_are_decoded_once_and_forgotten_beyond_the_limit():
    source = FakeSource(grid(AXIAL, (1, 1, 1), (40, 4, 5)), lambda points: points[:, 2])
    cached = SliceCache(source, limit=20)
    first = cached.read(5, 10)
    assert np.array_equal(cached.read(3, 12).voxels[2:7], first.voxels)
    assert source.read_slices == [5, 6, 7, 8, 9, 3, 4, 10, 11]
    part = cached.read(3, 12)
    assert part.geometry.to_lps_mm(np.zeros((1, 3)))[0] == pytest.approx(
        source.geometry.to_lps_mm(np.array([[3, 0, 0]]))[0]
    )
    cached.read(20, 35)  # 9 + 15 are too many
    assert source.read_slices[9:] == list(range(20, 35))
    cached.read(3, 4)
    assert source.read_slices[-1] == 3
