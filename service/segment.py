"""The use case: a source image and prompts in, the tumour's mask on the source grid out.

    read -> prepare -> encode -> text -> decode, once per region of interest, -> restore

Prompts that say where start with the regions around them; a tumour that touches a region's border brings in the next.
A text alone first searches the volume on a coarser grid; what it proposes goes on as a previous mask.
Numpy work runs in threads, networks in the engine: nothing blocks the event loop. Nothing outlives the request.
Decision: docs/decisions/0004-region-of-interest.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
from anyio.to_thread import run_sync

from contract.bundle import Bundle
from contract.intensity import IntensityRule
from service.domain.extension import MAX_ROIS, neighbours
from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.place import check_prompts, has_place, place, points_somewhere
from service.domain.prepare import add_slab, prepared, slabs_needed
from service.domain.prompts import PlacedPrompts, Prompts
from service.domain.proposals import propose, search
from service.domain.resample import onto_roi
from service.domain.restore import Tile, blend, restore
from service.domain.roi import Corner, Lattice, extents_of, first_corners, lattice_on
from service.domain.volume import SourceImage
from service.errors import UnsupportedModality
from service.inference.engine import Engine
from service.telemetry.stages import Stages


async def segment(source: SourceImage, prompts: Prompts, engine: Engine, stages: Stages) -> Mask:
    """The mask that the prompts mean; empty when the networks find nothing.

    Raises: NoPrompts, TooManyPrompts, PromptOutsideVolume, MaskMismatch; UnsupportedModality; what the engine raises;
    what reading the source raises.
    """
    bundle = engine.bundle
    await run_sync(check_prompts, prompts, source.geometry)
    request = _Request(source, prompts, engine, stages, _rule(bundle, source.modality, prompts.target))
    lattice = lattice_on(source.geometry, spacing_mm=bundle.spacing_mm, size=bundle.sizes.roi)
    if has_place(prompts):
        corners = await run_sync(_first_corners, prompts, source.geometry, lattice)
        tiles, complete = await request.grow(lattice, corners)
    else:
        request, tiles, complete = await request.search(lattice)
    with stages("restore"):
        return await run_sync(
            partial(restore, tiles, lattice, source.geometry, prompts=request.prompts, complete=complete)
        )


@dataclass(frozen=True, eq=False)
class _Region:
    """A region of interest that is about to go through the networks."""

    corner: Corner
    roi: Geometry
    previous: np.ndarray | None  # (S, S, S) bool, the mask so far
    placed: PlacedPrompts


@dataclass(frozen=True, eq=False)
class _Request:
    """What every step of one request needs."""

    source: SourceImage
    prompts: Prompts
    engine: Engine
    stages: Stages
    rule: IntensityRule

    async def search(self, lattice: Lattice) -> tuple[_Request, list[Tile], bool]:
        """Look for a text everywhere, then closely where it seems to be.

        Returns: the request with the proposals as its previous mask, the tiles found there, whether they are complete.
        """
        geometry, organ_mask = self.source.geometry, self.prompts.organ_mask
        coarse, corners = await run_sync(search, lattice, geometry, organ_mask)
        with self.stages("prepare"):
            regions = [await run_sync(self._region, coarse, corner, ()) for corner in corners]
        tiles = await self._infer(regions)
        with self.stages("restore"):
            proposal = await run_sync(propose, tiles, coarse, geometry, organ_mask)
        proposed = replace(self, prompts=replace(self.prompts, mask=proposal))
        if coarse is lattice:
            return proposed, tiles, True
        corners = await run_sync(_first_corners, proposed.prompts, geometry, lattice)
        return proposed, *await proposed.grow(lattice, corners)

    async def grow(self, lattice: Lattice, corners: Sequence[Corner]) -> tuple[list[Tile], bool]:
        """Decode the first regions, then wave by wave the neighbours into which the tumour goes on, up to MAX_ROIS.

        A box says how far the tumour goes, so beside one nothing is added.
        Returns: the tiles, and whether the tumour ended within them.
        """
        tiles: list[Tile] = []
        asked: dict[Corner, None] = {}  # a set that keeps its order
        wave = list(corners)
        while wave:
            wave, beyond = wave[: MAX_ROIS - len(asked)], wave[MAX_ROIS - len(asked) :]
            if not wave:
                return tiles, False
            asked |= dict.fromkeys(wave)
            with self.stages("prepare"):
                regions = [await run_sync(self._region, lattice, corner, tuple(tiles)) for corner in wave]
            regions = [region for region in regions if points_somewhere(region.placed)]
            found = await self._infer(regions)
            tiles += found
            if beyond:
                return tiles, False
            if len(self.prompts.boxes_lps_mm):
                return tiles, True
            with self.stages("restore"):
                leaving = [
                    await run_sync(self._neighbours, tile, tuple(tiles), lattice, region.previous)
                    for tile, region in zip(found, regions, strict=True)
                ]
            wave = [corner for corner in dict.fromkeys(chain.from_iterable(leaving)) if corner not in asked]
        return tiles, True

    async def _infer(self, regions: Sequence[_Region]) -> list[Tile]:
        """The networks' answer in each region. Source slices are read once for all of them."""
        rois = [region.roi for region in regions]
        images = [np.zeros(roi.shape_zyx, np.float32) for roi in rois]
        for start, stop in slabs_needed(self.source.geometry, rois):
            with self.stages("pixels"):
                slab = await run_sync(self.source.read, start, stop)
            with self.stages("prepare"):
                await run_sync(add_slab, slab, start, self.source.geometry, rois, images)
        return [await self._infer_one(region, image) for region, image in zip(regions, images, strict=True)]

    async def _infer_one(self, region: _Region, image: np.ndarray) -> Tile:
        """Args: image: (S, S, S) float32 source voxels on the region."""
        with self.stages("prepare"):
            ready = await run_sync(
                partial(prepared, rule=self.rule, organ_mask=self.prompts.organ_mask),
                image,
                self.source.geometry,
                region.roi,
            )
        with self.stages("encode"):
            embeddings = await self.engine.encode(ready.image, ready.organ_mask)
        with self.stages("text"):
            await self.engine.embed_text(region.placed.phrases)  # `decode` finds it in the engine's cache
        with self.stages("decode"):
            return Tile(region.corner, await self.engine.decode(embeddings, region.placed))

    def _region(self, lattice: Lattice, corner: Corner, tiles: Sequence[Tile]) -> _Region:
        """The region with its prompts. Its previous mask is what the tiles found, elsewhere the user's."""
        roi, previous = lattice.roi(corner), None
        if self.prompts.mask is not None:
            share = onto_roi(self.prompts.mask, self.source.geometry, roi)
            previous = share > 0.5 * min(1.0, float(share.max()))  # what is finer than the region's grid still counts
        if tiles:
            logits, covered = blend(tiles, corner, roi.shape_zyx)
            previous = np.where(covered, logits > 0, False if previous is None else previous)
        return _Region(corner, roi, previous, place(self.prompts, roi, previous, self.engine.bundle.sizes))

    def _neighbours(
        self, tile: Tile, tiles: Sequence[Tile], lattice: Lattice, previous: np.ndarray | None
    ) -> list[Corner]:  # fmt: skip
        return neighbours(tile, tiles, lattice, self.source.geometry, prompts=self.prompts, previous=previous)


def _first_corners(prompts: Prompts, source: Geometry, lattice: Lattice) -> list[Corner]:
    return first_corners(extents_of(prompts, source, lattice), lattice.size)


def _rule(bundle: Bundle, modality: str, target: str | None) -> IntensityRule:
    try:
        return bundle.rule(modality, target)
    except KeyError as error:
        raise UnsupportedModality(f"the bundle knows {', '.join(sorted(bundle.intensity))} only") from error
