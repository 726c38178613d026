"""Outlines between the pixels: worked by hand, and filled again they are the mask they came from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from service.domain.contours import filled, keyhole, regions_of, simplified


def plane(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def area(curve: np.ndarray) -> float:
    """Shoelace, pixels."""
    r, c = curve.T
    return abs(float(r @ np.roll(c, -1) - c @ np.roll(r, -1))) / 2


def test_one_pixel_is_a_diamond_of_four_points_half_a_pixel_out():
    (region,) = regions_of(plane("...", "..#", "..."))
    assert {tuple(point) for point in region.outline.tolist()} == {(0.5, 2), (1.5, 2), (1, 1.5), (1, 2.5)}
    assert region.holes == ()


def test_a_rectangle_loses_its_corners_and_nothing_else():
    """4 x 3 pixels reach half a pixel beyond their centres: 12 pixels, less four corners of an eighth each."""
    (region,) = regions_of(np.pad(np.ones((4, 3), bool), 2))
    assert area(region.outline) == pytest.approx(11.5)
    assert len(simplified(region.outline)) == 8


def test_a_ring_has_one_hole_and_a_keyhole_joins_it():
    mask = plane("#####", "#...#", "#...#", "#####")
    (region,) = regions_of(mask)
    assert len(region.holes) == 1
    joined = keyhole(region)
    assert len(joined) == len(region.outline) + len(region.holes[0]) + 2
    np.testing.assert_array_equal(filled([joined], mask.shape), mask)


def test_an_islet_in_a_hole_is_a_region_of_its_own():
    mask = plane("#######", "#.....#", "#..#..#", "#.....#", "#######")
    assert sorted(len(region.holes) for region in regions_of(mask)) == [0, 1]


def test_an_empty_slice_has_no_region():
    assert regions_of(np.zeros((3, 4), bool)) == []


def test_filling_follows_the_even_odd_rule():
    outer = np.array([[-0.5, -0.5], [-0.5, 4.5], [4.5, 4.5], [4.5, -0.5]])
    inner = np.array([[0.5, 0.5], [0.5, 3.5], [3.5, 3.5], [3.5, 0.5]])
    expected = np.ones((5, 5), bool)
    expected[1:4, 1:4] = False
    np.testing.assert_array_equal(filled([outer, inner], (5, 5)), expected)


def test_what_lies_outside_the_image_is_cut_off():
    wide = np.array([[-9.0, -9.0], [-9.0, 9.0], [9.0, 9.0], [9.0, -9.0]])
    assert filled([wide], (3, 4)).all()


@settings(deadline=None, max_examples=150)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)))
def test_any_mask_comes_back_from_its_curves_with_holes_by_keyhole_and_by_xor(mask):
    regions = regions_of(mask)
    joined = [simplified(keyhole(region)) for region in regions]
    apart = [simplified(curve) for region in regions for curve in (region.outline, *region.holes)]
    for curves in (joined, apart):
        assert all(len(curve) >= 3 for curve in curves)
        np.testing.assert_array_equal(filled(curves, mask.shape), mask)


@given(st.integers(0, 5))
def test_simplifying_keeps_the_area(turns):
    (region,) = regions_of(np.rot90(plane("####", "#..#", ".###"), turns))
    assert area(simplified(region.outline)) == pytest.approx(area(region.outline))
