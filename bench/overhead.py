"""`python -m bench.overhead`: what the gateway adds to the networks, through the public API of a started service.

One click on the demo's phantom CT, whose tumour fits into one region. Every stage is the service's own figure
from `Server-Timing`; the rest of the client's wall time (sockets, multipart, routing) is shown as "elsewhere".
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from demo.answers import stage_ms, zipped
from demo.running import running_service
from service.dicom.phantom import SHAPE_ZYX, write_phantom

NETWORKS = ("encode", "text", "decode")


def main(
    runs: Annotated[int, typer.Option(min=1)] = 7,
    format: Annotated[str, typer.Option(help="Output format to measure.")] = "seg",
) -> None:
    """Median of several requests after one warm-up."""
    with tempfile.TemporaryDirectory() as directory, running_service() as client:
        phantom = write_phantom(Path(directory))
        upload = zipped(phantom.directory)
        prompts = json.dumps({"points": [{"lps_mm": phantom.click_lps_mm}]})
        bundle = client.get("/health/ready").json()["bundle"]
        measured = [request_ms(client, upload, prompts, format) for _ in range(runs + 1)][1:]
    medians = {name: round(median(times[name] for times in measured), 1) for name in measured[0]}
    networks = sum(medians.get(name, 0) for name in NETWORKS)
    added = sum(value for name, value in medians.items() if name not in (*NETWORKS, "total"))
    ratio = added / networks
    table = Table("stage", "median, ms", title=f"one click, {format}, {runs} runs, bundle {bundle}")
    for name, value in medians.items():
        table.add_row(name, f"{value:.0f}")
    table.add_row("networks", f"{networks:.0f}")
    table.add_row("added by the gateway", f"{added:.0f}, {ratio:.2f} of the networks")
    Console().print(table)
    figures = {
        "runs": runs, "format": format, "series_zyx": list(SHAPE_ZYX), "upload_bytes": len(upload),
        "stages_ms": medians, "networks_ms": round(networks, 1), "gateway_ms": round(added, 1),
        "gateway_to_networks": round(ratio, 3),
    }  # fmt: skip
    write_record("overhead", bundle, figures)


def request_ms(client: httpx.Client, upload: bytes, prompts: str, format: str) -> dict[str, float]:
    """Milliseconds by stage, with "elsewhere" and "total"."""
    started = time.perf_counter()
    answer = client.post(
        "/segment", params={"format": format}, files={"files": ("series.zip", upload)}, data={"prompts": prompts}
    )
    total = 1000 * (time.perf_counter() - started)
    answer.raise_for_status()
    stages = stage_ms(answer)
    return {**stages, "elsewhere": total - sum(stages.values()), "total": total}


if __name__ == "__main__":
    typer.run(main)
