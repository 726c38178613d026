"""The result in the forms that users take away. One table of formats, shared by the API and the command line.

What enters: a series, its mask, the prompts, the bundle that answered, the destination's profile. What leaves: bytes
with a media type and a safe file name. Every form says that it is for research use only. A DICOM object is read again
by other code before it is released (service.dicom.proof).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from contract.bundle import Bundle
from service.dicom.outcome import Lineage, Outcome
from service.dicom.profiles import Profile, profile_named
from service.dicom.proof import prove_captures, prove_rtstruct, prove_seg, prove_sr
from service.dicom.receipt import receipt
from service.dicom.rtstruct import write_rtstruct
from service.dicom.secondary_capture import KeyImage, write_captures
from service.dicom.seg import write_seg
from service.dicom.series import Series
from service.dicom.sr import write_sr
from service.domain.mask import Mask
from service.domain.measurements import Measurements, intensity, measure
from service.domain.prompts import Prompts
from service.errors import NotAcceptable
from service.nifti import prove_nifti, write_nifti
from service.preview import RESEARCH_USE, key_image, key_slices, overlay_png, patient_orientation
from service.telemetry.stages import Stages

ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # ZIP's earliest: equal results give equal bytes
DICOM, ZIP = "application/dicom", "application/zip"


@dataclass(frozen=True)
class Result:
    """One answer's body."""

    body: bytes
    media_type: str
    file_name: str


@dataclass(frozen=True, eq=False)
class Finding:
    """Everything that a format may draw on."""

    series: Series
    mask: Mask
    prompts: Prompts
    bundle: Bundle
    stages: Stages
    profile: Profile = field(default_factory=profile_named)
    lineage: Lineage | None = None

    @property
    def found(self) -> bool:
        return bool(self.mask.voxels.any())

    @cached_property
    def outcome(self) -> Outcome:
        """What the writers of DICOM objects start from."""
        return Outcome(self.series, self.mask, self.prompts, self.bundle, self.profile, self.lineage)

    @cached_property
    def measured(self) -> Measurements:
        return measure(self.mask)


@dataclass(frozen=True)
class Format:
    """One output format: how it is asked for, named and written. `write` gives one file, or several: a DICOM format
    that the profile splits is then answered as a ZIP of them."""

    media_type: str
    file_name: str
    description: str
    write: Callable[[Finding], Sequence[bytes]]
    says_nothing_found: bool = True

    def files(self, finding: Finding) -> dict[str, bytes]:
        """Name to content. A second file is numbered: `tumour.seg.dcm`, `tumour.seg.2.dcm`."""
        stem, dot, suffix = self.file_name.rpartition(".")
        contents = self.write(finding)
        return {
            self.file_name if number == 1 else f"{stem}.{number}{dot}{suffix}": content
            for number, content in enumerate(contents, start=1)
        }


def render(
    format: str,
    series: Series,
    mask: Mask,
    prompts: Prompts,
    bundle: Bundle,
    stages: Stages,
    *,
    profile: Profile | None = None,
    lineage: Lineage | None = None,
) -> Result:
    """The result in one of FORMATS. Blocking.

    Args: profile: of the destination, `default` for None. lineage: of the earlier result that this one revises.
    Raises: NotAcceptable: no such format. NothingFound: `seg` or `rtstruct` of an empty mask. SegEncodingFailed.
    ResultNotProved.
    """
    return rendered(format, Finding(series, mask, prompts, bundle, stages, profile or profile_named(), lineage))


def rendered(format: str, finding: Finding) -> Result:
    """As `render`, of a finding that is there already."""
    chosen = format_named(format)
    with finding.stages("write"):
        files = chosen.files(finding)
    if len(files) == 1:
        ((name, body),) = files.items()
        return Result(body, chosen.media_type, name)
    return Result(_zipped(files), ZIP, f"{chosen.file_name.removesuffix('.dcm')}.zip")


def dicom_objects(finding: Finding, kinds: Sequence[str] | None = None) -> dict[str, bytes]:
    """The proved DICOM objects that the profile sends to its destination, by file name; those that cannot say "nothing
    found" are left out of an empty result. Blocking.

    Args: kinds: of FORMATS, instead of the profile's. Raises: SegEncodingFailed, ResultNotProved.
    """
    chosen = [FORMATS[kind] for kind in (finding.profile.objects if kinds is None else kinds)]
    with finding.stages("write"):
        return {
            name: content
            for item in chosen
            if finding.found or item.says_nothing_found
            for name, content in item.files(finding).items()
        }


def format_named(name: str) -> Format:
    """Raises: NotAcceptable listing the formats."""
    if name in FORMATS:
        return FORMATS[name]
    raise NotAcceptable(f"available are {', '.join(FORMATS)}", formats=list(FORMATS))


def warnings(finding: Finding) -> list[str]:
    """What the reader should know about this result. Nothing that the user wrote is repeated."""
    prompts, bundle = finding.prompts, finding.bundle
    noted = []
    if not bundle.trained:
        noted.append("The weights of this bundle were never trained: the mask means nothing.")
    if not finding.mask.complete:
        noted.append("The mask was still growing when the permitted number of regions was used up.")
    if prompts.target and prompts.target not in bundle.targets:
        noted.append(f"The target is not among those the bundle was trained on: {', '.join(bundle.targets)}.")
    if prompts.text and prompts.text.lower() not in bundle.findings:
        noted.append(f"The text is not among the findings the bundle was trained on: {', '.join(bundle.findings)}.")
    return noted


def summary(finding: Finding) -> dict[str, Any]:
    """The result as plain numbers: the `json` format. Lengths in mm, volume in ml, LPS coordinates in mm."""
    bundle, measured = finding.bundle, finding.measured
    return {
        "found": finding.found,
        "research_use": RESEARCH_USE,
        "volume_ml": measured.volume_ml,
        "voxels": measured.voxels,
        "max_diameter_mm": measured.max_diameter_mm,
        "long_axis_mm": measured.long_axis_mm,
        "short_axis_mm": measured.short_axis_mm,
        "bounding_box_lps_mm": _listed(measured.bounding_box_lps_mm),
        "bounding_box_index": _listed(measured.bounding_box_index),
        "score": measured.score,
        "warnings": warnings(finding),
        "series": {
            "series_instance_uid": finding.series.series_instance_uid,
            "modality": finding.series.modality,
            "shape_zyx": list(finding.mask.geometry.shape_zyx),
            "spacing_zyx_mm": [round(float(value), 4) for value in finding.mask.geometry.spacing_zyx_mm],
            "frame_of_reference_uid": finding.mask.geometry.frame_of_reference_uid,
        },
        "set_aside": [{"reason": item.reason, "count": item.count} for item in finding.series.set_aside],
        "bundle": {
            "name": bundle.name,
            "version": bundle.version,
            "trained": bundle.trained,
            "licence": bundle.licence,
            "intended_use": bundle.intended_use,
        },
        "stages_ms": {name: round(1000 * seconds, 1) for name, seconds in finding.stages.seconds.items()},
    }


def _listed(array: Any) -> Any:
    return None if array is None else array.tolist()


def _seg(finding: Finding) -> Sequence[bytes]:
    objects = write_seg(finding.outcome)
    prove_seg(objects, finding.outcome)
    return objects


def _rtstruct(finding: Finding) -> Sequence[bytes]:
    content = write_rtstruct(finding.outcome)
    prove_rtstruct(content, finding.outcome)
    return [content]


def _sr(finding: Finding) -> Sequence[bytes]:
    inside = intensity(finding.series, finding.mask) if finding.found else None
    content = write_sr(finding.outcome, finding.measured, inside)
    prove_sr(content, finding.outcome, finding.measured)
    return [content]


def _captures(finding: Finding) -> Sequence[bytes]:
    series, mask, prompts = finding.series, finding.mask, finding.prompts
    orientation = patient_orientation(series.geometry)
    pictures = [
        KeyImage(number, key_image(series, mask, prompts, number), orientation)
        for number in key_slices(mask, prompts, finding.profile.key_images)
    ]
    objects = write_captures(finding.outcome, pictures)
    prove_captures(objects, finding.outcome)
    return objects


def _nifti(finding: Finding) -> Sequence[bytes]:
    content = write_nifti(finding.mask)
    prove_nifti(content, finding.mask)
    return [content]


def _as_json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode()


def _json(finding: Finding) -> Sequence[bytes]:
    return [_as_json(summary(finding))]


def _png(finding: Finding) -> Sequence[bytes]:
    return [overlay_png(finding.series, finding.mask, finding.prompts)]


def _bundle(finding: Finding) -> Sequence[bytes]:
    """The profile's DICOM objects and all other formats in one ZIP, with the geometry receipt and a note. What cannot
    say "nothing found" is then left out, as noted."""
    kinds = [*finding.profile.objects, *PLAIN]
    chosen = [FORMATS[kind] for kind in kinds]
    written: dict[str, bytes] = {}
    note = [RESEARCH_USE, f"Made by TAGS with the bundle {finding.bundle.identity}.", ""]
    for item in chosen:
        if not finding.found and not item.says_nothing_found:
            note.append(f"Nothing was found, so {item.file_name} is left out: an empty one breaks viewers.")
            continue
        files = item.files(finding)
        written |= files
        note += [f"{name}: {item.description}" for name in files]
    written["receipt.json"] = _as_json(receipt(finding.series, finding.stages.seconds))
    note.append("receipt.json: which images were used, which were not and why, and the geometry that they gave")
    return [_zipped({"README.txt": "\n".join([*note, ""]).encode()} | written)]


def _zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


FORMATS = {
    "seg": Format(DICOM, "tumour.seg.dcm", "DICOM Segmentation", _seg, says_nothing_found=False),
    "rtstruct": Format(DICOM, "tumour.rtstruct.dcm", "RT Structure Set", _rtstruct, says_nothing_found=False),
    "sr": Format(DICOM, "tumour.sr.dcm", "structured report with measurements, TID 1500", _sr),
    "sc": Format(DICOM, "tumour.sc.dcm", "key image with the outline burned in", _captures),
    "nifti": Format("application/gzip", "tumour.nii.gz", "mask as NIfTI on the grid of the source series", _nifti),
    "json": Format("application/json", "tumour.json", "measurements, warnings and stage times", _json),
    "png": Format("image/png", "tumour.png", "preview for the eye, not for measuring", _png),
    "bundle": Format(ZIP, "tumour.zip", "all of these in one ZIP, as the profile wants them", _bundle),
}
DEFAULT_FORMAT = "seg"
PLAIN = ("nifti", "json", "png")  # of the bundle, whatever the profile
