"""Cheap building blocks of synthetic volumes: smooth random fields, ellipsoids, tubes, separable blur.

Everything is (D, H, W) in z, y, x voxels of 1 mm. Random fields and blurs are products with one small matrix per axis
(BLAS), which is what keeps a phantom of 128 voxels per side well below a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

SPLINE_DEVIATION = (151 / 315) ** 1.5  # of a 3D cubic B-spline with unit normal coefficients, averaged over positions


def separable(array: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Apply one matrix (outputs, inputs) along each axis of a (D, H, W) array; contiguous float32."""
    for (
        matrix
    ) in matrices:  # each product takes the first axis away and appends its image: three of them come full circle
        array = np.tensordot(array, matrix.astype(np.float32, copy=False), axes=(0, 1))
    return array


def smooth_field(rng: np.random.Generator, shape: Sequence[int], scale: float) -> np.ndarray:
    """A random field of about zero mean and unit deviation that varies over `scale` voxels; float32 of `shape`."""
    matrices = [_spline_matrix(n, scale, rng.random()) for n in shape]
    coefficients = rng.standard_normal([m.shape[1] for m in matrices], dtype=np.float32)
    return separable(coefficients, matrices) / np.float32(SPLINE_DEVIATION)


def _spline_matrix(count: int, scale: float, shift: float) -> np.ndarray:
    """(count, cells) weights of uniform cubic B-splines, `scale` voxels apart."""
    position = np.arange(count)[:, None] / scale + shift + 1.0
    distance = np.abs(position - np.arange(int(position[-1, 0]) + 3))
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance).clip(0) ** 3 / 6
    return np.where(distance < 1, inner, outer).astype(np.float32)


def ellipsoid(shape: Sequence[int], centre: np.ndarray, radii: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Distance from `centre` in units of the ellipsoid's radius: below 1 inside. float32 of `shape`."""
    form = (rotation.T @ np.diag(radii**-2.0) @ rotation).astype(np.float32)
    z, y, x = (np.ascontiguousarray(g, np.float32) for g in np.ogrid[tuple(slice(n) for n in shape)])
    z, y, x = z - np.float32(centre[0]), y - np.float32(centre[1]), x - np.float32(centre[2])
    squared = (form[0, 0] * z * z + 2 * form[0, 1] * z * y + form[1, 1] * y * y) + form[2, 2] * x * x
    squared += (2 * form[0, 2] * z + 2 * form[1, 2] * y) * x
    return np.sqrt(squared.clip(0))


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    return Rotation.random(random_state=rng).as_matrix()


def window(centre: np.ndarray, reach: float, size: int) -> tuple[slice, slice, slice]:
    """The part of a cube of `size` voxels that lies within `reach` voxels of `centre` along each axis."""
    start = np.floor(np.asarray(centre) - reach).clip(0, size).astype(int)
    stop = (np.ceil(np.asarray(centre) + reach).astype(int) + 1).clip(0, size)
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))  # type: ignore[return-value]


def tube(size: int, path: np.ndarray, radius: float) -> np.ndarray:
    """(size, size, size) bool: voxels within `radius` of any point of `path` ((N, 3) voxels, finely sampled)."""
    inside = np.zeros((size, size, size), bool)
    for point in path:
        box = window(point, radius, size)
        z, y, x = (np.arange(s.start, s.stop) - c for s, c in zip(box, point, strict=True))
        inside[box] |= z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= radius**2
    return inside


def curve(rng: np.random.Generator, through: np.ndarray, length: float, step: float) -> np.ndarray:
    """(N, 3) points, about `step` voxels apart, of a bent line of `length` voxels that passes through a point."""
    direction, bend = rng.standard_normal((2, 3))
    direction /= np.linalg.norm(direction)
    along = np.arange(-length / 2, length / 2, step)[:, None]
    return through + along * direction + (along / length) ** 2 * bend * length / 2


def gaussian_matrix(count: int, sigma: float) -> np.ndarray:
    """(count, count) blur along an axis; rows sum to 1, so edges keep their brightness."""
    distance = np.arange(count)[:, None] - np.arange(count)
    weights = np.exp(-0.5 * (distance / max(sigma, 1e-3)) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def slice_matrix(count: int, thickness: float, shift: float) -> np.ndarray:
    """(count, count) thick slices along an axis: averages over `thickness` voxels, linearly interpolated back.

    Args: shift: where the first slice begins, 0..1 of a thickness.
    """
    slices = int(np.ceil(count / thickness)) + 1
    edges = (np.arange(slices + 1) - shift) * thickness
    overlap = (
        np.minimum(np.arange(1, count + 1), edges[1:, None]) - np.maximum(np.arange(count), edges[:-1, None])
    ).clip(0)
    used = overlap.sum(1) > 0
    average = overlap[used] / overlap[used].sum(1, keepdims=True)
    centres = ((edges[1:] + edges[:-1]) / 2)[used]
    place = np.clip((np.arange(count) + 0.5 - centres[0]) / thickness, 0, len(centres) - 1)
    back = (1 - np.abs(place[:, None] - np.arange(len(centres)))).clip(0)
    return (back @ average).astype(np.float32)
