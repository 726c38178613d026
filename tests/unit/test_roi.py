"""The lattice of regions: axes, centres, grouping and tiling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from service.domain.prompts import Prompts
from service.domain.roi import (
    bounding_box,
    canonical_directions,
    cover,
    extents_of,
    first_corners,
    lattice_on,
    mask_extents,
)
from tests.fakes.source import SIGNED_PERMUTATIONS, grid

# columns: LPS directions of slices, rows, columns
AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
CANONICAL = AXIAL  # z to the head, y to posterior, x to the left


@pytest.mark.parametrize("directions", SIGNED_PERMUTATIONS)
def test_the_network_sees_head_posterior_left_whatever_the_acquisition_plane(directions):
    assert canonical_directions(grid(directions, (5, 0.7, 0.9), (4, 5, 6))) == pytest.approx(CANONICAL)


def test_an_oblique_series_keeps_its_own_planes():
    turn = Rotation.from_euler("zyx", [12, -20, 8], degrees=True).as_matrix()
    assert canonical_directions(grid(turn @ AXIAL, (4, 1, 1), (4, 5, 6))) == pytest.approx(turn @ CANONICAL)


@pytest.mark.parametrize("seed", range(20))
def test_axes_are_never_a_mirror_image_of_the_patient(seed):
    turn = Rotation.random(rng=seed).as_matrix()
    axes = canonical_directions(grid(turn @ SIGNED_PERMUTATIONS[seed * 2], (3, 1, 1), (4, 5, 6)))
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(axes) == pytest.approx(np.linalg.det(CANONICAL))
    assert all(np.diag(axes[[2, 1, 0]]) > 0)


def test_gantry_tilt_is_sheared_away_from_the_step_and_not_from_the_image():
    tilt = np.radians(20)
    directions = np.array([[0, 0, 1], [0, np.cos(tilt), 0], [1, -np.sin(tilt), 0]])  # table along z, rows tilted
    axes = canonical_directions(grid(directions, (5, 1, 1), (4, 5, 6)))
    assert axes[:, 1] == pytest.approx([0, np.cos(tilt), -np.sin(tilt)])  # rows as acquired
    assert axes[:, 0] == pytest.approx([0, np.sin(tilt), np.cos(tilt)])  # normal of the image, toward the head


def test_lattice_points_are_source_voxel_centres_where_spacings_agree():
    source = grid(AXIAL, (1, 1, 1), (40, 50, 60), (7.3, -2.1, 100))
    lattice = lattice_on(source, spacing_mm=1.0, size=128)
    assert lattice.to_lattice(source.to_lps_mm(np.array([[3, 4, 5]]))) == pytest.approx(np.array([[3, 4, 5]]))
    assert lattice.roi((-10, 2, 3)).to_index(source.to_lps_mm(np.array([[0, 2, 4]]))) == pytest.approx(
        np.array([[10, 0, 1]])
    )


def test_one_click_is_in_the_middle_of_its_region():
    source = grid(AXIAL, (5, 0.7, 0.7), (60, 300, 300))
    lattice = lattice_on(source, spacing_mm=1.0, size=128)
    click = np.array([[12.3, -40.2, 33.0]])
    (corner,) = first_corners(extents_of(Prompts(points_lps_mm=click, labels=np.array([1])), source, lattice), 128)
    assert np.all(np.abs(lattice.roi(corner).to_index(click)[0] - 63.5) <= 0.5)


def test_several_clicks_share_a_region_around_their_midpoint_and_background_clicks_do_not_move_it():
    source = grid(AXIAL, (1, 1, 1), (300, 300, 300))
    lattice = lattice_on(source, spacing_mm=1.0, size=128)
    points = source.to_lps_mm(np.array([[100, 100, 100], [160, 120, 100], [250, 250, 250]]))
    prompts = Prompts(points_lps_mm=points, labels=np.array([1, 1, 0]))
    # midpoint 130, 110, 100, less 63.5, rounded half up
    assert first_corners(extents_of(prompts, source, lattice), 128) == [(67, 47, 37)]


def test_clicks_further_apart_than_a_region_get_one_each():
    source = grid(AXIAL, (1, 1, 1), (400, 300, 300))
    lattice = lattice_on(source, spacing_mm=1.0, size=128)
    points = source.to_lps_mm(np.array([[100, 100, 100], [300, 100, 100], [104, 102, 100]]))
    prompts = Prompts(points_lps_mm=points, labels=np.array([1, 1, 1]))
    assert first_corners(extents_of(prompts, source, lattice), 128) == [(39, 38, 37), (237, 37, 37)]


def test_a_box_too_large_for_a_region_is_tiled_with_overlap():
    # usable 128 - 1 - 16 = 111: a side of 111 is one region, 200 takes 1 + ceil(89 / 96) = 2
    corners = cover(np.array([[0.0, 0, 0], [200, 111, 10]]), 128, margin=8)
    assert corners == [(-8, -8, -58), (81, -8, -58)]
    assert corners[0][0] + 128 - corners[1][0] == 39


def test_each_connected_part_of_a_mask_is_a_place_of_its_own():
    source = grid(AXIAL, (2, 1, 1), (20, 30, 40))
    mask = np.zeros(source.shape_zyx, bool)
    mask[2:4, 5:9, 6] = True
    mask[10, 20, 30] = True
    extents = mask_extents(mask, source, lattice_on(source, spacing_mm=1.0, size=128))
    assert np.stack(extents).tolist() == [[[4, 5, 6], [6, 8, 6]], [[20, 20, 30], [20, 20, 30]]]
    assert mask_extents(np.zeros_like(mask), source, lattice_on(source, spacing_mm=1.0, size=128)) == []


def test_bounding_box_is_the_smallest():
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 2, 3] = mask[3, 2, 5] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 3), slice(3, 6))
    assert bounding_box(np.zeros((2, 2, 2), bool)) is None
