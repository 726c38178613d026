"""Files -> the one series to segment. What cannot be used is set aside and counted, what does not fit is refused.

Only headers are read here; `Series.read` decodes pixels later, slice by slice. Blocking: call it off the event loop.
"""

from __future__ import annotations

import filecmp
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.dicom.acquisition import of_acquisition
from service.dicom.header import Header, NotUsed, read_headers
from service.dicom.pixels import check_transfer_syntaxes, read_voxels
from service.dicom.series import Series, SetAside
from service.dicom.stack import stack
from service.errors import (
    DamagedPixelData,
    MissingSlice,
    MixedSeries,
    NotDicom,
    NoUsableSeries,
    SeveralSeries,
    TagsError,
    UnknownSeries,
    UnsupportedModality,
    VolumeTooLarge,
)

# One sentence per slug of service.dicom.header, for a refusal where nothing else is left to use.
WHY = {
    "not-dicom": "not DICOM",
    "unreadable": "damaged beyond reading",
    "dicomdir": "DICOMDIR directories",
    "other-object": "objects without a volume (reports, segmentations, structure sets, captures)",
    "other-modality": "images of other modalities",
    "multi-frame": "multi-frame objects that are no Enhanced CT or MR, or have more frames than any of those",
    "frames-without-place": "Enhanced multi-frame images that do not say where each frame lies",
    "mosaic": "mosaics of many slices in one image: export them as single slices or as Enhanced MR",
    "localizer": "localizers",
    "colour": "colour images",
    "intensity-table": "images with a modality lookup table instead of a rescale",
    "no-uid": "objects without SeriesInstanceUID or StudyInstanceUID",
    "duplicate": "copies of an image already there",
}


@dataclass(frozen=True)
class SeriesLimits:
    """What one series may hold. Larger ones are refused before a pixel is decoded."""

    max_instances: int
    max_voxels: int


def read_series(
    files: Sequence[Path],
    *,
    series_instance_uid: str | None,
    limits: SeriesLimits,
    acquisition: Mapping[str, float] | None = None,
) -> Series:
    """Find, sort and check the series to segment.

    Args: files: any files, of one or more series, in any order.  series_instance_uid: which to take; None when the
    files hold only one usable series.  acquisition: numbers that its images must have; the others are set aside.
    Raises: any leaf of SeriesRefused; UnsupportedTransferSyntax. Details hold counts and tag names only.
    """
    series, unused = _group(files)
    of_series = _choose(series, unused, series_instance_uid)
    headers = of_acquisition(of_series, acquisition or {})
    if len(headers) > limits.max_instances:
        raise VolumeTooLarge(f"The series has {len(headers)} images; at most {limits.max_instances} are accepted.")
    if (voxels := sum(header.voxels for header in headers)) > limits.max_voxels:
        raise VolumeTooLarge(f"The series has {voxels} voxels; at most {limits.max_voxels} are accepted.")
    unreadable = sum(
        e.reason == "unreadable" and e.series_instance_uid == headers[0].series_instance_uid for e in unused
    )
    _check_complete(headers, unreadable)
    _check_concatenations(of_series)
    check_transfer_syntaxes(headers)
    distinct = _without_copies(headers)
    ordered, geometry = stack(distinct)
    copies = _left_out("duplicate", headers, distinct)
    others = _left_out("other-acquisition", of_series, headers)
    return Series(ordered, geometry, _set_aside([*unused, *copies, *others]))


def _group(files: Iterable[Path]) -> tuple[dict[str, list[Header]], list[NotUsed]]:
    """Usable images by SeriesInstanceUID, and the rest."""
    series: dict[str, list[Header]] = defaultdict(list)
    unused: list[NotUsed] = []
    for path in files:
        headers = read_headers(path)
        if isinstance(headers, NotUsed):
            unused.append(headers)
        else:
            series[headers[0].series_instance_uid] += headers
    return dict(series), unused


def _left_out(reason: str, headers: Sequence[Header], kept: Sequence[Header]) -> list[NotUsed]:
    kept_ids = {id(header) for header in kept}
    return [NotUsed(reason, h.series_instance_uid, h.sop_instance_uid) for h in headers if id(h) not in kept_ids]


def _set_aside(unused: Sequence[NotUsed]) -> tuple[SetAside, ...]:
    """By reason, in alphabetical order."""
    by_reason: dict[str, list[NotUsed]] = defaultdict(list)
    for entry in unused:
        by_reason[entry.reason].append(entry)
    return tuple(
        SetAside(reason, len(entries), tuple(e.sop_instance_uid for e in entries if e.sop_instance_uid))
        for reason, entries in sorted(by_reason.items())
    )


def _choose(series: dict[str, list[Header]], unused: list[NotUsed], series_instance_uid: str | None) -> list[Header]:
    if series_instance_uid is not None:
        if series_instance_uid in series:
            return series[series_instance_uid]
        if of_it := [entry for entry in unused if entry.series_instance_uid == series_instance_uid]:
            raise _nothing_usable(of_it)
        raise UnknownSeries(
            f"The upload holds {len(series)} usable series; none has the SeriesInstanceUID that was named.",
            series=_listing(series),
        )
    if not series:
        raise _nothing_usable(unused)
    if len(series) > 1:
        raise SeveralSeries(
            f"The upload holds {len(series)} usable series. Name one in the field series_instance_uid.",
            series=_listing(series),
        )
    return next(iter(series.values()))


def _listing(series: dict[str, list[Header]]) -> list[dict[str, object]]:
    """What a caller needs to choose: UIDs, modality and count; no descriptions, they may name a patient."""
    return [
        {"series_instance_uid": uid, "modality": headers[0].modality, "instances": len(headers)}
        for uid, headers in sorted(series.items())
    ]


def _nothing_usable(unused: Sequence[NotUsed]) -> TagsError:
    """The refusal that fits what there is instead."""
    counts = Counter(entry.reason for entry in unused)
    set_aside = [{"reason": reason, "count": count} for reason, count in sorted(counts.items())]
    told = "; ".join(f"{count} {WHY[reason]}" for reason, count in counts.most_common())
    if not counts or set(counts) <= {"not-dicom", "unreadable"}:
        return NotDicom(f"No file is a DICOM image: {told or 'no file at all'}.", set_aside=set_aside)
    if "other-modality" in counts and not counts.keys() & {
        "multi-frame",
        "mosaic",
        "localizer",
        "colour",
        "intensity-table",
    }:
        return UnsupportedModality(f"The upload holds no CT or MR image: {told}.", set_aside=set_aside)
    return NoUsableSeries(f"Nothing in the upload forms a volume: {told}.", set_aside=set_aside)


def _check_complete(headers: Sequence[Header], unreadable: int) -> None:
    """A damaged image is never just left out: at either end of the stack nobody would notice."""
    damaged = unreadable + sum(
        not (h.complete and h.voxels and h.bits_allocated and h.sop_instance_uid) for h in headers
    )
    if damaged:
        raise DamagedPixelData(
            f"{damaged} of {len(headers) + unreadable} images have no pixel data, or their files are damaged or end "
            "too early. Fetch the series again from its source."
        )


def _check_concatenations(headers: Sequence[Header]) -> None:
    """An object in several parts must be whole: frames missing at its end would leave no gap."""
    parts: dict[tuple[str, int], set[str]] = defaultdict(set)
    for header in headers:
        parts[header.concatenation].add(header.sop_instance_uid)
    missing = sum(max(total - len(uids), 0) for (_, total), uids in parts.items())
    if missing:
        raise MissingSlice(f"{missing} of the objects of a concatenation are missing. Send all of its parts.")


def _without_copies(headers: Sequence[Header]) -> list[Header]:
    """Each image once: neither an instance sent twice, nor equal pixels at one position under two UIDs.

    Raises: MixedSeries when two files claim to be the same instance but differ.
    """
    of_uid: dict[tuple[str, int], Header] = {}
    for header in headers:
        first = of_uid.setdefault((header.sop_instance_uid, header.frame), header)
        if first is not header and not _same_image(first, header):
            raise MixedSeries("Two different images carry the same SOPInstanceUID. Send the series from its source.")
    at_place: dict[tuple[float, ...], Header] = {}
    for header in of_uid.values():
        place = header.position_lps_mm + header.orientation or (id(header),)  # no place: `stack` refuses it
        first = at_place.setdefault(place, header)
        if first is not header and not _same_image(first, header):
            return list(of_uid.values())  # several acquisitions: `stack` says what tells them apart
    return list(at_place.values())


def _same_image(one: Header, other: Header) -> bool:
    """Equal files; or, after a change of transfer syntax, equal places and pixels."""
    if one.frame == other.frame and filecmp.cmp(one.path, other.path, shallow=False):
        return True
    placed_alike = (one.position_lps_mm, one.orientation) == (other.position_lps_mm, other.orientation)
    return placed_alike and np.array_equal(read_voxels(one), read_voxels(other))
