"""What every writer of a result object starts from, and the UIDs by which the objects of one result know each other.

UIDs follow from what the result is: the same series, mask, prompts, bundle and profile give the same UIDs, in whichever
order and request the objects are asked for. So an SR names the SEG that `format=seg` gives, and a delivery that is
repeated makes no duplicate. Decision: docs/decisions/0013-result-objects.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import numpy as np
from pydicom.uid import generate_uid

from contract.bundle import Bundle
from service.dicom.profiles import Profile
from service.dicom.series import Series
from service.domain.mask import Mask
from service.domain.prompts import Prompts

TRACKING_ID = "TAGS tumour 1"
POINT_DECIMALS = 2  # of a millimetre: clicks nearer than that are the same prompt


@dataclass(frozen=True)
class Lineage:
    """Which tumour a result goes on about: the tracking of an earlier SEG of ours, and that SEG itself."""

    tracking_id: str
    tracking_uid: str
    predecessor_seg_uid: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """A mask on its series, with what led to it."""

    series: Series
    mask: Mask
    prompts: Prompts
    bundle: Bundle
    profile: Profile
    lineage: Lineage | None = None

    @property
    def slices(self) -> np.ndarray:
        """(N,) int: the slices that hold a voxel of the mask, ascending."""
        return np.flatnonzero(self.mask.voxels.any(axis=(1, 2)))

    @property
    def tracking_id(self) -> str:
        return self.lineage.tracking_id if self.lineage else TRACKING_ID

    @cached_property
    def tracking_uid(self) -> str:
        """The same for every revision: the earlier SEG's, else that of these prompts on this series."""
        if self.lineage:
            return self.lineage.tracking_uid
        return generate_uid(entropy_srcs=[self.series.series_instance_uid, *_prompt_words(self.prompts)])

    @cached_property
    def seg_uid(self) -> str:
        """SOPInstanceUID of the (first) SEG. Every other UID of the result follows from it."""
        profile = self.profile.model_dump_json()
        made_by = (version("tags-service"), self.bundle.identity, *sorted(self.bundle.files.values()), profile)
        revision = (self.tracking_uid, self.lineage.predecessor_seg_uid if self.lineage else "")
        digest = hashlib.sha256()
        for start in range(0, len(self.mask.voxels), 8):  # whole bytes in each slab, and never a copy of the volume
            digest.update(np.packbits(self.mask.voxels[start : start + 8]).tobytes())
        shape = repr(self.mask.geometry.shape_zyx)
        images = [f"{h.sop_instance_uid} {h.frame}" if h.frame else h.sop_instance_uid for h in self.series.headers]
        return generate_uid(entropy_srcs=[*images, shape, digest.hexdigest(), *revision, *made_by])

    @property
    def following(self) -> Lineage:
        """For a later result that revises this one."""
        return Lineage(self.tracking_id, self.tracking_uid, self.seg_uid)

    def uid(self, kind: str, part: int = 0) -> str:
        """SOPInstanceUID of an object. Args: kind: seg, rtstruct, sr or sc.  part: counts from 0."""
        return self.seg_uid if kind == "seg" and part == 0 else sibling_uid(self.seg_uid, f"{kind} {part}")

    def series_uid(self, kind: str) -> str:
        return sibling_uid(self.seg_uid, f"{kind} series")


def sibling_uid(seg_uid: str, name: str) -> str:
    """The UID of another object or series of the result whose SEG has `seg_uid`."""
    return generate_uid(entropy_srcs=[seg_uid, name])


def _prompt_words(prompts: Prompts) -> list[str]:
    """What was asked for, as text; a mask counts only where nothing else says which tumour is meant."""
    words = [prompts.text or "", prompts.target or ""]
    for array in (prompts.points_lps_mm, prompts.labels, prompts.boxes_lps_mm):
        words.append(repr((np.round(array, POINT_DECIMALS) + 0.0).tolist()))
    if prompts.mask is not None and not (len(prompts.points_lps_mm) or len(prompts.boxes_lps_mm)):
        words.append(hashlib.sha256(np.packbits(prompts.mask).tobytes()).hexdigest())
    return words
