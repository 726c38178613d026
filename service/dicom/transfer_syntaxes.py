"""Which transfer syntaxes the installed decoders read."""

from __future__ import annotations

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

NATIVE = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian}


def readable_transfer_syntaxes() -> list[dict[str, str]]:
    """UID and name of each, in the order of the standard's registry."""
    return [{"uid": str(uid), "name": UID(uid).name} for uid in AllTransferSyntaxes if is_readable(uid)]


def is_readable(uid: str) -> bool:
    if uid in NATIVE:
        return True
    try:
        return bool(get_decoder(UID(uid)).is_available)
    except NotImplementedError:  # pydicom has no decoder for it at all
        return False
