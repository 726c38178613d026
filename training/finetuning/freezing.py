"""What fine-tuning leaves as SAM and CLIP have it, and the weights in the form that the export reads.

Frozen, as in TAGS: SAM's patch and position embeddings, attention (with its relative positions in plane) and
perceptrons, and CLIP's text tower. Trained: adapters, norms, depth and slice embeddings, relative positions along
depth, alignment, necks, heads, prompt encoder, decoder.

Our stem is SAM's patch embedding and the slice embedding folded into one kernel. It is taken apart again: the folded
kernel stays, a trained factor for each channel and depth tap stands for the slice embedding. Six taps hold all that
sixteen upsampled slices can say.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn.utils import parametrize

from export.networks.build import Tags

STEM = "sam_encoder.patch_embed.proj."
FROZEN = re.compile(
    r"sam_encoder\.patch_embed\.proj\.parametrizations\.weight\.original$"
    r"|sam_encoder\.pos_embed$"
    r"|sam_encoder\.blocks\.\d+\.(attn\.(qkv|proj)\.|attn\.rel_pos_[hw]$|mlp\.)"
    r"|clip_text_embedder\."
)
TEXT_PROJECTION = "clip_text_embedder.text_projection"


class SliceFactor(nn.Module):
    """The slice embedding as a factor on the folded kernel (E, 2, k, k, k): one number per channel and depth tap."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(kernel.new_ones(kernel.shape[0], 1, kernel.shape[2], 1, 1))

    def forward(self, kernel: Tensor) -> Tensor:
        return kernel * self.factor


def freeze(model: Tags, *, train_text_projection: bool) -> None:
    """Take the stem apart and freeze what TAGS freezes, in place.

    Args: train_text_projection: CLIP's features have another width than the tokens, so how they are carried over must
    be learned.
    """
    stem = model.sam_encoder.patch_embed.proj
    parametrize.register_parametrization(stem, "weight", SliceFactor(stem.weight.detach()))
    for name, parameter in model.named_parameters():
        frozen = FROZEN.match(name) and not (train_text_projection and name == TEXT_PROJECTION)
        parameter.requires_grad_(not frozen)


def exported(model: Tags) -> dict[str, Tensor]:
    """The weights by the names of a plain `Tags`, on the CPU: the stem in one piece again."""
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    kernel = state.pop(f"{STEM}parametrizations.weight.original")
    return state | {f"{STEM}weight": kernel * state.pop(f"{STEM}parametrizations.weight.0.factor")}


def frozen_state(model: Tags) -> dict[str, Tensor]:
    """The tensors that training must not change."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if not value.requires_grad}


def trained_count(model: Tags) -> tuple[int, int]:
    """Numbers of trained parameters and of all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, trained in sizes if trained), sum(count for count, _ in sizes)
