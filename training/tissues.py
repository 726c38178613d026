"""How bright each tissue is, and where the target organs lie: the anatomy that gives a text prompt a meaning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TARGETS = ("liver", "kidney", "pancreas", "lung", "colon", "soft tissue")  # where tumours grow, as prompts name it

#           CT, HU (low, high)   T1-weighted, T2-weighted, a.u. before gain
TISSUES: dict[str, tuple[tuple[float, float], float, float]] = {
    "air": ((-1000, -950), 10, 10),
    "fat": ((-115, -80), 850, 650),
    "bone": ((350, 900), 60, 60),
    "marrow": ((60, 250), 650, 450),
    "fluid": ((-5, 22), 170, 1000),
    "blood": ((60, 240), 600, 120),
    "liver": ((65, 125), 460, 300),
    "spleen": ((70, 140), 380, 480),
    "kidney": ((90, 230), 330, 560),
    "pancreas": ((60, 105), 500, 380),
    "lung": ((-880, -760), 60, 70),
    "colon": ((35, 80), 400, 330),
    "soft tissue": ((40, 75), 350, 210),  # muscle
}
PALETTE = tuple(TISSUES)  # what an anonymous region may be made of
PALETTE_SHARE = np.array([2, 10, 2, 3, 6, 6, 10, 6, 8, 8, 4, 8, 20], float) / 93


@dataclass(frozen=True)
class Organ:
    """An ellipsoid in the trunk whose surface is warped by a smooth field."""

    centre_mm: tuple[float, float, float]  # z toward head, y toward posterior, x toward left, from the trunk's middle
    radii_mm: tuple[float, float, float]
    warp: float  # amplitude, in units of the radius
    tissue: str


# Roughly human; every trunk scales, shifts and turns them. Later ones lie over earlier ones.
ORGANS: dict[str, tuple[Organ, ...]] = {
    "lung": (
        Organ((140, 5, -80), (115, 80, 58), 0.08, "lung"),
        Organ((140, 5, 80), (115, 80, 55), 0.08, "lung"),
    ),
    "heart": (Organ((100, -25, 20), (52, 45, 55), 0.10, "blood"),),
    "stomach": (Organ((0, -35, 62), (45, 34, 40), 0.18, "fluid"),),
    "spleen": (Organ((5, 50, 98), (48, 32, 28), 0.10, "spleen"),),
    "liver": (Organ((5, -10, -72), (75, 78, 85), 0.14, "liver"),),
    "pancreas": (Organ((-38, 0, 8), (15, 15, 58), 0.25, "pancreas"),),
    "kidney": (
        Organ((-62, 52, -62), (52, 28, 28), 0.08, "kidney"),
        Organ((-55, 52, 62), (52, 28, 28), 0.08, "kidney"),
    ),
}
COLON_MM = np.array(  # the course of the large bowel: z, y, x
    [(-200, 5, -105), (-130, 0, -112), (-60, -15, -108), (-52, -62, -55), (-70, -72, 0), (-50, -62, 58),
     (-25, 0, 110), (-110, 15, 115), (-190, 20, 100), (-240, 10, 40), (-260, 40, 5)], float
)  # fmt: skip
COLON_RADIUS_MM = (15.0, 26.0)


def tissue_values(rng: np.random.Generator, modality: str) -> dict[str, float]:
    """One scan's brightness of each tissue: HU for CT; for MR either weighting, each tissue varied by a third."""
    if modality == "CT":
        return {name: rng.uniform(*hounsfield) for name, (hounsfield, _, _) in TISSUES.items()}
    weighting = int(rng.integers(1, 3))
    return {name: float(row[weighting]) * rng.uniform(0.65, 1.35) for name, row in TISSUES.items()}


def tumour_value(rng: np.random.Generator, modality: str, around: float) -> float:
    """The brightness of a tumour in surroundings of brightness `around`, from plain to see down to about the noise."""
    if modality == "CT":
        if around < -300:  # in lung
            return float(rng.uniform(-150, 90))
        change = np.exp(rng.uniform(np.log(13), np.log(120)))
        return float(around - change if rng.random() < 0.6 else around + change)
    change = np.exp(rng.uniform(np.log(80), np.log(700)))
    darker = around > 150 and rng.random() < 0.4
    return float(max(around - change, 20.0) if darker else around + change)
