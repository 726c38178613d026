"""Proof before release: whatever is wrong with an object is found, and the reason says which check."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from service.dicom.outcome import Outcome
from service.dicom.proof import prove_captures, prove_rtstruct, prove_seg, prove_sr
from service.dicom.rtstruct import write_rtstruct
from service.dicom.secondary_capture import KeyImage, write_captures
from service.dicom.seg import write_seg
from service.dicom.sr import write_sr
from service.dicom.validator import standard_errors
from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.measurements import intensity, measure
from service.errors import ResultNotProved
from service.nifti import prove_nifti, write_nifti
from tests.outcomes import outcome_of, read, ring
from tests.phantoms import CANARY, write_ct_series

SHAPE = (6, 24, 36)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Outcome:
    series = read(write_ct_series(tmp_path_factory.mktemp("proof"), shape_zyx=SHAPE, orientation="tilt").paths)
    return outcome_of(series, ring(SHAPE))


def altered(content: bytes, change: Callable[[Dataset], object]) -> bytes:
    dataset = dcmread(BytesIO(content))
    change(dataset)
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def turn_frames(dataset: Dataset) -> None:
    """The second frame first: every voxel is there, on the wrong image."""
    frames = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    size = SHAPE[1] * SHAPE[2]
    frames = np.roll(frames[: 3 * size].reshape(3, size), 1, axis=0)
    dataset.PixelData = np.packbits(frames, bitorder="little").tobytes()


def move_frame(dataset: Dataset) -> None:
    position = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    x, y, z = position.ImagePositionPatient
    position.ImagePositionPatient = [x, y, float(z) + 0.01]


def refer_elsewhere(dataset: Dataset) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (turn_frames, "voxels differ"),
        (move_frame, "does not lie on the image"),
        (refer_elsewhere, "outside the series"),
        (lambda d: setattr(d, "PatientID", "CANARY2"), "PatientID is not that of the series"),
        (lambda d: setattr(d, "FrameOfReferenceUID", "1.2.3"), "frame of reference"),
        (lambda d: d.pop("ContentLabel"), r"1 errors, at ContentLabel \(0070,0080\)"),
    ],
)
def test_a_seg_that_is_wrong_in_any_way_is_not_released(outcome, change, said):
    (content,) = write_seg(outcome)
    prove_seg([content], outcome)
    with pytest.raises(ResultNotProved, match=said) as caught:
        prove_seg([altered(content, change)], outcome)
    assert "CANARY" not in caught.value.detail


def mirror(dataset: Dataset) -> None:
    """Left for right about the middle of the image (x runs along its columns)."""
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        points[:, 0] = 2 * -17.5 + 35 * 0.8 - points[:, 0]
        contour.ContourData = [f"{value:.4f}" for value in points.ravel()]


def shift_out(dataset: Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [
        f"{float(value) + (100 if n % 3 == 0 else 0):.4f}" for n, value in enumerate(contour.ContourData)
    ]


def off_plane(dataset: Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [
        f"{float(value) + (0.1 if n % 3 == 2 else 0):.4f}" for n, value in enumerate(contour.ContourData)
    ]


def two_points(dataset: Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData, contour.NumberOfContourPoints = contour.ContourData[:6], 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (mirror, "Dice of"),
        (shift_out, "leaves its image"),
        (off_plane, "image's plane"),
        (two_points, "fewer than three"),
        (lambda d: d.ROIContourSequence[0].ContourSequence.pop(), "Dice of|lie in"),
    ],
)
def test_an_rtstruct_that_is_wrong_is_not_released(outcome, change, said):
    content = write_rtstruct(outcome)
    prove_rtstruct(content, outcome)
    with pytest.raises(ResultNotProved, match=said):
        prove_rtstruct(altered(content, change), outcome)


def test_objects_of_a_small_tumour_in_many_slices_are_made_and_proved_without_a_second_grid(tmp_path):
    shape = (40, 512, 512)
    voxels = np.zeros(shape, bool)
    voxels[7:9, 30:90, 40:50] = True
    outcome = outcome_of(read(write_ct_series(tmp_path, shape_zyx=shape).paths), voxels)
    write_seg(outcome_of(outcome.series, voxels))  # what is imported and looked up once is not counted
    tracemalloc.start()
    try:
        prove_seg(write_seg(outcome), outcome)
        prove_rtstruct(write_rtstruct(outcome), outcome)
        assert tracemalloc.get_traced_memory()[1] < voxels.nbytes
    finally:
        tracemalloc.stop()


def test_a_report_with_another_number_or_without_its_segment_is_not_released(outcome):
    measured = measure(outcome.mask)
    content = write_sr(outcome, measured, intensity(outcome.series, outcome.mask))
    prove_sr(content, outcome, measured)
    other = Mask(outcome.mask.voxels & (np.arange(6) < 3)[:, None, None], outcome.mask.geometry, 0.5)
    with pytest.raises(ResultNotProved, match="numbers differ"):
        prove_sr(content, outcome, measure(other))
    with pytest.raises(ResultNotProved, match="other objects"):
        prove_sr(content, outcome_of(outcome.series, ~outcome.mask.voxels), measured)


def test_a_capture_of_another_image_is_not_released(outcome):
    picture = KeyImage(2, np.zeros((40, 60, 3), np.uint8), ("L", "P"))
    (content,) = write_captures(outcome, [picture])
    prove_captures([content], outcome)

    def elsewhere(dataset: Dataset) -> None:
        dataset.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"

    with pytest.raises(ResultNotProved, match="outside the series"):
        prove_captures([altered(content, elsewhere)], outcome)


def test_a_nifti_with_another_voxel_or_place_is_not_released(outcome):
    content = write_nifti(outcome.mask)
    prove_nifti(content, outcome.mask)
    plain = bytearray(gzip.decompress(content))
    plain[-1] ^= 1
    with pytest.raises(ResultNotProved, match="voxels differ"):
        prove_nifti(gzip.compress(bytes(plain)), outcome.mask)
    geometry = outcome.mask.geometry
    shifted = geometry.affine.copy()
    shifted[0, 3] += 0.01
    moved = Geometry(geometry.shape_zyx, shifted, geometry.frame_of_reference_uid)
    with pytest.raises(ResultNotProved, match="elsewhere"):
        prove_nifti(write_nifti(Mask(outcome.mask.voxels, moved, 0.5)), outcome.mask)


def test_the_validator_names_attributes_and_no_values(outcome):
    def spoil(dataset: Dataset) -> None:
        dataset.PatientSex = "CANARY"

    errors = standard_errors(altered(write_seg(outcome)[0], spoil))
    assert errors
    assert all(error.startswith("PatientSex (0010,0040)") for error in errors)
    assert standard_errors(write_seg(outcome)[0]) == []


def test_what_is_no_dicom_at_all_is_an_error_too():
    assert standard_errors(CANARY.encode() * 100) != []
