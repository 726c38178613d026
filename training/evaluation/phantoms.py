"""Held-out phantoms as cases: their seeds begin where no training comes."""

from __future__ import annotations

from training.evaluation.cases import Case, array_case
from training.phantoms import make_phantom
from training.recipe import HELD_OUT_SEED

SIZE_VOX = 128
MODALITIES = ("CT", "MR")


def phantom_case(index: int) -> Case:
    """Held-out phantom `index`; CT and MR alternate."""
    modality = MODALITIES[index % len(MODALITIES)]
    phantom = make_phantom(HELD_OUT_SEED + index, size=SIZE_VOX, modality=modality)  # type: ignore[arg-type]
    return array_case(
        f"phantom {index}",
        phantom.image,
        (phantom.spacing_mm,) * 3,
        phantom.tumour,
        modality=modality,
        organ_mask=phantom.organ | phantom.tumour,
        organ=phantom.organ_name,
        finding=f"{phantom.organ_name} tumour",
    )
