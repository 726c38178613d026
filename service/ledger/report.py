"""What became of everything that was received: delivered, refused with a reason, or open. Nothing is left out.

A series' fate is its images' fate. It is delivered when its latest revision's job is done and so are all of that job's
deliveries; refused when a rule, or the segmentation itself, said why not; open otherwise: still arriving, waiting,
running, or given up and waiting for a person. An image whose content was replaced is refused as "replaced".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, select

from service.ledger.database import Database
from service.ledger.jobs import JobView, shown
from service.ledger.tables import deletion, instance, job, series

Fate = Literal["delivered", "refused", "open"]


@dataclass(frozen=True)
class SeriesFate:
    """One received series. `reason`: a slug; for an open one, what it waits for."""

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    instances: int
    revision: int
    last_received_at: float
    fate: Fate
    reason: str
    job_id: str | None


@dataclass(frozen=True)
class Deleted:
    """What one retention rule has deleted. `unfinished`: series whose objects are not all gone yet."""

    rule: str
    series: int
    instances: int
    size_bytes: int
    unfinished: int


@dataclass(frozen=True)
class Report:
    """Images by fate and reason, and the series that are open."""

    instances: int
    by_fate: dict[tuple[str, str], int]
    open: tuple[SeriesFate, ...]
    deleted: tuple[Deleted, ...] = ()  # by retention rules; no longer among the instances

    @property
    def balanced(self) -> bool:
        """Whether every received image is in exactly one row."""
        return sum(self.by_fate.values()) == self.instances


def fates(database: Database, *, since: float = 0.0, limit: int | None = None) -> list[SeriesFate]:
    """Of received series, the latest first."""
    received = select(instance.c.series_instance_uid).where(instance.c.via != "result")
    statement = (
        select(series)
        .where(series.c.last_received_at >= since, series.c.series_instance_uid.in_(received))
        .order_by(series.c.last_received_at.desc(), series.c.series_instance_uid)
    )
    with database.reading() as connection:
        rows = connection.execute(statement if limit is None else statement.limit(limit)).all()
        uids = [row.series_instance_uid for row in rows] if limit is not None else None
        concerned: ColumnElement[bool] = job.c.kind.in_(("series", "delivery"))
        if uids is not None:
            concerned = and_(concerned, job.c.series_instance_uid.in_(uids))
        jobs = defaultdict(list)
        for found in connection.execute(select(job).where(concerned).order_by(job.c.created_at)):
            jobs[found.series_instance_uid].append(shown(found))
    return [_fate(row, jobs[row.series_instance_uid]) for row in rows]


def reconcile(database: Database, *, since: float = 0.0) -> Report:
    """Blocking. Args: since: of series changed since then, seconds since the epoch."""
    found = fates(database, since=since)
    by_fate: Counter[tuple[str, str]] = Counter()
    for item in found:
        by_fate[(item.fate, item.reason)] += item.instances
    concerned = select(series.c.series_instance_uid).where(series.c.last_received_at >= since)
    received = and_(instance.c.via != "result", instance.c.series_instance_uid.in_(concerned))
    with database.reading() as connection:
        count = connection.execute(select(func.count()).select_from(instance).where(received)).scalar_one()
        replaced = connection.execute(
            select(func.count()).select_from(instance).where(received, ~instance.c.current)
        ).scalar_one()
    if replaced:
        by_fate[("refused", "replaced")] += replaced
    still_open = tuple(item for item in found if item.fate == "open")
    return Report(count, dict(by_fate), still_open, tuple(deletions(database, since=since)))


def deletions(database: Database, *, since: float = 0.0) -> list[Deleted]:
    """By rule, of those begun since then."""
    columns = (func.count(), func.sum(deletion.c.instances), func.sum(deletion.c.size_bytes))
    statement = (
        select(deletion.c.rule, *columns, func.count() - func.count(deletion.c.completed_at))
        .where(deletion.c.begun_at >= since)
        .group_by(deletion.c.rule)
        .order_by(deletion.c.rule)
    )
    with database.reading() as connection:
        return [
            Deleted(rule, count, int(instances), int(size_bytes), unfinished)
            for rule, count, instances, size_bytes, unfinished in connection.execute(statement)
        ]


def _fate(row: Any, jobs: Sequence[JobView]) -> SeriesFate:
    fate, reason, job_id = _judged(row, jobs)
    return SeriesFate(
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        modality=row.modality,
        instances=row.instances,
        revision=row.revision,
        last_received_at=row.last_received_at,
        fate=fate,
        reason=reason,
        job_id=job_id,
    )


def _judged(row: Any, jobs: Sequence[JobView]) -> tuple[Fate, str, str | None]:
    if row.decided_revision < row.revision:
        return "open", "arriving", None
    segmentations = [item for item in jobs if item.kind == "series" and item.series_revision == row.revision]
    if not segmentations:
        return ("open", "no-job", None) if row.decision == "matched" else ("refused", row.reason, None)
    latest = segmentations[-1]
    if latest.state in ("waiting", "running"):
        return "open", latest.state, latest.id
    if latest.state == "dead":
        return "open", f"given-up: {latest.reason}", latest.id
    if latest.state != "done":
        return "refused", latest.reason, latest.id
    deliveries = [item for item in jobs if item.parent_id == latest.id]
    if not deliveries:
        return "refused", latest.reason or "no-result", latest.id
    for item in deliveries:
        if item.state == "dead":
            return "open", f"given-up: {item.reason}", item.id
        if item.state in ("waiting", "running"):
            return "open", "delivering", item.id
        if item.state != "done":
            return "refused", item.reason, item.id
    return "delivered", "", latest.id
