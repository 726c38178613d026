"""A rule whose results go out without the patient: a pushed series with canaries, and what a destination then has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from service.dicom.ingest import SeriesLimits, read_series
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.ledger.report import reconcile
from service.results import render
from service.telemetry.stages import Stages
from tests.enhanced import write_two_times
from tests.fakes.engine import FAKE_BUNDLE
from tests.pacs.fake_pacs import FakePacs, fake_pacs
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.stow import store
from tests.pacs.test_deliveries import RULE, delivered, one_job, write_routing
from tests.phantoms import PhantomSeries, write_ct_series
from tests.security.test_deidentification import KEY, PSEUDONYMS, assert_says_nothing, planted

NAMELESS = RULE | {"outputs": ["seg", "sr", "rtstruct", "sc"], "deidentified": True}


@pytest.fixture
def archive() -> Iterator[FakePacs]:
    with fake_pacs() as started:
        yield started


@contextmanager
def research_site(directory: Path, archive: FakePacs, rule: dict = NAMELESS, **more) -> Iterator[LiveGateway]:
    directory.mkdir(exist_ok=True)
    chosen = {"deidentification_key": KEY} | more
    with live_gateway(directory / "data", routing_file=write_routing(directory, archive, rule), **chosen) as gateway:
        yield gateway


def segs(archive: FakePacs) -> list[Dataset]:
    return [item for item in delivered(archive) if item.Modality == "SEG"]


def test_what_a_destination_gets_says_nothing_of_the_patient_and_lies_where_it_lay(tmp_path, archive):
    sent, audit = planted(tmp_path / "sent"), tmp_path / "audit.log"
    before = [path.read_bytes() for path in sent.paths]
    with research_site(tmp_path, archive, audit_file=audit) as gateway:
        store(gateway.client, sent.paths)
        gateway.wait_for("the delivery", gateway.all_done)
        held = [
            gateway.ledger.store.fetch([item.object_key], tmp_path)[0].read_bytes() for item in images(gateway, sent)
        ]
        assert sorted(held) == sorted(before)  # what was received is untouched
        assert reconcile(gateway.ledger.database).by_fate == {("delivered", ""): len(before)}
        assert "CANARY" not in gateway.log.getvalue()
    assert len(archive.held) > 3
    for uid, content in archive.held.items():
        assert_says_nothing(content, sent, uid)
    for item in delivered(archive):
        assert item.PatientID == PSEUDONYMS.patient("CANARY-4711")
        assert item.StudyInstanceUID == PSEUDONYMS.uid(sent.study_instance_uid)
        assert item.PatientIdentityRemoved == "YES"
    told = audit.read_text()
    assert sent.study_instance_uid in told
    assert "CANARY-4711" in told
    with fake_pacs() as pacs, research_site(tmp_path / "named", pacs, NAMELESS | {"deidentified": False}) as gateway:
        store(gateway.client, plain(tmp_path).paths)
        gateway.wait_for("the delivery", gateway.all_done)
        (named,) = segs(pacs)
    (nameless,) = segs(archive)
    assert np.array_equal(nameless.pixel_array, named.pixel_array)
    assert positions(nameless) == positions(named)
    assert nameless.FrameOfReferenceUID == PSEUDONYMS.uid(named.FrameOfReferenceUID)
    assert nameless.SOPInstanceUID != named.SOPInstanceUID


def plain(directory: Path) -> PhantomSeries:
    """The same series as `planted` makes, without its canaries: what it holds is no valid patient."""
    return write_ct_series(directory / "plain", shape_zyx=(12, 40, 48))


def images(gateway: LiveGateway, sent: PhantomSeries) -> list:
    return gateway.ledger.series.instances(series_instance_uid=sent.series_instance_uid)


def positions(seg: Dataset) -> list[list[float]]:
    frames = seg.PerFrameFunctionalGroupsSequence
    return [list(frame.PlanePositionSequence[0].ImagePositionPatient) for frame in frames]


def test_a_sites_own_annotation_still_says_where_to_look_and_is_not_named(tmp_path, archive):
    sent = planted(tmp_path / "sent")
    series = read_series(
        plain(tmp_path).paths, series_instance_uid=None, limits=SeriesLimits(max_instances=100, max_voxels=10**7)
    )
    mask = Mask(sent.tumour, series.geometry, 0.9)
    drawn = tmp_path / "drawn.dcm"
    drawn.write_bytes(render("seg", series, mask, Prompts(text="tumour"), FAKE_BUNDLE, Stages()).body)
    seg = dcmread(drawn)
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    seg.SeriesInstanceUID, seg.Manufacturer = generate_uid(), "Site"
    seg.save_as(drawn, enforce_file_format=True)
    rule = NAMELESS | {"prompts": {"annotation": ["SEG"]}, "outputs": ["seg", "sr"]}
    with research_site(tmp_path, archive, rule) as gateway:
        store(gateway.client, [*sent.paths, drawn])
        gateway.wait_for("the delivery", gateway.all_done)
        assert one_job(gateway, "series")["found"] is True
    for uid, content in archive.held.items():
        assert_says_nothing(content, sent, uid)
        assert seg.SOPInstanceUID.encode() not in content


def test_of_an_image_with_two_times_the_named_one_is_taken(tmp_path, archive):
    rule = NAMELESS | {"match": {"Modality": "MR"}, "acquisition": {"TemporalPositionIdentifier": 2}}
    with research_site(tmp_path, archive, rule) as gateway:
        store(gateway.client, [write_two_times(tmp_path)])
        gateway.wait_for("the delivery", gateway.all_done)
    (seg,) = segs(archive)
    groups = seg.PerFrameFunctionalGroupsSequence
    frames = {int(g.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber) for g in groups}
    assert frames
    assert frames <= {2, 4, 6, 8}


@pytest.mark.parametrize("without", ["clean pixels", "a key"])
def test_where_it_cannot_be_done_nothing_goes_out(tmp_path, archive, without):
    def burn_in(dataset: Dataset, _: int) -> None:
        dataset.BurnedInAnnotation = "YES"

    sent = write_ct_series(tmp_path / "sent", change=burn_in if without == "clean pixels" else None)
    key = KEY if without == "clean pixels" else ""
    with research_site(tmp_path, archive, deidentification_key=key) as gateway:
        store(gateway.client, sent.paths)
        gateway.wait_for("the refusal", lambda: [job for job in gateway.jobs() if job["state"] == "refused"])
        assert one_job(gateway, "series")["reason"] == "not-deidentifiable"
        assert not [job for job in gateway.jobs() if job["kind"] == "delivery"]
    assert archive.posts == {}
