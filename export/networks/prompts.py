"""Prompts inside the decoder: clicks and box corners as sampled tokens and as maps, all by matrix products.

Beyond TAGS (which has unlabelled foreground clicks only): label embeddings, boxes, mask prompt, text token and the
prompt maps. Every such path ends in a zero-initialised weight, so that a plain TAGS checkpoint keeps its logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.sizes import Sizes
from contract.tensors import LABEL_BACKGROUND, LABEL_BOX_MAX, LABEL_BOX_MIN, LABEL_FOREGROUND, LABEL_PAD

LABELS = 4  # background, foreground, box minimum, box maximum
CLICK_WIDTHS_VOX = (1.5, 6.0)  # standard deviations of the click maps on the half grid: 3 mm and 12 mm at 1 mm
PLACE_MAPS = 2 * len(CLICK_WIDTHS_VOX) + 2  # foreground and background clicks, box, previous mask
SEEDS = (0, PLACE_MAPS - 2, PLACE_MAPS - 1)  # maps that lie on tumour: narrow foreground clicks, box, previous mask
BOX_MAPS = (SEEDS[1], PLACE_MAPS + 2, PLACE_MAPS + 3)  # zero without a box: its inside, and the image compared with it
GEODESIC_STEPS = 16  # cells of the half grid that a geodesic map can reach: 32 mm at 1 mm
STEP_COST = 0.3  # of one cell, besides what its intensity costs
FIXED_DEVIATION = 0.25  # in normalised intensity: what costs 1 per cell when the click's surroundings do not say
SMALLEST_DEVIATION = 0.08
FARTHEST = 14.0  # geodesic distance beyond which all is alike
CLOSENESS = (1.5, 5.0)  # distances at which a closeness map falls to 1/e
PROMPT_MAPS = PLACE_MAPS + 2 * len(SEEDS) + 2 * (1 + len(CLOSENESS))
MASKED = -1e4


def axis_positions(coords: Tensor, roi: int, grid: int) -> Tensor:
    """(B, P, 3) ROI voxels to fractional indices of a grid with `grid` cells over the same cube (half-pixel)."""
    return (coords + 0.5) * (grid / roi) - 0.5


def sample(features: Tensor, coords: Tensor, roi: int) -> Tensor:
    """Trilinear samples (B, P, C) of (B, C, T, T, T) at (B, P, 3) z, y, x ROI voxels; zero outside.

    Hat functions and one matrix product, equal to grid_sample(align_corners=False, zeros), which TensorRT lacks in 3D.
    """
    grid = features.shape[-1]
    cells = torch.arange(grid, dtype=coords.dtype, device=coords.device)
    hats = functional.relu(1 - (axis_positions(coords, roi, grid)[..., None] - cells).abs())  # (B, P, 3, T)
    z, y, x = hats.unbind(2)
    weights = (z[..., :, None, None] * y[..., None, :, None] * x[..., None, None, :]).flatten(2)  # (B, P, T**3)
    return weights @ features.flatten(2).transpose(1, 2)


def outer_sum(profiles: Tensor, weights: Tensor) -> Tensor:
    """Sum over prompts of the outer product of their axis profiles, at most 1.

    Args: profiles: (B, P, 3, G) along z, y, x. weights: (B, P). Returns: (B, 1, G, G, G).
    """
    z, y, x = profiles.unbind(2)
    plane = (y[..., :, None] * x[..., None, :]).flatten(2)  # (B, P, G * G)
    volume = (z * weights[..., None]).transpose(1, 2) @ plane  # (B, G, G * G)
    grid = z.shape[-1]
    return volume.reshape(-1, 1, grid, grid, grid).clamp(max=1)


def prompt_maps(coords: Tensor, labels: Tensor, mask_prompt: Tensor) -> Tensor:
    """(B, 6, G, G, G) on the half grid: click maps of two widths per label, box interior, previous mask."""
    grid = mask_prompt.shape[-1]
    roi = 2 * grid
    cells = torch.arange(grid, dtype=coords.dtype, device=coords.device)
    offset = cells - axis_positions(coords, roi, grid)[..., None]  # (B, P, 3, G)
    maps = []
    for label in (LABEL_FOREGROUND, LABEL_BACKGROUND):
        chosen = (labels == label).to(coords.dtype)
        maps += [outer_sum(torch.exp(-0.5 * (offset / width) ** 2), chosen) for width in CLICK_WIDTHS_VOX]
    # A box is a minimum corner with its maximum corner in the next slot; its profile is 1 inside, a ramp at the faces.
    inside = (offset[:, :-1] + 0.5).clamp(0, 1) * (0.5 - offset[:, 1:]).clamp(0, 1)
    paired = ((labels[:, :-1] == LABEL_BOX_MIN) & (labels[:, 1:] == LABEL_BOX_MAX)).to(coords.dtype)
    return torch.cat([*maps, outer_sum(inside, paired), mask_prompt], dim=1)


def intensity_maps(maps: Tensor, image: Tensor) -> Tensor:
    """(B, 12, G, G, G): what the image looks like where prompts point, compared with every cell.

    Per seed map the signed difference from the mean intensity under it and the size of the smoothed difference, zero
    when the seed is absent. Then geodesic maps of the foreground clicks (after DeepIGeoS, Wang et al. 2018): distance
    and closeness along the path that meets least unlike intensity, by the click's own deviation and by a fixed one.
    Args: maps: (B, 6, G, G, G) from `prompt_maps`. image: (B, 1, G, G, G).
    """
    smooth = functional.avg_pool3d(image, 3, stride=1, padding=1, count_include_pad=False)
    found = []
    for seed in SEEDS:
        weight = maps[:, seed : seed + 1] ** 2
        total = weight.sum((2, 3, 4), keepdim=True)
        mean = (weight * image).sum((2, 3, 4), keepdim=True) / total.clamp(min=1e-3)
        present = total.clamp(max=1)
        found += [present * (image - mean), present * (smooth - mean).abs()]
    clicks, difference = maps[:, :1], found[1]
    weight = clicks**2
    total = weight.sum((2, 3, 4), keepdim=True).clamp(min=1e-3)
    deviation = ((weight * difference**2).sum((2, 3, 4), keepdim=True) / total).sqrt() + SMALLEST_DEVIATION
    cost = STEP_COST + torch.cat([difference / deviation, difference / FIXED_DEVIATION], dim=1)
    distance = geodesic(clicks.expand(-1, 2, -1, -1, -1), torch.exp(-cost))
    closeness = [torch.exp(-distance / scale) for scale in CLOSENESS]
    return torch.cat([*found, distance / FARTHEST, *closeness], dim=1)


def geodesic(start: Tensor, pass_on: Tensor) -> Tensor:
    """(B, C, G, G, G) distance, 0 .. FARTHEST: -log of the largest product of `pass_on` along a path from `start`."""
    reached = start
    for _ in range(GEODESIC_STEPS):
        spread = reached
        for kernel in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
            spread = functional.max_pool3d(spread, kernel, stride=1, padding=[side // 2 for side in kernel])
        reached = torch.maximum(start, spread * pass_on)
    return -reached.clamp(min=math.exp(-FARTHEST)).log()


class Attention(nn.Module):
    """Multi-head attention with an inner width, as SAM's decoder has it."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """q: (B, N, C); k: (B, M, C), also the values; bias: (B, 1, 1, M) added to the logits."""

        def split(x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

        query, key, value = split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(k))
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = torch.softmax(logits if bias is None else logits + bias, dim=-1)
        return self.out_proj((weights @ value).transpose(1, 2).flatten(2))


class TwoWayLayer(nn.Module):
    """Global queries gather from prompts; image cells then read the queries (3DSAM-adapter's prompt transformer)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.neck
        self.global_query = nn.Parameter(torch.randn(1, sizes.queries, width))
        self.self_attn = Attention(width, sizes.prompt_heads, width)
        self.cross_attn_image_to_token = Attention(width, sizes.prompt_heads, width // 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        self.mlp = nn.ModuleDict(
            {"lin1": nn.Linear(width, sizes.prompt_mlp), "lin2": nn.Linear(sizes.prompt_mlp, width)}
        )

    def forward(self, cells: Tensor, tokens: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """cells: (B, T**3, C); tokens: (B, N, C); bias: (B, 1, 1, queries + N), -1e4 where a token is off."""
        count = self.global_query.shape[1]
        queries = torch.cat([self.global_query.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        queries = self.norm2(queries + self.norm1(self.self_attn(queries, queries, bias)))
        tokens, queries = queries[:, count:], queries[:, :count]
        hidden = functional.relu(self.mlp["lin1"](queries))
        queries = self.norm3(queries + self.mlp["lin2"](hidden))
        return self.norm4(cells + self.cross_attn_image_to_token(cells, queries)), tokens


class PromptEncoder(nn.Module):
    """The deepest feature level, conditioned on every prompt."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch = sizes.patch
        self.label_embed = nn.Parameter(torch.zeros(LABELS, sizes.neck))
        self.text_token = nn.Linear(sizes.width, sizes.neck)
        self.map_embed = nn.Conv3d(PROMPT_MAPS + 1, sizes.neck, 3, padding=1, bias=False)
        nn.init.zeros_(self.map_embed.weight)
        self.layers = nn.ModuleList(TwoWayLayer(sizes) for _ in range(2))

    def forward(
        self, feature: Tensor, coords: Tensor, labels: Tensor, maps: Tensor, semantic: Tensor, text: Tensor, on: Tensor
    ) -> Tensor:
        """feature: (B, C, T, T, T); maps: (B, 18, half...); semantic: (B, 1, T, T, T), zero when text is off;
        text: (B, E) foreground feature; on: (B, 1), 1 when text counts. Returns: (B, C, T, T, T)."""
        codes = torch.arange(LABELS, dtype=labels.dtype, device=labels.device)
        one_hot = (labels[..., None] == codes).to(feature.dtype)
        clicks = sample(feature, coords, self.patch * feature.shape[-1]) + one_hot @ self.label_embed
        tokens = torch.cat([clicks, self.text_token(text)[:, None]], dim=1)
        used = torch.cat([(labels != LABEL_PAD).to(feature.dtype), on], dim=1)  # (B, P + 1)
        always = torch.ones_like(used[:, :1]).expand(-1, self.layers[0].global_query.shape[1])
        bias = (MASKED * (1 - torch.cat([always, used], dim=1)))[:, None, None]
        pooled = functional.avg_pool3d(maps, self.patch // 2)
        grid = feature.shape[-1]
        cells = (feature + self.map_embed(torch.cat([pooled, semantic], dim=1))).flatten(2).transpose(1, 2)
        for layer in self.layers:
            cells, tokens = layer(cells, tokens, bias)
        return cells.transpose(1, 2).reshape(-1, feature.shape[1], grid, grid, grid)
