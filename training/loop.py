"""The training loop: samples in order, AdamW, warm-up and cosine, averaged weights, resumable checkpoints, a log.

Sample `i` is a function of (seed, i) and step `n` takes samples n*batch .. (n+1)*batch - 1, so a resumed run sees what
an uninterrupted one does; with a `steps` budget both end with the same weights. `workers` processes share each batch,
one core each, and average their gradients: on a CPU that beats one process with as many threads. Part of the steps are
later rounds: the network's own answer is the previous mask, and the next click lies where that is most wrong.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, distributed
from torch import multiprocessing as processes
from torch.nn import Parameter

from contract.sizes import CONFIGURATIONS
from contract.tensors import LABEL_BOX_MAX, LABEL_BOX_MIN
from export.checkpoint import save_checkpoint
from export.networks.build import Tags, build_tags
from export.networks.prompts import BOX_MAPS, PROMPT_MAPS
from training.losses import soft_dice_loss, total_loss
from training.recipe import Only, meta
from training.simulate import TRUTH, Sample, corrected, make_close_up, make_sample

WARM_UP = 0.03  # share of the budget
FINAL_RATE = 0.02  # of the peak, at the end of the cosine
ENCODER_RATE = 0.4  # of the decoder's: transformers from scratch stand less
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
LATER_ROUNDS = (0.68, 0.22, 0.10)  # probability of 0, 1, 2 rounds before the one that is learned from
AVERAGE = 0.998  # decay of the averaged weights; less in the first steps
FIRST_LOGIT = -2.0  # a fresh network starts near "no tumour", which is true of most voxels
LATEST, LOG = "last.pt", "log.jsonl"


@dataclass(frozen=True)
class Plan:
    """One stage of training."""

    config: str  # a key of CONFIGURATIONS
    roi: int  # voxels per side of a sample
    batch: int  # 2 or more per worker: for one sample, oneDNN's 3D convolutions took twelve times as long
    rate: float  # peak learning rate of the decoder
    seed: int
    steps: int | None = None  # the budget: a number of steps,
    minutes: float | None = None  # or wall-clock time over all sessions of the run
    workers: int = 1  # processes that share a batch
    whole: int | None = (
        None  # voxels per side of the phantoms that samples are cut out of; None: of the size of samples
    )
    device: str = "cpu"  # or "cuda": phantoms are made there, too
    only: Only | None = None  # samples with that prompt; nothing is learned that requests without it could notice

    def progress(self, step: int, minutes: float) -> float:
        """Share of the budget used, 0..1."""
        return min(1.0, step / self.steps if self.steps else minutes / (self.minutes or math.inf))


@dataclass
class Run:
    """What a checkpoint holds and a step changes."""

    model: Tags
    average: dict[str, Tensor]  # the weights that are exported
    optimizer: torch.optim.AdamW
    step: int = 0
    minutes: float = 0.0
    after: dict[str, Any] | None = None  # the training of the checkpoint that this stage started from, as its meta says

    def state(self, plan: Plan) -> dict[str, Any]:
        """The checkpoint: what the export reads (config, state_dict, meta) and what resuming needs (run)."""
        training = {
            "data": "generated phantoms (CT-like and MR-like), no patient data",
            "seed": plan.seed,
            "steps": self.step,
            "batch": plan.batch,
            "roi": plan.roi,
            "hours": round(self.minutes / 60 + (self.after["hours"] if self.after else 0), 2),  # with earlier stages
            "hardware": torch.cuda.get_device_name() if plan.device == "cuda" else f"{plan.workers} CPU cores",
            "after": self.after,
        }
        return {
            "config": plan.config,
            "state_dict": self.average,
            "meta": meta(training, quality={}),
            "run": {
                "plan": asdict(plan),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "minutes": self.minutes,
            },
        }


def train(plan: Plan, out: Path, *, init: Path | None, resume: bool, save_every_minutes: float = 3.0) -> Path:
    """Train one stage and return its checkpoint, `out`/last.pt, rewritten every few minutes.

    Args: init: a checkpoint whose averaged weights to start from. resume: go on from `out`/last.pt if it is there.
    """
    out.mkdir(parents=True, exist_ok=True)
    if plan.workers == 1:
        _work(0, plan, out, init, resume, save_every_minutes)
    else:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 1000)}
        processes.spawn(_work, (plan, out, init, resume, save_every_minutes), nprocs=plan.workers)
    return out / LATEST


def _work(rank: int, plan: Plan, out: Path, init: Path | None, resume: bool, save_every_minutes: float) -> None:
    """One worker's share of a run. Worker 0 keeps the clock, the log and the checkpoint."""
    if plan.workers > 1:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", rank=rank, world_size=plan.workers)
    torch.manual_seed(plan.seed)
    run = restore(out / LATEST, plan) if resume and (out / LATEST).exists() else start(plan, init)
    saved = begun = time.monotonic()
    minutes_before = run.minutes
    with (
        progress_bar() if rank == 0 else nullcontext() as bar,
        (out / LOG if rank == 0 else Path(os.devnull)).open("a") as log,
        Ahead(plan, rank, run.step) as ahead,
    ):
        task = bar.add_task("training", total=100) if bar else None
        while (progress := _agreed(plan.progress(run.step, run.minutes), plan)) < 1:
            losses = advance(run, plan, progress, next(ahead))
            now = time.monotonic()
            run.minutes = minutes_before + (now - begun) / 60
            log.write(json.dumps({"step": run.step, "minutes": round(run.minutes, 3), **losses}) + "\n")
            log.flush()
            if bar:
                bar.update(task, completed=100 * progress, step=run.step, **losses)
                if now - saved > 60 * save_every_minutes:
                    save_checkpoint(run.state(plan), out / LATEST)
                    saved = now
    if rank == 0:
        save_checkpoint(run.state(plan), out / LATEST)
    if plan.workers > 1:
        distributed.destroy_process_group()


def _agreed(progress: float, plan: Plan) -> float:
    """Worker 0's word, so that all take the same steps."""
    if plan.workers == 1:
        return progress
    word = torch.tensor([progress], dtype=torch.float64)
    distributed.broadcast(word, 0)
    return float(word)


def start(plan: Plan, init: Path | None) -> Run:
    """Fresh weights, or those of another stage."""
    model = build_tags(CONFIGURATIONS[plan.config])  # takes smaller regions, too: positions are cropped inside
    after = None
    if init is None:
        torch.nn.init.constant_(model.fusion_decoder.coarse.bias, FIRST_LOGIT)
    else:
        checkpoint = torch.load(init, weights_only=True)
        model.load_state_dict(checkpoint["state_dict"])
        after = checkpoint["meta"]["training"]
    model.clip_text_embedder.token_embedding.requires_grad_(False)  # CLIP's words stay; a few phrases need no more
    average = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        if parameter.ndim == 5:  # 3D convolutions run up to twice as fast on a CPU with channels last
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    model.to(plan.device)
    average = {name: value.to(plan.device) for name, value in average.items()}
    return Run(model.train(), average, optimizer(model, plan), after=after)


def restore(checkpoint: Path, plan: Plan) -> Run:
    """The run as its checkpoint left it."""
    state = torch.load(checkpoint, weights_only=True)
    run = start(plan, None)
    run.model.load_state_dict(state["run"]["model"])
    run.optimizer.load_state_dict(state["run"]["optimizer"])
    return replace(
        run,
        average=state["state_dict"],
        step=state["run"]["step"],
        minutes=state["run"]["minutes"],
        after=state["meta"]["training"].get("after"),
    )


def optimizer(model: Tags, plan: Plan) -> torch.optim.AdamW:
    if plan.only:
        learned = only_boxes(model) if plan.only == "boxes" else only_texts(model)
        return torch.optim.AdamW([{"params": learned, "share": 1.0}], lr=0.0, weight_decay=0.0)
    encoder = [
        p for network in (model.sam_encoder, model.clip_text_embedder) for p in network.parameters() if p.requires_grad
    ]
    groups = [{"params": list(model.fusion_decoder.parameters()), "share": 1.0}]
    if encoder:
        groups.append({"params": encoder, "share": ENCODER_RATE})
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=WEIGHT_DECAY)


def only_boxes(model: Tags) -> list[Parameter]:
    """Freeze all but what an absent box multiplies by zero, so that answers to other prompts stay as they are, to the
    bit: the embeddings of its corners, and the weights of its maps in the two convolutions that read them."""
    model.requires_grad_(False)
    encoder, stem = model.fusion_decoder.prompt_encoder, model.fusion_decoder.pyramid.stem
    before_maps = stem.in_channels - PROMPT_MAPS - 1  # the semantic map comes last
    return [
        _parts_of(encoder.label_embed, [LABEL_BOX_MIN, LABEL_BOX_MAX], axis=0),
        _parts_of(encoder.map_embed.weight, BOX_MAPS, axis=1),
        _parts_of(stem.weight, [before_maps + place for place in BOX_MAPS], axis=1),
    ]


def only_texts(model: Tags) -> list[Parameter]:
    """Freeze all but what a text that does not count multiplies by zero: the text embedder, its token, its vector in
    the pyramid, and the weights of the semantic map in the three convolutions that read it."""
    model.requires_grad_(False)
    decoder, tower = model.fusion_decoder, model.clip_text_embedder
    words = [parameter for parameter in tower.parameters() if parameter is not tower.token_embedding.weight]
    whole = [*words, *decoder.prompt_encoder.text_token.parameters(), decoder.pyramid.text.weight]
    readers = (decoder.prompt_encoder.map_embed, decoder.pyramid.stem, decoder.cls1)
    return [
        *(parameter.requires_grad_(True) for parameter in whole),
        *(_parts_of(reader.weight, [-1], axis=1) for reader in readers),  # the semantic map comes last
    ]


def _parts_of(parameter: Parameter, places: Sequence[int], *, axis: int) -> Parameter:
    """The parameter, of which only these places along the axis are learned."""
    mask = torch.zeros_like(parameter)
    mask.index_fill_(axis, torch.tensor(places, device=mask.device) % mask.shape[axis], 1)
    parameter.requires_grad_(True).register_hook(mask.mul)
    return parameter


def advance(run: Run, plan: Plan, progress: float, drawn: list[Sample]) -> dict[str, float]:
    """One step on this worker's share of a batch. Returns: loss and soft Dice for the log."""
    rate = plan.rate * schedule(progress)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    batch = to_device(collate(later_round(run.model, drawn, run.step, plan)), plan)
    inputs = inputs_of(batch)
    with torch.autocast(plan.device, torch.bfloat16, enabled=plan.device == "cuda"):
        logits, semantic_map = run.model(**inputs)
    loss = total_loss(logits.float(), semantic_map.float(), batch)
    loss.backward()
    average_gradients(run.model, plan)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_NORM)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    decay = min(AVERAGE, run.step / (run.step + 10))
    with torch.no_grad():
        for name, value in run.model.state_dict().items():
            run.average[name].lerp_(value, 1 - decay)
        dice = 1 - float(soft_dice_loss(logits.float(), batch["target"]).mean())
    return {"loss": round(float(loss.detach()), 4), "dice": round(dice, 4), "rate": rate}


def average_gradients(model: Tags, plan: Plan) -> None:
    """The mean over all workers, in place."""
    if plan.workers == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= plan.workers
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.reshape(gradient.shape))


class Ahead:
    """One worker's samples, drawn a few steps ahead by a process of its own."""

    STEPS = 3

    def __init__(self, plan: Plan, rank: int, step: int) -> None:
        self._plan, self._rank, self._next = plan, rank, step
        self._pool = ProcessPoolExecutor(1, mp_context=processes.get_context("spawn"))
        self._drawn: deque[Future[list[Sample]]] = deque()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __next__(self) -> list[Sample]:
        while len(self._drawn) < self.STEPS:
            self._drawn.append(self._pool.submit(samples, self._plan, self._rank, self._next))
            self._next += 1
        return self._drawn.popleft().result()


def samples(plan: Plan, rank: int, step: int) -> list[Sample]:
    """A worker's share of a step's samples."""
    torch.set_num_threads(1)
    share = plan.batch // plan.workers
    first = step * plan.batch + rank * share
    make = partial(make_sample, only=plan.only) if plan.whole is None else partial(make_close_up, whole=plan.whole)
    return [make(plan.seed, first + i, size=plan.roi, device=plan.device) for i in range(share)]


def later_round(model: Tags, drawn: list[Sample], step: int, plan: Plan) -> list[Sample]:
    """The samples after none, one or two rounds of answers and corrections; the same for all workers of a step."""
    rng = np.random.default_rng([plan.seed, step, 1])
    for _ in range(int(rng.choice(len(LATER_ROUNDS), p=LATER_ROUNDS))):
        with torch.no_grad():
            logits, _ = model(**inputs_of(to_device(collate(drawn), plan)))
        found = (logits[:, 0] > 0).cpu().numpy()
        drawn = [corrected(sample, mask, rng) for sample, mask in zip(drawn, found, strict=True)]
    return drawn


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the networks read of a batch; the rest is truth."""
    return {name: value for name, value in batch.items() if name not in TRUTH}


def to_device(batch: dict[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    return {name: value.to(plan.device) for name, value in batch.items()}


def schedule(progress: float) -> float:
    """Learning rate as a share of its peak: linear warm-up, then half a cosine."""
    if progress < WARM_UP:
        return (progress + 0.02 * WARM_UP) / WARM_UP
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Tensors with the batch axis, by field."""
    return {f.name: torch.from_numpy(np.stack([getattr(s, f.name) for s in samples])) for f in fields(Sample)}


def progress_bar() -> Progress:
    columns = (BarColumn(), TextColumn("{task.percentage:.1f} %"), TextColumn("{task.fields}"), TimeRemainingColumn())
    return Progress(*columns, refresh_per_second=1)
