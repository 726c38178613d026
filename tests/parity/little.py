"""The paper's network in little, with weight files of its size, and a data set in MSD layout that it can learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from contract.sizes import VIT_B
from tests.parity import upstream_files as upstream

# The same x4 stem, four stages of two blocks, even blocks shifted; CLIP's features as wide as the tokens.
LITTLE = replace(
    VIT_B, name="little", roi=32, tokens=8, width=32, depth=8, heads=2, window=4, adapter=16, neck=16, aggregation=8,
    pyramid=8, queries=5, prompt_heads=2, prompt_mlp=32, text_width=24, text_depth=2, text_heads=2,
    feature_dtype="float32",
)  # fmt: skip
NAMES = ("liver_0", "liver_1", "liver_2", "liver_3")
ORGAN, TUMOUR = 60, 140  # HU
SPLIT = {"train": NAMES[:3], "val": NAMES[3:]}


def write_weights(directory: Path, seed: int = 0) -> tuple[Path, Path]:
    """SAM's and CLIP's files, made up, by the public names."""
    torch.manual_seed(seed)
    sam, clip = directory / "sam.pth", directory / "clip.pth"
    torch.save(upstream.sam(LITTLE, upstream.random), sam)
    text = upstream.openai_text(LITTLE.text_width, LITTLE.width, LITTLE.text_depth, upstream.random)
    torch.save({name: value for name, value in text.items() if not name.startswith("visual.")}, clip)
    return sam, clip


def write_msd(directory: Path, side: int = 40) -> Path:
    """Livers with one bright tumour each, 1.5 mm slices. Returns: the folder with dataset.json and split.json."""
    for folder in ("imagesTr", "labelsTr"):
        (directory / folder).mkdir(parents=True)
    entries = []
    for index, name in enumerate(NAMES):
        labels = anatomy(side, np.random.default_rng(index))
        noise = np.random.default_rng(100 + index).normal(0, 8, labels.shape)
        image = np.array([-90, ORGAN, TUMOUR])[labels] + noise
        entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for key, voxels in (("image", image.astype(np.int16)), ("label", labels.astype(np.uint8))):
            nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-1, -1, 1.5, 1])), directory / entry[key])
        entries.append(entry)
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    document = {"name": "Liver", "modality": {"0": "CT"}, "labels": labels, "training": entries}
    (directory / "dataset.json").write_text(json.dumps(document))
    (directory / "split.json").write_text(json.dumps(SPLIT))
    return directory


def anatomy(side: int, rng: np.random.Generator) -> np.ndarray:
    """(D, H, W) 0 fat, 1 liver, 2 tumour."""
    z, y, x = np.ogrid[: round(side / 1.5), :side, :side]
    middle = side / 2 + rng.uniform(-3, 3, 3)
    radii = rng.uniform(0.3, 0.4, 3) * side
    place = middle + rng.uniform(-0.15, 0.15, 3) * side
    sizes = rng.uniform(4.5, 7, 3)
    labels = np.zeros((len(z), side, side), int)
    for value, centre, axes in ((1, middle, radii), (2, place, sizes)):
        away = sum(((grid - c) / r) ** 2 for grid, c, r in zip((1.5 * z, y, x), centre, axes, strict=True))
        labels[away <= 1] = value
    return labels
