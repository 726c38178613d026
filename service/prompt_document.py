"""The `prompts` document of a request, checked strictly, and its resolution into the patient frame.

    {"text": "liver tumour", "target": "liver",
     "points": [{"lps_mm": [x, y, z], "label": 1}, {"index": [column, row, slice]},
                {"sop_instance_uid": "1.2.3", "pixel": [column, row]}],
     "boxes": [{"lps_mm": [[x0, y0, z0], [x1, y1, z1]]}, {"index": [[c0, r0, s0], [c1, r1, s1]]}]}

What enters: JSON text and a Series. What leaves: `Prompts` in LPS mm. `lps_mm` is DICOM's patient frame; `index` and
`pixel` count voxel centres from 0, the slice in the sorted series. Shared by the API and the command line. A refusal
says where and what, and never repeats what was sent: a document may hold a name.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.domain.geometry import Geometry
from service.domain.place import check_prompts
from service.domain.prompts import Prompts
from service.errors import MalformedRequest, PromptOutsideVolume

MAX_TEXT_CHARACTERS = 200  # CLIP reads 77 tokens; more would be cut off unseen
MAX_TARGET_CHARACTERS = 64
MAX_LISTED_ERRORS = 20

Number = Annotated[float, Field(allow_inf_nan=False)]
Triple = tuple[Number, Number, Number]
Pair = tuple[Number, Number]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Point(_Strict):
    """A click, in exactly one of three forms."""

    lps_mm: Triple | None = Field(default=None, description="x, y, z in the patient frame (LPS), mm")
    index: Triple | None = Field(default=None, description="column, row, slice from 0; integer = voxel centre")
    sop_instance_uid: str | None = Field(
        default=None, max_length=64, description="the image that was clicked, with `pixel`"
    )
    pixel: Pair | None = Field(default=None, description="column, row from 0 in that image")
    label: Literal[0, 1] = Field(default=1, description="1 foreground, 0 background")

    @model_validator(mode="after")
    def _one_form(self) -> Point:
        if (self.sop_instance_uid is None) != (self.pixel is None):
            raise ValueError("sop_instance_uid and pixel go together")
        if sum(form is not None for form in (self.lps_mm, self.index, self.pixel)) != 1:
            raise ValueError("give exactly one of lps_mm, index, or sop_instance_uid with pixel")
        return self


class Box(_Strict):
    """A box by two opposite corners, along the patient's axes (`lps_mm`) or along the series' own (`index`)."""

    lps_mm: tuple[Triple, Triple] | None = Field(default=None, description="two opposite corners, LPS mm")
    index: tuple[Triple, Triple] | None = Field(
        default=None, description="two opposite corners: column, row, slice from 0"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Box:
        if (self.lps_mm is None) == (self.index is None):
            raise ValueError("give exactly one of lps_mm or index")
        return self


class PromptDocument(_Strict):
    """What to look for. Everything is optional, but a text, a foreground point, a box or a mask must be there."""

    text: str | None = Field(
        default=None, max_length=MAX_TEXT_CHARACTERS, description='a finding, such as "liver tumour"'
    )
    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()
    target: str | None = Field(default=None, max_length=MAX_TARGET_CHARACTERS, description='anatomy, such as "liver"')


OWNERS: dict[tuple[int | str, ...], type[BaseModel]] = {("points",): Point, ("boxes",): Box}


class SeriesForPrompts(Protocol):
    """What resolution needs of a series. `service.dicom.series.Series` is one."""

    @property
    def geometry(self) -> Geometry: ...

    def slice_of(self, sop_instance_uid: str) -> int:
        """Raises: KeyError."""
        ...


def read_prompt_document(text: str | None) -> PromptDocument:
    """The document in `text`; an empty one when there is none. Raises: MalformedRequest with `errors`."""
    if text is None or not text.strip():
        return PromptDocument()
    try:
        return PromptDocument.model_validate_json(text)
    except ValidationError as error:
        errors = [_describe(item["type"], item["loc"], item["msg"]) for item in error.errors(include_input=False)]
    raise MalformedRequest("the prompts document is not valid; see errors", errors=errors[:MAX_LISTED_ERRORS])


def _describe(kind: str, location: tuple[int | str, ...], message: str) -> dict[str, str]:
    """One place and message. An unknown field's name is the sender's own text, so the known names are given instead."""
    if kind == "extra_forbidden":
        location = location[:-1]
        owner = OWNERS.get(location[:1], PromptDocument)
        message = f"unknown field; known are {', '.join(owner.model_fields)}"
    return {"location": ".".join(map(str, ("prompts", *location))), "message": message.removeprefix("Value error, ")}


def resolve(
    document: PromptDocument,
    series: SeriesForPrompts,
    *,
    organ_mask: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> Prompts:
    """The prompts in LPS mm.

    Args: organ_mask, mask: (D, H, W) bool on the series' grid.
    Raises: NoPrompts; TooManyPrompts; MaskMismatch; PromptOutsideVolume naming the prompt, counted from 1, and the
    range.
    """
    text = " ".join((document.text or "").split()) or None
    target = " ".join((document.target or "").lower().split()) or None
    points = [_point_lps_mm(point, number, series) for number, point in enumerate(document.points, 1)]
    boxes = [_box_lps_mm(box, series.geometry) for box in document.boxes]
    prompts = Prompts(
        text=text,
        target=target,
        points_lps_mm=np.array(points, float).reshape(-1, 3),
        labels=np.array([point.label for point in document.points], np.int32),
        boxes_lps_mm=np.array(boxes, float).reshape(-1, 8, 3),
        organ_mask=organ_mask,
        mask=mask,
    )
    check_prompts(prompts, series.geometry)
    return prompts


def _point_lps_mm(point: Point, number: int, series: SeriesForPrompts) -> np.ndarray:
    """(3,) LPS mm."""
    geometry = series.geometry
    if point.lps_mm is not None:
        place = np.array(point.lps_mm)
        if not geometry.contains(place[None])[0]:
            low, high = _extent_lps_mm(geometry)
            raise PromptOutsideVolume(
                f"point {number} lies outside the series; in LPS mm it spans x {low[0]:.1f} to {high[0]:.1f}, "
                f"y {low[1]:.1f} to {high[1]:.1f}, z {low[2]:.1f} to {high[2]:.1f}"
            )
        return place
    if point.index is not None:
        column, row, slice_ = point.index
    else:
        column, row = point.pixel or (0.0, 0.0)  # the model holds that pixel and UID are there
        try:
            slice_ = series.slice_of(point.sop_instance_uid or "")
        except KeyError as error:
            raise PromptOutsideVolume(
                f"point {number} names a SOP instance that is not one of the series' {geometry.shape_zyx[0]} images"
            ) from error
    place = geometry.to_lps_mm(np.array([[slice_, row, column]]))[0]
    if not geometry.contains(place[None])[0]:
        raise PromptOutsideVolume(f"point {number} lies outside the series, which has {_range_of_indices(geometry)}")
    return place  # type: ignore[no-any-return]


def _box_lps_mm(box: Box, geometry: Geometry) -> np.ndarray:
    """(8, 3) corners in LPS mm."""
    if box.index is not None:
        low, high = np.sort(np.array(box.index)[:, ::-1], axis=0)  # column, row, slice -> z, y, x
        return geometry.to_lps_mm(_corners(low, high))
    low, high = np.sort(np.array(box.lps_mm), axis=0)
    return _corners(low, high)


def _corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(8, 3): all corners between two opposite ones, along the axes that those are given in."""
    return np.array(list(product(*zip(low, high, strict=True))), float)


def _extent_lps_mm(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    corners = geometry.to_lps_mm(_corners(np.full(3, -0.5), np.array(geometry.shape_zyx) - 0.5))
    return corners.min(axis=0), corners.max(axis=0)


def _range_of_indices(geometry: Geometry) -> str:
    slices, rows, columns = geometry.shape_zyx
    return f"columns 0 to {columns - 1}, rows 0 to {rows - 1} and slices 0 to {slices - 1}"
