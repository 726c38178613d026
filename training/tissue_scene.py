"""Tissue scenes (after SynthSeg and AnyStar): random regions of random brightness, one tumour of any size, look-alikes.

They know no anatomy and no millimetres.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.scene import Scene, dilated
from training.tissues import PALETTE, PALETTE_SHARE


class TissueScene(Scene):
    """Random regions of random brightness around one tumour of any size, with look-alikes."""

    def paint(self) -> None:
        self.blank()
        draw, size = self.draw, self.size
        middle = np.full(3, (size - 1) / 2)
        wander = 0.25 if draw.chance(0.25) else 0.06
        centre = (middle + self.rng.standard_normal(3) * wander * size).clip(2, size - 3)
        suits = draw.chance(0.6) and self.tumours == "mostly suiting"
        radius = size * (draw.uniform(0.17, 0.36) if suits else draw.log_uniform(0.04, 0.5))
        if self.tumours == "mixed":
            radius = size * draw.uniform(0.08, 0.42)
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
