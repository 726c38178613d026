"""Receipt: staged files become instances of the ledger, durably, once.

What enters: `Arrival`s: checked files of this machine with their facts. What leaves: one `Receipt` each, after the
bytes are in the object store and the row is committed: only then may a sender be told. Idempotent by SOP Instance UID
and digest: the same content again is a duplicate, other content under the same UID a new revision that names its
predecessor and takes its place; the earlier one stays.

One writer thread serves all senders of a process and commits what has gathered since its last commit in one
transaction, so that a commit's disk sync is shared. Threads may share a `Receiver`.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from service.dicom.facts import Facts
from service.errors import LedgerUnavailable, TagsError
from service.ledger.database import Database
from service.ledger.objects import ObjectStore
from service.ledger.retention import being_deleted
from service.ledger.tables import instance, series
from service.ledger.trails import Trail, leave_with_series

BEING_DELETED = "a retention rule is deleting this series; send it again in some minutes"
MAX_BATCH = 256  # arrivals per transaction
_SEARCHABLE = {  # column of `series`: attribute
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "accession_number": "AccessionNumber",
    "study_id": "StudyID",
    "referring_physician_name": "ReferringPhysicianName",
    "study_description": "StudyDescription",
    "modality": "Modality",
    "series_number": "SeriesNumber",
    "series_description": "SeriesDescription",
    "body_part": "BodyPartExamined",
}
_LENGTH = {name: getattr(series.c[name].type, "length", None) for name in _SEARCHABLE}  # PostgreSQL refuses longer
LOOKUP_CHUNK = 500  # SQLite takes a limited number of parameters


@dataclass(frozen=True)
class Origin:
    """How an object came in. AE titles are "" outside DIMSE."""

    via: str  # stow, cstore, result
    calling_ae: str = ""
    called_ae: str = ""
    job_id: str | None = None  # of a result
    trail: Trail = Trail()


@dataclass(frozen=True)
class Arrival:
    """A staged file whose header has been read."""

    staged: Path
    facts: Facts
    origin: Origin
    is_synced: bool = False  # its content is on the disk already

    @property
    def object_key(self) -> str:
        """Equal content has an equal key. One folder per series, so that a batch touches few folders."""
        folder = blake2b(self.facts.series_instance_uid.encode(), digest_size=16).hexdigest()
        return f"instances/{folder}/{self.facts.digest}"


@dataclass(frozen=True)
class Receipt:
    """What became of one arrival."""

    facts: Facts
    revision: int
    duplicate: bool


class Receiver:
    """`start` it before use; `close` waits for what was submitted."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self._database, self._store = database, store
        self._submitted: queue.SimpleQueue[tuple[list[Arrival], Future[list[Receipt]]] | None] = queue.SimpleQueue()
        self._known: set[str] = set()  # 64 bytes a series: a year's worth is a few MiB
        self._thread = threading.Thread(target=self._serve, name="ledger-receiver", daemon=True)
        self._thread.start()

    def receive(self, arrivals: Sequence[Arrival]) -> list[Receipt]:
        """Keep the files; they are gone from the staging directory afterwards. Blocking.

        Raises: StorageFull, LedgerUnavailable: nothing of these arrivals was acknowledged.
        """
        return self.submit(arrivals).result()

    def submit(self, arrivals: Sequence[Arrival]) -> Future[list[Receipt]]:
        """The receipts, in time."""
        future: Future[list[Receipt]] = Future()
        try:
            # In the caller's thread, so that several senders' files are synced side by side.
            files = [(arrival.staged, arrival.object_key) for arrival in arrivals]
            self._store.put(files, is_synced=all(arrival.is_synced for arrival in arrivals))
        except TagsError as error:
            future.set_exception(error)
            return future
        self._submitted.put((list(arrivals), future))
        return future

    def knows(self, series_instance_uid: str) -> bool:
        """Whether this process has entered an image of the series, so that its attributes are on file."""
        return series_instance_uid in self._known

    def close(self) -> None:
        self._submitted.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while True:
            item = self._submitted.get()
            if item is None:
                return
            batch, ended = [item], False
            while sum(len(arrivals) for arrivals, _ in batch) < MAX_BATCH and not self._submitted.empty():
                following = self._submitted.get()
                if following is None:
                    ended = True
                    break
                batch.append(following)
            self._commit(batch)
            if ended:
                return

    def _without_deleted(
        self, connection: Connection, batch: list[tuple[list[Arrival], Future[list[Receipt]]]]
    ) -> list[tuple[list[Arrival], Future[list[Receipt]]]]:
        """Only the senders of series that are being deleted are told to come again."""
        wanted = sorted(set().union(*(_series_of(arrivals) for arrivals, _ in batch)))
        deleted = being_deleted(self._database, connection, wanted)
        # One that this process has seen before its deletion: its header was not read again, and must be.
        without_header = {
            arrival.facts.series_instance_uid
            for arrivals, _ in batch
            for arrival in arrivals
            if not arrival.facts.series_json
        }
        deleted |= without_header - _there(connection, without_header)
        if not deleted:
            return batch
        self._known -= deleted
        for arrivals, future in batch:
            if _series_of(arrivals) & deleted:
                future.set_exception(LedgerUnavailable(BEING_DELETED))
        return [item for item in batch if not _series_of(item[0]) & deleted]

    def _commit(self, batch: list[tuple[list[Arrival], Future[list[Receipt]]]]) -> None:
        try:
            with self._database.writing() as connection:
                batch = self._without_deleted(connection, batch)
                receipts = record(self._database, connection, [item for arrivals, _ in batch for item in arrivals])
        except Exception as error:  # whatever it is, the senders must be told that nothing was kept
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self._known |= {receipt.facts.series_instance_uid for receipt in receipts}
        for arrivals, future in batch:
            future.set_result(receipts[: len(arrivals)])
            receipts = receipts[len(arrivals) :]


def _there(connection: Connection, series_instance_uids: set[str]) -> set[str]:
    """Those of these series that the ledger has. A batch names a few."""
    if not series_instance_uids:
        return set()
    found = select(series.c.series_instance_uid).where(series.c.series_instance_uid.in_(series_instance_uids))
    return set(connection.execute(found).scalars())


def _series_of(arrivals: Sequence[Arrival]) -> set[str]:
    return {arrival.facts.series_instance_uid for arrival in arrivals}


def check_kept(database: Database, connection: Connection, arrivals: Sequence[Arrival]) -> None:
    """Raises: LedgerUnavailable: a series among them is being deleted."""
    if being_deleted(database, connection, sorted(_series_of(arrivals))):
        raise LedgerUnavailable(BEING_DELETED)


def record(database: Database, connection: Connection, arrivals: Sequence[Arrival]) -> list[Receipt]:
    """Enter arrivals whose bytes are in the store, of series that are not being deleted. Inside the caller's
    transaction."""
    now = database.now(connection)
    _ensure_series(database, connection, arrivals, now)
    receipts: dict[int, Receipt] = {}
    left = list(enumerate(arrivals))
    while left:  # once, unless a UID occurs twice: its second content names the first as its predecessor
        round_: dict[str, tuple[int, Arrival]] = {}
        for number, arrival in left:
            round_.setdefault(arrival.facts.sop_instance_uid, (number, arrival))
        receipts |= _record_distinct(connection, list(round_.values()), now)
        left = [item for item in left if item[0] not in receipts]
    new = [arrival for number, arrival in enumerate(arrivals) if not receipts[number].duplicate]
    trails = {item.facts.series_instance_uid: item.origin.trail for item in new if item.origin.trail.request_id}
    leave_with_series(connection, trails)
    return [receipts[number] for number in range(len(arrivals))]


@dataclass(frozen=True)
class _Known:
    id: int
    revision: int
    series_instance_uid: str


def _record_distinct(connection: Connection, arrivals: Sequence[tuple[int, Arrival]], now: float) -> dict[int, Receipt]:
    """Args: arrivals: of different SOP Instance UIDs, numbered."""
    known = _known(connection, {arrival.facts.sop_instance_uid for _, arrival in arrivals})
    receipts: dict[int, Receipt] = {}
    rows: list[dict[str, Any]] = []
    superseded: list[str] = []
    gained: Counter[str] = Counter()  # instances by series; a change may gain none
    for number, arrival in arrivals:
        facts, revisions = arrival.facts, known[arrival.facts.sop_instance_uid]
        if facts.digest in revisions:
            receipts[number] = Receipt(facts, revisions[facts.digest].revision, duplicate=True)
            continue
        previous = max(revisions.values(), key=lambda found: found.revision, default=None)
        gained[facts.series_instance_uid] += 1
        if previous:
            superseded.append(facts.sop_instance_uid)
            gained[previous.series_instance_uid] -= 1
        rows.append(_instance_row(arrival, previous, now))
        receipts[number] = Receipt(facts, rows[-1]["revision"], duplicate=False)
    if superseded:
        old = instance.c.sop_instance_uid.in_(superseded)
        connection.execute(update(instance).where(old).values(current=False))
    if rows:
        connection.execute(_INSERT_INSTANCE, rows)
    for uid in sorted(gained):
        connection.execute(_NOTE_CHANGE, {"uid": uid, "gained": gained[uid], "now": now})
    return receipts


def _known(connection: Connection, uids: set[str]) -> dict[str, dict[str, _Known]]:
    """By SOP Instance UID, then digest."""
    known: dict[str, dict[str, _Known]] = defaultdict(dict)
    wanted = sorted(uids)
    for start in range(0, len(wanted), LOOKUP_CHUNK):
        for row in connection.execute(_LOOK_UP, {"uids": wanted[start : start + LOOKUP_CHUNK]}):
            known[row.sop_instance_uid][row.digest] = _Known(row.id, row.revision, row.series_instance_uid)
    return known


def _ensure_series(database: Database, connection: Connection, arrivals: Sequence[Arrival], now: float) -> None:
    """Rows for all series, locked in one order, so that two replicas never wait for each other in a ring."""
    new = {arrival.facts.series_instance_uid: arrival.facts for arrival in arrivals if arrival.facts.series_json}
    database.insert_new(connection, series, [_series_row(new[uid], now) for uid in sorted(new)])
    uids = sorted({arrival.facts.series_instance_uid for arrival in arrivals})
    for start in range(0, len(uids), LOOKUP_CHUNK):
        connection.execute(_LOCK_SERIES, {"uids": uids[start : start + LOOKUP_CHUNK]}).all()


def _series_row(facts: Facts, now: float) -> dict[str, Any]:
    texts = dict(zip(_SEARCHABLE, facts.series_text(*_SEARCHABLE.values()), strict=True))
    (expected,) = facts.series_text("NumberOfSeriesRelatedInstances")
    return {
        "series_instance_uid": facts.series_instance_uid,
        "study_instance_uid": facts.study_instance_uid,
        **{name: text[: _LENGTH.get(name)] for name, text in texts.items()},
        "attributes": facts.series_json,
        "instances": 0,
        "expected_instances": int(expected) if expected.isdecimal() and 0 < int(expected) < 1_000_000 else None,
        "first_received_at": now,
        "last_received_at": now,
        "revision": 0,
        "noticed_revision": 0,
        "decided_revision": 0,
        "decision": "",
        "reason": "",
    }


def _instance_row(arrival: Arrival, previous: _Known | None, now: float) -> dict[str, Any]:
    facts, origin = arrival.facts, arrival.origin
    return {
        "sop_instance_uid": facts.sop_instance_uid,
        "digest": facts.digest,
        "revision": previous.revision + 1 if previous else 1,
        "predecessor_id": previous.id if previous else None,
        "current": True,
        "series_instance_uid": facts.series_instance_uid,
        "study_instance_uid": facts.study_instance_uid,
        "sop_class_uid": facts.sop_class_uid,
        "transfer_syntax_uid": facts.transfer_syntax_uid,
        "instance_number": facts.instance_number,
        "attributes": facts.instance_json,
        "size_bytes": facts.size_bytes,
        "object_key": arrival.object_key,
        "via": origin.via,
        "calling_ae": origin.calling_ae,
        "called_ae": origin.called_ae,
        "job_id": origin.job_id,
        "received_at": now,
    }


# Built once: building a statement costs more than running it on SQLite.
_INSERT_INSTANCE = insert(instance)
_LOOK_UP = select(
    instance.c.id, instance.c.sop_instance_uid, instance.c.digest, instance.c.revision, instance.c.series_instance_uid
).where(instance.c.sop_instance_uid.in_(bindparam("uids", expanding=True)))
_LOCK_SERIES = (
    select(series.c.series_instance_uid)
    .where(series.c.series_instance_uid.in_(bindparam("uids", expanding=True)))
    .order_by(series.c.series_instance_uid)
    .with_for_update()
)
_NOTE_CHANGE = (
    update(series)
    .where(series.c.series_instance_uid == bindparam("uid"))
    .values(
        instances=series.c.instances + bindparam("gained"),
        last_received_at=bindparam("now"),
        revision=series.c.revision + 1,
    )
)
