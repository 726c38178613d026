"""Source slices in, what the encoder reads out: an ROI resampled, normalised and padded, with the organ mask beside it.

Slices come a few at a time and are let go again: memory is bounded by the ROIs, not by the series.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from contract.intensity import IntensityRule, normalise
from service.domain.geometry import Geometry
from service.domain.resample import align, inside, onto_roi, slab_onto_roi, slices_needed
from service.domain.volume import Volume

SLAB_SLICES = 32  # slices in memory at once: 32 MiB of 512 x 512 float32


@dataclass(frozen=True, eq=False)
class PreparedRegion:
    """One region of interest as the encoder reads it."""

    image: np.ndarray  # (S, S, S) float32, normalised; 0 outside the source
    organ_mask: np.ndarray  # (S, S, S) float32, 0 or 1; zeros = none
    geometry: Geometry


def slabs_needed(source: Geometry, rois: Sequence[Geometry]) -> Iterator[tuple[int, int]]:
    """The source's slices [start, stop), a few at a time, that at least one of the ROIs is made of. No other slice has
    to be decoded, and none twice."""
    wanted = np.zeros(source.shape_zyx[0], bool)
    for roi in rois:
        wanted[slice(*slices_needed(source, roi))] = True
    edges = np.flatnonzero(np.diff(wanted.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    for first, last in edges.tolist():
        for start in range(first, last, SLAB_SLICES):
            yield start, min(start + SLAB_SLICES, last)


def add_slab(
    slab: Volume, start: int, source: Geometry, rois: Sequence[Geometry], images: Sequence[np.ndarray]
) -> None:
    """Add what slices [start, ...) contribute to each ROI's image, in place.

    Args: images: (S, S, S) float32 each, zeros at first; source voxels (HU or a.u.) once all slabs were added.
    """
    for roi, image in zip(rois, images, strict=True):
        alignment = align(source, roi)
        first, last = alignment.slices_needed()
        low, high = max(first, start), min(last, start + slab.voxels.shape[0])
        if low < high:
            image += slab_onto_roi(slab.voxels[low - start : high - start], low, alignment)


def prepared(
    image: np.ndarray, source: Geometry, roi: Geometry, *, rule: IntensityRule, organ_mask: np.ndarray | None
) -> PreparedRegion:  # fmt: skip
    """Args: image: (S, S, S) float32 source voxels on the ROI. organ_mask: (D, H, W) bool on the source grid."""
    organ = np.zeros(roi.shape_zyx, np.float32) if organ_mask is None else onto_roi(organ_mask, source, roi)
    return PreparedRegion(
        image=normalise(image, inside(source, roi), rule),
        organ_mask=(organ > 0.5).astype(np.float32),
        geometry=roi,
    )
