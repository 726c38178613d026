"""What a click alone gives without a network: the best sphere at it, and the best region grown from it.

Both are oracles: their one parameter is chosen per case to maximise Dice with the truth, which is generous to them.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

TOLERANCES = tuple(float(t) for t in np.geomspace(0.25, 8, 16))  # in local standard deviations
NEIGHBOURHOOD = 2  # voxels around the click whose mean and deviation region growing starts from
SMOOTHING = 0.8  # voxels; region growing leaks and splinters less on a smoothed image


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two bool arrays; 1 when both are empty."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 1.0


def best_sphere(
    truth: np.ndarray, click: np.ndarray, spacing_zyx_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> float:
    """Dice of the sphere around `click` ((3,) z, y, x voxels) whose radius suits `truth` (D, H, W) best.

    Every radius is tried at once: voxels sorted by distance, spheres are the prefixes of that order.
    """
    axes = zip(np.ogrid[tuple(slice(n) for n in truth.shape)], click, spacing_zyx_mm, strict=True)
    z, y, x = ((grid - centre) * spacing for grid, centre, spacing in axes)
    squared = (z * z + y * y + x * x).astype(np.float32)
    reach = squared[truth].max()
    near = squared <= reach
    hits = truth[near][np.argsort(squared[near])]
    return float((2 * np.cumsum(hits) / (np.arange(1, hits.size + 1) + np.count_nonzero(truth))).max())


def best_region_growing(image: np.ndarray, truth: np.ndarray, click: np.ndarray) -> float:
    """Dice of the connected voxels around `click` within k local deviations of the local mean, for the best k.

    Args: image: (D, H, W) float32, normalised. A region that leaks over the whole image counts as it is.
    """
    smooth = ndimage.gaussian_filter(image, SMOOTHING)
    at = tuple(np.clip(np.rint(click).astype(int), 0, np.array(image.shape) - 1))
    local = image[tuple(slice(max(0, i - NEIGHBOURHOOD), i + NEIGHBOURHOOD + 1) for i in at)]
    difference = np.abs(smooth - local.mean()) / max(float(local.std()), 1e-6)
    difference[at] = 0  # the click itself always belongs to the region
    best = 0.0
    for tolerance in TOLERANCES:
        labels, _ = ndimage.label(difference <= tolerance)
        best = max(best, dice(labels == labels[at], truth))
    return best
