"""`python -m training evaluate`: a bundle on cases with known tumours, answered as the service would, and baselines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from rich.progress import track

from contract.bundle import Bundle, load_bundle
from service.errors import SeriesRefused
from service.inference.embedded import EmbeddedEngine
from training.evaluation.cases import Case, read_case
from training.evaluation.prompting import PROMPTS
from training.evaluation.report import figures, markdown, summarise
from training.evaluation.scoreboard import Board, Plan, SliceModel, measure_all
from training.layouts import CaseFiles, CaseUnusable, LayoutUnknown, find_cases

ALL = "all"


def evaluate(
    out: Annotated[Path, typer.Option(help="JSON with every answer, the means and their intervals")],
    bundle: Annotated[Path, typer.Option(help="directory of the bundle")] = Path("model_repository"),
    cases: Annotated[
        Path | None, typer.Option(exists=True, help="folder in MSD, KiTS, LiTS or CASE/image layout, or a CSV file")
    ] = None,
    phantoms: Annotated[int, typer.Option(help="how many held-out phantoms, instead of or after the cases")] = 0,
    prompts: Annotated[str, typer.Option(help=f"all, or some of {', '.join(PROMPTS)}, separated by commas")] = ALL,
    baselines: Annotated[bool, typer.Option(help="also what clicks and boxes give without TAGS")] = True,
    litemedsam: Annotated[bool, typer.Option(help="LiteMedSAM among the baselines (extra `litemedsam`)")] = False,
    only: Annotated[str, typer.Option(help="cases whose name has this in it")] = "",
    organ: Annotated[str | None, typer.Option(help="of cases that name none; text prompts need one")] = None,
    record: Annotated[
        str, typer.Option(help="write the means into the bundle's own quality, under this name of the cases")
    ] = "",
    threads: int = 2,
    seed: Annotated[int, typer.Option(help="of random clicks and jittered boxes")] = 0,
) -> None:
    """Dice, NSD, HD95 and volume error for clicks, boxes, text and organ mask, through the service's own code."""
    plan = Plan(_known(prompts), seed, baselines, _litemedsam() if litemedsam else None)
    files = [_with_organ(entry, organ) for entry in _found(cases) if only in entry.name]
    if not (files or phantoms):
        raise typer.BadParameter("there is no case to measure: give --cases, --phantoms or both")
    engine = EmbeddedEngine(load_bundle(bundle), threads=threads, max_waiting=1)
    unusable: dict[str, str] = {}
    every = chain(_usable(files, unusable), _phantoms(phantoms))
    board = anyio.run(measure_all, track(every, "measuring", total=len(files) + phantoms), plan, engine)
    summary = summarise(board.rows, board.patients)
    document = {
        "bundle": _identity(engine.bundle),
        "cases": _about(board) | {"unusable": unusable},
        "prompts": plan.prompts,
        "seed": seed,
        "machine": {"cpus": os.cpu_count(), "threads": threads},
        "summary": asdict(summary),
        "rows": [asdict(row) for row in board.rows],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    if record:
        quality = engine.bundle.quality | {record: figures(summary, len(board.volumes_ml))}
        replace(engine.bundle, quality=quality).write(bundle)
    for name, reason in unusable.items():
        typer.echo(f"not measured: {name}: {reason}", err=True)
    typer.echo(f"{engine.bundle.identity}, {len(board.volumes_ml)} cases\n\n{markdown(summary)}")


def _known(prompts: str) -> tuple[str, ...]:
    wanted = tuple(PROMPTS) if prompts == ALL else tuple(name.strip() for name in prompts.split(","))
    if unknown := sorted(set(wanted) - set(PROMPTS)):
        raise typer.BadParameter(f"unknown prompts: {', '.join(unknown)}")
    return wanted


def _found(source: Path | None) -> tuple[CaseFiles, ...]:
    try:
        return find_cases(source) if source else ()
    except LayoutUnknown as error:
        raise typer.BadParameter(str(error)) from error


def _with_organ(files: CaseFiles, organ: str | None) -> CaseFiles:
    return files if files.organ else replace(files, organ=organ)


def _usable(files: Iterable[CaseFiles], unusable: dict[str, str]) -> Iterator[Case]:
    """One case at a time in memory; why one cannot be measured goes to `unusable`."""
    for entry in files:
        try:
            yield read_case(entry)
        except (CaseUnusable, SeriesRefused) as error:
            unusable[entry.name] = str(error)


def _phantoms(count: int) -> Iterator[Case]:
    if count:
        from training.evaluation.phantoms import phantom_case  # needs torch

        yield from map(phantom_case, range(count))


def _identity(bundle: Bundle) -> dict[str, Any]:
    return {"name": bundle.name, "version": bundle.version, "files": bundle.files, "training": bundle.training}


def _about(board: Board) -> dict[str, Any]:
    return {"volume_ml": board.volumes_ml, "patients": len(set(board.patients.values()))}


def _litemedsam() -> SliceModel:
    from training.evaluation.litemedsam import LiteMedSam  # needs torch and an extra of its own

    return LiteMedSam()
