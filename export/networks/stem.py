"""The folded stem: x4 upsampling, SAM's patch embedding and the slice embedding as one strided convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SAM_PATCH = 16  # SAM's patch embedding: 16 x 16 pixels, stride 16


class FoldedStem(nn.Module):
    """(B, 2, S, S, S) image and organ mask to tokens (B, T, T, T, E).

    Exact: linear upsampling by `u` (half-pixel) followed by a convolution of 16 taps and stride 16 equals a
    convolution of 16/u + 2 taps and stride 16/u on the image with replicated borders.
    """

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(2, width, kernel_size=patch + 2, stride=patch)

    def forward(self, image: Tensor, organ_mask: Tensor) -> Tensor:
        volume = functional.pad(torch.cat([image, organ_mask], dim=1), [1] * 6, mode="replicate")
        return self.proj(volume).permute(0, 2, 3, 4, 1)


def upsampling_taps(factor: int) -> Tensor:
    """The (16, 16/factor + 2) matrix of linear upsampling by `factor`, half-pixel, on a border-replicated axis."""
    taps = torch.zeros(SAM_PATCH, SAM_PATCH // factor + 2, dtype=torch.float64)
    for fine in range(SAM_PATCH):
        position = (fine + 0.5) / factor - 0.5 + 1  # +1: the replicated voxel in front
        low = int(position // 1)
        taps[fine, low] += 1 - (position - low)
        taps[fine, low + 1] += position - low
    return taps


def fold(
    patch_weight: Tensor, patch_bias: Tensor, slice_weight: Tensor, slice_bias: Tensor, patch: int
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the folded stem.

    Args:
        patch_weight, patch_bias: SAM's `patch_embed.proj`, (E, 3, 16, 16) in H, W and (E,).
        slice_weight, slice_bias: the depth-wise embedding along slices, (E, 16) and (E,).
        patch: voxels per token (4 for `vit_b`, 8 for `small`).
    Returns: (E, 2, k, k, k) in D, H, W with k = patch + 2, and (E,). TAGS feeds [image, image, organ mask], so the
        first two input channels of SAM are summed.
    """
    taps = upsampling_taps(SAM_PATCH // patch)
    in_plane = torch.stack([patch_weight[:, :2].sum(1), patch_weight[:, 2]], dim=1).double()  # (E, 2, 16, 16)
    in_plane = taps.T @ in_plane @ taps  # (E, 2, k, k)
    along = slice_weight.double() @ taps  # (E, k)
    weight = along[:, None, :, None, None] * in_plane[:, :, None]
    bias = slice_bias.double() + patch_bias.double() * slice_weight.double().sum(1)
    return weight.to(patch_weight.dtype), bias.to(patch_bias.dtype)
