"""What training minimises: Dice and cross-entropy of the mask, and the alignment of image features with text."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from contract.tensors import LABEL_PAD

ALIGNMENT_WEIGHT = 0.2
MISSED_WEIGHT = 0.15
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


def alignment_loss(semantic_map: Tensor, text_map: Tensor) -> Tensor:
    """Cross-entropy of the text similarity map (B, 1, T, T, T) against what the words mean (B, 1, S, S, S).

    Tokens of the tumour and its organ weigh as much as all others together. TAGS aligns with the tumour alone; where
    the organ is, too, tells the words of one organ from those of another many times sooner.
    Args: text_map: 1 tumour, 0.5 organ, 0 elsewhere; -1 where words mean nothing certain: those samples do not count.
    """
    known = (text_map.flatten(1)[:, 0] >= 0).to(semantic_map.dtype)
    share = functional.adaptive_avg_pool3d(text_map.clamp(min=0), semantic_map.shape[-1]).flatten(1)
    entropy = functional.binary_cross_entropy_with_logits(semantic_map.flatten(1), share, reduction="none")
    meant = (entropy * share).sum(1) / share.sum(1).clamp(min=0.1)
    elsewhere = (entropy * (1 - share)).mean(1)
    return ((meant + elsewhere) * known).sum() / known.sum().clamp(min=1)


def missed_loss(logits: Tensor, target: Tensor, text_alone: Tensor) -> Tensor:
    """Cross-entropy within the tumours that a text alone should find. Without it the network soon says nothing at all:
    where no click points, a small tumour's share of the other losses is too small to bring it back.

    Args: text_alone: (B, 1), 1 where no other prompt says where.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1)
    truth = target.flatten(1)
    missed = (entropy * truth).sum(1) / truth.sum(1).clamp(min=1)
    return (missed * text_alone[:, 0]).mean()


def total_loss(mask_logits: Tensor, semantic_map: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The scalar that training minimises. Args: batch: fields of `training.simulate.Sample`, with the batch axis."""
    target = batch["target"]
    pointed = (batch["point_labels"] != LABEL_PAD).any(1, keepdim=True) | batch["mask_prompt"].flatten(1).any(1, True)
    return (
        mask_loss(mask_logits, target)
        + ALIGNMENT_WEIGHT * alignment_loss(semantic_map, batch["text_map"])
        + MISSED_WEIGHT * missed_loss(mask_logits, target, (~pointed).to(target.dtype))
    )
