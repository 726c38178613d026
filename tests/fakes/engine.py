"""An engine without networks: bright voxels that the prompts point at. Same inputs, same answer, in milliseconds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
from scipy import ndimage

from contract.bundle import Bundle
from contract.grid import fixed_grid
from contract.intensity import IntensityRule
from contract.sizes import Sizes
from contract.tensors import LABEL_BACKGROUND, LABEL_BOX_MAX, LABEL_BOX_MIN, LABEL_FOREGROUND
from service.domain.prompts import PlacedPrompts
from service.errors import TagsError
from service.inference.engine import Embeddings

FAKE_BUNDLE = Bundle(
    name="fake",
    version="0",
    configuration="small",
    grid=fixed_grid(2.0),
    intensity={
        "CT": IntensityRule("window", low=-200.0, high=300.0, mean=50.0, std=80.0),
        "MR": IntensityRule("percentile", low=0.5, high=99.5),
    },
    targets=("liver", "kidney"),
    findings=("liver tumour", "kidney tumour", "tumour"),
    trained=True,
)


class TinyBundle(Bundle):
    """A field of view of 64 mm on 32 voxels, for tests in which the segmentation is beside the point."""

    @property
    def sizes(self) -> Sizes:
        return replace(super().sizes, roi=32, tokens=4)


TINY_BUNDLE = TinyBundle(
    name="fake",
    version="0",
    configuration="small",
    grid=fixed_grid(2.0),
    intensity=FAKE_BUNDLE.intensity,
    targets=FAKE_BUNDLE.targets,
    findings=FAKE_BUNDLE.findings,
    trained=True,
)
OFF = -6.0  # logit of what is not tumour
SLOPE = 32.0  # of logits over normalised intensity: 2.5 HU of the window are one
REACH_VOX = 2  # a click this far beside a bright region still means it


class FakeEngine:
    """Implements `Engine`. A voxel is tumour if its normalised value exceeds `threshold` and its connected bright
    region is meant: clicked, overlapping the box, or overlapping the previous mask; with text alone, every region is.
    A background click takes its region away. An organ mask limits the answer to itself.

    `threshold` 0.6 is 98 HU by FAKE_BUNDLE's window. `calls` records what was asked; `error` is raised by every call;
    `delay_s` makes each call slow.
    """

    def __init__(
        self,
        bundle: Bundle = FAKE_BUNDLE,
        *,
        threshold: float = 0.6,
        error: TagsError | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self._bundle = bundle
        self.threshold = threshold
        self.error = error
        self.delay_s = delay_s
        self.calls: list[str] = []
        self.images: list[np.ndarray] = []
        self.organ_masks: list[np.ndarray] = []
        self.placed: list[PlacedPrompts] = []
        self.closed = False

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    async def encode(self, image: np.ndarray, organ_mask: np.ndarray) -> Embeddings:
        await self._called("encode")
        size = self._bundle.sizes.roi
        assert image.shape == organ_mask.shape == (size, size, size)
        assert image.dtype == organ_mask.dtype == np.float32
        self.images.append(image)
        self.organ_masks.append(organ_mask)
        return Embeddings({"image": image, "organ_mask": organ_mask})

    async def embed_text(self, phrases: tuple[str, str]) -> np.ndarray:
        await self._called("embed_text")
        return np.full((len(phrases), self._bundle.sizes.width), 0.1, np.float32)

    async def decode(self, embeddings: Embeddings, prompts: PlacedPrompts) -> np.ndarray:
        await self._called("decode")
        assert prompts.point_coords.shape == (32, 3)
        assert prompts.mask_prompt.shape == (1, *(self._bundle.sizes.half,) * 3)
        self.placed.append(prompts)
        return self._logits(embeddings.tensors["image"], embeddings.tensors["organ_mask"] > 0.5, prompts)

    async def segment(self, image: np.ndarray, organ_mask: np.ndarray, prompts: PlacedPrompts) -> np.ndarray:
        return await self.decode(await self.encode(image, organ_mask), prompts)

    async def check(self) -> None:
        await self._called("check")

    async def close(self) -> None:
        self.closed = True

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error:
            raise self.error

    def _logits(self, image: np.ndarray, organ: np.ndarray, prompts: PlacedPrompts) -> np.ndarray:
        """(D, H, W) float32: crosses 0 where the image crosses the threshold."""
        regions, count = ndimage.label((image > self.threshold) & (organ if organ.any() else True))
        labels, coords = prompts.point_labels, prompts.point_coords
        lows, highs = coords[labels == LABEL_BOX_MIN], coords[labels == LABEL_BOX_MAX]
        meant: set[int] = set()
        for click in coords[labels == LABEL_FOREGROUND]:
            meant |= _near(regions, click, click, reach=REACH_VOX)
        for low, high in zip(lows, highs, strict=True):
            meant |= _near(regions, low, high)
        if prompts.mask_prompt.any():
            previous = prompts.mask_prompt[0].repeat(2, 0).repeat(2, 1).repeat(2, 2) > 0
            meant |= set(np.unique(regions[previous]).tolist())
        if prompts.use_text and not meant and not prompts.mask_prompt.any() and not (labels == LABEL_FOREGROUND).any():
            meant = set(range(1, count + 1))
        for click in coords[labels == LABEL_BACKGROUND]:
            meant -= _near(regions, click, click)
        kept = np.isin(regions, sorted(meant - {0}))
        near = ndimage.binary_dilation(kept)  # one voxel more, so that interpolation finds the border between voxels
        return np.where(near, np.clip(SLOPE * (image - self.threshold), OFF, -OFF), OFF).astype(np.float32)


def _near(regions: np.ndarray, low: np.ndarray, high: np.ndarray, *, reach: int = 0) -> set[int]:
    """Labels that occur between two corners, `reach` voxels more on each side."""
    start = np.maximum(np.floor(low + 0.5).astype(int) - reach, 0)
    stop = np.maximum(np.floor(high + 0.5).astype(int) + reach + 1, 0)
    return set(np.unique(regions[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]).tolist()) - {0}
