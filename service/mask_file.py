"""A mask that came as a file, laid onto the grid of a series: DICOM SEG or NIfTI, told apart by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from service.dicom.seg_reader import read_seg
from service.dicom.series import Series
from service.nifti import read_nifti

DICOM_MAGIC_OFFSET = 128


def read_mask(path: Path, series: Series) -> np.ndarray:
    """(D, H, W) bool on the series' grid. Blocking. Raises: MaskMismatch, MalformedRequest."""
    return read_seg(path, series) if is_dicom(path) else read_nifti(path, series.geometry)


def is_dicom(path: Path) -> bool:
    """Whether the file says that it is a DICOM Part 10 file."""
    with path.open("rb") as stream:
        return stream.read(DICOM_MAGIC_OFFSET + 4)[DICOM_MAGIC_OFFSET:] == b"DICM"
