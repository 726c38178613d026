"""The prompts document: strict reading, refusals that repeat nothing, resolution into LPS by worked numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from service.domain.geometry import Geometry
from service.errors import MalformedRequest, NoPrompts, PromptOutsideVolume, TooManyPrompts
from service.prompt_document import read_prompt_document, resolve

# 4 slices of 5 rows and 6 columns; spacing 3, 2, 1 mm (z, y, x); first voxel at LPS (10, 20, 30) mm.
AXIAL = Geometry((4, 5, 6), np.array([[0, 0, 1, 10], [0, 2, 0, 20], [3, 0, 0, 30], [0, 0, 0, 1]], float), "1.2.3")
# The same, but turned by 90 degrees about z: columns run along +y, rows along -x.
TURNED = Geometry((4, 5, 6), np.array([[0, -2, 0, 10], [0, 0, 1, 20], [3, 0, 0, 30], [0, 0, 0, 1]], float), "1.2.3")
CANARY = "DOE^JANE"


@dataclass(frozen=True)
class FakeSeries:
    geometry: Geometry = field(default_factory=lambda: AXIAL)

    def slice_of(self, sop_instance_uid: str) -> int:
        return {"1.1": 0, "1.2": 1, "1.3": 2, "1.4": 3}[sop_instance_uid]


def prompts(document: dict[str, object], series: FakeSeries | None = None, **masks: np.ndarray):
    return resolve(read_prompt_document(json.dumps(document)), series or FakeSeries(), **masks)


def refusal(text: str) -> MalformedRequest:
    with pytest.raises(MalformedRequest) as caught:
        read_prompt_document(text)
    return caught.value


def test_a_point_in_lps_stays_where_it_is_and_is_foreground_by_default():
    found = prompts({"points": [{"lps_mm": [12.5, 24, 33]}]})
    assert found.points_lps_mm.tolist() == [[12.5, 24.0, 33.0]]
    assert found.labels.tolist() == [1]


def test_an_index_is_column_row_slice_of_voxel_centres():
    assert prompts({"points": [{"index": [2, 1, 3]}]}).points_lps_mm.tolist() == [[12.0, 22.0, 39.0]]


def test_an_index_follows_a_turned_series():
    found = prompts({"points": [{"index": [2, 1, 3]}]}, FakeSeries(TURNED))
    assert found.points_lps_mm.tolist() == [[8.0, 22.0, 39.0]]


def test_a_pixel_of_an_image_is_found_on_that_images_slice():
    found = prompts({"points": [{"sop_instance_uid": "1.3", "pixel": [2, 1], "label": 0}], "text": "liver tumour"})
    assert found.points_lps_mm.tolist() == [[12.0, 22.0, 36.0]]
    assert found.labels.tolist() == [0]


def test_a_box_in_lps_has_its_eight_corners_whatever_order_its_two_were_given_in():
    found = prompts({"boxes": [{"lps_mm": [[14, 22, 33], [11, 26, 30]]}]})
    assert found.boxes_lps_mm.shape == (1, 8, 3)
    assert found.boxes_lps_mm[0].min(axis=0).tolist() == [11.0, 22.0, 30.0]
    assert found.boxes_lps_mm[0].max(axis=0).tolist() == [14.0, 26.0, 33.0]
    assert len(np.unique(found.boxes_lps_mm[0], axis=0)) == 8


def test_a_box_in_voxels_lies_along_the_axes_of_a_turned_series():
    found = prompts({"boxes": [{"index": [[1, 0, 0], [3, 2, 1]]}]}, FakeSeries(TURNED))
    # columns 1..3 -> y 21..23; rows 0..2 -> x 10..6; slices 0..1 -> z 30..33
    assert found.boxes_lps_mm[0].min(axis=0).tolist() == [6.0, 21.0, 30.0]
    assert found.boxes_lps_mm[0].max(axis=0).tolist() == [10.0, 23.0, 33.0]


def test_a_box_in_voxels_of_an_oblique_series_is_no_wider_than_it_was_drawn():
    turn = np.sqrt(0.5)
    oblique = Geometry(
        (4, 5, 6), np.array([[0, -turn, turn, 0], [0, turn, turn, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float), "1.2.3"
    )
    corners = prompts({"boxes": [{"index": [[1, 1, 1], [3, 3, 2]]}]}, FakeSeries(oblique)).boxes_lps_mm[0]
    assert oblique.to_index(corners).min(axis=0) == pytest.approx([1, 1, 1])
    assert oblique.to_index(corners).max(axis=0) == pytest.approx([2, 3, 3])


def test_text_and_target_lose_surplus_space_and_the_target_its_capitals():
    found = prompts({"text": "  Liver   tumour ", "target": " Liver "})
    assert (found.text, found.target) == ("Liver tumour", "liver")


def test_a_previous_mask_alone_is_a_prompt_unless_it_is_empty():
    mask = np.zeros((4, 5, 6), bool)
    with pytest.raises(NoPrompts):
        prompts({}, mask=mask)
    mask[1, 2, 3] = True
    assert prompts({}, mask=mask).mask is mask


@pytest.mark.parametrize(
    "document",
    [{}, {"text": "  "}, {"target": "liver"}, {"points": []}, {"points": [{"index": [1, 1, 1], "label": 0}]}],
)
def test_nothing_to_look_for_is_refused(document):
    with pytest.raises(NoPrompts):
        prompts(document)


def test_an_absent_document_is_an_empty_one():
    assert read_prompt_document(None) == read_prompt_document(" ") == read_prompt_document("{}")


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"lps_mm": [9.4, 20, 30]}, "x 9.5 to 15.5, y 19.0 to 29.0, z 28.5 to 40.5"),
        ({"index": [6, 0, 0]}, "columns 0 to 5, rows 0 to 4 and slices 0 to 3"),
        ({"index": [0, 0, -0.6]}, "slices 0 to 3"),
        ({"sop_instance_uid": "1.1", "pixel": [0, 5]}, "rows 0 to 4"),
        ({"sop_instance_uid": "9.9", "pixel": [0, 0]}, "not one of the series' 4 images"),
    ],
)
def test_a_point_outside_is_refused_with_its_number_and_the_range(point, said):
    with pytest.raises(PromptOutsideVolume) as caught:
        prompts({"points": [{"index": [0, 0, 0]}, point]})
    assert caught.value.detail.startswith("point 2 ")
    assert said in caught.value.detail
    assert "9.9" not in caught.value.detail


def test_half_a_voxel_beyond_the_outer_centres_is_inside():
    assert len(prompts({"points": [{"lps_mm": [9.5, 29.0, 40.5]}]}).points_lps_mm) == 1


def test_a_box_that_reaches_beyond_the_series_is_taken_and_one_beside_it_is_not():
    prompts({"boxes": [{"lps_mm": [[-100, -100, 31], [11, 21, 32]]}]})
    with pytest.raises(PromptOutsideVolume, match="box 1"):
        prompts({"boxes": [{"lps_mm": [[-100, -100, 31], [9, 21, 32]]}]})


def test_more_prompts_than_the_network_has_slots_for_are_refused():
    box, point = {"index": [[0, 0, 0], [1, 1, 1]]}, {"index": [0, 0, 0]}
    prompts({"boxes": [box] * 8, "points": [point] * 16})
    with pytest.raises(TooManyPrompts, match="33 slots"):
        prompts({"boxes": [box] * 8, "points": [point] * 17})


@pytest.mark.parametrize(
    ("document", "location", "message"),
    [
        ('{"points": [{"lps_mm": [1, 2]}]}', "prompts.points.0.lps_mm.2", "Field required"),
        ('{"points": [{"lps_mm": [1, 2, "DOE^JANE"]}]}', "prompts.points.0.lps_mm.2", "valid number"),
        ('{"points": [{"lps_mm": [1, 2, NaN]}]}', "prompts.points.0.lps_mm.2", "finite number"),
        ('{"points": [{"lps_mm": [1, 2, 1e999]}]}', "prompts.points.0.lps_mm.2", "finite number"),
        ('{"points": [{"lps_mm": [1, 2, true]}]}', "prompts.points.0.lps_mm.2", "valid number"),
        ('{"points": [{"index": [1, 2, 3], "label": 2}]}', "prompts.points.0.label", "0 or 1"),
        ('{"points": [{"index": [1, 2, 3], "lps_mm": [1, 2, 3]}]}', "prompts.points.0", "exactly one"),
        ('{"points": [{}]}', "prompts.points.0", "exactly one"),
        ('{"points": [{"pixel": [1, 2]}]}', "prompts.points.0", "go together"),
        ('{"boxes": [{"lps_mm": [[1, 2, 3]]}]}', "prompts.boxes.0.lps_mm.1", "Field required"),
        ('{"boxes": [{}]}', "prompts.boxes.0", "exactly one"),
        ('{"text": 7}', "prompts.text", "valid string"),
        ('{"point": "DOE^JANE"}', "prompts", "known are text, points, boxes, target"),
        ('{"DOE^JANE": 1}', "prompts", "known are text, points, boxes, target"),
        ('{"points": [{"index": [1, 1, 1], "DOE^JANE": 1}]}', "prompts.points.0", "known are lps_mm, index"),
        ("[]", "prompts", "object"),
        ("{'text': 1}", "prompts", "Invalid JSON"),
        ("DOE^JANE", "prompts", "Invalid JSON"),
    ],
)
def test_a_wrong_document_is_refused_with_the_place_and_without_its_content(document, location, message):
    error = refusal(document)
    (first, *_) = error.members["errors"]
    assert first["location"] == location
    assert message in first["message"]
    assert CANARY not in json.dumps(error.members) + error.detail


def test_an_endless_list_of_mistakes_is_cut():
    assert len(refusal(json.dumps({"points": [{}] * 1000})).members["errors"]) == 20


def test_a_text_longer_than_the_network_reads_is_refused():
    assert refusal(json.dumps({"text": "x" * 201})).members["errors"][0]["location"] == "prompts.text"
