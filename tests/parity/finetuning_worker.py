"""One of several spawned processes: it knows the shipped configurations only, so the little one is added here."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning_fabric import Fabric

from contract.sizes import CONFIGURATIONS
from tests.parity.little import LITTLE
from training.finetuning.loop import Data, Origin, Plan, fine_tune


def run(fabric: Fabric, plan: Plan, origin: Origin, data: Data, out: Path) -> None:
    CONFIGURATIONS["little"] = LITTLE
    torch.set_num_threads(1)
    fine_tune(plan, origin, data, out, fabric, resume=False)
