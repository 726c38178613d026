"""What the routes share: settings, engine, admission, readiness, metrics, log, ledger. Built once in `service.app`."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from opentelemetry.trace import Tracer
from starlette.requests import Request

from service.access.authenticator import Authenticator
from service.api.admission import Admission
from service.api.places import Places
from service.api.readiness import Readiness
from service.audit.trail import AuditTrail
from service.inference.engine import Engine
from service.ledger.ledger import Ledger
from service.ledger.search import Search
from service.rules.reloading import ReloadingRouting
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.request_log import RequestLog
from service.telemetry.tracing import OFF
from service.work.worker import Worker


@dataclass(frozen=True, eq=False)
class Gateway:
    """The collaborators of one running app."""

    settings: Settings
    engine: Engine
    admission: Admission
    readiness: Readiness
    metrics: Metrics
    log: RequestLog
    ledger: Ledger
    routing: ReloadingRouting
    receiving: Places
    checking: Executor  # of what STOW-RS receives
    worker: Worker | None  # of this process, if it has one
    authenticator: Authenticator
    audit: AuditTrail
    others: tuple[Engine, ...] = ()  # of further bundles
    tracer: Tracer = OFF

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The default one first."""
        return (self.engine, *self.others)

    @property
    def search(self) -> Search:
        return Search(self.ledger.database)

    def work_arrived(self) -> None:
        """Let this process's worker look at once. Others look within moments anyway."""
        if self.worker:
            self.worker.wake()


async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


SharedGateway = Annotated[Gateway, Depends(_gateway)]
