"""Made-up scans with known tumours, for training that must transfer to real ones: two kinds of scene, one scanner.

Tissue scenes (after SynthSeg and AnyStar: random label maps, random brightness) know no anatomy and no millimetres:
any shape at any zoom. Anatomy scenes are trunks with organs where humans have them, seen whole or close up, with
tumours in several organs: they give text and organ prompts their meaning. Seeded; nothing is stored.
"""

from __future__ import annotations

from training.fields import Draw
from training.scene import Phantom, Tumours
from training.tissue_scene import TissueScene
from training.trunk_scene import TrunkScene

ANATOMY_SHARE = 0.35
CT_SHARE = 0.55


def make_phantom(
    seed: int,
    *,
    size: int = 64,
    modality: str | None = None,
    anatomy: bool | None = None,
    tumours: Tumours = "mostly suiting",
    device: str = "cpu",
) -> Phantom:
    """Phantom number `seed`. Kind and modality are drawn when not given."""
    draw = Draw(seed, device)
    modality = modality or ("CT" if draw.chance(CT_SHARE) else "MR")
    anatomy = draw.chance(ANATOMY_SHARE) if anatomy is None else anatomy
    scene = (TrunkScene if anatomy else TissueScene)(draw, size, modality, tumours)
    for _ in range(20):  # a tumour may come out empty, cut away by what bounds it
        scene.paint()
        if int(scene.tumour.sum()) >= 8:
            break
    return scene.scanned()
