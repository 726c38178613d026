"""A page of phantoms to look at: what the network learns from, with the tumours outlined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from contract.intensity import normalise
from training.phantoms import make_phantom
from training.recipe import INTENSITY
from training.scene import Phantom, Tumours

COLUMNS, ROWS = 10, 2  # of each kind of scene
KINDS: tuple[tuple[bool, Tumours], ...] = (
    (False, "mostly suiting"),
    (False, "mixed"),
    (True, "mostly suiting"),
)  # anatomy, tumours
SCALE = 2  # screen pixels per voxel
SHOWN = (-2.5, 3.0)  # normalised intensity from black to white
MEANT, SAME_ORGAN, ANSWER = (255, 60, 60), (255, 220, 0), (0, 220, 255)


def page(first_seed: int = 0) -> Image.Image:
    """Tissue scenes above, mixed tumours in such scenes, anatomy scenes below; each the slice with most of it."""
    rows = []
    for anatomy, tumours in KINDS:
        for row in range(ROWS):
            seeds = range(first_seed + row * COLUMNS, first_seed + (row + 1) * COLUMNS)
            drawn = [picture(make_phantom(seed, anatomy=anatomy, tumours=tumours)) for seed in seeds]
            rows.append(np.concatenate(drawn, axis=1))
    return Image.fromarray(np.concatenate(rows))


def picture(phantom: Phantom, answer: np.ndarray | None = None) -> np.ndarray:
    """(rows, columns, 3) uint8. Args: answer: (D, H, W) bool, outlined over the truth."""
    image = normalise(phantom.image, np.ones_like(phantom.tumour), INTENSITY[phantom.modality])
    z = int(np.argmax(phantom.tumour.sum((1, 2))))
    grey = np.clip((image[z] - SHOWN[0]) / (SHOWN[1] - SHOWN[0]), 0, 1)
    colour = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, axis=2)
    for mask, outline in ((phantom.same_organ[z] & ~phantom.tumour[z], SAME_ORGAN), (phantom.tumour[z], MEANT)):
        colour[mask & ~ndimage.binary_erosion(mask)] = outline
    if answer is not None:
        colour[answer[z] & ~ndimage.binary_erosion(answer[z])] = ANSWER
    return colour.repeat(SCALE, 0).repeat(SCALE, 1)


def save_page(path: Path) -> None:
    page().save(path, quality=80)
