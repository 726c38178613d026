"""The values of a data set's attributes, as plain values whatever the file says.

Nothing here raises for a bad file: what is absent or no such value is None, an empty text or ().
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

# What pydicom raises for bytes that are no DICOM, or broken DICOM; established by feeding it damaged files.
READ_ERRORS = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError,
    IndexError, NotImplementedError, OverflowError, RecursionError, struct.error, zlib.error,
)  # fmt: skip
# Short values of these VRs mean the same whatever else a data set holds (no character set, no pixel representation).
SELF_CONTAINED_VRS = ("AS", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "SL", "SS", "TM", "UI", "UL", "US")
SHORT_BYTES = 128


@cache
def tag_of(name: str) -> BaseTag:
    """Looking a name up costs pydicom more than reading its value."""
    return Tag(name)


def text(dataset: Dataset, name: str) -> str:
    return str(value(dataset, name) or "").strip()


def texts(dataset: Dataset, name: str) -> tuple[str, ...]:
    found = value(dataset, name) or ()
    several: Iterable[Any] = (found,) if isinstance(found, str) else found
    return tuple(str(one).strip().upper() for one in several)


def told(dataset: Dataset, name: str) -> str:
    """A value as text that two images can be compared by."""
    found = value(dataset, name)
    return str(list(found) if isinstance(found, MultiValue) else found)


def integer(dataset: Dataset, name: str) -> int | None:
    found = number(dataset, name)
    return None if found is None else int(found)


def number(dataset: Dataset, name: str) -> float | None:
    """A single finite number, else None."""
    found = value(dataset, name)
    if isinstance(found, bytes):  # an ambiguous or wrong VR
        return None
    try:
        finite = float(found)
    except (TypeError, ValueError):
        return None
    return finite if math.isfinite(finite) else None


def rescale(dataset: Dataset, name: str, *, absent: float) -> float:
    """NaN, not a default, for a value that is there but no number: decoding then refuses the image."""
    found = number(dataset, name)
    if found is not None:
        return found
    element = dataset.get_item(tag_of(name), keep_deferred=True)
    return absent if element is None or element.value in (None, "", b"") else math.nan


def numbers(dataset: Dataset, name: str, count: int) -> tuple[float, ...]:
    """Exactly `count` finite numbers, else ()."""
    try:
        found = tuple(float(one) for one in value(dataset, name))
    except (TypeError, ValueError):
        return ()
    return found if len(found) == count and all(map(math.isfinite, found)) else ()


def value(dataset: Dataset, name: str) -> Any:
    """As pydicom converts it; None where it is absent or pydicom cannot."""
    try:
        if raw := self_contained(dataset, tag_of(name)):
            return _converted(raw)
        element = dataset.get(tag_of(name))
        return None if element is None else element.value
    except READ_ERRORS:  # pydicom converts on access
        return None


def self_contained(dataset: Dataset, tag: BaseTag) -> RawDataElement | None:
    """The undecoded element, if it is short and means the same in every data set; equal ones are equal wherever they
    stand. Most of a series' elements are those of its first image: what is made of them may be kept by them."""
    raw = dataset.get_item(tag, keep_deferred=True)
    if isinstance(raw, RawDataElement) and raw.VR in SELF_CONTAINED_VRS and 0 < raw.length <= SHORT_BYTES:
        return raw._replace(value_tell=0)
    return None


@lru_cache(maxsize=512)
def _converted(raw: RawDataElement) -> Any:
    return convert_raw_data_element(raw).value
