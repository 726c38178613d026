"""The ledger for people: an overview, its changes as events, the sender's notice, and the page at `/` with them."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from service.api.dicomweb_store import StudyUid
from service.api.events import event_stream
from service.api.gateway import Gateway, SharedGateway
from service.api.jobs import job_document
from service.api.permissions import still_permitted
from service.api.problems import problem_responses
from service.errors import LedgerUnavailable, MalformedRequest, UnknownObject
from service.ledger.report import fates
from service.preview import RESEARCH_USE

router = APIRouter()
SHOWN_SERIES, SHOWN_JOBS = 100, 200  # the latest; /jobs and QIDO-RS page through the rest
PAGE = Path(__file__).with_name("page.html")
CONTENT_SECURITY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def overview(gateway: Gateway) -> dict[str, Any]:
    """Counts, the latest series with their fates, the latest jobs, destinations in trouble. Blocking."""
    ledger = gateway.ledger
    counts: dict[str, int] = {}
    for (_, state, _), count in ledger.jobs.counts().items():
        counts[state] = counts.get(state, 0) + count
    return {
        "research_use": RESEARCH_USE,
        "jobs_by_state": counts,
        "series": [asdict(item) for item in fates(ledger.database, limit=SHOWN_SERIES)],
        "jobs": [job_document(view) for view in ledger.jobs.listed(limit=SHOWN_JOBS)],
        "circuits": [
            {"destination": state.destination, "failures": state.failures, "open": state.open_for_s > 0}
            for state in ledger.circuits.states()
        ],
        "routing_refused": gateway.routing.refused,
    }


@router.get("/ledger", tags=["jobs"], summary="What was received and what became of it",
            responses=problem_responses(LedgerUnavailable))  # fmt: skip
async def show_ledger(gateway: SharedGateway) -> dict[str, Any]:
    return await to_thread.run_sync(overview, gateway)


@router.get("/ledger/events", tags=["jobs"], summary="The same, as server-sent events on each change",
            response_class=Response, responses={200: {"content": {"text/event-stream": {}}}})  # fmt: skip
async def ledger_events(request: Request, gateway: SharedGateway) -> StreamingResponse:
    allowed = still_permitted(request, gateway.authenticator)
    return event_stream(partial(overview, gateway), last=lambda _: False, allowed=allowed)


@router.post("/ledger/studies/{study}/complete", tags=["jobs"], summary="The sender's notice that a study is complete",
             responses=problem_responses(UnknownObject, MalformedRequest, LedgerUnavailable))  # fmt: skip
async def study_complete(
    gateway: SharedGateway,
    study: StudyUid,
    series: Annotated[str | None, Query(pattern=r"^[0-9.]{1,64}$", description="only this series")] = None,
) -> dict[str, int]:
    noticed = await to_thread.run_sync(gateway.ledger.series.notice_complete, study, series)
    gateway.work_arrived()
    return {"series": noticed}


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": CONTENT_SECURITY})
