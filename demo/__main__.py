"""`python -m demo`: a made-up CT series through the real service by click, box and text, with the truth beside it.

What leaves: SEG, NIfTI, PNG and JSON of each prompt in demo/out, a table, and exit status 1 when an answer is not 200
or its mask is not on the series' grid. Quality is shown, not judged.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from demo.answers import Grid, WrongGrid, dice, members, stage_ms, zipped
from demo.running import ServiceDidNotStart, running_service
from service.dicom.phantom import Phantom, write_phantom, write_second_series

OUT = Path(__file__).resolve().parent / "out"
console = Console()


class AnswerRefused(RuntimeError):
    """The service answered with a problem."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one prompt gave."""

    prompt: str
    mask: np.ndarray  # (D, H, W) bool
    found: dict[str, Any]  # the JSON answer
    seconds: float  # as the client saw it
    stages_ms: dict[str, float]


def main() -> int:
    shutil.rmtree(OUT, ignore_errors=True)
    with console.status("making a CT series with a known tumour"):
        phantom = write_phantom(OUT / "series")
        upload = zipped(phantom.directory)
        write_examples(OUT, phantom, upload)
    prompts = {
        "click": {"points": [{"lps_mm": phantom.click_lps_mm}]},
        "box": {"boxes": [{"lps_mm": phantom.box_lps_mm}]},
        "text": {"text": "liver tumour", "target": "liver"},
        "click and text": {"text": "liver tumour", "points": [{"lps_mm": phantom.click_lps_mm}]},
    }
    try:
        with console.status("starting the service"), running_service() as client:
            bundle = client.get("/health/ready").json()["bundle"]
            outcomes = []
            for name, document in prompts.items():
                with console.status(f"segmenting by {name}"):
                    outcomes.append(ask(client, upload, name, document, Grid(phantom.directory)))
    except (AnswerRefused, WrongGrid, ServiceDidNotStart, httpx.HTTPError) as error:
        console.print(f"[red]{error or type(error).__name__}[/red]")
        return 1
    console.print(results(phantom, outcomes, bundle))
    console.print(times(outcomes))
    console.print(f"SEG, NIfTI, PNG and JSON of each prompt: {OUT}\nResearch use only. Not for diagnosis or treatment.")
    return 0


def write_examples(directory: Path, phantom: Phantom, upload: bytes) -> None:
    """What the README's examples send: the series as a ZIP, and two series in one folder and one ZIP."""
    both = directory / "two_series"
    shutil.copytree(phantom.directory, both / "1")
    write_second_series(both / "2", phantom)
    (directory / "series.zip").write_bytes(upload)
    (directory / "two_series.zip").write_bytes(zipped(both))


def ask(client: httpx.Client, upload: bytes, name: str, document: dict[str, Any], grid: Grid) -> Outcome:
    """One request for every format at once; its files go to demo/out. Raises: AnswerRefused, WrongGrid."""
    started = time.perf_counter()
    answer = client.post(
        "/segment",
        params={"format": "bundle"},
        files={"files": ("series.zip", upload)},
        data={"prompts": json.dumps(document)},
    )
    seconds = time.perf_counter() - started
    if answer.status_code != httpx.codes.OK:
        raise AnswerRefused(f"{name}: {answer.status_code} {answer.text}")
    files = members(answer.content)
    directory = OUT / name.replace(" ", "_")
    directory.mkdir()
    for file_name, content in files.items():
        (directory / file_name).write_bytes(content)
    mask = grid.nifti(files["tumour.nii.gz"])
    if "tumour.seg.dcm" in files and not np.array_equal(grid.seg(files["tumour.seg.dcm"]), mask):
        raise WrongGrid(f"{name}: SEG and NIfTI differ")
    return Outcome(name, mask, json.loads(files["tumour.json"]), seconds, stage_ms(answer))


def results(phantom: Phantom, outcomes: list[Outcome], bundle: str) -> Table:
    table = Table(title=f"bundle {bundle}; the tumour has {phantom.volume_ml:.1f} ml")
    for heading in ("prompt", "Dice", "found", "diameter", "score"):
        table.add_column(heading, justify="left" if heading == "prompt" else "right")
    for outcome in outcomes:
        found = outcome.found
        table.add_row(
            outcome.prompt,
            f"{dice(outcome.mask, phantom.tumour):.3f}",
            f"{found['volume_ml']:.1f} ml",
            f"{found['max_diameter_mm'] or 0:.0f} mm",
            f"{found['score']:.2f}",
        )
    return table


def times(outcomes: list[Outcome]) -> Table:
    """Stage by stage, as `Server-Timing` says, and the whole as the client saw it."""
    table = Table("ms", *(outcome.prompt for outcome in outcomes), title="stage times")
    stages = dict.fromkeys(name for outcome in outcomes for name in outcome.stages_ms)
    for name in stages:
        table.add_row(name, *(f"{outcome.stages_ms.get(name, 0):.0f}" for outcome in outcomes))
    table.add_row("request", *(f"{1000 * outcome.seconds:.0f}" for outcome in outcomes))
    return table


if __name__ == "__main__":
    sys.exit(main())
