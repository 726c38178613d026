"""A convolution over upsampled channels, without ever making the upsampled channels (exact; four times cheaper)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def tap_matrix(coarse: int, fine: int) -> Tensor:
    """(fine, 3 * coarse): align_corners upsampling, then each of the 3 taps of a zero-padded convolution."""
    eye = torch.eye(coarse, dtype=torch.float64)[None]
    upsampling = functional.interpolate(eye, size=fine, mode="linear", align_corners=True)[0].T
    padded = functional.pad(upsampling, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + fine] for tap in range(3)], 1).reshape(fine, 3 * coarse).float()


def upsampled_conv(x: Tensor, weight: Tensor, taps: Tensor) -> Tensor:
    """conv3d(upsample(x), weight, padding=1): channels are mixed per tap on the coarse grid, then axis by axis spread.

    Args: x: (B, C, T, T, T). weight: (O, C, 3, 3, 3). taps: (F, 3 T) from `tap_matrix`. Returns: (B, O, F, F, F).
    """
    out, channels, t, f = weight.shape[0], weight.shape[1], x.shape[-1], taps.shape[0]
    mixed = weight.permute(2, 0, 3, 4, 1).reshape(27 * out, channels) @ x.flatten(2)  # (B, kz O ky kx, z y x)
    mixed = mixed.reshape(-1, 3 * out, 3, 3, t, t, t).permute(0, 1, 4, 2, 5, 3, 6)  # (B, kz O, z, ky, y, kx, x)
    mixed = mixed.reshape(-1, 3 * out * t * 3 * t, 3 * t) @ taps.T  # contracts kx, x
    mixed = taps @ mixed.reshape(-1, 3 * out * t, 3 * t, f)  # contracts ky, y
    mixed = mixed.reshape(-1, 3, out, t, f * f).permute(0, 2, 1, 3, 4).reshape(-1, out, 3 * t, f * f)
    return (taps @ mixed).reshape(-1, out, f, f, f)  # contracts kz, z
