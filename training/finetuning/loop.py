"""The fine-tuning loop: epochs over prepared cases on one device or several, resumable, the best epoch kept.

The paper's schedule: AdamW, a rate that falls linearly over 500 epochs of which 200 are run, gradients clipped to 1,
one crop for each case and epoch; the epoch with the smallest loss on the validation cases is the result. Lightning
Fabric places the model, averages gradients between processes and casts where mixed precision is asked for.

Every sample is a function of (seed, epoch, place in the epoch): a resumed run sees what an uninterrupted one does, and
several processes share one order. Checkpoints are written at the end of epochs, by the first process alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contract.sizes import CONFIGURATIONS
from export.checkpoint import save_checkpoint
from export.networks.build import Tags, build_tags
from export.pretrained import load_clip_text, load_sam
from training.finetuning.freezing import TEXT_PROJECTION, exported, freeze
from training.finetuning.objective import Objective
from training.finetuning.preparation import PreparedCase
from training.finetuning.recipes import Recipe
from training.finetuning.samples import training_sample, validation_sample
from training.loop import FIRST_LOGIT, collate
from training.recipe import NOUNS
from training.simulate import Sample

DECAY_EPOCHS = 500  # of the linear schedule, whatever part of it is run
LAST_RATE = 0.01  # share of the first, after DECAY_EPOCHS
GRADIENT_NORM = 1.0
LATEST, BEST, LOG = "last.pt", "best.pt", "log.jsonl"
TRAINING, VALIDATION = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Plan:
    """One run. A resumed run keeps what it was started with but for `epochs`."""

    config: str = "vit_b"
    epochs: int = 200
    batch: int = 1  # crops per device
    rate: float = 1e-4
    weight_decay: float = 1e-5
    seed: int = 0
    workers: int = 0  # processes per device that draw samples ahead


@dataclass(frozen=True)
class Origin:
    """Weights to start from: the public ones, or a checkpoint of ours."""

    sam: Path | None = None
    clip: Path | None = None
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Data:
    """Prepared cases, and how crops of them are made."""

    train: tuple[PreparedCase, ...]
    val: tuple[PreparedCase, ...]
    recipe: Recipe


class Epoch(Dataset[Sample]):
    """The training samples of one epoch that one process draws."""

    def __init__(self, data: Data, plan: Plan, epoch: int, rank: int, processes: int) -> None:
        self.data, self.plan, self.epoch, self.rank, self.processes = data, plan, epoch, rank, processes
        self.order = np.random.default_rng([plan.seed, epoch]).permutation(len(data.train))

    def __len__(self) -> int:
        """Equal for every process: the last batch is filled up from the start of the order."""
        return math.ceil(len(self.order) / (self.plan.batch * self.processes)) * self.plan.batch

    def __getitem__(self, index: int) -> Sample:
        place = index * self.processes + self.rank
        case = self.data.train[self.order[place % len(self.order)]]
        rng = np.random.default_rng([self.plan.seed, TRAINING, self.epoch, place])
        return training_sample(case, self.data.recipe, rng)


@dataclass
class Run:
    """What a step changes."""

    objective: Objective
    optimizer: torch.optim.AdamW
    epoch: int = 0  # finished ones
    best: float = math.inf  # smallest validation loss
    seconds: float = 0.0


def build(plan: Plan, origin: Origin) -> Tags:
    """The model with its first weights, frozen as in TAGS. Raises: PretrainedInvalid; RuntimeError: weights that do not
    fit the configuration."""
    torch.manual_seed(plan.seed)
    model = build_tags(CONFIGURATIONS[plan.config])
    torch.nn.init.constant_(model.fusion_decoder.coarse.bias, FIRST_LOGIT)
    model.sam_encoder.feature_dtype = torch.float32  # half is for the wire: gradients would vanish in it
    new_width = False
    if origin.checkpoint:
        model.load_state_dict(torch.load(origin.checkpoint, weights_only=True)["state_dict"])
    if origin.sam:
        load_sam(model, origin.sam)
    if origin.clip:
        new_width = TEXT_PROJECTION in load_clip_text(model, origin.clip).missing
    freeze(model, train_text_projection=new_width)
    return model


def fine_tune(plan: Plan, origin: Origin, data: Data, out: Path, fabric: Fabric, *, resume: bool) -> Path:
    """Run to the last epoch. Returns: `out`/best.pt, which the export reads.

    Args: resume: go on from `out`/last.pt when it is there; `origin` then only says what is frozen.
    """
    out.mkdir(parents=True, exist_ok=True)
    run = start(plan, origin)
    if resume and (out / LATEST).exists():
        restore(run, torch.load(out / LATEST, weights_only=True, map_location="cpu"))
    model, optimizer = fabric.setup(run.objective, run.optimizer)
    begun, before = time.monotonic(), run.seconds
    while run.epoch < plan.epochs:
        training = train_epoch(run, plan, data, fabric, model, optimizer)
        validation = validate(plan, data, fabric, run.objective)
        run.epoch += 1
        run.seconds = before + time.monotonic() - begun
        better = validation["loss"] < run.best
        run.best = min(run.best, validation["loss"])
        if fabric.is_global_zero:
            write(run, plan, data, origin, out, fabric, better=better)
            log = {"epoch": run.epoch, "seconds": round(run.seconds, 1), "train": training, "val": validation}
            with (out / LOG).open("a") as stream:
                stream.write(json.dumps(log) + "\n")
        fabric.barrier()
    return out / BEST


def start(plan: Plan, origin: Origin) -> Run:
    objective = Objective(build(plan, origin))
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return Run(objective, torch.optim.AdamW(trained, lr=plan.rate, weight_decay=plan.weight_decay))


def restore(run: Run, state: dict[str, Any]) -> None:
    """The run as its checkpoint left it, in place."""
    kept = state["run"]
    run.objective.tags.load_state_dict(kept["model"])
    run.optimizer.load_state_dict(kept["optimizer"])
    run.epoch, run.best, run.seconds = kept["epoch"], kept["best"], kept["seconds"]


def train_epoch(
    run: Run, plan: Plan, data: Data, fabric: Fabric, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, float]:  # fmt: skip
    """One crop of every training case. Returns: this process's mean losses."""
    for group in run.optimizer.param_groups:
        group["lr"] = plan.rate * rate_share(run.epoch)
    epoch = Epoch(data, plan, run.epoch, fabric.global_rank, fabric.world_size)
    model.train()
    losses = []
    for batch in DataLoader(epoch, plan.batch, num_workers=plan.workers, collate_fn=collate):
        mask, alignment = model(fabric.to_device(batch))
        optimizer.zero_grad()
        fabric.backward(mask + alignment)
        fabric.clip_gradients(model, optimizer, max_norm=GRADIENT_NORM)
        optimizer.step()
        losses.append((mask.detach(), alignment.detach()))
    return means(losses)


@torch.no_grad()
def validate(plan: Plan, data: Data, fabric: Fabric, model: torch.nn.Module) -> dict[str, float]:
    """The same crops and clicks after every epoch. Returns: mean losses over all processes."""
    model.eval()
    losses = []
    for index, case in enumerate(data.val):
        if index % fabric.world_size == fabric.global_rank:
            rng = np.random.default_rng([plan.seed, VALIDATION, index])
            losses.append(model(fabric.to_device(collate([validation_sample(case, data.recipe, rng)]))))
    sums = (
        torch.stack([torch.stack(pair) for pair in losses]).sum(0) if losses else torch.zeros(2, device=fabric.device)
    )
    mask, alignment = (fabric.all_reduce(sums, reduce_op="sum") / len(data.val)).tolist()
    return {"loss": mask + alignment, "mask": mask, "alignment": alignment}


def means(losses: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    mask, alignment = torch.stack([torch.stack(pair) for pair in losses]).mean(0).tolist()
    return {"loss": mask + alignment, "mask": mask, "alignment": alignment}


def rate_share(epoch: int) -> float:
    """Of the first learning rate, after so many epochs."""
    return 1 - (1 - LAST_RATE) * min(1.0, epoch / DECAY_EPOCHS)


def write(run: Run, plan: Plan, data: Data, origin: Origin, out: Path, fabric: Fabric, *, better: bool) -> None:
    """last.pt with what resuming needs, and best.pt when this epoch is it."""
    tags = run.objective.tags
    result = {"config": plan.config, "state_dict": exported(tags), "meta": meta(run, plan, data, origin, fabric)}
    if better:
        save_checkpoint(result, out / BEST)
    kept = {
        "model": {name: value.cpu() for name, value in tags.state_dict().items()},
        "optimizer": run.optimizer.state_dict(),
        "epoch": run.epoch,
        "best": run.best,
        "seconds": run.seconds,
        "plan": asdict(plan),
    }
    save_checkpoint(result | {"run": kept}, out / LATEST)


def meta(run: Run, plan: Plan, data: Data, origin: Origin, fabric: Fabric) -> dict[str, Any]:
    """What the bundle will say; no names of cases or files."""
    organs = sorted({case.organ for case in data.train if case.organ})
    training = {
        "data": f"{len(data.train)} cases, {len(data.val)} to choose the epoch by",
        "from": {"sam": bool(origin.sam), "clip": bool(origin.clip), "checkpoint": bool(origin.checkpoint)},
        "epochs": run.epoch,
        "seed": plan.seed,
        "batch": plan.batch * fabric.world_size,
        "hours": round(run.seconds / 3600, 2),
        "hardware": f"{fabric.world_size} x {fabric.device.type}",
        "validation_loss": round(run.best, 4),
    }
    return {
        "grid": asdict(data.recipe.grid),
        "intensity": {key: asdict(rule) for key, rule in data.recipe.rules.items()},
        "targets": organs,
        "findings": [f"{organ} {noun}" for organ in organs for noun in NOUNS] + list(NOUNS),
        "training": training,
        "quality": {},
    }
