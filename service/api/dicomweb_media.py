"""What the DICOMweb routes share: media types, Accept, and the absolute address that answers carry."""

from __future__ import annotations

from starlette.requests import Request

from service.errors import NotAcceptable

DICOM_JSON = "application/dicom+json"
JSON_TYPES = (DICOM_JSON, "application/json", "application/*", "*/*")


def accepts_dicom_json(request: Request) -> None:
    """Raises: NotAcceptable: the client takes neither DICOM JSON nor JSON (XML is not written)."""
    accept = request.headers.get("accept", "*/*").lower()
    named = [item.split(";")[0].strip() for item in accept.split(",")]
    if not any(media_type in JSON_TYPES for media_type in named):
        raise NotAcceptable(f"answers are {DICOM_JSON}", formats=[DICOM_JSON])


def dicomweb_root(request: Request) -> str:
    """Without a slash at the end. It follows the Host header, as the client's own addresses do."""
    return f"{str(request.base_url).rstrip('/')}/dicom-web"
