"""A canary name goes down every path that keeps, shows or tells something, and is found only where it belongs.

It belongs into DICOM objects given to those who may have them, into DICOM JSON of QIDO-RS and WADO-RS, into the
ledger's database and the object store; the audit trail has the Patient ID and a query's text, nothing else.
The paths of `POST /segment` have a test of their own, tests/component/test_api_privacy.py.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from service.ledger import jobs as jobs_module
from service.ledger.report import reconcile
from tests.component.gateway import running
from tests.fakes.engine import FakeEngine
from tests.pacs.fake_pacs import fake_pacs
from tests.pacs.live import live_gateway
from tests.pacs.stow import CONTENT_TYPE, body
from tests.pacs.test_deliveries import write_routing
from tests.pacs.test_dimse import send
from tests.phantoms import CANARY, PhantomSeries, write_ct_series
from tests.security.test_access import bearer, write_keys

KIND = {"content-type": CONTENT_TYPE, "accept": "application/dicom+json"}


def planted(directory: Path, *, gap: bool = False, shape_zyx=(6, 24, 24), **more) -> PhantomSeries:
    def plant(dataset, index):
        dataset.StudyDescription = dataset.SeriesDescription = dataset.InstitutionName = CANARY
        dataset.ReferringPhysicianName = CANARY
        if gap and index > 2:
            dataset.ImagePositionPatient[2] += 30

    return write_ct_series(directory, shape_zyx=shape_zyx, change=plant, **more)


async def test_the_canary_is_in_no_log_metric_error_page_audit_or_temporary_file(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.CRITICAL)  # the client's own log, with what the test asked for
    phantom, inbox, audit = planted(tmp_path / "sent"), tmp_path / "inbox", tmp_path / "audit"
    inbox.mkdir()
    keys, data = write_keys(tmp_path / "keys"), tmp_path / "data"
    settings = {"worker": False, "api_keys_file": keys, "audit_file": audit, "data_dir": data}
    shown: list[str] = []
    async with running(FakeEngine(), inbox, **settings) as gateway:
        client, study = gateway.client, f"/dicom-web/studies/{phantom.study_instance_uid}"
        series = f"{study}/series/{phantom.series_instance_uid}"
        cut = body(phantom.paths)[:-300]
        answers = [
            await client.post("/dicom-web/studies", content=body(phantom.paths), headers=bearer("push") | KIND),
            await client.post("/dicom-web/studies", content=cut, headers=bearer("push") | KIND),
            await client.post("/dicom-web/studies", content=body([CANARY.encode()]), headers=bearer("push") | KIND),
            await client.post("/dicom-web/studies", content=CANARY, headers=bearer("push")),
            await client.post(f"{study}x", content=body(phantom.paths), headers=bearer("push") | KIND),
            await client.get(f"/dicom-web/studies?{CANARY}=1", headers=bearer("read")),
            await client.get(f"/dicom-web/studies/{CANARY}", headers=bearer("read")),
            await client.get(f"/jobs/{CANARY}", headers=bearer("read")),
            await client.get(f"/jobs?state={CANARY}", headers=bearer("read")),
            await client.get("/jobs", headers={"Authorization": f"Bearer {CANARY}"}),
            await client.get("/jobs", headers=bearer("push") | {"X-Request-ID": CANARY, "X-Forwarded-User": CANARY}),
            await client.get("/ledger", headers=bearer("read")),
            await client.get("/jobs", headers=bearer("read")),
            await client.get("/metrics", headers=bearer("none")),
            await client.get("/capabilities", headers=bearer("none")),
            await client.get("/", headers=bearer("none")),
            await client.get("/docs/errors"),
            await client.get("/health/ready"),
            await gateway.segment(
                phantom.paths, {"text": CANARY}, headers=bearer("segment") | {"Prefer": "respond-async"}
            ),
        ]
        job = answers[-1].headers["location"]
        answers += [
            await client.get(job, headers=bearer("segment")),
            await client.get(f"{job}/result", headers=bearer("segment")),
            await client.delete(job, headers=bearer("segment")),
        ]
        # Those who may read are given the name by DICOMweb, as PS3.18 asks.
        for address in (f"/dicom-web/studies?PatientName={CANARY}", f"{series}/metadata", study):
            answer = await client.get(address, headers=bearer("read"))
            assert answer.status_code == 200
            assert CANARY.encode() in answer.content
        shown = [f"{answer.headers} {answer.text}" for answer in answers]
        log = gateway.log_text
        assert os.listdir(inbox) == []
        assert list((data / "staging").iterdir()) == []
        names = [name for _, directories, files in os.walk(data) for name in (*directories, *files)]
    printed = capfd.readouterr()
    for place in (*shown, log, caplog.text, printed.out, printed.err, *names):
        assert "CANARY" not in place
        assert "JANE" not in place
    told = audit.read_text()
    assert told.count("DICOM Instances Transferred") == 3
    told = told.replace('ParticipantObjectID="CANARY-4711"', "")  # the one thing of a patient that A.5 asks for
    assert "CANARY" not in told
    assert "JANE" not in told


@pytest.mark.parametrize("by", ["dimse", "stow"])
def test_nor_is_it_in_what_is_said_of_a_series_from_its_receipt_to_a_delivery_that_fails(
    tmp_path, monkeypatch, caplog, capfd, by
):
    """A good series that one destination takes and another refuses, and one with a gap; rules that look at names."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.CRITICAL)
    monkeypatch.setattr(jobs_module, "BACKOFF_S", (0.1,))
    good = planted(tmp_path / "good", shape_zyx=(8, 32, 32), study="good", series="good")
    bad = planted(tmp_path / "bad", gap=True, study="bad", series="bad")
    rule = {
        "name": "any", "match": {"PatientName": {"matches": "CANARY"}}, "prompts": {"text": "liver tumour"},
        "destinations": ["pacs", "other"],
    }  # fmt: skip
    data, audit = tmp_path / "data", tmp_path / "audit"
    with fake_pacs() as pacs, fake_pacs() as other:
        other.mode = "refuses"
        file = write_routing(tmp_path, pacs, rule, other={"stow": {"url": other.url}})
        settings = {"routing_file": file, "audit_file": audit, "delivery_attempts": 2}
        with live_gateway(data, FakeEngine(), **settings) as gateway:
            for series in (good, bad):
                if by == "dimse":
                    assert set(send(gateway, series.paths)) == {0}
                else:
                    kind = KIND | {"x-request-id": CANARY}
                    gateway.client.post("/dicom-web/studies", content=body(series.paths), headers=kind)

            def settled() -> bool:
                fates = reconcile(gateway.ledger.database).by_fate
                return fates == {("open", "given-up: destination-refused"): 8, ("refused", "missing-slice"): 6}

            gateway.wait_for("a fate for both", settled)
            addresses = ("/jobs", "/ledger", "/metrics", "/", "/capabilities")
            said = [gateway.client.get(address).text for address in addresses]
            log = gateway.log.getvalue()
            names = [name for _, directories, files in os.walk(data) for name in (*directories, *files)]
            assert [path for path in (data / "staging").rglob("*") if path.is_file()] == []
        assert pacs.held
    printed, told = capfd.readouterr(), audit.read_text()
    assert told.count("DICOM Instances Transferred") >= 3
    told = told.replace('ParticipantObjectID="CANARY-4711"', "")
    for place in (*said, log, caplog.text, printed.out, printed.err, *names, told):
        assert "CANARY" not in place
        assert "JANE" not in place
    for series in (good, bad):
        for uid in (series.study_instance_uid, series.series_instance_uid, *series.sop_instance_uids):
            assert uid not in log
