"""CLIP's text tower: its keys as OpenAI, open_clip and Hugging Face write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from contract.sizes import Sizes
from contract.tensors import CONTEXT_LENGTH, VOCABULARY
from export.upstream.keys import Wanted, linear, merged, mlp, norm


def openai_keys(sizes: Sizes) -> Wanted:
    """OpenAI's names, also open_clip's. Features as wide as the model's tokens, or as the tower (B/32, B/16)."""
    width = sizes.text_width

    def blocks() -> Iterator[Wanted]:
        for index in range(sizes.text_depth):
            block = f"transformer.resblocks.{index}."
            yield norm(f"{block}ln_1", width) | norm(f"{block}ln_2", width)
            yield {f"{block}attn.in_proj_weight": ((3 * width, width),), f"{block}attn.in_proj_bias": ((3 * width,),)}
            yield linear(f"{block}attn.out_proj", width, width)
            yield mlp(f"{block}mlp.c_fc", f"{block}mlp.c_proj", width)

    return {
        "token_embedding.weight": ((VOCABULARY, width),),
        "positional_embedding": ((CONTEXT_LENGTH, width),),
        "text_projection": ((width, sizes.width), (width, width)),
    } | merged(iter((norm("ln_final", width), *blocks())))


def hugging_face_keys(sizes: Sizes) -> Wanted:
    width = sizes.text_width

    def layers() -> Iterator[Wanted]:
        for index in range(sizes.text_depth):
            layer = f"text_model.encoder.layers.{index}."
            for role in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield linear(f"{layer}self_attn.{role}", width, width)
            yield norm(f"{layer}layer_norm1", width) | norm(f"{layer}layer_norm2", width)
            yield mlp(f"{layer}mlp.fc1", f"{layer}mlp.fc2", width)

    return {
        "text_model.embeddings.token_embedding.weight": ((VOCABULARY, width),),
        "text_model.embeddings.position_embedding.weight": ((CONTEXT_LENGTH, width),),
        "text_projection.weight": ((sizes.width, width), (width, width)),
    } | merged(iter((norm("text_model.final_layer_norm", width), *layers())))


def from_hugging_face(weights: Mapping[str, Tensor], sizes: Sizes) -> Iterator[tuple[str, Tensor]]:
    """Under OpenAI's names: q, k and v joined, the projection transposed."""
    embeddings = "text_model.embeddings."
    yield "token_embedding.weight", weights[f"{embeddings}token_embedding.weight"]
    yield "positional_embedding", weights[f"{embeddings}position_embedding.weight"]
    yield "text_projection", weights["text_projection.weight"].T
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names |= {"self_attn.out_proj": "attn.out_proj"}
    for kind in ("weight", "bias"):
        yield f"ln_final.{kind}", weights[f"text_model.final_layer_norm.{kind}"]
        for index in range(sizes.text_depth):
            layer, block = f"text_model.encoder.layers.{index}.", f"resblocks.{index}."
            joined = [weights[f"{layer}self_attn.{role}_proj.{kind}"] for role in "qkv"]
            yield f"{block}attn.in_proj_{kind}", torch.cat(joined)
            for theirs, ours in names.items():
                yield f"{block}{ours}.{kind}", weights[f"{layer}{theirs}.{kind}"]
