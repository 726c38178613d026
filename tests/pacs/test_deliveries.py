"""From a pushed series to a verified result, with destinations that fail in every way; priorities and isolation."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydicom import Dataset, dcmread

from contract.tensors import LABEL_BOX_MIN, LABEL_FOREGROUND
from service.delivery import deliver as deliver_module
from service.ledger import circuits as circuits_module
from service.ledger import jobs as jobs_module
from service.ledger.report import reconcile
from tests.fakes.engine import FAKE_BUNDLE, TINY_BUNDLE, FakeEngine
from tests.pacs.fake_pacs import FakePacs, fake_pacs
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.stow import store
from tests.phantoms import PhantomSeries, write_ct_series, write_two_echoes

RULE = {
    "name": "any",
    "match": {"Modality": "CT"},
    "prompts": {"text": "liver tumour"},
    "outputs": ["seg"],
    "destinations": ["pacs"],
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(jobs_module, "BACKOFF_S", (0.2,))
    monkeypatch.setattr(circuits_module, "FIRST_PAUSE_S", 0.5)
    monkeypatch.setattr(deliver_module, "QIDO_PAUSE_S", 0.05)


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with fake_pacs() as started:
        yield started


def write_routing(directory: Path, pacs: FakePacs, *rules: dict, **destinations: dict) -> Path:
    file = directory / "routing.yaml"
    listed = {"pacs": {"stow": {"url": pacs.url, "timeout_s": 5}}} | destinations
    file.write_text(
        yaml.safe_dump({"completeness": {"quiet_s": 0.5}, "destinations": listed, "rules": list(rules) or [RULE]})
    )
    return file


def phantom(directory: Path, study: str = "study", **more) -> PhantomSeries:
    return write_ct_series(directory / study, shape_zyx=(8, 32, 32), study=study, series=study, **more)


def one_job(gateway: LiveGateway, kind: str) -> dict:
    (found,) = [job for job in gateway.jobs() if job["kind"] == kind]
    return found


@pytest.fixture
def gateway(tmp_path: Path, pacs: FakePacs) -> Iterator[LiveGateway]:
    file = write_routing(tmp_path, pacs)
    with live_gateway(tmp_path / "data", routing_file=file, delivery_attempts=30) as started:
        yield started


def test_a_result_reaches_the_destination_and_is_held_here_too(gateway, pacs, tmp_path):
    sent = phantom(tmp_path)
    assert store(gateway.client, sent.paths).status_code == 200
    gateway.wait_for("the delivery", gateway.all_done)
    ((uid, count),) = pacs.posts.items()
    assert count == 1
    found = gateway.client.get(f"/dicom-web/studies/{sent.study_instance_uid}/instances", params={"Modality": "SEG"})
    assert [item["00080018"]["Value"] for item in found.json()] == [[uid]]
    report = reconcile(gateway.ledger.database)
    assert (report.by_fate, report.balanced, report.open) == ({("delivered", ""): 8}, True, ())


def test_a_destination_that_is_down_is_tried_until_it_is_back(gateway, pacs, tmp_path):
    pacs.mode = "breaks"
    store(gateway.client, phantom(tmp_path).paths)
    gateway.wait_for("three failures", lambda: gateway.client.get("/ledger").json()["circuits"])
    shown = 'tags_circuit_open{destination="pacs"} 1.0'
    gateway.wait_for("an open circuit", lambda: shown in gateway.client.get("/metrics").text)
    pacs.mode = "good"
    gateway.wait_for("the delivery", gateway.all_done)
    assert list(pacs.posts.values()) == [1]
    assert gateway.ledger.circuits.states() == []


def test_a_destination_that_accepts_and_drops_is_not_believed(gateway, pacs, tmp_path):
    pacs.mode = "drops"
    store(gateway.client, phantom(tmp_path).paths)
    gateway.wait_for("a doubt", lambda: [job for job in gateway.jobs() if job["reason"] == "not-verified"])
    assert reconcile(gateway.ledger.database).by_fate == {("open", "delivering"): 8}
    pacs.mode = "good"
    gateway.wait_for("the delivery", gateway.all_done)
    assert len(pacs.held) == 1


def test_a_destination_that_refuses_ends_in_a_dead_letter_with_the_reason_and_is_replayed(tmp_path, pacs):
    pacs.mode = "refuses"
    file = write_routing(tmp_path, pacs)
    with live_gateway(tmp_path / "data", routing_file=file, delivery_attempts=2) as gateway:
        store(gateway.client, phantom(tmp_path).paths)
        gateway.wait_for("the dead letter", lambda: [job for job in gateway.jobs() if job["state"] == "dead"])
        dead = one_job(gateway, "delivery")
        assert (dead["reason"], dead["detail"]) == (
            "destination-refused", "1 of 1 objects were refused, reason 0122",
        )  # fmt: skip
        assert reconcile(gateway.ledger.database).by_fate == {("open", "given-up: destination-refused"): 8}
        pacs.mode = "good"
        assert gateway.client.post(f"/jobs/{dead['id']}/replay").status_code == 202
        gateway.wait_for("the delivery", gateway.all_done)
        assert gateway.client.post(f"/jobs/{dead['id']}/replay").status_code == 409


def test_one_destination_in_trouble_holds_up_no_other(tmp_path, pacs):
    with fake_pacs() as broken:
        broken.mode = "breaks"
        both = RULE | {"destinations": ["broken", "pacs"]}
        file = write_routing(tmp_path, pacs, both, broken={"stow": {"url": broken.url}})
        with live_gateway(tmp_path / "data", routing_file=file) as gateway:
            for study in ("a", "b"):
                store(gateway.client, phantom(tmp_path, study).paths)
            gateway.wait_for("both results", lambda: len(pacs.held) == 2)
            assert broken.held == {}


def test_a_bad_study_is_refused_with_its_reason_and_the_next_is_delivered(gateway, pacs, tmp_path):
    def gap(dataset: Dataset, index: int) -> None:
        if index > 4:
            dataset.ImagePositionPatient[2] += 30

    store(gateway.client, phantom(tmp_path, "bad", change=gap).paths)
    store(gateway.client, phantom(tmp_path, "good").paths)
    gateway.wait_for("the good one", lambda: pacs.held)
    gateway.wait_for("a fate for both", lambda: not reconcile(gateway.ledger.database).open)
    report = reconcile(gateway.ledger.database)
    assert report.by_fate == {("delivered", ""): 8, ("refused", "missing-slice"): 8}
    assert "CANARY" not in gateway.log.getvalue()
    assert "CANARY" not in str(gateway.jobs())


def delivered(pacs: FakePacs) -> list[Dataset]:
    """In the order in which they came."""
    return [dcmread(io.BytesIO(content)) for content in pacs.held.values()]


def test_a_late_image_makes_a_revision_whose_job_and_objects_name_the_earlier_ones(tmp_path, pacs):
    file = write_routing(tmp_path, pacs, RULE | {"outputs": ["seg", "sr"]})
    with live_gateway(tmp_path / "data", routing_file=file) as gateway:
        sent = phantom(tmp_path)
        store(gateway.client, sent.paths[:-1])
        gateway.wait_for("the first result", lambda: len(pacs.held) == 2 and gateway.all_done())
        first = one_job(gateway, "series")
        store(gateway.client, sent.paths[-1:])
        gateway.wait_for("the second result", lambda: len(pacs.held) == 4 and gateway.all_done())
        second = next(job for job in gateway.jobs() if job["kind"] == "series" and job["id"] != first["id"])
    assert (second["predecessor_id"], second["series_revision"]) == (first["id"], 2)
    seg, report, later_seg, later_report = delivered(pacs)
    assert [item.Modality for item in (seg, report, later_seg, later_report)] == ["SEG", "SR", "SEG", "SR"]
    assert later_seg.SegmentSequence[0].TrackingUID == seg.SegmentSequence[0].TrackingUID
    assert later_seg.SourceInstanceSequence[0].ReferencedSOPInstanceUID == seg.SOPInstanceUID
    (study,) = later_report.PredecessorDocumentsSequence
    named = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == report.SOPInstanceUID


def test_each_destination_gets_what_its_profile_says(tmp_path, pacs):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "parts.yaml").write_text(
        "{description: SEG in parts, objects: [seg], seg_frame_limit: 2, series_description: Parts}"
    )
    with fake_pacs() as planning:
        rule = {name: value for name, value in RULE.items() if name != "outputs"}
        file = write_routing(
            tmp_path,
            pacs,
            rule | {"destinations": ["archive", "planning"]},
            archive={"stow": {"url": pacs.url}, "profile": "parts"},
            planning={"stow": {"url": planning.url}, "profile": "eclipse"},
        )
        with live_gateway(tmp_path / "data", routing_file=file, profiles_dir=tmp_path / "profiles") as gateway:
            store(gateway.client, write_ct_series(tmp_path / "sent").paths)  # whose tumour has several slices
            gateway.wait_for("both deliveries", lambda: planning.held and gateway.all_done())
        (structures,) = delivered(planning)
    assert structures.Modality == "RTSTRUCT"
    parts = delivered(pacs)
    assert len(parts) > 1
    assert {(part.Modality, part.SeriesDescription) for part in parts} == {("SEG", "Parts")}


def test_a_rule_may_name_a_profile_and_another_loaded_bundle(tmp_path, pacs):
    file = write_routing(tmp_path, pacs, RULE | {"outputs": None, "profile": "eclipse", "bundle": "old"})
    old = FakeEngine(replace(FAKE_BUNDLE, name="old"))
    default = FakeEngine(FAKE_BUNDLE)
    with live_gateway(tmp_path / "data", default, [old], routing_file=file) as gateway:
        store(gateway.client, phantom(tmp_path).paths)
        gateway.wait_for("the delivery", gateway.all_done)
        assert one_job(gateway, "series")["bundle"] == "old 0"
    assert ("encode" in old.calls, "encode" in default.calls) == (True, False)
    assert [item.Modality for item in delivered(pacs)] == ["RTSTRUCT"]


def test_a_bundle_that_is_not_loaded_ends_in_a_dead_letter_that_says_so(tmp_path, pacs):
    file = write_routing(tmp_path, pacs, RULE | {"bundle": "absent"})
    with live_gateway(tmp_path / "data", routing_file=file, job_attempts=2) as gateway:
        store(gateway.client, phantom(tmp_path).paths)
        gateway.wait_for("the dead letter", lambda: [job for job in gateway.jobs() if job["state"] == "dead"])
        dead = one_job(gateway, "series")
    assert dead["reason"] == "model-not-ready"
    assert "fake 0" in dead["detail"]


def test_a_rule_may_name_the_acquisition_to_segment(tmp_path, pacs):
    """Without one a series of two echoes ends with its reason; with one it is delivered, on that echo's images."""
    sent = write_two_echoes(tmp_path / "sent")
    rule = RULE | {"match": {"Modality": "MR"}}
    file = write_routing(tmp_path, pacs, rule)
    with live_gateway(tmp_path / "without", routing_file=file) as gateway:
        store(gateway.client, sent.paths)
        gateway.wait_for("the refusal", lambda: any(job["reason"] == "mixed-series" for job in gateway.jobs()))
    assert not pacs.posts
    file = write_routing(tmp_path, pacs, rule | {"acquisition": {"EchoNumbers": 1}})
    with live_gateway(tmp_path / "with", routing_file=file) as gateway:
        store(gateway.client, sent.paths)
        gateway.wait_for("the delivery", gateway.all_done)
    (seg,) = delivered(pacs)
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced <= set(sent.sop_instance_uids)


def test_the_senders_notice_ends_the_waiting(tmp_path, pacs):
    file = write_routing(tmp_path, pacs)
    file.write_text(file.read_text().replace("quiet_s: 0.5", "quiet_s: 3600"))
    with live_gateway(tmp_path / "data", routing_file=file) as gateway:
        sent = phantom(tmp_path)
        store(gateway.client, sent.paths)
        time.sleep(2)
        assert gateway.jobs() == []
        assert gateway.client.post("/ledger/studies/1.2.3/complete").status_code == 404
        assert gateway.client.post(f"/ledger/studies/{sent.study_instance_uid}/complete").json() == {"series": 1}
        gateway.wait_for("the delivery", gateway.all_done)


def test_the_expected_number_of_images_ends_the_waiting(tmp_path, pacs):
    def expect(dataset: Dataset, index: int) -> None:
        dataset.NumberOfSeriesRelatedInstances = 8

    file = write_routing(tmp_path, pacs)
    file.write_text(file.read_text().replace("quiet_s: 0.5", "quiet_s: 3600"))
    with live_gateway(tmp_path / "data", routing_file=file) as gateway:
        sent = phantom(tmp_path, change=expect)
        store(gateway.client, sent.paths[:7])
        time.sleep(2)
        assert gateway.jobs() == []
        store(gateway.client, sent.paths[7:])
        gateway.wait_for("the delivery", gateway.all_done)


def presentation_state(sent: PhantomSeries, directory: Path, *, length: int) -> Path:
    """A GSPS with one place on the tumour, or a measured length of so many pixels, as a workstation stores it."""
    index, row, column = (round(float(value)) for value in sent.geometry.to_index(sent.centre_lps_mm[None])[0])
    source = dcmread(sent.paths[index])
    state = Dataset()
    state.file_meta = source.file_meta
    for name in ("SpecificCharacterSet", "PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime"):
        setattr(state, name, source.get(name))
    state.SOPClassUID = state.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.11.1"
    state.SOPInstanceUID = state.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.77"
    state.SeriesInstanceUID, state.Modality = "1.2.826.0.1.3680043.8.498.78", "PR"
    image, graphic, annotation = Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    ends = [column - length // 2 + 1, row + 1, column + length // 2 + 1, row + 1] if length else [column + 1, row + 1]
    graphic.GraphicAnnotationUnits, graphic.GraphicDimensions = "PIXEL", 2
    graphic.GraphicData, graphic.NumberOfGraphicPoints = ends, len(ends) // 2
    graphic.GraphicType, graphic.GraphicFilled = "POLYLINE" if length else "POINT", "N"
    annotation.ReferencedImageSequence, annotation.GraphicObjectSequence = [image], [graphic]
    annotation.GraphicLayer = "TUMOUR"
    state.GraphicAnnotationSequence = [annotation]
    state.save_as(directory / "state.dcm", enforce_file_format=True)
    return directory / "state.dcm"


@pytest.mark.parametrize(("length", "label"), [(0, LABEL_FOREGROUND), (8, LABEL_BOX_MIN)])
def test_an_annotation_that_arrives_later_is_the_prompt(tmp_path, pacs, length, label):
    rule = RULE | {"prompts": {"annotation": ["PR"]}}
    engine = FakeEngine(FAKE_BUNDLE)
    with live_gateway(tmp_path / "data", engine, routing_file=write_routing(tmp_path, pacs, rule)) as gateway:
        sent = phantom(tmp_path)
        store(gateway.client, sent.paths)

        def waits() -> bool:
            return reconcile(gateway.ledger.database).by_fate == {("refused", "awaiting-annotation"): 8}

        gateway.wait_for("the waiting", waits)
        assert store(gateway.client, [presentation_state(sent, tmp_path, length=length)]).status_code == 200
        gateway.wait_for("the delivery", gateway.all_done)
        assert len(pacs.held) == 1
        assert reconcile(gateway.ledger.database).by_fate == {("delivered", ""): 8, ("refused", "annotation"): 1}
        assert one_job(gateway, "series")["found"] is True
    assert label in engine.placed[0].point_labels


@pytest.mark.slow
def test_a_hundred_studies_at_once_drain_without_a_failure(tmp_path, pacs):
    series = [
        write_ct_series(tmp_path / str(number), shape_zyx=(6, 24, 24), study=f"study {number}") for number in range(100)
    ]
    with live_gateway(
        tmp_path / "data", FakeEngine(TINY_BUNDLE), routing_file=write_routing(tmp_path, pacs)
    ) as gateway:
        for sent in series:
            assert store(gateway.client, sent.paths).status_code == 200
        gateway.wait_for(
            "the last delivery", lambda: len(pacs.held) == 100 and not reconcile(gateway.ledger.database).open, 900
        )
        jobs = gateway.ledger.jobs.listed(limit=1000)
        assert {job.kind: sum(other.kind == job.kind for other in jobs) for job in jobs} == {
            "series": 100,
            "delivery": 100,
        }
        assert {(job.state, job.attempts) for job in jobs} == {("done", 1)}
        assert reconcile(gateway.ledger.database).by_fate == {("delivered", ""): 600}
