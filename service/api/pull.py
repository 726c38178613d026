"""`POST /segment` with JSON: the series is fetched by WADO-RS from a source of the routing file, and from no other.

    {"source": "pacs", "study_instance_uid": "1.2", "series_instance_uid": "1.2.3", "prompts": {"text": "liver tumour"}}

What enters: the request. What leaves: an `Upload` as if the files had been sent, for as long as the context lasts.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from service.api.auditing import audit
from service.api.body import stream_blocks
from service.api.gateway import Gateway
from service.api.uploads import Upload
from service.audit.event import Participant, transferred
from service.dicom.acquisition import Acquisition
from service.dicomweb.client import DicomwebClient
from service.errors import MalformedRequest, UnknownSource
from service.prompt_document import PromptDocument
from service.rules.document import DicomwebPeer
from service.subject import study_of_files
from service.telemetry.stages import Stages

UID = Field(pattern=r"^[0-9.]{1,64}$")


class PullRequest(BaseModel):
    """What to fetch and what to look for. `source` names an entry of the routing file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    source: str = Field(max_length=64)
    study_instance_uid: str = UID
    series_instance_uid: str = UID
    prompts: PromptDocument = PromptDocument()
    acquisition: Acquisition = {}
    format: str | None = None


@asynccontextmanager
async def pulled(request: Request, gateway: Gateway, stages: Stages) -> AsyncIterator[Upload]:
    """Raises: MalformedRequest, UploadTooLarge, UploadStalled, UnknownSource, SourceUnavailable."""
    settings, body = gateway.settings, bytearray()
    await stream_blocks(
        request, body.extend, max_bytes=settings.max_field_bytes, idle_timeout_s=settings.upload_idle_timeout_s
    )
    wanted = _read(bytes(body))
    peer = gateway.routing.current.sources.get(wanted.source)
    if peer is None:
        raise UnknownSource
    directory = Path(tempfile.mkdtemp(prefix="tags-", dir=settings.temporary_dir))
    try:
        with stages("receive"):
            files = await to_thread.run_sync(_fetch, peer, wanted, directory, settings.max_upload_bytes)
        if gateway.audit.enabled and files:
            study = await to_thread.run_sync(study_of_files, files, wanted.study_instance_uid)
            source = Participant(wanted.source, network=urlsplit(peer.url).hostname or "")
            await audit(gateway, transferred(source, gateway.audit.us, study, action="C"))
        fields = {"prompts": wanted.prompts.model_dump_json(exclude_none=True)}
        fields["series_instance_uid"] = wanted.series_instance_uid
        if wanted.acquisition:
            fields["acquisition"] = json.dumps(wanted.acquisition)
        if wanted.format:
            fields["format"] = wanted.format
        yield Upload(tuple(files), None, None, fields, sum(file.stat().st_size for file in files))
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))


def _read(body: bytes) -> PullRequest:
    try:
        return PullRequest.model_validate_json(body)
    except ValidationError as error:
        known = PullRequest.model_fields
        places = [
            {"location": ".".join(str(part) for part in item["loc"][:1] if part in known), "message": item["msg"]}
            for item in error.errors(include_input=False)
        ]
    raise MalformedRequest("the JSON body is not valid; see errors", errors=places)


def _fetch(peer: DicomwebPeer, wanted: PullRequest, directory: Path, max_bytes: int) -> list[Path]:
    with DicomwebClient(peer) as client:
        return client.fetch_series(
            wanted.study_instance_uid, wanted.series_instance_uid, directory, max_bytes=max_bytes
        )
