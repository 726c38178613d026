"""Trunks with organs where humans have them and tumours in several: they give text and organ prompts their meaning."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation
from torch import Tensor

from training.fields import ellipsoid, grid, tube
from training.scene import Scene, dilated
from training.tissues import COLON_MM, COLON_RADIUS_MM, ORGANS, TARGETS


class TrunkScene(Scene):
    """A trunk with organs in their places and tumours in up to four of them, seen whole or close up."""

    anatomy = True

    def paint(self) -> None:
        self.blank()
        draw, size = self.draw, self.size
        whole = draw.chance(0.6)
        self.spacing_mm = (draw.uniform(3.0, 6.5) if whole else draw.log_uniform(1.0, 3.5)) * 64 / size
        self.scale = draw.uniform(0.8, 1.15)  # of the person
        # organs with tumours, the first being the one that is meant; each with a place in it
        names = list(self.rng.permutation(TARGETS))[: 1 + int(self.rng.choice(4, p=[0.25, 0.35, 0.25, 0.15]))]
        self.jitter = {name: [self.rng.normal(0, 10, 3) for _ in parts] for name, parts in ORGANS.items()}
        self.stretch = {name: np.exp(self.rng.uniform(-0.18, 0.18, 3)) for name in ORGANS}
        self.trunk_mm = np.array([1e4, draw.uniform(95, 140), draw.uniform(145, 195)]) * self.scale
        place_mm = self.place_in(names[0])
        if whole:
            reach = 0.36 * size * self.spacing_mm
            low, high = place_mm - reach, place_mm + reach
            self.middle_mm = np.clip(
                np.array([self.rng.uniform(-80, 120), 0, 0]) + self.rng.normal(0, 12, 3), low, high
            )
        else:
            self.middle_mm = place_mm + self.rng.uniform(-0.25, 0.25, 3) * size * self.spacing_mm
        organs = self.trunk()
        grown: dict[str, Tensor] = {}
        for name in names:
            count = 2 if draw.chance(0.2) else 1
            for number in range(count):
                where = self.voxel(place_mm if (name == names[0] and number == 0) else self.place_in(name))
                inside = self.tumour_in(name, where, organs)
                if name == names[0] and number == 0:
                    self.tumour = inside
                grown[name] = grown.get(name, self.empty()) | inside
        self.organ_name = str(names[0])
        self.same_organ = grown[names[0]]
        self.tumour = self.tumour & self.same_organ
        self.organ = organs[self.organ_name] | self.same_organ
        for number, target in enumerate(TARGETS):
            self.organs[organs[target]] = 1 + number
        for name in names[1:]:
            self.distractors |= grown[name] & ~self.same_organ
        self.distractors |= self.same_organ & ~self.tumour
        sick = {str(name) for name in names if bool(grown[name].any())}
        self.healthy = tuple(name for name in TARGETS if name not in sick)

    def voxel(self, place_mm: np.ndarray) -> np.ndarray:
        return (place_mm - self.middle_mm) / self.spacing_mm + (self.size - 1) / 2

    def ellipsoids(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Centre and radii in mm of each part of an organ in this person."""
        return [
            (self.scale * np.array(part.centre_mm) + shift, self.scale * np.array(part.radii_mm) * self.stretch[name])
            for part, shift in zip(ORGANS[name], self.jitter[name], strict=True)
        ]

    def place_in(self, name: str) -> np.ndarray:
        """A place for a tumour, in mm."""
        if name == "colon":
            leg = self.draw.uniform(0.5, len(COLON_MM) - 2.5)
            first = int(leg)
            return self.scale * (COLON_MM[first] + (leg - first) * (COLON_MM[first + 1] - COLON_MM[first]))
        if name == "soft tissue":  # in the wall of the trunk, or deep in the back
            angle = self.draw.uniform(0, 2 * np.pi)
            wall = 0.88 * self.trunk_mm
            return np.array([self.draw.uniform(-220, 220), wall[1] * np.sin(angle), wall[2] * np.cos(angle)])
        parts = self.ellipsoids(name)
        centre, radii = parts[int(self.rng.integers(len(parts)))]
        direction = self.rng.standard_normal(3)
        return centre + direction / np.linalg.norm(direction) * self.draw.uniform(0, 0.8) * radii

    def tumour_in(self, name: str, where: np.ndarray, organs: dict[str, Tensor]) -> Tensor:
        """Grow one tumour; none where it would lie outside the view."""
        if np.any((where < 1) | (where > self.size - 2)):
            return self.empty()
        largest = {"liver": 45, "kidney": 32, "pancreas": 22, "lung": 35, "colon": 28, "soft tissue": 50}[name]
        radius = max(self.draw.log_uniform(7, largest) / self.spacing_mm, 2.2)
        near = dilated(organs[name], 1 if self.draw.chance(0.6) else max(1, int(0.5 * radius)))
        return self.grow(where, radius, near & ~self.forbidden)

    def trunk(self) -> dict[str, Tensor]:
        """Paint everything and return where each target is."""
        draw, unit = self.draw, 1 / self.spacing_mm
        flat = np.eye(3)
        wall = ellipsoid(self.size, self.voxel(np.zeros(3)), self.trunk_mm * unit, flat, draw.device)
        wall = wall + 0.03 * draw.field(self.shape, 60 * unit)
        skin, muscle = 1 - draw.uniform(0.04, 0.15), draw.uniform(0.68, 0.76)
        self.image[:] = self.values["air"]
        self.image[wall < 1] = self.values["fat"]
        self.image[wall < skin] = self.values["soft tissue"]
        self.image[wall < muscle] = self.values["fat"] if draw.chance(0.75) else self.values["soft tissue"]
        self.forbidden |= wall >= 1
        organs = {"soft tissue": (wall < 1) & (wall >= muscle)}
        if draw.chance(0.8):  # loops of small bowel
            field = draw.field(self.shape, 25 * unit)
            low = grid(self.size, draw.device)[0] < float(self.voxel(self.scale * np.array([-50.0, 0, 0]))[0])
            self.image[(field > 0.2) & low & (wall < muscle)] = self.values["colon"]
        for name, parts in ORGANS.items():
            inside = self.empty()
            for part, (centre, radii) in zip(parts, self.ellipsoids(name), strict=True):
                at = self.voxel(centre)
                if np.any((at + 1.5 * radii * unit < 0) | (at - 1.5 * radii * unit > self.size)):
                    continue
                level = ellipsoid(self.size, at, radii * unit, self.tilt(), draw.device)
                level = level + part.warp * draw.field(self.shape, max(2.0, 0.6 * float(radii.min()) * unit))
                inside |= (level < 1) & (wall < skin)
                self.image[(level < 1) & (wall < skin)] = self.values[part.tissue]
                if name == "kidney" and draw.chance(0.7):
                    self.image[level < draw.uniform(0.2, 0.45)] = self.values["fat"]
                if name == "stomach" and draw.chance(0.5):
                    self.image[level < 0.8] = self.values["air"]
            for other in organs:  # what lies on top takes away
                organs[other] = organs[other] & ~inside
            organs[name] = inside
        organs["colon"] = self.colon(wall < muscle)
        spine = np.stack([np.arange(-400, 400, 8.0), *(np.full(100, v) for v in (82 * self.scale, 0))], 1)
        self.bone(spine, 19 * self.scale)
        aorta = np.stack([np.arange(-200, 400, 5.0), *(np.full(120, v) for v in (50 * self.scale, 12 * self.scale))], 1)
        vessel = tube(self.size, self.voxel(aorta), max(0.8, 11 * unit), draw.device) < 1
        self.image[vessel] = self.values["blood"]
        self.distractors |= vessel
        if draw.chance(0.6):
            self.vessels(np.full(3, self.size / 2), draw.count(1, 4))
        return organs

    def tilt(self) -> np.ndarray:
        """A small turn about each axis."""
        return Rotation.from_rotvec(self.rng.normal(0, 0.15, 3)).as_matrix()

    def colon(self, where: Tensor) -> Tensor:
        """The large bowel: a wall around gas, fluid or stool."""
        draw, unit = self.draw, 1 / self.spacing_mm
        course = self.scale * (COLON_MM + self.rng.normal(0, 8, COLON_MM.shape))
        steps = np.linspace(0, len(course) - 1, 160)
        path = np.stack([np.interp(steps, np.arange(len(course)), course[:, axis]) for axis in range(3)], 1)
        radius = self.scale * draw.uniform(*COLON_RADIUS_MM) * unit
        level = tube(self.size, self.voxel(path), max(radius, 1.2), draw.device) + 0.08 * draw.field(
            self.shape, max(2.0, radius)
        )
        inside = (level < 1) & where
        self.image[inside] = self.values["colon"]
        lumen = inside & (level < draw.uniform(0.6, 0.85))
        field = draw.field(self.shape, max(2.0, 2 * radius))
        self.image[lumen] = self.values["fluid"]
        self.image[lumen & (field > 0)] = self.values["air"] if draw.chance(0.7) else self.values["soft tissue"]
        return inside

    def bone(self, path_mm: np.ndarray, radius_mm: float) -> None:
        level = tube(self.size, self.voxel(path_mm), max(radius_mm / self.spacing_mm, 1.0), self.draw.device)
        self.image[level < 1] = self.values["bone"]
        self.image[level < 0.8] = self.values["marrow"]
        self.forbidden |= level < 1
        self.distractors |= level < 1
