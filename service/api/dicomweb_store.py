"""STOW-RS: `POST /dicom-web/studies` and `/studies/{study}` (PS3.18 10.5).

A PACS sends a whole study in one chunked request and may allow it 60 s, answer included. So the answer comes as soon
as everything is durable, never after any inference. Parts go to files as they arrive; beside that, a few threads, the
same for all senders, read their headers and sync them. All is entered in one transaction at the end: a body that breaks
off leaves nothing, and its sender, who was told nothing, sends it again.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future, wait
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import APIRouter
from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auditing import audit_received
from service.api.body import stream_blocks
from service.api.dicomweb_media import DICOM_JSON, accepts_dicom_json, dicomweb_root
from service.api.gateway import Gateway, SharedGateway
from service.api.problems import problem_responses, record_of
from service.dicom.facts import read_facts
from service.dicomweb.related import Part, Related, RelatedParts, read_related
from service.dicomweb.store_answer import Failed, FailureReason, Stored, store_answer, store_status
from service.errors import (
    LedgerUnavailable,
    MalformedRequest,
    NotAcceptable,
    NotDicom,
    ReceiverBusy,
    StorageFull,
    UnsupportedMediaType,
    UploadStalled,
    UploadTooLarge,
)
from service.ledger.objects import sync
from service.ledger.receiving import Arrival, Origin
from service.ledger.trails import Trail
from service.telemetry.stages import Stages
from service.telemetry.tracing import current_traceparent

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])

DICOM = "application/dicom"
CHECKING_THREADS = 4  # for all senders: each more contends for the interpreter, and costs the others time
MAX_UNCHECKED = 16  # parts of a sender; the reader of the body waits for the checkers, not the memory
StudyUid = Annotated[str, PathParameter(pattern=r"^[0-9.]{1,64}$")]
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Everything is stored", "content": {DICOM_JSON: {}}},
    202: {"description": "Some instances are not stored; FailedSOPSequence says which and why"},
    **problem_responses(
        MalformedRequest, NotAcceptable, UploadStalled, UploadTooLarge, UnsupportedMediaType, ReceiverBusy,
        LedgerUnavailable, StorageFull,
    ),
    409: {"description": "No instance is stored; FailedSOPSequence says why"},
}  # fmt: skip
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/related": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/studies", summary="Store instances (STOW-RS)", response_class=Response, responses=RESPONSES,
             openapi_extra=BODY)  # fmt: skip
async def store_any(request: Request, gateway: SharedGateway) -> Response:
    return await _store(request, gateway, None)


@router.post("/studies/{study}", summary="Store instances of one study (STOW-RS)", response_class=Response,
             responses=RESPONSES, openapi_extra=BODY)  # fmt: skip
async def store_into_study(request: Request, gateway: SharedGateway, study: StudyUid) -> Response:
    return await _store(request, gateway, study)


async def _store(request: Request, gateway: Gateway, study: str | None) -> Response:
    accepts_dicom_json(request)
    related = read_related(request.headers.get("content-type"))
    if related.type not in ("", DICOM):
        raise UnsupportedMediaType('only multipart/related; type="application/dicom" is stored')
    await to_thread.run_sync(check_room, gateway)
    record, stages = record_of(request), Stages(tracer=gateway.tracer)
    async with gateway.receiving.place(), _staged(gateway) as directory:
        origin = Origin("stow", trail=Trail(record.request_id, current_traceparent()))
        checker = _Checker(gateway.checking, study, origin)
        parts = RelatedParts(related.boundary, directory, checker.take)
        with stages("receive"):
            arrivals, failed = await _receive(request, gateway, related, parts, checker)
        with stages("keep"):
            receipts = await to_thread.run_sync(gateway.ledger.receiver.receive, arrivals)
    gateway.work_arrived()
    await audit_received(request, gateway, [receipt.facts for receipt in receipts])
    record.stages_ms = {name: round(1000 * seconds, 1) for name, seconds in stages.seconds.items()}
    record.files, record.refused = len(receipts), len(failed)
    gateway.metrics.instances.labels("stow", "stored").inc(sum(not receipt.duplicate for receipt in receipts))
    gateway.metrics.instances.labels("stow", "duplicate").inc(sum(receipt.duplicate for receipt in receipts))
    gateway.metrics.instances.labels("stow", "refused").inc(len(failed))
    stored = [
        Stored(item.sop_class_uid, item.sop_instance_uid, item.study_instance_uid, item.series_instance_uid)
        for item in (receipt.facts for receipt in receipts)
    ]
    answer = store_answer(stored, failed, dicomweb_root(request))
    return JSONResponse(answer, store_status(stored, failed), media_type=DICOM_JSON)


async def _receive(
    request: Request, gateway: Gateway, related: Related, parts: RelatedParts, checker: _Checker
) -> tuple[list[Arrival], list[Failed]]:
    settings = gateway.settings
    try:
        record_of(request).received_bytes = await stream_blocks(
            request, parts.write, max_bytes=settings.max_store_bytes, idle_timeout_s=settings.upload_idle_timeout_s
        )
        await to_thread.run_sync(parts.finish)
        if checker.all_of_another_kind:
            raise UnsupportedMediaType("no part is application/dicom")
        return await to_thread.run_sync(checker.outcome)
    finally:
        parts.close()
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(checker.close)


def check_room(gateway: Gateway) -> None:
    """Raises: StorageFull: less space is left than the reserve, which is kept for work in progress."""
    free_bytes = gateway.ledger.store.free_bytes()
    if free_bytes is not None and free_bytes < gateway.settings.min_free_bytes:
        raise StorageFull(f"less than {gateway.settings.min_free_bytes} bytes are left")


@asynccontextmanager
async def _staged(gateway: Gateway) -> AsyncIterator[Path]:
    directory = await to_thread.run_sync(gateway.ledger.staging.directory)
    try:
        yield directory
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))


class _Checker:
    """Reads the headers of one body's parts and syncs their files, in threads, while it goes on arriving."""

    def __init__(self, pool: Executor, study: str | None, origin: Origin) -> None:
        self._pool, self._study, self._origin = pool, study, origin
        self._room = threading.BoundedSemaphore(MAX_UNCHECKED)
        self._checked: list[Future[Arrival | Failed]] = []
        self._series_json: dict[str, str] = {}  # one text per series, however many images it has
        self._others = 0

    @property
    def all_of_another_kind(self) -> bool:
        return bool(self._checked) and self._others == len(self._checked)

    def take(self, part: Part) -> None:
        """Called by the body's reader, which waits here while too much is unchecked."""
        self._room.acquire()
        self._others += part.media_type not in ("", DICOM, "application/octet-stream")
        future = self._pool.submit(self._check, part)
        future.add_done_callback(lambda _: self._room.release())
        self._checked.append(future)

    def outcome(self) -> tuple[list[Arrival], list[Failed]]:
        """Raises: StorageFull, LedgerUnavailable."""
        results = [future.result() for future in self._checked]
        arrivals = [result for result in results if isinstance(result, Arrival)]
        return arrivals, [result for result in results if isinstance(result, Failed)]

    def close(self) -> None:
        for future in self._checked:
            future.cancel()
        wait(self._checked)  # the files of those that have begun are removed afterwards

    def _check(self, part: Part) -> Arrival | Failed:
        try:
            facts = read_facts(part.path, known_series=self._series_json.__contains__)
        except NotDicom:
            part.path.unlink(missing_ok=True)
            return Failed(FailureReason.CANNOT_UNDERSTAND)
        if self._study and facts.study_instance_uid != self._study:
            part.path.unlink(missing_ok=True)
            return Failed(FailureReason.STUDY_MISMATCH, facts.sop_class_uid, facts.sop_instance_uid)
        sync(part.path)  # side by side with the others, while the body goes on arriving
        if facts.series_json:
            self._series_json[facts.series_instance_uid] = facts.series_json
        shared = self._series_json[facts.series_instance_uid]
        return Arrival(part.path, replace(facts, series_json=shared), self._origin, is_synced=True)
