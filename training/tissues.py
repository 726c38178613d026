"""How bright each tissue is, and what each target organ looks like: the anatomy that gives a text prompt a meaning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#           CT, HU (low, high)   T1-weighted, T2-weighted, a.u. before gain
TISSUES: dict[str, tuple[tuple[float, float], float, float]] = {
    "air": ((-1000, -950), 10, 10),
    "fat": ((-115, -80), 850, 650),
    "bone": ((350, 900), 60, 60),
    "marrow": ((60, 250), 650, 450),
    "fluid": ((-5, 22), 170, 1000),
    "blood": ((110, 240), 600, 120),
    "liver": ((75, 125), 460, 300),
    "kidney": ((140, 230), 330, 560),
    "pancreas": ((60, 105), 500, 380),
    "lung": ((-880, -760), 60, 70),
    "colon": ((35, 80), 400, 330),
    "soft tissue": ((45, 70), 350, 210),  # muscle
}


@dataclass(frozen=True)
class Organ:
    """The shape of a target organ: an ellipsoid whose surface is warped by a smooth field."""

    radii_mm: tuple[tuple[float, float], ...]  # three ranges
    warp: float  # amplitude, in units of the radius
    warp_scale_mm: float
    vessels: tuple[int, int]  # how many run through it, range


ORGANS = {
    "liver": Organ(((45, 75), (45, 75), (50, 90)), 0.12, 30, (2, 5)),
    "kidney": Organ(((22, 32), (22, 32), (45, 60)), 0.06, 20, (0, 2)),
    "pancreas": Organ(((10, 17), (11, 19), (35, 60)), 0.22, 12, (0, 2)),
    "lung": Organ(((45, 75), (50, 80), (60, 95)), 0.10, 30, (4, 9)),
    "colon": Organ(((16, 26), (16, 26), (50, 80)), 0.10, 18, (0, 1)),
    "soft tissue": Organ(((25, 50), (30, 60), (50, 95)), 0.15, 25, (0, 2)),
}


def tissue_values(rng: np.random.Generator, modality: str) -> dict[str, float]:
    """One scan's brightness of each tissue: HU for CT; for MR either weighting, each tissue varied by a quarter."""
    if modality == "CT":
        return {name: rng.uniform(*hounsfield) for name, (hounsfield, _, _) in TISSUES.items()}
    weighting = int(rng.integers(1, 3))
    return {name: float(row[weighting]) * rng.uniform(0.75, 1.25) for name, row in TISSUES.items()}


def tumour_value(rng: np.random.Generator, modality: str, organ: str, values: dict[str, float]) -> float:
    """The brightness of a tumour in that organ, from plain to see down to about the noise."""
    if modality == "CT" and organ == "lung":
        return float(rng.uniform(-80, 90))
    darker = rng.random() < (0.7 if modality == "CT" else 0.35)
    if modality == "CT":
        change = np.exp(rng.uniform(np.log(14), np.log(110)))
    else:
        change = values[organ] * np.exp(rng.uniform(np.log(0.12), np.log(1.5 if not darker else 0.7)))
        change = max(change, 60.0)
    return float(values[organ] - change if darker else values[organ] + change)
