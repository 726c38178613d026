"""The image encoder of SAM, 3DSAM-adapter and TAGS: its keys, and its weights as those of our `sam_encoder`.

Upstream's 3D kernels and tables run over H, W, D; ours over D, H, W.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from contract.sizes import Sizes
from contract.tensors import FEATURE_LEVELS
from export.networks.encoder import ALIGN_BLEND
from export.networks.stem import SAM_PATCH, fold
from export.upstream.keys import PretrainedInvalid, Shape, Wanted, linear, merged, mlp, norm

SAM_GRID = 64  # tokens per side of SAM's position embedding
SAM_WINDOW, SAM_GLOBAL = 27, 127  # rows of its relative position tables: windows of 14, and 64 in each third block


def table_shapes(sizes: Sizes, block: int) -> tuple[Shape, ...]:
    """Of a relative position table: SAM attends globally in each third block."""
    return ((SAM_GLOBAL if (block + 1) % 3 == 0 else SAM_WINDOW, sizes.width // sizes.heads),)


def trunk_keys(sizes: Sizes) -> Wanted:
    """SAM's image encoder without its neck."""
    width = sizes.width

    def blocks() -> Iterator[Wanted]:
        for index in range(sizes.depth):
            block = f"blocks.{index}."
            yield norm(f"{block}norm1", width) | norm(f"{block}norm2", width)
            yield linear(f"{block}attn.qkv", 3 * width, width) | linear(f"{block}attn.proj", width, width)
            yield {f"{block}attn.rel_pos_{axis}": table_shapes(sizes, index) for axis in "hw"}
            yield mlp(f"{block}mlp.lin1", f"{block}mlp.lin2", width)

    return {
        "pos_embed": ((1, SAM_GRID, SAM_GRID, width),),
        "patch_embed.proj.weight": ((width, 3, SAM_PATCH, SAM_PATCH),),
        "patch_embed.proj.bias": ((width,),),
    } | merged(blocks())


def adapted_keys(sizes: Sizes) -> Wanted:
    """What 3DSAM-adapter adds to the encoder."""
    width, hidden, neck = sizes.width, sizes.adapter, sizes.neck

    def parts() -> Iterator[Wanted]:
        yield {"depth_embed": ((1, sizes.tokens, width),)}
        yield {"slice_embed.weight": ((width, 1, 1, 1, SAM_PATCH),), "slice_embed.bias": ((width,),)}
        for index in range(sizes.depth):
            block = f"blocks.{index}."
            yield linear(f"{block}adapter.linear1", hidden, width) | linear(f"{block}adapter.linear2", width, hidden)
            yield {f"{block}adapter.conv.weight": ((hidden, 1, 3, 3, 3),), f"{block}adapter.conv.bias": ((hidden,),)}
            yield {f"{block}attn.rel_pos_d": table_shapes(sizes, index), f"{block}attn.lr": ((), (1,))}
        for level in range(FEATURE_LEVELS):
            yield {f"neck_3d.{level}.0.weight": ((neck, width, 1, 1, 1),)}
            yield {f"neck_3d.{level}.2.weight": ((neck, neck, 3, 3, 3),)}
            yield norm(f"neck_3d.{level}.1", neck) | norm(f"neck_3d.{level}.3", neck)

    return merged(parts())


def aligned_keys(sizes: Sizes) -> Wanted:
    """What TAGS adds to the encoder."""
    shape = (sizes.width, sizes.width)
    return {f"alignment_adapters.{level}.fc1.0.weight": (shape,) for level in range(FEATURE_LEVELS)}


def trunk_parameters(
    trunk: Mapping[str, Tensor], sizes: Sizes, slice_weight: Tensor, slice_bias: Tensor
) -> dict[str, Tensor]:
    """SAM's part of our encoder: the stem folded, positions pooled, relative positions at our window's length."""
    weight, bias = fold(
        trunk["patch_embed.proj.weight"], trunk["patch_embed.proj.bias"], slice_weight, slice_bias, sizes.patch
    )
    pooled = functional.avg_pool2d(trunk["pos_embed"].permute(0, 3, 1, 2), SAM_GRID // sizes.tokens)
    filled = {"patch_embed.proj.weight": weight, "patch_embed.proj.bias": bias, "pos_embed": pooled.permute(0, 2, 3, 1)}
    for key, value in trunk.items():
        if key.startswith("blocks.") and ".rel_pos_" not in key:
            filled[key] = value
        elif key.startswith("blocks."):
            filled[key] = relative_positions(value, sizes.window)
    return filled


def relative_positions(table: Tensor, window: int) -> Tensor:
    """(L, d) interpolated to (2 window - 1, d), as upstream does at every forward pass."""
    return functional.interpolate(table.T[None], size=2 * window - 1, mode="linear", align_corners=False)[0].T


def encoder_parameters(encoder: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """Raises: PretrainedInvalid: `lr` is not 1. It scales relative positions and was never trained; what another value
    would mean is not known."""
    if not all(bool((value == 1).all()) for key, value in encoder.items() if key.endswith(".attn.lr")):
        raise PretrainedInvalid("an attn.lr differs from 1, at which it is frozen in TAGS and 3DSAM-adapter")
    trunk = {key: encoder[key] for key in trunk_keys(sizes)}
    slices = encoder["slice_embed.weight"].flatten(1), encoder["slice_embed.bias"]
    filled = trunk_parameters(trunk, sizes, *slices) | {"depth_embed": encoder["depth_embed"]}
    names = {".0.weight": ".conv1.weight", ".2.weight": ".conv2.weight"}
    for key, value in encoder.items():
        if ".adapter." in key:
            filled[key] = depth_first(value) if key.endswith("conv.weight") else value
        elif key.endswith("rel_pos_d"):
            filled[key] = relative_positions(value, sizes.window)
        elif key.startswith("alignment_adapters."):
            filled[key.replace("fc1.0", "fc1")] = value
        elif key.startswith("neck_3d."):
            level, _, rest = key.removeprefix("neck_3d.").partition(".")
            name = names.get(f".{rest}") or f".norm{(int(rest[0]) + 1) // 2}{rest[1:]}"
            filled[f"neck_3d.{level}{name}"] = depth_first(value) if value.ndim == 5 else value
    return filled


def depth_first(kernel: Tensor) -> Tensor:
    """(O, I, H, W, D) to (O, I, D, H, W)."""
    return kernel.permute(0, 1, 4, 2, 3)


def absorb_blend(filled: dict[str, Tensor], sizes: Sizes) -> None:
    """No alignment: 0.8 x + 0.2 a with a = 0 leaves the stream 0.8 times as large after each level. What a block adds
    to it shrinks likewise; norms do not see the factor (but for their epsilon), ReLU keeps it. In place."""
    stage = sizes.depth // FEATURE_LEVELS
    for level in range(FEATURE_LEVELS):
        filled[f"sam_encoder.alignment_adapters.{level}.fc1.weight"] = torch.zeros(sizes.width, sizes.width)
    for index in range(stage, sizes.depth):
        scale, block = (1 - ALIGN_BLEND) ** (index // stage), f"sam_encoder.blocks.{index}."
        filled[f"{block}adapter.linear1.weight"] = filled[f"{block}adapter.linear1.weight"] / scale
        for name in ("adapter.linear2", "attn.proj", "mlp.lin2"):
            for kind in ("weight", "bias"):
                filled[f"{block}{name}.{kind}"] = filled[f"{block}{name}.{kind}"] * scale
