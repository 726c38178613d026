"""Held-out phantoms as cases: their seeds begin where no training comes."""

from __future__ import annotations

from training.evaluation.cases import Case, array_case
from training.phantoms import make_phantom
from training.recipe import HELD_OUT_SEED
from training.scene import Phantom


def phantom_case(index: int) -> Case:
    """Held-out phantom `index`."""
    return as_case(f"phantom {index}", make_phantom(HELD_OUT_SEED + index))


def as_case(name: str, phantom: Phantom) -> Case:
    """Only in anatomy do organs have a meaning: tissue scenes have no organ mask and no text."""
    case = array_case(name, phantom.image, (phantom.spacing_mm,) * 3, phantom.tumour, modality=phantom.modality)
    if not phantom.anatomy:
        return case
    return case.named(
        phantom.organ_name,
        organ_mask=phantom.organ if phantom.organ.any() else None,
        text_truth=phantom.same_organ,
        absent=phantom.healthy[0] if phantom.healthy else None,
    )
