"""A volume being painted, whatever it shows, and the scanner that makes a phantom of it.

What enters: a draw. What leaves: a `Phantom`. Tissue scenes and trunks say what is where; tumours, vessels, texture,
slices and noise are the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from training.fields import Draw, curve, ellipsoid, gaussian_matrix, grid, separable, slice_matrix, tube
from training.tissues import TARGETS, tissue_values, tumour_value

# Tumours that mostly suit the region, of any size alike, or of several tissues, in which the border of a tissue is not
# the border of the tumour: mostly large.
Tumours = Literal["mostly suiting", "of any size", "mixed"]

PART_SHARE = (0.25, 0.2, 0.1, 0.2, 0.1, 0.15)


@dataclass(frozen=True, eq=False)
class Phantom:
    """One scan on a cube of (D, H, W) voxels, z toward head, y toward posterior, x toward left."""

    image: np.ndarray  # float32, HU or a.u.
    tumour: np.ndarray  # bool, the tumour that prompts mean
    same_organ: np.ndarray  # bool, every tumour of that organ, which a text means
    distractors: np.ndarray  # bool, other tumours, look-alikes, vessels, bones
    organ: np.ndarray  # bool, the organ with its tumours
    organs: np.ndarray  # uint8, 1 + index in TARGETS of the organ without its tumours, 0 elsewhere
    organ_name: str  # one of TARGETS
    healthy: tuple[str, ...]  # targets that are in view and have no tumour, or are not in view
    anatomy: bool  # names mean something here
    modality: str  # CT or MR
    spacing_mm: float


class Scene(ABC):
    """A volume being painted; subclasses say what is where."""

    anatomy = False

    def __init__(self, draw: Draw, size: int, modality: str, tumours: Tumours = "mostly suiting") -> None:
        self.tumours = tumours
        self.draw, self.rng, self.size, self.modality = draw, draw.rng, size, modality
        self.shape = (size, size, size)
        self.unit = 1.0 if modality == "CT" else 4.0  # of texture and noise
        self.spacing_mm = 1.0
        self.organ_name, self.healthy = "soft tissue", TARGETS

    def blank(self) -> None:
        self.values = tissue_values(self.rng, self.modality)
        self.image = torch.zeros(self.shape, device=self.draw.device)
        self.tumour = self.empty()
        self.same_organ = self.empty()
        self.distractors = self.empty()
        self.forbidden = self.empty()  # where no tumour grows: air, mostly bone
        self.organ = self.empty()
        self.organs = torch.zeros(self.shape, dtype=torch.uint8, device=self.draw.device)

    def empty(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.bool, device=self.draw.device)

    @abstractmethod
    def paint(self) -> None:
        """A new scene, from `blank` on: `image`, `tumour` and the other masks."""

    def blob(self, centre: np.ndarray, radii: np.ndarray, warp: float, scale: float, turn: bool = True) -> Tensor:
        """Level of a warped ellipsoid, below 1 inside."""
        rotation = self.draw.rotation() if turn else np.eye(3)
        return ellipsoid(self.size, centre, radii, rotation, self.draw.device) + warp * self.draw.field(
            self.shape, scale
        )

    def vessels(self, centre: np.ndarray, count: int) -> None:
        for _ in range(count):
            radius = self.draw.log_uniform(0.5, 0.05 * self.size)
            through = centre + self.rng.standard_normal(3) * 0.3 * self.size
            path = curve(self.rng, through, 1.6 * self.size, max(0.8, radius / 2))
            inside = tube(self.size, path, radius, self.draw.device) < 1
            self.image[inside] = self.values["blood"]
            self.distractors |= inside

    def tumour_level(self, centre: np.ndarray, radius: float) -> Tensor:
        """Star-convex or lobulated, smooth or ragged; below 1 inside."""
        draw = self.draw
        radii = radius * np.exp(self.rng.uniform(-0.45, 0.45, 3))
        level = self.blob(centre, radii, draw.uniform(0.02, 0.35), radius * draw.uniform(0.4, 1.3))
        for _ in range(draw.count(1, 4) if draw.chance(0.35) else 0):  # lobes
            direction = self.rng.standard_normal(3)
            where = centre + direction / np.linalg.norm(direction) * radius * draw.uniform(0.4, 1.1)
            lobe = radius * draw.uniform(0.35, 0.8) * np.exp(self.rng.uniform(-0.3, 0.3, 3))
            level = torch.minimum(level, self.blob(where, lobe, draw.uniform(0.02, 0.2), radius * 0.5))
        if draw.chance(0.35):  # ragged margin
            level = level + draw.uniform(0.02, 0.12) * draw.field(self.shape, max(2.0, radius * 0.2))
        return level

    def grow(self, centre: np.ndarray, radius: float, allowed: Tensor) -> Tensor:
        """Paint one tumour and return where it is: rims, cores, mixtures, calcifications, sharp or infiltrating."""
        draw = self.draw
        level = self.tumour_level(centre, radius)
        inside = component((level < 1) & allowed, centre)
        if not bool(inside.any()):
            return inside
        shell = (level > 1) & (level < 1.6) & allowed
        around = float(self.image[shell].mean()) if bool(shell.any()) else float(self.image[inside].mean())
        brightness = tumour_value(self.rng, self.modality, around)
        change = brightness - around
        value = torch.full(self.shape, brightness, device=draw.device)
        if self.tumours == "mixed":
            self.mix(value, level, radius, around)
        elif draw.chance(0.3):  # two or three tissues side by side
            field = draw.field(self.shape, max(2.0, radius * draw.uniform(0.3, 0.9)))
            value[field > draw.uniform(-0.4, 0.8)] = tumour_value(self.rng, self.modality, around)
            if draw.chance(0.4):
                value[field < draw.uniform(-1.5, -0.6)] = self.values[str(self.rng.choice(["fat", "fluid", "blood"]))]
        if draw.chance(0.3):  # necrotic core
            core = level + 0.2 * draw.field(self.shape, max(2.0, radius * 0.4)) < draw.uniform(0.3, 0.8)
            value[core] = self.values["fluid"] if draw.chance(0.5) else around + change * draw.uniform(-0.5, 0.6)
        if draw.chance(0.25):  # rim that takes up contrast, or a capsule
            value[level > draw.uniform(0.75, 0.92)] = around + change * draw.uniform(-0.6, 2.0)
        if draw.chance(0.08):
            value[draw.field(self.shape, 2.5) > 1.8] = self.values["bone"]
        value = value + abs(change) * draw.uniform(0, 0.5) * draw.field(
            self.shape, max(2.0, radius * draw.uniform(0.15, 0.6))
        )
        softness = draw.uniform(0.6, 2.0) if draw.chance(0.7) else draw.uniform(1.0, 0.5 * radius + 1.0)  # voxels
        alpha = ((1 - level) * radius / softness + 0.5).clamp(0, 1) * (inside | (allowed & (level >= 1)))
        alpha = alpha * draw.uniform(0.75, 1.0)
        self.image = self.image + alpha * (value - self.image)
        return inside

    def mix(self, value: Tensor, level: Tensor, radius: float, around: float) -> None:
        """Paint several tissues into a tumour's `value`: solid parts, necrosis, fat, blood, its surroundings, septa."""
        draw = self.draw
        for _ in range(draw.count(2, 4)):
            part = draw.field(self.shape, max(2.0, radius * draw.uniform(0.3, 1.2))) > draw.uniform(-0.3, 0.6)
            name = str(self.rng.choice(["solid", "opposite", "around", "fluid", "fat", "blood"], p=PART_SHARE))
            solid = tumour_value(self.rng, self.modality, around)
            others = {"solid": solid, "opposite": 2 * around - solid, "around": around}
            value[part] = others[name] if name in others else self.values[name]
        if draw.chance(0.4):  # septa: sheets between lobules
            sheets = draw.field(self.shape, max(3.0, radius * draw.uniform(0.3, 0.7))).abs() < draw.uniform(0.05, 0.15)
            value[sheets] = tumour_value(self.rng, self.modality, around)
        if draw.chance(0.3):  # a wall around it all
            value[level > draw.uniform(0.8, 0.93)] = tumour_value(self.rng, self.modality, around)

    def scanned(self) -> Phantom:
        """Texture, blur, thick slices, correlated noise, streaks; bias field and gain for MR."""
        draw, rng, size, image = self.draw, self.rng, self.size, self.image
        fine, coarse = draw.field(self.shape, draw.uniform(2.0, 6)), draw.field(self.shape, draw.uniform(8, 30))
        solid = (image > -500).float() if self.modality == "CT" else (image / 400).clamp(0, 1.5)  # air has no texture
        image = image + self.unit * solid * (draw.uniform(0, 7) * fine + draw.uniform(0, 9) * coarse)
        radius = max(1.0, (float(self.tumour.sum()) * 0.24) ** (1 / 3))  # voxels, of a ball
        thickness = min(draw.log_uniform(1, 9), max(1.0, 0.8 * radius)) if draw.chance(0.65) else 1.0
        thick = int(rng.choice([0, 0, 0, 1, 2]))  # mostly axial
        slices, same = slice_matrix(size, thickness, rng.random()), np.eye(size)
        spread = draw.uniform(0.8, 2.2) if draw.chance(0.25) else draw.uniform(0.3, 0.9)
        axes = [slices if axis == thick else same for axis in range(3)]
        blur, grain = gaussian_matrix(size, min(spread, 0.5 * radius)), gaussian_matrix(size, draw.uniform(0.3, 1.6))
        image = separable(image, [draw.matrix(m @ blur) for m in axes])
        noise = separable(draw.normal(self.shape), [draw.matrix(m @ grain) for m in axes])
        image = image + noise * (self.unit * draw.log_uniform(2, 26) / float(noise.std()))
        if self.modality == "CT":
            image = image + self.streaks() if draw.chance(0.08) else image
            image = image.clamp(-1024, 3000)
        else:
            gain = torch.exp(draw.uniform(0, 0.3) * draw.field(self.shape, 0.6 * size))
            image = (image * gain).abs() ** draw.uniform(0.8, 1.2) * draw.log_uniform(0.1, 10)
        tumour = self.tumour
        if thickness > 1.5 and draw.chance(0.5):  # annotated on the thick slices, too
            annotated = separable(tumour.float(), [draw.matrix(m) for m in axes]) > 0.5
            if 2 * int(annotated.sum()) > int(tumour.sum()):
                tumour = annotated
        return Phantom(
            image=image.cpu().numpy(),
            tumour=tumour.cpu().numpy(),
            same_organ=(self.same_organ | tumour).cpu().numpy(),
            distractors=(self.distractors & ~tumour).cpu().numpy(),
            organ=(self.organ | tumour).cpu().numpy(),
            organs=self.organs.cpu().numpy(),
            organ_name=self.organ_name,
            healthy=self.healthy,
            anatomy=self.anatomy,
            modality=self.modality,
            spacing_mm=self.spacing_mm,
        )

    def streaks(self) -> Tensor:
        """Rays from a piece of metal somewhere in the plane."""
        _, y, x = grid(self.size, self.draw.device)
        y, x = y - self.draw.uniform(0, self.size), x - self.draw.uniform(0, self.size)
        angle, distance = torch.atan2(y, x), (y * y + x * x).sqrt() + 4
        rays = sum(torch.cos(self.draw.count(3, 24) * angle + self.draw.uniform(0, 6)) for _ in range(4))
        return rays * (self.draw.uniform(100, 500) / distance)


def component(mask: Tensor, centre: np.ndarray) -> Tensor:
    """The connected part of `mask` at `centre`, or its largest part when the centre is not in it."""
    labels, count = ndimage.label(mask.cpu().numpy())
    if count < 2:
        return mask
    at = labels[tuple(np.clip(np.rint(centre).astype(int), 0, np.array(mask.shape) - 1))]
    return torch.from_numpy(labels == (at or 1 + np.argmax(np.bincount(labels.ravel())[1:]))).to(mask.device)


def dilated(mask: Tensor, voxels: int) -> Tensor:
    """The mask grown by `voxels` along each axis."""
    kernel = 2 * voxels + 1
    grown = mask[None, None].float()
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = kernel
        grown = torch.nn.functional.max_pool3d(grown, shape, 1, [(k - 1) // 2 for k in shape])
    return grown[0, 0] > 0
