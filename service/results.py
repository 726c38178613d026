"""The result in the forms that users take away. One table of formats, shared by the API and the command line.

What enters: a series, its mask, the prompts, the bundle that answered. What leaves: bytes with a media type and a safe
file name. Every form says that it is for research use only.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contract.bundle import Bundle
from service.dicom.seg import write_seg
from service.dicom.series import Series
from service.domain.mask import Mask
from service.domain.measurements import measure
from service.domain.prompts import Prompts
from service.errors import NotAcceptable
from service.nifti import write_nifti
from service.preview import RESEARCH_USE, overlay_png
from service.telemetry.stages import Stages

ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # ZIP's earliest: equal results give equal bytes


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

    @property
    def found(self) -> bool:
        return bool(self.mask.voxels.any())


@dataclass(frozen=True)
class Format:
    """One output format: how it is asked for, named and written."""

    media_type: str
    file_name: str
    description: str
    write: Callable[[Finding], bytes]
    says_nothing_found: bool = True


def render(
    format: str, series: Series, mask: Mask, prompts: Prompts, bundle: Bundle, stages: Stages
) -> Result:  # fmt: skip
    """The result in one of FORMATS. Blocking.

    Raises: NotAcceptable: no such format. NothingFound: `seg` of an empty mask. SegEncodingFailed.
    """
    chosen = format_named(format)
    with stages("write"):
        body = chosen.write(Finding(series, mask, prompts, bundle, stages))
    return Result(body, chosen.media_type, chosen.file_name)


def format_named(name: str) -> Format:
    """Raises: NotAcceptable listing the formats."""
    if name in FORMATS:
        return FORMATS[name]
    detail = f"available are {', '.join(FORMATS)}"
    if name in LATER:
        detail = f"{name} is not offered yet; {detail}"
    raise NotAcceptable(detail, formats=list(FORMATS))


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
    bundle, measured = finding.bundle, measure(finding.mask)
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


def _seg(finding: Finding) -> bytes:
    prompts = finding.prompts
    return write_seg(finding.series, finding.mask, text=prompts.text, target=prompts.target, bundle=finding.bundle)


def _nifti(finding: Finding) -> bytes:
    return write_nifti(finding.mask)


def _json(finding: Finding) -> bytes:
    return json.dumps(summary(finding), indent=2, ensure_ascii=False, allow_nan=False).encode()


def _png(finding: Finding) -> bytes:
    return overlay_png(finding.series, finding.mask, finding.prompts)


def _bundle(finding: Finding) -> bytes:
    """All other formats in one ZIP, with a note. One that cannot say "nothing found" is then left out, as noted."""
    members = {item.file_name: item for name, item in FORMATS.items() if name != "bundle"}
    written = {name: item.write(finding) for name, item in members.items() if finding.found or item.says_nothing_found}
    left_out = [name for name in members if name not in written]
    note = [RESEARCH_USE, f"Made by TAGS with the bundle {finding.bundle.identity}.", ""]
    note += [f"{name}: {members[name].description}" for name in written]
    note += [f"Nothing was found, so {name} is left out: an empty one breaks viewers." for name in left_out]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [("README.txt", "\n".join([*note, ""]).encode()), *written.items()]:
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


FORMATS = {
    "seg": Format("application/dicom", "tumour.seg.dcm", "DICOM Segmentation", _seg, says_nothing_found=False),
    "nifti": Format("application/gzip", "tumour.nii.gz", "mask as NIfTI on the grid of the source series", _nifti),
    "json": Format("application/json", "tumour.json", "measurements, warnings and stage times", _json),
    "png": Format("image/png", "tumour.png", "preview for the eye, not for measuring", _png),
    "bundle": Format("application/zip", "tumour.zip", "all of these in one ZIP", _bundle),
}
DEFAULT_FORMAT = "seg"
LATER = ("rtstruct", "sr")
