"""A phantom and a random generator in, one training sample out: network inputs as the contract names them, and truth.

Which prompts a sample has is drawn: clicks, a box, a previous mask with clicks in its errors, or text alone; text and
an organ mask join the first three now and then. All arrays lack the batch axis; z, y, x in region voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache

import numpy as np
from instant_clip_tokenizer import Tokenizer
from scipy import ndimage

from contract.intensity import normalise
from contract.tensors import (
    CONTEXT_LENGTH,
    END_OF_TEXT,
    LABEL_BACKGROUND,
    LABEL_BOX_MAX,
    LABEL_BOX_MIN,
    LABEL_FOREGROUND,
    LABEL_PAD,
    POINTS,
)
from contract.text import phrases
from training.fields import Draw
from training.phantoms import make_phantom
from training.recipe import INTENSITY, NOUNS, Only
from training.scene import Phantom, Tumours
from training.tissues import TARGETS

ANY_SIZE = 0.1  # share of phantoms with tumours of any size: clicks do not say how large it is, boxes and masks do
MIXED = 0.4  # share of phantoms with tumours of several tissues: a click means all of them
TEXT_ALONE = 0.25  # share of anatomy samples
BOX, PREVIOUS_MASK = 0.30, 0.20  # shares of the others that may have them; the rest has clicks only
TEXT_ABSENT = 0.4  # share of text-alone samples that ask for what the scan does not show
TEXT_ELSEWHERE = 0.4  # share of the other samples whose text counts
ANY_ORGAN = 0.7  # share of such texts that name an organ where there is no anatomy
ORGAN_MASK = 0.3
CLOSE_UPS = 8  # samples cut out of one phantom in a first stage
CLICKS = (0.55, 0.2, 0.13, 0.08, 0.04)  # probability of 1 .. 5 clicks


TRUTH = ("target", "text_map")  # the fields of a sample that no network reads


@dataclass(frozen=True, eq=False)
class Sample:
    """Inputs of the ensemble `tags` by their contract names, and the mask to learn."""

    image: np.ndarray  # (1, S, S, S) float32, normalised
    organ_mask: np.ndarray  # (1, S, S, S) float32, zeros = none
    input_ids: np.ndarray  # (2, 77) int32
    eot_index: np.ndarray  # (2,) int32
    point_coords: np.ndarray  # (32, 3) float32
    point_labels: np.ndarray  # (32,) int32
    mask_prompt: np.ndarray  # (1, S/2, S/2, S/2) float32, zeros = none
    use_text: np.ndarray  # (1,) float32
    target: np.ndarray  # (1, S, S, S) float32, 0 or 1
    text_map: np.ndarray  # (1, S, S, S) float32, 1 in tumours that the words mean, 0.5 in their organ; -1 if unknown


def make_sample(seed: int, index: int, *, size: int, device: str = "cpu", only: Only | None = None) -> Sample:
    """Sample `index` of the endless training set `seed`: a function of its arguments alone, so training can resume.

    Args: only: each has a box, or a text that counts.
    """
    rng = np.random.default_rng([seed, index, size])
    kinds: tuple[Tumours, ...] = ("of any size", "mixed", "mostly suiting")
    any_size = 0 if only == "boxes" else ANY_SIZE
    tumours = kinds[int(rng.choice(3, p=[any_size, MIXED, 1 - any_size - MIXED]))]
    phantom = make_phantom(int(rng.integers(1 << 29)), size=size, tumours=tumours, device=device)
    return simulate(phantom, rng, only=only, unsized=tumours == "of any size")


def make_close_up(seed: int, index: int, *, size: int, whole: int, device: str = "cpu") -> Sample:
    """Sample `index` of a cheap first stage: `size` voxels per side cut out of a phantom of `whole`, around its tumour.

    What a click has to do with the image near it is learned from eight times as many samples; several are cut from one
    phantom. Nothing in them is named: without the surroundings words mean little.
    """
    rng = np.random.default_rng([seed, index, size])
    phantom = _phantom_of_close_ups(seed, index // CLOSE_UPS, whole, device)
    surface = phantom.tumour & ~ndimage.binary_erosion(phantom.tumour, border_value=1)
    for places in (phantom.tumour, surface):  # at its surface where it would fill the view
        middle = rng.choice(np.argwhere(places)) + rng.integers(-size // 6, size // 6 + 1, 3)
        close_up = cropped(phantom, np.clip(middle - size // 2, 0, whole - size), size)
        if not close_up.tumour.all():
            break
    return simulate(close_up, rng)


@lru_cache(maxsize=1)
def _phantom_of_close_ups(seed: int, number: int, whole: int, device: str) -> Phantom:
    tumours: Tumours = "mostly suiting" if number % 2 else "of any size"
    return make_phantom(seed * 1_000_000 + number, size=whole, tumours=tumours, device=device)


def cropped(phantom: Phantom, start: np.ndarray, size: int) -> Phantom:
    """The part of `size` voxels per side from `start` on, in which nothing is named."""
    part = tuple(slice(low, low + size) for low in start.tolist())
    volumes = {
        f.name: value[part] for f in fields(Phantom) if isinstance(value := getattr(phantom, f.name), np.ndarray)
    }
    return replace(phantom, **volumes, anatomy=False)


def simulate(phantom: Phantom, rng: np.random.Generator, *, only: Only | None = None, unsized: bool = False) -> Sample:
    """One sample with drawn prompts. At least one prompt says which tumour is meant, or the text alone does, which only
    an anatomy gives a meaning. Where there is none, a text beside other prompts may name any organ, and what they say
    holds. Args: only: each has a box, or a text that counts. unsized: neither box nor previous mask says how large."""
    inside = _scanned(phantom.tumour, rng)
    tumour = phantom.tumour & inside
    clicks: list[Click] = []
    box = previous = None
    finding = f"{phantom.organ_name} {rng.choice(NOUNS)}"
    use_text = bool(rng.random() < TEXT_ELSEWHERE) or only == "texts"
    text_map = named(phantom, phantom.organ_name) if phantom.anatomy else None
    if phantom.anatomy and rng.random() < TEXT_ALONE and only != "boxes":
        use_text = True
        tumour = phantom.same_organ & inside
        if phantom.healthy and rng.random() < TEXT_ABSENT:
            organ_name = str(rng.choice(phantom.healthy))
            finding, tumour = f"{organ_name} {rng.choice(NOUNS)}", np.zeros_like(tumour)
            text_map = named(phantom, organ_name)
    else:
        kind = 1.0 if unsized else rng.random()
        if kind < BOX or only == "boxes":
            box = jittered_box(tumour, rng)
            if rng.random() < 0.3:
                clicks = draw_clicks(phantom, tumour, 1 + int(rng.integers(2)), rng)
        elif kind < BOX + PREVIOUS_MASK:
            previous = distort(tumour, rng)
            clicks = correcting_clicks(tumour, previous, int(rng.integers(0, 4)), rng)
        else:
            clicks = draw_clicks(phantom, tumour, 1 + int(rng.choice(5, p=CLICKS)), rng)
        if use_text and not phantom.anatomy and rng.random() < ANY_ORGAN:
            finding = f"{rng.choice(TARGETS)} {rng.choice(NOUNS)}"
        elif use_text and (not phantom.anatomy or rng.random() < 0.2):
            finding, text_map = str(rng.choice(NOUNS)), None
    organ = noisy_organ(phantom, rng) if rng.random() < ORGAN_MASK else None
    return assemble(phantom, tumour, inside=inside, clicks=clicks, box=box, organ=organ, previous=previous,
                    finding=finding, use_text=use_text, text_map=text_map, contrast=contrast(rng))  # fmt: skip


def named(phantom: Phantom, organ_name: str) -> np.ndarray:
    """(D, H, W) float32: 1 in the tumours of a target organ, 0.5 in the organ, 0 elsewhere."""
    organ = np.where(phantom.organs == 1 + TARGETS.index(organ_name), np.float32(0.5), np.float32(0))
    return np.where(phantom.same_organ, np.float32(1), organ) if organ_name == phantom.organ_name else organ


def contrast(rng: np.random.Generator) -> tuple[float, float]:
    """Scale and shift of the normalised image: scanners and rules differ, and the network should not care."""
    return (float(np.exp(rng.normal(0, 0.2))), float(rng.normal(0, 0.2))) if rng.random() < 0.5 else (1.0, 0.0)


Click = tuple[np.ndarray, int]  # (3,) z, y, x in region voxels; LABEL_FOREGROUND or LABEL_BACKGROUND


def assemble(
    phantom: Phantom,
    tumour: np.ndarray,
    *,
    inside: np.ndarray | None = None,
    clicks: Sequence[Click] = (),
    box: np.ndarray | None = None,
    organ: np.ndarray | None = None,
    previous: np.ndarray | None = None,
    finding: str = NOUNS[0],
    use_text: bool = False,
    text_map: np.ndarray | None = None,
    contrast: tuple[float, float] = (1.0, 0.0),
) -> Sample:
    """The sample for given prompts.

    Args: tumour, organ, previous, inside: (D, H, W) bool; inside is False where the scan ends before the region does.
        box: (2, 3) corners, smaller then larger z, y, x. finding: "liver tumour", also when the text does not count:
        image features learn what it means all the same.
    """
    inside = np.ones_like(tumour) if inside is None else inside
    image = normalise(phantom.image, inside, INTENSITY[phantom.modality])
    image = np.where(inside, contrast[0] * image + contrast[1], 0).astype(np.float32)
    return as_sample(
        image, tumour, clicks=clicks, box=box, organ=organ, previous=previous,
        words=finding, use_text=use_text, text_map=text_map,
    )  # fmt: skip


def as_sample(
    image: np.ndarray,
    target: np.ndarray,
    *,
    clicks: Sequence[Click],
    box: np.ndarray | None,
    organ: np.ndarray | None,
    previous: np.ndarray | None,
    words: str,
    use_text: bool,
    text_map: np.ndarray | None = None,
) -> Sample:
    """A sample of what is prepared already.

    Args: image: (D, H, W) float32, normalised. target, organ, previous: (D, H, W) bool. words: what the text says,
        whether it counts or not. text_map: (D, H, W) float32, None if nobody knows where that is.
    """
    coords, labels = place(clicks, box)
    ids, ends = tokens(words)
    half = (target.shape[0] // 2,) * 3
    return Sample(
        image=image[None],
        organ_mask=(np.zeros_like(target) if organ is None else organ)[None].astype(np.float32),
        input_ids=ids,
        eot_index=ends,
        point_coords=coords,
        point_labels=labels,
        mask_prompt=(np.zeros(half, np.float32) if previous is None else halved(previous))[None],
        use_text=np.array([use_text], np.float32),
        target=target[None].astype(np.float32),
        text_map=(np.full(target.shape, -1, np.float32) if text_map is None else text_map)[None],
    )


def place(clicks: Sequence[Click], box: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The contract's point slots, (32, 3) float32 and (32,) int32: clicks, then the two corners of the box."""
    slots = list(clicks)
    if box is not None:
        slots += [(box[0], LABEL_BOX_MIN), (box[1], LABEL_BOX_MAX)]
    coords, labels = np.zeros((POINTS, 3), np.float32), np.full(POINTS, LABEL_PAD, np.int32)
    for slot, (position, label) in enumerate(slots):
        coords[slot], labels[slot] = position, label
    return coords, labels


@cache
def tokens(finding: str) -> tuple[np.ndarray, np.ndarray]:
    """(2, 77) int32 token ids of the background and foreground phrase, and (2,) int32 positions of their end token."""
    ids = Tokenizer().tokenize_batch(list(phrases(finding)), context_length=CONTEXT_LENGTH).astype(np.int32)
    return ids, np.argmax(ids == END_OF_TEXT, axis=1).astype(np.int32)


def draw_clicks(phantom: Phantom, tumour: np.ndarray, count: int, rng: np.random.Generator) -> list[Click]:
    """A foreground click, then clicks in the tumour or on what is not: around it or on a look-alike."""
    clicks = [(foreground_click(tumour, rng), LABEL_FOREGROUND)]
    while len(clicks) < count:
        if rng.random() < 0.5:
            clicks.append((foreground_click(tumour, rng), LABEL_FOREGROUND))
        else:
            clicks.append((background_click(phantom, tumour, rng), LABEL_BACKGROUND))
    return clicks


def foreground_click(tumour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(3,) a random place in the tumour; half of the time in its deeper half, as people click."""
    start, part = _bounds(tumour, margin=1)
    inside = tumour[part]
    if rng.random() < 0.5:
        depth = ndimage.distance_transform_edt(inside)
        inside = depth >= np.median(depth[inside])
    return start + rng.choice(np.argwhere(inside)) + rng.uniform(-0.5, 0.5, 3)


def background_click(phantom: Phantom, tumour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(3,) a place outside the tumour: on a look-alike, or within some 15 voxels of the border."""
    if rng.random() < 0.4 and phantom.distractors.any():
        return rng.choice(np.argwhere(phantom.distractors)).astype(float)
    around = rng.choice(np.argwhere(tumour), 32) + rng.normal(0, 8, (32, 3))
    index = np.rint(around).astype(int)
    valid = np.all((index >= 0) & (index < tumour.shape[0]), axis=1)
    valid[valid] = ~tumour[tuple(index[valid].T)]
    return around[np.argmax(valid)] if valid.any() else rng.choice(np.argwhere(~tumour)).astype(float)


def correcting_clicks(tumour: np.ndarray, previous: np.ndarray, count: int, rng: np.random.Generator) -> list[Click]:
    """Clicks where the previous mask is wrong: foreground where it misses the tumour, background where it spills."""
    wrong = np.argwhere(tumour ^ previous)
    if not len(wrong):
        return []
    places = rng.choice(wrong, count)
    return [(at + rng.uniform(-0.5, 0.5, 3), LABEL_FOREGROUND if tumour[tuple(at)] else LABEL_BACKGROUND)
            for at in places]  # fmt: skip


def jittered_box(tumour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(2, 3) the tumour's bounding box: exact, or each face off by up to a tenth of the side plus a voxel."""
    found = np.argwhere(tumour)
    corners = np.stack([found.min(0) - 0.5, found.max(0) + 0.5])
    if rng.random() < 0.35:
        return corners
    side = corners[1] - corners[0]
    return corners + rng.uniform(-1, 1, (2, 3)) * (0.1 * side + 1.0) + [[-0.5], [0.5]]  # rather too large


def distort(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask with the errors of an earlier attempt: grown, shrunk, warped and shifted."""
    _, part = _bounds(mask, margin=12)
    inside = mask[part]
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    radius = max(2.0, distance.max())
    error = rng.normal(0, 0.25) + rng.uniform(0, 0.6) * _field(rng, inside.shape, max(3.0, radius))
    wrong = np.zeros_like(mask)
    wrong[part] = distance + radius * error > 0
    return ndimage.shift(wrong, np.rint(rng.normal(0, 0.15, 3) * radius), order=0)


def noisy_organ(phantom: Phantom, rng: np.random.Generator) -> np.ndarray:
    """(D, H, W) bool: the target organ as another program would draw it, at half detail, with or without the tumour."""
    organ = phantom.organ[::2, ::2, ::2]
    blurred = ndimage.gaussian_filter(organ.astype(np.float32), rng.uniform(0.5, 2.0))
    blurred += rng.uniform(0, 0.25) * _field(rng, organ.shape, rng.uniform(4, 12))
    organ = (blurred > rng.uniform(0.35, 0.65)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return organ | phantom.tumour if rng.random() < 0.5 else organ & ~phantom.tumour if rng.random() < 0.3 else organ


def corrected(sample: Sample, found: np.ndarray, rng: np.random.Generator) -> Sample:
    """The next round: the network's own answer as previous mask, and a click where it is most wrong.

    Args: found: (D, H, W) bool. A sample that only a text places, or whose slots are full, stays as it is.
    """
    target = sample.target[0] > 0
    free = np.flatnonzero(sample.point_labels == LABEL_PAD)
    asked = bool(np.any(sample.point_labels >= LABEL_FOREGROUND)) or bool(sample.mask_prompt.any())
    click = worst_error(target, found, rng)
    if click is None or not len(free) or not (asked or target.any()):
        return sample
    coords, labels = sample.point_coords.copy(), sample.point_labels.copy()
    coords[free[0]], labels[free[0]] = click
    return replace(sample, point_coords=coords, point_labels=labels, mask_prompt=halved(found)[None])


def worst_error(target: np.ndarray, found: np.ndarray, rng: np.random.Generator) -> Click | None:
    """A click in the largest connected error: mostly at its deepest point, else anywhere in it. None without errors."""
    errors, count = ndimage.label(target ^ found)
    if not count:
        return None
    sizes = np.bincount(errors.ravel())[1:]
    part = ndimage.find_objects(errors)[int(np.argmax(sizes))]
    inside = np.pad(errors[part] == 1 + int(np.argmax(sizes)), 1)
    if rng.random() < 0.7:
        at = np.array(np.unravel_index(np.argmax(ndimage.distance_transform_edt(inside)), inside.shape))
    else:
        at = rng.choice(np.argwhere(inside))
    at = at - 1 + [s.start for s in part]
    return at.astype(float), LABEL_FOREGROUND if target[tuple(at)] else LABEL_BACKGROUND


def halved(mask: np.ndarray) -> np.ndarray:
    """(D/2, H/2, W/2) float32: the share of each 2 x 2 x 2 cell that the mask covers."""
    d, h, w = (n // 2 for n in mask.shape)
    return mask.reshape(d, 2, h, 2, w, 2).mean((1, 3, 5), dtype=np.float32)


def _scanned(tumour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the scan has voxels: all of the region, or not beyond a face that leaves at least half of the tumour."""
    inside = np.ones_like(tumour)
    if rng.random() < 0.2:
        axis = int(rng.integers(3))
        middle = int(np.median(np.nonzero(tumour)[axis]))
        cut = int(rng.integers(middle + 1, tumour.shape[axis] + 1))
        np.moveaxis(inside, axis, 0)[cut:] = False
        if rng.random() < 0.5:  # the same on the lower side
            np.moveaxis(inside, axis, 0)[: int(rng.integers(0, middle + 1))] = False
    return inside


def _field(rng: np.random.Generator, shape: Sequence[int], scale: float) -> np.ndarray:
    return Draw(int(rng.integers(1 << 31))).field(shape, scale).numpy()


def _bounds(mask: np.ndarray, margin: int) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Start and slices of the mask's bounding box, widened by `margin` voxels within the grid."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    box = tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, mask.shape, strict=True))
    return np.array([s.start for s in box]), box
