"""`clip_text_embedder`: CLIP's text transformer (Radford et al. 2021), pre-norm, causal, read at the end token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.sizes import Sizes
from contract.tensors import CONTEXT_LENGTH, VOCABULARY

MASKED = -1e4  # instead of -inf: survives float16 and TensorRT


class ResidualAttentionBlock(nn.Module):
    """One CLIP block with QuickGELU; key names of OpenAI's checkpoints."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"in_proj": nn.Linear(width, 3 * width), "out_proj": nn.Linear(width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, causal: Tensor) -> Tensor:
        n, length, width = x.shape
        head = width // self.heads
        q, k, v = (
            self.attn["in_proj"](self.ln_1(x)).reshape(n, length, 3, self.heads, head).permute(2, 0, 3, 1, 4)
        )  # each (n, heads, length, head)
        weights = torch.softmax(q @ k.transpose(-1, -2) * head**-0.5 + causal, dim=-1)
        x = x + self.attn["out_proj"]((weights @ v).transpose(1, 2).reshape(n, length, width))
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class ClipTextEmbedder(nn.Module):
    """Token ids of the background and the foreground phrase to their L2-normalised features."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.text_width
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(CONTEXT_LENGTH, width))
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, sizes.text_heads) for _ in range(sizes.text_depth))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, sizes.width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        causal = torch.triu(torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), MASKED), diagonal=1)
        self.register_buffer("causal", causal, persistent=False)
        self.register_buffer("slots", torch.arange(CONTEXT_LENGTH, dtype=torch.int32), persistent=False)

    def forward(self, input_ids: Tensor, eot_index: Tensor) -> tuple[Tensor]:
        """input_ids: (B, 2, 77) int32; eot_index: (B, 2) int32. Returns: text_features (B, 2, E) float32."""
        phrases = input_ids.shape[1]
        x = self.token_embedding(input_ids.reshape(-1, CONTEXT_LENGTH)) + self.positional_embedding
        for block in self.resblocks:
            x = block(x, self.causal)
        at_end = (self.slots == eot_index.reshape(-1, 1)).to(x.dtype)  # (B * 2, 77) one-hot, not an ArgMax
        x = (at_end[:, None] @ self.ln_final(x))[:, 0] @ self.text_projection
        return (functional.normalize(x, dim=-1).reshape(-1, phrases, x.shape[-1]),)
