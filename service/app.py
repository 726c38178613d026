"""The composition root: settings in, app out. Opens engine and ledger at the start, closes them at the end.

Importing this module builds nothing. `uvicorn service.app:app_from_environment --factory` serves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, TextIO

from anyio import to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import Tracer

from contract.bundle import Bundle, BundleInvalid, load_bundle
from service.access.authenticator import Authenticator
from service.access.limits import ClientLimits
from service.access.listening import check_listening
from service.api import dicomweb_query, dicomweb_retrieve, dicomweb_store, error_page, health, jobs, segment
from service.api import ledger as ledger_api
from service.api.admission import Admission
from service.api.boundary import RequestBoundary
from service.api.gateway import Gateway
from service.api.guard import Guard
from service.api.openapi import complete_openapi
from service.api.permissions import RULES
from service.api.places import Places
from service.api.problems import install_problem_handlers
from service.api.readiness import Readiness
from service.audit.event import started, stopped
from service.audit.trail import AuditTrail
from service.bundles import check_distinct, settings_of_others
from service.errors import AuditUnavailable, ModelNotReady
from service.inference.engine import Engine
from service.ledger.ledger import Ledger, open_ledger
from service.preview import RESEARCH_USE
from service.rules.reloading import ReloadingRouting
from service.settings import Settings
from service.telemetry.ledger_metrics import LedgerMetrics
from service.telemetry.metrics import Metrics
from service.telemetry.quiet import silence_foreign_libraries
from service.telemetry.request_log import RequestLog
from service.telemetry.tracing import OFF, Tracing, open_tracing
from service.telemetry.work_log import WorkLog
from service.watchdog import Watchdog
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
    tracing: Tracing | None = None,
) -> FastAPI:
    """The gateway as an ASGI app.

    Args: engine: one that is open already and stays open, instead of the one that the settings name; others: of
    further bundles, beside it. log_stream: where the request lines go, standard output by default. tracing: instead of
    what the settings name.
    Raises: ListeningRefused, KeysInvalid.
    """
    check_listening(settings)
    metrics, log, authenticator = Metrics(), RequestLog(log_stream), Authenticator(settings)
    audit = AuditTrail(settings, metrics.audit_failures.inc)
    limits = ClientLimits(per_minute=settings.client_requests_per_minute, at_once=settings.client_requests_at_once)
    tracing = tracing or open_tracing(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        silence_foreign_libraries(metrics.silenced.inc)
        engines = (
            await to_thread.run_sync(open_engines, settings, tracing.tracer) if engine is None else (engine, *others)
        )
        opened, *further = engines
        admission = Admission(max_running=settings.max_running, max_waiting=settings.max_waiting, metrics=metrics)
        readiness = Readiness(
            opened, timeout_s=settings.readiness_timeout_s, cache_s=settings.readiness_cache_s, metrics=metrics
        )
        ledger = await to_thread.run_sync(ledger_of, settings)
        metrics.register(LedgerMetrics(ledger, reserve_bytes=settings.min_free_bytes))
        routing = routing_of(settings)
        worker = (
            new_worker(settings, ledger, routing, engines, metrics, audit, log_stream, tracing.tracer)
            if settings.worker
            else None
        )
        receiving = Places(settings.max_receiving)
        checking = ThreadPoolExecutor(dicomweb_store.CHECKING_THREADS, thread_name_prefix="stow")
        app.state.gateway = Gateway(
            settings,
            opened,
            admission,
            readiness,
            metrics,
            log,
            ledger,
            routing,
            receiving,
            checking,
            worker,
            authenticator,
            audit,
            tuple(further),
            tracing.tracer,
        )
        working = asyncio.create_task(worker.run()) if worker else None
        watching = (
            asyncio.create_task(watchdog_of(settings, ledger, metrics, log_stream).run())
            if settings.watchdog_interval_s
            else None
        )
        listener = await to_thread.run_sync(dimse_listener, settings, ledger, metrics, audit, log_stream)
        await to_thread.run_sync(audit.record, started(audit.us))
        try:
            yield
        finally:
            with suppress(AuditUnavailable):
                await to_thread.run_sync(audit.record, stopped(audit.us))
            if listener:
                await to_thread.run_sync(listener.close)
            tasks = [task for task in (watching, working) if task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await to_thread.run_sync(checking.shutdown)
            await to_thread.run_sync(ledger.close)
            await authenticator.close()
            audit.close()
            if engine is None:
                for each in engines:
                    await each.close()
            await to_thread.run_sync(tracing.close)

    app = FastAPIOffline(  # FastAPI with the scripts of /docs from its own package: hospitals have no internet
        title="TAGS",
        version=version("tags-service"),
        description=f"The extent of a tumour in a CT or MR series, from a prompt. **{RESEARCH_USE}**",
        lifespan=lifespan,
        redoc_url=None,
        dependencies=RULES,
        # FastAPI's own spans hold path and query, and those the names of patients; ours are in RequestBoundary.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
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
    app.add_middleware(Guard, authenticator=authenticator, limits=limits)
    app.add_middleware(RequestBoundary, log=log, metrics=metrics, tracer=tracing.tracer)
    return app


def watchdog_of(settings: Settings, ledger: Ledger, metrics: Metrics, log_stream: TextIO | None = None) -> Watchdog:
    """The phantom watchdog of this process."""
    return Watchdog(settings, ledger, metrics.watchdog(), WorkLog(log_stream))


def ledger_of(settings: Settings) -> Ledger:
    """Blocking. Raises: LedgerUnavailable, StorageFull."""
    return open_ledger(
        settings.data_dir,
        database_url=settings.database_url.get_secret_value(),
        object_store_url=settings.object_store_url,
        lease_s=settings.job_lease_s,
    )


def new_worker(
    settings: Settings,
    ledger: Ledger,
    routing: ReloadingRouting,
    engines: Sequence[Engine],
    metrics: Metrics,
    audit: AuditTrail,
    log_stream: TextIO | None = None,
    tracer: Tracer = OFF,
) -> Worker:
    """A worker on what is open already, for the gateway's process or for one of its own. Args: engines: the default
    bundle's first."""
    log = WorkLog(log_stream)
    return Worker(ledger, routing, engines, settings, metrics=metrics, log=log, audit=audit, tracer=tracer)


def routing_of(settings: Settings) -> ReloadingRouting:
    """Raises: RoutingInvalid."""
    return ReloadingRouting(settings.routing_file, settings.profiles_dir)


def dimse_listener(
    settings: Settings, ledger: Ledger, metrics: Metrics, audit: AuditTrail, log_stream: TextIO | None = None
) -> Listener | None:
    """The DICOM listener that the settings ask for, listening. Blocking. Raises: OSError: the port is taken."""
    if settings.dimse_port is None:
        return None
    from service.dimse.scp import Listener

    return Listener(settings, ledger, metrics, audit, WorkLog(log_stream))


def open_engines(settings: Settings, tracer: Tracer = OFF) -> tuple[Engine, ...]:
    """The engine of TAGS_BUNDLE_DIR, then those of TAGS_MORE_BUNDLES. Raises: ModelNotReady, as `open_engine`."""
    engines = tuple(open_engine(each, tracer) for each in (settings, *settings_of_others(settings)))
    check_distinct(engines)
    return engines


def open_engine(settings: Settings, tracer: Tracer = OFF) -> Engine:
    """The engine that the settings name, on a verified bundle. Blocking: it loads the networks.

    Raises: ModelNotReady: the bundle is missing, altered, or untrained without leave to serve it.
    """
    bundle = open_bundle(settings)
    # Each engine brings a heavy library of its own; only the chosen one is imported.
    if settings.engine == "triton":
        from service.inference.triton import TritonEngine

        return TritonEngine(
            bundle,
            url=settings.triton_url,
            timeout_s=settings.triton_timeout_s,
            max_waiting=settings.max_waiting,
            tracer=tracer,
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
