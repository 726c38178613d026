"""A client of another DICOMweb server: STOW-RS out, QIDO-RS to see whether it arrived, WADO-RS to fetch a series.

What enters: a configured peer. What leaves: UIDs and files. Addresses in answers are never followed, nor redirects: the
service calls the configured server and no other. Bodies are streamed both ways. Blocking.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx

from service.delivery.failure import DeliveryFailed, unreachable
from service.dicomweb.related import Part, RelatedParts, read_related
from service.errors import MalformedRequest, SourceUnavailable, UnsupportedMediaType, UploadTooLarge
from service.rules.document import DicomwebPeer
from service.tls import TlsInvalid

CHUNK_BYTES = 256 * 1024
DICOM_JSON = "application/dicom+json"
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # of a JSON answer


class Identified(Protocol):
    """What is known of an object, by its file's facts or by the ledger."""

    @property
    def sop_class_uid(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def series_instance_uid(self) -> str: ...
    @property
    def study_instance_uid(self) -> str: ...
    @property
    def transfer_syntax_uid(self) -> str: ...


@dataclass(frozen=True)
class Outgoing:
    """One object to send."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str

    @classmethod
    def of(cls, path: Path, known: Identified) -> Outgoing:
        """The file of an object whose UIDs are known already."""
        return cls(
            path=path,
            sop_class_uid=known.sop_class_uid,
            sop_instance_uid=known.sop_instance_uid,
            series_instance_uid=known.series_instance_uid,
            study_instance_uid=known.study_instance_uid,
            transfer_syntax_uid=known.transfer_syntax_uid,
        )


class DicomwebClient:
    """One peer. `close` it when done."""

    def __init__(self, peer: DicomwebPeer) -> None:
        token, password = peer.token().get_secret_value(), peer.password().get_secret_value()
        self._client = httpx.Client(
            base_url=peer.url.rstrip("/") + "/",
            timeout=peer.timeout_s,
            auth=(peer.username, password) if peer.username else None,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            verify=_context(peer),
            trust_env=False,  # a proxy of the environment would be another server than the configured one
            follow_redirects=False,
        )

    def __enter__(self) -> DicomwebClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def store(self, objects: Sequence[Outgoing]) -> None:
        """STOW-RS of all objects in one request. Raises: DeliveryFailed; some may have been stored all the same."""
        boundary = uuid4().hex
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": DICOM_JSON,
        }
        with _reached("the STOW-RS request"):
            response = self._client.post("studies", content=_related(objects, boundary), headers=headers)
        if response.status_code not in (200, 202, 409):
            raise _refused(response.status_code, "STOW-RS")
        failed = _items(response, "00081198")
        if failed or response.status_code == 409:
            reasons = sorted({f"{code:04X}" for item in failed for code in item.get("00081197", {}).get("Value", [])})
            detail = f"{len(failed) or len(objects)} of {len(objects)} objects were refused"
            raise DeliveryFailed("destination-refused", f"{detail}, reason {', '.join(reasons)}" if reasons else detail)

    def missing(self, objects: Sequence[Outgoing]) -> list[Outgoing]:
        """Those that QIDO-RS does not find. Raises: DeliveryFailed."""
        return [item for item in objects if not self._is_there(item)]

    def asked(self) -> httpx.Response:
        """The answer to a query for one study, whatever it is. Raises: DeliveryFailed: none came."""
        with _reached("the QIDO-RS query"):
            return self._client.get("studies", params={"limit": "1"}, headers={"Accept": DICOM_JSON})

    def fetch_series(
        self, study_instance_uid: str, series_instance_uid: str, directory: Path, *, max_bytes: int
    ) -> list[Path]:
        """The series by WADO-RS, as numbered files. Raises: SourceUnavailable, UploadTooLarge."""
        address = f"studies/{study_instance_uid}/series/{series_instance_uid}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        paths: list[Path] = []

        def keep(part: Part) -> None:
            paths.append(part.path)

        try:
            with self._client.stream("GET", address, headers={"Accept": accept}) as response:
                if response.status_code != 200:
                    raise SourceUnavailable(f"the source answered WADO-RS with {response.status_code}")
                parts = RelatedParts(read_related(response.headers.get("content-type")).boundary, directory, keep)
                try:
                    received = 0
                    for block in response.iter_bytes(CHUNK_BYTES):
                        received += len(block)
                        if received > max_bytes:
                            raise UploadTooLarge(f"the source's answer is larger than {max_bytes} bytes")
                        parts.write(block)
                    parts.finish()
                finally:
                    parts.close()
        except httpx.HTTPError as error:
            raise SourceUnavailable(f"the source could not be reached: {type(error).__name__}") from error
        except (MalformedRequest, UnsupportedMediaType) as error:
            raise SourceUnavailable("the source's answer is no whole multipart/related body") from error
        return paths

    def _is_there(self, item: Outgoing) -> bool:
        address = f"studies/{item.study_instance_uid}/series/{item.series_instance_uid}/instances"
        query = {"SOPInstanceUID": item.sop_instance_uid, "limit": "1"}
        with _reached("the QIDO-RS query"):
            response = self._client.get(address, params=query, headers={"Accept": DICOM_JSON})
        if response.status_code in (204, 404):
            return False
        if response.status_code != 200:
            raise _refused(response.status_code, "QIDO-RS")
        found = _json(response)
        return any(
            record.get("00080018", {}).get("Value") == [item.sop_instance_uid]
            for record in (found if isinstance(found, list) else [])
            if isinstance(record, dict)
        )


def _context(peer: DicomwebPeer) -> ssl.SSLContext | bool:
    """Raises: DeliveryFailed: files that cannot be used are the destination's trouble, not the object's."""
    if not peer.url.startswith("https:"):
        return True
    try:
        return peer.context()
    except TlsInvalid as error:
        raise unreachable(str(error)) from error


def _related(objects: Sequence[Outgoing], boundary: str) -> Iterator[bytes]:
    for item in objects:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with item.path.open("rb") as stream:
            while block := stream.read(CHUNK_BYTES):
                yield block
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


@contextmanager
def _reached(what: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise unreachable(f"{what} failed: {type(error).__name__}") from error


def _refused(status: int, what: str) -> DeliveryFailed:
    """5xx, 408, 429 and refused credentials concern the destination as a whole, other statuses these objects."""
    detail = f"{what} was answered with {status}"
    if status >= 500 or status in (401, 403, 408, 429):
        return unreachable(detail)
    return DeliveryFailed("destination-refused", detail)


def _items(response: httpx.Response, tag: str) -> list[dict[str, Any]]:
    """A sequence of the answer. Its mere presence means nothing: Orthanc always sends an empty one."""
    document = _json(response)
    sequence = document.get(tag, {}) if isinstance(document, dict) else {}
    return [item for item in sequence.get("Value", []) if isinstance(item, dict)]


def _json(response: httpx.Response) -> Any:
    """None for an empty body or one that is no JSON: what counts is what QIDO-RS says afterwards."""
    if len(response.content) > MAX_ANSWER_BYTES:
        return None
    try:
        return response.json()
    except ValueError:
        return None
