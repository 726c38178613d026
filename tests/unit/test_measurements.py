"""Measurements of masks whose numbers can be worked out by hand."""

from __future__ import annotations

import time
from math import hypot, sqrt

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.measurements import measure
from tests.fakes.source import grid

AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)


def mask_of(voxels: np.ndarray, spacing_zyx_mm=(1.0, 1.0, 1.0), directions=AXIAL, score=0.75) -> Mask:
    return Mask(voxels, grid(directions, spacing_zyx_mm, voxels.shape), score)


def test_an_empty_mask_has_no_size_and_no_box():
    measured = measure(mask_of(np.zeros((3, 4, 5), bool), score=0.0))
    assert (measured.voxels, measured.volume_ml, measured.max_diameter_mm) == (0, 0.0, 0.0)
    assert (measured.long_axis_mm, measured.short_axis_mm, measured.score) == (0.0, 0.0, 0.0)
    assert measured.bounding_box_lps_mm is None
    assert measured.bounding_box_index is None


def test_one_voxel_is_as_large_as_itself():
    voxels = np.zeros((5, 6, 7), bool)
    voxels[1, 2, 3] = True
    measured = measure(mask_of(voxels, (5.0, 2.0, 1.0)))
    assert (measured.voxels, measured.volume_ml) == (1, pytest.approx(0.010))
    assert measured.max_diameter_mm == pytest.approx(5.0)  # along the slice step
    assert (measured.long_axis_mm, measured.short_axis_mm) == pytest.approx((2.0, 1.0))
    # centres: x (3 - 3) * 1, y (2 - 2.5) * 2, z (1 - 2) * 5, half a voxel to each side
    assert measured.bounding_box_lps_mm == pytest.approx(np.array([[-0.5, -2, -7.5], [0.5, 0, -2.5]]))
    assert measured.bounding_box_index.tolist() == [[3, 2, 1], [3, 2, 1]]


def test_a_rod_of_n_voxels_is_n_spacings_long():
    voxels = np.zeros((4, 4, 20), bool)
    voxels[2, 1, 3:13] = True
    measured = measure(mask_of(voxels, (3.0, 0.8, 0.7)))
    assert measured.max_diameter_mm == pytest.approx(7.0)  # 10 * 0.7
    assert (measured.long_axis_mm, measured.short_axis_mm) == pytest.approx((7.0, 0.8))
    assert measured.bounding_box_index.tolist() == [[3, 1, 2], [12, 1, 2]]


def test_a_block_measures_across_its_corners():
    voxels = np.zeros((6, 10, 14), bool)
    voxels[1:4, 2:8, 1:10] = True  # 3 x 6 x 9 voxels of 2 x 1 x 1 mm
    measured = measure(mask_of(voxels, (2.0, 1.0, 1.0)))
    assert measured.volume_ml == pytest.approx(0.324)
    # between corner voxels: 2 * 2, 5, 8 mm; and one whole voxel along the axis where it adds most: 4 to 6 mm
    assert measured.max_diameter_mm == pytest.approx(sqrt(6**2 + 5**2 + 8**2))
    assert measured.long_axis_mm == pytest.approx(hypot(5, 9))
    assert measured.score == 0.75


def test_a_disc_has_two_equal_axes_and_an_ellipse_its_own():
    y, x = np.indices((101, 101)) - 50
    disc = measure(mask_of(((y**2 + x**2) <= 30**2)[None]))
    assert disc.long_axis_mm == pytest.approx(61, abs=0.6)
    assert disc.short_axis_mm == pytest.approx(61, abs=1.0)
    ellipse = measure(mask_of(((y / 12) ** 2 + ((x + y) / 40) ** 2 <= 1)[None]))
    # |y| / 12 and |x + y| / 40: the semi-axes are the singular values of [[40, -12], [0, 12]]
    long, short = np.linalg.svd([[40, -12], [0, 12]], compute_uv=False)
    assert ellipse.long_axis_mm == pytest.approx(2 * long, abs=1.5)
    assert ellipse.short_axis_mm == pytest.approx(2 * short, abs=1.5)


def test_the_axes_belong_to_the_slice_of_the_largest_area():
    voxels = np.zeros((3, 30, 30), bool)
    voxels[0, 5, 0:28] = True  # longest, but 28 voxels only
    voxels[2, 10:16, 10:18] = True  # 48 voxels
    measured = measure(mask_of(voxels))
    assert measured.long_axis_mm == pytest.approx(hypot(5, 8))


def test_turning_the_patient_changes_no_length():
    voxels = np.zeros((12, 20, 24), bool)
    voxels[2:7, 4:11, 3:20] = True
    voxels[6:9, 9:15, 6:9] = True
    turn = Rotation.from_euler("zyx", [30, -12, 50], degrees=True).as_matrix()
    plain, turned = measure(mask_of(voxels, (3, 1, 0.8))), measure(mask_of(voxels, (3, 1, 0.8), turn @ AXIAL))
    for name in ("volume_ml", "max_diameter_mm", "long_axis_mm", "short_axis_mm"):
        assert getattr(turned, name) == pytest.approx(getattr(plain, name))
    assert turned.bounding_box_lps_mm != pytest.approx(plain.bounding_box_lps_mm)


def test_tilted_slices_are_measured_where_they_lie():
    voxels = np.zeros((11, 5, 5), bool)
    voxels[:, 2, 2] = True
    sheared = np.array([[0, 0, 1], [0.5, 1, 0], [1, 0, 0]])  # each step also moves 0.5 in y
    measured = measure(mask_of(voxels, (1.0, 1.0, 1.0), sheared))
    # ten steps and two halves along (0, 0.5, 1)
    assert measured.max_diameter_mm == pytest.approx(11 * hypot(0.5, 1))


def test_a_large_mask_is_measured_quickly():
    z, y, x = np.ogrid[-90:90, -130:130, -130:130]
    voxels = (z / 85) ** 2 + (y / 120) ** 2 + (x / 110) ** 2 < 1  # 4.7 million voxels
    started = time.thread_time()  # of this thread alone: other work on the machine does not count
    measured = measure(mask_of(voxels))
    assert time.thread_time() - started < 2
    assert measured.max_diameter_mm == pytest.approx(240, abs=1.5)


def test_the_axes_of_a_sagittal_series_lie_in_the_axial_plane():
    """Slices run along x (2 mm), rows down (1 mm, towards the feet), columns along y (1 mm). A bar of 2 slices, 5 rows
    and 3 columns is 4 x 3 mm axially: from the middles of its outer faces, hypot(4, 2). In its own plane, 5 x 3 mm, it
    would be hypot(5, 2)."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[2, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    geometry = Geometry((4, 9, 8), affine, "1.2")
    voxels = np.zeros((4, 9, 8), bool)
    voxels[1:3, 2:7, 3:6] = True
    assert measure(Mask(voxels, geometry, 0.9)).long_axis_mm == pytest.approx(hypot(4, 2))
