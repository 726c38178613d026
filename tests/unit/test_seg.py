"""Mask -> SEG: valid for dciodvfy, the same voxels in the same place for foreign readers, right references, codes."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLSLossless

from contract.bundle import Bundle
from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.outcome import Outcome
from service.dicom.profiles import profile_named
from service.dicom.seg import segment_label, write_seg
from service.dicom.seg_reader import read_seg
from service.dicom.series import Series
from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.errors import MalformedRequest, MaskMismatch, NothingFound, SegEncodingFailed
from tests.conftest import require
from tests.phantoms import ORIENTATIONS, write_ct_series

BUNDLE = Bundle("small", "1.2", "small", 1.0, {}, (), (), trained=True)
SMALL = (6, 8, 10)


def read(paths) -> Series:
    return read_series(list(paths), series_instance_uid=None, limits=SeriesLimits(1000, 10**8))


def encode(
    series: Series, voxels: np.ndarray, *, text: str | None = "liver tumour", target: str | None = None
) -> bytes:
    mask, prompts = Mask(voxels, series.geometry, 0.9), Prompts(text=text, target=target)
    (content,) = write_seg(Outcome(series, mask, prompts, BUNDLE, profile_named()))
    return content


def dataset_of(content: bytes) -> Dataset:
    return dcmread(BytesIO(content))


def program(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    require(path.exists() or shutil.which(name) is not None, f"{name} is not installed (test extra)")
    return str(path) if path.exists() else name


def dciodvfy_errors(path: Path) -> list[str]:
    done = subprocess.run([program("dciodvfy"), "-new", path], capture_output=True, text=True, check=False)  # noqa: S603
    assert "Segmentation" in done.stdout + done.stderr  # it did run
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@pytest.fixture
def two_blobs() -> np.ndarray:
    """Asymmetric, with an empty slice between its two parts."""
    voxels = np.zeros(SMALL, bool)
    voxels[1, 2:4, 3:8] = voxels[2, 2, 3:5] = voxels[4, 6, 1:3] = True
    return voxels


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_strict_validator_finds_no_error_and_the_mask_reads_back(tmp_path, orientation, modality):
    phantom = write_ct_series(tmp_path / "series", orientation=orientation, modality=modality)
    series = read(phantom.paths)
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(series, phantom.tumour))
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_seg(path, series), phantom.tumour)


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal", "oblique"])
def test_dcmqi_and_itk_find_the_same_voxels_in_the_same_place(tmp_path, orientation):
    """A second reading path in other hands: every foreground voxel's LPS position, compared to 0.001 mm."""
    phantom = write_ct_series(tmp_path / "series", orientation=orientation, file_order="random")
    (tmp_path / "seg.dcm").write_bytes(encode(read(phantom.paths), phantom.tumour))
    subprocess.run(  # noqa: S603
        [
            program("segimage2itkimage"),
            "--inputDICOM",
            tmp_path / "seg.dcm",
            "--outputDirectory",
            tmp_path,
            "-t",
            "nrrd",
        ],
        check=True,
        capture_output=True,
    )
    image = sitk.ReadImage(tmp_path / "1.nrrd")
    z, y, x = np.nonzero(sitk.GetArrayFromImage(image))
    direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    found = np.stack([x, y, z], axis=1) @ direction.T + image.GetOrigin()
    expected = phantom.geometry.to_lps_mm(np.argwhere(phantom.tumour))
    assert len(found) == len(expected)
    by_place = [points[np.lexsort(np.round(points, 2).T)] for points in (found, expected)]
    np.testing.assert_allclose(*by_place, atol=1e-3)
    meta = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"][0][0]
    assert meta["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "108369006"
    assert meta["AnatomicRegionSequence"]["CodeValue"] == "10200004"


def test_frames_found_by_source_instance_are_the_mask_under_tilt_too(tmp_path, two_blobs):
    series = read(write_ct_series(tmp_path / "series", shape_zyx=SMALL, orientation="tilt").paths)
    (tmp_path / "seg.dcm").write_bytes(encode(series, two_blobs))
    dataset = dcmread(tmp_path / "seg.dcm")
    frames = hd.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance(
        list(series.sop_instance_uids), combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(frames.astype(bool), two_blobs)
    assert dataset.NumberOfFrames == 3


def test_each_frame_refers_to_its_source_image_and_lies_on_it(tmp_path, two_blobs):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, orientation="tilt")
    dataset = dataset_of(encode(read(phantom.paths), two_blobs))
    referenced = {}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        referenced[uid] = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
    assert set(referenced) == {phantom.sop_instance_uids[i] for i in (1, 2, 4)}  # slice 3 is empty and has no frame
    for index in (1, 2, 4):
        expected = phantom.geometry.to_lps_mm(np.array([[index, 0, 0]]))[0]
        np.testing.assert_allclose(referenced[phantom.sop_instance_uids[index]], expected, atol=1e-3)
    listed = dataset.ReferencedSeriesSequence[0]
    assert listed.SeriesInstanceUID == phantom.series_instance_uid
    assert set(referenced) <= {item.ReferencedSOPInstanceUID for item in listed.ReferencedInstanceSequence}
    assert dataset.FrameOfReferenceUID == phantom.geometry.frame_of_reference_uid
    assert dataset.StudyInstanceUID == phantom.study_instance_uid
    assert dataset.SeriesInstanceUID != phantom.series_instance_uid


def test_it_says_what_made_it_and_that_it_is_for_research(tmp_path, two_blobs):
    dataset = dataset_of(encode(read(write_ct_series(tmp_path, shape_zyx=SMALL).paths), two_blobs))
    segment = dataset.SegmentSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (dataset.SegmentationType, len(dataset.SegmentSequence), dataset.SegmentsOverlap) == ("BINARY", 1, "NO")
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("TAGS", "small 1.2")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert segment.SegmentLabel == "liver tumour"
    assert segment.TrackingID
    assert segment.TrackingUID
    assert dataset.ContentLabel == "RESEARCH_ONLY"
    assert "Research use only" in dataset.ContentDescription
    assert dataset.SeriesDescription == "TAGS liver tumour (research use only)"
    assert dataset.SeriesNumber == 9003  # the source is number 3
    assert dataset.DeviceSerialNumber == "research-use-only"
    purposes = {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in dataset.ContributingEquipmentSequence}
    assert purposes == {"109101", "109102"}  # acquisition and processing equipment
    assert any("Research use only" in item.ContributionDescription for item in dataset.ContributingEquipmentSequence)


def test_without_text_the_target_names_the_segment_and_body_part_gives_the_region(tmp_path, two_blobs):
    series = read(write_ct_series(tmp_path, shape_zyx=SMALL, body_part="PROSTATE").paths)
    by_target = dataset_of(encode(series, two_blobs, text=None, target="kidney")).SegmentSequence[0]
    assert by_target.SegmentLabel == "kidney tumour"
    assert by_target.AnatomicRegionSequence[0].CodeMeaning == "Kidney"
    by_series = dataset_of(encode(series, two_blobs, text=None)).SegmentSequence[0]
    assert by_series.AnatomicRegionSequence[0].CodeMeaning == "Prostate"


def test_nothing_known_claims_no_region(tmp_path, two_blobs):
    series = read(write_ct_series(tmp_path, shape_zyx=SMALL, body_part="").paths)
    assert "AnatomicRegionSequence" not in dataset_of(encode(series, two_blobs, text=None)).SegmentSequence[0]


def test_an_empty_mask_is_nothing_found(tmp_path):
    series = read(write_ct_series(tmp_path, shape_zyx=SMALL).paths)
    with pytest.raises(NothingFound):
        encode(series, np.zeros(SMALL, bool))


def test_a_series_without_frame_of_reference_gets_no_seg_and_the_reason(tmp_path, two_blobs):
    paths = write_ct_series(tmp_path, shape_zyx=SMALL, change=lambda d, i: d.pop("FrameOfReferenceUID")).paths
    with pytest.raises(SegEncodingFailed, match="FrameOfReferenceUID"):
        encode(read(paths), two_blobs)


def test_files_that_are_gone_fail_without_naming_them(tmp_path, two_blobs):
    phantom = write_ct_series(tmp_path / "CANARY", shape_zyx=SMALL)
    series = read(phantom.paths)
    phantom.paths[2].unlink()
    with pytest.raises(SegEncodingFailed) as caught:
        encode(series, two_blobs)
    assert "CANARY" not in str(caught.value)


def test_absent_and_invalid_patient_attributes_do_not_break_it(tmp_path, two_blobs, caplog):
    def poor(dataset: Dataset, index: int) -> None:
        for name in (
            "PatientName",
            "PatientID",
            "StudyDate",
            "AccessionNumber",
            "SliceThickness",
            "SeriesNumber",
        ):
            dataset.pop(name)
        dataset.PatientSex = "CANARY"
        dataset.PatientBirthDate = "CANARY^JANE 1960"
        dataset.StudyTime = "25:61"
        dataset.StudyID = "seventeen letters"
        dataset.StudyDescription = "x" * 70

    series = read(write_ct_series(tmp_path / "s", shape_zyx=SMALL, change=poor).paths)
    (tmp_path / "seg.dcm").write_bytes(encode(series, two_blobs))
    assert dciodvfy_errors(tmp_path / "seg.dcm") == []
    assert b"CANARY^JANE 1960" not in (tmp_path / "seg.dcm").read_bytes()
    assert "CANARY" not in caplog.text


def test_a_name_that_is_no_person_name_reaches_no_log(tmp_path, two_blobs, caplog, capfd):
    series = read(write_ct_series(tmp_path, shape_zyx=SMALL, patient_name="CANARY JANE").paths)
    caplog.set_level(logging.DEBUG)
    assert dataset_of(encode(series, two_blobs)).PatientName == "CANARY JANE"
    assert "CANARY" not in caplog.text + "".join(capfd.readouterr())


def test_the_sources_character_set_is_kept(tmp_path, two_blobs):
    def japanese(dataset: Dataset, index: int) -> None:
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎"

    series = read(write_ct_series(tmp_path, shape_zyx=SMALL, change=japanese).paths)
    dataset = dataset_of(encode(series, two_blobs, text="Lebertumor rechts, größer"))
    assert str(dataset.PatientName) == "Yamada^Tarou=山田^太郎"
    assert dataset.SegmentSequence[0].SegmentLabel == "Lebertumor rechts, groer"


@pytest.mark.parametrize("transfer_syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, JPEGLSLossless])
def test_the_sources_encoding_does_not_matter(tmp_path, transfer_syntax):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=(4, 40, 48), transfer_syntax=transfer_syntax)
    series = read(phantom.paths)
    (tmp_path / "seg.dcm").write_bytes(encode(series, phantom.tumour))
    assert dciodvfy_errors(tmp_path / "seg.dcm") == []
    np.testing.assert_array_equal(read_seg(tmp_path / "seg.dcm", series), phantom.tumour)


@pytest.mark.parametrize(
    ("text", "target", "label"),
    [
        (None, None, "tumour"),
        ("  a\\b\nc\t", None, "a b c"),
        ("x" * 200, "liver", "x" * 64),
        ("腫瘍", "liver", "tumour"),
        (None, "lung", "lung tumour"),
    ],
)
def test_labels_are_valid_long_strings(text, target, label):
    assert segment_label(text, target) == label
    assert re.fullmatch(r"[ -\[\]-~]{1,64}", label)


# Reading


def test_a_seg_on_another_grid_is_laid_on_by_nearest_neighbour(tmp_path):
    """A block made on every second slice's grid of double spacing covers the same millimetres."""
    coarse = read(write_ct_series(tmp_path / "a", shape_zyx=(3, 8, 10), spacing_zyx_mm=(6, 0.9, 0.8)).paths)
    fine = read(write_ct_series(tmp_path / "b", shape_zyx=(6, 8, 10), series="b").paths)
    voxels = np.zeros((3, 8, 10), bool)
    voxels[1, 2:5, 4:9] = True  # at 6 mm above the first slice: index 2 of the fine grid; 1.5 to 2.5 round to it
    (tmp_path / "seg.dcm").write_bytes(encode(coarse, voxels))
    laid = read_seg(tmp_path / "seg.dcm", fine)
    assert laid[2, 2:5, 4:9].all()
    assert not laid[[0, 4, 5]].any()
    assert laid.sum() in (15, 30, 45)


def test_a_seg_of_a_longer_series_counts_where_it_overlaps(tmp_path):
    phantom = write_ct_series(tmp_path / "s")
    (tmp_path / "seg.dcm").write_bytes(encode(read(phantom.paths), phantom.tumour))
    middle = int(np.flatnonzero(phantom.tumour.any(axis=(1, 2)))[2])
    part = read(phantom.paths[middle:])
    np.testing.assert_array_equal(read_seg(tmp_path / "seg.dcm", part), phantom.tumour[middle:])


def test_several_segments_and_fractions_are_united(tmp_path, two_blobs):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=SMALL)
    series = read(phantom.paths)
    stacked = np.zeros((*SMALL, 2), np.float32)
    stacked[1, ..., 0], stacked[4, ..., 1] = two_blobs[1] * 0.7, two_blobs[4] * 0.4
    described = [
        hd.seg.SegmentDescription(n, f"s{n}", hd.sr.CodedConcept("49755003", "SCT", "m"),
                                  hd.sr.CodedConcept("4147007", "SCT", "Mass"), "MANUAL")
        for n in (1, 2)
    ]  # fmt: skip
    for kind, array, expected in (
        ("FRACTIONAL", stacked, two_blobs & (np.arange(6) == 1)[:, None, None]),
        ("BINARY", (stacked > 0).astype(np.uint8), two_blobs & np.isin(np.arange(6), (1, 4))[:, None, None]),
        ("LABELMAP", (stacked > 0).astype(np.uint8), two_blobs & np.isin(np.arange(6), (1, 4))[:, None, None]),
    ):
        foreign = hd.seg.Segmentation(
            [dcmread(path, stop_before_pixels=True) for path in phantom.paths], array, kind, described,
            hd.UID(), 1, hd.UID(), 1, "m", "m", "1", "1",
        )  # fmt: skip
        foreign.save_as(tmp_path / "seg.dcm")
        np.testing.assert_array_equal(read_seg(tmp_path / "seg.dcm", series), expected, err_msg=kind)


def test_another_frame_of_reference_does_not_fit(tmp_path, two_blobs):
    one = read(write_ct_series(tmp_path / "a", shape_zyx=SMALL).paths)
    other = read(write_ct_series(tmp_path / "b", shape_zyx=SMALL, study="other").paths)
    (tmp_path / "seg.dcm").write_bytes(encode(one, two_blobs))
    with pytest.raises(MaskMismatch, match="FrameOfReferenceUID"):
        read_seg(tmp_path / "seg.dcm", other)


def test_a_mask_beside_the_series_does_not_fit(tmp_path, two_blobs):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=SMALL)
    (tmp_path / "seg.dcm").write_bytes(encode(read(phantom.paths), two_blobs))
    with pytest.raises(MaskMismatch):
        read_seg(tmp_path / "seg.dcm", read(phantom.paths[5:]))


def test_other_files_are_no_seg(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL)
    series = read(phantom.paths)
    (tmp_path / "text").write_text("CANARY^JANE")
    for path in (phantom.paths[0], tmp_path / "text", tmp_path / "absent"):
        with pytest.raises(MalformedRequest) as caught:
            read_seg(path, series)
        assert "CANARY" not in str(caught.value)


def test_a_mask_of_another_shape_cannot_be_built(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        Mask(np.zeros((1, 2, 3), bool), Geometry((3, 2, 1), np.eye(4), "1.2"), 0.0)
