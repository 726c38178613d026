"""`python -m bench.tumours`: real CT and MR tumours through the public API, beside a sphere and region growing.

Reads folders CASE/image (DICOM) and CASE/mask.nii.gz (a radiation oncologist's outline on the same grid). The click is
the voxel deepest inside the tumour, the box its exact bounding box. Both baselines are given their best parameter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import ndimage

from bench.record import ROOT, write_record
from demo.answers import Grid, dice, zipped
from demo.running import running_service
from training.baselines import best_region_growing, best_sphere  # numpy only

METHODS = ("click", "box", "sphere", "region_growing")


@dataclass(frozen=True, eq=False)
class Case:
    """One tumour with its prompts."""

    name: str
    upload: bytes  # ZIP of the series
    grid: Grid
    truth: np.ndarray  # (D, H, W) bool
    click_zyx: np.ndarray  # (3,) int
    prompts: dict[str, dict[str, Any]]  # by method


@dataclass(frozen=True)
class Row:
    """Dice and seconds of one case, by method; volume in ml."""

    case: str
    volume_ml: float
    dice: dict[str, float]
    seconds: dict[str, float]


def main(
    directory: Annotated[Path, typer.Option(exists=True)] = ROOT.parent / "shared" / "tumours",
    only: Annotated[str, typer.Option(help="Cases whose name has this in it.")] = "",
) -> None:
    """Every case by click and by box. A wrong grid or a refusal ends the run."""
    names = [path for path in sorted(directory.iterdir()) if (path / "mask.nii.gz").exists() and only in path.name]
    with running_service() as client:
        bundle = client.get("/health/ready").json()["bundle"]
        rows = [measure(client, read_case(path)) for path in track(names, "segmenting")]
    Console().print(as_table(rows, bundle))
    means = {name: round(mean(row.dice[name] for row in rows), 3) for name in METHODS}
    write_record("tumours", bundle, {"mean_dice": means, "cases": [asdict(row) for row in rows]})


def read_case(directory: Path) -> Case:
    """A case with its prompts."""
    grid = Grid(directory / "image")
    truth = grid.nifti((directory / "mask.nii.gz").read_bytes())
    depth = ndimage.distance_transform_edt(np.pad(truth, 1), sampling=grid.spacing_zyx_mm)[1:-1, 1:-1, 1:-1]
    click_zyx = np.array(np.unravel_index(depth.argmax(), depth.shape))
    inside = np.argwhere(truth)
    corners = grid.lps_mm(np.array([inside.min(axis=0), inside.max(axis=0)]))
    prompts = {
        "click": {"points": [{"lps_mm": grid.lps_mm(click_zyx[None])[0].tolist()}]},
        "box": {"boxes": [{"lps_mm": corners.tolist()}]},
    }
    return Case(directory.name, zipped(directory / "image"), grid, truth, click_zyx, prompts)


def ask(client: httpx.Client, case: Case, method: str) -> np.ndarray:
    """The mask of one request, (D, H, W) bool on the case's grid. Raises: WrongGrid, httpx.HTTPStatusError."""
    answer = client.post(
        "/segment",
        params={"format": "nifti"},
        files={"files": ("series.zip", case.upload)},
        data={"prompts": json.dumps(case.prompts[method])},
    )
    answer.raise_for_status()
    return case.grid.nifti(answer.content)


def measure(client: httpx.Client, case: Case) -> Row:
    scores, seconds = {}, {}
    for method in case.prompts:
        started = time.perf_counter()
        scores[method] = dice(ask(client, case, method), case.truth)
        seconds[method] = round(time.perf_counter() - started, 2)
    scores["sphere"] = best_sphere(case.truth, case.click_zyx, tuple(case.grid.spacing_zyx_mm))
    scores["region_growing"] = best_region_growing(case.grid.voxels(), case.truth, case.click_zyx)
    volume_ml = round(float(case.truth.sum()) * case.grid.voxel_ml, 1)
    return Row(case.name, volume_ml, {name: round(value, 3) for name, value in scores.items()}, seconds)


def as_table(rows: list[Row], bundle: str) -> Table:
    headings = (name.removeprefix("region_") for name in METHODS)
    table = Table("case", "ml", *headings, "click s", "box s", title=f"Dice, and seconds; bundle {bundle}")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(row.case, f"{row.volume_ml:.0f}", *cells(row))
    for name, average in (("mean", mean), ("median", median)):
        scores = {method: average(row.dice[method] for row in rows) for method in METHODS}
        seconds = {method: average(row.seconds[method] for row in rows) for method in ("click", "box")}
        table.add_row(name, "", *cells(Row(name, 0, scores, seconds)))
    return table


def cells(row: Row) -> Iterator[str]:
    yield from (f"{row.dice[name]:.3f}" for name in METHODS)
    yield from (f"{row.seconds[name]:.1f}" for name in ("click", "box"))


if __name__ == "__main__":
    typer.run(main)
