"""Proof before release: each result object is read again by a path that did not write it.

What enters: the bytes of an object, and the outcome that it must show. What leaves: nothing, or ResultNotProved. The
readers here use pydicom alone: no highdicom, no affine of the series. Every frame and contour is placed by the header
of the one image that it refers to, so that a mistake in sorting, geometry or references shows. Details name checks and
counts, never values. Decision: docs/decisions/0013-result-objects.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.tag import Tag

from service.dicom.attribute import READ_ERRORS
from service.dicom.header import Header
from service.dicom.outcome import Outcome
from service.dicom.source_images import source_images
from service.dicom.validator import ValidatorFailed, standard_errors
from service.domain.contours import filled
from service.domain.measurements import Measurements
from service.errors import ResultNotProved

MIN_DICE = 0.98  # of an RTSTRUCT's contours, filled again
PLACE_TOLERANCE_MM = 1e-3  # of a frame's corner; positions are written as decimal strings
PLANE_TOLERANCE_MM = 0.01  # of a contour's point from its image's plane
EDGE_TOLERANCE_PIXELS = 0.01  # a contour may run along the image's outer edge
DS_BYTES = 16  # PS3.5 6.2
CONTOUR_DATA = Tag(0x3006, 0x0050)
MEASURED_TOLERANCE = 1e-3  # millimetres or millilitres: what the report rounds to


def prove_seg(objects: Sequence[bytes], outcome: Outcome) -> None:
    """Every voxel of the mask, on the image that its frame refers to. Raises: ResultNotProved."""
    mask = outcome.mask.voxels
    found: dict[int, np.ndarray] = {}  # by slice, for a second grid may be larger than all else together
    slices, between_mm = _slices(outcome), _between_mm(outcome.series.headers)
    for content in objects:
        dataset = _read("SEG", content, outcome)
        frames = _seg_frames(dataset)
        _check("SEG", frames.shape[1:] == mask.shape[1:], "frames have another size than the images")
        groups = dataset.PerFrameFunctionalGroupsSequence
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for frame, group in zip(frames, groups, strict=True):
            source = group.DerivationImageSequence[0].SourceImageSequence[0]
            number, header = _referenced("SEG", source, slices, outcome)
            _check("SEG", _lies_on(group, shared, header), "a frame does not lie on the image that it refers to")
            measures = (group.get("PixelMeasuresSequence") or shared.PixelMeasuresSequence)[0]
            off_mm = abs(float(measures.SpacingBetweenSlices) - between_mm)
            _check("SEG", off_mm <= PLACE_TOLERANCE_MM, "the distance between slices is not that of the images")
            _check("SEG", bool(frame.any()), "a frame is empty")
            found[number] = found[number] | frame if number in found else frame
    same = sorted(found) == outcome.slices.tolist() and all(np.array_equal(found[n], mask[n]) for n in found)
    _check("SEG", same, "voxels differ from the mask")


def prove_rtstruct(content: bytes, outcome: Outcome) -> None:
    """The contours, filled, are the mask; each lies in its image, has three points and decimal strings that fit.

    Raises: ResultNotProved.
    """
    dataset = _read("RTSTRUCT", content, outcome)
    mask = outcome.mask.voxels
    slices = _slices(outcome)
    curves: dict[int, list[np.ndarray]] = {}
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        raw = contour.get_item(CONTOUR_DATA)
        parts = bytes(raw.value).split(b"\\")
        _check("RTSTRUCT", max(map(len, parts)) <= DS_BYTES, "a decimal string is longer than 16 bytes")
        points = np.array([float(part) for part in parts]).reshape(-1, 3)
        _check("RTSTRUCT", len(points) >= 3, "a contour has fewer than three points")
        _check("RTSTRUCT", len(points) == contour.NumberOfContourPoints, "a contour states another number of points")
        number, header = _referenced("RTSTRUCT", contour.ContourImageSequence[0], slices, outcome)
        curves.setdefault(number, []).append(_in_image(points, header))
    both, sizes = 0, int(np.count_nonzero(mask))
    for number, of_slice in curves.items():
        found = filled(of_slice, mask.shape[1:])
        both += int(np.count_nonzero(found & mask[number]))
        sizes += int(np.count_nonzero(found))
    dice = 2 * both / sizes if sizes else 0.0
    _check("RTSTRUCT", dice >= MIN_DICE, f"the filled contours agree with the mask to a Dice of {dice:.3f} only")


def prove_sr(content: bytes, outcome: Outcome, measured: Measurements) -> None:
    """The report's numbers are those measured, and it refers to images and a segment of this result.

    Raises: ResultNotProved.
    """
    dataset = _read("SR", content, outcome)
    items = list(_content_items(dataset))
    stated = [float(i.MeasuredValueSequence[0].NumericValue) for i in items if i.ValueType == "NUM"]
    expected = (
        [measured.volume_ml, measured.long_axis_mm, measured.short_axis_mm, measured.max_diameter_mm]
        if measured.voxels
        else []
    )
    same = len(stated) >= len(expected) and np.allclose(stated[: len(expected)], expected, atol=MEASURED_TOLERANCE)
    _check("SR", bool(same), "the numbers differ from those measured")
    references = [i.ReferencedSOPSequence[0] for i in items if i.ValueType == "IMAGE"]
    uids = {str(reference.ReferencedSOPInstanceUID) for reference in references}
    images = {header.sop_instance_uid for header in outcome.series.headers}
    expected_other = {outcome.seg_uid} if measured.voxels else set()
    _check("SR", uids - images == expected_other, "it refers to other objects than the images and their segment")
    _check("SR", bool(uids & images), "it refers to no image")


def prove_captures(objects: Sequence[bytes], outcome: Outcome) -> None:
    """Pictures that decode, each of an image of the series. Raises: ResultNotProved."""
    uids = set(outcome.series.sop_instance_uids)
    for content in objects:
        dataset = _read("secondary capture", content, outcome)
        expected = dataset.Rows * dataset.Columns * 3
        _check("secondary capture", len(dataset.PixelData) in (expected, expected + 1), "pixels are missing")
        referenced = str(dataset.SourceImageSequence[0].ReferencedSOPInstanceUID)
        _check("secondary capture", referenced in uids, "it refers to an image outside the series")


def _check(what: str, holds: bool, otherwise: str) -> None:
    if not holds:
        raise ResultNotProved(f"{what}: {otherwise}.")


def _read(what: str, content: bytes, outcome: Outcome) -> Dataset:
    """The object, valid by the standard, and of the same patient, study and frame of reference as the series."""
    try:
        errors = standard_errors(content)
    except ValidatorFailed as error:
        raise ResultNotProved(f"{what}: {error}.") from error
    if errors:
        named = ", ".join(sorted(set(errors)))
        raise ResultNotProved(f"{what}: dciodvfy finds {len(errors)} errors, at {named}.")
    try:
        dataset = dcmread(BytesIO(content))
        (source,) = source_images(outcome.series.headers[:1])
    except READ_ERRORS as error:
        raise ResultNotProved(f"{what}: it cannot be read again.") from error
    for name in ("PatientID", "PatientName", "StudyInstanceUID"):
        _check(what, str(dataset.get(name) or "") == str(source.get(name) or ""), f"{name} is not that of the series")
    frame = dataset.get("FrameOfReferenceUID")
    _check(
        what, frame in (None, outcome.series.geometry.frame_of_reference_uid), "the frame of reference is another one"
    )
    _check(what, frame is not None or dataset.Modality in ("SR", "OT"), "it has no frame of reference")
    return dataset


def _slices(outcome: Outcome) -> dict[tuple[str, int], int]:
    """Slice by SOPInstanceUID and frame (0 for an image of one frame)."""
    return {(header.sop_instance_uid, header.frame): n for n, header in enumerate(outcome.series.headers)}


def _between_mm(headers: Sequence[Header]) -> float:
    """From slice to slice along the normal; of a single image its thickness."""
    first, last = headers[0], headers[-1]
    if first is last:
        return abs(first.spacing_between_slices_mm or first.slice_thickness_mm or 1.0)
    normal = np.cross(*np.array(first.orientation).reshape(2, 3))
    return float((np.array(last.position_lps_mm) - first.position_lps_mm) @ normal) / (len(headers) - 1)


def _referenced(
    what: str, item: Dataset, slices: dict[tuple[str, int], int], outcome: Outcome
) -> tuple[int, Header]:  # fmt: skip
    key = (str(item.ReferencedSOPInstanceUID), int(item.get("ReferencedFrameNumber") or 0))
    _check(what, key in slices, "it refers to an image outside the series")
    return slices[key], outcome.series.headers[slices[key]]


def _seg_frames(dataset: Dataset) -> np.ndarray:
    """(N, H, W) bool. Bits are packed from the lowest on, across frames: PS3.5 8.1.1."""
    shape = (int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns))
    count = int(np.prod(shape))
    stored = np.frombuffer(dataset.PixelData, np.uint8)
    if dataset.BitsAllocated == 1:
        stored = np.unpackbits(stored, count=count, bitorder="little")
    return stored[:count].reshape(shape) > 0


def _lies_on(group: Dataset, shared: Dataset, header: Header) -> bool:
    def item(name: str) -> Dataset:
        found: Dataset = (group.get(name) or shared[name].value)[0]
        return found

    position = np.array(item("PlanePositionSequence").ImagePositionPatient, float)
    orientation = np.array(item("PlaneOrientationSequence").ImageOrientationPatient, float)
    spacing = np.array(item("PixelMeasuresSequence").PixelSpacing, float)
    size = np.array([header.columns * spacing[1]] * 3 + [header.rows * spacing[0]] * 3)
    off = [
        np.abs(position - header.position_lps_mm).max(),
        (np.abs(orientation - header.orientation) * size).max(),
        (np.abs(spacing - header.pixel_spacing_mm) * (header.rows, header.columns)).max(),
    ]
    return bool(max(off) <= PLACE_TOLERANCE_MM)


def _in_image(points_lps_mm: np.ndarray, header: Header) -> np.ndarray:
    """(N, 2) row, column of a contour in the image that it refers to."""
    along_row, along_column = np.array(header.orientation).reshape(2, 3)
    offset = points_lps_mm - header.position_lps_mm
    beside_mm = np.abs(offset @ np.cross(along_row, along_column)).max()
    _check("RTSTRUCT", beside_mm <= PLANE_TOLERANCE_MM, "a contour does not lie in its image's plane")
    between_rows_mm, between_columns_mm = header.pixel_spacing_mm
    index = np.stack([offset @ along_column / between_rows_mm, offset @ along_row / between_columns_mm], axis=1)
    low, high = -0.5 - EDGE_TOLERANCE_PIXELS, np.array([header.rows, header.columns]) - 0.5 + EDGE_TOLERANCE_PIXELS
    _check("RTSTRUCT", bool(np.all((index >= low) & (index <= high))), "a contour leaves its image")
    return index


def _content_items(dataset: Dataset) -> list[Dataset]:
    """All content items of a report, depth first."""
    items: list[Dataset] = []
    for item in dataset.get("ContentSequence") or ():
        items += [item, *_content_items(item)]
    return items
