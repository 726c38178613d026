"""STOW-RS bodies as senders make them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import httpx

BOUNDARY = "040ce131-e64c-4046-9f11-7d542616d1ee"
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def body(parts: Iterable[bytes | Path], *, boundary: str = BOUNDARY, media_type: str = "application/dicom") -> bytes:
    """As Orthanc sends it: each part with its type and length."""
    pieces = []
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part
        header = f"--{boundary}\r\nContent-Type: {media_type}\r\nContent-Length: {len(content)}\r\n\r\n"
        pieces += [header.encode(), content, b"\r\n"]
    return b"".join((*pieces, f"--{boundary}--\r\n".encode()))


def chunked(content: bytes, size: int = 65524) -> Iterable[bytes]:
    """httpx sends an iterator with Transfer-Encoding: chunked."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


def store(
    client: httpx.Client, parts: Iterable[bytes | Path], *, study: str = "", content_type: str = CONTENT_TYPE
) -> httpx.Response:
    headers = {"content-type": content_type, "accept": "application/dicom+json"}
    return client.post(f"/dicom-web/studies{study}", content=chunked(body(parts)), headers=headers)


def referenced(answer: httpx.Response) -> list[str]:
    """SOP Instance UIDs of ReferencedSOPSequence."""
    return [item["00081155"]["Value"][0] for item in answer.json().get("00081199", {}).get("Value", [])]


def failed(answer: httpx.Response) -> list[int]:
    """Reasons of FailedSOPSequence."""
    return [item["00081197"]["Value"][0] for item in answer.json().get("00081198", {}).get("Value", [])]
