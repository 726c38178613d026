"""`python -m bench.drain`: a hundred studies sent at once, each to be segmented and delivered to a real Orthanc.

The bundle is the shipped one. A worker is started once everything is received, so that all of it waits; what is
measured is from then until every image has its fate. The CT studies are small (12 slices of 64 x 64), so that it is the
queue that is tried, not the networks: one look by text finds no tumour in most, and an SR that says so is a result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from bench.ingest import running_orthanc
from bench.process import cpu_s, memory_mib
from bench.record import write_record
from demo.running import ROOT, running_service, stop
from service.ledger.ledger import open_ledger
from service.ledger.report import Report, reconcile
from tests.pacs.stow import store
from tests.phantoms import write_ct_series

SHAPE_ZYX, SPACING_ZYX_MM = (12, 64, 64), (4.0, 1.5, 1.5)
SENDERS = 4
PAUSE_S = 1.0


def main(studies: Annotated[int, typer.Option(min=1)] = 100, limit_s: Annotated[float, typer.Option()] = 3600) -> None:
    """Fail unless every job is done at its first attempt and every image is delivered."""
    with tempfile.TemporaryDirectory() as name, running_orthanc(Path(name) / "orthanc") as orthanc:
        directory, routing = Path(name) / "data", Path(name) / "routing.yaml"
        routing.write_text(json.dumps(rules(orthanc.stow_url.removesuffix("/studies"))))
        settings = {"data_dir": str(directory), "routing_file": str(routing)}
        with running_service(**settings, worker="false") as client:
            sent_s = send(client, Path(name) / "sent", studies)
        figures = drained(settings, directory, limit_s) | {"studies": studies, "sent_s": round(sent_s, 1)}
    Console().print_json(data=figures)
    expected = {"series done, 1 attempts": studies, "delivery done, 1 attempts": studies}
    if figures["jobs"] != expected or figures["fates"] != {"delivered": studies * SHAPE_ZYX[0]}:
        raise typer.Exit(1)
    write_record("drain", "small", figures)


def rules(url: str) -> dict[str, Any]:
    rule = {"name": "all", "match": {"Modality": "CT"}, "prompts": {"text": "liver tumour"}, "outputs": ["seg", "sr"]}
    destinations = {"pacs": {"stow": {"url": url}}}
    return {"completeness": {"quiet_s": 1}, "destinations": destinations, "rules": [rule | {"destinations": ["pacs"]}]}


def send(client: httpx.Client, directory: Path, studies: int) -> float:
    """Seconds. Raises: httpx.HTTPStatusError: one was not acknowledged."""
    phantoms = [
        write_ct_series(
            directory / str(number), shape_zyx=SHAPE_ZYX, spacing_zyx_mm=SPACING_ZYX_MM, study=f"drain {number}"
        )
        for number in range(studies)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(SENDERS) as pool:
        for answer in pool.map(lambda phantom: store(client, phantom.paths), phantoms):
            answer.raise_for_status()
    return time.perf_counter() - started


def drained(settings: dict[str, str], directory: Path, limit_s: float) -> dict[str, Any]:
    """Run one worker until nothing is open. Raises: TimeoutError."""
    environment = os.environ | {f"TAGS_{name.upper()}": value for name, value in settings.items()}
    ledger = open_ledger(directory)
    started = time.perf_counter()
    worker = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "worker"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        while (report := reconcile(ledger.database)).open:
            if time.perf_counter() - started > limit_s:
                raise TimeoutError(f"after {limit_s:g} s {len(report.open)} series are open")
            time.sleep(PAUSE_S)
        seconds = time.perf_counter() - started
        jobs = Counter(f"{job.kind} {job.state}, {job.attempts} attempts" for job in ledger.jobs.listed(limit=100_000))
        cpu_seconds, peak_mib = cpu_s(worker.pid), memory_mib(worker.pid, "VmHWM")
    finally:
        stop(worker)
        ledger.close()
    return {
        "drained_s": round(seconds, 1),
        "jobs": dict(jobs),
        "fates": fates(report),
        "worker_cpu_s": round(cpu_seconds, 1),
        "worker_peak_mib": round(peak_mib),
    }


def fates(report: Report) -> dict[str, int]:
    return {" ".join(filter(None, fate)): count for fate, count in report.by_fate.items()}


if __name__ == "__main__":
    typer.run(main)
