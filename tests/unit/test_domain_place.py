"""Prompts become the decoder's slots: clicks first, then box corners; what the region does not hold is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contract.sizes import SMALL
from contract.tensors import LABEL_BACKGROUND, LABEL_BOX_MAX, LABEL_BOX_MIN, LABEL_FOREGROUND, LABEL_PAD, POINTS
from service.domain.place import halved, has_place, place, points_somewhere
from service.domain.prompts import Prompts
from service.domain.roi import box_corners, lattice_on
from tests.fakes.source import grid

AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
SOURCE = grid(AXIAL, (1, 1, 1), (300, 300, 300))
SIZES = replace(SMALL, roi=128, tokens=16)
ROI = lattice_on(SOURCE, spacing_mm=1.0, size=128).roi((10, 20, 30))


def lps(*index_zyx: tuple[float, float, float]) -> np.ndarray:
    """Where voxels of the source lie."""
    return SOURCE.to_lps_mm(np.array(index_zyx, float))


def test_clicks_come_first_and_then_box_corners_in_region_voxels():
    prompts = Prompts(
        points_lps_mm=lps((15, 22.5, 31), (137, 147, 157)),
        labels=np.array([1, 0], np.int32),
        boxes_lps_mm=lps(*box_corners((20, 30, 40), (25, 36, 47)))[None, ::-1],
    )
    placed = place(prompts, ROI, None, SIZES)
    assert placed.point_labels[:5].tolist() == [
        LABEL_FOREGROUND, LABEL_BACKGROUND, LABEL_BOX_MIN, LABEL_BOX_MAX, LABEL_PAD,
    ]  # fmt: skip
    expected = [[5, 2.5, 1], [127, 127, 127], [10, 10, 10], [15, 16, 17], [0, 0, 0]]
    assert placed.point_coords[:5] == pytest.approx(np.array(expected), abs=1e-4)
    assert (placed.point_coords.shape, placed.point_coords.dtype) == ((POINTS, 3), np.float32)
    assert (placed.point_labels.shape, placed.point_labels.dtype) == ((POINTS,), np.int32)
    assert (placed.mask_prompt.shape, placed.mask_prompt.any()) == ((1, 64, 64, 64), False)
    assert placed.use_text == 0.0


def test_clicks_outside_the_region_are_left_out_and_boxes_are_cut_to_it():
    prompts = Prompts(
        points_lps_mm=lps((200, 22, 31), (15, 22, 31)),
        labels=np.array([1, 1], np.int32),
        boxes_lps_mm=np.stack(
            [lps(*box_corners((0, 30, 40), (400, 36, 47))), lps(*box_corners((200, 0, 0), (210, 9, 9)))]
        ),
    )
    placed = place(prompts, ROI, None, SIZES)
    assert placed.point_labels[:4].tolist() == [LABEL_FOREGROUND, LABEL_BOX_MIN, LABEL_BOX_MAX, LABEL_PAD]
    assert placed.point_coords[1:3] == pytest.approx(np.array([[-0.5, 10, 10], [127.5, 16, 17]]), abs=1e-4)


def test_text_is_read_and_counts_only_when_given():
    with_text, without = (place(Prompts(text=text), ROI, None, SIZES) for text in ("Liver  Tumour", None))
    assert (with_text.use_text, with_text.phrases[1]) == (1.0, "a scan of a liver tumour.")
    assert (without.use_text, without.phrases[1]) == (0.0, "a scan of a tumour.")
    assert not points_somewhere(with_text)


def test_a_previous_mask_is_halved_to_the_share_of_each_cell():
    mask = np.zeros((128, 128, 128), bool)
    mask[4:6, 8:10, 12:14] = True
    mask[0, 0, 0] = True
    placed = place(Prompts(), ROI, mask, SIZES)
    assert placed.mask_prompt[0, 2, 4, 6] == 1.0
    assert placed.mask_prompt[0, 0, 0, 0] == 0.125
    assert placed.mask_prompt.sum() == 1.125
    assert points_somewhere(placed)
    assert halved(np.ones((4, 4, 4), bool)).tolist() == np.ones((2, 2, 2)).tolist()


def test_only_foreground_clicks_boxes_and_masks_say_where():
    point = lps((1, 2, 3))
    assert has_place(Prompts(points_lps_mm=point, labels=np.array([1])))
    assert not has_place(Prompts(points_lps_mm=point, labels=np.array([0]), text="tumour"))
    assert has_place(Prompts(boxes_lps_mm=np.zeros((1, 8, 3))))
    assert has_place(Prompts(mask=np.ones((1, 1, 1), bool)))
    assert not has_place(Prompts(mask=np.zeros((1, 1, 1), bool)))
