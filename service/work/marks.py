"""What a person has marked on a series, as prompts: points as points, lengths and outlines as boxes.

What enters: marks of GSPS and SR objects, and the series. What leaves: points and boxes of the prompt document. A mark
lies in one plane, and how deep the finding goes is not said; so a measured length stands for a cube of that length
around its middle, since a finding is rarely longer than its measured diameter, and an outline is taken to be as deep as
it is wide. Marks whose boxes overlap, such as a long and a short axis or an outline on each slice, are one finding.
Decision: docs/decisions/0016-marks-as-boxes.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.dicom.annotations import ImageExtent, ImagePoint, Mark, SpaceExtent, SpacePoint
from service.domain.geometry import Geometry
from service.prompt_document import Box, Point

MAX_MARKS = 16  # of one series; the network has 32 slots, a box takes two


class MarkedSeries(Protocol):
    """What of a series is needed. `service.dicom.series.Series` is one."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def sop_instance_uids(self) -> tuple[str, ...]: ...

    def slice_of(self, sop_instance_uid: str) -> int:
        """Raises: KeyError."""
        ...


def prompts_of(marks: Iterable[Mark], source: MarkedSeries) -> tuple[tuple[Point, ...], tuple[Box, ...]]:
    """Those that lie on this series, up to MAX_MARKS."""
    frame = source.geometry.frame_of_reference_uid
    slices = {uid: _slice_or_none(source, uid) for uid in source.sop_instance_uids}
    points: list[Point] = []
    findings: list[_Finding] = []
    for mark in marks:
        if isinstance(mark, ImagePoint):
            if mark.sop_instance_uid in slices:
                points.append(Point(sop_instance_uid=mark.sop_instance_uid, pixel=mark.pixel))
        elif isinstance(mark, ImageExtent):
            if (number := slices.get(mark.sop_instance_uid)) is not None:
                corners = np.array([(number, row, column) for column, row in mark.corners], float)
                findings = _joined(findings, _Finding(corners, mark.is_length), source.geometry)
        elif mark.frame_of_reference_uid in ("", frame):
            if isinstance(mark, SpacePoint):
                points.append(Point(lps_mm=mark.lps_mm))
            elif isinstance(mark, SpaceExtent):
                corners = source.geometry.to_index(np.array(mark.corners_lps_mm))
                findings = _joined(findings, _Finding(corners, mark.is_length), source.geometry)
    boxes = [finding.box(source.geometry) for finding in findings[:MAX_MARKS]]
    return tuple(points[: MAX_MARKS - len(boxes)]), tuple(boxes)


@dataclass(frozen=True, eq=False)
class _Finding:
    """One mark, or several that belong together. `corners_zyx`: (N, 3) index of the series."""

    corners_zyx: np.ndarray
    is_length: bool

    def bounds(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        """Opposite corners, (3,) each, index z, y, x."""
        low, high = self.corners_zyx.min(axis=0), self.corners_zyx.max(axis=0)
        spacing_mm = np.asarray(geometry.spacing_zyx_mm)
        size_mm = (high - low) * spacing_mm
        if self.is_length:
            size_mm = np.full(3, np.linalg.norm(size_mm))
        else:
            thin = int(size_mm.argmin())
            is_one_plane = size_mm[thin] < spacing_mm[thin]
            size_mm[thin] = np.delete(size_mm, thin).min() if is_one_plane else size_mm[thin] + spacing_mm[thin]
        middle, half = (low + high) / 2, size_mm / spacing_mm / 2
        return middle - half, middle + half

    def box(self, geometry: Geometry) -> Box:
        low, high = ([float(value) for value in corner[::-1]] for corner in self.bounds(geometry))
        return Box(index=((low[0], low[1], low[2]), (high[0], high[1], high[2])))


def _joined(findings: list[_Finding], new: _Finding, geometry: Geometry) -> list[_Finding]:
    """With those that overlap the new one made one with it, and so on."""
    while touched := [other for other in findings if _overlap(other, new, geometry)]:
        findings = [other for other in findings if other not in touched]
        new = _Finding(np.concatenate([*(other.corners_zyx for other in touched), new.corners_zyx]), is_length=False)
    return [*findings, new]


def _overlap(one: _Finding, other: _Finding, geometry: Geometry) -> bool:
    (low, high), (other_low, other_high) = one.bounds(geometry), other.bounds(geometry)
    return bool(np.all((low <= other_high) & (other_low <= high)))


def _slice_or_none(source: MarkedSeries, uid: str) -> int | None:
    """None for an image of several frames: a mark there does not say which."""
    try:
        return source.slice_of(uid)
    except KeyError:
        return None
