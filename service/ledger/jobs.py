"""The job table: work that any replica may claim under a lease, and that ends once.

    waiting --claim--> running --finish--> done | refused | cancelled
       ^                  |
       |<- retry, lapse --+--too often--> dead --replay--> waiting

A claim gives a `Lease` with a fencing token. A lapsed lease lets another claim the job with a higher token; what the
earlier holder then writes is refused (`LeaseLost`), so that a job's outcome is recorded once however often it was
begun. `refused` is the input's own fault and is not retried; `dead` waits for a person. Both can be replayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, and_, delete, func, or_, select, update

from service.errors import JobNotReplayable, UnknownJob
from service.ledger.database import Database
from service.ledger.tables import job, step
from service.ledger.trails import Trail, leave_with_jobs, trail_of_job

BACKOFF_S = (2.0, 5.0, 15.0, 60.0, 300.0, 900.0)  # after the first failure, the second, ...; then the last again
ENDED = ("done", "refused", "dead", "cancelled")
REPLAYABLE = ("refused", "dead", "cancelled")
ALL_KINDS = ("series", "request", "delivery")


class Priority(IntEnum):
    """Lower is sooner."""

    INTERACTIVE = 0
    URGENT = 1
    ROUTINE = 2


class LeaseLost(Exception):
    """Another worker holds the job now, or it was cancelled: stop, write nothing."""


@dataclass(frozen=True)
class NewJob:
    """Work to be done. Equal keys are the same job."""

    kind: str
    key: str
    plan: dict[str, Any] = field(repr=False)
    priority: Priority = Priority.ROUTINE
    lane: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    series_revision: int = 0
    parent_id: str | None = None
    predecessor_id: str | None = None
    max_attempts: int = 10
    id: str = field(default_factory=lambda: str(uuid4()))
    trail: Trail = Trail()


@dataclass(frozen=True)
class Lease:
    """The right to work on a job until it lapses."""

    job_id: str
    token: int
    kind: str
    plan: dict[str, Any] = field(repr=False)
    attempts: int
    max_attempts: int
    study_instance_uid: str
    series_instance_uid: str
    series_revision: int
    parent_id: str | None
    predecessor_id: str | None
    steps: dict[str, Any] = field(repr=False)
    trail: Trail = Trail()


@dataclass(frozen=True)
class JobView:
    """A job as it is shown. `reason` is a slug, `detail` safe text."""

    id: str
    kind: str
    lane: str
    priority: str
    state: str
    stage: str
    percent: int
    reason: str
    detail: str
    attempts: int
    study_instance_uid: str
    series_instance_uid: str
    series_revision: int
    parent_id: str | None
    predecessor_id: str | None
    rule: str
    requested_by: str
    created_at: float
    updated_at: float
    finished_at: float | None
    output: dict[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Jobs:
    """The table behind a database. Blocking; threads may share it."""

    def __init__(self, database: Database, *, lease_s: float) -> None:
        self._database, self._lease_s = database, lease_s

    def add(self, new: NewJob) -> str:
        """Enqueue. Returns: the job's id, the earlier one's where the key is there already."""
        with self._database.writing() as connection:
            enqueue(self._database, connection, [new])
            return str(connection.execute(select(job.c.id).where(job.c.key == new.key)).scalar_one())

    def claim(self, owner: str, *, kinds: Iterable[str] = ALL_KINDS, closed_lanes: Iterable[str] = ()) -> Lease | None:
        """The next job, most urgent first, oldest first; None when nothing is due.

        A lapsed job that was begun max_attempts times is declared dead instead: something in it kills workers.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            due = or_(
                and_(job.c.state == "waiting", job.c.not_before <= now),
                and_(job.c.state == "running", job.c.lease_until < now),
            )
            statement = (
                select(job)
                .where(due, job.c.kind.in_(list(kinds)), job.c.lane.not_in(list(closed_lanes)))
                .order_by(job.c.priority, job.c.not_before, job.c.created_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            while (row := connection.execute(statement).one_or_none()) is not None:
                if row.cancel_requested:
                    _end(connection, row.id, now, state="cancelled", reason="cancelled", detail="")
                elif row.attempts >= row.max_attempts:
                    detail = f"begun {row.attempts} times, and the worker died each time"
                    _end(connection, row.id, now, state="dead", reason="worker-lost", detail=detail)
                else:
                    return self._lease(connection, row, owner, now)
            return None

    def renew(self, lease: Lease, *, stage: str, percent: int) -> None:
        """Hold on, and say how far it is. Raises: LeaseLost."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            values = {"stage": stage, "percent": percent, "lease_until": now + self._lease_s, "updated_at": now}
            held = _held(lease) & ~job.c.cancel_requested
            if connection.execute(update(job).where(held).values(values)).rowcount != 1:
                raise LeaseLost

    def keep_step(self, lease: Lease, name: str, output: Mapping[str, Any]) -> None:
        """Remember a step's outcome, for whoever goes on. Raises: LeaseLost."""
        with self._database.writing() as connection:
            fence(connection, lease)
            self._database.insert_new(
                connection, step, [{"job_id": lease.job_id, "name": name, "output": dict(output)}]
            )

    def retry(self, lease: Lease, *, reason: str, detail: str) -> None:
        """Put back after a failure, later each time; dead after max_attempts. Raises: LeaseLost."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            fence(connection, lease)
            if lease.attempts >= lease.max_attempts:
                _end(connection, lease.job_id, now, state="dead", reason=reason, detail=detail)
                return
            wait_s = BACKOFF_S[min(lease.attempts, len(BACKOFF_S)) - 1]
            values = {"state": "waiting", "reason": reason, "detail": detail, "not_before": now + wait_s}
            values |= {"owner": "", "stage": "", "percent": 0, "updated_at": now}
            connection.execute(update(job).where(job.c.id == lease.job_id).values(values))

    def release(self, lease: Lease) -> None:
        """Put back unharmed, as a worker does that is told to stop. Raises: LeaseLost."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            fence(connection, lease)
            values = {"state": "waiting", "owner": "", "stage": "", "percent": 0, "updated_at": now}
            values |= {"attempts": job.c.attempts - 1}
            connection.execute(update(job).where(job.c.id == lease.job_id).values(values))

    def end(
        self, lease: Lease, *, state: str, reason: str = "", detail: str = "", output: Mapping[str, Any] | None = None
    ) -> None:
        """Record the end. Raises: LeaseLost."""
        values: dict[str, Any] = {"reason": reason, "detail": detail, "output": dict(output or {})}
        with self._database.writing() as connection:
            fence(connection, lease)
            _end(connection, lease.job_id, self._database.now(connection), state=state, **values)

    def acknowledge_cancel(self, lease: Lease) -> None:
        """End a job whose cancelling made its worker stop; nothing where that was not the reason."""
        with self._database.writing() as connection:
            if connection.execute(select(job.c.id).where(_held(lease), job.c.cancel_requested)).one_or_none():
                now = self._database.now(connection)
                _end(connection, lease.job_id, now, state="cancelled", reason="cancelled", detail="")

    def replay(self, job_id: str) -> None:
        """Let a failed job begin anew. Raises: UnknownJob, JobNotReplayable."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            values = {"state": "waiting", "attempts": 0, "not_before": now, "cancel_requested": False, "percent": 0}
            values |= {"stage": "", "reason": "", "detail": "", "finished_at": None, "updated_at": now}
            replayable = and_(job.c.id == job_id, job.c.state.in_(REPLAYABLE), job.c.reason != "expired")
            if connection.execute(update(job).where(replayable).values(values)).rowcount != 1:
                view = _view(connection, job_id)
                raise JobNotReplayable(f"the job is {view.state}; only {', '.join(REPLAYABLE)} jobs can be replayed")

    def cancel(self, job_id: str) -> None:
        """End it now if it waits, soon if it runs; an ended one stays as it is. Raises: UnknownJob."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            waiting = and_(job.c.id == job_id, job.c.state == "waiting")
            values: dict[str, Any] = {
                "state": "cancelled",
                "reason": "cancelled",
                "finished_at": now,
                "updated_at": now,
            }
            if connection.execute(update(job).where(waiting).values(values)).rowcount == 0:
                _view(connection, job_id)
                running = and_(job.c.id == job_id, job.c.state == "running")
                connection.execute(update(job).where(running).values(cancel_requested=True, updated_at=now))

    def get(self, job_id: str) -> JobView:
        """Raises: UnknownJob."""
        with self._database.reading() as connection:
            return _view(connection, job_id)

    def listed(
        self, *, states: Sequence[str] = (), changed_since: float = 0.0, limit: int = 100, offset: int = 0
    ) -> list[JobView]:
        """The latest changed first."""
        statement = select(job).where(job.c.updated_at >= changed_since)
        if states:
            statement = statement.where(job.c.state.in_(states))
        statement = statement.order_by(job.c.updated_at.desc(), job.c.id).limit(limit).offset(offset)
        with self._database.reading() as connection:
            return [shown(row) for row in connection.execute(statement)]

    def expired_requests(self, older_than_s: float) -> list[JobView]:
        """Ended requests whose objects are still kept."""
        with self._database.reading() as connection:
            before = self._database.now(connection) - older_than_s
            ended = and_(job.c.kind == "request", job.c.state.in_(ENDED), job.c.finished_at < before)
            kept = job.c.reason != "expired"
            return [shown(row) for row in connection.execute(select(job).where(ended, kept).limit(100))]

    def plan_of(self, job_id: str) -> dict[str, Any]:
        """Raises: UnknownJob."""
        with self._database.reading() as connection:
            plan = connection.execute(select(job.c.plan).where(job.c.id == job_id)).scalar()
        if plan is None:
            raise UnknownJob
        return dict(plan)

    def forget(self, job_id: str) -> None:
        """An ended request's objects are gone: neither its result nor a replay can be had any more."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            values: dict[str, Any] = {"state": "cancelled", "reason": "expired", "output": {}, "updated_at": now}
            values["plan"] = {"requested_by": _view(connection, job_id).requested_by}  # prompts are free text
            ended = and_(job.c.id == job_id, job.c.kind == "request", job.c.state.in_(ENDED))
            connection.execute(update(job).where(ended).values(values))

    def remove_request(self, job_id: str) -> None:
        """Strike out a forgotten request, for a probe of our own. One whose objects are still there stays, and is
        forgotten in its time."""
        with self._database.writing() as connection:
            forgotten = and_(job.c.id == job_id, job.c.kind == "request", job.c.reason == "expired")
            connection.execute(delete(job).where(forgotten))

    def counts(self) -> dict[tuple[str, str, str], int]:
        """By kind, state and priority."""
        statement = select(job.c.kind, job.c.state, job.c.priority, func.count()).group_by(
            job.c.kind, job.c.state, job.c.priority
        )
        with self._database.reading() as connection:
            rows = connection.execute(statement).all()
        return {(kind, state, Priority(priority).name.lower()): count for kind, state, priority, count in rows}

    def oldest_waiting_s(self) -> float:
        """How long the job that is due longest has been due; 0 without one."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            due = and_(job.c.state == "waiting", job.c.not_before <= now)
            since = connection.execute(select(func.min(job.c.not_before)).where(due)).scalar()
        return max(0.0, now - since) if since else 0.0

    def _lease(self, connection: Connection, row: Row[Any], owner: str, now: float) -> Lease:
        values = {"state": "running", "owner": owner, "token": row.token + 1, "attempts": row.attempts + 1}
        values |= {"lease_until": now + self._lease_s, "stage": "claimed", "percent": 0, "updated_at": now}
        connection.execute(update(job).where(job.c.id == row.id).values(values))
        steps = connection.execute(select(step).where(step.c.job_id == row.id)).all()
        return Lease(
            job_id=row.id,
            token=row.token + 1,
            kind=row.kind,
            plan=row.plan,
            attempts=row.attempts + 1,
            max_attempts=row.max_attempts,
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            series_revision=row.series_revision,
            parent_id=row.parent_id,
            predecessor_id=row.predecessor_id,
            steps={kept.name: kept.output for kept in steps},
            trail=trail_of_job(connection, row.id),
        )


def enqueue(database: Database, connection: Connection, new: Sequence[NewJob]) -> None:
    """Inside the caller's transaction. Jobs whose keys are there already stay as they are."""
    now = database.now(connection)
    database.insert_new(connection, job, [_row(item, now) for item in new])
    leave_with_jobs(connection, {item.id: item.trail for item in new if item.trail.request_id})


def fence(connection: Connection, lease: Lease) -> None:
    """Hold the job's row until the transaction ends. Raises: LeaseLost."""
    held = select(job.c.id).where(_held(lease)).with_for_update()
    if connection.execute(held).one_or_none() is None:
        raise LeaseLost


def finish(
    connection: Connection, lease: Lease, now: float, *, reason: str = "", detail: str = "", output: dict[str, Any]
) -> None:
    """Record a done job inside the caller's transaction, which has fenced it."""
    _end(connection, lease.job_id, now, state="done", reason=reason, detail=detail, output=output)


def _held(lease: Lease) -> Any:
    return and_(job.c.id == lease.job_id, job.c.token == lease.token, job.c.state == "running")


def _end(connection: Connection, job_id: str, now: float, *, state: str, **values: Any) -> None:
    ended = {"state": state, "finished_at": now, "updated_at": now, "owner": "", **values}
    if state == "done":
        ended |= {"percent": 100, "stage": "done"}
    connection.execute(update(job).where(job.c.id == job_id).values(ended))


def _row(new: NewJob, now: float) -> dict[str, Any]:
    return {
        "id": new.id,
        "kind": new.kind,
        "key": new.key,
        "lane": new.lane,
        "priority": int(new.priority),
        "state": "waiting",
        "reason": "",
        "detail": "",
        "plan": new.plan,
        "output": {},
        "study_instance_uid": new.study_instance_uid,
        "series_instance_uid": new.series_instance_uid,
        "series_revision": new.series_revision,
        "parent_id": new.parent_id,
        "predecessor_id": new.predecessor_id,
        "stage": "",
        "percent": 0,
        "attempts": 0,
        "max_attempts": new.max_attempts,
        "not_before": now,
        "owner": "",
        "lease_until": 0.0,
        "token": 0,
        "cancel_requested": False,
        "created_at": now,
        "updated_at": now,
        "finished_at": None,
    }


def _view(connection: Connection, job_id: str) -> JobView:
    row = connection.execute(select(job).where(job.c.id == job_id)).one_or_none()
    if row is None:
        raise UnknownJob
    return shown(row)


def shown(row: Row[Any]) -> JobView:
    return JobView(
        id=row.id,
        kind=row.kind,
        lane=row.lane,
        priority=Priority(row.priority).name.lower(),
        state=row.state,
        stage=row.stage,
        percent=row.percent,
        reason=row.reason,
        detail=row.detail,
        attempts=row.attempts,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        series_revision=row.series_revision,
        parent_id=row.parent_id,
        predecessor_id=row.predecessor_id,
        rule=str(row.plan.get("rule", "")),
        requested_by=str(row.plan.get("requested_by", "")),
        created_at=row.created_at,
        updated_at=row.updated_at,
        finished_at=row.finished_at,
        output=row.output,
    )
