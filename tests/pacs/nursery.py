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
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.app import create_app, ledger_of, new_worker, routing_of
from service.audit.trail import AuditTrail
from service.dicom.ingest import SeriesLimits, read_series
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.results import render
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.quiet import silence_foreign_libraries
from service.telemetry.stages import Stages
from tests.fakes.engine import TINY_BUNDLE, FakeEngine
from tests.phantoms import write_ct_series


@cache
def gateway_app(settings_json: str) -> FastAPI:
    """Built before the fork, once: it opens nothing until it runs."""
    return create_app(read_settings(settings_json), engine=FakeEngine(TINY_BUNDLE), log_stream=io.StringIO())


def read_settings(settings_json: str) -> Settings:
    document = json.loads(settings_json)
    return Settings(**document | {"data_dir": Path(document["data_dir"])})


def gateway(settings_json: str) -> None:
    settings, app = read_settings(settings_json), gateway_app(settings_json)
    uvicorn.run(app, host="127.0.0.1", port=settings.port, access_log=False, log_level="critical")


def worker(settings_json: str) -> None:
    settings = read_settings(settings_json)

    async def run() -> None:
        ledger, routing = ledger_of(settings), routing_of(settings)
        log = (settings.data_dir / "work.log").open("a", buffering=1)
        audit = AuditTrail(settings, lambda: None)
        await new_worker(settings, ledger, routing, [FakeEngine(TINY_BUNDLE)], Metrics(), audit, log).run()

    asyncio.run(run())


def write_one_seg() -> None:
    """highdicom's first object takes half a second, which a worker that lives for two should not spend on it."""
    with tempfile.TemporaryDirectory() as directory:
        phantom = write_ct_series(Path(directory), shape_zyx=(6, 24, 24))
        limits = SeriesLimits(max_instances=100, max_voxels=10**6)
        source = read_series(phantom.paths, series_instance_uid=None, limits=limits)
        render("seg", source, Mask(phantom.tumour, source.geometry, 0.9), Prompts(text="t"), TINY_BUNDLE, Stages())


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed are not waited for
    silence_foreign_libraries(lambda: None)
    write_one_seg()
    print("ready", flush=True)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        settings_json = json.dumps(order["settings"])
        gateway_app(settings_json)
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # closed, its number would be a socket's, which libuv forbids
        while True:  # as a supervisor does: one that cannot start, for want of its database, is started again
            try:
                {"gateway": gateway, "worker": worker}[order["kind"]](settings_json)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            time.sleep(0.3)


if __name__ == "__main__":
    main()
