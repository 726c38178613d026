"""An S3 server as a process of the test (moto, which speaks S3 over HTTP), and a wire to it that can be watched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import httpx

from demo.running import free_port
from tests.conftest import require

START_S = 120
BUCKET = "tags-test"
CREDENTIALS = {  # moto takes any; the last two keep botocore from looking for others
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
}  # fmt: skip


def require_s3() -> None:
    require(find_spec("moto") is not None and find_spec("s3fs") is not None, "moto or s3fs is not installed")


@contextmanager
def running_s3(port: int) -> Iterator[str]:
    """Yields: its address. The bucket is there."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | CREDENTIALS
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while True:
            with suppress(httpx.HTTPError):
                if httpx.put(f"{url}/{BUCKET}", trust_env=False, timeout=30).is_success:
                    break
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


class Wire:
    """Passes bytes on to a port and counts those that go there; `held` lets no more through after so many."""

    def __init__(self, port: int) -> None:
        self.passed, self.held = 0, sys.maxsize
        self._port = port
        self._server = socket.create_server(("127.0.0.1", free_port()))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with source, sink, suppress(OSError):
            while block := source.recv(65536):
                self.passed += len(block) if counted else 0
                while counted and self.passed > self.held:
                    time.sleep(0.05)
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    wire = Wire(port)
    try:
        yield wire
    finally:
        wire.close()
