"""How closely to look: the spacing of the region follows the tumour, from what prompts say and from what was found.

Places are (2, 3) mm along the lattice's axes from its origin, smallest then largest: they hold at every spacing.
Decision: docs/decisions/0007-adaptive-zoom.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.special import expit

from contract.grid import GridRule
from service.domain.components import attached
from service.domain.extension import neighbours
from service.domain.geometry import Geometry
from service.domain.prompts import Prompts
from service.domain.restore import Tile
from service.domain.roi import Corner, Lattice

MAX_LOOKS = 5  # regions cost a quarter of a second each on two cores
STEP = 1.4  # times the spacing or less, for a wider or a closer look
CLOSER = 0.5  # times the spacing, where nothing was found
ALIKE = 1.3  # spacings that differ by less need no other look
AS_GOOD_AS_ONE = 1.12  # spacings that differ by less give the same answer
LEAST_FILL = 0.3  # share of a region's side: what fills less is looked at more closely
FINER_THAN_SOURCE = 0.5  # of the source's finest spacing: closer there is nothing to see


@dataclass(frozen=True, eq=False)
class Seen:
    """What one look found."""

    places_mm: list[np.ndarray]  # of each connected part that the prompts mean
    beyond: list[Corner] = field(default_factory=list)  # regions into which those parts go on
    expected_dice: float = 0.0  # of those parts, if the network's probabilities were true

    @property
    def longest_mm(self) -> float:
        return max((float(np.max(place[1] - place[0])) for place in self.places_mm), default=0.0)

    @property
    def leaves(self) -> bool:
        return bool(self.beyond)


@dataclass(frozen=True)
class Zoom:
    """The spacings that one request may use."""

    rule: GridRule
    size: int
    finest_mm: float
    coarsest_mm: float

    def first(self, told_mm: Sequence[np.ndarray], clicks_mm: np.ndarray) -> list[float]:
        """The spacings to begin with: one where something says how large the tumour is, else one that would suit most
        tumours, then a step wider and a step closer, as far as all clicks stay in view.

        Args: told_mm: places that say how large the tumour is: boxes, parts of a mask. clicks_mm: (N, 3).
        """
        if told_mm:
            return [self._within(self.rule.spacing_mm(Seen(list(told_mm)).longest_mm, self.size))]
        spread = float(np.max(np.ptp(clicks_mm, axis=0))) if len(clicks_mm) > 1 else 0.0
        least = self.rule.spacing_mm(spread, self.size)
        suits = self._within(max(self.rule.first_mm, least))
        others = (self._within(wanted) for wanted in (suits * STEP, max(suits / STEP, least)))
        return [suits, *(other for other in others if _ratio(other, suits) >= AS_GOOD_AS_ONE)]

    def following(
        self, spacing_mm: float, seen: Seen, tried_mm: Sequence[float], left_mm: Sequence[float] = ()
    ) -> float | None:
        """The spacing that would suit what was seen better, or None.

        Args: tried_mm: of all looks so far. left_mm: of those in which the tumour left its region.
        """
        if seen.leaves:
            wanted = STEP * spacing_mm
        elif seen.longest_mm >= LEAST_FILL * self.size * spacing_mm:
            return None
        elif not seen.places_mm:
            wanted = CLOSER * spacing_mm
        else:
            wanted = max(self.rule.spacing_mm(seen.longest_mm, self.size), ALIKE * max(left_mm, default=0.0))
        wanted = self._within(wanted)
        alike = any(_ratio(wanted, tried) < ALIKE for tried in tried_mm)
        return None if alike and not (seen.leaves and wanted > max(tried_mm)) else wanted

    def _within(self, spacing_mm: float) -> float:
        return min(max(spacing_mm, self.finest_mm), self.coarsest_mm)


def _ratio(one: float, other: float) -> float:
    return max(one / other, other / one)


def zoom_on(source: Geometry, rule: GridRule, size: int) -> Zoom:
    """A source coarser than the rule is looked at as closely as makes sense, and a small one not from so far away that
    the region is mostly beyond its edges."""
    finest = max(rule.finest_mm, FINER_THAN_SOURCE * float(min(source.spacing_zyx_mm)))
    whole = float(np.max(np.array(source.shape_zyx) * source.spacing_zyx_mm)) / size
    coarsest = min(rule.coarsest_mm, max(whole, finest))
    return Zoom(rule, size, min(finest, coarsest), coarsest)


def seen_in(
    tiles: Sequence[Tile],
    previous: Sequence[np.ndarray | None],
    lattice: Lattice,
    source: Geometry,
    prompts: Prompts,
    others: Sequence[Tile] = (),
) -> Seen:
    """What new tiles hold.

    Args: tiles, previous: the tiles, each with the (S, S, S) bool previous mask that it was decoded with.
    others: tiles that were there before them on the lattice.
    """
    places: list[np.ndarray] = []
    beyond: list[Corner] = []
    inside, voxels, everywhere = 0.0, 0, 0.0  # probability within the parts, their voxels, probability in all
    for tile, before in zip(tiles, previous, strict=True):
        found = attached(tile.logits > 0, lattice.roi(tile.corner), prompts, before)
        labels, _ = ndimage.label(found, np.ones((3, 3, 3)))
        for part in ndimage.find_objects(labels):
            low, high = (np.array([getattr(side, end) for side in part]) for end in ("start", "stop"))
            places.append((np.stack([low - 0.5, high - 0.5]) + tile.corner) * lattice.spacing_mm)
        beyond += neighbours(tile, found, (*others, *tiles), lattice, source)
        probability = expit(tile.logits)
        inside += float(np.sum(probability[found], dtype=float))
        voxels += int(np.count_nonzero(found))
        everywhere += float(np.sum(probability, dtype=float))
    return Seen(places, beyond, 2 * inside / (voxels + everywhere) if voxels else 0.0)
