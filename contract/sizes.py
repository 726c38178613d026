"""The sizes of each network configuration: every number once, with its reason (shared by export, training, service)."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sizes:
    """Sizes of one configuration of TAGS. A cube of `roi` voxels becomes a cube of `tokens` tokens per side."""

    name: str
    roi: int  # voxels per side of the region of interest
    tokens: int  # tokens per side after the folded stem
    width: int  # channels of a token (SAM ViT-B: 768)
    depth: int  # transformer blocks
    heads: int
    window: int  # tokens per side of an attention window
    adapter: int  # hidden channels of a 3D adapter
    neck: int  # channels of each level that the decoder reads
    aggregation: int  # channels per level in the multi-level aggregation heads
    pyramid: int  # channels of the detail pyramid on the half grid; deeper levels have three and six times as many
    queries: int  # learned global queries of the prompt transformer
    prompt_heads: int
    prompt_mlp: int
    text_width: int  # width of CLIP's text transformer
    text_depth: int
    text_heads: int
    feature_dtype: str  # dtype of the features between encoder and decoder

    @property
    def half(self) -> int:
        """Voxels per side of the grid where levels are fused: half the region of interest."""
        return self.roi // 2

    @property
    def patch(self) -> int:
        """Voxels per token and side."""
        return self.roi // self.tokens


SMALL = Sizes(
    name="small", roi=64, tokens=8, width=192, depth=4, heads=3, window=8, adapter=96,
    neck=64, aggregation=8, pyramid=16, queries=10, prompt_heads=4, prompt_mlp=256,
    text_width=64, text_depth=4, text_heads=1, feature_dtype="float32",
)  # fmt: skip
VIT_B = Sizes(
    name="vit_b", roi=128, tokens=32, width=768, depth=12, heads=12, window=8, adapter=384,
    neck=256, aggregation=128, pyramid=32, queries=10, prompt_heads=8, prompt_mlp=2048,
    text_width=768, text_depth=12, text_heads=12, feature_dtype="float16",
)  # fmt: skip
# With the text tower of CLIP B/32 or B/16 instead of L/14: half the memory, a projection to 768 that must be trained.
VIT_B_CLIP_B = replace(VIT_B, name="vit_b_clip_b", text_width=512, text_heads=8)
CONFIGURATIONS = {sizes.name: sizes for sizes in (SMALL, VIT_B, VIT_B_CLIP_B)}
