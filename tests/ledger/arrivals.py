"""Staged phantom files for the ledger's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from pydicom import Dataset

from service.dicom.facts import read_facts
from service.ledger.ledger import Ledger
from service.ledger.receiving import Arrival, Origin
from tests.phantoms import PhantomSeries, write_ct_series

STOW = Origin("stow")


def phantom_series(
    directory: Path, *, images: int = 4, series: str = "series", change: Callable[[Dataset, int], None] | None = None
) -> PhantomSeries:
    return write_ct_series(directory, shape_zyx=(images, 12, 10), series=series, change=change)


def staged(ledger: Ledger, path: Path, origin: Origin = STOW) -> Arrival:
    """An arrival whose file is a copy: the ledger takes it away."""
    copy = ledger.staging.directory() / "part"
    shutil.copyfile(path, copy)
    return Arrival(copy, read_facts(copy), origin)
