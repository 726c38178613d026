"""Reading the service's answers back, by other code than that which wrote them: the grid is checked, not believed."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom

TOLERANCE_MM = 1e-3


class WrongGrid(AssertionError):
    """A mask does not lie where the series does."""


def zipped(directory: Path) -> bytes:
    """The files of a folder as a ZIP."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(directory))
    return stream.getvalue()


def members(body: bytes) -> dict[str, bytes]:
    """The files of a ZIP by name, such as an answer in the format `bundle`."""
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def stage_ms(answer: httpx.Response) -> dict[str, float]:
    """Stage times of the `Server-Timing` header."""
    parts = (part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    return {name: float(milliseconds) for name, milliseconds in parts}


def read_nifti(body: bytes, affine_ras: np.ndarray, shape_xyz: tuple[int, int, int]) -> np.ndarray:
    """The mask, (D, H, W) bool. Raises: WrongGrid: another shape, or another place."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(body))
    if image.shape != shape_xyz or not np.allclose(image.affine, affine_ras, rtol=0, atol=TOLERANCE_MM):
        raise WrongGrid("the NIfTI mask is not on the grid of the series")
    return np.asarray(image.dataobj).transpose(2, 1, 0) > 0


def read_seg(body: bytes, slice_of: dict[str, int], shape_zyx: tuple[int, int, int]) -> np.ndarray:
    """The mask, (D, H, W) bool, each frame on the image that it refers to.

    Args: slice_of: slice by SOP Instance UID. Raises: WrongGrid: a frame refers to an image that is not there.
    """
    dataset = pydicom.dcmread(io.BytesIO(body))
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    mask = np.zeros(shape_zyx, bool)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        if source not in slice_of or frame.shape != shape_zyx[1:]:
            raise WrongGrid("a frame of the SEG does not lie on an image of the series")
        mask[slice_of[source]] |= frame > 0
    return mask


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two masks: 1 when equal, 0 when apart; 1 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


class Grid:
    """Where a series of single-frame images lies, read from its files alone."""

    def __init__(self, directory: Path) -> None:
        keywords = [
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "SOPInstanceUID",
            "Rows",
            "Columns",
        ]
        paths = [path for path in directory.rglob("*") if path.is_file()]
        headers = [pydicom.dcmread(path, specific_tags=keywords) for path in paths]
        row, column = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(row, column)
        headers.sort(key=lambda header: float(normal @ np.array(header.ImagePositionPatient, float)))
        positions = np.array([header.ImagePositionPatient for header in headers], float)
        self.shape_zyx = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
        self._paths = [Path(str(header.filename)) for header in headers]
        self.slice_of = {str(header.SOPInstanceUID): index for index, header in enumerate(headers)}
        self.affine_lps = np.eye(4)  # column, row, slice -> LPS mm
        between_rows, between_columns = map(float, headers[0].PixelSpacing)
        step = (positions[-1] - positions[0]) / max(1, len(headers) - 1)
        self.affine_lps[:3, :3] = np.stack([row * between_columns, column * between_rows, step], axis=1)
        self.affine_lps[:3, 3] = positions[0]

    @property
    def affine_ras(self) -> np.ndarray:
        """(4, 4): column, row, slice to RAS mm, as NIfTI wants it."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine_lps

    @property
    def spacing_zyx_mm(self) -> np.ndarray:
        return np.linalg.norm(self.affine_lps[:3, 2::-1], axis=0)

    @property
    def voxel_ml(self) -> float:
        return float(abs(np.linalg.det(self.affine_lps[:3, :3]))) / 1000

    def lps_mm(self, index_zyx: np.ndarray) -> np.ndarray:
        """(N, 3) voxel indices z, y, x to (N, 3) LPS mm."""
        return np.asarray(index_zyx, float)[:, ::-1] @ self.affine_lps[:3, :3].T + self.affine_lps[:3, 3]

    def voxels(self) -> np.ndarray:
        """(D, H, W) float32, HU or a.u."""
        slices = [pydicom.dcmread(path) for path in self._paths]
        rescaled = [pydicom.pixels.apply_rescale(dataset.pixel_array, dataset) for dataset in slices]
        return np.stack(rescaled).astype(np.float32)

    def nifti(self, body: bytes) -> np.ndarray:
        """The mask of a NIfTI answer, checked. Raises: WrongGrid."""
        return read_nifti(body, self.affine_ras, self.shape_zyx[::-1])

    def seg(self, body: bytes) -> np.ndarray:
        """The mask of a SEG answer, checked. Raises: WrongGrid."""
        return read_seg(body, self.slice_of, self.shape_zyx)
