"""What a job is to do, as it stands in the job table: written when it is made, so that later rules change nothing."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from service.dicom.profiles import DEFAULT_PROFILE


class _Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def document(self) -> dict[str, Any]:
        """For the job table."""
        return self.model_dump(mode="json")


class SeriesPlan(_Plan):
    """Segment a held series by a rule."""

    rule: str
    text: str | None = None
    target: str | None = None
    annotations: tuple[str, ...] = ()  # SOP Instance UIDs that say where to look
    organ_mask: str | None = None  # SOP Instance UID of a SEG
    acquisition: dict[str, float] = {}  # numbers that tell it from the others of the series
    bundle: str | None = None
    outputs: tuple[str, ...] | None = None  # what each destination's profile sends by default
    destinations: tuple[str, ...]
    profiles: dict[str, str] = {}  # of a destination: the name of its profile
    deidentified: bool = False

    def profile_of(self, destination: str) -> str:
        return self.profiles.get(destination) or DEFAULT_PROFILE


class DeliveryPlan(_Plan):
    """Bring results to a destination."""

    rule: str
    destination: str
    sop_instance_uids: tuple[str, ...]


class RequestPlan(_Plan):
    """Answer a `POST /segment` that did not wait. Keys of the object store."""

    files: tuple[str, ...]
    organ_mask: str | None = None
    mask: str | None = None
    prompts: str | None = None  # the document as it was sent, checked
    series_instance_uid: str | None = None
    acquisition: dict[str, float] = {}
    format: str
    requested_by: str = ""  # who may fetch the result without being allowed to read everything
    profile: str = ""  # name of the destination profile; the default one else
    bundle: str | None = None  # name and version, where the request named one; the default one else

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.files, *(key for key in (self.organ_mask, self.mask) if key))
