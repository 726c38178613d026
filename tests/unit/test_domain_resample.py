"""Between source slices and regions: exact on linear worlds, on every orientation, tilted or not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from contract.intensity import IntensityRule
from service.domain.geometry import Geometry
from service.domain.prepare import add_slab, prepared, slabs_needed
from service.domain.resample import align, inside, linear_weights, onto_box, onto_roi, slab_onto_roi, slices_needed
from service.domain.roi import lattice_on
from tests.fakes.source import SIGNED_PERMUTATIONS, FakeSource, grid, sampled

AXIAL = SIGNED_PERMUTATIONS[-8]  # slices along z, rows along y, columns along x
TILT = np.array([[0, 0, 1], [0, np.cos(0.35), 0], [1, -np.sin(0.35), 0]])  # 20 degrees about x


def slope(points: np.ndarray) -> np.ndarray:
    """A different slope along each patient axis: any swap, flip or shift shows."""
    return points @ np.array([1.0, 10.0, 100.0])


def resampled(source: FakeSource, roi: Geometry) -> np.ndarray:
    image = np.zeros(roi.shape_zyx, np.float32)
    for start, stop in slabs_needed(source.geometry, [roi]):
        add_slab(source.read(start, stop), start, source.geometry, [roi], [image])
    return image


def orientations() -> list[np.ndarray]:
    turn = Rotation.from_euler("zyx", [15, 25, -10], degrees=True).as_matrix()
    return [*SIGNED_PERMUTATIONS, *(turn @ p for p in SIGNED_PERMUTATIONS[::5]), TILT, TILT * (-1, 1, 1), turn @ TILT]


@pytest.mark.parametrize("directions", orientations())
def test_a_linear_world_is_resampled_exactly_both_ways_on_every_orientation(directions):
    source = FakeSource(grid(directions, (4.0, 0.9, 1.3), (20, 61, 47), (5, -7, 30)), slope)
    lattice = lattice_on(source.geometry, spacing_mm=1.5, size=32)
    centre = np.floor(lattice.to_lattice(np.array([5, -7, 30.0])) - 15.5).astype(int)
    roi = lattice.roi(tuple(centre.tolist()))
    image, within = resampled(source, roi), inside(source.geometry, roi)
    assert within.mean() > 0.8
    # rows are 1.67 times finer than the ROI, so they are averaged, which keeps a slope but where the scan ends
    interior = ~binary_dilation(~within, np.ones((3, 3, 3)), 4)
    assert interior.mean() > 0.2
    assert np.abs(image - sampled(roi, slope))[interior].max() < 0.01

    box = (slice(8, 12), slice(25, 35), slice(20, 27))
    back = onto_box(sampled(roi, slope).astype(np.float32), roi, source.geometry, box)
    assert np.abs(back - sampled(source.geometry, slope)[box]).max() < 0.01


def test_voxels_are_copied_where_grids_agree():
    geometry = grid(AXIAL, (1, 1, 1), (12, 14, 16))
    source = FakeSource(geometry, slope)
    roi = lattice_on(geometry, spacing_mm=1.0, size=8).roi((2, 3, 4))
    assert np.array_equal(resampled(source, roi), sampled(geometry, slope).astype(np.float32)[2:10, 3:11, 4:12])


def test_only_the_slices_of_the_regions_are_needed_and_each_once():
    geometry = grid(AXIAL, (5, 1, 1), (100, 64, 64))
    lattice = lattice_on(geometry, spacing_mm=1.0, size=32)
    # voxels 100 .. 131 mm above the first slice lie between slices 20 and 26.2; the second ROI ends at 141 mm
    rois = [lattice.roi((100, 0, 0)), lattice.roi((110, 0, 0)), lattice.roi((400, 0, 0))]
    assert slices_needed(geometry, rois[0]) == (20, 28)
    assert list(slabs_needed(geometry, rois)) == [(20, 30), (80, 88)]


def test_a_region_beyond_the_last_slice_asks_for_the_slices_that_exist():
    geometry = grid(AXIAL, (5, 1, 1), (10, 64, 64))
    roi = lattice_on(geometry, spacing_mm=1.0, size=32).roi((30, -8, 0))
    assert slices_needed(geometry, roi) == (6, 10)
    # slice 9 is at 45 mm and reaches half a slice on: lattice 30 .. 47; rows from 0, which reaches to -0.5
    assert [int(n) for n in inside(geometry, roi).sum(axis=(0, 1, 2), keepdims=True).flat] == [18 * 24 * 32]


def test_slabs_add_up_to_the_whole():
    geometry = grid(TILT, (2, 1, 1), (50, 40, 40))
    source = FakeSource(geometry, slope)
    roi = lattice_on(geometry, spacing_mm=1.0, size=32).roi((20, 0, 4))
    alignment = align(geometry, roi)
    first, stop = alignment.slices_needed()
    whole = slab_onto_roi(source.read(first, stop).voxels, first, alignment)
    parts = sum(slab_onto_roi(source.read(k, k + 1).voxels, k, alignment) for k in range(first, stop))
    assert np.abs(parts - whole).max() < 0.01


def test_a_finer_source_is_averaged_not_picked():
    # a checkerboard of 0 and 2 at half the spacing is 1 on average; picking every other voxel would give 0 or 2
    voxels = np.indices((32, 32, 32)).sum(axis=0) % 2 * 2.0
    geometry = grid(AXIAL, (0.5, 0.5, 0.5), voxels.shape)
    roi = lattice_on(geometry, spacing_mm=1.0, size=8).roi((4, 4, 4))
    assert onto_roi(voxels, geometry, roi) == pytest.approx(1.0, abs=1e-5)


def test_weights_are_linear_between_neighbours_and_clamped_at_the_ends():
    weights = linear_weights(np.array([-3.0, 0.25, 2.0, 2.4]), 3)
    assert weights.tolist() == [[1, 0, 0], [0.75, 0.25, 0], [0, 0, 1], [0, 0, 1]]
    # two samples around sample 1 of 3: half of what lies right and left of it belongs to the neighbours
    assert linear_weights(np.array([1.0]), 3, 2.0).tolist() == [[0.25, 0.5, 0.25]]


def test_padding_is_zero_after_normalisation_and_the_organ_mask_is_binary():
    geometry = grid(AXIAL, (1, 1, 1), (10, 10, 10))
    roi = lattice_on(geometry, spacing_mm=1.0, size=8).roi((-4, 0, 0))
    organ = np.zeros(geometry.shape_zyx, bool)
    organ[:2] = True
    rule = IntensityRule("window", low=-200.0, high=300.0, mean=50.0, std=80.0)
    region = prepared(np.full((8, 8, 8), 130, np.float32), geometry, roi, rule=rule, organ_mask=organ)
    assert region.image[3].tolist() == np.zeros((8, 8)).tolist()
    assert region.image[4] == pytest.approx(1.0)  # (130 - 50) / 80
    assert region.organ_mask.sum(axis=(1, 2)).tolist() == [0, 0, 0, 0, 64, 64, 0, 0]
    assert (region.image.dtype, region.organ_mask.dtype) == (np.float32, np.float32)


def test_a_grid_that_is_turned_against_the_region_is_refused():
    turn = Rotation.from_euler("z", 10, degrees=True).as_matrix()
    roi = lattice_on(grid(turn @ AXIAL, (1, 1, 1), (32, 32, 32)), spacing_mm=1.0, size=32).roi((0, 0, 0))
    with pytest.raises(ValueError, match="does not run along"):
        align(grid(AXIAL, (1, 1, 1), (32, 32, 32)), roi)
