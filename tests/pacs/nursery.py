"""A process that has imported everything and forks gateways and workers on demand: a killed one is back at once.

Reads one JSON line per process to start (`{"kind": "gateway" | "worker", "settings": {...}}`) and answers with its pid.
It has one thread, so forking is safe; children open their own ledger and engine.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvicorn

from service.app import create_app, ledger_of, new_worker
from service.rules.reloading import ReloadingRouting
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.quiet import silence_foreign_libraries
from tests.fakes.engine import COARSE_BUNDLE, FakeEngine


def gateway(settings: Settings) -> None:
    app = create_app(settings, engine=FakeEngine(COARSE_BUNDLE), log_stream=io.StringIO())
    uvicorn.run(app, host="127.0.0.1", port=settings.port, access_log=False, log_level="critical")


def worker(settings: Settings) -> None:
    async def run() -> None:
        log = (settings.data_dir / "work.log").open("a", buffering=1)
        routing = ReloadingRouting(settings.routing_file)
        await new_worker(settings, ledger_of(settings), routing, FakeEngine(COARSE_BUNDLE), Metrics(), log).run()

    asyncio.run(run())


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed are not waited for
    silence_foreign_libraries(lambda: None)
    print("ready", flush=True)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        try:
            os.close(0)
            settings = Settings(**{**order["settings"], "data_dir": Path(order["settings"]["data_dir"])})
            {"gateway": gateway, "worker": worker}[order["kind"]](settings)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(1)


if __name__ == "__main__":
    main()
