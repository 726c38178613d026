"""Whether a mask among the prompts is an earlier result of ours: then the new result is its revision."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset, dcmread

from service.dicom.attribute import READ_ERRORS
from service.dicom.equipment import MANUFACTURER, MODEL_NAME
from service.dicom.outcome import Lineage
from service.dicom.seg import SOP_CLASSES

MAGIC_OFFSET = 128  # of "DICM": PS3.10 7.1


def read_lineage(path: Path | None) -> Lineage | None:
    """The tracking of a SEG that this service wrote; None for any other file, or for none."""
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            if stream.read(MAGIC_OFFSET + 4)[MAGIC_OFFSET:] != b"DICM":
                return None
        return _lineage(dcmread(path, stop_before_pixels=True))
    except READ_ERRORS:
        return None


def _lineage(dataset: Dataset) -> Lineage | None:
    ours = (dataset.get("Manufacturer"), dataset.get("ManufacturerModelName")) == (MANUFACTURER, MODEL_NAME)
    if not ours or dataset.get("SOPClassUID") not in SOP_CLASSES.values():
        return None
    segment = dataset.SegmentSequence[0]
    return Lineage(str(segment.TrackingID), str(segment.TrackingUID), str(dataset.SOPInstanceUID))
