"""The composition root: settings in, app out. Opens the engine when the app starts and closes it when it stops.

Importing this module builds nothing. `uvicorn service.app:app_from_environment --factory` serves it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TextIO

from anyio import to_thread
from fastapi import FastAPI

from contract.bundle import Bundle, BundleInvalid, load_bundle
from service.api import error_page, health, segment
from service.api.admission import Admission
from service.api.boundary import RequestBoundary
from service.api.gateway import Gateway
from service.api.openapi import complete_openapi
from service.api.problems import install_problem_handlers
from service.api.readiness import Readiness
from service.bundles import check_distinct, settings_of_others
from service.errors import ModelNotReady
from service.inference.engine import Engine
from service.preview import RESEARCH_USE
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.quiet import silence_foreign_libraries
from service.telemetry.request_log import RequestLog


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
        app.state.gateway = Gateway(settings, opened, admission, readiness, metrics, log, tuple(further))
        yield
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
    for router in (segment.router, health.router, error_page.router):
        app.include_router(router)
    install_problem_handlers(app)
    complete_openapi(app)
    app.add_middleware(RequestBoundary, log=log, metrics=metrics)
    return app


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
