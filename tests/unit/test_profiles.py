"""Destination profiles: the shipped ones, a site's own, and what each changes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from service.dicom.header import LABELMAP_STORAGE
from service.dicom.profiles import SHIPPED, Profile, profile_named, profile_names
from service.dicom.proof import prove_seg
from service.dicom.seg import write_seg
from service.errors import UnknownProfile
from tests.outcomes import outcome_of, read
from tests.phantoms import write_ct_series
from tests.programs import dciodvfy_errors


def test_the_shipped_profiles_are_those_promised_and_valid():
    assert profile_names() == ["default", "eclipse", "ohif", "pacs-without-seg", "weasis"]
    assert all(profile_named(name).description for name in profile_names())
    assert profile_named().objects == ("seg", "rtstruct", "sr", "sc")
    assert profile_named("eclipse").objects == ("rtstruct",)
    assert profile_named("weasis").seg_frame_limit == 400
    assert "seg" not in profile_named("pacs-without-seg").objects
    assert {path.suffix for path in SHIPPED.iterdir()} == {".yaml"}


@pytest.mark.parametrize("name", ["nowhere", "../default", "Default", "a/b", "default.yaml", " "])
def test_other_names_are_refused_with_the_list(name):
    with pytest.raises(UnknownProfile) as caught:
        profile_named(name)
    assert caught.value.members["profiles"] == profile_names()
    assert name not in caught.value.detail.split() or name == " "


def test_a_sites_own_profile_wins_over_a_shipped_one(tmp_path):
    (tmp_path / "ohif.yaml").write_text("description: ours\nseg_type: labelmap\n")
    (tmp_path / "archive.yaml").write_text("description: the archive\nobjects: [sr]\n")
    assert profile_named("ohif", tmp_path).seg_type == "labelmap"
    assert profile_named("archive", tmp_path).objects == ("sr",)
    assert profile_named("weasis", tmp_path) == profile_named("weasis")
    assert "archive" in profile_names(tmp_path)


@pytest.mark.parametrize(
    "text", ["seg_type: binary", "description: x\nseg_type: fractional", "description: x\nno: 1", ": :"]
)
def test_an_invalid_file_says_so_without_quoting_it(tmp_path, text):
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(UnknownProfile, match="invalid"):
        profile_named("site", tmp_path)


def test_a_frame_limit_splits_the_seg_into_parts_of_one_series(tmp_path):
    phantom = write_ct_series(tmp_path / "s")
    outcome = outcome_of(
        read(phantom.paths), phantom.tumour, profile=Profile(description="few", seg_frame_limit=3)
    )  # fmt: skip
    objects = write_seg(outcome)
    datasets = [dcmread(BytesIO(content)) for content in objects]
    frames = int(np.count_nonzero(phantom.tumour.any(axis=(1, 2))))
    assert [dataset.NumberOfFrames for dataset in datasets] == [3] * (frames // 3) + [frames % 3] * bool(frames % 3)
    assert len({dataset.SeriesInstanceUID for dataset in datasets}) == 1
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == len(objects) > 1
    assert len({dataset.SegmentSequence[0].TrackingUID for dataset in datasets}) == 1
    prove_seg(objects, outcome)


def test_a_label_map_is_valid_and_the_mask(tmp_path):
    phantom = write_ct_series(tmp_path / "s")
    outcome = outcome_of(
        read(phantom.paths), phantom.tumour, profile=Profile(description="map", seg_type="labelmap")
    )  # fmt: skip
    (content,) = write_seg(outcome)
    prove_seg([content], outcome)
    (tmp_path / "seg.dcm").write_bytes(content)
    assert dciodvfy_errors(tmp_path / "seg.dcm") == []
    assert dcmread(BytesIO(content)).SOPClassUID == LABELMAP_STORAGE


def test_the_series_description_follows_the_profile_and_fits(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=(6, 24, 36))
    series = read(phantom.paths)
    profile = Profile(description="named", series_description="Research: {label}")
    (content,) = write_seg(outcome_of(series, phantom.tumour, profile=profile))
    assert dcmread(BytesIO(content)).SeriesDescription == "Research: liver tumour"
