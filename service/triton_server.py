"""`tags triton`: the real `tritonserver` on this machine's CPU, serving a bundle's networks and the ensemble `tags`.

What enters: a bundle directory, which is a Triton model repository, and an `Installation`. What leaves: a server on
127.0.0.1 that has answered a canary inference. Triton's own readiness is not believed: it stays READY after its Python
stub died. The server gets a process group of its own, so that a stop leaves no stub behind.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import httpx
import numpy as np

from contract.bundle import Bundle
from contract.tensors import CLIP_TEXT_EMBEDDER, network_specs
from service.triton_install import Installation, TritonUnavailable, install

HOST = "127.0.0.1"
FREE_PORTS = range(12_000, 32_000)  # Linux gives those from 32768 on to outgoing connections
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Triton and its stubs exchange tensors, not a file of ours)  # nosec B108
EXIT_TIMEOUT_S = 5  # that Triton gives requests in flight when asked to stop
KILL_TIMEOUT_S = 20  # after which it is killed
START_TIMEOUT_S = 180  # four models with warm-up on a busy two-core machine
STUB_TIMEOUT_S = 120  # for one model to load
POLL_S = 0.2
LOG_LINES = 5  # of the server's log in an error


@dataclass(frozen=True)
class Ports:
    """TCP ports of one server, all on 127.0.0.1."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @classmethod
    def free(cls) -> Ports:
        """Three of `free_ports`."""
        return cls(*free_ports(3))


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment, below those that a system gives to outgoing connections: one of
    these could else take a port before its server does."""
    found: set[int] = set()
    while len(found) < count:
        port = FREE_PORTS.start + secrets.randbelow(len(FREE_PORTS))
        with suppress(OSError), socket.create_server((HOST, port)):
            found.add(port)
    return list(found)


class TritonServer:
    """One server process. A context manager; `start` and `stop` may alternate. Its methods block."""

    def __init__(self, bundle: Bundle, installation: Installation, *, ports: Ports, log: Path) -> None:
        """Args: log: file for the server's own messages, begun anew at each start; it holds no tensors."""
        self._bundle = bundle
        self._installation = installation
        self._log = log
        self.ports = ports
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What TAGS_TRITON_URL takes: host and gRPC port."""
        return f"{HOST}:{self.ports.grpc}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait for a canary inference. Raises: TritonUnavailable."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self._command(),
                env=self._installation.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._await_canary(self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ask, wait, then kill what is left, and free the shared memory that a killed stub leaves behind."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(KILL_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End the server and its stubs at once, as a crash would."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        for region in SHARED_MEMORY.glob(f"{self._region_prefix}*"):
            region.unlink(missing_ok=True)

    @property
    def _region_prefix(self) -> str:
        return f"tags_triton_{self.ports.grpc}_"

    def _command(self) -> list[str]:
        options = {
            "model-repository": self._bundle.directory.resolve(),
            "backend-directory": self._installation.backends,
            "http-address": HOST,
            "http-port": self.ports.http,
            "grpc-address": HOST,
            "grpc-port": self.ports.grpc,
            "metrics-address": HOST,
            "metrics-port": self.ports.metrics,
            "exit-timeout-secs": EXIT_TIMEOUT_S,
            "log-info": "false",
            "allow-gpu-metrics": "false",
        }
        backend = {"shm-region-prefix-name": self._region_prefix, "stub-timeout-seconds": STUB_TIMEOUT_S}
        return [
            str(self._installation.server),
            *(f"--{name}={value}" for name, value in options.items()),
            *(f"--backend-config=python,{name}={value}" for name, value in backend.items()),
        ]

    def _await_canary(self, process: subprocess.Popen[bytes]) -> None:
        request = _canary(self._bundle)
        address = f"http://{HOST}:{self.ports.http}/v2/models/{CLIP_TEXT_EMBEDDER}/infer"
        deadline = time.monotonic() + START_TIMEOUT_S
        with httpx.Client(trust_env=False, timeout=STUB_TIMEOUT_S) as client:
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    raise TritonUnavailable(f"Triton ended with status {process.returncode}: {self._last_words()}")
                with suppress(httpx.TransportError):
                    if client.post(address, json=request).is_success:
                        return
                time.sleep(POLL_S)
        raise TritonUnavailable(f"Triton did not answer within {START_TIMEOUT_S} s: {self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-LOG_LINES:]) or "it said nothing"


def _canary(bundle: Bundle) -> dict[str, object]:
    """An inference request for the text embedder, all zeros, as the HTTP protocol writes it."""
    datatypes = {"int32": "INT32", "float32": "FP32"}
    inputs = [
        {
            "name": tensor.name,
            "datatype": datatypes[tensor.dtype],
            "shape": [1, *tensor.shape],
            "data": np.zeros(tensor.shape, tensor.dtype).ravel().tolist(),
        }
        for tensor in network_specs(bundle.sizes)[CLIP_TEXT_EMBEDDER].inputs
    ]
    return {"inputs": inputs}


def run_triton(bundle: Bundle, directory: Path, ports: Ports) -> int:
    """Install if needed, serve until SIGINT or SIGTERM, stop. The exit status for the command line: 0 after a signal,
    else the server's own. `directory` keeps the installation and the log. Raises: TritonUnavailable."""
    asked_to_stop = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        if server.process is not None:
            server.process.terminate()

    server = TritonServer(bundle, install(directory), ports=ports, log=directory / "triton.log")
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.start()
        process = server.process
        assert process is not None
        print(f"Triton serves {bundle.identity} on {server.url} (gRPC); HTTP {ports.http}, metrics {ports.metrics}")
        print(f"use it with: TAGS_ENGINE=triton TAGS_TRITON_URL={server.url} tags serve", flush=True)
        status = process.wait()
    except TritonUnavailable:
        if not asked_to_stop:
            raise
        status = 0
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if asked_to_stop else status
