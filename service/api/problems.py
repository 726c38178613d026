"""Every refusal as `application/problem+json` (RFC 9457): type, title, status, detail, instance, and safe members.

What enters: an error of the tree, or one of the framework's own, which is translated into the tree. No answer repeats
what was sent: FastAPI's default 422 would quote the input, sibling fields included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from service.errors import MalformedRequest, MethodNotAllowed, TagsError, Unauthenticated, UnknownPath
from service.telemetry.request_log import RequestRecord

MEDIA_TYPE = "application/problem+json"
DOCUMENTATION = "/docs/errors"
CLIENT_GONE = 499  # nginx's code for a client that left before the answer; only the log sees it


def problem(error: TagsError, request_id: str) -> JSONResponse:
    """The answer for an error of the tree."""
    content = {
        "type": f"{DOCUMENTATION}#{error.slug}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": f"urn:uuid:{request_id}",
        **error.members,
    }
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == Unauthenticated.status:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(content, error.status, headers, MEDIA_TYPE)


def record_of(request: Request) -> RequestRecord:
    """The record of this request, put there by the boundary."""
    record: RequestRecord = request.state.record
    return record


def install_problem_handlers(app: FastAPI) -> None:
    """Answer everything but the unforeseen, which the request boundary answers."""

    def answer(request: Request, error: TagsError) -> JSONResponse:
        record = record_of(request)
        record.slug = error.slug
        return problem(error, record.request_id)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, TagsError)  # registered for it
        return answer(request, error)

    async def framework_refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        translated: TagsError = {404: UnknownPath, 405: MethodNotAllowed}.get(error.status_code, MalformedRequest)()
        response = answer(request, translated)
        response.headers.update(error.headers or {})  # Allow, with 405
        return response

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        places = [{"location": ".".join(map(str, item["loc"][:2])), "message": item["msg"]} for item in error.errors()]
        return answer(request, MalformedRequest("a parameter is not valid; see errors", errors=places))

    async def client_gone(request: Request, error: Exception) -> Response:
        record_of(request).slug = "client-gone"
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(TagsError, refused)
    app.add_exception_handler(HTTPException, framework_refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, client_gone)


def leaves(family: type[TagsError] = TagsError) -> Iterator[type[TagsError]]:
    """The leaves of the error tree below a family: those that are answered."""
    if not family.__subclasses__():
        yield family
    for child in family.__subclasses__():
        yield from leaves(child)


def problem_responses(*families: type[TagsError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for the leaves of these families, by status."""
    by_status: dict[int | str, list[type[TagsError]]] = {}
    for family in families:
        for leaf in leaves(family):
            by_status.setdefault(leaf.status, []).append(leaf)
    return {
        status: {
            "description": "; ".join(f"`{leaf.slug}`: {leaf.title}" for leaf in found),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, found in sorted(by_status.items(), key=lambda item: int(item[0]))
    }
