"""Whatever way the images lie and the files are named: the volume, SEG, RTSTRUCT, NIfTI and SR stay on the patient.

The tumour is asymmetric on every axis, so that any flip or swap moves it. Its place is the phantom's own, in LPS mm;
objects are placed by what stands in them, with nothing of ours in between.
"""

from __future__ import annotations

import gzip
import tempfile
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from scipy.spatial.transform import Rotation

from service.dicom.outcome import Outcome
from service.dicom.rtstruct import write_rtstruct
from service.dicom.seg import write_seg
from service.nifti import write_nifti
from tests.fakes.source import SIGNED_PERMUTATIONS
from tests.outcomes import outcome_of, read
from tests.phantoms import Orientation, PhantomSeries, write_ct_series

SHAPE = (7, 12, 16)
SPACING_ZYX_MM = (2.0, 0.9, 0.7)
ORDERS = ("forward", "reverse", "random")
MAX_TILT_DEGREES = 30.0  # of a gantry, either way


def along(matrix: np.ndarray, tilt_degrees: float = 0.0) -> Orientation:
    """Args: matrix: (3, 3) columns: LPS direction of slices, rows (down), columns (right). Under tilt the images lean
    about their rows."""
    step, column, row = matrix.T
    radians = np.radians(tilt_degrees)
    leaning = np.cos(radians) * column + np.sin(radians) * step
    return Orientation(*(tuple(map(float, vector)) for vector in (row, leaning, step)))


def on_series(phantom: PhantomSeries) -> Outcome:
    """The phantom's tumour laid onto the series as it was read, by place."""
    series = read(phantom.paths)
    index = series.geometry.to_index(phantom.geometry.to_lps_mm(np.argwhere(phantom.tumour)))
    np.testing.assert_allclose(index, np.rint(index), atol=0.02)
    voxels = np.zeros(series.geometry.shape_zyx, bool)
    voxels[tuple(np.rint(index).astype(int).T)] = True
    assert np.count_nonzero(voxels) == np.count_nonzero(phantom.tumour)
    volume = series.read(0, series.geometry.shape_zyx[0]).voxels
    np.testing.assert_array_equal(np.sort(volume[voxels]), np.sort(phantom.voxels[phantom.tumour]))
    return outcome_of(series, voxels)


def assert_on_the_patient(phantom: PhantomSeries) -> None:
    outcome = on_series(phantom)
    expected = phantom.geometry.to_lps_mm(np.argwhere(phantom.tumour))
    assert_same_points(seg_points(dcmread(BytesIO(write_seg(outcome)[0]))), expected)
    assert_same_points(nifti_points(write_nifti(outcome.mask)), expected)
    contours = dcmread(BytesIO(write_rtstruct(outcome))).ROIContourSequence[0].ContourSequence
    points = np.concatenate([np.array(contour.ContourData, float).reshape(-1, 3) for contour in contours])
    half = np.abs(phantom.geometry.affine[:3, 1:3]).sum(axis=1) / 2  # a contour passes half a pixel beyond centres
    assert np.all(np.abs(points.min(axis=0) - expected.min(axis=0)) <= half + 1e-3)
    assert np.all(np.abs(points.max(axis=0) - expected.max(axis=0)) <= half + 1e-3)


def assert_same_points(found: np.ndarray, expected: np.ndarray) -> None:
    assert len(found) == len(expected)
    distances = np.linalg.norm(found[:, None] - expected[None], axis=2).min(axis=0)
    assert distances.max() < 0.01  # mm


def seg_points(dataset: Dataset) -> np.ndarray:
    """(N, 3) LPS mm: centres of the foreground pixels, each frame placed by its own groups."""
    shape = (dataset.NumberOfFrames, dataset.Rows, dataset.Columns)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")[: int(np.prod(shape))]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    points = []
    for frame, group in zip(bits.reshape(shape), dataset.PerFrameFunctionalGroupsSequence, strict=True):
        r, c = np.nonzero(frame)
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        points.append(origin + r[:, None] * between_rows * column + c[:, None] * between_columns * row)
    return np.concatenate(points)


def nifti_points(content: bytes) -> np.ndarray:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    index = np.argwhere(np.asarray(image.dataobj) > 0)
    return (index @ image.affine[:3, :3].T + image.affine[:3, 3]) * (-1, -1, 1)


@pytest.mark.parametrize("number", range(48))
def test_all_48_axis_orientations(tmp_path, number):
    """Half of them are left-handed: the files' own order runs against the normal."""
    phantom = write_ct_series(
        tmp_path, shape_zyx=SHAPE, spacing_zyx_mm=SPACING_ZYX_MM, orientation=along(SIGNED_PERMUTATIONS[number]),
        file_order=ORDERS[number % 3],
    )  # fmt: skip
    assert_on_the_patient(phantom)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(range(48)),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.floats(-MAX_TILT_DEGREES, MAX_TILT_DEGREES),
    st.sampled_from(ORDERS),
)
def test_oblique_and_tilted_stacks_in_any_order(number, angles, tilt_degrees, order):
    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ SIGNED_PERMUTATIONS[number]
    with tempfile.TemporaryDirectory() as directory:
        phantom = write_ct_series(
            Path(directory), shape_zyx=SHAPE, spacing_zyx_mm=SPACING_ZYX_MM, orientation=along(turned, tilt_degrees),
            file_order=order,
        )  # fmt: skip
        assert_on_the_patient(phantom)
