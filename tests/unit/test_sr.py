"""Measurements -> SR TID 1500: valid, read by highdicom and dcmqi, and what it says is what was measured."""

from __future__ import annotations

import json
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from service.dicom.outcome import Lineage, Outcome
from service.dicom.proof import prove_sr
from service.dicom.seg import write_seg
from service.dicom.sr import write_sr
from service.domain.measurements import intensity, measure
from service.domain.prompts import Prompts
from tests.outcomes import outcome_of, read
from tests.phantoms import PhantomSeries, write_ct_series
from tests.programs import dciodvfy_errors, run

BESIDE = np.array([9.0, 9.0, 0.0])  # mm: outside the tumour


def report_of(outcome: Outcome) -> bytes:
    found = bool(outcome.mask.voxels.any())
    content = write_sr(outcome, measure(outcome.mask), intensity(outcome.series, outcome.mask) if found else None)
    prove_sr(content, outcome, measure(outcome.mask))
    return content


def group_of(content: bytes) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    (group,) = hd.sr.srread(BytesIO(content)).content.get_volumetric_roi_measurement_groups()
    return group


@pytest.fixture
def phantom(tmp_path) -> PhantomSeries:
    return write_ct_series(tmp_path / "series")


def click(phantom: PhantomSeries) -> Prompts:
    points = np.stack([phantom.centre_lps_mm, phantom.centre_lps_mm + BESIDE])
    return Prompts(text="Lebertumor größer", points_lps_mm=points, labels=np.array([1, 0], np.int32))


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("empty", [False, True])
def test_the_strict_validator_finds_no_error(tmp_path, modality, empty):
    phantom = write_ct_series(tmp_path / "s", modality=modality)
    voxels = phantom.tumour & (not empty)
    (tmp_path / "sr.dcm").write_bytes(report_of(outcome_of(read(phantom.paths), voxels, prompts=click(phantom))))
    assert dciodvfy_errors(tmp_path / "sr.dcm") == []


def test_highdicom_reads_every_number_in_its_unit(phantom):
    group = group_of(report_of(outcome_of(read(phantom.paths), phantom.tumour)))
    found = [(m.name.meaning, m.unit.value, m.value) for m in group.get_measurements()]
    inside = phantom.voxels[phantom.tumour]
    measured = measure(outcome_of(read(phantom.paths), phantom.tumour).mask)
    expected = [
        ("Volume", "cm3", np.count_nonzero(phantom.tumour) * 0.00216),
        ("Long axis", "mm", measured.long_axis_mm),
        ("Short axis", "mm", measured.short_axis_mm),
        ("Maximum 3D Diameter of a Mesh", "mm", measured.max_diameter_mm),
        ("Attenuation Coefficient", "[hnsf'U]", float(inside.mean())),
        ("Attenuation Coefficient", "[hnsf'U]", float(inside.std())),
    ]
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    np.testing.assert_allclose([entry[2] for entry in found], [entry[2] for entry in expected], atol=6e-4)


def test_it_refers_to_the_segment_that_is_given_out_and_to_its_source_images(phantom):
    outcome = outcome_of(read(phantom.paths), phantom.tumour)
    group = group_of(report_of(outcome))
    seg = dcmread(BytesIO(write_seg(outcome)[0]))
    assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    assert str(group.tracking_uid) == seg.SegmentSequence[0].TrackingUID
    used = {phantom.sop_instance_uids[number] for number in outcome.slices}
    assert {str(i.referenced_sop_instance_uid) for i in group.referenced_segment.source_images_for_segmentation} == used
    assert group.finding_type == codes.SCT.Neoplasm


def test_dcmqi_reads_it(tmp_path, phantom):
    (tmp_path / "sr.dcm").write_bytes(
        report_of(outcome_of(read(phantom.paths), phantom.tumour, prompts=click(phantom)))
    )
    run("tid1500reader", "--inputDICOM", tmp_path / "sr.dcm", "--outputMetadata", tmp_path / "sr.json")
    (group,) = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    assert group["TrackingIdentifier"] == "TAGS tumour 1"
    assert len(group["measurementItems"]) == 6
    volume = next(i for i in group["measurementItems"] if i["quantity"]["CodeMeaning"] == "Volume")
    assert float(volume["value"]) == pytest.approx(np.count_nonzero(phantom.tumour) * 0.00216, abs=1e-3)


def prompt_items(content: bytes) -> dict[str, Dataset]:
    def walk(dataset: Dataset) -> list[Dataset]:
        children = list(dataset.get("ContentSequence") or ())
        return children + [deep for child in children for deep in walk(child)]

    named = [item for item in walk(dcmread(BytesIO(content))) if "ConceptNameCodeSequence" in item]
    ours = [i for i in named if i.ConceptNameCodeSequence[0].CodingSchemeDesignator == "99TAGS"]
    return {hd.sr.CodedConcept.from_dataset(i.ConceptNameCodeSequence[0]).value: i for i in ours}


def test_the_prompts_are_recorded(phantom):
    items = prompt_items(report_of(outcome_of(read(phantom.paths), phantom.tumour, prompts=click(phantom))))
    assert items["prompt-text"].TextValue == "Lebertumor groer"
    np.testing.assert_allclose(items["prompt-foreground"].GraphicData, phantom.centre_lps_mm, atol=1e-3)
    np.testing.assert_allclose(items["prompt-background"].GraphicData, phantom.centre_lps_mm + BESIDE, atol=1e-3)
    assert "Research use only" in items["restriction"].TextValue


def test_masks_and_boxes_among_the_prompts_are_recorded(phantom):
    corners = np.array([[x, y, z] for x in (-9.0, -5) for y in (-20.0, -10) for z in (-380.0, -350)])
    prompts = Prompts(target="liver", boxes_lps_mm=corners[None], organ_mask=phantom.tumour, mask=phantom.tumour)
    items = prompt_items(report_of(outcome_of(read(phantom.paths), phantom.tumour, prompts=prompts)))
    assert items["prompt-masks"].TextValue == "organ mask and previous mask"
    assert items["prompt-target"].TextValue == "liver"
    np.testing.assert_allclose(np.reshape(items["prompt-box"].GraphicData, (8, 3)), corners, atol=1e-3)


def test_nothing_found_is_coded_as_absent(phantom):
    content = report_of(outcome_of(read(phantom.paths), np.zeros_like(phantom.tumour)))
    (group,) = hd.sr.srread(BytesIO(content)).content.get_image_measurement_groups()
    (evaluation,) = group.get_qualitative_evaluations(name=codes.SCT.Neoplasm)
    assert (evaluation.name, evaluation.value) == (codes.SCT.Neoplasm, codes.SCT.Absent)
    assert not group.get_measurements()
    assert len(group.source_images) == len(phantom.paths)


def test_tracking_stays_over_revisions_and_the_report_before_is_named(phantom):
    series = read(phantom.paths)
    first = outcome_of(series, phantom.tumour)
    smaller = phantom.tumour & (np.arange(24) < 14)[:, None, None]
    second = outcome_of(series, smaller, lineage=Lineage(first.tracking_id, first.tracking_uid, first.seg_uid))
    one, other = dcmread(BytesIO(report_of(first))), dcmread(BytesIO(report_of(second)))
    study = other.PredecessorDocumentsSequence[0]
    named = study.ReferencedSeriesSequence[0]
    assert named.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    assert (study.StudyInstanceUID, named.SeriesInstanceUID) == (one.StudyInstanceUID, one.SeriesInstanceUID)
    assert group_of(report_of(second)).tracking_uid == group_of(report_of(first)).tracking_uid


def test_another_place_is_another_tumour_and_the_same_request_the_same_objects(phantom):
    series = read(phantom.paths)
    elsewhere = Prompts(points_lps_mm=phantom.centre_lps_mm[None] + 5, labels=np.ones(1, np.int32))
    here, again, there = (
        outcome_of(series, phantom.tumour, prompts=p) for p in (click(phantom), click(phantom), elsewhere)
    )
    assert here.seg_uid == again.seg_uid
    assert here.tracking_uid != there.tracking_uid
    assert (
        len({here.seg_uid, there.seg_uid, here.uid("sr"), here.uid("sc"), here.uid("sc", 1), here.series_uid("sr")})
        == 6
    )
