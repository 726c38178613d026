"""Measures a checkpoint on held-out phantoms: Dice by kind of prompt, beside what a click gives without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from contract.sizes import CONFIGURATIONS
from contract.tensors import LABEL_FOREGROUND
from export.networks.build import Tags, build_tags
from training.baselines import best_region_growing, best_sphere, dice
from training.loop import collate, save
from training.phantoms import Phantom, make_phantom
from training.recipe import HELD_OUT_SEED
from training.simulate import Click, Sample, assemble, correcting_clicks, jittered_box


def evaluate_checkpoint(checkpoint: Path, out: Path, *, cases: int, roi: int, release: Path | None) -> str:
    """Evaluate on `cases` held-out phantoms in regions of `roi` voxels; writes every case to `out`.

    Args: release: where to write the checkpoint with the figures in its `meta` and without what only resuming needs.
    Returns: the summary as JSON text.
    """
    state = torch.load(checkpoint, weights_only=True)
    model = build_tags(CONFIGURATIONS[state["config"]]).eval()
    model.load_state_dict(state["state_dict"])
    rows = [evaluate_case(model, case, roi) for case in track(range(cases), "evaluating")]
    summary = {"data": "held-out phantoms", "cases": cases, "roi": roi, "seed": HELD_OUT_SEED} | summarise(rows)
    out.write_text(json.dumps({"summary": summary, "cases": rows}, indent=2) + "\n")
    if release:
        meta = state["meta"] | {"quality": summary}
        save({"config": state["config"], "state_dict": state["state_dict"], "meta": meta}, release)
    return json.dumps(summary, indent=2)


def evaluate_case(model: Tags, case: int, roi: int) -> dict[str, Any]:
    """Dice of every prompt and baseline on held-out phantom `case`; CT and MR alternate.

    The one click is a random tumour voxel, so it is seldom in the middle. "3 clicks" adds two clicks where the answer
    to the first, fed back as the previous mask, is wrong.
    """
    phantom = make_phantom(HELD_OUT_SEED + case, size=roi, modality="CT" if case % 2 == 0 else "MR")
    rng = np.random.default_rng(HELD_OUT_SEED + case)
    truth, finding = phantom.tumour, f"{phantom.organ_name} tumour"
    click: Click = (rng.choice(np.argwhere(truth)).astype(float), LABEL_FOREGROUND)
    one_click = assemble(phantom, truth, clicks=[click])
    features = encode(model, one_click)
    first = decode(model, features, one_click)
    more = [click, *correcting_clicks(truth, first, 2, rng)]
    samples = {
        "three_clicks": assemble(phantom, truth, clicks=more, previous=first),
        "box": assemble(phantom, truth, box=jittered_box(truth, rng)),
        "click_text": assemble(phantom, truth, clicks=[click], finding=finding),
        "text": assemble(phantom, truth, finding=finding),
    }
    with_organ = assemble(phantom, truth, clicks=[click], organ=phantom.organ)
    return {
        **description(phantom, case),
        "sphere": best_sphere(truth, click[0]),
        "region_growing": best_region_growing(one_click.image[0], truth, click[0]),
        "one_click": dice(first, truth),
        **{name: dice(decode(model, features, sample), truth) for name, sample in samples.items()},
        "click_organ": dice(decode(model, encode(model, with_organ), with_organ), truth),
    }


def description(phantom: Phantom, case: int) -> dict[str, Any]:
    voxels = int(np.count_nonzero(phantom.tumour))
    return {"case": case, "modality": phantom.modality, "organ": phantom.organ_name, "voxels": voxels}


def encode(model: Tags, sample: Sample) -> tuple[Tensor, ...]:
    """The features of the sample's image and organ mask: the same for every other prompt."""
    batch = collate([sample])
    with torch.inference_mode():
        return model.sam_encoder(batch["image"], batch["organ_mask"])


def decode(model: Tags, features: tuple[Tensor, ...], sample: Sample) -> np.ndarray:
    """(S, S, S) bool mask of the network alone, without post-processing."""
    batch = collate([sample])
    prompts = [batch[name] for name in ("point_coords", "point_labels", "mask_prompt", "use_text")]
    with torch.inference_mode():
        (text,) = model.clip_text_embedder(batch["input_ids"], batch["eot_index"])
        logits, _ = model.fusion_decoder(*features, text, *prompts)
    return (logits[0, 0] > 0).numpy()


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and median Dice of every method over the cases."""
    methods = [name for name, value in rows[0].items() if isinstance(value, float)]
    scores = {name: np.array([row[name] for row in rows]) for name in methods}
    return {
        "mean_dice": {name: round(float(values.mean()), 3) for name, values in scores.items()},
        "median_dice": {name: round(float(np.median(values)), 3) for name, values in scores.items()},
    }
