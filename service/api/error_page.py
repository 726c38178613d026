"""/docs/errors: the page that every problem's `type` points to, made from the error tree, as docs/errors.md is."""

from __future__ import annotations

import html
import inspect

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from service.api.problems import DOCUMENTATION, leaves
from service.errors import TagsError

router = APIRouter()
INTRODUCTION = (
    "Every refusal is `application/problem+json` (RFC 9457). `type` points to a section here, `detail` says what is "
    "wrong with this request, `instance` is the request id that the service's log carries. No answer repeats what was "
    "sent. `Retry-After` says when it is worth trying again."
)


def meaning(leaf: type[TagsError]) -> str:
    """What happened and what to do, in one paragraph: the leaf's docstring."""
    return " ".join(inspect.cleandoc(leaf.__doc__ or "").split())


def errors_markdown() -> str:
    """The content of docs/errors.md. `python -m service.api.error_page > docs/errors.md` writes it."""
    sections = [f"## {leaf.slug}\n\n{leaf.status}: {leaf.title}.\n\n{meaning(leaf)}\n" for leaf in leaves()]
    return "\n".join(["# Errors\n", f"{INTRODUCTION}\n", *sections])


@router.get(DOCUMENTATION, include_in_schema=False)
async def error_page() -> HTMLResponse:
    sections = "".join(
        f'<h2 id="{leaf.slug}">{leaf.slug}</h2><p><b>{leaf.status}</b> {html.escape(leaf.title)}</p>'
        f"<p>{html.escape(meaning(leaf))}</p>"
        for leaf in leaves()
    )
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Errors</title><h1>Errors</h1>'
        f"<p>{html.escape(INTRODUCTION)}</p>{sections}</html>"
    )


if __name__ == "__main__":
    print(errors_markdown(), end="")
