"""A header as plain text by keyword: what rules look at.

What enters: a Part 10 file. What leaves: values by DICOM keyword, top level only, without sequences and binary values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue

from service.dicom.attribute import READ_ERRORS
from service.dicom.facts import DEFERRED_BYTES
from service.dicom.limited_reader import LimitedReader
from service.errors import NotDicom

BINARY = {"SQ", "OB", "OW", "OD", "OF", "OL", "OV", "UN"}
Keywords = Mapping[str, tuple[str, ...]]


def is_keyword(name: str) -> bool:
    """Whether the standard's dictionary has it."""
    return tag_for_keyword(name) is not None


def read_keywords(path: Path) -> Keywords:
    """Raises: NotDicom."""
    try:
        with LimitedReader(path) as stream:
            dataset = dcmread(stream, stop_before_pixels=True, defer_size=DEFERRED_BYTES)
    except READ_ERRORS as error:
        raise NotDicom("the file is damaged or is no DICOM object") from error
    found: dict[str, tuple[str, ...]] = {}
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            if not element.keyword or element.VR in BINARY:
                continue
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            found[element.keyword] = tuple(str(value).strip() for value in values if value not in (None, ""))
        except READ_ERRORS:
            continue
    return found
