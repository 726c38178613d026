"""`sam_encoder`: SAM's image encoder adapted to 3D, with anatomy as a second channel and text-aligned features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.sizes import Sizes
from contract.tensors import FEATURE_LEVELS
from export.networks.attention import WindowAttention, shift_sides, unwindows, windows
from export.networks.norms import instance_norm
from export.networks.stem import FoldedStem

ALIGN_BLEND = 0.2  # TAGS: x <- 0.8 x + 0.2 aligned
LAYER_NORM_EPS = 1e-6  # SAM's


class Adapter3d(nn.Module):
    """3DSAM-adapter's spatial adapter: down, depth-wise 3D convolution, up, residual. (B, D, H, W, C) throughout."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.conv = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.linear1(x)).permute(0, 4, 1, 2, 3)
        hidden = functional.relu(self.conv(hidden)).permute(0, 2, 3, 4, 1)
        return x + functional.relu(self.linear2(hidden))


class MLPBlock(nn.Module):
    """SAM's two-layer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(functional.gelu(self.lin1(x)))


class Block3d(nn.Module):
    """Adapter, then window attention and MLP. Even blocks shift their windows by half."""

    def __init__(self, sizes: Sizes, shifted: bool) -> None:
        super().__init__()
        self.window = sizes.window
        self.adapter = Adapter3d(sizes.width, sizes.adapter)
        self.norm1 = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPS)
        half_precision = sizes.feature_dtype == "float16"
        self.attn = WindowAttention(sizes.width, sizes.heads, sizes.window, half_precision=half_precision)
        self.norm2 = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPS)
        self.mlp = MLPBlock(sizes.width)
        self.shifted = shifted
        self.register_buffer("sides", shift_sides(sizes.tokens, sizes.window) if shifted else None, persistent=False)
        self.tokens = sizes.tokens

    def forward(self, x: Tensor) -> Tensor:
        x = self.adapter(x)
        attended = self.norm1(x)
        window = min(self.window, x.shape[1])
        shift = window // 2 if self.shifted else 0
        if shift:
            attended = torch.roll(attended, [-shift] * 3, dims=[1, 2, 3])
        attended = self.attn(windows(attended, window), self.region_sides(x.shape[1], window))
        attended = unwindows(attended, window, x.shape[1])
        if shift:
            attended = torch.roll(attended, [shift] * 3, dims=[1, 2, 3])
        x = x + attended
        return x + self.mlp(self.norm2(x))

    def region_sides(self, tokens: int, window: int) -> Tensor | None:
        """The shift's sides for a cube of `tokens`: the stored ones, or others when training on smaller regions."""
        if self.sides is None or tokens == self.tokens:
            return self.sides
        return shift_sides(tokens, window).to(self.sides)


class AlignmentAdapter(nn.Module):
    """TAGS' alignment adapter: features drawn toward CLIP's text space, blended back into the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.fc1(x), 0.01)


class Neck3d(nn.Module):
    """(B, T, T, T, E) to one feature level (B, neck, T, T, T)."""

    def __init__(self, width: int, neck: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width, neck, 1, bias=False)
        self.norm1 = nn.LayerNorm(neck, eps=LAYER_NORM_EPS)
        self.conv2 = nn.Conv3d(neck, neck, 3, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(neck, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1))
        x = self.norm2(self.conv2(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1))
        return x.permute(0, 4, 1, 2, 3)


class AggregationHead(nn.Module):
    """One level of the multi-level aggregation: two convolutions on the token grid."""

    def __init__(self, neck: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(neck, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)

    def forward(self, feature: Tensor) -> Tensor:
        x = functional.relu(instance_norm(self.conv1(feature)))
        return functional.relu(instance_norm(self.conv2(x)))


class SamEncoder(nn.Module):
    """Image and organ mask of one region of interest to four feature levels. Independent of clicks and text."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = sizes.tokens
        self.stage = sizes.depth // FEATURE_LEVELS  # blocks between two levels
        self.patch_embed = FoldedStem(sizes.patch, sizes.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.tokens, sizes.tokens, sizes.width))  # in plane
        self.depth_embed = nn.Parameter(torch.zeros(1, sizes.tokens, sizes.width))
        self.blocks = nn.ModuleList(Block3d(sizes, shifted=index % 2 == 0) for index in range(sizes.depth))
        self.alignment_adapters = nn.ModuleList(AlignmentAdapter(sizes.width) for _ in range(FEATURE_LEVELS))
        self.neck_3d = nn.ModuleList(Neck3d(sizes.width, sizes.neck) for _ in range(FEATURE_LEVELS))
        # Heads of the levels that no prompt changes: their answers are smaller than their levels, and cached with them
        self.mlahead = nn.ModuleList(AggregationHead(sizes.neck, sizes.aggregation) for _ in range(FEATURE_LEVELS - 1))
        self.feature_dtype = getattr(torch, sizes.feature_dtype)

    def forward(self, image: Tensor, organ_mask: Tensor) -> tuple[Tensor, ...]:
        """image, organ_mask: (B, 1, S, S, S). Returns: feat_0 .. feat_3, align_feat, image_detail (see contract)."""
        x = self.patch_embed(image, organ_mask)
        x = x + self.central(self.pos_embed, x.shape[2], [1, 2])[:, None]
        x = x + self.central(self.depth_embed, x.shape[1], [1])[:, :, None, None]
        levels: list[Tensor] = []
        aligned = x
        for index, block in enumerate(self.blocks):
            x = block(x)
            if (index + 1) % self.stage == 0:
                level = len(levels)
                aligned = self.alignment_adapters[level](x)
                x = (1 - ALIGN_BLEND) * x + ALIGN_BLEND * aligned
                levels.append(self.neck_3d[level](x))
        heads = [head(level) for head, level in zip(self.mlahead, levels[:-1], strict=True)]
        levels = [level.to(self.feature_dtype) for level in (*heads, levels[-1])]
        aligned = functional.normalize(aligned, dim=-1).permute(0, 4, 1, 2, 3).to(self.feature_dtype)
        detail = torch.cat([space_to_depth(image), functional.avg_pool3d(organ_mask, 2)], dim=1)
        return (*levels, aligned, detail)

    def central(self, positions: Tensor, tokens: int, axes: list[int]) -> Tensor:
        """The middle `tokens` of the position embeddings: all of them, but for training on smaller regions."""
        for axis in axes:
            if tokens != self.tokens:
                positions = positions.narrow(axis, (self.tokens - tokens) // 2, tokens)
        return positions


def space_to_depth(image: Tensor) -> Tensor:
    """(B, 1, S, S, S) to (B, 8, S/2, S/2, S/2): voxel (2z+a, 2y+b, 2x+c) goes to channel 4a + 2b + c."""
    half = image.shape[-1] // 2
    cells = image.reshape(-1, half, 2, half, 2, half, 2)
    return cells.permute(0, 2, 4, 6, 1, 3, 5).reshape(-1, 8, half, half, half)


def depth_to_space(cells: Tensor) -> Tensor:
    """Inverse of `space_to_depth`."""
    half = cells.shape[-1]
    voxels = cells.reshape(-1, 2, 2, 2, half, half, half).permute(0, 4, 1, 5, 2, 6, 3)
    return voxels.reshape(-1, 1, 2 * half, 2 * half, 2 * half)
