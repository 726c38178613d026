"""Who may use which route. Each route stands in this table; one that does not is refused to everyone.

Public: probes, since a kubelet has no token, and what holds nothing of anyone: the page's empty frame, the pages that
describe the API. `/metrics` and `/capabilities` ask for a known caller, of any role or none: a key without roles lets
Prometheus scrape and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum

from fastapi import Depends
from starlette.requests import Request

from service.access.authenticator import Authenticator
from service.access.caller import Caller, Role
from service.api.auditing import audit_refusal
from service.api.gateway import SharedGateway
from service.errors import RoleMissing, TagsError


class Open(Enum):
    """Routes that need no role."""

    PUBLIC = "public"
    KNOWN = "known"  # any caller that has proved who it is


PUSH, READ, ADMIN = frozenset({Role.PUSH}), frozenset({Role.READ}), frozenset({Role.ADMIN})
OWN_OR_READ = frozenset({Role.SEGMENT, Role.READ})  # the route itself holds a segmenter to its own jobs
OWN_OR_ADMIN = frozenset({Role.SEGMENT, Role.ADMIN})
ROUTES: dict[tuple[str, str], frozenset[Role] | Open] = {
    ("POST", "/segment"): frozenset({Role.SEGMENT}),
    ("GET", "/jobs"): READ,
    ("GET", "/jobs/{job_id}"): OWN_OR_READ,
    ("GET", "/jobs/{job_id}/events"): OWN_OR_READ,
    ("GET", "/jobs/{job_id}/result"): OWN_OR_READ,
    ("DELETE", "/jobs/{job_id}"): OWN_OR_ADMIN,
    ("POST", "/jobs/{job_id}/replay"): ADMIN,
    ("POST", "/dicom-web/studies"): PUSH,
    ("POST", "/dicom-web/studies/{study}"): PUSH,
    ("POST", "/ledger/studies/{study}/complete"): PUSH,
    ("GET", "/ledger"): READ,
    ("GET", "/ledger/events"): READ,
    ("GET", "/capabilities"): Open.KNOWN,
    ("GET", "/metrics"): Open.KNOWN,
    ("GET", "/health/live"): Open.PUBLIC,
    ("GET", "/health/ready"): Open.PUBLIC,
    ("GET", "/docs"): Open.PUBLIC,
    ("GET", "/docs/oauth2-redirect"): Open.PUBLIC,
    ("GET", "/docs/errors"): Open.PUBLIC,
    ("GET", "/"): Open.PUBLIC,
}


def needed(method: str, path: str) -> frozenset[Role] | Open:
    """Any of these roles; none at all for a route that nobody has thought of. All that is read by DICOMweb is READ."""
    if method == "GET" and path.startswith("/dicom-web/"):
        return READ
    return ROUTES.get((method, path), frozenset())


async def permitted(request: Request, gateway: SharedGateway) -> None:
    """A dependency of every route. Raises: as below, and AuditUnavailable."""
    try:
        refuse_unpermitted(request)
    except TagsError as error:
        await audit_refusal(request, gateway, error)
        raise


def refuse_unpermitted(request: Request) -> None:
    """Raises: Unauthenticated, AuthenticationUnavailable, RoleMissing."""
    wanted = needed(request.method, request.scope["route"].path)
    if wanted is Open.PUBLIC:
        return
    caller = caller_of(request)
    if wanted is not Open.KNOWN and not caller.roles & wanted:
        raise RoleMissing(f"this needs one of the roles {', '.join(sorted(wanted)) or 'that nobody has'}")


def caller_of(request: Request) -> Caller:
    """Raises: Unauthenticated, AuthenticationUnavailable: what the guard found wrong."""
    found: Caller | TagsError = request.state.caller
    if isinstance(found, TagsError):
        raise found
    return found


def still_permitted(request: Request, authenticator: Authenticator) -> Callable[[], Awaitable[bool]]:
    """For a long answer: whether its caller would still be let in. Ends at a token's expiry and a key's removal."""
    caller, authorization = caller_of(request), request.headers.get("authorization")
    return lambda: authenticator.still_valid(caller, authorization)


def refuse_others(caller: Caller, owner: str, role: Role) -> None:
    """Of a job: its owner may, and whoever has the role. Raises: RoleMissing."""
    if role not in caller.roles and not (owner and owner == caller.identity):
        raise RoleMissing(f"this job was not asked for by this caller; the role {role} is needed")


RULES = [Depends(permitted)]
