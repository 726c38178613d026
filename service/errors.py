"""The error tree. A leaf has status, slug and fixed title; `detail` is safe: counts, units and tag names only.

A leaf's docstring says what happened and what to do; `docs/errors.md` and the page /docs/errors are made of it.

TagsError
├── RequestRefused      MalformedRequest 400, UnknownPath 404, UnknownBundle 404, MethodNotAllowed 405,
│                       NotAcceptable 406, UploadStalled 408, UploadTooLarge 413,
│                       UnsupportedMediaType 415, UnsupportedTransferSyntax 415, UnknownProfile 400,
│                       NotDeidentifiable 422
├── AccessRefused       Unauthenticated 401, RoleMissing 403, ForeignOrigin 403, ForeignHost 421, TooManyRequests 429,
│                       AuthenticationUnavailable, AuditUnavailable 503
├── SeriesRefused       NotDicom, NoUsableSeries, SeveralSeries, UnknownSeries, MixedSeries, MissingSlice,
│                       InconsistentGeometry, UnsupportedModality, DamagedPixelData, SegEncodingFailed 422;
│                       VolumeTooLarge 413
├── PromptsRefused      NoPrompts, PromptOutsideVolume, TooManyPrompts, MaskMismatch 422
├── NothingFound        422 (only for formats that cannot say "nothing": DICOM SEG)
├── LedgerRefused       UnknownJob 404, UnknownObject 404, JobNotFinished 409, JobNotReplayable 409, UnknownSource 422;
│                       LedgerUnavailable, ReceiverBusy 503, SourceUnavailable 502, StorageFull 507
├── ModelUnavailable    ModelNotReady 503, ModelBusy 503, ModelTimeout 504, ModelContractBroken 502
└── ServiceFault        ResultNotProved 500, InternalError 500
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
    """A part, field or archive of the request cannot be read as what it should be. `errors` names each place in a
    prompt document; correct it and send again."""

    slug, title = "malformed-request", "The request could not be read"


class UnknownPath(RequestRefused):
    """There is nothing at this address. /docs lists what there is."""

    status, slug, title = 404, "unknown-path", "Nothing here"


class UnknownBundle(RequestRefused):
    """`bundle` names no bundle that is loaded here, or more than one. `bundles` lists their names with versions, and so
    does /capabilities."""

    status, slug, title = 404, "unknown-bundle", "No such bundle is loaded"


class MethodNotAllowed(RequestRefused):
    """The address exists, but not for this method. /docs lists both."""

    status, slug, title = 405, "method-not-allowed", "This method is not offered here"


class UploadStalled(RequestRefused):
    """No byte of the body arrived for TAGS_UPLOAD_IDLE_TIMEOUT_S, or fewer than 1024 a second for more than a minute.
    Check the connection and send again."""

    status, slug, title = 408, "upload-stalled", "The upload stood still"


class NotAcceptable(RequestRefused):
    """Neither `format` nor `Accept` names a format that the service writes. `formats` lists those that it does."""

    status, slug, title = 406, "not-acceptable", "No such output format"


class UploadTooLarge(RequestRefused):
    """The body, its number of files, or what its archives inflate to exceeds a limit named in the detail. Send one
    series only, or raise the TAGS_MAX_* setting."""

    status, slug, title = 413, "upload-too-large", "The upload exceeds a limit"


class UnsupportedMediaType(RequestRefused):
    """The body is not multipart/form-data, or a part is an archive other than ZIP, TAR or TAR.GZ. Send DICOM files
    or one of these archives."""

    status, slug, title = 415, "unsupported-media-type", "This kind of body or file is not supported"


class UnsupportedTransferSyntax(RequestRefused):
    """The images are compressed in a way that no installed decoder reads. Convert them to Explicit VR Little
    Endian, for example with `gdcmconv --raw`."""

    status, slug, title = 415, "unsupported-transfer-syntax", "No decoder for this transfer syntax"


class NotDeidentifiable(RequestRefused):
    """De-identified processing was asked for, and cannot be had: no key is set here (TAGS_DEIDENTIFICATION_KEY), or an
    image says by BurnedInAnnotation that words are burned into its pixels. Remove them, or ask without."""

    status, slug, title = 422, "not-deidentifiable", "This cannot be processed without identity"


class UnknownProfile(RequestRefused):
    """`profile` names no destination that this service has a profile for. `profiles` lists those that it has."""

    slug, title = "unknown-profile", "No such destination profile"


class AccessRefused(TagsError):
    status = 403


class Unauthenticated(AccessRefused):
    """The request carries no token or API key, or one that is not accepted; the detail says why. Send
    `Authorization: Bearer ...` with a token of the configured issuer for the configured audience, or an API key."""

    status, slug, title = 401, "unauthenticated", "A valid token or API key is needed"


class RoleMissing(AccessRefused):
    """The caller is known, but has none of the roles that this address needs; the detail names them. The operator
    grants roles at the issuer or in the key file."""

    slug, title = "role-missing", "The caller lacks the role for this"


class ForeignOrigin(AccessRefused):
    """A browser sent this request for a page of another site. No other site may use the service through a visitor's
    browser; there are no CORS headers either."""

    slug, title = "foreign-origin", "Requests from other sites' pages are refused"


class ForeignHost(AccessRefused):
    """Without authentication the service answers only under this machine's own names and addresses. Call it at
    127.0.0.1 or localhost, or set up authentication."""

    status, slug, title = 421, "foreign-host", "The service is not known by this name"


class TooManyRequests(AccessRefused):
    """This client has asked more often than TAGS_CLIENT_REQUESTS_PER_MINUTE allows, or has more requests open than
    TAGS_CLIENT_REQUESTS_AT_ONCE. Try again after `Retry-After`."""

    status, slug, title = 429, "too-many-requests", "This client asks too much"
    retry_after_s: ClassVar[int | None] = 5


class AuthenticationUnavailable(AccessRefused):
    """Whether the caller may be let in cannot be told: the issuer's keys cannot be fetched, or the key file is not
    valid. The operator must mend it; try again after `Retry-After`."""

    status, slug, title = 503, "authentication-unavailable", "Callers cannot be checked"
    retry_after_s: ClassVar[int | None] = 10


class AuditUnavailable(AccessRefused):
    """The audit trail cannot be written, and TAGS_AUDIT_REQUIRED says that nothing is done without it. The operator
    must mend it; try again after `Retry-After`."""

    status, slug, title = 503, "audit-unavailable", "The audit trail cannot be written"
    retry_after_s: ClassVar[int | None] = 10


class SeriesRefused(TagsError):
    status = 422


class NotDicom(SeriesRefused):
    """No file of the upload is a DICOM image. Check that the DICOM files themselves were sent, not links, a
    DICOMDIR or a viewer."""

    slug, title = "not-dicom", "The upload holds no DICOM image"


class NoUsableSeries(SeriesRefused):
    """There are DICOM objects, but none is a CT or MR series that forms a volume. `set_aside` counts why each
    object was left out."""

    slug, title = "no-usable-series", "The upload holds no series that can be segmented"


class SeveralSeries(SeriesRefused):
    """Choose one of the listed series with the field `series_instance_uid`."""

    slug, title = "several-series", "The upload holds several series; name one"


class UnknownSeries(SeriesRefused):
    """`series_instance_uid` names a series that the upload does not hold. Compare it with the listed ones."""

    slug, title = "unknown-series", "The named series is not in the upload"


class MixedSeries(SeriesRefused):
    """The images differ in orientation, acquisition or size, so that they do not form one volume. Name one of the
    listed choices in the field `acquisition`, or send the images of one acquisition."""

    slug, title = "mixed-series", "The series mixes images that do not form one volume"


class MissingSlice(SeriesRefused):
    """Two neighbouring slices lie further apart than the others, or a part of a concatenation is not there. Send the
    missing images; a gap is never filled in."""

    slug, title = "missing-slice", "The series has a gap"


class InconsistentGeometry(SeriesRefused):
    """Positions or orientations do not make a regular stack, or are absent. Such a series cannot be segmented in
    three dimensions."""

    slug, title = "inconsistent-geometry", "The slices do not form a regular stack"


class UnsupportedModality(SeriesRefused):
    """The networks know CT and MR only."""

    slug, title = "unsupported-modality", "Only CT and MR are supported"


class DamagedPixelData(SeriesRefused):
    """An image has no pixel data, too few, or its compressed stream is broken. Fetch the series again from its
    source."""

    slug, title = "damaged-pixel-data", "Pixel data are missing or damaged"


class VolumeTooLarge(SeriesRefused):
    """The series has more images or voxels than TAGS_MAX_INSTANCES or TAGS_MAX_VOXELS allows. Send fewer slices
    around the finding."""

    status, slug, title = 413, "volume-too-large", "The volume exceeds a limit"


class SegEncodingFailed(SeriesRefused):
    """The mask exists, but the series lacks what a DICOM result needs, such as FrameOfReferenceUID. Ask for another
    format, or send the original images."""

    slug, title = "seg-encoding-failed", "The series lacks what a DICOM result needs"


class PromptsRefused(TagsError):
    status = 422


class NoPrompts(PromptsRefused):
    """Nothing says what to look for. Add a `text`, a point with label 1, a box, or a mask."""

    slug, title = "no-prompts", "A text, a foreground point, a box or a mask is needed"


class PromptOutsideVolume(PromptsRefused):
    """A point or box lies outside the series, or names an image that is not in it. The detail says which and gives
    the range; check the frame (LPS mm, or column, row, slice from 0)."""

    slug, title = "prompt-outside-volume", "A prompt lies outside the volume"


class TooManyPrompts(PromptsRefused):
    """The network takes 32 slots: one per point, two per box. Send fewer."""

    slug, title = "too-many-prompts", "More points and boxes than the network has slots for"


class MaskMismatch(PromptsRefused):
    """`organ_mask` or `mask` lies on another grid or in another frame of reference, and does not overlap the series."""

    slug, title = "mask-mismatch", "A prompt mask cannot be laid onto the series"


class NothingFound(TagsError):
    """The network found no tumour at the prompt, and an empty DICOM SEG breaks viewers. Ask for `format=json` or
    `nifti` to have that as a result, or move the prompt."""

    status, slug, title = 422, "nothing-found", "Nothing was found, and this format cannot say so"


class LedgerRefused(TagsError):
    status = 409


class UnknownJob(LedgerRefused):
    """There is no job with this id. /jobs lists those that there are."""

    status, slug, title = 404, "unknown-job", "No such job"


class UnknownObject(LedgerRefused):
    """No study, series, instance or frame with these UIDs is held. Look it up with QIDO-RS, or send it first."""

    status, slug, title = 404, "unknown-object", "No such object is held"


class JobNotFinished(LedgerRefused):
    """The job has no result: it still waits or runs, or it ended without one. GET /jobs/{id} says which."""

    slug, title = "job-not-finished", "The job has no result"


class JobNotReplayable(LedgerRefused):
    """Only a job that was refused, cancelled or given up can be replayed."""

    slug, title = "job-not-replayable", "The job cannot be replayed as it stands"


class UnknownSource(LedgerRefused):
    """`source` names no DICOMweb source of TAGS_ROUTING_FILE. Only configured sources are ever contacted."""

    status, slug, title = 422, "unknown-source", "No such source is configured"


class SourceUnavailable(LedgerRefused):
    """The DICOMweb source does not answer, refuses, or does not hold the series. Check it and try again."""

    status, slug, title = 502, "source-unavailable", "The source did not give the series"
    retry_after_s: ClassVar[int | None] = 30


class LedgerUnavailable(LedgerRefused):
    """The database or the object store cannot be reached. Nothing was acknowledged; send again after `Retry-After`."""

    status, slug, title = 503, "ledger-unavailable", "The ledger is not available"
    retry_after_s: ClassVar[int | None] = 10


class ReceiverBusy(LedgerRefused):
    """As many STOW-RS requests as TAGS_MAX_RECEIVING allows are being received. Send again after `Retry-After`."""

    status, slug, title = 503, "receiver-busy", "The receiver is at its limit"
    retry_after_s: ClassVar[int | None] = 5


class StorageFull(LedgerRefused):
    """There is no room for what was sent. Nothing was acknowledged; the operator must make room."""

    status, slug, title = 507, "storage-full", "The storage is full"
    retry_after_s: ClassVar[int | None] = 300


class ModelUnavailable(TagsError):
    status = 503
    retry_after_s: ClassVar[int | None] = 5


class ModelNotReady(ModelUnavailable):
    """The engine is down, starting, or unreachable. Try again after `Retry-After`; the operator finds the cause at
    /health/ready."""

    slug, title = "model-not-ready", "The inference engine is not ready"


class ModelBusy(ModelUnavailable):
    """As many requests as TAGS_MAX_WAITING allows are waiting already. Try again after `Retry-After`."""

    slug, title = "model-busy", "The inference engine is at its limit"


class ModelTimeout(ModelUnavailable):
    """The answer took longer than TAGS_TRITON_TIMEOUT_S or TAGS_REQUEST_TIMEOUT_S. Try again after `Retry-After`,
    or with a smaller series."""

    status, slug, title = 504, "model-timeout", "The inference engine did not answer in time"


class ModelContractBroken(ModelUnavailable):
    """The inference server answers with tensors of other names, types or shapes than this gateway expects. The
    operator must deploy the bundle that belongs to it."""

    status, slug, title = 502, "model-contract-broken", "The inference engine's tensors break the contract"
    retry_after_s = None


class ServiceFault(TagsError):
    status = 500


class ResultNotProved(ServiceFault):
    """A result object was written, read again by other code, and found to differ from the mask, to lie outside its
    images, or to break the standard. It is not released. The detail says which check failed; please report the request
    id."""

    slug, title = "result-not-proved", "The result did not pass its proof, and is not released"


class InternalError(ServiceFault):
    """A fault of the service. Nothing of the request is kept; report the request id, which the log carries too."""

    slug, title = "internal-error", "Internal error"
