"""Deletion by age, with a record that outlives what was deleted.

Three rules, each with its own time: sources whose results were all delivered; series that were refused or cancelled
("failed"); results whose deliveries are all done. What is open is never touched: arriving, waiting, running, given up
and waiting for a person, or not delivered everywhere.

A deletion goes in this order, so that a process may die at any moment and another goes on:
1. one transaction: the rows go, a `deletion` row with the keys comes. From here on nothing answers with the objects.
2. the objects go; each key is asked for again, and must not be there.
3. the row's keys and Patient ID are blanked and its time is set. What stays are UIDs, counts and a digest.
While a deletion is open, and for SETTLING_S after, the same series is not received (`LedgerUnavailable`): an object put
under a key that is about to be removed would be lost. Source of the fates: `service.ledger.report`. Blocking.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from service.ledger.database import Database
from service.ledger.jobs import ENDED
from service.ledger.objects import ObjectStore
from service.ledger.report import fates
from service.ledger.tables import deletion, instance, job, series

SETTLING_S = 300.0  # longer than any receipt takes from its first byte in the store to its commit
MAX_PER_SWEEP = 100
SOURCES, RESULTS, FAILED = "sources", "results", "failed"


@dataclass(frozen=True)
class Keeping:
    """Seconds for which each is kept after its end; None: until a person removes it."""

    sources_s: float | None = None
    results_s: float | None = None
    failed_s: float | None = None

    @property
    def anything(self) -> bool:
        return not (self.sources_s is None and self.results_s is None and self.failed_s is None)


@dataclass(frozen=True)
class Deletion:
    """An open deletion: rows are gone, objects may still be there."""

    id: str
    rule: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str = field(repr=False)
    sop_classes: dict[str, int]
    keys: tuple[str, ...] = field(repr=False)


class Retention:
    """Threads may share it."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self._database, self._store = database, store

    def begin(self, keeping: Keeping) -> int:
        """Step 1 for what is due. Returns: how many series."""
        begun = 0
        for rule, series_instance_uid, revision in self._due(keeping)[:MAX_PER_SWEEP]:
            with self._database.writing() as connection:
                begun += self._begin(connection, rule, series_instance_uid, revision)
        return begun

    def unfinished(self) -> list[Deletion]:
        """Those that steps 2 and 3 are still due for."""
        with self._database.reading() as connection:
            rows = connection.execute(select(deletion).where(deletion.c.completed_at.is_(None)).limit(MAX_PER_SWEEP))
            return [
                Deletion(
                    row.id, row.rule, row.study_instance_uid, row.series_instance_uid, row.patient_id,
                    row.sop_classes, tuple(row.keys),
                )
                for row in rows
            ]  # fmt: skip

    def remove_objects(self, item: Deletion) -> None:
        """Step 2. Raises: LedgerUnavailable: an object could not be removed, or is still there."""
        for key in item.keys:
            self._store.remove(key)
        for key in item.keys:
            self._store.check_absent(key)

    def complete(self, item: Deletion) -> None:
        """Step 3."""
        with self._database.writing() as connection:
            done = {"completed_at": self._database.now(connection), "keys": [], "patient_id": ""}
            connection.execute(update(deletion).where(deletion.c.id == item.id).values(done))

    def _due(self, keeping: Keeping) -> list[tuple[str, str, int]]:
        """Rule, series and the revision that was judged."""
        due: list[tuple[str, str, int]] = []
        with self._database.reading() as connection:
            now = self._database.now(connection)
            ended_at = _last_end(connection)
        times = {"delivered": (SOURCES, keeping.sources_s), "refused": (FAILED, keeping.failed_s)}
        for item in fates(self._database):
            rule, keep_s = times.get(item.fate, ("", None))
            end = max(item.last_received_at, ended_at.get(item.series_instance_uid, 0.0))
            if keep_s is not None and end < now - keep_s:
                due.append((rule, item.series_instance_uid, item.revision))
        if keeping.results_s is not None:
            due += [(RESULTS, uid, revision) for uid, revision in self._results_before(now - keeping.results_s)]
        return due

    def _results_before(self, before: float) -> list[tuple[str, int]]:
        """Series of results, all received before then, none of them with a delivery that is not done."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(series.c.series_instance_uid, series.c.revision, instance.c.job_id)
                .join(instance, instance.c.series_instance_uid == series.c.series_instance_uid)
                .where(instance.c.via == "result", series.c.last_received_at < before)
            ).all()
            made_by: dict[tuple[str, int], set[str]] = defaultdict(set)
            for row in rows:
                made_by[(row.series_instance_uid, row.revision)].add(row.job_id or "")
            return [key for key, jobs in made_by.items() if not _undelivered(connection, jobs)]

    def _begin(self, connection: Connection, rule: str, series_instance_uid: str, revision: int) -> bool:
        """Inside a transaction that holds the series' row, judged anew by what may have changed meanwhile."""
        row = connection.execute(
            select(series).where(series.c.series_instance_uid == series_instance_uid).with_for_update()
        ).one_or_none()
        if row is None or row.revision != revision or _has_open_job(connection, series_instance_uid):
            return False
        held = connection.execute(select(instance).where(instance.c.series_instance_uid == series_instance_uid)).all()
        if rule == RESULTS and _undelivered(connection, {item.job_id or "" for item in held}):
            return False
        connection.execute(insert(deletion).values(_record(rule, row, held, self._database.now(connection))))
        of_series = instance.c.series_instance_uid == series_instance_uid
        connection.execute(update(instance).where(of_series).values(predecessor_id=None))
        ours = [item.id for item in held]
        for start in range(0, len(ours), 500):  # an image's earlier content may lie in another series
            named = instance.c.predecessor_id.in_(ours[start : start + 500])
            connection.execute(update(instance).where(named).values(predecessor_id=None))
        connection.execute(delete(instance).where(of_series))
        # The series' jobs go too: the same series may come again, and equal keys are one job.
        connection.execute(delete(job).where(job.c.series_instance_uid == series_instance_uid))
        connection.execute(delete(series).where(series.c.series_instance_uid == series_instance_uid))
        return True


def being_deleted(database: Database, connection: Connection, series_instance_uids: Sequence[str]) -> set[str]:
    """Those of these series that are being deleted, or were a moment ago. Inside the receiving transaction."""
    settled = database.now(connection) - SETTLING_S
    recent = or_(deletion.c.completed_at.is_(None), deletion.c.completed_at > settled)
    found: set[str] = set()
    for start in range(0, len(series_instance_uids), 500):
        wanted = deletion.c.series_instance_uid.in_(list(series_instance_uids[start : start + 500]))
        found |= set(connection.execute(select(deletion.c.series_instance_uid).where(recent, wanted)).scalars())
    return found


def _last_end(connection: Connection) -> dict[str, float]:
    """When the last job of each series ended."""
    ends: dict[str, float] = {}
    for row in connection.execute(select(job.c.series_instance_uid, job.c.finished_at)):
        ends[row.series_instance_uid] = max(ends.get(row.series_instance_uid, 0.0), row.finished_at or 0.0)
    return ends


def _has_open_job(connection: Connection, series_instance_uid: str) -> bool:
    """Not ended, or given up and waiting for a person."""
    still = or_(job.c.state.not_in(ENDED), job.c.state == "dead")
    found = select(job.c.id).where(and_(job.c.series_instance_uid == series_instance_uid, still)).limit(1)
    return connection.execute(found).one_or_none() is not None


def _undelivered(connection: Connection, job_ids: set[str]) -> bool:
    """Whether a job that made a result, or one of its deliveries, is there and not done. A job that is gone went with
    its source, which went once everything was delivered."""
    concerned = and_(or_(job.c.id.in_(job_ids), job.c.parent_id.in_(job_ids)), job.c.state != "done")
    return connection.execute(select(job.c.id).where(concerned).limit(1)).one_or_none() is not None


def _record(rule: str, row: Any, held: Sequence[Any], now: float) -> dict[str, Any]:
    digests = sorted(item.digest for item in held)
    return {
        "id": str(uuid4()),
        "rule": rule,
        "study_instance_uid": row.study_instance_uid,
        "series_instance_uid": row.series_instance_uid,
        "patient_id": row.patient_id,
        "instances": len(held),
        "size_bytes": sum(item.size_bytes for item in held),
        "sop_classes": dict(Counter(item.sop_class_uid for item in held)),
        "digest": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        "keys": sorted({item.object_key for item in held}),
        "received_at": row.first_received_at,
        "begun_at": now,
        "completed_at": None,
    }
