"""The seam to the networks: one Protocol, two engines (embedded ONNX Runtime, Triton), a fake in tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from contract.bundle import Bundle
from service.domain.prompts import PlacedPrompts


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Outputs of `sam_encoder` for one region of interest, by tensor name, each with batch axis 1."""

    tensors: dict[str, np.ndarray]


class Engine(Protocol):
    """Calls the networks of one bundle. Every method raises ModelNotReady, ModelBusy, ModelTimeout or
    ModelContractBroken. Nothing blocks the event loop."""

    @property
    def bundle(self) -> Bundle: ...

    async def encode(self, image: np.ndarray, organ_mask: np.ndarray) -> Embeddings:
        """image, organ_mask: (D, H, W) float32 on the ROI grid; organ_mask 0/1, zeros = none."""
        ...

    async def embed_text(self, phrases: tuple[str, str]) -> np.ndarray:
        """(2, width) float32 text features: background, foreground. Cached by phrase."""
        ...

    async def decode(self, embeddings: Embeddings, prompts: PlacedPrompts) -> np.ndarray:
        """(D, H, W) float32 logits on the ROI grid; > 0 is tumour."""
        ...

    async def segment(self, image: np.ndarray, organ_mask: np.ndarray, prompts: PlacedPrompts) -> np.ndarray:
        """encode, embed text and decode in one call (Triton: the ensemble `tags`). Returns as `decode`."""
        ...

    async def check(self) -> None:
        """A canary inference through the text embedder; raises when the engine cannot answer."""
        ...

    async def close(self) -> None: ...
