"""The grid rule: how finely the network looks. A region of interest always has as many voxels; its spacing follows the
tumour, so that a nodule and a sarcoma look alike to the network. The rule is in the bundle; the arithmetic is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GridRule:
    """Isotropic spacings in mm, and how large a tumour should be in its region."""

    first_mm: float  # around a click, when nothing says how large the tumour is
    finest_mm: float
    coarsest_mm: float
    search_finest_mm: float  # for a text alone, which has to see where in the body it looks
    search_coarsest_mm: float
    fill: float  # share of a region's side that the tumour's longest side should take

    def __post_init__(self) -> None:
        if not 0 < self.finest_mm <= self.first_mm <= self.coarsest_mm:
            raise ValueError("the grid rule needs 0 < finest_mm <= first_mm <= coarsest_mm")
        if not (0 < self.search_finest_mm <= self.search_coarsest_mm and 0 < self.fill < 1):
            raise ValueError("the grid rule needs 0 < search_finest_mm <= search_coarsest_mm and fill within 0 and 1")

    def spacing_mm(self, extent_mm: float, size: int) -> float:
        """The spacing at which something of this length fills its region of `size` voxels per side as it should."""
        return min(max(extent_mm / (self.fill * size), self.finest_mm), self.coarsest_mm)

    def search_mm(self, extent_mm: float, size: int) -> float:
        """The spacing at which one region sees this length, as far as searching goes."""
        return min(max(extent_mm / size, self.search_finest_mm), self.search_coarsest_mm)


def fixed_grid(spacing_mm: float) -> GridRule:
    """One spacing for everything, as TAGS was published (1 mm)."""
    return GridRule(spacing_mm, spacing_mm, spacing_mm, spacing_mm, spacing_mm, fill=0.75)
