"""`fusion_decoder`: clicks, boxes, text and previous mask fused with the image features into one 3D mask."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.sizes import Sizes
from contract.tensors import FEATURE_LEVELS
from export.networks.encoder import AggregationHead, depth_to_space
from export.networks.norms import GroupNorm, instance_norm
from export.networks.prompts import PROMPT_MAPS, PromptEncoder, intensity_maps, prompt_maps
from export.networks.upsampled import tap_matrix, upsampled_conv

SUB_VOXELS = 8  # voxels of the full grid per cell of the half grid
DETAIL_CHANNELS = SUB_VOXELS + 1  # and the organ mask
NORM_GROUP = 8  # channels that share a norm
PYRAMID_FACTORS = (1, 3, 6, 6)  # channels per level of the detail pyramid: few where cells are many


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions, each after a norm over groups of eight channels, around a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels // NORM_GROUP, channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = GroupNorm(channels // NORM_GROUP, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(y)))


class DetailPyramid(nn.Module):
    """Prompts and image at full detail, fused where both are: convolutions on the half grid and three coarser ones.

    TAGS' transformer sees tokens of several voxels and its coarse logit follows no fine border; early fusion of prompt
    maps with the image in a convolutional pyramid is what makes clicks precise elsewhere (nnInteractive). The text
    joins at the coarsest level, where a cell sees the whole region.
    """

    def __init__(self, inputs: int, channels: int, text_width: int) -> None:
        super().__init__()
        widths = [channels * factor for factor in PYRAMID_FACTORS]
        self.stem = nn.Conv3d(inputs, channels, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths))
        self.encode = nn.ModuleList(ResidualBlock(width) for width in widths)
        self.text = nn.Linear(text_width, widths[-1])
        self.up = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.decode = nn.ModuleList(ResidualBlock(width) for width in widths[:-1])
        self.norm = GroupNorm(channels // NORM_GROUP, channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x: (B, inputs, G, G, G); text: (B, E), zero when it does not count. Returns: (B, channels, G, G, G)."""
        x = self.encode[0](self.stem(x))
        skips = []
        for down, block in zip(self.down, self.encode[1:], strict=True):
            skips.append(x)
            x = block(down(functional.relu(x)))
        x = x + self.text(text)[:, :, None, None, None]
        for up, block, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips), strict=True):
            size = skip.shape[2:]
            x = block(skip + functional.interpolate(up(x), size=size, mode="trilinear", align_corners=False))
        return functional.relu(self.norm(x))


class FusionDecoder(nn.Module):
    """Embeddings and placed prompts to mask logits. Cheap enough to run again for every click.

    TAGS' coarse logit comes from `cls1` over all levels. Beside it a pyramid works on the image at full detail, the
    prompt maps and TAGS' trunk; its last convolution starts at zero, so a plain TAGS checkpoint keeps its logits.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.prompt_encoder = PromptEncoder(sizes)
        self.mlahead = AggregationHead(sizes.neck, sizes.aggregation)  # of the level that the prompts change
        channels = sizes.aggregation
        # Over the levels upsampled to the half grid, the image at full detail and the semantic map
        self.cls1 = nn.Conv3d(FEATURE_LEVELS * channels + SUB_VOXELS + 1, channels, 3, padding=1)
        self.coarse = nn.Conv3d(channels, 1, 3, padding=1)
        pyramid = sizes.pyramid
        self.pyramid = DetailPyramid(channels + DETAIL_CHANNELS + PROMPT_MAPS + 1, pyramid, sizes.width)
        self.detail = nn.Conv3d(pyramid + SUB_VOXELS, SUB_VOXELS, 3, padding=1)
        nn.init.zeros_(self.detail.weight)
        nn.init.zeros_(self.detail.bias)
        self.register_buffer("taps", tap_matrix(sizes.tokens, sizes.half), persistent=False)

    def forward(
        self,
        feat_0: Tensor,
        feat_1: Tensor,
        feat_2: Tensor,
        feat_3: Tensor,
        align_feat: Tensor,
        image_detail: Tensor,
        text_features: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_prompt: Tensor,
        use_text: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Shapes as `contract.network_specs`. Returns: mask_logits, semantic_map."""
        precision = point_coords.dtype  # features may come in half of it
        semantic = self.semantic_map(align_feat.to(precision), text_features)
        told = semantic * use_text[:, :, None, None, None]
        cells = mask_prompt.shape[-1]  # per side of the half grid
        image = image_detail[:, :SUB_VOXELS]
        maps = prompt_maps(point_coords, point_labels, mask_prompt)
        maps = torch.cat([maps, intensity_maps(maps, image.mean(1, keepdim=True))], dim=1)
        deepest = self.prompt_encoder(
            feat_3.to(precision), point_coords, point_labels, maps, told, text_features[:, 1], use_text
        )
        told = functional.interpolate(told, size=(cells, cells, cells), mode="trilinear", align_corners=False)
        heads = torch.cat([*(level.to(precision) for level in (feat_0, feat_1, feat_2)), self.mlahead(deepest)], dim=1)
        trunk = functional.relu(instance_norm(self.aggregate(heads, torch.cat([image, told], dim=1))))
        text = text_features[:, 1] * use_text
        x = self.pyramid(torch.cat([trunk, image_detail, maps, told], dim=1), text)
        voxels = 2 * cells
        logits = functional.interpolate(
            self.coarse(trunk), size=(voxels, voxels, voxels), mode="trilinear", align_corners=True
        )
        return logits + depth_to_space(self.detail(torch.cat([x, image], dim=1))), semantic

    def aggregate(self, heads: Tensor, fine: Tensor) -> Tensor:
        """cls1 over the heads (B, 4 C, T, T, T), upsampled, and what is fine already (B, F, half, half, half)."""
        levels, weight = heads.shape[1], self.cls1.weight
        taps = self.taps
        if heads.shape[-1] != taps.shape[1] // 3:  # training on a smaller region
            taps = tap_matrix(heads.shape[-1], fine.shape[-1])
        x = functional.conv3d(fine, weight[:, levels:], self.cls1.bias, padding=1)
        return x + upsampled_conv(heads, weight[:, :levels], taps)

    def semantic_map(self, align_feat: Tensor, text_features: Tensor) -> Tensor:
        """(B, 1, T, T, T): scaled similarity to the foreground phrase minus that to the background phrase."""
        direction = self.logit_scale.exp() * (text_features[:, 1:] - text_features[:, :1])  # (B, 1, E)
        grid = align_feat.shape[-1]
        return (direction @ align_feat.flatten(2)).reshape(-1, 1, grid, grid, grid)
