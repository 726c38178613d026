"""TAGS as its description has it, without any rewrite: the reference that our networks and loaders are held to.

Written from the papers' description, in plain operations: every slice upsampled and patch-embedded, relative positions
interpolated and added, shift regions masked by -100, `grid_sample` for clicks, levels upsampled before convolution.
Axes inside are H, W, D as upstream has them; weights are a checkpoint's, by upstream's names. Slow, and only for tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from contract.sizes import Sizes

Weights = dict[str, Tensor]
NORM_EPS = 1e-6


def part(weights: Weights, prefix: str) -> Weights:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def layer_norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def plain_stem(volume: Tensor, weights: Weights, tokens: int) -> Tensor:
    """(3, D, H, W) to tokens (H, W, D, E): upsampled 16 tokens / ROI times, SAM's patches, 16 slices to one."""
    upsampling = 16 * tokens // volume.shape[-1]
    fine = functional.interpolate(volume[None], scale_factor=upsampling, mode="trilinear", align_corners=False)[0]
    slices = fine.transpose(0, 1)  # (fine D, 3, fine H, fine W)
    patches = functional.conv2d(slices, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=16)
    columns = patches.permute(1, 2, 3, 0)[None]  # (1, E, H, W, fine D)
    kernel, bias = weights["slice_embed.weight"], weights["slice_embed.bias"]
    cells = functional.conv3d(columns, kernel, bias, stride=(1, 1, 16), groups=kernel.shape[0])
    return cells[0].permute(1, 2, 3, 0)


def partition(x: Tensor, window: int) -> Tensor:
    """(H, W, D, C) to (windows, window**3, C)."""
    n = x.shape[0] // window
    x = x.reshape(n, window, n, window, n, window, -1).permute(0, 2, 4, 1, 3, 5, 6)
    return x.reshape(n**3, window**3, -1)


def departition(x: Tensor, window: int, tokens: int) -> Tensor:
    n = tokens // window
    x = x.reshape(n, n, n, window, window, window, -1).permute(0, 3, 1, 4, 2, 5, 6)
    return x.reshape(tokens, tokens, tokens, -1)


def shift_mask(tokens: int, window: int) -> Tensor:
    """(windows, window**3, window**3): -100 between the 27 regions that a shift brings together."""
    regions, count = torch.zeros(tokens, tokens, tokens, 1), 0
    cuts = (slice(0, -window), slice(-window, -(window // 2)), slice(-(window // 2), None))
    for h in cuts:
        for w in cuts:
            for d in cuts:
                regions[h, w, d] = count
                count += 1
    labels = partition(regions, window)[..., 0]
    return -100.0 * (labels[:, :, None] != labels[:, None]).float()


def plain_attention(x: Tensor, weights: Weights, heads: int, window: int, mask: Tensor | None) -> Tensor:
    """(windows, window**3, E), with decomposed relative positions from the unscaled queries."""
    n, length, width = x.shape
    head = width // heads
    qkv = linear(x, weights, "qkv").reshape(n, length, 3, heads, head).permute(2, 0, 3, 1, 4)
    q, k, v = qkv
    logits = (q * head**-0.5) @ k.transpose(-1, -2)
    cube = q.reshape(n, heads, window, window, window, head)
    offsets = torch.arange(window)[:, None] - torch.arange(window)[None] + window - 1
    sums = logits.reshape(n, heads, *[window] * 6)
    for axis, name in enumerate("hwd"):
        table = weights[f"rel_pos_{name}"]
        table = functional.interpolate(table.T[None], size=2 * window - 1, mode="linear")[0].T[offsets]
        letter = "hwd"[axis]
        term = torch.einsum(f"nmhwdc,{letter}kc->nmhwdk", cube, table)
        shape = [n, heads, window, window, window, 1, 1, 1]
        shape[5 + axis] = window
        sums = sums + weights["lr"] * term.reshape(shape)
    logits = sums.reshape(n, heads, length, length)
    if mask is not None:
        logits = logits + mask[:, None]
    out = torch.softmax(logits, dim=-1) @ v
    return linear(out.transpose(1, 2).reshape(n, length, width), weights, "proj")


def plain_block(x: Tensor, weights: Weights, sizes: Sizes, shifted: bool) -> Tensor:
    """(H, W, D, E)."""
    hidden = functional.relu(linear(x, weights, "adapter.linear1")).permute(3, 0, 1, 2)[None]
    kernel, bias = weights["adapter.conv.weight"], weights["adapter.conv.bias"]
    hidden = functional.relu(functional.conv3d(hidden, kernel, bias, padding=1, groups=kernel.shape[0]))
    x = x + functional.relu(linear(hidden[0].permute(1, 2, 3, 0), weights, "adapter.linear2"))
    attended, half = layer_norm(x, weights, "norm1", NORM_EPS), sizes.window // 2
    if shifted:
        attended = torch.roll(attended, (-half,) * 3, (0, 1, 2))
    mask = shift_mask(sizes.tokens, sizes.window) if shifted else None
    attended = plain_attention(
        partition(attended, sizes.window), part(weights, "attn."), sizes.heads, sizes.window, mask
    )
    attended = departition(attended, sizes.window, sizes.tokens)
    if shifted:
        attended = torch.roll(attended, (half,) * 3, (0, 1, 2))
    x = x + attended
    hidden = functional.gelu(linear(layer_norm(x, weights, "norm2", NORM_EPS), weights, "mlp.lin1"))
    return x + linear(hidden, weights, "mlp.lin2")


def plain_neck(x: Tensor, weights: Weights) -> Tensor:
    """(H, W, D, E) to (C, H, W, D); norms over channels, written out."""
    x = functional.conv3d(x.permute(3, 0, 1, 2)[None], weights["0.weight"])
    x = channel_norm(x, weights, "1")
    x = functional.conv3d(x, weights["2.weight"], padding=1)
    return channel_norm(x, weights, "3")[0]


def channel_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    mean = x.mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + NORM_EPS)
    return weights[f"{name}.weight"][:, None, None, None] * x + weights[f"{name}.bias"][:, None, None, None]


def plain_encoder(volume: Tensor, weights: Weights, sizes: Sizes) -> list[Tensor]:
    """(3, D, H, W) to four levels (C, H, W, D)."""
    x = plain_stem(volume, weights, sizes.tokens)
    pooled = functional.avg_pool2d(weights["pos_embed"].permute(0, 3, 1, 2), 64 // sizes.tokens)[0]
    x = x + pooled.permute(1, 2, 0)[:, :, None] + weights["depth_embed"][0]
    levels = []
    for index in range(sizes.depth):
        x = plain_block(x, part(weights, f"blocks.{index}."), sizes, shifted=index % 2 == 0)
        if (index + 1) % (sizes.depth // 4) == 0:
            level = len(levels)
            align = weights.get(f"alignment_adapters.{level}.fc1.0.weight")
            if align is not None:
                x = 0.8 * x + 0.2 * functional.leaky_relu(functional.linear(x, align), 0.01)
            levels.append(plain_neck(x, part(weights, f"neck_3d.{level}.")))
    return levels


def multi_head(q: Tensor, k: Tensor, weights: Weights, heads: int) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], heads, -1).transpose(0, 1)

    query, key, value = (split(linear(x, weights, f"{n}_proj")) for x, n in ((q, "q"), (k, "k"), (k, "v")))
    chosen = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
    return linear((chosen @ value).transpose(0, 1).flatten(1), weights, "out_proj")


def plain_prompts(feature: Tensor, clicks_dhw: Tensor, weights: Weights, sizes: Sizes) -> Tensor:
    """(C, H, W, D) and clicks (N, 3) in ROI voxels to the prompted level. Only as many tokens as clicks: no padding."""
    grid = (clicks_dhw + 0.5) * 2 / sizes.roi - 1
    place = grid[None, :, None, None]  # grid_sample's last axis runs innermost axis first: here D, W, H of (H, W, D)
    sampled = functional.grid_sample(
        feature[None], place[..., [0, 2, 1]], mode="bilinear", padding_mode="zeros", align_corners=False
    )
    tokens = sampled[0, :, :, 0, 0].T
    cells = feature.flatten(1).T
    for index in range(2):
        layer = part(weights, f"transformer.layers.{index}.")
        queries = torch.cat([layer["global_query"][0], tokens])
        attended = multi_head(queries, queries, part(layer, "self_attn."), sizes.prompt_heads)
        queries = layer_norm(queries + layer_norm(attended, layer, "norm1", 1e-5), layer, "norm2", 1e-5)
        queries, tokens = queries[: sizes.queries], queries[sizes.queries :]
        hidden = functional.relu(linear(queries, layer, "mlp.lin1"))
        queries = layer_norm(queries + linear(hidden, layer, "mlp.lin2"), layer, "norm3", 1e-5)
        read = multi_head(cells, queries, part(layer, "cross_attn_image_to_token."), sizes.prompt_heads)
        cells = layer_norm(cells + read, layer, "norm4", 1e-5)
    return cells.T.reshape(feature.shape)


def plain_decoder(levels: list[Tensor], image: Tensor, weights: Weights) -> Tensor:
    """Levels (C, H, W, D) and image (D, H, W) to logits (2, D, H, W)."""
    half = image.shape[-1] // 2
    heads = []
    for level, feature in enumerate(levels):
        x = feature[None]
        for place in (0, 3):
            x = functional.conv3d(x, weights[f"mlahead.head{level + 2}.{place}.weight"], padding=1)
            x = functional.relu(functional.instance_norm(x))
        heads.append(functional.interpolate(x, size=(half,) * 3, mode="trilinear", align_corners=True))
    small = functional.interpolate(image.permute(1, 2, 0)[None, None], scale_factor=0.5, mode="trilinear")
    x = functional.conv3d(torch.cat([*heads, small], dim=1), weights["cls.0.weight"], padding=1)
    x = functional.conv3d(functional.relu(functional.instance_norm(x)), weights["cls.3.weight"], padding=1)
    x = functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
    return x[0].permute(0, 3, 1, 2)


def plain_logits(checkpoint: dict[str, Any], sizes: Sizes, image: Tensor, organ_mask: Tensor, clicks: Tensor) -> Tensor:
    """Foreground minus background, (D, H, W). Args: image, organ_mask: (D, H, W). clicks: (N, 3) voxels, z y x."""
    levels = plain_encoder(torch.stack([image, image, organ_mask]), checkpoint["encoder_dict"], sizes)
    levels[3] = plain_prompts(levels[3], clicks, checkpoint["feature_dict"][3], sizes)
    logits = plain_decoder(levels, image, checkpoint["decoder_dict"])
    return logits[1] - logits[0]
