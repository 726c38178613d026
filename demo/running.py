"""The real service as a process of its own, for the demo, the measurements in bench/ and the tests in tests/e2e.

What enters: settings. What leaves: an HTTP client for a service that has said it is ready; the process ends with the
context, whatever happened in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from service.triton_server import free_ports

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 120  # the networks load in seconds; a busy two-core machine takes its time
REQUEST_TIMEOUT_S = 300
STOP_TIMEOUT_S = 15
POLL_S = 0.2


class ServiceDidNotStart(RuntimeError):
    """The process ended, or did not become ready in time; the text is what it said."""


@contextmanager
def running_service(**settings: str) -> Iterator[httpx.Client]:
    """Args: settings: `TAGS_*` without the prefix, in lower case. Raises: ServiceDidNotStart."""
    port = free_port()
    environment = os.environ | {f"TAGS_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)  # noqa: S603
        try:
            # trust_env: a proxy of the user's has no place between us and 127.0.0.1
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", timeout=REQUEST_TIMEOUT_S, trust_env=False
            ) as client:
                wait_until_ready(client, process, log)
                yield client
        finally:
            stop(process)


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/health/ready").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(POLL_S)
    log.seek(0)
    raise ServiceDidNotStart(log.read().decode(errors="replace").strip() or "the service was not ready in time")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    return free_ports(1)[0]
