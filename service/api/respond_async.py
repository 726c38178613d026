"""`Prefer: respond-async` (RFC 7240): the upload becomes a job, and its sender need not wait (202 with Location).

The files go to the object store before the answer, so that an accepted request outlives this process.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.gateway import Gateway
from service.api.jobs import job_document
from service.api.uploads import Upload
from service.dicom.acquisition import read_acquisition
from service.ledger.jobs import NewJob, Priority
from service.ledger.trails import Trail
from service.work.plans import RequestPlan


def is_preferred(request: Request) -> bool:
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(preference.split(";")[0].strip() == "respond-async" for preference in preferences)


async def accept_job(
    gateway: Gateway,
    upload: Upload,
    *,
    format: str,
    profile: str,
    bundle: str | None,
    requested_by: str,
    trail: Trail,
) -> Response:
    """The 202 answer.

    Args: profile: "" for the default one. bundle: identity of the one that the request named, None for the default.
    Raises: MalformedRequest, StorageFull, LedgerUnavailable.
    """
    job_id = await to_thread.run_sync(_enqueue, gateway, upload, format, profile, bundle, requested_by, trail)
    gateway.work_arrived()
    view = await to_thread.run_sync(gateway.ledger.jobs.get, job_id)
    headers = {"Location": f"/jobs/{job_id}", "Preference-Applied": "respond-async", "Cache-Control": "no-store"}
    return JSONResponse(job_document(view), 202, headers)


def _enqueue(
    gateway: Gateway, upload: Upload, format: str, profile: str, bundle: str | None, requested_by: str, trail: Trail
) -> str:
    job_id = str(uuid4())
    staged: list[tuple[Path, str]] = []

    def key(path: Path | None) -> str | None:
        if path is None:
            return None
        staged.append((path, f"requests/{job_id}/{len(staged):06}"))
        return staged[-1][1]

    files = tuple(name for path in upload.files if (name := key(path)))
    plan = RequestPlan(
        files=files,
        organ_mask=key(upload.organ_mask),
        mask=key(upload.mask),
        prompts=upload.fields.get("prompts"),
        series_instance_uid=upload.fields.get("series_instance_uid", "").strip() or None,
        acquisition=read_acquisition(upload.fields.get("acquisition")),
        format=format,
        profile=profile,
        bundle=bundle,
        requested_by=requested_by,
    )
    gateway.ledger.store.put(staged)
    return gateway.ledger.jobs.add(
        NewJob(
            "request",
            f"request:{job_id}",
            plan.document(),
            priority=Priority.INTERACTIVE,
            max_attempts=gateway.settings.job_attempts,
            id=job_id,
            trail=trail,
        )
    )
