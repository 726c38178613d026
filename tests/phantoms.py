"""Synthetic DICOM series with a known tumour: small, asymmetric on every axis, unequal spacing, no patient behind them.

What enters: size, spacing, orientation. What leaves: valid CT or MR files in a directory, and what a correct reader
must make of them (geometry, voxels, tumour). Deterministic: the same arguments give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pydicom.valuerep import DS

from service.domain.geometry import Geometry

CANARY = "CANARY^JANE"  # planted in every phantom: no log, answer or error may ever hold it
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
AIR, TISSUE, ORGAN, TUMOUR = -1000, 40, 60, 150  # HU; an MR phantom adds 1100 and has arbitrary units


@dataclass(frozen=True)
class Orientation:
    """Unit vectors in LPS: along a row (increasing column index), along a column (increasing row index), and from
    one slice to the next. `step` is the normal but under gantry tilt."""

    row: tuple[float, float, float]
    column: tuple[float, float, float]
    step: tuple[float, float, float]

    @classmethod
    def of(cls, row: tuple[float, float, float], column: tuple[float, float, float]) -> Orientation:
        """An orthogonal stack: the step is the normal, row x column."""
        return cls(row, column, tuple(np.cross(row, column)))


_COS20, _SIN20 = float(np.cos(np.radians(20))), float(np.sin(np.radians(20)))
_COS35, _SIN35 = float(np.cos(np.radians(35))), float(np.sin(np.radians(35)))
ORIENTATIONS = {
    "axial": Orientation.of((1, 0, 0), (0, 1, 0)),
    "coronal": Orientation.of((1, 0, 0), (0, 0, -1)),
    "sagittal": Orientation.of((0, 1, 0), (0, 0, -1)),
    "oblique": Orientation.of((_COS35, _SIN35, 0), (-_SIN35 * _COS20, _COS35 * _COS20, _SIN20)),
    # Gantry tilt of 20 degrees about x: the images are tilted, the table still moves along z.
    "tilt": Orientation((1, 0, 0), (0, _COS20, -_SIN20), (0, 0, 1)),
}


@dataclass(frozen=True, eq=False)
class PhantomSeries:
    """The files, and what a correct reader makes of them. Slices ascend along the normal (row x column)."""

    paths: tuple[Path, ...]  # paths[i] is slice i
    geometry: Geometry
    voxels: np.ndarray  # (D, H, W) float32, HU or a.u.
    tumour: np.ndarray  # (D, H, W) bool
    centre_lps_mm: np.ndarray  # (3,) a voxel centre well inside the tumour
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]


def write_ct_series(
    directory: Path,
    *,
    shape_zyx: tuple[int, int, int] = (24, 40, 48),
    spacing_zyx_mm: tuple[float, float, float] = (3.0, 0.9, 0.8),
    orientation: str | Orientation = "axial",
    modality: Literal["CT", "MR"] = "CT",
    patient_name: str = CANARY,
    file_order: Literal["forward", "reverse", "random"] = "forward",
    transfer_syntax: str = ExplicitVRLittleEndian,
    study: str = "study",
    series: str = "series",
    body_part: str = "ABDOMEN",
    change: Callable[[Dataset, int], None] | None = None,
) -> PhantomSeries:
    """Write one file per slice into `directory` (made if missing).

    Args: file_order: how names sort against slices; "random" also drops the suffix.  study, series: seeds of the
    UIDs; equal seeds share UIDs.  change: called with each dataset and its slice index just before it is written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stack = ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation
    geometry = _geometry(shape_zyx, spacing_zyx_mm, stack, generate_uid(entropy_srcs=["frame", study]))
    voxels, tumour, centre_zyx = _anatomy(shape_zyx)
    voxels = voxels if modality == "CT" else voxels + 1100
    paths, sop_instance_uids = [], []
    for index in range(shape_zyx[0]):
        dataset = _image(geometry, stack, spacing_zyx_mm, voxels[index], index, modality, body_part)
        dataset.PatientName = patient_name
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", study])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", study, series])
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", study, series, str(index)])
        if change:
            change(dataset, index)
        path = directory / _file_name(index, shape_zyx[0], file_order, series)
        _write(dataset, path, transfer_syntax)
        paths.append(path)
        sop_instance_uids.append(str(dataset.SOPInstanceUID))
    return PhantomSeries(
        paths=tuple(paths),
        geometry=geometry,
        voxels=voxels.astype(np.float32),
        tumour=tumour,
        centre_lps_mm=geometry.to_lps_mm(np.array([centre_zyx]))[0],
        study_instance_uid=generate_uid(entropy_srcs=["study", study]),
        series_instance_uid=generate_uid(entropy_srcs=["series", study, series]),
        sop_instance_uids=tuple(sop_instance_uids),
    )


def write_two_echoes(directory: Path) -> PhantomSeries:
    """One MR series with every slice twice, EchoNumbers 1 and 2, the second brighter. `paths` has all files, the rest
    is that of the first echo."""

    def second(dataset: Dataset, slice_index: int) -> None:
        dataset.EchoNumbers = 2
        dataset.SOPInstanceUID = generate_uid()
        pixels = np.frombuffer(dataset.PixelData, "<u2") + np.uint16(5)
        dataset.PixelData = pixels.astype("<u2").tobytes()

    def first(dataset: Dataset, slice_index: int) -> None:
        dataset.EchoNumbers = 1

    phantom = write_ct_series(directory / "1", modality="MR", change=first)
    other = write_ct_series(directory / "2", modality="MR", change=second)
    return replace(phantom, paths=[*phantom.paths, *other.paths])


def _geometry(
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    stack: Orientation,
    frame_of_reference_uid: str,
) -> Geometry:
    affine = np.eye(4)
    for axis, direction in enumerate((stack.step, stack.column, stack.row)):
        affine[:3, axis] = np.array(direction) * spacing_zyx_mm[axis]
    affine[:3, 3] = (-17.5, -31.25, -402.5)  # centre of the first voxel of the first slice
    return Geometry(shape_zyx, affine, frame_of_reference_uid)


def _anatomy(shape_zyx: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """A body with an organ on one side and a two-lobed bright tumour in it. Voxels are int, in HU."""
    z, y, x = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape_zyx)
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    noise = np.random.default_rng(7).integers(-12, 13, shape_zyx)
    voxels = np.full(shape_zyx, AIR)
    voxels[np.broadcast_to((y / 0.85) ** 2 + (x / 0.9) ** 2 < 1, shape_zyx)] = TISSUE
    voxels[((z - 0.1) / 0.8) ** 2 + (y / 0.6) ** 2 + ((x + 0.3) / 0.45) ** 2 < 1] = ORGAN
    centre = tuple(round((1 + c) / 2 * (n - 1)) for c, n in zip((0.2, -0.15, -0.35), shape_zyx, strict=True))
    cz, cy, cx = z.flat[centre[0]], y.flat[centre[1]], x.flat[centre[2]]
    tumour = ((z - cz) / 0.28) ** 2 + ((y - cy) / 0.25) ** 2 + ((x - cx) / 0.2) ** 2 < 1
    tumour |= ((z - cz - 0.15) / 0.2) ** 2 + ((y - cy - 0.2) / 0.15) ** 2 + ((x - cx + 0.1) / 0.13) ** 2 < 1
    voxels[tumour] = TUMOUR
    return voxels + noise, tumour, centre  # type: ignore[return-value]


def _image(
    geometry: Geometry,
    stack: Orientation,
    spacing_zyx_mm: tuple[float, float, float],
    voxels: np.ndarray,
    index: int,
    modality: str,
    body_part: str,
) -> Dataset:
    """One image without its UIDs. Modules: PS3.3 A.3 (CT), A.4 (MR)."""
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    d.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "OTHER"]
    d.StudyDate = d.SeriesDate = d.AcquisitionDate = d.ContentDate = "20260102"
    d.StudyTime = d.SeriesTime = d.AcquisitionTime = d.ContentTime = "101500"
    d.AccessionNumber = "CANARY1"
    d.Modality = modality
    d.Manufacturer = "Phantom"
    d.ManufacturerModelName = "Phantom"
    d.SoftwareVersions = "1"
    d.DeviceSerialNumber = "1"
    d.ReferringPhysicianName = CANARY
    d.StudyDescription = "CANARY study"
    d.SeriesDescription = "CANARY series"
    d.PatientID = "CANARY-4711"
    d.PatientBirthDate = "19600229"
    d.PatientSex = "O"
    d.StudyID = "1"
    d.SeriesNumber = 3
    d.AcquisitionNumber = 1
    d.InstanceNumber = index + 1
    d.BodyPartExamined = body_part
    if modality == "CT":
        d.PatientPosition = "HFS"
        d.KVP = "120"
        d.RescaleIntercept, d.RescaleSlope, d.RescaleType = "-1024", "1", "HU"
    else:
        d.PatientPosition = "HFS"
        d.ScanningSequence, d.SequenceVariant, d.ScanOptions = "SE", "NONE", ""
        d.MRAcquisitionType = "2D"
        d.RepetitionTime, d.EchoTime, d.EchoTrainLength = "500", "10", "1"
    d.FrameOfReferenceUID = geometry.frame_of_reference_uid
    d.PositionReferenceIndicator = ""
    position = geometry.to_lps_mm(np.array([[index, 0, 0]]))[0]
    d.ImagePositionPatient = [DS(float(v), auto_format=True) for v in position]
    d.ImageOrientationPatient = [DS(float(v), auto_format=True) for v in (*stack.row, *stack.column)]
    d.PixelSpacing = [DS(spacing_zyx_mm[1], auto_format=True), DS(spacing_zyx_mm[2], auto_format=True)]
    d.SliceThickness = DS(spacing_zyx_mm[0], auto_format=True)
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Rows, d.Columns = voxels.shape
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1 if modality == "CT" else 0
    stored = (voxels + 1024 if modality == "CT" else voxels).astype("<i2" if modality == "CT" else "<u2")
    d.PixelData = stored.tobytes()
    d["PixelData"].VR = "OW"
    return d


def _file_name(index: int, count: int, file_order: str, series: str) -> str:
    if file_order == "random":
        return hashlib.sha256(f"{series} {index}".encode()).hexdigest()[:12]
    return f"{series}_{index if file_order == 'forward' else count - 1 - index:04d}.dcm"


def _write(dataset: Dataset, path: Path, transfer_syntax: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    if transfer_syntax not in NATIVE:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    meta.TransferSyntaxUID = transfer_syntax
    if transfer_syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
    dcmwrite(path, dataset, enforce_file_format=True)
