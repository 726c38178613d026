"""Retention: what is due goes with a record of it, what is open stays, and nothing that is sent meanwhile is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select, update

from service.audit.trail import AuditTrail
from service.errors import AuditUnavailable, LedgerUnavailable
from service.ledger import retention as retention_module
from service.ledger.jobs import NewJob
from service.ledger.ledger import Ledger, open_ledger
from service.ledger.receiving import Origin
from service.ledger.report import reconcile
from service.ledger.retention import Keeping
from service.ledger.tables import deletion, instance, job, series
from service.ledger_cli import document
from service.settings import Settings
from service.work.retaining import Retainer
from tests.ledger.arrivals import staged
from tests.phantoms import CANARY, PhantomSeries, write_ct_series

DAY_S = 86400.0


@pytest.fixture
def ledger(tmp_path: Path):
    opened = open_ledger(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def phantom(tmp_path: Path) -> PhantomSeries:
    return write_ct_series(tmp_path / "sent", shape_zyx=(3, 8, 8))


def receive(ledger: Ledger, phantom: PhantomSeries, origin: Origin | None = None) -> None:
    ledger.receiver.receive([staged(ledger, path, origin or Origin("stow")) for path in phantom.paths])


def decide(ledger: Ledger, phantom: PhantomSeries, *, decision: str, reason: str = "", jobs=()) -> None:
    held = next(
        item for item in ledger.series.of_study(phantom.study_instance_uid)
        if item.series_instance_uid == phantom.series_instance_uid
    )  # fmt: skip
    assert ledger.series.decide(held, decision=decision, reason=reason, jobs=jobs)


def segmented(ledger: Ledger, phantom: PhantomSeries, *, delivery: str) -> None:
    """A series with a done segmentation and a delivery in the given state."""
    decide(ledger, phantom, decision="matched", jobs=[new_job(phantom, "series", "a")])
    lease = ledger.jobs.claim("w", kinds=("series",))
    ledger.jobs.add(new_job(phantom, "delivery", "d", parent_id=lease.job_id))
    ledger.jobs.end(lease, state="done")
    if delivery != "waiting":
        ledger.jobs.end(ledger.jobs.claim("w", kinds=("delivery",)), state=delivery)


def new_job(phantom: PhantomSeries, kind: str, key: str, **more) -> NewJob:
    return NewJob(
        kind, key, {}, study_instance_uid=phantom.study_instance_uid,
        series_instance_uid=phantom.series_instance_uid, series_revision=1, **more,
    )  # fmt: skip


def age(ledger: Ledger, seconds: float) -> None:
    """As if everything had happened so long ago."""
    with ledger.database.writing() as connection:
        connection.execute(update(series).values(last_received_at=series.c.last_received_at - seconds))
        connection.execute(update(job).values(finished_at=job.c.finished_at - seconds))


def retainer(ledger: Ledger, tmp_path: Path, **settings) -> Retainer:
    chosen = Settings(audit_file=tmp_path / "audit", **settings)
    return Retainer(ledger, chosen, AuditTrail(chosen, lambda: None), lambda rule: None)


def objects(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "data" / "objects").rglob("*") if path.is_file()]


def test_delivered_sources_go_with_a_proof_in_ledger_report_and_audit(ledger, phantom, tmp_path):
    receive(ledger, phantom)
    segmented(ledger, phantom, delivery="done")
    sweeping = retainer(ledger, tmp_path, keep_sources_s=DAY_S)
    assert sweeping.sweep() == 0  # not yet
    age(ledger, 2 * DAY_S)
    assert len(objects(tmp_path)) == 3
    assert sweeping.sweep() == 1
    assert objects(tmp_path) == []
    with ledger.database.reading() as connection:
        for table in (series, instance, job):
            assert connection.execute(select(table)).all() == []
        row = connection.execute(select(deletion)).one()
    assert (row.rule, row.instances, row.keys, row.patient_id) == ("sources", 3, [], "")
    assert (row.series_instance_uid, row.study_instance_uid) == (
        phantom.series_instance_uid,
        phantom.study_instance_uid,
    )
    assert row.completed_at >= row.begun_at
    report = reconcile(ledger.database)
    assert report.balanced
    assert document(report)["deleted"] == [
        {"rule": "sources", "series": 1, "instances": 3, "size_bytes": row.size_bytes, "unfinished": 0}
    ]
    audit = (tmp_path / "audit").read_text()
    assert 'csd-code="110105"' in audit
    assert phantom.study_instance_uid in audit
    assert 'NumberOfInstances="3"' in audit
    assert sweeping.sweep() == 0


def test_nothing_of_a_deleted_patient_stays_in_the_database_file(ledger, phantom, tmp_path):
    receive(ledger, phantom)
    decide(ledger, phantom, decision="refused", reason="no-rule")
    age(ledger, 2 * DAY_S)
    assert retainer(ledger, tmp_path, keep_failed_s=DAY_S).sweep() == 1
    ledger.close()
    data = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file())
    assert CANARY.encode() not in data


@pytest.mark.parametrize("state", ["arriving", "segmenting", "waiting", "dead"])
def test_what_is_open_or_undelivered_is_never_deleted(ledger, phantom, tmp_path, state):
    receive(ledger, phantom)
    if state == "segmenting":
        decide(ledger, phantom, decision="matched", jobs=[new_job(phantom, "series", "a")])
        assert ledger.jobs.claim("w")
    elif state != "arriving":
        segmented(ledger, phantom, delivery=state)
    age(ledger, 1000 * DAY_S)
    assert retainer(ledger, tmp_path, keep_sources_s=1, keep_results_s=1, keep_failed_s=1).sweep() == 0
    assert len(objects(tmp_path)) == 3


@pytest.mark.parametrize(("delivery", "gone"), [("waiting", 0), ("dead", 0), ("cancelled", 0), ("done", 1)])
def test_results_go_by_a_rule_of_their_own_once_they_are_delivered(ledger, phantom, tmp_path, delivery, gone):
    receive(ledger, phantom)
    segmented(ledger, phantom, delivery=delivery)
    made = write_ct_series(tmp_path / "made", shape_zyx=(1, 8, 8), study="results")
    (maker,) = [view for view in ledger.jobs.listed() if view.kind == "series"]
    receive(ledger, made, Origin("result", job_id=maker.id))
    age(ledger, 2 * DAY_S)
    assert retainer(ledger, tmp_path, keep_results_s=DAY_S).sweep() == gone
    assert len(objects(tmp_path)) == 4 - gone


def test_each_kind_has_its_own_time_and_without_one_is_kept(ledger, phantom, tmp_path):
    receive(ledger, phantom)
    decide(ledger, phantom, decision="refused", reason="no-rule")
    age(ledger, 2 * DAY_S)
    assert retainer(ledger, tmp_path, keep_sources_s=1, keep_results_s=1).sweep() == 0
    assert retainer(ledger, tmp_path, keep_failed_s=3 * DAY_S).sweep() == 0
    assert retainer(ledger, tmp_path).sweep() == 0
    assert retainer(ledger, tmp_path, keep_failed_s=DAY_S).sweep() == 1


def test_a_deletion_that_a_dead_process_began_is_finished_by_another(ledger, phantom, tmp_path, monkeypatch):
    receive(ledger, phantom)
    decide(ledger, phantom, decision="refused", reason="no-rule")
    age(ledger, 2 * DAY_S)
    assert ledger.retention.begin(Keeping(failed_s=DAY_S)) == 1
    assert len(objects(tmp_path)) == 3  # rows are gone, the process dies here
    assert reconcile(ledger.database).deleted[0].unfinished == 1
    assert retainer(ledger, tmp_path).sweep() == 1  # even where no rule is set any more
    assert objects(tmp_path) == []


def test_without_its_audit_message_a_deletion_stays_open(ledger, phantom, tmp_path):
    receive(ledger, phantom)
    decide(ledger, phantom, decision="refused", reason="no-rule")
    age(ledger, 2 * DAY_S)
    chosen = Settings(audit_file=tmp_path / "nowhere" / "audit", audit_required=True, keep_failed_s=DAY_S)
    failing = Retainer(ledger, chosen, AuditTrail(chosen, lambda: None), lambda rule: None)
    with pytest.raises(AuditUnavailable):
        failing.sweep()
    assert len(ledger.retention.unfinished()) == 1
    (tmp_path / "nowhere").mkdir()
    assert failing.sweep() == 1
    assert 'csd-code="110105"' in (tmp_path / "nowhere" / "audit").read_text()


def test_a_series_that_is_sent_again_meanwhile_is_refused_until_it_can_be_kept(ledger, phantom, tmp_path, monkeypatch):
    receive(ledger, phantom)
    decide(ledger, phantom, decision="refused", reason="no-rule")
    age(ledger, 2 * DAY_S)
    assert ledger.retention.begin(Keeping(failed_s=DAY_S)) == 1
    again = write_ct_series(tmp_path / "again", shape_zyx=(3, 8, 8))
    other = write_ct_series(tmp_path / "other", shape_zyx=(1, 8, 8), study="other")
    with pytest.raises(LedgerUnavailable):
        receive(ledger, again)
    receive(ledger, other)  # others are not held up
    retainer(ledger, tmp_path).sweep()
    with pytest.raises(LedgerUnavailable):  # still settling: what was put may be removed by a slower process
        receive(ledger, write_ct_series(tmp_path / "third", shape_zyx=(3, 8, 8)))
    monkeypatch.setattr(retention_module, "SETTLING_S", 0.0)
    receive(ledger, write_ct_series(tmp_path / "fourth", shape_zyx=(3, 8, 8)))
    assert [held.instances for held in ledger.series.of_study(phantom.study_instance_uid)] == [3]
    assert json.dumps(document(reconcile(ledger.database)))
