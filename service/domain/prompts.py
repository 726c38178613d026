"""Prompts in the patient frame, and their placement in a region of interest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def _no_points() -> np.ndarray:
    return np.zeros((0, 3))


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the user asked for, in LPS mm. Masks lie on the source grid."""

    text: str | None = None
    target: str | None = None  # anatomy, such as "liver"
    points_lps_mm: np.ndarray = field(default_factory=_no_points)  # (N, 3)
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # (N,) 1 foreground, 0 background
    boxes_lps_mm: np.ndarray = field(default_factory=lambda: np.zeros((0, 8, 3)))  # (M, 8, 3) corners, any order
    organ_mask: np.ndarray | None = None  # (D, H, W) bool on the source grid
    mask: np.ndarray | None = None  # (D, H, W) bool on the source grid, a previous mask

    @property
    def foreground_lps_mm(self) -> np.ndarray:
        return self.points_lps_mm[self.labels == 1]  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class PlacedPrompts:
    """Prompts in one region of interest: the arrays that the decoder reads, without the batch axis."""

    point_coords: np.ndarray  # (32, 3) float32, z y x in ROI voxels, integer = voxel centre
    point_labels: np.ndarray  # (32,) int32, contract.tensors.LABEL_*
    mask_prompt: np.ndarray  # (1, half, half, half) float32
    use_text: float  # 1.0 or 0.0
    phrases: tuple[str, str]  # background, foreground
