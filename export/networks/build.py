"""The three networks of one configuration. Sizes come from `contract.sizes`; `vit_b` is the same code."""

from __future__ import annotations

from torch import Tensor, nn

from contract.sizes import Sizes
from contract.tensors import NETWORKS
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
