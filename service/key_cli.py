"""`tags key new NAME`: an API key, and the line for TAGS_API_KEYS_FILE that lets it in.

What leaves: the key on standard output, once; its line after it. Nothing is stored: whoever runs this puts the line
into the file and hands the key to its user.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console

from service.access.caller import Role
from service.access.keys import KeysInvalid, key_line, new_key

app = typer.Typer(help="API keys.", no_args_is_help=True)


@app.callback()
def key() -> None:
    """API keys."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as pacs; it stands in the audit trail.")],
    role: Annotated[list[Role] | None, typer.Option(help="May be repeated; none for a key that only scrapes.")] = None,
    last_day: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day of its use (UTC).")] = None,
) -> None:
    """Make a key. The first line is the key, the second its line for the file of hashes."""
    made = new_key()
    try:
        line = key_line(name, frozenset(role or ()), made, last_day.date() if last_day else None)
    except KeysInvalid as error:
        Console(stderr=True).print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None
    typer.echo(made)
    typer.echo(line)
