"""The use case: a source image and prompts in, the tumour's mask on the source grid out.

    read -> prepare -> encode -> text -> decode, once per region of interest, -> restore

Prompts that say where start with the region around them, at the spacing that suits the tumour; looks at other spacings
follow until it does. What even the widest does not hold brings in the next region.
A text alone first searches the volume on a coarse grid; what it proposes goes on as a previous mask.
Numpy work runs in threads, networks in the engine: nothing blocks the event loop. Nothing outlives the request.
Decisions: docs/decisions/0004-region-of-interest.md, 0007-adaptive-zoom.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from anyio.to_thread import run_sync

from contract.bundle import Bundle
from contract.intensity import IntensityRule
from service.domain.extension import MAX_ROIS
from service.domain.geometry import Geometry
from service.domain.mask import Mask
from service.domain.place import check_prompts, has_place, place, points_somewhere
from service.domain.prepare import add_slab, prepared, slabs_needed
from service.domain.prompts import PlacedPrompts, Prompts
from service.domain.proposals import propose, search
from service.domain.resample import onto_roi
from service.domain.restore import Tile, blend, restore
from service.domain.roi import Corner, Lattice, extents_of, first_corners, lattice_on
from service.domain.volume import SliceCache, SourceImage
from service.domain.zoom import MAX_LOOKS, Seen, seen_in, zoom_on
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
    rule = _rule(bundle, source.modality, prompts.target)
    request = _Request(SliceCache(source), prompts, engine, stages, rule)
    if not has_place(prompts):
        request = await request.search()
    lattice, tiles, complete = await request.look() if has_place(request.prompts) else (request.lattice(1.0), [], True)
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
class _Look:
    """What the networks say at one spacing."""

    lattice: Lattice
    tiles: list[Tile]
    complete: bool  # MAX_ROIS regions were enough for all places
    seen: Seen | None  # None when no other look can follow

    @property
    def worth(self) -> tuple[bool, bool, float]:
        """What ends within its regions is worth more than what leaves them, and that more than nothing. Then the answer
        counts that the networks expect more of, or the wider view of what has no end."""
        found = self.seen is not None and bool(self.seen.places_mm)
        if self.seen is None or self.seen.leaves or not found:
            return False, found, self.lattice.spacing_mm
        return True, found, self.seen.expected_dice


@dataclass(frozen=True, eq=False)
class _Request:
    """What every step of one request needs."""

    source: SourceImage
    prompts: Prompts
    engine: Engine
    stages: Stages
    rule: IntensityRule

    def lattice(self, spacing_mm: float) -> Lattice:
        return lattice_on(self.source.geometry, spacing_mm=spacing_mm, size=self.engine.bundle.sizes.roi)

    async def search(self) -> _Request:
        """Look for a text everywhere. Returns: the request with what seems to be it as the previous mask."""
        geometry, organ_mask = self.source.geometry, self.prompts.organ_mask
        coarse, corners = await run_sync(search, self.lattice, self.engine.bundle.grid, geometry, organ_mask)
        tiles, _ = await self._wave(coarse, corners, ())
        with self.stages("restore"):
            proposal = await run_sync(propose, tiles, coarse, geometry, organ_mask)
        return replace(self, prompts=replace(self.prompts, mask=proposal))

    async def look(self) -> tuple[Lattice, list[Tile], bool]:
        """Look at the places that the prompts name: where only clicks do, from several distances, of which the one
        counts that the networks expect most of; then closer or wider until the tumour fills its region as it should.

        A box says how far the tumour goes, so beside one the first look is the last.
        Returns: the lattice and tiles of the last look, and whether the tumour ended within them.
        """
        geometry, bundle, prompts = self.source.geometry, self.engine.bundle, self.prompts
        zoom = zoom_on(geometry, bundle.grid, bundle.sizes.roi)
        clicks, told = await run_sync(_places_mm, prompts, geometry, self.lattice(1.0))
        points = [np.stack([click, click]) for click in clicks]
        looks = [await self._at(spacing_mm, [*points, *told]) for spacing_mm in zoom.first(told, clicks)]
        while (look := max(looks, key=lambda one: one.worth)).seen and len(looks) < MAX_LOOKS:
            tried_mm = [one.lattice.spacing_mm for one in looks]
            left_mm = [one.lattice.spacing_mm for one in looks if one.seen and one.seen.leaves]
            following_mm = zoom.following(look.lattice.spacing_mm, look.seen, tried_mm, left_mm)
            if following_mm is None:
                break
            looks.append(await self._at(following_mm, [*points, *(look.seen.places_mm or told)]))
        if look.seen is None:
            return look.lattice, look.tiles, look.complete
        return look.lattice, *await self._grow(look.lattice, look.tiles, look.seen)

    async def _at(self, spacing_mm: float, places_mm: Sequence[np.ndarray]) -> _Look:
        """One look. Args: places_mm: (2, 3) each, what it should show."""
        lattice = self.lattice(spacing_mm)
        corners = first_corners([place / spacing_mm for place in places_mm], lattice.size)
        complete = len(corners) <= MAX_ROIS
        tiles, regions = await self._wave(lattice, corners[:MAX_ROIS], ())
        last = len(self.prompts.boxes_lps_mm) > 0 or not complete
        return _Look(lattice, tiles, complete, None if last else await self._seen(lattice, tiles, regions))

    async def _grow(self, lattice: Lattice, tiles: Sequence[Tile], seen: Seen) -> tuple[list[Tile], bool]:
        """Wave by wave the neighbours into which the tumour goes on, up to MAX_ROIS.

        Args: tiles, seen: the first wave and what is in it. Returns: all tiles, and whether the tumour ended within
        them.
        """
        known = list(tiles)
        asked = dict.fromkeys(tile.corner for tile in known)  # a set that keeps its order
        while wave := [corner for corner in dict.fromkeys(seen.beyond) if corner not in asked]:
            wave, left_out = wave[: MAX_ROIS - len(asked)], wave[MAX_ROIS - len(asked) :]
            asked |= dict.fromkeys(wave)
            found, regions = await self._wave(lattice, wave, tuple(known))
            if left_out:
                return [*known, *found], False
            seen = await self._seen(lattice, found, regions, known)
            known += found
        return known, True

    async def _seen(
        self, lattice: Lattice, tiles: Sequence[Tile], regions: Sequence[_Region], others: Sequence[Tile] = ()
    ) -> Seen:
        previous = [region.previous for region in regions]
        with self.stages("restore"):
            return await run_sync(
                seen_in, tiles, previous, lattice, self.source.geometry, self.prompts, tuple(others)
            )  # fmt: skip

    async def _wave(
        self, lattice: Lattice, corners: Sequence[Corner], tiles: Sequence[Tile]
    ) -> tuple[list[Tile], list[_Region]]:
        """Decode regions; those in which no prompt points anywhere are left out, unless a text alone is searched for.

        Args: tiles: what was found so far on this lattice: the regions' previous mask.
        """
        with self.stages("prepare"):
            regions = [await run_sync(self._region, lattice, corner, tuple(tiles)) for corner in corners]
        if has_place(self.prompts):
            regions = [region for region in regions if points_somewhere(region.placed)]
        return await self._infer(regions), regions

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


def _places_mm(prompts: Prompts, source: Geometry, lattice: Lattice) -> tuple[np.ndarray, list[np.ndarray]]:
    """Foreground clicks, (N, 3), and boxes and mask parts, (2, 3) each. Args: lattice: of 1 mm."""
    clicks = lattice.to_lattice(prompts.foreground_lps_mm)
    return clicks, extents_of(prompts, source, lattice)[len(clicks) :]


def _rule(bundle: Bundle, modality: str, target: str | None) -> IntensityRule:
    try:
        return bundle.rule(modality, target)
    except KeyError as error:
        raise UnsupportedModality(f"the bundle knows {', '.join(sorted(bundle.intensity))} only") from error
