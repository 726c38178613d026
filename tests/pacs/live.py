"""The gateway behind a real socket, in a thread of the test, with an engine that the test brings."""

from __future__ import annotations

import io
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from demo.running import free_port
from service.app import create_app
from service.cli import tls_of
from service.ledger.ledger import Ledger
from service.settings import Settings
from service.telemetry.tracing import Tracing
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine

START_S = 30


@dataclass
class LiveGateway:
    """Its addresses, and a client."""

    url: str
    client: httpx.Client
    ledger: Ledger
    log: io.StringIO
    dimse_port: int

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def wait_for(self, what: str, condition: Any, seconds: float = 240) -> Any:
        """The first true answer of `condition`. Fails with `what` when there is none in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.1)
        jobs = [(view.kind, view.state, view.reason, view.detail) for view in self.ledger.jobs.listed()]
        raise AssertionError(
            f"{what} did not happen in {seconds:g} s; jobs are {jobs}; log {self.log.getvalue()[-2000:]}"
        )

    def jobs(self) -> list[dict[str, Any]]:
        return self.client.get("/jobs").json()["jobs"]

    def all_done(self) -> bool:
        jobs = self.jobs()
        return bool(jobs) and all(job["state"] == "done" for job in jobs)


@contextmanager
def live_gateway(
    data_dir: Path,
    engine: Any = None,
    others: Sequence[Any] = (),
    *,
    verify: ssl.SSLContext | bool = True,
    tracing: Tracing | None = None,
    **settings: Any,
) -> Iterator[LiveGateway]:
    """Args: others: engines of further bundles; verify: how the client checks a gateway with a certificate."""
    port, log = free_port(), io.StringIO()
    dimse_port = free_port()
    chosen = {"min_free_bytes": 0, "dimse_port": dimse_port, "port": port} | settings
    read = Settings(data_dir=data_dir, **chosen)
    default = engine or FakeEngine(FAKE_BUNDLE)
    app = create_app(read, engine=default, others=others, log_stream=log, tracing=tracing)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        ssl_context_factory=tls_of(read),
        access_log=False,
        log_level="critical",
        timeout_keep_alive=120,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.started, "the gateway did not start"
    url = f"{'https' if read.tls_certificate_file else 'http'}://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False, verify=verify) as client:
            yield LiveGateway(url, client, app.state.gateway.ledger, log, dimse_port)
    finally:
        server.should_exit = True
        thread.join(30)
