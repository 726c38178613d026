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
    with path.open("rb") as stream:
        head = stream.read(DICOM_MAGIC_OFFSET + 4)
    if head.endswith(b"DICM"):
        return read_seg(path, series)
    return read_nifti(path, series.geometry)
