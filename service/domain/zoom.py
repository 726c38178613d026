"""How closely to look: the spacing of the region follows the tumour, from what prompts say and from what was found.

Places are (2, 3) mm along the lattice's axes from its origin, smallest then largest: they hold at every spacing.
Decision: docs/decisions/0007-adaptive-zoom.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from contract.grid import GridRule
from service.domain.components import attached
from service.domain.extension import neighbours
from service.domain.geometry import Geometry
from service.domain.prompts import Prompts
from service.domain.restore import Tile
from service.domain.roi import Corner, Lattice

MAX_LOOKS = 4  # regions cost a quarter of a second each on two cores
WIDER = 1.6  # times the spacing, where the tumour leaves its region
CLOSER = 0.5  # times the spacing, where nothing was found
ALIKE = 1.3  # spacings that differ by less need no other look
LEAST_FILL = 0.3  # share of a region's side: what fills less is looked at more closely
FINER_THAN_SOURCE = 0.5  # of the source's finest spacing: closer there is nothing to see


@dataclass(frozen=True, eq=False)
class Seen:
    """What one look found."""

    places_mm: list[np.ndarray]  # of each connected part that the prompts mean
    beyond: list[Corner] = field(default_factory=list)  # regions into which those parts go on

    @property
    def longest_mm(self) -> float:
        return max((float(np.max(place[1] - place[0])) for place in self.places_mm), default=0.0)

    @property
    def leaves(self) -> bool:
        return bool(self.beyond)


@dataclass(frozen=True)
class Zoom:
    """The spacings that one request may use, and the widest at which the tumour left its region."""

    rule: GridRule
    size: int
    finest_mm: float
    coarsest_mm: float
    too_close_mm: float = 0.0

    def first(self, told_mm: Sequence[np.ndarray], clicks_mm: np.ndarray) -> float:
        """The first look's spacing.

        Args: told_mm: places that say how large the tumour is: boxes, parts of a mask. clicks_mm: (N, 3).
        """
        if told_mm:
            return self._within(self.rule.spacing_mm(Seen(list(told_mm)).longest_mm, self.size))
        spread = float(np.max(np.ptp(clicks_mm, axis=0))) if len(clicks_mm) > 1 else 0.0
        return self._within(max(self.rule.first_mm, self.rule.spacing_mm(spread, self.size)))

    def following(self, spacing_mm: float, seen: Seen) -> float | None:
        """The spacing that would suit what was seen better, or None."""
        if seen.leaves:
            wanted = WIDER * spacing_mm
        elif seen.longest_mm >= LEAST_FILL * self.size * spacing_mm:
            return None
        elif not seen.places_mm:
            wanted = CLOSER * spacing_mm
        else:
            wanted = max(self.rule.spacing_mm(seen.longest_mm, self.size), ALIKE * self.too_close_mm)
        wanted = self._within(wanted)
        alike = max(wanted / spacing_mm, spacing_mm / wanted) < ALIKE
        return None if alike and not (seen.leaves and wanted > spacing_mm) else wanted

    def _within(self, spacing_mm: float) -> float:
        return min(max(spacing_mm, self.finest_mm), self.coarsest_mm)


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
    for tile, before in zip(tiles, previous, strict=True):
        found = attached(tile.logits > 0, lattice.roi(tile.corner), prompts, before)
        labels, _ = ndimage.label(found, np.ones((3, 3, 3)))
        for part in ndimage.find_objects(labels):
            low, high = (np.array([getattr(side, end) for side in part]) for end in ("start", "stop"))
            places.append((np.stack([low - 0.5, high - 0.5]) + tile.corner) * lattice.spacing_mm)
        beyond += neighbours(tile, found, (*others, *tiles), lattice, source)
    return Seen(places, beyond)
