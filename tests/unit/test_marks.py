"""Marks as prompts: worked by hand on a grid of 3 x 1 x 1 mm, and on a flipped and oblique one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from service.dicom.annotations import ImageExtent, ImagePoint, SpaceExtent, SpacePoint
from service.domain.geometry import Geometry
from service.prompt_document import PromptDocument, resolve
from service.work.marks import MAX_MARKS, prompts_of
from tests.fakes.source import SIGNED_PERMUTATIONS, grid

UIDS = tuple(f"1.2.{number}" for number in range(20))


@dataclass(frozen=True, eq=False)
class MarkedGrid:
    """A series of single-frame images by its grid."""

    geometry: Geometry
    sop_instance_uids: tuple[str, ...] = UIDS

    def slice_of(self, sop_instance_uid: str) -> int:
        return self.sop_instance_uids.index(sop_instance_uid)


def series(directions: np.ndarray = SIGNED_PERMUTATIONS[0]) -> MarkedGrid:
    return MarkedGrid(grid(directions, (3, 1, 1), (20, 64, 64)))


def boxes(*marks) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Corners as column, row, slice."""
    _, found = prompts_of(marks, series())
    return [box.index for box in found]


def test_a_length_stands_for_a_cube_around_its_middle():
    assert boxes(ImageExtent(UIDS[10], ((20, 30), (32, 30)), is_length=True)) == [((20, 24, 8), (32, 36, 12))]


def test_an_outline_is_as_deep_as_it_is_wide():
    outline = ImageExtent(UIDS[10], ((20, 30), (32, 30), (32, 36), (20, 36)))
    assert boxes(outline) == [((20, 30, 9), (32, 36, 11))]


def test_a_long_and_a_short_axis_that_cross_are_one_finding():
    long = ImageExtent(UIDS[10], ((20, 33), (32, 33)), is_length=True)
    short = ImageExtent(UIDS[10], ((26, 30), (26, 36)), is_length=True)
    assert boxes(long, short) == [((20, 30, 9), (32, 36, 11))]


def test_outlines_on_several_slices_say_how_deep_it_is():
    outlines = [ImageExtent(UIDS[number], ((20, 30), (29, 30), (29, 39), (20, 39))) for number in (8, 9, 10, 11)]
    assert boxes(*outlines) == [((20, 30, 7.5), (29, 39, 11.5))]


def test_marks_far_apart_are_two_findings():
    first = ImageExtent(UIDS[2], ((5, 5), (9, 5)), is_length=True)
    second = ImageExtent(UIDS[15], ((50, 50), (54, 50)), is_length=True)
    assert len(boxes(first, second)) == 2


def test_what_lies_on_another_series_or_frame_is_passed_over():
    marks = [
        ImagePoint("9.9", (1, 1)), ImageExtent("9.9", ((1, 1), (5, 5)), is_length=True),
        SpacePoint("9.9", (0, 0, 0)), SpaceExtent("9.9", ((0, 0, 0), (5, 0, 0)), is_length=True),
    ]  # fmt: skip
    assert prompts_of(marks, series()) == ((), ())


def test_no_more_marks_are_taken_than_there_are_slots():
    many = [ImagePoint(UIDS[3], (number, 1)) for number in range(40)]
    points, found = prompts_of([*many, ImageExtent(UIDS[10], ((20, 30), (32, 30)), is_length=True)], series())
    assert (len(points), len(found)) == (MAX_MARKS - 1, 1)


@pytest.mark.parametrize("directions", SIGNED_PERMUTATIONS[::7])
def test_an_outline_in_space_and_the_same_in_an_image_are_the_same_box(directions):
    source = series(directions)
    pixels = ((20, 30), (32, 30), (32, 36), (20, 36))
    corners = source.geometry.to_lps_mm(np.array([(10, row, column) for column, row in pixels], float))
    in_space = SpaceExtent("1.2.3", tuple(tuple(map(float, corner)) for corner in corners))
    (flat,), (spatial,) = (prompts_of([mark], source)[1] for mark in (ImageExtent(UIDS[10], pixels), in_space))
    np.testing.assert_allclose(np.sort(np.array(spatial.index), axis=0), np.array(flat.index), atol=1e-6)


def test_the_boxes_are_prompts_like_any_other():
    source = series()
    _, found = prompts_of([ImageExtent(UIDS[10], ((20, 30), (32, 30)), is_length=True)], source)
    prompts = resolve(PromptDocument(boxes=found), source)
    assert prompts.boxes_lps_mm.shape == (1, 8, 3)
    assert np.ptp(prompts.boxes_lps_mm[0], axis=0) == pytest.approx([12, 12, 12])
