"""Made-up scans: reproducible, varied, asymmetric, and building blocks that do what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from training.fields import Draw, curve, ellipsoid, gaussian_matrix, separable, slice_matrix, tube  # noqa: E402
from training.phantoms import make_phantom  # noqa: E402
from training.scene import Phantom, Tumours, component, dilated  # noqa: E402
from training.tissues import TARGETS  # noqa: E402

SIZE = 48


@pytest.fixture(scope="module", name="phantoms")
def _phantoms() -> list[Phantom]:
    return [
        make_phantom(seed, size=SIZE, modality="CT" if seed % 2 else "MR", anatomy=seed % 4 < 2) for seed in range(40)
    ]


def test_the_same_seed_gives_the_same_scan_and_another_seed_another() -> None:
    one, again, other = (make_phantom(seed, size=SIZE, modality="CT") for seed in (7, 7, 8))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.tumour, again.tumour)
    assert one.organ_name == again.organ_name
    assert not np.array_equal(one.image, other.image)


def test_arrays_have_the_stated_shapes_and_dtypes_and_finite_values(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.image.dtype == np.float32
        assert np.isfinite(phantom.image).all()
        for mask in (phantom.tumour, phantom.same_organ, phantom.organ, phantom.distractors):
            assert mask.dtype == bool
            assert mask.shape == phantom.image.shape == (SIZE,) * 3


def test_every_scan_has_a_tumour_within_its_organ_and_apart_from_look_alikes(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.tumour.any()
        assert not (phantom.tumour & phantom.distractors).any()
        assert not (phantom.tumour & ~phantom.same_organ).any()
        assert not (phantom.tumour & ~phantom.organ).any()


def test_scans_are_asymmetric_so_that_a_flip_or_a_transpose_shows(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        for moved in (phantom.tumour[::-1], phantom.tumour[:, ::-1], phantom.tumour[:, :, ::-1], phantom.tumour.T):
            assert not np.array_equal(phantom.tumour, moved)


def test_tumours_vary_in_size_and_organ(phantoms: list[Phantom]) -> None:
    volumes = [np.count_nonzero(phantom.tumour) for phantom in phantoms]
    assert max(volumes) > 100 * min(volumes)
    named = {phantom.organ_name for phantom in phantoms if phantom.anatomy}
    assert len(named) >= 4
    assert named <= set(TARGETS)


def test_tumours_of_any_size_are_smaller_and_larger_than_those_that_suit_the_region() -> None:
    def sizes(tumours: Tumours) -> np.ndarray:
        drawn = (make_phantom(seed, size=32, anatomy=False, tumours=tumours) for seed in range(40))
        return np.array([phantom.tumour.sum() for phantom in drawn])

    assert np.median(sizes("of any size")) < 0.5 * np.median(sizes("mostly suiting"))


def test_mixed_tumours_are_small_and_large_and_vary_more_inside_than_other_large_ones() -> None:
    def large(tumours: Tumours) -> list[Phantom]:
        drawn = [make_phantom(seed, size=48, modality="CT", anatomy=False, tumours=tumours) for seed in range(24)]
        volumes = [int(phantom.tumour.sum()) for phantom in drawn]
        assert max(volumes) > 20 * min(volumes)
        return [phantom for phantom in drawn if phantom.tumour.sum() > phantom.tumour.size / 30]

    def deviation(phantom: Phantom) -> float:
        inside = ndimage.binary_erosion(phantom.tumour, iterations=2)
        return float(ndimage.gaussian_filter(phantom.image, 1.5)[inside].std())

    mixed, others = large("mixed"), large("mostly suiting")
    assert min(len(mixed), len(others)) > 5
    assert np.median([deviation(p) for p in mixed]) > 1.3 * np.median([deviation(p) for p in others])


def test_only_an_anatomy_says_what_is_healthy_and_never_the_organ_of_the_tumour(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert set(phantom.healthy) <= set(TARGETS)
        if phantom.anatomy:
            assert phantom.organ_name not in phantom.healthy
            assert phantom.spacing_mm > 0.9


def test_ct_is_in_hounsfield_units_and_mr_is_not_negative(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        if phantom.modality == "CT":
            assert -1024 <= phantom.image.min() < 400
            assert phantom.image.max() <= 3000
        else:
            assert phantom.image.min() >= 0


def test_the_liver_lies_on_the_right_and_the_lungs_above_it() -> None:
    """Mean place of organs over trunks seen whole: x grows toward the patient's left, z toward the head."""
    liver, lung = [], []
    for seed in range(60):
        phantom = make_phantom(seed, size=SIZE, modality="CT", anatomy=True)
        if phantom.spacing_mm > 3.6 and phantom.organ_name in ("liver", "lung"):
            (liver if phantom.organ_name == "liver" else lung).append(np.argwhere(phantom.organ).mean(0))
    assert np.mean(liver, 0)[2] < SIZE / 2 - 3
    assert abs(np.mean(lung, 0)[2] - SIZE / 2) < 4
    assert np.mean(lung, 0)[0] > np.mean(liver, 0)[0] + 5


def test_a_smooth_field_has_about_unit_deviation_and_changes_slowly() -> None:
    field = Draw(0).field((64, 60, 56), 5.0)
    assert field.shape == (64, 60, 56)
    assert 0.85 < float(field.std()) < 1.15
    assert float(field.diff(dim=0).abs().max()) < 1.0


def test_separable_applies_each_matrix_to_its_own_axis() -> None:
    array = torch.arange(24.0).reshape(2, 3, 4)
    found = separable(array, [2 * torch.eye(2), torch.eye(3).flip(0), torch.ones(1, 4)])
    assert torch.equal(found, 2 * array.flip(1).sum(2, keepdim=True))


def test_an_ellipsoid_reaches_one_at_its_radii() -> None:
    level = ellipsoid(21, np.array([10.0, 10, 10]), np.array([3.0, 5, 9]), np.eye(3), "cpu")
    assert level[10, 10, 10] == 0
    assert [float(level[13, 10, 10]), float(level[10, 15, 10]), float(level[10, 10, 19])] == pytest.approx([1, 1, 1])


def test_a_tube_has_its_radius_around_its_path() -> None:
    inside = tube(16, np.array([[float(z), 8, 8] for z in range(16)]), 2.0, "cpu") <= 1
    assert inside[5, 8, 10]
    assert not inside[5, 8, 11]
    assert int(inside[5].sum()) == 13  # lattice points within 2 of the origin


def test_a_curve_passes_through_its_point() -> None:
    path = curve(np.random.default_rng(1), np.array([4.0, 5, 6]), 40, 1.0)
    assert np.linalg.norm(path - [4, 5, 6], axis=1).min() < 0.6


def test_blur_and_thick_slices_keep_a_flat_image_flat() -> None:
    for matrix in (gaussian_matrix(20, 1.5), slice_matrix(20, 5.0, 0.3), slice_matrix(20, 1.0, 0.0)):
        assert matrix.sum(1) == pytest.approx(np.ones(20), abs=1e-5)


def test_thick_slices_average_and_are_interpolated_back() -> None:
    matrix = slice_matrix(8, 4.0, 0.0)  # slices 0-3 and 4-7, centres at 2 and 6
    step = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
    assert matrix @ step == pytest.approx([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_the_part_at_the_centre_is_kept_and_a_mask_grows_by_whole_voxels() -> None:
    mask = torch.zeros(9, 9, 9, dtype=torch.bool)
    mask[1:3, 1:3, 1:3] = True
    mask[6, 6, 6] = True
    assert int(component(mask, np.array([6.0, 6, 6])).sum()) == 1
    assert int(component(mask, np.array([4.0, 4, 4])).sum()) == 8
    assert int(dilated(mask, 1).sum()) == 4**3 + 3**3
