"""QIDO-RS over what is held, sources and results (PS3.18 10.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auditing import audit_query
from service.api.dicomweb_media import DICOM_JSON, accepts_dicom_json, dicomweb_root
from service.api.dicomweb_store import StudyUid
from service.api.gateway import Gateway, SharedGateway
from service.api.problems import problem_responses
from service.dicomweb.query import read_query
from service.dicomweb.query_answer import instance_answer, series_answer, study_answer
from service.errors import LedgerUnavailable, MalformedRequest, NotAcceptable
from service.ledger.search import Level

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "What was found, as DICOM JSON; an empty list for nothing", "content": {DICOM_JSON: {}}},
    **problem_responses(MalformedRequest, NotAcceptable, LedgerUnavailable),
}
Handler = TypeVar("Handler", bound=Callable[..., Any])


def get(path: str, *, summary: str) -> Callable[[Handler], Handler]:
    return router.get(path, summary=summary, response_class=Response, responses=RESPONSES)


@get("/studies", summary="Search for studies (QIDO-RS)")
async def studies(request: Request, gateway: SharedGateway) -> Response:
    return await _search(request, gateway, "studies")


@get("/series", summary="Search for series (QIDO-RS)")
async def series(request: Request, gateway: SharedGateway) -> Response:
    return await _search(request, gateway, "series")


@get("/instances", summary="Search for instances (QIDO-RS)")
async def instances(request: Request, gateway: SharedGateway) -> Response:
    return await _search(request, gateway, "instances")


@get("/studies/{study}/series", summary="Search for a study's series (QIDO-RS)")
async def series_of_study(request: Request, gateway: SharedGateway, study: StudyUid) -> Response:
    return await _search(request, gateway, "series", [("StudyInstanceUID", study)])


@get("/studies/{study}/instances", summary="Search for a study's instances (QIDO-RS)")
async def instances_of_study(request: Request, gateway: SharedGateway, study: StudyUid) -> Response:
    return await _search(request, gateway, "instances", [("StudyInstanceUID", study)])


@get("/studies/{study}/series/{series}/instances", summary="Search for a series' instances (QIDO-RS)")
async def instances_of_series(request: Request, gateway: SharedGateway, study: StudyUid, series: StudyUid) -> Response:
    path = [("StudyInstanceUID", study), ("SeriesInstanceUID", series)]
    return await _search(request, gateway, "instances", path)


async def _search(
    request: Request, gateway: Gateway, level: Level, path: Sequence[tuple[str, str]] = ()
) -> Response:  # fmt: skip
    accepts_dicom_json(request)
    query, root, search = (
        read_query(level, request.query_params.multi_items(), path),
        dicomweb_root(request),
        gateway.search,
    )

    def found() -> list[dict[str, Any]]:
        page: dict[str, Any] = {"limit": query.limit, "offset": query.offset}
        if level == "studies":
            return [study_answer(record, query, root) for record in search.studies(query.conditions, **page)]
        if level == "series":
            return [series_answer(record, query, root) for record in search.series(query.conditions, **page)]
        return [instance_answer(record, query, root) for record in search.instances(query.conditions, **page)]

    await audit_query(request, gateway)
    return JSONResponse(await to_thread.run_sync(found), media_type=DICOM_JSON)
