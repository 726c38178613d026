"""`fusion_decoder`: clicks, boxes, text and previous mask fused with the image features into one 3D mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.sizes import Sizes
from contract.tensors import FEATURE_LEVELS
from export.networks.encoder import depth_to_space
from export.networks.prompts import PROMPT_MAPS, PromptEncoder, intensity_maps, prompt_maps
from export.networks.upsampled import tap_matrix, upsampled_conv

SUB_VOXELS = 8  # voxels of the full grid per cell of the half grid


class AggregationHead(nn.Module):
    """One level of the multi-level aggregation: two convolutions on the token grid."""

    def __init__(self, neck: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(neck, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)

    def forward(self, feature: Tensor) -> Tensor:
        x = functional.relu(functional.instance_norm(self.conv1(feature)))
        return functional.relu(functional.instance_norm(self.conv2(x)))


class FusionDecoder(nn.Module):
    """Embeddings and placed prompts to mask logits. Cheap enough to run again for every click.

    TAGS' coarse logit comes from `cls1`, instance-normalised, which evens out how much of the region lights up and with
    it the tumour's size. So the prompt maps go round it, through `refine`, which has no norm and starts as no change.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.prompt_encoder = PromptEncoder(sizes)
        self.mlahead = nn.ModuleList(AggregationHead(sizes.neck, sizes.aggregation) for _ in range(FEATURE_LEVELS))
        channels = sizes.aggregation
        # Over the levels upsampled to the half grid, the image at full detail and the semantic map
        self.cls1 = nn.Conv3d(FEATURE_LEVELS * channels + SUB_VOXELS + 1, channels, 3, padding=1)
        self.coarse = nn.Conv3d(channels, 1, 3, padding=1)
        self.refine1 = nn.Conv3d(channels + SUB_VOXELS + PROMPT_MAPS, channels, 3, padding=1)
        self.refine2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.local = nn.Conv3d(channels, 1, 3, padding=1)
        self.detail = nn.Conv3d(channels + SUB_VOXELS, SUB_VOXELS, 3, padding=1)
        for module in (self.local, self.detail):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        self.register_buffer("taps", tap_matrix(sizes.tokens, sizes.half).clone(), persistent=False)

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
        levels = [level.float() for level in (feat_0, feat_1, feat_2, feat_3)]
        semantic = self.semantic_map(align_feat.float(), text_features)
        told = semantic * use_text[:, :, None, None, None]
        cells = mask_prompt.shape[-1]  # per side of the half grid
        maps = prompt_maps(point_coords, point_labels, mask_prompt)
        maps = torch.cat([maps, intensity_maps(maps, image_detail.mean(1, keepdim=True))], dim=1)
        levels[-1] = self.prompt_encoder(
            levels[-1], point_coords, point_labels, maps, told, text_features[:, 1], use_text
        )
        told = functional.interpolate(told, size=(cells, cells, cells), mode="trilinear", align_corners=False)
        heads = torch.cat([head(level) for head, level in zip(self.mlahead, levels, strict=True)], dim=1)
        trunk = self.aggregate(heads, torch.cat([image_detail, told], dim=1))
        trunk = functional.relu(functional.instance_norm(trunk))
        x = functional.relu(self.refine1(torch.cat([trunk, image_detail, maps], dim=1)))
        x = functional.relu(self.refine2(x))
        voxels = 2 * cells
        logits = functional.interpolate(
            self.coarse(trunk) + self.local(x), size=(voxels, voxels, voxels), mode="trilinear", align_corners=True
        )
        return logits + depth_to_space(self.detail(torch.cat([x, image_detail], dim=1))), semantic

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
