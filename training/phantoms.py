"""Made-up scans with known tumours, for training that must transfer to real ones: two kinds of scene, one scanner.

Tissue scenes (after SynthSeg and AnyStar: random label maps, random brightness) know no anatomy and no millimetres:
any shape at any zoom. Anatomy scenes are trunks with organs where humans have them, seen whole or close up, with
tumours in several organs: they give text and organ prompts their meaning. Seeded; nothing is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from training.fields import Draw, curve, ellipsoid, gaussian_matrix, grid, separable, slice_matrix, tube
from training.tissues import (
    COLON_MM,
    COLON_RADIUS_MM,
    ORGANS,
    PALETTE,
    PALETTE_SHARE,
    tissue_values,
    tumour_value,
)

TARGETS = ("liver", "kidney", "pancreas", "lung", "colon", "soft tissue")
ANATOMY_SHARE = 0.35
CT_SHARE = 0.55


@dataclass(frozen=True, eq=False)
class Phantom:
    """One scan on a cube of (D, H, W) voxels, z toward head, y toward posterior, x toward left."""

    image: np.ndarray  # float32, HU or a.u.
    tumour: np.ndarray  # bool, the tumour that prompts mean
    same_organ: np.ndarray  # bool, every tumour of that organ, which a text means
    distractors: np.ndarray  # bool, other tumours, look-alikes, vessels, bones
    organ: np.ndarray  # bool, the organ with its tumours
    organ_name: str  # one of TARGETS
    healthy: tuple[str, ...]  # targets that are in view and have no tumour, or are not in view
    anatomy: bool  # names mean something here
    modality: str  # CT or MR
    spacing_mm: float


def make_phantom(
    seed: int, *, size: int = 64, modality: str | None = None, anatomy: bool | None = None, device: str = "cpu"
) -> Phantom:
    """Phantom number `seed`. Kind and modality are drawn when not given."""
    draw = Draw(seed, device)
    modality = modality or ("CT" if draw.chance(CT_SHARE) else "MR")
    anatomy = draw.chance(ANATOMY_SHARE) if anatomy is None else anatomy
    scene = (_Anatomy if anatomy else _Tissue)(draw, size, modality)
    for _ in range(20):  # a tumour may come out empty, cut away by what bounds it
        scene.paint()
        if int(scene.tumour.sum()) >= 8:
            break
    return scene.scanned()


class _Scene:
    """A volume being painted; subclasses say what is where."""

    anatomy = False

    def __init__(self, draw: Draw, size: int, modality: str) -> None:
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

    def empty(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.bool, device=self.draw.device)

    def paint(self) -> None:
        raise NotImplementedError

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
        if draw.chance(0.3):  # two or three tissues side by side
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


class _Tissue(_Scene):
    """Random regions of random brightness around one tumour of any size, with look-alikes."""

    def paint(self) -> None:
        self.blank()
        draw, size = self.draw, self.size
        middle = np.full(3, (size - 1) / 2)
        wander = 0.25 if draw.chance(0.25) else 0.06
        centre = (middle + self.rng.standard_normal(3) * wander * size).clip(2, size - 3)
        radius = size * (draw.uniform(0.17, 0.36) if draw.chance(0.6) else draw.log_uniform(0.04, 0.5))
        labels = self.regions()
        here = labels[tuple(np.rint(centre).astype(int))]
        body = self.body(centre, radius)
        self.bones(centre, radius)
        if draw.chance(0.45):
            self.vessels(middle, draw.count(1, 6))
        allowed = body & (~self.forbidden if draw.chance(0.8) else torch.ones_like(body))
        if draw.chance(0.35):  # cut by the border of what it grows in
            allowed = allowed & (labels == here)
        tumour = self.grow(centre, radius, allowed)
        self.organ = labels == here
        self.look_alikes(centre, radius, tumour, body)
        self.tumour = tumour

    def regions(self) -> Tensor:
        """(D, H, W) labels of up to eight tissues; paints them."""
        draw = self.draw
        count = draw.count(1, 3) if draw.chance(0.35) else draw.count(3, 8)
        stretch = np.exp(self.rng.uniform(-0.8, 0.8, 3))
        scale = draw.log_uniform(0.12, 0.7) * self.size
        scores = torch.stack([draw.field(self.shape, (scale * stretch).tolist()) for _ in range(count)])
        labels = scores.argmax(0)
        names = self.rng.choice(PALETTE, count, p=PALETTE_SHARE)
        values = [self.values[str(name)] * (draw.uniform(0.85, 1.15) if self.modality == "MR" else 1) for name in names]
        if draw.chance(0.3):  # an anonymous contrast that no tissue has
            values = self.rng.uniform(-150, 250, count) if self.modality == "CT" else self.rng.uniform(20, 1000, count)
        self.image = draw.matrix(np.asarray(values, float))[labels]
        for number, name in enumerate(names):
            if name == "air":
                self.forbidden |= labels == number
        if draw.chance(0.4) and count > 1:  # planes of fat between regions
            top = scores.topk(2, 0).values
            self.image[(top[0] - top[1]) < draw.uniform(0.02, 0.12)] = self.values["fat"]
        return labels

    def body(self, centre: np.ndarray, radius: float) -> Tensor:
        """Where the body is; paints skin fat and the air beyond."""
        draw = self.draw
        if draw.chance(0.45):
            return ~self.empty()
        radii = self.size * self.rng.uniform(0.35, 1.3, 3) + radius
        radii[int(self.rng.integers(3))] *= 3  # limbs and trunks are long
        where = centre + self.rng.uniform(-0.5, 0.5, 3) * radii
        level = self.blob(where, radii, draw.uniform(0.02, 0.1), 0.5 * self.size, turn=draw.chance(0.4))
        rim = draw.uniform(0.02, 0.3) if draw.chance(0.7) else 0.0
        self.image[(level > 1 - rim) & (level <= 1)] = self.values["fat"]
        self.image[level > 1] = self.values["air"]
        return level <= 1

    def bones(self, centre: np.ndarray, radius: float) -> None:
        """Shafts and blocks with a cortex and marrow."""
        draw = self.draw
        for _ in range(draw.count(1, 3) if draw.chance(0.35) else 0):
            thickness = self.size * draw.log_uniform(0.03, 0.16)
            direction = self.rng.standard_normal(3)
            where = centre + direction / np.linalg.norm(direction) * (radius + thickness) * draw.uniform(0.6, 2.0)
            radii = thickness * np.exp(self.rng.uniform(-0.3, 0.3, 3))
            radii[int(self.rng.integers(3))] *= draw.log_uniform(1, 8)
            level = self.blob(where, radii, draw.uniform(0.02, 0.15), 2 * thickness)
            self.image[level < 1] = self.values["bone"]
            self.image[level < draw.uniform(0.5, 0.85)] = self.values["marrow"]
            self.forbidden |= level < 1
            self.distractors |= level < 1

    def look_alikes(self, centre: np.ndarray, radius: float, tumour: Tensor, body: Tensor) -> None:
        """Rounded things that are not the tumour meant: cysts, nodes, other lesions of the same brightness."""
        draw = self.draw
        if not bool(tumour.any()):
            return
        bright = float(self.image[tumour].mean())
        free = body & ~dilated(tumour, 2 if draw.chance(0.8) else 1)
        for _ in range(draw.count(1, 5) if draw.chance(0.65) else 0):
            own = min(radius * draw.log_uniform(0.3, 1.3), 0.3 * self.size)
            direction = self.rng.standard_normal(3)
            where = centre + direction / np.linalg.norm(direction) * (radius + own) * draw.uniform(1.0, 2.2)
            if np.any((where < -own) | (where >= self.size + own)):
                continue
            radii = own * np.exp(self.rng.uniform(-0.3, 0.3, 3))
            level = self.blob(where, radii, draw.uniform(0.02, 0.2), own * draw.uniform(0.4, 1.2))
            inside = (level < 1) & free
            name = str(self.rng.choice(["fluid", "blood", "soft tissue", "bone"]))
            self.image[inside] = bright if draw.chance(0.6) else self.values[name]
            self.distractors |= inside


class _Anatomy(_Scene):
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
