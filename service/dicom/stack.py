"""Headers -> the sorted stack and its geometry, or a refusal that says what does not fit. Pure; no file is opened.

Slices ascend along the normal (row direction x column direction, PS3.3 C.7.6.2.1.1), so slice 0 of an axial series is
the most caudal one. Spacing comes from positions alone, never from SliceThickness. Nothing is averaged away: each
position must lie where an even stack puts it. Under gantry tilt the step from slice to slice is not the normal; the
affine keeps the true step, so the grid is sheared and every voxel stays where the scanner put it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.dicom.acquisition import choices
from service.dicom.header import DISCRIMINATORS, Header
from service.domain.geometry import Geometry
from service.errors import InconsistentGeometry, MissingSlice, MixedSeries

UNIT_TOLERANCE = 1e-3  # of a direction cosine's length, and of the dot product of row and column
WRITTEN_TOLERANCE = 1e-5  # cosines less exact are not written into results as they are: dciodvfy refuses them at 1e-4
ORIENTATION_TOLERANCE = 1e-3  # between images, per cosine: 0.06 degrees, 0.25 mm at the edge of a 500 mm image
PIXEL_SPACING_TOLERANCE_MM = 1e-4  # between images: 0.05 mm over 512 pixels
POSITION_TOLERANCE_MM = 0.1  # of a slice from its place in the even stack: positions rounded to 0.1 mm still pass
SAME_POSITION_MM = 0.01  # nearer than this along the normal: the same position
GAP_RATIO = 1.5  # a gap this many times the usual one is a missing slice, not noise
MAX_GAPS_SHARE = 0.25  # more gaps than this and the spacing varies by design
MAX_TILT_DEGREES = 45.0  # gantries tilt up to 30 degrees


def stack(headers: Sequence[Header]) -> tuple[tuple[Header, ...], Geometry]:
    """Sort the images of one series and lay them on a regular grid.

    Returns: the headers in ascending slice order, and their geometry.
    Raises: InconsistentGeometry, MixedSeries, MissingSlice.
    """
    try:
        return _one_stack(headers)
    except (InconsistentGeometry, MixedSeries, MissingSlice) as refusal:
        stacks = choices(headers, ["StackID"])
        if refusal.members.get("choices") or len(stacks) < 2:
            raise
        raise MixedSeries(
            f"The {len(headers)} frames are of {len(stacks)} stacks, by StackID, that form no volume together. "
            "Name one in the field acquisition.",
            choices=stacks,
        ) from refusal


def _one_stack(headers: Sequence[Header]) -> tuple[tuple[Header, ...], Geometry]:
    _check_present(headers)
    _check_alike(headers)
    row, column = _directions(headers[0])
    positions = np.array([header.position_lps_mm for header in headers])
    order = np.argsort(positions @ np.cross(row, column), kind="stable")
    ordered = tuple(_with_unit_cosines(headers[i]) for i in order)
    step = _step(ordered, positions[order], np.cross(row, column))
    spacing_rows_mm, spacing_columns_mm = headers[0].pixel_spacing_mm
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, column * spacing_rows_mm, row * spacing_columns_mm], axis=1)
    affine[:3, 3] = positions[order[0]]
    shape_zyx = (len(ordered), ordered[0].rows, ordered[0].columns)
    return ordered, Geometry(shape_zyx, affine, ordered[0].frame_of_reference_uid)


def _check_present(headers: Sequence[Header]) -> None:
    for name, missing in (
        ("ImagePositionPatient", sum(not h.position_lps_mm for h in headers)),
        ("ImageOrientationPatient", sum(not _is_orientation(h.orientation) for h in headers)),
        ("PixelSpacing", sum(not h.pixel_spacing_mm or min(h.pixel_spacing_mm) <= 0 for h in headers)),
    ):
        if missing:
            raise InconsistentGeometry(
                f"{name} is absent or invalid in {missing} of {len(headers)} images, so their place in the patient "
                "is unknown. Send the original images, not captures or exports without geometry."
            )


def _is_orientation(orientation: tuple[float, ...]) -> bool:
    """Two unit vectors at right angles."""
    return len(orientation) == 6 and _inexactness(orientation) <= UNIT_TOLERANCE


def _inexactness(orientation: tuple[float, ...]) -> float:
    """How far it is from two unit vectors at right angles."""
    row, column = orientation[:3], orientation[3:]
    deviations = (math.hypot(*row) - 1, math.hypot(*column) - 1, sum(a * b for a, b in zip(row, column, strict=True)))
    return max(map(abs, deviations))


def _with_unit_cosines(header: Header) -> Header:
    """As it is, but where its cosines were rounded to a few digits: then those of the plane that they stand for."""
    if _inexactness(header.orientation) <= WRITTEN_TOLERANCE:
        return header
    row, column = _directions(header)
    return replace(header, orientation=(*row.tolist(), *column.tolist()))


def _directions(header: Header) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row and along a column, exactly orthogonal."""
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _check_alike(headers: Sequence[Header]) -> None:
    """One patient, study, size, orientation, pixel spacing, frame of reference, and one kind of values."""
    first = headers[0]
    orientations = np.array([header.orientation for header in headers])
    spacings_mm = np.array([header.pixel_spacing_mm for header in headers])
    for name, differing in (
        ("Rows or Columns", sum((h.rows, h.columns) != (first.rows, first.columns) for h in headers)),
        ("ImageOrientationPatient", _unlike_first(orientations, ORIENTATION_TOLERANCE)),
        ("PixelSpacing", _unlike_first(spacings_mm, PIXEL_SPACING_TOLERANCE_MM)),
        ("StudyInstanceUID", sum(h.study_instance_uid != first.study_instance_uid for h in headers)),
        ("PatientID", sum(h.patient_id != first.patient_id for h in headers)),
        ("having a RescaleSlope or RescaleIntercept", sum(h.rescaled != first.rescaled for h in headers)),
        ("FrameOfReferenceUID", sum(h.frame_of_reference_uid != first.frame_of_reference_uid for h in headers)),
    ):
        if differing:
            raise MixedSeries(
                f"The {len(headers)} images differ in {name} ({differing} unlike the first). "
                "Send only the images of one stack."
            )


def _unlike_first(rows: np.ndarray, tolerance: float) -> int:
    return int((np.abs(rows - rows[0]) > tolerance).any(axis=1).sum())


def _step(ordered: Sequence[Header], positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The vector from one slice to the next, (3,) mm, after every check of evenness."""
    if len(ordered) == 1:
        # One slice has no neighbour to measure against: here alone its own thickness counts.
        thickness_mm = abs(ordered[0].spacing_between_slices_mm or ordered[0].slice_thickness_mm or 1.0)
        return normal * thickness_mm
    gaps_mm = np.diff(positions @ normal)
    _check_doubled(ordered, gaps_mm)
    _check_gaps(gaps_mm)
    step: np.ndarray = (positions[-1] - positions[0]) / (len(ordered) - 1)
    _check_even(positions, step, gaps_mm)
    tilt_degrees = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
    if tilt_degrees > MAX_TILT_DEGREES:
        raise InconsistentGeometry(
            f"From slice to slice the images shift sideways by {tilt_degrees:.0f} degrees from their normal; "
            f"up to {MAX_TILT_DEGREES:.0f} is read as gantry tilt."
        )
    return step


def _check_doubled(ordered: Sequence[Header], gaps_mm: np.ndarray) -> None:
    doubled = np.flatnonzero(gaps_mm < SAME_POSITION_MM).tolist()
    if not doubled:
        return
    pairs = [(dict(ordered[i].discriminators), dict(ordered[i + 1].discriminators)) for i in doubled]
    differing = [name for name in DISCRIMINATORS if any(one[name] != other[name] for one, other in pairs)]
    raise MixedSeries(
        f"{len(doubled)} of {len(ordered)} images lie where another image lies already; "
        + (f"such images differ in {', '.join(differing)}. " if differing else "no usual attribute tells them apart. ")
        + "Name one acquisition in the field acquisition, or send its images only.",
        choices=choices(ordered, differing),
    )


def _check_gaps(gaps_mm: np.ndarray) -> None:
    usual_mm = float(np.median(gaps_mm))
    wide = np.flatnonzero(gaps_mm >= GAP_RATIO * usual_mm)
    if not wide.size:
        return
    ratios = gaps_mm[wide] / usual_mm
    whole_slices = np.all(np.abs(ratios - np.rint(ratios)) * usual_mm <= 2 * POSITION_TOLERANCE_MM)
    if wide.size > max(1, MAX_GAPS_SHARE * gaps_mm.size) or not whole_slices:
        raise InconsistentGeometry(_varying(gaps_mm))
    missing = int(np.rint(ratios).sum()) - wide.size
    raise MissingSlice(
        f"{missing} slice{'s' * (missing > 1)} missing: after slice {wide[0] + 1} of the {gaps_mm.size + 1} that are "
        f"there, the gap is {gaps_mm[wide[0]]:.2f} mm where {usual_mm:.2f} mm is usual. Send the missing images."
    )


def _check_even(positions: np.ndarray, step: np.ndarray, gaps_mm: np.ndarray) -> None:
    even = positions[0] + np.arange(len(positions))[:, None] * step
    deviation_mm = float(np.linalg.norm(positions - even, axis=1).max())
    if deviation_mm > POSITION_TOLERANCE_MM + 1e-6:
        if np.ptp(gaps_mm) > POSITION_TOLERANCE_MM:
            raise InconsistentGeometry(_varying(gaps_mm))
        raise InconsistentGeometry(
            f"The slices do not lie on one straight line: up to {deviation_mm:.2f} mm beside it, "
            f"{POSITION_TOLERANCE_MM} mm is allowed."
        )


def _varying(gaps_mm: np.ndarray) -> str:
    return (
        f"The distance between slices varies from {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm; "
        f"slices may lie {POSITION_TOLERANCE_MM} mm off an even stack. "
        "Send a part with even spacing, or a reformatted series."
    )
