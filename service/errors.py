"""The error tree. A leaf has status, slug and fixed title; `detail` is safe: counts, units and tag names only.

TagsError
├── RequestRefused      MalformedRequest 400, UploadTooLarge 413, UnsupportedMediaType 415,
│                       UnsupportedTransferSyntax 415, NotAcceptable 406
├── SeriesRefused       NotDicom, NoUsableSeries, SeveralSeries, UnknownSeries, MixedSeries, MissingSlice,
│                       InconsistentGeometry, UnsupportedModality, DamagedPixelData 422; VolumeTooLarge 413
├── PromptsRefused      NoPrompts, PromptOutsideVolume, TooManyPrompts, MaskMismatch 422
├── NothingFound        422 (only for formats that cannot say "nothing": DICOM SEG)
├── ModelUnavailable    ModelNotReady 503, ModelBusy 503, ModelTimeout 504, ModelContractBroken 502
└── ServiceFault        SegEncodingFailed 500, InternalError 500
"""

from __future__ import annotations

from typing import ClassVar


class TagsError(Exception):
    """Base of everything the service answers as problem+json (RFC 9457)."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, detail: str = "", **members: object) -> None:
        """Args: detail: safe text. members: extra safe members of the answer, such as `series` with UIDs to choose."""
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.members = members


class RequestRefused(TagsError):
    status = 400


class MalformedRequest(RequestRefused):
    slug, title = "malformed-request", "The request could not be read"


class NotAcceptable(RequestRefused):
    status, slug, title = 406, "not-acceptable", "No such output format"


class UploadTooLarge(RequestRefused):
    status, slug, title = 413, "upload-too-large", "The upload exceeds a limit"


class UnsupportedMediaType(RequestRefused):
    status, slug, title = 415, "unsupported-media-type", "This kind of body or file is not supported"


class UnsupportedTransferSyntax(RequestRefused):
    status, slug, title = 415, "unsupported-transfer-syntax", "No decoder for this transfer syntax"


class SeriesRefused(TagsError):
    status = 422


class NotDicom(SeriesRefused):
    slug, title = "not-dicom", "The upload holds no DICOM image"


class NoUsableSeries(SeriesRefused):
    slug, title = "no-usable-series", "The upload holds no series that can be segmented"


class SeveralSeries(SeriesRefused):
    slug, title = "several-series", "The upload holds several series; name one"


class UnknownSeries(SeriesRefused):
    slug, title = "unknown-series", "The named series is not in the upload"


class MixedSeries(SeriesRefused):
    slug, title = "mixed-series", "The series mixes images that do not form one volume"


class MissingSlice(SeriesRefused):
    slug, title = "missing-slice", "The series has a gap"


class InconsistentGeometry(SeriesRefused):
    slug, title = "inconsistent-geometry", "The slices do not form a regular stack"


class UnsupportedModality(SeriesRefused):
    slug, title = "unsupported-modality", "Only CT and MR are supported"


class DamagedPixelData(SeriesRefused):
    slug, title = "damaged-pixel-data", "Pixel data are missing or damaged"


class VolumeTooLarge(SeriesRefused):
    status, slug, title = 413, "volume-too-large", "The volume exceeds a limit"


class PromptsRefused(TagsError):
    status = 422


class NoPrompts(PromptsRefused):
    slug, title = "no-prompts", "A text, a foreground point, a box or a mask is needed"


class PromptOutsideVolume(PromptsRefused):
    slug, title = "prompt-outside-volume", "A prompt lies outside the volume"


class TooManyPrompts(PromptsRefused):
    slug, title = "too-many-prompts", "More points and boxes than the network has slots for"


class MaskMismatch(PromptsRefused):
    slug, title = "mask-mismatch", "A prompt mask cannot be laid onto the series"


class NothingFound(TagsError):
    status, slug, title = 422, "nothing-found", "Nothing was found, and this format cannot say so"


class ModelUnavailable(TagsError):
    status = 503
    retry_after_s = 5


class ModelNotReady(ModelUnavailable):
    slug, title = "model-not-ready", "The inference engine is not ready"


class ModelBusy(ModelUnavailable):
    slug, title = "model-busy", "The inference engine is at its limit"


class ModelTimeout(ModelUnavailable):
    status, slug, title = 504, "model-timeout", "The inference engine did not answer in time"


class ModelContractBroken(ModelUnavailable):
    status, slug, title = 502, "model-contract-broken", "The inference engine's tensors break the contract"
    retry_after_s = None


class ServiceFault(TagsError):
    status = 500


class SegEncodingFailed(ServiceFault):
    slug, title = "seg-encoding-failed", "The DICOM result could not be written"


class InternalError(ServiceFault):
    slug, title = "internal-error", "Internal error"
