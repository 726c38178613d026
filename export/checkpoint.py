"""A training checkpoint: weights and what the bundle must say about them. Read without running code from the file.

Layout: {"config": "small", "state_dict": weights of `Tags` (moving average), "meta": {"grid", "intensity":
{"CT": IntensityRule fields, "MR": ...}, "targets", "findings", "training", "quality"}}.
"""

from __future__ import annotations

import json
import pickle  # nosec B403: for its error only
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contract.grid import GridRule, fixed_grid
from contract.intensity import IntensityRule
from contract.sizes import Sizes
from export.networks.build import Tags, build_tags
from export.parity import randomise_zeros

STATED_WRONGLY = (KeyError, TypeError, AttributeError, ValueError)  # what a document of other form raises when read


class CheckpointInvalid(ValueError):
    """The file is no checkpoint of ours, or its weights do not fit the configuration."""


@dataclass(frozen=True)
class Meta:
    """What a bundle says of the weights; fields as in `contract.bundle.Bundle`."""

    grid: GridRule
    intensity: dict[str, IntensityRule]
    targets: tuple[str, ...]
    findings: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model ready to export, with its description."""

    model: Tags
    meta: Meta
    trained: bool

    @property
    def sizes(self) -> Sizes:
        return self.model.sizes


def load_checkpoint(path: Path, sizes: Sizes) -> Checkpoint:
    """Raises: CheckpointInvalid saying what is missing or does not fit."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointInvalid(f"{path} cannot be read as a checkpoint of plain tensors") from error
    try:
        configuration, weights, meta = document["config"], dict(document["state_dict"]), read_meta(document["meta"])
    except STATED_WRONGLY as error:
        raise CheckpointInvalid(f"{path} lacks or misstates a part of config, state_dict, meta: {error}") from error
    if configuration != sizes.name:
        raise CheckpointInvalid(f"{path} holds configuration {configuration!r}, asked for {sizes.name!r}")
    model = build_tags(sizes)
    if (fault := misfit(model, weights)) is not None:
        raise CheckpointInvalid(f"the weights in {path} do not fit configuration {sizes.name!r}: {fault}")
    model.load_state_dict(weights)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise CheckpointInvalid(f"{path} holds weights that are not finite")
    return Checkpoint(model.eval(), meta, trained=True)


def save_checkpoint(document: dict[str, Any], path: Path) -> None:
    """Write and then rename, so that a reader or a crash never sees half a file."""
    torch.save(document, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def misfit(model: Tags, weights: Mapping[str, Any]) -> str | None:
    """The first name or shape that is not the model's, in words."""
    expected = model.state_dict()
    for name, value in expected.items():
        found = weights.get(name)
        if not isinstance(found, Tensor):
            return f"{name} is missing"
        if found.shape != value.shape:
            return f"{name} is {tuple(found.shape)}, the model needs {tuple(value.shape)}"
    unknown = next((name for name in weights if name not in expected), None)
    return None if unknown is None else f"{unknown} is unknown"


def read_meta_file(path: Path) -> Meta:
    """`meta` alone, as JSON, for weights that come without it. Raises: CheckpointInvalid."""
    try:
        return read_meta(json.loads(path.read_text()))
    except (OSError, *STATED_WRONGLY) as error:
        raise CheckpointInvalid(f"{path} lacks or misstates a part of meta: {error}") from error


def read_meta(document: dict[str, Any]) -> Meta:
    """Raises: one of STATED_WRONGLY."""
    return Meta(
        grid=GridRule(**document["grid"]),
        intensity={key: IntensityRule(**rule) for key, rule in document["intensity"].items()},
        targets=tuple(document["targets"]),
        findings=tuple(document["findings"]),
        training=dict(document["training"]),
        quality=dict(document["quality"]),
    )


def untrained(sizes: Sizes, seed: int) -> Checkpoint:
    """Seeded random weights, every path alive: for tests of engines and servers. Its masks mean nothing."""
    torch.manual_seed(seed)
    model = build_tags(sizes)
    randomise_zeros(model, seed)
    meta = Meta(
        grid=fixed_grid(1.0),
        intensity={
            "CT": IntensityRule("window", low=-160.0, high=240.0, mean=40.0, std=80.0),
            "MR": IntensityRule("percentile", low=0.5, high=99.5),
        },
        targets=("liver", "kidney", "pancreas", "lung"),
        findings=("tumour",),
        training={"data": "none", "seed": seed, "steps": 0},
    )
    return Checkpoint(model.eval(), meta, trained=False)
