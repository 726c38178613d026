"""`python -m bench.sizing`: what docs/sizing.md plans with: CPU seconds and memory of a request, bytes of an image.

CPU seconds of this process, not wall time, so that a busy machine measures the same. The embedded engine on one thread,
the demo's phantom CT, without HTTP.
"""

from __future__ import annotations

import asyncio
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.record import write_record
from service.app import open_engine
from service.dicom.facts import read_facts
from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.phantom import SHAPE_ZYX, Identity, write_phantom
from service.domain.prompts import Prompts
from service.inference.engine import Embeddings, Engine
from service.ledger.ledger import open_ledger
from service.ledger.receiving import Arrival, Origin
from service.prompt_document import read_prompt_document, resolve
from service.results import render
from service.segment import segment
from service.settings import Settings
from service.telemetry.stages import Stages

LIMITS = SeriesLimits(max_instances=1000, max_voxels=2**26)


class Counting:
    """An engine that counts the regions it encodes."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.regions = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def encode(self, image: Any, organ_mask: Any) -> Embeddings:
        self.regions += 1
        return await self._engine.encode(image, organ_mask)


def main() -> None:
    """Writes bench/results/sizing.json."""
    with tempfile.TemporaryDirectory() as directory:
        phantom = write_phantom(Path(directory) / "series")
        paths = sorted(phantom.directory.iterdir())
        engine = Counting(open_engine(Settings(threads=1)))
        idle_mib = peak_mib()
        prompts = {
            "click": {"points": [{"lps_mm": phantom.click_lps_mm}]},
            "box": {"boxes": [{"lps_mm": phantom.box_lps_mm}]},
            "text": {"text": "liver tumour", "target": "liver"},
        }
        figures = {name: asyncio.run(request(paths, document, engine)) for name, document in prompts.items()}
        held = ledger_bytes(Path(directory))
    table = Table("prompt", "CPU s", "regions")
    for name, figure in figures.items():
        table.add_row(name, *(str(figure[key]) for key in ("cpu_s", "regions")))
    console = Console()
    console.print(table)
    console.print(f"peak {peak_mib():.0f} MiB, {idle_mib:.0f} MiB before the first request; {held}")
    record = {"series_zyx": list(SHAPE_ZYX), "requests": figures, "peak_mib": peak_mib(), "idle_mib": idle_mib} | held
    write_record("sizing", engine.bundle.identity, record)


async def request(paths: list[Path], document: dict[str, Any], engine: Counting) -> dict[str, float]:
    """The way from files to a SEG, once to warm up and once measured."""
    for _ in range(2):
        engine.regions, started = 0, time.process_time()
        series = read_series(paths, series_instance_uid=None, limits=LIMITS)
        wanted: Prompts = resolve(read_prompt_document(json.dumps(document)), series)
        mask = await segment(series, wanted, engine, Stages())
        if mask.voxels.any():
            render("seg", series, mask, wanted, engine.bundle, Stages())
        cpu_s = time.process_time() - started
    return {"cpu_s": round(cpu_s, 2), "regions": engine.regions}


def peak_mib() -> float:
    """Resident memory of this process at its highest."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def ledger_bytes(directory: Path) -> dict[str, int]:
    """What the database keeps of one image, beside the image itself."""
    write_phantom(directory / "again", Identity(seed="sizing"))
    ledger = open_ledger(directory / "data")
    try:
        arrivals = [Arrival(path, read_facts(path), Origin("stow")) for path in sorted((directory / "again").iterdir())]
        ledger.receiver.receive(arrivals)
    finally:
        ledger.close()
    files = list((directory / "data").glob("ledger.db*"))
    return {"database_bytes_per_image": sum(path.stat().st_size for path in files) // len(arrivals)}


if __name__ == "__main__":
    main()
