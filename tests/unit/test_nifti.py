"""Mask <-> NIfTI: the grid of the source series, RAS only inside; masks of other software laid on."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.errors import MalformedRequest, MaskMismatch
from service.nifti import read_nifti, write_nifti
from tests.phantoms import ORIENTATIONS, write_ct_series


def save(path: Path, voxels_xyz: np.ndarray, affine_ras: np.ndarray, kind: type = nib.Nifti1Image) -> Path:
    nib.save(kind(voxels_xyz, affine_ras), path)
    return path


@pytest.fixture(params=ORIENTATIONS)
def mask(request, tmp_path) -> Mask:
    phantom = write_ct_series(tmp_path / "series", orientation=request.param, shape_zyx=(6, 8, 10))
    voxels = np.zeros((6, 8, 10), bool)
    voxels[1:4, 2, 3:9] = voxels[4, 5, 1] = True
    return Mask(voxels, phantom.geometry, 0.9)


def test_itk_finds_each_voxel_where_it_is_in_the_patient(tmp_path, mask):
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(write_nifti(mask))
    sheared = abs(mask.geometry.affine[:3, 0] @ mask.geometry.affine[:3, 1]) > 1e-3
    if sheared:  # ITK has no sheared grids: nibabel's sform is the only reader
        image = nib.load(path)
        index, affine = np.argwhere(image.get_fdata() > 0), image.affine
        found = (index @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]
    else:
        image = sitk.ReadImage(path)
        index = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1]
        found = np.array([image.TransformIndexToPhysicalPoint(tuple(map(int, i))) for i in index])
    expected = mask.geometry.to_lps_mm(np.argwhere(mask.voxels))
    np.testing.assert_allclose(
        found[np.lexsort(found.round(2).T)], expected[np.lexsort(expected.round(2).T)], atol=1e-3
    )


def test_the_header_says_scanner_frame_millimetres_and_research(mask):
    image = nib.Nifti1Image.from_bytes(gzip.decompress(write_nifti(mask)))
    sheared = abs(mask.geometry.affine[:3, 0] @ mask.geometry.affine[:3, 1]) > 1e-3
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0 if sheared else 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert b"research use only" in image.header["descrip"].item()
    assert image.get_data_dtype() == np.uint8
    assert image.shape == (10, 8, 6)
    if not sheared:
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_it_reads_back_on_the_same_grid(tmp_path, mask):
    (tmp_path / "upload").write_bytes(write_nifti(mask))
    np.testing.assert_array_equal(read_nifti(tmp_path / "upload", mask.geometry), mask.voxels)


def test_the_same_mask_gives_the_same_bytes(mask):
    assert write_nifti(mask) == write_nifti(mask)


def test_an_empty_mask_is_a_result(mask):
    empty = Mask(np.zeros_like(mask.voxels), mask.geometry, 0.0)
    assert not nib.Nifti1Image.from_bytes(gzip.decompress(write_nifti(empty))).get_fdata().any()


def test_flipped_and_reordered_axes_make_no_difference(tmp_path, mask):
    """What another converter writes: the closest canonical RAS order of the same mask."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(write_nifti(mask)))
    path = tmp_path / "canonical.nii"
    nib.save(nib.as_closest_canonical(image), path)
    np.testing.assert_array_equal(read_nifti(path, mask.geometry), mask.voxels)


GEOMETRY = Geometry((4, 6, 8), np.diag([3.0, 2.0, 1.0, 1.0])[[2, 1, 0, 3]], "1.2")  # z, y, x to LPS x, y, z


def test_a_coarser_grid_is_laid_on_by_nearest_neighbour(tmp_path):
    """One voxel of 2 x 4 x 6 mm centred at LPS (2, 4, 3): covers x 1..3, y 2..6, z 0..6 mm, half-way ties to even."""
    affine = np.diag([-2.0, -4.0, 6.0, 1.0])
    affine[:3, 3] = (-2, -4, 3)
    path = save(tmp_path / "m.nii", np.ones((1, 1, 1), np.uint8), affine)
    laid = read_nifti(path, GEOMETRY)
    z, y, x = np.nonzero(laid)
    assert set(x) == {1, 2, 3}
    assert set(y) == {1, 2, 3}
    assert set(z) == {0, 1, 2}


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_label_maps_and_probabilities_count_above_one_half(tmp_path, kind, dtype):
    values = np.zeros((8, 6, 4), dtype)
    values[2, 3, 1] = 3
    if dtype == np.float32:
        values[4, 3, 1], values[5, 3, 1], values[6, 3, 1] = 0.4, 0.6, np.nan
    laid = read_nifti(save(tmp_path / "m.nii", values, np.diag([-1.0, -2.0, 3.0, 1.0]), kind), GEOMETRY)
    assert np.argwhere(laid).tolist() == ([[1, 3, 2], [1, 3, 5]] if dtype == np.float32 else [[1, 3, 2]])


def test_a_trailing_axis_of_one_is_accepted_and_a_time_series_is_not(tmp_path):
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    assert read_nifti(save(tmp_path / "a.nii", np.ones((8, 6, 4, 1), np.uint8), affine), GEOMETRY).all()
    for shape in ((8, 6, 4, 2), (8, 6)):
        with pytest.raises(MalformedRequest):
            read_nifti(save(tmp_path / "b.nii", np.ones(shape, np.uint8), affine), GEOMETRY)


@pytest.mark.parametrize("content", [b"", b"CANARY^JANE" * 50, b"\x1f\x8bbroken", gzip.compress(b"x" * 400)])
def test_other_files_are_no_nifti(tmp_path, content):
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(MalformedRequest) as caught:
        read_nifti(tmp_path / "upload", GEOMETRY)
    assert "CANARY" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path, mask):
    whole = write_nifti(mask)
    for content in (whole[:-20], gzip.decompress(whole)[:-20]):
        (tmp_path / "upload").write_bytes(content)
        with pytest.raises(MalformedRequest):
            read_nifti(tmp_path / "upload", mask.geometry)


def test_a_header_that_promises_terabytes_is_refused_before_reading(tmp_path):
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4))
    header = bytearray(image.to_bytes())
    header[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    (tmp_path / "upload").write_bytes(gzip.compress(bytes(header)))
    with pytest.raises(MalformedRequest):
        read_nifti(tmp_path / "upload", GEOMETRY)


def test_a_mask_without_any_place_or_beside_the_series_does_not_fit(tmp_path):
    ones = np.ones((8, 6, 4), np.uint8)
    lost = nib.Nifti1Image(ones, None)
    lost.set_sform(None, 0)
    lost.set_qform(None, 0)
    nib.save(lost, tmp_path / "lost.nii")
    with pytest.raises(MaskMismatch, match="neither sform nor qform"):
        read_nifti(tmp_path / "lost.nii", GEOMETRY)
    far = np.diag([-1.0, -2.0, 3.0, 1.0])
    far[:3, 3] = 500
    with pytest.raises(MaskMismatch, match="no foreground voxel"):
        read_nifti(save(tmp_path / "far.nii", ones, far), GEOMETRY)
