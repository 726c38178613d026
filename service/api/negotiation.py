"""Which output format a request asks for: the query's `format`, else the form's, else `Accept`, else `seg`."""

from __future__ import annotations

from service.errors import NotAcceptable
from service.results import DEFAULT_FORMAT, FORMATS, format_named

# Types that a client may name beside each format's own.
ALIASES = {
    "application/x-nifti": "nifti",
    "application/x-gzip": "nifti",
    "application/x-zip-compressed": "bundle",
    "application/*": DEFAULT_FORMAT,
    "image/*": "png",
    "*/*": DEFAULT_FORMAT,
}
# Where several formats share a type, the first of FORMATS stands for it: application/dicom means SEG.
BY_MEDIA_TYPE = {item.media_type: name for name, item in reversed(FORMATS.items())} | ALIASES


def choose_format(*, query: str | None, field: str | None, accept: str | None) -> str:
    """A key of FORMATS. Raises: NotAcceptable."""
    named = query or (field.strip() if field else None)
    if named:
        format_named(named)
        return named
    if not accept:
        return DEFAULT_FORMAT
    for media_type in _by_preference(accept):
        if media_type in BY_MEDIA_TYPE:
            return BY_MEDIA_TYPE[media_type]
    raise NotAcceptable(
        f"Accept names none of {', '.join(item.media_type for item in FORMATS.values())}", formats=list(FORMATS)
    )


def _by_preference(accept: str) -> list[str]:
    """Media types of an Accept header, best first; those with q=0 left out (RFC 9110, 12.5.1)."""
    weighted = []
    for item in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            weighted.append((float(weight), media_type))
        except ValueError:
            continue
    return [media_type for weight, media_type in sorted(weighted, key=lambda pair: -pair[0]) if weight > 0]
