"""`tags doctor`: every check of service/doctor as a table, JSON, or a record to sign.

What enters: settings. What leaves: exit status 0 when nothing is red, 1 otherwise; nothing of a dataset.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from service.dimse.foreign import prepare_pynetdicom
from service.doctor.check import Check
from service.doctor.examination import Findings, examine
from service.doctor.report import write_report
from service.preview import RESEARCH_USE
from service.settings import Settings
from service.telemetry.quiet import silence_foreign_libraries

RED = 1
COLOURS = {"green": "green", "amber": "yellow", "red": "red", "skipped": "dim"}
FIX_SETTINGS = "Correct the variable; docs/settings.md says what it takes."


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON, instead of lines.")] = False,
    report: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A site-acceptance record, .html or .pdf.")
    ] = None,
    store: Annotated[bool, typer.Option(help="Send a phantom to each destination; it stays there.")] = True,
) -> None:
    """Check this installation on its real parts, and say how to mend what is wrong."""
    if report and report.suffix.lower() not in (".html", ".pdf"):
        raise typer.BadParameter("a report is a .html or a .pdf file", param_hint="--report")
    silence_foreign_libraries(lambda: None)
    prepare_pynetdicom()
    out = Console()

    def show(check: Check) -> None:
        if not as_json:
            colour = COLOURS[check.state]
            out.print(
                f"[{colour}]{check.state:8}[/{colour}]{escape(check.name)}: {escape(check.found)}", soft_wrap=True
            )
            if check.fix:
                out.print(f"        -> {escape(check.fix)}", soft_wrap=True)

    findings = examination(store, show)
    if as_json:
        out.print_json(json.dumps(findings.document()))
    else:
        out.print(f"{findings.verdict}. {RESEARCH_USE}")
    if report:
        write_report(findings, report)
    raise typer.Exit(RED if findings.is_red else 0)


def examination(store: bool, show: Callable[[Check], None]) -> Findings:
    """The findings; settings that are not valid are the only one, since nothing else can be looked at."""
    try:
        settings = Settings()
    except ValidationError as error:
        checks = [
            Check(f"setting TAGS_{'.'.join(map(str, item['loc'])).upper()}", "red", item["msg"], FIX_SETTINGS)
            for item in error.errors(include_input=False)
        ]
        for check in checks:
            show(check)
        return Findings.of(checks)
    return asyncio.run(examine(settings, store=store, on_check=show))
