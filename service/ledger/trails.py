"""Trails: what ties the log lines and spans of one thing together, from its receipt to its delivery.

A received series keeps the trail of its latest receipt, a job the trail of what caused it. Random ids of ours only;
they go with the series or job whose they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Table, delete, insert, select

from service.ledger.tables import job, job_trail, series_trail


@dataclass(frozen=True)
class Trail:
    """`request_id`: of the receipt, as its log line and answer give it. `traceparent`: W3C Trace Context of the span
    that left it here; "" without tracing."""

    request_id: str = ""
    traceparent: str = ""


def leave_with_series(connection: Connection, trails: Mapping[str, Trail]) -> None:
    """Replace the trails of series, whose rows the caller's transaction holds."""
    if trails:
        connection.execute(delete(series_trail).where(series_trail.c.series_instance_uid.in_(sorted(trails))))
        rows = [
            {"series_instance_uid": uid, "request_id": trail.request_id, "traceparent": trail.traceparent}
            for uid, trail in sorted(trails.items())
        ]
        connection.execute(insert(series_trail), rows)


def leave_with_jobs(connection: Connection, trails: Mapping[str, Trail]) -> None:
    """Give new jobs their trails. An id that has become no job, since an equal one is there, is passed over."""
    if trails:
        there = connection.execute(select(job.c.id).where(job.c.id.in_(sorted(trails)))).scalars()
        rows = [
            {"job_id": id, "request_id": trails[id].request_id, "traceparent": trails[id].traceparent} for id in there
        ]
        if rows:
            connection.execute(insert(job_trail), rows)


def trail_of_series(connection: Connection, series_instance_uid: str) -> Trail:
    """An empty one for a series that has none."""
    return _read(connection, series_trail, series_trail.c.series_instance_uid == series_instance_uid)


def trail_of_job(connection: Connection, job_id: str) -> Trail:
    """An empty one for a job that has none."""
    return _read(connection, job_trail, job_trail.c.job_id == job_id)


def _read(connection: Connection, table: Table, wanted: object) -> Trail:
    found = select(table.c.request_id, table.c.traceparent).where(wanted)  # type: ignore[arg-type]
    row = connection.execute(found).one_or_none()
    return Trail(row.request_id, row.traceparent) if row else Trail()
