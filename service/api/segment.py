"""`POST /segment`: a DICOM series and prompts in, a tumour mask out.

The order is fixed: a place (or 503) before the body is read; the body to files; a turn; headers; prompts; networks;
writing. Whatever uses the CPU runs in a thread, so that the event loop keeps answering. The route takes a bare
`Request`: an `UploadFile` parameter would have the body read before anything could refuse it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Annotated

import anyio
from anyio import to_thread
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from service.api.auditing import asking, audit
from service.api.deidentifying import deidentified_upload, pseudonyms_for
from service.api.disconnection import while_connected
from service.api.gateway import Gateway, SharedGateway
from service.api.negotiation import choose_format
from service.api.openapi import SEGMENT_BODY, SEGMENT_RESPONSES
from service.api.permissions import caller_of
from service.api.problems import record_of
from service.api.pull import pulled
from service.api.respond_async import accept_job, is_preferred
from service.api.uploads import Upload, received
from service.audit.event import Participant, accessed
from service.bundles import choose
from service.dicom.acquisition import read_acquisition
from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.lineage import read_lineage
from service.dicom.profiles import Profile, profile_named
from service.dicom.series import Series
from service.domain.prompts import Prompts
from service.errors import ModelTimeout
from service.inference.engine import Engine
from service.ledger.trails import Trail
from service.mask_file import read_mask
from service.prompt_document import PromptDocument, read_prompt_document, resolve
from service.results import Result, format_named, render
from service.segment import segment
from service.settings import Settings
from service.subject import study_of
from service.telemetry.request_log import RequestRecord
from service.telemetry.stages import Stages
from service.telemetry.tracing import current_traceparent

router = APIRouter()


@router.post(
    "/segment",
    tags=["segmentation"],
    summary="Segment the tumour at a prompt",
    response_class=Response,
    responses=SEGMENT_RESPONSES,
    openapi_extra=SEGMENT_BODY,
)
async def post_segment(
    request: Request,
    gateway: SharedGateway,
    format: Annotated[
        str | None, Query(description="seg (default), rtstruct, sr, sc, nifti, json, png or bundle")
    ] = None,
    profile: Annotated[str | None, Query(description="destination profile; /capabilities lists them")] = None,
    bundle: Annotated[
        str | None, Query(description="name and version of a loaded bundle; the default one else")
    ] = None,
    deidentified: Annotated[
        bool, Query(description="work on the series without its patient's identity; the results have pseudonyms")
    ] = False,
) -> Response:
    """Research use only. Not for diagnosis or treatment.

    Upload one CT or MR series as DICOM files or a ZIP or TAR(.gz) of them, with `prompts` that say what to look for;
    or name, in JSON, a series at a configured DICOMweb source. `Prefer: respond-async` makes it a job (202).
    """
    settings, record, stages = gateway.settings, record_of(request), Stages(tracer=gateway.tracer)
    accept = request.headers.get("accept")
    if format:
        format_named(format)  # a bad query is refused before the body is read
    if profile:
        profile_named(profile, settings.profiles_dir)
    choose(gateway.engines, bundle)
    pseudonyms = pseudonyms_for(settings, asked=deidentified)
    try:
        async with gateway.admission.place(), _upload(request, gateway, stages) as upload:
            if pseudonyms:
                upload = await deidentified_upload(request, gateway, upload, pseudonyms, stages)
            record.received_bytes, record.files = upload.received_bytes, len(upload.files)
            record.format = choose_format(query=format, field=upload.fields.get("format"), accept=accept)
            named = profile or upload.fields.get("profile", "").strip()
            wishes = profile_named(named, settings.profiles_dir)
            document = read_prompt_document(upload.fields.get("prompts"))
            asked = bundle or upload.fields.get("bundle", "").strip()
            engine = choose(gateway.engines, asked)
            if is_preferred(request):
                identity = engine.bundle.identity if asked else None
                trail, caller = Trail(record.request_id, current_traceparent()), caller_of(request).identity
                return await accept_job(
                    gateway,
                    upload,
                    format=record.format,
                    profile=named,
                    bundle=identity,
                    requested_by=caller,
                    trail=trail,
                )
            with anyio.move_on_after(settings.request_timeout_s):
                work = _segment(gateway, engine, upload, document, wishes, record, stages, asking(request))
                return _answer(await while_connected(request, work), engine, stages)
            raise ModelTimeout(f"the request took longer than {settings.request_timeout_s:g} s")
    finally:
        record.stages_ms = {name: round(1000 * seconds, 1) for name, seconds in stages.seconds.items()}


def _upload(request: Request, gateway: Gateway, stages: Stages) -> AbstractAsyncContextManager[Upload]:
    """The files that were sent, or those that a JSON body names at a source."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        return pulled(request, gateway, stages)
    return received(request, gateway.settings, stages)


async def _segment(
    gateway: Gateway,
    engine: Engine,
    upload: Upload,
    document: PromptDocument,
    profile: Profile,
    record: RequestRecord,
    stages: Stages,
    caller: Participant,
) -> Result:
    """The way from files to a result, in its turn."""
    async with gateway.admission.turn():
        with stages("headers"):
            series = await to_thread.run_sync(_read_series, upload, gateway.settings)
        _note_series(record, gateway, engine, series)
        if gateway.audit.enabled:
            study = await to_thread.run_sync(study_of, series)
            await audit(gateway, accessed(caller, gateway.audit.us, study))
        prompts = await to_thread.run_sync(_resolve, document, series, upload)
        _note_prompts(record, prompts)
        mask = await segment(series, prompts, engine, stages)
        record.found = bool(mask.voxels.any())
        lineage = await to_thread.run_sync(read_lineage, upload.mask)
        write = partial(render, profile=profile, lineage=lineage)
        return await to_thread.run_sync(
            write, record.format, series, mask, prompts, engine.bundle, stages
        )  # fmt: skip


def _read_series(upload: Upload, settings: Settings) -> Series:
    limits = SeriesLimits(max_instances=settings.max_instances, max_voxels=settings.max_voxels)
    uid = upload.fields.get("series_instance_uid", "").strip() or None
    acquisition = read_acquisition(upload.fields.get("acquisition"))
    return read_series(upload.files, series_instance_uid=uid, limits=limits, acquisition=acquisition)


def _resolve(document: PromptDocument, series: Series, upload: Upload) -> Prompts:
    organ_mask = read_mask(upload.organ_mask, series) if upload.organ_mask else None
    mask = read_mask(upload.mask, series) if upload.mask else None
    return resolve(document, series, organ_mask=organ_mask, mask=mask)


def _answer(result: Result, engine: Engine, stages: Stages) -> Response:
    headers = {
        "Content-Disposition": f'attachment; filename="{result.file_name}"',
        "Server-Timing": stages.server_timing(),
        "TAGS-Bundle": engine.bundle.identity,
        "Cache-Control": "no-store",
    }
    return Response(result.body, media_type=result.media_type, headers=headers)


def _note_series(record: RequestRecord, gateway: Gateway, engine: Engine, series: Series) -> None:
    record.bundle, record.engine = engine.bundle.identity, gateway.settings.engine
    record.series = gateway.log.series_hash(series.series_instance_uid)
    record.modality = series.modality
    record.shape_zyx = series.geometry.shape_zyx
    record.spacing_zyx_mm = tuple(round(float(value), 3) for value in series.geometry.spacing_zyx_mm)
    record.set_aside = sum(item.count for item in series.set_aside)


def _note_prompts(record: RequestRecord, prompts: Prompts) -> None:
    record.points, record.boxes = len(prompts.points_lps_mm), len(prompts.boxes_lps_mm)
    record.with_text = prompts.text is not None
    record.with_mask = prompts.mask is not None or prompts.organ_mask is not None
