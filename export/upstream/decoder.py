"""The decoder of 3DSAM-adapter and TAGS: its keys, and its weights as those of our heads and `fusion_decoder`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from contract.sizes import Sizes
from contract.tensors import FEATURE_LEVELS
from export.networks.decoder import SUB_VOXELS
from export.upstream.encoder import depth_first
from export.upstream.keys import Wanted, linear, merged, norm

PROMPTED_LEVEL = 3  # of the four prompt encoders in a checkpoint, the only one that is used


def prompt_keys(sizes: Sizes) -> Wanted:
    """3DSAM-adapter's prompt transformer."""
    width = sizes.neck

    def layers() -> Iterator[Wanted]:
        for index in range(2):
            layer = f"transformer.layers.{index}."
            yield {f"{layer}global_query": ((1, sizes.queries, width),)}
            for attention, inner in (("self_attn", width), ("cross_attn_image_to_token", width // 2)):
                for role in "qkv":
                    yield linear(f"{layer}{attention}.{role}_proj", inner, width)
                yield linear(f"{layer}{attention}.out_proj", width, inner)
            for number in range(1, 5):
                yield norm(f"{layer}norm{number}", width)
            yield linear(f"{layer}mlp.lin1", sizes.prompt_mlp, width)
            yield linear(f"{layer}mlp.lin2", width, sizes.prompt_mlp)

    return merged(layers())


def decoder_keys(sizes: Sizes) -> Wanted:
    neck, channels = sizes.neck, sizes.aggregation
    heads = {f"mlahead.head{level + 2}.0.weight": ((channels, neck, 3, 3, 3),) for level in range(FEATURE_LEVELS)}
    heads |= {f"mlahead.head{level + 2}.3.weight": ((channels, channels, 3, 3, 3),) for level in range(FEATURE_LEVELS)}
    inputs = FEATURE_LEVELS * channels + 1  # the levels, and the image on the half grid
    return heads | {"cls.0.weight": ((channels, inputs, 3, 3, 3),), "cls.3.weight": ((2, channels, 3, 3, 3),)}


def decoder_parameters(decoder: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Heads of the first levels stand in our encoder, that of the prompted one in the decoder. Upstream's image on the
    half grid is the mean of our eight sub-voxel channels; its two logits are our one, foreground minus background."""
    for level in range(FEATURE_LEVELS):
        head = f"sam_encoder.mlahead.{level}" if level < PROMPTED_LEVEL else "fusion_decoder.mlahead"
        for place, name in ((0, "conv1"), (3, "conv2")):
            yield f"{head}.{name}.weight", depth_first(decoder[f"mlahead.head{level + 2}.{place}.weight"])
    mixed, logits = depth_first(decoder["cls.0.weight"]), depth_first(decoder["cls.3.weight"])
    image = (mixed[:, -1:] / SUB_VOXELS).expand(-1, SUB_VOXELS, -1, -1, -1)
    yield "fusion_decoder.cls1.weight", torch.cat([mixed[:, :-1], image, torch.zeros_like(mixed[:, :1])], dim=1)
    yield "fusion_decoder.coarse.weight", logits[1:] - logits[:1]
