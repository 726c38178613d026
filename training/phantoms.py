"""Synthetic scans with a known tumour: CT-like (HU) and MR-like (a.u.), reproducible from a seed. numpy and scipy only.

A scan is painted in the order of anatomy (fat, neighbouring organs, the target organ, vessels, cysts, bone, tumour,
skin and air) on a 1 mm grid of z, y, x, and then degraded as a scanner does: blur, thick slices, correlated noise, and
for MR a bias field and an arbitrary gain. No patient data goes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from training.fields import (
    curve,
    ellipsoid,
    gaussian_matrix,
    random_rotation,
    separable,
    slice_matrix,
    smooth_field,
    tube,
    window,
)
from training.recipe import TARGETS
from training.tissues import ORGANS, TISSUES, tissue_values, tumour_value

Modality = Literal["CT", "MR"]
SMALLEST_TUMOUR_MM = 3.5  # radius; below it a 128 mm region shows a handful of voxels
LARGEST_TUMOUR = 0.31  # radius, as a fraction of the region's side
FEWEST_VOXELS = 40


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic scan. All arrays (D, H, W), z, y, x, 1 mm isotropic."""

    image: np.ndarray  # float32, HU for CT, a.u. for MR
    tumour: np.ndarray  # bool
    organ: np.ndarray  # bool, the target organ without its tumour's share outside it
    distractors: np.ndarray  # bool, cysts, vessels and look-alikes outside the tumour
    organ_name: str  # one of recipe.TARGETS
    modality: Modality
    spacing_mm: float = 1.0


def make_phantom(seed: int, *, size: int, modality: Modality) -> Phantom:
    """A cube of `size` voxels with one tumour, the same for the same arguments."""
    rng = np.random.default_rng([seed, size, ("CT", "MR").index(modality)])
    while True:  # a tumour that the organ's border truncates to nothing is drawn again
        scan = _Scan(rng, size, modality)
        if np.count_nonzero(scan.tumour) >= FEWEST_VOXELS:
            break
    return Phantom(scan.image, scan.tumour, scan.organ, scan.distractors, scan.organ_name, modality)


class _Scan:
    """The canvas: painted step by step in `__init__`, read once by `make_phantom`."""

    def __init__(self, rng: np.random.Generator, size: int, modality: Modality) -> None:
        self.rng, self.size, self.modality = rng, size, modality
        self.shape = (size, size, size)
        self.values = tissue_values(rng, modality)
        self.unit = 1.0 if modality == "CT" else 4.0  # one HU of texture or noise looks like 4 a.u.
        self.organ_name = str(rng.choice(TARGETS))
        largest = LARGEST_TUMOUR * size
        self.radius = float(SMALLEST_TUMOUR_MM * (largest / SMALLEST_TUMOUR_MM) ** (rng.random() ** 0.8))
        self.centre = size / 2 + rng.uniform(-0.25, 0.25, 3) * size
        self.brightness = tumour_value(rng, modality, self.organ_name, self.values)

        self.image = np.full(self.shape, self.values["fat"], np.float32)
        self._paint_neighbours()
        self.organ = self._paint_organ()
        self.distractors = np.zeros(self.shape, bool)
        self._paint_vessels()
        self._paint_cysts_and_look_alikes()
        self._paint_bones()
        self._add_texture()
        self.tumour = self._paint_tumour()
        if rng.random() < 0.4:
            self._paint_outside()
        self._scan_it()
        self.distractors &= ~self.tumour

    def _paint_neighbours(self) -> None:
        """Other organs, now and then as bright as the target organ, so that its border cannot be seen."""
        for name in self.rng.choice(list(TISSUES), self.rng.integers(2, 6)):
            organ = ORGANS.get(name, ORGANS["soft tissue"])
            where = self.rng.uniform(-0.2, 1.2, 3) * self.size
            inside = self._blob(where, self._radii(organ.radii_mm) * 0.7, organ.warp, organ.warp_scale_mm) < 1
            value = self.values[self.organ_name] if self.rng.random() < 0.2 else self.values[str(name)]
            self.image[inside] = value

    def _paint_organ(self) -> np.ndarray:
        """The target organ, placed so that the tumour's centre lies in it, often close to its border."""
        organ, rng = ORGANS[self.organ_name], self.rng
        radii, rotation = self._radii(organ.radii_mm), random_rotation(rng)
        direction = rng.standard_normal(3)
        direction *= rng.uniform(0.1, 0.95) / np.linalg.norm(direction)
        where = self.centre - rotation.T @ (direction * radii)
        level = self._blob(where, radii, organ.warp, organ.warp_scale_mm, rotation)
        inside = level < 1
        self.image[inside] = self.values[self.organ_name]
        if self.organ_name == "colon":  # a wall around a lumen of gas or fluid
            self.image[level < rng.uniform(0.6, 0.85)] = self.values[str(rng.choice(["air", "fluid", "colon"]))]
        elif self.organ_name == "kidney":  # sinus fat
            self.image[level < rng.uniform(0.2, 0.4)] = self.values["fat"]
        elif self.organ_name == "soft tissue":  # fat planes between muscles
            self.image[inside & (np.abs(smooth_field(rng, self.shape, 22)) < 0.06)] = self.values["fat"]
        return inside

    def _paint_vessels(self) -> None:
        rng = self.rng
        for _ in range(rng.integers(*ORGANS[self.organ_name].vessels, endpoint=True)):
            radius = np.exp(rng.uniform(np.log(1.0), np.log(5.0)))
            through = self.centre + rng.standard_normal(3) * 0.25 * self.size
            vessel = tube(self.size, curve(rng, through, 1.5 * self.size, max(1.0, radius / 2)), radius)
            self.image[vessel] = self.values["blood"]
            self.distractors |= vessel

    def _paint_cysts_and_look_alikes(self) -> None:
        """Rounded things that are not the tumour: some of water, some exactly as bright as the tumour."""
        rng = self.rng
        for _ in range(rng.integers(0, 4)):
            radius = np.exp(rng.uniform(np.log(2.5), np.log(0.14 * self.size)))
            where = self.centre + rng.standard_normal(3) * 0.3 * self.size
            touching = np.linalg.norm(where - self.centre) < self.radius + radius + 1
            if (touching and rng.random() < 0.7) or np.any((where < 0) | (where >= self.size)):
                continue  # mostly apart from the tumour, sometimes against it
            box = window(where, 1.6 * radius, self.size)
            inside = self._blob(where, radius * rng.uniform(0.75, 1.25, 3), 0.12, radius, box=box) < 1
            self.image[box][inside] = self.brightness if rng.random() < 0.5 else self.values["fluid"]
            self.distractors[box] |= inside

    def _paint_bones(self) -> None:
        rng = self.rng
        for _ in range(rng.choice([0, 0, 1, 2])):
            direction = rng.standard_normal(3)
            radii = rng.uniform(6, 22, 3)
            distance = 1.2 * self.radius + radii.max() + rng.uniform(0, 0.4 * self.size)
            where = self.centre + direction / np.linalg.norm(direction) * distance
            level = self._blob(where, radii, 0.12, 12)
            self.image[level < 1] = self.values["bone"]
            self.image[level < 0.75] = self.values["marrow"]

    def _add_texture(self) -> None:
        """Organs are never flat: a fine and a coarse field."""
        fine = self.unit * self.rng.uniform(1, 7)
        coarse = self.unit * self.rng.uniform(0, 8)
        self.image += fine * smooth_field(self.rng, self.shape, self.rng.uniform(2.5, 6))
        self.image += coarse * smooth_field(self.rng, self.shape, self.rng.uniform(12, 30))

    def _paint_tumour(self) -> np.ndarray:
        """An ellipsoid or a few lobes, warped, often cut by the organ's border, with rim, core and texture."""
        rng, radius = self.rng, self.radius
        box = window(self.centre, 2.2 * radius, self.size)
        radii = radius * np.exp(rng.uniform(-0.35, 0.35, 3))
        warp, scale = rng.uniform(0.05, 0.4), radius * rng.uniform(0.5, 1.3)
        level = self._blob(self.centre, radii, warp, scale, box=box)
        for _ in range(rng.choice([0, 0, 0, 1, 2, 3])):  # lobes
            where = self.centre + rng.standard_normal(3) * 0.5 * radius
            level = np.minimum(level, self._blob(where, radii * rng.uniform(0.4, 0.8), warp, scale, box=box))
        allowed = self.organ[box] if rng.random() < 0.65 else np.ones(level.shape, bool)
        whole = np.zeros(self.shape, bool)
        whole[box] = _component((level < 1) & allowed, self.centre - [s.start for s in box])
        inside = whole[box]

        value = np.full(level.shape, self.brightness, np.float32)
        change = self.brightness - self.values[self.organ_name]
        if rng.random() < 0.3:  # necrotic core
            value[level < rng.uniform(0.3, 0.7)] += change * rng.uniform(0.3, 1.0)
        if rng.random() < 0.25:  # rim that takes up contrast
            value[level > rng.uniform(0.75, 0.9)] -= change * rng.uniform(0.3, 1.6)
        grain = min(abs(change), 80 * self.unit) * rng.uniform(0, 0.35)
        value += grain * smooth_field(rng, level.shape, max(2.0, radius * rng.uniform(0.2, 0.6)))
        softness = rng.uniform(0.5, 4.0) * min(1.0, radius / 8)  # mm over which the margin fades
        alpha = ((1 - level) * radius / softness + 0.5).clip(0, 1) * (inside | (allowed & (level >= 1)))
        self.image[box] += alpha * (value - self.image[box])
        return whole

    def _paint_outside(self) -> None:
        """Skin, and air beyond it, on one side of the region."""
        rng = self.rng
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        z, y, x = (g - c for g, c in zip(np.ogrid[tuple(slice(n) for n in self.shape)], self.centre, strict=True))
        depth = (direction[0] * z + direction[1] * y + direction[2] * x).astype(np.float32)
        depth -= self.radius * 1.3 + rng.uniform(3, 0.6 * self.size)
        depth += 4 * smooth_field(rng, self.shape, 30)
        depth[self.tumour] = -10
        self.image[(depth > -2) & (depth <= 0)] = self.values["soft tissue"]
        self.image[depth > 0] = self.values["air"]
        self.organ &= depth <= 0

    def _scan_it(self) -> None:
        """Blur, thick slices along one axis, correlated noise; bias field and gain for MR."""
        rng, size = self.rng, self.size
        thick = rng.choice([0, 0, 0, 1, 2])  # mostly axial
        thickness = min(8.0, max(1.0, np.exp(rng.uniform(np.log(0.7), np.log(8)))), max(1.0, self.radius))
        slices = slice_matrix(size, thickness, rng.random())
        axes = [slices if axis == thick else np.eye(size, dtype=np.float32) for axis in range(3)]
        blur, grain = gaussian_matrix(size, rng.uniform(0.3, 1.1)), gaussian_matrix(size, rng.uniform(0.3, 1.2))
        self.image = separable(self.image, [m @ blur for m in axes])
        noise = separable(rng.standard_normal(self.shape, dtype=np.float32), [m @ grain for m in axes])
        self.image += noise * np.float32(self.unit * np.exp(rng.uniform(np.log(3), np.log(30))) / noise.std())
        if thickness > 1.5:  # annotated on the thick slices, too
            annotated = separable(self.tumour.astype(np.float32), axes) > 0.5
            if 2 * np.count_nonzero(annotated) > np.count_nonzero(self.tumour):
                self.tumour = annotated
        if self.modality == "MR":
            self.image *= np.exp(rng.uniform(0, 0.3) * smooth_field(rng, self.shape, 0.6 * size))
            self.image = np.abs(self.image) * np.float32(np.exp(rng.uniform(np.log(0.1), np.log(10))))

    def _radii(self, ranges_mm: tuple[tuple[float, float], ...]) -> np.ndarray:
        return np.array([self.rng.uniform(low, high) for low, high in ranges_mm])

    def _blob(
        self,
        centre: np.ndarray,
        radii: np.ndarray,
        warp: float,
        scale: float,
        rotation: np.ndarray | None = None,
        box: tuple[slice, slice, slice] | None = None,
    ) -> np.ndarray:
        """Level of a warped ellipsoid, below 1 inside, over the cube or only over `box`."""
        box = box or (slice(0, self.size),) * 3
        shape = [s.stop - s.start for s in box]
        rotation = random_rotation(self.rng) if rotation is None else rotation
        level = ellipsoid(shape, np.asarray(centre) - [s.start for s in box], np.asarray(radii), rotation)
        level += np.float32(warp) * smooth_field(self.rng, shape, max(2.0, scale))
        return level


def _component(mask: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The connected part of `mask` at `centre`, or its largest part when the centre is not in it."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    at = labels[tuple(np.clip(np.rint(centre).astype(int), 0, np.array(mask.shape) - 1))]
    return labels == (at or 1 + np.argmax(np.bincount(labels.ravel())[1:]))
