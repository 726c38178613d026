"""A made-up abdominal CT as DICOM files, with a tumour in the liver whose every voxel is known. No patient behind it.

What enters: a directory. What leaves: one file per slice, and the truth. The frame is LPS mm; the patient lies on the
back, so columns run towards the left, rows towards the back, slices towards the head. Deterministic. The demo, the
watchdog, `tags doctor` and measurements share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DS
from scipy import ndimage

SHAPE_ZYX = (60, 256, 336)
SPACING_ZYX_MM = np.array([2.5, 0.9, 0.9])
ORIGIN_LPS_MM = np.array([-151.2, -115.2, -340.0])  # centre of the first voxel
INTERCEPT_HU = -1024
BLUR_VOX = (0.4, 0.7, 0.7)  # of the scanner, standard deviation
NOISE_HU = 9.0  # standard deviation, a portal venous scan with a soft kernel
NOISE_GRAIN_VOX = (0.0, 0.8, 0.8)
TUMOUR_CENTRE_LPS_MM = np.array([-58.0, -22.0, -262.0])


@dataclass(frozen=True)
class Ellipsoid:
    """A tissue: an ellipsoid of one value in HU with a wavy surface."""

    centre_lps_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    hounsfield: float
    waves: float = 0.0  # how far the surface swells and shrinks, relative to the radius


BODY = Ellipsoid((0, 0, -265), (140, 103, 1000), -95, 0.01)  # subcutaneous fat
MUSCLE = Ellipsoid((0, 0, -265), (128, 91, 1000), 55, 0.02)
ABDOMINAL_WALL = Ellipsoid((0, 0, -265), (120, 83, 1000), 0, 0.02)  # no organ grows through it
VISCERAL_FAT = Ellipsoid((0, -12, -265), (112, 68, 1000), -100, 0.03)
ORGANS = (
    Ellipsoid((-55, -15, -262), (62, 62, 72), 105, 0.08),  # liver
    Ellipsoid((72, 22, -250), (30, 36, 42), 120, 0.06),  # spleen
    Ellipsoid((-52, 58, -318), (22, 22, 44), 165, 0.05),  # right kidney
    Ellipsoid((58, 52, -312), (22, 22, 46), 165, 0.05),  # left kidney
    Ellipsoid((40, -36, -262), (38, 24, 36), 15, 0.1),  # stomach, filled with water
    Ellipsoid((-24, -42, -300), (11, 10, 22), 8, 0.05),  # gall bladder
    Ellipsoid((6, 42, -265), (11, 11, 1000), 170),  # aorta
    Ellipsoid((-16, 40, -265), (12, 10, 1000), 140),  # vena cava
    Ellipsoid((0, 68, -265), (22, 19, 1000), 260),  # vertebral bodies, cortex
    Ellipsoid((0, 68, -265), (18, 15, 1000), 150),  # and marrow
)
# Vessels of the liver as chains of points in LPS mm, with a radius in mm.
VESSELS = (
    (((-14, 20, -268), (-34, 2, -258), (-52, -10, -240), (-80, -34, -222)), 4.5),
    (((-34, 2, -258), (-30, -30, -250), (-24, -48, -240)), 3.5),
    (((-16, 34, -225), (-44, 12, -222), (-86, 10, -230)), 4.0),
)
VESSEL_HU = 160.0
TUMOUR_HU = 55.0  # a metastasis: 50 HU darker than the liver around it
# The tumour is three lobes, with centres relative to TUMOUR_CENTRE_LPS_MM, and radii, in mm.
LOBES = (((0, 0, 0), (15, 13, 14)), ((9, -5, 4), (10, 9, 9)), ((-6, 8, -7), (8, 9, 8)))


@dataclass(frozen=True)
class Identity:
    """What the files say of whom they are. `seed`: of the UIDs; equal seeds have equal UIDs."""

    patient_name: str = "Phantom^Demo"
    patient_id: str = "DEMO"
    seed: str = "tags demo"

    def uid(self, *names: str) -> str:
        return str(generate_uid(entropy_srcs=[self.seed, *names]))


@dataclass(frozen=True, eq=False)
class Phantom:
    """The truth behind the files."""

    directory: Path
    tumour: np.ndarray  # (D, H, W) bool; slice 0 is the lowest
    click_lps_mm: tuple[float, float, float]
    box_lps_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    volume_ml: float


def write_phantom(directory: Path, identity: Identity = Identity()) -> Phantom:
    """Write the series, one file per slice, in an order that says nothing about position."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20261124)
    voxels, tumour = _paint(rng)
    for index, order in enumerate(rng.permutation(SHAPE_ZYX[0])):
        _write_slice(directory / f"image{order:03d}.dcm", voxels[index], index, identity)
    inside = np.argwhere(tumour)
    low, high = _lps_mm(inside.min(axis=0)), _lps_mm(inside.max(axis=0))
    volume_ml = float(tumour.sum() * np.prod(SPACING_ZYX_MM)) / 1000
    return Phantom(directory, tumour, tuple(TUMOUR_CENTRE_LPS_MM.tolist()), (low, high), volume_ml)


def write_one_image(directory: Path, identity: Identity) -> Path:
    """One image, a disc in air, where it does not matter what is seen."""
    y, x = np.ogrid[:64, :64]
    disc = np.where((y - 30) ** 2 + (x - 34) ** 2 < 20**2, 40.0, -1000.0)
    path = directory / "image.dcm"
    _write_slice(path, disc, 0, identity)
    return path


def write_second_series(directory: Path, first: Phantom) -> None:
    """The same images as another series of the same study, as a reconstruction with another kernel would be."""
    directory.mkdir(parents=True, exist_ok=True)
    series = generate_uid(entropy_srcs=["tags demo", "second series"])
    for path in first.directory.iterdir():
        dataset = dcmread(path)
        dataset.SeriesInstanceUID, dataset.SeriesNumber = series, 2
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["tags demo", "second image", str(dataset.InstanceNumber)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(directory / path.name, enforce_file_format=True)


def _paint(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in HU as the scanner gives them, (D, H, W) float32, and the tumour, (D, H, W) bool."""
    swell = ndimage.gaussian_filter(rng.standard_normal(SHAPE_ZYX), 18 / SPACING_ZYX_MM)
    swell /= swell.std()
    voxels = np.full(SHAPE_ZYX, -1000.0, np.float32)
    for tissue in (BODY, MUSCLE, VISCERAL_FAT):
        voxels[_inside(tissue, swell)] = tissue.hounsfield
    wall = _inside(ABDOMINAL_WALL, swell)
    for organ in ORGANS:
        voxels[_inside(organ, swell) & wall] = organ.hounsfield
    liver = _inside(ORGANS[0], swell) & wall
    for path, radius_mm in VESSELS:
        voxels[liver & _tube(path, radius_mm)] = VESSEL_HU
    rough = ndimage.gaussian_filter(rng.standard_normal(SHAPE_ZYX), 5 / SPACING_ZYX_MM)
    level = np.min([_level(TUMOUR_CENTRE_LPS_MM + place, radii) for place, radii in LOBES], axis=0)
    tumour = (level + 0.06 * rough / rough.std() < 1) & liver
    voxels[tumour] = TUMOUR_HU
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE_ZYX), 4 / SPACING_ZYX_MM)
    voxels = ndimage.gaussian_filter(voxels, BLUR_VOX) + 3 * texture / texture.std() * (voxels > -900)
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE_ZYX), NOISE_GRAIN_VOX)
    return (voxels + NOISE_HU * noise / noise.std()).astype(np.float32), tumour


def _inside(tissue: Ellipsoid, swell: np.ndarray) -> np.ndarray:
    """(D, H, W) bool."""
    return np.asarray(_level(tissue.centre_lps_mm, tissue.radii_mm) + tissue.waves * swell < 1)


def _level(centre_lps_mm: np.ndarray | tuple[float, float, float], radii_mm: tuple[float, float, float]) -> np.ndarray:
    """(D, H, W): 1 on the ellipsoid's surface, 0 at its centre."""
    z, y, x = np.ogrid[tuple(slice(0, n) for n in SHAPE_ZYX)]
    cx, cy, cz = (np.asarray(centre_lps_mm) - ORIGIN_LPS_MM) / SPACING_ZYX_MM[::-1]
    rx, ry, rz = np.asarray(radii_mm) / SPACING_ZYX_MM[::-1]
    return np.asarray(np.sqrt(((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2))


def _tube(path_lps_mm: tuple[tuple[float, float, float], ...], radius_mm: float) -> np.ndarray:
    """(D, H, W) bool: within `radius_mm` of a chain of points."""
    away = np.ones(SHAPE_ZYX, bool)
    for start, stop in pairwise(path_lps_mm):
        for part in np.linspace(0, 1, 60):
            place = (1 - part) * np.array(start) + part * np.array(stop)
            z, y, x = np.rint((place - ORIGIN_LPS_MM)[::-1] / SPACING_ZYX_MM).astype(int)
            away[z, y, x] = False
    return np.asarray(ndimage.distance_transform_edt(away, sampling=SPACING_ZYX_MM) < radius_mm)


def _lps_mm(index_zyx: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (index_zyx * SPACING_ZYX_MM)[::-1] + ORIGIN_LPS_MM
    return float(x), float(y), float(z)


def _write_slice(path: Path, voxels: np.ndarray, index: int, identity: Identity) -> None:
    """One CT Image (PS3.3 A.3)."""
    d = Dataset()
    d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, identity.uid("image", str(index))
    d.StudyInstanceUID, d.SeriesInstanceUID = identity.uid("study"), identity.uid("series")
    d.FrameOfReferenceUID = identity.uid("frame")
    d.SpecificCharacterSet = "ISO_IR 192"
    d.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    d.StudyDate = d.SeriesDate = d.ContentDate = "20260101"
    d.StudyTime = d.SeriesTime = d.ContentTime = "120000"
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = identity.patient_name, identity.patient_id, "", ""
    d.AccessionNumber, d.ReferringPhysicianName, d.StudyID = "", "", "1"
    d.Modality, d.Manufacturer, d.BodyPartExamined = "CT", "TAGS demo", "ABDOMEN"
    d.SeriesDescription = "Made-up phantom"
    d.SeriesNumber, d.AcquisitionNumber, d.InstanceNumber = 1, 1, index + 1
    d.PatientPosition, d.PositionReferenceIndicator, d.KVP = "HFS", "", "120"
    d.ImagePositionPatient = [DS(value, auto_format=True) for value in _lps_mm(np.array([index, 0, 0]))]
    d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    d.SliceThickness, d.PixelSpacing = str(SPACING_ZYX_MM[0]), [str(value) for value in SPACING_ZYX_MM[1:]]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Rows, d.Columns = voxels.shape
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
    d.RescaleIntercept, d.RescaleSlope, d.RescaleType = str(INTERCEPT_HU), "1", "HU"
    d.WindowCenter, d.WindowWidth = "40", "400"
    d.PixelData = np.clip(np.rint(voxels - INTERCEPT_HU), 0, 4095).astype("<u2").tobytes()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    FileDataset(path, d, file_meta=meta, preamble=b"\0" * 128).save_as(path, enforce_file_format=True)
