"""Intensity rules: how source voxels become network input. The rule is in the bundle; the arithmetic is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class IntensityRule:
    """`window`: clip to fixed values (HU), subtract mean, divide by std. `percentile`: clip to these percentiles of
    the region of interest's own voxels above its minimum, then subtract their mean and divide by their deviation."""

    kind: Literal["window", "percentile"]
    low: float
    high: float
    mean: float = 0.0
    std: float = 1.0


def normalise(voxels: np.ndarray, inside: np.ndarray, rule: IntensityRule) -> np.ndarray:
    """Network input from resampled source voxels.

    Args: voxels: (D, H, W) float32, HU or a.u. inside: (D, H, W) bool, False where the grid lies outside the source.
    Returns: (D, H, W) float32, 0 outside the source (padding follows normalisation, MODEL 4.6).
    """
    if rule.kind == "window":
        low, high, mean, std = rule.low, rule.high, rule.mean, rule.std
    else:
        known = voxels[inside]
        known = known[known > known.min()] if known.size else known
        if known.size == 0:
            return np.zeros_like(voxels)
        low, high = np.percentile(known, [rule.low, rule.high])
        known = np.clip(known, low, high)
        mean, std = float(known.mean()), float(known.std()) or 1.0
    normalised = (np.clip(voxels, low, high) - np.float32(mean)) / np.float32(std)
    return np.where(inside, normalised, 0).astype(np.float32)
