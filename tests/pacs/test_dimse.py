"""DIMSE both ways against pynetdicom peers of the test: statuses, AE rules, many senders, out of room, commitment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from demo.running import free_port
from service.delivery import deliver as deliver_module
from service.dicom.facts import read_facts
from service.ledger import jobs as jobs_module
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.stow import store
from tests.phantoms import PhantomSeries, write_ct_series


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    with live_gateway(tmp_path / "data", worker=False) as started:
        yield started


def phantom(directory: Path, **more) -> PhantomSeries:
    return write_ct_series(directory, shape_zyx=(4, 12, 10), **more)


def send(gateway: LiveGateway, paths, *, calling: str = "MODALITY", called: str = "TAGS") -> list[int]:
    """Statuses of one association; none when it was rejected."""
    ae = AE(ae_title=calling)
    first = dcmread(paths[0], stop_before_pixels=True)
    ae.add_requested_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", gateway.dimse_port, ae_title=called)
    if not association.is_established:
        return []
    statuses = [association.send_c_store(path).Status for path in paths]
    association.release()
    return statuses


@pytest.mark.parametrize(
    "transfer_syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
    ],
    ids=lambda uid: uid.keyword,
)
def test_what_is_sent_is_held_as_it_was_sent(gateway, tmp_path, transfer_syntax):
    sent = phantom(tmp_path / "sent", transfer_syntax=transfer_syntax)
    assert send(gateway, sent.paths) == [0] * 4
    held = gateway.ledger.series.instances(series_instance_uid=sent.series_instance_uid)
    (directory := tmp_path / "fetched").mkdir()
    for path, kept in zip(sent.paths, gateway.ledger.store.fetch([i.object_key for i in held], directory), strict=True):
        assert read_facts(kept).digest == read_facts(path).digest
    assert {(item.via, item.calling_ae, item.called_ae) for item in held} == {("cstore", "MODALITY", "TAGS")}


def test_the_same_series_by_stow_and_by_c_store_is_one(gateway, tmp_path):
    sent = phantom(tmp_path)
    assert store(gateway.client, sent.paths).status_code == 200
    assert send(gateway, sent.paths) == [0] * 4
    (series,) = gateway.ledger.series.of_study(sent.study_instance_uid)
    assert (series.instances, series.revision) == (4, 1)


def test_only_known_names_are_served(tmp_path):
    sent = phantom(tmp_path / "sent")
    with live_gateway(tmp_path / "data", worker=False, dimse_calling_ae_titles="CT1, MR1") as gateway:
        assert send(gateway, sent.paths, calling="CT1") == [0] * 4
        assert send(gateway, sent.paths, calling="OTHER") == []
        assert send(gateway, sent.paths, calling="MR1", called="ANYONE") == []


def test_without_room_the_status_is_out_of_resources(tmp_path):
    sent = phantom(tmp_path / "sent")
    with live_gateway(tmp_path / "data", worker=False, min_free_bytes=10**18) as gateway:
        assert send(gateway, sent.paths[:1]) == [0xA700]
        assert gateway.ledger.series.of_study(sent.study_instance_uid) == []


def test_many_senders_at_once_are_all_kept(gateway, tmp_path):
    series = [phantom(tmp_path / str(number), study=f"s{number}") for number in range(6)]
    statuses: list[list[int]] = []
    threads = [threading.Thread(target=lambda s=one: statuses.append(send(gateway, s.paths))) for one in series]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [[0] * 4] * 6
    assert len(gateway.client.get("/dicom-web/instances").json()) == 24


@contextmanager
def node(*, commits: str) -> Iterator[tuple[int, list[str]]]:
    """A storage node that reports its commitments on the association that asked. Args: commits: all, none or never."""
    stored: list[str] = []
    ae = AE(ae_title="NODE")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)

    def keep(event: evt.Event) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def commit(event: evt.Event) -> tuple[int, None]:
        request = event.action_information

        def report() -> None:
            answer = Dataset()
            answer.TransactionUID = request.TransactionUID
            failed = commits == "none"
            setattr(answer, "FailedSOPSequence" if failed else "ReferencedSOPSequence", request.ReferencedSOPSequence)
            event.assoc.send_n_event_report(
                answer, 2 if failed else 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
            )

        if commits != "never":
            threading.Timer(0.3, report).start()
        return 0x0000, None

    server = ae.start_server(
        ("127.0.0.1", port := free_port()),
        block=False,
        evt_handlers=[(evt.EVT_C_STORE, keep), (evt.EVT_N_ACTION, commit)],
    )
    try:
        yield port, stored
    finally:
        server.shutdown()


@pytest.mark.parametrize(("commits", "state"), [("all", "done"), ("none", "dead"), ("never", "dead")])
def test_a_delivery_by_c_store_ends_when_it_is_committed(tmp_path, monkeypatch, commits, state):
    monkeypatch.setattr(jobs_module, "BACKOFF_S", (0.1,))
    monkeypatch.setattr(deliver_module, "COMMITMENT_WAIT_S", 3.0)
    with node(commits=commits) as (port, stored):
        file = tmp_path / "routing.yaml"
        rule = {"name": "any", "match": {"Modality": "CT"}, "prompts": {"text": "t"}, "outputs": ["seg"]}
        rule |= {"destinations": ["node"]}
        destination = {"dimse": {"host": "127.0.0.1", "port": port, "ae_title": "NODE", "timeout_s": 10}}
        file.write_text(
            yaml.safe_dump({"completeness": {"quiet_s": 0.5}, "destinations": {"node": destination}, "rules": [rule]})
        )
        with live_gateway(tmp_path / "data", routing_file=file, delivery_attempts=1) as gateway:
            sent = write_ct_series(tmp_path / "sent", shape_zyx=(6, 24, 24))
            store(gateway.client, sent.paths)

            def ended() -> list[dict]:
                return [j for j in gateway.jobs() if j["kind"] == "delivery" and j["state"] in ("done", "dead")]

            (job,) = gateway.wait_for("the delivery's end", ended, 90)
            assert job["state"] == state
            assert job["reason"] == ("" if state == "done" else "not-verified")
            assert len(stored) == 1
