"""The three networks of one configuration. Sizes come from `contract.sizes`; `vit_b` is the same code."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from contract.sizes import Sizes
from contract.tensors import FEATURE_LEVELS, NETWORKS
from export.networks.decoder import FusionDecoder
from export.networks.encoder import SamEncoder
from export.networks.text import ClipTextEmbedder


class Tags(nn.Module):
    """The ensemble: encoder, text embedder, decoder. Attribute names are the contract's network names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.sam_encoder = SamEncoder(sizes)
        self.clip_text_embedder = ClipTextEmbedder(sizes)
        self.fusion_decoder = FusionDecoder(sizes)

    def networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in NETWORKS}

    def forward(
        self,
        image: Tensor,
        organ_mask: Tensor,
        input_ids: Tensor,
        eot_index: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_prompt: Tensor,
        use_text: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The ensemble `tags` of the contract: mask_logits, semantic_map."""
        embeddings = self.sam_encoder(image, organ_mask)
        (text_features,) = self.clip_text_embedder(input_ids, eot_index)
        return self.fusion_decoder(*embeddings, text_features, point_coords, point_labels, mask_prompt, use_text)


def build_tags(sizes: Sizes) -> Tags:
    """TAGS with fresh weights: linear layers N(0, 0.02), positions and relative positions zero, extensions zero."""
    model = Tags(sizes)
    for module in model.sam_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for adapter in model.sam_encoder.alignment_adapters:
        nn.init.eye_(adapter.fc1.weight)
    return model


def shallow(model: Tags) -> Tags:
    """The same networks with one block for each feature level and one for text, with the weights of the last of each.

    Every kind of layer is there at its full width, so that a graph can be run where the whole is too large.
    """
    sizes = model.sizes
    stage = sizes.depth // FEATURE_LEVELS
    small = Tags(replace(sizes, name=f"{sizes.name}, shallow", depth=FEATURE_LEVELS, text_depth=1))
    kept = model.state_dict()
    weights = {key: kept[key] for key in small.state_dict() if "blocks." not in key}
    for prefix, sources in (
        ("sam_encoder.blocks.", [stage * (level + 1) - 1 for level in range(FEATURE_LEVELS)]),
        ("clip_text_embedder.resblocks.", [sizes.text_depth - 1]),
    ):
        for place, source in enumerate(sources):
            block = f"{prefix}{source}."
            weights |= {
                f"{prefix}{place}.{key.removeprefix(block)}": kept[key] for key in kept if key.startswith(block)
            }
    small.load_state_dict(weights)
    return small.eval()
