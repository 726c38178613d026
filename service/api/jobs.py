"""`/jobs`: what is being done, was done, and failed; results, events, cancelling and replay.

A job is shown with ids, slugs, counts and times. UIDs of the series are shown, since a PACS administrator finds a study
by them; nothing else of a dataset is.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.access.caller import Role
from service.api.auditing import asking, audit
from service.api.events import event_stream
from service.api.gateway import Gateway, SharedGateway
from service.api.permissions import caller_of, refuse_others, still_permitted
from service.api.problems import problem_responses
from service.audit.event import Study, transferred
from service.errors import JobNotFinished, JobNotReplayable, LedgerUnavailable, MalformedRequest, UnknownJob
from service.ledger.jobs import ENDED, JobView
from service.work.worker import forget_request

router = APIRouter(prefix="/jobs", tags=["jobs"])
JobId = Annotated[str, PathParameter(pattern=r"^[0-9a-f-]{36}$")]
State = Literal["waiting", "running", "done", "refused", "dead", "cancelled"]
CHUNK_BYTES = 1024 * 1024
PROBLEMS = problem_responses(UnknownJob, MalformedRequest, LedgerUnavailable)


def job_document(view: JobView) -> dict[str, Any]:
    """A job as JSON."""
    shown = asdict(view)
    del shown["requested_by"]
    output = shown.pop("output")
    safe = {name: output[name] for name in ("found", "verified", "objects", "left_out", "bundle") if name in output}
    return shown | safe | {"result": f"/jobs/{view.id}/result" if "key" in output else None}


@router.get("", summary="Jobs, the latest changed first", responses=problem_responses(MalformedRequest))
async def list_jobs(
    gateway: SharedGateway,
    state: Annotated[list[State] | None, Query(description="only these states")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    listed = partial(gateway.ledger.jobs.listed, states=state or (), limit=limit, offset=offset)
    return {"jobs": [job_document(view) for view in await to_thread.run_sync(listed)]}


@router.get("/{job_id}", summary="State, stage and percent of a job", responses=PROBLEMS)
async def show_job(request: Request, gateway: SharedGateway, job_id: JobId) -> dict[str, Any]:
    return job_document(await _job(request, gateway, job_id))


@router.get("/{job_id}/events", summary="A job's changes as server-sent events", response_class=Response,
            responses={200: {"content": {"text/event-stream": {}}}, **PROBLEMS})  # fmt: skip
async def job_events(request: Request, gateway: SharedGateway, job_id: JobId) -> StreamingResponse:
    jobs = gateway.ledger.jobs
    await _job(request, gateway, job_id)  # a refusal is an answer of its own, not an event
    return event_stream(
        lambda: job_document(jobs.get(job_id)),
        last=lambda document: document["state"] in ENDED,
        allowed=still_permitted(request, gateway.authenticator),
    )


@router.get("/{job_id}/result", summary="The answer of a request that did not wait", response_class=Response,
            responses={200: {"content": {"application/octet-stream": {}}},
                       **problem_responses(UnknownJob, JobNotFinished, LedgerUnavailable)})  # fmt: skip
async def job_result(request: Request, gateway: SharedGateway, job_id: JobId) -> Response:
    view = await _job(request, gateway, job_id)
    if "key" not in view.output:
        because = f" because of {view.reason}: {view.detail}" if view.reason else ""
        raise JobNotFinished(f"the job is {view.state}{because}")

    if study := view.output.get("study"):
        shown = Study(study["study_instance_uid"], study["patient_id"])
        await audit(gateway, transferred(gateway.audit.us, asking(request), shown))

    def content() -> bytes:
        with gateway.ledger.store.open(view.output["key"]) as stream:
            return stream.read()

    headers = {
        "Content-Disposition": f'attachment; filename="{view.output["file_name"]}"',
        "Server-Timing": view.output["server_timing"],
        "TAGS-Bundle": view.output.get("bundle", "unknown"),  # of a job from before bundles were noted
        "Cache-Control": "no-store",
    }
    return Response(await to_thread.run_sync(content), media_type=view.output["media_type"], headers=headers)


@router.delete("/{job_id}", summary="Cancel a job, or forget an ended request and its result", status_code=204,
               response_class=Response, responses=PROBLEMS)  # fmt: skip
async def delete_job(request: Request, gateway: SharedGateway, job_id: JobId) -> Response:
    view = await _job(request, gateway, job_id, Role.ADMIN)
    if view.ended and view.kind == "request":
        await to_thread.run_sync(forget_request, gateway.ledger, job_id)
    else:
        await to_thread.run_sync(gateway.ledger.jobs.cancel, job_id)
    return Response(status_code=204)


@router.post("/{job_id}/replay", summary="Let a failed job begin anew", status_code=202,
             responses=problem_responses(UnknownJob, JobNotReplayable, LedgerUnavailable))  # fmt: skip
async def replay_job(gateway: SharedGateway, job_id: JobId) -> dict[str, Any]:
    await to_thread.run_sync(gateway.ledger.jobs.replay, job_id)
    gateway.work_arrived()
    return job_document(await to_thread.run_sync(gateway.ledger.jobs.get, job_id))


async def _job(request: Request, gateway: Gateway, job_id: str, role: Role = Role.READ) -> JobView:
    """The job, for who asked for it and for who has the role. Raises: UnknownJob, RoleMissing."""
    view = await to_thread.run_sync(gateway.ledger.jobs.get, job_id)
    refuse_others(caller_of(request), view.requested_by, role)
    return view
