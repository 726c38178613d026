"""`tags rules test FILE DICOM_DIR`: what the routing file would make of the series in a folder, and why.

What enters: a routing file and a folder. What leaves: a table; nothing is stored, segmented or sent, and no value of a
header is printed.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.dicom.keywords import Keywords, read_keywords
from service.errors import NotDicom
from service.rules.decision import Candidate, decide
from service.rules.document import Routing, RoutingInvalid, Rule, read_routing
from service.settings import Settings
from service.telemetry.quiet import silence_foreign_libraries

app = typer.Typer(help="The rules of the routing file.", no_args_is_help=True)


@app.command("test")
def try_rules(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The routing file (YAML).")],
    directory: Annotated[Path, typer.Argument(metavar="DICOM_DIR", exists=True, file_okay=False)],
    calling_ae: Annotated[str, typer.Option(help="As if sent by this AE title.")] = "",
    called_ae: Annotated[str, typer.Option(help="As if sent to this AE title.")] = "",
    via: Annotated[str, typer.Option(help="As if sent by stow or cstore.")] = "stow",
) -> None:
    """Show what would happen to each series, and why."""
    silence_foreign_libraries(lambda: None)
    out = Console()
    try:
        routing = read_routing(file, Settings().profiles_dir)
    except RoutingInvalid as error:
        Console(stderr=True).print(f"[red]{error}[/red]", soft_wrap=True)
        raise typer.Exit(1) from None
    out.print(decisions_table(candidates(directory, via=via, calling_ae=calling_ae, called_ae=called_ae), routing))


def candidates(directory: Path, *, via: str, calling_ae: str, called_ae: str) -> dict[str, list[Candidate]]:
    """The folder's series by study, as rules would see them."""
    headers: dict[tuple[str, str], list[Keywords]] = defaultdict(list)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        try:
            keywords = read_keywords(path)
        except NotDicom:
            continue
        study, series = keywords.get("StudyInstanceUID", ("",)), keywords.get("SeriesInstanceUID", ("",))
        headers[("".join(study), "".join(series))].append(keywords)
    found: dict[str, list[Candidate]] = defaultdict(list)
    for (study_uid, _), images in headers.items():
        found[study_uid].append(Candidate(images[0], len(images), via, calling_ae, called_ae))
    return found


def decisions_table(studies: dict[str, list[Candidate]], routing: Routing) -> Table:
    table = Table("study", "series", "modality", "images", "what would happen", "why")
    for number, series in enumerate(studies.values(), start=1):
        for candidate in series:
            decision = decide(candidate, routing, others=[other for other in series if other is not candidate])
            what = f"refused: {decision.reason}"
            if decision.rule:
                rule = decision.rule
                what = f"{rule.name}: {described_outputs(rule)} to {', '.join(rule.destinations)}, {rule.priority}"
            table.add_row(
                str(number),
                candidate.text("SeriesInstanceUID"),
                candidate.text("Modality"),
                str(candidate.instances),
                what,
                "\n".join(decision.why),
            )
    return table


def described_outputs(rule: Rule) -> str:
    wanted = ", ".join(rule.outputs) if rule.outputs else "the profile's objects"
    wanted += " without the patient" if rule.deidentified else ""
    return f"{wanted} by {rule.bundle}" if rule.bundle else wanted
