"""What is asked about a case: the prompts that a user would give, drawn from the truth, and the answers to them.

A dialogue of clicks begins at the deepest point of the largest part of the truth ("centre"), or at any of its voxels
("random"). Each further click goes to the deepest point of the largest error of the answer before, foreground where it
misses tumour, background where it spills; all clicks so far and that answer as previous mask are sent again. The other
prompts are asked once. Coordinates are z, y, x voxels of the scan until they become a prompt in LPS mm.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from scipy import ndimage

from service.domain.prompts import Prompts
from service.domain.roi import bounding_box, box_corners
from training.evaluation.cases import Case

CLICKS = (1, 3, 5)  # counts that tables report; the record has those between as well
BOX_JITTER = 0.1  # each face is off by up to this share of the side, either way
JITTER_MM = 2.0  # and by up to this more: a hand is no steadier on a small lesion

CENTRE, RANDOM = "centre", "random"  # the first click of a dialogue
BOX, LOOSE_BOX, BOX_CLICK = "box", "box-jittered", "box+click"
TEXT, TEXT_CLICK, ORGAN_CLICK, WRONG_TEXT = "text", "text+click", "organ+click", "wrong-text"
PROMPTS = (
    *(f"{first}-{count}" for first in (CENTRE, RANDOM) for count in CLICKS),
    BOX, LOOSE_BOX, BOX_CLICK, TEXT, TEXT_CLICK, ORGAN_CLICK, WRONG_TEXT,
)  # fmt: skip
FOREGROUND, BACKGROUND = 1, 0


@dataclass(frozen=True, eq=False)
class Reply:
    """What came back for one request."""

    mask: np.ndarray  # (D, H, W) bool; empty when nothing was found
    seconds: float
    refused: str | None = None  # slug of the problem that was answered instead of a mask; the mask is empty


Ask = Callable[[Prompts], Awaitable[Reply]]


@dataclass(frozen=True, eq=False)
class Answer:
    """The reply to one prompt, and what its last click was for."""

    prompt: str  # of PROMPTS, or a dialogue's count between
    reply: Reply
    correction: int | None = None  # label of the last click, when it corrects an answer
    obeyed: bool | None = None  # the voxel of that click is now as its label says


@dataclass(frozen=True, eq=False)
class Places:
    """Where a case's prompts point, z, y, x voxels: the same for every bundle and for the baselines."""

    centre: np.ndarray  # (3,) deepest point of the largest part
    anywhere: np.ndarray  # (3,) any voxel of the truth
    box: np.ndarray  # (2, 3) outer faces of the truth's voxels, smaller then larger
    loose_box: np.ndarray  # (2, 3) the same, each face off


def places_of(case: Case, seed: int) -> Places:
    """A function of the truth, the seed and the case's name, whatever else is asked or measured."""
    rng = np.random.default_rng([seed, crc32(case.name.encode())])
    within = bounding_box(case.truth)
    assert within is not None
    box = np.array([[side.start - 0.5 for side in within], [side.stop - 0.5 for side in within]])
    reach = BOX_JITTER * (box[1] - box[0]) + JITTER_MM / np.array(case.spacing_zyx_mm)
    loose = box + rng.uniform(-1, 1, (2, 3)) * np.minimum(reach, (box[1] - box[0]) / 4)  # never turned inside out
    anywhere = rng.choice(np.argwhere(case.truth))
    return Places(deepest(largest_part(case.truth), case.spacing_zyx_mm), anywhere, box, loose)


async def answers(case: Case, places: Places, wanted: Iterable[str], ask: Ask) -> AsyncIterator[Answer]:
    """The answers to those wanted prompts that the case has what it takes for."""
    wanted = set(wanted)
    for name, first in ((CENTRE, places.centre), (RANDOM, places.anywhere)):
        rounds = max((count for count in CLICKS if f"{name}-{count}" in wanted), default=0)
        if rounds:
            async for answer in dialogue(case, name, first, rounds, ask):
                yield answer
    for name, prompts in single_prompts(case, places).items():
        if name in wanted:
            yield Answer(name, await ask(prompts))


async def dialogue(case: Case, name: str, first: np.ndarray, rounds: int, ask: Ask) -> AsyncIterator[Answer]:
    """One click or more, each but the first where the answer before is most wrong; a perfect answer stands."""
    clicks, labels = [first], [FOREGROUND]
    reply = await ask(prompts_of(case, clicks, labels))
    yield Answer(f"{name}-1", reply)
    for count in range(2, rounds + 1):
        wrong = reply.mask ^ case.truth
        if not wrong.any():
            yield Answer(f"{name}-{count}", reply)
            continue
        clicks.append(deepest(largest_part(wrong), case.spacing_zyx_mm))
        labels.append(FOREGROUND if case.truth[tuple(clicks[-1])] else BACKGROUND)
        reply = await ask(prompts_of(case, clicks, labels, mask=reply.mask if reply.mask.any() else None))
        obeyed = bool(reply.mask[tuple(clicks[-1])]) == (labels[-1] == FOREGROUND)
        yield Answer(f"{name}-{count}", reply, correction=labels[-1], obeyed=obeyed)


def single_prompts(case: Case, places: Places) -> dict[str, Prompts]:
    """What is asked once, by name."""
    one, geometry = ([places.centre], [FOREGROUND]), case.source.geometry
    exact, loose = (geometry.to_lps_mm(box_corners(*box))[np.newaxis] for box in (places.box, places.loose_box))
    asked = {
        BOX: Prompts(target=case.organ, boxes_lps_mm=exact),
        LOOSE_BOX: Prompts(target=case.organ, boxes_lps_mm=loose),
        BOX_CLICK: prompts_of(case, *one, boxes_lps_mm=exact),
    }
    if case.finding:
        asked[TEXT] = Prompts(text=case.finding, target=case.organ)
        asked[TEXT_CLICK] = prompts_of(case, *one, text=case.finding)
    if case.organ_mask is not None:
        asked[ORGAN_CLICK] = prompts_of(case, *one, organ_mask=case.organ_mask)
    if case.absent_finding:
        asked[WRONG_TEXT] = Prompts(text=case.absent_finding)
    return asked


def prompts_of(case: Case, clicks: list[np.ndarray], labels: list[int], **others: object) -> Prompts:
    return Prompts(
        target=case.organ,
        points_lps_mm=case.source.geometry.to_lps_mm(np.array(clicks)),
        labels=np.array(labels, np.int32),
        **others,  # type: ignore[arg-type]
    )


def largest_part(mask: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: the largest connected part; voxels connect over faces, so that a thin rim is not one part."""
    parts, count = ndimage.label(mask)
    if count == 1:
        return mask
    sizes = np.bincount(parts.ravel())
    return parts == 1 + sizes[1:].argmax()  # type: ignore[no-any-return]


def deepest(mask: np.ndarray, spacing_zyx_mm: tuple[float, float, float]) -> np.ndarray:
    """(3,) z, y, x: the voxel farthest from the mask's border in mm; the scan's own border counts as one."""
    within = bounding_box(mask)
    assert within is not None
    depth = ndimage.distance_transform_edt(np.pad(mask[within], 1), sampling=spacing_zyx_mm)
    at = np.array(np.unravel_index(depth.argmax(), depth.shape))
    return at - 1 + [side.start for side in within]  # type: ignore[no-any-return]
