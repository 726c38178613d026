"""Names, dtypes and shapes of every tensor that crosses a network's border.

The one source for the ONNX files, the generated `config.pbtxt` and both engines. Axis order is B (batch), C, then
D, H, W (= z, y, x) everywhere. Only the batch axis is dynamic (MODEL: spatial axes and token counts are static).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract.sizes import Sizes

BATCH = "B"
POINTS = 32  # slots for clicks and box corners; unused ones carry LABEL_PAD
CONTEXT_LENGTH = 77  # CLIP's text context
PHRASES = 2  # background phrase, foreground phrase
VOCABULARY = 49408  # CLIP's byte-pair vocabulary
END_OF_TEXT = 49407
FEATURE_LEVELS = 4

LABEL_PAD = -1
LABEL_BACKGROUND = 0
LABEL_FOREGROUND = 1
LABEL_BOX_MIN = 2  # corner with the smaller z, y, x
LABEL_BOX_MAX = 3  # corner with the larger z, y, x; directly after its LABEL_BOX_MIN slot

SAM_ENCODER = "sam_encoder"
CLIP_TEXT_EMBEDDER = "clip_text_embedder"
FUSION_DECODER = "fusion_decoder"
NETWORKS = (SAM_ENCODER, CLIP_TEXT_EMBEDDER, FUSION_DECODER)
ENSEMBLE = "tags"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor at a network's border; `shape` excludes the leading batch axis."""

    name: str
    dtype: str  # numpy name
    shape: tuple[int, ...]

    def check(self, array: np.ndarray) -> np.ndarray:
        """The array itself if dtype and shape fit. Raises: ValueError naming both."""
        if array.dtype != np.dtype(self.dtype) or array.shape[1:] != self.shape:
            raise ValueError(
                f"{self.name}: expected {self.dtype} [{BATCH}, {', '.join(map(str, self.shape))}], "
                f"got {array.dtype} {list(array.shape)}"
            )
        return array


@dataclass(frozen=True)
class NetworkSpec:
    """Inputs and outputs of one network, in positional order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def network_specs(sizes: Sizes) -> dict[str, NetworkSpec]:
    """The three networks and the ensemble `tags` that chains them, by name."""
    roi, half, tokens = sizes.roi, sizes.half, sizes.tokens
    image = TensorSpec("image", "float32", (1, roi, roi, roi))
    organ_mask = TensorSpec("organ_mask", "float32", (1, roi, roi, roi))
    # The deepest level waits for the prompts; the others are prompt-independent and come through their heads already.
    channels = (*[sizes.aggregation] * (FEATURE_LEVELS - 1), sizes.neck)
    features = tuple(
        TensorSpec(f"feat_{level}", sizes.feature_dtype, (count, tokens, tokens, tokens))
        for level, count in enumerate(channels)
    )
    align = TensorSpec("align_feat", sizes.feature_dtype, (sizes.width, tokens, tokens, tokens))
    # Full-detail image as 8 sub-voxel channels on the half grid (space to depth): (2z+a, 2y+b, 2x+c) -> channel
    # 4a+2b+c; the ninth is the share of the organ mask in each cell
    detail = TensorSpec("image_detail", "float32", (9, half, half, half))
    input_ids = TensorSpec("input_ids", "int32", (PHRASES, CONTEXT_LENGTH))
    eot_index = TensorSpec("eot_index", "int32", (PHRASES,))
    text_features = TensorSpec("text_features", "float32", (PHRASES, sizes.width))
    prompts = (
        TensorSpec("point_coords", "float32", (POINTS, 3)),  # z, y, x in ROI voxels, integer = voxel centre
        TensorSpec("point_labels", "int32", (POINTS,)),
        TensorSpec("mask_prompt", "float32", (1, half, half, half)),  # 0..1, zeros = none
        TensorSpec("use_text", "float32", (1,)),  # 1 = text counts, 0 = ignored
    )
    outputs = (
        TensorSpec("mask_logits", "float32", (1, roi, roi, roi)),  # foreground minus background; > 0 is tumour
        TensorSpec("semantic_map", "float32", (1, tokens, tokens, tokens)),  # text similarity, fg minus bg
    )
    return {
        SAM_ENCODER: NetworkSpec(SAM_ENCODER, (image, organ_mask), (*features, align, detail)),
        CLIP_TEXT_EMBEDDER: NetworkSpec(CLIP_TEXT_EMBEDDER, (input_ids, eot_index), (text_features,)),
        FUSION_DECODER: NetworkSpec(FUSION_DECODER, (*features, align, detail, text_features, *prompts), outputs),
        ENSEMBLE: NetworkSpec(ENSEMBLE, (image, organ_mask, input_ids, eot_index, *prompts), outputs),
    }
