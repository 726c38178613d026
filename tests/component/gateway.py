"""The app in this process, with an engine that the test brings, over httpx."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from service.app import create_app
from service.inference.engine import Engine
from service.settings import Settings


@dataclass
class RunningGateway:
    """The client, and what the app wrote to its log."""

    client: httpx.AsyncClient
    app: FastAPI
    _log: io.StringIO

    @property
    def log_text(self) -> str:
        return self._log.getvalue()

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_text.splitlines()]

    async def segment(
        self,
        files: Iterable[bytes | Path],
        prompts: dict[str, Any] | str | None = None,
        *,
        query: str = "",
        fields: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        **masks: bytes,
    ) -> httpx.Response:
        """POST /segment. Files are sent under their own names; `masks` are the parts organ_mask and mask."""
        parts: list[tuple[str, Any]] = [
            ("files", (file.name, file.read_bytes()) if isinstance(file, Path) else ("upload", file)) for file in files
        ]
        parts += [(name, (name, content)) for name, content in masks.items()]
        if prompts is not None:
            document = prompts if isinstance(prompts, str) else json.dumps(prompts)
            parts.append(("prompts", (None, document, "application/json")))
        return await self.client.post(
            f"/segment{query}", files=parts, data=fields or {}, headers={"accept": "*/*"} | (headers or {})
        )


@asynccontextmanager
async def running(
    engine: Engine, temporary_dir: Path, *, others: Sequence[Engine] = (), **settings: Any
) -> AsyncIterator[RunningGateway]:
    """The started app. `raise_app_exceptions` is on: an error that escapes the app fails the test."""
    log = io.StringIO()
    with tempfile.TemporaryDirectory() as data_dir:
        chosen = {"data_dir": Path(data_dir)} | settings
        app = create_app(Settings(temporary_dir=temporary_dir, **chosen), engine=engine, others=others, log_stream=log)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
        ):
            yield RunningGateway(client, app, log)


def slug(response: httpx.Response) -> str:
    """The slug of a problem, after holding the answer to RFC 9457's shape."""
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert {"type", "title", "status", "detail", "instance"} <= document.keys()
    assert document["status"] == response.status_code
    assert document["instance"] == f"urn:uuid:{response.headers['x-request-id']}"
    page, _, name = document["type"].partition("#")
    assert page == "/docs/errors"
    return name
