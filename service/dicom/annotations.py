"""Places that a person has marked on a series: in a presentation state (PS3.3 C.10.5) or a report (PS3.3 C.18.6).

What enters: files of GSPS and SR objects. What leaves: the images they refer to, and points as the `prompts` document
has them. A line, polyline, circle or ellipse stands for its middle: that of a measured diameter lies in the finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from service.dicom.header import READ_ERRORS
from service.errors import MaskMismatch

MAX_NESTING = 32  # of content items; a report of TID 1500 has eight


@dataclass(frozen=True)
class ImagePoint:
    """A place in an image: column and row from 0, an integer at a pixel's centre."""

    sop_instance_uid: str
    pixel: tuple[float, float]


@dataclass(frozen=True)
class SpacePoint:
    """A place in the patient's frame."""

    frame_of_reference_uid: str
    lps_mm: tuple[float, float, float]


def referenced_instances(path: Path) -> frozenset[str]:
    """SOP Instance UIDs of all objects that this one refers to. Raises: MaskMismatch: it cannot be read."""
    dataset = _read(path)
    found: set[str] = set()

    def collect(nested: Dataset, depth: int) -> None:
        if "ReferencedSOPInstanceUID" in nested:
            found.add(str(nested.ReferencedSOPInstanceUID))
        for element in nested:
            if element.VR == "SQ" and depth < MAX_NESTING and element.tag.group != 0x5200:
                for item in element.value:
                    collect(item, depth + 1)

    try:
        collect(dataset, 0)
    except READ_ERRORS as error:
        raise MaskMismatch("an annotation cannot be read") from error
    return frozenset(found)


def read_points(path: Path) -> tuple[ImagePoint | SpacePoint, ...]:
    """Raises: MaskMismatch: it cannot be read."""
    dataset = _read(path)
    try:
        if "GraphicAnnotationSequence" in dataset:
            return tuple(_of_presentation_state(dataset))
        return tuple(_of_report(dataset, 0))
    except READ_ERRORS as error:
        raise MaskMismatch("an annotation cannot be read") from error


def _read(path: Path) -> Dataset:
    try:
        return dcmread(path, stop_before_pixels=True)
    except READ_ERRORS as error:
        raise MaskMismatch("an annotation cannot be read") from error


def _of_presentation_state(dataset: Dataset) -> Iterator[ImagePoint]:
    """GraphicData in PIXEL units count from 1 at the centre of the first pixel (PS3.3 C.10.5.1.2)."""
    for annotation in dataset.GraphicAnnotationSequence:
        images = annotation.get("ReferencedImageSequence") or []
        for graphic in annotation.get("GraphicObjectSequence") or []:
            if graphic.get("GraphicAnnotationUnits") != "PIXEL":
                continue
            middle = _middle(graphic, 2)
            for image in images[:1]:
                yield ImagePoint(str(image.ReferencedSOPInstanceUID), (middle[0] - 1, middle[1] - 1))


def _of_report(item: Dataset, depth: int) -> Iterator[ImagePoint | SpacePoint]:
    """SCOORD counts from 0 at the top left corner of the first pixel (PS3.3 C.18.6.1.1), whose centre is 0.5."""
    kind = item.get("ValueType")
    if kind == "SCOORD":
        images = [
            reference.ReferencedSOPSequence[0]
            for reference in item.get("ContentSequence") or []
            if reference.get("ValueType") == "IMAGE"
        ]
        middle = _middle(item, 2)
        for image in images[:1]:
            yield ImagePoint(str(image.ReferencedSOPInstanceUID), (middle[0] - 0.5, middle[1] - 0.5))
    elif kind == "SCOORD3D":
        x, y, z = _middle(item, 3)
        yield SpacePoint(str(item.get("ReferencedFrameOfReferenceUID", "")), (x, y, z))
    if depth < MAX_NESTING:
        for child in item.get("ContentSequence") or []:
            yield from _of_report(child, depth + 1)


def _middle(graphic: Dataset, columns: int) -> tuple[float, ...]:
    """A circle's first corner is its centre, an ellipse's corners are the ends of its axes; others are outlines, whose
    last corner may repeat the first."""
    corners = np.asarray([float(value) for value in graphic.GraphicData]).reshape(-1, columns)
    kind = graphic.get("GraphicType")
    if kind == "CIRCLE":
        corners = corners[:1]
    elif kind not in ("ELLIPSE", "ELLIPSOID") and len(corners) > 2 and np.allclose(corners[0], corners[-1]):
        corners = corners[:-1]
    return tuple(float(value) for value in corners.mean(axis=0))
