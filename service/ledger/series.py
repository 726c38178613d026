"""Series of the ledger: when one is complete, and what the rules made of it.

A series is due once its images have not changed for the quiet time, or are as many as its headers expect, or its sender
has said so. A decision belongs to one revision of it and is made once, whichever replica makes it; a late image makes
a new revision, which is decided anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from service.errors import UnknownObject
from service.ledger.database import Database
from service.ledger.jobs import NewJob, enqueue
from service.ledger.tables import instance, job, series
from service.ledger.trails import Trail, trail_of_series

MATCHED, REFUSED = "matched", "refused"
MAX_DUE = 64  # per look; the next look takes the rest


@dataclass(frozen=True)
class HeldSeries:
    """A series as the rules see it."""

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    instances: int
    revision: int
    last_received_at: float


@dataclass(frozen=True)
class HeldInstance:
    """One current image or object."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    object_key: str
    size_bytes: int
    via: str
    calling_ae: str
    called_ae: str
    job_id: str | None


class SeriesTable:
    """Blocking; threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, quiet_s: float) -> list[HeldSeries]:
        """Complete series that are not decided yet, longest waiting first."""
        with self._database.reading() as connection:
            quiet = series.c.last_received_at <= self._database.now(connection) - quiet_s
            all_there = series.c.expected_instances <= series.c.instances
            noticed = series.c.noticed_revision == series.c.revision
            undecided = and_(series.c.decided_revision < series.c.revision, series.c.instances > 0)
            statement = select(series).where(undecided, or_(quiet, all_there, noticed))
            rows = connection.execute(statement.order_by(series.c.last_received_at).limit(MAX_DUE))
            return [_held(row) for row in rows]

    def of_study(self, study_instance_uid: str) -> list[HeldSeries]:
        with self._database.reading() as connection:
            of_study = select(series).where(series.c.study_instance_uid == study_instance_uid)
            return [_held(row) for row in connection.execute(of_study.order_by(series.c.series_instance_uid))]

    def study_is_quiet(self, study_instance_uid: str, quiet_s: float) -> bool:
        """Whether nothing of the study has arrived for so long: a rule that chooses among its series waits for that."""
        with self._database.reading() as connection:
            recent = series.c.last_received_at > self._database.now(connection) - quiet_s
            found = select(series.c.series_instance_uid).where(
                series.c.study_instance_uid == study_instance_uid, recent
            )
            return connection.execute(found.limit(1)).one_or_none() is None

    def revision_of(self, series_instance_uid: str) -> int:
        """0 for a series that is not held."""
        with self._database.reading() as connection:
            found = select(series.c.revision).where(series.c.series_instance_uid == series_instance_uid)
            return int(connection.execute(found).scalar() or 0)

    def trail_of(self, series_instance_uid: str) -> Trail:
        """Of its latest receipt."""
        with self._database.reading() as connection:
            return trail_of_series(connection, series_instance_uid)

    def instances(
        self, *, series_instance_uid: str | None = None, sop_instance_uids: Sequence[str] = ()
    ) -> list[HeldInstance]:
        """Current instances of a series, or by their UIDs."""
        wanted = (
            instance.c.series_instance_uid == series_instance_uid
            if series_instance_uid
            else instance.c.sop_instance_uid.in_(list(sop_instance_uids))
        )
        columns = [instance.c[name] for name in HeldInstance.__dataclass_fields__]
        with self._database.reading() as connection:
            rows = connection.execute(select(*columns).where(wanted, instance.c.current).order_by(instance.c.id))
            return [HeldInstance(**row._mapping) for row in rows]

    def patient_id(self, study_instance_uid: str) -> str:
        """As the study's images say it; "" for a study that is not held."""
        with self._database.reading() as connection:
            found = select(series.c.patient_id).where(series.c.study_instance_uid == study_instance_uid)
            return str(connection.execute(found.order_by(series.c.first_received_at).limit(1)).scalar() or "")

    def notice_complete(self, study_instance_uid: str, series_instance_uid: str | None = None) -> int:
        """The sender's word that nothing more follows. Returns: series concerned. Raises: UnknownObject."""
        concerned = series.c.study_instance_uid == study_instance_uid
        if series_instance_uid:
            concerned &= series.c.series_instance_uid == series_instance_uid
        with self._database.writing() as connection:
            result = connection.execute(update(series).where(concerned).values(noticed_revision=series.c.revision))
            if not result.rowcount:
                raise UnknownObject
            return result.rowcount

    def decide(self, held: HeldSeries, *, decision: str, reason: str, jobs: Sequence[NewJob]) -> bool:
        """Record what becomes of this revision, and enqueue its jobs. Returns: False when it was decided already."""
        with self._database.writing() as connection:
            undecided = and_(
                series.c.series_instance_uid == held.series_instance_uid,
                series.c.revision == held.revision,
                series.c.decided_revision < held.revision,
            )
            values = {"decided_revision": held.revision, "decision": decision, "reason": reason}
            if connection.execute(update(series).where(undecided).values(values)).rowcount != 1:
                return False
            _supersede(self._database, connection, held)
            enqueue(self._database, connection, jobs)
            return True

    def previous_job(self, series_instance_uid: str, rule: str) -> str | None:
        """The latest job of an earlier revision by the same rule: what a new one names as its predecessor."""
        with self._database.reading() as connection:
            of_series = and_(job.c.series_instance_uid == series_instance_uid, job.c.kind == "series")
            rows = connection.execute(select(job.c.id, job.c.plan).where(of_series).order_by(job.c.created_at.desc()))
            return next((row.id for row in rows if row.plan.get("rule") == rule), None)


def _supersede(database: Database, connection: Connection, held: HeldSeries) -> None:
    """Jobs of earlier revisions that nobody has begun would only tell of an incomplete series."""
    now = database.now(connection)
    earlier = and_(
        job.c.series_instance_uid == held.series_instance_uid,
        job.c.kind == "series",
        job.c.state == "waiting",
        job.c.series_revision < held.revision,
    )
    values: dict[str, Any] = {"state": "cancelled", "reason": "superseded", "finished_at": now, "updated_at": now}
    connection.execute(update(job).where(earlier).values(values))


def _held(row: Any) -> HeldSeries:
    return HeldSeries(**{name: row._mapping[name] for name in HeldSeries.__dataclass_fields__})
