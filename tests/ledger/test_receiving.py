"""Receipt: once by UID and content, revisions that name their predecessor, nothing acknowledged that is not kept."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from service.dicom.facts import read_facts
from service.errors import LedgerUnavailable, NotDicom, StorageFull
from service.ledger.database import Database
from service.ledger.ledger import open_ledger
from service.ledger.tables import SCHEMA_VERSION, instance, schema
from tests.ledger.arrivals import phantom_series, staged


def rows(ledger):
    with ledger.database.reading() as connection:
        return connection.execute(select(instance).order_by(instance.c.id)).all()


def change_description(dataset, index):
    dataset.SeriesDescription = "corrected"


def test_what_is_received_is_there_byte_by_byte(ledger, tmp_path):
    phantom = phantom_series(tmp_path / "sent")
    receipts = ledger.receiver.receive([staged(ledger, path) for path in phantom.paths])
    assert [receipt.duplicate for receipt in receipts] == [False] * 4
    held = ledger.series.instances(series_instance_uid=phantom.series_instance_uid)
    assert [item.sop_instance_uid for item in held] == list(phantom.sop_instance_uids)
    for item, path in zip(held, phantom.paths, strict=True):
        with ledger.store.open(item.object_key) as stream:
            assert stream.read() == path.read_bytes()


def test_the_same_content_again_is_a_duplicate_and_leaves_one_row(ledger, tmp_path):
    phantom = phantom_series(tmp_path / "sent", images=1)
    (first,) = ledger.receiver.receive([staged(ledger, phantom.paths[0])])
    (second,) = ledger.receiver.receive([staged(ledger, phantom.paths[0])])
    assert (first.duplicate, second.duplicate) == (False, True)
    assert len(rows(ledger)) == 1
    (held,) = ledger.series.of_study(phantom.study_instance_uid)
    assert (held.instances, held.revision) == (1, 1)


def test_twice_in_one_batch_is_one_row(ledger, tmp_path):
    path = phantom_series(tmp_path / "sent", images=1).paths[0]
    receipts = ledger.receiver.receive([staged(ledger, path), staged(ledger, path)])
    assert [receipt.duplicate for receipt in receipts] == [False, True]
    assert len(rows(ledger)) == 1


def test_other_content_under_the_same_uid_is_a_revision_that_names_its_predecessor(ledger, tmp_path):
    first = phantom_series(tmp_path / "first", images=1)
    second = phantom_series(tmp_path / "second", images=1, change=change_description)
    ledger.receiver.receive([staged(ledger, first.paths[0])])
    (receipt,) = ledger.receiver.receive([staged(ledger, second.paths[0])])
    older, newer = rows(ledger)
    assert (receipt.revision, newer.revision, newer.predecessor_id) == (2, 2, older.id)
    assert (older.current, newer.current) == (False, True)
    with ledger.store.open(older.object_key) as stream:  # the earlier content stays
        assert stream.read() == first.paths[0].read_bytes()


def test_the_file_meta_information_does_not_make_another_content(tmp_path):
    from pydicom import dcmread

    path = phantom_series(tmp_path, images=1).paths[0]
    dataset = dcmread(path)
    dataset.file_meta.ImplementationVersionName = "ANOTHER_SENDER"
    dataset.save_as(tmp_path / "other")
    assert read_facts(path).digest == read_facts(tmp_path / "other").digest
    assert path.read_bytes() != (tmp_path / "other").read_bytes()


def test_what_a_job_reads_stays_what_it_is_when_the_same_is_sent_in_another_wrapping(ledger, tmp_path):
    """Orthanc may push a series by C-STORE and by STOW-RS: equal data sets, other lengths of file meta information."""
    key, directory = "objects/one", ledger.staging.directory()
    (first := tmp_path / "first").write_bytes(b"short meta" + b"pixels")
    ledger.store.put([(first, key)])
    (fetched,) = ledger.store.fetch([key], directory)
    before = fetched.read_bytes()
    (second := tmp_path / "second").write_bytes(b"a longer meta" + b"pixels")
    ledger.store.put([(second, key)])
    assert fetched.read_bytes() == before
    (again,) = ledger.store.fetch([key], ledger.staging.directory())
    assert again.read_bytes() == b"a longer meta" + b"pixels"


def test_a_thousand_senders_at_once_are_all_kept_once(ledger, tmp_path):
    phantom = phantom_series(tmp_path / "sent", images=40)
    arrivals = [staged(ledger, path) for path in phantom.paths for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        receipts = [receipt for (receipt,) in pool.map(lambda arrival: ledger.receiver.receive([arrival]), arrivals)]
    assert sum(not receipt.duplicate for receipt in receipts) == 40
    assert len(rows(ledger)) == 40


def test_a_full_disk_is_said_and_nothing_is_recorded(ledger, tmp_path, monkeypatch):
    arrival = staged(ledger, phantom_series(tmp_path / "sent", images=1).paths[0])

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        ledger.receiver.receive([arrival])
    assert rows(ledger) == []


def test_a_database_that_is_gone_is_said_and_the_receiver_lives_on(ledger, tmp_path, monkeypatch):
    path = phantom_series(tmp_path / "sent", images=1).paths[0]

    def gone(*_):
        raise LedgerUnavailable("the database does not answer")

    with monkeypatch.context() as patched:
        patched.setattr("service.ledger.receiving.record", gone)
        with pytest.raises(LedgerUnavailable):
            ledger.receiver.receive([staged(ledger, path)])
    (receipt,) = ledger.receiver.receive([staged(ledger, path)])
    assert not receipt.duplicate


def test_bytes_that_are_no_dicom_are_refused_without_their_content(tmp_path):
    (tmp_path / "bad").write_bytes(b"DOE^JANE" * 100)
    with pytest.raises(NotDicom) as caught:
        read_facts(tmp_path / "bad")
    assert "DOE" not in caught.value.detail


def test_a_database_of_another_version_is_refused(tmp_path):
    open_ledger(tmp_path).close()
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    with database.writing() as connection:
        connection.execute(schema.update().values(version=SCHEMA_VERSION + 1))
    database.close()
    with pytest.raises(LedgerUnavailable, match="schema"):
        open_ledger(tmp_path)


def test_an_object_store_that_fsspec_reaches_keeps_the_same_bytes(tmp_path):
    path = phantom_series(tmp_path / "sent", images=1).paths[0]
    opened = open_ledger(tmp_path / "data", object_store_url="memory://held")
    opened.receiver.receive([staged(opened, path)])
    (held,) = opened.series.instances(sop_instance_uids=[read_facts(path).sop_instance_uid])
    (fetched,) = opened.store.fetch([held.object_key], opened.staging.directory())
    assert fetched.read_bytes() == path.read_bytes()
    opened.close()
