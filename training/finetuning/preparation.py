"""A data set's cases, brought to one orientation and spacing once, and read piece by piece from then on.

Prepared as the paper does but for the orientation, which it leaves as stored: axes z toward the head, y to posterior,
x to left, as the service hands regions to the network; 1 mm; images and labels interpolated linearly (half-pixel),
labels cut at one half. Kept as float16, HU or a.u.: finer than any scanner's noise at half the size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from torch.nn.functional import interpolate

from training.layouts import CaseFiles, CaseUnusable
from training.nifti import RAS_TO_LPS, chosen, read_labels, read_volume

SPACING_MM = 1.0
FLOAT16_LIMIT = 60_000.0
AXES = axcodes2ornt(("S", "P", "L"))  # of z, y, x


@dataclass(frozen=True)
class PreparedCase:
    """Where a prepared case lies. Arrays are mapped, not loaded."""

    directory: Path
    name: str
    modality: str
    organ: str | None
    has_organ_mask: bool

    def image(self) -> np.ndarray:
        """(D, H, W) float16, HU or a.u."""
        return np.load(self.directory / "image.npy", mmap_mode="r")

    def tumour(self) -> np.ndarray:
        """(D, H, W) bool."""
        return np.load(self.directory / "tumour.npy", mmap_mode="r")

    def organ_mask(self) -> np.ndarray:
        """(D, H, W) bool, the organ with its tumour; only where `has_organ_mask`."""
        return np.load(self.directory / "organ.npy", mmap_mode="r")

    def tumour_voxels(self) -> np.ndarray:
        """(N, 3) int32 z, y, x: where crops may be centred."""
        return np.load(self.directory / "voxels.npy", mmap_mode="r")


def prepare(files: CaseFiles, root: Path) -> PreparedCase:
    """The case under `root`, made now unless it is there whole.

    Raises: CaseUnusable: DICOM, several channels, a mask elsewhere or without tumour; OSError.
    """
    directory = root / files.name
    described = directory / "case.json"  # written last
    if not described.exists():
        _prepare(files, directory)
        about = {
            "name": files.name,
            "modality": files.modality or "CT",
            "organ": files.organ,
            "has_organ_mask": (directory / "organ.npy").exists(),
        }
        described.write_text(json.dumps(about))
    return PreparedCase(directory, **json.loads(described.read_text()))


def _prepare(files: CaseFiles, directory: Path) -> None:
    if files.image.is_dir():
        raise CaseUnusable("DICOM is not read for fine-tuning; convert it to NIfTI")
    voxels, affine = read_volume(files.image)
    label_map = read_labels(files.mask, voxels.shape, affine)
    organ = chosen(label_map, files.organ_labels) if files.organ_labels else None
    if files.organ_mask:
        organ = read_labels(files.organ_mask, voxels.shape, affine) > 0
    tumour = on_grid(chosen(label_map, files.tumour_labels), affine) > 0.5
    if not tumour.any():
        raise CaseUnusable("its mask holds no tumour")
    directory.mkdir(parents=True, exist_ok=True)
    image = on_grid(voxels, affine).clip(-FLOAT16_LIMIT, FLOAT16_LIMIT)
    np.save(directory / "image.npy", image.astype(np.float16))
    np.save(directory / "tumour.npy", tumour)
    np.save(directory / "voxels.npy", np.argwhere(tumour).astype(np.int32))
    if organ is not None:
        np.save(directory / "organ.npy", on_grid(organ, affine) > 0.5)


def on_grid(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(D, H, W) float32 at 1 mm, axes toward head, posterior and left.

    Args: affine: (4, 4) from z, y, x to LPS mm; what is oblique is taken along its nearest axes.
    """
    turn = ornt_transform(io_orientation(RAS_TO_LPS @ affine), AXES)
    turned = np.ascontiguousarray(apply_orientation(voxels.astype(np.float32), turn))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = spacing[np.argsort(turn[:, 0])]  # of the turned axes
    size = [max(1, round(n * float(s) / SPACING_MM)) for n, s in zip(turned.shape, spacing, strict=True)]
    return interpolate(torch.from_numpy(turned)[None, None], size, mode="trilinear")[0, 0].numpy()
