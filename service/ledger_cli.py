"""`tags ledger report`: what became of everything that was received; for a nightly run and a person's eye.

What enters: settings. What leaves: a table or JSON, and exit status 0; 2 when something is open, so that a timer's mail
goes out; 1 when the ledger cannot be read or its sums do not match. UIDs are printed, nothing else of a dataset.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.app import ledger_of
from service.errors import TagsError
from service.ledger.report import Report, reconcile
from service.settings import Settings

app = typer.Typer(help="The ledger of what was received and delivered.", no_args_is_help=True)
OPEN, FAULT = 2, 1


@app.callback()
def ledger() -> None:
    """The ledger of what was received and delivered."""


@app.command()
def report(
    hours: Annotated[float | None, typer.Option(min=0, help="Only series that changed in the last hours.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Every received image, as delivered, refused with its reason, or open; and what retention rules have deleted."""
    out = Console()
    try:
        opened = ledger_of(Settings())
        try:
            found = reconcile(opened.database, since=time.time() - 3600 * hours if hours is not None else 0.0)
        finally:
            opened.close()
    except TagsError as error:
        Console(stderr=True).print(f"[red]{error.title}: {error.detail}[/red]")
        raise typer.Exit(FAULT) from None
    if as_json:
        out.print_json(json.dumps(document(found)))
    else:
        out.print(table(found))
    raise typer.Exit(FAULT if not found.balanced else OPEN if found.open else 0)


def document(found: Report) -> dict[str, object]:
    rows = [{"fate": fate, "reason": reason, "images": count} for (fate, reason), count in found.by_fate.items()]
    return {
        "images": found.instances,
        "balanced": found.balanced,
        "by_fate": rows,
        "open": [asdict(item) for item in found.open],
        "deleted": [asdict(item) for item in found.deleted],
    }


def table(found: Report) -> Table:
    shown = Table("fate", "reason", "images", title=f"{found.instances} images received")
    for (fate, reason), count in sorted(found.by_fate.items()):
        shown.add_row(fate, reason, str(count))
    for gone in found.deleted:
        unfinished = f", {gone.unfinished} series not finished" if gone.unfinished else ""
        shown.add_row("deleted", f"retention: {gone.rule}", f"{gone.instances} in {gone.series} series{unfinished}")
    for item in found.open:
        shown.add_row("open", item.reason, f"{item.instances} in {item.series_instance_uid}")
    return shown
