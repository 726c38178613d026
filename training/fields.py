"""Cheap building blocks of synthetic volumes: smooth random fields, ellipsoids, tubes, separable blur.

Everything is (D, H, W) in z, y, x voxels, float32 tensors on the device of the draw: on a GPU where there is one.
Random fields and blurs are products with one small matrix per axis (BLAS), which keeps a phantom of 64 voxels per side
near a tenth of a second on one core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

SPLINE_DEVIATION = (151 / 315) ** 1.5  # of a 3D cubic B-spline with unit normal coefficients, averaged over positions


class Draw:
    """Every random number of one phantom: scalars from numpy, fields from torch on `device`. Reproducible per device
    type."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        self.rng = np.random.default_rng(seed)
        self.device = device
        self._fields = torch.Generator(device).manual_seed(seed)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def log_uniform(self, low: float, high: float) -> float:
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def count(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return int(self.rng.integers(low, high, endpoint=True))

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=self._fields, device=self.device)

    def rotation(self) -> np.ndarray:
        return Rotation.random(random_state=self.rng).as_matrix()

    def field(self, shape: Sequence[int], scale: float | Sequence[float]) -> Tensor:
        """A random field of about zero mean and unit deviation that varies over `scale` voxels (per axis or alike)."""
        scales = [scale] * 3 if isinstance(scale, float | int) else list(scale)
        matrices = [
            self.matrix(spline_matrix(n, max(1.5, s), self.rng.random())) for n, s in zip(shape, scales, strict=True)
        ]
        return separable(self.normal([m.shape[1] for m in matrices]), matrices) / SPLINE_DEVIATION

    def matrix(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)


def separable(array: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix (outputs, inputs) along each axis of a (D, H, W) tensor."""
    for matrix in matrices:  # each product takes the first axis away and appends its image: three come full circle
        array = torch.tensordot(array, matrix, dims=([0], [1]))
    return array


def spline_matrix(count: int, scale: float, shift: float) -> np.ndarray:
    """(count, cells) weights of uniform cubic B-splines, `scale` voxels apart."""
    position = np.arange(count)[:, None] / scale + shift + 1.0
    distance = np.abs(position - np.arange(int(position[-1, 0]) + 3))
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance).clip(0) ** 3 / 6
    return np.where(distance < 1, inner, outer)


def grid(size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """z, y, x voxel coordinates of a cube, each broadcastable to (size, size, size)."""
    axis = torch.arange(size, dtype=torch.float32, device=device)
    return axis[:, None, None], axis[None, :, None], axis[None, None, :]


def ellipsoid(size: int, centre: np.ndarray, radii: np.ndarray, rotation: np.ndarray, device: str) -> Tensor:
    """Distance from `centre` in units of the ellipsoid's radius: below 1 inside. (size, size, size)."""
    form = (rotation.T @ np.diag(np.asarray(radii) ** -2.0) @ rotation).tolist()
    z, y, x = (axis - float(c) for axis, c in zip(grid(size, device), centre, strict=True))
    squared = (form[0][0] * z * z + 2 * form[0][1] * z * y + form[1][1] * y * y) + form[2][2] * x * x
    squared = squared + (2 * form[0][2] * z + 2 * form[1][2] * y) * x
    return squared.clamp(min=0).sqrt()


def tube(size: int, path: np.ndarray, radius: float, device: str) -> Tensor:
    """Distance to a path in units of `radius`: below 1 inside; beyond twice the radius only said to be so.

    Args: path: (N, 3) voxels, finely sampled (about half a radius apart).
    """
    level = torch.full((size, size, size), 2.0, device=device)
    axes = grid(size, device)
    for point in path:
        low = np.floor(point - 2 * radius).clip(0, size).astype(int)
        high = (np.ceil(point + 2 * radius) + 1).clip(0, size).astype(int)
        if np.any(low >= high):
            continue
        z, y, x = slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])
        squared = (
            (axes[0][z] - float(point[0])) ** 2
            + (axes[1][:, y] - float(point[1])) ** 2
            + (axes[2][:, :, x] - float(point[2])) ** 2
        )
        level[z, y, x] = torch.minimum(level[z, y, x], squared.sqrt() / radius)
    return level


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
    return weights / weights.sum(1, keepdims=True)


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
    return back @ average
