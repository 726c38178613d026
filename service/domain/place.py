"""Prompts in the patient frame in, the decoder's slots in one region of interest out."""

from __future__ import annotations

import numpy as np

from contract.sizes import Sizes
from contract.tensors import LABEL_BOX_MAX, LABEL_BOX_MIN, LABEL_FOREGROUND, LABEL_PAD, POINTS
from contract.text import phrases
from service.domain.geometry import Geometry
from service.domain.prompts import PlacedPrompts, Prompts
from service.errors import MaskMismatch, NoPrompts, PromptOutsideVolume, TooManyPrompts

ANY_FINDING = "tumour"  # what is read beside a prompt without text; use_text 0 keeps it from counting


def check_prompts(prompts: Prompts, source: Geometry) -> None:
    """Raises: NoPrompts; TooManyPrompts; PromptOutsideVolume naming the prompt, counted from 1, and the series' extent
    in indices; MaskMismatch."""
    for name, mask in (("organ_mask", prompts.organ_mask), ("mask", prompts.mask)):
        if mask is not None and mask.shape != source.shape_zyx:
            raise MaskMismatch(f"{name} has {mask.shape} voxels, the series {source.shape_zyx} (slices, rows, columns)")
    if not (prompts.text or has_place(prompts)):
        raise NoPrompts("add a text, a point with label 1, a box, or a mask that is not empty")
    slots = len(prompts.points_lps_mm) + 2 * len(prompts.boxes_lps_mm)
    if slots > POINTS:
        raise TooManyPrompts(f"{slots} slots are needed, {POINTS} there are; a point takes one, a box two")
    for number, within in enumerate(source.contains(prompts.points_lps_mm), 1):
        if not within:
            raise PromptOutsideVolume(f"point {number} lies outside the series, which has {_extent(source)}")
    for number, corners in enumerate(prompts.boxes_lps_mm, 1):
        index = source.to_index(corners)
        if np.any(index.max(axis=0) < -0.5) or np.any(index.min(axis=0) > np.array(source.shape_zyx) - 0.5):
            raise PromptOutsideVolume(f"box {number} lies outside the series, which has {_extent(source)}")


def has_place(prompts: Prompts) -> bool:
    """The prompts say where to look: a foreground click, a box or a previous mask. Else there is only a text."""
    mask = prompts.mask is not None and bool(prompts.mask.any())
    return mask or bool(len(prompts.foreground_lps_mm)) or bool(len(prompts.boxes_lps_mm))


def place(prompts: Prompts, roi: Geometry, previous: np.ndarray | None, sizes: Sizes) -> PlacedPrompts:
    """The prompts as far as they concern one ROI: clicks outside it are left out, boxes are cut to it.

    Args: previous: (S, S, S) bool, a previous mask on the ROI.
    """
    border = np.array(roi.shape_zyx) - 0.5
    within = roi.contains(prompts.points_lps_mm)
    slots = list(zip(roi.to_index(prompts.points_lps_mm)[within], prompts.labels[within].tolist(), strict=True))
    for corners in prompts.boxes_lps_mm:
        index = roi.to_index(corners)
        low, high = np.clip(index.min(axis=0), -0.5, border), np.clip(index.max(axis=0), -0.5, border)
        if np.all(low < high):
            slots += [(low, LABEL_BOX_MIN), (high, LABEL_BOX_MAX)]
    coords, labels = np.zeros((POINTS, 3), np.float32), np.full(POINTS, LABEL_PAD, np.int32)
    for slot, (coordinates, label) in enumerate(slots):
        coords[slot], labels[slot] = coordinates, label
    mask_prompt = np.zeros((sizes.half,) * 3, np.float32) if previous is None else halved(previous)
    return PlacedPrompts(
        point_coords=coords,
        point_labels=labels,
        mask_prompt=mask_prompt[np.newaxis],
        use_text=float(prompts.text is not None),
        phrases=phrases(prompts.text or ANY_FINDING),
    )


def points_somewhere(placed: PlacedPrompts) -> bool:
    """The ROI holds a foreground click, part of a box, or part of a previous mask."""
    return bool(np.any(placed.point_labels >= LABEL_FOREGROUND)) or bool(placed.mask_prompt.any())


def halved(mask: np.ndarray) -> np.ndarray:
    """(S/2, S/2, S/2) float32: the share of each 2 x 2 x 2 cell that the mask covers. Args: mask: (S, S, S) bool."""
    d, h, w = (n // 2 for n in mask.shape)
    return mask.reshape(d, 2, h, 2, w, 2).mean((1, 3, 5), dtype=np.float32)  # type: ignore[no-any-return]


def _extent(source: Geometry) -> str:
    slices, rows, columns = source.shape_zyx
    return f"columns 0 to {columns - 1}, rows 0 to {rows - 1} and slices 0 to {slices - 1}"
