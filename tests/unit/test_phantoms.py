"""Synthetic scans: reproducible, varied, asymmetric, and fast building blocks that do what they say."""

from __future__ import annotations

import numpy as np
import pytest

from training.baselines import best_region_growing, best_sphere, dice
from training.fields import curve, ellipsoid, gaussian_matrix, separable, slice_matrix, smooth_field, tube, window
from training.phantoms import FEWEST_VOXELS, Modality, Phantom, make_phantom
from training.recipe import TARGETS

SIZE = 48


@pytest.fixture(scope="module", name="phantoms")
def _phantoms() -> list[Phantom]:
    modalities: tuple[Modality, Modality] = ("CT", "MR")
    return [make_phantom(seed, size=SIZE, modality=modalities[seed % 2]) for seed in range(24)]


def test_the_same_seed_gives_the_same_scan_and_another_seed_another() -> None:
    one, again, other = (make_phantom(seed, size=SIZE, modality="CT") for seed in (7, 7, 8))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.tumour, again.tumour)
    assert one.organ_name == again.organ_name
    assert not np.array_equal(one.image, other.image)


def test_ct_and_mr_of_one_seed_differ() -> None:
    assert not np.array_equal(
        make_phantom(3, size=SIZE, modality="CT").image, make_phantom(3, size=SIZE, modality="MR").image
    )


def test_arrays_have_the_stated_shapes_and_dtypes_and_finite_values(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.image.dtype == np.float32
        assert np.isfinite(phantom.image).all()
        for mask in (phantom.tumour, phantom.organ, phantom.distractors):
            assert mask.dtype == bool
            assert mask.shape == phantom.image.shape == (SIZE,) * 3


def test_every_scan_has_a_tumour_that_is_not_all_of_it_and_look_alikes_lie_outside(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert FEWEST_VOXELS / 2 <= np.count_nonzero(phantom.tumour) < phantom.tumour.size / 2
        assert not (phantom.tumour & phantom.distractors).any()


def test_scans_are_asymmetric_so_that_a_flip_or_a_transpose_shows(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        for moved in (phantom.tumour[::-1], phantom.tumour[:, ::-1], phantom.tumour[:, :, ::-1], phantom.tumour.T):
            assert not np.array_equal(phantom.tumour, moved)


def test_tumours_vary_in_size_and_organ_and_in_being_darker_or_brighter(phantoms: list[Phantom]) -> None:
    volumes = [np.count_nonzero(phantom.tumour) for phantom in phantoms]
    assert max(volumes) > 20 * min(volumes)
    assert len({phantom.organ_name for phantom in phantoms}) >= 4
    assert {phantom.organ_name for phantom in phantoms} <= set(TARGETS)
    brighter = [p.image[p.tumour].mean() > p.image[p.organ & ~p.tumour].mean() for p in phantoms]
    assert 2 < sum(brighter) < len(phantoms) - 2


def test_ct_is_in_hounsfield_units_and_mr_is_not_negative(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        if phantom.modality == "CT":
            assert -1300 < phantom.image.min() < 300
            assert phantom.image.max() < 1400
        else:
            assert phantom.image.min() >= 0


def test_a_smooth_field_has_about_unit_deviation_and_changes_slowly() -> None:
    field = smooth_field(np.random.default_rng(0), (64, 60, 56), 5.0)
    assert field.shape == (64, 60, 56)
    assert 0.85 < field.std() < 1.15
    assert np.abs(np.diff(field, axis=0)).max() < 1.0


def test_separable_applies_each_matrix_to_its_own_axis() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    double, reverse, total = 2 * np.eye(2), np.eye(3)[::-1], np.ones((1, 4))
    expected = 2 * array[:, ::-1].sum(2, keepdims=True)
    assert np.array_equal(separable(array, [double, reverse, total]), expected)


def test_an_ellipsoid_reaches_one_at_its_radii() -> None:
    level = ellipsoid((21, 21, 21), np.array([10.0, 10, 10]), np.array([3.0, 5, 9]), np.eye(3))
    assert level[10, 10, 10] == 0
    assert [level[13, 10, 10], level[10, 15, 10], level[10, 10, 19]] == pytest.approx([1, 1, 1], abs=1e-5)


def test_a_tube_has_its_radius_around_its_path() -> None:
    inside = tube(16, np.array([[float(z), 8, 8] for z in range(16)]), 2.0)
    assert inside[5, 8, 10]
    assert not inside[5, 8, 11]
    assert np.count_nonzero(inside[5]) == 13  # lattice points within 2 of the origin


def test_a_curve_passes_through_its_point() -> None:
    path = curve(np.random.default_rng(1), np.array([4.0, 5, 6]), 40, 1.0)
    assert np.linalg.norm(path - [4, 5, 6], axis=1).min() < 0.6


def test_a_window_is_clipped_to_the_cube_and_may_be_empty() -> None:
    assert window(np.array([1.0, 8, 15]), 3, 16) == (slice(0, 5), slice(5, 12), slice(12, 16))
    assert window(np.array([-9.0, 8, 8]), 3, 16)[0] == slice(0, 0)


def test_blur_and_thick_slices_keep_a_flat_image_flat() -> None:
    for matrix in (gaussian_matrix(20, 1.5), slice_matrix(20, 5.0, 0.3), slice_matrix(20, 1.0, 0.0)):
        assert matrix.sum(1) == pytest.approx(np.ones(20), abs=1e-5)


def test_thick_slices_average_and_are_interpolated_back() -> None:
    matrix = slice_matrix(8, 4.0, 0.0)  # slices 0-3 and 4-7, centres at 2 and 6
    step = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
    assert matrix @ step == pytest.approx([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_dice_of_halves_and_of_nothing() -> None:
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(a & False, b & False) == 1.0


def test_the_best_sphere_is_perfect_at_the_centre_of_a_ball_and_poor_at_its_edge() -> None:
    ball = ellipsoid((33, 33, 33), np.array([16.0] * 3), np.array([8.0] * 3), np.eye(3)) <= 1
    assert best_sphere(ball, np.array([16.0, 16, 16])) == 1.0
    assert 0.3 < best_sphere(ball, np.array([16.0, 16, 24])) < 0.7


def test_region_growing_finds_a_ball_that_stands_out_and_not_its_twin() -> None:
    centres = (np.array([10.0, 16, 16]), np.array([24.0, 16, 16]))
    ball, twin = (ellipsoid((33, 33, 33), centre, np.array([5.0] * 3), np.eye(3)) <= 1 for centre in centres)
    noise = np.random.default_rng(0).normal(0, 0.3, ball.shape)
    image = (3.0 * (ball | twin) + noise).astype(np.float32)
    assert best_region_growing(image, ball, centres[0]) > 0.85
