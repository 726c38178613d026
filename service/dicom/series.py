"""A series on disk: the light headers of its sorted images, and their voxels on demand. Implements SourceImage.

The files stay where they are; whoever made them keeps them until the last `read`. Nothing is cached, so several
threads may read at once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from service.dicom.header import Header
from service.dicom.pixels import read_voxels_into
from service.domain.geometry import Geometry
from service.domain.volume import Volume

DECODING_THREADS = 4  # decoders, file reads and numpy release the GIL


@dataclass(frozen=True)
class SetAside:
    """How many files of the upload were left out, and why (a slug, see `service.dicom.header`)."""

    reason: str
    count: int
    sop_instance_uids: tuple[str, ...] = ()  # of those that have one


@dataclass(frozen=True, eq=False)
class Series:
    """One CT or MR series: one SeriesInstanceUID, frame of reference and orientation, even gaps."""

    headers: tuple[Header, ...]  # in ascending slice order
    geometry: Geometry
    set_aside: tuple[SetAside, ...] = ()

    @property
    def modality(self) -> str:
        return self.headers[0].modality

    @property
    def in_hounsfield_units(self) -> bool:
        """Whether the voxels are HU: of a CT that says nothing else (electron density, atomic number, ...)."""
        return self.modality == "CT" and {header.rescale_type for header in self.headers} <= {"", "HU"}

    @property
    def series_instance_uid(self) -> str:
        return self.headers[0].series_instance_uid

    @property
    def study_instance_uid(self) -> str:
        return self.headers[0].study_instance_uid

    @property
    def body_part(self) -> str:
        """BodyPartExamined, upper case; empty when absent."""
        return self.headers[0].body_part

    @property
    def sop_instance_uids(self) -> tuple[str, ...]:
        return tuple(header.sop_instance_uid for header in self.headers)

    @cached_property
    def _slices(self) -> dict[str, int]:
        return {h.sop_instance_uid: index for index, h in enumerate(self.headers) if h.frames == 1}

    def slice_of(self, sop_instance_uid: str) -> int:
        """The slice that an image of one frame is. Raises: KeyError: none is, or it has several frames."""
        return self._slices[sop_instance_uid]

    def read(self, start: int, stop: int) -> Volume:
        """Decode slices [start, stop) only.

        Raises: DamagedPixelData; ValueError for a range outside the series.
        """
        depth, height, width = self.geometry.shape_zyx
        if not 0 <= start < stop <= depth:
            raise ValueError(f"slices [{start}, {stop}) of {depth}")
        voxels = np.empty((stop - start, height, width), np.float32)
        _decode(self.headers[start:stop], voxels)
        return Volume(voxels, self.geometry.crop((start, 0, 0), (stop, height, width)))


def _decode(headers: tuple[Header, ...], voxels: np.ndarray) -> None:
    """Into `voxels`, (D, H, W) float32: no decoded image waits beside the volume."""

    def decode(index: int) -> None:
        read_voxels_into(voxels[index], headers[index])

    if len(headers) == 1:
        decode(0)
        return
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        list(pool.map(decode, range(len(headers))))  # raises what a decoder raised
