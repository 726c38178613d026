"""How a fine-tuned network sees its input, which its bundle promises: intensity rules and grid.

From public weights: the paper's rule for each organ, and 1 mm. From a checkpoint of ours: what it was trained with.

Source: the table of constants in the code of 3DSAM-adapter, which TAGS shares; its README has others for KiTS and LiTS,
and which of them the published figures used is not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from contract.grid import GridRule, fixed_grid
from contract.intensity import IntensityRule
from contract.sizes import Sizes
from export.checkpoint import load_checkpoint
from training.finetuning.preparation import SPACING_MM, PreparedCase

PAPER_CT = {
    "kidney": IntensityRule("window", low=-54.0, high=247.0, mean=59.53867, std=55.457336),  # KiTS21
    "pancreas": IntensityRule("window", low=-39.0, high=204.0, mean=68.45214, std=63.422806),  # MSD
    "liver": IntensityRule("window", low=-48.0, high=163.0, mean=60.057533, std=40.198017),  # LiTS17
    "colon": IntensityRule("window", low=-57.0, high=175.0, mean=65.175035, std=32.651197),  # MSD
}
ANY_CT = IntensityRule("window", low=-200.0, high=300.0, mean=50.0, std=80.0)  # soft tissue, room for lung and bone
ANY_MR = IntensityRule("percentile", low=0.5, high=99.5)


@dataclass(frozen=True)
class Recipe:
    """What all samples of a run share."""

    size: int  # voxels per side of the region of interest
    grid: GridRule
    rules: dict[str, IntensityRule]

    def rule(self, case: PreparedCase) -> IntensityRule:
        """The rule that the service will use for such a case when its target is named."""
        return self.rules.get(f"{case.modality}/{case.organ}") or self.rules[case.modality]


def recipe_of(train: Iterable[PreparedCase], sizes: Sizes, checkpoint: Path | None) -> Recipe:
    """Raises: CheckpointInvalid."""
    if checkpoint:
        meta = load_checkpoint(checkpoint, sizes).meta
        return Recipe(sizes.roi, meta.grid, meta.intensity)
    return Recipe(sizes.roi, fixed_grid(SPACING_MM), paper_rules(train))


def paper_rules(cases: Iterable[PreparedCase]) -> dict[str, IntensityRule]:
    """By "CT/liver", and by modality for requests that name no target: the one organ's rule when there is only one."""
    organs = sorted({case.organ for case in cases if case.modality == "CT" and case.organ in PAPER_CT})  # type: ignore[type-var]
    rules = {f"CT/{organ}": PAPER_CT[organ] for organ in organs}
    only = PAPER_CT[organs[0]] if len(organs) == 1 else ANY_CT
    return rules | {"CT": only, "MR": ANY_MR}
