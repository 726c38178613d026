"""A scan without DICOM: a formula in the patient frame, sampled on any grid; it notes which slices are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product

import numpy as np

from service.domain.geometry import Geometry
from service.domain.volume import Volume

TISSUE, TUMOUR = 40.0, 180.0  # HU
World = Callable[[np.ndarray], np.ndarray]  # (N, 3) LPS mm to (N,) HU

SIGNED_PERMUTATIONS = [
    np.eye(3)[:, list(order)] * signs for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)
]


@dataclass(eq=False)
class FakeSource:
    """Implements `SourceImage`."""

    geometry: Geometry
    world: World
    modality: str = "CT"
    read_slices: list[int] = field(default_factory=list)

    def read(self, start: int, stop: int) -> Volume:
        self.read_slices += range(start, stop)
        _, rows, columns = self.geometry.shape_zyx
        part = self.geometry.crop((start, 0, 0), (stop, rows, columns))
        return Volume(sampled(part, self.world).astype(np.float32), part)


def sampled(geometry: Geometry, world: World) -> np.ndarray:
    """(D, H, W) values of the world at the voxel centres."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape_zyx), indexing="ij"), axis=-1).reshape(-1, 3)
    return world(geometry.to_lps_mm(index)).reshape(geometry.shape_zyx)


def grid(
    directions: np.ndarray,
    spacing_zyx_mm: Sequence[float],
    shape_zyx: tuple[int, int, int],
    centre_lps_mm: Sequence[float] = (0, 0, 0),
) -> Geometry:
    """Args: directions: (3, 3) columns: LPS direction of slices, rows (down), columns (right)."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, float) * spacing_zyx_mm
    affine[:3, 3] = np.asarray(centre_lps_mm) - affine[:3, :3] @ ((np.array(shape_zyx) - 1) / 2)
    return Geometry(shape_zyx, affine, "1.2.3")


def ellipsoids(*balls: tuple[Sequence[float], Sequence[float]]) -> World:
    """Tissue with bright ellipsoids, each a centre and three radii along x, y, z in LPS mm."""

    def world(points: np.ndarray) -> np.ndarray:
        inside = np.zeros(len(points), bool)
        for centre, radii in balls:
            inside |= np.sum(((points - np.array(centre)) / np.array(radii)) ** 2, axis=1) < 1
        return np.where(inside, TUMOUR, TISSUE)

    return world


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
