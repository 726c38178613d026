"""Mask <-> NIfTI bytes. The only place with RAS; everything else is LPS.

NIfTI counts (i, j, k) = (column, row, slice) and maps to RAS mm; we count (slice, row, column) and map to LPS mm.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.regrid import regrid
from service.errors import MalformedRequest, MaskMismatch, ResultNotProved

SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT: millimetres in the scanner's frame
FOREGROUND = 0.5  # label maps start at 1, probabilities cross one half
MAX_VOXELS = 1024 * 1024 * 1024  # of a mask that is read: a small gzip stream may inflate to anything
PLACE_TOLERANCE_MM = 1e-3  # of a grid's corner; sform is float32
GZIP_LEVEL = 4  # a mask is almost all zeros; higher levels only take longer
SHEAR_TOLERANCE = 1e-4  # cosine between axes; qform cannot hold more
READ_ERRORS = (
    ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, TypeError, KeyError,
    OverflowError, struct.error, zlib.error,
)  # fmt: skip


def write_nifti(mask: Mask) -> bytes:
    """`.nii.gz` of uint8 0/1 on the grid of the source series; an empty mask is written as such.

    sform and qform both carry the affine; under gantry tilt only sform can (qform has no shear, so its code is 0).
    """
    affine = ras_affine(mask.geometry)
    # nibabel types some of its methods and not others: Any, so that both pass.
    image: Any = nib.Nifti1Image(mask.voxels.transpose(2, 1, 0).astype(np.uint8), affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"TAGS mask, research use only, not for diagnosis"
    image.header["cal_max"] = 1
    image.set_sform(affine, SCANNER)
    if _is_orthogonal(affine):
        image.set_qform(affine, SCANNER)
    return gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0)


def prove_nifti(content: bytes, mask: Mask) -> None:
    """Read the bytes again without nibabel: every voxel, and the place of the grid's corners to 0.001 mm.

    Source: nifti1.h; dim at 40, datatype at 70, vox_offset at 108, the rows of sform at 280.   Raises: ResultNotProved.
    """
    plain = gzip.decompress(content)
    width, height, depth = struct.unpack_from("<3h", plain, 42)
    (offset,) = struct.unpack_from("<f", plain, 108)
    rows = np.array(struct.unpack_from("<12f", plain, 280)).reshape(3, 4)
    voxels = np.frombuffer(plain, np.uint8, offset=int(offset))
    if voxels.size != mask.voxels.size or (depth, height, width) != mask.voxels.shape:
        raise ResultNotProved("NIfTI: another number of voxels than the series.")
    if not np.array_equal(voxels.reshape(mask.voxels.shape) != 0, mask.voxels):
        raise ResultNotProved("NIfTI: voxels differ from the mask.")
    for corner_zyx in product(*((0, n - 1) for n in mask.voxels.shape)):
        place = rows @ (*corner_zyx[::-1], 1)
        expected = mask.geometry.to_lps_mm(np.array([corner_zyx]))[0] * (-1, -1, 1)
        if np.abs(place - expected).max() > PLACE_TOLERANCE_MM:
            raise ResultNotProved("NIfTI: the grid lies elsewhere than the series.")


def read_nifti(path: Path, geometry: Geometry) -> np.ndarray:
    """A prompt mask, NIfTI-1 or -2, gzipped or not, on any grid of the same patient frame.

    Foreground is every value above one half. Other grids are laid on by nearest neighbour.
    Returns: bool (D, H, W) on `geometry`.
    Raises: MalformedRequest when it cannot be read; MaskMismatch when it has no place in the patient or none of it
    lies inside the series.
    """
    try:
        voxels, affine = _load(path)
    except READ_ERRORS as error:
        raise MalformedRequest("The mask is no readable NIfTI file with three dimensions.") from error
    grid = _lps_geometry(voxels.shape, affine, geometry.frame_of_reference_uid)
    return regrid(voxels.transpose(2, 1, 0), grid, geometry)


def ras_affine(geometry: Geometry) -> np.ndarray:
    """(4, 4) from (column, row, slice) indices to RAS mm."""
    swapped = geometry.affine[:, [2, 1, 0, 3]]
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ swapped)


def _lps_geometry(shape_xyz: tuple[int, ...], affine_ras: np.ndarray, frame_of_reference_uid: str) -> Geometry:
    affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras)[:, [2, 1, 0, 3]]
    width, height, depth = shape_xyz
    try:
        return Geometry((depth, height, width), affine, frame_of_reference_uid)
    except ValueError as error:
        raise MaskMismatch("The NIfTI mask's affine is not invertible, so its place is unknown.") from error


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(W, H, D) bool and the (4, 4) RAS affine."""
    with path.open("rb") as stream:
        gzipped = stream.read(2) == b"\x1f\x8b"
    with gzip.open(path) if gzipped else path.open("rb") as stream:
        kind = nib.Nifti2Image if _is_nifti2(stream.read(4)) else nib.Nifti1Image
        stream.seek(0)
        image = kind.from_stream(stream)
        shape = image.shape
        if len(shape) < 3 or any(n != 1 for n in shape[3:]) or int(np.prod(shape)) > MAX_VOXELS:
            raise ValueError("not one volume")
        if not (image.header["sform_code"] or image.header["qform_code"]):
            raise MaskMismatch("The NIfTI mask has neither sform nor qform, so its place in the patient is unknown.")
        values = np.asanyarray(image.dataobj).reshape(shape[:3])
        if values.dtype.kind not in "iufb":
            raise ValueError("not scalar")
        return values > FOREGROUND, image.affine


def _is_nifti2(start: bytes) -> bool:
    return start in (struct.pack("<i", 540), struct.pack(">i", 540))


def _is_orthogonal(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() <= SHEAR_TOLERANCE)
