"""What needs no network: each baseline on a shape that it must get right, and on one that it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from training.baselines import (
    best_grown_region,
    best_otsu_in_box,
    best_sphere,
    ellipsoid_in_box,
    grown_region,
    otsu_in_box,
)
from training.metrics import dice

SHAPE = (33, 35, 37)


def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    z, y, x = np.ogrid[tuple(map(slice, SHAPE))]
    return sum(((g - c) / r) ** 2 for g, c, r in zip((z, y, x), centre, radii, strict=True)) <= 1


def noisy(mask: np.ndarray, difference: float) -> np.ndarray:
    return (difference * mask + np.random.default_rng(0).normal(0, 0.3, SHAPE)).astype(np.float32)


def test_the_best_sphere_is_perfect_at_the_centre_of_a_ball_and_poor_at_its_edge():
    ball = ellipsoid((16, 16, 16), (8, 8, 8))
    assert np.array_equal(best_sphere(ball, np.array([16, 16, 16])), ball)
    assert 0.3 < dice(best_sphere(ball, np.array([16, 16, 24])), ball) < 0.7


def test_a_sphere_is_round_in_millimetres():
    flat = ellipsoid((16, 16, 16), (4, 8, 8))  # a ball of 8 mm in slices 2 mm apart
    assert dice(best_sphere(flat, np.array([16, 16, 16]), (2.0, 1.0, 1.0)), flat) > 0.98
    assert dice(best_sphere(flat, np.array([16, 16, 16])), flat) < 0.8


def test_the_ellipsoid_touches_the_faces_of_its_box():
    truth = ellipsoid((14, 17, 18), (6, 9, 12))
    inside = np.argwhere(truth)
    box = np.array([inside.min(0) - 0.5, inside.max(0) + 0.5])
    found = np.argwhere(ellipsoid_in_box(SHAPE, box))
    assert np.array_equal([found.min(0), found.max(0)], [inside.min(0), inside.max(0)])
    assert np.array_equal(ellipsoid_in_box(SHAPE, box), ellipsoid((14, 17, 18), (6.5, 9.5, 12.5)))


@pytest.mark.parametrize("difference", [3.0, -3.0], ids=["bright", "dark"])
def test_otsu_takes_the_side_of_the_tumour_and_stays_in_the_box(difference):
    truth = ellipsoid((14, 17, 18), (6, 9, 12))
    image = noisy(truth, difference)
    inside = np.argwhere(truth)
    box = np.array([inside.min(0) - 0.5, inside.max(0) + 0.5])
    found = otsu_in_box(image, box)
    assert dice(found, truth) > 0.98
    assert np.array_equal(np.argwhere(found).min(0) >= box[0], [True] * 3)
    assert dice(best_otsu_in_box(image, truth, box), truth) >= dice(found, truth)


def test_a_box_beyond_the_scan_is_cut_to_it():
    truth = ellipsoid((2, 17, 18), (6, 9, 12))
    found = otsu_in_box(noisy(truth, 3.0), np.array([[-4.5, 7.5, 5.5], [8.5, 26.5, 30.5]]))
    assert dice(found, truth) > 0.95


def test_region_growing_finds_a_ball_that_stands_out_and_not_its_twin():
    ball, twin = ellipsoid((9, 16, 16), (6, 7, 8)), ellipsoid((25, 16, 16), (6, 7, 8))
    image, click = noisy(ball | twin, 3.0), np.array([9, 16, 16])
    fixed, best = grown_region(image, click), best_grown_region(image, ball, click)
    assert dice(fixed, ball) > 0.7  # its border is smoothed away
    assert dice(best, ball) > max(0.85, dice(fixed, ball))
    assert not ((fixed | best) & twin).any()
