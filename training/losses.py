"""What training minimises: Dice and cross-entropy of the mask, and the alignment of image features with text."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

ALIGNMENT_WEIGHT = 0.1
SMOOTH_VOXELS = 10.0  # keeps Dice calm on the smallest tumours and defined on empty ones


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of soft Dice loss plus mean cross-entropy, in equal parts (nnU-Net's loss).

    Cross-entropy divided by the size of both masks was tried: it taught the network to leave out what it was unsure of.
    Args: logits, target: (B, 1, S, S, S); target 0 or 1.
    """
    return soft_dice_loss(logits, target).mean() + functional.binary_cross_entropy_with_logits(logits, target)


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(B,) 1 - Dice of the foreground probability."""
    probability, truth = logits.sigmoid().flatten(1), target.flatten(1)
    both = (probability * truth).sum(1)
    return 1 - (2 * both + SMOOTH_VOXELS) / (probability.sum(1) + truth.sum(1) + SMOOTH_VOXELS)


def alignment_loss(semantic_map: Tensor, target: Tensor, use_text: Tensor) -> Tensor:
    """Cross-entropy of the text similarity map (B, 1, T, T, T) against the share of tumour in each token.

    Only samples whose text counts; tokens with tumour weigh as much as all others together.
    """
    share = functional.adaptive_avg_pool3d(target, semantic_map.shape[-1]).flatten(1)
    share = (2 * share).clamp(max=1)
    entropy = functional.binary_cross_entropy_with_logits(semantic_map.flatten(1), share, reduction="none")
    foreground = (entropy * share).sum(1) / share.sum(1).clamp(min=1)
    background = (entropy * (1 - share)).mean(1)
    return ((foreground + background) * use_text[:, 0]).sum() / use_text.sum().clamp(min=1)


def total_loss(mask_logits: Tensor, semantic_map: Tensor, target: Tensor, use_text: Tensor) -> Tensor:
    """The scalar that training minimises."""
    return mask_loss(mask_logits, target) + ALIGNMENT_WEIGHT * alignment_loss(semantic_map, target, use_text)
