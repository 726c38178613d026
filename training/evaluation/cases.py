"""A case as it is measured: a scan that the service can read, and the truth on the scan's own grid.

DICOM goes through the service's reader, NIfTI through nibabel; voxels are held in memory, geometry is in LPS mm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pydicom

from service.dicom.ingest import SeriesLimits, read_series
from service.domain.geometry import Geometry
from service.domain.volume import Volume
from service.nifti import read_nifti
from training.layouts import CaseFiles, CaseUnusable
from training.nifti import chosen, read_labels, read_volume

NO_LIMITS = SeriesLimits(max_instances=1 << 20, max_voxels=1 << 40)  # the operator's own files


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Implements `SourceImage` on voxels in memory."""

    voxels: np.ndarray  # (D, H, W) float32, HU or a.u.
    geometry: Geometry
    modality: str

    def read(self, start: int, stop: int) -> Volume:
        _, rows, columns = self.geometry.shape_zyx
        return Volume(self.voxels[start:stop].copy(), self.geometry.crop((start, 0, 0), (stop, rows, columns)))


@dataclass(frozen=True, eq=False)
class Case:
    """One scan, what is true of it, and what a text prompt for it says."""

    name: str
    source: ArraySource
    truth: np.ndarray  # (D, H, W) bool, not empty
    organ_mask: np.ndarray | None = None  # (D, H, W) bool, the organ with its tumour
    organ: str | None = None  # "liver": the target, and the group in tables
    finding: str | None = None  # "liver tumour": the text prompt
    text_truth: np.ndarray | None = None  # (D, H, W) bool, all that the text means; None: the truth
    absent_finding: str | None = None  # one that this scan is known not to show
    patient: str = ""  # cases of one patient are resampled together; never written anywhere

    def __post_init__(self) -> None:
        if self.truth.shape != self.source.geometry.shape_zyx or self.truth.dtype != bool:
            raise ValueError("the truth is bool with the shape of its scan")
        if not self.truth.any():
            raise CaseUnusable("its mask holds no tumour")

    def named(
        self,
        organ: str,
        *,
        organ_mask: np.ndarray | None,
        text_truth: np.ndarray | None = None,
        absent: str | None = None,
    ) -> Case:
        """The same case in an organ that prompts can name. Args: absent: an organ without tumour."""
        return replace(
            self,
            organ=organ,
            organ_mask=organ_mask,
            finding=f"{organ} tumour",
            text_truth=text_truth,
            absent_finding=absent and f"{absent} tumour",
        )

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        z, y, x = self.source.geometry.spacing_zyx_mm.tolist()
        return (z, y, x)

    @property
    def volume_ml(self) -> float:
        return float(np.count_nonzero(self.truth)) * self.source.geometry.voxel_volume_mm3 / 1000


def array_case(
    name: str, voxels: np.ndarray, spacing_zyx_mm: tuple[float, float, float], truth: np.ndarray, *, modality: str
) -> Case:
    """A case from arrays (D, H, W), such as a phantom: slices go toward the head, rows to posterior, columns left."""
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag(spacing_zyx_mm[::-1]))  # columns: the steps z, y, x in LPS
    depth, height, width = voxels.shape
    source = ArraySource(voxels.astype(np.float32), Geometry((depth, height, width), affine, ""), modality)
    return Case(name, source, truth, patient=name)


def read_case(files: CaseFiles) -> Case:
    """Raises: CaseUnusable; SeriesRefused, as the service refuses a series; OSError."""
    return _dicom_case(files) if files.image.is_dir() else _nifti_case(files)


def _nifti_case(files: CaseFiles) -> Case:
    voxels, affine = read_volume(files.image)
    geometry = Geometry(voxels.shape, affine, "")  # type: ignore[arg-type]
    source = ArraySource(voxels.astype(np.float32), geometry, files.modality or "CT")
    label_map = read_labels(files.mask, voxels.shape, affine)
    case = Case(files.name, source, chosen(label_map, files.tumour_labels), patient=files.patient or files.name)
    organ_mask = chosen(label_map, files.organ_labels) if files.organ_labels else None
    if files.organ_mask:
        organ_mask = read_labels(files.organ_mask, voxels.shape, affine) > 0
    return case.named(files.organ, organ_mask=organ_mask) if files.organ else replace(case, organ_mask=organ_mask)


def _dicom_case(files: CaseFiles) -> Case:
    paths = sorted(path for path in files.image.rglob("*") if path.is_file())
    series = read_series(paths, series_instance_uid=None, limits=NO_LIMITS)
    voxels = series.read(0, series.geometry.shape_zyx[0]).voxels  # once, not for every prompt
    source = ArraySource(voxels, series.geometry, series.modality)
    patient = files.patient or str(pydicom.dcmread(paths[0], specific_tags=["PatientID"]).get("PatientID", ""))
    case = Case(files.name, source, read_nifti(files.mask, series.geometry), patient=patient or files.name)
    organ_mask = read_nifti(files.organ_mask, series.geometry) if files.organ_mask else None
    return case.named(files.organ, organ_mask=organ_mask) if files.organ else replace(case, organ_mask=organ_mask)
