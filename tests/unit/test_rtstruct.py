"""Mask -> RTSTRUCT: valid, where the mask is, right references; plastimatch gives the same mask back."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import Dataset, dcmread

from service.dicom.outcome import Lineage, sibling_uid
from service.dicom.profiles import Profile
from service.dicom.proof import prove_rtstruct
from service.dicom.rtstruct import decimal, write_rtstruct
from service.errors import NothingFound, SegEncodingFailed
from tests.outcomes import outcome_of, read, ring
from tests.phantoms import ORIENTATIONS, write_ct_series
from tests.programs import dciodvfy_errors, run

SHAPE = (6, 24, 36)
KEYHOLE, XOR = Profile(description="keyhole"), Profile(description="xor", holes="xor")


def dataset_of(content: bytes) -> Dataset:
    return dcmread(BytesIO(content))


def contours(dataset: Dataset) -> list[Dataset]:
    return list(dataset.ROIContourSequence[0].ContourSequence)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("profile", [KEYHOLE, XOR], ids=["keyhole", "xor"])
def test_it_is_valid_and_the_mask_in_every_orientation_with_holes_and_an_islet(tmp_path, orientation, profile):
    series = read(write_ct_series(tmp_path / "s", shape_zyx=SHAPE, orientation=orientation).paths)
    outcome = outcome_of(series, ring(SHAPE), profile=profile)
    content = write_rtstruct(outcome)
    prove_rtstruct(content, outcome)
    (tmp_path / "rt.dcm").write_bytes(content)
    assert dciodvfy_errors(tmp_path / "rt.dcm") == []


def test_the_first_contours_points_are_where_hand_and_pencil_put_them(tmp_path):
    """One voxel at slice 1, row 2, column 3 of a grid at (-17.5, -31.25, -402.5) with 3.0, 0.9, 0.8 mm: the diamond's
    points lie 0.4 mm left and right of x = -15.1 and 0.45 mm before and behind y = -29.45, at z = -399.5."""
    voxels = np.zeros(SHAPE, bool)
    voxels[1, 2, 3] = True
    series = read(write_ct_series(tmp_path, shape_zyx=SHAPE).paths)
    (contour,) = contours(dataset_of(write_rtstruct(outcome_of(series, voxels))))
    points = {tuple(point) for point in np.array(contour.ContourData, float).reshape(-1, 3).tolist()}
    assert points == {(-15.5, -29.45, -399.5), (-14.7, -29.45, -399.5), (-15.1, -29.9, -399.5), (-15.1, -29.0, -399.5)}


def test_plastimatch_gives_the_mask_back(tmp_path):
    phantom = write_ct_series(tmp_path / "ct", shape_zyx=SHAPE, file_order="random")
    (tmp_path / "rt.dcm").write_bytes(write_rtstruct(outcome_of(read(phantom.paths), ring(SHAPE))))
    run("plastimatch", "convert", "--input", tmp_path / "rt.dcm", "--referenced-ct", tmp_path / "ct",
        "--output-prefix", tmp_path / "out", "--prefix-format", "nrrd")  # fmt: skip
    image = sitk.ReadImage(tmp_path / "out" / "liver tumour.nrrd")
    np.testing.assert_allclose(image.GetOrigin(), phantom.geometry.affine[:3, 3], atol=1e-3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image) > 0, ring(SHAPE))


def test_every_coordinate_fits_its_profile_and_every_contour_has_three_points(tmp_path):
    series = read(write_ct_series(tmp_path, shape_zyx=SHAPE, orientation="oblique").paths)
    for length in (8, 16):
        profile = Profile(description="short", decimal_length=length)
        for contour in contours(dataset_of(write_rtstruct(outcome_of(series, ring(SHAPE), profile=profile)))):
            raw = bytes(contour.get_item(0x30060050).value).split(b"\\")
            assert max(map(len, raw)) <= length + 1  # the last may be padded to an even length
            assert len(raw) == 3 * contour.NumberOfContourPoints >= 9


@pytest.mark.parametrize(
    ("value", "length", "text"),
    [
        (0.0, 16, "0"), (-0.00001, 16, "0"), (-123.456789, 16, "-123.4568"), (10.5, 16, "10.5"), (100.0, 16, "100"),
        (-1234.56789, 8, "-1234.57"), (1e15, 16, "1000000000000000"),
    ],
)  # fmt: skip
def test_decimals_are_short_and_have_no_negative_zero(value, length, text):
    assert decimal(value, length) == text


def test_a_number_that_fits_no_decimal_string_is_refused():
    with pytest.raises(ValueError, match="longer"):
        decimal(-1e17, 16)


def test_it_refers_to_its_images_series_study_and_frame_and_says_research(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SHAPE)
    dataset = dataset_of(write_rtstruct(outcome_of(read(phantom.paths), ring(SHAPE))))
    assert dataset.StudyInstanceUID == phantom.study_instance_uid
    assert dataset.SeriesInstanceUID != phantom.series_instance_uid
    assert dataset.SeriesNumber == 19003
    assert dataset.FrameOfReferenceUID == phantom.geometry.frame_of_reference_uid
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    listed = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert listed.SeriesInstanceUID == phantom.series_instance_uid
    assert [item.ReferencedSOPInstanceUID for item in listed.ContourImageSequence] == list(phantom.sop_instance_uids)
    used = {contour.ContourImageSequence[0].ReferencedSOPInstanceUID for contour in contours(dataset)}
    assert used == {phantom.sop_instance_uids[number] for number in (1, 2, 3)}
    assert "Research use only" in dataset.StructureSetDescription
    assert (dataset.ApprovalStatus, dataset.RTROIObservationsSequence[0].RTROIInterpretedType) == ("UNAPPROVED", "")
    assert dataset.StructureSetROISequence[0].ROIName == "liver tumour"
    assert float(dataset.StructureSetROISequence[0].ROIVolume) == pytest.approx(
        np.count_nonzero(ring(SHAPE)) * 0.00216, abs=1e-4
    )


def test_holes_by_xor_mark_every_contour_of_their_slice_and_no_other(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SHAPE)
    dataset = dataset_of(write_rtstruct(outcome_of(read(phantom.paths), ring(SHAPE), profile=XOR)))
    kinds: dict[str, set[str]] = {}
    for contour in contours(dataset):
        uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        kinds.setdefault(uid, set()).add(contour.ContourGeometricType)
    expected = [{"CLOSED_PLANAR"}, {"CLOSEDPLANAR_XOR"}, {"CLOSED_PLANAR"}]
    assert [kinds[phantom.sop_instance_uids[number]] for number in (1, 2, 3)] == expected


def test_a_profile_shortens_the_name(tmp_path):
    series = read(write_ct_series(tmp_path, shape_zyx=SHAPE).paths)
    profile = Profile(description="short", roi_name_length=8)
    dataset = dataset_of(write_rtstruct(outcome_of(series, ring(SHAPE), profile=profile)))
    assert dataset.StructureSetROISequence[0].ROIName == "liver tu"


def test_a_revision_names_the_structure_set_before_it(tmp_path):
    series = read(write_ct_series(tmp_path, shape_zyx=SHAPE).paths)
    first = outcome_of(series, ring(SHAPE))
    second = outcome_of(series, ring(SHAPE), lineage=Lineage("TAGS tumour 1", "1.2.3", first.seg_uid))
    earlier = dataset_of(write_rtstruct(second)).PredecessorStructureSetSequence[0].ReferencedSOPInstanceUID
    assert earlier == dataset_of(write_rtstruct(first)).SOPInstanceUID == sibling_uid(first.seg_uid, "rtstruct 0")


def test_an_empty_mask_and_a_series_without_frame_of_reference_get_none(tmp_path):
    series = read(write_ct_series(tmp_path / "a", shape_zyx=SHAPE).paths)
    with pytest.raises(NothingFound):
        write_rtstruct(outcome_of(series, np.zeros(SHAPE, bool)))
    lost = write_ct_series(tmp_path / "b", shape_zyx=SHAPE, change=lambda d, i: d.pop("FrameOfReferenceUID"))
    with pytest.raises(SegEncodingFailed, match="FrameOfReferenceUID"):
        write_rtstruct(outcome_of(read(lost.paths), ring(SHAPE)))
