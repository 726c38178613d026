"""The geometry receipt: what became of every file of an upload, and the grid that the used ones gave.

What enters: a series and the stage times. What leaves: a plain document, ready for JSON, for `format=bundle` and jobs.
UIDs of images are in it, and hashes of their files; values of the patient are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from service.dicom.series import Series

ORIENTATIONS = ("sagittal", "coronal", "axial")  # by the patient axis nearest to the normal: L, P, S


def receipt(series: Series, stage_seconds: Mapping[str, float]) -> dict[str, Any]:
    """Blocking: it reads every used file once for its hash."""
    return {
        "series_instance_uid": series.series_instance_uid,
        "modality": series.modality,
        "geometry": geometry_of(series),
        "instances": [
            {
                "slice": number,
                "sop_instance_uid": header.sop_instance_uid,
                **({"frame": header.frame} if header.frame else {}),
                "position_lps_mm": list(header.position_lps_mm),
                "transfer_syntax_uid": header.transfer_syntax_uid,
            }
            for number, header in enumerate(series.headers)
        ],
        "files_sha256": _hashes(series),
        "set_aside": [
            {"reason": item.reason, "count": item.count, "sop_instance_uids": list(item.sop_instance_uids)}
            for item in series.set_aside
        ],
        "stages_ms": {name: round(1000 * seconds, 1) for name, seconds in stage_seconds.items()},
    }


def geometry_of(series: Series) -> dict[str, Any]:
    """Orientation, spacing, tilt and gaps of the stack, lengths in mm, LPS."""
    geometry = series.geometry
    step, down, right = geometry.affine[:3, :3].T
    normal = np.cross(right, down)
    normal /= np.linalg.norm(normal)
    cosine = float(np.clip(step @ normal / np.linalg.norm(step), -1, 1))
    gaps_mm = np.diff(np.array([header.position_lps_mm for header in series.headers]) @ normal)
    return {
        "shape_zyx": list(geometry.shape_zyx),
        "spacing_zyx_mm": _rounded(geometry.spacing_zyx_mm),
        "affine_zyx_to_lps_mm": [_rounded(row, 6) for row in geometry.affine],
        "frame_of_reference_uid": geometry.frame_of_reference_uid,
        "plane": ORIENTATIONS[int(np.abs(normal).argmax())],
        "row_lps": _rounded(right / np.linalg.norm(right), 6),
        "column_lps": _rounded(down / np.linalg.norm(down), 6),
        "oblique_degrees": round(float(np.degrees(np.arccos(min(np.abs(normal).max(), 1.0)))), 3),
        "tilt_degrees": round(_tilt_degrees(step, down, cosine), 3),
        "gaps_mm": _spread(gaps_mm),
    }


def _tilt_degrees(step: np.ndarray, down: np.ndarray, cosine: float) -> float:
    """The angle between the step and the normal; negative when the step leans against the columns' direction."""
    degrees = float(np.degrees(np.arccos(cosine)))
    return -degrees if float(step @ down) < 0 else degrees


def _spread(gaps_mm: np.ndarray) -> dict[str, float] | None:
    """None for a single slice."""
    if not gaps_mm.size:
        return None
    return {
        "smallest": round(float(gaps_mm.min()), 4),
        "largest": round(float(gaps_mm.max()), 4),
        "median": round(float(np.median(gaps_mm)), 4),
    }


def _hashes(series: Series) -> dict[str, str]:
    """SHA-256 of each used file, by the SOPInstanceUID in it."""
    return {uid: _sha256(path) for uid, path in {h.sop_instance_uid: h.path for h in series.headers}.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _rounded(values: np.ndarray, decimals: int = 4) -> list[float]:
    return [round(float(value), decimals) + 0.0 for value in values]
