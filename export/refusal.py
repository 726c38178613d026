"""How a command of `python -m export` refuses: one line, and exit status 1."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.text import Text


def refusal(error: Exception) -> typer.Exit:
    """To be raised. The line is printed whole: a terminal's width does not break it, brackets in it are no markup."""
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("refused:", "red"), f" {error}"))
    return typer.Exit(1)
