"""Enhanced multi-frame CT and MR: read from their functional groups, and results that refer to frames."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.proof import prove_captures, prove_rtstruct, prove_seg, prove_sr
from service.dicom.rtstruct import write_rtstruct
from service.dicom.secondary_capture import KeyImage, write_captures
from service.dicom.seg import write_seg
from service.dicom.seg_reader import read_seg
from service.dicom.sr import write_sr
from service.domain.measurements import intensity, measure
from service.errors import DamagedPixelData, MixedSeries, NoUsableSeries
from tests.enhanced import write_enhanced, write_two_times
from tests.outcomes import outcome_of, read
from tests.phantoms import ORIENTATIONS, write_ct_series
from tests.programs import dciodvfy_errors

LIMITS = SeriesLimits(max_instances=100, max_voxels=10**7)
TIME = "TemporalPositionIdentifier"
SHUFFLED = [3, 0, 5, 1, 4, 2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_it_is_the_volume_of_the_single_frame_series(tmp_path, orientation, modality):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=(6, 8, 10), orientation=orientation, modality=modality)
    series = read([write_enhanced(phantom, tmp_path / "enhanced", order=SHUFFLED)])
    assert series.geometry.shape_zyx == (6, 8, 10)
    np.testing.assert_allclose(series.geometry.affine, phantom.geometry.affine, atol=1e-4)
    np.testing.assert_array_equal(series.read(0, 6).voxels, phantom.voxels)
    np.testing.assert_array_equal(series.read(2, 4).voxels, phantom.voxels[2:4])
    assert series.modality == modality


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_each_frame_is_decoded_by_itself(tmp_path, transfer_syntax):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=(6, 40, 48))
    path = write_enhanced(phantom, tmp_path / "e", order=SHUFFLED, transfer_syntax=transfer_syntax)
    np.testing.assert_array_equal(read([path]).read(1, 5).voxels, phantom.voxels[1:5])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_every_result_object_refers_to_its_frames_and_is_proved(tmp_path, modality):
    phantom = write_ct_series(tmp_path / "s", modality=modality)
    series = read([write_enhanced(phantom, tmp_path / "e", order=list(range(23, -1, -1)))])
    outcome = outcome_of(series, phantom.tumour)
    objects = {
        "seg": write_seg(outcome),
        "rt": [write_rtstruct(outcome)],
        "sr": [write_sr(outcome, measure(outcome.mask), intensity(series, outcome.mask))],
        "sc": write_captures(outcome, [KeyImage(14, np.zeros((40, 60, 3), np.uint8), ("L", "P"))]),
    }
    prove_seg(objects["seg"], outcome)
    prove_rtstruct(objects["rt"][0], outcome)
    prove_sr(objects["sr"][0], outcome, measure(outcome.mask))
    prove_captures(objects["sc"], outcome)
    for kind, (content,) in objects.items():
        (tmp_path / kind).write_bytes(content)
        assert dciodvfy_errors(tmp_path / kind) == []
    np.testing.assert_array_equal(read_seg(tmp_path / "seg", series), phantom.tumour)


def of_time(path, number):
    return read_series([path], series_instance_uid=None, limits=LIMITS, acquisition={TIME: number})


def test_frames_of_several_times_are_refused_with_what_tells_them_apart(tmp_path):
    with pytest.raises(MixedSeries, match=r"4 of 8 images .* differ in TemporalPositionIdentifier") as caught:
        read([write_two_times(tmp_path)])
    assert caught.value.members["choices"] == [
        {"TemporalPositionIdentifier": 1.0, "images": 4},
        {"TemporalPositionIdentifier": 2.0, "images": 4},
    ]


def test_one_of_several_times_can_be_chosen(tmp_path):
    path = write_two_times(tmp_path)
    first, second = of_time(path, 1), of_time(path, 2)
    assert [header.frame for header in first.headers] == [1, 3, 5, 7]
    np.testing.assert_array_equal(second.read(0, 4).voxels, first.read(0, 4).voxels + 5)
    assert [(item.reason, item.count) for item in first.set_aside] == [("other-acquisition", 4)]


def test_equal_masks_on_two_times_are_two_results_that_refer_to_their_own_frames(tmp_path):
    path, mask = write_two_times(tmp_path), np.zeros((4, 8, 10), bool)
    mask[1:3, 2:5, 3:6] = True
    outcomes = [outcome_of(of_time(path, number), mask) for number in (1, 2)]
    assert outcomes[0].seg_uid != outcomes[1].seg_uid
    for outcome, frames in zip(outcomes, ([3, 5], [4, 6]), strict=True):
        (content,) = write_seg(outcome)
        prove_seg([content], outcome)
        groups = dcmread(BytesIO(content)).PerFrameFunctionalGroupsSequence
        sources = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
        assert sorted(int(source.ReferencedFrameNumber) for source in sources) == frames


def test_a_time_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(MixedSeries, match="None of the 8 images has TemporalPositionIdentifier 3") as caught:
        of_time(write_two_times(tmp_path), 3)
    assert [choice[TIME] for choice in caught.value.members["choices"]] == [1, 2]


def test_frames_without_a_place_are_refused_by_name(tmp_path):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=(4, 8, 10))
    path = write_enhanced(
        phantom, tmp_path / "e", change=lambda d: d.PerFrameFunctionalGroupsSequence.pop()
    )  # fmt: skip
    with pytest.raises(NoUsableSeries, match="do not say where each frame lies"):
        read([path])


def test_an_object_that_ends_too_early_is_damaged(tmp_path):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=(4, 8, 10))
    path = write_enhanced(phantom, tmp_path / "e")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DamagedPixelData):
        read([path])


def test_a_click_on_an_image_of_many_frames_names_no_slice(tmp_path):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=(4, 8, 10))
    series = read([write_enhanced(phantom, tmp_path / "e")])
    with pytest.raises(KeyError):
        series.slice_of(series.headers[0].sop_instance_uid)
