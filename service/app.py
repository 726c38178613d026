"""The composition root: settings in, app out. Opens engine and ledger at the start, closes them at the end.

Importing this module builds nothing. `uvicorn service.app:app_from_environment --factory` serves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, TextIO

from anyio import to_thread
from fastapi import FastAPI

from contract.bundle import Bundle, BundleInvalid, load_bundle
from service.api import dicomweb_query, dicomweb_retrieve, dicomweb_store, error_page, health, jobs, segment
from service.api import ledger as ledger_api
from service.api.admission import Admission
from service.api.boundary import RequestBoundary
from service.api.gateway import Gateway
from service.api.openapi import complete_openapi
from service.api.places import Places
from service.api.problems import install_problem_handlers
from service.api.readiness import Readiness
from service.bundles import check_distinct, settings_of_others
from service.errors import ModelNotReady
from service.inference.engine import Engine
from service.ledger.ledger import Ledger, open_ledger
from service.preview import RESEARCH_USE
from service.rules.reloading import ReloadingRouting
from service.settings import Settings
from service.telemetry.ledger_metrics import LedgerMetrics
from service.telemetry.metrics import Metrics
from service.telemetry.quiet import silence_foreign_libraries
from service.telemetry.request_log import RequestLog
from service.telemetry.work_log import WorkLog
from service.work.worker import Worker

if TYPE_CHECKING:
    from service.dimse.scp import Listener


def app_from_environment() -> FastAPI:
    """The app with settings from `TAGS_*`."""
    return create_app(Settings())


def create_app(
    settings: Settings,
    *,
    engine: Engine | None = None,
    others: Sequence[Engine] = (),
    log_stream: TextIO | None = None,
) -> FastAPI:
    """The gateway as an ASGI app.

    Args: engine: one that is open already and stays open, instead of the one that the settings name; others: of
    further bundles, beside it. log_stream: where the request lines go, standard output by default.
    """
    metrics, log = Metrics(), RequestLog(log_stream)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        silence_foreign_libraries(metrics.silenced.inc)
        engines = await to_thread.run_sync(open_engines, settings) if engine is None else (engine, *others)
        opened, *further = engines
        admission = Admission(max_running=settings.max_running, max_waiting=settings.max_waiting, metrics=metrics)
        readiness = Readiness(
            opened, timeout_s=settings.readiness_timeout_s, cache_s=settings.readiness_cache_s, metrics=metrics
        )
        ledger = await to_thread.run_sync(ledger_of, settings)
        metrics.register(LedgerMetrics(ledger))
        routing = routing_of(settings)
        worker = new_worker(settings, ledger, routing, engines, metrics, log_stream) if settings.worker else None
        receiving = Places(settings.max_receiving)
        app.state.gateway = Gateway(
            settings, opened, admission, readiness, metrics, log, ledger, routing, receiving, worker, tuple(further)
        )
        working = asyncio.create_task(worker.run()) if worker else None
        listener = await to_thread.run_sync(dimse_listener, settings, ledger, metrics)
        try:
            yield
        finally:
            if listener:
                await to_thread.run_sync(listener.close)
            if working:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
            await to_thread.run_sync(ledger.close)
            if engine is None:
                for each in engines:
                    await each.close()

    app = FastAPI(
        title="TAGS",
        version=version("tags-service"),
        description=f"The extent of a tumour in a CT or MR series, from a prompt. **{RESEARCH_USE}**",
        lifespan=lifespan,
        redoc_url=None,
    )
    for router in (
        segment.router,
        jobs.router,
        dicomweb_store.router,
        dicomweb_query.router,
        dicomweb_retrieve.router,
        ledger_api.router,
        health.router,
        error_page.router,
    ):
        app.include_router(router)
    install_problem_handlers(app)
    complete_openapi(app)
    app.add_middleware(RequestBoundary, log=log, metrics=metrics)
    return app


def ledger_of(settings: Settings) -> Ledger:
    """Blocking. Raises: LedgerUnavailable, StorageFull."""
    return open_ledger(
        settings.data_dir,
        database_url=settings.database_url,
        object_store_url=settings.object_store_url,
        lease_s=settings.job_lease_s,
    )


def new_worker(
    settings: Settings,
    ledger: Ledger,
    routing: ReloadingRouting,
    engines: Sequence[Engine],
    metrics: Metrics,
    log_stream: TextIO | None = None,
) -> Worker:
    """A worker on what is open already, for the gateway's process or for one of its own. Args: engines: the default
    bundle's first."""
    return Worker(ledger, routing, engines, settings, metrics=metrics, log=WorkLog(log_stream))


def routing_of(settings: Settings) -> ReloadingRouting:
    """Raises: RoutingInvalid."""
    return ReloadingRouting(settings.routing_file, settings.profiles_dir)


def dimse_listener(settings: Settings, ledger: Ledger, metrics: Metrics) -> Listener | None:
    """The DICOM listener that the settings ask for, listening. Blocking. Raises: OSError: the port is taken."""
    if settings.dimse_port is None:
        return None
    from service.dimse.scp import Listener

    return Listener(settings, ledger, metrics)


def open_engines(settings: Settings) -> tuple[Engine, ...]:
    """The engine of TAGS_BUNDLE_DIR, then those of TAGS_MORE_BUNDLES. Raises: ModelNotReady, as `open_engine`."""
    engines = tuple(open_engine(each) for each in (settings, *settings_of_others(settings)))
    check_distinct(engines)
    return engines


def open_engine(settings: Settings) -> Engine:
    """The engine that the settings name, on a verified bundle. Blocking: it loads the networks.

    Raises: ModelNotReady: the bundle is missing, altered, or untrained without leave to serve it.
    """
    bundle = open_bundle(settings)
    # Each engine brings a heavy library of its own; only the chosen one is imported.
    if settings.engine == "triton":
        from service.inference.triton import TritonEngine

        return TritonEngine(
            bundle, url=settings.triton_url, timeout_s=settings.triton_timeout_s, max_waiting=settings.max_waiting
        )
    from service.inference.embedded import EmbeddedEngine

    return EmbeddedEngine(bundle, threads=settings.threads, max_waiting=settings.max_waiting)


def open_bundle(settings: Settings) -> Bundle:
    """The bundle that may be served. Raises: ModelNotReady: missing, altered, or untrained without leave."""
    try:
        bundle = load_bundle(settings.bundle_dir)
    except BundleInvalid as error:
        raise ModelNotReady(f"TAGS_BUNDLE_DIR holds no usable bundle: {error}") from error
    if not (bundle.trained or settings.allow_untrained):
        raise ModelNotReady(
            "the bundle's weights are untrained; set TAGS_ALLOW_UNTRAINED=true to serve it all the same"
        )
    return bundle
