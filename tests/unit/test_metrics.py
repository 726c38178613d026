"""Scores on boxes and balls whose figures can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics import dice, score


def box(shape: tuple[int, int, int], low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(map(slice, low, high))] = True
    return mask


TRUTH = box((12, 20, 30), (3, 5, 6), (9, 15, 24))  # 6 x 10 x 18 voxels


def test_an_equal_mask_is_perfect():
    scores = score(TRUTH.copy(), TRUTH, (3.0, 1.0, 0.5))
    assert (scores.dice, scores.nsd_5mm, scores.nsd_2mm) == (1, 1, 1)
    assert (scores.hd95_mm, scores.volume_error) == (0, 0)


def test_a_shift_along_slices_is_measured_in_millimetres():
    shifted = np.roll(TRUTH, 1, axis=0)
    near, far = score(shifted, TRUTH, (1.0, 1.0, 1.0)), score(shifted, TRUTH, (6.0, 1.0, 1.0))
    assert near.dice == far.dice == pytest.approx(5 / 6)
    assert near.nsd_2mm == 1
    assert near.hd95_mm == pytest.approx(1.0)
    assert far.nsd_5mm < 1  # the two faces that moved are 6 mm off
    assert far.hd95_mm == pytest.approx(6.0)
    assert near.volume_error == far.volume_error == 0


def test_surfaces_are_weighed_by_area():
    """Both ends of a bar of 4 x 4 x 20 mm are 3 mm longer: of the answer's surface only the ends' share is off 2 mm."""
    truth, longer = box((8, 8, 40), (2, 2, 10), (6, 6, 30)), box((8, 8, 40), (2, 2, 7), (6, 6, 33))
    scores = score(longer, truth, (1.0, 1.0, 1.0))
    assert scores.nsd_5mm == 1
    assert 0.7 < scores.nsd_2mm < 0.95
    assert scores.volume_error == pytest.approx(6 / 20)


def test_an_empty_answer_scores_nothing_and_has_no_distance():
    scores = score(np.zeros_like(TRUTH), TRUTH, (1.0, 1.0, 1.0))
    assert (scores.dice, scores.nsd_5mm, scores.hd95_mm, scores.volume_error) == (0, 0, None, -1)


def test_an_empty_truth_is_refused():
    with pytest.raises(ValueError, match="truth"):
        score(TRUTH, np.zeros_like(TRUTH), (1.0, 1.0, 1.0))


def test_dice_of_halves_and_of_nothing():
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(a & False, b & False) == 1.0
