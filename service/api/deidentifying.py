"""An upload of `POST /segment` without its patient, before anything else looks at it or keeps it (decision 21).

What enters: an upload as it came. What leaves: the same files, de-identified where they lie, and what the request says
of them by UID, in the new UIDs. The audit trail is told whose study it was; nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from anyio import to_thread
from starlette.requests import Request

from service.api.auditing import asking, audit, studies_of
from service.api.gateway import Gateway
from service.api.uploads import Upload
from service.audit.event import accessed
from service.dicom.deidentification import Original, Pseudonyms, deidentify
from service.mask_file import is_dicom
from service.prompt_document import read_prompt_document
from service.settings import Settings
from service.telemetry.stages import Stages


def pseudonyms_for(settings: Settings, *, asked: bool) -> Pseudonyms | None:
    """None where neither the request nor the settings want it. Raises: NotDeidentifiable: no key is set."""
    if not (asked or settings.deidentify_requests):
        return None
    return Pseudonyms.keyed(settings.deidentification_key.get_secret_value())


async def deidentified_upload(
    request: Request, gateway: Gateway, upload: Upload, pseudonyms: Pseudonyms, stages: Stages
) -> Upload:
    """Raises: NotDeidentifiable, MalformedRequest: the prompts, AuditUnavailable."""
    with stages("deidentify"):
        changed, originals = await to_thread.run_sync(_deidentified, upload, pseudonyms)
    studies = studies_of((item.study_instance_uid, item.patient_id, item.sop_class_uid) for item in originals)
    await audit(gateway, *(accessed(asking(request), gateway.audit.us, study) for study in studies))
    return changed


def _deidentified(upload: Upload, pseudonyms: Pseudonyms) -> tuple[Upload, list[Original]]:
    """Masks first, then images. A NIfTI names nobody. Returns: the upload, and what its images were."""
    for mask in (upload.organ_mask, upload.mask):
        if mask and is_dicom(mask):
            deidentify(mask, pseudonyms)
    originals = [found for path in upload.files if (found := deidentify(path, pseudonyms))]
    uids = {uid for item in originals for uid in (item.sop_instance_uid, item.series_instance_uid) if uid}
    fields = _renamed(upload.fields, {uid: pseudonyms.uid(uid) for uid in uids})
    return replace(upload, fields=fields), originals


def _renamed(fields: Mapping[str, str], new_uids: Mapping[str, str]) -> dict[str, str]:
    """Series and images that the request names by their old UID; by their new one they are known too."""
    renamed = dict(fields)
    if (series := fields.get("series_instance_uid", "").strip()) in new_uids:
        renamed["series_instance_uid"] = new_uids[series]
    document = read_prompt_document(fields.get("prompts"))
    points = tuple(
        point.model_copy(update={"sop_instance_uid": new_uids.get(point.sop_instance_uid, point.sop_instance_uid)})
        if point.sop_instance_uid
        else point
        for point in document.points
    )
    if points:
        renamed["prompts"] = document.model_copy(update={"points": points}).model_dump_json(exclude_none=True)
    return renamed
