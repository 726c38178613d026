"""How well a mask agrees with the truth: Dice, surface Dice (NSD) at stated tolerances, HD95 and volume error.

Both masks lie on the scan's own grid, (D, H, W) bool; distances are in mm. Surface elements are weighed by their area,
as in the evaluation of TAGS. Source: DeepMind's surface-distance, which the paper's code uses too.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

with warnings.catch_warnings():  # surface-distance still spells scipy's functions by their old names
    warnings.simplefilter("ignore", DeprecationWarning)
    from surface_distance import (
        compute_robust_hausdorff,
        compute_surface_dice_at_tolerance,
        compute_surface_distances,
    )

NSD_TOLERANCES_MM = (5.0, 2.0)  # the paper's for every data set, and one at which a contour is worth keeping
HAUSDORFF_PERCENT = 95


@dataclass(frozen=True)
class Scores:
    """One answer beside the truth."""

    dice: float  # 0..1
    nsd_5mm: float  # 0..1, share of both surfaces within 5 mm of the other
    nsd_2mm: float
    hd95_mm: float | None  # None when either mask is empty: there is no distance
    volume_error: float  # (answer - truth) / truth; -1 for an empty answer


def score(answer: np.ndarray, truth: np.ndarray, spacing_zyx_mm: tuple[float, float, float]) -> Scores:
    """Raises: ValueError: the truth is empty, so nothing but emptiness could be measured."""
    volume = int(np.count_nonzero(truth))
    if not volume:
        raise ValueError("a case needs a truth that is not empty")
    found = int(np.count_nonzero(answer))
    if not found:
        return Scores(dice=0.0, nsd_5mm=0.0, nsd_2mm=0.0, hd95_mm=None, volume_error=-1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        distances = compute_surface_distances(truth, answer, spacing_zyx_mm)
    near, nearer = (float(compute_surface_dice_at_tolerance(distances, limit)) for limit in NSD_TOLERANCES_MM)
    return Scores(
        dice=dice(answer, truth),
        nsd_5mm=near,
        nsd_2mm=nearer,
        hd95_mm=float(compute_robust_hausdorff(distances, HAUSDORFF_PERCENT)),
        volume_error=(found - volume) / volume,
    )


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two bool arrays, 0..1; 1 when both are empty."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 1.0
