"""What fine-tuning minimises: Dice and cross-entropy of the mask in equal parts, plus TAGS' alignment loss.

Alignment, at each of the encoder's four stages: softmax over background and foreground of 100 times the cosine between
aligned features and text features, upsampled to voxels, against the tumour by focal loss and Dice in equal parts.
Upstream's focal loss applies a second softmax to these probabilities; ours does not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.networks.build import Tags
from training.losses import SMOOTH_VOXELS, mask_loss

TEMPERATURE = 100.0  # CLIP's logit scale
FOCAL_POWER = 2
SMALLEST_PROBABILITY = 1e-6


class Objective(nn.Module):
    """TAGS and its loss as one module, so that a data-parallel wrapper sees a single forward pass."""

    def __init__(self, tags: Tags) -> None:
        super().__init__()
        self.tags = tags
        self._stages: list[Tensor] = []
        for adapter in tags.sam_encoder.alignment_adapters:
            adapter.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: tuple[Tensor, ...], aligned: Tensor) -> None:
        self._stages.append(aligned)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mask and alignment loss. Args: batch: fields of `training.simulate.Sample`, with the batch axis."""
        self._stages.clear()
        embeddings = self.tags.sam_encoder(batch["image"], batch["organ_mask"])
        (text,) = self.tags.clip_text_embedder(batch["input_ids"], batch["eot_index"])
        prompts = (batch[name] for name in ("point_coords", "point_labels", "mask_prompt", "use_text"))
        logits, _ = self.tags.fusion_decoder(*embeddings, text, *prompts)
        mask = 0.5 * mask_loss(logits.float(), batch["target"])
        return mask, alignment_loss(self._stages, text.float(), batch["target"])


def alignment_loss(stages: list[Tensor], text: Tensor, target: Tensor) -> Tensor:
    """Sum over the stages. Args: stages: (B, T, T, T, E) each. text: (B, 2, E). target: (B, 1, S, S, S)."""
    return torch.stack([stage_loss(stage.float(), text, target) for stage in stages]).sum()


def stage_loss(aligned: Tensor, text: Tensor, target: Tensor) -> Tensor:
    cosines = functional.normalize(aligned, dim=-1) @ text[:, None, None].transpose(-1, -2)  # (B, T, T, T, 2)
    probability = torch.softmax(TEMPERATURE * cosines, dim=-1)[..., 1][:, None]
    size = target.shape[2:]
    probability = functional.interpolate(probability, size=size, mode="trilinear", align_corners=True)
    of_truth = torch.where(target > 0, probability, 1 - probability).clamp(min=SMALLEST_PROBABILITY)
    focal = (-((1 - of_truth) ** FOCAL_POWER) * of_truth.log()).mean()
    both = (probability * target).flatten(1).sum(1)
    either = (probability + target).flatten(1).sum(1)
    dice = 1 - ((2 * both + SMOOTH_VOXELS) / (either + SMOOTH_VOXELS)).mean()
    return (focal + dice) / 2
