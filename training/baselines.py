"""What a click or a box alone gives without a network. Every function gives a mask, (D, H, W) bool on the scan's grid.

From a click: the sphere of the best radius, and regions grown from it. From a box: the ellipsoid inscribed in it, and
Otsu's threshold within it. Names with `best_` are oracles: their one parameter is chosen for each case to maximise
Dice with the truth, which is generous to them. The others know only what the service knows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from training.metrics import dice

GROWING_MULTIPLIER = 2.5  # local standard deviations; ITK's own default, and the usual choice
GROWING_MULTIPLIERS = tuple(float(m) for m in np.geomspace(0.5, 6, 12))  # of the oracle
GROWING_ITERATIONS = 4
GROWING_RADIUS_VOX = 2  # neighbourhood of the click that the first mean and deviation come from
SMOOTHING_VOX = 0.8  # region growing leaks and splinters less on a smoothed image

Spacing = tuple[float, float, float]  # z, y, x in mm


def best_sphere(truth: np.ndarray, click: np.ndarray, spacing_zyx_mm: Spacing = (1.0, 1.0, 1.0)) -> np.ndarray:
    """The sphere around `click` ((3,) z, y, x voxels) whose radius suits `truth` best.

    Every radius is tried at once: voxels sorted by distance, spheres are the prefixes of that order.
    """
    squared = _squared_distance(truth.shape, click, spacing_zyx_mm)
    near = squared <= squared[truth].max()
    distances = squared[near]
    order = np.argsort(distances, kind="stable")
    overlap = 2 * np.cumsum(truth[near][order]) / (np.arange(1, order.size + 1) + np.count_nonzero(truth))
    return squared <= distances[order][overlap.argmax()]


def grown_region(image: np.ndarray, click: np.ndarray) -> np.ndarray:
    """Connected voxels around the click within 2.5 standard deviations of the region's mean, refined four times.

    Args: image: (D, H, W) float32, HU or a.u. A region that leaks over the whole scan counts as it is.
    """
    return _grow(_smoothed(image), click, GROWING_MULTIPLIER)


def best_grown_region(image: np.ndarray, truth: np.ndarray, click: np.ndarray) -> np.ndarray:
    """The same with the number of deviations that suits the truth best."""
    smoothed = _smoothed(image)
    return max((_grow(smoothed, click, m) for m in GROWING_MULTIPLIERS), key=lambda region: dice(region, truth))


def ellipsoid_in_box(shape_zyx: tuple[int, int, int], box: np.ndarray) -> np.ndarray:
    """The ellipsoid that touches the six faces of the box. Args: box: (2, 3) smaller then larger z, y, x, voxels."""
    centre, half = box.mean(axis=0), (box[1] - box[0]) / 2
    return _squared_distance(shape_zyx, centre, 1 / half) <= 1


def otsu_in_box(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """One side of Otsu's threshold in the box: the one that is commoner in the inscribed ellipsoid than outside it."""
    return next(iter(_otsu_sides(image, box)))


def best_otsu_in_box(image: np.ndarray, truth: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The side of the threshold that suits the truth best, within the box or within the ellipsoid inscribed in it."""
    ellipsoid = ellipsoid_in_box(image.shape, box)  # type: ignore[arg-type]
    sides = [region for side in _otsu_sides(image, box) for region in (side, side & ellipsoid)]
    return max(sides, key=lambda region: dice(region, truth))


def _otsu_sides(image: np.ndarray, box: np.ndarray) -> Iterator[np.ndarray]:
    """Both sides of the threshold within the box, first the one that is commoner in the ellipsoid than outside it."""
    low, high = np.ceil(box[0]).astype(int), np.floor(box[1]).astype(int) + 1
    within = tuple(slice(max(0, a), b) for a, b in zip(low, high, strict=True))
    part = np.ascontiguousarray(image[within])
    bright = sitk.GetArrayViewFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(part), 0, 1)) > 0
    middle = ellipsoid_in_box(image.shape, box)[within]  # type: ignore[arg-type]
    inner, outer = (bright[where].mean() if where.any() else 0.0 for where in (middle, ~middle))
    for side in (bright, ~bright) if inner >= outer else (~bright, bright):
        whole = np.zeros(image.shape, bool)
        whole[within] = side
        yield whole


def _grow(smoothed: sitk.Image, click: np.ndarray, multiplier: float) -> np.ndarray:
    region = sitk.ConfidenceConnected(
        smoothed,
        seedList=[tuple(int(i) for i in np.rint(click)[::-1])],  # ITK counts x, y, z
        numberOfIterations=GROWING_ITERATIONS,
        multiplier=multiplier,
        initialNeighborhoodRadius=GROWING_RADIUS_VOX,
    )
    return sitk.GetArrayFromImage(region) > 0


def _smoothed(image: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(ndimage.gaussian_filter(image, SMOOTHING_VOX))


def _squared_distance(
    shape_zyx: tuple[int, ...], centre: np.ndarray, scale_zyx: tuple[float, ...] | np.ndarray
) -> np.ndarray:  # fmt: skip
    """(D, H, W) float32: squared distance of each voxel from `centre`, each axis scaled."""
    axes = zip(np.ogrid[tuple(slice(n) for n in shape_zyx)], centre, scale_zyx, strict=True)
    z, y, x = ((grid - middle) * scale for grid, middle, scale in axes)
    return (z * z + y * y + x * x).astype(np.float32)
