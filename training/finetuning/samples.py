"""A prepared case and a random generator in, one training sample out.

The crop is the paper's: centred near a tumour voxel two times out of three, else anywhere; zoomed, flipped, turned by
quarters in plane; CT shifted by up to 20 HU. The prompts are ours, since the paper's clicks have no label: clicks
inside and outside with their labels, boxes, a flawed previous mask; text and the organ mask join now and then. A crop
without tumour asks for it by text, and the answer is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from contract.intensity import normalise
from contract.tensors import LABEL_BACKGROUND, LABEL_FOREGROUND
from training.finetuning.preparation import SPACING_MM, PreparedCase
from training.finetuning.recipes import Recipe
from training.simulate import (
    Click,
    Sample,
    as_sample,
    correcting_clicks,
    distort,
    foreground_click,
    jittered_box,
)

POSITIVE = 2 / 3  # of the crops
ZOOM = (0.85, 1.25)
ZOOMED = 0.8  # share of the crops
SHIFT_HU = 20.0
FIRST_LOOK = 0.3  # share of the crops at the spacing of a first look, where the grid rule has several
BOX, PREVIOUS_MASK = 0.25, 0.15  # shares of the samples; the rest has clicks only
TEXT, ORGAN_MASK = 0.5, 0.7
CLICKS = (0.4, 0.2, 0.15, 0.15, 0.1)  # probability of 1 .. 5 clicks
AROUND_VOX = 10.0  # background clicks fall about this far from the tumour
FEWEST_VOXELS = 8  # of tumour in a crop that asks for it by place
ANY_FINDING = "tumour"


@dataclass(frozen=True, eq=False)
class Crop:
    """A cube of the scan, (S, S, S)."""

    image: np.ndarray  # float32, HU or a.u.
    inside: np.ndarray  # bool, False beyond the scan
    tumour: np.ndarray  # bool
    organ: np.ndarray | None  # bool


def training_sample(case: PreparedCase, recipe: Recipe, rng: np.random.Generator) -> Sample:
    """One crop with drawn prompts. A crop that no text can ask about has tumour."""
    crop = augmented(draw_crop(case, recipe, rng, positive=rng.random() < POSITIVE), rng)
    if case.organ is None and np.count_nonzero(crop.tumour) < FEWEST_VOXELS:
        crop = augmented(draw_crop(case, recipe, rng, positive=True), rng)
    shift = rng.uniform(-SHIFT_HU, SHIFT_HU) if case.modality == "CT" and rng.random() < 0.5 else 0.0
    return with_prompts(crop, case, recipe, rng, shift=shift)


def validation_sample(case: PreparedCase, recipe: Recipe, rng: np.random.Generator) -> Sample:
    """A crop with tumour, unaltered, and one click in it."""
    crop = draw_crop(case, recipe, rng, positive=True, zoom=(1.0, 1.0))
    clicks: list[Click] = [(foreground_click(crop.tumour, rng), LABEL_FOREGROUND)]
    return assemble(crop, case, recipe, clicks=clicks, organ=crop.organ)


def draw_crop(
    case: PreparedCase,
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    positive: bool,
    zoom: tuple[float, float] = ZOOM,
) -> Crop:
    """Args: positive: the cube holds the tumour voxel that it is drawn around."""
    voxels, shape = case.tumour_voxels(), np.array(case.image().shape)
    chosen = voxels[int(rng.integers(len(voxels)))]
    spacing = draw_spacing(np.ptp(voxels, axis=0).max() + 1.0, recipe, rng)
    factor = rng.uniform(*zoom) if rng.random() < ZOOMED else 1.0
    side = max(4, round(recipe.size * spacing / SPACING_MM / factor))
    if not positive:
        chosen = rng.integers(0, shape)
    start = chosen - rng.integers(side // 4, max(side // 4 + 1, side - side // 4), 3)
    crop = cut(case, start, side, recipe.size)
    if positive and not crop.tumour.any():  # too small for a coarse grid: it is still there
        crop.tumour[tuple(((chosen - start + 0.5) * recipe.size / side).astype(int))] = True
    return crop


def draw_spacing(extent_vox: float, recipe: Recipe, rng: np.random.Generator) -> float:
    """mm: as for a first look, or as for a tumour about as long as this one."""
    if rng.random() < FIRST_LOOK:
        return recipe.grid.first_mm
    return recipe.grid.spacing_mm(extent_vox * SPACING_MM * rng.uniform(0.8, 1.3), recipe.size)


def cut(case: PreparedCase, start: np.ndarray, side: int, size: int) -> Crop:
    """The cube [start, start + side) of the prepared grid, resampled to `size` voxels per side."""
    shape = case.image().shape
    low, high = np.clip(start, 0, shape), np.clip(start + side, 0, shape)
    part = tuple(map(slice, low, high))
    target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))

    def cube(values: np.ndarray | float) -> np.ndarray:
        whole = np.zeros((side,) * 3, np.float32)
        whole[target] = values
        if side == size:
            return whole
        return interpolate(torch.from_numpy(whole)[None, None], (size,) * 3, mode="trilinear")[0, 0].numpy()

    organ = cube(case.organ_mask()[part]) > 0.5 if case.has_organ_mask else None
    return Crop(cube(case.image()[part]), cube(1.0) > 0.5, cube(case.tumour()[part]) > 0.5, organ)


def augmented(crop: Crop, rng: np.random.Generator) -> Crop:
    """Flipped along each axis, and turned by a quarter in plane, each half of the time."""
    axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
    quarters = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0

    def turned(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(np.flip(values, axes), quarters, axes=(1, 2)))

    organ = None if crop.organ is None else turned(crop.organ)
    return Crop(turned(crop.image), turned(crop.inside), turned(crop.tumour), organ)


def with_prompts(
    crop: Crop, case: PreparedCase, recipe: Recipe, rng: np.random.Generator, *, shift: float
) -> Sample:  # fmt: skip
    finding = f"{case.organ} tumour" if case.organ else ANY_FINDING
    organ = crop.organ if rng.random() < ORGAN_MASK else None
    if np.count_nonzero(crop.tumour) < FEWEST_VOXELS:
        return assemble(crop, case, recipe, organ=organ, finding=finding, shift=shift)
    clicks: list[Click] = []
    box = previous = None
    kind = rng.random()
    if kind < BOX:
        box = jittered_box(crop.tumour, rng)
    elif kind < BOX + PREVIOUS_MASK:
        previous = distort(crop.tumour, rng)
        clicks = correcting_clicks(crop.tumour, previous, int(rng.integers(1, 4)), rng)
    else:
        clicks = labelled_clicks(crop.tumour, 1 + int(rng.choice(len(CLICKS), p=CLICKS)), rng)
    finding = finding if rng.random() < TEXT else None  # type: ignore[assignment]
    return assemble(crop, case, recipe, clicks, box, organ, previous, finding, shift)


def labelled_clicks(tumour: np.ndarray, count: int, rng: np.random.Generator) -> list[Click]:
    """A foreground click, then clicks inside or around."""
    clicks: list[Click] = [(foreground_click(tumour, rng), LABEL_FOREGROUND)]
    outside = np.argwhere(~tumour)
    while len(clicks) < count:
        if rng.random() < 0.5 or not len(outside):
            clicks.append((foreground_click(tumour, rng), LABEL_FOREGROUND))
            continue
        around = rng.choice(np.argwhere(tumour), 16) + rng.normal(0, AROUND_VOX, (16, 3))
        index = np.rint(around).astype(int)
        valid = np.all((index >= 0) & (index < tumour.shape[0]), axis=1)
        valid[valid] = ~tumour[tuple(index[valid].T)]
        at = around[np.argmax(valid)] if valid.any() else rng.choice(outside).astype(float)
        clicks.append((at, LABEL_BACKGROUND))
    return clicks


def assemble(
    crop: Crop,
    case: PreparedCase,
    recipe: Recipe,
    clicks: list[Click] | None = None,
    box: np.ndarray | None = None,
    organ: np.ndarray | None = None,
    previous: np.ndarray | None = None,
    finding: str | None = None,
    shift: float = 0.0,
) -> Sample:
    """The sample for given prompts, as `training.simulate.assemble` makes it for phantoms.

    Args: finding: "liver tumour"; None when the text does not count, though alignment still learns the case's own.
    """
    image = normalise(crop.image + np.float32(shift), crop.inside, recipe.rule(case))
    words = finding or (f"{case.organ} tumour" if case.organ else ANY_FINDING)
    return as_sample(
        image, crop.tumour, clicks=clicks or (), box=box, organ=organ, previous=previous,
        words=words, use_text=finding is not None,
    )  # fmt: skip
