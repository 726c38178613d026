"""The worker: looks at what has arrived, segments, delivers; until it is told to stop.

Three loops side by side, so that a slow destination holds up no segmentation and neither holds up deciding. A failure
ends one job's attempt, never a loop. Any number of workers may share a ledger: what one leaves unfinished, another goes
on with once its lease has lapsed. Told to stop, it gives its jobs back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from anyio import to_thread
from opentelemetry.trace import SpanKind, Tracer

from service.audit.trail import AuditTrail
from service.delivery.failure import DeliveryFailed
from service.errors import LedgerRefused, LedgerUnavailable, StorageFull, TagsError
from service.inference.engine import Engine
from service.ledger.jobs import Lease, LeaseLost
from service.ledger.ledger import Ledger
from service.ledger.trails import Trail
from service.rules.reloading import ReloadingRouting
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.request_log import describe_fault
from service.telemetry.stages import Stages
from service.telemetry.tracing import OFF, current_trace_id, span
from service.telemetry.work_log import WorkLog, WorkRecord
from service.work.deciding import Decider
from service.work.delivering import Deliverer
from service.work.holding import Progress, while_held
from service.work.retaining import Retainer
from service.work.segmenting import Segmenter

SEGMENTING, DELIVERING = ("series", "request"), ("delivery",)
LOOK_S = 1.0  # between looks at what is complete
IDLE_S = 0.5  # between looks for a job, unless something wakes the loop
SWEEP_S = 300.0  # between sweeps of kept requests


class Worker:
    """`run` until cancelled. Args: wake: set by whoever adds work in this process."""

    def __init__(
        self,
        ledger: Ledger,
        routing: ReloadingRouting,
        engines: Sequence[Engine],
        settings: Settings,
        *,
        metrics: Metrics,
        log: WorkLog,
        audit: AuditTrail,
        tracer: Tracer = OFF,
    ) -> None:
        self._ledger, self._routing, self._settings = ledger, routing, settings
        self._metrics, self._log, self._tracer = metrics, log, tracer
        self._segmenter = Segmenter(ledger, tuple(engines), settings, audit, tracer)
        self._deliverer = Deliverer(ledger, settings.dimse_ae_title, audit)
        self._decider = Decider(ledger, self._note_decision, max_attempts=settings.job_attempts, tracer=tracer)
        self._retainer = Retainer(ledger, settings, audit, lambda rule: metrics.deletions.labels(rule).inc())
        self._owner = f"{socket.gethostname()[:40]}:{os.getpid()}"
        self._wakes: list[asyncio.Event] = []

    def wake(self) -> None:
        """Something was added. From the event loop only."""
        for event in self._wakes:
            event.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look())
            group.create_task(self._sweep())
            group.create_task(self._serve(SEGMENTING))
            for _ in range(self._settings.delivery_workers):
                group.create_task(self._serve(DELIVERING))

    async def _look(self) -> None:
        while True:
            with self._survived("look"):
                if await to_thread.run_sync(self._decider.look, self._routing.current):
                    self.wake()
            await asyncio.sleep(LOOK_S)

    async def _sweep(self) -> None:
        while True:
            with self._survived("sweep"):
                await to_thread.run_sync(self._remove_expired)
            with self._survived("retention"):
                await to_thread.run_sync(self._retainer.sweep)
            await asyncio.sleep(SWEEP_S)

    def _remove_expired(self) -> None:
        for view in self._ledger.jobs.expired_requests(self._settings.result_keep_s):
            forget_request(self._ledger, view.id)
        self._ledger.staging.remove_stale()

    async def _serve(self, kinds: Sequence[str]) -> None:
        event = asyncio.Event()
        self._wakes.append(event)
        while True:
            lease = None
            with self._survived("claim"):
                lease = await to_thread.run_sync(self._claim, kinds)
            if lease is not None:
                await self._attempt(lease)
                continue
            event.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), IDLE_S)

    def _claim(self, kinds: Sequence[str]) -> Lease | None:
        closed = self._ledger.circuits.open_destinations() if kinds == DELIVERING else []
        return self._ledger.jobs.claim(self._owner, kinds=kinds, closed_lanes=closed)

    async def _attempt(self, lease: Lease) -> None:
        """One attempt, whatever becomes of it. Raises: asyncio.CancelledError only."""
        record = WorkRecord(lease.job_id, lease.kind, lease.attempts, request_id=lease.trail.request_id)
        known: dict[str, str | int] = {
            "tags.job_id": lease.job_id,
            "tags.kind": lease.kind,
            "tags.attempt": lease.attempts,
        }
        known |= {"tags.request_id": lease.trail.request_id}
        parent = lease.trail.traceparent
        with span(self._tracer, "job", kind=SpanKind.CONSUMER, parent=parent, attributes=known) as current:
            record.trace_id = current_trace_id()
            await self._attempt_noted(lease, record)
            current.set_attributes({"tags.outcome": record.outcome, "error.type": record.slug})
        self.wake()

    async def _attempt_noted(self, lease: Lease, record: WorkRecord) -> None:
        jobs, progress = self._ledger.jobs, Progress()
        try:
            seconds = await while_held(
                jobs, lease, progress, self._work(lease, progress.enter), lease_s=self._settings.job_lease_s
            )
            record.outcome, record.stages_ms = "done", {name: round(1000 * s, 1) for name, s in seconds.items()}
            self._metrics.observe_stages(seconds)
        except asyncio.CancelledError:
            with contextlib.suppress(LeaseLost, TagsError):
                await asyncio.shield(to_thread.run_sync(jobs.release, lease))
            raise
        except LeaseLost:
            record.outcome = "lost"
            with contextlib.suppress(TagsError):
                await to_thread.run_sync(jobs.acknowledge_cancel, lease)
        except Exception as error:
            record.outcome, record.slug, record.fault = await self._fail(lease, error)
        finally:
            self._metrics.attempts.labels(lease.kind, record.outcome or "released", record.slug).inc()
            self._log.write(record)

    async def _work(self, lease: Lease, enter: Callable[[str], None]) -> dict[str, float]:
        if lease.kind == "series":
            return await self._segmenter.run_series(lease, enter)
        if lease.kind == "request":
            return await self._segmenter.run_request(lease, enter)
        stages = Stages(on_enter=enter, tracer=self._tracer)
        with stages("deliver"):
            await to_thread.run_sync(self._deliverer.run, lease, self._routing.current, enter)
        return stages.seconds

    def _note_decision(self, reason: str, trail: Trail) -> None:
        self._metrics.decisions.labels(reason).inc()
        trace_id = trail.traceparent[3:35]
        self._log.write(WorkRecord("", "decision", 0, reason, request_id=trail.request_id, trace_id=trace_id))

    async def _fail(self, lease: Lease, error: Exception) -> tuple[str, str, str]:
        """Record a failed attempt. Returns: outcome, slug, fault for the log."""
        jobs, fault = self._ledger.jobs, ""
        if isinstance(error, DeliveryFailed):
            reason, detail, retried = error.reason, error.detail, True
        elif isinstance(error, TagsError):
            reason, detail = error.slug, error.detail
            retried = error.status >= 500 or isinstance(error, LedgerUnavailable | StorageFull)
        else:
            fault = describe_fault(error)
            reason, detail, retried = "internal-error", fault, True
        try:
            if retried:
                await to_thread.run_sync(partial(jobs.retry, lease, reason=reason, detail=detail))
            else:
                await to_thread.run_sync(partial(jobs.end, lease, state="refused", reason=reason, detail=detail))
        except (LeaseLost, LedgerRefused):
            return "lost", reason, fault  # the lease lapses, and the job is begun anew
        return ("retried" if retried else "refused"), reason, fault

    @contextlib.contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        """A loop outlives whatever goes wrong in one of its turns; the fault is logged by its code lines."""
        try:
            yield
        except Exception as error:
            slug = error.slug if isinstance(error, TagsError) else "internal-error"
            self._metrics.attempts.labels(what, "failed", slug).inc()
            self._log.write(WorkRecord("", what, 0, outcome="failed", slug=slug, fault=describe_fault(error)))


def forget_request(ledger: Ledger, job_id: str) -> None:
    """Remove what an ended request left in the object store. Blocking."""
    view = ledger.jobs.get(job_id)
    plan = ledger.jobs.plan_of(job_id)
    keys = [*plan.get("files", ()), plan.get("organ_mask"), plan.get("mask"), view.output.get("key")]
    for key in keys:
        if key:
            ledger.store.remove(key)
    ledger.jobs.forget(job_id)
