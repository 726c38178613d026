"""WADO-RS over what is held: objects, metadata, frames and pictures (PS3.18 10.4).

Objects are given in the transfer syntax that Accept asks for: as they are held for `transfer-syntax=*`, else converted
to Explicit VR Little Endian. They are read and sent one by one, so that memory does not grow with the study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, TypeVar
from uuid import uuid4

from anyio import to_thread
from fastapi import APIRouter
from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.api.auditing import audit_given
from service.api.dicomweb_media import DICOM_JSON, accepts_dicom_json
from service.api.dicomweb_store import DICOM, StudyUid
from service.api.gateway import Gateway, SharedGateway
from service.api.problems import problem_responses
from service.dicom.held_object import PICTURE_FORMATS, as_explicit_little_endian, frames, metadata, rendered
from service.dicom.transfer_syntaxes import is_readable
from service.dicomweb.accept import DEFAULT_TRANSFER_SYNTAX, Accepted, read_accept
from service.errors import DamagedPixelData, LedgerUnavailable, MalformedRequest, NotAcceptable, UnknownObject
from service.ledger.search import InstanceRecord

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
EXPLICIT = DEFAULT_TRANSFER_SYNTAX
CHUNK_BYTES = 1024 * 1024
OCTETS = "application/octet-stream"
INSTANCE = "/studies/{study}/series/{series}/instances/{instance}"
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "multipart/related, one part per object", "content": {"multipart/related": {}}},
    **problem_responses(MalformedRequest, UnknownObject, NotAcceptable, DamagedPixelData, LedgerUnavailable),
}
FrameList = Annotated[str, PathParameter(pattern=r"^[0-9]+(,[0-9]+)*$", description="numbers from 1, with commas")]
Handler = TypeVar("Handler", bound=Callable[..., Any])


def get(path: str, *, summary: str) -> Callable[[Handler], Handler]:
    return router.get(path, summary=summary, response_class=Response, responses=RESPONSES)


@get("/studies/{study}", summary="Retrieve a study (WADO-RS)")
async def study(request: Request, gateway: SharedGateway, study: StudyUid) -> Response:
    return await _objects(request, gateway, study)


@get("/studies/{study}/metadata", summary="Retrieve a study's metadata (WADO-RS)")
async def study_metadata(request: Request, gateway: SharedGateway, study: StudyUid) -> Response:
    return await _metadata(request, gateway, study)


@get("/studies/{study}/series/{series}", summary="Retrieve a series (WADO-RS)")
async def series(request: Request, gateway: SharedGateway, study: StudyUid, series: StudyUid) -> Response:
    return await _objects(request, gateway, study, series)


@get("/studies/{study}/series/{series}/metadata", summary="Retrieve a series' metadata (WADO-RS)")
async def series_metadata(request: Request, gateway: SharedGateway, study: StudyUid, series: StudyUid) -> Response:
    return await _metadata(request, gateway, study, series)


@get(INSTANCE, summary="Retrieve an instance (WADO-RS)")
async def instance(
    request: Request, gateway: SharedGateway, study: StudyUid, series: StudyUid, instance: StudyUid
) -> Response:
    return await _objects(request, gateway, study, series, instance)


@get(f"{INSTANCE}/metadata", summary="Retrieve an instance's metadata (WADO-RS)")
async def instance_metadata(
    request: Request, gateway: SharedGateway, study: StudyUid, series: StudyUid, instance: StudyUid
) -> Response:
    return await _metadata(request, gateway, study, series, instance)


@get(f"{INSTANCE}/frames/{{numbers}}", summary="Retrieve decoded frames (WADO-RS)")
async def instance_frames(
    request: Request, gateway: SharedGateway, study: StudyUid, series: StudyUid, instance: StudyUid, numbers: FrameList
) -> Response:
    accepted = read_accept(request.headers.get("accept"), OCTETS)
    (held,) = await to_thread.run_sync(gateway.search.held, study, series, instance)
    await audit_given(request, gateway, [held])
    wanted = [int(number) for number in numbers.split(",")]

    def decoded() -> list[bytes]:
        with gateway.ledger.store.open(held.object_key) as stream:
            return list(frames(stream, wanted))

    content = await to_thread.run_sync(decoded)
    if accepted.single_part and len(content) == 1:
        return Response(content[0], media_type=OCTETS)
    kind = f"{OCTETS}; transfer-syntax={EXPLICIT}"
    return _related((iter([frame]) for frame in content), OCTETS, kind)


@get(f"{INSTANCE}/rendered", summary="A picture of an instance (WADO-RS)")
async def instance_rendered(
    request: Request, gateway: SharedGateway, study: StudyUid, series: StudyUid, instance: StudyUid
) -> Response:
    return await _rendered(request, gateway, study, series, instance, 1)


@get(f"{INSTANCE}/frames/{{number}}/rendered", summary="A picture of a frame (WADO-RS)")
async def frame_rendered(
    request: Request,
    gateway: SharedGateway,
    study: StudyUid,
    series: StudyUid,
    instance: StudyUid,
    number: Annotated[int, PathParameter(ge=1)],
) -> Response:
    return await _rendered(request, gateway, study, series, instance, number)


async def _objects(request: Request, gateway: Gateway, *uids: str) -> Response:
    accepted = read_accept(request.headers.get("accept"), DICOM)
    held = await to_thread.run_sync(lambda: gateway.search.held(*uids))
    if not accepted.as_held and any(_cannot_convert(item, accepted) for item in held):
        raise NotAcceptable(
            'objects are given as held (transfer-syntax="*") or, if it can be decoded, in Explicit VR Little Endian'
        )
    await audit_given(request, gateway, held)
    first = await to_thread.run_sync(_begun, _content(gateway, held[0], accepted))
    if accepted.single_part and len(held) == 1:
        return StreamingResponse(first, media_type=DICOM)
    others = (_content(gateway, item, accepted) for item in held[1:])
    return _related(chain([first], others), DICOM, DICOM)


def _begun(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same, its first block made already: a broken object is refused before the answer has begun. A later one ends
    the connection, for pixels are decoded when their turn comes; what nothing decodes was refused for all of them."""
    return chain([next(blocks, b"")], blocks)


def _cannot_convert(item: InstanceRecord, accepted: Accepted) -> bool:
    if accepted.transfer_syntax == item.transfer_syntax_uid:
        return False
    return accepted.transfer_syntax != EXPLICIT or not is_readable(item.transfer_syntax_uid)


def _content(gateway: Gateway, item: InstanceRecord, accepted: Accepted) -> Iterator[bytes]:
    with gateway.ledger.store.open(item.object_key) as stream:
        if accepted.as_held or accepted.transfer_syntax == item.transfer_syntax_uid:
            while block := stream.read(CHUNK_BYTES):
                yield block
        else:
            yield as_explicit_little_endian(stream)


async def _metadata(request: Request, gateway: Gateway, *uids: str) -> Response:
    accepts_dicom_json(request)
    held = await to_thread.run_sync(lambda: gateway.search.held(*uids))
    await audit_given(request, gateway, held)

    def read() -> list[dict[str, Any]]:
        documents = []
        for item in held:
            with gateway.ledger.store.open(item.object_key) as stream:
                documents.append(metadata(stream))
        return documents

    return JSONResponse(await to_thread.run_sync(read), media_type=DICOM_JSON)


async def _rendered(
    request: Request, gateway: Gateway, study: str, series: str, instance: str, frame: int
) -> Response:  # fmt: skip
    media_type = _picture_type(request.headers.get("accept", "*/*"))
    (held,) = await to_thread.run_sync(gateway.search.held, study, series, instance)
    await audit_given(request, gateway, [held])

    def drawn() -> bytes:
        with gateway.ledger.store.open(held.object_key) as stream:
            return rendered(stream, frame, media_type)

    return Response(await to_thread.run_sync(drawn), media_type=media_type)


def _picture_type(accept: str) -> str:
    """Raises: NotAcceptable."""
    for named in (item.split(";")[0].strip().lower() for item in accept.split(",")):
        if named in PICTURE_FORMATS:
            return named
        if named in ("*/*", "image/*"):
            return "image/jpeg"
    raise NotAcceptable(f"pictures are {', '.join(PICTURE_FORMATS)}", formats=list(PICTURE_FORMATS))


def _related(parts: Iterator[Iterator[bytes]] | Sequence[Iterator[bytes]], kind: str, part_kind: str) -> Response:
    boundary = uuid4().hex

    def body() -> Iterator[bytes]:
        for part in parts:
            yield f"--{boundary}\r\nContent-Type: {part_kind}\r\n\r\n".encode()
            yield from part
            yield b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    return StreamingResponse(body(), media_type=f'multipart/related; type="{kind}"; boundary={boundary}')
