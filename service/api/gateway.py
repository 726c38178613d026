"""What the routes share: settings, engine, admission, readiness, metrics, log. Built once in `service.app`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from service.api.admission import Admission
from service.api.readiness import Readiness
from service.inference.engine import Engine
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.request_log import RequestLog


@dataclass(frozen=True, eq=False)
class Gateway:
    """The collaborators of one running app."""

    settings: Settings
    engine: Engine
    admission: Admission
    readiness: Readiness
    metrics: Metrics
    log: RequestLog
    others: tuple[Engine, ...] = ()  # of further bundles

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The default one first."""
        return (self.engine, *self.others)


async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


SharedGateway = Annotated[Gateway, Depends(_gateway)]
