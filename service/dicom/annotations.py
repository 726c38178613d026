"""Places that a person has marked on a series: in a presentation state (PS3.3 C.10.5) or a report (PS3.3 C.18.6).

What enters: files of GSPS and SR objects. What leaves: the images they refer to, and what is marked there: points, and
lengths and outlines with their corners, counted as the `prompts` document counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from service.dicom.attribute import READ_ERRORS
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


@dataclass(frozen=True)
class ImageExtent:
    """A measured length (two corners) or an outline in an image: column and row as above."""

    sop_instance_uid: str
    corners: tuple[tuple[float, float], ...]
    is_length: bool = False


@dataclass(frozen=True)
class SpaceExtent:
    """The same in the patient's frame."""

    frame_of_reference_uid: str
    corners_lps_mm: tuple[tuple[float, float, float], ...]
    is_length: bool = False


Mark = ImagePoint | SpacePoint | ImageExtent | SpaceExtent


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


def read_marks(path: Path) -> tuple[Mark, ...]:
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


def _of_presentation_state(dataset: Dataset) -> Iterator[Mark]:
    """GraphicData in PIXEL units count from 1 at the centre of the first pixel (PS3.3 C.10.5.1.2)."""
    for annotation in dataset.GraphicAnnotationSequence:
        images = annotation.get("ReferencedImageSequence") or []
        for graphic in annotation.get("GraphicObjectSequence") or []:
            if graphic.get("GraphicAnnotationUnits") == "PIXEL":
                yield from _in_image(graphic, images, first_centre=1.0)


def _of_report(item: Dataset, depth: int) -> Iterator[Mark]:
    """SCOORD counts from 0 at the top left corner of the first pixel (PS3.3 C.18.6.1.1), whose centre is 0.5."""
    kind = item.get("ValueType")
    if kind == "SCOORD":
        images = [
            reference.ReferencedSOPSequence[0]
            for reference in item.get("ContentSequence") or []
            if reference.get("ValueType") == "IMAGE"
        ]
        yield from _in_image(item, images, first_centre=0.5)
    elif kind == "SCOORD3D":
        yield from _in_space(item)
    if depth < MAX_NESTING:
        for child in item.get("ContentSequence") or []:
            yield from _of_report(child, depth + 1)


def _in_image(graphic: Dataset, images: Sequence[Dataset], *, first_centre: float) -> Iterator[Mark]:
    """Args: images: those that the graphic is shown on; the first is taken. first_centre: of the first pixel."""
    corners = _corners(graphic, 2) - first_centre
    pixels = tuple((float(column), float(row)) for column, row in corners)
    for image in images[:1]:
        uid = str(image.ReferencedSOPInstanceUID)
        if _are_points(graphic, corners):
            yield from (ImagePoint(uid, pixel) for pixel in pixels)
        else:
            yield ImageExtent(uid, pixels, is_length=len(pixels) == 2)


def _in_space(item: Dataset) -> Iterator[Mark]:
    corners = _corners(item, 3)
    places = tuple((float(x), float(y), float(z)) for x, y, z in corners)
    uid = str(item.get("ReferencedFrameOfReferenceUID", ""))
    if _are_points(item, corners):
        yield from (SpacePoint(uid, place) for place in places)
    else:
        yield SpaceExtent(uid, places, is_length=len(places) == 2)


def _are_points(graphic: Dataset, corners: np.ndarray) -> bool:
    """A line that ends where it begins is a point too."""
    return graphic.get("GraphicType") in ("POINT", "MULTIPOINT") or len(corners) == 1


def _corners(graphic: Dataset, columns: int) -> np.ndarray:
    """(N, columns): of a circle, whose data are its centre and a place on it, the square around it; of an ellipse the
    ends of its axes; of an outline its corners, the first of which may be repeated at the end."""
    corners = np.asarray([float(value) for value in graphic.GraphicData]).reshape(-1, columns)
    kind = graphic.get("GraphicType")
    if kind == "CIRCLE":
        radius = float(np.linalg.norm(corners[1] - corners[0]))
        return np.stack([corners[0] - radius, corners[0] + radius, corners[0] + (radius, -radius)])
    if kind in ("POLYLINE", "POLYGON", "INTERPOLATED") and len(corners) > 1 and np.allclose(corners[0], corners[-1]):
        return corners[:-1]
    return corners
