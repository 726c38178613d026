"""Tensors at the networks' border: built from domain types, and checked against the contract in both directions.

Every dict here is by tensor name, with batch axis 1. Shared by both engines, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from contract.tensors import NetworkSpec, TensorSpec
from service.domain.prompts import PlacedPrompts
from service.errors import ModelContractBroken
from service.inference.engine import Embeddings
from service.inference.tokens import tokenise

Tensors: TypeAlias = dict[str, np.ndarray]


def image_tensors(image: np.ndarray, organ_mask: np.ndarray) -> Tensors:
    """image, organ_mask: (D, H, W) float32 on the ROI grid, to (1, 1, D, H, W) each."""
    return {"image": image[np.newaxis, np.newaxis], "organ_mask": organ_mask[np.newaxis, np.newaxis]}


def text_tensors(phrases: tuple[str, str]) -> Tensors:
    input_ids, eot_index = tokenise(phrases)
    return {"input_ids": input_ids, "eot_index": eot_index}


def prompt_tensors(prompts: PlacedPrompts) -> Tensors:
    return {
        "point_coords": prompts.point_coords[np.newaxis],
        "point_labels": prompts.point_labels[np.newaxis],
        "mask_prompt": prompts.mask_prompt[np.newaxis],
        "use_text": np.array([[prompts.use_text]], np.float32),
    }


def decoder_tensors(embeddings: Embeddings, text_features: np.ndarray, prompts: PlacedPrompts) -> Tensors:
    """text_features: (2, width) float32."""
    return embeddings.tensors | {"text_features": text_features[np.newaxis]} | prompt_tensors(prompts)


def zeros(specs: tuple[TensorSpec, ...]) -> Tensors:
    """A canary's input: valid for every network, and its answer is of no interest beyond being one."""
    return {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in specs}


def checked(network: str, specs: tuple[TensorSpec, ...], tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors in the contract's order. Raises: ModelContractBroken: one is absent, has another dtype or shape, or
    holds NaN or infinity, which would otherwise become an empty mask."""
    for spec in specs:
        if spec.name not in tensors:
            raise ModelContractBroken(f"{network}: {spec.name} is missing")
        try:
            array = spec.check(tensors[spec.name])
        except ValueError as error:  # its text names dtype and shape only
            raise ModelContractBroken(f"{network}: {error}") from error
        if array.shape[0] != 1:
            raise ModelContractBroken(f"{network}: {spec.name} has batch {array.shape[0]} instead of 1")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelContractBroken(f"{network}: {spec.name} holds values that are not finite")
    return {spec.name: tensors[spec.name] for spec in specs}


def embeddings_from(outputs: Tensors) -> Embeddings:
    """The encoder's outputs, read-only: several decodes may share them."""
    for array in outputs.values():
        array.flags.writeable = False
    return Embeddings(outputs)


def logits_from(outputs: Tensors) -> np.ndarray:
    """(1, 1, D, H, W) to (D, H, W)."""
    logits: np.ndarray = outputs["mask_logits"][0, 0]
    return logits


Declared: TypeAlias = tuple[str, tuple[int | str, ...]]


def check_contract(spec: NetworkSpec, declared: Mapping[str, Declared]) -> None:
    """Args: declared: what an engine says of itself: tensor name -> (numpy dtype name, shape without the batch axis).
        A symbolic axis (a name, which ONNX allows for outputs) fits here and is checked on each answer instead.
    Raises: ModelContractBroken naming the first tensor that is absent or differs."""
    tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    for name, tensor in tensors.items():
        if name not in declared:
            raise ModelContractBroken(f"{spec.name}: the engine has no {name}")
        if not _fits(tensor, declared[name]):
            raise ModelContractBroken(
                f"{spec.name}: {name} should be {tensor.dtype} {tensor.shape}, the engine has {declared[name]}"
            )
    if surplus := declared.keys() - tensors.keys():
        raise ModelContractBroken(f"{spec.name}: the contract does not know {', '.join(sorted(surplus))}")


def _fits(tensor: TensorSpec, declared: Declared) -> bool:
    dtype, shape = declared
    return (
        dtype == tensor.dtype
        and len(shape) == len(tensor.shape)
        and all(isinstance(found, str) or found == size for found, size in zip(shape, tensor.shape, strict=True))
    )
