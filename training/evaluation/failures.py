"""Where a bundle fails worst: held-out phantoms with the truth and the answers outlined, for the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import numpy as np
from PIL import Image

from contract.bundle import load_bundle
from service.domain.prompts import Prompts
from service.domain.roi import box_corners
from service.inference.embedded import EmbeddedEngine
from service.segment import segment
from service.telemetry.stages import Stages
from training.evaluation.phantoms import as_case
from training.evaluation.prompting import FOREGROUND, places_of, prompts_of
from training.evaluation.scoreboard import TAGS
from training.phantoms import make_phantom
from training.pictures import picture
from training.recipe import HELD_OUT_SEED

WORST = 10  # failures shown
RANKED_BY = "centre-1"


async def failures(bundle: Path, evaluation: dict[str, Any]) -> Image.Image:
    """The worst answers to one click, upper row, and the same phantoms by box, lower row.

    Args: evaluation: what `evaluate --phantoms` wrote for this bundle.
    """
    rows = [row for row in evaluation["rows"] if row["prompt"] == RANKED_BY and row["method"] == TAGS]
    rows.sort(key=lambda row: row["scores"]["dice"])
    engine = EmbeddedEngine(load_bundle(bundle), threads=2, max_waiting=1)
    clicked, boxed = [], []
    for row in rows[:WORST]:
        phantom = make_phantom(HELD_OUT_SEED + int(row["case"].split()[-1]))
        case = as_case(row["case"], phantom)
        places = places_of(case, evaluation["seed"])
        box = case.source.geometry.to_lps_mm(box_corners(*places.box))[np.newaxis]
        for shown, prompts in (
            (clicked, prompts_of(case, [places.centre], [FOREGROUND])),
            (boxed, Prompts(boxes_lps_mm=box)),
        ):
            mask = await segment(case.source, prompts, engine, Stages())
            shown.append(picture(phantom, mask.voxels))
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in (clicked, boxed)]))


def save_failures(path: Path, bundle: Path, evaluation: dict[str, Any]) -> None:
    anyio.run(failures, bundle, evaluation).save(path, quality=85)
