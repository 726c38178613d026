"""What the `small` bundle is trained on and promises: grid rule, intensity rules, vocabulary. The export copies it into
`bundle.json` from the checkpoint's `meta`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from contract.grid import GridRule
from contract.intensity import IntensityRule
from training.tissues import TARGETS

# Phantoms have no millimetres but in anatomy: any tumour can be looked at so that it fills the region as in training.
GRID = GridRule(
    first_mm=2.5, finest_mm=0.35, coarsest_mm=6.0, search_finest_mm=1.0, search_coarsest_mm=6.5, fill=0.7
)  # fmt: skip
INTENSITY = {
    # Soft tissue with room for lung (dark) and bone (bright) at the ends; 80 HU keeps a 15 HU lesion visible.
    "CT": IntensityRule("window", low=-200.0, high=300.0, mean=50.0, std=80.0),
    "MR": IntensityRule("percentile", low=0.5, high=99.5),
}
NOUNS = ("tumour", "tumor", "lesion")
FINDINGS = tuple(f"{target} {noun}" for target in TARGETS for noun in NOUNS) + NOUNS

Only = Literal["boxes", "texts"]  # what a stage learns, if not everything

HELD_OUT_SEED = 1_000_000_000  # training seeds count up from 0 and stay far below; evaluation starts here


def meta(training: dict[str, Any], quality: dict[str, Any]) -> dict[str, Any]:
    """The `meta` of a checkpoint, plain types only (readable with `torch.load(weights_only=True)`)."""
    return {
        "grid": asdict(GRID),
        "intensity": {key: asdict(rule) for key, rule in INTENSITY.items()},
        "targets": list(TARGETS),
        "findings": list(FINDINGS),
        "training": training,
        "quality": quality,
    }
