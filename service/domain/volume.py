"""Voxels on a grid, and the seam through which they are read slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from service.domain.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Volume:
    """Source voxels after rescale. Read-only."""

    voxels: np.ndarray  # (D, H, W) float32, HU or a.u.
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape_zyx or self.voxels.dtype != np.float32:
            raise ValueError("voxels must be float32 with the shape of the geometry")
        self.voxels.flags.writeable = False


class SourceImage(Protocol):
    """What the use case needs of a series: known geometry, voxels on demand. `service.dicom.Series` is one."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def modality(self) -> str: ...  # "CT" or "MR"

    def read(self, start: int, stop: int) -> Volume:
        """Decode slices [start, stop) only; the volume's geometry is that part of the whole. Thread-safe, blocking."""
        ...


class SliceCache:
    """A source whose slices are decoded once per request, since a request looks at the same place at several spacings.

    It forgets everything when it would hold more than `limit` slices. Not thread-safe: one request reads one slab after
    the other.
    """

    def __init__(self, source: SourceImage, limit: int = 256) -> None:  # 256 MiB of 512 x 512 float32
        self._source, self._limit = source, limit
        self._slices: dict[int, np.ndarray] = {}

    @property
    def geometry(self) -> Geometry:
        return self._source.geometry

    @property
    def modality(self) -> str:
        return self._source.modality

    def read(self, start: int, stop: int) -> Volume:
        """Slices [start, stop); those not yet known are decoded, in runs."""
        missing = [index for index in range(start, stop) if index not in self._slices]
        if len(self._slices) + len(missing) > self._limit:
            self._slices.clear()
            missing = list(range(start, stop))
        for low, high in _runs(missing):
            self._slices.update(zip(range(low, high), self._source.read(low, high).voxels, strict=True))
        voxels = np.stack([self._slices[index] for index in range(start, stop)])
        _, rows, columns = self.geometry.shape_zyx
        return Volume(voxels, self.geometry.crop((start, 0, 0), (stop, rows, columns)))


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """[start, stop) of each run of consecutive, rising indices."""
    edges = [0, *(i for i in range(1, len(indices)) if indices[i] != indices[i - 1] + 1), len(indices)]
    return [(indices[a], indices[b - 1] + 1) for a, b in pairwise(edges) if a < b]
