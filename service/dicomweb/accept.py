"""Accept of WADO-RS (PS3.18 8.7.5): multipart or one part, and which transfer syntax.

multipart/related; type="application/dicom"; transfer-syntax=*
"""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from service.errors import NotAcceptable

DEFAULT_TRANSFER_SYNTAX = "1.2.840.10008.1.2.1"  # Explicit VR Little Endian, PS3.18 8.7.3.5.2


@dataclass(frozen=True)
class Accepted:
    """The client's first choice that can be given. `transfer_syntax` "*" stands for whatever is held."""

    single_part: bool
    transfer_syntax: str

    @property
    def as_held(self) -> bool:
        return self.transfer_syntax == "*"


def read_accept(accept: str | None, media_type: str) -> Accepted:
    """Args: media_type: what the resource is made of. Raises: NotAcceptable."""
    for item in (accept or "*/*").split(","):
        kind, options = parse_options_header(item.strip())
        named = kind.decode("latin-1").lower()
        transfer_syntax = options.get(b"transfer-syntax", DEFAULT_TRANSFER_SYNTAX.encode()).decode("latin-1")
        if named == media_type:
            return Accepted(single_part=True, transfer_syntax=transfer_syntax)
        if named in ("*/*", "multipart/*"):
            return Accepted(single_part=False, transfer_syntax=transfer_syntax)
        part = options.get(b"type", media_type.encode()).decode("latin-1").lower()
        if named == "multipart/related" and part in (media_type, "*/*"):
            return Accepted(single_part=False, transfer_syntax=transfer_syntax)
    raise NotAcceptable(f'this resource is multipart/related; type="{media_type}"', formats=[media_type])
