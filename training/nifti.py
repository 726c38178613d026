"""Training images and label maps from NIfTI files, in the axes that everything else uses: z, y, x, LPS mm."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from training.layouts import CaseUnusable

GRID_TOLERANCE_MM = 1e-2  # headers hold float32; more than that is another place
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_volume(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """(D, H, W) voxels as stored, and the (4, 4) affine from z, y, x to LPS mm. Raises: CaseUnusable; OSError."""
    image = nib.load(file)
    if len(image.shape) != 3:
        raise CaseUnusable("it is no single volume; split channels into files of their own")
    return np.asarray(image.dataobj).transpose(2, 1, 0), (RAS_TO_LPS @ image.affine)[:, [2, 1, 0, 3]]


def read_labels(file: Path, shape_zyx: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(D, H, W) int16 label values. Raises: CaseUnusable: not on the grid of its image; OSError."""
    voxels, place = read_volume(file)
    if voxels.shape != shape_zyx or not np.allclose(place, affine, rtol=0, atol=GRID_TOLERANCE_MM):
        raise CaseUnusable("its mask does not lie on the grid of its image")
    return np.rint(voxels).astype(np.int16)


def chosen(label_map: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    """(D, H, W) bool: where the map has one of the labels; any value above 0 when there are none."""
    return np.isin(label_map, labels) if labels else label_map > 0
